/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the files of the store share among themselves. */
#pragma once

#include <pthread.h>

#include "base/handle.h"
#include "base/list.h"
#include "store/object.h"
#include "store/store.h"

struct sl_store {
	char *path;
	struct sl_store_config cfg;
	int root_fd, lock_fd;
	int base_fd; /* what holds tree, links, whiteouts and cold: root_fd again, or the root of a native
			clone's filesystem */
	int tree_fd, links_fd, whiteouts_fd, cold_fd;
	int stage_fd; /* native: once users may be in the tree while names are made; else negative */
	_Atomic uint64_t nstaged;
	int work_fd; /* native: the mount behind base_fd, which no user sees */
	bool native; /* users change names, attributes and content behind our back: see object.h */
	bool privileged, reflinks;
	uid_t uid; /* of this process: what it makes is theirs. Asked for once, not for each file */
	gid_t gid;
	bool sealed;	/* native: what a placeholder is made of cannot be read: see zone.h */
	bool invisible; /* can be written to without a trace in the times (XFS) */
	const char *xattr_record, *xattr_map, *xattr_place;
	dev_t dev;
	pthread_mutex_t armour_lock; /* held while many files are armoured: see placeholder.c */
	pthread_mutex_t cold_lock;   /* cold_size, and growing the cold extent */
	_Atomic uint64_t cold_size;
	bool cold_fixed;	    /* it does not grow */
	_Atomic int *tail_fds;	    /* by length, + 1; 0: not opened yet */
	unsigned block;		    /* of the filesystem, for reflinks */
	pthread_mutex_t links_lock; /* native: the link index; before objects' locks */
	pthread_mutex_t trim_lock;  /* one trim at a time; before room_lock */
	pthread_mutex_t room_lock;  /* see room.c: trimmed, and how much is kept */
	uint64_t trimmed;	    /* free bytes of the image that were given back to the host, about */
	uint64_t last, synced;	/* free bytes when looked at last; what would be free if nothing was written
				   since a sync */
	_Atomic uint64_t spare; /* free bytes of the image that the capacity forbids */
	uint64_t floor;		/* so much of that was kept already: see sl_store_unlock_room() */
	_Atomic uint64_t owed;	/* evicted and not given back to the host yet */
	bool ballast;		/* it is known to be there */

	/* Lock order: an object's io, an object's lock (never two objects), tree, table, fds. */
	pthread_rwlock_t tree;	    /* every object's parent, name and fd */
	pthread_mutex_t table_lock; /* table, and references that may drop to zero */
	struct sl_htab table;	    /* objects by inode number */
	pthread_mutex_t fd_lock; /* cached directory descriptors: dirfd, dirfd_users, lru of every object */
	struct sl_list fd_lru;
	unsigned fd_count, fd_max;
	struct sl_object *root;

	/* Native: directories that moved at the origin (place.c), and every object's place. Taken after all
	 * others. */
	pthread_mutex_t places;
	struct sl_move *moves; /* the first one's number is moves_base + 1 */
	uint32_t nmoves, moves_base;

	/* Native: names that have come since their directories were listed: came.c */
	pthread_mutex_t came_lock; /* the last of all */
	struct sl_htab came;
	int came_fd;
	size_t came_logged; /* entries in the log */
};

/* Where an object is: "name" in fd, or fd itself when name is empty. Holds the tree lock for reading. */
struct sl_at {
	struct sl_store *store;
	struct sl_object *dir; /* whose cached descriptor is pinned, or NULL */
	int fd;
	const char *name;
	bool own; /* fd is closed at the end */
};

int sl_at_begin(struct sl_object *o, struct sl_at *at);
/** Where @o, a directory, is itself: fd is a descriptor of it, name is empty. */
int sl_at_begin_dir(struct sl_object *o, struct sl_at *at);
void sl_at_end(struct sl_at *at);
/** The path for the xattr calls, in @buf. */
char *sl_at_path(const struct sl_at *at, char buf[SL_PROC_FD_MAX]);

/** A directory's O_PATH descriptor from the cache, pinned; the tree lock must be held. sl_dirfd_unpin() gives
 * it back. */
int sl_dirfd_pin(struct sl_object *dir);
void sl_dirfd_unpin(struct sl_object *dir);

/** For what is called with the tree lock held for writing and changes attributes at @at. As the system calls,
 * with -errno. */
int sl_at_setxattr(const struct sl_at *at, const char *name, const void *buf, size_t n);
ssize_t sl_at_getxattr(const struct sl_at *at, const char *name, void *buf, size_t n);
int sl_at_removexattr(const struct sl_at *at, const char *name); /* 0 where there was none */

