/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The exporter with the kernel as its client. If this fails, what we speak is not FUSE.
 * suite: threads
 */
#include "serve_fixture.h"

static bool own_mounts; /* we may mount */

static void test_kernel_is_client(void **state)
{
	struct fixture *f = *state;
	char mnt[80], p[100], opts[100], b[64];
	int dev = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	if (!own_mounts || dev < 0)
		skip();
	make_many(f, 3000);
	assert_int_equal(mkdirat(f->dir, "d", 0755), 0);
	put(f->dir, "d/x", "content");
	assert_int_equal(linkat(f->dir, "d/x", f->dir, "d/y", 0), 0);
	assert_int_equal(symlinkat("/etc/passwd", f->dir, "d/link"), 0);
	assert_int_equal(mkfifoat(f->dir, "d/fifo", 0600), 0);
	snprintf(p, sizeof(p), "%s/tree/d/x", f->base);
	bool has_xattr = setxattr(p, "user.a", "value", 5, 0) == 0;

	snprintf(mnt, sizeof(mnt), "%s/mnt", f->base);
	assert_int_equal(mkdir(mnt, 0755), 0);
	snprintf(opts, sizeof(opts), "fd=%d,rootmode=40000,user_id=0,group_id=0,default_permissions", dev);
	struct side s = {.e = f->s.e};
	assert_int_equal(mount("sluice", mnt, "fuse.sluice", MS_NOSUID | MS_NODEV, opts), 0);
	side_start(&s, SL_TRANSPORT_DEV, dev);

	DIR *d = opendir(mnt);
	assert_non_null(d);
	size_t n = 0;
	while (readdir(d))
		n++;
	closedir(d);
	assert_int_equal(n, 3000 + 1 + 2);
	struct stat x, y, orig;
	snprintf(p, sizeof(p), "%s/mnt/d/x", f->base);
	assert_int_equal(stat(p, &x), 0);
	int fd = open(p, O_RDONLY | O_CLOEXEC);
	assert_int_equal(read(fd, b, sizeof(b)), 7);
	assert_memory_equal(b, "content", 7);
	close(fd);
	if (has_xattr) {
		assert_int_equal(getxattr(p, "user.a", b, sizeof(b)), 5);
		assert_int_equal(listxattr(p, b, sizeof(b)), 7);
	}
	assert_int_equal(truncate(p, 1), -1);
	assert_int_equal(errno, EROFS);
	assert_int_equal(unlink(p), -1);
	assert_int_equal(errno, EROFS);
	snprintf(p, sizeof(p), "%s/mnt/d/y", f->base);
	assert_int_equal(stat(p, &y), 0);
	assert_int_equal(fstatat(f->dir, "d/y", &orig, 0), 0);
	assert_int_equal(x.st_ino, y.st_ino);
	assert_int_equal(x.st_ino, orig.st_ino);
	assert_int_equal(x.st_mtim.tv_nsec, orig.st_mtim.tv_nsec);
	snprintf(p, sizeof(p), "%s/mnt/d/link", f->base);
	assert_int_equal(readlink(p, b, sizeof(b)), 11);
	snprintf(p, sizeof(p), "%s/mnt/d/new", f->base);
	assert_int_equal(open(p, O_WRONLY | O_CREAT | O_CLOEXEC, 0644), -1);
	assert_int_equal(errno, EROFS);
	for (int i = 0; i < 3000; i += 97) {
		snprintf(p, sizeof(p), "%s/mnt/f%d", f->base, i);
		fd = open(p, O_RDONLY | O_CLOEXEC);
		assert_true(fd >= 0);
		assert_int_equal(read(fd, b, sizeof(b)), i % 3);
		close(fd);
	}
	assert_int_equal(umount2(mnt, 0), 0);
	side_join(&s);
	assert_int_equal(s.result, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    T(kernel_is_client),
	};
	own_mounts = own_mount_namespace();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
