#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# asan: no
# storm-events.t with native clones.
. "$(dirname "$0")/../tools/native.sh"
