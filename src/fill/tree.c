/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * All names of a tree at once, breadth first: what a native clone needs before it is shown, where the kernel
 * does not ask before a name is looked up.
 */
#include <dirent.h>

#include "base/log.h"
#include "fill/internal.h"
#include "store/walk.h"

#define LISTINGS 64    /* under way at once */
#define REDO_MAX 10000 /* directories that were renamed before they could be listed */

struct tree {
	struct sl_fill *f;
	pthread_mutex_t lock;
	pthread_cond_t cond;
	struct sl_object *root;
	struct sl_list todo, stale; /* of struct dir; stale: were not where they should be */
	size_t ntodo, busy;
	unsigned redone;
	bool fresh; /* nothing had been listed: no user has been in it, and what is stale may be made anew */
	int err;
	struct sl_fill_progress p;
};

struct dir {
	struct sl_list link;
	struct sl_work work;
	struct tree *t;
	struct sl_want want; /* want.o is a reference */
	bool listed;	     /* by us */
	int err;
};

/* Take over @o. */
static int add(struct tree *t, struct sl_object *o, bool stale)
{
	struct dir *d = calloc(1, sizeof(*d));
	if (!d) {
		sl_object_put(o);
		return -ENOMEM;
	}
	d->t = t;
	d->want.o = o;
	pthread_mutex_lock(&t->lock);
	sl_list_add_tail(stale ? &t->stale : &t->todo, &d->link);
	t->ntodo += !stale;
	pthread_mutex_unlock(&t->lock);
	return 0;
}

static int add_dir(struct tree *t, struct sl_object *o)
{
	return add(t, o, false);
}

static void xattrs_done(struct sl_want *w, int err)
{
	struct dir *d = sl_container_of(w, struct dir, want);
	struct tree *t = d->t;
	if (err) {
		_cleanup_free_ char *path = sl_object_path(w->o);
		sl_warn("cannot fetch the extended attributes of '%s': %s", path, strerror(-err));
	}
	sl_object_put(w->o);
	free(d);
	pthread_mutex_lock(&t->lock);
	t->busy--;
	pthread_cond_signal(&t->cond);
	pthread_mutex_unlock(&t->lock);
}

/* Extended attributes that an interrupted attempt did not come to, or the root's. Takes over @o. */
static int want_xattrs(struct tree *t, struct sl_object *o)
{
	struct dir *d = calloc(1, sizeof(*d));
	if (!d) {
		sl_object_put(o);
		return -ENOMEM;
	}
	d->t = t;
	d->want = (struct sl_want){.o = o, .done = xattrs_done};
	pthread_mutex_lock(&t->lock);
	t->busy++;
	pthread_mutex_unlock(&t->lock);
	int r = sl_fill_want(t->f, SL_WANT_XATTRS, &d->want);
	if (r != 0)
		xattrs_done(&d->want, SL_MIN(r, 0));
	return 0;
}

/* The names of @d are there: its subdirectories are next. */
static int descend(struct tree *t, struct dir *d)
{
	struct sl_name *v = NULL;
	size_t n = 0;
	int r = sl_names_read(d->want.o, &v, &n);
	for (size_t i = 0; i < n && r == 0; i++) {
		struct sl_object *o;
		bool maybe = v[i].type == DT_DIR || v[i].type == DT_UNKNOWN;
		if (!maybe && (d->listed || v[i].type != DT_REG))
			continue;
		r = sl_object_lookup(d->want.o, v[i].name, &o);
		if (r == 0 && !d->listed && (sl_object_is_reg(o) || sl_object_is_dir(o)) &&
		    o->rec.flags & SL_XATTRS)
			r = want_xattrs(t, sl_object_ref(o));
		if (r == 0 && sl_object_is_dir(o))
			r = add_dir(t, o);
		else if (r == 0)
			sl_object_put(o);
	}
	sl_names_free(v, n);
	pthread_mutex_lock(&t->lock);
	t->p.objects += n;
	t->p.directories++;
	pthread_mutex_unlock(&t->lock);
	return r;
}

