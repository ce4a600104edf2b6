/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The writable exporter. If this fails, a client cannot change what it should, or can change what it should
 * not. suite: threads
 */
#include "serve_fixture.h"

#include <linux/fs.h>

static int setup_rw(void **state)
{
	umask(0);
	int r = setup(state);
	struct fixture *f = *state;
	again(f, &(struct sl_export_config){.writable = true}, FUSE_DO_READDIRPLUS);
	return r;
}

#define RW(name) cmocka_unit_test_setup_teardown(test_##name, setup_rw, teardown)

/* ---- requests ---- */

static int entry(struct fixture *f, struct sl_call c, struct fuse_entry_out *e)
{
	struct sl_msg_out m;
	int r = sl_client_call_sync(f->c, &c, &m, NULL);
	*e = r == 0 ? m.out.entry : (struct fuse_entry_out){0};
	return r;
}

static int open_(struct fixture *f, uint64_t id, uint32_t flags, uint64_t *fh)
{
	struct sl_msg_out m;
	struct sl_call c = {.opcode = FUSE_OPEN, .nodeid = id, .in.open.flags = flags};
	int r = sl_client_call_sync(f->c, &c, &m, NULL);
	*fh = r == 0 ? m.out.open.fh : 0;
	return r;
}

static int create(struct fixture *f, uint64_t dir, const char *name, uint32_t flags, uint32_t mode,
		  struct fuse_create_out *out)
{
	struct sl_msg_out m;
	struct sl_call c = {.opcode = FUSE_CREATE,
			    .nodeid = dir,
			    .name = name,
			    .in.create = {.flags = flags, .mode = S_IFREG | mode, .umask = 022}};
	int r = sl_client_call_sync(f->c, &c, &m, NULL);
	*out = r == 0 ? m.out.create : (struct fuse_create_out){0};
	return r;
}

static ssize_t writes(struct fixture *f, uint64_t id, uint64_t fh, uint64_t off, const char *text,
		      uint32_t flags)
{
	struct sl_msg_out m;
	struct sl_call c = {.opcode = FUSE_WRITE, .nodeid = id, .data = text, .data_len = strlen(text)};
	c.in.write =
	    (struct fuse_write_in){.fh = fh, .offset = off, .size = (uint32_t)c.data_len, .flags = flags};
	int r = sl_client_call_sync(f->c, &c, &m, NULL);
	return r < 0 ? r : (ssize_t)m.out.write.size;
}

static int release(struct fixture *f, uint64_t id, uint64_t fh)
{
	return plain(f, (struct sl_call){.opcode = FUSE_RELEASE, .nodeid = id, .in.release.fh = fh});
}

static int setattr(struct fixture *f, uint64_t id, struct fuse_setattr_in in, struct fuse_attr *a)
{
	struct sl_msg_out m;
	struct sl_call c = {.opcode = FUSE_SETATTR, .nodeid = id, .in.setattr = in};
	int r = sl_client_call_sync(f->c, &c, &m, NULL);
	if (r == 0 && a)
		*a = m.out.attr.attr;
	return r;
}

static int unlink_(struct fixture *f, uint64_t dir, const char *name)
{
	return plain(f, (struct sl_call){.opcode = FUSE_UNLINK, .nodeid = dir, .name = name});
}

static int rename_(struct fixture *f, uint64_t a, const char *from, uint64_t b, const char *to,
		   uint32_t flags)
{
	return plain(f, (struct sl_call){.opcode = FUSE_RENAME2,
					 .nodeid = a,
					 .name = from,
					 .name2 = to,
					 .in.rename2 = {.newdir = b, .flags = flags}});
}

static void is_file(int dir, const char *name, const char *want)
{
	char b[256];
	_cleanup_close_ int fd = openat(dir, name, O_RDONLY | O_CLOEXEC);
	assert_true(fd >= 0);
	ssize_t n = read(fd, b, sizeof(b) - 1);
	assert_true(n >= 0);
	b[n] = '\0';
	assert_string_equal(b, want);
}

/* ---- tests ---- */

