/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "serve/events.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/log.h"
#include "base/macros.h"
#include "base/time.h"
#include "serve/state.h"

#define GONE	    (FAN_DELETE | FAN_MOVED_FROM)
#define COME	    (FAN_CREATE | FAN_MOVED_TO)
#define KINDS	    (SL_CHANGE_MASK | SL_CHANGE_USE)
#define USE	    (FAN_MODIFY | FAN_ATTRIB | FAN_CLOSE_WRITE | SL_CHANGE_USE)
#define DOUBTS_MAX  4096
#define MERGED_LOOK 64u
#define DOUBTED_NS  SL_NS_PER_SEC

struct sl_events {
	struct sl_tree *tree;
	enum sl_backend_kind kind;

	pthread_mutex_t open_lock; /* protects opening b */
	struct sl_backend *_Atomic b;
	int err; /* why there is none */

	pthread_mutex_t lock; /* protects all below */
	struct sl_list sessions;
	struct sl_states *states; /* of the batch under way */
	struct sl_htab doubts;
	uint64_t doubted;	 /* since when there are any, or 0 */
	bool forgot;		 /* there was no memory for one more */
	_Atomic uint64_t wanted; /* of SL_CHANGE_USE, by those sessions */
	struct sl_own *uses;	 /* the exporter's own; its lock is its own */
	uint32_t cookie;
};

/* The last change of a name does not lead to the state that was seen. */
struct doubt {
	struct sl_hnode node;
	struct sl_evid dir;
	bool present; /* as the last change has it */
	uint64_t child_generation;
	char name[];
};

/* ---- doubts ---- */

static struct doubt *find_doubt(struct sl_events *ev, const struct sl_evid *dir, const char *name)
{
	for (struct sl_hnode *h = sl_htab_find(&ev->doubts, sl_states_key(dir, name)); h;
	     h = sl_htab_next(h)) {
		struct doubt *d = sl_container_of(h, struct doubt, node);
		if (d->dir.generation == dir->generation && d->dir.ino == dir->ino && !strcmp(d->name, name))
			return d;
	}
	return NULL;
}

static void free_doubt(struct sl_events *ev, struct doubt *d)
{
	sl_htab_del(&ev->doubts, &d->node);
	free(d);
}

static bool explained(const struct sl_state *st, bool present, uint64_t child_generation)
{
	if (!st->known || st->present != present)
		return false;
	return !present || !child_generation || !st->found.generation ||
	       st->found.generation == child_generation;
}

/* After the last change of @name in what was told, it is (@present) there; @st was seen. Called for one
 * session of several, so nothing is told to any here. */
static void weigh(struct sl_events *ev, const struct sl_evid *dir, const char *name, bool present,
		  uint64_t child_generation, const struct sl_state *st)
{
	struct doubt *d = find_doubt(ev, dir, name);
	if (explained(st, present, child_generation)) {
		if (d)
			free_doubt(ev, d);
		return;
	}
	if (!d) {
		size_t n = strlen(name) + 1;
		d = malloc(sizeof(*d) + n);
		if (d) {
			*d = (struct doubt){.dir = *dir};
			memcpy(d->name, name, n);
		}
		if (!d || sl_htab_add(&ev->doubts, &d->node, sl_states_key(dir, name)) < 0) {
			free(d);
			ev->forgot = true; /* nothing may be lost silently */
			return;
		}
	}
	d->present = present;
	d->child_generation = child_generation;
}

/* ---- one notification ---- */

