#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# badinput.t on the fanotify gate: if this fails, a mistake or a broken peer leaves something half made behind.
# asan: no
. "$(dirname "$0")/../tools/native.sh"
