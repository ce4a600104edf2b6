/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Objects of the store that somebody uses now: found by inode number, one struct each, reference counted.
 *
 * A reference keeps the struct, not the object: it may be unlinked meanwhile, and stays usable through a
 * descriptor. An object knows one name of it (parent and name); hard links have others. The fields below
 * `lock` are protected by it; the place in the tree by the store's tree lock, which the functions here take
 * themselves.
 *
 * In a **native** store users work on the very files: they rename, write, change attributes and copy without
 * our knowing. There an object is known by its file handle alone, has neither parent nor name, and carries
 * its place at the origin in its record.
 */
#pragma once

#include <pthread.h>

#include "base/fd.h"
#include "base/handle.h"
#include "base/list.h"
#include "origin/attr.h"
#include "store/chunkmap.h"
#include "store/record.h"
#include "store/store.h"

struct sl_oentry; /* origin/origin.h */
struct sl_streak;
struct sl_flight; /* of src/fill: what is on its way for this object */

/** Native: between the permission to open a file and the end of open(2), generously. */
#define SL_OPENING_NS (50 * SL_NS_PER_MS)

struct sl_object {
	struct sl_hnode node; /* key: inode number in the store */
	struct sl_store *store;
	unsigned refs;		  /* table lock */
	_Atomic uint32_t names;	  /* how many it had in the store when it was last looked up */
	uint32_t type;		  /* S_IF*, as users see it; fixed */
	struct sl_object *parent; /* tree lock; a reference; NULL for the root and when unlinked */
	char *name;
	struct sl_handle handle; /* native; fixed */
	bool replaced;		 /* table lock; native: the file is gone, and another has its inode number */
	char *place;		 /* places lock; native: at the origin; NULL for what was made here */
	uint32_t place_moves;	 /* places lock: after how many moves that was its place */
	bool place_gone;	 /* places lock: something else was moved there since */
	char *orphan_place;	 /* tree lock; where it was at the origin, once its last known name is gone */
	_Atomic bool
	    leaving; /* a directory whose names are being taken away one by one: see sl_remote_clear() */
	bool local, moved; /* tree lock: SL_LOCAL and SL_MOVED of the record, for finding its place */
	int fd;		   /* tree lock; O_PATH, once the known name is gone; else negative */

	/* fd lock: a directory's cached descriptor */
	int dirfd;
	unsigned dirfd_users;
	struct sl_list fd_link;

	/* readers of content hold it shared while they answer; who takes content away or replaces it holds it
	 * exclusively */
	pthread_rwlock_t io;

	pthread_mutex_t lock;
	struct sl_record rec; /* as on disk, except that the map below knows more than rec.state */
	bool has_record;
	int damaged; /* fixed; -EBADMSG or -EPROTONOSUPPORT: its record is unreadable; it can be removed,
			nothing else */
	struct sl_chunkmap map; /* of regular files */
	uint32_t epoch; /* grows when content is dropped: what was under way before no longer counts */
	bool dirty; /* the map in memory says more than the one on disk; the committer holds a reference */
	bool evicting;
	uint64_t spared; /* sl_now() time until which it is not evicted: somebody is about to change it */
	unsigned opens;	 /* by users of the gate */
	uint64_t
	    nlookup; /* the gate's: references the kernel holds; the object is referenced once while > 0 */
	struct sl_flight *flight;
	uint64_t strange;	   /* sl_now() since when another object is at its place; 0: none is */
	struct sl_list dirty_link; /* the committer's, and so is */
	uint64_t held; /* sl_now() since when it is not committed because it is being read; or 0 */