/* The name @name in @dir, and what is there; counts as a lookup. */
static void fill_part(struct sl_events *ev, struct sl_session *s, struct sl_fsnotify_part *p,
		      const struct sl_noderef *dir, const struct sl_evid *dirid, const char *name,
		      const struct sl_noderef *child, uint64_t child_generation)
{
	*p = (struct sl_fsnotify_part){.nodeid = dir->id,
				       .generation = dir->generation,
				       .child = child && child->known ? child->id : 0,
				       .child_generation = child_generation,
				       .name = name,
				       .namelen = name ? (uint32_t)strlen(name) : 0};
	if (!sl_session_wants_states(s))
		return;
	const struct sl_state *st = sl_states_get(ev->states, sl_session_nodes(s), dir->id, dirid, name);
	if (!st || !st->known)
		return;
	if (!st->present) {
		p->has_state = true;
		return;
	}
	uint64_t id = dir->id; /* itself: that is no lookup */
	if (name && sl_nodes_lookup(sl_session_nodes(s), dir->id, name, &st->found, &id) < 0)
		return;
	p->has_state = true;
	p->entry = (struct fuse_entry_out){.nodeid = id,
					   .generation = st->found.generation,
					   .entry_valid = 1,
					   .attr_valid = 1,
					   .attr = st->found.attr};
	p->target = st->target;
	p->target_len = st->target ? (uint32_t)strlen(st->target) : 0;
}

struct telling {
	struct sl_events *ev;
	struct sl_session *s;
	const struct sl_change *c;
	struct sl_noderef dir, newdir, child;
	bool own;
};

static void tell(struct telling *t, uint64_t mask, bool new, uint32_t cookie)
{
	const struct sl_change *c = t->c;
	struct sl_fsnotify_msg m = {.mask = mask | (c->mask & FAN_ONDIR), .cookie = cookie, .nparts = 1};
	if (t->own)
		return;
	if (mask & FAN_RENAME) {
		m.nparts = 2;
		fill_part(t->ev, t->s, &m.part[0], &t->dir, &c->dir, c->name, &t->child, c->child.generation);
		fill_part(t->ev, t->s, &m.part[1], &t->newdir, &c->newdir, c->newname, &t->child,
			  c->child.generation);
	} else if (new) {
		fill_part(t->ev, t->s, &m.part[0], &t->newdir, &c->newdir, c->newname, &t->child,
			  c->child.generation);
	} else {
		fill_part(t->ev, t->s, &m.part[0], &t->dir, &c->dir, c->name, &t->child, c->child.generation);
	}
	sl_session_push(t->s, &m);
}

static void tell_ignored(struct telling *t, const struct sl_noderef *node)
{
	struct sl_fsnotify_msg m = {.ignored = true, .nparts = 1};
	struct sl_evid obj;
	uint64_t old = 0;
	if (!node->mask || sl_nodes_mark(sl_session_nodes(t->s), node->id, 0, 0, &old, &obj) < 0 || !old)
		return;
	m.part[0].nodeid = node->id;
	m.part[0].generation = node->generation;
	sl_session_push(t->s, &m);
	sl_backend_unmark(t->ev->b, &obj);
}

/* ---- one change, for one session ---- */

/* Something was renamed to where the directory @id was: is it gone? */
static bool gone_from_tree(struct telling *t, uint64_t id)
{
	_cleanup_place_ struct sl_place p = {0};
	const struct sl_change *c = t->c;
	struct sl_found o;
	if (sl_nodes_place(sl_session_nodes(t->s), id, &p) < 0)
		return true;
	/* They may have changed places. */
	const struct sl_state *st =
	    sl_states_get(t->ev->states, sl_session_nodes(t->s), t->dir.id, &c->dir, c->name);
	if (st && st->known && st->present && st->found.generation == p.generation &&
	    st->found.attr.ino == p.ino)
		return false;
	return sl_tree_stat(t->ev->tree, &p, false, &o) == -ESTALE;
}

/*
 * Where only names are told: which directory was it? Of one that was marked at that time a rename says it. So
 * it is not the marked one that is there by what was looked up: that came later.
 */
static void find_child(struct telling *t)
{
	const struct sl_change *c = t->c;
	struct sl_noderef *x = &t->child;
	if (sl_nodes_dir_at(sl_session_nodes(t->s), t->dir.id, c->name, x) && x->mask &&
	    (!(c->mask & FAN_DELETE) || !gone_from_tree(t, x->id)))
		*x = (struct sl_noderef){0};
}

