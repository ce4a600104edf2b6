/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "wire/server.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "base/log.h"
#include "base/macros.h"
#include "wire/ends.h"

/* A request may be the consequence of an answer: what was done before that answer was done before the
 * request. The kernel sees to it, which TSan cannot know. */
#ifdef __SANITIZE_THREAD__
void __tsan_acquire(void *addr);
void __tsan_release(void *addr);
#else
#define __tsan_acquire(addr)
#define __tsan_release(addr)
#endif

struct sl_server {
	struct sl_transport *t;
	struct sl_server_config cfg;
	struct sl_ends *ends; /* or NULL */
	_Atomic uint64_t flags;
	atomic_bool ready; /* INIT is done */
	atomic_bool stop;  /* sl_server_stop() was called */
	atomic_bool end;   /* or a thread met the end of the stream or an error */
	atomic_int result;
	pthread_mutex_t init_lock; /* INIT is answered by one thread */

	pthread_mutex_t run_lock; /* protects the rest */
	pthread_t threads[64];	  /* that are in the loop */
	unsigned n;
};

int sl_server_new(struct sl_transport *t, const struct sl_server_config *cfg, struct sl_server **ret)
{
	struct sl_server *s = calloc(1, sizeof(*s));
	if (!s)
		return -ENOMEM;
	s->t = t;
	s->cfg = *cfg;
	if (!s->cfg.threads)
		s->cfg.threads = 1;
	if (!s->cfg.max_data || s->cfg.max_data > SL_WIRE_MAX_DATA)
		s->cfg.max_data = SL_WIRE_MAX_DATA;
	if (cfg->agreed) {
		s->cfg.max_data = SL_MIN(s->cfg.max_data, cfg->agreed->max_data);
		s->flags = cfg->agreed->flags;
		s->ready = true;
	}
	s->cfg.agreed = NULL; /* the caller's */
	int r = cfg->changing_sizes ? sl_ends_new(t, &s->ends) : 0;
	if (r < 0) {
		free(s);
		return r;
	}
	pthread_mutex_init(&s->init_lock, NULL);
	pthread_mutex_init(&s->run_lock, NULL);
	*ret = s;
	return 0;
}

void sl_server_free(struct sl_server *s)
{
	if (!s)
		return;
	sl_ends_free(s->ends);
	pthread_mutex_destroy(&s->init_lock);
	pthread_mutex_destroy(&s->run_lock);
	free(s);
}

uint64_t sl_server_flags(const struct sl_server *s)
{
	return s->flags;
}

static void send_reply(struct sl_req *rq, int err, const void *out, size_t len, const void *data,
		       size_t data_len)
{
	if (rq->server->ends && sl_ends_answer(rq->server->ends, rq, &err, out, len, data, data_len)) {
		rq->err = err;
		sl_reply_none(rq);
		return;
	}
	if (err)
		len = data_len = 0;
	struct fuse_out_header h = {.unique = rq->m.h.unique, .error = err};
	struct iovec iov[3] = {{&h, sizeof(h)}};
	int n = 1;
	if (len)
		iov[n++] = (struct iovec){(void *)out, len};
	if (data_len)
		iov[n++] = (struct iovec){(void *)data, data_len};
	h.len = (uint32_t)(sizeof(h) + len + data_len);
	rq->err = err;
	__tsan_release(rq->server);
	int r = sl_transport_send(rq->server->t, iov, n);
	/* ENOENT: the kernel's caller was killed meanwhile and nobody wants the answer. */
	if (r < 0 && r != -ENOENT && !rq->server->end)
		sl_debug("reply to %s: %s", rq->m.op ? rq->m.op->name : "?", strerror(-r));
	sl_reply_none(rq);
}

void sl_reply_err(struct sl_req *rq, int err)
{
	send_reply(rq, err, NULL, 0, NULL, 0);
}

void sl_reply(struct sl_req *rq, const void *out, size_t len)
{
	send_reply(rq, 0, out, len, NULL, 0);
}

void sl_reply_data(struct sl_req *rq, const void *out, size_t len, const void *data, size_t data_len)
{
	send_reply(rq, 0, out, len, data, data_len);
}

void sl_reply_none(struct sl_req *rq)
{
	if (rq->kept) {
		free(rq->kept);
		free(rq);
	}
}

static const void *rebase(const void *p, const void *from, void *to)
{
	return p ? (char *)to + ((const char *)p - (const char *)from) : NULL;
}

