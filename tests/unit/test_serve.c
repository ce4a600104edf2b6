/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The exporter: objects, attributes, content. If this fails, a client sees other content than the export has,
 * or changes it. suite: threads
 */
#include "serve_fixture.h"

/* ---- objects and attributes ---- */

static void test_attributes(void **state)
{
	struct fixture *f = *state;
	struct fuse_entry_out e, again_;
	struct fuse_attr a;
	struct stat st;
	put(f->dir, "file", "hello");
	const struct timespec ts[2] = {{.tv_sec = 1, .tv_nsec = 2}, {.tv_sec = -5, .tv_nsec = 123456789}};
	assert_int_equal(utimensat(f->dir, "file", ts, 0), 0);
	assert_int_equal(fchmodat(f->dir, "file", 04751, 0), 0);
	assert_int_equal(fstatat(f->dir, "file", &st, 0), 0);

	assert_int_equal(lookup(f, ROOT, "file", &e), 0);
	assert_int_equal(e.attr.ino, st.st_ino);
	assert_int_equal(e.attr.size, 5);
	assert_int_equal(e.attr.mode, S_IFREG | 04751);
	assert_int_equal(e.attr.mtime, (uint64_t)-5);
	assert_int_equal(e.attr.mtimensec, 123456789);
	assert_int_equal(e.attr.ctimensec, st.st_ctim.tv_nsec);
	assert_int_equal(e.attr.nlink, 1);
	assert_int_equal(e.attr.uid, st.st_uid);
	assert_int_equal(e.entry_valid, 1);
	assert_int_equal(e.attr_valid, 1);
	assert_int_equal(getattr(f, e.nodeid, &a), 0);
	assert_memory_equal(&a, &e.attr, sizeof(a));
	assert_int_equal(lookup(f, ROOT, "file", &again_), 0);
	assert_memory_equal(&again_, &e, sizeof(e));

	assert_int_equal(getattr(f, ROOT, &a), 0);
	assert_int_equal(fstat(f->dir, &st), 0);
	assert_int_equal(a.ino, st.st_ino);
	assert_true(S_ISDIR(a.mode));

	/* The identity is the same for another connection of another exporter. */
	const struct fuse_entry_out before = e;
	again(f, NULL, DEFAULT_FLAGS);
	assert_int_equal(lookup(f, ROOT, "file", &e), 0);
	assert_int_equal(e.generation, before.generation);
	assert_int_equal(e.attr.ino, before.attr.ino);

	assert_int_equal(lookup(f, ROOT, "none", &e), -ENOENT);
	const uint64_t file = node(f, ROOT, "file");
	assert_int_equal(lookup(f, file, "x", &e), -ENOTDIR);
	assert_int_equal(lookup(f, ROOT, ".", &e), -EINVAL);
	assert_int_equal(lookup(f, ROOT, "..", &e), -EINVAL);
	char longname[400];
	memset(longname, 'n', sizeof(longname));
	longname[300] = '\0';
	assert_int_equal(lookup(f, ROOT, longname, &e), -ENAMETOOLONG);
}

static void test_unknown_nodes(void **state)
{
	struct fixture *f = *state;
	const uint64_t ids[] = {0, 2, 77, UINT64_MAX, 1ull << 63};
	struct fuse_entry_out e;
	uint64_t fh = 0;
	char b[16];
	for (size_t i = 0; i < SL_ARRAY_SIZE(ids); i++) {
		assert_int_equal(lookup(f, ids[i], "x", &e), -ESTALE);
		assert_int_equal(getattr(f, ids[i], NULL), -ESTALE);
		assert_int_equal(reads(f, ids[i], 0, b, sizeof(b)), -ESTALE);
		assert_int_equal(opendir_(f, ids[i], &fh), -ESTALE);
		assert_int_equal(xattr(f, ids[i], "user.a", b, sizeof(b)), -ESTALE);
		assert_int_equal(xattr(f, ids[i], NULL, b, sizeof(b)), -ESTALE);
		assert_int_equal(pull(f, FUSE_READLINK, ids[i], 0, 0, b, sizeof(b)), -ESTALE);
		forget(f, ids[i], 5);
	}
	assert_int_equal(pull(f, FUSE_READDIR, ROOT, 12345, 0, b, sizeof(b)), -EBADF);
	assert_int_equal(releasedir(f, ROOT, 12345), -EBADF);
	/* A handle belongs to its node. */
	assert_int_equal(mkdirat(f->dir, "d", 0755), 0);
	uint64_t d = node(f, ROOT, "d");
	assert_int_equal(opendir_(f, ROOT, &fh), 0);
	assert_int_equal(pull(f, FUSE_READDIR, d, fh, 0, b, sizeof(b)), -EBADF);
	assert_int_equal(releasedir(f, d, fh), -EBADF);
	assert_int_equal(releasedir(f, ROOT, fh), 0);
	assert_int_equal(releasedir(f, ROOT, fh), -EBADF);
}

