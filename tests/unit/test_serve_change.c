/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The exporter while its tree changes. If this fails, a client gets something that is outside the tree, or
 * another object than the one it holds. suite: threads
 */
#include "serve_fixture.h"

static bool own_mounts; /* we may mount */

/* ---- what changes underneath ---- */

static void test_replaced_and_deleted(void **state)
{
	struct fixture *f = *state;
	char b[8];
	uint64_t fh = 0;
	put(f->dir, "f", "old");
	uint64_t old = node(f, ROOT, "f");
	assert_int_equal(reads(f, old, 0, b, 8), 3); /* now it is open as well */
	put(f->dir, "new", "newer");
	assert_int_equal(renameat(f->dir, "new", f->dir, "f"), 0);
	assert_int_equal(getattr(f, old, NULL), -ESTALE);
	assert_int_equal(reads(f, old, 0, b, 8), -ESTALE);
	uint64_t now = node(f, ROOT, "f");
	assert_int_not_equal(now, old);
	assert_int_equal(reads(f, now, 0, b, 8), 5);
	assert_memory_equal(b, "newer", 5);

	assert_int_equal(mkdirat(f->dir, "d", 0755), 0);
	put(f->dir, "d/f", "x");
	uint64_t d = node(f, ROOT, "d"), df = node(f, d, "f");
	assert_int_equal(unlinkat(f->dir, "d/f", 0), 0);
	assert_int_equal(unlinkat(f->dir, "d", AT_REMOVEDIR), 0);
	struct fuse_entry_out e;
	assert_int_equal(getattr(f, df, NULL), -ESTALE);
	assert_int_equal(getattr(f, d, NULL), -ESTALE);
	assert_int_equal(lookup(f, d, "f", &e), -ESTALE);
	assert_int_equal(opendir_(f, d, &fh), -ESTALE);

	/* The same name and even the same inode number, which filesystems use again at once. */
	struct stat st;
	put(f->dir, "again", "first");
	uint64_t first = node(f, ROOT, "again");
	assert_int_equal(fstatat(f->dir, "again", &st, 0), 0);
	const ino_t ino = st.st_ino;
	for (int i = 0; i < 100; i++) {
		assert_int_equal(unlinkat(f->dir, "again", 0), 0);
		put(f->dir, "again", "second");
		assert_int_equal(fstatat(f->dir, "again", &st, 0), 0);
		if (st.st_ino == ino)
			break;
	}
	assert_int_equal(getattr(f, first, NULL), -ESTALE);
	assert_int_equal(reads(f, first, 0, b, 8), -ESTALE);
	assert_int_not_equal(node(f, ROOT, "again"), first);

	/* The same name, another kind. */
	assert_int_equal(symlinkat("/etc", f->dir, "d"), 0);
	assert_int_equal(lookup(f, d, "passwd", &e), -ESTALE);
}

static void test_renamed_inside(void **state)
{
	struct fixture *f = *state;
	char b[8];
	assert_int_equal(mkdirat(f->dir, "a", 0755), 0);
	assert_int_equal(mkdirat(f->dir, "a/b", 0755), 0);
	assert_int_equal(mkdirat(f->dir, "c", 0755), 0);
	put(f->dir, "a/b/f", "inside");
	uint64_t a = node(f, ROOT, "a"), ab = node(f, a, "b"), id = node(f, ab, "f");
	assert_int_equal(renameat(f->dir, "a/b", f->dir, "c/moved"), 0);
	/* Without privilege the new LOOKUP is needed; with it, the handle is enough. */
	if (geteuid() == 0) {
		assert_int_equal(reads(f, id, 0, b, 8), 6);
		assert_int_equal(node(f, ab, "f"), id);
	}
	assert_int_equal(node(f, node(f, ROOT, "c"), "moved"), ab);
	assert_int_equal(reads(f, id, 0, b, 8), 6);

	/* Parent and child change places: the chain of parents must not become a ring. */
	assert_int_equal(mkdirat(f->dir, "p", 0755), 0);
	assert_int_equal(mkdirat(f->dir, "p/q", 0755), 0);
	uint64_t p = node(f, ROOT, "p"), q = node(f, p, "q");
	assert_int_equal(renameat(f->dir, "p/q", f->dir, "q"), 0);
	assert_int_equal(renameat(f->dir, "p", f->dir, "q/p"), 0);
	struct fuse_entry_out e;
	int r = lookup(f, q, "p", &e);
	assert_true(r == -ESTALE || (r == 0 && e.nodeid == p));
	(void)getattr(f, p, NULL);
	(void)getattr(f, q, NULL);
	assert_int_equal(node(f, ROOT, "q"), q);
	assert_int_equal(node(f, q, "p"), p);
	assert_int_equal(getattr(f, p, NULL), 0);
}

