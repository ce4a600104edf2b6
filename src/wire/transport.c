/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "wire/transport.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include "base/fd.h"
#include "base/time.h"
#include "wire/proto.h"

/* One read of a stream brings many small messages; what is longer is read to where it belongs. */
#define IN_SIZE (32u << 10)

struct sl_transport {
	enum sl_transport_kind kind;
	int rfd, wfd;
	int rerr; /* with rlock held: why nothing more can be received; the next receiver is told as well */
	int stop_fd; /* eventfd: readable once the transport is shut down */
	atomic_bool down;
	pthread_mutex_t rlock; /* one receiver of a stream at a time */
	pthread_mutex_t wlock; /* one sender of a stream at a time */

	/* With rlock held: what was read of a stream and not taken yet. */
	char *in;
	size_t in_at, in_len;
	bool outlives;

	/* With rlock held: the message that recv_alloc() has only a part of. */
	uint32_t part_len;
	size_t part_got; /* bytes of it that are here, its length included */
	char *part;	 /* NULL until the length is known */
};

int sl_transport_new(enum sl_transport_kind kind, int rfd, int wfd, struct sl_transport **ret)
{
	struct sl_transport *t = calloc(1, sizeof(*t));
	int ev = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	char *in = kind == SL_TRANSPORT_STREAM ? malloc(IN_SIZE) : NULL;
	if (!t || ev < 0 || (kind == SL_TRANSPORT_STREAM && !in)) {
		int r = ev < 0 ? -errno : -ENOMEM;
		free(t);
		free(in);
		if (ev >= 0)
			close(ev);
		close(rfd);
		if (wfd != rfd)
			close(wfd);
		return r;
	}
	*t = (struct sl_transport){.kind = kind, .rfd = rfd, .wfd = wfd, .stop_fd = ev, .in = in};
	/* Nothing ends a write that waits in the kernel for room in a pipe: wait in poll() instead, where a
	 * shutdown is seen. */
	struct stat st;
	if (kind == SL_TRANSPORT_STREAM && fstat(wfd, &st) == 0 && !S_ISSOCK(st.st_mode)) {
		(void)fcntl(wfd, F_SETFL, fcntl(wfd, F_GETFL) | O_NONBLOCK);
		t->outlives = S_ISCHR(st.st_mode);
	}
	pthread_mutex_init(&t->rlock, NULL);
	pthread_mutex_init(&t->wlock, NULL);
	*ret = t;
	return 0;
}

void sl_transport_free(struct sl_transport *t)
{
	if (!t)
		return;
	close(t->rfd);
	if (t->wfd != t->rfd)
		close(t->wfd);
	close(t->stop_fd);
	free(t->part);
	free(t->in);
	pthread_mutex_destroy(&t->rlock);
	pthread_mutex_destroy(&t->wlock);
	free(t);
}

int sl_transport_fd(const struct sl_transport *t)
{
	return t->rfd;
}

bool sl_transport_outlives(const struct sl_transport *t)
{
	return t->outlives;
}

bool sl_transport_is_dev(const struct sl_transport *t)
{
	return t->kind == SL_TRANSPORT_DEV;
}

/* Wait until @fd is ready for @events. Returns 0, -EAGAIN after @timeout_ms, -ENODATA after a shutdown. */
static int wait_ready(struct sl_transport *t, int fd, short events, int timeout_ms)
{
	struct pollfd p[2] = {{.fd = fd, .events = events}, {.fd = t->stop_fd, .events = POLLIN}};
	for (;;) {
		int r = poll(p, 2, timeout_ms);
		if (r < 0 && errno == EINTR)
			continue;
		if (r < 0)
			return -errno;
		if (p[1].revents || t->down)
			return -ENODATA;
		return r == 0 ? -EAGAIN : 0;
	}
}

/* Wait until read_some() has something, as wait_ready(). */
static int wait_some(struct sl_transport *t, int timeout_ms)
{
	if (t->in_at == t->in_len)
		return wait_ready(t, t->rfd, POLLIN, timeout_ms);
	return t->down ? -ENODATA : 0;
}

