/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The FUSE protocol's messages, version 7, and this project's extensions of it.
 *
 * Names, numbers and layouts follow the protocol's public definition (Linux, include/uapi/linux/fuse.h,
 * versions up to 7.45), so that who knows the protocol knows this header; it stands alone because the
 * system's own header may be older than what the running kernel or a peer speaks. tests/unit/test_proto.c
 * compares both. Every integer is little-endian on a stream. Structures are naturally aligned and have no
 * hidden padding.
 *
 * A message is a header and a body; the header's first word is the length of both. Requests start with struct
 * fuse_in_header, replies with struct fuse_out_header; a notification is a reply with unique == 0 whose error
 * field holds the notify code.
 */
#pragma once

#include <stdint.h>

#define FUSE_KERNEL_VERSION	  7
#define FUSE_KERNEL_MINOR_VERSION 41
/* Older minors lack READDIRPLUS sizes, 64-byte INIT replies and ranges that this code relies on (7.23 =
 * Linux 3.15). */
#define SL_FUSE_MINOR_MIN 23
#define FUSE_ROOT_ID	  1

enum fuse_opcode {
	FUSE_LOOKUP = 1,
	FUSE_FORGET = 2,
	FUSE_GETATTR = 3,
	FUSE_SETATTR = 4,
	FUSE_READLINK = 5,
	FUSE_SYMLINK = 6,
	FUSE_MKNOD = 8,
	FUSE_MKDIR = 9,
	FUSE_UNLINK = 10,
	FUSE_RMDIR = 11,
	FUSE_RENAME = 12,
	FUSE_LINK = 13,
	FUSE_OPEN = 14,
	FUSE_READ = 15,
	FUSE_WRITE = 16,
	FUSE_STATFS = 17,
	FUSE_RELEASE = 18,
	FUSE_FSYNC = 20,
	FUSE_SETXATTR = 21,
	FUSE_GETXATTR = 22,
	FUSE_LISTXATTR = 23,
	FUSE_REMOVEXATTR = 24,
	FUSE_FLUSH = 25,
	FUSE_INIT = 26,
	FUSE_OPENDIR = 27,
	FUSE_READDIR = 28,
	FUSE_RELEASEDIR = 29,
	FUSE_FSYNCDIR = 30,
	FUSE_GETLK = 31,
	FUSE_SETLK = 32,
	FUSE_SETLKW = 33,
	FUSE_ACCESS = 34,
	FUSE_CREATE = 35,
	FUSE_INTERRUPT = 36,
	FUSE_BMAP = 37,
	FUSE_DESTROY = 38,
	FUSE_IOCTL = 39,
	FUSE_POLL = 40,
	FUSE_NOTIFY_REPLY = 41,
	FUSE_BATCH_FORGET = 42,
	FUSE_FALLOCATE = 43,
	FUSE_READDIRPLUS = 44,
	FUSE_RENAME2 = 45,
	FUSE_LSEEK = 46,
	FUSE_COPY_FILE_RANGE = 47,
	FUSE_SYNCFS = 50,
	FUSE_TMPFILE = 51,
	FUSE_STATX = 52,

	FUSE_FSNOTIFY = 64, /* provisional: remote fsnotify */
};
#define SL_FUSE_OP_MAX 65 /* one above the largest opcode that the table knows */

enum fuse_notify_code {
	FUSE_NOTIFY_POLL = 1,
	FUSE_NOTIFY_INVAL_INODE = 2,
	FUSE_NOTIFY_INVAL_ENTRY = 3,
	FUSE_NOTIFY_STORE = 4,
	FUSE_NOTIFY_RETRIEVE = 5,
	FUSE_NOTIFY_DELETE = 6,
	FUSE_NOTIFY_RESEND = 7,
	FUSE_NOTIFY_FSNOTIFY = 32, /* provisional: remote fsnotify */
};

