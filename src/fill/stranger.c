/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What answers at the place of a file is another object of the origin. Where a file was replaced in its
 * directory, that is its content now. Where the directory was renamed, and another has come to its place, it
 * is not: the file is elsewhere, and an event says so that is not done here yet. The directory tells them
 * apart: it is the one that is here, or not.
 *
 * Who waits for such a file goes on when the replay has done what it knows of, at the place that the file has
 * then. Directories of which the origin tells nothing are their places.
 */
#include "base/log.h"
#include "fill/internal.h"
#include "store/remote.h"

struct stray {
	struct sl_list link;
	struct sl_object *o;
};

static void asked(struct sl_oreq *r)
{
	struct fetch *x = sl_container_of(r, struct fetch, ask);
	sl_pool_push(x->f->workers, &x->work);
}

bool sl_stranger_ask(struct fetch *x)
{
	struct sl_object *o = x->o;
	struct sl_version v = sl_attr_version(&x->req.attr);
	pthread_mutex_lock(&o->lock);
	bool same = sl_version_same_object(&o->rec.origin, &v);
	pthread_mutex_unlock(&o->lock);
	const char *slash = strrchr(x->place, '/');
	/* What is in the root is where it says. */
	if (same || !x->f->cfg.mark || !slash || x->up)
		return false;
	x->up = strndup(x->place, (size_t)(slash - x->place));
	if (!x->up)
		return false;
	x->ask =
	    (struct sl_oreq){.op = SL_OREQ_MARK, .place = x->up, .mark = true, .fresh = true, .done = asked};
	sl_origin_submit(x->f->origin, &x->ask);
	return true;
}

/* The directory that stands for the place @up, in which @o is, or should be. */
static int find_up(struct sl_object *o, const char *up, struct sl_object **ret)
{
	struct sl_object *d = sl_object_parent(o);
	_cleanup_free_ char *place = NULL;
	if (d && sl_object_place(d, &place) == 0 && !strcmp(place, up)) {
		*ret = d;
		return 0;
	}
	sl_object_put(d);
	return sl_store_native(o->store) ? sl_object_by_place(o->store, up, ret)
					 : sl_remote_find(o->store, up, ret);
}

/* 0: what answers has taken its place. -EAGAIN: it is elsewhere. Or what went wrong. */
static int judge(struct fetch *x)
{
	_cleanup_object_ struct sl_object *d = NULL;
	struct sl_version v = sl_attr_version(&x->ask.attr);
	switch (x->ask.err) {
	case 0:
		break;
	case -ENOENT:
	case -ENOTDIR:
	case -ESTALE:
		return -EAGAIN;
	default:
		return x->ask.err;
	}
	if (!x->ask.marked)
		return 0;
	int r = find_up(x->o, x->up, &d);
	if (r < 0)
		return r == -ENOMEM ? r : -EAGAIN;
	pthread_mutex_lock(&d->lock);
	bool same = !d->has_record || sl_version_same_object(&d->rec.origin, &v);
	pthread_mutex_unlock(&d->lock);
	return same ? 0 : -EAGAIN;
}

int sl_stranger_judge(struct fetch *x)
{
	struct sl_object *o = x->o;
	int r = x->up ? judge(x) : 0;
	uint64_t limit = sl_store_config(x->f->store)->timeout * SL_NS_PER_SEC;
	pthread_mutex_lock(&o->lock);
	uint64_t now = sl_now();
	if (r != -EAGAIN)
		o->strange = 0;
	else if (!o->strange)
		o->strange = now;
	else if (now - o->strange > limit)
		r = -ESTALE;
	pthread_mutex_unlock(&o->lock);
	if (r == -ESTALE) {
		_cleanup_free_ char *path = sl_object_path(o);
		sl_notice("%s is no longer at the origin (there is another directory at its place)", path);
	}
	return r;
}

void sl_stranger_wait(struct fetch *x)
{
	struct sl_fill *f = x->f;
	struct stray *s;
	while (!(s = malloc(sizeof(*s))))
		usleep(10000); /* somebody waits already */
	s->o = sl_object_ref(x->o);
	pthread_mutex_lock(&f->lock);
	sl_list_add_tail(&f->strays, &s->link);
	pthread_mutex_unlock(&f->lock);
	_cleanup_free_ char *now = NULL;
	/* It may just have been done. */
	if (sl_object_place(x->o, &now) < 0 || strcmp(now, x->place) != 0)
		sl_fill_retry(f);
}

void sl_fill_retry(struct sl_fill *f)
{
	struct sl_list v;
	sl_list_init(&v);
	pthread_mutex_lock(&f->lock);
	sl_list_for_each_safe (l, &f->strays) {
		sl_list_del(l);
		sl_list_add_tail(&v, l);
	}
	pthread_mutex_unlock(&f->lock);
	sl_list_for_each_safe (l, &v) {
		struct stray *s = sl_list_entry(l, struct stray, link);
		sl_fill_kick(f, s->o);
		sl_object_put(s->o);
		free(s);
	}
}

void sl_stranger_fini(struct sl_fill *f)
{
	sl_list_for_each_safe (l, &f->strays) {
		struct stray *s = sl_list_entry(l, struct stray, link);
		sl_list_del(&s->link);
		sl_object_put(s->o);
		free(s);
	}
}
