/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Connections, and the origin itself. */
#include "origin/export.h"

#include <stdio.h>

#include "base/log.h"
#include "notify/backend.h"

#define BACKOFF_MIN (50 * SL_NS_PER_MS)
#define BACKOFF_MAX (5 * SL_NS_PER_SEC)

/* ---- connection ---- */

struct sl_client *sl_ex_client_get(struct export *e, uint64_t conn)
{
	struct sl_client *c = NULL;
	pthread_mutex_lock(&e->lock);
	if (e->client && e->conn == conn) {
		c = e->client;
		e->users++;
	}
	pthread_mutex_unlock(&e->lock);
	return c;
}

void sl_ex_client_put(struct export *e)
{
	pthread_mutex_lock(&e->lock);
	if (--e->users == 0)
		pthread_cond_broadcast(&e->cond);
	pthread_mutex_unlock(&e->lock);
}

void sl_ex_send_forgets(struct export *e)
{
	struct sl_place_forget *f = NULL;
	size_t n = 0;
	pthread_mutex_lock(&e->lock);
	struct sl_client *c = NULL;
	if (e->places.nforget >= FORGET_BATCH && e->client) {
		f = e->places.forget;
		n = e->places.nforget;
		e->places.forget = NULL;
		e->places.nforget = e->places.cap = 0;
		c = e->client;
		e->users++;
	}
	pthread_mutex_unlock(&e->lock);
	for (size_t i = 0; c && i < n; i += 4096) {
		size_t k = SL_MIN(n - i, (size_t)4096);
		struct sl_call call = {.opcode = FUSE_BATCH_FORGET,
				       .in.batch_forget.count = (uint32_t)k,
				       .data = f + i,
				       .data_len = k * sizeof(*f)};
		_Static_assert(sizeof(*f) == sizeof(struct fuse_forget_one), "sent as it is");
		(void)sl_client_post(c, &call);
	}
	free(f);
	if (c)
		sl_ex_client_put(e);
}

/* ---- the connector ---- */

static void on_gone(void *arg, int err)
{
	struct export *e = arg;
	(void)err;
	pthread_mutex_lock(&e->lock);
	e->dead = true;
	pthread_cond_broadcast(&e->cond);
	pthread_mutex_unlock(&e->lock);
}

/* Before anything is received on a new connection: does the session go on? */
static void on_init(void *arg, uint64_t flags, const struct fuse_init_out *out)
{
	struct export *e = arg;
	uint32_t token[4] = {0};
	static const uint32_t none[4];
	if (flags & FUSE_FSNOTIFY_SUPPORT)
		memcpy(token, out->sl_token, sizeof(token));
	pthread_mutex_lock(&e->lock);
	e->flags = flags;
	if (!memcmp(token, none, sizeof(token)) || memcmp(token, e->token, sizeof(token)) != 0) {
		memcpy(e->token, token, sizeof(token));
		sl_places_clear(&e->places, false);
		e->session++;
		e->next_seq = 1;
		e->lost_seq = 0;
		e->unacked = 0;
		e->lost |= e->marks;
		e->marks = false;
	}
	pthread_mutex_unlock(&e->lock);
}

static int connect_once(struct export *e, struct sl_client **ret, char **why)
{
	struct sl_transport *t;
	int r = sl_dial_connect(e->dial, &t, why);
	if (r < 0)
		return r;
	struct sl_client_config cfg = {
	    .want_flags = FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_DO_READDIRPLUS | FUSE_NO_OPEN_SUPPORT |
			  FUSE_PARALLEL_DIROPS | FUSE_EXPORT_SUPPORT | SL_FUSE_XATTR_HINT | SL_FUSE_READ_ATTR,
	    .uid = getuid(),
	    .gid = getgid(),
	    .pid = (uint32_t)getpid(),
	    .seq = e->next_seq,
	    .init = on_init,
	    .notify = sl_ex_notify,
	    .init_timeout_ms = (int)SL_MIN(e->timeout / SL_NS_PER_MS, (uint64_t)60000),
	    .gone = on_gone,
	    .arg = e};
	if (e->event)
		cfg.want_flags |= FUSE_FSNOTIFY_SUPPORT | SL_FUSE_EVENT_STATE;
	memcpy(cfg.token, e->token, sizeof(cfg.token));
	struct sl_client *c;
	r = sl_client_new(t, &cfg, &c);
	if (r == -EPROTO)
		return sl_fail(why, r, "the peer does not speak sluice's protocol");
	if (r == -EPROTONOSUPPORT)
		return sl_fail(why, r, "the peer speaks an incompatible version of the protocol");
	if (r == -ENOTCONN)
		return sl_fail(why, r, "the peer ended the connection before it began");
	if (r < 0)
		return sl_fail(why, r, "the peer does not answer: %s", strerror(-r));
	struct sl_call call = {
	    .opcode = FUSE_GETATTR, .nodeid = FUSE_ROOT_ID, .deadline = sl_now() + e->timeout};
	struct sl_msg_out m;
	r = sl_client_call_sync(c, &call, &m, NULL);
	if (r == 0 && !S_ISDIR(m.out.attr.attr.mode))
		r = sl_fail(why, -ENOTDIR, "what is served there is no directory");
	else if (r == 0 && e->root_ino && e->root_ino != m.out.attr.attr.ino)
		r = sl_fail(why, -ESTALE, "another tree is served there now than before");
	else if (r < 0)
		sl_fail(why, r, "the peer does not answer: %s", strerror(-r));
	if (r < 0) {
		sl_client_free(c);
		return r;
	}
	e->root_ino = m.out.attr.attr.ino;
	*ret = c;
	return 0;
}

