/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Marks, and the events that come of them: from node ids to places. */
#include <sys/fanotify.h>

#include "base/log.h"
#include "notify/backend.h"
#include "origin/export.h"
#include "wire/fsnotify.h"

#define MASK	  (SL_CHANGE_MASK | FAN_ONDIR | FAN_EVENT_ON_CHILD)
#define NAMES	  (FAN_CREATE | FAN_DELETE | FAN_MOVED_FROM | FAN_MOVED_TO | FAN_RENAME)
#define USES	  (FAN_MODIFY | FAN_ATTRIB | FAN_CLOSE_WRITE | SL_CHANGE_USE)
#define ACK_EVERY 512
#define HELD_MAX  100
#define SOON	  (10 * SL_NS_PER_MS) /* until what is on its way should be here */
#define TOLD_NS	  (2 * SL_NS_PER_SEC) /* the replay stands still meanwhile */

/* With the lock held: places cannot be told from events any more, and all is compared. */
static void lose(struct export *e, const char *why, const char *name, size_t len)
{
	sl_debug("all is compared: '%.*s': %s", (int)len, name, why);
	e->lost = true;
}

/* ---- marks ---- */

bool sl_ex_wants_mark(const struct xreq *x)
{
	return x->e->event && x->flags & FUSE_FSNOTIFY_SUPPORT && !x->mark_done &&
	       (x->r->op == SL_OREQ_MARK || (x->r->op == SL_OREQ_LIST && x->r->mark));
}

static void mark_done(struct sl_call *call, struct sl_result *res)
{
	struct xreq *x = sl_container_of(call, struct xreq, call);
	struct export *e = x->e;
	bool gone = false;
	pthread_mutex_lock(&e->lock);
	struct sl_pname *n = e->session == x->session ? sl_places_marked(&e->places, x->node.nodeid) : NULL;
	if (res->err && n && x->r->mark)
		sl_places_unmark(&e->places, n);
	if (!res->err && x->r->mark) {
		/* It may have been moved away since, or the mark may be among those that were lost. */
		gone =
		    !n || n != sl_places_at(&e->places, x->r->place) || res->out->fsnotify.seq <= e->lost_seq;
		x->r->marked = !gone;
		x->r->seq = res->out->fsnotify.seq;
		e->marks = true;
	}
	pthread_mutex_unlock(&e->lock);
	x->mark_done = true;
	switch (res->from_server ? res->err : 0) {
	case -EOPNOTSUPP:
	case -ENOSYS:
	case -ENOSPC:
	case -EINVAL:
	case -EMFILE:
	case -ENFILE:
		sl_debug("%s cannot be marked: %s", x->r->place, strerror(-res->err));
		sl_ex_operate(x);
		return;
	}
	if (res->err)
		sl_ex_failed(x, res->err, res->from_server);
	else if (gone)
		sl_ex_again(x, sl_now() + SOON);
	else
		sl_ex_operate(x);
}

void sl_ex_mark(struct xreq *x)
{
	struct export *e = x->e;
	int r = 0;
	pthread_mutex_lock(&e->lock);
	if (e->session == x->session && x->r->mark) {
		/* Before it is sent: what is told may come before the answer. */
		r = sl_places_mark(&e->places, x->r->place, x->node.nodeid);
	} else if (e->session == x->session) {
		struct sl_pname *n = sl_places_marked(&e->places, x->node.nodeid);
		if (n)
			sl_places_unmark(&e->places, n);
	}
	pthread_mutex_unlock(&e->lock);
	if (r == -ESTALE) {
		/*
		 * Another directory is marked there, or this one elsewhere: the event that says so is on its
		 * way. Where it was renamed between the lookup and the mark it may have been told before;
		 * then what is there is believed. Of a move that is told after all it is known which one it
		 * was, and what is told of it meanwhile is known to be of it.
		 */
		if (++x->held % HELD_MAX == 0) {
			pthread_mutex_lock(&e->lock);
			if (e->session == x->session &&
			    sl_places_correct(&e->places, x->r->place, x->node.nodeid))
				sl_debug("no event has said what '%s' is now: it is believed", x->r->place);
			pthread_mutex_unlock(&e->lock);
		}
		sl_ex_again(x, sl_now() + SOON);
		return;
	}
	if (r < 0) {
		sl_ex_finish(x, r);
		return;
	}
	x->call.in.fsnotify = (struct fuse_fsnotify_in){.mask = x->r->mark ? MASK | e->uses : 0};
	sl_ex_issue_one(x, FUSE_FSNOTIFY, x->node.nodeid, mark_done);
}

/* ---- have we been told of all? ---- */