/* Without being told so it refuses everything, and changes nothing. */
static void test_read_only(void **state)
{
	struct fixture *f = *state;
	struct fuse_entry_out e;
	struct fuse_create_out c;
	uint64_t fh;
	put(f->dir, "f", "text");
	assert_int_equal(mkdirat(f->dir, "d", 0755), 0);
	uint64_t id = node(f, ROOT, "f");
	assert_int_equal(create(f, ROOT, "new", O_RDWR, 0644, &c), -EROFS);
	assert_int_equal(entry(f, (struct sl_call){.opcode = FUSE_MKDIR, .nodeid = ROOT, .name = "new"}, &e),
			 -EROFS);
	assert_int_equal(open_(f, id, O_WRONLY, &fh), -EROFS);
	assert_int_equal(open_(f, id, O_RDONLY | O_TRUNC, &fh), -EROFS);
	assert_int_equal(writes(f, id, 0, 0, "x", 0), -EROFS);
	assert_int_equal(writes(f, id, 1, 0, "x", 0), -EROFS);
	assert_int_equal(setattr(f, id, (struct fuse_setattr_in){.valid = FATTR_SIZE}, NULL), -EROFS);
	assert_int_equal(unlink_(f, ROOT, "f"), -EROFS);
	assert_int_equal(rename_(f, ROOT, "f", ROOT, "g", 0), -EROFS);
	is_file(f->dir, "f", "text");
}

static void test_files(void **state)
{
	struct fixture *f = *state;
	struct fuse_create_out c;
	struct fuse_attr a;
	struct stat st;
	uint64_t fh;
	char b[64];
	assert_int_equal(create(f, ROOT, "f", O_RDWR | O_CREAT | O_EXCL, 0666, &c), 0);
	uint64_t id = c.entry.nodeid;
	assert_int_equal(c.entry.attr.mode, S_IFREG | 0644);
	assert_true(c.open.fh != 0);
	assert_int_equal(writes(f, id, c.open.fh, 0, "hello world", 0), 11);
	assert_int_equal(writes(f, id, c.open.fh, 6, "there", 0), 5);
	assert_int_equal(pull(f, FUSE_READ, id, c.open.fh, 0, b, sizeof(b)), 11);
	assert_memory_equal(b, "hello there", 11);
	is_file(f->dir, "f", "hello there");
	assert_int_equal(create(f, ROOT, "f", O_RDWR | O_CREAT | O_EXCL, 0666, &c), -EEXIST);
	assert_int_equal(create(f, ROOT, "f", O_RDONLY | O_CREAT, 0600, &c), 0);
	assert_int_equal(c.entry.nodeid, id);
	assert_int_equal(writes(f, id, c.open.fh, 0, "no", 0), -EBADF); /* opened for reading */
	assert_int_equal(release(f, id, c.open.fh), 0);
	assert_int_equal(release(f, id, c.open.fh), -EBADF);
	assert_int_equal(writes(f, id, c.open.fh, 0, "no", 0), -EBADF);

	/* Appending goes to the end that there is, not to the one that the client knows. */
	assert_int_equal(open_(f, id, O_WRONLY | O_APPEND, &fh), 0);
	_cleanup_close_ int local = openat(f->dir, "f", O_WRONLY | O_APPEND | O_CLOEXEC);
	assert_int_equal(write(local, " and", 4), 4);
	assert_int_equal(writes(f, id, fh, 11, " more", O_APPEND), 5);
	is_file(f->dir, "f", "hello there and more");
	assert_int_equal(release(f, id, fh), 0);

	assert_int_equal(open_(f, id, O_WRONLY | O_TRUNC, &fh), 0);
	is_file(f->dir, "f", "");
	assert_int_equal(
	    setattr(f, id, (struct fuse_setattr_in){.valid = FATTR_SIZE | FATTR_FH, .fh = fh, .size = 5}, &a),
	    0);
	assert_int_equal(a.size, 5);
	assert_int_equal(setattr(f, id, (struct fuse_setattr_in){.valid = FATTR_SIZE, .size = 3}, &a), 0);
	assert_int_equal(a.size, 3);
	assert_int_equal(setattr(f, id,
				 (struct fuse_setattr_in){.valid = FATTR_MODE | FATTR_MTIME | FATTR_ATIME_NOW,
							  .mode = S_IFREG | 0640,
							  .mtime = 1000000000,
							  .mtimensec = 123456789},
				 &a),
			 0);
	assert_int_equal(fstatat(f->dir, "f", &st, 0), 0);
	assert_int_equal(st.st_mode, S_IFREG | 0640);
	assert_int_equal(st.st_mtim.tv_sec, 1000000000);
	assert_int_equal(st.st_mtim.tv_nsec, 123456789);
	assert_int_equal(a.mtime, 1000000000);

	struct sl_call c2 = {.opcode = FUSE_FALLOCATE, .nodeid = id};
	c2.in.fallocate = (struct fuse_fallocate_in){.fh = fh, .offset = 0, .length = 100000};
	int r = plain(f, c2);
	assert_true(r == 0 || r == -EOPNOTSUPP);
	assert_int_equal(fstatat(f->dir, "f", &st, 0), 0);
	assert_int_equal(st.st_size, r == 0 ? 100000 : 3);
	for (int op = 0; op < 2; op++)
		assert_int_equal(
		    plain(f, (struct sl_call){.opcode = FUSE_FSYNC,
					      .nodeid = id,
					      .in.fsync = {.fh = fh, .fsync_flags = (uint32_t)op}}),
		    0);
	assert_int_equal(
	    plain(f, (struct sl_call){.opcode = FUSE_FSYNC, .nodeid = id, .in.fsync.fh = fh + 100}), -EBADF);
	assert_int_equal(plain(f, (struct sl_call){.opcode = FUSE_FLUSH, .nodeid = id, .in.flush.fh = fh}),
			 0);
	assert_int_equal(plain(f, (struct sl_call){.opcode = FUSE_SYNCFS, .nodeid = ROOT}), 0);
	assert_int_equal(release(f, id, fh), 0);
}