/* INIT flags. Those from bit 32 on travel in flags2, shifted down, when FUSE_INIT_EXT is set. */
#define FUSE_ASYNC_READ		  (1ull << 0)
#define FUSE_POSIX_LOCKS	  (1ull << 1)
#define FUSE_ATOMIC_O_TRUNC	  (1ull << 3)
#define FUSE_EXPORT_SUPPORT	  (1ull << 4)
#define FUSE_BIG_WRITES		  (1ull << 5)
#define FUSE_DONT_MASK		  (1ull << 6)
#define FUSE_FLOCK_LOCKS	  (1ull << 10)
#define FUSE_AUTO_INVAL_DATA	  (1ull << 12)
#define FUSE_DO_READDIRPLUS	  (1ull << 13)
#define FUSE_READDIRPLUS_AUTO	  (1ull << 14)
#define FUSE_ASYNC_DIO		  (1ull << 15)
#define FUSE_WRITEBACK_CACHE	  (1ull << 16)
#define FUSE_NO_OPEN_SUPPORT	  (1ull << 17)
#define FUSE_PARALLEL_DIROPS	  (1ull << 18)
#define FUSE_HANDLE_KILLPRIV	  (1ull << 19)
#define FUSE_POSIX_ACL		  (1ull << 20)
#define FUSE_ABORT_ERROR	  (1ull << 21)
#define FUSE_MAX_PAGES		  (1ull << 22)
#define FUSE_CACHE_SYMLINKS	  (1ull << 23)
#define FUSE_NO_OPENDIR_SUPPORT	  (1ull << 24)
#define FUSE_EXPLICIT_INVAL_DATA  (1ull << 25)
#define FUSE_HANDLE_KILLPRIV_V2	  (1ull << 28)
#define FUSE_SETXATTR_EXT	  (1ull << 29)
#define FUSE_INIT_EXT		  (1ull << 30)
#define FUSE_HAS_EXPIRE_ONLY	  (1ull << 35)
#define FUSE_DIRECT_IO_ALLOW_MMAP (1ull << 36)
#define FUSE_PASSTHROUGH	  (1ull << 37)
#define FUSE_HAS_RESEND		  (1ull << 39)

/* In the number of a request: it was sent before (to a server that did not answer it). Replies carry it as
 * well. */
#define FUSE_UNIQUE_RESEND (1ull << 63)

/*
 * Provisional INIT flag of this project: attributes carry SL_ATTR_XATTR for objects that have extended
 * attributes in the user namespace or an ACL, so that a client need not ask for those of every object that
 * has none.
 */
#define SL_FUSE_XATTR_HINT (1ull << 60)
#define SL_ATTR_XATTR	   (1u << 30) /* in fuse_attr.flags */
/*
 * Provisional: the reply to a READ ends with a struct fuse_attr of the file from after the last byte was
 * read, so that a client knows which version it has read without asking once more.
 */
#define SL_FUSE_READ_ATTR (1ull << 61)
/* Provisional: both sides speak remote fsnotify (FUSE_FSNOTIFY and FUSE_NOTIFY_FSNOTIFY, see the end). */
#define FUSE_FSNOTIFY_SUPPORT (1ull << 59)
/* Provisional: each structure of a FUSE_NOTIFY_FSNOTIFY has, where SL_FSNOTIFY_STATE is set, a struct
 * sl_fsnotify_state after its name. */
#define SL_FUSE_EVENT_STATE (1ull << 62)

#define FATTR_MODE	   (1u << 0)
#define FATTR_UID	   (1u << 1)
#define FATTR_GID	   (1u << 2)
#define FATTR_SIZE	   (1u << 3)
#define FATTR_ATIME	   (1u << 4)
#define FATTR_MTIME	   (1u << 5)
#define FATTR_FH	   (1u << 6)
#define FATTR_ATIME_NOW	   (1u << 7)
#define FATTR_MTIME_NOW	   (1u << 8)
#define FATTR_LOCKOWNER	   (1u << 9)
#define FATTR_CTIME	   (1u << 10)
#define FATTR_KILL_SUIDGID (1u << 11)

#define FOPEN_DIRECT_IO	  (1u << 0)
#define FOPEN_KEEP_CACHE  (1u << 1)
#define FOPEN_NONSEEKABLE (1u << 2)
#define FOPEN_CACHE_DIR	  (1u << 3)
#define FOPEN_NOFLUSH	  (1u << 5)
#define FOPEN_PASSTHROUGH (1u << 7)

#define FUSE_GETATTR_FH		    (1u << 0)
#define FUSE_READ_LOCKOWNER	    (1u << 1)
#define FUSE_FSYNC_FDATASYNC	    (1u << 0)
#define FUSE_RELEASE_FLOCK_UNLOCK   (1u << 1)
#define FUSE_LK_FLOCK		    (1u << 0)
#define FUSE_WRITE_CACHE	    (1u << 0) /* of the page cache: whose file it was is not known */
#define FUSE_WRITE_KILL_SUIDGID	    (1u << 2)
#define FUSE_OPEN_KILL_SUIDGID	    (1u << 0)
#define FUSE_SETXATTR_ACL_KILL_SGID (1u << 0)

