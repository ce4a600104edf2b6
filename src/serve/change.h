/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the operations that make names share (names.c). */
#pragma once

#include <sys/types.h>

#include "serve/connection.h"

/** A descriptor (O_PATH) of the directory @nodeid, in which names may be changed; -errno. */
int sl_change_dir(struct sl_conn *c, uint64_t nodeid);
/** The mode to make something with in @dirfd: a default ACL stands in for the umask. */
mode_t sl_change_mode(int dirfd, uint32_t mode, uint32_t umask);
/** What this thread makes until sl_change_end() belongs to whom the export says. Returns 0, -EINVAL, -EPERM.
 */
int sl_change_begin(struct sl_conn *c, const struct sl_req *rq);
void sl_change_end(struct sl_conn *c);