/* What is deleted or replaced while it is open is used until it is closed. */
static void test_unlinked_while_open(void **state)
{
	struct fixture *f = *state;
	struct fuse_create_out c;
	struct fuse_attr a;
	char b[64];
	assert_int_equal(create(f, ROOT, "f", O_RDWR | O_CREAT, 0644, &c), 0);
	uint64_t id = c.entry.nodeid, fh = c.open.fh;
	assert_int_equal(writes(f, id, fh, 0, "still", 0), 5);
	assert_int_equal(unlink_(f, ROOT, "f"), 0);
	assert_int_equal(faccessat(f->dir, "f", F_OK, 0), -1);
	put(f->dir, "f", "another");
	assert_int_equal(writes(f, id, fh, 5, " here", 0), 5);
	usleep(2 * SL_EXPORT_REVALIDATE_MS * 1000); /* longer than anything is believed */
	assert_int_equal(pull(f, FUSE_READ, id, fh, 0, b, sizeof(b)), 10);
	assert_memory_equal(b, "still here", 10);
	assert_int_equal(getattr(f, id, &a), 0);
	assert_int_equal(a.nlink, 0);
	assert_int_equal(a.size, 10);
	assert_int_equal(setattr(f, id, (struct fuse_setattr_in){.valid = FATTR_MODE, .mode = 0600}, &a), 0);
	assert_int_equal(a.mode, S_IFREG | 0600);
	is_file(f->dir, "f", "another");
	assert_int_equal(release(f, id, fh), 0);
	assert_int_equal(getattr(f, id, NULL), -ESTALE);

	/* Renamed behind its back it is still the same. */
	assert_int_equal(create(f, ROOT, "g", O_RDWR | O_CREAT, 0644, &c), 0);
	assert_int_equal(renameat(f->dir, "g", f->dir, "h"), 0);
	assert_int_equal(writes(f, c.entry.nodeid, c.open.fh, 0, "x", 0), 1);
	assert_int_equal(getattr(f, c.entry.nodeid, &a), 0);
	assert_int_equal(a.size, 1);
	/* Out of the tree it is not ours any more. */
	assert_int_equal(renameat(f->dir, "h", f->away, "h"), 0);
	usleep(2 * SL_EXPORT_REVALIDATE_MS * 1000);
	assert_int_equal(writes(f, c.entry.nodeid, c.open.fh, 0, "yy", 0), -ESTALE);
	assert_int_equal(pull(f, FUSE_READ, c.entry.nodeid, c.open.fh, 0, b, sizeof(b)), -ESTALE);
	assert_int_equal(
	    setattr(f, c.entry.nodeid, (struct fuse_setattr_in){.valid = FATTR_SIZE, .size = 9}, NULL),
	    -ESTALE);
	is_file(f->away, "h", "x");
	assert_int_equal(release(f, c.entry.nodeid, c.open.fh), 0);
}

