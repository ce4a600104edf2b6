/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The store: a clone's own state on a local filesystem.
 *
 *   STORE/            0700: nobody but its owner gets below
 *     sluice.json     what the clone is: origin, directory, options
 *     lock            held by the service while it runs
 *     control         the service's socket
 *     log             the service's log, when it does not go to the journal
 *     tree/           the clone: real directories, files and symlinks; each object's record is an xattr of it
 *     links/          for files of which the origin has several names: a hard link per object, named by its
 * identity whiteouts/      per directory (by inode number): the names that were deleted or renamed away here
 *     moves/          of a native clone: directories that moved at the origin, see place.c
 *     staging/        what comes into the tree or leaves it whole
 *     cold, tails/    what placeholders are made of, on filesystems with reflinks
 *     image           of a native clone: the filesystem on which the parts from tree/ on are then, instead of
 *                     here
 *
 * A **native** clone's tree is itself what users work on, behind the fanotify gate. It has a filesystem of
 * its own: an image, a device, or a mounted filesystem on whose root directory the store was made.
 *
 * One process at a time has a store open. All functions may be called from any thread.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "store/record.h"

struct sl_store;

/* What sluice.json holds. Strings are owned by the struct. */
struct sl_store_config {
	char *origin;	     /* as the user named it, made absolute */
	char *dir;	     /* absolute path of the mount point */
	char *id;	     /* random, tells this clone from any other */
	bool allow_other;    /* other users may use the mount */
	bool insecure_plain; /* a tcp: origin was explicitly allowed */
	uint64_t uses;	     /* FAN_OPEN, FAN_ACCESS, FAN_CLOSE_NOWRITE: watchers hear of those as well */
	uint64_t limit;	     /* bytes of content to keep at most; 0: no limit */
	uint64_t reserve;    /* bytes to leave free on the store's filesystem */
	uint64_t timeout;    /* seconds that an access waits for the origin */
	uint64_t root_ino;   /* identity of the origin's root */
	uint32_t root_generation;
	bool native;  /* behind the fanotify gate */
	char *device; /* native: a block device; NULL: see image */
	bool image;   /* native: STORE/image; neither: the store's directory is the root of a filesystem */
	uint64_t capacity; /* bytes the image may have room for; 0: as many as there are */
	uint64_t size;	   /* of the image that is to be made; not saved */
	uint64_t room;	   /* bytes of the image that were free from the start; 0: nobody noted it */
};

#define SL_STORE_DEFAULT_RESERVE (256ull << 20)
#define SL_STORE_DEFAULT_TIMEOUT 120

void sl_store_config_fini(struct sl_store_config *c);
/** Read STORE/sluice.json. -ENOENT where @path is no store; -EPROTONOSUPPORT for one of a newer version;
 * -EBADMSG. */
int sl_store_config_load(const char *path, struct sl_store_config *c, char **why);
int sl_store_config_save(const char *path, const struct sl_store_config *c);

/**
 * Change the capacity (0: as much as there is) in the configuration of a store that nobody has open. -EBUSY
 * otherwise; -EINVAL where it has no image, does not exceed the reserve, or exceeds what the image was made
 * with.
 */
int sl_store_config_capacity(const char *path, uint64_t capacity, char **why);

/** Make a new store at @path, which must not exist or be an empty directory. Leaves nothing behind when it
 * fails. */
int sl_store_create(const char *path, const struct sl_store_config *c, char **why);
/** Open and lock. -EBUSY where another process has it open. A native store's filesystem is mounted where
 * nobody sees it. */
int sl_store_open(const char *path, struct sl_store **ret, char **why);
/**
 * The same with what an earlier service has left, or negative descriptors: the lock, which is held already,
 * and a native store's mount. They are the store's from then on, also on failure.
 */
int sl_store_open_kept(const char *path, int lock_fd, int work_fd, struct sl_store **ret, char **why);
/** The descriptor of the lock. */
int sl_store_lock_fd(const struct sl_store *s);
/** Closing the store leaves the lock to whoever else has the descriptor, until that ends as well. */
void sl_store_leave_lock(struct sl_store *s);
/** Native: the mount that the store itself works through; the store's own. Else negative. */
int sl_store_work_fd(const struct sl_store *s);
bool sl_store_native(const struct sl_store *s);
/** Content can be put into its files without a trace in their times. */
bool sl_store_invisible(const struct sl_store *s);
/** All objects must have been put back. */
void sl_store_close(struct sl_store *s);
/** Take a store apart: everything in @path that a store consists of, then @path itself if that leaves it
 * empty. */
int sl_store_remove(const char *path, char **why);

const struct sl_store_config *sl_store_config(const struct sl_store *s);
const char *sl_store_path(const struct sl_store *s);
/** True where the store's filesystem has reflinks, so that placeholders are armoured. */
bool sl_store_reflinks(const struct sl_store *s);
/** Native: true where reading what placeholders are made of is an error (zone.h). */
bool sl_store_sealed(const struct sl_store *s);
/** True where owners are kept and records are out of users' reach (trusted xattrs). */
bool sl_store_privileged(const struct sl_store *s);
/** Make everything that was written to the store's filesystem durable. */
int sl_store_sync(struct sl_store *s);
int sl_store_root_fd(const struct sl_store *s);
/** A descriptor on the filesystem that the tree is on. */
int sl_store_fs_fd(const struct sl_store *s);
/** A directory descriptor of the tree itself. */
int sl_store_tree_fd(const struct sl_store *s);
/** Native: names are there, all of them: what only their making needed goes. */
int sl_store_complete(struct sl_store *s);
bool sl_store_is_complete(struct sl_store *s);
/** Native: forget which files have other names, which others would see as one more. */
int sl_store_drop_links(struct sl_store *s);
#define SL_STAGED_NEW	  "new-"     /* what is made in the staging directory by that */
#define SL_STAGED_EVICTED "evicted-" /* names that may go, or come back: service/unlist.c */
/** Native: users are in the tree from now on while names are made in it: each is made whole before it is
 * seen. */
int sl_store_make_whole(struct sl_store *s);
bool sl_store_makes_whole(const struct sl_store *s);
/** Native: a directory of its own that nobody sees, on the tree's filesystem; a descriptor to be closed. */
int sl_store_stage(struct sl_store *s);
/** Bytes that can still be written: to the tree's filesystem, and to what an image lies on. */
uint64_t sl_store_free_bytes(const struct sl_store *s);
/** Native: what was evicted goes back to what lies below the filesystem. */
void sl_store_trim(struct sl_store *s);
/** So much was evicted: until sl_store_trim() nobody gets it. */
void sl_store_owe(struct sl_store *s, uint64_t bytes);
/** Something is to be evicted: where there is no room at all, let there be what that needs. */
void sl_store_unlock_room(struct sl_store *s);
/**
 * Change the capacity as sl_store_config_capacity() does, and let it hold from now on. What is in use beyond
 * it stays; what becomes free makes up for it first.
 */
int sl_store_set_capacity(struct sl_store *s, uint64_t capacity, char **why);
uint64_t sl_store_capacity(struct sl_store *s);
/** So many bytes more than the capacity are in use. */
uint64_t sl_store_beyond(const struct sl_store *s);
/** Of an image: let no more be written to it than --capacity, and what it lies on, have room for. Again after
 * so many ns as it returns: up to two seconds, less where there is little room. */
uint64_t sl_store_fit(struct sl_store *s);
/** The xattr names that belong to the store and that users neither see nor change. */
bool sl_store_xattr_private(const char *name);
