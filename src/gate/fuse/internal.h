/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the files of the fuse gate share among themselves. */
#pragma once

#include <pthread.h>
#include <stdatomic.h>

#include "gate/fuse/echo.h"
#include "gate/fuse/gate.h"
#include "gate/fuse/handles.h"
#include "store/index.h"
#include "wire/server.h"

/* "For ever": the kernel limits it itself. */
#define VALID_SECONDS (1ull << 40)
/* The handle of a file that was opened only to be closed again: echo.h. */
#define ECHO_HANDLE UINT64_MAX
#define JANITORS    4

struct sl_gate {
	struct sl_gate_config cfg;
	struct sl_store *store;
	struct sl_fill *fill;
	struct sl_transport *transport;
	struct sl_server *server;
	atomic_bool passthrough;
	uid_t uid;
	bool privileged;

	pthread_mutex_t lock; /* protects all below; taken before an object's lock */
	pthread_cond_t cond;
	struct sl_htab pending; /* kept requests by their number */
	unsigned interrupted;	/* how many of them the kernel would like to see ended */
	struct sl_list changed; /* objects to be invalidated */
	struct sl_list held;	/* of struct held: what waits for an invalidation */
	struct sl_list handles; /* of struct handle: what is open */
	struct handles h;
	struct sl_index *index; /* in a successor: for nodes that the kernel knows from before; else NULL */
	/* echo.h; written by the replay, which waits for the helper, whose requests are answered meanwhile */
	_Atomic uint32_t echo_pid;
	struct sl_echo *_Atomic echo;
	atomic_uint echoing; /* who is looking at it */
	struct sl_object *staging;
	struct {
		_Atomic uint32_t pid; /* of a service before; 0: none, or it has ended */
		int fd;
	} old_echo[ECHO_PIDS];
	bool stop;
	/* They send invalidations, each of which may wait for a reader, and look after the interrupted. */
	pthread_t janitors[JANITORS];
	unsigned njanitors;
};

/** The object of a node id, as a new reference; answers the request itself, and returns NULL, where there is
 * none. */
struct sl_object *gate_object(struct sl_gate *g, struct sl_req *rq, uint64_t nodeid);
/**
 * Make sure that something is here before @rq goes on: returns true if it is; otherwise the request is kept
 * and dispatched again later, or answered with an error, and the caller must not touch it any more.
 */
bool gate_need(struct sl_gate *g, struct sl_req *rq, struct sl_object *o, enum sl_want_kind kind,
	       uint64_t off, uint64_t len);
/** Make sure that @o may be written: completely here, and marked as modified. As gate_need(). */
bool gate_need_writable(struct sl_gate *g, struct sl_req *rq, struct sl_object *o, bool truncate);
void gate_dispatch(struct sl_req *rq, void *arg);
/** Hold @rq until no invalidation of @o is under way. True if it was held; the caller must not touch it any
 * more. */
bool gate_hold(struct sl_gate *g, struct sl_req *rq, struct sl_object *o);
/** The kernel would like to see the request @unique ended. */
void gate_interrupt(void *arg, uint64_t unique);
/** 0 or -errno; gate_end_janitors() ends those that there are by then. */
int gate_start_janitors(struct sl_gate *g);
/** Ends them, after all invalidations have been sent. */
void gate_end_janitors(struct sl_gate *g);

/** The kernel knows the present size of @o, which has no pages of another version there (its lock held). */
void gate_told(struct sl_gate *g, struct sl_object *o);

/**
 * What the kernel learns of @o, and one more lookup of it. @a: its attributes, if they are known; NULL: they
 * are looked up. 0, -errno, or 1: it has pages of the version before, so @rq was held, as by gate_hold();
 * -EAGAIN if that is NULL.
 */
int gate_entry(struct sl_gate *g, struct sl_req *rq, struct sl_object *o, const struct sl_attr *a,
	       struct fuse_entry_out *e);
void gate_unentry(struct sl_object *o, uint64_t n);
/** As gate_entry(). */
int gate_attr(struct sl_gate *g, struct sl_req *rq, struct sl_object *o, struct fuse_attr *a);

uint64_t gate_node_id(struct sl_gate *g, struct sl_object *o);

/* Operations, by file. */
/** True if the replay's helper asks, and was answered. */
bool gate_echo(struct sl_gate *g, struct sl_req *rq, struct sl_object *o);
/** Note who the helper of the service before was. */
void gate_echo_takeover(struct sl_gate *g);
void gate_lookup(struct sl_gate *g, struct sl_req *rq, struct sl_object *o);
void gate_forget(struct sl_gate *g, uint64_t nodeid, uint64_t n);
/** The object whose name goes is still known to the kernel: keep hold of it across a restart. */
void gate_orphan(struct sl_gate *g, struct sl_object *o);
/** Take over what the last service left. 0, -EOPNOTSUPP where the kernel cannot do that, -errno. */
int gate_takeover(struct sl_gate *g, bool numbers_lost);
/** What goes with the end of a handle of a file. */
void gate_file_closed(struct sl_gate *g, struct handle *h);
/** The object that a request names, or NULL. In a successor, also one from before. */
struct sl_object *gate_find(struct sl_gate *g, uint64_t nodeid);
void gate_getattr(struct sl_gate *g, struct sl_req *rq, struct sl_object *o);
void gate_setattr(struct sl_gate *g, struct sl_req *rq, struct sl_object *o);
void gate_readlink(struct sl_gate *g, struct sl_req *rq, struct sl_object *o);
void gate_make(struct sl_gate *g, struct sl_req *rq, struct sl_object *o); /* MKNOD, MKDIR, SYMLINK */
void gate_link(struct sl_gate *g, struct sl_req *rq, struct sl_object *o);
void gate_unlink(struct sl_gate *g, struct sl_req *rq, struct sl_object *o);
void gate_rename(struct sl_gate *g, struct sl_req *rq, struct sl_object *o);
void gate_xattr(struct sl_gate *g, struct sl_req *rq, struct sl_object *o);
void gate_statfs(struct sl_gate *g, struct sl_req *rq);

void gate_create(struct sl_gate *g, struct sl_req *rq, struct sl_object *o); /* CREATE, TMPFILE */
/** A handle for @o; takes *@fd if that is open already (read-write), else opens. -EAGAIN: gate_hold() it, and
 * try again. */
int gate_open_handle(struct sl_gate *g, struct sl_req *rq, struct sl_object *o, int flags, int *fd,
		     struct fuse_open_out *out);
/** True, and what is to be answered, if @rq is sent again and had opened a file already. @ret: a reference to
 * it, or NULL. */
bool gate_open_again(struct sl_gate *g, struct sl_req *rq, struct fuse_open_out *out, struct sl_object **ret);
void gate_open(struct sl_gate *g, struct sl_req *rq, struct sl_object *o);
/** The thread of @rq, a LOOKUP, is about to be told of @o. */
void gate_looked_up(struct sl_req *rq, struct sl_object *o);
void gate_release(struct sl_gate *g, struct sl_req *rq); /* and RELEASEDIR */
void gate_read(struct sl_gate *g, struct sl_req *rq);
void gate_write(struct sl_gate *g, struct sl_req *rq);
void gate_fallocate(struct sl_gate *g, struct sl_req *rq);
void gate_copy(struct sl_gate *g, struct sl_req *rq);
void gate_lseek(struct sl_gate *g, struct sl_req *rq);
void gate_fsync(struct sl_gate *g, struct sl_req *rq);

void gate_opendir(struct sl_gate *g, struct sl_req *rq, struct sl_object *o);
void gate_readdir(struct sl_gate *g, struct sl_req *rq);
