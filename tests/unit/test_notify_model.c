/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The backends for changes of a local tree against a bare inotify watcher in the same process, with random
 * changes. If this fails, what an origin tells is not what a watcher there hears. The seed is printed;
 * NOTIFY_SEED=N repeats it. (suite: threads)
 */
#include "notify_fixture.h"

/* ---- the model: a bare watcher in this process hears the same ---- */

#define MODEL_DIRS  4
#define MODEL_NAMES 6

struct step {
	int dir;
	uint64_t kind; /* one bit, and FAN_ONDIR */
	char name[8];
};

struct steps {
	struct step *v;
	size_t n, size;
};

static void add_step(struct steps *s, int dir, uint64_t kind, const char *name)
{
	if (s->n == s->size) {
		s->size = s->size ? 2 * s->size : 256;
		s->v = reallocarray(s->v, s->size, sizeof(*s->v));
	}
	struct step *t = &s->v[s->n++];
	*t = (struct step){.dir = dir, .kind = kind};
	snprintf(t->name, sizeof(t->name), "%s", name);
}

static void read_bare(int fd, const int *wds, struct steps *s)
{
	char buf[65536] __attribute__((aligned(8)));
	for (ssize_t n; (n = read(fd, buf, sizeof(buf))) > 0;)
		for (char *p = buf; p < buf + n;) {
			const struct inotify_event *e = (void *)p;
			p += sizeof(*e) + e->len;
			assert_false(e->mask & IN_Q_OVERFLOW);
			for (int k = 0; k < MODEL_DIRS; k++)
				if (wds[k] == e->wd && e->len)
					add_step(s, k, e->mask & ~(uint64_t)IN_IGNORED, e->name);
		}
}

static void read_backend(struct fix *f, const unsigned *d, struct steps *s)
{
	static const uint64_t order[] = {FAN_CREATE, FAN_MOVED_FROM,  FAN_MOVED_TO, FAN_MODIFY,
					 FAN_ATTRIB, FAN_CLOSE_WRITE, FAN_DELETE};
	bool lost = false;
	settle(f);
	pthread_mutex_lock(&f->lock);
	for (size_t i = 0; i < f->n; i++) {
		const struct rec *r = &f->v[i];
		lost |= r->mask == FAN_Q_OVERFLOW;
		for (int k = 0; k < MODEL_DIRS; k++) {
			uint64_t dir = r->mask & FAN_ONDIR;
			const struct sl_evid *id = &f->ids[d[k]];
			if (r->mask & FAN_RENAME && same(&r->dir, id))
				add_step(s, k, FAN_MOVED_FROM | dir, r->name);
			if (r->mask & FAN_RENAME && same(&r->newdir, id))
				add_step(s, k, FAN_MOVED_TO | dir, r->newname);
			for (size_t o = 0; o < SL_ARRAY_SIZE(order); o++)
				if (r->mask & order[o] && same(&r->dir, id) && r->name)
					add_step(s, k, order[o] | dir, r->name);
		}
	}
	pthread_mutex_unlock(&f->lock);
	assert_false(lost);
	clear(f);
}

static uint32_t rnd(uint64_t *s)
{
	*s ^= *s << 13;
	*s ^= *s >> 7;
	*s ^= *s << 17;
	return (uint32_t)(*s >> 32);
}