static void test_tmpfile(void **state)
{
	struct fixture *f = *state;
	struct sl_msg_out m;
	struct fuse_entry_out e;
	struct sl_call c = {.opcode = FUSE_TMPFILE,
			    .nodeid = ROOT,
			    .name = "/",
			    .in.create = {.flags = O_RDWR, .mode = S_IFREG | 0600}};
	int r = sl_client_call_sync(f->c, &c, &m, NULL);
	if (r == -EOPNOTSUPP)
		skip();
	assert_int_equal(r, 0);
	uint64_t id = m.out.create.entry.nodeid, fh = m.out.create.open.fh;
	assert_int_equal(m.out.create.entry.attr.nlink, 0);
	assert_int_equal(writes(f, id, fh, 0, "named later", 0), 11);
	assert_int_equal(
	    entry(f,
		  (struct sl_call){
		      .opcode = FUSE_LINK, .nodeid = ROOT, .name = "named", .in.link.oldnodeid = id},
		  &e),
	    0);
	assert_int_equal(e.nodeid, id);
	is_file(f->dir, "named", "named later");
	assert_int_equal(release(f, id, fh), 0);
	assert_int_equal(getattr(f, id, NULL), 0);
}

static void test_names(void **state)
{
	struct fixture *f = *state;
	struct fuse_entry_out e, d, l;
	struct stat st;
	char b[64];
	assert_int_equal(entry(f,
			       (struct sl_call){.opcode = FUSE_MKDIR,
						.nodeid = ROOT,
						.name = "d",
						.in.mkdir = {.mode = 0777, .umask = 027}},
			       &d),
			 0);
	assert_int_equal(d.attr.mode, S_IFDIR | 0750);
	assert_int_equal(entry(f,
			       (struct sl_call){.opcode = FUSE_MKNOD,
						.nodeid = d.nodeid,
						.name = "fifo",
						.in.mknod = {.mode = S_IFIFO | 0666}},
			       &e),
			 0);
	assert_int_equal(e.attr.mode, S_IFIFO | 0666);
	/* Nobody waits for the other end of it. */
	uint64_t fh;
	assert_int_equal(open_(f, e.nodeid, O_WRONLY, &fh), -ENXIO);
	struct fuse_create_out co;
	assert_int_equal(create(f, d.nodeid, "fifo", O_WRONLY | O_CREAT, 0644, &co), -ENXIO);
	assert_int_equal(
	    entry(f,
		  (struct sl_call){
		      .opcode = FUSE_SYMLINK, .nodeid = d.nodeid, .name = "l", .name2 = "/etc/passwd"},
		  &l),
	    0);
	assert_int_equal(readlinkat(f->dir, "d/l", b, sizeof(b)), 11);
	/* A link to it is one to the link itself, and it is not opened, nor its target's mode changed. */
	assert_int_equal(
	    entry(f,
		  (struct sl_call){
		      .opcode = FUSE_LINK, .nodeid = ROOT, .name = "l2", .in.link.oldnodeid = l.nodeid},
		  &e),
	    0);
	assert_int_equal(e.nodeid, l.nodeid);
	assert_int_equal(e.attr.nlink, 2);
	assert_int_equal(create(f, ROOT, "l2", O_WRONLY | O_CREAT, 0644, &co), -ELOOP);
	assert_int_equal(open_(f, l.nodeid, O_RDONLY, &fh), -ELOOP);
	assert_int_equal(setattr(f, l.nodeid, (struct fuse_setattr_in){.valid = FATTR_MODE}, NULL),
			 -EOPNOTSUPP);
	assert_int_equal(
	    setattr(f, l.nodeid, (struct fuse_setattr_in){.valid = FATTR_MTIME, .mtime = 5}, NULL), 0);
	assert_int_equal(fstatat(f->dir, "d/l", &st, AT_SYMLINK_NOFOLLOW), 0);
	assert_int_equal(st.st_mtim.tv_sec, 5);
	assert_int_equal(setattr(f, l.nodeid, (struct fuse_setattr_in){.valid = FATTR_SIZE}, NULL), -ELOOP);

	/* Renames: the node stays what it was, and is found at its new place. */
	put(f->dir, "d/a", "a");
	put(f->dir, "b", "bb");
	uint64_t a = node(f, d.nodeid, "a"), bn = node(f, ROOT, "b");
	assert_int_equal(rename_(f, d.nodeid, "a", ROOT, "b", RENAME_NOREPLACE), -EEXIST);
	assert_int_equal(rename_(f, d.nodeid, "a", ROOT, "b", RENAME_EXCHANGE), 0);
	is_file(f->dir, "b", "a");
	assert_int_equal(reads(f, a, 0, b, 8), 1);
	assert_int_equal(reads(f, bn, 0, b, 8), 2);
	assert_int_equal(rename_(f, ROOT, "b", d.nodeid, "c", RENAME_WHITEOUT), -EINVAL);
	assert_int_equal(rename_(f, ROOT, "d", ROOT, "dd", 0), 0);
	assert_int_equal(reads(f, bn, 0, b, 8), 2);
	assert_int_equal(plain(f, (struct sl_call){.opcode = FUSE_RENAME,
						   .nodeid = ROOT,
						   .name = "b",
						   .name2 = "a",
						   .in.rename.newdir = d.nodeid}),
			 0);
	assert_int_equal(getattr(f, bn, NULL), -ESTALE);
	assert_int_equal(reads(f, a, 0, b, 8), 1);

	assert_int_equal(unlink_(f, ROOT, "dd"), -EISDIR);
	assert_int_equal(plain(f, (struct sl_call){.opcode = FUSE_RMDIR, .nodeid = ROOT, .name = "dd"}),
			 -ENOTEMPTY);
	assert_int_equal(plain(f, (struct sl_call){.opcode = FUSE_RMDIR, .nodeid = ROOT, .name = "l2"}),
			 -ENOTDIR);
	for (size_t i = 0; i < 3; i++)
		assert_int_equal(unlink_(f, d.nodeid, (const char *[]){"fifo", "l", "a"}[i]), 0);
	assert_int_equal(plain(f, (struct sl_call){.opcode = FUSE_RMDIR, .nodeid = ROOT, .name = "dd"}), 0);
	assert_int_equal(
	    entry(f, (struct sl_call){.opcode = FUSE_MKDIR, .nodeid = d.nodeid, .name = "x"}, &e), -ESTALE);
}

