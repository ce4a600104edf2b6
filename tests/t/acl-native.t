#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# acl.t on the fanotify gate: if this fails, an ACL of the origin lets the wrong users into a native clone.
# asan: no
. "$(dirname "$0")/../tools/native.sh"