	/* the gate's, for open files */
	void *orphan; /* what holds it across a restart: it has no name any more, and the kernel knows it */
	bool telling; /* the kernel is given a size that may be out of date when it arrives */
	unsigned invalidating; /* the kernel is being told that its cache is out of date */
	uint64_t told_size;    /* the largest size that the kernel may still believe in; 0: it knows the
				  present one, or believes in less */
	uint32_t sent;	       /* the thread that opened it last and was sent to look it up again; 0: none */
	uint64_t sent_at;      /* sl_now() */
	bool looked;	       /* it has, since told_size was set last */
	bool follows;	       /* the origin changes it while it is in use: not to be read past us */
	unsigned open_cached, open_passthrough;
	int backing_id;
	bool check_modified; /* opened for writing past us: compare at the last close */
	struct timespec was_mtime, was_ctime;

	/* the native gate's */
	bool unclaimed; /* it holds bytes that its map no longer says are here: the disk failed, or had no
			   room */
	bool rewritten; /* io lock; native: it holds bytes of an earlier version, which may be looked at still
			 */
	_Atomic uint64_t allowed; /* sl_now() when a reader was last let through to what is here */
	_Atomic uint64_t quiet;	  /* not before that time are bytes of an earlier version overwritten */
	bool recent;		  /* gate lock */
	_Atomic unsigned landing; /* bytes of the origin are being written to it */
	uint64_t opened; /* io lock: sl_now() when somebody was last let through to open it, SL_OPENING_NS ago
			    at least if he is done with open(2) */

	/* the fill's, for guessing what comes next */
	uint64_t ra_next; /* files: where a sequential reader would go on */
	uint64_t ra_upto; /* and how far it was asked for ahead */
	uint32_t ra_window;
	struct sl_streak
	    *streak[2]; /* directories: of files read, of subdirectories entered; allocated when one begins */
};

struct sl_object *sl_object_root(struct sl_store *s); /* not a new reference */
struct sl_object *sl_object_ref(struct sl_object *o);
void sl_object_put(struct sl_object *o); /* NULL is fine */

static inline void sl_object_putp(struct sl_object **o)
{
	sl_object_put(*o);
}
#define _cleanup_object_ _cleanup_(sl_object_putp)

/** A new reference to the object with inode number @ino if it is in memory, else NULL. */
struct sl_object *sl_object_find(struct sl_store *s, uint64_t ino);
/**
 * The object called @name in @dir, as a new reference. -ENOENT. An object with an unreadable record is one
 * with `damaged` set. @name is checked.
 */
int sl_object_lookup(struct sl_object *dir, const char *name, struct sl_object **ret);
/** The same, with what users see of it. */
int sl_object_lookup_attr(struct sl_object *dir, const char *name, struct sl_object **ret, struct sl_attr *a);
/** Native: the object that is open as @fd, on whatever mount, as a new reference. As sl_object_lookup(). */
int sl_object_of_fd(struct sl_store *s, int fd, struct sl_object **ret);
/** The same in one system call, if it is in memory; else NULL. @fd must be known to be on the store's
 * filesystem. */
struct sl_object *sl_object_known_fd(struct sl_store *s, int fd);
/** Native: @name of @dirfd was given a record. Who has come to know it without one sees it from now on. */
void sl_object_recorded(struct sl_store *s, int dirfd, const char *name);
/** Load the root; used by sl_store_open(). */
int sl_object_load_root(struct sl_store *s, struct sl_object **ret);

/** The kernel may go on believing in @size, whatever it was told before (lock held). */
static inline void sl_object_telling(struct sl_object *o, uint64_t size)
{
	o->told_size = o->told_size > size ? o->told_size : size;
	o->looked = false;
}

static inline uint64_t sl_object_ino(const struct sl_object *o)
{
	return o->node.key;
}
static inline bool sl_object_is_dir(const struct sl_object *o)
{
	return S_ISDIR(o->type);
}
static inline bool sl_object_is_reg(const struct sl_object *o)
{
	return S_ISREG(o->type);
}

/** The origin has, or had, several names for it. Takes its lock. */
static inline bool sl_object_linked(struct sl_object *o)
{
	pthread_mutex_lock(&o->lock);
	bool is = o->rec.flags & SL_LINKED;
	pthread_mutex_unlock(&o->lock);
	return is;
}

/** The origin has not said yet which version it is (lock held): not even its size may be believed, before a
 * byte of it was fetched. */
