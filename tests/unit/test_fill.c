/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The fill, against an origin in memory that answers on threads of its own, late, out of order, with errors, and with content
 * that changes under it. If this fails, readers see wrong bytes, wait for ever, or the origin is asked for too much.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#include "base/fd.h"
#include "base/log.h"
#include "base/time.h"
#include "fill/fill.h"
#include "store/internal.h"
#include "store/remote.h"
#include "store/walk.h"
#include "store/xattr.h"

#define KIB 1024ull
#define MIB (1024 * KIB)
#define BLOCK 65536ull

/* In threads, where cmocka's assertions must not be used. */
#define must(x)                                                                                              \
	do {                                                                                                 \
		if (!(x)) {                                                                                  \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #x);                              \
			abort();                                                                             \
		}                                                                                            \
	} while (0)

/* ---- the origin ---- */

struct fnode {
	char place[64];
	struct sl_attr a;
	uint32_t version; /* of the content */
	int err;	  /* what it answers instead */
	bool gone;
	char target[32];
	_Atomic uint8_t *asked; /* per block */
	_Atomic uint64_t bytes;
};

#define NODES_MAX  4096
#define THREADS_MAX 8

struct fake {
	struct sl_origin o;
	pthread_mutex_t lock;
	pthread_cond_t cond, idle;
	struct sl_oreq *queue[65536];
	size_t nqueue, busy;
	bool stop, hold, in_order, unmarked;
	unsigned delay_us, nthreads;
	uint64_t held_bytes; /* READs in the queue */
	uint64_t seed;
	struct fnode nodes[NODES_MAX];
	size_t n;
	pthread_t threads[THREADS_MAX];
	/* Called before a READ is answered, with the lock held. */
	void (*on_read)(struct fake *k, struct fnode *n);
	unsigned countdown;
};

static uint64_t mix(uint64_t x)
{
	x ^= x >> 33;
	x *= 0xff51afd7ed558ccdull;
	x ^= x >> 33;
	x *= 0xc4ceb9fe1a85ec53ull;
	return x ^ x >> 33;
}

/* The content of a file: what its inode number and version determine, nowhere zero for long; of version 0 all is. */
static void content(uint64_t ino, uint32_t version, uint64_t off, char *buf, size_t len)
{
	if (!version) {
		memset(buf, 0, len);
		return;
	}
	for (size_t i = 0; i < len;) {
		uint64_t w = mix(ino * 1000003 + version * 97 + (off + i) / 8 * 0x9e3779b97f4a7c15ull) | 0x0101010101010101ull;
		size_t at = (off + i) % 8, n = SL_MIN(8 - at, len - i);
		memcpy(buf + i, (char *)&w + at, n);
		i += n;
	}
}

static struct fnode *find(struct fake *k, const char *place)
{
	for (size_t i = 0; i < k->n; i++)
		if (!k->nodes[i].gone && !strcmp(k->nodes[i].place, place))
			return &k->nodes[i];
	return NULL;
}

static struct fnode *add(struct fake *k, const char *place, uint32_t mode, uint64_t size)
{
	must(k->n < NODES_MAX);
	struct fnode *n = &k->nodes[k->n++];
	snprintf(n->place, sizeof(n->place), "%s", place);
	n->version = 1;
	n->a = (struct sl_attr){.ino = 1000 + k->n,
				.generation = 7,
				.size = size,
				.blocks = SL_DIV_UP(size, 512),
				.mode = mode,
				.nlink = 1,
				.uid = geteuid(),
				.gid = getegid(),
				.no_xattrs = true,
				.atime = {1600000000, 1},
				.mtime = {1500000000 + (time_t)k->n, 123456789},
				.ctime = {1500000001 + (time_t)k->n, 987654321}};
	if (S_ISREG(mode))
		n->asked = calloc(size / BLOCK + 2, 1);
	return n;
}

/* Other content of another size, at another time. */
static void change(struct fnode *n, uint64_t size)
{
	n->version++;
	n->a.size = size;
	n->a.blocks = SL_DIV_UP(size, 512);
	n->a.mtime.tv_sec += 10;
	n->a.ctime.tv_sec += 10;
	free(n->asked);
	n->asked = calloc(size / BLOCK + 2, 1);
}

static bool is_child(const char *dir, const char *place)
{
	size_t l = strlen(dir);
	if (!*place || strncmp(dir, place, l) || (l && place[l] != '/'))
		return false;
	return !strchr(place + l + (l > 0), '/');
}

static void answer(struct fake *k, struct sl_oreq *r)
{
	pthread_mutex_lock(&k->lock);
	struct fnode *n = find(k, r->place);
	if (n && r->op == SL_OREQ_READ && k->on_read)
		k->on_read(k, n);
	if (!n || n->err) {
		r->err = n ? n->err : -ENOENT;
		pthread_mutex_unlock(&k->lock);
		return;
	}
	struct sl_attr a = n->a;
	uint32_t version = n->version;
	size_t cap = 0;
	r->err = 0;
	switch (r->op) {
	case SL_OREQ_LIST:
		if (!S_ISDIR(a.mode))
			r->err = -ENOTDIR;
		for (size_t i = 0; i < k->n && !r->err; i++) {
			struct fnode *c = &k->nodes[i];
			if (c->gone || !is_child(n->place, c->place))
				continue;
			const char *name = strrchr(c->place, '/') ? strrchr(c->place, '/') + 1 : c->place;
			must(sl_oreq_add_entry(r, &cap, name, strlen(name), &c->a) == 0);
			if (*c->target)
				r->entries[r->nentries - 1].target = strdup(c->target);
		}
		break;
	case SL_OREQ_READ:
		r->nread = r->off >= a.size ? 0 : SL_MIN(r->len, a.size - r->off);
		for (uint64_t b = r->off / BLOCK; r->nread && b <= (r->off + r->nread - 1) / BLOCK; b++)
			n->asked[b]++;
		n->bytes += r->nread;
		break;
	case SL_OREQ_XATTRS:
		must(sl_oreq_add_xattr(r, "user.from", "origin", 6) == 0);
		must(sl_oreq_add_xattr(r, "user.empty", "", 0) == 0);
		break;
	default:
		break;
	}
	r->attr = a;
	r->marked = r->mark && !k->unmarked;
	pthread_mutex_unlock(&k->lock);
	if (r->op == SL_OREQ_READ && !r->err) {
		r->data = malloc(r->len + 1);
		must(r->data);
		content(a.ino, version, r->off, r->data, r->nread);
		k->o.nbytes += r->nread;
	}
}

static void *fake_thread(void *arg)
{
	struct fake *k = arg;
	pthread_mutex_lock(&k->lock);
	for (;;) {
		while (!k->stop && (k->hold || k->nqueue == 0))
			pthread_cond_wait(&k->cond, &k->lock);
		if (k->nqueue == 0)
			break;
		size_t i = k->in_order ? 0 : (k->seed = mix(k->seed + 1)) % k->nqueue;
		struct sl_oreq *r = k->queue[i];
		memmove(&k->queue[i], &k->queue[i + 1], (k->nqueue - i - 1) * sizeof(r));
		k->nqueue--;
		if (r->op == SL_OREQ_READ)
			k->held_bytes -= r->len;
		k->busy++;
		unsigned us = k->delay_us ? (unsigned)(mix(k->seed) % (2 * k->delay_us)) : 0;
		pthread_mutex_unlock(&k->lock);
		if (us)
			usleep(us);
		answer(k, r);
		r->done(r);
		pthread_mutex_lock(&k->lock);
		k->busy--;
		pthread_cond_broadcast(&k->idle);
	}
	pthread_mutex_unlock(&k->lock);
	return NULL;
}

static void fake_submit(struct sl_origin *o, struct sl_oreq *r)
{
	struct fake *k = sl_container_of(o, struct fake, o);
	pthread_mutex_lock(&k->lock);
	must(k->nqueue < SL_ARRAY_SIZE(k->queue));
	k->queue[k->nqueue++] = r;
	if (r->op == SL_OREQ_READ)
		k->held_bytes += r->len;
	pthread_cond_broadcast(&k->cond);
	pthread_cond_broadcast(&k->idle);
	pthread_mutex_unlock(&k->lock);
}

static void fake_stop(struct sl_origin *o)
{
	(void)o;
}

static void fake_free(struct sl_origin *o)
{
	struct fake *k = sl_container_of(o, struct fake, o);
	pthread_mutex_lock(&k->lock);
	k->stop = true;
	k->hold = false;
	pthread_cond_broadcast(&k->cond);
	pthread_mutex_unlock(&k->lock);
	for (unsigned i = 0; i < k->nthreads; i++)
		pthread_join(k->threads[i], NULL);
	for (size_t i = 0; i < k->n; i++)
		free(k->nodes[i].asked);
	pthread_mutex_destroy(&k->lock);
	pthread_cond_destroy(&k->cond);
	pthread_cond_destroy(&k->idle);
	free(k);
}

static bool fake_connected(struct sl_origin *o)
{
	(void)o;
	return true;
}

static const struct sl_origin_ops fake_ops = {fake_submit, fake_stop, fake_free, fake_connected, NULL};

static struct fake *fake_new(unsigned threads)
{
	struct fake *k = calloc(1, sizeof(*k));
	must(k);
	k->o.ops = &fake_ops;
	k->seed = 42;
	pthread_mutex_init(&k->lock, NULL);
	pthread_cond_init(&k->cond, NULL);
	pthread_cond_init(&k->idle, NULL);
	add(k, "", S_IFDIR | 0755, 4096);
	k->nthreads = threads;
	for (unsigned i = 0; i < threads; i++)
		must(pthread_create(&k->threads[i], NULL, fake_thread, k) == 0);
	return k;
}

static void set_hold(struct fake *k, bool hold)
{
	pthread_mutex_lock(&k->lock);
	k->hold = hold;
	pthread_cond_broadcast(&k->cond);
	pthread_mutex_unlock(&k->lock);
}

/* ---- the fixture ---- */

struct fx {
	char base[48], path[64];
	struct sl_store_config cfg;
	struct sl_store *s;
	struct sl_fill *f;
	struct fake *k;
	_Atomic unsigned changed;
	bool mark;
};

static void on_changed(void *arg, struct sl_object *o)
{
	struct fx *x = arg;
	(void)o;
	x->changed++;
}

static void open_at(struct fx *x, const char *path)
{
	_cleanup_free_ char *why = NULL;
	int r = sl_store_open(path, &x->s, &why);
	if (r < 0)
		print_error("%s\n", why);
	assert_int_equal(r, 0);
	assert_int_equal(sl_placeholder_root(x->s, &x->k->nodes[0].a), 0);
	const struct sl_fill_config fc = {.store = x->s, .origin = &x->k->o, .changed = on_changed, .arg = x,
					  .mark = x->mark};
	assert_int_equal(sl_fill_new(&fc, &x->f), 0);
}

