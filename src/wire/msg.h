/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Checked encoding and decoding of FUSE messages, in both directions, by the table in ops.h.
 *
 * Decoding trusts nothing: every length is checked against the message, names are checked to be names, counts
 * are checked before they are multiplied. A decoded message points into the buffer it was decoded from; its
 * fixed structure is a copy, zero-extended where an older peer sent a shorter one. No function here blocks or
 * locks.
 */
#pragma once

#include <sys/uio.h>

#include "wire/ops.h"

/* The largest payload of one message that either side ever negotiates, and the room for headers beside it. */
#define SL_WIRE_MAX_DATA (1u << 20)
#define SL_WIRE_HEADROOM 4096u
#define SL_WIRE_MAX_MSG	 (SL_WIRE_MAX_DATA + SL_WIRE_HEADROOM)

union sl_in {
	struct fuse_forget_in forget;
	struct fuse_batch_forget_in batch_forget;
	struct fuse_getattr_in getattr;
	struct fuse_setattr_in setattr;
	struct fuse_mknod_in mknod;
	struct fuse_mkdir_in mkdir;
	struct fuse_rename_in rename;
	struct fuse_rename2_in rename2;
	struct fuse_link_in link;
	struct fuse_open_in open;
	struct fuse_create_in create;
	struct fuse_release_in release;
	struct fuse_flush_in flush;
	struct fuse_read_in read;
	struct fuse_write_in write;
	struct fuse_fsync_in fsync;
	struct fuse_setxattr_in setxattr;
	struct fuse_getxattr_in getxattr;
	struct fuse_lk_in lk;
	struct fuse_access_in access;
	struct fuse_init_in init;
	struct fuse_interrupt_in interrupt;
	struct fuse_bmap_in bmap;
	struct fuse_ioctl_in ioctl;
	struct fuse_poll_in poll;
	struct fuse_fallocate_in fallocate;
	struct fuse_lseek_in lseek;
	struct fuse_copy_file_range_in copy_file_range;
	struct fuse_statx_in statx;
	struct fuse_fsnotify_in fsnotify;
};

union sl_out {
	struct fuse_entry_out entry;
	struct fuse_attr_out attr;
	struct fuse_open_out open;
	struct fuse_create_out create;
	struct fuse_write_out write;
	struct fuse_statfs_out statfs;
	struct fuse_getxattr_out getxattr;
	struct fuse_lk_out lk;
	struct fuse_init_out init;
	struct fuse_bmap_out bmap;
	struct fuse_ioctl_out ioctl;
	struct fuse_poll_out poll;
	struct fuse_lseek_out lseek;
	struct fuse_statx_out statx;
	struct fuse_fsnotify_out fsnotify;
};

/* A decoded request. */
struct sl_msg_in {
	struct fuse_in_header h;
	const struct sl_op *op;
	union sl_in in;
	const char *name, *name2; /* NUL-terminated, NULL where the operation has none */
	const void *data; /* for SL_TAIL_FORGETS: in.batch_forget.count unaligned struct fuse_forget_one */
	size_t data_len;
};

/* A decoded reply or notification. */
struct sl_msg_out {
	struct fuse_out_header h;
	union sl_out out;
	const void *data; /* what follows the fixed structure */
	size_t data_len;
};

/**
 * Decode a request. @init_flags: the INIT flags in force (FUSE_SETXATTR_EXT decides a layout), 0 before INIT.
 * Returns 0; -EPROTO for a malformed message (@m->h is valid if @len reaches it); -ENOSYS for an unknown
 * opcode.
 */
int sl_msg_in_decode(const void *buf, size_t len, uint64_t init_flags, struct sl_msg_in *m);

/** Decode the reply to a request of operation @op (NULL for a notification, which is left in data). 0 or
 * -EPROTO. */
int sl_msg_out_decode(const void *buf, size_t len, const struct sl_op *op, struct sl_msg_out *m);

/**
 * Lay out a request as @iov (room for SL_MSG_IOV). @h gets its len. @in may be NULL where the operation has
 * no structure. The pieces are not copied: all must live until the message is written. Returns the number of
 * entries, or -EINVAL where the pieces do not fit the operation.
 */
#define SL_MSG_IOV 5
int sl_msg_in_encode(struct fuse_in_header *h, const union sl_in *in, const char *name, const char *name2,
		     const void *data, size_t data_len, uint64_t init_flags, struct iovec iov[SL_MSG_IOV]);

/* Records of READDIR and READDIRPLUS replies. */
struct sl_dirent {
	uint64_t ino;
	uint64_t off;
	uint32_t type;
	uint32_t namelen;
	const char *name;	     /* not terminated */
	struct fuse_entry_out entry; /* READDIRPLUS only */
};

/**
 * Take the next record from *@p, of which *@left bytes are left, and advance both.
 * Returns 1, 0 at the end, or -EPROTO. "." and ".." are records like any other; every other name is a valid
 * one.
 */
int sl_dirent_next(const void **p, size_t *left, bool plus, struct sl_dirent *d);
/** Append a record to @buf of @cap bytes at *@len. False when it does not fit. */
bool sl_dirent_add(void *buf, size_t cap, size_t *len, bool plus, const struct sl_dirent *d);
/** The INIT flags of both words. */
static inline uint64_t sl_init_flags(uint32_t flags, uint32_t flags2)
{
	return flags & FUSE_INIT_EXT ? flags | (uint64_t)flags2 << 32 : flags;
}