struct fuse_attr {
	uint64_t ino;
	uint64_t size;
	uint64_t blocks; /* of 512 bytes */
	uint64_t atime;
	uint64_t mtime;
	uint64_t ctime;
	uint32_t atimensec;
	uint32_t mtimensec;
	uint32_t ctimensec;
	uint32_t mode;
	uint32_t nlink;
	uint32_t uid;
	uint32_t gid;
	uint32_t rdev;
	uint32_t blksize;
	uint32_t flags;
};

struct fuse_kstatfs {
	uint64_t blocks;
	uint64_t bfree;
	uint64_t bavail;
	uint64_t files;
	uint64_t ffree;
	uint32_t bsize;
	uint32_t namelen;
	uint32_t frsize;
	uint32_t padding;
	uint32_t spare[6];
};

struct fuse_file_lock {
	uint64_t start;
	uint64_t end;
	uint32_t type;
	uint32_t pid;
};

struct fuse_entry_out {
	uint64_t nodeid; /* 0: there is no such name, and that may be cached */
	uint64_t generation;
	uint64_t entry_valid; /* seconds */
	uint64_t attr_valid;
	uint32_t entry_valid_nsec;
	uint32_t attr_valid_nsec;
	struct fuse_attr attr;
};

struct fuse_forget_in {
	uint64_t nlookup;
};

struct fuse_forget_one {
	uint64_t nodeid;
	uint64_t nlookup;
};

struct fuse_batch_forget_in {
	uint32_t count;
	uint32_t dummy;
};

struct fuse_getattr_in {
	uint32_t getattr_flags;
	uint32_t dummy;
	uint64_t fh;
};

struct fuse_attr_out {
	uint64_t attr_valid;
	uint32_t attr_valid_nsec;
	uint32_t dummy;
	struct fuse_attr attr;
};

struct fuse_mknod_in {
	uint32_t mode;
	uint32_t rdev;
	uint32_t umask;
	uint32_t padding;
};

struct fuse_mkdir_in {
	uint32_t mode;
	uint32_t umask;
};

struct fuse_rename_in {
	uint64_t newdir;
};

struct fuse_rename2_in {
	uint64_t newdir;
	uint32_t flags;
	uint32_t padding;
};

struct fuse_link_in {
	uint64_t oldnodeid;
};

struct fuse_setattr_in {
	uint32_t valid;
	uint32_t padding;
	uint64_t fh;
	uint64_t size;
	uint64_t lock_owner;
	uint64_t atime;
	uint64_t mtime;
	uint64_t ctime;
	uint32_t atimensec;
	uint32_t mtimensec;
	uint32_t ctimensec;
	uint32_t mode;
	uint32_t unused4;
	uint32_t uid;
	uint32_t gid;
	uint32_t unused5;
};

struct fuse_open_in {
	uint32_t flags;
	uint32_t open_flags;
};

struct fuse_create_in {
	uint32_t flags;
	uint32_t mode;
	uint32_t umask;
	uint32_t open_flags;
};

struct fuse_open_out {
	uint64_t fh;
	uint32_t open_flags;
	int32_t backing_id;
};

struct fuse_create_out {
	struct fuse_entry_out entry;
	struct fuse_open_out open;
};

struct fuse_release_in {
	uint64_t fh;
	uint32_t flags;
	uint32_t release_flags;
	uint64_t lock_owner;
};

struct fuse_flush_in {
	uint64_t fh;
	uint32_t unused;
	uint32_t padding;
	uint64_t lock_owner;
};

struct fuse_read_in {
	uint64_t fh;
	uint64_t offset;
	uint32_t size;
	uint32_t read_flags;
	uint64_t lock_owner;
	uint32_t flags;
	uint32_t padding;
};

struct fuse_write_in {
	uint64_t fh;
	uint64_t offset;
	uint32_t size;
	uint32_t write_flags;
	uint64_t lock_owner;
	uint32_t flags;
	uint32_t padding;
};

struct fuse_write_out {
	uint32_t size;
	uint32_t padding;
};

struct fuse_statfs_out {
	struct fuse_kstatfs st;
};

struct fuse_fsync_in {
	uint64_t fh;
	uint32_t fsync_flags;
	uint32_t padding;
};

#define FUSE_COMPAT_SETXATTR_IN_SIZE 8 /* without FUSE_SETXATTR_EXT */
struct fuse_setxattr_in {
	uint32_t size;
	uint32_t flags;
	uint32_t setxattr_flags;
	uint32_t padding;
};

struct fuse_getxattr_in {
	uint32_t size; /* 0: only the size of the value is wanted, as struct fuse_getxattr_out */
	uint32_t padding;
};

