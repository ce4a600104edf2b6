/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "gate/fuse/echo.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <sys/syscall.h>

#include "base/log.h"
#include "gate/fuse/internal.h"
#include "store/remote.h"

void sl_gate_echo_from(struct sl_gate *g, uint32_t pid, struct sl_object *staging)
{
	if (staging)
		g->staging = sl_object_ref(staging);
	g->echo_pid = pid;
	struct gate_area *a = g->h.area;
	unsigned i = 0;
	while (i < ECHO_PIDS - 1 && a->echo_pids[i])
		i++;
	a->echo_pids[i] = pid;
}

void sl_gate_echo_begin(struct sl_gate *g, struct sl_echo *e)
{
	e->done = e->told = false;
	e->err = 0;
	g->echo = e;
}

void sl_gate_echo_end(struct sl_gate *g)
{
	struct sl_echo *e = g->echo;
	g->echo = NULL;
	while (g->echoing) /* the answer is out, and who gave it is about to be done */
		sched_yield();
	/* Only now: a READ that was sent before the kernel had the answer is not for the new size. */
	if (!e || e->op != SL_ECHO_UPDATE)
		return;
	pthread_mutex_lock(&e->o->lock);
	e->o->telling = false;
	if (!e->told)
		goto out;
	if (e->o->map.size != e->size)
		sl_object_telling(e->o, e->size); /* a fill was faster */
	else if (!e->o->invalidating)
		gate_told(g, e->o);
out:
	pthread_mutex_unlock(&e->o->lock);
}

void sl_gate_echo_gone(struct sl_gate *g, struct sl_object *o)
{
	gate_orphan(g, o);
}

/* ---- who asks ---- */

/*
 * The helpers of services that died may be waiting for answers still. Each ends with its answer; until then
 * its number cannot be anybody else's, and stays noted for the services to come.
 */
static int open_old(uint32_t pid)
{
	char path[64];
	_cleanup_free_ char *comm = NULL;
	_cleanup_close_ int fd = (int)syscall(SYS_pidfd_open, pid, 0);
	snprintf(path, sizeof(path), "/proc/%u/comm", pid);
	if (fd < 0 || sl_read_file(AT_FDCWD, path, 64, &comm, NULL) < 0 ||
	    strncmp(comm, SL_ECHO_COMM, strlen(SL_ECHO_COMM)))
		return -ESRCH;
	return sl_steal_fd(&fd);
}

void gate_echo_takeover(struct sl_gate *g)
{
	for (int i = 0; i < ECHO_PIDS; i++) {
		uint32_t pid = g->h.area->echo_pids[i];
		g->old_echo[i].fd = pid ? open_old(pid) : -EBADF;
		if (g->old_echo[i].fd >= 0)
			g->old_echo[i].pid = pid;
		else
			g->h.area->echo_pids[i] = 0;
	}
}

static bool from_old(struct sl_gate *g, const struct sl_req *rq)
{
	for (int i = 0; i < ECHO_PIDS; i++) {
		if (!g->old_echo[i].pid || rq->m.h.pid != g->old_echo[i].pid)
			continue;
		struct pollfd p = {.fd = g->old_echo[i].fd, .events = POLLIN};
		if (poll(&p, 1, 0) == 0)
			return true;
		g->old_echo[i].pid = g->h.area->echo_pids[i] = 0;
	}
	return false;
}

/* ---- doing it ---- */

static int do_name(struct sl_gate *g, struct sl_echo *e, struct sl_object **ret)
{
	_cleanup_object_ struct sl_object *lost = NULL;
	int r = 0;
	switch (e->op) {
	case SL_ECHO_APPEAR:
		r = sl_remote_make(e->dir, e->name, &e->state->attr, e->state->target, ret);
		break;
	case SL_ECHO_VANISH:
		r = sl_object_lookup(e->dir, e->name, &lost);
		if (r == 0)
			r = sl_remote_unlink(e->dir, e->name, sl_object_is_dir(lost));
		break;
	case SL_ECHO_RENAME:
		if (!e->exchange)
			(void)sl_object_lookup(e->newdir, e->newname, &lost);
		r = sl_remote_rename(e->dir, e->name, e->newdir, e->newname,
				     e->exchange ? RENAME_EXCHANGE : 0);
		break;
	default:
		r = -EIO;
	}
	if (r == 0 && lost)
		gate_orphan(g, lost);
	e->done = r == 0;
	e->err = r;
	return r;
}

static int do_update(struct sl_gate *g, struct sl_echo *e)
{
	if (e->done)
		return 0;
	int r = e->state ? sl_fill_update(g->fill, e->o, &e->state->attr, e->how) : 0;
	e->err = SL_MIN(r, 0);
	e->done = r >= 0;
	return e->err;
}

static void reply_new(struct sl_gate *g, struct sl_req *rq, struct sl_object *o)
{
	struct fuse_entry_out out;
	int r = gate_entry(g, rq, o, NULL, &out);
	if (r < 0)
		sl_reply_err(rq, r);
	else if (r == 0)
		sl_reply(rq, &out, sizeof(out));
}

