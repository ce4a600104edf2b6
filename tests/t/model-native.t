#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# model.t on the fanotify gate: if this fails, some sequence of operations has another result on a native clone than on an ordinary directory.
. "$(dirname "$0")/../tools/native.sh"
