/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "serve/session.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "base/log.h"

#define MAX_EVENTS (64u << 10)
#define MAX_BYTES  ((size_t)16 << 20)
#define SEND_BATCH 64 /* notifications in one write */
#define SEND_BYTES (64u << 10)
#define OWN_MAX	   128 /* threads: a connection has 64 at most, and one may be about to end */

struct event {
	struct sl_list link;
	uint64_t seq;
	uint64_t nodes[2]; /* that were looked up for it */
	size_t len;
	char bytes[];
};

struct own {
	uint32_t tid;
	const void *conn;
};

struct sl_session {
	atomic_uint refs;
	atomic_bool states;
	struct sl_session_config cfg;
	struct sl_nodes *nodes;
	struct sl_own *changes;
	struct sl_list link; /* of the events' */
	uint64_t uses;	     /* the events' */

	pthread_mutex_t lock; /* protects all below */
	pthread_cond_t cond;
	pthread_t writer;
	bool has_writer, stop;
	struct sl_transport *t;
	bool keep;    /* until it is acknowledged */
	bool sending; /* the writer uses t, and the events before next */
	bool writer_waits;
	unsigned held;	/* were queued, and the writer was not woken */
	uint64_t seq;	/* of the next that is pushed */
	uint64_t first; /* what comes before this is not kept any more */
	uint64_t acked; /* the client has all before this */
	struct sl_list events;
	struct sl_list *next; /* the first that was not sent; the list's head: none */
	unsigned n;
	size_t bytes;
	struct sl_session_stats st;

	struct own own[OWN_MAX];
	unsigned nown;
};

static struct event *entry(struct sl_list *l)
{
	return sl_list_entry(l, struct event, link);
}

/* With the lock held. */
static void drop(struct sl_session *s, struct event *ev, bool give_back)
{
	struct sl_evid was;
	sl_list_del(&ev->link);
	s->n--;
	s->bytes -= ev->len;
	/* A state's node that is marked was looked up by the client as well, so its mark stays. */
	for (int i = 0; give_back && i < 2; i++)
		if (ev->nodes[i])
			(void)sl_nodes_forget(s->nodes, ev->nodes[i], 1, &was);
	free(ev);
}

/* With the lock held: free what need not be kept. */
static void trim(struct sl_session *s)
{
	while (!s->sending && s->events.next != s->next) {
		struct event *ev = entry(s->events.next);
		if (s->keep && ev->seq >= s->acked)
			break;
		s->first = ev->seq + 1;
		drop(s, ev, false);
	}
}

static void *writer(void *arg)
{
	struct sl_session *s = arg;
	pthread_mutex_lock(&s->lock);
	while (!s->stop) {
		if (!s->t || s->next == &s->events) {
			s->writer_waits = true;
			pthread_cond_wait(&s->cond, &s->lock);
			s->writer_waits = false;
			continue;
		}
		struct iovec iov[SEND_BATCH];
		int n = 0;
		for (size_t len = 0; s->next != &s->events && n < SEND_BATCH && len < SEND_BYTES;
		     s->next = s->next->next) {
			struct event *ev = entry(s->next);
			iov[n++] = (struct iovec){ev->bytes, ev->len};
			len += ev->len;
		}
		s->st.sent += (unsigned)n;
		struct sl_transport *t = s->t;
		s->sending = true;
		pthread_mutex_unlock(&s->lock);
		int r = sl_transport_send(t, iov, n);
		pthread_mutex_lock(&s->lock);
		s->sending = false;
		if (r < 0)
			s->t =
			    NULL; /* its connection ends by itself; what was not acknowledged is sent again */
		trim(s);
		pthread_cond_broadcast(&s->cond);
	}
	pthread_mutex_unlock(&s->lock);
	return NULL;
}

int sl_session_new(const struct sl_session_config *cfg, const struct sl_found *root, struct sl_session **ret)
{
	struct sl_session *s = calloc(1, sizeof(*s));
	if (!s)
		return -ENOMEM;
	s->refs = 1;
	s->cfg = *cfg;
	if (!s->cfg.max_events)
		s->cfg.max_events = MAX_EVENTS;
	if (!s->cfg.max_bytes)
		s->cfg.max_bytes = MAX_BYTES;
	s->seq = s->first = s->acked = 1;
	sl_list_init(&s->link);
	sl_list_init(&s->events);
	s->next = &s->events;
	pthread_mutex_init(&s->lock, NULL);
	pthread_cond_init(&s->cond, NULL);
	int r = sl_nodes_new(cfg->max_nodes, root, &s->nodes);
	if (r == 0)
		r = sl_own_new(&s->changes);
	if (r < 0) {
		sl_session_unref(s);
		return r;
	}
	*ret = s;
	return 0;
}

