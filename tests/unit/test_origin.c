/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Origins: a local directory and an export must say the same of one tree; an export whose connection breaks, that does not
 * answer, or that lies. If this fails, a clone shows something else than its origin has, or hangs with it. suite: threads
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
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>

#include "base/fd.h"
#include "base/log.h"
#include "base/time.h"
#include "origin/origin.h"
#include "origin/places.h"
#include "serve/serve.h"
#include "wire/msg.h"
#include "wire/transport.h"

#define must(x)                                                                                              \
	do {                                                                                                 \
		if (!(x)) {                                                                                  \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #x);                              \
			abort();                                                                             \
		}                                                                                            \
	} while (0)

#define CONNS 256

struct fx;

struct conn {
	struct fx *x;
	struct sl_transport *t;
	pthread_t thread;
};

struct fx {
	char base[48], tree[64], sock[80], spec[96];
	int dir, listen;
	struct sl_export *e;
	pthread_t acceptor;
	pthread_mutex_t lock;
	struct conn conns[CONNS];
	unsigned n;
	bool stop;
	/* A server of the test's own instead of the exporter. */
	void (*_Atomic hostile)(struct fx *x, struct sl_transport *t);
	_Atomic int mode;
	_Atomic unsigned forgets, lookups, requests;
	struct sl_origin *local, *export;
};

static void *serve(void *arg)
{
	struct conn *c = arg;
	if (c->x->hostile)
		c->x->hostile(c->x, c->t);
	else
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
		if (x->stop || x->n == CONNS) {
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

static int setup(void **state)
{
	struct fx *x = calloc(1, sizeof(*x));
	strcpy(x->base, "/tmp/sluice-origin-XXXXXX");
	assert_non_null(mkdtemp(x->base));
	snprintf(x->tree, sizeof(x->tree), "%s/tree", x->base);
	snprintf(x->sock, sizeof(x->sock), "%s/sock", x->base);
	snprintf(x->spec, sizeof(x->spec), "unix:%s", x->sock);
	assert_int_equal(mkdir(x->tree, 0755), 0);
	x->dir = open(x->tree, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_int_equal(sl_export_open(x->tree, NULL, &x->e, NULL), 0);
	pthread_mutex_init(&x->lock, NULL);
	x->listen = sl_unix_listen(x->sock, 0600);
	assert_true(x->listen >= 0);
	assert_int_equal(pthread_create(&x->acceptor, NULL, accept_loop, x), 0);
	*state = x;
	return 0;
}

static int teardown(void **state)
{
	struct fx *x = *state;
	sl_origin_free(x->local);
	sl_origin_free(x->export);
	pthread_mutex_lock(&x->lock);
	x->stop = true;
	pthread_mutex_unlock(&x->lock);
	shutdown(x->listen, SHUT_RDWR);
	pthread_join(x->acceptor, NULL);
	close(x->listen);
	cut(x);
	for (unsigned i = 0; i < x->n; i++) {
		pthread_join(x->conns[i].thread, NULL);
		sl_transport_free(x->conns[i].t);
	}
	sl_export_free(x->e);
	close(x->dir);
	assert_int_equal(sl_remove_tree(AT_FDCWD, x->base), 0);
	free(x);
	return 0;
}

static void connect_export(struct fx *x, unsigned timeout)
{
	const struct sl_origin_config cfg = {.timeout = timeout};
	_cleanup_free_ char *why = NULL;
	int r = sl_origin_open(x->spec, &cfg, &x->export, &why);
	if (r < 0)
		print_error("%s\n", why);
	assert_int_equal(r, 0);
}

static void connect_both(struct fx *x)
{
	const struct sl_origin_config cfg = {.timeout = 30};
	assert_int_equal(sl_origin_open(x->tree, &cfg, &x->local, NULL), 0);
	connect_export(x, 30);
}

static void put(struct fx *x, const char *name, size_t size)
{
	_cleanup_close_ int fd = openat(x->dir, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0640);
	assert_true(fd >= 0);
	_cleanup_free_ char *b = malloc(size + 1);
	for (size_t i = 0; i < size; i++)
		b[i] = (char)(i * 7 + i / 251);
	assert_int_equal(sl_write_full(fd, b, size), 0);
}

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct sl_oentry *)a)->name, ((const struct sl_oentry *)b)->name);
}

static int by_xname(const void *a, const void *b)
{
	return strcmp(((const struct sl_oxattr *)a)->name, ((const struct sl_oxattr *)b)->name);
}

