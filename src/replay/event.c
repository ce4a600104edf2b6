/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What an event of the origin means for what the clone has. */
#include <sys/fanotify.h>

#include "base/log.h"
#include "base/time.h"
#include "replay/internal.h"
#include "store/remote.h"

#define SWAP_NS	     (20 * SL_NS_PER_MS)
#define SWAP_SEEN_NS (1 * SL_NS_PER_SEC)
#define SWAP_LOOK    4	/* renames */
#define TAKEN_LOOK   64 /* events */
#define CHANGES	     (FAN_MODIFY | FAN_ATTRIB | FAN_CLOSE_WRITE)
#define USES	     (FAN_OPEN | FAN_ACCESS | FAN_CLOSE_NOWRITE)

/* Is a version here of which watchers have not heard? */
static bool owed(struct sl_object *o)
{
	pthread_mutex_lock(&o->lock);
	bool is = o->rec.flags & SL_UNTOLD && !(o->rec.flags & (SL_MODIFIED | SL_LOCAL | SL_WRITTEN));
	pthread_mutex_unlock(&o->lock);
	return is;
}

/*
 * What a name that was made denoted, when by now it is gone or denotes something else: an empty thing of the
 * right identity, which goes with the event that comes.
 */
static struct sl_ostate husk(const struct sl_oevent *e, struct sl_object *dir, uint64_t ino,
			     uint64_t generation)
{
	struct sl_ostate s = {.known = true, .present = true};
	struct sl_attr d = {0};
	struct timespec now;
	(void)sl_object_attr(dir, &d);
	clock_gettime(CLOCK_REALTIME, &now);
	s.attr = (struct sl_attr){.ino = ino,
				  .generation = generation,
				  .mode = e->mask & FAN_ONDIR ? S_IFDIR | 0755 : S_IFREG | 0644,
				  /* Who reads it must ask, and not find it empty. */
				  .size = e->mask & FAN_ONDIR ? 0 : 1,
				  .nlink = 1,
				  .uid = d.uid,
				  .gid = d.gid,
				  .atime = now,
				  .mtime = now,
				  .ctime = {0}, /* anything that is said of it is later */
				  .no_xattrs = true};
	return s;
}

static bool child_known(const struct sl_oevent *e)
{
	return e->child_ino || e->child_generation;
}

static bool names_child(const struct sl_ostate *s, const struct sl_oevent *e)
{
	return s->known && s->present && S_ISDIR(s->attr.mode) == !!(e->mask & FAN_ONDIR) &&
	       (!child_known(e) || replay_same(s->attr.ino, (uint32_t)s->attr.generation, e->child_ino,
					       (uint32_t)e->child_generation));
}

static bool is_child(struct sl_object *o, const struct sl_oevent *e)
{
	return sl_object_is_dir(o) == !!(e->mask & FAN_ONDIR) &&
	       (!child_known(e) || replay_is(o, e->child_ino, e->child_generation));
}

static int made(struct sl_replay *p, const struct sl_oevent *e, struct sl_object *dir, const char *name,
		const struct sl_ostate *s, bool moved)
{
	_cleanup_object_ struct sl_object *o = NULL;
	struct sl_ostate h;
	int r = sl_object_lookup(dir, name, &o);
	if (r < 0 && r != -ENOENT)
		return r;
	bool file = s->known && s->present && S_ISREG(s->attr.mode) && !(e->mask & FAN_ONDIR);
	/* What is renamed to a name is read by it at once: it is what is there now. */
	if (!names_child(s, e) && !(moved && file)) {
		h = husk(e, dir, e->child_ino, e->child_generation);
		if (file) {
			h.attr.size = s->attr.size;
			h.attr.mtime = s->attr.mtime;
		}
		struct sl_attr had;
		if (o && sl_object_is_reg(o) && S_ISREG(h.attr.mode) && sl_object_attr(o, &had) == 0)
			h.attr.size = SL_MAX(h.attr.size, had.size);
		s = &h;
	}
	if (o && !replay_foreign(dir, name, o) && replay_is_state(o, s) &&
	    (!S_ISLNK(o->type) || replay_same_target(o, s)))
		/* A listing showed it, or a reader came before us. */
		return owed(o) ? replay_update(p, dir, name, o, s, FAN_MODIFY) : 0;
	if (!o && sl_object_whiteout(dir, name))
		return 0;
	bool swapped = moved && p->left && !strcmp(p->left, e->newplace ? e->newplace : e->place);
	if (o && (replay_foreign(dir, name, o) || !moved)) {
		if (replay_foreign(dir, name, o)) {
			replay_conflict(p, dir, name);
			return 0;
		}
		r = replay_vanish(p, dir, name, false);
		if (r <= 0)
			return r;
	}
	r = replay_appear(p, dir, name, s,
			  swapped ? SL_APPEAR_SWAPPED
			  : moved ? SL_APPEAR_MOVED
				  : SL_APPEAR_MADE);
	p->as_said = r > 0 && s == &e->state && (!S_ISREG(s->attr.mode) || s->attr.nlink < 2);
	return r;
}

