/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The backends for changes of a local tree when much happens at once. If this fails, changes at an origin are
 * lost or come in the wrong order. (suite: threads)
 */
#include "notify_fixture.h"

#include "queue_size.h"
#include "notify/internal.h"

/* Called once, when something was read from a queue. */
static void (*_Atomic read_hook)(void);

ssize_t read(int fd, void *buf, size_t n)
{
	ssize_t r = syscall(SYS_read, fd, buf, n);
	void (*hook)(void) = r > 0 ? atomic_exchange(&read_hook, NULL) : NULL;
	if (hook)
		hook();
	return r;
}

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

/* While the listener is stuck more is kept than the kernel's queue could hold. */
static void test_relief(void **state)
{
	BEGIN(f, state);
	watch_dir(f, "");
	unsigned d = make_dir(f, "d"), made = 0;
	settle(f);
	hold(f);
	for (; made < 3000; made++) {
		char name[32];
		snprintf(name, sizeof(name), "d/%u", made);
		ok(mkdirat(f->root, name, 0755));
	}
	/* Stuck again, at the first large read. */
	pthread_mutex_lock(&f->lock);
	unsigned calls = f->in_callback;
	f->pass = true;
	pthread_cond_broadcast(&f->cond);
	while (f->in_callback == calls)
		pthread_cond_wait(&f->cond, &f->lock);
	pthread_mutex_unlock(&f->lock);
	struct sl_backend_stats st;
	for (; made < 2 * QUEUE; made++) {
		char name[32];
		snprintf(name, sizeof(name), "d/%u", made);
		ok(mkdirat(f->root, name, 0755));
		/* Not faster than it is read, each event being 24 bytes or more. */
		uint64_t end = sl_now() + 120 * SL_NS_PER_SEC;
		do {
			sl_backend_get_stats(f->b, &st);
			assert_true(sl_now() < end);
		} while (st.waiting + (QUEUE / 4) * 24 < (made - 3000) * 24);
	}
	let_go(f);
	settle(f);
	unsigned n = 0;
	for (size_t i = 0; i < f->n; i++) {
		assert_true(f->v[i].mask != FAN_Q_OVERFLOW);
		if (same(&f->v[i].dir, &f->ids[d]))
			assert_int_equal(strtoul(f->v[i].name, NULL, 10), n++);
	}
	assert_int_equal(n, made);
	sl_backend_get_stats(f->b, &st);
	assert_int_equal(st.waiting, 0);
}

#define AT_A_TIME 3000

struct maker {
	struct fix *f;
	const char *dir;
	atomic_uint next;  /* the number of the next name */
	atomic_uint limit; /* it goes no further, so that the kernel's queue does not overflow */
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
		if (n >= atomic_load(&m->limit)) {
			sched_yield();
			continue;
		}
		snprintf(name, sizeof(name), "%s/%u", m->dir, n);
		atomic_store(&m->next, n + 1);
		if (mkdirat(m->f->root, name, 0755) < 0 || unlinkat(m->f->root, name, AT_REMOVEDIR) < 0)
			abort();
	}
	return NULL;
}

