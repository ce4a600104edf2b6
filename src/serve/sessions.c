/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "serve/sessions.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/random.h>

#include "base/log.h"
#include "base/time.h"

struct kept {
	struct sl_list link; /* in the order in which their connections ended; those with one: anywhere */
	struct sl_session *s;
	struct sl_transport *t; /* NULL: no connection */
	uint64_t flags, until;
	uint32_t token[4];
};

struct sl_sessions {
	struct sl_events *ev;
	uint64_t grace; /* ns */

	pthread_mutex_t lock; /* protects all below */
	pthread_cond_t cond;
	struct sl_list list;
	unsigned n; /* without a connection */
	pthread_t reaper;
	bool has_reaper, stop;
};

static struct kept *entry(struct sl_list *l)
{
	return sl_list_entry(l, struct kept, link);
}

static void end_session(struct sl_sessions *ss, struct sl_session *s)
{
	sl_events_leave(ss->ev, s);
	sl_session_unref(s);
}

/* With the lock held. */
static void give_up(struct sl_sessions *ss, struct kept *k)
{
	sl_list_del(&k->link);
	ss->n -= !k->t;
	end_session(ss, k->s);
	free(k);
}

/* With the lock held: end what was kept long enough; returns when the next one is due. */
static uint64_t expire(struct sl_sessions *ss)
{
	uint64_t now = sl_now(), next = UINT64_MAX;
	sl_list_for_each_safe (l, &ss->list) {
		struct kept *k = entry(l);
		if (k->t)
			continue;
		if (k->until <= now || ss->n > SL_SESSIONS_MAX)
			give_up(ss, k);
		else
			next = SL_MIN(next, k->until);
	}
	return next;
}

static void *reaper(void *arg)
{
	struct sl_sessions *ss = arg;
	pthread_mutex_lock(&ss->lock);
	while (!ss->stop) {
		uint64_t next = expire(ss);
		struct timespec ts = sl_ns_to_timespec(next);
		if (next == UINT64_MAX)
			pthread_cond_wait(&ss->cond, &ss->lock);
		else
			pthread_cond_timedwait(&ss->cond, &ss->lock, &ts);
	}
	pthread_mutex_unlock(&ss->lock);
	return NULL;
}

static struct kept *find(struct sl_sessions *ss, const uint32_t token[4])
{
	sl_list_for_each (l, &ss->list)
		if (!memcmp(entry(l)->token, token, sizeof(entry(l)->token)))
			return entry(l);
	return NULL;
}

/* With the lock held: a new entry, with a token of its own, or NULL. */
static struct kept *add(struct sl_sessions *ss, struct sl_session *s)
{
	struct kept *k = ss->grace ? calloc(1, sizeof(*k)) : NULL;
	if (!k)
		return NULL;
	if (getrandom(k->token, sizeof(k->token), 0) != sizeof(k->token)) {
		free(k);
		return NULL;
	}
	k->s = sl_session_ref(s);
	sl_list_add_tail(&ss->list, &k->link);
	return k;
}

uint64_t sl_sessions_begin(struct sl_sessions *ss, struct sl_session **s, struct sl_transport *t,
			   uint64_t flags, const struct fuse_init_in *in, struct fuse_init_out *out)
{
	uint64_t seq = in->sl_seq[0] | (uint64_t)in->sl_seq[1] << 32;
	static const uint32_t none[4];
	pthread_mutex_lock(&ss->lock);
	expire(ss);
	struct kept *k = memcmp(in->sl_token, none, sizeof(none)) != 0 ? find(ss, in->sl_token) : NULL;
	if (k && (k->flags != flags || !sl_session_has(k->s, seq))) {
		/* It cannot be gone on with, and nobody else has the token. */
		if (!k->t)
			give_up(ss, k);
		k = NULL;
	}
	if (k) {
		if (k->t)
			sl_transport_shutdown(k->t); /* it has not noticed yet that its client is gone */
		ss->n -= !k->t;
		sl_session_unref(*s);
		*s = sl_session_ref(k->s);
	} else {
		seq = 1;
		k = add(ss, *s);
	}
	if (k) {
		k->t = t;
		k->flags = flags;
		memcpy(out->sl_token, k->token, sizeof(k->token));
	}
	pthread_mutex_unlock(&ss->lock);
	return seq;
}

/* With the lock held. */
static struct kept *find_session(struct sl_sessions *ss, const struct sl_session *s)
{
	sl_list_for_each (l, &ss->list)
		if (entry(l)->s == s)
			return entry(l);
	return NULL;
}

void sl_sessions_end(struct sl_sessions *ss, struct sl_session *s, struct sl_transport *t, bool for_good)
{
	pthread_mutex_lock(&ss->lock);
	struct kept *k = find_session(ss, s);
	if (k && k->t == t) {
		sl_list_del(&k->link);
		sl_list_add_tail(&ss->list, &k->link);
		k->t = NULL;
		k->until = sl_now() + ss->grace;
		ss->n++;
		if (!ss->has_reaper && pthread_create(&ss->reaper, NULL, reaper, ss) == 0) {
			ss->has_reaper = true;
			pthread_setname_np(ss->reaper, "sessions");
		}
		/* One without marks has nothing but nodes, which are soon looked up again. */
		if (for_good || !sl_session_started(s) || !ss->has_reaper)
			give_up(ss, k);
		expire(ss);
		pthread_cond_broadcast(&ss->cond);
	}
	bool mine = !k;
	pthread_mutex_unlock(&ss->lock);
	if (mine)
		sl_events_leave(ss->ev, s);
	sl_session_unref(s);
}

unsigned sl_sessions_kept(struct sl_sessions *ss)
{
	pthread_mutex_lock(&ss->lock);
	unsigned n = ss->n;
	pthread_mutex_unlock(&ss->lock);
	return n;
}

int sl_sessions_new(struct sl_events *ev, unsigned grace, struct sl_sessions **ret)
{
	struct sl_sessions *ss = calloc(1, sizeof(*ss));
	if (!ss)
		return -ENOMEM;
	ss->ev = ev;
	ss->grace = grace * SL_NS_PER_SEC;
	sl_list_init(&ss->list);
	pthread_mutex_init(&ss->lock, NULL);
	pthread_condattr_t a;
	pthread_condattr_init(&a);
	pthread_condattr_setclock(&a, CLOCK_MONOTONIC);
	pthread_cond_init(&ss->cond, &a);
	pthread_condattr_destroy(&a);
	*ret = ss;
	return 0;
}

void sl_sessions_free(struct sl_sessions *ss)
{
	if (!ss)
		return;
	pthread_mutex_lock(&ss->lock);
	ss->stop = true;
	pthread_cond_broadcast(&ss->cond);
	pthread_mutex_unlock(&ss->lock);
	if (ss->has_reaper)
		pthread_join(ss->reaper, NULL);
	while (!sl_list_empty(&ss->list))
		give_up(ss, entry(ss->list.next));
	pthread_cond_destroy(&ss->cond);
	pthread_mutex_destroy(&ss->lock);
	free(ss);
}
