/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * From a change of an exported tree to the event at the origin, server and client in one process: kinds,
 * places, states, their order, and what nobody may hear of. If this fails, clones show what is not there any
 * more, or watchers miss changes. suite: threads
 */
#include "events_fixture.h"

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

static void *write_one(void *fd)
{
	return (void *)(intptr_t)sl_write_full((int)(intptr_t)fd, "x", 1);
}

/* What one thread does to a name may be merged, with what another does in between behind it: a file is closed
 * after it was written to. */
static void test_merged_order(void **state)
{
	struct fx *x = *state;
	struct ear *ear = &x->ear;
	start(x, ear);
	pause_here(x, ear);
	for (int i = 0; i < 500; i++) {
		pthread_t t;
		char name[16], heard[96];
		snprintf(name, sizeof(name), "d/f%d", i);
		int fd = openat(x->dir, name, O_CREAT | O_WRONLY | O_CLOEXEC, 0644);
		assert_true(fd >= 0);
		assert_int_equal(pthread_create(&t, NULL, write_one, (void *)(intptr_t)fd), 0);
		assert_int_equal(pthread_join(t, NULL), 0);
		close(fd);
		snprintf(heard, sizeof(heard), "create %s\nmodify %s\nclose %s\n", name, name, name);
		expect(x, ear, heard);
	}
}

/* What is at the name comes with it, and what a symlink points to. */
static void test_states(void **state)
{
	struct fx *x = *state;
	struct ear *ear = &x->ear;
	start(x, ear);
	pause_here(x, ear);
	pthread_mutex_lock(&ear->lock);
	ear->states = true;
	pthread_mutex_unlock(&ear->lock);
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
	/* One whose parent is not marked. */
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
	pthread_mutex_lock(&ear->lock);
	assert_int_equal(ear->lost, 0);
	pthread_mutex_unlock(&ear->lock);
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
	pthread_mutex_lock(&ear->lock);
	assert_null(strstr(ear->text, "unheard"));
	pthread_mutex_unlock(&ear->lock);
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

int main(void)
{
	own_mount_namespace();
	const struct CMUnitTest tests[] = {
	    BOTH(kinds),   BOTH(merged_order), BOTH(states), BOTH(moved_directories), BOTH(out_of_reach),
	    BOTH(ignored), BOTH(clients),      BOTH(resume), BOTH(lost_session)};
	return cmocka_run_group_tests_name("events", tests, NULL, NULL);
}
