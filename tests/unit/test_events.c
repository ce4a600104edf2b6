/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * From a change of an exported tree to the event at the origin, server and client in one process: kinds,
 * places, states, their order, and what nobody may hear of. If this fails, clones show what is not there any
 * more, or watchers miss changes. suite: threads
 */
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
	bool stop, refuse;
	struct ear ear;
};

/* ---- the server ---- */

static void *serve(void *arg)
{
	struct conn *c = arg;
	(void)sl_serve_connection(c->x->e, c->t);
	sl_transport_shutdown(c->t);
	return NULL;
}

static void *accept_loop(void *arg)
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
static void cut(struct fx *x)
{
	pthread_mutex_lock(&x->lock);
	for (unsigned i = 0; i < x->n; i++)
		sl_transport_shutdown(x->conns[i].t);
	pthread_mutex_unlock(&x->lock);
}

static void server_start(struct fx *x)
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

static void server_stop(struct fx *x)
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

static void say(struct ear *ear, const char *fmt, ...) SL_PRINTF(2, 3);
static void say(struct ear *ear, const char *fmt, ...)
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

static void say_one(struct ear *ear, const struct sl_oevent *e, const char *kind)
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

static void on_event(void *arg, const struct sl_oevent *e)
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

static void listen_with(struct fx *x, struct ear *ear)
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

static void deafen(struct ear *ear)
{
	sl_origin_free(ear->o);
	free(ear->text);
	pthread_mutex_destroy(&ear->lock);
	pthread_cond_destroy(&ear->cond);
	*ear = (struct ear){0};
}