static void tell_rename(struct telling *t)
{
	const struct sl_change *c = t->c;
	struct sl_nodes *nodes = sl_session_nodes(t->s);
	uint64_t from = t->dir.mask, to = t->newdir.mask;
	bool hears = !(c->mask & FAN_ONDIR) || ((from | to) & FAN_ONDIR);
	struct sl_noderef there = {0};
	if ((c->mask & FAN_ONDIR) && t->newdir.id)
		(void)sl_nodes_dir_at(nodes, t->newdir.id, c->newname, &there);
	if (t->child.id)
		sl_nodes_moved(nodes, t->child.id, t->dir.id, c->name, t->newdir.id, c->newname);
	if (hears && (from & to & FAN_RENAME)) {
		tell(t, FAN_RENAME, false, 0);
	} else if (hears) {
		uint32_t cookie = (from & FAN_MOVED_FROM) && (to & FAN_MOVED_TO) ? ++t->ev->cookie : 0;
		if (from & (FAN_MOVED_FROM | FAN_RENAME))
			tell(t, FAN_MOVED_FROM, false, cookie);
		if (to & (FAN_MOVED_TO | FAN_RENAME))
			tell(t, FAN_MOVED_TO, true, cookie);
	}
	/* A directory that was there is gone, unless it has only changed places with this one. */
	if (there.id && there.id != t->child.id && gone_from_tree(t, there.id)) {
		tell_ignored(t, &there);
		sl_nodes_moved(nodes, there.id, t->newdir.id, c->newname, 0, NULL);
	}
}

static void tell_name(struct telling *t)
{
	const struct sl_change *c = t->c;
	struct sl_nodes *nodes = sl_session_nodes(t->s);
	uint64_t hears = t->dir.mask, gone = c->mask & GONE, come = c->mask & COME, use = c->mask & USE;
	if ((gone & FAN_MOVED_FROM) && t->child.id)
		sl_nodes_moved(nodes, t->child.id, t->dir.id, c->name, 0, NULL);
	if ((c->mask & FAN_ONDIR) && !(hears & FAN_ONDIR))
		hears = 0;
	gone &= hears;
	come &= hears;
	use &= hears & FAN_EVENT_ON_CHILD ? hears : 0;
	/* Changes that were merged: what is there now says which was the last. */
	bool there = false;
	if (gone && (come || use)) {
		const struct sl_state *st = sl_states_get(t->ev->states, nodes, t->dir.id, &c->dir, c->name);
		there = st && st->known && explained(st, true, c->child.generation);
	}
	if (gone && there)
		tell(t, gone & -gone, false, 0);
	if (come)
		tell(t, come & -come, false, 0);
	if (use)
		tell(t, use, false, 0);
	if (gone && !there)
		tell(t, gone & -gone, false, 0);
	if ((c->mask & FAN_DELETE) && (c->mask & FAN_ONDIR) && !there) {
		tell_ignored(t, &t->child);
		/* The next one of that name is another. */
		sl_nodes_moved(nodes, t->child.id, t->dir.id, c->name, 0, NULL);
	}
}

/*
 * A directory that was changed, told of under itself: whoever marked the directory that it is in hears of it
 * there, as of every other child; who marked only it, here.
 */
static void tell_self(struct telling *t)
{
	const struct sl_change *c = t->c;
	struct sl_nodes *nodes = sl_session_nodes(t->s);
	struct sl_noderef dir;
	struct sl_evid obj;
	_cleanup_free_ char *name = NULL;
	if (!t->dir.id)
		return;
	if (c->mask & FAN_DELETE_SELF)
		tell_ignored(t, &t->dir);
	if (!(c->mask & USE))
		return;
	if (sl_nodes_parent(nodes, t->dir.id, &dir, &obj, &name) == 0 && (dir.mask & FAN_EVENT_ON_CHILD)) {
		struct sl_change under = *c;
		under.child = c->dir;
		under.dir = obj;
		under.name = name;
		under.mask |= FAN_ONDIR;
		/* Of one that something else was renamed over, who marked its parent never hears locally. */
		const struct sl_state *st = sl_states_get(t->ev->states, nodes, dir.id, &obj, name);
		if (st && st->known && !explained(st, true, c->dir.generation))
			return;
		struct telling u = {
		    .ev = t->ev, .s = t->s, .c = &under, .dir = dir, .child = t->dir, .own = t->own};
		tell_name(&u);
	} else if ((t->dir.mask & FAN_ONDIR) && (c->mask & t->dir.mask & USE)) {
		tell(t, c->mask & t->dir.mask & USE, false, 0);
	}
}

