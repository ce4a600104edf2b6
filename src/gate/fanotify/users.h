/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What of the clone's filesystem is in use in a way that a lease on a file does not show. */
#pragma once

#include "gate/fanotify/gate.h"

struct sl_fan_users {
	uint64_t *ino; /* inode numbers, in order; some may come twice */
	size_t n, cap;
};

/**
 * What is open anywhere (also as O_PATH), what programs are in, what is mounted or mounted on, what is
 * watched, and what accesses that the gate has not answered yet are about. The service's own descriptors do
 * not count. What came after the call was begun may be missing. Reads procfs, and asks no server of another
 * filesystem: some milliseconds, more where there are many processes. -errno: something cannot be known;
 * -EBUSY: more accesses come than the gate reads.
 */
int sl_fan_users_get(struct sl_fan *g, struct sl_fan_users *u);
bool sl_fan_users_has(const struct sl_fan_users *u, uint64_t ino);
void sl_fan_users_fini(struct sl_fan_users *u);

/**
 * Wait for @ns, and until every thread that could run when this was called has run, or sleeps: one that was
 * told that nothing need be asked has looked since. -EAGAIN: some have not for seconds, so busy is the
 * machine.
 */
int sl_fan_let_run(uint64_t ns);