/* As read(2): up to @n bytes. -EAGAIN: none just now. */
static ssize_t read_some(struct sl_transport *t, void *buf, size_t n)
{
	if (t->in_at == t->in_len) {
		bool direct = n >= IN_SIZE;
		ssize_t k = read(t->rfd, direct ? buf : t->in, direct ? n : IN_SIZE);
		if (k < 0)
			return errno == EINTR ? -EAGAIN : -errno;
		if (k == 0 || direct)
			return k;
		t->in_at = 0;
		t->in_len = (size_t)k;
	}
	n = SL_MIN(n, t->in_len - t->in_at);
	memcpy(buf, t->in + t->in_at, n);
	t->in_at += n;
	return (ssize_t)n;
}

static int read_stream(struct sl_transport *t, void *buf, size_t n)
{
	size_t got = 0;
	while (got < n) {
		int r = wait_some(t, -1);
		if (r < 0)
			return r;
		ssize_t k = read_some(t, (char *)buf + got, n - got);
		if (k == -EAGAIN)
			continue;
		if (k < 0)
			return (int)k;
		if (k == 0)
			return got ? -EPIPE : -ENODATA;
		got += (size_t)k;
	}
	return 0;
}

ssize_t sl_transport_recv(struct sl_transport *t, void *buf, size_t cap)
{
	if (t->kind == SL_TRANSPORT_DEV) {
		for (;;) {
			/* Blocks in the kernel; the unmount, or a reply to another thread, ends it. */
			ssize_t n = read(t->rfd, buf, cap);
			if (n < 0 && (errno == EINTR || errno == EAGAIN || errno == ENOENT)) {
				/* ENOENT: the request was interrupted before it was read. */
				if (t->down)
					return -ENODATA;
				if (errno == EAGAIN) {
					int r = wait_ready(t, t->rfd, POLLIN, -1);
					if (r < 0)
						return r;
				}
				continue;
			}
			if (n < 0)
				return errno == ENODEV || errno == ECONNABORTED ? -ENODATA : -errno;
			if ((size_t)n < sizeof(struct fuse_in_header))
				return -EPROTO;
			return n;
		}
	}

	uint32_t len;
	ssize_t r;
	pthread_mutex_lock(&t->rlock);
	r = t->rerr ? t->rerr : read_stream(t, &len, sizeof(len));
	if (r == 0 && len < sizeof(struct fuse_out_header))
		r = -EPROTO;
	else if (r == 0 && len > cap)
		r = -EMSGSIZE;
	if (r == 0) {
		memcpy(buf, &len, sizeof(len));
		r = read_stream(t, (char *)buf + sizeof(len), len - sizeof(len));
		if (r == -ENODATA && !t->down)
			r = -EPIPE;
	}
	if (r < 0)
		t->rerr = (int)r;
	pthread_mutex_unlock(&t->rlock);
	return r < 0 ? r : (ssize_t)len;
}

/* Read what is there of the message under way. Returns 0, or -errno when the stream is of no use any more. */
static int read_part(struct sl_transport *t, size_t max)
{
	bool head = t->part_got < sizeof(t->part_len);
	char *to = head ? (char *)&t->part_len : t->part;
	size_t want = head ? sizeof(t->part_len) : t->part_len;
	ssize_t k = read_some(t, to + t->part_got, want - t->part_got);
	if (k < 0)
		return k == -EAGAIN ? 0 : (int)k;
	if (k == 0)
		return t->part_got ? -EPIPE : -ENODATA;
	t->part_got += (size_t)k;
	if (!head || t->part_got < sizeof(t->part_len))
		return 0;
	if (t->part_len < sizeof(struct fuse_out_header))
		return -EPROTO;
	if (t->part_len > max)
		return -EMSGSIZE;
	t->part = malloc(t->part_len);
	if (!t->part)
		return -ENOMEM;
	memcpy(t->part, &t->part_len, sizeof(t->part_len));
	return 0;
}