struct sl_req *sl_req_keep(struct sl_req *rq)
{
	if (rq->kept)
		return rq;
	struct sl_req *k = malloc(sizeof(*k));
	/* The fixed part is in rq->m already: only what follows it is copied. */
	const char *from = rq->m.name ? rq->m.name : rq->m.data;
	size_t n = 0;
	if (rq->m.data)
		n = (size_t)((const char *)rq->m.data + rq->m.data_len - from);
	else if (rq->m.name)
		n = (rq->m.name2 ? (size_t)(rq->m.name2 - from) + strlen(rq->m.name2) : strlen(rq->m.name)) +
		    1;
	void *copy = malloc(n + 1);
	if (!k || !copy) {
		free(k);
		free(copy);
		sl_reply_err(rq, -ENOMEM);
		return NULL;
	}
	if (n)
		memcpy(copy, from, n);
	*k = *rq;
	k->kept = copy;
	k->m.name = rebase(rq->m.name, from, copy);
	k->m.name2 = rebase(rq->m.name2, from, copy);
	k->m.data = rebase(rq->m.data, from, copy);
	return k;
}

int sl_server_notify(struct sl_server *s, enum fuse_notify_code code, struct iovec *body, int cnt)
{
	struct fuse_out_header h = {.error = (int32_t)code};
	struct iovec iov[8] = {{&h, sizeof(h)}};
	if (cnt > (int)SL_ARRAY_SIZE(iov) - 1)
		return -EINVAL;
	size_t len = sizeof(h);
	for (int i = 0; i < cnt; i++) {
		iov[i + 1] = body[i];
		len += body[i].iov_len;
	}
	h.len = (uint32_t)len;
	return sl_transport_send(s->t, iov, cnt + 1);
}

int sl_server_resend(struct sl_server *s)
{
	return sl_server_notify(s, FUSE_NOTIFY_RESEND, NULL, 0);
}

static void handle_init(struct sl_server *s, struct sl_req *rq)
{
	const struct fuse_init_in *in = &rq->m.in.init;
	struct fuse_init_out out = {.major = FUSE_KERNEL_VERSION, .minor = FUSE_KERNEL_MINOR_VERSION};

	pthread_mutex_lock(&s->init_lock);
	/* One that is sent again was agreed on, but its answer did not get out: the same comes out of it once
	 * more. */
	bool again = sl_transport_is_dev(s->t) && sl_req_resent(rq);
	if ((s->ready && !again) || in->major < FUSE_KERNEL_VERSION ||
	    (in->major == FUSE_KERNEL_VERSION && in->minor < SL_FUSE_MINOR_MIN)) {
		if (!s->ready)
			sl_warn("client speaks FUSE %u.%u, needed is at least %d.%d", in->major, in->minor,
				FUSE_KERNEL_VERSION, SL_FUSE_MINOR_MIN);
		sl_reply_err(rq, -EPROTO);
	} else if (in->major > FUSE_KERNEL_VERSION) {
		/* The protocol's rule: name our version, and the client starts again with that. */
		sl_reply(rq, &out, FUSE_COMPAT_INIT_OUT_SIZE);
	} else {
		uint64_t flags = sl_init_flags(in->flags, in->flags2) &
				 (s->cfg.want_flags | FUSE_INIT_EXT | FUSE_MAX_PAGES);
		if (!(flags & FUSE_FSNOTIFY_SUPPORT))
			flags &= ~SL_FUSE_EVENT_STATE;
		if (!(flags & FUSE_MAX_PAGES))
			s->cfg.max_data = SL_MIN(s->cfg.max_data, 32u * 4096);
		out.max_readahead =
		    SL_MIN(in->max_readahead, s->cfg.max_readahead ? s->cfg.max_readahead : UINT32_MAX);
		out.flags = (uint32_t)flags;
		out.flags2 = (uint32_t)(flags >> 32);
		out.max_background = s->cfg.max_background;
		out.congestion_threshold = (uint16_t)(s->cfg.max_background * 3 / 4);
		out.max_write = s->cfg.max_data;
		out.max_pages = (uint16_t)(s->cfg.max_data / 4096);
		out.time_gran = 1;
		out.max_stack_depth = flags & FUSE_PASSTHROUGH ? s->cfg.max_stack_depth : 0;
		s->flags = flags;
		struct sl_server_agreed agreed = {.flags = flags,
						  .max_data = s->cfg.max_data,
						  .resend =
						      sl_init_flags(in->flags, in->flags2) & FUSE_HAS_RESEND};
		if (s->cfg.init)
			s->cfg.init(s->cfg.arg, &agreed);
		if (s->cfg.resume)
			s->cfg.resume(s->cfg.arg, flags, in, &out);
		s->ready = true;
		sl_reply(rq, &out, sizeof(out));
		if (s->cfg.started)
			s->cfg.started(s->cfg.arg);
	}
	pthread_mutex_unlock(&s->init_lock);
}

