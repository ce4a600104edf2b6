/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* One client: its life, and which operation answers which request. */
#include "serve/connection.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "base/log.h"
#include "base/time.h"

#define WANT_FLAGS                                                                                           \
	(FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_AUTO_INVAL_DATA | FUSE_DO_READDIRPLUS |                    \
	 FUSE_READDIRPLUS_AUTO | FUSE_NO_OPEN_SUPPORT | FUSE_PARALLEL_DIROPS | FUSE_MAX_PAGES |              \
	 FUSE_CACHE_SYMLINKS | SL_FUSE_XATTR_HINT | SL_FUSE_READ_ATTR | FUSE_POSIX_ACL |                     \
	 FUSE_FSNOTIFY_SUPPORT | SL_FUSE_EVENT_STATE)
#define WANT_WRITABLE (FUSE_ATOMIC_O_TRUNC | FUSE_DONT_MASK | FUSE_SETXATTR_EXT)

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
	return r < 0 ? r : sl_conn_find_at(c, nodeid, p, o);
}

int sl_conn_find_at(struct sl_conn *c, uint64_t nodeid, const struct sl_place *p, struct sl_found *o)
{
	int r = sl_tree_find(c->e->tree, p, false, o);
	if (r != -ESTALE || !c->opens)
		return r;
	struct sl_open *h = p->type == S_IFREG ? sl_opens_of(c->opens, nodeid) : NULL;
	struct sl_dir *d = p->type == S_IFDIR ? sl_dirs_of(c->dirs, nodeid) : NULL;
	if (!h && !d)
		return r;
	_cleanup_close_ int fd = fcntl(h ? h->fd : d->fd, F_DUPFD_CLOEXEC, 0);
	r = fd < 0 ? -errno : sl_tree_holds(c->e->tree, fd);
	if (r == 0)
		r = sl_tree_look(c->e->tree, fd, false, o);
	if (h)
		sl_opens_put(c->opens, h);
	if (d)
		sl_dirs_put(c->dirs, d);
	return r < 0 ? r : sl_steal_fd(&fd);
}

bool sl_fresh(uint64_t checked)
{
	return sl_now() - checked < SL_EXPORT_REVALIDATE_MS * SL_NS_PER_MS;
}

int sl_conn_open(struct sl_conn *c, uint64_t nodeid, uint64_t fh, struct sl_open **ret)
{
	struct sl_open *h = c->opens ? sl_opens_get(c->opens, nodeid, fh) : NULL;
	if (!h)
		return -EBADF;
	if (!sl_fresh(h->checked)) {
		uint64_t now = sl_now();
		int r = sl_tree_holds(c->e->tree, h->fd);
		if (r < 0) {
			sl_opens_put(c->opens, h);
			return r;
		}
		h->checked = now;
	}
	*ret = h;
	return 0;
}

/* What changes something. */
static void handle_change(struct sl_conn *c, struct sl_req *rq)
{
	if (!c->e->cfg.writable) {
		sl_reply_err(rq, -EROFS);
		return;
	}
	switch (rq->m.h.opcode) {
	case FUSE_SETATTR:
		sl_op_setattr(c, rq);
		break;
	case FUSE_SETXATTR:
	case FUSE_REMOVEXATTR:
		sl_op_setxattr(c, rq);
		break;
	case FUSE_SYMLINK:
	case FUSE_MKNOD:
	case FUSE_MKDIR:
		sl_op_make(c, rq);
		break;
	case FUSE_UNLINK:
	case FUSE_RMDIR:
		sl_op_unlink(c, rq);
		break;
	case FUSE_RENAME:
	case FUSE_RENAME2:
		sl_op_rename(c, rq);
		break;
	case FUSE_LINK:
		sl_op_link(c, rq);
		break;
	case FUSE_CREATE:
	case FUSE_TMPFILE:
		sl_op_create(c, rq);
		break;
	case FUSE_WRITE:
		sl_op_write(c, rq);
		break;
	case FUSE_FALLOCATE:
		sl_op_fallocate(c, rq);
		break;
	case FUSE_COPY_FILE_RANGE:
		sl_op_copy_file_range(c, rq);
		break;
	default:
		sl_reply_err(rq, -ENOSYS);
	}
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

static void dispatch(struct sl_conn *c, struct sl_req *rq)
{
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
		(c->opens ? sl_op_open_rw : sl_op_open)(c, rq);
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
		sl_op_release(c, rq);
		break;
	case FUSE_FLUSH:
	case FUSE_FSYNC:
	case FUSE_FSYNCDIR:
	case FUSE_SYNCFS:
		sl_op_sync(c, rq);
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
		handle_change(c, rq);
		break;
	case FUSE_IOCTL:
		sl_reply_err(rq, -ENOTTY);
		break;
	default:
		sl_reply_err(rq, -ENOSYS); /* the client does without, or does it itself */
	}
}