ssize_t sl_transport_recv_alloc(struct sl_transport *t, size_t max, int timeout_ms, void **ret)
{
	uint64_t end = timeout_ms < 0 ? 0 : sl_now() + (uint64_t)timeout_ms * SL_NS_PER_MS;
	ssize_t r = 0;
	pthread_mutex_lock(&t->rlock);
	while (r == 0 && !(t->part && t->part_got == t->part_len)) {
		int left = -1;
		if (timeout_ms >= 0) {
			uint64_t now = sl_now();
			left = now < end ? (int)SL_DIV_UP(end - now, SL_NS_PER_MS) : 0;
		}
		r = wait_some(t, left);
		if (r == 0)
			r = read_part(t, max);
	}
	if (r == 0) {
		*ret = sl_steal_ptr(&t->part);
		t->part_got = 0;
		r = (ssize_t)t->part_len;
	}
	pthread_mutex_unlock(&t->rlock);
	return r;
}

/* With wlock held. */
static int send_stream(struct sl_transport *t, struct iovec *iov, int cnt)
{
	int r = 0;
	if (t->down)
		r = -EPIPE;
	while (r == 0 && cnt > 0) {
		struct msghdr mh = {.msg_iov = iov, .msg_iovlen = (size_t)cnt};
		ssize_t k = sendmsg(t->wfd, &mh, MSG_NOSIGNAL);
		if (k < 0 && errno == ENOTSOCK)
			k = writev(t->wfd, iov, cnt);
		if (k < 0 && errno == EINTR)
			continue;
		if (k < 0 && errno == EAGAIN) {
			r = wait_ready(t, t->wfd, POLLOUT, -1);
			continue;
		}
		if (k < 0) {
			r = -errno;
			break;
		}
		while (cnt > 0 && (size_t)k >= iov->iov_len) {
			k -= (ssize_t)iov->iov_len;
			iov++;
			cnt--;
		}
		if (cnt > 0) {
			iov->iov_base = (char *)iov->iov_base + k;
			iov->iov_len -= (size_t)k;
		}
	}
	return r;
}

int sl_transport_send(struct sl_transport *t, struct iovec *iov, int cnt)
{
	if (t->kind == SL_TRANSPORT_DEV) {
		ssize_t r;
		do
			r = writev(t->wfd, iov, cnt);
		while (r < 0 && errno == EINTR);
		return r < 0 ? -errno : 0;
	}
	pthread_mutex_lock(&t->wlock);
	int r = send_stream(t, iov, cnt);
	pthread_mutex_unlock(&t->wlock);
	return r;
}

ssize_t sl_transport_try_send(struct sl_transport *t, const void *msg, size_t len)
{
	if (t->kind == SL_TRANSPORT_DEV) {
		int r = sl_transport_send(t, &(struct iovec){(void *)msg, len}, 1);
		return r < 0 ? r : (ssize_t)len;
	}
	if (pthread_mutex_trylock(&t->wlock) != 0)
		return -EAGAIN;
	/* A vsock is writable with room for one byte: without MSG_DONTWAIT the rest would wait. What is no
	 * socket is O_NONBLOCK. */
	ssize_t r = wait_ready(t, t->wfd, POLLOUT, 0);
	if (r == 0) {
		r = send(t->wfd, msg, len, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (r < 0 && errno == ENOTSOCK)
			r = write(t->wfd, msg, len);
		if (r < 0)
			r = errno == EINTR ? -EAGAIN : -errno;
	}
	pthread_mutex_unlock(&t->wlock);
	return r;
}

void sl_transport_shutdown(struct sl_transport *t)
{
	t->down = true;
	if (t->kind == SL_TRANSPORT_STREAM) {
		shutdown(t->rfd, SHUT_RDWR);
		if (t->wfd != t->rfd)
			shutdown(t->wfd, SHUT_RDWR);
	}
	uint64_t one = 1;
	ssize_t w = write(t->stop_fd, &one, sizeof(one));
	(void)w;
}
