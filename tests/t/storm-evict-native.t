#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# long: yes
# If this fails, content of a native clone that is taken away over and over is missing, or wrong, for somebody meanwhile.
# asan: no
. "$(dirname "$0")/../tools/native.sh"