static void handle(struct sl_req *rq, void *arg)
{
	struct sl_conn *c = arg;
	uint64_t note = 0, use = 0;
	if (c->hooks && c->hooks->take && c->hooks->take(c->hooks->arg, rq))
		return;
	if (changes(rq->m.h.opcode)) {
		(void)sl_session_own_thread(c->session, (uint32_t)gettid(), c);
		if (c->e->cfg.writable && sl_events_blind(c->e->events))
			note = sl_conn_note(c, rq);
	}
	struct sl_own *uses = sl_events_uses(c->e->events);
	if (uses)
		use = sl_conn_note_use(c, rq, uses);
	dispatch(c, rq);
	if (use)
		sl_own_done(uses, use, true);
	if (note)
		sl_own_done(sl_session_own(c->session), note, rq->err == 0);
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
	if (r == 0 && cfg->writable)
		r = sl_opens_new(cfg->max_opens, &e->open_files, e->max_open_files, &c->opens);
	return r;
}

static void conn_fini(struct sl_conn *c)
{
	sl_opens_free(c->opens);
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

/* The kernel was told nothing yet: what it looks up is watched from its first LOOKUP on. */
static void begin(struct sl_conn *c, struct sl_server *s)
{
	if (c->hooks->events) {
		sl_session_want_states(c->session, true);
		sl_session_attach(c->session, c->hooks->events, 1, false);
		sl_conn_watch(c, FUSE_ROOT_ID);
	}
	if (c->hooks->begin)
		c->hooks->begin(c->hooks->arg, s, c);
}

int sl_serve_mount(struct sl_export *e, struct sl_transport *t, const struct sl_serve_hooks *hooks)
{
	struct sl_conn c = {.hooks = hooks};
	struct sl_server *s = NULL;
	uint64_t flags = WANT_FLAGS | (e->cfg.writable ? WANT_WRITABLE : 0);
	/* A kernel that was told that there is no OPEN does not send one for writing either. */
	if (sl_transport_is_dev(t) && (e->cfg.writable || hooks))
		flags &= ~FUSE_NO_OPEN_SUPPORT;
	const struct sl_server_config cfg = {
	    .threads = e->cfg.threads,
	    .want_flags = e->cfg.no_events ? (flags) & ~(FUSE_FSNOTIFY_SUPPORT | SL_FUSE_EVENT_STATE) : flags,
	    .max_data = e->cfg.max_data,
	    .max_background = 64,
	    .changing_sizes = hooks,
	    .init = init,
	    .resume = resume,
	    .started = started,
	    .handle = handle,
	    .arg = &c};
	int r = conn_init(&c, e, t);
	if (r == 0)
		r = sl_server_new(t, &cfg, &s);
	if (r == 0 && hooks)
		begin(&c, s);
	if (r == 0)
		r = sl_server_run(s);
	if (hooks && hooks->end)
		hooks->end(hooks->arg);
	sl_server_free(s);
	sl_transport_shutdown(t); /* who sends notifications may be waiting for room */
	if (hooks && hooks->events && c.session)
		sl_session_detach(c.session, hooks->events);
	conn_fini(&c);
	return r;
}

int sl_serve_connection(struct sl_export *e, struct sl_transport *t)
{
	return sl_serve_mount(e, t, NULL);
}
