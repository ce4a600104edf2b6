/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the exporter's operations share: the export, the connection, and their helpers. */
#pragma once

#include <stdbool.h>

#include "serve/dirs.h"
#include "serve/events.h"
#include "serve/files.h"
#include "serve/nodes.h"
#include "serve/opens.h"
#include "serve/serve.h"
#include "serve/sessions.h"
#include "wire/server.h"

struct sl_export {
	struct sl_export_config cfg; /* without zeros */
	struct sl_tree *tree;
	struct sl_files *files;
	struct sl_events *events;
	struct sl_sessions *sessions;
	unsigned max_open_dirs, max_open_files;
	atomic_uint open_dirs, open_files; /* of all connections */
};

struct sl_conn {
	struct sl_export *e;
	struct sl_transport *t;
	const struct sl_serve_hooks *hooks; /* of a mount of our own, or NULL */
	struct sl_session *session;
	struct sl_nodes *nodes; /* the session's */
	struct sl_dirs *dirs;
	struct sl_opens *opens; /* NULL where the export is read-only */
	uint64_t seq;		/* of the first notification that is sent */
	atomic_bool destroyed;	/* the client said that it does not come back */
	_Atomic uint64_t flags; /* INIT flags, set before the first request */

	pthread_mutex_t buf_lock; /* protects bufs and nbufs */
	void *bufs[8];		  /* free ones, of SL_WIRE_MAX_DATA bytes each */
	unsigned nbufs;
};

static inline bool sl_conn_hint(struct sl_conn *c)
{
	return c->flags & SL_FUSE_XATTR_HINT;
}

/** Whether @tid is a thread of the exporter that changed the tree for this client. */
static inline bool sl_conn_own(struct sl_conn *c, uint32_t tid)
{
	return sl_session_owns(c->session, tid);
}

/** SL_WIRE_MAX_DATA bytes, or NULL. */
void *sl_conn_buf_get(struct sl_conn *c);
void sl_conn_buf_put(struct sl_conn *c, void *buf);
/** Place and descriptor (O_PATH) of a node; -ESTALE, -errno. @p is to be sl_place_fini()ed in every case. */
int sl_conn_find(struct sl_conn *c, uint64_t nodeid, struct sl_place *p, struct sl_found *o);
/** The same for a place that is known: a descriptor (O_PATH or not) of the object of @nodeid, also where it
 * is deleted and this client has it open. */
int sl_conn_find_at(struct sl_conn *c, uint64_t nodeid, const struct sl_place *p, struct sl_found *o);
/** The open file @fh of @nodeid with a reference: sl_opens_put(). Returns 0, -EBADF, -ESTALE where it has
 * left the tree. */
int sl_conn_open(struct sl_conn *c, uint64_t nodeid, uint64_t fh, struct sl_open **ret);
/** Look up @name in the directory @dirfd, which is @parent, and count it. */
int sl_conn_entry(struct sl_conn *c, uint64_t parent, int dirfd, const char *name,
		  struct fuse_entry_out *out);
/** Where the mount's directories are watched: watch this one. */
void sl_conn_watch(struct sl_conn *c, uint64_t nodeid);
/** All of them, again. */
void sl_conn_watch_all(struct sl_conn *c);
static inline bool sl_conn_watches(const struct sl_conn *c)
{
	return c->hooks && c->hooks->events;
}
/** Note what @rq is about to change as the client's own. Returns what sl_own_done() takes, or 0. */
uint64_t sl_conn_note(struct sl_conn *c, const struct sl_req *rq);
/** The same of what the exporter is about to open, read or close for it, in @uses: see sl_events_uses(). */
uint64_t sl_conn_note_use(struct sl_conn *c, const struct sl_req *rq, struct sl_own *uses);
/** Take back @count lookups of a node, and with the last its mark. */
void sl_conn_forget(struct sl_conn *c, uint64_t id, uint64_t count);
/** LOOKUP and GETATTR themselves. */
int sl_conn_lookup(struct sl_conn *c, uint64_t parent, const char *name, struct fuse_entry_out *out);
int sl_conn_getattr(struct sl_conn *c, uint64_t nodeid, struct sl_found *o);
/** All of an entry but its nodeid. */
void sl_entry_fill(const struct sl_found *o, struct fuse_entry_out *out);
/** Seen in its place so short a time ago that it need not be looked at again. */
bool sl_fresh(uint64_t checked);
/** Why the content of an object of this type cannot be had; 0 for a regular file. Nothing else is ever
 * opened. */
int sl_content_error(uint32_t type);

/* The operations: each answers its request. */
void sl_op_lookup(struct sl_conn *c, struct sl_req *rq);
void sl_op_forget(struct sl_conn *c, struct sl_req *rq);
void sl_op_readlink(struct sl_conn *c, struct sl_req *rq);
void sl_op_statfs(struct sl_conn *c, struct sl_req *rq);

void sl_op_getattr(struct sl_conn *c, struct sl_req *rq);
void sl_op_open(struct sl_conn *c, struct sl_req *rq);
void sl_op_read(struct sl_conn *c, struct sl_req *rq);
void sl_op_lseek(struct sl_conn *c, struct sl_req *rq);

void sl_op_opendir(struct sl_conn *c, struct sl_req *rq);
void sl_op_readdir(struct sl_conn *c, struct sl_req *rq);
void sl_op_releasedir(struct sl_conn *c, struct sl_req *rq);

void sl_op_getxattr(struct sl_conn *c, struct sl_req *rq);
void sl_op_listxattr(struct sl_conn *c, struct sl_req *rq);

void sl_op_fsnotify(struct sl_conn *c, struct sl_req *rq);

/* Those of a writable export only. */
void sl_op_open_rw(struct sl_conn *c, struct sl_req *rq);
void sl_op_create(struct sl_conn *c, struct sl_req *rq);
void sl_op_release(struct sl_conn *c, struct sl_req *rq);

void sl_op_write(struct sl_conn *c, struct sl_req *rq);
void sl_op_fallocate(struct sl_conn *c, struct sl_req *rq);
void sl_op_copy_file_range(struct sl_conn *c, struct sl_req *rq);
void sl_op_sync(struct sl_conn *c, struct sl_req *rq);

void sl_op_setattr(struct sl_conn *c, struct sl_req *rq);
void sl_op_setxattr(struct sl_conn *c, struct sl_req *rq);

void sl_op_make(struct sl_conn *c, struct sl_req *rq);
void sl_op_link(struct sl_conn *c, struct sl_req *rq);
void sl_op_unlink(struct sl_conn *c, struct sl_req *rq);
void sl_op_rename(struct sl_conn *c, struct sl_req *rq);
