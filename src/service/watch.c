/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "service/watch.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/fanotify.h>

#include "base/human.h"
#include "base/list.h"
#include "base/time.h"
#include "notify/backend.h"
#include "service/commands.h"

#define QUEUE_MAX 16384

struct item {
	struct sl_list link;
	char *text;
};

struct sl_watcher {
	struct sl_list link;
	struct sl_watchers *w;
	struct sl_list items;
	unsigned n;
	bool missed;
};

struct sl_watchers {
	pthread_mutex_t lock; /* protects all below, the listeners included */
	pthread_cond_t cond;
	struct sl_list all;
};

static const struct {
	uint64_t bit;
	const char *name;
} kinds[] = {{FAN_CREATE, "create"},	 {FAN_DELETE, "delete"},	   {FAN_MOVED_FROM, "moved_from"},
	     {FAN_MOVED_TO, "moved_to"}, {FAN_RENAME, "rename"},	   {FAN_MODIFY, "modify"},
	     {FAN_ATTRIB, "attrib"},	 {FAN_CLOSE_WRITE, "close_write"}, {FAN_OPEN, "open"},
	     {FAN_ACCESS, "access"},	 {FAN_CLOSE_NOWRITE, "close"}};

int sl_event_bits(const char *list, uint64_t *mask)
{
	*mask = 0;
	for (const char *p = list;; p++) {
		size_t n = strcspn(p, ","), i = 0;
		while (i < SL_ARRAY_SIZE(kinds) &&
		       (strlen(kinds[i].name) != n || memcmp(kinds[i].name, p, n)))
			i++;
		if (i == SL_ARRAY_SIZE(kinds))
			return -EINVAL;
		*mask |= kinds[i].bit;
		p += n;
		if (!*p)
			return 0;
	}
}

static void set_place(json_t *j, const char *key, const char *place)
{
	_cleanup_free_ char *s = place ? sl_printable(place, strlen(place)) : NULL;
	if (s)
		json_object_set_new(j, key, json_string(s));
}

static void set_state(json_t *j, const char *key, const struct sl_ostate *s)
{
	if (!s->known)
		return;
	if (!s->present) {
		json_object_set_new(j, key, json_pack("{sb}", "present", 0));
		return;
	}
	const struct sl_attr *a = &s->attr;
	json_object_set_new(j, key,
			    json_pack("{sb sI sI si sI}", "present", 1, "ino", (json_int_t)a->ino, "size",
				      (json_int_t)a->size, "mode", (int)a->mode, "mtime_ns",
				      (json_int_t)(a->mtime.tv_sec * 1000000000ll + a->mtime.tv_nsec)));
}

json_t *sl_event_json(const struct sl_oevent *e)
{
	json_t *names = json_array();
	for (size_t i = 0; i < SL_ARRAY_SIZE(kinds); i++)
		if (e->mask & kinds[i].bit)
			json_array_append_new(names, json_string(kinds[i].name));
	if (json_array_size(names) == 0)
		json_array_append_new(names, json_string(e->lost      ? "lost"
							 : e->ignored ? "ignored"
								      : "state"));
	json_t *j = json_pack("{sI ss so}", "seq", (json_int_t)e->seq, "side", "origin", "events", names);
	if (!j)
		return NULL;
	if (e->lost)
		return j;
	json_object_set_new(j, "dir", json_boolean(e->mask & FAN_ONDIR));
	set_place(j, "place", e->place);
	set_place(j, "newplace", e->newplace);
	set_state(j, "state", &e->state);
	set_state(j, "newstate", &e->newstate);
	return j;
}

static char *dump(const struct sl_oevent *e)
{
	json_t *j = sl_event_json(e);
	char *text = j ? json_dumps(j, JSON_COMPACT | JSON_ENSURE_ASCII) : NULL;
	json_decref(j);
	return text;
}

