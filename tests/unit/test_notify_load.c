/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The backends for changes of a local tree when much happens at once. If this fails, changes at an origin are
 * lost or come in the wrong order. (suite: threads)
 */
#include "notify_fixture.h"

/* In the order in which they were made, and all of them, also when they come faster than they are taken. */
static void test_order(void **state)
{
	BEGIN(f, state);
	watch_dir(f, "");
	unsigned d[2] = {make_dir(f, "d"), make_dir(f, "e")};
	settle(f);
	clear(f);
	unsigned made[2] = {0}, heard[2] = {0};
	const unsigned rounds = 6, each = QUEUE / 4;
	for (unsigned r = 0; r < rounds; r++) {
		if (r % 2)
			hold(f);
		for (unsigned i = 0; i < each; i++) {
			char name[32];
			int k = (i * 2654435761u >> 13) & 1;
			snprintf(name, sizeof(name), "%c/%u", k ? 'e' : 'd', made[k]++);
			ok(mkdirat(f->root, name, 0755));
		}
		let_go(f);
		settle(f);
	}
	for (size_t i = 0; i < f->n; i++) {
		assert_true(f->v[i].mask != FAN_Q_OVERFLOW);
		for (int k = 0; k < 2; k++)
			if (same(&f->v[i].dir, &f->ids[d[k]])) {
				assert_int_equal(f->v[i].mask, FAN_CREATE | FAN_ONDIR);
				assert_int_equal(strtoul(f->v[i].name, NULL, 10), heard[k]);
				heard[k]++;
			}
	}
	assert_int_equal(heard[0], made[0]);
	assert_int_equal(heard[1], made[1]);
	assert_true(f->largest > 100); /* some were read together */
}

static void test_overflow(void **state)
{
	BEGIN(f, state);
	watch_dir(f, "");
	unsigned d = make_dir(f, "d");
	settle(f);
	hold(f);
	size_t max = QUEUE;
	_cleanup_free_ char *text = NULL;
	if (sl_read_file(AT_FDCWD,
			 f->kind == SL_BACKEND_FANOTIFY ? "/proc/sys/fs/fanotify/max_queued_events"
							: "/proc/sys/fs/inotify/max_queued_events",
			 64, &text, NULL) == 0)
		max = strtoul(text, NULL, 10);
	if (max > 100000)
		skip();
	/* Of different names: nothing can be merged. */
	for (size_t i = 0; i < max + 100; i++) {
		char name[32];
		snprintf(name, sizeof(name), "d/%zu", i);
		ok(mkdirat(f->root, name, 0755));
	}
	let_go(f);
	settle(f);
	size_t overflows = 0, after = 0, n = 0;
	for (size_t i = 0; i < f->n; i++) {
		if (f->v[i].mask == FAN_Q_OVERFLOW) {
			overflows++;
		} else if (same(&f->v[i].dir, &f->ids[d])) {
			assert_int_equal(strtoul(f->v[i].name, NULL, 10), n);
			n++;
			after += overflows;
		}
	}
	assert_int_equal(overflows, 1);
	assert_int_equal(after, 0);
	assert_true(n > max / 2 && n < max + 100);
	struct sl_backend_stats st;
	sl_backend_get_stats(f->b, &st);
	assert_int_equal(st.overflows, 1);
	assert_true(st.changes >= n);
	clear(f);
	ok(mkdirat(f->root, "d/later", 0755));
	expect(f, "create,dir d/later");
}

struct maker {
	struct fix *f;
	const char *dir;
	atomic_uint next; /* the number of the next name */
	atomic_bool stop;
	pthread_t thread;
	uint32_t tid;
};

static void *make_names(void *arg)
{
	struct maker *m = arg;
	m->tid = (uint32_t)gettid();
	while (!atomic_load(&m->stop)) {
		char name[64];
		unsigned n = atomic_load(&m->next);
		snprintf(name, sizeof(name), "%s/%u", m->dir, n);
		atomic_store(&m->next, n + 1);
		if (mkdirat(m->f->root, name, 0755) < 0 || unlinkat(m->f->root, name, AT_REMOVEDIR) < 0)
			abort();
	}
	return NULL;
}

/* Forget what was heard of others than @d, and of @d below the number @from. */
static unsigned count_from(struct fix *f, unsigned d, unsigned from, unsigned to)
{
	unsigned n = from;
	pthread_mutex_lock(&f->lock);
	for (size_t i = 0; i < f->n; i++) {
		assert_true(f->v[i].mask != FAN_Q_OVERFLOW);
		if (!same(&f->v[i].dir, &f->ids[d]) || !(f->v[i].mask & FAN_CREATE))
			continue;
		unsigned k = (unsigned)strtoul(f->v[i].name, NULL, 10);
		if (k < from || k >= to)
			continue;
		assert_int_equal(k, n);
		n++;
	}
	pthread_mutex_unlock(&f->lock);
	return n;
}

