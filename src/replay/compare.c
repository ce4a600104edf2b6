/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the clone has against what the origin has, directory by directory, breadth first, a few at once.
 * Directories that are listed for it are marked first, so what happens from then on comes as events: those
 * wait in the queue until the listings that they may be newer than are dealt with.
 */
#include <dirent.h>
#include <sys/fanotify.h>

#include "base/fd.h"
#include "base/log.h"
#include "base/time.h"
#include "replay/internal.h"
#include "store/walk.h"

#define BATCH	 16
#define AGAIN_NS SL_NS_PER_SEC

struct todo {
	struct sl_list link;
	bool deep;	/* and what is below it */
	unsigned tries; /* not deep: failed */
	uint64_t since; /* not deep: of the doubt, by sl_now() */
	char place[];
};

struct listing {
	struct sl_compare *c;
	struct todo *t;
	struct sl_oreq req;
};

struct sl_compare {
	struct sl_replay *p;
	struct sl_list todo;
	pthread_mutex_t lock;
	pthread_cond_t cond;
	unsigned under_way;
	uint64_t not_before; /* sl_now() time: the origin could not be reached */
	struct listing batch[BATCH];
};

static int push(struct sl_compare *c, const char *place, bool deep, unsigned tries, uint64_t since)
{
	size_t n = strlen(place) + 1;
	struct todo *t = malloc(sizeof(*t) + n);
	if (!t)
		return -ENOMEM;
	t->deep = deep;
	t->tries = tries;
	t->since = since;
	memcpy(t->place, place, n);
	sl_list_add_tail(&c->todo, &t->link);
	return 0;
}

static int begin(struct sl_replay *p)
{
	struct sl_compare *c = calloc(1, sizeof(*c));
	if (!c)
		return -ENOMEM;
	c->p = p;
	sl_list_init(&c->todo);
	pthread_mutex_init(&c->lock, NULL);
	pthread_cond_init(&c->cond, NULL);
	p->compare = c;
	pthread_mutex_lock(&p->lock);
	p->stats.comparing = true;
	pthread_mutex_unlock(&p->lock);
	return 0;
}

int compare_begin(struct sl_replay *p)
{
	if (p->compare)
		compare_end(p);
	int r = begin(p);
	if (r == 0)
		r = push(p->compare, "", true, 0, 0);
	if (r < 0 && p->compare)
		compare_end(p);
	return r;
}

int compare_add(struct sl_replay *p, struct sl_object *dir, unsigned tries, uint64_t since)
{
	_cleanup_free_ char *place = NULL;
	int r = sl_object_place(dir, &place);
	if (r < 0)
		return r == -ENOMEM ? r : 0; /* made here, or gone */
	if (!p->compare)
		r = begin(p);
	return r < 0 ? r : push(p->compare, place, false, tries, since);
}

/* @t is not where it was: what it is in must be looked at. */
static int push_parent(struct sl_compare *c, const struct todo *t)
{
	const char *slash = strrchr(t->place, '/');
	_cleanup_free_ char *up = slash ? strndup(t->place, (size_t)(slash - t->place)) : strdup("");
	if (t->deep || !*t->place)
		return 0;
	return up ? push(c, up, false, t->tries, t->since) : -ENOMEM;
}

void compare_end(struct sl_replay *p)
{
	struct sl_compare *c = p->compare;
	p->compare = NULL;
	sl_list_for_each_safe (l, &c->todo)
		free(sl_list_entry(l, struct todo, link));
	pthread_mutex_destroy(&c->lock);
	pthread_cond_destroy(&c->cond);
	free(c);
}

/* ---- one directory ---- */

/* A name that is here, or at the origin, or both. */
struct pair {
	const char *name;
	struct sl_object *o;	   /* here; a reference */
	const struct sl_oentry *e; /* there */
	bool here, done;
	bool came; /* renamed to this name now */
};

