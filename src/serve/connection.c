/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* One client: its life, and which operation answers which request. */
#include "serve/connection.h"

#include <string.h>

#include "base/log.h"

#define WANT_FLAGS                                                                                           \
	(FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_AUTO_INVAL_DATA | FUSE_DO_READDIRPLUS |                    \
	 FUSE_READDIRPLUS_AUTO | FUSE_NO_OPEN_SUPPORT | FUSE_PARALLEL_DIROPS | FUSE_MAX_PAGES |              \
	 FUSE_CACHE_SYMLINKS | SL_FUSE_XATTR_HINT | SL_FUSE_READ_ATTR | FUSE_FSNOTIFY_SUPPORT |              \
	 SL_FUSE_EVENT_STATE)

void *sl_conn_buf_get(struct sl_conn *c)
{
	void *b = NULL;
	pthread_mutex_lock(&c->buf_lock);
	if (c->nbufs)
		b = c->bufs[--c->nbufs];
	pthread_mutex_unlock(&c->buf_lock);
	return b ? b : malloc(SL_WIRE_MAX_DATA);
}

void sl_conn_buf_put(struct sl_conn *c, void *buf)
{
	pthread_mutex_lock(&c->buf_lock);
	if (buf && c->nbufs < SL_ARRAY_SIZE(c->bufs))
		c->bufs[c->nbufs++] = sl_steal_ptr(&buf);
	pthread_mutex_unlock(&c->buf_lock);
	free(buf);
}

int sl_conn_find(struct sl_conn *c, uint64_t nodeid, struct sl_place *p, struct sl_found *o)
{
	int r = sl_nodes_place(c->nodes, nodeid, p);
	return r < 0 ? r : sl_tree_find(c->e->tree, p, false, o);
}

/* What changes the tree: a client is not told of its own changes. */
static bool changes(uint32_t opcode)
{
	switch (opcode) {
	case FUSE_SETATTR:
	case FUSE_SYMLINK:
	case FUSE_MKNOD:
	case FUSE_MKDIR:
	case FUSE_UNLINK:
	case FUSE_RMDIR:
	case FUSE_RENAME:
	case FUSE_RENAME2:
	case FUSE_LINK:
	case FUSE_OPEN: /* O_TRUNC */
	case FUSE_WRITE:
	case FUSE_RELEASE: /* the close of what was written */
	case FUSE_SETXATTR:
	case FUSE_REMOVEXATTR:
	case FUSE_CREATE:
	case FUSE_TMPFILE:
	case FUSE_FALLOCATE:
	case FUSE_COPY_FILE_RANGE:
		return true;
	default:
		return false;
	}
}

static void handle(struct sl_req *rq, void *arg)
{
	struct sl_conn *c = arg;
	if (changes(rq->m.h.opcode))
		(void)sl_session_own_thread(c->session, (uint32_t)gettid(), c);
	switch (rq->m.h.opcode) {
	case FUSE_LOOKUP:
		sl_op_lookup(c, rq);
		break;
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET:
		sl_op_forget(c, rq);
		break;
	case FUSE_GETATTR:
		sl_op_getattr(c, rq);
		break;
	case FUSE_READLINK:
		sl_op_readlink(c, rq);
		break;
	case FUSE_OPEN:
		sl_op_open(c, rq);
		break;
	case FUSE_READ:
		sl_op_read(c, rq);
		break;
	case FUSE_LSEEK:
		sl_op_lseek(c, rq);
		break;
	case FUSE_STATFS:
		sl_op_statfs(c, rq);
		break;
	case FUSE_OPENDIR:
		sl_op_opendir(c, rq);
		break;
	case FUSE_READDIR:
	case FUSE_READDIRPLUS:
		sl_op_readdir(c, rq);
		break;
	case FUSE_RELEASEDIR:
		sl_op_releasedir(c, rq);
		break;
	case FUSE_GETXATTR:
		sl_op_getxattr(c, rq);
		break;
	case FUSE_LISTXATTR:
		sl_op_listxattr(c, rq);
		break;
	case FUSE_FSNOTIFY:
		sl_op_fsnotify(c, rq);
		break;
	case FUSE_RELEASE:
	case FUSE_FLUSH:
	case FUSE_FSYNC:
	case FUSE_FSYNCDIR:
	case FUSE_SYNCFS:
		sl_reply_err(rq, 0);
		break;
	case FUSE_DESTROY:
		c->destroyed = true;
		sl_reply_err(rq, 0);
		break;
	case FUSE_SETATTR:
	case FUSE_SYMLINK:
	case FUSE_MKNOD:
	case FUSE_MKDIR:
	case FUSE_UNLINK:
	case FUSE_RMDIR:
	case FUSE_RENAME:
	case FUSE_RENAME2:
	case FUSE_LINK:
	case FUSE_WRITE:
	case FUSE_SETXATTR:
	case FUSE_REMOVEXATTR:
	case FUSE_CREATE:
	case FUSE_TMPFILE:
	case FUSE_FALLOCATE:
	case FUSE_COPY_FILE_RANGE:
		sl_reply_err(rq, -EROFS);
		break;
	case FUSE_IOCTL:
		sl_reply_err(rq, -ENOTTY);
		break;
	default:
		sl_reply_err(rq, -ENOSYS); /* the client does without, or does it itself */
	}
}

