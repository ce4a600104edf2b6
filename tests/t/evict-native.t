#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# evict.t on the fanotify gate: if this fails, eviction takes what must stay, or a reader sees what is being taken away.
. "$(dirname "$0")/../tools/native.sh"