static void test_links(void **state)
{
	struct fixture *f = *state;
	struct fuse_entry_out a, b;
	char buf[5000], target[4096];
	put(f->dir, "one", "x");
	assert_int_equal(mkdirat(f->dir, "d", 0755), 0);
	assert_int_equal(linkat(f->dir, "one", f->dir, "d/two", 0), 0);
	assert_int_equal(lookup(f, ROOT, "one", &a), 0);
	assert_int_equal(lookup(f, node(f, ROOT, "d"), "two", &b), 0);
	assert_int_equal(a.nodeid, b.nodeid);
	assert_int_equal(a.attr.ino, b.attr.ino);
	assert_int_equal(b.attr.nlink, 2);
	/* The name that it was first seen by goes away: the other leads to it. */
	assert_int_equal(unlinkat(f->dir, "one", 0), 0);
	assert_int_equal(reads(f, a.nodeid, 0, buf, 10), 1);

	memset(target, 't', sizeof(target));
	target[4000] = '\0';
	assert_int_equal(symlinkat(target, f->dir, "long"), 0);
	assert_int_equal(lookup(f, ROOT, "long", &a), 0);
	assert_true(S_ISLNK(a.attr.mode));
	assert_int_equal(pull(f, FUSE_READLINK, a.nodeid, 0, 0, buf, sizeof(buf)), 4000);
	assert_memory_equal(buf, target, 4000);
	assert_int_equal(pull(f, FUSE_READLINK, ROOT, 0, 0, buf, sizeof(buf)), -EINVAL);
}

static void test_special_files(void **state)
{
	struct fixture *f = *state;
	struct fuse_entry_out e;
	char b[8];
	assert_int_equal(mkfifoat(f->dir, "fifo", 0600), 0);
	assert_int_equal(lookup(f, ROOT, "fifo", &e), 0);
	assert_true(S_ISFIFO(e.attr.mode));
	assert_int_equal(plain(f, (struct sl_call){.opcode = FUSE_OPEN, .nodeid = e.nodeid}), -ENXIO);
	assert_int_equal(reads(f, e.nodeid, 0, b, sizeof(b)), -ENXIO);
	assert_int_equal(getattr(f, e.nodeid, NULL), 0);

	int s = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sockaddr_un sa = {.sun_family = AF_UNIX};
	snprintf(sa.sun_path, sizeof(sa.sun_path), "%s/tree/sock", f->base);
	assert_int_equal(bind(s, (struct sockaddr *)&sa, sizeof(sa)), 0);
	assert_int_equal(lookup(f, ROOT, "sock", &e), 0);
	assert_true(S_ISSOCK(e.attr.mode));
	assert_int_equal(plain(f, (struct sl_call){.opcode = FUSE_OPEN, .nodeid = e.nodeid}), -ENXIO);
	close(s);

	if (mknodat(f->dir, "dev", S_IFCHR | 0600, makedev(0xabc, 0x12345)) == 0) {
		assert_int_equal(lookup(f, ROOT, "dev", &e), 0);
		assert_int_equal(e.attr.rdev, 0x45 | 0xabc << 8 | 0x123u << 20);
		assert_int_equal(plain(f, (struct sl_call){.opcode = FUSE_OPEN, .nodeid = e.nodeid}), -ENXIO);
		assert_int_equal(reads(f, e.nodeid, 0, b, sizeof(b)), -ENXIO);
	}
	assert_int_equal(reads(f, ROOT, 0, b, sizeof(b)), -EISDIR);
}