static void shut(struct fx *x)
{
	sl_fill_free(x->f);
	if (x->s)
		assert_int_equal(x->s->table.n, 1); /* no reference was lost */
	sl_store_close(x->s);
	x->f = NULL;
	x->s = NULL;
}

static void create(struct fx *x, uint64_t limit, uint64_t reserve)
{
	_cleanup_free_ char *why = NULL;
	x->cfg = (struct sl_store_config){.origin = (char *)"/origin", .dir = (char *)"/dir", .id = (char *)"id",
					  .limit = limit, .reserve = reserve, .timeout = 10};
	assert_int_equal(sl_store_create(x->path, &x->cfg, &why), 0);
	open_at(x, x->path);
}

static int setup(void **state)
{
	struct fx *x = calloc(1, sizeof(*x));
	strcpy(x->base, "/tmp/sluice-fill-XXXXXX");
	assert_non_null(mkdtemp(x->base));
	snprintf(x->path, sizeof(x->path), "%s/store", x->base);
	x->k = fake_new(6);
	create(x, 0, 0);
	*state = x;
	return 0;
}

/* The same with a limit, or a reserve. */
static void again(struct fx *x, uint64_t limit, uint64_t reserve)
{
	shut(x);
	assert_int_equal(sl_store_remove(x->path, NULL), 0);
	create(x, limit, reserve);
}

static int teardown(void **state)
{
	struct fx *x = *state;
	set_hold(x->k, false); /* a test that failed may have left it */
	shut(x);
	sl_origin_free(&x->k->o);
	assert_int_equal(sl_remove_tree(AT_FDCWD, x->base), 0);
	free(x);
	return 0;
}

/* Two layers up at most: "a", "d/a", "d/e/a"; populates what is on the way. */
static struct sl_object *get(struct fx *x, const char *place)
{
	struct sl_object *o = sl_object_ref(sl_object_root(x->s));
	while (*place) {
		char name[64];
		size_t n = strcspn(place, "/");
		must(n < sizeof(name));
		memcpy(name, place, n);
		name[n] = '\0';
		must(sl_fill_wait(x->f, SL_WANT_NAMES, o, 0, 0) == 0);
		struct sl_object *c = NULL;
		int r = sl_object_lookup(o, name, &c);
		if (r < 0)
			fprintf(stderr, "lookup of %s: %s\n", place, strerror(-r));
		must(r == 0);
		sl_object_put(o);
		o = c;
		place += n + (place[n] == '/');
	}
	return o;
}

/*
 * As the gate reads: it has the file open, and waits until what is wanted is here while the io lock is held. Returns the
 * bytes read.
 */
static ssize_t reads(struct fx *x, struct sl_object *o, uint64_t off, size_t len, char *buf, struct sl_version *v)
{
	_cleanup_close_ int fd = sl_object_open(o, O_RDONLY);
	must(fd >= 0);
	for (int tries = 0; tries < 1000; tries++) {
		int r = sl_fill_wait(x->f, SL_WANT_RANGE, o, off, len);
		if (r < 0)
			return r;
		pthread_rwlock_rdlock(&o->io);
		pthread_mutex_lock(&o->lock);
		bool here = sl_chunkmap_test(&o->map, off, len);
		uint64_t size = o->rec.origin.size;
		if (v)
			*v = o->rec.origin;
		pthread_mutex_unlock(&o->lock);
		size_t n = off >= size ? 0 : SL_MIN(len, size - off);
		ssize_t k = here ? sl_pread_full(fd, buf, n, (off_t)off) : 0;
		pthread_rwlock_unlock(&o->io);
		if (here) {
			must(k == (ssize_t)n);
			return k;
		}
	}
	return -ELOOP;
}

/* Read, and compare with what the origin has now. */
static void check_range(struct fx *x, struct sl_object *o, const struct fnode *n, uint64_t off, size_t len)
{
	_cleanup_free_ char *a = malloc(len + 1), *b = malloc(len + 1);
	size_t want = off >= n->a.size ? 0 : SL_MIN(len, n->a.size - off);
	ssize_t r = reads(x, o, off, len, a, NULL);
	if (r != (ssize_t)want)
		fprintf(stderr, "%s at %llu, %zu: %zd instead of %zu\n", n->place, (unsigned long long)off, len, r, want);
	must(r == (ssize_t)want);
	content(n->a.ino, n->version, off, b, want);
	must(memcmp(a, b, want) == 0);
}

static uint64_t here(struct sl_object *o)
{
	pthread_mutex_lock(&o->lock);
	uint64_t n = sl_chunkmap_bytes(&o->map);
	pthread_mutex_unlock(&o->lock);
	return n;
}

/* What the record in the store says now. */
static struct sl_record on_disk(struct fx *x, struct sl_object *o)
{
	struct sl_at at;
	struct sl_record r = {0};
	assert_int_equal(sl_at_begin(o, &at), 0);
	assert_int_equal(sl_record_load_at(x->s, at.fd, at.name, &r, NULL, NULL, NULL), 0);
	sl_at_end(&at);
	return r;
}

/* All that is under way has ended. */
static void quiet(struct fx *x)
{
	for (;; usleep(200)) {
		struct sl_fill_stats st;
		pthread_mutex_lock(&x->k->lock);
		bool idle = x->k->nqueue == 0 && x->k->busy == 0;
		pthread_mutex_unlock(&x->k->lock);
		sl_fill_get_stats(x->f, &st);
		if (idle && st.requests == 0 && st.waiting == 0)
			break;
	}
}

/* It may be in the hands of a thread that has just answered. */
static void evict_one(struct fx *x, struct sl_object *o)
{
	int result = -EBUSY;
	uint64_t freed = 0;
	for (; result == -EBUSY; usleep(200)) {
		quiet(x);
		assert_int_equal(sl_fill_evict(x->f, &o, &result, 1, &freed), 0);
	}
	assert_int_equal(result, 0);
}

static void run_threads(unsigned n, void *(*fn)(void *), void *arg)
{
	pthread_t t[64];
	for (unsigned i = 0; i < n; i++)
		assert_int_equal(pthread_create(&t[i], NULL, fn, arg), 0);
	for (unsigned i = 0; i < n; i++)
		pthread_join(t[i], NULL);
}

/* ---- single flight ---- */

struct crowd {
	struct fx *x;
	struct sl_object *o[8];
	struct fnode *n[8];
	unsigned nfiles, rounds;
	uint64_t step;
	_Atomic unsigned id;
	atomic_bool stop;
	bool evict;
};

static void *read_same(void *arg)
{
	struct crowd *c = arg;
	for (uint64_t off = 0; off < c->n[0]->a.size; off += c->step)
		check_range(c->x, c->o[0], c->n[0], off, c->step);
	return NULL;
}

static void each_once(const struct fnode *n)
{
	for (uint64_t b = 0; b < SL_DIV_UP(n->a.size, BLOCK); b++)
		assert_int_equal(n->asked[b], 1);
	assert_int_equal(n->bytes, n->a.size);
}

static void test_single_flight(void **state)
{
	struct fx *x = *state;
	struct crowd c = {.x = x, .step = 300 * KIB};
	c.n[0] = add(x->k, "f", S_IFREG | 0644, 6 * MIB + 1234);
	x->k->delay_us = 2000;
	c.o[0] = get(x, "f");
	run_threads(32, read_same, &c);
	quiet(x);
	each_once(c.n[0]);
	assert_int_equal(here(c.o[0]), c.n[0]->a.size);
	struct sl_fill_stats st;
	sl_fill_get_stats(x->f, &st);
	assert_int_equal(st.fetched_bytes, c.n[0]->a.size);
	assert_int_equal(st.waiting, 0);
	assert_int_equal(st.restarts, 0);
	struct sl_want w = {.o = c.o[0], .len = UINT64_MAX};
	assert_int_equal(sl_fill_want(x->f, SL_WANT_RANGE, &w), 1);
	sl_object_put(c.o[0]);
}

static void *read_random(void *arg)
{
	struct crowd *c = arg;
	uint64_t seed = mix(++c->id);
	for (unsigned i = 0; i < c->rounds && !c->stop; i++) {
		unsigned k = (unsigned)((seed = mix(seed + i)) % c->nfiles);
		uint64_t off = (seed = mix(seed)) % (c->n[k]->a.size + 100000);
		size_t len = (seed = mix(seed)) % 200000;
		check_range(c->x, c->o[k], c->n[k], off, len);
		if (c->evict && seed % 16 == 0) {
			int result = 0;
			uint64_t freed = 0;
			must(sl_fill_evict(c->x->f, &c->o[k], &result, 1, &freed) == 0);
			must(result == 0 || result == -EBUSY);
		}
	}
	return NULL;
}

static void open_files(struct crowd *c, const uint64_t *sizes, unsigned n)
{
	for (c->nfiles = 0; c->nfiles < n; c->nfiles++) {
		char name[16];
		snprintf(name, sizeof(name), "f%u", c->nfiles);
		c->n[c->nfiles] = add(c->x->k, name, S_IFREG | 0644, sizes[c->nfiles]);
	}
	for (unsigned i = 0; i < n; i++)
		c->o[i] = get(c->x, c->n[i]->place);
}

static void put_files(struct crowd *c)
{
	for (unsigned i = 0; i < c->nfiles; i++)
		sl_object_put(c->o[i]);
}

static const uint64_t some_sizes[] = {1, 4095, BLOCK, BLOCK + 1, 3 * BLOCK - 1, 2 * MIB + 17, 5 * MIB, 64 * BLOCK + 1};

static void test_random_ranges(void **state)
{
	struct fx *x = *state;
	struct crowd c = {.x = x, .rounds = 150};
	x->k->delay_us = 300;
	open_files(&c, some_sizes, SL_ARRAY_SIZE(some_sizes));
	run_threads(12, read_random, &c);
	quiet(x);
	for (unsigned i = 0; i < c.nfiles; i++)
		for (uint64_t b = 0; b < SL_DIV_UP(c.n[i]->a.size, BLOCK); b++)
			assert_in_range(c.n[i]->asked[b], 0, 1);
	for (unsigned i = 0; i < c.nfiles; i++)
		check_range(x, c.o[i], c.n[i], 0, c.n[i]->a.size);
	put_files(&c);
}

static void *populate_same(void *arg)
{
	struct crowd *c = arg;
	must(sl_fill_wait(c->x->f, SL_WANT_NAMES, c->o[0], 0, 0) == 0);
	struct sl_name *v;
	size_t n;
	must(sl_names_read(c->o[0], &v, &n) == 0);
	must(n == 200);
	sl_names_free(v, n);
	return NULL;
}