struct sl_session *sl_session_ref(struct sl_session *s)
{
	s->refs++;
	return s;
}

void sl_session_unref(struct sl_session *s)
{
	if (!s || --s->refs)
		return;
	pthread_mutex_lock(&s->lock);
	s->stop = true;
	pthread_cond_broadcast(&s->cond);
	pthread_mutex_unlock(&s->lock);
	if (s->has_writer)
		pthread_join(s->writer, NULL);
	while (!sl_list_empty(&s->events))
		drop(s, entry(s->events.next), false);
	sl_nodes_free(s->nodes);
	sl_own_free(s->changes);
	pthread_cond_destroy(&s->cond);
	pthread_mutex_destroy(&s->lock);
	free(s);
}

void sl_session_want_states(struct sl_session *s, bool want)
{
	s->states = want;
}

bool sl_session_wants_states(const struct sl_session *s)
{
	return s->states;
}

struct sl_own *sl_session_own(struct sl_session *s)
{
	return s->changes;
}

struct sl_nodes *sl_session_nodes(struct sl_session *s)
{
	return s->nodes;
}

bool sl_session_has(struct sl_session *s, uint64_t seq)
{
	pthread_mutex_lock(&s->lock);
	bool has = seq >= s->first && seq <= s->seq;
	pthread_mutex_unlock(&s->lock);
	return has;
}

void sl_session_attach(struct sl_session *s, struct sl_transport *t, uint64_t seq, bool keep)
{
	pthread_mutex_lock(&s->lock);
	while (s->sending)
		pthread_cond_wait(&s->cond, &s->lock);
	s->t = t;
	s->keep = keep;
	if (seq <= s->seq)
		s->acked = SL_MAX(s->acked, seq);
	/* All that the client does not have is sent, once more if need be. */
	s->next = s->events.next;
	while (s->next != &s->events && entry(s->next)->seq < s->acked)
		s->next = s->next->next;
	trim(s);
	pthread_cond_broadcast(&s->cond);
	pthread_mutex_unlock(&s->lock);
}

void sl_session_detach(struct sl_session *s, struct sl_transport *t)
{
	pthread_mutex_lock(&s->lock);
	while (s->sending && s->t == t)
		pthread_cond_wait(&s->cond, &s->lock);
	if (s->t == t)
		s->t = NULL;
	pthread_mutex_unlock(&s->lock);
}

int sl_session_ack(struct sl_session *s, uint64_t seq)
{
	pthread_mutex_lock(&s->lock);
	int r = seq > s->seq ? -EINVAL : 0;
	if (r == 0)
		s->acked = SL_MAX(s->acked, seq);
	trim(s);
	pthread_mutex_unlock(&s->lock);
	return r;
}

uint64_t sl_session_seq(struct sl_session *s)
{
	pthread_mutex_lock(&s->lock);
	uint64_t seq = s->seq;
	pthread_mutex_unlock(&s->lock);
	return seq;
}

/* With the lock held: no room for another one. A session without a connection gets a quarter. */
static bool is_full(const struct sl_session *s)
{
	unsigned part = s->t ? 1 : 4;
	return s->n >= s->cfg.max_events / part || s->bytes >= s->cfg.max_bytes / part;
}

/* With the lock held. */
static int append(struct sl_session *s, struct sl_fsnotify_msg *m)
{
	struct fuse_out_header h = {.error = FUSE_NOTIFY_FSNOTIFY};
	size_t n = sl_fsnotify_size(m);
	h.len = (uint32_t)(sizeof(h) + n);
	struct event *ev = malloc(sizeof(*ev) + h.len);
	if (!ev)
		return -ENOMEM;
	m->seq = s->seq++;
	*ev = (struct event){.seq = m->seq, .len = h.len};
	for (unsigned i = 0; i < m->nparts; i++)
		if (m->part[i].has_state && m->part[i].namelen)
			ev->nodes[i] = m->part[i].entry.nodeid;
	memcpy(ev->bytes, &h, sizeof(h));
	sl_fsnotify_build(m, ev->bytes + sizeof(h));
	sl_list_add_tail(&s->events, &ev->link);
	if (s->next == &s->events)
		s->next = &ev->link;
	s->n++;
	s->bytes += ev->len;
	s->st.pushed++;
	return 0;
}

