/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Mounting and unmounting FUSE: with privilege by mount(2), without through fusermount3. */
#pragma once

#include <stdbool.h>

#include "base/why.h"

struct sl_mount_options {
	bool allow_other; /* users other than the one who mounts */
	bool read_only;
};

/** Mount on the directory @dir. Returns the /dev/fuse descriptor, or -errno with a sentence. */
int sl_fuse_mount(const char *dir, const struct sl_mount_options *o, char **why);
/**
 * Unmount what is mounted on @dir. @lazy: also while it is in use; what is in use ends when its users do.
 * -EBUSY where it is in use.
 */
int sl_fuse_unmount(const char *dir, bool lazy, char **why);

enum sl_mounted { SL_NOT_MOUNTED, SL_MOUNTED_OURS, SL_MOUNTED_OTHER };
/** What is mounted on just this directory: nothing, a mount of this program, something else. Works for dead
 * mounts. */
enum sl_mounted sl_fuse_mounted(const char *dir);
/** Can this process mount? 0, or -errno with the reason and what to do. */
int sl_fuse_available(char **why);
