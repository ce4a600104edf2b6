#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# long: yes
# asan: no
# keeper.t with native clones.
. "$(dirname "$0")/../tools/native.sh"
