/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* hydrate: everything below the paths, many wants under way at once. */
#include <fcntl.h>

#include "base/fd.h"
#include "base/human.h"
#include "service/commands.h"
#include "store/walk.h"

#define AT_ONCE 256

struct hydrate;

/* One object whose content or names are on their way. */
struct item {
	struct sl_list link;
	struct hydrate *h;
	struct sl_want want;
	int err;
};

struct hydrate {
	struct sl_command_call *c;
	pthread_mutex_t lock; /* arrived, under_way */
	pthread_cond_t cond;
	struct sl_list arrived;
	unsigned under_way;
	/* of the command's thread alone */
	struct sl_list dirs; /* of struct item: populated, to be read; the most recent first, so that the list
				stays short */
	uint64_t files, bytes, failed, last;
	char first_error[512];
};

static void item_done(struct sl_want *w, int err)
{
	struct item *it = sl_container_of(w, struct item, want);
	struct hydrate *h = it->h;
	pthread_mutex_lock(&h->lock);
	it->err = err;
	sl_list_add_tail(&h->arrived, &it->link);
	pthread_cond_signal(&h->cond);
	pthread_mutex_unlock(&h->lock);
}

static void note_failure(struct hydrate *h, struct sl_object *o, int err)
{
	if (h->failed++)
		return;
	_cleanup_free_ char *path = sl_object_path(o);
	_cleanup_free_ char *p = path ? sl_printable(path, strlen(path)) : NULL;
	snprintf(h->first_error, sizeof(h->first_error), "%s: %s", p ? p : "?", strerror(-err));
}

static void item_free(struct item *it)
{
	sl_object_put(it->want.o);
	free(it);
}

/* Content that is here, or names: go on with it. Takes over @it. */
static void arrived(struct hydrate *h, struct item *it)
{
	struct sl_object *o = it->want.o;
	if (it->err) {
		note_failure(h, o, it->err);
	} else if (sl_object_is_dir(o)) {
		sl_list_add(&h->dirs, &it->link);
		return;
	} else {
		h->files++;
		h->bytes += it->want.len;
	}
	item_free(it);
}

static void collect(struct hydrate *h, unsigned until)
{
	pthread_mutex_lock(&h->lock);
	while (h->under_way > until) {
		while (sl_list_empty(&h->arrived))
			pthread_cond_wait(&h->cond, &h->lock);
		struct item *it = sl_list_entry(h->arrived.next, struct item, link);
		sl_list_del(&it->link);
		h->under_way--;
		pthread_mutex_unlock(&h->lock);
		arrived(h, it);
		pthread_mutex_lock(&h->lock);
	}
	pthread_mutex_unlock(&h->lock);
}

static bool going_on(struct hydrate *h)
{
	return sl_control_progress(
	    h->c, &h->last,
	    json_pack("{sI sI}", "files", (json_int_t)h->files, "bytes", (json_int_t)h->bytes));
}

static int add(struct hydrate *h, struct sl_object *o)
{
	bool dir = sl_object_is_dir(o);
	if (!dir && !sl_object_is_reg(o))
		return 0;
	struct item *it = calloc(1, sizeof(*it));
	if (!it)
		return -ENOMEM;
	struct sl_attr a = {0};
	if (!dir && sl_object_attr(o, &a) < 0)
		a.size = 0;
	*it = (struct item){.h = h, .want = {.o = sl_object_ref(o), .len = a.size, .done = item_done}};
	sl_list_init(&it->link);
	pthread_mutex_lock(&h->lock);
	h->under_way++;
	pthread_mutex_unlock(&h->lock);
	int r = sl_fill_want(h->c->clone->fill, dir ? SL_WANT_NAMES : SL_WANT_RANGE, &it->want);
	if (r != 0) {
		pthread_mutex_lock(&h->lock);
		h->under_way--;
		pthread_mutex_unlock(&h->lock);
		it->err = r < 0 ? r : 0;
		arrived(h, it);
	}
	collect(h, AT_ONCE);
	return 0;
}

static int expand(struct hydrate *h, struct sl_object *dir)
{
	struct sl_name *v = NULL;
	size_t n = 0;
	int r = sl_names_read(dir, &v, &n);
	for (size_t i = 0; i < n && r == 0; i++) {
		_cleanup_object_ struct sl_object *o = NULL;
		int e = sl_object_lookup(dir, v[i].name, &o);
		if (e == 0)
			r = add(h, o);
		else if (e != -ENOENT)
			note_failure(h, dir, e);
		if (!going_on(h))
			r = -EINTR;
	}
	sl_names_free(v, n);
	return r;
}

json_t *sl_command_hydrate(struct sl_command_call *c)
{
	json_t *paths = json_object_get(c->request, "paths");
	struct hydrate h = {.c = c};
	pthread_mutex_init(&h.lock, NULL);
	pthread_cond_init(&h.cond, NULL);
	sl_list_init(&h.arrived);
	sl_list_init(&h.dirs);
	json_t *error = NULL;
	int r = 0;
	for (size_t i = 0; i < json_array_size(paths) && !error && r == 0; i++) {
		const char *path = json_string_value(json_array_get(paths, i));
		_cleanup_object_ struct sl_object *o = NULL;
		r = path ? sl_command_find(c, path, true, &o) : -EINVAL;
		if (r < 0) {
			error = sl_command_error("%s: %s", path ? path : "?", strerror(-r));
			break;
		}
		r = add(&h, o);
		for (;;) {
			if (sl_list_empty(&h.dirs))
				collect(&h, 0);
			if (sl_list_empty(&h.dirs))
				break;
			struct item *it = sl_list_entry(h.dirs.next, struct item, link);
			sl_list_del(&it->link);
			if (r == 0)
				r = expand(&h, it->want.o);
			item_free(it);
		}
	}
	collect(&h, 0);
	pthread_cond_destroy(&h.cond);
	pthread_mutex_destroy(&h.lock);
	if (!error && r == 0 && !h.failed)
		r = sl_fill_commit(c->clone->fill);
	if (!error && h.failed)
		error = sl_command_error("%llu objects could not be hydrated; the first: %s",
					 (unsigned long long)h.failed, h.first_error);
	if (!error && r < 0)
		error = sl_command_error("%s", r == -EINTR ? "interrupted" : strerror(-r));
	json_t *j = error ? error : json_pack("{sb}", "ok", 1);
	json_object_set_new(j, "files", json_integer((json_int_t)h.files));
	json_object_set_new(j, "bytes", json_integer((json_int_t)h.bytes));
	return j;
}
