#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# uses.t with native clones.
. "$(dirname "$0")/../tools/native.sh"