/* What the answer names is sent by another thread than the answer is. */
static void wait_for_told(struct xreq *x)
{
	struct export *e = x->e;
	pthread_mutex_lock(&e->lock);
	bool all = e->session != x->told_session || e->next_seq >= x->told_seq;
	pthread_mutex_unlock(&e->lock);
	if (all || sl_now() >= x->told_until)
		sl_ex_finish(x, 0);
	else
		sl_ex_again(x, sl_now() + SOON);
}

static void told_done(struct sl_call *call, struct sl_result *res)
{
	struct xreq *x = sl_container_of(call, struct xreq, call);
	if (res->err && res->from_server) { /* it does not know that */
		sl_ex_finish(x, 0);
	} else if (res->err) {
		sl_ex_failed(x, res->err, false);
	} else {
		x->told_seq = res->out->fsnotify.seq;
		x->told_session = x->session;
		x->told_until = sl_now() + TOLD_NS;
		wait_for_told(x);
	}
}

void sl_ex_told(struct xreq *x)
{
	if (!x->e->event || !(x->flags & FUSE_FSNOTIFY_SUPPORT)) {
		sl_ex_finish(x, 0);
		return;
	}
	/* Once: where changes come faster than they are sent the number would grow with each question. */
	if (x->told_until) {
		wait_for_told(x);
		return;
	}
	x->call.in.fsnotify = (struct fuse_fsnotify_in){.flags = SL_FSNOTIFY_TOLD};
	sl_ex_issue_one(x, FUSE_FSNOTIFY, 0, told_done);
}

/* ---- what the server is told ---- */

static void ack_done(struct sl_call *call, struct sl_result *res)
{
	(void)res;
	free(call);
}

static void ack(struct export *e)
{
	struct sl_call *call = NULL;
	pthread_mutex_lock(&e->lock);
	uint64_t seq = e->next_seq, conn = e->conn;
	bool now = e->unacked >= ACK_EVERY && e->client;
	if (now)
		e->unacked = 0;
	pthread_mutex_unlock(&e->lock);
	if (!now || !(call = calloc(1, sizeof(*call))))
		return;
	struct sl_client *c = sl_ex_client_get(e, conn);
	*call = (struct sl_call){.opcode = FUSE_FSNOTIFY, .done = ack_done};
	call->in.fsnotify = (struct fuse_fsnotify_in){.mask = seq, .flags = SL_FSNOTIFY_ACK};
	if (c) {
		sl_client_call(c, call);
		sl_ex_client_put(e);
	} else {
		free(call);
	}
}

/* ---- events ---- */

void sl_ex_lost(struct export *e)
{
	pthread_mutex_lock(&e->lock);
	bool lost = e->lost;
	e->lost = false;
	pthread_mutex_unlock(&e->lock);
	const struct sl_oevent ev = {.lost = true, .when = sl_now()};
	if (lost && e->event)
		e->event(e->arg, &ev);
}

/* An event, and what it points to. */
struct happening {
	struct sl_oevent ev;
	bool told; /* else it is about a mark that was given up */
	char *place, *newplace, *target[2];
};

static void happening_fini(struct happening *h)
{
	free(h->place);
	free(h->newplace);
	free(h->target[0]);
	free(h->target[1]);
}

static int state_of(const struct sl_fsnotify_part *p, bool hint, struct sl_ostate *s, char **target)
{
	if (!p->has_state)
		return 0;
	s->known = true;
	s->present = p->entry.nodeid != 0;
	if (!s->present)
		return 0;
	int r = sl_attr_from_fuse(&p->entry.attr, p->entry.generation, hint, &s->attr);
	if (r == 0 && p->target_len) {
		s->target = *target = strndup(p->target, p->target_len);
		r = *target ? 0 : -ENOMEM;
	}
	return r;
}

/* With the lock held: @name in @dir is what the state of @p says, if it says anything. */
static void remember(struct export *e, struct sl_pname *dir, const struct sl_fsnotify_part *p)
{
	if (!p->has_state || !p->namelen)
		return;
	struct sl_pname *n = dir ? sl_places_child(&e->places, dir, p->name, p->namelen) : NULL;
	if (p->entry.nodeid && dir && p->namelen)
		sl_places_add(&e->places, dir, p->name, p->namelen,
			      (struct sl_place_node){p->entry.nodeid, p->entry.generation});
	else if (p->entry.nodeid)
		sl_places_forget(&e->places, p->entry.nodeid, 1);
	else if (n && !n->marks)
		sl_places_remove(&e->places, n);
}

/* What the server has no node for is not marked: what is marked at its place came there later. */
static bool denotes(const struct sl_pname *n, uint64_t child)
{
	return n && (child ? n->n.nodeid == child : !n->marked);
}

/*
 * With the lock held: the marked directory that has come to the name of @p, wherever it was. Where nobody
 * says which one came, it was not marked then, or its mark was on its way; what is there by now says it.
 */