/* A directory is changed as fast as it goes while it is marked: from the mark's return on nothing is missing.
 */
static void test_mark_race(void **state)
{
	BEGIN(f, state);
	for (int i = 0; i < 60; i++) {
		char dir[16];
		snprintf(dir, sizeof(dir), "m%d", i);
		ok(mkdirat(f->root, dir, 0755));
		struct maker m = {.f = f, .dir = dir};
		assert_int_equal(pthread_create(&m.thread, NULL, make_names, &m), 0);
		while (atomic_load(&m.next) < 5)
			sched_yield();
		unsigned d = watch_dir(f, dir);
		unsigned from = atomic_load(&m.next); /* made later than this line was reached */
		while (atomic_load(&m.next) < from + 20)
			sched_yield();
		unsigned to = atomic_load(&m.next) - 1; /* made before */
		settle(f);
		atomic_store(&m.stop, true);
		pthread_join(m.thread, NULL);
		assert_int_equal(count_from(f, d, from, to), to);
		settle(f);
		clear(f);
	}
}

/* Settling ends while others never stop, and what was made before it has been heard of. */
static void test_settle(void **state)
{
	BEGIN(f, state);
	make_dir(f, "noise");
	unsigned d = make_dir(f, "d");
	struct maker m = {.f = f, .dir = "noise"};
	assert_int_equal(pthread_create(&m.thread, NULL, make_names, &m), 0);
	for (unsigned i = 0; i < 300; i++) {
		char name[32];
		snprintf(name, sizeof(name), "d/%u", i);
		ok(mkdirat(f->root, name, 0755));
		settle(f);
		assert_int_equal(count_from(f, d, i, i + 1), i + 1);
		clear(f);
	}
	atomic_store(&m.stop, true);
	pthread_join(m.thread, NULL);
}

static void test_actors(void **state)
{
	BEGIN(f, state);
	unsigned d = make_dir(f, "d"), e = make_dir(f, "e");
	struct maker m[2] = {{.f = f, .dir = "d"}, {.f = f, .dir = "e"}};
	for (int i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&m[i].thread, NULL, make_names, &m[i]), 0);
	for (int i = 0; i < 2; i++) {
		while (atomic_load(&m[i].next) < 50)
			sched_yield();
		atomic_store(&m[i].stop, true);
		pthread_join(m[i].thread, NULL);
	}
	settle(f);
	unsigned n[2] = {0};
	for (size_t i = 0; i < f->n; i++)
		for (int k = 0; k < 2; k++)
			if (same(&f->v[i].dir, &f->ids[k ? e : d])) {
				n[k]++;
				assert_int_equal(f->v[i].tid, f->kind == SL_BACKEND_FANOTIFY ? m[k].tid : 0);
			}
	assert_true(n[0] >= 50 && n[1] >= 50);
}

static void test_idle(void **state)
{
	BEGIN(f, state);
	watch_dir(f, "");
	hold(f);
	for (unsigned i = 0; i < 10000; i++) {
		char name[32];
		snprintf(name, sizeof(name), "%u", i);
		ok(mkdirat(f->root, name, 0755));
	}
	unsigned idle = f->idle_calls, calls = f->calls;
	let_go(f);
	settle(f);
	/* That the queue was empty may be told after all that was in it. */
	pthread_mutex_lock(&f->lock);
	while (!f->last_idle)
		pthread_cond_wait(&f->cond, &f->lock);
	assert_true(f->calls > calls + 1);
	assert_true(f->idle_calls > idle);
	assert_true(f->idle_calls - idle < f->calls - calls);
	pthread_mutex_unlock(&f->lock);
}

/* Ending while changes come, and while somebody settles. */
static void test_close(void **state)
{
	struct fix *f = *state;
	ok(mkdirat(f->root, "d", 0755));
	struct maker m = {.f = f, .dir = "d"};
	assert_int_equal(pthread_create(&m.thread, NULL, make_names, &m), 0);
	for (int i = 0; i < 20 && !f->skip; i++) {
		start(f, 0, 0);
		if (f->skip)
			break;
		watch_dir(f, "d");
		unsigned n = atomic_load(&m.next);
		while (atomic_load(&m.next) < n + 10)
			sched_yield();
		sl_backend_close(f->b);
		f->b = NULL;
		clear(f);
	}
	atomic_store(&m.stop, true);
	pthread_join(m.thread, NULL);
	if (f->skip)
		skip();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    BOTH(order), BOTH(overflow), BOTH(mark_race), BOTH(settle), BOTH(actors), BOTH(idle), BOTH(close),
	};
	return run_notify_tests(tests);
}
