/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the exporter's operations share: the export, the connection, and their helpers. */
#pragma once

#include <stdbool.h>

#include "serve/dirs.h"
#include "serve/events.h"
#include "serve/files.h"
#include "serve/nodes.h"
#include "serve/serve.h"
#include "serve/sessions.h"
#include "wire/server.h"

struct sl_export {
	struct sl_export_config cfg; /* without zeros */
	struct sl_tree *tree;
	struct sl_files *files;
	struct sl_events *events;
	struct sl_sessions *sessions;
	unsigned max_open_dirs;
	atomic_uint open_dirs; /* of all connections */
};

struct sl_conn {
	struct sl_export *e;
	struct sl_transport *t;
	struct sl_session *session;
	struct sl_nodes *nodes; /* the session's */
	struct sl_dirs *dirs;
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