static struct sl_pname *arrived(struct export *e, const struct sl_fsnotify_part *p)
{
	return sl_places_marked(&e->places, p->child ? p->child : p->has_state ? p->entry.nodeid : 0);
}

/* With the lock held: @x, if it is one, is @name in @dir. */
static int arrive(struct export *e, struct sl_pname *x, struct sl_pname *dir, const char *name, size_t len)
{
	int r = x ? sl_places_move(&e->places, x, dir, name, len) : 0;
	if (r != -EINVAL)
		return r;
	/* What is on its way may be older than where it was found. */
	if (sl_places_nowhere(&e->places, x)) {
		sl_places_remove(&e->places, x);
		lose(e, "it cannot have come there", name, len);
	}
	return 0;
}

/* With the lock held: what a change of one name means for what is remembered. */
static int apply_name(struct export *e, struct sl_pname *dir, const struct sl_fsnotify_msg *m)
{
	const struct sl_fsnotify_part *p = &m->part[0];
	struct sl_pname *n = sl_places_child(&e->places, dir, p->name, p->namelen), *x = arrived(e, p);
	int r = 0;
	if (m->mask & (FAN_DELETE | FAN_MOVED_FROM)) {
		if (denotes(n, p->child))
			sl_places_remove(&e->places, n);
		else if (p->child && sl_places_nowhere(&e->places, x))
			sl_places_remove(&e->places, x); /* it was here before it went */
	} else if (m->mask & (FAN_CREATE | FAN_MOVED_TO)) {
		r = arrive(e, x, dir, p->name, p->namelen);
	} else if (!m->mask && n && n->n.nodeid != p->entry.nodeid) {
		/* It may have been renamed since the server found that nothing was left to tell: that comes,
		 * and until then its mark must stay. */
		sl_places_oust(&e->places, n);
	}
	remember(e, dir, p);
	return r;
}

static int apply_rename(struct export *e, struct sl_pname *dir, struct sl_pname *newdir,
			const struct sl_fsnotify_msg *m)
{
	const struct sl_fsnotify_part *p = &m->part[0], *q = &m->part[1];
	struct sl_pname *n = sl_places_child(&e->places, dir, p->name, p->namelen), *x = arrived(e, q);
	struct sl_pname *there = sl_places_child(&e->places, newdir, q->name, q->namelen);
	int r = 0;
	if (denotes(n, p->child))
		r = sl_places_move(&e->places, n, newdir, q->name, q->namelen);
	if (r == -EINVAL) {
		/* Where a place was corrected, what is on its way may be older. */
		sl_places_remove(&e->places, n);
		lose(e, "it cannot have been renamed so", q->name, q->namelen);
		return 0;
	}
	if (r == 0)
		r = arrive(e, x, newdir, q->name, q->namelen);
	if (!x && there && p->child && !denotes(n, p->child) && there->n.nodeid != p->child)
		sl_places_oust(&e->places, there);
	remember(e, dir, p);
	remember(e, newdir, q);
	return r;
}

/* One kind of a change of names, or any of the others. */
static bool good_mask(const struct sl_fsnotify_msg *m)
{
	uint64_t names = m->mask & NAMES, uses = m->mask & USES;
	if (m->mask & ~(uint64_t)(NAMES | USES | FAN_ONDIR | FAN_EVENT_ON_CHILD))
		return false;
	if (names)
		return !uses && !(names & (names - 1)) && m->part[0].namelen;
	return uses || !m->mask;
}

/* With the lock held. What happens in a directory that is nowhere is found by comparing, which marks anew
 * what is here. */
static struct sl_pname *somewhere(struct export *e, struct sl_pname *dir)
{
	if (!sl_places_nowhere(&e->places, dir))
		return dir;
	lose(e, "nobody knows where it is, and something changed in it", dir->name, dir->len);
	sl_places_remove(&e->places, dir);
	return NULL;
}

static struct sl_odir odir(const struct sl_pname *dir)
{
	return dir->parent ? (struct sl_odir){dir->n.generation, dir->n.nodeid} : (struct sl_odir){0};
}