static int setxattr_(struct fixture *f, uint64_t id, const char *name, const char *value)
{
	struct sl_call c = {.opcode = FUSE_SETXATTR, .nodeid = id, .name = name, .data = value};
	c.data_len = strlen(value);
	c.in.setxattr.size = (uint32_t)c.data_len;
	return plain(f, c);
}

static void test_xattrs(void **state)
{
	struct fixture *f = *state;
	char b[64], p[100];
	put(f->dir, "f", "x");
	snprintf(p, sizeof(p), "%s/tree/f", f->base);
	uint64_t id = node(f, ROOT, "f");
	/* Ours and the system's are not a client's to set, wherever we are allowed to. */
	assert_int_equal(setxattr_(f, id, "user.sluice", "x"), -EOPNOTSUPP);
	assert_int_equal(setxattr_(f, id, "trusted.overlay.opaque", "y"), -EOPNOTSUPP);
	assert_int_equal(setxattr_(f, id, "security.capability", "y"), -EOPNOTSUPP);
	int r = setxattr_(f, id, "user.a", "value");
	if (r == -EOPNOTSUPP)
		skip();
	assert_int_equal(r, 0);
	assert_int_equal(getxattr(p, "user.a", b, sizeof(b)), 5);
	assert_int_equal(
	    plain(f, (struct sl_call){.opcode = FUSE_REMOVEXATTR, .nodeid = id, .name = "user.a"}), 0);
	assert_int_equal(
	    plain(f, (struct sl_call){.opcode = FUSE_REMOVEXATTR, .nodeid = id, .name = "user.a"}), -ENODATA);
	assert_int_equal(getxattr(p, "user.a", b, sizeof(b)), -1);
}

static void test_copy_file_range(void **state)
{
	struct fixture *f = *state;
	struct fuse_create_out a, b;
	struct sl_msg_out m;
	assert_int_equal(create(f, ROOT, "a", O_RDWR, 0644, &a), 0);
	assert_int_equal(create(f, ROOT, "b", O_RDWR, 0644, &b), 0);
	assert_int_equal(writes(f, a.entry.nodeid, a.open.fh, 0, "0123456789", 0), 10);
	struct sl_call c = {.opcode = FUSE_COPY_FILE_RANGE, .nodeid = a.entry.nodeid};
	c.in.copy_file_range = (struct fuse_copy_file_range_in){
	    .fh_in = a.open.fh, .off_in = 2, .nodeid_out = b.entry.nodeid, .fh_out = b.open.fh, .len = 5};
	struct sl_call again_ = c;
	int r = sl_client_call_sync(f->c, &c, &m, NULL);
	assert_int_equal(r, 0);
	assert_int_equal(m.out.write.size, 5);
	is_file(f->dir, "b", "23456");
	/* A handle belongs to one node. */
	again_.in.copy_file_range.nodeid_out = a.entry.nodeid;
	assert_int_equal(plain(f, again_), -EBADF);
}