static inline bool sl_object_uncertain(const struct sl_object *o)
{
	return sl_object_is_reg(o) && o->has_record && !(o->rec.flags & (SL_MODIFIED | SL_LOCAL)) &&
	       o->rec.origin.ctime.tv_sec == 0 && o->rec.origin.ctime.tv_nsec == 0 &&
	       !sl_chunkmap_test(&o->map, 0, 1);
}

/** Native: what a user has written to a file that is partly here can be told from what has not come. */
static inline bool sl_object_tells_apart(const struct sl_object *o)
{
	return sl_store_sealed(o->store) && !(o->rec.flags & SL_MIXED);
}

/** A new reference to the directory that holds the name we know of it; NULL for the root and what has no name
 * left. Native: a directory in which it was found lately: good for guesses only. */
struct sl_object *sl_object_parent(struct sl_object *o);
/** Open it with @flags. Returns a descriptor, -ENOENT, -errno. Never follows a symlink. */
int sl_object_open(struct sl_object *o, int flags);
/** For the origin's bytes: on XFS what is written through it leaves no trace in the times; else as
 * sl_object_open(), and false in
 * *@invisible. */
int sl_object_open_fill(struct sl_object *o, bool *invisible);
/** Write what is missing, through such a descriptor: whole blocks, or up to the end of the file. Native: with
 * the io lock. */
int sl_object_write_fill(struct sl_object *o, int fd, const void *buf, size_t n, uint64_t off);
/**
 * Native, with the io lock held exclusively, before somebody opens it: a service that was killed, or a
 * machine that lost its power, may have left a hole in the place of the last block, which was just being
 * written. There is armour again then. @fd: any descriptor for reading; its position changes.
 */
int sl_object_mend_tail(struct sl_object *o, int fd);
/** A descriptor of the directory for the *at calls, to be closed. */
int sl_object_open_dir(struct sl_object *o);
/** An O_PATH descriptor of it, to be closed. */
int sl_object_pin(struct sl_object *o);
ssize_t sl_object_readlink(struct sl_object *o, char *buf, size_t n);
/** Change permissions, owner, group; -1 leaves one as it is. -EPERM for another owner in an unprivileged
 * store. */
int sl_object_set_owner(struct sl_object *o, int mode, uid_t uid, gid_t gid);
int sl_object_set_times(struct sl_object *o, const struct timespec ts[2]); /* as utimensat(2) */
/** Something is about to be made or removed in @dir: its own times count from now on. */
int sl_object_touch(struct sl_object *dir);
/** Call @fn for every object that is in memory now. */
void sl_objects_each(struct sl_store *s, int (*fn)(void *arg, const char *path, struct sl_object *o, int err),
		     void *arg);
/** What users see of it. */
int sl_object_attr(struct sl_object *o, struct sl_attr *a);
/** Its place at the origin, "" for the root; the caller frees it. -ENOENT for what has no place (made here,
 * or unlinked). */
int sl_object_place(struct sl_object *o, char **ret);
/** Native: it is at @place at the origin now. Written to its record, if it has one. */
int sl_object_set_place(struct sl_object *o, const char *place);
/** Native: it has no place at the origin any more. What is missing of it is nowhere. */
int sl_object_lose_place(struct sl_object *o);
/**
 * Native: the directory @from moved to @to at the origin, or with @exchange they changed places: so do all
 * places below. On disk in this order with what is done to names afterwards, also over a loss of power.
 */
int sl_store_move(struct sl_store *s, const char *from, const char *to, bool exchange);
/** How many moves were noted. */
uint32_t sl_store_moves(struct sl_store *s);
/**
 * Native: the object whose place is @place, as a new reference, if it is where that says: what was renamed or
 * deleted here is not found (-ENOENT). A file of several names has each of them for a place.
 */
int sl_object_by_place(struct sl_store *s, const char *place, struct sl_object **ret);
/** Its path in the clone, for messages. */
char *sl_object_path(struct sl_object *o);

