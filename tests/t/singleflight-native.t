#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# singleflight.t on the fanotify gate: if this fails, readers at the same time multiply what travels.
# asan: no
. "$(dirname "$0")/../tools/native.sh"