static void test_nothing_outside(void **state)
{
	struct fixture *f = *state;
	struct fuse_entry_out e;
	char b[64], link[100];
	uint64_t fh = 0;
	/* Symlinks are objects, not ways. */
	put(f->away, "secret", "secret");
	snprintf(link, sizeof(link), "%s/away", f->base);
	assert_int_equal(symlinkat(link, f->dir, "abs"), 0);
	assert_int_equal(symlinkat("../away", f->dir, "rel"), 0);
	const char *names[] = {"abs", "rel"};
	for (size_t i = 0; i < 2; i++) {
		uint64_t l = node(f, ROOT, names[i]);
		assert_int_equal(lookup(f, l, "secret", &e), -ENOTDIR);
		assert_int_equal(opendir_(f, l, &fh), -ENOTDIR);
		assert_int_equal(reads(f, l, 0, b, sizeof(b)), -ELOOP);
		assert_int_equal(plain(f, (struct sl_call){.opcode = FUSE_OPEN, .nodeid = l}), -ELOOP);
	}
	/* What is moved out is gone, by path, by handle and by open descriptor. */
	assert_int_equal(mkdirat(f->dir, "d", 0755), 0);
	put(f->dir, "d/f", "inside");
	put(f->dir, "d/g", "inside");
	uint64_t d = node(f, ROOT, "d"), df = node(f, d, "f"), dg = node(f, d, "g");
	assert_int_equal(opendir_(f, d, &fh), 0);
	assert_int_equal(reads(f, df, 0, b, sizeof(b)), 6);
	assert_int_equal(renameat(f->dir, "d", f->away, "d"), 0);
	assert_int_equal(getattr(f, d, NULL), -ESTALE);
	assert_int_equal(getattr(f, dg, NULL), -ESTALE);
	assert_int_equal(reads(f, dg, 0, b, sizeof(b)), -ESTALE);
	assert_int_equal(lookup(f, d, "f", &e), -ESTALE);
	/* An open descriptor is trusted for SL_EXPORT_REVALIDATE_MS. */
	ssize_t n;
	uint64_t end = sl_now() + 30 * SL_NS_PER_SEC;
	while ((n = reads(f, df, 0, b, sizeof(b))) >= 0)
		assert_true(sl_now() < end);
	assert_int_equal(n, -ESTALE);
	while ((n = pull(f, FUSE_READDIR, d, fh, 0, b, sizeof(b))) >= 0)
		assert_true(sl_now() < end);
	assert_int_equal(n, -ESTALE);
	/* A directory on the way becomes a symlink that leads to the same names. */
	assert_int_equal(symlinkat("../away/d", f->dir, "d"), 0);
	assert_int_equal(getattr(f, df, NULL), -ESTALE);
	assert_int_equal(reads(f, dg, 0, b, sizeof(b)), -ESTALE);
	/* And back again, it is what it was. */
	assert_int_equal(unlinkat(f->dir, "d", 0), 0);
	assert_int_equal(renameat(f->away, "d", f->dir, "d"), 0);
	assert_int_equal(reads(f, dg, 0, b, sizeof(b)), 6);
}

static void test_tree_itself_moves(void **state)
{
	struct fixture *f = *state;
	char from[80], to[80], b[8];
	assert_int_equal(mkdirat(f->dir, "d", 0755), 0);
	put(f->dir, "d/f", "x");
	uint64_t d = node(f, ROOT, "d"), id = node(f, d, "f");
	snprintf(from, sizeof(from), "%s/tree", f->base);
	snprintf(to, sizeof(to), "%s/away/tree", f->base);
	assert_int_equal(rename(from, to), 0);
	assert_int_equal(reads(f, id, 0, b, 8), 1);
	assert_int_equal(renameat(f->dir, "d", f->dir, "e"), 0);
	if (geteuid() == 0)
		assert_int_equal(getattr(f, id, NULL), 0);
	assert_int_equal(rename(to, from), 0);
}

