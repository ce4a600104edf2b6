#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# fileops.t on the fanotify gate: if this fails, a program that works on an ordinary directory does not work on a native clone.
. "$(dirname "$0")/../tools/native.sh"
