#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# restart.t on the fanotify gate: if this fails, a native clone is not what it was when its service comes back.
. "$(dirname "$0")/../tools/native.sh"