static void test_names_once(void **state)
{
	struct fx *x = *state;
	char p[32];
	struct crowd c = {.x = x};
	add(x->k, "d", S_IFDIR | 0755, 0);
	for (int i = 0; i < 200; i++) {
		snprintf(p, sizeof(p), "d/n%d", i);
		add(x->k, p, i % 10 ? S_IFREG | 0600 : S_IFDIR | 0700, (uint64_t)i);
	}
	c.o[0] = get(x, "d");
	uint64_t before = x->k->o.nlists;
	x->k->delay_us = 20000;
	run_threads(16, populate_same, &c);
	assert_int_equal(x->k->o.nlists, before + 1);
	struct sl_want w = {.o = c.o[0]};
	assert_int_equal(sl_fill_want(x->f, SL_WANT_NAMES, &w), 1);
	assert_int_equal(on_disk(x, c.o[0]).state, SL_FULL);
	struct sl_object *file = get(x, "d/n3");
	w.o = file;
	assert_int_equal(sl_fill_want(x->f, SL_WANT_NAMES, &w), -ENOTDIR);
	w.o = c.o[0];
	assert_int_equal(sl_fill_want(x->f, SL_WANT_RANGE, &w), -EINVAL);
	sl_object_put(file);
	sl_object_put(c.o[0]);
}

static void test_xattrs_once(void **state)
{
	struct fx *x = *state;
	struct fnode *n = add(x->k, "f", S_IFREG | 0644, 10);
	n->a.no_xattrs = false;
	add(x->k, "none", S_IFREG | 0644, 10);
	struct sl_object *o = get(x, "f"), *none = get(x, "none");
	char b[64];
	struct sl_want w = {.o = none};
	assert_int_equal(sl_fill_want(x->f, SL_WANT_XATTRS, &w), 1);
	assert_int_equal(sl_fill_wait(x->f, SL_WANT_XATTRS, o, 0, 0), 0);
	assert_int_equal(sl_xattr_get(o, "user.from", b, sizeof(b)), 6);
	assert_memory_equal(b, "origin", 6);
	assert_int_equal(sl_xattr_get(o, "user.empty", b, sizeof(b)), 0);
	w.o = o;
	assert_int_equal(sl_fill_want(x->f, SL_WANT_XATTRS, &w), 1);
	assert_false(on_disk(x, o).flags & SL_XATTRS);
	struct sl_attr a;
	assert_int_equal(sl_object_attr(o, &a), 0);
	assert_int_equal(a.mtime.tv_sec, n->a.mtime.tv_sec);
	sl_object_put(o);
	sl_object_put(none);
}

/* ---- what was not asked for ---- */

static void test_readahead(void **state)
{
	struct fx *x = *state;
	struct fnode *n = add(x->k, "seq", S_IFREG | 0644, 48 * MIB), *m = add(x->k, "rnd", S_IFREG | 0644, 48 * MIB);
	struct sl_object *o = get(x, "seq"), *q = get(x, "rnd");
	x->k->in_order = true;
	/* Whoever reads in a row waits less and less often. */
	unsigned misses = 0, late_misses = 0;
	for (uint64_t off = 0; off < n->a.size; off += 128 * KIB) {
		struct sl_want w = {.o = o, .off = off, .len = 128 * KIB};
		pthread_mutex_lock(&o->lock);
		bool hit = sl_chunkmap_test(&o->map, w.off, w.len);
		pthread_mutex_unlock(&o->lock);
		misses += !hit;
		late_misses += !hit && off >= 24 * MIB;
		check_range(x, o, n, off, 128 * KIB);
		quiet(x);
	}
	assert_in_range(misses, 2, 14);
	assert_in_range(late_misses, 0, 4);
	each_once(n);
	/* Whoever jumps about gets what was asked for, and not much more. */
	uint64_t seed = 3, asked = 0;
	for (int i = 0; i < 40; i++) {
		uint64_t off = SL_ALIGN_DOWN((seed = mix(seed)) % (m->a.size - BLOCK), BLOCK);
		check_range(x, q, m, off, 4096);
		asked += BLOCK;
	}
	quiet(x);
	assert_true(m->bytes <= 2 * asked);
	sl_object_put(o);
	sl_object_put(q);
}

static void make_siblings(struct fx *x, unsigned n, bool dirs)
{
	char p[32];
	add(x->k, "d", S_IFDIR | 0755, 0);
	for (unsigned i = 0; i < n; i++) {
		snprintf(p, sizeof(p), "d/s%03u", i);
		add(x->k, p, dirs ? S_IFDIR | 0755 : S_IFREG | 0644, dirs ? 0 : 1000 + i);
	}
}

static void test_siblings(void **state)
{
	struct fx *x = *state;
	struct sl_fill_stats st;
	char p[32];
	make_siblings(x, 300, false);
	struct sl_object *d = get(x, "d"); /* as the kernel's: it stays, with its streak */
	/* A single open brings nothing along. */
	struct sl_object *o = get(x, "d/s100");
	sl_fill_note_open(x->f, o);
	check_range(x, o, find(x->k, "d/s100"), 0, 1100);
	quiet(x);
	sl_fill_get_stats(x->f, &st);
	assert_int_equal(st.prefetched, 0);
	assert_int_equal(x->k->o.nreads, 1);
	sl_object_put(o);
	/* One after the other: most are here before they are asked for, and none comes twice. */
	unsigned misses = 0;
	for (unsigned i = 0; i < 300; i++) {
		snprintf(p, sizeof(p), "d/s%03u", i);
		o = get(x, p);
		sl_fill_note_open(x->f, o);
		if (i % 8 == 0)
			quiet(x);
		misses += here(o) == 0;
		check_range(x, o, find(x->k, p), 0, 2000);
		sl_object_put(o);
	}
	quiet(x);
	sl_fill_get_stats(x->f, &st);
	assert_true(st.prefetched > 200);
	assert_in_range(misses, 1, 60);
	for (unsigned i = 0; i < 300; i++) {
		snprintf(p, sizeof(p), "d/s%03u", i);
		assert_int_equal(find(x->k, p)->asked[0], 1);
	}
	sl_object_put(d);
}

static void test_subdirectories(void **state)
{
	struct fx *x = *state;
	char p[32];
	make_siblings(x, 100, true);
	struct sl_object *d = get(x, "d");
	unsigned misses = 0;
	for (unsigned i = 0; i < 100; i++) {
		snprintf(p, sizeof(p), "d/s%03u", i);
		struct sl_object *o = get(x, p);
		sl_fill_note_open(x->f, o);
		if (i % 8 == 0)
			quiet(x);
		struct sl_want w = {.o = o};
		pthread_mutex_lock(&o->lock);
		misses += o->rec.state != SL_FULL;
		pthread_mutex_unlock(&o->lock);
		assert_int_equal(sl_fill_wait(x->f, SL_WANT_NAMES, o, 0, 0), 0);
		assert_int_equal(sl_fill_want(x->f, SL_WANT_NAMES, &w), 1);
		sl_object_put(o);
	}
	quiet(x);
	assert_in_range(misses, 1, 30);
	assert_int_equal(x->k->o.nlists, 102); /* of the root, of d, and one of each */
	sl_object_put(d);
}

/* ---- changes at the origin ---- */

static void test_version_change(void **state)
{
	struct fx *x = *state;
	struct fnode *n = add(x->k, "f", S_IFREG | 0640, 10 * MIB);
	struct sl_object *o = get(x, "f");
	check_range(x, o, n, 0, BLOCK);
	check_range(x, o, n, 5 * MIB, BLOCK);
	quiet(x);
	assert_int_equal(sl_fill_commit(x->f), 0);
	struct sl_version v;
	_cleanup_free_ char *buf = malloc(20 * MIB);
	/* Longer, and shorter: what was here of the old version goes away. */
	static const uint64_t sizes[] = {12 * MIB, 7 * MIB - 3, 100, 0, 9 * MIB};
	for (size_t i = 0; i < SL_ARRAY_SIZE(sizes); i++) {
		unsigned before = x->changed;
		uint64_t at = n->a.size > BLOCK ? n->a.size - BLOCK : 0;
		pthread_mutex_lock(&x->k->lock);
		change(n, sizes[i]);
		n->a.mode ^= 0100;
		pthread_mutex_unlock(&x->k->lock);
		if (here(o) == o->map.size)
			break; /* nothing is asked for: nothing is noticed */
		(void)reads(x, o, at, BLOCK, buf, &v);
		assert_int_equal(v.size, sizes[i]);
		assert_int_equal(x->changed, before + 1);
		check_range(x, o, n, 0, 20 * MIB);
		check_range(x, o, n, 0, 20 * MIB);
		struct sl_attr a;
		assert_int_equal(sl_object_attr(o, &a), 0);
		assert_int_equal(a.size, sizes[i]);
		assert_int_equal(a.mode, n->a.mode);
		assert_int_equal(a.mtime.tv_sec, n->a.mtime.tv_sec);
		/* For the next round something must be missing. */
		evict_one(x, o);
	}
	sl_object_put(o);
}

/* A new version in the middle of a large read, with the fetches of both under way at once. */
static void change_now(struct fake *k, struct fnode *n)
{
	if (k->countdown && --k->countdown == 0)
		change(n, n->a.size);
}

static void test_version_change_midway(void **state)
{
	struct fx *x = *state;
	struct fnode *n = add(x->k, "f", S_IFREG | 0644, 20 * MIB);
	struct sl_object *o = get(x, "f");
	_cleanup_free_ char *buf = malloc(20 * MIB), *ref = malloc(20 * MIB);
	x->k->on_read = change_now;
	x->k->delay_us = 500;
	for (unsigned k = 1; k < 20; k += 3) {
		struct sl_version v;
		x->k->countdown = k;
		unsigned before = x->changed;
		assert_int_equal(reads(x, o, 0, 20 * MIB, buf, &v), 20 * MIB);
		content(n->a.ino, n->version, 0, ref, 20 * MIB);
		assert_memory_equal(buf, ref, 20 * MIB);
		assert_int_equal(v.mtime.tv_sec, n->a.mtime.tv_sec);
		assert_true(x->changed > before);
		evict_one(x, o);
	}
	sl_object_put(o);
}

/* A file that never stands still: readers get an error, not a mixture, and not nothing for ever. */
static void change_always(struct fake *k, struct fnode *n)
{
	(void)k;
	n->a.mtime.tv_nsec = (n->a.mtime.tv_nsec + 1) % 1000000000;
	n->version++;
}

static void test_never_still(void **state)
{
	struct fx *x = *state;
	struct fnode *n = add(x->k, "f", S_IFREG | 0644, 3 * MIB);
	struct sl_object *o = get(x, "f");
	x->k->on_read = change_always;
	assert_int_equal(sl_fill_wait(x->f, SL_WANT_RANGE, o, 0, 3 * MIB), -EIO);
	pthread_mutex_lock(&x->k->lock);
	x->k->on_read = NULL;
	pthread_mutex_unlock(&x->k->lock);
	check_range(x, o, n, 0, 3 * MIB);
	sl_object_put(o);
}