/* The next event about @place brings something to it. */
static bool find_taken(struct sl_replay *p, const char *place)
{
	bool is = false;
	unsigned n = 0;
	pthread_mutex_lock(&p->lock);
	sl_list_for_each (l, &p->queue) {
		const struct item *i = sl_list_entry(l, struct item, link);
		const struct sl_oevent *x = &i->e;
		const char *to = x->mask & FAN_RENAME	  ? x->newplace
				 : x->mask & FAN_MOVED_TO ? x->place
							  : NULL;
		if (i->dir || !x->mask)
			continue;
		is = to && !strcmp(to, place);
		if (is || !strcmp(x->place, place) || ++n > TAKEN_LOOK)
			break;
	}
	pthread_mutex_unlock(&p->lock);
	return is;
}

/*
 * What was there is said to have left, to where nothing is told of it. If something comes there next it was
 * an exchange, or as good as one: until then it stays, for at every moment something has that name.
 */
static bool taken_next(struct sl_replay *p, const struct sl_oevent *e)
{
	bool is = find_taken(p, e->place);
	/* Who looked for it while it was being exchanged may have found nothing. */
	if (!is && (!e->state.known || e->state.present)) {
		(void)unsure_told(p);
		is = find_taken(p, e->place);
	}
	if (!is)
		return false;
	free(p->leaving);
	p->leaving = strdup(e->place);
	p->as_said = p->leaving;
	return p->leaving;
}

static int gone(struct sl_replay *p, const struct sl_oevent *e, struct sl_object *dir, const char *name,
		bool moved)
{
	_cleanup_object_ struct sl_object *o = NULL;
	int r = sl_object_lookup(dir, name, &o);
	/* It was taken away here before: that need not be known any more. */
	if (r == -ENOENT && sl_store_native(dir->store) && e->state.known && !e->state.present)
		sl_object_forget_came(dir, name);
	if (r < 0)
		return r == -ENOENT ? 0 : r;
	if (replay_foreign(dir, name, o))
		return 0;
	/* What the clone has is what came after it; by an exchange, it may be, and then has been replaced. */
	if (!is_child(o, e) && e->state.known && e->state.present && (moved || replay_is_state(o, &e->state)))
		return 0;
	if (moved && taken_next(p, e))
		return 0;
	r = replay_vanish(p, dir, name, moved);
	p->as_said = r > 0 && e->state.known && !e->state.present;
	return r;
}

/* With the lock held. 1: the other half of the exchange that @e is a half of is in the queue; 0: something
 * else is there instead; -ENOENT: no event at all. */
static int find_swapped(struct sl_replay *p, const struct sl_oevent *e)
{
	unsigned n = 0;
	int r = -ENOENT;
	sl_list_for_each (l, &p->queue) {
		const struct item *i = sl_list_entry(l, struct item, link);
		const struct sl_oevent *x = &i->e;
		if (i->dir || !x->mask)
			continue;
		r = 0;
		if (!x->newplace)
			continue;
		if (++n > SWAP_LOOK)
			break;
		if (!strcmp(x->place, e->newplace) && !strcmp(x->newplace, e->place) &&
		    (!child_known(e) || x->child_generation != e->child_generation))
			return 1;
		if (!strcmp(x->place, e->newplace) || !strcmp(x->newplace, e->place))
			break;
	}
	return r;
}

