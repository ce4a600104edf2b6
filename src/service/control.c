/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "service/control.h"

#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include "base/fd.h"
#include "base/log.h"
#include "base/time.h"

#define REQUEST_MAX (1u << 20)

struct sl_control {
	struct sl_clone *clone;
	int listen_fd, stop_fd;
	char *path;
	pthread_t thread;
	pthread_mutex_t lock; /* active */
	pthread_cond_t cond;
	unsigned active;
};

struct conn {
	struct sl_control *k;
	int fd;
};

void sl_control_send(struct sl_command_call *c, json_t *line)
{
	/* JSON cannot hold names that are not UTF-8: commands pass names through sl_printable() first. */
	char *s = json_dumps(line, JSON_COMPACT | JSON_ENSURE_ASCII);
	json_decref(line);
	if (!s || c->gone)
		goto out;
	struct iovec iov[2] = {{s, strlen(s)}, {(char *)"\n", 1}};
	if (sl_writev_full(c->fd, iov, 2) < 0)
		c->gone = true;
out:
	free(s);
}

bool sl_control_item(struct sl_command_call *c, const char *json)
{
	struct pollfd p = {.fd = c->fd, .events = POLLRDHUP};
	struct iovec iov[3] = {
	    {(char *)"{\"item\":", 8}, {(char *)json, json ? strlen(json) : 0}, {(char *)"}\n", 2}};
	if (json && !c->gone && sl_writev_full(c->fd, iov, 3) < 0)
		c->gone = true;
	if (poll(&p, 1, 0) > 0 && p.revents)
		c->gone = true;
	return !c->gone && !c->clone->ending;
}

bool sl_control_progress(struct sl_command_call *c, uint64_t *last, json_t *what)
{
	uint64_t now = sl_now();
	if (now - *last >= 100 * SL_NS_PER_MS) {
		*last = now;
		sl_control_send(c, json_pack("{so}", "progress", what));
	} else {
		json_decref(what);
	}
	return !c->gone && !c->clone->ending;
}

static int read_line(int fd, int stop_fd, char **ret)
{
	_cleanup_free_ char *b = malloc(REQUEST_MAX + 1);
	size_t n = 0;
	while (b && n < REQUEST_MAX) {
		struct pollfd p[2] = {{.fd = fd, .events = POLLIN}, {.fd = stop_fd, .events = POLLIN}};
		if (poll(p, 2, 30000) <= 0 || p[1].revents)
			return -ETIMEDOUT;
		ssize_t k = read(fd, b + n, REQUEST_MAX - n);
		if (k <= 0)
			return -EPIPE;
		n += (size_t)k;
		if (b[n - 1] == '\n') {
			b[n] = '\0';
			*ret = sl_steal_ptr(&b);
			return 0;
		}
	}
	return -EMSGSIZE;
}

static bool allowed(int fd)
{
	struct ucred u;
	socklen_t n = sizeof(u);
	return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &u, &n) == 0 && (u.uid == 0 || u.uid == geteuid());
}

static void *conn_thread(void *arg)
{
	struct conn *c = arg;
	struct sl_control *k = c->k;
	_cleanup_free_ char *line = NULL;
	if (allowed(c->fd) && read_line(c->fd, k->stop_fd, &line) == 0) {
		struct sl_command_call call = {.clone = k->clone, .fd = c->fd};
		json_error_t e;
		call.request = json_loads(line, JSON_REJECT_DUPLICATES, &e);
		json_t *answer = json_is_object(call.request) ? sl_command_run(&call)
							      : json_pack("{sbss}", "ok", 0, "error",
									  "the request is not a JSON object");
		if (answer)
			sl_control_send(&call, answer);
		json_decref(call.request);
	}
	close(c->fd);
	free(c);
	pthread_mutex_lock(&k->lock);
	if (--k->active == 0)
		pthread_cond_broadcast(&k->cond);
	pthread_mutex_unlock(&k->lock);
	return NULL;
}

static void *accept_thread(void *arg)
{
	struct sl_control *k = arg;
	for (;;) {
		struct pollfd p[2] = {{.fd = k->listen_fd, .events = POLLIN},
				      {.fd = k->stop_fd, .events = POLLIN}};
		if (poll(p, 2, -1) < 0 && errno != EINTR)
			return NULL;
		if (p[1].revents)
			return NULL;
		int fd = accept4(k->listen_fd, NULL, NULL, SOCK_CLOEXEC);
		if (fd < 0)
			continue;
		struct conn *c = malloc(sizeof(*c));
		pthread_t t;
		pthread_mutex_lock(&k->lock);
		bool room = c && k->active < 64;
		if (room)
			k->active++;
		pthread_mutex_unlock(&k->lock);
		if (room) {
			*c = (struct conn){k, fd};
			room = pthread_create(&t, NULL, conn_thread, c) == 0;
			if (room) {
				pthread_detach(t);
				continue;
			}
			pthread_mutex_lock(&k->lock);
			k->active--;
			pthread_mutex_unlock(&k->lock);
		}
		free(c);
		close(fd);
	}
}

int sl_control_start(struct sl_clone *c, struct sl_control **ret, char **why)
{
	struct sl_control *k = calloc(1, sizeof(*k));
	if (!k)
		return -ENOMEM;
	k->clone = c;
	pthread_mutex_init(&k->lock, NULL);
	pthread_cond_init(&k->cond, NULL);
	k->path = sl_path_join(sl_store_path(c->store), "control");
	k->stop_fd = eventfd(0, EFD_CLOEXEC);
	k->listen_fd = sl_kept_get(c->keeper, SL_KEPT_CONTROL);
	if (k->listen_fd < 0)
		k->listen_fd = k->path ? sl_unix_listen(k->path, 0600) : -ENOMEM;
	if (k->listen_fd >= 0)
		sl_kept_put(c->keeper, SL_KEPT_CONTROL, k->listen_fd);
	int r = k->listen_fd < 0 ? k->listen_fd : -pthread_create(&k->thread, NULL, accept_thread, k);
	if (r < 0) {
		sl_fail(why, r, "control socket %s: %s", k->path, strerror(-r));
		if (k->listen_fd >= 0)
			close(k->listen_fd);
		close(k->stop_fd);
		free(k->path);
		free(k);
		return r;
	}
	*ret = k;
	return 0;
}

void sl_control_stop(struct sl_control *k)
{
	if (!k)
		return;
	uint64_t one = 1;
	unlink(k->path);
	(void)!write(k->stop_fd, &one, sizeof(one));
	pthread_join(k->thread, NULL);
	pthread_mutex_lock(&k->lock);
	while (k->active)
		pthread_cond_wait(&k->cond, &k->lock);
	pthread_mutex_unlock(&k->lock);
	sl_kept_put(k->clone->keeper, SL_KEPT_CONTROL, -1);
	close(k->listen_fd);
	close(k->stop_fd);
	free(k->path);
	free(k);
}