/* With the lock held; drops it meanwhile. */
static void drop_connection(struct export *e)
{
	struct sl_client *c = e->client;
	e->client = NULL;
	e->conn++;
	e->no_open = e->no_opendir = e->no_readdirplus = false;
	while (e->users)
		pthread_cond_wait(&e->cond, &e->lock);
	pthread_mutex_unlock(&e->lock);
	sl_client_free(c);
	sl_dial_reap(e->dial);
	pthread_mutex_lock(&e->lock);
	e->dead = false;
}

/* The server need not keep what we have. With the lock held; drops it meanwhile. */
static void say_goodbye(struct export *e)
{
	struct sl_client *c = e->client;
	struct sl_call call = {.opcode = FUSE_DESTROY, .deadline = sl_now() + SL_NS_PER_SEC};
	if (!(e->flags & FUSE_FSNOTIFY_SUPPORT))
		return;
	pthread_mutex_unlock(&e->lock);
	(void)sl_client_call_sync(c, &call, NULL, NULL);
	pthread_mutex_lock(&e->lock);
}

/* With the lock held: fail what has waited long enough; returns the earliest deadline of the rest. */
static uint64_t expire_waiting(struct export *e, bool all)
{
	for (;;) {
		uint64_t now = sl_now(), first = UINT64_MAX;
		struct xreq *late = NULL;
		sl_list_for_each (l, &e->waiting) {
			struct xreq *x = sl_list_entry(l, struct xreq, link);
			if (all || x->deadline <= now) {
				late = x;
				break;
			}
			first = SL_MIN(first, x->deadline);
		}
		if (!late)
			return first;
		sl_list_del(&late->link);
		pthread_mutex_unlock(&e->lock);
		sl_ex_finish(late, -ETIMEDOUT);
		pthread_mutex_lock(&e->lock);
	}
}

/* With the lock held: the first request that may start now; when the next one may, in *@when. */
static struct xreq *next_waiting(struct export *e, uint64_t *when)
{
	uint64_t now = sl_now();
	sl_list_for_each (l, &e->waiting) {
		struct xreq *x = sl_list_entry(l, struct xreq, link);
		if (x->not_before <= now)
			return x;
		*when = SL_MIN(*when, x->not_before);
	}
	return NULL;
}

static void wait_until(struct export *e, uint64_t until)
{
	struct timespec ts = sl_ns_to_timespec(until);
	pthread_cond_timedwait(&e->cond, &e->lock, &ts);
}