int sl_watchers_new(struct sl_watchers **ret)
{
	struct sl_watchers *w = calloc(1, sizeof(*w));
	if (!w)
		return -ENOMEM;
	pthread_mutex_init(&w->lock, NULL);
	pthread_condattr_t a;
	pthread_condattr_init(&a);
	pthread_condattr_setclock(&a, CLOCK_MONOTONIC);
	pthread_cond_init(&w->cond, &a);
	pthread_condattr_destroy(&a);
	sl_list_init(&w->all);
	*ret = w;
	return 0;
}

void sl_watchers_free(struct sl_watchers *w)
{
	if (!w)
		return;
	pthread_mutex_destroy(&w->lock);
	pthread_cond_destroy(&w->cond);
	free(w);
}

void sl_watchers_event(struct sl_watchers *w, const struct sl_oevent *e)
{
	pthread_mutex_lock(&w->lock);
	bool any = !sl_list_empty(&w->all);
	_cleanup_free_ char *text = any ? dump(e) : NULL;
	sl_list_for_each (l, &w->all) {
		struct sl_watcher *x = sl_list_entry(l, struct sl_watcher, link);
		struct item *i = text && x->n < QUEUE_MAX ? malloc(sizeof(*i)) : NULL;
		if (!i || !(i->text = strdup(text))) {
			free(i);
			x->missed = true;
			continue;
		}
		x->n++;
		sl_list_add_tail(&x->items, &i->link);
	}
	if (any)
		pthread_cond_broadcast(&w->cond);
	pthread_mutex_unlock(&w->lock);
}

int sl_watcher_new(struct sl_watchers *w, struct sl_watcher **ret)
{
	struct sl_watcher *l = calloc(1, sizeof(*l));
	if (!l)
		return -ENOMEM;
	l->w = w;
	sl_list_init(&l->items);
	pthread_mutex_lock(&w->lock);
	sl_list_add_tail(&w->all, &l->link);
	pthread_mutex_unlock(&w->lock);
	*ret = l;
	return 0;
}

void sl_watcher_free(struct sl_watcher *l)
{
	pthread_mutex_lock(&l->w->lock);
	sl_list_del(&l->link);
	while (!sl_list_empty(&l->items)) {
		struct item *i = sl_list_entry(l->items.next, struct item, link);
		sl_list_del(&i->link);
		free(i->text);
		free(i);
	}
	pthread_mutex_unlock(&l->w->lock);
	free(l);
}

char *sl_watcher_next(struct sl_watcher *l, int ms)
{
	struct timespec end = sl_ns_to_timespec(sl_now() + (uint64_t)ms * SL_NS_PER_MS);
	char *event = NULL;
	pthread_mutex_lock(&l->w->lock);
	while (sl_list_empty(&l->items) && !l->missed)
		if (pthread_cond_timedwait(&l->w->cond, &l->w->lock, &end) == ETIMEDOUT)
			break;
	if (!sl_list_empty(&l->items)) {
		struct item *i = sl_list_entry(l->items.next, struct item, link);
		sl_list_del(&i->link);
		l->n--;
		event = i->text;
		free(i);
	} else if (l->missed) {
		/* After what came before it. What came since is not here either: its queue was full. */
		const struct sl_oevent lost = {.lost = true};
		l->missed = false;
		event = dump(&lost);
	}
	pthread_mutex_unlock(&l->w->lock);
	return event;
}

/* ---- the command ---- */

json_t *sl_command_watch(struct sl_command_call *c)
{
	struct sl_watcher *l;
	if (!c->clone->watchers || sl_watcher_new(c->clone->watchers, &l) < 0)
		return sl_command_error("no memory");
	/* From here on nothing is missed. */
	for (bool more = sl_control_item(c, "{\"events\":[\"ready\"]}"); more;) {
		_cleanup_free_ char *text = sl_watcher_next(l, 200);
		more = sl_control_item(c, text);
	}
	sl_watcher_free(l);
	return sl_command_error("the service ended");
}