/* Numbers and nodes that no client should send. */
static void test_hostile(void **state)
{
	struct fixture *f = *state;
	struct fuse_create_out c;
	struct fuse_entry_out e;
	uint64_t fh;
	assert_int_equal(create(f, ROOT, "f", O_RDWR, 0644, &c), 0);
	uint64_t id = c.entry.nodeid;
	assert_int_equal(writes(f, id, c.open.fh, UINT64_MAX, "x", 0), -EFBIG);
	assert_int_equal(writes(f, id, c.open.fh, INT64_MAX, "x", 0), -EFBIG);
	assert_int_equal(writes(f, id + 1, c.open.fh, 0, "x", 0), -EBADF);
	assert_int_equal(writes(f, ROOT, c.open.fh, 0, "x", 0), -EBADF);
	assert_int_equal(writes(f, id, 0, 0, "x", 0), -EBADF);
	assert_int_equal(writes(f, id, UINT64_MAX, 0, "x", 0), -EBADF);
	assert_int_equal(
	    setattr(f, id, (struct fuse_setattr_in){.valid = FATTR_SIZE, .size = UINT64_MAX}, NULL), -EFBIG);
	assert_int_equal(
	    setattr(f, id, (struct fuse_setattr_in){.valid = FATTR_MTIME, .mtimensec = 2000000000}, NULL),
	    -EINVAL);
	assert_int_equal(setattr(f, ROOT, (struct fuse_setattr_in){.valid = FATTR_SIZE}, NULL), -EISDIR);
	struct sl_call fa = {.opcode = FUSE_FALLOCATE, .nodeid = id};
	fa.in.fallocate =
	    (struct fuse_fallocate_in){.fh = c.open.fh, .offset = INT64_MAX, .length = INT64_MAX};
	assert_int_equal(plain(f, fa), -EFBIG);
	fa.in.fallocate = (struct fuse_fallocate_in){.fh = c.open.fh, .length = 1, .mode = 0xffffffff};
	assert_true(plain(f, fa) < 0);
	assert_int_equal(open_(f, id, O_ACCMODE, &fh), -EINVAL);
	assert_int_equal(open_(f, ROOT, O_WRONLY, &fh), -EISDIR);
	/* Directories that are none, or were never given out. */
	assert_int_equal(entry(f, (struct sl_call){.opcode = FUSE_MKDIR, .nodeid = id, .name = "x"}, &e),
			 -ENOTDIR);
	assert_int_equal(entry(f, (struct sl_call){.opcode = FUSE_MKDIR, .nodeid = 4711, .name = "x"}, &e),
			 -ESTALE);
	assert_int_equal(rename_(f, ROOT, "f", id, "g", 0), -ENOTDIR);
	assert_int_equal(rename_(f, ROOT, "f", 4711, "g", 0), -ESTALE);
	is_file(f->dir, "f", "");

	/* A directory that left the tree is not to be changed. */
	assert_int_equal(mkdirat(f->dir, "d", 0755), 0);
	uint64_t d = node(f, ROOT, "d");
	assert_int_equal(renameat(f->dir, "d", f->away, "d"), 0);
	assert_int_equal(entry(f, (struct sl_call){.opcode = FUSE_MKDIR, .nodeid = d, .name = "x"}, &e),
			 -ESTALE);
	assert_int_equal(symlinkat("../away", f->dir, "d"), 0);
	assert_int_equal(entry(f, (struct sl_call){.opcode = FUSE_MKDIR, .nodeid = d, .name = "x"}, &e),
			 -ESTALE);
	assert_int_equal(create(f, d, "x", O_RDWR, 0644, &c), -ESTALE);
	assert_int_equal(faccessat(f->away, "d/x", F_OK, 0), -1);
	assert_int_equal(faccessat(f->away, "x", F_OK, 0), -1);
}

