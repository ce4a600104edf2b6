/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * For tests of events: an exported tree, its server, and origins that listen, in one process. Included once,
 * first, by each of the programs.
 */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <sys/fanotify.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>

#include "base/fd.h"
#include "base/log.h"
#include "base/time.h"
#include "notify/backend.h"
#include "origin/origin.h"
#include "serve/serve.h"

#define CONNS	 64
#define PATIENCE (120 * SL_NS_PER_SEC)

#define must(x)                                                                                              \
	do {                                                                                                 \
		if (!(x)) {                                                                                  \
			print_error("%s:%d: %s\n", __FILE__, __LINE__, #x);                                  \
			abort();                                                                             \
		}                                                                                            \
	} while (0)

struct fx;

struct conn {
	struct fx *x;
	struct sl_transport *t;
	pthread_t thread;
};

/* What was heard, as "kind place[ newplace]", one a line. */
struct ear {
	pthread_mutex_t lock;
	pthread_cond_t cond;
	char *text;
	size_t len;
	uint64_t n, last_seq, lost;
	struct sl_origin *o;
	bool states; /* write them as well */
};

struct fx {
	char base[48], tree[64], away[64], sock[80], spec[96];
	enum sl_backend_kind kind;
	struct sl_export_config cfg;
	bool mounted;
	int dir, listen;
	struct sl_export *e;
	pthread_t acceptor;
	pthread_mutex_t lock;
	struct conn conns[CONNS];
	unsigned n;
	bool stop;
	_Atomic bool refuse;
	struct ear ear;
};

/* ---- the server ---- */

static inline void *serve(void *arg)
{
	struct conn *c = arg;
	(void)sl_serve_connection(c->x->e, c->t);
	sl_transport_shutdown(c->t);
	return NULL;
}

static inline void *accept_loop(void *arg)
{
	struct fx *x = arg;
	for (;;) {
		int fd = accept4(x->listen, NULL, NULL, SOCK_CLOEXEC);
		if (fd < 0)
			return NULL;
		pthread_mutex_lock(&x->lock);
		if (x->stop || x->refuse || x->n == CONNS) {
			close(fd);
		} else {
			struct conn *c = &x->conns[x->n++];
			c->x = x;
			must(sl_transport_new(SL_TRANSPORT_STREAM, fd, fd, &c->t) == 0);
			must(pthread_create(&c->thread, NULL, serve, c) == 0);
		}
		pthread_mutex_unlock(&x->lock);
	}
}

/* Cut all connections that there are. */
static inline void cut(struct fx *x)
{
	pthread_mutex_lock(&x->lock);
	for (unsigned i = 0; i < x->n; i++)
		sl_transport_shutdown(x->conns[i].t);
	pthread_mutex_unlock(&x->lock);
}

static inline void server_start(struct fx *x)
{
	_cleanup_free_ char *why = NULL;
	x->cfg.backend = x->kind;
	int r = sl_export_open(x->tree, &x->cfg, &x->e, &why);
	if (r < 0)
		print_error("%s\n", why);
	assert_int_equal(r, 0);
	x->stop = false;
	x->n = 0;
	x->listen = sl_unix_listen(x->sock, 0600);
	assert_true(x->listen >= 0);
	assert_int_equal(pthread_create(&x->acceptor, NULL, accept_loop, x), 0);
}

static inline void server_stop(struct fx *x)
{
	pthread_mutex_lock(&x->lock);
	x->stop = true;
	pthread_mutex_unlock(&x->lock);
	shutdown(x->listen, SHUT_RDWR);
	pthread_join(x->acceptor, NULL);
	close(x->listen);
	unlink(x->sock);
	cut(x);
	for (unsigned i = 0; i < x->n; i++) {
		pthread_join(x->conns[i].thread, NULL);
		sl_transport_free(x->conns[i].t);
	}
	sl_export_free(x->e);
}

/* ---- the client ---- */

static const struct {
	uint64_t bit;
	const char *name;
} kinds[] = {{FAN_CREATE, "create"}, {FAN_DELETE, "delete"},	{FAN_MOVED_FROM, "from"},
	     {FAN_MOVED_TO, "to"},   {FAN_RENAME, "rename"},	{FAN_MODIFY, "modify"},
	     {FAN_ATTRIB, "attrib"}, {FAN_CLOSE_WRITE, "close"}};

static inline void say(struct ear *ear, const char *fmt, ...) SL_PRINTF(2, 3);
static inline void say(struct ear *ear, const char *fmt, ...)
{
	char line[1024];
	va_list ap;
	va_start(ap, fmt);
	int n = vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	must(n > 0 && (size_t)n < sizeof(line));
	ear->text = realloc(ear->text, ear->len + (size_t)n + 1);
	must(ear->text);
	memcpy(ear->text + ear->len, line, (size_t)n + 1);
	ear->len += (size_t)n;
}

static const char *state_name(const struct sl_ostate *s)
{
	if (!s->known)
		return "?";
	if (!s->present)
		return "-";
	return S_ISDIR(s->attr.mode) ? "d" : S_ISLNK(s->attr.mode) ? "l" : S_ISREG(s->attr.mode) ? "f" : "o";
}

static inline void say_one(struct ear *ear, const struct sl_oevent *e, const char *kind)
{
	say(ear, "%s%s", kind, e->mask & FAN_ONDIR ? "/" : "");
	if (e->place)
		say(ear, " %s", *e->place ? e->place : ".");
	if (ear->states && e->place && !e->ignored)
		say(ear, "=%s", state_name(&e->state));
	if (e->newplace)
		say(ear, " %s", e->newplace);
	if (ear->states && e->newplace)
		say(ear, "=%s", state_name(&e->newstate));
	say(ear, "\n");
}

static inline void on_event(void *arg, const struct sl_oevent *e)
{
	struct ear *ear = arg;
	pthread_mutex_lock(&ear->lock);
	ear->n++;
	ear->lost += e->lost;
	if (e->seq) {
		must(e->seq > ear->last_seq);
		ear->last_seq = e->seq;
	} else {
		ear->last_seq = 0; /* another session */
	}
	bool any = false;
	for (unsigned i = 0; i < SL_ARRAY_SIZE(kinds); i++)
		if (e->mask & kinds[i].bit) {
			say_one(ear, e, kinds[i].name);
			any = true;
		}
	if (!any)
		say_one(ear, e, e->lost ? "lost" : e->ignored ? "ignored" : "state");
	pthread_cond_broadcast(&ear->cond);
	pthread_mutex_unlock(&ear->lock);
}

static inline void listen_with(struct fx *x, struct ear *ear)
{
	_cleanup_free_ char *why = NULL;
	const struct sl_origin_config cfg = {.timeout = 60, .event = on_event, .arg = ear};
	pthread_mutex_init(&ear->lock, NULL);
	pthread_cond_init(&ear->cond, NULL);
	ear->text = strdup("");
	int r = sl_origin_open(x->spec, &cfg, &ear->o, &why);
	if (r < 0)
		print_error("%s\n", why);
	assert_int_equal(r, 0);
}

static inline void deafen(struct ear *ear)
{
	sl_origin_free(ear->o);
	free(ear->text);
	pthread_mutex_destroy(&ear->lock);
	pthread_cond_destroy(&ear->cond);
	*ear = (struct ear){0};
}

/* Wait until @line was heard. */
static inline void wait_for(struct ear *ear, const char *line)
{
	uint64_t end = sl_now() + PATIENCE;
	size_t from = 0, n = strlen(line); /* up to there it is not; the text only grows meanwhile */
	pthread_mutex_lock(&ear->lock);
	for (;;) {
		char *at = strstr(ear->text + from, line);
		while (at && at != ear->text && at[-1] != '\n')
			at = strstr(at + 1, line);
		if (at)
			break;
		from = ear->len > n ? ear->len - n : 0;
		if (sl_now() > end) {
			print_error("not heard: '%s' in:\n%s", line, ear->text);
			abort();
		}
		struct timespec ts;
		clock_gettime(CLOCK_REALTIME, &ts);
		ts.tv_nsec += 100000000;
		ts.tv_sec += ts.tv_nsec / 1000000000;
		ts.tv_nsec %= 1000000000;
		pthread_cond_timedwait(&ear->cond, &ear->lock, &ts);
	}
	pthread_mutex_unlock(&ear->lock);
}

static inline void forget_heard(struct ear *ear)
{
	pthread_mutex_lock(&ear->lock);
	ear->len = 0;
	*ear->text = '\0';
	pthread_mutex_unlock(&ear->lock);
}

static inline int list_marked(struct ear *ear, const char *place, bool *marked)
{
	struct sl_oreq r = {.op = SL_OREQ_LIST, .place = place, .mark = true};
	int err = sl_origin_call(ear->o, &r);
	*marked = r.marked;
	sl_oreq_fini(&r);
	return err;
}

static inline void mark(struct ear *ear, const char *place)
{
	bool marked = false;
	assert_int_equal(list_marked(ear, place, &marked), 0);
	assert_true(marked);
}

/* ---- the tree ---- */

static inline void put(struct fx *x, const char *name, const char *text)
{
	_cleanup_close_ int fd = openat(x->dir, name, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
	assert_true(fd >= 0);
	assert_int_equal(sl_write_full(fd, text, strlen(text)), 0);
}

/* Make something that is heard last, and compare what was heard before it. */
static inline void expect(struct fx *x, struct ear *ear, const char *what)
{
	assert_int_equal(mkdirat(x->dir, "END", 0700), 0);
	wait_for(ear, "create/ END");
	assert_int_equal(unlinkat(x->dir, "END", AT_REMOVEDIR), 0);
	wait_for(ear, "delete/ END");
	pthread_mutex_lock(&ear->lock);
	char *end = strstr(ear->text, "create/ END");
	*end = '\0';
	ear->len = (size_t)(end - ear->text);
	if (strcmp(ear->text, what) != 0)
		print_error("heard:\n%sinstead of:\n%s", ear->text, what);
	assert_string_equal(ear->text, what);
	pthread_mutex_unlock(&ear->lock);
	forget_heard(ear);
}

static bool own_mounts;

static inline int setup_kind(void **state, enum sl_backend_kind kind)
{
	struct fx *x = calloc(1, sizeof(*x));
	x->kind = kind;
	x->cfg.grace = 300;
	strcpy(x->base, "/tmp/sluice-events-XXXXXX");
	assert_non_null(mkdtemp(x->base));
	/* On a filesystem of its own, so that nobody else is heard. */
	x->mounted = own_mounts && mount("tmpfs", x->base, "tmpfs", 0, "size=256m") == 0;
	snprintf(x->tree, sizeof(x->tree), "%s/tree", x->base);
	snprintf(x->away, sizeof(x->away), "%s/away", x->base);
	snprintf(x->sock, sizeof(x->sock), "%s/sock", x->base);
	snprintf(x->spec, sizeof(x->spec), "unix:%s", x->sock);
	assert_int_equal(mkdir(x->tree, 0755), 0);
	assert_int_equal(mkdir(x->away, 0755), 0);
	x->dir = open(x->tree, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	pthread_mutex_init(&x->lock, NULL);
	server_start(x);
	*state = x;
	return 0;
}

static inline int setup_fanotify(void **state)
{
	return setup_kind(state, SL_BACKEND_FANOTIFY);
}

static inline int setup_inotify(void **state)
{
	return setup_kind(state, SL_BACKEND_INOTIFY);
}

static inline int teardown(void **state)
{
	struct fx *x = *state;
	if (x->ear.o)
		deafen(&x->ear);
	server_stop(x);
	close(x->dir);
	if (x->mounted)
		umount2(x->base, MNT_DETACH);
	assert_int_equal(sl_remove_tree(AT_FDCWD, x->base), 0);
	free(x);
	return 0;
}

#define T(name, kind)                                                                                        \
	{                                                                                                    \
#name "_" #kind, test_##name, setup_##kind, teardown, NULL                                   \
	}
#define BOTH(name) T(name, fanotify), T(name, inotify)

static inline void own_mount_namespace(void)
{
	own_mounts = unshare(CLONE_NEWNS) == 0 && mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0;
}
