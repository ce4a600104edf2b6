/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "serve/listener.h"

#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include "base/fd.h"
#include "base/list.h"
#include "base/log.h"
#include "base/time.h"
#include "base/why.h"
#include "wire/vsock.h"

#define MAX_CONNECTIONS 64
#define STOP_TIMEOUT	(10 * SL_NS_PER_SEC)

struct sl_listener {
	struct sl_export *e;
	unsigned max;
	int fd;	      /* listening; -1 with an adopted connection */
	int ended_fd; /* eventfd: a connection ended */
	bool tcp, vsock;
	uint32_t from; /* vsock: the machine that may connect, 0 for all */
	char *address;
	char *path; /* of the unix socket, and what tells that it is still ours */
	dev_t dev;
	ino_t ino;

	pthread_mutex_t lock; /* protects all below */
	pthread_cond_t cond;  /* n went down */
	struct sl_list conns;
	unsigned n;
	int result; /* of the connection that ended last */
};

struct conn {
	struct sl_list link;
	struct sl_listener *l;
	struct sl_transport *t;
};

int sl_listener_new(struct sl_export *e, unsigned max, struct sl_listener **ret)
{
	struct sl_listener *l = calloc(1, sizeof(*l));
	if (!l)
		return -ENOMEM;
	l->e = e;
	l->max = max ? max : MAX_CONNECTIONS;
	l->fd = -EBADF;
	l->ended_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (l->ended_fd < 0) {
		int r = -errno;
		free(l);
		return r;
	}
	pthread_condattr_t a;
	pthread_condattr_init(&a);
	pthread_condattr_setclock(&a, CLOCK_MONOTONIC);
	pthread_cond_init(&l->cond, &a);
	pthread_condattr_destroy(&a);
	pthread_mutex_init(&l->lock, NULL);
	sl_list_init(&l->conns);
	*ret = l;
	return 0;
}

static void *serve(void *arg)
{
	struct conn *c = arg;
	struct sl_listener *l = c->l;
	int r = sl_serve_connection(l->e, c->t);
	if (r < 0)
		sl_warn("a connection ended: %s", strerror(-r));
	pthread_mutex_lock(&l->lock);
	sl_list_del(&c->link);
	l->result = r;
	pthread_mutex_unlock(&l->lock);
	sl_transport_free(c->t);
	free(c);
	/* The last that is touched of the listener, under the lock that whoever frees it takes first. */
	pthread_mutex_lock(&l->lock);
	uint64_t one = 1;
	ssize_t w = write(l->ended_fd, &one, sizeof(one));
	(void)w;
	l->n--;
	pthread_cond_broadcast(&l->cond);
	pthread_mutex_unlock(&l->lock);
	return NULL;
}

/* Takes over the descriptors. */
static int start(struct sl_listener *l, int rfd, int wfd)
{
	struct conn *c = calloc(1, sizeof(*c));
	if (!c) {
		close(rfd);
		if (wfd != rfd)
			close(wfd);
		return -ENOMEM;
	}
	c->l = l;
	int r = sl_transport_new(SL_TRANSPORT_STREAM, rfd, wfd, &c->t);
	if (r < 0) {
		free(c);
		return r;
	}
	pthread_mutex_lock(&l->lock);
	sl_list_add_tail(&l->conns, &c->link);
	l->n++;
	pthread_mutex_unlock(&l->lock);

	pthread_t th;
	pthread_attr_t a;
	pthread_attr_init(&a);
	pthread_attr_setdetachstate(&a, PTHREAD_CREATE_DETACHED);
	r = -pthread_create(&th, &a, serve, c);
	pthread_attr_destroy(&a);
	if (r < 0) {
		pthread_mutex_lock(&l->lock);
		sl_list_del(&c->link);
		l->n--;
		pthread_mutex_unlock(&l->lock);
		sl_transport_free(c->t);
		free(c);
	}
	return r;
}

int sl_listener_adopt(struct sl_listener *l, int rfd, int wfd, char **why)
{
	l->address = strdup("stdio");
	int r = start(l, rfd, wfd);
	return r < 0 ? sl_fail(why, r, "cannot serve: %s", strerror(-r)) : 0;
}

