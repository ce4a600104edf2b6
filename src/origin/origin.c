/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "origin/origin.h"

#include <limits.h>
#include <pthread.h>
#include <stdio.h>

#include "base/fd.h"
#include "origin/dial.h"

static bool is_path(const char *spec)
{
	const char *colon = strchr(spec, ':');
	const char *slash = strchr(spec, '/');
	return !colon || (slash && slash < colon); /* as scp tells a path from a host */
}

int sl_origin_normalize(const char *spec, char **ret, char **why)
{
	const char *path = is_path(spec) ? spec : !strncmp(spec, "unix:", 5) ? spec + 5 : NULL;
	if (!path) {
		*ret = strdup(spec);
		return *ret ? 0 : -ENOMEM;
	}
	_cleanup_free_ char *abs = NULL;
	if (path == spec) {
		abs = realpath(path, NULL);
		if (!abs)
			return sl_fail(why, -errno, "origin %s: %s", spec, strerror(errno));
	} else if (*path == '/') {
		abs = strdup(path);
	} else {
		_cleanup_free_ char *cwd = getcwd(NULL, 0);
		abs = cwd ? sl_path_join(cwd, path) : NULL;
	}
	if (!abs || asprintf(ret, "%s%s", path == spec ? "" : "unix:", abs) < 0)
		return -ENOMEM;
	return 0;
}

int sl_origin_open(const char *spec, const struct sl_origin_config *cfg, struct sl_origin **ret, char **why)
{
	if (is_path(spec))
		return sl_origin_local_open(spec, cfg, ret, why);
	struct sl_dial *d;
	int r = sl_dial_parse(spec, cfg->insecure_plain, &d, why);
	return r < 0 ? r : sl_origin_export_open(d, cfg, ret, why);
}

void sl_origin_free(struct sl_origin *o)
{
	if (o)
		o->ops->free(o);
}

void sl_origin_stop(struct sl_origin *o)
{
	o->ops->stop(o);
}

bool sl_origin_connected(struct sl_origin *o)
{
	return o->ops->connected(o);
}

char *sl_origin_where(struct sl_origin *o, uint64_t id)
{
	return o->ops->where ? o->ops->where(o, id) : NULL;
}

void sl_origin_submit(struct sl_origin *o, struct sl_oreq *r)
{
	if (r->op == SL_OREQ_READ)
		o->nreads++;
	else if (r->op == SL_OREQ_LIST)
		o->nlists++;
	o->ops->submit(o, r);
}

struct waiting {
	struct sl_oreq *orig;
	struct sl_oreq req;
	pthread_mutex_t lock;
	pthread_cond_t cond;
	bool done;
};

static void call_done(struct sl_oreq *r)
{
	struct waiting *w = sl_container_of(r, struct waiting, req);
	pthread_mutex_lock(&w->lock);
	w->done = true;
	pthread_cond_signal(&w->cond);
	pthread_mutex_unlock(&w->lock);
}

int sl_origin_call(struct sl_origin *o, struct sl_oreq *r)
{
	struct waiting w = {.req = *r};
	pthread_mutex_init(&w.lock, NULL);
	pthread_cond_init(&w.cond, NULL);
	w.req.done = call_done;
	sl_origin_submit(o, &w.req);
	pthread_mutex_lock(&w.lock);
	while (!w.done)
		pthread_cond_wait(&w.cond, &w.lock);
	pthread_mutex_unlock(&w.lock);
	pthread_cond_destroy(&w.cond);
	pthread_mutex_destroy(&w.lock);
	*r = w.req;
	return r->err;
}

void sl_oreq_fini(struct sl_oreq *r)
{
	for (size_t i = 0; i < r->nentries; i++) {
		free(r->entries[i].name);
		free(r->entries[i].target);
	}
	for (size_t i = 0; i < r->nxattrs; i++) {
		free(r->xattrs[i].name);
		free(r->xattrs[i].value);
	}
	free(r->entries);
	free(r->xattrs);
	free(r->data);
	r->entries = NULL;
	r->xattrs = NULL;
	r->data = NULL;
	r->nentries = r->nxattrs = r->nread = 0;
}

int sl_oreq_add_entry(struct sl_oreq *r, size_t *cap, const char *name, size_t len, const struct sl_attr *a)
{
	if (r->nentries == *cap) {
		if (*cap >= SL_LIST_MAX)
			return -E2BIG;
		size_t n = *cap ? *cap * 2 : 64;
		struct sl_oentry *e = reallocarray(r->entries, n, sizeof(*e));
		if (!e)
			return -ENOMEM;
		r->entries = e;
		*cap = n;
	}
	char *copy = strndup(name, len);
	if (!copy)
		return -ENOMEM;
	r->entries[r->nentries++] = (struct sl_oentry){.name = copy, .attr = *a};
	return 0;
}

int sl_oreq_add_xattr(struct sl_oreq *r, const char *name, const void *value, size_t len)
{
	struct sl_oxattr *x = reallocarray(r->xattrs, r->nxattrs + 1, sizeof(*x));
	if (!x)
		return -ENOMEM;
	r->xattrs = x;
	x += r->nxattrs;
	*x = (struct sl_oxattr){.name = strdup(name), .value = malloc(len + 1), .len = len};
	if (!x->name || !x->value) {
		free(x->name);
		free(x->value);
		return -ENOMEM;
	}
	if (len)
		memcpy(x->value, value, len);
	r->nxattrs++;
	return 0;
}

static int by_name(const void *a, const void *b)
{
	return strcmp((*(const struct sl_oentry *const *)a)->name,
		      (*(const struct sl_oentry *const *)b)->name);
}

int sl_oreq_check_entries(struct sl_oreq *r)
{
	if (r->nentries < 2)
		return 0;
	/* The listing keeps the origin's order, in which walks will come: only pointers are sorted. */
	const struct sl_oentry **v = reallocarray(NULL, r->nentries, sizeof(*v));
	if (!v)
		return -ENOMEM;
	for (size_t i = 0; i < r->nentries; i++)
		v[i] = &r->entries[i];
	qsort(v, r->nentries, sizeof(*v), by_name);
	int ret = 0;
	for (size_t i = 1; i < r->nentries && ret == 0; i++)
		if (!strcmp(v[i - 1]->name, v[i]->name))
			ret = -EPROTO;
	free(v);
	return ret;
}

bool sl_oreq_xattr_wanted(const char *name)
{
	if (!strncmp(name, "user.", 5))
		return strncmp(name, "user.sluice", 11) != 0;
	return !strcmp(name, "system.posix_acl_access") || !strcmp(name, "system.posix_acl_default");
}

struct timespec sl_oreq_latest(const struct sl_oreq *r)
{
	struct timespec t = r->attr.ctime;
	for (size_t i = 0; i < r->nentries; i++)
		if (sl_time_after(r->entries[i].attr.ctime, t))
			t = r->entries[i].attr.ctime;
	return t;
}
