#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# If this fails, a test of the kernel series does, inside a User-Mode Linux with the series, or the kernel itself complained.
# alone: yes
# asan: no
exec "$(dirname "$0")/../../kernel/tests/run"
