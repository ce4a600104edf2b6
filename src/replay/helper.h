/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The process that makes the replay's system calls on a FUSE mount: see gate/fuse/echo.h for why it is one.
 * It has no descriptor but its socket and, while it is attached, the mount's root; it ends with the service.
 * One command at a time, from one thread.
 */
#pragma once

#include <stdint.h>
#include <sys/types.h>
#include <time.h>

#define SL_HELPER_PATH 4096

enum sl_helper_op {
	SL_HELPER_ATTACH, /* name: the mount's directory; name2: the staging directory's name */
	SL_HELPER_DETACH, /* so that the mount can be taken away */
	SL_HELPER_MKNOD,
	SL_HELPER_MKDIR,
	SL_HELPER_SYMLINK, /* name2: the target */
	SL_HELPER_UNLINK,
	SL_HELPER_RMDIR,
	SL_HELPER_RENAME, /* to name2 in dir2 */
	SL_HELPER_TIMES,  /* name may be empty: dir itself */
	SL_HELPER_CLOSE,  /* open (flags: O_RDONLY or O_WRONLY), and close; name may be empty */
};

/* Directories are paths below the mount; NULL: the staging directory. */
struct sl_helper_call {
	enum sl_helper_op op;
	const char *dir, *name, *dir2, *name2;
	uint32_t mode; /* MKNOD: with its type */
	dev_t rdev;
	unsigned flags; /* RENAME: as renameat2; CLOSE */
	struct timespec atime, mtime;
};

struct sl_helper;

/** Call with one thread only. */
int sl_helper_start(struct sl_helper **ret);
/** NULL is fine. */
void sl_helper_stop(struct sl_helper *h);
pid_t sl_helper_pid(const struct sl_helper *h);
/** Returns what the system call did: 0 or -errno; -EPIPE when the helper is gone. */
int sl_helper_call(struct sl_helper *h, const struct sl_helper_call *c);