/* How far the names made in @d are known without a gap, from the number @from up to @to. */
static unsigned count_from(struct fix *f, unsigned d, unsigned from, unsigned to)
{
	unsigned n = from;
	bool bad = false;
	pthread_mutex_lock(&f->lock);
	for (size_t i = 0; i < f->n; i++) {
		bad |= f->v[i].mask == FAN_Q_OVERFLOW;
		if (!same(&f->v[i].dir, &f->ids[d]) || !(f->v[i].mask & FAN_CREATE))
			continue;
		unsigned k = (unsigned)strtoul(f->v[i].name, NULL, 10);
		if (k < from || k >= to)
			continue;
		bad |= k != n;
		n++;
	}
	pthread_mutex_unlock(&f->lock);
	assert_false(bad);
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
		struct maker m = {.f = f, .dir = dir, .limit = AT_A_TIME};
		assert_int_equal(pthread_create(&m.thread, NULL, make_names, &m), 0);
		while (atomic_load(&m.next) < 5)
			sched_yield();
		unsigned d = watch_dir(f, dir);
		unsigned from = atomic_load(&m.next); /* made later than this line was reached */
		atomic_store(&m.limit, from + AT_A_TIME);
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

static void *rename_names(void *arg)
{
	struct maker *m = arg;
	char name[2][64];
	snprintf(name[0], sizeof(name[0]), "%s/a", m->dir);
	snprintf(name[1], sizeof(name[1]), "%s/b", m->dir);
	if (mkdirat(m->f->root, name[0], 0755) < 0)
		abort();
	for (unsigned i = 0; i < 3000; i++)
		if (renameat(m->f->root, name[i % 2], m->f->root, name[(i + 1) % 2]) < 0)
			abort();
	return NULL;
}

/* Renames at the same time: each half finds its own other half, wherever reads end. */
static void test_renames(void **state)
{
	BEGIN(f, state);
	const char *const dirs[] = {"d", "e"};
	struct maker m[2];
	unsigned d[2];
	for (int i = 0; i < 2; i++) {
		d[i] = make_dir(f, dirs[i]);
		m[i] = (struct maker){.f = f, .dir = dirs[i]};
		assert_int_equal(pthread_create(&m[i].thread, NULL, rename_names, &m[i]), 0);
	}
	for (int i = 0; i < 2; i++)
		pthread_join(m[i].thread, NULL);
	settle(f);
	unsigned whole = 0, halves = 0;
	uint64_t last[2] = {0};
	for (size_t i = 0; i < f->n; i++) {
		const struct rec *r = &f->v[i];
		for (int k = 0; k < 2; k++) {
			if (!same(&r->dir, &f->ids[d[k]]) || r->mask & FAN_CREATE)
				continue;
			assert_true(r->mask != FAN_Q_OVERFLOW);
			if (r->mask & FAN_RENAME) {
				assert_true(same(&r->newdir, &f->ids[d[k]]));
				assert_string_not_equal(r->name, r->newname);
				whole++;
			} else {
				/* A thread that is put aside for long between its two halves. */
				assert_true(r->mask & (FAN_MOVED_FROM | FAN_MOVED_TO));
				assert_true(!(r->mask & FAN_MOVED_TO) || last[k] & FAN_MOVED_FROM);
				halves++;
			}
			last[k] = r->mask;
		}
	}
	if (f->kind == SL_BACKEND_FANOTIFY) { /* merges those that nobody has read */
		assert_true(whole >= 2 && whole <= 6000);
		assert_int_equal(halves, 0);
	} else {
		print_message("# %u of 6000 renames in halves\n", halves / 2);
		assert_int_equal(halves % 2, 0);
		assert_int_equal(whole + halves / 2, 6000);
		assert_true(halves <= whole);
	}
}

static size_t put_half(char *buf, uint32_t mask, uint32_t cookie)
{
	struct inotify_event e = {.wd = 1, .mask = mask, .cookie = cookie, .len = 16};
	memcpy(buf, &e, sizeof(e));
	memset(buf + sizeof(e), 0, e.len);
	buf[sizeof(e)] = 'n';
	return sizeof(e) + e.len;
}

/* When inotify's reader waits a little for the other half of a rename: only if it can still come. */
static void test_halves(void **state)
{
	(void)state;
	bool (*more)(const char *, size_t) = sl_inotify_source.more;
	static char buf[65536];
	assert_false(more(buf, 0));
	size_t n = put_half(buf, IN_MOVED_FROM, 5);
	assert_true(more(buf, n));
	assert_false(more(buf, n - 1)); /* not a whole event */
	n += put_half(buf + n, IN_MOVED_TO, 6);
	assert_true(more(buf, n));
	n += put_half(buf + n, IN_MOVED_TO, 5);
	assert_false(more(buf, n));
	n += put_half(buf + n, IN_MOVED_FROM, 7);
	assert_true(more(buf, n));
	for (int i = 0; i < 1100; i++)
		n += put_half(buf + n, IN_CREATE, 0);
	assert_false(more(buf, n));
}

/* Settling ends while others never stop, and what was made before it has been heard of. */
static void test_settle(void **state)
{
	BEGIN(f, state);
	make_dir(f, "noise");
	unsigned d = make_dir(f, "d");
	struct maker m = {.f = f, .dir = "noise", .limit = AT_A_TIME};
	assert_int_equal(pthread_create(&m.thread, NULL, make_names, &m), 0);
	for (unsigned i = 0; i < 300; i++) {
		char name[32];
		snprintf(name, sizeof(name), "d/%u", i);
		ok(mkdirat(f->root, name, 0755));
		settle(f);
		assert_int_equal(count_from(f, d, i, i + 1), i + 1);
		clear(f);
		atomic_store(&m.limit, atomic_load(&m.next) + AT_A_TIME);
	}
	atomic_store(&m.stop, true);
	pthread_join(m.thread, NULL);
}

static void *settle_once(void *arg)
{
	settle(arg);
	return NULL;
}

/* It ends although nothing comes after what it waits for, whatever the kernel counts of that. */
static void test_settle_counts(void **state)
{
	BEGIN(f, state);
	watch_dir(f, "");
	unsigned d = make_dir(f, "d");
	for (unsigned times = 1; times <= 4; times++) {
		pthread_t t;
		queue_times = (int)times;
		settle(f);
		clear(f);
		hold(f);
		for (unsigned i = 0; i < 10; i++) {
			char name[32];
			snprintf(name, sizeof(name), "d/%u.%u", times, i);
			ok(mkdirat(f->root, name, 0755));
		}
		unsigned asked = queue_asked;
		assert_int_equal(pthread_create(&t, NULL, settle_once, f), 0);
		while (queue_asked == asked)
			sched_yield();
		let_go(f);
		pthread_join(t, NULL);
		unsigned n = 0;
		for (size_t i = 0; i < f->n; i++)
			n += same(&f->v[i].dir, &f->ids[d]);
		assert_int_equal(n, 10);
	}
	queue_times = 1;
}

static int late_root;
static uint64_t late_at;

static void make_late(void)
{
	if (mkdirat(late_root, "d/late", 0755) < 0)
		abort();
	late_at = sl_now();
}

/* What is told is of what had happened at the time that it says, also if more happens before anybody looks.
 */
static void test_when(void **state)
{
	BEGIN(f, state);
	unsigned d = make_dir(f, "d"), n = 0;
	settle(f);
	clear(f);
	late_root = f->root;
	read_hook = make_late;
	ok(mkdirat(f->root, "d/early", 0755));
	settle(f);
	settle(f); /* of that which came meanwhile */
	for (size_t i = 0; i < f->n; i++) {
		if (!same(&f->v[i].dir, &f->ids[d]))
			continue;
		bool late = !strcmp(f->v[i].name, "late");
		assert_true(late == (f->v[i].when >= late_at));
		n++;
	}
	assert_int_equal(n, 2);
}

static void test_actors(void **state)
{
	BEGIN(f, state);
	unsigned d = make_dir(f, "d"), e = make_dir(f, "e");
	struct maker m[2] = {{.f = f, .dir = "d", .limit = 1000}, {.f = f, .dir = "e", .limit = 1000}};
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
	unsigned idle = f->idle_calls, calls = f->calls; /* nobody changes them now */
	let_go(f);
	settle(f);
	/* That the queue was empty may be told after all that was in it. */
	pthread_mutex_lock(&f->lock);
	while (!f->last_idle)
		pthread_cond_wait(&f->cond, &f->lock);
	calls = f->calls - calls;
	idle = f->idle_calls - idle;
	pthread_mutex_unlock(&f->lock);
	assert_true(idle > 0 && idle < calls);
}

/* Ending while changes come, and while somebody settles. */
static void test_close(void **state)
{
	struct fix *f = *state;
	ok(mkdirat(f->root, "d", 0755));
	struct maker m = {.f = f, .dir = "d", .limit = UINT_MAX};
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
	    BOTH(order),	 BOTH(overflow), BOTH(mark_race), BOTH(settle),
	    BOTH(settle_counts), BOTH(when),	 BOTH(actors),	  BOTH(idle),
	    BOTH(close),	 BOTH(relief),	 BOTH(renames),	  cmocka_unit_test(test_halves),
	};
	return run_notify_tests(tests);
}