static void same_attr(const struct sl_attr *a, const struct sl_attr *b)
{
	assert_int_equal(a->ino, b->ino);
	if (b->generation) /* an export does not say its root's */
		assert_int_equal(a->generation, b->generation);
	assert_int_equal(a->size, b->size);
	assert_int_equal(a->blocks, b->blocks);
	assert_int_equal(a->mode, b->mode);
	assert_int_equal(a->nlink, b->nlink);
	assert_int_equal(a->uid, b->uid);
	assert_int_equal(a->gid, b->gid);
	assert_int_equal(a->rdev, b->rdev);
	assert_true(sl_time_eq(a->mtime, b->mtime));
	assert_true(sl_time_eq(a->ctime, b->ctime));
}

static bool not_it(int r)
{
	return r == -ENOENT || r == -ENOTDIR || r == -ESTALE || r == -EISDIR || r == -ENXIO || r == -ELOOP;
}

/* The same question to both. Returns the error. */
static int same(struct fx *x, struct sl_oreq q)
{
	struct sl_oreq a = q, b = q;
	int ra = sl_origin_call(x->local, &a), rb = sl_origin_call(x->export, &b);
	/* "Not what it was" has several names. */
	if (ra != rb && !(not_it(ra) && not_it(rb))) {
		print_error("operation %d of '%.60s': local %d, export %d\n", q.op, q.place, ra, rb);
		assert_int_equal(ra, rb);
	}
	if (ra == 0 && q.op != SL_OREQ_STATFS)
		same_attr(&a.attr, &b.attr);
	if (ra == 0) {
		assert_int_equal(a.nread, b.nread);
		if (a.nread)
			assert_memory_equal(a.data, b.data, a.nread);
		assert_int_equal(a.result, b.result);
		assert_int_equal(a.nxattrs, b.nxattrs);
		if (a.nxattrs) {
			qsort(a.xattrs, a.nxattrs, sizeof(*a.xattrs), by_xname);
			qsort(b.xattrs, b.nxattrs, sizeof(*b.xattrs), by_xname);
		}
		for (size_t i = 0; i < a.nxattrs; i++) {
			assert_string_equal(a.xattrs[i].name, b.xattrs[i].name);
			assert_int_equal(a.xattrs[i].len, b.xattrs[i].len);
			if (a.xattrs[i].len)
				assert_memory_equal(a.xattrs[i].value, b.xattrs[i].value, a.xattrs[i].len);
		}
		assert_int_equal(a.nentries, b.nentries);
		if (a.nentries) {
			qsort(a.entries, a.nentries, sizeof(*a.entries), by_name);
			qsort(b.entries, b.nentries, sizeof(*b.entries), by_name);
		}
		for (size_t i = 0; i < a.nentries; i++) {
			assert_string_equal(a.entries[i].name, b.entries[i].name);
			same_attr(&a.entries[i].attr, &b.entries[i].attr);
			assert_int_equal(!a.entries[i].target, !b.entries[i].target);
			if (a.entries[i].target)
				assert_string_equal(a.entries[i].target, b.entries[i].target);
		}
		assert_int_equal(a.fs.blocks, b.fs.blocks);
		assert_int_equal(a.fs.bsize, b.fs.bsize);
		assert_int_equal(a.fs.namelen, b.fs.namelen);
	}
	sl_oreq_fini(&a);
	sl_oreq_fini(&b);
	return ra;
}

static int same_all(struct fx *x, const char *place)
{
	(void)same(x, (struct sl_oreq){.op = SL_OREQ_LIST, .place = place});
	(void)same(x, (struct sl_oreq){.op = SL_OREQ_XATTRS, .place = place});
	static const struct {
		uint64_t off;
		size_t len;
	} r[] = {{0, 10}, {0, 3 << 20}, {5, 70000}, {1 << 20, 1 << 20}, {UINT32_MAX, 10}, {0, 0}, {299999, 5}};
	for (size_t i = 0; i < SL_ARRAY_SIZE(r); i++)
		(void)same(x, (struct sl_oreq){.op = SL_OREQ_READ, .place = place, .off = r[i].off, .len = r[i].len});
	struct sl_oreq st = {.op = SL_OREQ_STAT, .place = place};
	bool reg = sl_origin_call(x->local, &st) == 0 && S_ISREG(st.attr.mode);
	static const uint64_t from[] = {1, 5 << 20, 1ull << 40};
	for (size_t i = 0; reg && i < SL_ARRAY_SIZE(from) * 2; i++)
		(void)same(x, (struct sl_oreq){.op = SL_OREQ_LSEEK, .place = place, .off = from[i / 2], .whence = i % 2 ? SEEK_DATA : SEEK_HOLE});
	(void)same(x, (struct sl_oreq){.op = SL_OREQ_STAT, .place = place, .fresh = true});
	return same(x, (struct sl_oreq){.op = SL_OREQ_STAT, .place = place});
}