/* The names of a change, after it was told: do they look as it says? */
static void weigh_change(struct sl_events *ev, struct sl_session *s, const struct sl_change *c,
			 const struct sl_noderef *dir, const struct sl_noderef *newdir)
{
	struct sl_nodes *nodes = sl_session_nodes(s);
	const struct sl_state *st;
	uint64_t gen = c->child.generation;
	if (!c->name || !(c->mask & SL_CHANGE_MASK))
		return;
	if (dir->mask && (st = sl_states_get(ev->states, nodes, dir->id, &c->dir, c->name))) {
		bool gone = c->mask & (GONE | FAN_RENAME), come = c->mask & COME;
		bool present = gone && come ? explained(st, true, gen) : !gone;
		weigh(ev, &c->dir, c->name, present, gen, st);
	}
	if ((c->mask & FAN_RENAME) && newdir->mask &&
	    (st = sl_states_get(ev->states, nodes, newdir->id, &c->newdir, c->newname)))
		weigh(ev, &c->newdir, c->newname, true, gen, st);
}

static void drop_marks(struct sl_events *ev, struct sl_session *s)
{
	struct sl_evid *v = NULL;
	size_t n = 0;
	(void)sl_nodes_unmark_all(sl_session_nodes(s), &v, &n);
	for (size_t i = 0; i < n; i++)
		sl_backend_unmark(ev->b, &v[i]);
	free(v);
}

/* With the lock held: @s hears of nothing until it marks again. */
static void leave(struct sl_events *ev, struct sl_session *s)
{
	sl_list_del(sl_session_link(s));
	drop_marks(ev, s);
}

void sl_events_overflowed(void *arg, struct sl_session *s)
{
	leave(arg, s);
}

static void overflowed(struct sl_events *ev)
{
	sl_list_for_each_safe (l, &ev->sessions) {
		struct sl_session *s = sl_session_of(l);
		sl_session_overflow(s);
		leave(ev, s);
	}
}

/* What others than the exporter did of @c. */
static uint64_t of_others(struct sl_events *ev, const struct sl_change *c)
{
	if (!(c->mask & SL_CHANGE_USE))
		return c->mask;
	if (!c->tid)
		return sl_own_filter(ev->uses, c);
	bool ours = syscall(SYS_tgkill, getpid(), c->tid, 0) == 0;
	return c->mask & ~(uint64_t)(ours ? SL_CHANGE_USE : 0);
}

static void one_change(struct sl_events *ev, const struct sl_change *from)
{
	bool weighed = false;
	struct sl_change left = *from;
	const struct sl_change *c = &left;
	left.mask = of_others(ev, from);
	if (!(c->mask & KINDS))
		return;
	sl_list_for_each_safe (l, &ev->sessions) {
		struct sl_session *s = sl_session_of(l);
		struct sl_nodes *nodes = sl_session_nodes(s);
		struct sl_change others = *c;
		struct telling t = {.ev = ev, .s = s, .c = c, .own = sl_session_owns(s, c->tid)};
		if (!c->tid) {
			others.mask = sl_own_filter(sl_session_own(s), c);
			if (others.mask & KINDS)
				t.c = &others;
			else
				t.own = true;
		}
		bool has = sl_nodes_ref(nodes, &c->dir, &t.dir);
		if (c->mask & FAN_RENAME)
			has |= sl_nodes_ref(nodes, &c->newdir, &t.newdir);
		if (c->name && (c->child.generation || c->child.ino))
			has |= sl_nodes_ref(nodes, &c->child, &t.child);
		if (c->name && !c->child.generation && !c->child.ino && t.dir.id && (c->mask & FAN_ONDIR) &&
		    (c->mask & (GONE | FAN_RENAME)))
			find_child(&t);
		if (!has)
			continue;
		if (!c->name)
			tell_self(&t);
		else if (c->mask & FAN_RENAME)
			tell_rename(&t);
		else
			tell_name(&t);
		if (!weighed && (t.dir.mask || t.newdir.mask)) {
			weigh_change(ev, s, c, &t.dir, &t.newdir);
			weighed = true;
		}
	}
}