/* Times that the user set stay although the content is replaced by the origin's new one. */
static void test_change_keeps_local_times(void **state)
{
	struct fx *x = *state;
	struct fnode *n = add(x->k, "f", S_IFREG | 0644, 1000);
	struct sl_object *o = get(x, "f");
	const struct timespec ts[2] = {{77, 7}, {88, 8}};
	struct sl_attr a;
	assert_int_equal(sl_object_set_times(o, ts), 0);
	check_range(x, o, n, 0, 1000);
	assert_int_equal(sl_object_attr(o, &a), 0);
	assert_int_equal(a.mtime.tv_sec, 88);
	evict_one(x, o);
	assert_int_equal(sl_object_attr(o, &a), 0);
	assert_int_equal(a.mtime.tv_sec, 88);
	change(n, 2000);
	check_range(x, o, n, 0, 2000);
	assert_int_equal(sl_object_attr(o, &a), 0);
	assert_int_equal(a.size, 2000);
	assert_int_equal(a.mtime.tv_sec, 88);
	assert_int_equal(a.mtime.tv_nsec, 8);
	sl_object_put(o);
}

static void test_replaced(void **state)
{
	struct fx *x = *state;
	struct fnode *n = add(x->k, "f", S_IFREG | 0644, 1000), *l = add(x->k, "linked", S_IFREG | 0644, 1000);
	l->a.nlink = 2;
	struct sl_object *o = get(x, "f"), *q = get(x, "linked");
	/* Another file of that name: its content. */
	n->a.ino = 77777;
	change(n, 1200);
	check_range(x, o, n, 0, 1200);
	assert_int_equal(x->changed, 1);
	/* One of several names: the others must not change with it. */
	l->a.ino = 88888;
	change(l, 1200);
	assert_int_equal(sl_fill_wait(x->f, SL_WANT_RANGE, q, 0, 10), -ESTALE);
	sl_object_put(q);
	/* A directory of that name. */
	evict_one(x, o);
	n->a.mode = S_IFDIR | 0755;
	n->a.mtime.tv_sec++;
	assert_int_equal(sl_fill_wait(x->f, SL_WANT_RANGE, o, 0, 10), -ESTALE);
	sl_object_put(o);
}

/* All names of a tree, where users were before: what has taken the place of a directory that was not listed yet is no
 * reason to make anew what they have. */