static bool same_names(const struct sl_echo *e, const struct sl_object *dir, const struct sl_req *rq)
{
	return e && e->dir == dir && e->name && !strcmp(e->name, rq->m.name);
}

/* ---- answers ---- */

static void echo_lookup(struct sl_gate *g, struct sl_req *rq, struct sl_object *dir)
{
	struct sl_object *staging = g->staging;
	const char *id = sl_store_config(g->store)->id;
	size_t n = strlen(SL_ECHO_STAGING);
	_cleanup_object_ struct sl_object *o = NULL;
	struct fuse_entry_out out;
	bool hidden = staging && dir == sl_object_root(g->store) &&
		      !strncmp(rq->m.name, SL_ECHO_STAGING, n) && !strcmp(rq->m.name + n, id);
	int r = hidden ? 0 : sl_object_lookup(dir, rq->m.name, &o);
	if (hidden)
		o = sl_object_ref(staging);
	if (r == 0)
		r = gate_entry(g, rq, o, NULL, &out);
	if (r > 0)
		return;
	if (r < 0) { /* not to be remembered: it is about to be there */
		sl_reply_err(rq, r);
		return;
	}
	if (hidden || dir == staging)
		out.entry_valid = 0; /* others who ask by that name are told the truth */
	sl_reply(rq, &out, sizeof(out));
}

/*
 * The kernel found that the helper may not do it and asks once more for the attributes: without privilege the
 * service does at the origin's word what the owner of a read-only directory may not. These are valid for no
 * time, so everybody else asks again.
 */
static void echo_getattr(struct sl_gate *g, struct sl_req *rq, struct sl_object *o)
{
	struct fuse_attr_out out = {.attr_valid = VALID_SECONDS};
	int r = gate_attr(g, rq, o, &out.attr);
	if (r > 0)
		return;
	if (r < 0) {
		sl_reply_err(rq, r);
		return;
	}
	if (g->uid != 0) {
		out.attr.mode |= sl_object_is_dir(o) ? 0700 : 0600;
		out.attr_valid = 0;
	}
	sl_reply(rq, &out, sizeof(out));
}

static void echo_setattr(struct sl_gate *g, struct sl_req *rq, struct sl_object *o, struct sl_echo *e)
{
	if (!e || e->op != SL_ECHO_UPDATE || e->o != o) {
		sl_reply_err(rq, -EIO);
		return;
	}
	int r = do_update(g, e);
	/*
	 * Valid for no time: before it arrives a fill may have taken up another version, and the kernel,
	 * unlike with the answer to a GETATTR, does not notice that it was told so meanwhile.
	 */
	struct fuse_attr_out out = {0};
	if (r == 0) {
		pthread_mutex_lock(&o->lock);
		o->telling = true; /* before the size is looked at */
		pthread_mutex_unlock(&o->lock);
		r = gate_attr(g, rq, o, &out.attr);
	}
	e->told = r == 0;
	e->size = out.attr.size;
	if (r < 0)
		sl_reply_err(rq, r);
	else if (r == 0)
		sl_reply(rq, &out, sizeof(out));
}

static void echo_open(struct sl_gate *g, struct sl_req *rq, struct sl_object *o, struct sl_echo *e)
{
	struct fuse_open_out out = {.fh = ECHO_HANDLE,
				    .open_flags = FOPEN_DIRECT_IO | FOPEN_KEEP_CACHE | FOPEN_NOFLUSH};
	if (!e || e->op != SL_ECHO_CLOSE || e->o != o) {
		sl_reply_err(rq, -EIO);
		return;
	}
	if (gate_hold(g, rq, o))
		return;
	pthread_mutex_lock(&o->lock);
	if (o->open_passthrough) { /* then all must be */
		out.open_flags = FOPEN_PASSTHROUGH | FOPEN_NOFLUSH;
		out.backing_id = o->backing_id;
	}
	pthread_mutex_unlock(&o->lock);
	e->done = true;
	sl_reply(rq, &out, sizeof(out));
}

static void echo_opendir(struct sl_req *rq, struct sl_object *o, struct sl_echo *e)
{
	const struct fuse_open_out out = {.fh = ECHO_HANDLE};
	if (!e || e->op != SL_ECHO_CLOSE || e->o != o) {
		sl_reply_err(rq, -EIO);
		return;
	}
	e->done = true;
	sl_reply(rq, &out, sizeof(out));
}