static void random_step(struct fix *f, uint64_t *s)
{
	char a[16], b[16];
	snprintf(a, sizeof(a), "%c/%c", 'a' + (int)(rnd(s) % MODEL_DIRS), 'p' + (int)(rnd(s) % MODEL_NAMES));
	snprintf(b, sizeof(b), "%c/%c", 'a' + (int)(rnd(s) % MODEL_DIRS), 'p' + (int)(rnd(s) % MODEL_NAMES));
	int fd;
	switch (rnd(s) % 9) {
	case 0:
	case 1:
		fd = openat(f->root, a, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
		if (fd >= 0)
			close(fd);
		break;
	case 2:
		if ((fd = openat(f->root, a, O_WRONLY | O_CLOEXEC)) >= 0) {
			assert_int_equal(write(fd, "y", 1), 1);
			close(fd);
		}
		break;
	case 3:
		mkdirat(f->root, a, 0755);
		break;
	case 4:
		if (unlinkat(f->root, a, 0) < 0)
			unlinkat(f->root, a, AT_REMOVEDIR);
		break;
	case 5:
		linkat(f->root, a, f->root, b, 0);
		break;
	case 6:
		rename2(f, a, b, 0);
		break;
	case 7:
		rename2(f, a, b, 2);
		break;
	case 8:
		if ((fd = openat(f->root, a, O_WRONLY | O_CLOEXEC)) >= 0) { /* not of a directory */
			fchmod(fd, (mode_t)(0600 | (rnd(s) & 077)));
			close(fd);
		}
		break;
	}
}

/* The order within each directory is that of the bare watcher. */
static void compare_order(const struct steps *want, const struct steps *got)
{
	for (int k = 0; k < MODEL_DIRS; k++) {
		size_t i = 0, j = 0, at = 0;
		for (;; i++, j++, at++) {
			while (i < want->n && want->v[i].dir != k)
				i++;
			while (j < got->n && got->v[j].dir != k)
				j++;
			if (i >= want->n || j >= got->n)
				break;
			if (want->v[i].kind != got->v[j].kind || strcmp(want->v[i].name, got->v[j].name) != 0)
				fail_msg("directory %d, event %zu: %llx '%s' instead of %llx '%s'", k, at,
					 (unsigned long long)got->v[j].kind, got->v[j].name,
					 (unsigned long long)want->v[i].kind, want->v[i].name);
		}
		if (i < want->n || j < got->n)
			fail_msg("directory %d: %s after event %zu", k, i < want->n ? "missing" : "more", at);
	}
}

/* Whatever the bare watcher heard was heard here, and nothing else. */
static bool includes(const struct steps *a, const struct steps *b)
{
	for (size_t i = 0; i < b->n; i++) {
		bool found = false;
		for (size_t j = 0; j < a->n && !found; j++)
			found = a->v[j].dir == b->v[i].dir && a->v[j].kind == b->v[i].kind &&
				strcmp(a->v[j].name, b->v[i].name) == 0;
		if (!found)
			return false;
	}
	return true;
}

static void test_model(void **state)
{
	BEGIN(f, state);
	const char *given = getenv("NOTIFY_SEED");
	uint64_t seed = given ? strtoull(given, NULL, 10) : sl_now() / 1000 % 1000000007, s = seed * 2 + 1;
	print_message("# seed %llu\n", (unsigned long long)seed);
	int bare = inotify_init1(IN_NONBLOCK | IN_CLOEXEC), wds[MODEL_DIRS];
	unsigned d[MODEL_DIRS];
	ok(bare);
	for (int k = 0; k < MODEL_DIRS; k++) {
		char name[4] = {(char)('a' + k)}, path[64];
		d[k] = make_dir(f, name);
		snprintf(path, sizeof(path), "/proc/self/fd/%d/%s", f->root, name);
		wds[k] = inotify_add_watch(
		    bare, path, IN_CREATE | IN_DELETE | IN_MOVE | IN_MODIFY | IN_ATTRIB | IN_CLOSE_WRITE);
		ok(wds[k]);
	}
	settle(f);
	clear(f);
	struct steps want = {0}, got = {0};
	/* Heard one by one nothing is merged; inotify merges nothing that differs anyway. */
	for (int i = 0; i < 3000; i++) {
		random_step(f, &s);
		if (f->kind == SL_BACKEND_FANOTIFY || i % 200 == 0)
			settle(f);
		read_bare(bare, wds, &want);
	}
	read_backend(f, d, &got);
	assert_true(want.n > 1000);
	compare_order(&want, &got);
	for (int round = 0; round < 20; round++) {
		want.n = got.n = 0;
		for (int i = 0; i < 300; i++)
			random_step(f, &s);
		read_bare(bare, wds, &want);
		read_backend(f, d, &got);
		assert_true(includes(&want, &got) && includes(&got, &want));
	}
	free(want.v);
	free(got.v);
	close(bare);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    BOTH(model),
	};
	return run_notify_tests(tests);
}