static void test_read_only(void **state)
{
	struct fixture *f = *state;
	put(f->dir, "f", "text");
	uint64_t id = node(f, ROOT, "f");
	const struct sl_call calls[] = {
	    {.opcode = FUSE_SETATTR, .nodeid = id},
	    {.opcode = FUSE_SYMLINK, .nodeid = ROOT, .name = "n", .name2 = "t"},
	    {.opcode = FUSE_MKNOD, .nodeid = ROOT, .name = "n"},
	    {.opcode = FUSE_MKDIR, .nodeid = ROOT, .name = "n"},
	    {.opcode = FUSE_UNLINK, .nodeid = ROOT, .name = "f"},
	    {.opcode = FUSE_RMDIR, .nodeid = ROOT, .name = "f"},
	    {.opcode = FUSE_RENAME, .nodeid = ROOT, .name = "f", .name2 = "g", .in.rename.newdir = ROOT},
	    {.opcode = FUSE_RENAME2, .nodeid = ROOT, .name = "f", .name2 = "g", .in.rename2.newdir = ROOT},
	    {.opcode = FUSE_LINK, .nodeid = ROOT, .name = "g", .in.link.oldnodeid = id},
	    {.opcode = FUSE_WRITE, .nodeid = id, .data = "abc", .data_len = 3, .in.write.size = 3},
	    {.opcode = FUSE_SETXATTR,
	     .nodeid = id,
	     .name = "user.a",
	     .data = "1",
	     .data_len = 1,
	     .in.setxattr.size = 1},
	    {.opcode = FUSE_REMOVEXATTR, .nodeid = id, .name = "user.a"},
	    {.opcode = FUSE_CREATE, .nodeid = ROOT, .name = "g"},
	    {.opcode = FUSE_FALLOCATE, .nodeid = id},
	    {.opcode = FUSE_COPY_FILE_RANGE, .nodeid = id},
	    {.opcode = FUSE_OPEN, .nodeid = id, .in.open.flags = O_WRONLY},
	    {.opcode = FUSE_OPEN, .nodeid = id, .in.open.flags = O_RDWR},
	    {.opcode = FUSE_OPEN, .nodeid = id, .in.open.flags = O_RDONLY | O_TRUNC},
	};
	for (size_t i = 0; i < SL_ARRAY_SIZE(calls); i++)
		assert_int_equal(plain(f, calls[i]), -EROFS);
	const uint32_t nothing[] = {FUSE_FLUSH, FUSE_FSYNC, FUSE_RELEASE};
	for (size_t i = 0; i < SL_ARRAY_SIZE(nothing); i++)
		assert_int_equal(plain(f, (struct sl_call){.opcode = nothing[i], .nodeid = id}), 0);
	assert_int_equal(plain(f, (struct sl_call){.opcode = FUSE_ACCESS, .nodeid = id}), -ENOSYS);
	struct sl_msg_out m;
	struct sl_call st = {.opcode = FUSE_STATFS, .nodeid = ROOT};
	assert_int_equal(sl_client_call_sync(f->c, &st, &m, NULL), 0);
	assert_true(m.out.statfs.st.blocks > 0);
	assert_int_equal(m.out.statfs.st.namelen, 255);
	char b[8];
	assert_int_equal(reads(f, id, 0, b, sizeof(b)), 4);
}

/* ---- reading ---- */