/** Write the record (lock held). Gives the object one if it had none. */
int sl_object_save(struct sl_object *o);
/** The chunk map of a partial file as on disk now (lock held); with @drop the attribute is removed. */
int sl_object_save_map(struct sl_object *o, bool drop);
/** Write @map, an earlier sl_chunkmap_save(), as the map on disk (lock held). */
int sl_object_put_map(struct sl_object *o, const void *map, size_t len);
/** Filling changed the times: give it the origin's again, or @own (if not NULL) where the user has set them
 * (lock held). */
int sl_object_restore_mtime(struct sl_object *o, const struct timespec *own);
/**
 * The user changes attributes here (lock held): from now on the store's own times count. Called before the
 * change.
 */
int sl_object_set_meta(struct sl_object *o);

/* Names. All check nothing about rights; the gate's kernel did. Each marks the directory as changed here. */

/**
 * Native: @dir was listed, and all has come that was in it: the @n entries @v. What of that had changed last
 * was changed at @upto (the origin's clock).
 */
int sl_object_listed(struct sl_object *dir, const struct sl_oentry *v, size_t n, struct timespec upto);
/** Native: @name of @dir has come since, or has changed at the origin: it is what @a says there. After it
 * has.
 */
void sl_object_came(struct sl_object *dir, const char *name, const struct sl_attr *a);
/** It is gone at the origin, or was listed again. */
void sl_object_forget_came(struct sl_object *dir, const char *name);
/** Native: is what @a says of @name, at the origin, known to have come to @dir? Where it is not there, a user
 * has taken it away. */
bool sl_object_taken(struct sl_object *dir, const char *name, const struct sl_attr *a);
/** Native: is it known that @o, a file of several names, came to @dir by that @name? Else a user may have
 * made it. */
bool sl_object_has_come(struct sl_object *dir, const char *name, struct sl_object *o);

/**
 * The directory's time of change at the origin is @ctime now. Where it has changed, and to a time before that
 * up to which it was listed, the origin's clock was set back: no time tells any more what has come, only what
 * an object is; and what was deleted here comes back rather than that anything of the origin's is missing.
 */
void sl_object_clock(struct sl_object *dir, struct timespec ctime);

/**
 * An object @name of the type @mode is about to be made in @dir's directory. If it will have no record, it is
 * noted that it is not the origin's: nobody must take it for that at any moment. *@noted:
 * sl_object_renounce() takes that back, where it was not made.
 */
int sl_object_announce(struct sl_object *dir, const char *name, uint32_t mode, bool *noted);
void sl_object_renounce(struct sl_object *dir, const char *name, bool noted);
/** The new object @name was made in @dir's directory by the caller, after sl_object_announce(): give it its
 * record and return it. */
int sl_object_adopt(struct sl_object *dir, const char *name, uint32_t mode, dev_t rdev,
		    struct sl_object **ret);
int sl_object_unlink(struct sl_object *dir, const char *name, bool rmdir);
/** @flags as of renameat2. -EXDEV where the old place cannot be recorded. */
int sl_object_rename(struct sl_object *dir, const char *name, struct sl_object *newdir, const char *newname,
		     unsigned flags);
int sl_object_link(struct sl_object *o, struct sl_object *newdir, const char *newname);
/** An O_TMPFILE in @dir: @fd is its descriptor. */
int sl_object_adopt_tmpfile(struct sl_object *dir, int fd, uint32_t mode, struct sl_object **ret);
/**
 * Native: the origin has @nlink names for the file @o, and those that come here are names of it. @change: 1
 * one has just come, -1 one is gone there and here; then @nlink is 0, and none is waited for.
 */
int sl_links_note(struct sl_object *o, uint32_t nlink, int change);
/** True if a whiteout says that @name of @dir was deleted or renamed away here. */
bool sl_object_whiteout(struct sl_object *dir, const char *name);
bool sl_object_has_whiteouts(struct sl_object *dir);

/* Placeholders. */