static void test_tree_used(void **state)
{
	struct fx *x = *state;
	x->mark = true;
	again(x, 0, 0);
	struct fnode *a = add(x->k, "a", S_IFDIR | 0755, 0), *sub = add(x->k, "a/sub", S_IFDIR | 0755, 0);
	struct sl_object *o = get(x, "a/sub"), *dir = get(x, "a");
	_cleanup_close_ int fd = sl_object_open_dir(dir);
	int user = openat(fd, "mine", O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
	assert_true(user >= 0);
	close(user);
	a->a.ino = 77777;
	sub->a.ino = 88888;
	assert_int_equal(sl_fill_tree(x->f, sl_object_root(x->s), NULL, NULL), -ESTALE);
	assert_int_equal(faccessat(fd, "mine", F_OK, 0), 0);
	assert_int_equal(faccessat(fd, "sub", F_OK, 0), 0);
	sl_object_put(o);
	sl_object_put(dir);
}

/* A reader, in a thread. */
struct stranger {
	struct fx *x;
	struct sl_object *o;
	struct fnode *n;
	_Atomic bool done;
};

static void *read_stranger(void *arg)
{
	struct stranger *s = arg;
	char got[1000], want[1000];
	struct sl_version v;
	must(reads(s->x, s->o, 0, sizeof(got), got, &v) == sizeof(got));
	content(s->n->a.ino, s->n->version, 0, want, sizeof(want));
	must(v.ino == s->n->a.ino && !memcmp(got, want, sizeof(got)));
	s->done = true;
	return NULL;
}

/*
 * "a" becomes "b" at the origin, and another "a" with another "x" is there. Until that has been done here, nobody may take the
 * other "x" for the one that is here.
 */
static void test_stranger(void **state)
{
	struct fx *x = *state;
	x->mark = true;
	again(x, 0, 0);
	struct fnode *a = add(x->k, "a", S_IFDIR | 0755, 0), *ax = add(x->k, "a/x", S_IFREG | 0644, 1000);
	struct fnode *ar = add(x->k, "a/replaced", S_IFREG | 0644, 1000);
	struct sl_object *o = get(x, "a/x"), *q = get(x, "a/replaced"), *dir = get(x, "a");
	/* In the same directory that is its content. */
	ar->a.ino = 77777;
	change(ar, 1200);
	check_range(x, q, ar, 0, 1200);
	quiet(x);
	pthread_mutex_lock(&x->k->lock);
	strcpy(a->place, "b");
	strcpy(ax->place, "b/x");
	strcpy(ar->place, "b/replaced");
	pthread_mutex_unlock(&x->k->lock);
	struct fnode *other = add(x->k, "a", S_IFDIR | 0755, 0), *ox = add(x->k, "a/x", S_IFREG | 0644, 1000);
	struct stranger s = {.x = x, .o = o, .n = ax};
	pthread_t t;
	must(pthread_create(&t, NULL, read_stranger, &s) == 0);
	for (bool asked = false; !asked && !s.done; usleep(1000)) {
		pthread_mutex_lock(&o->lock);
		asked = o->strange;
		pthread_mutex_unlock(&o->lock);
	}
	for (int i = 0; i < 5; i++) {
		sl_fill_retry(x->f);
		usleep(1000);
	}
	assert_false(s.done);
	assert_int_equal(here(o), 0);
	assert_int_equal(o->rec.origin.ino, ax->a.ino);
	assert_int_equal(sl_remote_rename(sl_object_root(x->s), "a", sl_object_root(x->s), "b", 0), 0);
	sl_fill_retry(x->f);
	pthread_join(t, NULL);
	assert_true(s.done);
	quiet(x);
	/* Names of another directory are not its own either. */
	struct fnode *d = add(x->k, "b/d", S_IFDIR | 0755, 0);
	struct sl_version v = sl_attr_version(&d->a);
	struct sl_object *sub;
	assert_int_equal(sl_remote_make(dir, "d", &d->a, NULL, &sub), 0);
	assert_int_equal(sub->rec.origin.ino, v.ino);
	d->a.ino += 100000;
	assert_int_equal(sl_fill_wait(x->f, SL_WANT_NAMES, sub, 0, 0), -ESTALE);
	assert_int_equal(sub->rec.state, SL_COLD);
	d->a.ino -= 100000;
	assert_int_equal(sl_fill_wait(x->f, SL_WANT_NAMES, sub, 0, 0), 0);
	sl_object_put(sub);
	/* Of a directory of which nothing is told, the place is all there is. */
	pthread_mutex_lock(&x->k->lock);
	strcpy(a->place, "c");
	strcpy(ax->place, "c/x");
	strcpy(ar->place, "c/replaced");
	strcpy(other->place, "b");
	strcpy(ox->place, "b/x");
	struct fnode *br = NULL;
	pthread_mutex_unlock(&x->k->lock);
	br = add(x->k, "b/replaced", S_IFREG | 0644, 1000);
	br->a.ino = 88888;
	x->k->unmarked = true;
	check_range(x, q, ar, 0, 1000); /* is here */
	uint64_t freed = 0;
	int result;
	assert_int_equal(sl_fill_commit(x->f), 0);
	assert_int_equal(sl_fill_evict(x->f, &q, &result, 1, &freed), 0);
	check_range(x, q, br, 0, 1000);
	x->k->unmarked = false;
	assert_int_equal(sl_fill_evict(x->f, &o, &result, 1, &freed), 0);
	assert_int_equal(result, 0);
	/* Where nothing is ever told, that is the end of it. */
	pthread_mutex_lock(&o->lock);
	o->strange = 1;
	pthread_mutex_unlock(&o->lock);
	assert_int_equal(sl_fill_wait(x->f, SL_WANT_RANGE, o, 0, 1000), -ESTALE);
	sl_object_put(o);
	sl_object_put(q);
	sl_object_put(dir);
}

/* ---- errors ---- */

static void test_errors(void **state)
{
	struct fx *x = *state;
	static const struct {
		int origin, reader;
	} map[] = {{-ENOENT, -ESTALE}, {-ENOTDIR, -ESTALE}, {-ESTALE, -ESTALE},	 {-EACCES, -EACCES}, {-EPERM, -EACCES},
		   {-ETIMEDOUT, -EIO}, {-EIO, -EIO},	    {-EPROTO, -EIO},	 {-E2BIG, -EIO},     {-ENOTCONN, -EIO},
		   {-ENOMEM, -ENOMEM}};
	struct fnode *n = add(x->k, "f", S_IFREG | 0644, 3 * MIB), *d = add(x->k, "d", S_IFDIR | 0755, 0);
	n->a.no_xattrs = false;
	struct sl_object *o = get(x, "f"), *dir = get(x, "d");
	for (size_t i = 0; i < SL_ARRAY_SIZE(map); i++) {
		n->err = d->err = map[i].origin;
		assert_int_equal(sl_fill_wait(x->f, SL_WANT_RANGE, o, 0, 3 * MIB), map[i].reader);
		assert_int_equal(sl_fill_wait(x->f, SL_WANT_XATTRS, o, 0, 0), map[i].reader);
		assert_int_equal(sl_fill_wait(x->f, SL_WANT_NAMES, dir, 0, 0), map[i].reader);
		quiet(x);
	}
	assert_int_equal(here(o), 0);
	/* The origin is well again: so are we. */
	n->err = d->err = 0;
	check_range(x, o, n, 0, 3 * MIB);
	assert_int_equal(sl_fill_wait(x->f, SL_WANT_XATTRS, o, 0, 0), 0);
	assert_int_equal(sl_fill_wait(x->f, SL_WANT_NAMES, dir, 0, 0), 0);
	assert_int_equal(x->changed, 0);
	sl_object_put(o);
	sl_object_put(dir);
}

/* The origin says one size and gives less: no reader gets zeros for it. */
static void shorten(struct fake *k, struct fnode *n)
{
	(void)k;
	n->a.size = 1000;
}

static void test_short_answer(void **state)
{
	struct fx *x = *state;
	struct fnode *n = add(x->k, "f", S_IFREG | 0644, 5000);
	struct sl_object *o = get(x, "f");
	char b[5000];
	x->k->on_read = shorten; /* same mtime and ctime */
	assert_int_equal(reads(x, o, 0, 5000, b, NULL), 1000);
	assert_int_equal(n->a.size, 1000);
	sl_object_put(o);
}

struct one_want {
	struct sl_want w;
	_Atomic int ran, err;
};

static void count_done(struct sl_want *w, int err)
{
	struct one_want *c = sl_container_of(w, struct one_want, w);
	c->err = err;
	c->ran++;
}

static void test_cancel(void **state)
{
	struct fx *x = *state;
	struct fnode *n = add(x->k, "f", S_IFREG | 0644, 3 * MIB);
	add(x->k, "d", S_IFDIR | 0755, 0);
	n->a.no_xattrs = false;
	struct sl_object *o = get(x, "f"), *d = get(x, "d");
	set_hold(x->k, true);
	struct one_want c[4] = {{.w = {.o = o, .off = 0, .len = 10, .done = count_done}},
				{.w = {.o = o, .off = MIB, .len = MIB, .done = count_done}},
				{.w = {.o = o, .done = count_done}},
				{.w = {.o = d, .done = count_done}}};
	assert_int_equal(sl_fill_want(x->f, SL_WANT_RANGE, &c[0].w), 0);
	assert_int_equal(sl_fill_want(x->f, SL_WANT_RANGE, &c[1].w), 0);
	assert_int_equal(sl_fill_want(x->f, SL_WANT_XATTRS, &c[2].w), 0);
	assert_int_equal(sl_fill_want(x->f, SL_WANT_NAMES, &c[3].w), 0);
	struct sl_fill_stats st;
	sl_fill_get_stats(x->f, &st);
	assert_int_equal(st.waiting, 4);
	for (int i = 0; i < 4; i++)
		assert_true(sl_fill_cancel(x->f, &c[i].w));
	for (int i = 0; i < 4; i++)
		assert_false(sl_fill_cancel(x->f, &c[i].w));
	sl_fill_get_stats(x->f, &st);
	assert_int_equal(st.waiting, 0);
	/* Who comes next finds the requests under way. */
	assert_int_equal(sl_fill_want(x->f, SL_WANT_RANGE, &c[0].w), 0);
	set_hold(x->k, false);
	quiet(x);
	assert_int_equal(c[0].ran, 1);
	assert_int_equal(c[0].err, 0);
	for (int i = 1; i < 4; i++)
		assert_int_equal(c[i].ran, 0);
	assert_false(sl_fill_cancel(x->f, &c[0].w));
	check_range(x, o, n, 0, 3 * MIB);
	each_once(n);
	sl_object_put(o);
	sl_object_put(d);
}

/* Cancelling in the very moment in which it is done: exactly one of both happens. */
static void *cancel_many(void *arg)
{
	struct crowd *c = arg;
	uint64_t seed = mix(++c->id);
	for (int i = 0; i < 300; i++) {
		struct one_want *w = calloc(1, sizeof(*w));
		unsigned k = (unsigned)((seed = mix(seed)) % c->nfiles);
		w->w = (struct sl_want){.o = c->o[k], .off = (seed = mix(seed)) % c->n[k]->a.size, .len = 1000, .done = count_done};
		int r = sl_fill_want(c->x->f, SL_WANT_RANGE, &w->w);
		must(r == 0 || r == 1);
		if (r == 0) {
			if (seed % 3)
				usleep((unsigned)(seed % 400));
			if (sl_fill_cancel(c->x->f, &w->w)) {
				usleep(100);
				must(w->ran == 0);
			} else {
				while (w->ran == 0)
					usleep(50);
				must(w->err == 0);
			}
		}
		if (i % 20 == 19) {
			int result;
			uint64_t freed = 0;
			must(sl_fill_evict(c->x->f, &c->o[k], &result, 1, &freed) == 0);
		}
		/* done() may just be returning to the fill, which no longer touches the want by then. */
		free(w);
	}
	return NULL;
}

static void test_cancel_race(void **state)
{
	struct fx *x = *state;
	struct crowd c = {.x = x};
	x->k->delay_us = 100;
	open_files(&c, (const uint64_t[]){BLOCK, 10 * BLOCK, 3000}, 3);
	run_threads(6, cancel_many, &c);
	quiet(x);
	put_files(&c);
}

/* ---- ends of files, and huge ones ---- */

static void test_edges(void **state)
{
	struct fx *x = *state;
	struct fnode *e = add(x->k, "empty", S_IFREG | 0644, 0), *n = add(x->k, "f", S_IFREG | 0644, 100000);
	struct sl_object *o = get(x, "empty"), *p = get(x, "f");
	struct sl_want w = {.o = o, .off = 0, .len = 4096};
	assert_int_equal(sl_fill_want(x->f, SL_WANT_RANGE, &w), 1);
	w = (struct sl_want){.o = o, .off = UINT64_MAX, .len = UINT64_MAX};
	assert_int_equal(sl_fill_want(x->f, SL_WANT_RANGE, &w), 1);
	assert_int_equal(e->bytes, 0);
	w = (struct sl_want){.o = p, .off = 100000, .len = 4096};
	assert_int_equal(sl_fill_want(x->f, SL_WANT_RANGE, &w), 1);
	w = (struct sl_want){.o = p, .off = UINT64_MAX, .len = UINT64_MAX};
	assert_int_equal(sl_fill_want(x->f, SL_WANT_RANGE, &w), 1);
	w = (struct sl_want){.o = p, .off = 5, .len = 0};
	assert_int_equal(sl_fill_want(x->f, SL_WANT_RANGE, &w), 1);
	assert_int_equal(n->bytes, 0);
	check_range(x, p, n, 99999, 4096);
	assert_int_equal(sl_fill_wait(x->f, SL_WANT_RANGE, p, 1, UINT64_MAX), 0);
	quiet(x);
	each_once(n);
	sl_object_put(o);
	sl_object_put(p);
}

static void test_huge(void **state)
{
	struct fx *x = *state;
	/* Not so large that a test's filesystem refuses it. */
	struct fnode *n = add(x->k, "f", S_IFREG | 0644, 2ull << 40);
	struct sl_object *o = get(x, "f");
	const uint64_t off = (1ull << 40) + 12345;
	check_range(x, o, n, off, 1000);
	check_range(x, o, n, n->a.size - 5, 1000);
	quiet(x);
	assert_true(here(o) <= 4 * MIB);
	assert_int_equal(sl_fill_commit(x->f), 0);
	sl_object_put(o);
	shut(x);
	/* Its chunks are larger than what was read: nothing of it is claimed, or it is all there. */
	open_at(x, x->path);
	o = get(x, "f");
	check_range(x, o, n, off, 1000);
	sl_object_put(o);
}

struct tally {
	_Atomic unsigned left;
	_Atomic int err;
};

struct big_want {
	struct sl_want w;
	struct tally *t;
};

static void tally_done(struct sl_want *w, int err)
{
	struct big_want *b = sl_container_of(w, struct big_want, w);
	if (err)
		b->t->err = err;
	b->t->left--;
}

static void test_in_flight(void **state)
{
	struct fx *x = *state;
	struct tally t = {.left = 3};
	struct fnode *n[3];
	struct sl_object *o[3];
	struct big_want w[3];
	char p[8];
	for (int i = 0; i < 3; i++) {
		snprintf(p, sizeof(p), "f%d", i);
		n[i] = add(x->k, p, S_IFREG | 0644, 40 * MIB);
	}
	for (int i = 0; i < 3; i++)
		o[i] = get(x, n[i]->place);
	set_hold(x->k, true);
	for (int i = 0; i < 3; i++) {
		w[i] = (struct big_want){.w = {.o = o[i], .len = 40 * MIB, .done = tally_done}, .t = &t};
		assert_int_equal(sl_fill_want(x->f, SL_WANT_RANGE, &w[i].w), 0);
	}
	usleep(50000);
	pthread_mutex_lock(&x->k->lock);
	uint64_t held = x->k->held_bytes;
	pthread_mutex_unlock(&x->k->lock);
	assert_in_range(held, 60 * MIB, 64 * MIB);
	/* One of those that wait in the queue is cancelled; the others come all the same. */
	assert_true(sl_fill_cancel(x->f, &w[2].w));
	t.left--;
	set_hold(x->k, false);
	while (t.left)
		usleep(1000);
	assert_int_equal(t.err, 0);
	quiet(x);
	check_range(x, o[0], n[0], 39 * MIB, MIB);
	check_range(x, o[1], n[1], 0, MIB);
	each_once(n[0]);
	for (int i = 0; i < 3; i++)
		sl_object_put(o[i]);
}

/* A free with requests under way that nobody waits for. */
static void test_free_waits(void **state)
{
	struct fx *x = *state;
	make_siblings(x, 50, false);
	struct fnode *n = add(x->k, "f", S_IFREG | 0644, 30 * MIB);
	struct sl_object *o = get(x, "f");
	struct one_want w = {.w = {.o = o, .len = 30 * MIB, .done = count_done}};
	x->k->delay_us = 3000;
	assert_int_equal(sl_fill_want(x->f, SL_WANT_RANGE, &w.w), 0);
	assert_true(sl_fill_cancel(x->f, &w.w));
	sl_object_put(o);
	shut(x);
	/* It was committed: all of it is there. */
	open_at(x, x->path);
	o = get(x, "f");
	assert_int_equal(here(o), n->a.size);
	check_range(x, o, n, 0, n->a.size);
	each_once(n);
	sl_object_put(o);
}

/* ---- what lasts ---- */

static int check_claims(void *arg, const char *path, struct sl_object *o, int err)
{
	struct fx *x = arg;
	must(o && err == 0);
	if (!sl_object_is_reg(o))
		return 0;
	struct fnode *n = find(x->k, path);
	must(n);
	_cleanup_close_ int fd = sl_object_open(o, O_RDONLY);
	must(fd >= 0);
	struct stat st;
	must(fstat(fd, &st) == 0);
	must((uint64_t)st.st_size == o->rec.origin.size);
	_cleanup_free_ char *a = malloc(BLOCK), *b = malloc(BLOCK);
	struct sl_version v = sl_attr_version(&n->a);
	for (uint64_t off = 0; off < o->map.size; off += BLOCK) {
		if (!sl_chunkmap_test(&o->map, off, BLOCK))
			continue;
		must(sl_version_eq(&o->rec.origin, &v));
		size_t k = SL_MIN(BLOCK, o->map.size - off);
		must(sl_pread_full(fd, a, k, (off_t)off) == (ssize_t)k);
		content(n->a.ino, n->version, off, b, k);
		must(memcmp(a, b, k) == 0);
	}
	return 0;
}

/* What a crash now would leave: every chunk that the copy claims to have must be right. Returns the bytes it claims. */
static uint64_t check_copy(struct fx *x)
{
	char cmd[256], path[80];
	static int count;
	snprintf(path, sizeof(path), "%s/copy%d", x->base, count++);
	snprintf(cmd, sizeof(cmd), "cp -a %s %s", x->path, path);
	assert_int_equal(system(cmd), 0);
	struct sl_store *s;
	_cleanup_free_ char *why = NULL;
	assert_int_equal(sl_store_open(path, &s, &why), 0);
	assert_int_equal(sl_walk(sl_object_root(s), check_claims, x), 0);
	uint64_t bytes = 0;
	struct sl_name *v;
	size_t n;
	assert_int_equal(sl_names_read(sl_object_root(s), &v, &n), 0);
	for (size_t i = 0; i < n; i++) {
		_cleanup_object_ struct sl_object *o = NULL;
		assert_int_equal(sl_object_lookup(sl_object_root(s), v[i].name, &o), 0);
		if (sl_object_is_reg(o))
			bytes += sl_chunkmap_bytes(&o->map);
	}
	sl_names_free(v, n);
	sl_store_close(s);
	return bytes;
}

static void test_commit(void **state)
{
	struct fx *x = *state;
	struct fnode *n = add(x->k, "f", S_IFREG | 0644, 10 * MIB + 5), *m = add(x->k, "g", S_IFREG | 0644, 5000);
	struct sl_object *o = get(x, "f"), *q = get(x, "g");
	check_range(x, o, n, 0, BLOCK);
	check_range(x, o, n, 4 * MIB, 3 * BLOCK);
	check_range(x, o, n, n->a.size - 1, 10);
	check_range(x, q, m, 0, 5000);
	quiet(x);
	uint64_t had = here(o);
	assert_true(had < n->a.size);
	(void)check_copy(x);
	assert_int_equal(sl_fill_commit(x->f), 0);
	assert_int_equal(on_disk(x, o).state, SL_PARTIAL);
	assert_int_equal(on_disk(x, q).state, SL_FULL);
	assert_int_equal(check_copy(x), had + 5000);
	struct stat st;
	char p[96];
	snprintf(p, sizeof(p), "%s/tree/g", x->path);
	assert_int_equal(stat(p, &st), 0);
	assert_int_equal(st.st_mtim.tv_sec, m->a.mtime.tv_sec); /* the store's own files show the origin's times */
	assert_int_equal(st.st_mtim.tv_nsec, m->a.mtime.tv_nsec);
	sl_object_put(o);
	sl_object_put(q);
	uint64_t lists = x->k->o.nlists, reads_ = x->k->o.nreads;
	shut(x);
	open_at(x, x->path);
	o = get(x, "f");
	q = get(x, "g");
	assert_int_equal(x->k->o.nlists, lists);
	assert_int_equal(here(o), had);
	check_range(x, q, m, 0, 5000);
	check_range(x, o, n, 4 * MIB, 3 * BLOCK);
	check_range(x, o, n, n->a.size - 1, 10);
	assert_int_equal(x->k->o.nreads, reads_);
	check_range(x, o, n, 0, n->a.size);
	quiet(x);
	each_once(n);
	assert_int_equal(sl_fill_commit(x->f), 0);
	assert_int_equal(on_disk(x, o).state, SL_FULL);
	char map[SL_MAP_MAX_BYTES];
	snprintf(p, sizeof(p), "%s/tree/f", x->path);
	assert_true(getxattr(p, x->s->xattr_map, map, sizeof(map)) < 0); /* a complete file needs no map */
	sl_object_put(o);
	sl_object_put(q);
}

static void test_crash(void **state)
{
	struct fx *x = *state;
	struct crowd c = {.x = x, .rounds = 3};
	open_files(&c, some_sizes, SL_ARRAY_SIZE(some_sizes));
	uint64_t seed = 5;
	for (int i = 0; i < 12; i++) {
		run_threads(4, read_random, &c);
		seed = mix(seed);
		if (i % 3 == 1)
			assert_int_equal(sl_fill_commit(x->f), 0);
		quiet(x);
		if (i % 4 == 3) {
			int results[8];
			uint64_t freed = 0;
			assert_int_equal(sl_fill_evict(x->f, c.o, results, c.nfiles, &freed), 0);
		}
		if (i == 6) {
			pthread_mutex_lock(&x->k->lock);
			change(c.n[5], 3 * MIB);
			pthread_mutex_unlock(&x->k->lock);
			int result;
			uint64_t freed = 0;
			assert_int_equal(sl_fill_evict(x->f, &c.o[5], &result, 1, &freed), 0);
			check_range(x, c.o[5], c.n[5], MIB, 10);
			quiet(x);
		}
		(void)check_copy(x);
	}
	put_files(&c);
}

/* What is not committed is forgotten, nothing else. */
static void test_uncommitted(void **state)
{
	struct fx *x = *state;
	struct fnode *n = add(x->k, "f", S_IFREG | 0644, MIB);
	struct sl_object *o = get(x, "f");
	char cmd[200];
	check_range(x, o, n, 0, MIB);
	quiet(x);
	if (on_disk(x, o).state != SL_COLD) /* the committer was faster: try again another day */
		skip();
	snprintf(cmd, sizeof(cmd), "cp -a %s %s/copy", x->path, x->base);
	assert_int_equal(system(cmd), 0);
	sl_object_put(o);
	shut(x);
	snprintf(x->path, sizeof(x->path), "%s/copy", x->base);
	open_at(x, x->path);
	o = get(x, "f");
	assert_int_equal(here(o), 0);
	check_range(x, o, n, 0, MIB);
	assert_int_equal(n->asked[0], 2);
	sl_object_put(o);
}

/* ---- eviction ---- */

static int evict1(struct fx *x, struct sl_object *o, uint64_t *freed)
{
	int result = 12345;
	uint64_t n = 0;
	assert_int_equal(sl_fill_evict(x->f, &o, &result, 1, &n), 0);
	if (freed)
		*freed = n;
	return result;
}

static void test_evict(void **state)
{
	struct fx *x = *state;
	struct fnode *n = add(x->k, "f", S_IFREG | 0644, 3 * MIB);
	add(x->k, "d", S_IFDIR | 0755, 0);
	struct sl_object *o = get(x, "f"), *d = get(x, "d");
	uint64_t freed;
	assert_int_equal(evict1(x, o, &freed), 0); /* it was cold */
	assert_int_equal(freed, 0);
	check_range(x, o, n, 0, 3 * MIB);
	quiet(x);
	assert_int_equal(sl_fill_commit(x->f), 0);
	assert_int_equal(on_disk(x, o).state, SL_FULL);

	pthread_mutex_lock(&o->lock);
	o->opens++;
	pthread_mutex_unlock(&o->lock);
	assert_int_equal(evict1(x, o, NULL), -EBUSY);
	pthread_mutex_lock(&o->lock);
	o->opens--;
	o->rec.flags |= SL_PINNED;
	pthread_mutex_unlock(&o->lock);
	assert_int_equal(evict1(x, o, NULL), -EPERM);
	pthread_mutex_lock(&o->lock);
	o->rec.flags &= (uint16_t)~SL_PINNED;
	pthread_mutex_unlock(&o->lock);
	/* Open elsewhere, past us: the lease notices. */
	int fd = sl_object_open(o, O_RDONLY);
	assert_true(fd >= 0);
	assert_int_equal(evict1(x, o, NULL), -EBUSY);
	close(fd);
	assert_int_equal(here(o), 3 * MIB);
	assert_int_equal(evict1(x, d, NULL), -EINVAL);

	assert_int_equal(evict1(x, o, &freed), 0);
	assert_true(freed >= 3 * MIB - BLOCK);
	assert_int_equal(here(o), 0);
	assert_int_equal(on_disk(x, o).state, SL_COLD);
	assert_int_equal(x->changed, 0);
	struct sl_attr a;
	assert_int_equal(sl_object_attr(o, &a), 0);
	assert_int_equal(a.size, 3 * MIB);
	assert_int_equal(a.mtime.tv_sec, n->a.mtime.tv_sec);
	check_range(x, o, n, 0, 3 * MIB);
	assert_int_equal(n->asked[0], 2);

	/* Under way. */
	quiet(x);
	assert_int_equal(evict1(x, o, NULL), 0);
	set_hold(x->k, true);
	struct one_want w = {.w = {.o = o, .len = 10, .done = count_done}};
	assert_int_equal(sl_fill_want(x->f, SL_WANT_RANGE, &w.w), 0);
	pthread_mutex_lock(&o->lock);
	assert_int_equal(sl_chunkmap_set(&o->map, 2 * MIB, BLOCK), 0); /* as if some of it were here */
	sl_chunkmap_clear(&o->map, 2 * MIB, BLOCK);
	pthread_mutex_unlock(&o->lock);
	set_hold(x->k, false);
	quiet(x);
	assert_int_equal(w.ran, 1);
	assert_int_equal(evict1(x, o, NULL), 0);
	sl_object_put(o);
	sl_object_put(d);
}

/* A service that was killed while it took content away, or gave a file a new version, left the file cut off, or with
 * what it had before. What is nothing but a hole is written nowhere, and must be as long as it is all the same. */
static void test_half_dropped(void **state)
{
	struct fx *x = *state;
	struct fnode *n = add(x->k, "f", S_IFREG | 0644, MIB);
	n->version = 0;
	n->a.blocks = 0;
	struct sl_object *o = get(x, "f");
	static char old[2 * MIB];
	memset(old, 'x', sizeof(old));
	for (size_t left = 100; left <= sizeof(old); left += sizeof(old) - 100) {
		_cleanup_close_ int fd = sl_object_open(o, O_RDWR);
		struct stat st;
		assert_true(fd >= 0);
		assert_int_equal(ftruncate(fd, 0), 0);
		assert_int_equal(sl_pwrite_full(fd, old, left, 0), 0);
		check_range(x, o, n, 0, MIB);
		assert_int_equal(fstat(fd, &st), 0);
		assert_int_equal(st.st_size, MIB);
		close(sl_steal_fd(&fd));
		quiet(x);
		assert_int_equal(evict1(x, o, NULL), 0);
	}
	sl_object_put(o);
}

static void test_evict_local(void **state)
{
	struct fx *x = *state;
	struct fnode *n = add(x->k, "f", S_IFREG | 0644, 3000);
	struct sl_object *o = get(x, "f"), *made = NULL;
	check_range(x, o, n, 0, 3000);
	quiet(x);
	assert_int_equal(sl_fill_modify(x->f, o, false), 0);
	assert_int_equal(evict1(x, o, NULL), -EEXIST);
	_cleanup_close_ int dir = sl_object_open_dir(sl_object_root(x->s));
	int fd = openat(dir, "made", O_WRONLY | O_CREAT | O_EXCL, 0600);
	assert_int_equal(sl_write_full(fd, "mine", 4), 0);
	close(fd);
	assert_int_equal(sl_object_adopt(sl_object_root(x->s), "made", S_IFREG | 0600, 0, &made), 0);
	assert_int_equal(evict1(x, made, NULL), -EEXIST);
	struct sl_fill_reclaim rc = {0};
	assert_int_equal(sl_fill_reclaim(x->f, sl_object_root(x->s), &rc), 0);
	assert_int_equal(rc.files, 0);
	assert_int_equal(rc.kept, 2);
	sl_object_put(o);
	sl_object_put(made);
}

static void test_reclaim(void **state)
{
	struct fx *x = *state;
	struct crowd c = {.x = x};
	static const uint64_t sizes[] = {MIB, MIB, MIB, MIB, 0, 10};
	open_files(&c, sizes, 6);
	for (int i = 0; i < 4; i++) {
		check_range(x, c.o[i], c.n[i], 0, MIB);
		const struct timespec ts[2] = {{1000 + 10 * i, 0}, {.tv_nsec = UTIME_OMIT}};
		quiet(x);
		assert_int_equal(sl_object_set_times(c.o[i], ts), 0);
	}
	/* Oldest first, as many as it takes. */
	struct sl_fill_reclaim rc = {.to_free = MIB + MIB / 2};
	assert_int_equal(sl_fill_reclaim(x->f, sl_object_root(x->s), &rc), 0);
	assert_int_equal(rc.files, 2);
	assert_int_equal(here(c.o[0]), 0);
	assert_int_equal(here(c.o[1]), 0);
	assert_int_equal(here(c.o[2]), MIB);
	const struct timespec now[2] = {{.tv_nsec = UTIME_NOW}, {.tv_nsec = UTIME_OMIT}};
	assert_int_equal(sl_object_set_times(c.o[3], now), 0);
	rc = (struct sl_fill_reclaim){.older_than = 1000};
	assert_int_equal(sl_fill_reclaim(x->f, sl_object_root(x->s), &rc), 0);
	assert_int_equal(rc.files, 1);
	assert_int_equal(here(c.o[2]), 0);
	assert_int_equal(here(c.o[3]), MIB);
	assert_int_equal(sl_object_open(c.o[3], O_RDONLY) >= 0, 1);
	put_files(&c);
}

static void *commit_loop(void *arg)
{
	struct crowd *c = arg;
	while (!c->stop) {
		must(sl_fill_commit(c->x->f) == 0);
		usleep(500);
	}
	return NULL;
}

static void *populate_loop(void *arg)
{
	struct crowd *c = arg;
	for (int i = 0; !c->stop && i < 1000; i++) {
		char p[32];
		snprintf(p, sizeof(p), "d/p%d", i % 60);
		struct sl_object *o = get(c->x, p);
		must(sl_fill_wait(c->x->f, SL_WANT_NAMES, o, 0, 0) == 0);
		sl_object_put(o);
		usleep(500);
	}
	return NULL;
}

/* Readers, evictions, commits and populating, all at once. */
static void test_evict_race(void **state)
{
	struct fx *x = *state;
	struct crowd c = {.x = x, .rounds = 120, .evict = true};
	char p[32];
	pthread_t t[2];
	x->k->delay_us = 200;
	add(x->k, "d", S_IFDIR | 0755, 0);
	for (int i = 0; i < 60; i++) {
		snprintf(p, sizeof(p), "d/p%d", i);
		add(x->k, p, S_IFDIR | 0755, 0);
	}
	open_files(&c, some_sizes, SL_ARRAY_SIZE(some_sizes));
	assert_int_equal(pthread_create(&t[0], NULL, commit_loop, &c), 0);
	assert_int_equal(pthread_create(&t[1], NULL, populate_loop, &c), 0);
	run_threads(8, read_random, &c);
	c.stop = true;
	pthread_join(t[0], NULL);
	pthread_join(t[1], NULL);
	quiet(x);
	(void)check_copy(x);
	for (unsigned i = 0; i < c.nfiles; i++)
		check_range(x, c.o[i], c.n[i], 0, c.n[i]->a.size);
	put_files(&c);
}

/* A commit between the two steps of an eviction must not say again that what goes away is here. */
static void test_evict_commit(void **state)
{
	struct fx *x = *state;
	struct crowd c = {.x = x};
	pthread_t t;
	open_files(&c, (const uint64_t[]){100000, 3 * MIB}, 2);
	assert_int_equal(pthread_create(&t, NULL, commit_loop, &c), 0);
	for (int i = 0; i < 100; i++) {
		unsigned k = i % 2;
		check_range(x, c.o[k], c.n[k], 0, c.n[k]->a.size);
		int r = evict1(x, c.o[k], NULL);
		assert_true(r == 0 || r == -EBUSY);
		if (r == 0) {
			assert_int_equal(here(c.o[k]), 0);
			assert_int_equal(on_disk(x, c.o[k]).state, SL_COLD);
		}
	}
	c.stop = true;
	pthread_join(t, NULL);
	put_files(&c);
}

static void *rename_loop(void *arg)
{
	struct crowd *c = arg;
	struct sl_object *root = sl_object_root(c->x->s);
	for (unsigned i = 0; !c->stop; i++) {
		uint64_t start = sl_now();
		must(sl_object_rename(root, i % 2 ? "b" : "a", root, i % 2 ? "a" : "b", 0) == 0);
		/* The kernel breaks a lease after 45 s: who waits for that waits for us. */
		must(sl_now() - start < 60 * SL_NS_PER_SEC);
		usleep(100);
	}
	return NULL;
}

static void *reopen_loop(void *arg)
{
	struct crowd *c = arg;
	while (!c->stop) {
		int fd = sl_object_open(c->o[0], O_RDONLY);
		must(fd >= 0);
		close(fd);
		usleep(300);
	}
	return NULL;
}

/* The lease of an eviction holds up who opens the file: nobody else may have to wait for that. */
static void test_evict_lease(void **state)
{
	struct fx *x = *state;
	struct crowd c = {.x = x};
	pthread_t t[3];
	add(x->k, "a", S_IFREG | 0644, 10);
	open_files(&c, (const uint64_t[]){300000}, 1);
	assert_int_equal(pthread_create(&t[0], NULL, commit_loop, &c), 0);
	assert_int_equal(pthread_create(&t[1], NULL, rename_loop, &c), 0);
	assert_int_equal(pthread_create(&t[2], NULL, reopen_loop, &c), 0);
	for (int i = 0; i < 100; i++) {
		uint64_t start = sl_now();
		check_range(x, c.o[0], c.n[0], 0, 300000);
		int r = evict1(x, c.o[0], NULL);
		assert_true(r == 0 || r == -EBUSY);
		assert_true(sl_now() - start < 60 * SL_NS_PER_SEC);
	}
	c.stop = true;
	for (int i = 0; i < 3; i++)
		pthread_join(t[i], NULL);
	put_files(&c);
}

/* Changing a file while it is being evicted: one of both happens, and no byte that was written is lost. */
static void *evict_loop(void *arg)
{
	struct crowd *c = arg;
	while (!c->stop)
		for (unsigned i = 0; i < c->nfiles; i++) {
			int result;
			uint64_t freed = 0;
			must(sl_fill_evict(c->x->f, &c->o[i], &result, 1, &freed) == 0);
		}
	return NULL;
}

static void test_evict_modify(void **state)
{
	struct fx *x = *state;
	pthread_t t;
	for (int round = 0; round < 15; round++) {
		struct crowd c = {.x = x};
		char name[16];
		for (; c.nfiles < 8; c.nfiles++) {
			snprintf(name, sizeof(name), "r%d_%u", round, c.nfiles);
			c.n[c.nfiles] = add(x->k, name, S_IFREG | 0644, 50000);
		}
		if (round)
			again(x, 0, 0);
		for (unsigned i = 0; i < c.nfiles; i++)
			c.o[i] = get(x, c.n[i]->place);
		assert_int_equal(pthread_create(&t, NULL, evict_loop, &c), 0);
		for (unsigned i = 0; i < c.nfiles; i++) {
			struct sl_object *o = c.o[i];
			uint64_t start = sl_now();
			int r;
			do {
				check_range(x, o, c.n[i], 0, 50000);
				r = sl_fill_modify(x->f, o, false);
				assert_true(sl_now() - start < 60 * SL_NS_PER_SEC);
			} while (r == -EAGAIN);
			assert_int_equal(r, 0);
			int fd = sl_object_open(o, O_RDWR);
			assert_int_equal(sl_pwrite_full(fd, "mine", 4, 100), 0);
			close(fd);
			assert_true(sl_now() - start < 60 * SL_NS_PER_SEC);
		}
		usleep(2000);
		c.stop = true;
		pthread_join(t, NULL);
		for (unsigned i = 0; i < c.nfiles; i++) {
			_cleanup_free_ char *a = malloc(50000), *b = malloc(50000);
			int fd = sl_object_open(c.o[i], O_RDONLY);
			assert_int_equal(sl_pread_full(fd, a, 50000, 0), 50000);
			close(fd);
			content(c.n[i]->a.ino, c.n[i]->version, 0, b, 50000);
			memcpy(b + 100, "mine", 4);
			assert_memory_equal(a, b, 50000);
			assert_true(on_disk(x, c.o[i]).flags & SL_MODIFIED);
		}
		put_files(&c);
	}
}

/* ---- changes here ---- */

static void test_modify(void **state)
{
	struct fx *x = *state;
	struct fnode *n = add(x->k, "f", S_IFREG | 0644, 200000), *m = add(x->k, "g", S_IFREG | 0644, 200000);
	struct sl_object *o = get(x, "f"), *q = get(x, "g");
	char b[16];
	/* Not all of it is here: not yet. */
	assert_int_equal(sl_fill_modify(x->f, o, false), -EAGAIN);
	check_range(x, o, n, 0, 200000);
	quiet(x);
	assert_int_equal(sl_fill_modify(x->f, o, false), 0);
	assert_int_equal(sl_fill_modify(x->f, o, false), 0);
	struct sl_record r = on_disk(x, o);
	assert_true(r.flags & SL_MODIFIED);
	assert_int_equal(r.state, SL_FULL);
	int fd = sl_object_open(o, O_RDWR);
	assert_int_equal(sl_pwrite_full(fd, "mine", 4, 10), 0);
	assert_int_equal(ftruncate(fd, 1000), 0);
	/* Truncated to nothing: what is missing is not needed any more; who waits for it goes on. */
	set_hold(x->k, true);
	struct one_want w = {.w = {.o = q, .len = 200000, .done = count_done}};
	assert_int_equal(sl_fill_want(x->f, SL_WANT_RANGE, &w.w), 0);
	assert_int_equal(sl_fill_modify(x->f, q, true), 0);
	while (!w.ran)
		usleep(1000);
	assert_int_equal(w.err, 0);
	int gd = sl_object_open(q, O_RDWR | O_TRUNC);
	assert_int_equal(sl_pwrite_full(gd, "new", 3, 0), 0);
	set_hold(x->k, false);
	quiet(x);
	/* The origin goes on, we do not care. */
	change(n, 300000);
	change(m, 300000);
	struct sl_want again_ = {.o = o, .len = 300000};
	assert_int_equal(sl_fill_want(x->f, SL_WANT_RANGE, &again_), 1);
	assert_int_equal(sl_fill_commit(x->f), 0);
	assert_int_equal(sl_pread_full(fd, b, 4, 10), 4);
	assert_memory_equal(b, "mine", 4);
	struct stat st;
	assert_int_equal(fstat(gd, &st), 0);
	assert_int_equal(st.st_size, 3);
	close(fd);
	close(gd);
	sl_object_put(o);
	sl_object_put(q);
	shut(x);
	open_at(x, x->path);
	o = get(x, "f");
	q = get(x, "g");
	assert_true(o->rec.flags & SL_MODIFIED && q->rec.flags & SL_MODIFIED);
	struct sl_attr a;
	assert_int_equal(sl_object_attr(o, &a), 0);
	assert_int_equal(a.size, 1000);
	assert_int_equal(sl_object_attr(q, &a), 0);
	assert_int_equal(a.size, 3);
	assert_int_equal(sl_fill_wait(x->f, SL_WANT_RANGE, o, 0, 1000), 0);
	assert_int_equal(x->changed, 0);
	sl_object_put(o);
	sl_object_put(q);
}

/* A late answer must not land in what the user wrote. */
static void test_modify_race(void **state)
{
	struct fx *x = *state;
	for (int i = 0; i < 20; i++) {
		char name[16];
		snprintf(name, sizeof(name), "f%d", i);
		add(x->k, name, S_IFREG | 0644, MIB);
	}
	x->k->delay_us = 500;
	for (int i = 0; i < 20; i++) {
		char name[16], b[1000], zero[1000] = {0};
		snprintf(name, sizeof(name), "f%d", i);
		struct sl_object *o = get(x, name);
		struct one_want w[2] = {{.w = {.o = o, .len = 100, .done = count_done}},
					{.w = {.o = o, .off = MIB / 2, .len = 100, .done = count_done}}};
		assert_int_equal(sl_fill_want(x->f, SL_WANT_RANGE, &w[0].w), 0);
		assert_true(sl_fill_want(x->f, SL_WANT_RANGE, &w[1].w) >= 0);
		usleep((unsigned)i * 60);
		assert_int_equal(sl_fill_modify(x->f, o, true), 0);
		/* As the gate truncates: nobody writes meanwhile. */
		pthread_rwlock_wrlock(&o->io);
		int fd = sl_object_open(o, O_RDWR | O_TRUNC);
		assert_int_equal(ftruncate(fd, 1000), 0);
		pthread_rwlock_unlock(&o->io);
		quiet(x);
		struct stat st;
		assert_int_equal(fstat(fd, &st), 0);
		assert_int_equal(st.st_size, 1000);
		assert_int_equal(sl_pread_full(fd, b, 1000, 0), 1000);
		assert_memory_equal(b, zero, 1000);
		close(fd);
		sl_object_put(o);
	}
}

/* Deleted, but still open: what is missing still comes, from where it was. */
static void test_unlinked(void **state)
{
	struct fx *x = *state;
	add(x->k, "d", S_IFDIR | 0755, 0);
	struct fnode *n = add(x->k, "d/f", S_IFREG | 0644, 5 * MIB), *m = add(x->k, "d/m", S_IFREG | 0644, 5 * MIB);
	struct sl_object *d = get(x, "d"), *o = get(x, "d/f"), *q = get(x, "d/m");
	check_range(x, o, n, 0, 10);
	assert_int_equal(sl_object_unlink(d, "f", false), 0);
	check_range(x, o, n, 0, 5 * MIB);
	/* Renamed: the place stays. */
	assert_int_equal(sl_object_rename(d, "m", sl_object_root(x->s), "elsewhere", 0), 0);
	check_range(x, q, m, MIB, 10);
	assert_int_equal(sl_object_unlink(sl_object_root(x->s), "elsewhere", false), 0);
	check_range(x, q, m, 0, 5 * MIB);
	quiet(x);
	assert_int_equal(sl_fill_commit(x->f), 0);
	sl_object_put(o);
	sl_object_put(q);
	sl_object_put(d);
}

/* ---- space ---- */

static void test_no_space(void **state)
{
	struct fx *x = *state;
	struct fnode *n = add(x->k, "f", S_IFREG | 0644, 10000);
	add(x->k, "d", S_IFDIR | 0755, 0);
	add(x->k, "d/a", S_IFREG | 0644, 10);
	struct sl_object *o = get(x, "f");
	check_range(x, o, n, 0, 10000);
	sl_object_put(o);
	shut(x);
	struct sl_store_config c = x->cfg;
	c.reserve = 1ull << 60;
	assert_int_equal(sl_store_config_save(x->path, &c), 0);
	open_at(x, x->path);
	/* What is here stays readable, until it is evicted for what does not fit anyway. */
	o = get(x, "f");
	check_range(x, o, n, 0, 10000);
	struct sl_object *d = get(x, "d");
	pthread_mutex_lock(&o->lock);
	o->opens++;
	pthread_mutex_unlock(&o->lock);
	assert_int_equal(sl_fill_wait(x->f, SL_WANT_NAMES, d, 0, 0), -ENOSPC);
	check_range(x, o, n, 0, 10000);
	pthread_mutex_lock(&o->lock);
	o->opens--;
	pthread_mutex_unlock(&o->lock);
	sl_object_put(o);
	sl_object_put(d);
	shut(x);
	c.reserve = 0;
	assert_int_equal(sl_store_config_save(x->path, &c), 0);
	open_at(x, x->path);
	o = get(x, "d/a");
	check_range(x, o, find(x->k, "d/a"), 0, 10);
	sl_object_put(o);
}

static uint64_t content_of(struct crowd *c)
{
	uint64_t n = 0;
	for (unsigned i = 0; i < c->nfiles; i++)
		n += here(c->o[i]);
	return n;
}

struct watch {
	struct crowd *c;
	uint64_t most;
};

static void *watch_content(void *arg)
{
	struct watch *w = arg;
	while (!w->c->stop) {
		w->most = SL_MAX(w->most, content_of(w->c));
		usleep(200);
	}
	return NULL;
}

static void *read_whole(void *arg)
{
	struct crowd *c = arg;
	unsigned id = ++c->id;
	for (unsigned i = 0; i < c->rounds; i++) {
		unsigned k = (unsigned)(mix(id * 1000 + i) % c->nfiles);
		_cleanup_free_ char *a = malloc(MIB), *b = malloc(MIB);
		ssize_t r = reads(c->x, c->o[k], 0, MIB, a, NULL);
		/* With all that is here under way somebody may get nothing; never something wrong. */
		must(r == MIB || r == -ENOSPC || r == -ELOOP);
		if (r == MIB) {
			content(c->n[k]->a.ino, c->n[k]->version, 0, b, MIB);
			must(memcmp(a, b, MIB) == 0);
		}
	}
	return NULL;
}

static void test_limit(void **state)
{
	struct fx *x = *state;
	const uint64_t limit = 5 * MIB;
	struct crowd c = {.x = x, .rounds = 30};
	struct watch w = {.c = &c};
	pthread_t t;
	again(x, limit, 0);
	open_files(&c, (const uint64_t[]){MIB, MIB, MIB, MIB, MIB, MIB, MIB, MIB}, 8);
	for (unsigned i = 0; i < 8; i++) {
		check_range(x, c.o[i], c.n[i], 0, MIB);
		quiet(x);
		assert_true(content_of(&c) <= limit);
	}
	/* Of what came last most is here. */
	assert_int_equal(here(c.o[7]), MIB);
	assert_int_equal(pthread_create(&t, NULL, watch_content, &w), 0);
	run_threads(3, read_whole, &c);
	c.stop = true;
	pthread_join(t, NULL);
	if (w.most > limit)
		print_message("most: %llu\n", (unsigned long long)w.most);
	assert_true(w.most <= limit);
	put_files(&c);
	/* What is here counts after a restart as well. */
	shut(x);
	open_at(x, x->path);
	c.stop = false;
	for (unsigned i = 0; i < 8; i++)
		c.o[i] = get(x, c.n[i]->place);
	for (unsigned i = 0; i < 8; i++) {
		check_range(x, c.o[i], c.n[i], 0, MIB);
		quiet(x);
		assert_true(content_of(&c) <= limit);
	}
	put_files(&c);
}

/* ---- taking names away ---- */

struct turn {
	struct fx *x;
	_Atomic int tid;
	atomic_bool had;
};

static void *take_turn(void *arg)
{
	struct turn *t = arg;
	t->tid = gettid();
	sl_fill_lock_names(t->x->f);
	t->had = true;
	sl_fill_unlock_names(t->x->f);
	return NULL;
}

/* Who has the names does not get them again before who has waited for them: evictions without end would keep
 * the replay out. */
static void one_turn(struct fx *x)
{
	struct turn t = {.x = x};
	pthread_t th;
	sl_fill_lock_names(t.x->f);
	assert_int_equal(pthread_create(&th, NULL, take_turn, &t), 0);
	for (char how = 0; how != 'S';) { /* until it waits */
		char path[64];
		sched_yield();
		snprintf(path, sizeof(path), "/proc/self/task/%d/stat", t.tid);
		FILE *f = t.tid ? fopen(path, "re") : NULL;
		if (f) {
			assert_int_equal(fscanf(f, "%*d (%*[^)]) %c", &how), 1);
			fclose(f);
		}
	}
	assert_false(t.had);
	sl_fill_unlock_names(t.x->f);
	sl_fill_lock_names(t.x->f);
	assert_true(t.had);
	sl_fill_unlock_names(t.x->f);
	pthread_join(th, NULL);
}

static void test_names_in_turn(void **state)
{
	for (int i = 0; i < 50; i++)
		one_turn(*state);
}

#define T(name) cmocka_unit_test_setup_teardown(test_##name, setup, teardown)

int main(int argc, char **argv)
{
	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	signal(SIGIO, SIG_IGN); /* as the service does: somebody wants to break a lease of ours */
	sl_log_set_level(SL_LOG_ERR);
	const struct CMUnitTest tests[] = {
		T(single_flight),   T(random_ranges),	 T(names_once),		  T(xattrs_once),
		T(readahead),	    T(siblings),	 T(subdirectories),	  T(version_change),
		T(version_change_midway), T(never_still), T(change_keeps_local_times), T(replaced),
		T(stranger),	    T(tree_used), T(errors),	    T(short_answer),	 T(cancel),		  T(cancel_race),
		T(edges),	    T(huge),		 T(in_flight),		  T(free_waits),
		T(commit),	    T(crash),		 T(uncommitted),	  T(evict),
		T(half_dropped), T(evict_local),	    T(reclaim),		 T(evict_race),		  T(evict_commit),
		T(evict_lease),	    T(evict_modify),	 T(modify),		  T(modify_race),
		T(unlinked),	    T(no_space),	 T(limit), T(names_in_turn),
	};
	return cmocka_run_group_tests_name("fill", tests, NULL, NULL);
}
