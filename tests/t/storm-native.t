#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# If this fails, a service that is killed at the wrong moment gives a program on a native clone wrong bytes or an error.
# ROUNDS=200 SEED=… tests/t/storm-native.t is the long form.
. "$(dirname "$0")/../tools/native.sh" storm-fuse