/* With the lock held. Returns 0, -EPROTO, -ENOMEM. */
static int understand(struct export *e, const struct sl_fsnotify_msg *m, struct happening *h)
{
	const struct sl_fsnotify_part *p = &m->part[0], *q = &m->part[1];
	struct sl_pname *dir = sl_places_marked(&e->places, p->nodeid), *newdir = NULL;
	uint64_t highest = SL_MAX(p->nodeid, m->nparts == 2 ? q->nodeid : 0);
	if (highest > e->places.max_node)
		return -EPROTO; /* it never was given out */
	h->ev.mask = m->mask;
	if (m->ignored) {
		if (!dir)
			return 0;
		if (sl_places_nowhere(&e->places, dir)) {
			sl_places_remove(&e->places, dir);
			return 0;
		}
		h->told = h->ev.ignored = true;
		h->place = sl_places_path(dir, "", 0);
		sl_places_unmark(&e->places, dir);
		return h->place ? 0 : -ENOMEM;
	}
	dir = somewhere(e, dir);
	if (m->nparts == 2) /* now: it may have gone with the other */
		newdir = somewhere(e, sl_places_marked(&e->places, q->nodeid));
	if (!good_mask(m))
		return -EPROTO;
	h->told = dir || newdir;
	if (m->nparts == 2 && h->told && !(dir && newdir)) {
		/* One of both marks was given up. */
		h->ev.mask = (m->mask & FAN_ONDIR) | (dir ? FAN_MOVED_FROM : FAN_MOVED_TO);
		h->ev.state = dir ? h->ev.state : h->ev.newstate;
		h->ev.newstate = (struct sl_ostate){0};
		const struct sl_fsnotify_part *s = dir ? p : q;
		h->place = sl_places_path(dir ? dir : newdir, s->name, s->namelen);
		h->ev.dir = odir(dir ? dir : newdir);
		const struct sl_fsnotify_msg half = {.mask = h->ev.mask, .nparts = 1, .part = {*s}};
		int r = apply_name(e, dir ? dir : newdir, &half);
		remember(e, NULL, dir ? q : p);
		return h->place ? r : -ENOMEM;
	}
	if (!h->told) {
		remember(e, NULL, p);
		if (m->nparts == 2)
			remember(e, NULL, q);
		return 0;
	}
	h->place = sl_places_path(dir, p->name, p->namelen);
	if (p->namelen)
		h->ev.dir = odir(dir);
	if (m->nparts == 2) {
		h->newplace = sl_places_path(newdir, q->name, q->namelen);
		h->ev.newdir = odir(newdir);
		if (!h->place || !h->newplace)
			return -ENOMEM;
		return apply_rename(e, dir, newdir, m);
	}
	if (!h->place)
		return -ENOMEM;
	return p->namelen ? apply_name(e, dir, m) : 0;
}

/* With the lock held: nothing that is remembered can be relied on. */
static void forget_all(struct export *e, uint64_t seq)
{
	sl_places_clear(&e->places, true);
	e->lost_seq = seq;
	e->lost |= e->marks;
	e->marks = false;
}

int sl_ex_notify(void *arg, int code, const void *data, size_t len)
{
	struct export *e = arg;
	struct sl_fsnotify_msg m;
	_cleanup_(happening_fini) struct happening h = {.ev.when = sl_now()};
	if (code != FUSE_NOTIFY_FSNOTIFY || !e->event)
		return 0;
	int r = sl_fsnotify_parse(data, len, &m);
	if (r < 0) {
		sl_warn(
		    "the origin's server sent a notification that makes no sense (%zu bytes): the connection "
		    "is ended",
		    len);
		return r;
	}
	pthread_mutex_lock(&e->lock);
	bool hint = e->flags & SL_FUSE_XATTR_HINT;
	pthread_mutex_unlock(&e->lock);
	r = state_of(&m.part[0], hint, &h.ev.state, &h.target[0]);
	if (r == 0 && m.nparts == 2)
		r = state_of(&m.part[1], hint, &h.ev.newstate, &h.target[1]);
	pthread_mutex_lock(&e->lock);
	if (r == 0 && (m.overflow ? m.seq < e->next_seq : m.seq != e->next_seq))
		r = -EPROTO;
	if (r == 0 && m.overflow)
		forget_all(e, m.seq);
	else if (r == 0)
		r = understand(e, &m, &h);
	uint64_t expected = e->next_seq;
	if (r == 0) {
		e->next_seq = m.seq + 1;
		e->unacked++;
	}
	bool many = e->places.nforget >= FORGET_BATCH;
	pthread_mutex_unlock(&e->lock);
	if (r < 0) {
		sl_warn(
		    "the origin's server sent a notification (number %llu, expected %llu, node %llu) that "
		    "cannot be: %s; the connection is ended",
		    (unsigned long long)m.seq, (unsigned long long)expected,
		    (unsigned long long)m.part[0].nodeid, strerror(-r));
		return r;
	}
	h.ev.seq = m.seq;
	h.ev.place = h.place;
	h.ev.newplace = h.newplace;
	h.ev.child_generation = m.part[0].child_generation;
	const struct sl_ostate *s = h.newplace ? &h.ev.newstate : &h.ev.state;
	if (s->present && s->attr.generation == h.ev.child_generation)
		h.ev.child_ino = s->attr.ino;
	if (h.told)
		e->event(e->arg, &h.ev);
	sl_ex_lost(e);
	if (many)
		sl_ex_send_forgets(e);
	ack(e);
	return 0;
}