static void *connector(void *arg)
{
	struct export *e = arg;
	uint64_t backoff = 0, retry_at = 0;
	bool complained = false;
	pthread_mutex_lock(&e->lock);
	while (!e->stop) {
		if (e->client && e->dead) {
			drop_connection(e);
			if (!e->stop)
				sl_notice("the connection to the origin is gone; it is made again when it is "
					  "needed");
			backoff = retry_at = 0;
			continue;
		}
		uint64_t first = expire_waiting(e, false);
		bool wanted = !sl_list_empty(&e->waiting) || e->marks || e->lost;
		if (e->client || !wanted) {
			struct xreq *x = next_waiting(e, &first);
			if (!x && first == UINT64_MAX)
				pthread_cond_wait(&e->cond, &e->lock);
			else if (!x || !e->client)
				wait_until(e, first);
			if (!x || !e->client)
				continue;
			sl_list_del(&x->link);
			x->conn = e->conn;
			x->session = e->session;
			x->flags = sl_client_flags(e->client);
			pthread_mutex_unlock(&e->lock);
			sl_ex_resolve(x);
			pthread_mutex_lock(&e->lock);
			continue;
		}
		if (sl_now() < retry_at) {
			wait_until(e, SL_MIN(retry_at, first));
			continue;
		}
		pthread_mutex_unlock(&e->lock);
		struct sl_client *c = NULL;
		_cleanup_free_ char *why = NULL;
		int r = connect_once(e, &c, &why);
		if (r == 0)
			sl_ex_lost(e);
		pthread_mutex_lock(&e->lock);
		e->dead = e->dead &&
			  r == 0; /* a failed attempt may have said so of a connection that never was ours */
		if (r == 0) {
			e->client = c;
			if (complained)
				sl_notice("the origin is connected again");
			complained = false;
			backoff = 0;
		} else {
			if (!complained)
				sl_warn("the origin is not reachable: %s", why ? why : strerror(-r));
			complained = true;
			backoff = backoff ? SL_MIN(backoff * 2, BACKOFF_MAX) : BACKOFF_MIN;
			retry_at = sl_now() + backoff;
		}
	}
	expire_waiting(e, true);
	if (e->client && !e->dead)
		say_goodbye(e);
	if (e->client)
		drop_connection(e);
	expire_waiting(e, true);
	pthread_mutex_unlock(&e->lock);
	return NULL;
}

static void export_stop(struct sl_origin *o)
{
	struct export *e = sl_container_of(o, struct export, o);
	pthread_mutex_lock(&e->lock);
	bool was = e->stop;
	e->stop = true;
	pthread_cond_broadcast(&e->cond);
	pthread_mutex_unlock(&e->lock);
	if (!was)
		pthread_join(e->connector, NULL);
}

static void export_free(struct sl_origin *o)
{
	struct export *e = sl_container_of(o, struct export, o);
	export_stop(o);
	pthread_mutex_lock(&e->lock);
	while (e->outstanding)
		pthread_cond_wait(&e->cond, &e->lock);
	pthread_mutex_unlock(&e->lock);
	sl_places_fini(&e->places);
	sl_dial_free(e->dial);
	pthread_cond_destroy(&e->cond);
	pthread_mutex_destroy(&e->lock);
	free(e);
}

static bool export_connected(struct sl_origin *o)
{
	struct export *e = sl_container_of(o, struct export, o);
	pthread_mutex_lock(&e->lock);
	bool up = e->client && !e->dead;
	pthread_mutex_unlock(&e->lock);
	return up;
}

static char *export_where(struct sl_origin *o, uint64_t id)
{
	struct export *e = sl_container_of(o, struct export, o);
	pthread_mutex_lock(&e->lock);
	struct sl_pname *n = sl_places_marked(&e->places, id);
	char *place = n && !sl_places_nowhere(&e->places, n) ? sl_places_path(n, "", 0) : NULL;
	pthread_mutex_unlock(&e->lock);
	return place;
}

static const struct sl_origin_ops export_ops = {sl_ex_submit, export_stop, export_free, export_connected,
						export_where};

int sl_origin_export_open(struct sl_dial *d, const struct sl_origin_config *cfg, struct sl_origin **ret,
			  char **why)
{
	struct export *e = calloc(1, sizeof(*e));
	if (!e) {
		sl_dial_free(d);
		return -ENOMEM;
	}
	e->o.ops = &export_ops;
	e->dial = d;
	e->timeout = (cfg->timeout ? cfg->timeout : 120) * SL_NS_PER_SEC;
	sl_list_init(&e->waiting);
	e->event = cfg->event;
	e->arg = cfg->arg;
	e->uses = cfg->uses & SL_CHANGE_USE;
	e->next_seq = 1;
	if (sl_places_init(&e->places) < 0) {
		sl_dial_free(d);
		free(e);
		return -ENOMEM;
	}
	pthread_mutex_init(&e->lock, NULL);
	pthread_condattr_t ca;
	pthread_condattr_init(&ca);
	pthread_condattr_setclock(&ca, CLOCK_MONOTONIC);
	pthread_cond_init(&e->cond, &ca);
	pthread_condattr_destroy(&ca);
	e->root_ino = cfg->root_ino;
	uint64_t until = 0;
	int r;
	do
		r = cfg->connect_later ? 0 : connect_once(e, &e->client, why);
	while (r < 0 && sl_dial_again(d, r, &until, why));
	if (r == 0 || cfg->may_be_down)
		r = -pthread_create(&e->connector, NULL, connector, e);
	if (r < 0) {
		sl_client_free(e->client);
		sl_places_fini(&e->places);
		sl_dial_free(e->dial);
		free(e);
		return r;
	}
	pthread_setname_np(e->connector, "connector");
	*ret = &e->o;
	return 0;
}