static void make_tree(struct fx *x)
{
	assert_int_equal(mkdirat(x->dir, "d", 0750), 0);
	assert_int_equal(mkdirat(x->dir, "d/e", 01777), 0);
	assert_int_equal(mkdirat(x->dir, "empty", 0700), 0);
	put(x, "zero", 0);
	put(x, "small", 7);
	put(x, "d/e/large", 3 << 20);
	put(x, "d/\xff\n odd", 300000);
	put(x, "sparse", 0);
	int fd = openat(x->dir, "sparse", O_WRONLY);
	assert_int_equal(ftruncate(fd, 10 << 20), 0);
	assert_int_equal(sl_pwrite_full(fd, "x", 1, 5 << 20), 0);
	assert_int_equal(fsetxattr(fd, "user.one", "1", 1, 0), 0);
	assert_int_equal(fsetxattr(fd, "user.sluice.map", "1", 1, 0), 0);
	close(fd);
	assert_int_equal(linkat(x->dir, "small", x->dir, "d/hard", 0), 0);
	assert_int_equal(symlinkat("d", x->dir, "todir"), 0);
	assert_int_equal(symlinkat("/etc/passwd", x->dir, "d/away"), 0);
	assert_int_equal(symlinkat("nowhere", x->dir, "dangling"), 0);
	assert_int_equal(mkfifoat(x->dir, "fifo", 0600), 0);
	if (geteuid() == 0)
		assert_int_equal(mknodat(x->dir, "null", S_IFCHR | 0666, makedev(1, 3)), 0);
	assert_int_equal(fsetxattr(x->dir, "user.root", "yes", 3, 0), 0);
	char name[32];
	for (int i = 0; i < 700; i++) {
		snprintf(name, sizeof(name), "d/e/%d", i);
		if (i % 3)
			put(x, name, (size_t)i);
		else
			assert_int_equal(symlinkat(name, x->dir, name), 0);
	}
}

static void test_same(void **state)
{
	struct fx *x = *state;
	make_tree(x);
	connect_both(x);
	static const char *const there[] = {"", "d", "d/e", "empty", "zero", "small", "d/e/large", "d/\xff\n odd", "sparse", "d/hard", "todir",
					    "dangling", "fifo", "d/e/3", "d/e/4"};
	static const char *const not[] = {"none", "d/none", "small/x", "small/x/y", "todir/e", "todir/e/large", "dangling/x", "d/away/x", "fifo/x"};
	for (int round = 0; round < 2; round++) {
		for (size_t i = 0; i < SL_ARRAY_SIZE(there); i++)
			assert_int_equal(same_all(x, there[i]), 0);
		for (size_t i = 0; i < SL_ARRAY_SIZE(not); i++)
			assert_true(same_all(x, not[i]) < 0);
	}
	assert_int_equal(same(x, (struct sl_oreq){.op = SL_OREQ_STATFS, .place = ""}), 0);
	/* Never out of the root. */
	static const char *const bad[] = {"..", "d/..", "d/../..", "../tree", "/", "/etc"};
	for (size_t i = 0; i < SL_ARRAY_SIZE(bad); i++) {
		struct sl_oreq a = {.op = SL_OREQ_STAT, .place = bad[i]}, b = a;
		if (sl_origin_call(x->local, &a) == 0) {
			struct stat st;
			assert_int_equal(fstat(x->dir, &st), 0);
			assert_int_equal(a.attr.ino, st.st_ino);
		}
		assert_true(sl_origin_call(x->export, &b) < 0);
	}
	/* What changes is noticed. */
	assert_int_equal(unlinkat(x->dir, "small", 0), 0);
	assert_int_equal(mkdirat(x->dir, "small", 0700), 0);
	assert_int_equal(renameat(x->dir, "d/e", x->dir, "moved"), 0);
	put(x, "d/e", 5);
	assert_int_equal(same_all(x, "moved/large"), 0);
	usleep(50000); /* for so long an exporter may believe what it knows */
	assert_int_equal(same(x, (struct sl_oreq){.op = SL_OREQ_STAT, .place = "small", .fresh = true}), 0);
	assert_int_equal(same(x, (struct sl_oreq){.op = SL_OREQ_LIST, .place = ""}), 0);
	assert_int_equal(same(x, (struct sl_oreq){.op = SL_OREQ_LIST, .place = "d"}), 0);
	assert_int_equal(same(x, (struct sl_oreq){.op = SL_OREQ_READ, .place = "d/e", .len = 100}), 0);
}

