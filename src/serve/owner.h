/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Making objects that belong to who asked for them: this thread's filesystem ids, for one system call. */
#pragma once

#include <stdint.h>

/**
 * From here on what this thread makes belongs to @uid and @gid; what it may do stays the same. For root.
 * Returns 0, or -EINVAL for ids that cannot be, -EPERM; then nothing has changed.
 */
int sl_owner_set(uint32_t uid, uint32_t gid);
/** The process's own again. */
void sl_owner_reset(void);
