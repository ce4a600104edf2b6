/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Where changes of a local tree are heard of. One interface; the kernel interface behind it is chosen by
 * privilege: fanotify (one mark for the whole filesystem, nothing pinned, actors known) or inotify (a watch
 * per directory, no privilege).
 *
 * A backend reports what the kernel reports, in the order of the kernel's queue, and knows neither clients
 * nor paths: a directory is an identity. What lies outside of the exported tree is reported as well (fanotify
 * hears of the whole filesystem); who listens knows which directories it has.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/fanotify.h>

/* Newer than the system's headers may be. */
#ifndef FAN_RENAME
#define FAN_RENAME 0x10000000
#endif

struct sl_backend;

/*
 * Which object: as in serve/serve.h, the generation is XXH64 of the kernel's file handle, which names an
 * object for as long as it lives. What a backend does not know is 0; at least one of both is known, or the
 * object is not (both 0).
 */
struct sl_evid {
	uint64_t generation;
	uint64_t ino;
};

/* What can be listened for: name events, with the name in a marked directory; and of the root, itself. */
#define SL_CHANGE_MASK                                                                                       \
	(FAN_CREATE | FAN_DELETE | FAN_MOVED_FROM | FAN_MOVED_TO | FAN_RENAME | FAN_MODIFY | FAN_ATTRIB |    \
	 FAN_CLOSE_WRITE | FAN_DELETE_SELF | FAN_MOVE_SELF)
/* Off unless they are asked for (sl_backend_use()): they cost an event for each use. */
#define SL_CHANGE_USE (FAN_OPEN | FAN_ACCESS | FAN_CLOSE_NOWRITE)

/*
 * One change. Strings are valid until the callback returns.
 *
 * @mask: FAN_* bits, with FAN_ONDIR where @child is a directory. More than one kind where the kernel has
 * merged events of one name by one actor that nobody had read: the state of the name then says which was the
 * last. A rename is one FAN_RENAME with both places; where only one is heard of, FAN_MOVED_FROM or
 * FAN_MOVED_TO. The two halves of an exchange are two FAN_RENAMEs. A changed file is reported under its
 * parent and the name by which it was reached, a changed directory in one of two ways: the same, or (fanotify
 * does that) under itself, without a name: @dir and @child are the directory. The root is always reported
 * under itself; FAN_DELETE_SELF and FAN_MOVE_SELF are told of it alone. FAN_Q_OVERFLOW alone: an unknown
 * number of changes was lost. From there on all is reported again.
 *
 * An object that changed without being reached by a name (its link count; through its handle, by an NFS
 * server) has neither @dir nor @name. No watcher of a directory hears of such a change. fanotify only.
 *
 * fanotify gives the generations of all objects and no inode numbers; inotify the identities of directories
 * as they were marked, and no @child but of the root.
 */
struct sl_change {
	uint64_t mask;
	struct sl_evid dir;
	const char *name;
	struct sl_evid newdir; /* FAN_RENAME */
	const char *newname;
	struct sl_evid child;
	uint32_t tid;  /* of the thread that did it; 0: not known */
	uint64_t when; /* sl_now() just before it was read from the kernel */
};

enum sl_backend_kind { SL_BACKEND_AUTO, SL_BACKEND_FANOTIFY, SL_BACKEND_INOTIFY };

struct sl_backend_config {
	enum sl_backend_kind kind;
	int root_fd;	    /* the tree's root, O_PATH or not; stays the caller's, who keeps it open */
	unsigned max_marks; /* inotify: watches at most; 0: what the kernel allows this user */
	/**
	 * Changes, in order, from one thread of the backend's: @n that were read together. @idle: nothing
	 * more was waiting in the kernel's queue when they were read. With @n 0 and @idle: nothing has come
	 * for 20 ms since a call with changes. While this runs changes are kept, up to 64 MiB of them, but
	 * for as long as it is stuck at a few changes the kernel's queue (16,384) has to do.
	 */
	void (*changes)(void *arg, const struct sl_change *v, unsigned n, bool idle);
	void *arg;
};

/** Returns 0; -EPERM or -EOPNOTSUPP where the asked kind cannot work here, -errno; with a sentence in *@why.
 */
int sl_backend_open(const struct sl_backend_config *cfg, struct sl_backend **ret, char **why);
/** The callback has returned for the last time when this returns. Not from the callback. */
void sl_backend_close(struct sl_backend *b);
enum sl_backend_kind sl_backend_kind(const struct sl_backend *b);

/**
 * From the return of this on every change in the directory @fd (O_PATH), whose identity is @id, is reported.
 * Counted: as many sl_backend_unmark() end it. fanotify needs no marks and does nothing. Returns 0; -ENOSPC
 * when no more can be watched (see max_marks): such a directory has to be compared; -errno. Any thread.
 */
int sl_backend_mark(struct sl_backend *b, int fd, const struct sl_evid *id);
void sl_backend_unmark(struct sl_backend *b, const struct sl_evid *id);
/**
 * Which kinds of SL_CHANGE_USE are wanted besides SL_CHANGE_MASK, in directories that are marked after this
 * (inotify) or everywhere on the filesystem (fanotify). None at first. Returns 0 or -errno, and then all is
 * as it was. One thread at a time.
 */
int sl_backend_use(struct sl_backend *b, uint64_t mask);
/** Wait until every change that was made before the call has been given to the callback. Not from the
 * callback. */
int sl_backend_settle(struct sl_backend *b);

struct sl_backend_stats {
	uint64_t changes, overflows, marks;
	uint64_t waiting; /* bytes that were read and wait for the callback */
};
void sl_backend_get_stats(struct sl_backend *b, struct sl_backend_stats *st);