static void echo_names(struct sl_gate *g, struct sl_req *rq, struct sl_object *dir, struct sl_echo *e)
{
	uint32_t op = rq->m.h.opcode;
	_cleanup_object_ struct sl_object *o = NULL, *newdir = NULL;
	bool good = same_names(e, dir, rq);
	if (op == FUSE_RENAME || op == FUSE_RENAME2) {
		newdir =
		    gate_object(g, rq, op == FUSE_RENAME2 ? rq->m.in.rename2.newdir : rq->m.in.rename.newdir);
		if (!newdir)
			return;
		good = good && e->op == SL_ECHO_RENAME && e->newdir == newdir &&
		       !strcmp(e->newname, rq->m.name2);
	} else {
		bool removes = op == FUSE_UNLINK || op == FUSE_RMDIR;
		good = good && e->op == (removes ? SL_ECHO_VANISH : SL_ECHO_APPEAR);
	}
	int r = !good ? -EIO : do_name(g, e, &o);
	if (r < 0 || !o)
		sl_reply_err(rq, r);
	else
		reply_new(g, rq, o);
}

/*
 * What the helper of a dead service had asked for, and perhaps was done: the event is lost, the comparison
 * that follows the takeover finds what is missing. The kernel must come to know what is in the store.
 */
static void answer_old(struct sl_gate *g, struct sl_req *rq, struct sl_object *dir)
{
	_cleanup_object_ struct sl_object *o = NULL;
	switch (rq->m.h.opcode) {
	case FUSE_MKNOD:
	case FUSE_MKDIR:
	case FUSE_SYMLINK:
		if (sl_req_resent(rq) && sl_object_lookup(dir, rq->m.name, &o) == 0)
			reply_new(g, rq, o);
		else
			sl_reply_err(rq, -EIO);
		break;
	case FUSE_UNLINK:
	case FUSE_RMDIR:
		sl_reply_err(rq, sl_object_lookup(dir, rq->m.name, &o) == -ENOENT ? 0 : -EIO);
		break;
	case FUSE_RENAME:
	case FUSE_RENAME2:
		sl_reply_err(rq, sl_object_lookup(dir, rq->m.name, &o) == -ENOENT ? 0 : -EIO);
		break;
	case FUSE_SETATTR:
		gate_getattr(g, rq, dir);
		break;
	default:
		sl_reply_err(rq, -EIO);
	}
}

static bool answer_helper(struct sl_gate *g, struct sl_req *rq, struct sl_object *o, bool old)
{
	struct sl_echo *e = g->echo;
	switch (rq->m.h.opcode) {
	case FUSE_LOOKUP:
		echo_lookup(g, rq, o);
		break;
	case FUSE_GETATTR:
		echo_getattr(g, rq, o);
		break;
	case FUSE_SETATTR:
		if (old)
			answer_old(g, rq, o);
		else
			echo_setattr(g, rq, o, e);
		break;
	case FUSE_OPEN:
		if (old)
			answer_old(g, rq, o);
		else
			echo_open(g, rq, o, e);
		break;
	case FUSE_OPENDIR:
		if (old)
			answer_old(g, rq, o);
		else
			echo_opendir(rq, o, e);
		break;
	case FUSE_MKNOD:
	case FUSE_MKDIR:
	case FUSE_SYMLINK:
	case FUSE_UNLINK:
	case FUSE_RMDIR:
	case FUSE_RENAME:
	case FUSE_RENAME2:
		if (old)
			answer_old(g, rq, o);
		else
			echo_names(g, rq, o, e);
		break;
	default:
		return false;
	}
	return true;
}

bool gate_echo(struct sl_gate *g, struct sl_req *rq, struct sl_object *o)
{
	bool ours = g->echo_pid && rq->m.h.pid == g->echo_pid, old = !ours && from_old(g, rq);
	if (!ours && !old)
		return false;
	g->echoing++;
	bool answered = answer_helper(g, rq, o, old);
	g->echoing--;
	return answered;
}

/* ---- without an event ---- */

static void forget_name(struct sl_gate *g, struct sl_object *dir, const char *name)
{
	struct fuse_notify_inval_entry_out n = {.parent = gate_node_id(g, dir),
						.namelen = (uint32_t)strlen(name)};
	struct iovec v[2] = {{&n, sizeof(n)}, {(char *)name, n.namelen + 1}};
	int r = sl_server_notify(g->server, FUSE_NOTIFY_INVAL_ENTRY, v, 2);
	if (r < 0 && r != -ENOENT && r != -ENOTDIR && r != -ENODEV && r != -ENOTCONN)
		sl_warn("cannot make the kernel forget the name '%s': %s", name, strerror(-r));
}

int sl_gate_echo_silently(struct sl_gate *g, struct sl_echo *e)
{
	_cleanup_object_ struct sl_object *o = NULL;
	if (e->done)
		return 0;
	if (e->op == SL_ECHO_CLOSE)
		return 0;
	if (e->op == SL_ECHO_UPDATE)
		return do_update(g, e);
	int r = do_name(g, e, &o);
	if (r < 0)
		return r;
	if (e->dir != g->staging)
		forget_name(g, e->dir, e->name);
	if (e->newdir && e->newdir != g->staging)
		forget_name(g, e->newdir, e->newname);
	return 0;
}