/* The other half of an exchange is told next, with the names swapped: is it? Waits for up to @ns where
 * nothing is told yet. */
static bool swapped_next(struct sl_replay *p, const struct sl_oevent *e, uint64_t ns)
{
	uint64_t until = sl_now() + ns;
	struct timespec ts = sl_ns_to_timespec(until);
	int r;
	pthread_mutex_lock(&p->lock);
	while ((r = find_swapped(p, e)) == -ENOENT && ns && !p->stop &&
	       pthread_cond_timedwait(&p->cond, &p->lock, &ts) == 0)
		;
	pthread_mutex_unlock(&p->lock);
	return r == 1;
}

/*
 * Both names are there, and one is said to have taken the other's place: is that gone, or where the one was?
 * What is there by now does not prove it, for it may have come later, and a fill may have been faster than
 * the events: who reads what is renamed next must not find himself with a file of another name. But the other
 * half of an exchange is told next.
 */
static bool is_exchange(struct sl_replay *p, const struct sl_oevent *e, struct sl_object *target)
{
	/* Usually what took another's place was all there was. */
	if (e->state.known && !e->state.present)
		return swapped_next(p, e, 0);
	bool seen = e->state.known && target->has_record && replay_is_state(target, &e->state);
	return swapped_next(p, e, seen ? SWAP_SEEN_NS : SWAP_NS);
}

/* The second half of the exchange that was done last. */
static bool was_exchanged(struct sl_replay *p, const struct sl_oevent *e)
{
	bool is = p->swapped[0] && p->swapped[1] && !strcmp(p->swapped[0], e->newplace) &&
		  !strcmp(p->swapped[1], e->place);
	free(sl_steal_ptr(&p->swapped[0]));
	free(sl_steal_ptr(&p->swapped[1]));
	return is;
}

static int renamed(struct sl_replay *p, const struct sl_oevent *e)
{
	if (was_exchanged(p, e))
		return 0;
	_cleanup_object_ struct sl_object *dir = NULL, *newdir = NULL, *o = NULL, *target = NULL;
	const char *name = NULL, *newname = NULL;
	int from = replay_find(p, e->place, &e->dir, &dir, &name);
	int to = replay_find(p, e->newplace, &e->newdir, &newdir, &newname);
	if (from == 0)
		from = sl_object_lookup(dir, name, &o);
	if (from == 0 && replay_foreign(dir, name, o))
		from = -ENOENT;
	if (to < 0)
		return from < 0 ? 0 : gone(p, e, dir, name, true);
	int t = sl_object_lookup(newdir, newname, &target);
	if (t < 0 && t != -ENOENT)
		return t;
	bool there = target && !replay_foreign(newdir, newname, target) && child_known(e) &&
		     is_child(target, e) && (!o || target != o);
	if (from < 0 || !is_child(o, e)) {
		/* What was renamed is not here, or the first half of an exchange brought it there. */
		return there ? 0 : made(p, e, newdir, newname, &e->newstate, true);
	}
	if (there && sl_object_is_dir(o)) /* the listing of that directory was later than that of this one */
		return replay_vanish(p, dir, name, true);
	bool ours = target && !replay_foreign(newdir, newname, target);
	bool told = ours && is_exchange(p, e, target);
	enum sl_rename how = told						       ? SL_RENAME_EXCHANGE
			     : ours && sl_object_is_dir(target) != sl_object_is_dir(o) ? SL_RENAME_SWAP
										       : SL_RENAME_OVER;
	if (!target && sl_object_whiteout(newdir, newname))
		return replay_vanish(p, dir, name, true);
	if (target && !ours) {
		replay_conflict(p, newdir, newname);
		return replay_vanish(p, dir, name, true);
	}
	/*
	 * First what it is now, so that no reader finds it by its new name with what it was before. A file of
	 * that name may be another one already, whose event is still to come: its content is what a reader of
	 * that name gets at the origin.
	 */
	const struct sl_ostate *n = &e->newstate;
	if (n->known && n->present && (n->attr.mode & S_IFMT) == o->type &&
	    (replay_is_state(o, n) || (!how && sl_object_is_reg(o) && !sl_object_linked(o))) &&
	    !replay_is_twin(p, o, n))
		(void)replay_update(p, dir, name, o, n, 0);
	const struct sl_ostate *s = &e->state;
	if (how && s->known && s->present && replay_is_state(target, s))
		(void)replay_update(p, newdir, newname, target, s, 0);
	int r = replay_rename(p, dir, name, newdir, newname, how);
	if (told && r > 0) {
		p->swapped[0] = strdup(e->place);
		p->swapped[1] = strdup(e->newplace);
	}
	return r;
}