static void test_deep(void **state)
{
	struct fx *x = *state;
	char name[256], place[8192] = "";
	memset(name, 'n', 240);
	name[240] = '\0';
	int fd = dup(x->dir);
	for (int i = 0; i < 25; i++) {
		assert_int_equal(mkdirat(fd, name, 0755), 0);
		int n = openat(fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		close(fd);
		fd = n;
		sprintf(place + strlen(place), "%s%s", i ? "/" : "", name);
	}
	int f = openat(fd, "end", O_WRONLY | O_CREAT, 0600);
	assert_int_equal(sl_write_full(f, "deep", 4), 0);
	close(f);
	close(fd);
	connect_both(x);
	assert_int_equal(same_all(x, place), 0);
	strcat(place, "/end");
	assert_int_equal(same_all(x, place), 0);
}

/* ---- connections that break ---- */

struct crowd {
	struct fx *x;
	atomic_bool stop;
	_Atomic unsigned ok;
};

static void *ask(void *arg)
{
	struct crowd *c = arg;
	for (unsigned i = 0; !c->stop; i++) {
		struct sl_oreq q = {.op = i % 3 == 0 ? SL_OREQ_LIST : i % 3 == 1 ? SL_OREQ_READ : SL_OREQ_XATTRS,
				    .place = i % 3 == 0 ? "d/e" : i % 3 == 1 ? "d/e/large" : "sparse",
				    .len = 3 << 20};
		int r = sl_origin_call(c->x->export, &q);
		if (r)
			fprintf(stderr, "operation %d: %s\n", q.op, strerror(-r));
		must(r == 0);
		if (q.op == SL_OREQ_READ) {
			must(q.nread == 3 << 20);
			for (size_t k = 0; k < q.nread; k += 1009)
				must(q.data[k] == (char)(k * 7 + k / 251));
		} else if (q.op == SL_OREQ_LIST) {
			must(q.nentries == 701);
			for (size_t k = 0; k < q.nentries; k++)
				must(!S_ISLNK(q.entries[k].attr.mode) == !q.entries[k].target);
		} else {
			must(q.nxattrs == 1);
		}
		sl_oreq_fini(&q);
		c->ok++;
	}
	return NULL;
}

static void test_reconnect(void **state)
{
	struct fx *x = *state;
	struct crowd c = {.x = x};
	pthread_t t[12];
	make_tree(x);
	connect_export(x, 60);
	for (int i = 0; i < 12; i++)
		assert_int_equal(pthread_create(&t[i], NULL, ask, &c), 0);
	for (int i = 0; i < 25; i++) {
		usleep((unsigned)(i * 1931 % 40000));
		cut(x);
	}
	unsigned before = c.ok;
	while (c.ok < before + 24)
		usleep(1000);
	c.stop = true;
	for (int i = 0; i < 12; i++)
		pthread_join(t[i], NULL);
	assert_true(x->n > 5);
	assert_true(sl_origin_connected(x->export));
}

/* ---- a server of another kind ---- */

enum mode {
	SILENT,	   /* says INIT and who the root is, then nothing */
	DUPLICATE, /* a name comes twice */
	SLASH,	   /* names that are no names */
	DOTS,	   /* never ends, and says nothing */
	ENDLESS,   /* never ends, with new names */
	NO_NODES,  /* entries without nodes, that LOOKUP says are symlinks */
	BAD_TYPE,
	BAD_TIME,
	BAD_TARGET,
	LONG_READ,
	BAD_XATTRS,
	COUNTING, /* any name is a file */
};

static void reply(struct sl_transport *t, uint64_t unique, int error, const void *a, size_t an, const void *b, size_t bn)
{
	struct fuse_out_header h = {.len = (uint32_t)(sizeof(h) + an + bn), .error = error, .unique = unique};
	struct iovec iov[3] = {{&h, sizeof(h)}, {(void *)a, an}, {(void *)b, bn}};
	(void)sl_transport_send(t, iov, 3);
}

static struct fuse_attr some_attr(uint64_t ino, uint32_t mode)
{
	return (struct fuse_attr){.ino = ino, .size = 10, .mode = mode, .nlink = 1, .mtime = 5, .ctime = 6};
}

static size_t add_entry(char *buf, size_t cap, size_t *len, const char *name, size_t namelen, uint64_t node, uint64_t off, uint32_t mode)
{
	struct fuse_direntplus d = {0};
	d.entry_out.nodeid = node;
	d.entry_out.attr = some_attr(node, mode);
	d.dirent.ino = node;
	d.dirent.off = off;
	d.dirent.namelen = (uint32_t)namelen;
	size_t n = offsetof(struct fuse_direntplus, dirent) + offsetof(struct fuse_dirent, name) + namelen;
	if (*len + SL_ALIGN_UP(n, 8) > cap)
		return 0;
	memset(buf + *len, 0, SL_ALIGN_UP(n, 8));
	memcpy(buf + *len, &d, offsetof(struct fuse_direntplus, dirent) + offsetof(struct fuse_dirent, name));
	memcpy(buf + *len + offsetof(struct fuse_direntplus, dirent) + offsetof(struct fuse_dirent, name), name, namelen);
	*len += SL_ALIGN_UP(n, 8);
	return n;
}

static void answer_list(struct fx *x, struct sl_transport *t, const struct fuse_in_header *h, const struct fuse_read_in *in)
{
	static __thread char buf[65536];
	size_t len = 0, cap = SL_MIN((size_t)in->size, sizeof(buf));
	uint64_t off = in->offset;
	char name[300];
	switch (x->mode) {
	case DUPLICATE:
		if (off == 0) {
			add_entry(buf, cap, &len, "twice", 5, 10, 1, S_IFREG | 0644);
			add_entry(buf, cap, &len, "other", 5, 11, 2, S_IFREG | 0644);
		} else if (off == 2) {
			add_entry(buf, cap, &len, "twice", 5, 12, 3, S_IFREG | 0644);
		}
		break;
	case SLASH: {
		static const char *const bad[] = {"a/b", "/", "../x", "a\0b", ""};
		static const size_t n[] = {3, 1, 4, 3, 0};
		unsigned k = x->lookups % 5;
		if (off == 0)
			add_entry(buf, cap, &len, bad[k], n[k], 10, 1, S_IFREG | 0644);
		break;
	}
	case DOTS:
		add_entry(buf, cap, &len, ".", 1, 0, off + 1, S_IFDIR | 0755);
		break;
	case ENDLESS:
		for (;; off++) {
			snprintf(name, sizeof(name), "%llu", (unsigned long long)off);
			if (!add_entry(buf, cap, &len, name, strlen(name), 100 + off, off + 1, S_IFREG | 0644))
				break;
		}
		break;
	case NO_NODES:
		if (off == 0) {
			add_entry(buf, cap, &len, "link", 4, 0, 1, 0);
			add_entry(buf, cap, &len, "file", 4, 0, 2, 0);
		}
		break;
	case BAD_TYPE:
		if (off == 0)
			add_entry(buf, cap, &len, "x", 1, 10, 1, 0160000 | 0644);
		break;
	case BAD_TARGET:
		if (off == 0)
			add_entry(buf, cap, &len, "link", 4, 10, 1, S_IFLNK | 0777);
		break;
	default:
		break;
	}
	reply(t, h->unique, 0, buf, len, NULL, 0);
}

static void hostile(struct fx *x, struct sl_transport *t)
{
	void *msg;
	ssize_t n;
	uint64_t next = 1000;
	while ((n = sl_transport_recv_alloc(t, 2 << 20, -1, &msg)) > 0) {
		struct fuse_in_header h;
		memcpy(&h, msg, sizeof(h));
		const char *body = (const char *)msg + sizeof(h);
		x->requests++;
		struct fuse_init_out init = {.major = FUSE_KERNEL_VERSION,
					     .minor = FUSE_KERNEL_MINOR_VERSION,
					     .flags = FUSE_DO_READDIRPLUS | FUSE_MAX_PAGES | FUSE_BIG_WRITES,
					     .max_write = 65536,
					     .max_pages = 16};
		struct fuse_attr_out attr = {.attr = some_attr(h.nodeid, h.nodeid == 1 ? S_IFDIR | 0755 : S_IFREG | 0644)};
		struct fuse_entry_out entry = {.nodeid = ++next, .attr = some_attr(next, S_IFREG | 0644)};
		struct fuse_open_out open_out = {.fh = 1};
		static const char zeros[70000];
		if (h.opcode == FUSE_INIT)
			reply(t, h.unique, 0, &init, sizeof(init), NULL, 0);
		else if (h.opcode == FUSE_GETATTR && (h.nodeid == 1 || x->mode != SILENT)) {
			if (x->mode == BAD_TIME && h.nodeid != 1)
				attr.attr.mtimensec = 1000000000;
			reply(t, h.unique, 0, &attr, sizeof(attr), NULL, 0);
		} else if (x->mode == SILENT)
			;
		else if (h.opcode == FUSE_LOOKUP) {
			x->lookups++;
			if (x->mode == NO_NODES && !strcmp(body, "link"))
				entry.attr.mode = S_IFLNK | 0777;
			if (x->mode == BAD_TIME)
				entry.attr.mtimensec = 1000000000;
			reply(t, h.unique, 0, &entry, sizeof(entry), NULL, 0);
		} else if (h.opcode == FUSE_OPENDIR || h.opcode == FUSE_OPEN)
			reply(t, h.unique, 0, &open_out, sizeof(open_out), NULL, 0);
		else if (h.opcode == FUSE_READDIRPLUS) {
			struct fuse_read_in in;
			memcpy(&in, body, sizeof(in));
			answer_list(x, t, &h, &in);
		} else if (h.opcode == FUSE_READLINK) {
			if (x->mode == BAD_TARGET)
				reply(t, h.unique, 0, "a\0b", x->lookups % 2 ? 3 : 0, NULL, 0);
			else
				reply(t, h.unique, 0, "target", 6, NULL, 0);
		} else if (h.opcode == FUSE_READ)
			reply(t, h.unique, 0, zeros, x->mode == LONG_READ ? 5000 : 10, NULL, 0);
		else if (h.opcode == FUSE_LISTXATTR)
			reply(t, h.unique, 0, x->mode == BAD_XATTRS ? "user.a\0user.b" : "", x->mode == BAD_XATTRS ? 13 : 0, NULL, 0);
		else if (h.opcode == FUSE_FORGET)
			x->forgets++;
		else if (h.opcode == FUSE_BATCH_FORGET) {
			struct fuse_batch_forget_in in;
			memcpy(&in, body, sizeof(in));
			x->forgets += in.count;
		} else if (h.opcode == FUSE_RELEASEDIR || h.opcode == FUSE_RELEASE)
			reply(t, h.unique, 0, NULL, 0, NULL, 0);
		else if (h.opcode != FUSE_INTERRUPT)
			reply(t, h.unique, -ENOSYS, NULL, 0, NULL, 0);
		free(msg);
	}
}

static void connect_hostile(struct fx *x, enum mode mode, unsigned timeout)
{
	x->hostile = hostile;
	x->mode = mode;
	connect_export(x, timeout);
}

static int ask_one(struct fx *x, enum sl_oreq_op op, const char *place)
{
	struct sl_oreq q = {.op = op, .place = place, .len = 100};
	int r = sl_origin_call(x->export, &q);
	if (r)
		assert_int_equal(q.nentries + q.nread + q.nxattrs, 0);
	sl_oreq_fini(&q);
	return r;
}

static void test_timeout(void **state)
{
	struct fx *x = *state;
	connect_hostile(x, SILENT, 1);
	uint64_t start = sl_now();
	assert_int_equal(ask_one(x, SL_OREQ_STAT, "a"), -ETIMEDOUT);
	assert_int_equal(ask_one(x, SL_OREQ_LIST, ""), -ETIMEDOUT);
	uint64_t took = sl_now() - start;
	assert_in_range(took, 2 * SL_NS_PER_SEC - SL_NS_PER_MS, 30 * SL_NS_PER_SEC);
}

struct async {
	struct sl_oreq r;
	_Atomic int ran;
	int err;
};

static void async_done(struct sl_oreq *r)
{
	struct async *a = sl_container_of(r, struct async, r);
	a->err = r->err;
	a->ran++;
}

static void test_stop(void **state)
{
	struct fx *x = *state;
	struct async a[100] = {0};
	connect_hostile(x, SILENT, 60);
	for (int i = 0; i < 100; i++) {
		a[i].r = (struct sl_oreq){.op = i % 2 ? SL_OREQ_STAT : SL_OREQ_LIST, .place = i % 3 ? "a" : "", .done = async_done};
		if (i % 6 == 3)
			a[i].r.place = "b/c"; /* the root's attributes alone are answered */
		sl_origin_submit(x->export, &a[i].r);
	}
	usleep(50000);
	uint64_t start = sl_now();
	sl_origin_stop(x->export);
	struct async late = {.r = {.op = SL_OREQ_STAT, .place = "a", .done = async_done}};
	sl_origin_submit(x->export, &late.r);
	for (int i = 0; i < 100; i++)
		while (!a[i].ran)
			usleep(1000);
	while (!late.ran)
		usleep(1000);
	assert_true(sl_now() - start < 30 * SL_NS_PER_SEC); /* half of their deadline */
	assert_int_equal(late.err, -ETIMEDOUT);
	for (int i = 0; i < 100; i++) {
		assert_int_equal(a[i].ran, 1);
		assert_true(a[i].err == -ETIMEDOUT || a[i].err == 0);
		sl_oreq_fini(&a[i].r);
	}
}

/* Not there at first, and there later. */
static void test_may_be_down(void **state)
{
	struct fx *x = *state;
	char spec[128];
	snprintf(spec, sizeof(spec), "unix:%s/later", x->base);
	struct sl_origin_config cfg = {.timeout = 1};
	struct sl_origin *o = NULL;
	_cleanup_free_ char *why = NULL;
	assert_true(sl_origin_open(spec, &cfg, &o, &why) < 0);
	assert_non_null(why);
	cfg.may_be_down = true;
	assert_int_equal(sl_origin_open(spec, &cfg, &x->export, NULL), 0);
	assert_false(sl_origin_connected(x->export));
	assert_int_equal(ask_one(x, SL_OREQ_STAT, ""), -ETIMEDOUT);
	char from[128];
	snprintf(from, sizeof(from), "%s/later", x->base);
	assert_int_equal(rename(x->sock, from), 0);
	int r = -ETIMEDOUT;
	for (int i = 0; i < 10 && r == -ETIMEDOUT; i++)
		r = ask_one(x, SL_OREQ_STAT, "");
	assert_int_equal(r, 0);
	assert_true(sl_origin_connected(x->export));
}

static void test_wrong_root(void **state)
{
	struct fx *x = *state;
	struct stat st;
	assert_int_equal(fstat(x->dir, &st), 0);
	struct sl_origin_config cfg = {.timeout = 1, .root_ino = st.st_ino + 1};
	struct sl_origin *o = NULL;
	_cleanup_free_ char *why = NULL, *why2 = NULL;
	assert_int_equal(sl_origin_open(x->spec, &cfg, &o, &why), -ESTALE);
	assert_int_equal(sl_origin_open(x->tree, &cfg, &o, &why2), -ESTALE);
}

static void expect(struct fx *x, enum mode mode, enum sl_oreq_op op, const char *place, int err)
{
	connect_hostile(x, mode, 5);
	int r = ask_one(x, op, place);
	if (r != err)
		print_error("mode %d: %d\n", mode, r);
	assert_int_equal(r, err);
	sl_origin_free(x->export);
	x->export = NULL;
}

static void test_lies(void **state)
{
	struct fx *x = *state;
	expect(x, DUPLICATE, SL_OREQ_LIST, "", -EPROTO);
	for (int i = 0; i < 5; i++, x->lookups++)
		expect(x, SLASH, SL_OREQ_LIST, "", -EPROTO);
	expect(x, BAD_TYPE, SL_OREQ_LIST, "", -EPROTO);
	expect(x, BAD_TIME, SL_OREQ_STAT, "x", -EPROTO);
	expect(x, BAD_TIME, SL_OREQ_READ, "x", -EPROTO);
	x->lookups = 0;
	expect(x, BAD_TARGET, SL_OREQ_LIST, "", -EPROTO);
	x->lookups = 1;
	expect(x, BAD_TARGET, SL_OREQ_LIST, "", -EPROTO);
	expect(x, LONG_READ, SL_OREQ_READ, "x", -EPROTO);
	expect(x, BAD_XATTRS, SL_OREQ_XATTRS, "x", -EPROTO);
}

static void test_without_nodes(void **state)
{
	struct fx *x = *state;
	connect_hostile(x, NO_NODES, 5);
	struct sl_oreq q = {.op = SL_OREQ_LIST, .place = ""};
	assert_int_equal(sl_origin_call(x->export, &q), 0);
	assert_int_equal(q.nentries, 2);
	for (size_t i = 0; i < 2; i++) {
		bool link = !strcmp(q.entries[i].name, "link");
		assert_int_equal(S_ISLNK(q.entries[i].attr.mode), link);
		assert_int_equal(q.entries[i].target != NULL, link);
	}
	sl_oreq_fini(&q);
}

static void test_endless(void **state)
{
	struct fx *x = *state;
	connect_hostile(x, DOTS, 1);
	int r = ask_one(x, SL_OREQ_LIST, "");
	assert_true(r == -ETIMEDOUT || r == -E2BIG || r == -EPROTO);
	sl_origin_free(x->export);
	x->export = NULL;
	connect_hostile(x, ENDLESS, 2);
	r = ask_one(x, SL_OREQ_LIST, "");
	assert_true(r == -ETIMEDOUT || r == -E2BIG);
}

/* What is remembered of places is bounded, and what is no longer remembered is given back. */
static void test_places(void **state)
{
	struct fx *x = *state;
	struct sl_places p;
	struct sl_place_node n;
	char name[32];
	assert_int_equal(sl_places_init(&p), 0);
	sl_places_put(&p, "d", 1, (struct sl_place_node){SL_PLACES_MAX + 5000, 1});
	for (unsigned i = 0; i < SL_PLACES_MAX + 1000; i++) {
		size_t len = (size_t)snprintf(name, sizeof(name), "d/%u", i);
		sl_places_put(&p, name, len, (struct sl_place_node){i + 2, 1});
		assert_int_equal(sl_places_find(&p, name, len, &n), len);
		assert_int_equal(n.nodeid, i + 2);
		assert_int_equal(sl_places_find(&p, "d/0", 3, &n), 3); /* in use: it stays */
	}
	assert_int_equal(p.table.n, SL_PLACES_MAX);
	assert_int_equal(p.nforget, 1001);
	assert_int_equal(sl_places_find(&p, "d/1", 3, &n), 1);
	sl_places_put(&p, "d/0", 3, (struct sl_place_node){2, 1});
	sl_places_put(&p, "x/0", 3, (struct sl_place_node){999998, 1}); /* in what is not known: given back */
	assert_int_equal(p.forget[p.nforget - 1].nodeid, 999998);
	sl_places_drop(&p, "d/0");
	assert_int_equal(sl_places_find(&p, "d/0", 3, &n), 0);
	assert_int_equal(n.nodeid, 1);
	assert_int_equal(p.table.n, 0);
	assert_int_equal(p.forget[1002].nodeid, 2);
	assert_int_equal(p.forget[1002].nlookup, 2);
	sl_places_fini(&p);

	connect_hostile(x, COUNTING, 60);
	enum { MANY = SL_PLACES_MAX + 3000, BATCH = 500 };
	static struct async a[BATCH];
	static char places[BATCH][32];
	for (unsigned i = 0; i < MANY; i += BATCH) {
		for (unsigned k = 0; k < BATCH; k++) {
			snprintf(places[k], sizeof(places[k]), "%u", i + k);
			a[k] = (struct async){.r = {.op = SL_OREQ_STAT, .place = places[k], .done = async_done}};
			sl_origin_submit(x->export, &a[k].r);
		}
		for (unsigned k = 0; k < BATCH; k++) {
			while (!a[k].ran)
				usleep(200);
			assert_int_equal(a[k].err, 0);
			sl_oreq_fini(&a[k].r);
		}
	}
	/* A fresh look at one place again and again is one node of the server's each time. */
	for (unsigned i = 0; i < 500; i++) {
		struct sl_oreq q = {.op = SL_OREQ_STAT, .place = "again", .fresh = true};
		assert_int_equal(sl_origin_call(x->export, &q), 0);
		sl_oreq_fini(&q);
	}
	uint64_t end = sl_now() + 5 * SL_NS_PER_SEC;
	while (x->forgets + SL_PLACES_MAX + 200 < x->lookups && sl_now() < end)
		usleep(1000);
	assert_true(x->forgets + SL_PLACES_MAX + 200 >= x->lookups);
}

/* A place is one object for as long as nothing else is said; the whole program as the origin, where it is there. */
static void test_exec(void **state)
{
	struct fx *x = *state;
	const char *sluice = getenv("SLUICE");
	char spec[512];
	if (!sluice || access(sluice, X_OK) < 0)
		skip();
	make_tree(x);
	const struct sl_origin_config cfg = {.timeout = 30};
	snprintf(spec, sizeof(spec), "exec:exec '%s' serve --stdio -- '%s'", sluice, x->tree);
	assert_int_equal(sl_origin_open(spec, &cfg, &x->export, NULL), 0);
	assert_int_equal(sl_origin_open(x->tree, &cfg, &x->local, NULL), 0);
	assert_int_equal(same_all(x, "d/e"), 0);
	assert_int_equal(same_all(x, "d/e/large"), 0);
	assert_int_equal(same_all(x, "sparse"), 0);
}

static void test_normalize(void **state)
{
	struct fx *x = *state;
	static const char *const as_is[] = {"ssh://u@h:22/p", "host:path", "host:/a/b", "exec:cat x", "tcp:h:1", "vsock:2:5000", "unix:/a/b"};
	for (size_t i = 0; i < SL_ARRAY_SIZE(as_is); i++) {
		_cleanup_free_ char *r = NULL;
		assert_int_equal(sl_origin_normalize(as_is[i], &r, NULL), 0);
		assert_string_equal(r, as_is[i]);
	}
	char p[128];
	_cleanup_free_ char *r = NULL, *u = NULL, *why = NULL;
	snprintf(p, sizeof(p), "%s/../tree/.", x->tree);
	assert_int_equal(sl_origin_normalize(p, &r, NULL), 0);
	assert_string_equal(r, x->tree);
	assert_int_equal(sl_origin_normalize("unix:s", &u, NULL), 0);
	assert_true(u[5] == '/');
	snprintf(p, sizeof(p), "%s/none", x->tree);
	char *none = NULL;
	assert_int_equal(sl_origin_normalize(p, &none, &why), -ENOENT);
	assert_non_null(why);
}

#define T(name) cmocka_unit_test_setup_teardown(test_##name, setup, teardown)

int main(int argc, char **argv)
{
	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	signal(SIGPIPE, SIG_IGN);
	sl_log_set_level((enum sl_log_level)0);
	const struct CMUnitTest tests[] = {
		T(same),   T(deep), T(reconnect),     T(timeout), T(stop),   T(may_be_down), T(wrong_root),
		T(lies),   T(without_nodes), T(endless), T(places), T(exec), T(normalize),
	};
	return cmocka_run_group_tests_name("origin", tests, NULL, NULL);
}