static int cmp_pair(const void *a, const void *b)
{
	return strcmp(((const struct pair *)a)->name, ((const struct pair *)b)->name);
}

static bool identical(const struct pair *x, const struct sl_attr *a)
{
	return x->o && x->o->has_record && (a->mode & S_IFMT) == x->o->type &&
	       replay_is(x->o, a->ino, a->generation);
}

static int cmp_ino(const void *a, const void *b)
{
	const struct pair *x = *(struct pair *const *)a, *y = *(struct pair *const *)b;
	uint64_t i = x->o->rec.origin.ino, k = y->o->rec.origin.ino;
	return i < k ? -1 : i > k;
}

static bool movable(struct sl_object *dir, const struct pair *x)
{
	return x->o && x->o->has_record && !replay_foreign(dir, x->name, x->o) &&
	       (!(x->o->rec.flags & SL_LINKED) || x->o->rec.nlink <= 1) &&
	       !(x->e && identical(x, &x->e->attr));
}

static struct sl_ostate state_of(const struct sl_oentry *e)
{
	struct sl_ostate s = {.known = true};
	if (e)
		s = (struct sl_ostate){.known = true, .present = true, .attr = e->attr, .target = e->target};
	return s;
}

/* What has another name now keeps what is here of it. */
static uint64_t do_renames(struct sl_replay *p, struct sl_object *dir, struct pair *v, size_t n)
{
	struct pair **by_ino = reallocarray(NULL, n + 1, sizeof(*by_ino));
	size_t k = 0;
	uint64_t done = 0;
	for (size_t i = 0; by_ino && i < n; i++)
		if (movable(dir, &v[i]))
			by_ino[k++] = &v[i];
	if (k)
		qsort(by_ino, k, sizeof(*by_ino), cmp_ino);
	for (size_t i = 0; k && i < n; i++) {
		struct pair *to = &v[i];
		if (!to->e || identical(to, &to->e->attr) ||
		    to->e->attr.nlink > 1 + S_ISDIR(to->e->attr.mode) * 65535u ||
		    (to->o && replay_foreign(dir, to->name, to->o)) ||
		    (!to->o && replay_deleted(dir, to->name, &(struct sl_ostate){.attr = to->e->attr})))
			continue;
		size_t lo = 0, hi = k;
		while (lo < hi) {
			size_t mid = (lo + hi) / 2;
			if (by_ino[mid]->o && by_ino[mid]->o->rec.origin.ino < to->e->attr.ino)
				lo = mid + 1;
			else
				hi = mid;
		}
		struct pair *from = lo < k ? by_ino[lo] : NULL;
		if (!from || from == to || from->done || !identical(from, &to->e->attr))
			continue;
		enum sl_rename how = to->o && from->e && identical(to, &from->e->attr) ? SL_RENAME_EXCHANGE
				     : to->o && sl_object_is_dir(to->o) != sl_object_is_dir(from->o)
					 ? SL_RENAME_SWAP
					 : SL_RENAME_OVER;
		if (replay_rename(p, dir, from->name, dir, to->name, how) <= 0)
			continue;
		done++;
		from->done = true; /* and is found by its new name below */
		to->came = true;
	}
	free(by_ino);
	return done;
}

/*
 * Can the name only have come from the origin, unless it is known that it has not (replay_foreign())? Nobody
 * knows of a name behind the fanotify gate of a file that has several and is not known to have come: not even
 * of the one that is its place now, for that may be what was left when the origin took another away.
 */
static bool from_origin(struct sl_object *dir, const char *name, struct sl_object *o)
{
	pthread_mutex_lock(&o->lock);
	bool known = sl_store_native(o->store) ? o->has_record && !(o->rec.flags & SL_LINKED)
					       : o->has_record || S_ISLNK(o->type);
	pthread_mutex_unlock(&o->lock);
	return known || (sl_store_native(o->store) && sl_object_has_come(dir, name, o));
}

