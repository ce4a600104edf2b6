#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# long: yes
# asan: no
# watchers.t with a share.
export STANDIN=share
exec "${0%-share.t}.t"
