/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The system's half of test_proto: its names and ours cannot be in one translation unit. */
#include <linux/fuse.h>

#include "proto_check.h"

const struct proto_fact proto_system[] = {
#include "proto_names.h"
};
const size_t proto_system_count = sizeof(proto_system) / sizeof(proto_system[0]);