/* Flags of what is a user's. */
#define SL_OURS (SL_MODIFIED | SL_LOCAL | SL_WRITTEN)
/* Native: of what has no record, whose it is (sl_handle_hash()): the origin has something of its name. */
#define SL_XATTR_CONFLICT "trusted.sluice.conflict"
/** Native: a new version of @o was begun when the last service ended: it is begun again. */
int sl_object_end_renewal(struct sl_object *o);

/* came.c */
int sl_came_open(struct sl_store *s);
void sl_came_close(struct sl_store *s);

/* place.c: places of a native store. */
#define SL_MOVES "moves"
struct sl_move {
	char *from, *to;
	bool exchange;
};
int sl_places_open(struct sl_store *s);
void sl_places_close(struct sl_store *s);
/** The place of @o, and after how many moves that was its place. As sl_object_place(); -ESTALE with the last
 * one where another object has taken it. */
int sl_place_get(struct sl_object *o, char **place, uint32_t *moves);
/** The place of @name in @dir, likewise. */
int sl_place_below(struct sl_object *dir, const char *name, char **place, uint32_t *moves);

/**
 * The record of @name in @dirfd, or of what @dirfd denotes for "". -ENODATA where there is none, or a copy of
 * another file's. In native stores *@place is allocated, and *@moves and *@h set; all may be NULL.
 */
int sl_record_load_at(struct sl_store *s, int dirfd, const char *name, struct sl_record *r,
		      struct sl_handle *h, char **place, uint32_t *moves);
int sl_record_save_at(struct sl_store *s, int dirfd, const char *name, const struct sl_record *r,
		      const char *place, uint32_t moves);

/** The free bytes of an image that was just made, see struct sl_store_config. */
int sl_room_free(int base_fd, uint64_t *bytes);
/** The configuration's capacity holds from now on: when the store is opened, and when that changes. */
void sl_room_bound(struct sl_store *s);

/** The ballast of an image (room.c) in the store's directory: make it, if there is room; give it up. */
int sl_ballast_take(int root_fd);
int sl_ballast_drop(int root_fd);

/** An object without a name; takes over @fd, an O_PATH descriptor of it. */
int sl_object_new_pinned(struct sl_store *s, int fd, struct sl_object **ret);
/** The name of an object in the link index, in @buf. */
#define SL_LINK_KEY_MAX 32
char *sl_link_key(const struct sl_version *v, char buf[SL_LINK_KEY_MAX]);
/* links.c. The calls for names of files are made between begin and end; these are for native stores. */
struct sl_store *sl_links_begin(struct sl_store *s);
void sl_links_end(struct sl_store **s);
/** Make @name of @dirfd one more name of the object that stands for @v. @nlink: how many it has at the
 * origin. -ENOENT: none does; as linkat(2). */
int sl_links_name(struct sl_store *s, const struct sl_version *v, uint32_t nlink, int dirfd,
		  const char *name);
/** @name of @dirfd stands for @v. -EEXIST: another one does. */
int sl_links_add(struct sl_store *s, const struct sl_version *v, uint32_t nlink, int dirfd, const char *name);
/** The object that stands for @v. -ENOENT. */
int sl_links_stat(struct sl_store *s, const struct sl_version *v, struct stat *st);
/** Note that @name of the directory with inode number @ino was deleted here / is the directory gone itself.
 */
int sl_whiteout_add(struct sl_store *s, uint64_t ino, const char *name);
void sl_whiteout_drop_dir(struct sl_store *s, uint64_t ino);

/* armour.c: files of zeros that end at each byte of a block, "tails/LENGTH". */
#define SL_STAGING    "staging" /* see remote.h */
#define SL_ARMOUR_MAX (4ull << 40)
#define SL_TAILS      "tails"
#define SL_TAIL_MAX   4096
/** Open what placeholders are made of, once the store's block size is known; close it. */
int sl_armour_open(struct sl_store *s);
void sl_armour_close(struct sl_store *s);
/**
 * Give the file @fd, which is not larger, armour from @from, which is on a block boundary, to its end at
 * @size, in place of what it has there. It is never shorter or longer meanwhile than before or after. Its
 * times change, unless @fd is an invisible descriptor (store/fs.h). -EOPNOTSUPP without reflinks.
 */
int sl_armour(struct sl_store *s, int fd, uint64_t from, uint64_t size);
/** Cut the file @fd, which is longer, off at @size, in a block of armour that cannot be read: there it has
 * zeros then, and no hole at any moment. Give it armour again. */
int sl_disarm_last(struct sl_store *s, int fd, uint64_t size);
/** Native: nobody but us has @o open or mapped. The io lock is held, so nobody is let through to open it; who
 * was just now gets time to be done. */
bool sl_nobody_has_open(const struct sl_object *o, int fd);