/* Wait until @line was heard. */
static void wait_for(struct ear *ear, const char *line)
{
	uint64_t end = sl_now() + PATIENCE;
	pthread_mutex_lock(&ear->lock);
	for (;;) {
		char *at = strstr(ear->text, line);
		if (at && (at == ear->text || at[-1] == '\n'))
			break;
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

static void forget_heard(struct ear *ear)
{
	pthread_mutex_lock(&ear->lock);
	ear->len = 0;
	*ear->text = '\0';
	pthread_mutex_unlock(&ear->lock);
}

static int list_marked(struct ear *ear, const char *place, bool *marked)
{
	struct sl_oreq r = {.op = SL_OREQ_LIST, .place = place, .mark = true};
	int err = sl_origin_call(ear->o, &r);
	*marked = r.marked;
	sl_oreq_fini(&r);
	return err;
}

static void mark(struct ear *ear, const char *place)
{
	bool marked = false;
	assert_int_equal(list_marked(ear, place, &marked), 0);
	assert_true(marked);
}

/* ---- the tree ---- */

static void put(struct fx *x, const char *name, const char *text)
{
	_cleanup_close_ int fd = openat(x->dir, name, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
	assert_true(fd >= 0);
	assert_int_equal(sl_write_full(fd, text, strlen(text)), 0);
}

/* Make something that is heard last, and compare what was heard before it. */
static void expect(struct fx *x, struct ear *ear, const char *what)
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

static int setup_kind(void **state, enum sl_backend_kind kind)
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

static int setup_fanotify(void **state)
{
	return setup_kind(state, SL_BACKEND_FANOTIFY);
}

static int setup_inotify(void **state)
{
	return setup_kind(state, SL_BACKEND_INOTIFY);
}

static int teardown(void **state)
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

/* ---- tests ---- */

/* Everything that was done is heard by now: so that nothing is merged with what comes. */
static void pause_here(struct fx *x, struct ear *ear)
{
	expect(x, ear, "");
}

static void start(struct fx *x, struct ear *ear)
{
	assert_int_equal(mkdirat(x->dir, "d", 0755), 0);
	assert_int_equal(mkdirat(x->dir, "d/in", 0755), 0);
	assert_int_equal(mkdirat(x->dir, "e", 0755), 0);
	assert_int_equal(mkdirat(x->dir, "not", 0755), 0);
	put(x, "d/in/f", "x");
	listen_with(x, ear);
	mark(ear, "");
	mark(ear, "d");
	mark(ear, "d/in");
	mark(ear, "e");
}

#define STEP(x, ear, call, heard)                                                                            \
	do {                                                                                                 \
		assert_int_equal(call, 0);                                                                   \
		expect(x, ear, heard);                                                                       \
	} while (0)

static int append(struct fx *x, const char *name)
{
	_cleanup_close_ int fd = openat(x->dir, name, O_WRONLY | O_APPEND | O_CLOEXEC);
	return fd < 0 ? fd : sl_write_full(fd, "y", 1);
}

/* Each kind, where one thing is done at a time. */
static void test_kinds(void **state)
{
	struct fx *x = *state;
	struct ear *ear = &x->ear;
	char away[96];
	snprintf(away, sizeof(away), "%s/x", x->away);
	start(x, ear);
	pause_here(x, ear);
	put(x, "f", "x");
	expect(x, ear, "create f\nmodify f\nclose f\n");
	STEP(x, ear, append(x, "f"), "modify f\nclose f\n");
	STEP(x, ear, fchmodat(x->dir, "f", 0600, 0), "attrib f\n");
	STEP(x, ear, mkdirat(x->dir, "d/new", 0755), "create/ d/new\n");
	STEP(x, ear, fchmodat(x->dir, "d/new", 0700, 0), "attrib/ d/new\n");
	STEP(x, ear, symlinkat("to", x->dir, "e/l"), "create e/l\n");
	STEP(x, ear, mknodat(x->dir, "e/p", S_IFIFO | 0600, 0), "create e/p\n");
	STEP(x, ear, linkat(x->dir, "f", x->dir, "e/h", 0), "create e/h\n");
	STEP(x, ear, renameat(x->dir, "f", x->dir, "g"), "rename f g\n");
	STEP(x, ear, renameat(x->dir, "g", x->dir, "d/g"), "rename g d/g\n");
	STEP(x, ear, renameat(x->dir, "e/p", x->dir, "e/l"), "rename e/p e/l\n");
	STEP(x, ear, renameat(x->dir, "d/g", x->dir, "not/g"), "from d/g\n");
	STEP(x, ear, renameat(x->dir, "not/g", x->dir, "e/g"), "to e/g\n");
	STEP(x, ear, renameat(x->dir, "e/g", AT_FDCWD, away), "from e/g\n");
	STEP(x, ear, renameat(AT_FDCWD, away, x->dir, "g"), "to g\n");
	STEP(x, ear, unlinkat(x->dir, "g", 0), "delete g\n");
	STEP(x, ear, unlinkat(x->dir, "d/new", AT_REMOVEDIR), "delete/ d/new\n");
	STEP(x, ear, fchmod(x->dir, 0700), "attrib/ .\n");
	put(x, "not/unheard", "x");
	pause_here(x, ear);
}

/* What is at the name comes with it, and what a symlink points to. */
static void test_states(void **state)
{
	struct fx *x = *state;
	struct ear *ear = &x->ear;
	start(x, ear);
	pause_here(x, ear);
	ear->states = true;
	assert_int_equal(mkdirat(x->dir, "d/new", 0755), 0);
	wait_for(ear, "create/ d/new=d\n");
	assert_int_equal(symlinkat("to", x->dir, "e/l"), 0);
	wait_for(ear, "create e/l=l\n");
	assert_int_equal(renameat(x->dir, "e/l", x->dir, "d/l"), 0);
	wait_for(ear, "rename e/l=- d/l=l\n");
	assert_int_equal(unlinkat(x->dir, "d/l", 0), 0);
	wait_for(ear, "delete d/l=-\n");
}

/* A directory that is renamed takes everything below it with it: what happens there is told under its new
 * place. */
static void test_moved_directories(void **state)
{
	struct fx *x = *state;
	struct ear *ear = &x->ear;
	start(x, ear);
	pause_here(x, ear);
	STEP(x, ear, renameat(x->dir, "d", x->dir, "e/d2"), "rename/ d e/d2\n");
	put(x, "e/d2/in/g", "x");
	expect(x, ear, "create e/d2/in/g\nmodify e/d2/in/g\nclose e/d2/in/g\n");
	/* Another one in its place is not the same. */
	assert_int_equal(mkdirat(x->dir, "d", 0755), 0);
	assert_int_equal(mkdirat(x->dir, "d/in", 0755), 0);
	expect(x, ear, "create/ d\n");
	mark(ear, "d");
	mark(ear, "d/in");
	pause_here(x, ear);
	STEP(x, ear, unlinkat(x->dir, "e/d2/in/g", 0), "delete e/d2/in/g\n");
	put(x, "d/in/f", "x");
	expect(x, ear, "create d/in/f\nmodify d/in/f\nclose d/in/f\n");
	/* Back at once, several levels at a time. */
	STEP(x, ear, renameat(x->dir, "e/d2/in", x->dir, "in"), "rename/ e/d2/in in\n");
	STEP(x, ear, append(x, "in/f"), "modify in/f\nclose in/f\n");
}

/* What leaves what is marked is not told of any more; when it is looked up again it can be marked again. */
static void test_out_of_reach(void **state)
{
	struct fx *x = *state;
	struct ear *ear = &x->ear;
	char away[96];
	snprintf(away, sizeof(away), "%s/x", x->away);
	start(x, ear);
	pause_here(x, ear);
	STEP(x, ear, renameat(x->dir, "d", x->dir, "not/d"), "from/ d\n");
	STEP(x, ear, append(x, "not/d/in/f"), "");
	STEP(x, ear, renameat(x->dir, "not/d", AT_FDCWD, away), "");
	STEP(x, ear, renameat(AT_FDCWD, away, x->dir, "d3"), "to/ d3\n");
	STEP(x, ear, append(x, "d3/in/f"), "");
	mark(ear, "d3");
	mark(ear, "d3/in");
	STEP(x, ear, append(x, "d3/in/f"), "modify d3/in/f\nclose d3/in/f\n");
}

/* The mark of a directory that is deleted is gone: the client is told so where nothing else told it. */
static void test_ignored(void **state)
{
	struct fx *x = *state;
	struct ear *ear = &x->ear;
	start(x, ear);
	pause_here(x, ear);
	STEP(x, ear, unlinkat(x->dir, "e", AT_REMOVEDIR), "delete/ e\n");
	assert_int_equal(mkdirat(x->dir, "e", 0755), 0);
	put(x, "e/f", "x");
	expect(x, ear, "create/ e\n");
	mark(ear, "e");
	STEP(x, ear, append(x, "e/f"), "modify e/f\nclose e/f\n");
	/* One that another one is renamed over. */
	assert_int_equal(unlinkat(x->dir, "e/f", 0), 0);
	expect(x, ear, "delete e/f\n");
	STEP(x, ear, renameat(x->dir, "d", x->dir, "e"), "rename/ d e\n");
	STEP(x, ear, append(x, "e/in/f"), "modify e/in/f\nclose e/in/f\n");
	/* One whose parent is not marked; inotify does not tell. */
	if (x->kind == SL_BACKEND_INOTIFY)
		return;
	assert_int_equal(mkdirat(x->dir, "not/m", 0755), 0);
	mark(ear, "not/m");
	assert_int_equal(unlinkat(x->dir, "not/m", AT_REMOVEDIR), 0);
	wait_for(ear, "ignored not/m\n");
}

/* Two clients hear the same, each in its own terms; one that marked nothing hears nothing. */
static void test_clients(void **state)
{
	struct fx *x = *state;
	struct ear *ear = &x->ear, other = {0}, third = {0};
	start(x, ear);
	listen_with(x, &other);
	listen_with(x, &third);
	mark(&other, "");
	mark(&other, "e");
	pause_here(x, ear);
	put(x, "d/f", "x");
	put(x, "e/f", "x");
	wait_for(ear, "close d/f\n");
	wait_for(ear, "close e/f\n");
	wait_for(&other, "close e/f\n");
	assert_null(strstr(other.text, "d/f"));
	assert_int_equal(third.n, 0);
	/* When one of them has gone the other goes on. */
	deafen(&other);
	deafen(&third);
	forget_heard(ear);
	STEP(x, ear, append(x, "d/f"), "modify d/f\nclose d/f\n");
}

/* ---- sessions ---- */

static void make_files(struct fx *x, const char *dir, unsigned from, unsigned to)
{
	char name[64];
	for (unsigned i = from; i < to; i++) {
		snprintf(name, sizeof(name), "%s/%06u", dir, i);
		assert_int_equal(mknodat(x->dir, name, S_IFREG | 0600, 0), 0);
	}
}

static unsigned count(const char *text, const char *what)
{
	unsigned n = 0;
	for (const char *p = text; (p = strstr(p, what)); p++)
		n++;
	return n;
}

/* Each of the files, once, in order. */
static void heard_all(struct ear *ear, const char *dir, unsigned to)
{
	char line[80];
	snprintf(line, sizeof(line), "create %s/%06u\n", dir, to - 1);
	wait_for(ear, line);
	pthread_mutex_lock(&ear->lock);
	const char *p = ear->text;
	for (unsigned i = 0; i < to; i++) {
		snprintf(line, sizeof(line), "create %s/%06u\n", dir, i);
		p = strstr(p, line);
		if (!p)
			print_error("not heard in its place: %s", line);
		assert_non_null(p);
	}
	snprintf(line, sizeof(line), "create %s/", dir);
	assert_int_equal(count(ear->text, line), to);
	assert_int_equal(ear->lost, 0);
	pthread_mutex_unlock(&ear->lock);
}

/* A connection that breaks loses nothing and tells nothing twice, and nobody has to ask for the next one. */
static void test_resume(void **state)
{
	struct fx *x = *state;
	struct ear *ear = &x->ear;
	start(x, ear);
	unsigned at = 0;
	for (int i = 0; i < 20; i++) {
		make_files(x, "e", at, at + 50);
		cut(x);
		make_files(x, "e", at + 50, at + 100);
		at += 100;
		if (i % 4 == 0) { /* all is here, and the next cut finds it quiet */
			char line[64];
			snprintf(line, sizeof(line), "create e/%06u\n", at - 1);
			wait_for(ear, line);
		}
	}
	heard_all(ear, "e", at);
	/* Marks and places are as they were. */
	assert_int_equal(renameat(x->dir, "d/in", x->dir, "e/in"), 0);
	put(x, "e/in/new", "x");
	wait_for(ear, "rename/ d/in e/in\n");
	wait_for(ear, "create e/in/new\n");
	assert_int_equal(ear->lost, 0);
}

/* After the grace time, and from another server, the client is told that it does not know. */
static void test_lost_session(void **state)
{
	struct fx *x = *state;
	struct ear *ear = &x->ear;
	x->cfg.grace = 1;
	server_stop(x);
	server_start(x);
	start(x, ear);
	x->refuse = true;
	cut(x);
	uint64_t end = sl_now() + SL_NS_PER_SEC * 3 / 2; /* the grace time, and some more */
	while (sl_now() < end)
		sched_yield();
	put(x, "d/unheard", "x");
	x->refuse = false;
	wait_for(ear, "lost\n");
	assert_null(strstr(ear->text, "unheard"));
	mark(ear, "d");
	put(x, "d/heard", "x");
	wait_for(ear, "close d/heard\n");
	forget_heard(ear);
	server_stop(x);
	server_start(x);
	wait_for(ear, "lost\n");
	mark(ear, "d");
	put(x, "d/again", "x");
	wait_for(ear, "close d/again\n");
}

#define T(name, kind)                                                                                        \
	{                                                                                                    \
#name "_" #kind, test_##name, setup_##kind, teardown, NULL                                   \
	}
#define BOTH(name) T(name, fanotify), T(name, inotify)

int main(void)
{
	own_mounts = unshare(CLONE_NEWNS) == 0 && mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0;
	const struct CMUnitTest tests[] = {BOTH(kinds),	       BOTH(states),	  BOTH(moved_directories),
					   BOTH(out_of_reach), BOTH(ignored),	  BOTH(clients),
					   BOTH(resume),       BOTH(lost_session)};
	return cmocka_run_group_tests_name("events", tests, NULL, NULL);
}
