#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# If this fails, a name that a user took away from a native clone comes back, or one that the origin has is not shown.
. "$(dirname "$0")/../tools/native.sh" --self
. "$(dirname "$0")/lib.sh"
. "$TOOLS/clone.sh"
import_tap "" env SL_TEST="$TOOLS/native-names.py" PYTHONUNBUFFERED=1 python3 "$TOOLS/native-names.py"
done_testing