static int collect(struct sl_object *dir, const struct sl_oreq *q, struct sl_name **names, size_t *nnames,
		   struct pair **ret, size_t *n)
{
	int r = sl_names_read(dir, names, nnames);
	struct pair *v = r == 0 ? calloc(*nnames + q->nentries + 1, sizeof(*v)) : NULL;
	size_t k = 0, m = 0;
	if (!v)
		return r < 0 ? r : -ENOMEM;
	for (size_t i = 0; i < *nnames; i++)
		v[k++] = (struct pair){.name = (*names)[i].name, .here = true};
	for (size_t i = 0; i < q->nentries; i++)
		v[k++] = (struct pair){.name = q->entries[i].name, .e = &q->entries[i]};
	if (k)
		qsort(v, k, sizeof(*v), cmp_pair);
	for (size_t i = 0; i < k; i++) {
		if (m && !strcmp(v[m - 1].name, v[i].name)) {
			v[m - 1].e = v[m - 1].e ? v[m - 1].e : v[i].e;
			v[m - 1].here |= v[i].here;
		} else {
			v[m++] = v[i];
		}
	}
	for (size_t i = 0; i < m; i++)
		if (v[i].here && sl_object_lookup(dir, v[i].name, &v[i].o) < 0)
			v[i].o = NULL;
	*ret = v;
	*n = m;
	return 0;
}

static int compare_dir(struct sl_compare *c, const struct todo *t, const struct sl_oreq *q)
{
	struct sl_replay *p = c->p;
	const char *place = t->place;
	_cleanup_object_ struct sl_object *dir = NULL;
	int r = p->cfg.find(p->cfg.store, place, &dir);
	if (r < 0 || !replay_populated(dir))
		return 0; /* not here */
	if (!replay_is(dir, q->attr.ino, q->attr.generation))
		return push_parent(c, t); /* where it is replaced, if that has not been done */
	struct sl_name *names = NULL;
	size_t nnames = 0, n = 0;
	struct pair *v = NULL;
	sl_object_clock(dir, q->attr.ctime);
	r = collect(dir, q, &names, &nnames, &v, &n);
	uint64_t differ = r == 0 ? do_renames(p, dir, v, n) : 0;
	for (int step = 0; step < 2; step++)
		for (size_t i = 0; i < n; i++) {
			struct sl_ostate s = state_of(v[i].e);
			if (s.present != (step == 1))
				continue; /* what is gone goes first */
			/* What is here alone must not be lost, and it may be that this name was made here. */
			if (!s.present && v[i].o && !from_origin(dir, v[i].name, v[i].o))
				continue;
			int k = replay_settle(p, dir, v[i].name, &s, !t->deep);
			differ += k > 0;
			if (k < 0) {
				sl_warn("'%s/%s' cannot be made what it is at the origin: %s", place,
					v[i].name, strerror(-k));
				r = k;
			}
		}
	for (size_t i = 0; i < n; i++) {
		_cleanup_object_ struct sl_object *o = NULL;
		_cleanup_free_ char *below = NULL;
		/* What was renamed may have lost its marks on the way. */
		if ((t->deep || v[i].came) && v[i].e && S_ISDIR(v[i].e->attr.mode) &&
		    sl_object_lookup(dir, v[i].name, &o) == 0 && !replay_foreign(dir, v[i].name, o) &&
		    replay_populated(o)) {
			below = sl_path_join(place, v[i].name);
			if (!below || push(c, below, true, 0, 0) < 0)
				r = -ENOMEM;
		}
		sl_object_put(v[i].o);
	}
	free(v);
	sl_names_free(names, nnames);
	struct sl_ostate own = {.known = true, .present = true, .attr = q->attr};
	if (!replay_is_later(dir, &own))
		(void)p->cfg.acts.update(p->cfg.acts.arg, NULL, NULL, dir, &own, 0,
					 SL_UPDATE_KEEP | SL_UPDATE_LISTED);
	if (r == 0)
		replay_listed(dir, q);
	pthread_mutex_lock(&p->lock);
	p->stats.compared++;
	p->stats.differences += differ;
	p->stats.unmarked += !q->marked;
	pthread_mutex_unlock(&p->lock);
	if (r < 0)
		replay_unsure(p, dir);
	return r;
}