static void init(void *arg, const struct sl_server_agreed *agreed)
{
	struct sl_conn *c = arg;
	c->flags = agreed->flags;
}

static void resume(void *arg, uint64_t flags, const struct fuse_init_in *in, struct fuse_init_out *out)
{
	struct sl_conn *c = arg;
	if (!(flags & FUSE_FSNOTIFY_SUPPORT))
		return;
	c->seq = sl_sessions_begin(c->e->sessions, &c->session, c->t, flags, in, out);
	c->nodes = sl_session_nodes(c->session);
	sl_session_want_states(c->session, flags & SL_FUSE_EVENT_STATE);
}

static void started(void *arg)
{
	struct sl_conn *c = arg;
	/* Not before INIT was answered: it comes first. */
	if (c->flags & FUSE_FSNOTIFY_SUPPORT)
		sl_session_attach(c->session, c->t, c->seq, c->e->cfg.grace > 0);
}

static int conn_init(struct sl_conn *c, struct sl_export *e, struct sl_transport *t)
{
	struct sl_found root;
	const struct sl_export_config *cfg = &e->cfg;
	const struct sl_session_config scfg = {.max_nodes = cfg->max_nodes,
					       .max_events = cfg->max_events,
					       .overflow = sl_events_overflowed,
					       .arg = e->events};
	c->e = e;
	c->t = t;
	pthread_mutex_init(&c->buf_lock, NULL);
	int r = sl_tree_probe(e->tree, sl_tree_fd(e->tree), "", false, &root);
	if (r == 0)
		r = sl_session_new(&scfg, &root, &c->session);
	if (r == 0)
		c->nodes = sl_session_nodes(c->session);
	if (r == 0)
		r = sl_dirs_new(cfg->max_dirs, &e->open_dirs, e->max_open_dirs, &c->dirs);
	return r;
}

static void conn_fini(struct sl_conn *c)
{
	sl_dirs_free(c->dirs);
	if (c->session) {
		sl_session_detach(c->session, c->t);
		/* Its threads have ended; what they changed has to be known as theirs when it is heard of. */
		if (sl_session_owns_any(c->session, c))
			sl_events_settle(c->e->events);
		sl_session_disown(c->session, c);
		sl_sessions_end(c->e->sessions, c->session, c->t, c->destroyed);
	}
	while (c->nbufs)
		free(c->bufs[--c->nbufs]);
	pthread_mutex_destroy(&c->buf_lock);
}

int sl_serve_connection(struct sl_export *e, struct sl_transport *t)
{
	struct sl_conn c = {0};
	struct sl_server *s = NULL;
	const struct sl_server_config cfg = {.threads = e->cfg.threads,
					     .want_flags = WANT_FLAGS,
					     .max_data = e->cfg.max_data,
					     .max_background = 64,
					     .init = init,
					     .resume = resume,
					     .started = started,
					     .handle = handle,
					     .arg = &c};
	int r = conn_init(&c, e, t);
	if (r == 0)
		r = sl_server_new(t, &cfg, &s);
	if (r == 0)
		r = sl_server_run(s);
	sl_server_free(s);
	sl_transport_shutdown(t); /* who sends notifications may be waiting for room */
	conn_fini(&c);
	return r;
}