struct fuse_getxattr_out {
	uint32_t size;
	uint32_t padding;
};

struct fuse_lk_in {
	uint64_t fh;
	uint64_t owner;
	struct fuse_file_lock lk;
	uint32_t lk_flags;
	uint32_t padding;
};

struct fuse_lk_out {
	struct fuse_file_lock lk;
};

struct fuse_access_in {
	uint32_t mask;
	uint32_t padding;
};

#define FUSE_COMPAT_INIT_IN_SIZE 16 /* without FUSE_INIT_EXT */
struct fuse_init_in {
	uint32_t major;
	uint32_t minor;
	uint32_t max_readahead;
	uint32_t flags;
	uint32_t flags2;
	/* With FUSE_FSNOTIFY_SUPPORT: the session that this connection goes on with, all 0 for a new one, and
	 * the number of the notification that is expected next. Provisional. */
	uint32_t sl_token[4];
	uint32_t sl_seq[2]; /* low word first */
	uint32_t unused[5];
};

#define FUSE_COMPAT_INIT_OUT_SIZE    8	/* a version that the other side does not speak */
#define FUSE_COMPAT_22_INIT_OUT_SIZE 24 /* before 7.23 */
struct fuse_init_out {
	uint32_t major;
	uint32_t minor;
	uint32_t max_readahead;
	uint32_t flags;
	uint16_t max_background;
	uint16_t congestion_threshold;
	uint32_t max_write;
	uint32_t time_gran;
	uint16_t max_pages;
	uint16_t map_alignment;
	uint32_t flags2;
	uint32_t max_stack_depth;
	uint16_t request_timeout;
	/* With FUSE_FSNOTIFY_SUPPORT: the session of this connection. The one that was asked for: its nodes,
	 * marks and notifications are as they were. Another one: it is new. All 0: it ends with the
	 * connection. Provisional. */
	uint16_t sl_token[8];
	uint16_t unused[3];
};

struct fuse_interrupt_in {
	uint64_t unique;
};

struct fuse_bmap_in {
	uint64_t block;
	uint32_t blocksize;
	uint32_t padding;
};

struct fuse_bmap_out {
	uint64_t block;
};

struct fuse_ioctl_in {
	uint64_t fh;
	uint32_t flags;
	uint32_t cmd;
	uint64_t arg;
	uint32_t in_size;
	uint32_t out_size;
};

struct fuse_ioctl_out {
	int32_t result;
	uint32_t flags;
	uint32_t in_iovs;
	uint32_t out_iovs;
};

struct fuse_poll_in {
	uint64_t fh;
	uint64_t kh;
	uint32_t flags;
	uint32_t events;
};

struct fuse_poll_out {
	uint32_t revents;
	uint32_t padding;
};

struct fuse_fallocate_in {
	uint64_t fh;
	uint64_t offset;
	uint64_t length;
	uint32_t mode;
	uint32_t padding;
};

struct fuse_lseek_in {
	uint64_t fh;
	uint64_t offset;
	uint32_t whence;
	uint32_t padding;
};

struct fuse_lseek_out {
	uint64_t offset;
};

struct fuse_copy_file_range_in {
	uint64_t fh_in;
	uint64_t off_in;
	uint64_t nodeid_out;
	uint64_t fh_out;
	uint64_t off_out;
	uint64_t len;
	uint64_t flags;
};

struct fuse_syncfs_in {
	uint64_t padding;
};

struct fuse_sx_time {
	int64_t tv_sec;
	uint32_t tv_nsec;
	int32_t reserved;
};

struct fuse_statx {
	uint32_t mask;
	uint32_t blksize;
	uint64_t attributes;
	uint32_t nlink;
	uint32_t uid;
	uint32_t gid;
	uint16_t mode;
	uint16_t spare0[1];
	uint64_t ino;
	uint64_t size;
	uint64_t blocks;
	uint64_t attributes_mask;
	struct fuse_sx_time atime;
	struct fuse_sx_time btime;
	struct fuse_sx_time ctime;
	struct fuse_sx_time mtime;
	uint32_t rdev_major;
	uint32_t rdev_minor;
	uint32_t dev_major;
	uint32_t dev_minor;
	uint64_t spare2[14];
};

struct fuse_statx_in {
	uint32_t getattr_flags;
	uint32_t reserved;
	uint64_t fh;
	uint32_t sx_flags;
	uint32_t sx_mask;
};

struct fuse_statx_out {
	uint64_t attr_valid;
	uint32_t attr_valid_nsec;
	uint32_t flags;
	uint64_t spare[2];
	struct fuse_statx stat;
};