/* ---- steps ---- */

static void listing_done(struct sl_oreq *r)
{
	struct sl_compare *c = sl_container_of(r, struct listing, req)->c;
	pthread_mutex_lock(&c->lock);
	if (--c->under_way == 0)
		pthread_cond_signal(&c->cond);
	pthread_mutex_unlock(&c->lock);
}

static unsigned submit(struct sl_compare *c)
{
	unsigned n = 0;
	while (n < BATCH && !sl_list_empty(&c->todo)) {
		struct todo *t = sl_list_entry(c->todo.next, struct todo, link);
		_cleanup_object_ struct sl_object *dir = NULL;
		sl_list_del(&t->link);
		if (c->p->cfg.find(c->p->cfg.store, t->place, &dir) < 0 || !replay_populated(dir)) {
			free(t);
			continue;
		}
		c->batch[n++] = (struct listing){.c = c,
						 .t = t,
						 .req = {.op = SL_OREQ_LIST,
							 .place = t->place,
							 .mark = true,
							 .fresh = true,
							 .done = listing_done}};
	}
	pthread_mutex_lock(&c->lock);
	c->under_way = n;
	pthread_mutex_unlock(&c->lock);
	for (unsigned i = 0; i < n; i++)
		sl_origin_submit(c->p->cfg.origin, &c->batch[i].req);
	return n;
}

/* What is listed is told of as well, and that comes first: names would come out of nothing that were renamed.
 */
static bool put_back(struct sl_compare *c, const struct todo *t)
{
	_cleanup_object_ struct sl_object *dir = NULL;
	if (t->deep || unsure_late(t->since) || c->p->cfg.find(c->p->cfg.store, t->place, &dir) < 0)
		return false;
	unsure_again(c->p, dir, t->tries, t->since);
	return true;
}

bool compare_step(struct sl_replay *p)
{
	struct sl_compare *c = p->compare;
	if (c->not_before > sl_now()) {
		usleep(20000);
		return true;
	}
	unsigned n = submit(c);
	pthread_mutex_lock(&c->lock);
	while (c->under_way)
		pthread_cond_wait(&c->cond, &c->lock);
	pthread_mutex_unlock(&c->lock);
	bool deep = true;
	for (unsigned i = 0; i < n; i++)
		deep &= c->batch[i].t->deep;
	bool told = deep || unsure_told(p);
	for (unsigned i = 0; i < n; i++) {
		struct listing *l = &c->batch[i];
		int r = l->req.err;
		p->tries = l->t->deep ? 0 : l->t->tries + 1;
		if (r == -ETIMEDOUT) {
			c->not_before = sl_now() + AGAIN_NS;
			sl_list_add(&c->todo, &l->t->link);
			l->t = NULL;
		} else if (!told && put_back(c, l->t)) {
			sl_debug("'%s' is compared later: something is told of first", l->t->place);
		} else if (r == 0) {
			r = compare_dir(c, l->t, &l->req);
			if (r < 0)
				sl_warn("comparing '%s' with the origin: %s", l->t->place, strerror(-r));
		} else if (r == -ENOENT || r == -ENOTDIR || r == -ESTALE) {
			(void)push_parent(c, l->t);
		} else {
			sl_warn("cannot list '%s' to compare it: %s", l->t->place, strerror(-r));
		}
		sl_oreq_fini(&l->req);
		free(l->t);
		p->tries = 0;
	}
	return !sl_list_empty(&c->todo);
}