/* With the lock held: look at the doubts again, and say what is there where no change said so. */
static void settle(struct sl_events *ev)
{
	struct sl_htab doubts = ev->doubts;
	size_t i;
	if (!doubts.n)
		return;
	ev->doubts = (struct sl_htab){0};
	ev->doubted = 0;
	sl_states_clear(ev->states);
	for (struct sl_hnode *h = sl_htab_first(&doubts, &i), *next; h; h = next) {
		struct doubt *d = sl_container_of(h, struct doubt, node);
		next = sl_htab_step(&doubts, &i, h);
		sl_list_for_each_safe (l, &ev->sessions) {
			struct sl_session *s = sl_session_of(l);
			struct sl_noderef dir;
			const struct sl_state *st;
			if (!sl_nodes_ref(sl_session_nodes(s), &d->dir, &dir) || !dir.mask)
				continue;
			st = sl_states_get(ev->states, sl_session_nodes(s), dir.id, &d->dir, d->name);
			if (!st || !st->known || explained(st, d->present, d->child_generation))
				continue;
			struct sl_fsnotify_msg m = {.nparts = 1};
			fill_part(ev, s, &m.part[0], &dir, &d->dir, d->name, NULL, 0);
			if (m.part[0].has_state)
				sl_session_push(s, &m);
		}
		free(d);
	}
	sl_htab_fini(&doubts);
}

static bool is_name(const struct sl_evid *dir, const char *name, const struct sl_change *c)
{
	return name && dir->ino == c->dir.ino && dir->generation == c->dir.generation &&
	       !strcmp(name, c->name);
}

/*
 * The kernel merges what one thread does to a name, also where another has written to the file in between: of
 * CREATE, MODIFY by another, CLOSE_WRITE it makes two, the last before the second. May @v, which @left others
 * follow, be such a one? Returns after how many of these the file is told to be closed; else 0.
 */
static unsigned closed_after(const struct sl_change *v, unsigned left)
{
	unsigned after = 0;
	if (!v->name || !(v->mask & FAN_CLOSE_WRITE) || !(v->mask & KINDS & ~(uint64_t)FAN_CLOSE_WRITE) ||
	    v->mask & GONE)
		return 0;
	for (unsigned i = 1; i <= left && i < MERGED_LOOK; i++) {
		const struct sl_change *x = &v[i];
		bool it = is_name(&x->dir, x->name, v);
		if ((it && x->mask & (GONE | COME | FAN_RENAME)) || is_name(&x->newdir, x->newname, v))
			break;
		if (it && x->mask & FAN_MODIFY && x->tid != v->tid &&
		    x->child.generation == v->child.generation)
			after = i;
	}
	return after;
}

/* Changes of which CLOSE_WRITE is told later: which, and after which. */
struct closed {
	unsigned which, after;
};

/* @now was told: what waited for that is told next. Returns how many of @closed are left. */
static unsigned tell_closed(struct sl_events *ev, const struct sl_change *v, unsigned now,
			    struct closed *closed, unsigned n)
{
	unsigned left = 0;
	for (unsigned k = 0; k < n; k++) {
		if (closed[k].after != now) {
			closed[left++] = closed[k];
			continue;
		}
		struct sl_change c = v[closed[k].which];
		c.mask &= FAN_CLOSE_WRITE;
		one_change(ev, &c);
	}
	return left;
}

