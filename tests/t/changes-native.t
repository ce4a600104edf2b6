#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Local changes, changes at the origin, and being in use, on native clones: if this fails, something that was written is lost, or
# content of two versions is mixed, or somebody reads zeros.
. "$(dirname "$0")/../tools/native.sh" --self
. "$(dirname "$0")/lib.sh"
. "$TOOLS/clone.sh"
import_tap "" env SL_TEST="$TOOLS/native-changes.py" PYTHONUNBUFFERED=1 python3 "$TOOLS/native-changes.py"
done_testing