struct fuse_in_header {
	uint32_t len;
	uint32_t opcode;
	uint64_t unique;
	uint64_t nodeid;
	uint32_t uid;
	uint32_t gid;
	uint32_t pid;
	uint16_t total_extlen; /* of extensions after the body, in units of 8 bytes */
	uint16_t padding;
};

struct fuse_out_header {
	uint32_t len;
	int32_t error; /* 0 or a negative errno; the notify code when unique is 0 */
	uint64_t unique;
};

struct fuse_dirent {
	uint64_t ino;
	uint64_t off; /* where the next READDIR goes on */
	uint32_t namelen;
	uint32_t type; /* DT_* */
	char name[];
};

struct fuse_direntplus {
	struct fuse_entry_out entry_out;
	struct fuse_dirent dirent;
};

#define FUSE_REC_ALIGN(x)	    (((x) + 7) & ~(size_t)7)
#define FUSE_NAME_OFFSET	    24
#define FUSE_NAME_OFFSET_DIRENTPLUS (sizeof(struct fuse_entry_out) + FUSE_NAME_OFFSET)

struct fuse_notify_inval_inode_out {
	uint64_t ino;
	int64_t off;
	int64_t len;
};

struct fuse_notify_inval_entry_out {
	uint64_t parent;
	uint32_t namelen;
	uint32_t flags;
};

struct fuse_notify_delete_out {
	uint64_t parent;
	uint64_t child;
	uint32_t namelen;
	uint32_t padding;
};

struct fuse_backing_map {
	int32_t fd;
	uint32_t flags;
	uint64_t padding;
};

/* ioctls of /dev/fuse; _IOC numbers need <sys/ioctl.h> */
#define FUSE_DEV_IOC_CLONE	   _IOR(229, 0, uint32_t)
#define FUSE_DEV_IOC_BACKING_OPEN  _IOW(229, 1, struct fuse_backing_map)
#define FUSE_DEV_IOC_BACKING_CLOSE _IOW(229, 2, uint32_t)

/*
 * Remote fsnotify. A client marks a node with the aggregate mask of what it wants to hear of, and is told of
 * changes in terms of fsnotify, whatever the server's own backend is. Masks are FS_* bits, which have the
 * values of FAN_* in <linux/fanotify.h>; private bits of a backend never travel.
 */
struct fuse_fsnotify_in {
	uint64_t mask; /* aggregate interest; 0: none left */
	uint32_t flags;
	uint32_t reserved;
};

/* Flags of struct fuse_fsnotify_in. */
/* nodeid is 0, mask the number of the notification that is expected next */
#define SL_FSNOTIFY_ACK (1u << 0)
/* nodeid and mask are 0: answered when what had happened before is told */
#define SL_FSNOTIFY_TOLD (1u << 1)

struct fuse_fsnotify_out {
	uint64_t seq;  /* of events with this number and later none is missing */
	uint64_t mask; /* what the server will report */
};

/* Flags of struct fuse_notify_fsnotify_out. */
#define FUSE_FSNOTIFY_OVERFLOW (1u << 0) /* changes were lost: compare. Alone; mask is 0 */
#define FUSE_FSNOTIFY_IGNORED  (1u << 1) /* the mark of nodeid is gone, because the object is */
#define FUSE_FSNOTIFY_MORE     (1u << 2) /* of a rename: the second structure follows */
#define SL_FSNOTIFY_STATE      (1u << 3) /* struct sl_fsnotify_state follows the name */

/* Then the name, not terminated. A rename is two of these with the same seq: MORE, old directory and name;
 * new directory and name. */
struct fuse_notify_fsnotify_out {
	uint64_t seq;		     /* one per notification, growing by one per session: a gap is an error */
	uint64_t nodeid, generation; /* the directory of a name event, the object itself of a self event */
	uint64_t child, child_generation; /* what the name denotes or denoted; 0: not known */
	uint64_t mask;			  /* 0 with SL_FSNOTIFY_STATE: no event, only what is there now */
	uint32_t cookie;		  /* 0: none */
	uint32_t namelen;
	uint32_t flags;
	uint32_t reserved;
};

/* What a name denotes now, as far as the server knows when it sends: at the time of the event or later.
 * Counts as a lookup of entry.nodeid, unless that is 0: there is no such name. Where namelen is 0 entry is
 * the node itself, and no lookup. */
struct sl_fsnotify_state {
	struct fuse_entry_out entry;
	uint32_t target_len; /* of a symlink: so many bytes of its target follow */
	uint32_t reserved;
};
