/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Clients of an export that only listen: what the exporter and the wire take, without a clone.
 *
 *   bench-wire SOCKET hear CLIENTS COUNT
 *       each marks the directory `d`; "ready" when all have. When each has been told of COUNT changes: the
 *       seconds from the first until then, and how often changes were lost
 *   bench-wire SOCKET marks COUNT
 *       looks up so many directories d0/0, d0/1 … d0/999, d1/0 …; "ready"; after a line of input it marks
 *       them; the seconds that took
 *
 * Both end with their input, so that the exporter can be looked at.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fanotify.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/time.h"
#include "notify/backend.h"
#include "wire/client.h"
#include "wire/fsnotify.h"

#define MASK	  (SL_CHANGE_MASK | FAN_ONDIR | FAN_EVENT_ON_CHILD)
#define ACK_EVERY 512

struct ear {
	struct sl_client *c;
	uint64_t heard, lost;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* protects the rest */
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
static uint64_t wanted, first, last;
static unsigned done;

static void die(const char *what, int err)
{
	fprintf(stderr, "%s: %s\n", what, strerror(-err));
	exit(1);
}

static void free_call(struct sl_call *call, struct sl_result *r)
{
	(void)r;
	free(call);
}

static void ack(struct ear *e, uint64_t seq)
{
	struct sl_call *call = calloc(1, sizeof(*call));
	if (!call)
		return;
	*call = (struct sl_call){.opcode = FUSE_FSNOTIFY, .done = free_call};
	call->in.fsnotify = (struct fuse_fsnotify_in){.mask = seq + 1, .flags = SL_FSNOTIFY_ACK};
	sl_client_call(e->c, call);
}

static int notified(void *arg, int code, const void *data, size_t len)
{
	struct ear *e = arg;
	struct sl_fsnotify_msg m;
	if (code != FUSE_NOTIFY_FSNOTIFY)
		return 0;
	int r = sl_fsnotify_parse(data, len, &m);
	if (r < 0)
		return r;
	e->lost += m.overflow;
	if (!m.mask)
		return 0;
	uint64_t now = sl_now();
	if (e->heard++ == 0 || e->heard == wanted) {
		pthread_mutex_lock(&lock);
		first = first ? first : now;
		last = now;
		done += e->heard == wanted;
		pthread_cond_signal(&cond);
		pthread_mutex_unlock(&lock);
	}
	if (m.seq % ACK_EVERY == 0)
		ack(e, m.seq);
	return 0;
}

static void connect_to(const char *path, struct ear *e)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	struct sl_transport *t;
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	snprintf(a.sun_path, sizeof(a.sun_path), "%s", path);
	if (fd < 0 || connect(fd, (struct sockaddr *)&a, sizeof(a)) < 0)
		die(path, -errno);
	int r = sl_transport_new(SL_TRANSPORT_STREAM, fd, fd, &t);
	const struct sl_client_config cfg = {.want_flags = FUSE_FSNOTIFY_SUPPORT | SL_FUSE_EVENT_STATE,
					     .init_timeout_ms = 60000,
					     .notify = notified,
					     .arg = e};
	if (r == 0)
		r = sl_client_new(t, &cfg, &e->c);
	if (r < 0)
		die("client", r);
}

static uint64_t lookup(struct ear *e, uint64_t dir, const char *name)
{
	struct sl_call call = {.opcode = FUSE_LOOKUP, .nodeid = dir, .name = name};
	struct sl_msg_out m;
	void *buf = NULL;
	int r = sl_client_call_sync(e->c, &call, &m, &buf);
	if (r < 0)
		die(name, r);
	uint64_t id = m.out.entry.nodeid;
	free(buf);
	return id;
}

static void mark(struct ear *e, uint64_t id)
{
	struct sl_call call = {.opcode = FUSE_FSNOTIFY, .nodeid = id, .in.fsnotify.mask = MASK};
	int r = sl_client_call_sync(e->c, &call, NULL, NULL);
	if (r < 0)
		die("mark", r);
}

static int hear(const char *path, unsigned n, uint64_t count)
{
	struct ear *v = calloc(n, sizeof(*v));
	uint64_t lost = 0;
	if (!v)
		return 1;
	wanted = count;
	for (unsigned i = 0; i < n; i++) {
		connect_to(path, &v[i]);
		mark(&v[i], lookup(&v[i], FUSE_ROOT_ID, "d"));
	}
	puts("ready");
	fflush(stdout);
	pthread_mutex_lock(&lock);
	while (done < n)
		pthread_cond_wait(&cond, &lock);
	pthread_mutex_unlock(&lock);
	for (unsigned i = 0; i < n; i++)
		lost += v[i].lost;
	printf("%.6f %llu\n", (double)(last - first) / SL_NS_PER_SEC, (unsigned long long)lost);
	fflush(stdout);
	getchar(); /* the exporter is looked at meanwhile */
	for (unsigned i = 0; i < n; i++)
		sl_client_free(v[i].c);
	free(v);
	return 0;
}

static int marks(const char *path, unsigned n)
{
	struct ear e = {0};
	char name[32];
	uint64_t up = 0, *id = calloc(n, sizeof(*id));
	if (!id)
		return 1;
	connect_to(path, &e);
	for (unsigned i = 0; i < n; i++) {
		snprintf(name, sizeof(name), "d%u", i / 1000);
		if (i % 1000 == 0)
			up = lookup(&e, FUSE_ROOT_ID, name);
		snprintf(name, sizeof(name), "%u", i % 1000);
		id[i] = lookup(&e, up, name);
	}
	puts("ready");
	fflush(stdout);
	getchar();
	uint64_t begin = sl_now();
	for (unsigned i = 0; i < n; i++)
		mark(&e, id[i]);
	printf("%.6f\n", (double)(sl_now() - begin) / SL_NS_PER_SEC);
	fflush(stdout);
	while (getchar() != EOF)
		;
	sl_client_free(e.c);
	free(id);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 5 && !strcmp(argv[2], "hear"))
		return hear(argv[1], (unsigned)atoi(argv[3]), strtoull(argv[4], NULL, 10));
	if (argc == 4 && !strcmp(argv[2], "marks"))
		return marks(argv[1], (unsigned)atoi(argv[3]));
	fprintf(stderr, "usage: bench-wire SOCKET hear CLIENTS COUNT | marks COUNT\n");
	return 2;
}
