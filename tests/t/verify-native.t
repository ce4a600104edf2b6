#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# verify.t on the fanotify gate: if this fails, 'sluice verify' says that a native clone is right when it is not.
# asan: no
. "$(dirname "$0")/../tools/native.sh"