/* The entry of the origin's for @name in the directory @up, which is @place. 1: there is none. */
static int entry_now(struct tree *t, struct sl_object *up, const char *place, const char *name,
		     struct sl_oreq *q, const struct sl_oentry **ret)
{
	*q = (struct sl_oreq){.op = SL_OREQ_LIST, .place = place, .mark = t->f->cfg.mark, .fresh = true};
	int r = sl_origin_call(t->f->origin, q);
	if (r == 0 && sl_fill_met_other(up, &q->attr))
		r = -ESTALE;
	for (size_t i = 0; r == 0 && i < q->nentries; i++) {
		if (strcmp(q->entries[i].name, name) == 0) {
			*ret = &q->entries[i];
			return 0;
		}
	}
	return r < 0 ? r : 1;
}

/* @name in @up, which nobody has seen yet, is another object by now: it is made anew, as @e, or goes. */
static int make_anew(struct tree *t, struct sl_object *up, const char *name, const struct sl_oentry *e)
{
	_cleanup_close_ int fd = sl_object_open_dir(up);
	struct sl_object *o;
	int r = fd < 0 ? fd : sl_remove_tree(fd, name);
	if (r == 0 && e)
		r = sl_placeholder_make(up, fd, name, &e->attr, e->target);
	if (r < 0 || !e || !(S_ISDIR(e->attr.mode) || S_ISREG(e->attr.mode)))
		return r;
	r = sl_object_lookup(up, name, &o);
	if (r == 0 && !e->attr.no_xattrs)
		r = want_xattrs(t, sl_object_ref(o));
	if (r == 0 && S_ISDIR(e->attr.mode))
		return add_dir(t, o);
	if (r == 0)
		sl_object_put(o);
	return r;
}

/*
 * The directory @d, whose turn it was, was not at its place any more: it was renamed at the origin, or one
 * above it was. From the top on, what is where @d should be is looked at again, and what is another one is
 * made anew, with all that is below. What has gone elsewhere is found there, or, where that had been listed
 * before, by the comparison that comes of it. Nothing else is under way.
 */
static int redo(struct tree *t, struct dir *d)
{
	_cleanup_object_ struct sl_object *up = sl_object_ref(t->root), *o = NULL;
	_cleanup_free_ char *path = sl_object_path(d->want.o);
	int r = path ? 0 : -ENOMEM;
	for (char *at = path; r == 0 && at && *at;) {
		char *slash = strchr(at, '/');
		const struct sl_oentry *e = NULL;
		struct sl_oreq q = {0};
		_cleanup_free_ char *place = strndup(path, at > path ? (size_t)(at - path - 1) : 0);
		if (slash)
			*slash = '\0';
		if (!place)
			return -ENOMEM;
		r = sl_object_lookup(up, at, &o);
		if (r == -ENOENT)
			return 0; /* one above it was made anew before */
		if (r == 0)
			r = entry_now(t, up, place, at, &q, &e);
		if (r == -ESTALE || r == -ENOENT || r == -ENOTDIR) {
			sl_oreq_fini(&q);
			return add(t, sl_object_ref(d->want.o), true); /* once more, from the top */
		}
		if (r == 1 || (r == 0 && (!S_ISDIR(e->attr.mode) || sl_fill_met_other(o, &e->attr)))) {
			r = make_anew(t, up, at, e);
			sl_oreq_fini(&q);
			return r;
		}
		sl_oreq_fini(&q);
		if (r < 0)
			return r;
		sl_object_put(up);
		up = sl_steal_ptr(&o);
		if (slash)
			*slash = '/';
		at = slash ? slash + 1 : NULL;
	}
	/* What is there now, which may have been made anew since. */
	return r < 0 ? r : add(t, sl_steal_ptr(&up), false);
}

static void dir_run(struct sl_work *work)
{
	struct dir *d = sl_container_of(work, struct dir, work);
	struct tree *t = d->t;
	int r = d->err ? d->err : descend(t, d);
	if (d->err == -ESTALE && t->fresh && d->want.o != t->root) {
		pthread_mutex_lock(&t->lock);
		sl_list_add_tail(&t->stale, &d->link);
		t->busy--;
		pthread_cond_signal(&t->cond);
		pthread_mutex_unlock(&t->lock);
		return;
	}
	/* What cannot be read at the origin cannot be read here either; but a name too few would be wrong. */
	if (r < 0) {
		_cleanup_free_ char *path = sl_object_path(d->want.o);
		sl_err("cannot list '%s': %s", path, strerror(-r));
	}
	sl_object_put(d->want.o);
	free(d);
	pthread_mutex_lock(&t->lock);
	if (r < 0 && !t->err)
		t->err = r;
	t->busy--;
	pthread_cond_signal(&t->cond);
	pthread_mutex_unlock(&t->lock);
}