/**
 * Make or refresh the placeholder of one listed name in the directory descriptor @dirfd of @dir, which is not
 * yet shown. An object of that name that was changed here stays. @target: of a symlink. Returns 0, or -errno.
 */
int sl_placeholder_make(struct sl_object *dir, int dirfd, const char *name, const struct sl_attr *a,
			const char *target);
/** The same for @n names at once, which is faster. Where it fails, *@at is the one that could not be made. */
int sl_placeholder_make_all(struct sl_object *dir, int dirfd, const struct sl_oentry *v, size_t n,
			    size_t *at);
/**
 * Native: make the placeholder of what is @name of @dir at the origin as @as in @stage, where nobody sees it.
 * A directory is unpopulated, and @a says nothing of other names of a file. -EEXIST if @as is there.
 */
int sl_placeholder_stage(struct sl_object *dir, const char *name, const struct sl_attr *a, const char *target,
			 int stage, const char *as);
/** The same of a file, which has no name. Returns a descriptor that is open for writing. */
int sl_placeholder_tmpfile(struct sl_object *dir, const char *name, const struct sl_attr *a, int stage);
/**
 * Native: the directory @name was just made in @dirfd of @dir by the caller: it is the origin's, and empty;
 * with
 * @lazy it is unpopulated.
 */
int sl_placeholder_adopt(struct sl_object *dir, int dirfd, const char *name, const struct sl_attr *a,
			 bool lazy);
/**
 * Native, where names are lazy: the placeholder of @e in @dir, whole but for what comes next, where nobody
 * sees it; its name there in @hidden, and itself in *@ret. -EEXIST: names are not lazy, or there is such a
 * name already.
 */
int sl_placeholder_hide(struct sl_object *dir, int dirfd, const struct sl_oentry *e, char hidden[32],
			struct sl_object **ret);
/** It has all that it is to have: it gets its name in @dirfd of @dir, or makes room for the one that has it.
 */
int sl_placeholder_show(struct sl_object *dir, int dirfd, const struct sl_oentry *e, const char *hidden);
void sl_placeholder_discard(struct sl_store *s, const char *hidden);
/** Remove what an interrupted attempt left and the origin no longer has, unless it was changed here. */
int sl_placeholder_remove(struct sl_object *dir, int dirfd, const char *name);
/**
 * All names are there: write the directory's record as populated, with the times of @a, or with @mtime, which
 * it had before, where the user has set that (lock not held).
 */
int sl_placeholder_populated(struct sl_object *dir, const struct sl_attr *a, struct timespec mtime);
/** Take over what the origin says of the root at the first contact. */
int sl_placeholder_root(struct sl_store *s, const struct sl_attr *a);

/* Content. */

/** What follows the old end of a file in a longer version, up to the end of its page at most. */
struct sl_ending {
	uint64_t off; /* the old end */
	size_t len;
	const char *data;
};
/**
 * Native: others have @o open (or may have), which is here up to its old end. How many bytes of a version of
 * @size bytes must be in its page before it gets that size, for they find what is in the page; 0: none. Lock
 * not held. @fd: open for writing.
 */
size_t sl_object_ending(struct sl_object *o, int fd, uint64_t size, uint64_t *off);
/**
 * Drop what is here of a file that was not modified here, and give it the version @v (lock and io held
 * exclusively). The record on disk says so before any byte goes. @fd: open for writing. Native: the bytes
 * stay where they are until they are overwritten, because others may have the file open; who watches the file
 * hears of a change of content (IN_MODIFY), or with @atime, which is set as well, of attributes (IN_ATTRIB).
 * @ending: what sl_object_ending() asked for, of that version; without it (NULL) the old end is not readable
 * for a while. -EEXIST: it has just been changed here, and stays.
 */
int sl_object_reset(struct sl_object *o, int fd, const struct sl_version *v, const struct timespec *atime,
		    const struct sl_ending *ending);
/** The second half of it alone, for who has already made a cold record durable. */
int sl_object_drop(struct sl_object *o, int fd);