static void test_deep_paths(void **state)
{
	struct fixture *f = *state;
	char name[201], b[8];
	memset(name, 'd', 200);
	name[200] = '\0';
	uint64_t id = ROOT;
	int at = dup(f->dir);
	for (int i = 0; i < 60; i++) { /* 12,000 bytes: three times what a path may have */
		assert_int_equal(mkdirat(at, name, 0755), 0);
		int next = openat(at, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		close(at);
		at = next;
		id = node(f, id, name);
	}
	put(at, "f", "deep");
	close(at);
	uint64_t leaf = node(f, id, "f");
	assert_int_equal(reads(f, leaf, 0, b, 8), 4);
	assert_int_equal(getattr(f, leaf, NULL), 0);
}

/* ---- mounts, and the kernel as the client ---- */

static void count(const struct sl_dirent *d, void *arg)
{
	if (d->name[0] != '.')
		++*(size_t *)arg;
}

static void test_mounts_below(void **state)
{
	struct fixture *f = *state;
	char p[100];
	struct fuse_entry_out e, e2;
	size_t n = 0;
	if (!own_mounts)
		skip();
	assert_int_equal(mkdirat(f->dir, "m", 0700), 0);
	assert_int_equal(mkdirat(f->dir, "bind", 0700), 0);
	put(f->dir, "m/under", "x");
	put(f->dir, "file", "x");
	uint64_t before = node(f, ROOT, "m"), file = node(f, ROOT, "file");
	snprintf(p, sizeof(p), "%s/tree/m", f->base);
	assert_int_equal(mount("none", p, "tmpfs", 0, NULL), 0);
	snprintf(p, sizeof(p), "%s/tree/bind", f->base);
	assert_int_equal(mount("/etc", p, NULL, MS_BIND, NULL), 0);
	char q[100];
	snprintf(q, sizeof(q), "%s/tree/file", f->base);
	assert_int_equal(mount("/etc/passwd", q, NULL, MS_BIND, NULL), 0);

	assert_int_equal(getattr(f, before, NULL), -ESTALE);
	assert_int_equal(getattr(f, file, NULL), -ESTALE);
	assert_int_equal(lookup(f, ROOT, "file", &e), -ENOENT);
	const char *names[] = {"m", "bind"};
	for (size_t i = 0; i < 2; i++) {
		assert_int_equal(lookup(f, ROOT, names[i], &e), 0);
		assert_int_equal(e.attr.mode, S_IFDIR | 0555);
		assert_int_equal(lookup(f, ROOT, names[i], &e2), 0);
		assert_memory_equal(&e, &e2, sizeof(e));
		assert_int_equal(getattr(f, e.nodeid, &e2.attr), 0);
		assert_memory_equal(&e, &e2, sizeof(e));
		assert_int_equal(lookup(f, e.nodeid, "passwd", &e2), -ENOENT);
		assert_int_equal(list(f, e.nodeid, i == 0, 4096, count, &n, NULL), 0);
		assert_int_equal(n, 0);
		assert_int_equal(xattr(f, e.nodeid, NULL, p, sizeof(p)), 0);
	}
	assert_int_equal(umount2(q, MNT_DETACH), 0);
	snprintf(p, sizeof(p), "%s/tree/m", f->base);
	assert_int_equal(umount2(p, MNT_DETACH), 0);
	snprintf(p, sizeof(p), "%s/tree/bind", f->base);
	assert_int_equal(umount2(p, MNT_DETACH), 0);
	assert_int_equal(node(f, ROOT, "m"), before);
	assert_int_equal(getattr(f, file, NULL), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    T(replaced_and_deleted), T(renamed_inside), T(nothing_outside),
	    T(tree_itself_moves),    T(deep_paths),	T(mounts_below),
	};
	own_mounts = own_mount_namespace();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