/* Everything that events have told of @dir so far has been done. */
static bool is_settled(struct sl_replay *p, struct sl_object *dir)
{
	return !unlisted_has(p, dir) && !p->compare && !replay_is_unsure(p, dir);
}

static bool not_here(int r)
{
	return r == -ENOENT || r == -ENODATA || r == -ESTALE;
}

static int changed(struct sl_replay *p, const struct sl_oevent *e)
{
	_cleanup_object_ struct sl_object *dir = NULL, *o = NULL;
	const char *name = NULL;
	struct sl_ostate s = e->state;
	uint64_t mask = e->mask & ~(uint64_t)FAN_ONDIR;
	if (!(mask & CHANGES))
		s = (struct sl_ostate){0}; /* what may be new is told next */
	if (!*e->place) {
		o = sl_object_ref(sl_object_root(p->cfg.store));
		if (!s.present || !replay_is_state(o, &s))
			s.known = false;
		mask = sl_uses_news(&p->uses, sl_object_ino(o), mask);
		return mask ? replay_update(p, NULL, NULL, o, &s, mask) : 0;
	}
	int r = replay_find(p, e->place, &e->dir, &dir, &name);
	if (r == 0)
		r = sl_object_lookup(dir, name, &o);
	if (r == -ENOENT && names_child(&s, e) && is_settled(p, dir))
		replay_came(dir, name, &s.attr); /* once: it was taken away here, and stays so */
	if (r < 0)
		return not_here(r) ? 0 : r;
	if (replay_foreign(dir, name, o) || !is_child(o, e))
		return 0;
	if (!s.present || !replay_is_state(o, &s) || replay_is_twin(p, o, &s))
		s.known = false; /* of what comes next, or of one that is here already */
	if (!s.known && mask & (FAN_MODIFY | FAN_CLOSE_WRITE))
		replay_uncertain(p, dir, name, o, &e->state);
	if (!s.known && mask & CHANGES && sl_object_linked(o))
		unsure_of_file(p, o);
	mask = sl_uses_news(&p->uses, sl_object_ino(o), mask);
	return mask ? replay_update(p, dir, name, o, &s, mask) : 0;
}

static int apply(struct sl_replay *p, const struct sl_oevent *e)
{
	_cleanup_object_ struct sl_object *dir = NULL;
	const char *name = NULL;
	int r;
	if (e->mask & FAN_RENAME)
		return e->newplace ? renamed(p, e) : -EINVAL;
	/* A state without an event: what the kernel has merged does not lead to it. See check(). */
	if (!e->mask && *e->place)
		return 0;
	if (e->mask & (FAN_CREATE | FAN_DELETE | FAN_MOVED_FROM | FAN_MOVED_TO)) {
		r = replay_find(p, e->place, &e->dir, &dir, &name);
		if (r < 0)
			return not_here(r) ? 0 : r;
		if (e->mask & (FAN_CREATE | FAN_MOVED_TO))
			return made(p, e, dir, name, &e->state, e->mask & FAN_MOVED_TO);
		return gone(p, e, dir, name, e->mask & FAN_MOVED_FROM);
	}
	return changed(p, e);
}

