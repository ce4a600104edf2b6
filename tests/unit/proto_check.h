/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What test_proto.c and proto_system.c each state about the header that they include. */
#pragma once

#include <stddef.h>
#include <stdint.h>

struct proto_fact {
	const char *name;
	uint64_t a, b; /* size; offset and size; value */
};

extern const struct proto_fact proto_system[];
extern const size_t proto_system_count;

#define SIZE(s)	     {"sizeof(" #s ")", sizeof(struct s), 0},
#define OFFSET(s, m) {#s "." #m, offsetof(struct s, m), 0},
#define MEMBER(s, m) {#s "." #m, offsetof(struct s, m), sizeof(((struct s *)0)->m)},
#define CONSTANT(n)  {#n, (uint64_t)(n), 0},
