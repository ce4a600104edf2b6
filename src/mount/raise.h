/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Changes behind a mount as events of the kernel's own, for mounts without a clone (share, mount). As in
 * gate/fuse/echo.h, a helper process (replay/helper.h) makes the system call on the mount, its requests are
 * recognised by their process and answered from the notification, and nothing is done a second time: the tree
 * has changed already. What the kernel had cached of the name and of the file's content is gone when the
 * event is raised.
 *
 *   tree: "x" was deleted          notification: DELETE x
 *   helper: unlink("MOUNT/x")      kernel: LOOKUP x     answer: the object that it was
 *                                  kernel: UNLINK x     answer: done
 *                                  kernel: IN_DELETE x
 *
 * An object that is gone and that nobody can tell about any more gets a number of ours and attributes that
 * say what kind it was; nobody but the helper is ever shown it.
 */
#pragma once

#include "base/why.h"
#include "wire/fsnotify.h"
#include "wire/server.h"

struct sl_raise;

/* How to ask whoever serves the mount. On the threads of the server and on the one that raises. */
struct sl_raise_config {
	struct sl_server *server;
	const char *dir; /* where it is mounted */
	/** As LOOKUP; counts. */
	int (*lookup)(void *arg, uint64_t parent, const char *name, struct fuse_entry_out *out);
	/** As GETATTR. */
	int (*getattr)(void *arg, uint64_t nodeid, struct fuse_attr *attr);
	void (*forget)(void *arg, uint64_t nodeid, uint64_t count);
	/** The path of a directory below the mount, which the caller frees; NULL where it is not known. */
	char *(*path)(void *arg, uint64_t nodeid);
	/** What was @name in @parent is @newname in @newparent now (0: out of sight); with @exchange also the
	 * other way. May be NULL. */
	void (*moved)(void *arg, uint64_t parent, const char *name, uint64_t newparent, const char *newname,
		      bool exchange);
	/** Changes were lost, and all marks are gone. */
	void (*lost)(void *arg);
	void *arg;
};

/** What is being raised is given up: nobody answers the helper any more. Any thread. */
void sl_raise_stop(struct sl_raise *r);
/** Starts the helper: call with one thread only. */
int sl_raise_new(struct sl_raise **ret, char **why);
/** After the last sl_raise_notify(), and when the server has ended. NULL is fine. */
void sl_raise_free(struct sl_raise *r);
/** The mount is there. Before the first sl_raise_notify(); @cfg is copied, what it points to is not. */
void sl_raise_begin(struct sl_raise *r, const struct sl_raise_config *cfg);

/**
 * Raise what @m tells; takes over the lookups that its states count. @next: what follows it, if that is there
 * already, or NULL. Returns 1 where @next was dealt with as well (it was the other half of an exchange), else
 * 0. One thread.
 */
int sl_raise_notify(struct sl_raise *r, const struct sl_fsnotify_msg *m, const struct sl_fsnotify_msg *next);
/** Whether it matters what follows @m: it may be half of an exchange. */
bool sl_raise_needs_next(const struct sl_fsnotify_msg *m);
/** Nothing more for the moment: let go of the mount, so that it can be taken away. */
void sl_raise_rest(struct sl_raise *r);

/** Answer @rq if it is of the helper's doing; false: it is anybody else's. On the server's threads. */
bool sl_raise_take(struct sl_raise *r, struct sl_req *rq);