/* As the origin said of the name when the event was sent, or later; what was changed here need not be. */
static bool as_said(struct sl_replay *p, struct sl_object *dir, const char *name, const struct sl_ostate *s)
{
	_cleanup_object_ struct sl_object *o = NULL;
	int r = sl_object_lookup(dir, name, &o);
	if (r == -ENOENT)
		return !s->present || replay_deleted(dir, name, s);
	if (r < 0 || replay_foreign(dir, name, o))
		return r == 0;
	if (!s->present || !replay_is_state(o, s) || !replay_is_joined(p, o, s))
		return false;
	struct sl_version v = sl_attr_version(&s->attr);
	bool later = replay_is_later(o, s);
	pthread_mutex_lock(&o->lock);
	bool same = later || !o->has_record ||
		    ((o->rec.mode == s->attr.mode || o->rec.flags & SL_META) &&
		     (!sl_object_is_reg(o) || sl_version_eq(&o->rec.origin, &v) ||
		      o->rec.flags & (SL_MODIFIED | SL_WRITTEN) || o->follows));
	pthread_mutex_unlock(&o->lock);
	return same && (!S_ISLNK(o->type) || replay_same_target(o, s));
}

/* What the last event of a name has left must be what the origin has. */
static void check(struct sl_replay *p, const char *place, const struct sl_odir *which,
		  const struct sl_ostate *s)
{
	_cleanup_object_ struct sl_object *dir = NULL;
	const char *name = NULL;
	if (*place && replay_find(p, place, which, &dir, &name) == 0 &&
	    (!s->known || !as_said(p, dir, name, s)))
		replay_unsure(p, dir);
}

/* A name has come to @place. If it is another one of a file, that must not be here as two. */
static void check_links(struct sl_replay *p, const char *place, const struct sl_odir *which,
			const struct sl_ostate *s)
{
	_cleanup_object_ struct sl_object *dir = NULL, *o = NULL;
	const char *name = NULL;
	if (!s->known || !s->present || !S_ISREG(s->attr.mode) || s->attr.nlink < 2 ||
	    sl_store_native(p->cfg.store) || replay_find(p, place, which, &dir, &name) < 0)
		return;
	if (sl_object_lookup(dir, name, &o) == 0 && sl_remote_alone(o))
		unsure_of_links(p);
}

static void done(struct sl_replay *p, const struct sl_oevent *e, int r)
{
	sl_debug("event %llu, %llx, '%s'%s%s, child %llu.%llx, state %d%d %llu.%llx, new %d%d %llu.%llx: %d",
		 (unsigned long long)e->seq, (unsigned long long)e->mask, e->place, e->newplace ? " to " : "",
		 e->newplace ? e->newplace : "", (unsigned long long)e->child_ino,
		 (unsigned long long)e->child_generation, e->state.known, e->state.present,
		 (unsigned long long)e->state.attr.ino, (unsigned long long)e->state.attr.generation,
		 e->newstate.known, e->newstate.present, (unsigned long long)e->newstate.attr.ino,
		 (unsigned long long)e->newstate.attr.generation, r);
	pthread_mutex_lock(&p->lock);
	p->stats.seq = SL_MAX(p->stats.seq, e->seq);
	if (r > 0)
		p->stats.applied++;
	else
		p->stats.skipped++;
	pthread_mutex_unlock(&p->lock);
}

void event_do(struct sl_replay *p, const struct sl_oevent *e)
{
	p->as_said = false;
	bool it = e->mask && p->leaving &&
		  (!strcmp(e->place, p->leaving) || (e->newplace && !strcmp(e->newplace, p->leaving)));
	_cleanup_free_ char *left = it ? sl_steal_ptr(&p->leaving) : NULL;
	p->left = left;
	done(p, e, apply(p, e));
	p->left = NULL;
	if (!p->as_said && (!e->mask || e->mask & ~(uint64_t)(USES | FAN_ONDIR)))
		check(p, e->place, &e->dir, &e->state);
	if (e->newplace)
		check(p, e->newplace, &e->newdir, &e->newstate);
	if (e->mask & (FAN_CREATE | FAN_MOVED_TO))
		check_links(p, e->place, &e->dir, &e->state);
}