static void test_read_ranges(void **state)
{
	struct fixture *f = *state;
	const size_t size = (3 << 20) + 12345;
	_cleanup_free_ unsigned char *data = malloc(size), *got = malloc(1 << 20);
	for (size_t i = 0; i < size; i++)
		data[i] = (unsigned char)(i * 2654435761u >> 13);
	int fd = openat(f->dir, "big", O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
	assert_int_equal(sl_write_full(fd, data, size), 0);
	close(fd);
	uint64_t id = node(f, ROOT, "big");
	const struct {
		uint64_t off;
		size_t n;
	} r[] = {{0, 1}, {0, 1 << 20}, {1 << 20, 1 << 20}, {4095, 2}, {size - 1, 1}, {123457, 65536}};
	for (size_t i = 0; i < SL_ARRAY_SIZE(r); i++) {
		assert_int_equal(reads(f, id, r[i].off, got, r[i].n), r[i].n);
		assert_memory_equal(got, data + r[i].off, r[i].n);
	}
	assert_int_equal(reads(f, id, size - 10, got, 100), 10);
	assert_int_equal(reads(f, id, size, got, 100), 0);
	assert_int_equal(reads(f, id, size + 100000, got, 100), 0);
	assert_int_equal(reads(f, id, 5, got, 0), 0);
	assert_int_equal(reads(f, id, UINT64_MAX - 5, got, 100), -EINVAL);
	struct sl_call c = {.opcode = FUSE_READ, .nodeid = id, .in.read.size = UINT32_MAX};
	assert_int_equal(plain(f, c), -EINVAL);

	/* What grows while it is held is read to its new end; what shrinks, too. */
	fd = openat(f->dir, "big", O_WRONLY | O_CLOEXEC);
	assert_int_equal(sl_pwrite_full(fd, "tail", 4, (off_t)size), 0);
	assert_int_equal(reads(f, id, size, got, 100), 4);
	struct fuse_attr a;
	assert_int_equal(getattr(f, id, &a), 0);
	assert_int_equal(a.size, size + 4);
	assert_int_equal(ftruncate(fd, 7), 0);
	assert_int_equal(reads(f, id, 0, got, 100), 7);
	close(fd);
}

static void test_open_modes(void **state)
{
	struct fixture *f = *state;
	char b[8];
	put(f->dir, "f", "text");
	/* This client may read without OPEN, and is told so. */
	assert_int_equal(plain(f, (struct sl_call){.opcode = FUSE_OPEN, .nodeid = node(f, ROOT, "f")}),
			 -ENOSYS);
	again(f, NULL, 0);
	struct sl_msg_out m;
	struct sl_call c = {.opcode = FUSE_OPEN, .nodeid = node(f, ROOT, "f")};
	assert_int_equal(sl_client_call_sync(f->c, &c, &m, NULL), 0);
	assert_int_equal(m.out.open.fh, 0);
	assert_int_equal(reads(f, c.nodeid, 0, b, sizeof(b)), 4);
}

static int seek(struct fixture *f, uint64_t id, uint64_t off, int whence, uint64_t *ret)
{
	struct sl_msg_out m;
	struct sl_call c = {
	    .opcode = FUSE_LSEEK, .nodeid = id, .in.lseek = {.offset = off, .whence = (uint32_t)whence}};
	int r = sl_client_call_sync(f->c, &c, &m, NULL);
	if (r == 0)
		*ret = m.out.lseek.offset;
	return r;
}

static void test_sparse_beyond_4g(void **state)
{
	struct fixture *f = *state;
	const uint64_t at = 5ull << 30, size = at + (1 << 20);
	int fd = openat(f->dir, "sparse", O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
	assert_int_equal(sl_pwrite_full(fd, "island", 6, (off_t)at), 0);
	assert_int_equal(ftruncate(fd, (off_t)size), 0);
	close(fd);
	struct fuse_entry_out e;
	char b[16];
	uint64_t off;
	assert_int_equal(lookup(f, ROOT, "sparse", &e), 0);
	assert_int_equal(e.attr.size, size);
	assert_true(e.attr.blocks < 1024);
	assert_int_equal(reads(f, e.nodeid, at, b, 6), 6);
	assert_memory_equal(b, "island", 6);
	assert_int_equal(reads(f, e.nodeid, size - 3, b, 16), 3);
	assert_int_equal(seek(f, e.nodeid, 0, SEEK_DATA, &off), 0);
	assert_int_equal(off, at);
	assert_int_equal(seek(f, e.nodeid, 0, SEEK_HOLE, &off), 0);
	assert_int_equal(off, 0);
	assert_int_equal(seek(f, e.nodeid, at, SEEK_HOLE, &off), 0);
	assert_int_equal(off, at + 4096);
	assert_int_equal(seek(f, e.nodeid, at + 8192, SEEK_DATA, &off), -ENXIO);
	assert_int_equal(seek(f, e.nodeid, size, SEEK_HOLE, &off), -ENXIO);
	assert_int_equal(seek(f, e.nodeid, UINT64_MAX, SEEK_DATA, &off), -ENXIO);
	assert_int_equal(seek(f, e.nodeid, 0, SEEK_END, &off), -EINVAL);
	assert_int_equal(seek(f, ROOT, 0, SEEK_DATA, &off), -EISDIR);
}

/* ---- extended attributes ---- */

static uint32_t listed_flags;
static void see_flags(const struct sl_dirent *d, void *arg)
{
	if (d->namelen == strlen(arg) && !memcmp(d->name, arg, d->namelen))
		listed_flags = d->entry.attr.flags;
}

static bool hinted(struct fixture *f, const char *name)
{
	struct fuse_entry_out e;
	struct fuse_attr a;
	assert_int_equal(lookup(f, ROOT, name, &e), 0);
	assert_int_equal(getattr(f, e.nodeid, &a), 0);
	assert_int_equal(list(f, ROOT, true, 65536, see_flags, (void *)name, NULL), 0);
	assert_int_equal(a.flags, e.attr.flags);
	assert_int_equal(listed_flags, e.attr.flags);
	return e.attr.flags & SL_ATTR_XATTR;
}

static void test_xattrs(void **state)
{
	struct fixture *f = *state;
	char p[100], b[256];
	/* An ACL as its attribute holds it: version 2; user::rw-, user:7:r--, group::r--, mask::r--,
	 * other::r-- */
	static const unsigned char acl[] = {2,	 0,   0,   0,	 1,   0,   6,	 0,   255, 255, 255,
					    255, 2,   0,   4,	 0,   7,   0,	 0,   0,   4,	0,
					    4,	 0,   255, 255,	 255, 255, 0x10, 0,   4,   0,	255,
					    255, 255, 255, 0x20, 0,   4,   0,	 255, 255, 255, 255};
	put(f->dir, "f", "x");
	put(f->dir, "bare", "x");
	put(f->dir, "own", "x");
	put(f->dir, "acl", "x");
	assert_int_equal(symlinkat("f", f->dir, "link"), 0);
	snprintf(p, sizeof(p), "%s/tree/f", f->base);
	if (setxattr(p, "user.a", "value", 5, 0) < 0)
		skip();
	assert_int_equal(setxattr(p, "user.empty", "", 0, 0), 0);
	assert_int_equal(setxattr(p, "user.sluice", "hidden", 6, 0), 0);
	if (geteuid() == 0)
		assert_int_equal(setxattr(p, "trusted.t", "hidden", 6, 0), 0);
	snprintf(p, sizeof(p), "%s/tree/own", f->base);
	assert_int_equal(setxattr(p, "user.sluice.x", "hidden", 6, 0), 0);
	snprintf(p, sizeof(p), "%s/tree/acl", f->base);
	bool has_acl = setxattr(p, "system.posix_acl_access", acl, sizeof(acl), 0) == 0;

	uint64_t id = node(f, ROOT, "f");
	const size_t total = sizeof("user.a") + sizeof("user.empty");
	assert_int_equal(xattr(f, id, NULL, NULL, 0), total);
	assert_int_equal(xattr(f, id, NULL, b, total - 1), -ERANGE);
	assert_int_equal(xattr(f, id, NULL, b, sizeof(b)), total);
	assert_non_null(memmem(b, total, "user.a", 7));
	assert_non_null(memmem(b, total, "user.empty", 11));
	assert_int_equal(xattr(f, id, "user.a", NULL, 0), 5);
	assert_int_equal(xattr(f, id, "user.a", b, 4), -ERANGE);
	assert_int_equal(xattr(f, id, "user.a", b, sizeof(b)), 5);
	assert_memory_equal(b, "value", 5);
	assert_int_equal(xattr(f, id, "user.empty", b, sizeof(b)), 0);
	const char *hidden[] = {"user.sluice",	    "user.sluice.x", "trusted.t",
				"security.selinux", "user.none",     "nonsense"};
	for (size_t i = 0; i < SL_ARRAY_SIZE(hidden); i++)
		assert_int_equal(xattr(f, id, hidden[i], b, sizeof(b)), -ENODATA);
	assert_int_equal(xattr(f, node(f, ROOT, "link"), NULL, b, sizeof(b)), 0);
	assert_int_equal(xattr(f, node(f, ROOT, "link"), "user.a", b, sizeof(b)), -ENODATA);
	if (has_acl) {
		uint64_t a = node(f, ROOT, "acl");
		assert_int_equal(xattr(f, a, "system.posix_acl_access", b, sizeof(b)), sizeof(acl));
		assert_memory_equal(b, acl, sizeof(acl));
		assert_int_equal(xattr(f, a, NULL, b, sizeof(b)), sizeof("system.posix_acl_access"));
		assert_true(hinted(f, "acl"));
	}
	assert_true(hinted(f, "f"));
	assert_false(hinted(f, "bare"));
	assert_false(hinted(f, "own"));
	assert_false(hinted(f, "link"));
	snprintf(p, sizeof(p), "%s/tree", f->base);
	assert_int_equal(setxattr(p, "user.d", "1", 1, 0), 0);
	struct fuse_attr a;
	assert_int_equal(getattr(f, ROOT, &a), 0);
	assert_true(a.flags & SL_ATTR_XATTR);
	/* Who did not ask for the hint does not get it. */
	again(f, NULL, FUSE_DO_READDIRPLUS);
	assert_false(hinted(f, "f"));
}

static void test_bad_trees(void **state)
{
	struct fixture *f = *state;
	char p[100];
	struct sl_export *e;
	put(f->dir, "file", "x");
	const char *bad[] = {"/nonexistent/x", p};
	const int err[] = {-ENOENT, -ENOTDIR};
	snprintf(p, sizeof(p), "%s/tree/file", f->base);
	for (size_t i = 0; i < 2; i++) {
		_cleanup_free_ char *why = NULL;
		assert_int_equal(sl_export_open(bad[i], NULL, &e, &why), err[i]);
		assert_non_null(strstr(why, bad[i]));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    T(attributes), T(unknown_nodes),	T(links),  T(special_files), T(read_only), T(read_ranges),
	    T(open_modes), T(sparse_beyond_4g), T(xattrs), T(bad_trees),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