/* Names that are none end the connection, before anything is done. */
static void test_bad_names(void **state)
{
	struct fixture *f = *state;
	static const char *const bad[] = {"..", ".", "", "a/b", "/", "../away/x"};
	struct fuse_entry_out e;
	for (size_t i = 0; i < SL_ARRAY_SIZE(bad); i++) {
		assert_true(
		    entry(f, (struct sl_call){.opcode = FUSE_MKDIR, .nodeid = ROOT, .name = bad[i]}, &e) < 0);
		sl_client_free(f->c);
		f->c = NULL;
		side_join(&f->s);
		connect_with(f, 0);
	}
	assert_int_equal(faccessat(f->away, "x", F_OK, 0), -1);
}

static void test_bounds(void **state)
{
	struct fixture *f = *state;
	uint64_t fh[5];
	again(f, &(struct sl_export_config){.writable = true, .max_opens = 4}, 0);
	put(f->dir, "f", "x");
	uint64_t id = node(f, ROOT, "f");
	for (size_t i = 0; i < 4; i++)
		assert_int_equal(open_(f, id, O_RDWR, &fh[i]), 0);
	assert_int_equal(open_(f, id, O_RDWR, &fh[4]), -ENFILE);
	assert_int_equal(release(f, id, fh[2]), 0);
	assert_int_equal(open_(f, id, O_RDWR, &fh[4]), 0);
	/* Those that are left are closed with the connection: the next has room again. */
	disconnect(f);
	connect_with(f, 0);
	id = node(f, ROOT, "f");
	for (size_t i = 0; i < 4; i++)
		assert_int_equal(open_(f, id, O_RDWR, &fh[i]), 0);
}

/* Who asked owns it, where the export says so; else we do. */
static void test_owners(void **state)
{
	struct fixture *f = *state;
	struct fuse_entry_out e;
	struct fuse_create_out c;
	struct stat st;
	if (geteuid() != 0)
		skip();
	for (int owners = 0; owners < 2; owners++) {
		disconnect(f);
		sl_export_free(f->s.e);
		open_export(f, &(struct sl_export_config){.writable = true, .owners = owners, .threads = 2});
		int sv[2];
		struct sl_transport *t;
		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
		side_start(&f->s, SL_TRANSPORT_STREAM, sv[0]);
		assert_int_equal(sl_transport_new(SL_TRANSPORT_STREAM, sv[1], sv[1], &t), 0);
		const struct sl_client_config cfg = {.uid = 1234, .gid = 5678};
		assert_int_equal(sl_client_new(t, &cfg, &f->c), 0);
		char name[8];
		snprintf(name, sizeof(name), "d%d", owners);
		assert_int_equal(
		    entry(f,
			  (struct sl_call){
			      .opcode = FUSE_MKDIR, .nodeid = ROOT, .name = name, .in.mkdir.mode = 0700},
			  &e),
		    0);
		assert_int_equal(e.attr.uid, owners ? 1234 : 0);
		assert_int_equal(e.attr.gid, owners ? 5678 : 0);
		/* In a directory that only its owner may write, we still may; set-id bits are kept. */
		assert_int_equal(create(f, e.nodeid, "f", O_RDWR, 04755, &c), 0);
		assert_int_equal(c.entry.attr.uid, owners ? 1234 : 0);
		assert_int_equal(c.entry.attr.mode, S_IFREG | 04755);
		snprintf(name, sizeof(name), "s%d", owners);
		assert_int_equal(
		    entry(
			f,
			(struct sl_call){.opcode = FUSE_SYMLINK, .nodeid = ROOT, .name = name, .name2 = "x"},
			&e),
		    0);
		assert_int_equal(fstatat(f->dir, name, &st, AT_SYMLINK_NOFOLLOW), 0);
		assert_int_equal(st.st_uid, owners ? 1234 : 0);
		/* The thread is itself again. */
		put(f->dir, "r", "");
		assert_int_equal(fchmodat(f->dir, "r", 0600, 0), 0);
		char b[8];
		for (int i = 0; i < 8; i++)
			assert_int_equal(reads(f, node(f, ROOT, "r"), 0, b, 8), 0);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    T(read_only),	 RW(files),   RW(unlinked_while_open), RW(tmpfile), RW(names),	RW(xattrs),
	    RW(copy_file_range), RW(hostile), RW(bad_names),	       RW(bounds),  RW(owners),
	};
	sl_log_set_level(SL_LOG_ERR);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
