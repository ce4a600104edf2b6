#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# versions.t on the fanotify gate: if this fails, a reader gets bytes of two versions in one answer, or zeros that no version has.
# asan: no
. "$(dirname "$0")/../tools/native.sh"