static void changes(void *arg, const struct sl_change *v, unsigned n, bool idle)
{
	struct sl_events *ev = arg;
	struct closed closed[MERGED_LOOK];
	unsigned nclosed = 0;
	pthread_mutex_lock(&ev->lock);
	sl_states_clear(ev->states);
	for (unsigned i = 0; i < n && !sl_list_empty(&ev->sessions); i++) {
		struct sl_change c = v[i];
		unsigned after = nclosed < MERGED_LOOK ? closed_after(&v[i], n - 1 - i) : 0;
		if (after) {
			closed[nclosed++] = (struct closed){i, i + after};
			c.mask &= ~(uint64_t)FAN_CLOSE_WRITE;
		}
		if (c.mask & FAN_Q_OVERFLOW)
			overflowed(ev);
		else
			one_change(ev, &c);
		if (nclosed)
			nclosed = tell_closed(ev, v, i, closed, nclosed);
		/* Between two changes: this can end any session. */
		if (ev->forgot)
			overflowed(ev);
		else if (ev->doubts.n >= DOUBTS_MAX)
			settle(ev);
		ev->forgot = false;
	}
	/* Not as soon as the queue is empty: what was seen of a name may be of changes made while it was
	 * looked at, and they are told of as what they are. But where there is never quiet, some time. */
	if (ev->doubts.n && !ev->doubted)
		ev->doubted = sl_now();
	if (!n || (idle && ev->doubts.n && sl_now() - ev->doubted > DOUBTED_NS))
		settle(ev);
	if (idle && n) {
		sl_own_heard(ev->uses, v[0].when);
		sl_list_for_each (l, &ev->sessions)
			sl_own_heard(sl_session_own(sl_session_of(l)), v[0].when);
	}
	sl_list_for_each (l, &ev->sessions)
		sl_session_flush(sl_session_of(l));
	sl_states_clear(ev->states);
	pthread_mutex_unlock(&ev->lock);
}

/* ---- marks ---- */

static int need_backend(struct sl_events *ev)
{
	if (ev->b)
		return 0;
	pthread_mutex_lock(&ev->open_lock);
	if (!ev->b && !ev->err) {
		_cleanup_free_ char *why = NULL;
		struct sl_backend *b = NULL;
		const struct sl_backend_config cfg = {
		    .kind = ev->kind, .root_fd = sl_tree_fd(ev->tree), .changes = changes, .arg = ev};
		int err = sl_backend_open(&cfg, &b, &why);
		ev->err = err == -EMFILE || err == -ENFILE || err == -ENOMEM ? 0 : err; /* these may pass */
		if (err < 0)
			sl_warn("clients are not told of changes of %s: %s", sl_tree_path(ev->tree),
				why ? why : strerror(-err));
		else
			ev->b = b;
	}
	int r = ev->b ? 0 : -EOPNOTSUPP;
	pthread_mutex_unlock(&ev->open_lock);
	return r;
}

static int unmark(struct sl_events *ev, struct sl_session *s, uint64_t id)
{
	struct sl_evid obj;
	uint64_t old;
	int r = sl_nodes_mark(sl_session_nodes(s), id, 0, 0, &old, &obj);
	if (r == 0 && old)
		sl_backend_unmark(ev->b, &obj);
	return r;
}

/* With the lock held: @s, which is told from now on, has asked for @mask. */
static int want_uses(struct sl_events *ev, struct sl_session *s, uint64_t mask)
{
	uint64_t want = ev->wanted | (mask & SL_CHANGE_USE);
	if (sl_list_empty(sl_session_link(s)))
		sl_list_add_tail(&ev->sessions, sl_session_link(s));
	*sl_session_uses(s) |= mask & SL_CHANGE_USE;
	int r = want == ev->wanted ? 0 : sl_backend_use(ev->b, want);
	if (r == 0)
		ev->wanted = want;
	return r;
}

/* With the lock held: somebody has left. */
static void want_less(struct sl_events *ev)
{
	uint64_t want = 0;
	if (!ev->wanted)
		return;
	sl_list_for_each (l, &ev->sessions)
		want |= *sl_session_uses(sl_session_of(l));
	if (want != ev->wanted && sl_backend_use(ev->b, want) == 0)
		ev->wanted = want;
}