int sl_listener_unix(struct sl_listener *l, const char *path, char **why)
{
	struct stat st;
	_cleanup_free_ char *cwd = *path == '/' ? strdup("") : getcwd(NULL, 0);
	if (!cwd || !(l->path = *path == '/' ? strdup(path) : sl_path_join(cwd, path)))
		return sl_fail(why, -ENOMEM, "cannot make an absolute path of %s", path);
	if (asprintf(&l->address, "unix:%s", l->path) < 0) {
		l->address = NULL;
		return sl_fail(why, -ENOMEM, "no memory");
	}
	int fd = sl_unix_listen(path, 0600);
	if (fd == -EADDRINUSE)
		return sl_fail(why, fd, "%s: something is there already, and it is not a dead socket", path);
	if (fd < 0)
		return sl_fail(why, fd, "%s: %s", path, strerror(-fd));
	l->fd = fd;
	if (lstat(l->path, &st) == 0) {
		l->dev = st.st_dev;
		l->ino = st.st_ino;
	}
	return 0;
}

/* Split "HOST:PORT" or "[V6]:PORT". */
static int split_hostport(const char *s, char **host, char **port)
{
	const char *colon = strrchr(s, ':');
	if (!colon || colon == s || !colon[1])
		return -EINVAL;
	size_t n = (size_t)(colon - s);
	bool v6 = *s == '[' && n > 2 && s[n - 1] == ']';
	if (!v6 && memchr(s, ':', n))
		return -EINVAL;
	*host = v6 ? strndup(s + 1, n - 2) : strndup(s, n);
	*port = strdup(colon + 1);
	return *host && *port ? 0 : -ENOMEM;
}

static int bind_tcp(const struct addrinfo *ai)
{
	int one = 1;
	_cleanup_close_ int fd = socket(ai->ai_family, ai->ai_socktype | SOCK_CLOEXEC, ai->ai_protocol);
	if (fd < 0)
		return -errno;
	(void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(fd, ai->ai_addr, ai->ai_addrlen) < 0 || listen(fd, 64) < 0)
		return -errno;
	return sl_steal_fd(&fd);
}

static char *tcp_address(int fd)
{
	struct sockaddr_storage sa;
	socklen_t len = sizeof(sa);
	char host[NI_MAXHOST], port[NI_MAXSERV], *s;
	if (getsockname(fd, (struct sockaddr *)&sa, &len) < 0 ||
	    getnameinfo((struct sockaddr *)&sa, len, host, sizeof(host), port, sizeof(port),
			NI_NUMERICHOST | NI_NUMERICSERV) != 0)
		return NULL;
	int n = sa.ss_family == AF_INET6 ? asprintf(&s, "tcp:[%s]:%s", host, port)
					 : asprintf(&s, "tcp:%s:%s", host, port);
	return n < 0 ? NULL : s;
}

int sl_listener_tcp(struct sl_listener *l, const char *hostport, char **why)
{
	_cleanup_free_ char *host = NULL, *port = NULL;
	int r = split_hostport(hostport, &host, &port);
	if (r < 0)
		return sl_fail(why, r, "'%s': expected HOST:PORT or [ADDRESS]:PORT", hostport);
	const struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
	struct addrinfo *all;
	r = getaddrinfo(host, port, &hints, &all);
	if (r != 0)
		return sl_fail(why, -EINVAL, "%s: %s", hostport, gai_strerror(r));
	r = -EADDRNOTAVAIL;
	for (struct addrinfo *ai = all; ai && r < 0; ai = ai->ai_next)
		r = bind_tcp(ai);
	freeaddrinfo(all);
	if (r < 0)
		return sl_fail(why, r, "%s: %s", hostport, strerror(-r));
	l->fd = r;
	l->tcp = true;
	l->address = tcp_address(r);
	return l->address ? 0 : sl_fail(why, -EIO, "%s: cannot tell the address", hostport);
}

int sl_listener_vsock(struct sl_listener *l, uint32_t port, uint32_t from, char **why)
{
	int fd = sl_vsock_listen(port, why);
	if (fd < 0)
		return fd;
	l->fd = fd;
	l->vsock = true;
	l->from = from;
	int r = sl_vsock_port(fd, &port);
	if (r < 0)
		return sl_fail(why, r, "vsock: %s", strerror(-r));
	/* As the client calls us: this machine itself, a guest of ours, or our host. */
	uint32_t own = from == SL_VSOCK_LOCAL ? SL_VSOCK_LOCAL
		       : from > SL_VSOCK_HOST ? SL_VSOCK_HOST
					      : sl_vsock_own();
	r = own ? asprintf(&l->address, "vsock:%u:%u", own, port) : asprintf(&l->address, "vsock:?:%u", port);
	if (r < 0) {
		l->address = NULL;
		return sl_fail(why, -ENOMEM, "no memory");
	}
	return 0;
}