static void names_done(struct sl_want *w, int err)
{
	struct dir *d = sl_container_of(w, struct dir, want);
	d->err = err;
	d->work.run = dir_run;
	sl_pool_push(d->t->f->workers, &d->work);
}

static void start_dir(struct tree *t, struct dir *d)
{
	d->want.done = names_done;
	d->listed = true;
	int r = sl_fill_want(t->f, SL_WANT_NAMES, &d->want);
	if (r == 0)
		return;
	d->listed = false;
	names_done(&d->want, SL_MIN(r, 0));
}

int sl_fill_tree(struct sl_fill *f, struct sl_object *root,
		 bool (*progress)(void *arg, const struct sl_fill_progress *p), void *arg)
{
	struct tree t = {.f = f, .root = root};
	pthread_mutex_lock(&root->lock);
	t.fresh = root == sl_object_root(f->store) && root->rec.state != SL_FULL;
	pthread_mutex_unlock(&root->lock);
	pthread_condattr_t ca;
	pthread_condattr_init(&ca);
	pthread_condattr_setclock(&ca, CLOCK_MONOTONIC);
	pthread_cond_init(&t.cond, &ca);
	pthread_condattr_destroy(&ca);
	pthread_mutex_init(&t.lock, NULL);
	sl_list_init(&t.todo);
	sl_list_init(&t.stale);
	int r = root->rec.flags & SL_XATTRS ? want_xattrs(&t, sl_object_ref(root)) : 0;
	if (r == 0)
		r = add_dir(&t, sl_object_ref(root));
	pthread_mutex_lock(&t.lock);
	if (r < 0)
		t.err = r;
	uint64_t next = 0;
	while (t.busy || (!t.err && !(sl_list_empty(&t.todo) && sl_list_empty(&t.stale)))) {
		if (!t.err && !t.busy && sl_list_empty(&t.todo)) {
			struct dir *d = sl_list_entry(t.stale.next, struct dir, link);
			sl_list_del(&d->link);
			pthread_mutex_unlock(&t.lock);
			r = t.redone++ < REDO_MAX ? redo(&t, d) : -ESTALE;
			sl_object_put(d->want.o);
			free(d);
			pthread_mutex_lock(&t.lock);
			t.err = SL_MIN(r, 0);
			continue;
		}
		if (!t.err && t.busy < LISTINGS && !sl_list_empty(&t.todo)) {
			struct dir *d = sl_list_entry(t.todo.next, struct dir, link);
			sl_list_del(&d->link);
			t.ntodo--;
			t.busy++;
			pthread_mutex_unlock(&t.lock);
			start_dir(&t, d);
			pthread_mutex_lock(&t.lock);
			continue;
		}
		uint64_t now = sl_now();
		if (progress && now >= next) {
			struct sl_fill_progress p = t.p;
			p.left = t.ntodo + t.busy;
			next = now + 200 * SL_NS_PER_MS;
			pthread_mutex_unlock(&t.lock);
			bool go = progress(arg, &p);
			pthread_mutex_lock(&t.lock);
			if (!go && !t.err)
				t.err = -EINTR;
			continue;
		}
		struct timespec ts = sl_ns_to_timespec(next);
		if (progress)
			pthread_cond_timedwait(&t.cond, &t.lock, &ts);
		else
			pthread_cond_wait(&t.cond, &t.lock);
	}
	r = t.err;
	pthread_mutex_unlock(&t.lock);
	while (!sl_list_empty(&t.todo) || !sl_list_empty(&t.stale)) {
		struct sl_list *l = sl_list_empty(&t.todo) ? t.stale.next : t.todo.next;
		struct dir *d = sl_list_entry(l, struct dir, link);
		sl_list_del(&d->link);
		sl_object_put(d->want.o);
		free(d);
	}
	/* Extended attributes may still be on their way. */
	pthread_mutex_lock(&f->lock);
	while (f->requests)
		pthread_cond_wait(&f->cond, &f->lock);
	pthread_mutex_unlock(&f->lock);
	pthread_cond_destroy(&t.cond);
	pthread_mutex_destroy(&t.lock);
	if (r == 0 && progress)
		progress(arg, &t.p);
	return r;
}