/* With the lock held. */
static void overflow(struct sl_session *s)
{
	while (s->next != &s->events) {
		struct event *ev = entry(s->next);
		s->next = s->next->next;
		drop(s, ev, true);
	}
	/* Its number says how many were dropped. The smallest message there is: memory for that is waited
	 * for. */
	struct sl_fsnotify_msg m = {.overflow = true, .nparts = 1};
	while (append(s, &m) == -ENOMEM) {
		struct timespec ts = {.tv_nsec = 10000000};
		nanosleep(&ts, NULL);
	}
	s->st.overflows++;
	pthread_cond_broadcast(&s->cond);
}

void sl_session_overflow(struct sl_session *s)
{
	pthread_mutex_lock(&s->lock);
	overflow(s);
	pthread_mutex_unlock(&s->lock);
}

/* With the lock held. One that is at work finds by itself what was queued meanwhile. */
static void wake_writer(struct sl_session *s)
{
	s->held = 0;
	if (s->writer_waits)
		pthread_cond_broadcast(&s->cond);
}

void sl_session_flush(struct sl_session *s)
{
	pthread_mutex_lock(&s->lock);
	if (s->held)
		wake_writer(s);
	pthread_mutex_unlock(&s->lock);
}

void sl_session_push(struct sl_session *s, struct sl_fsnotify_msg *m)
{
	pthread_mutex_lock(&s->lock);
	/* What was sent is given up first: then this session cannot be resumed from before that. */
	while (!s->sending && s->events.next != s->next && is_full(s)) {
		s->first = entry(s->events.next)->seq + 1;
		drop(s, entry(s->events.next), false);
	}
	bool full = is_full(s);
	if (full || append(s, m) < 0) {
		struct sl_evid was;
		for (unsigned i = 0; i < m->nparts; i++)
			if (m->part[i].has_state && m->part[i].namelen)
				(void)sl_nodes_forget(s->nodes, m->part[i].entry.nodeid, 1, &was);
		overflow(s);
		full = true;
	} else if (++s->held >= SEND_BATCH / 4) {
		wake_writer(s);
	}
	pthread_mutex_unlock(&s->lock);
	if (full && s->cfg.overflow)
		s->cfg.overflow(s->cfg.arg, s);
}

int sl_session_start(struct sl_session *s)
{
	int r = 0;
	pthread_mutex_lock(&s->lock);
	if (!s->has_writer) {
		r = -pthread_create(&s->writer, NULL, writer, s);
		s->has_writer = r == 0;
		if (r == 0)
			pthread_setname_np(s->writer, "events");
	}
	pthread_mutex_unlock(&s->lock);
	return r;
}

bool sl_session_started(struct sl_session *s)
{
	pthread_mutex_lock(&s->lock);
	bool has = s->has_writer;
	pthread_mutex_unlock(&s->lock);
	return has;
}

bool sl_session_own_thread(struct sl_session *s, uint32_t tid, const void *conn)
{
	bool known = sl_session_owns(s, tid);
	pthread_mutex_lock(&s->lock);
	if (!known && s->nown < OWN_MAX)
		s->own[s->nown++] = (struct own){tid, conn};
	pthread_mutex_unlock(&s->lock);
	return !known;
}

bool sl_session_owns(struct sl_session *s, uint32_t tid)
{
	bool owns = false;
	if (!tid)
		return false;
	pthread_mutex_lock(&s->lock);
	for (unsigned i = 0; i < s->nown && !owns; i++)
		owns = s->own[i].tid == tid;
	pthread_mutex_unlock(&s->lock);
	return owns;
}

bool sl_session_owns_any(struct sl_session *s, const void *conn)
{
	bool any = false;
	pthread_mutex_lock(&s->lock);
	for (unsigned i = 0; i < s->nown && !any; i++)
		any = s->own[i].conn == conn;
	pthread_mutex_unlock(&s->lock);
	return any;
}

void sl_session_disown(struct sl_session *s, const void *conn)
{
	pthread_mutex_lock(&s->lock);
	for (unsigned i = 0; i < s->nown;)
		if (s->own[i].conn == conn)
			s->own[i] = s->own[--s->nown];
		else
			i++;
	pthread_mutex_unlock(&s->lock);
}

void sl_session_get_stats(struct sl_session *s, struct sl_session_stats *st)
{
	pthread_mutex_lock(&s->lock);
	*st = s->st;
	st->queued = s->n;
	st->bytes = s->bytes;
	pthread_mutex_unlock(&s->lock);
}

struct sl_list *sl_session_link(struct sl_session *s)
{
	return &s->link;
}

uint64_t *sl_session_uses(struct sl_session *s)
{
	return &s->uses;
}

struct sl_session *sl_session_of(struct sl_list *link)
{
	return sl_list_entry(link, struct sl_session, link);
}
