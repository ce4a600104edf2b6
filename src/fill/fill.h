/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Fill and populate: bring what is wanted from the origin into the store, once, however many want it.
 *
 * Nobody blocks in here: who wants something leaves a struct sl_want, and its done() runs, on one of the
 * fill's workers, when it is there or cannot be had. What arrived may be used at once; a committer writes it
 * into records and chunk maps after it has made it durable, in batches, so that the map on disk never claims
 * what a crash could take away.
 */
#pragma once

#include "origin/origin.h"
#include "store/object.h"

struct sl_fill;

struct sl_fill_config {
	struct sl_store *store;
	struct sl_origin *origin;
	bool mark; /* directories are marked when they are listed: their changes are wanted */
	/**
	 * The content or the attributes of @o changed under its readers: drop what they have cached, then
	 * count o->invalidating down, which was counted up. On any thread; must not block on them.
	 */
	void (*changed)(void *arg, struct sl_object *o);
	/*
	 * Of the native gate; NULL without. guard(): opens of @o, which is about to be evicted, must be asked
	 * about again. settle(): returns 0 when every change made to a file before the call was told by
	 * sl_fill_written(). complete(): the last missing bytes of @o, or its
	 * names, have arrived; no lock is held. open_unheard(): @o for reading, of which no watcher hears, or
	 * -errno; on one thread at a time.
	 */
	void (*guard)(void *arg, struct sl_object *o);
	void (*complete)(void *arg, struct sl_object *o);
	int (*settle)(void *arg);
	int (*open_unheard)(void *arg, struct sl_object *o);
	/** The same is about to happen to a file of @old_size; changed() follows. Its locks are held. May be
	 * NULL. */
	void (*changing)(void *arg, struct sl_object *o, uint64_t old_size);
	/** A file took up what was found at its place, which is another object of the origin. No lock is
	 * held. May be NULL. */
	void (*other)(void *arg, struct sl_object *o);
	void *arg;
};

int sl_fill_new(const struct sl_fill_config *cfg, struct sl_fill **ret);
/** Commits everything. No want may be outstanding, and the origin must still be there. */
void sl_fill_free(struct sl_fill *f);

/* What somebody waits for. Owned by the caller until done() ran, which is once, or until sl_fill_cancel()
 * says true. */
struct sl_want {
	struct sl_object *o; /* the caller's reference */
	uint64_t off, len;   /* SL_WANT_RANGE */
	void (*done)(struct sl_want *w, int err);

	struct sl_list link; /* the fill's */
	unsigned tries;
};

enum sl_want_kind {
	SL_WANT_RANGE,	/* bytes [off, off+len) of a file */
	SL_WANT_NAMES,	/* all names of a directory */
	SL_WANT_XATTRS, /* extended attributes */
};

/**
 * Returns 1 if it is here already (done() does not run), 0 if done() will run, or a negative errno at once.
 * Errors, here and in done(): -EIO the origin cannot be reached in time, or fails; -ESTALE the object is no
 * longer at the origin; -EACCES the exporter may not read it; -ENOSPC no space in the store, and nothing to
 * evict; -ENOMEM.
 */
int sl_fill_want(struct sl_fill *f, enum sl_want_kind kind, struct sl_want *w);
/** True if @w was still waiting and no longer is: done() will not run. */
bool sl_fill_cancel(struct sl_fill *f, struct sl_want *w);
/** Want, and wait. 0 or the error. Not on a worker. */
int sl_fill_wait(struct sl_fill *f, enum sl_want_kind kind, struct sl_object *o, uint64_t off, uint64_t len);

struct sl_fill_progress {
	uint64_t objects, directories; /* whose names are there */
	uint64_t left;		       /* directories that are known and not listed yet */
};
/**
 * Native: bring all names below the directory @root, with their extended attributes. Goes on where an
 * interrupted attempt ended. @progress (may be NULL) is called about five times a second, and at the end;
 * false ends it with -EINTR.
 */
int sl_fill_tree(struct sl_fill *f, struct sl_object *root,
		 bool (*progress)(void *arg, const struct sl_fill_progress *p), void *arg);

/** The replay has done something: what was elsewhere at the origin may be where it is by now. Cheap. Any
 * thread. */
void sl_fill_retry(struct sl_fill *f);

/** A file or directory was opened: continues or begins a streak by which siblings are fetched ahead. Cheap.
 */
void sl_fill_note_open(struct sl_fill *f, struct sl_object *o);

/** A read of a file that is partly here found what it wanted: what comes next may be asked for already.
 * Cheap. */
void sl_fill_note_read(struct sl_fill *f, struct sl_object *o, uint64_t off, uint64_t len);