/* Returns 0 to go on, or what ends the loop. */
static int serve_one(struct sl_server *s, void *buf, size_t cap)
{
	ssize_t n = sl_transport_recv(s->t, buf, cap);
	if (n < 0)
		return (int)n;
	__tsan_acquire(s);
	struct sl_req rq = {.server = s};
	int r = sl_msg_in_decode(buf, (size_t)n, s->flags, &rq.m);
	if (r == -ENOSYS) {
		if (!s->ready)
			return -EPROTO;
		sl_reply_err(&rq, -ENOSYS);
		return 0;
	}
	if (r < 0 && s->ready && sl_transport_is_dev(s->t)) {
		/* The kernel is no enemy: a request that we do not understand is one program's error, not the
		 * mount's end. */
		sl_reply_err(&rq, -EINVAL);
		return 0;
	}
	if (r < 0)
		return r;
	if (rq.m.h.opcode == FUSE_INIT) {
		bool second = s->ready && !sl_transport_is_dev(s->t);
		handle_init(s, &rq);
		return second ? -EPROTO : 0;
	}
	if (!s->ready)
		return -EPROTO;
	if (rq.m.h.opcode == FUSE_INTERRUPT) {
		if (s->cfg.interrupt)
			s->cfg.interrupt(s->cfg.arg, rq.m.in.interrupt.unique);
		return 0;
	}
	bool bye = rq.m.h.opcode == FUSE_DESTROY && !sl_transport_is_dev(s->t);
	if (s->ends && (r = sl_ends_request(s->ends, &rq)) < 0)
		sl_reply_err(&rq, r);
	else
		s->cfg.handle(&rq, s->cfg.arg);
	/* What carries the stream may outlive the client, as the port of a virtual machine does: the next
	 * client of it begins on a new connection. */
	if (bye)
		s->end = true;
	return 0;
}

/*
 * The kernel fails a request with EIO when it cannot copy it to us, and it cannot when this process is killed
 * in that moment and a page of the buffer is not there, or not to be written to without a fault. So each page
 * is touched, nothing moves it into a huge one, and a fork (a keeper's) does not make it one to be copied
 * first.
 */
static void *buffer_new(size_t n)
{
	void *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		return NULL;
	(void)madvise(p, n, MADV_DONTFORK);
	(void)madvise(p, n, MADV_NOHUGEPAGE);
	memset(p, 0, n);
	return p;
}

static void *server_thread(void *arg)
{
	struct sl_server *s = arg;
	size_t cap = SL_WIRE_MAX_MSG;
	bool dev = sl_transport_is_dev(s->t);
	void *buf = dev ? buffer_new(cap) : malloc(cap);
	int r = buf ? 0 : -ENOMEM;
	while (r == 0 && !s->end)
		r = serve_one(s, buf, cap);
	if (!dev)
		free(buf);
	else if (buf)
		munmap(buf, cap);
	if (r < 0 && r != -ENODATA && !s->stop) {
		int none = 0;
		atomic_compare_exchange_strong(&s->result, &none, r);
	}
	s->end = true;
	/* The others must notice as well. /dev/fuse wakes them itself when it is gone; at the end of a stream
	 * each of them comes to that end, after it has answered what it is at. */
	if (!sl_transport_is_dev(s->t) && r != -ENODATA)
		sl_transport_shutdown(s->t);
	pthread_mutex_lock(&s->run_lock);
	for (unsigned i = 0; i < s->n; i++)
		if (pthread_equal(s->threads[i], pthread_self()))
			s->threads[i--] = s->threads[--s->n];
	pthread_mutex_unlock(&s->run_lock);
	return NULL;
}

int sl_server_run(struct sl_server *s)
{
	pthread_t th[SL_ARRAY_SIZE(s->threads)];
	unsigned n = 0, want = SL_MIN(s->cfg.threads, (unsigned)SL_ARRAY_SIZE(th)) - 1;
	pthread_mutex_lock(&s->run_lock);
	s->threads[s->n++] = pthread_self();
	for (; n < want; n++) {
		if (pthread_create(&th[n], NULL, server_thread, s) != 0)
			break;
		char name[16];
		snprintf(name, sizeof(name), "server-%hhu", (unsigned char)n);
		pthread_setname_np(th[n], name);
		s->threads[s->n++] = th[n];
	}
	pthread_mutex_unlock(&s->run_lock);
	server_thread(s);
	for (unsigned i = 0; i < n; i++)
		pthread_join(th[i], NULL);
	return s->result;
}

static void wake(int sig)
{
	(void)sig;
}

void sl_server_stop(struct sl_server *s)
{
	s->stop = true;
	s->end = true;
	sl_transport_shutdown(s->t);
	if (!sl_transport_is_dev(s->t))
		return;
	/* A read of /dev/fuse ends only by a signal; one that comes just before the read is lost, so it is
	 * sent until all are out. */
	struct sigaction sa = {.sa_handler = wake}, old;
	sigaction(SIGUSR1, &sa, &old);
	for (;;) {
		pthread_mutex_lock(&s->run_lock);
		unsigned left = s->n;
		for (unsigned i = 0; i < s->n; i++)
			pthread_kill(s->threads[i], SIGUSR1);
		pthread_mutex_unlock(&s->run_lock);
		if (left == 0)
			break;
		struct timespec ts = {.tv_nsec = 5000000};
		nanosleep(&ts, NULL);
	}
	sigaction(SIGUSR1, &old, NULL);
}