const char *sl_listener_address(const struct sl_listener *l)
{
	return l->address;
}

/* Whether the peer of a new connection may be served; logs why not. */
static bool welcome(struct sl_listener *l, int fd)
{
	struct ucred cred = {.uid = (uid_t)-1};
	socklen_t len = sizeof(cred);
	uint32_t cid = 0;
	int one = 1;
	if (l->vsock) {
		if (l->from && (sl_vsock_peer(fd, &cid) < 0 || cid != l->from)) {
			sl_warn("refused a connection of machine %u: only machine %u may connect", cid,
				l->from);
			return false;
		}
	} else if (l->tcp) {
		/* A client that vanished without a word must not keep its place for ever. */
		(void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
		(void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	} else if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0 ||
		   (cred.uid != 0 && cred.uid != geteuid())) {
		sl_warn("refused a connection of user %u: only user %u and root may connect", cred.uid,
			geteuid());
		return false;
	}
	pthread_mutex_lock(&l->lock);
	bool full = l->n >= l->max;
	pthread_mutex_unlock(&l->lock);
	if (full)
		sl_warn("refused a connection: %u are served already, which is the limit", l->max);
	return !full;
}

static void accept_one(struct sl_listener *l, int stop_fd)
{
	int fd = accept4(l->fd, NULL, NULL, SOCK_CLOEXEC);
	if (fd < 0) {
		/* Out of descriptors or memory: the connection stays in the queue, so wait a little instead
		 * of spinning. */
		if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
			sl_warn("cannot accept a connection: %s", strerror(errno));
			struct pollfd p = {.fd = stop_fd, .events = POLLIN};
			(void)poll(&p, 1, 200);
		}
		return;
	}
	if (!welcome(l, fd)) {
		close(fd);
		return;
	}
	int r = start(l, fd, fd);
	if (r < 0)
		sl_warn("cannot serve a connection: %s", strerror(-r));
}

/* No new clients, and the end for those that are there. Returns 0 or -ETIMEDOUT. */
static int stop(struct sl_listener *l)
{
	struct stat st;
	if (l->fd >= 0 && l->path && lstat(l->path, &st) == 0 && st.st_dev == l->dev && st.st_ino == l->ino)
		(void)unlink(l->path);
	sl_closep(&l->fd);
	l->fd = -EBADF;
	struct timespec end = sl_ns_to_timespec(sl_now() + STOP_TIMEOUT);
	int r = 0;
	pthread_mutex_lock(&l->lock);
	sl_list_for_each (it, &l->conns)
		sl_transport_shutdown(sl_list_entry(it, struct conn, link)->t);
	while (l->n > 0 && r == 0)
		r = pthread_cond_timedwait(&l->cond, &l->lock, &end);
	pthread_mutex_unlock(&l->lock);
	return -r;
}

int sl_listener_run(struct sl_listener *l, int stop_fd)
{
	bool adopted = l->fd < 0;
	for (;;) {
		struct pollfd p[3] = {{.fd = stop_fd, .events = POLLIN},
				      {.fd = l->fd, .events = POLLIN},
				      {.fd = l->ended_fd, .events = POLLIN}};
		if (poll(p, 3, -1) < 0) {
			if (errno == EINTR)
				continue;
			sl_err("poll: %s", strerror(errno));
			break;
		}
		if (p[0].revents)
			break;
		if (p[2].revents) {
			uint64_t k;
			ssize_t n = read(l->ended_fd, &k, sizeof(k));
			(void)n;
			if (adopted) {
				int r = stop(l);
				return r < 0 ? r : l->result;
			}
		}
		if (p[1].revents)
			accept_one(l, stop_fd);
	}
	return stop(l);
}

void sl_listener_free(struct sl_listener *l)
{
	if (!l || stop(l) < 0)
		return;
	sl_closep(&l->ended_fd);
	free(l->address);
	free(l->path);
	pthread_cond_destroy(&l->cond);
	pthread_mutex_destroy(&l->lock);
	free(l);
}
