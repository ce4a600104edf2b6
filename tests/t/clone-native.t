#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# clone.t on the fanotify gate: if this fails, a name, an attribute or a byte of a native clone is not what the origin has.
# asan: no
. "$(dirname "$0")/../tools/native.sh"