/** Make all that arrived until now durable, and say so in the records. */
int sl_fill_commit(struct sl_fill *f);
/** The same for what has arrived of @o. */
int sl_fill_commit_one(struct sl_fill *f, struct sl_object *o);
/**
 * Content of @o, which is completely here or about to be truncated to nothing (@truncate), is about to be
 * changed by the user. When this returns 0, the record says so durably. Blocks for the disk. @o->io must not
 * be held.
 */
int sl_fill_modify(struct sl_fill *f, struct sl_object *o, bool truncate);

/**
 * Native: somebody has changed content of @o, or made it shorter than it was. From now on it is nobody
 * else's: what is here is never taken away, and what is missing is fetched while the origin still has it.
 */
void sl_fill_written(struct sl_fill *f, struct sl_object *o);

enum sl_update_how {
	SL_UPDATE_KEEP = 1 << 0,    /* its bytes stay if size and mtime do: nobody has written to it */
	SL_UPDATE_CONTENT = 1 << 1, /* somebody has, whatever they say */
	SL_UPDATE_LISTED = 1 << 2,  /* a directory's attributes from just before it was listed */
};
/**
 * The origin says @a of @o now: record, attributes and size follow, content of another version goes; what was
 * changed here stays. Returns 1; 0 if it was so before; -EEXIST: its content was changed here, which is noted
 * as a conflict; -ESTALE: of another type; -EBUSY: it is open in passthrough mode; -errno. Not native. May
 * block for the disk.
 */
int sl_fill_update(struct sl_fill *f, struct sl_object *o, const struct sl_attr *a, unsigned how);
/**
 * The same of a file whose readers do not ask us, and must not find it empty: all of the new content is in
 * the file @from, and is put in place of the old, as a program would that rewrites a file.
 */
int sl_fill_replace(struct sl_fill *f, struct sl_object *o, const struct sl_attr *a, int from);

/**
 * Native: the origin has told that @o has the version of @a: what is here is dropped. @fd: open for writing.
 * @atime: as sl_object_reset(). -EEXIST: it was changed here, and stays. -EBUSY: it is just being evicted.
 */
int sl_fill_renew(struct sl_fill *f, struct sl_object *o, int fd, const struct sl_attr *a,
		  const struct timespec *atime);

/**
 * Evict @n files. @results[i]: 0 evicted (also what was cold); -EBUSY open, mapped or under way; -EPERM
 * pinned; -EEXIST changed here, so that nobody else has it; -EINVAL not a file of the origin. @freed: bytes
 * that were given back. Blocks for the disk.
 */
int sl_fill_evict(struct sl_fill *f, struct sl_object **o, int *results, size_t n, uint64_t *freed);

/**
 * All of @o is here, and nobody has committed that: its content was complete when a service died that was
 * told by nobody but its own memory.
 */
int sl_fill_complete(struct sl_fill *f, struct sl_object *o);

/**
 * Native: the names of the populated directory @dir may be taken away: who wants them waits from now on, also
 * where they are still here. -EBUSY: somebody is at it; -EPERM pinned; -EEXIST made here; -EALREADY not
 * populated.
 */
int sl_fill_hold_names(struct sl_fill *f, struct sl_object *dir);
/** That is over: who waits goes on if its record says that it is populated, and else makes its names come. */
void sl_fill_release_names(struct sl_fill *f, struct sl_object *dir);

/**
 * Native: names of populated directories are being taken away, with all below them or to come back: one does
 * that at a time, the eviction of names or the replay. Taken before any other lock, and not while the origin
 * is waited for by those who hold names.
 */
void sl_fill_lock_names(struct sl_fill *f);
void sl_fill_unlock_names(struct sl_fill *f);

/** After something changed: finish the wants for ranges that are satisfied, fetch for the others. No lock
 * held. */
void sl_fill_kick(struct sl_fill *f, struct sl_object *o);

struct sl_fill_reclaim {
	uint64_t older_than; /* seconds since the last use; 0: any */
	uint64_t to_free;    /* bytes, oldest first; 0: all there is */
	/* results */
	uint64_t files, bytes, busy, kept;
};
/** Evict from everything below @dir (or the one file @dir). Blocks. */
int sl_fill_reclaim(struct sl_fill *f, struct sl_object *dir, struct sl_fill_reclaim *r);
/** Evict what is beyond the limits of the store, as the next fill would. -ENOSPC: that is not enough. Blocks.
 */
int sl_fill_make_room(struct sl_fill *f);

struct sl_fill_stats {
	uint64_t fetches, fetched_bytes, listings; /* of the origin, since the start */
	uint64_t prefetched;			   /* files among them that nobody had asked for yet */
	uint64_t waiting;			   /* wants that wait now */
	uint64_t requests; /* to the origin that are under way now, with what they bring */
	uint64_t restarts; /* files that changed at the origin while they were filled */
};
void sl_fill_get_stats(struct sl_fill *f, struct sl_fill_stats *st);
