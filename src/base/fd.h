/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Helpers for descriptors and paths: whole reads and writes, bounded text files, names. No function keeps
 * state. */
#pragma once

#include <stdbool.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "base/macros.h"

/** Read exactly @n bytes. Returns 0, -ENODATA at a clean end of file before the first byte, -EPIPE at one
 * inside, or -errno. */
int sl_read_full(int fd, void *buf, size_t n);
/** Write exactly all of @iov (which it changes). Returns 0 or -errno. */
int sl_writev_full(int fd, struct iovec *iov, int cnt);
int sl_write_full(int fd, const void *buf, size_t n);
int sl_pwrite_full(int fd, const void *buf, size_t n, off_t off);
/** Read up to @n bytes at @off until end of file. Returns the number of bytes or -errno. */
ssize_t sl_pread_full(int fd, void *buf, size_t n, off_t off);

/** Open what the O_PATH descriptor @fd denotes with new @flags, through /proc/self/fd. Returns a descriptor
 * or -errno. */
int sl_reopen(int fd, int flags);
/** Give the open file @fd the name @name in @dirfd. Returns 0 or -errno. */
int sl_link_fd(int fd, int dirfd, const char *name);
/** Nobody else has the regular file @fd open or mapped: 0. -EBUSY; -errno where that cannot be known (no
 * leases). Tries a write lease and gives it back at once. */
int sl_only_opener(int fd);
/** "/proc/self/fd/N", optionally with "/name", in @buf. For the xattr calls, which know no *at() form.
 * Returns @buf. */
#define SL_PROC_FD_MAX (sizeof("/proc/self/fd/") + 11 + 1 + 256)
char *sl_proc_fd_path(char buf[SL_PROC_FD_MAX], int fd, const char *name);

/** A whole small file as a string that the caller frees. -EFBIG above @max bytes. */
int sl_read_file(int dirfd, const char *name, size_t max, char **ret, size_t *ret_len);
/**
 * Replace a file atomically and durably: write a temporary, fsync, rename, fsync the directory. @name has no
 * '/'. Only one thread of a process at a time for one name.
 */
int sl_write_file(int dirfd, const char *name, const void *buf, size_t n, mode_t mode);
/** mkdir -p. */
int sl_mkdirs(const char *path, mode_t mode);
/** Remove everything below @name in @dirfd, and @name itself. Follows no symlink, crosses no mount. -ENOENT
 * is success. */
int sl_remove_tree(int dirfd, const char *name);

/** True for a name that may stand in a directory: 1 to 255 bytes, no '/', no NUL, not "." and not "..". */
bool sl_name_valid(const char *name, size_t len);
/** strdup of @a "/" @b; @a may be "" (then @b alone). NULL without memory. */
char *sl_path_join(const char *a, const char *b);

/** A bound or connected unix socket at @path of any length. Returns a descriptor or -errno. */
int sl_unix_listen(const char *path, mode_t mode);
int sl_unix_connect(const char *path);
/** Raise the soft limit of open files to the hard one; returns the limit now in force. */
size_t sl_raise_nofile(void);