int sl_events_mark(struct sl_events *ev, struct sl_session *s, uint64_t id, int fd, uint64_t mask,
		   uint64_t max, struct fuse_fsnotify_out *out)
{
	uint64_t uses = mask & SL_CHANGE_USE;
	struct sl_evid obj;
	struct sl_found o;
	uint64_t old = 0;
	*out = (struct fuse_fsnotify_out){0};
	if (!mask) {
		int r = unmark(ev, s, id);
		out->seq = sl_session_seq(s);
		return r;
	}
	mask &= SL_EVENTS_MASK;
	if (!(mask & ~(uint64_t)(FAN_ONDIR | FAN_EVENT_ON_CHILD)))
		return -EINVAL;
	int r = need_backend(ev);
	if (r == 0)
		r = sl_session_start(s);
	if (r == 0)
		r = sl_tree_probe(ev->tree, fd, "", false, &o);
	if (r < 0)
		return r;
	obj = (struct sl_evid){.generation = o.generation, .ino = o.attr.ino};
	pthread_mutex_lock(&ev->lock);
	for (;;) {
		r = uses ? want_uses(ev, s, uses) : 0;
		pthread_mutex_unlock(&ev->lock);
		if (r == 0)
			r = sl_backend_mark(ev->b, fd, &obj);
		if (r < 0)
			return r;
		/* In one piece for who reads: an overflow comes before it, and its number is lower, or takes
		 * it away. */
		pthread_mutex_lock(&ev->lock);
		if (!(uses & ~ev->wanted))
			break;
		sl_backend_unmark(ev->b, &obj); /* there was an overflow, and somebody else has left */
	}
	r = sl_nodes_mark(sl_session_nodes(s), id, mask, max, &old, &obj);
	if (r == 0 && sl_list_empty(sl_session_link(s)))
		sl_list_add_tail(&ev->sessions, sl_session_link(s));
	out->mask = mask;
	out->seq = sl_session_seq(s);
	pthread_mutex_unlock(&ev->lock);
	if (r < 0 || old)
		sl_backend_unmark(ev->b, &obj); /* it had one */
	return r;
}

void sl_events_unmarked(struct sl_events *ev, const struct sl_evid *obj)
{
	if (ev->b)
		sl_backend_unmark(ev->b, obj);
}

bool sl_events_blind(struct sl_events *ev)
{
	return ev->b && sl_backend_kind(ev->b) == SL_BACKEND_INOTIFY;
}

struct sl_own *sl_events_uses(struct sl_events *ev)
{
	return ev->wanted && sl_events_blind(ev) ? ev->uses : NULL;
}

void sl_events_leave(struct sl_events *ev, struct sl_session *s)
{
	pthread_mutex_lock(&ev->lock);
	leave(ev, s);
	*sl_session_uses(s) = 0;
	want_less(ev);
	pthread_mutex_unlock(&ev->lock);
}

void sl_events_settle(struct sl_events *ev)
{
	pthread_mutex_lock(&ev->open_lock);
	struct sl_backend *b = ev->b;
	pthread_mutex_unlock(&ev->open_lock);
	if (b)
		(void)sl_backend_settle(b);
}

int sl_events_new(struct sl_tree *tree, enum sl_backend_kind kind, struct sl_events **ret)
{
	struct sl_events *ev = calloc(1, sizeof(*ev));
	if (!ev)
		return -ENOMEM;
	ev->tree = tree;
	ev->kind = kind;
	sl_list_init(&ev->sessions);
	pthread_mutex_init(&ev->open_lock, NULL);
	pthread_mutex_init(&ev->lock, NULL);
	int r = sl_states_new(tree, &ev->states);
	if (r == 0)
		r = sl_own_new(&ev->uses);
	if (r < 0) {
		sl_events_free(ev);
		return r;
	}
	*ret = ev;
	return 0;
}

void sl_events_free(struct sl_events *ev)
{
	if (!ev)
		return;
	if (ev->b)
		sl_backend_close(ev->b);
	size_t i;
	for (struct sl_hnode *h; (h = sl_htab_first(&ev->doubts, &i));)
		free_doubt(ev, sl_container_of(h, struct doubt, node));
	sl_htab_fini(&ev->doubts);
	sl_states_free(ev->states);
	sl_own_free(ev->uses);
	pthread_mutex_destroy(&ev->open_lock);
	pthread_mutex_destroy(&ev->lock);
	free(ev);
}
