/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The image of a clone, and what XFS does for it. If this fails, clones of the native gate cannot be made, do
 * not give space back to the host, or change the times of files when they are filled. Needs root, loop
 * devices and mkfs.xfs.
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
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sched.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>

#include "native_fixture.h"
#include "base/why.h"
#include "store/fs.h"
#include "store/image.h"

#define MIB (1ull << 20)

struct fx {
	char dir[48], image[64], dev[SL_LOOP_DEV_MAX];
	int loop, mnt;
};

static int setup_dir(void **state)
{
	struct fx *x = calloc(1, sizeof(*x));
	x->loop = x->mnt = -1;
	strcpy(x->dir, "/tmp/sluice-image-XXXXXX");
	assert_non_null(mkdtemp(x->dir));
	snprintf(x->image, sizeof(x->image), "%s/image", x->dir);
	*state = x;
	return 0;
}

static int setup(void **state)
{
	char *why = NULL;
	setup_dir(state);
	struct fx *x = *state;
	if (no_images())
		return 0;
	expect_ok(sl_image_create(x->image, SL_IMAGE_MIN, &why), &why);
	expect_ok(sl_image_attach(x->image, &x->loop, x->dev, &why), &why);
	expect_ok(sl_fs_mount(x->dev, "xfs", SL_IMAGE_OPTIONS, 0, &x->mnt, &why), &why);
	return 0;
}

static int teardown(void **state)
{
	struct fx *x = *state;
	if (x->mnt >= 0)
		close(x->mnt);
	if (x->loop >= 0)
		close(x->loop);
	sl_remove_tree(AT_FDCWD, x->dir);
	free(x);
	return 0;
}

#define NEED_ROOT()                                                                                          \
	do {                                                                                                 \
		const char *u = no_images();                                                                 \
		if (u) {                                                                                     \
			print_message("# skipped: %s\n", u);                                                 \
			skip();                                                                              \
		}                                                                                            \
	} while (0)

static uint64_t used(const char *path)
{
	struct stat st;
	assert_int_equal(stat(path, &st), 0);
	return (uint64_t)st.st_blocks * 512;
}

static int make(struct fx *x, const char *name, size_t bytes)
{
	int fd = openat(x->mnt, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
	assert_true(fd >= 0);
	char *buf = malloc(MIB);
	memset(buf, 'x', MIB);
	for (size_t off = 0; off < bytes; off += MIB)
		assert_int_equal(sl_pwrite_full(fd, buf, SL_MIN((size_t)MIB, bytes - off), (off_t)off), 0);
	free(buf);
	assert_int_equal(fsync(fd), 0);
	return fd;
}

/* What fails leaves nothing behind and says why. */
static void test_create_fails(void **state)
{
	struct fx *x = *state;
	_cleanup_free_ char *small = NULL, *there = NULL, *none = NULL, *missing = NULL, *large = NULL;
	assert_int_equal(sl_image_create(x->image, SL_IMAGE_MIN - 1, &small), -EINVAL);
	assert_non_null(strstr(small, "512"));
	assert_int_equal(access(x->image, F_OK), -1);

	int fd = open(x->image, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	assert_int_equal(sl_image_create(x->image, SL_IMAGE_MIN, &there), -EEXIST);
	assert_int_equal(access(x->image, F_OK), 0);
	close(fd);
	unlink(x->image);

	char deep[96];
	snprintf(deep, sizeof(deep), "%s/none/image", x->dir);
	assert_int_equal(sl_image_create(deep, SL_IMAGE_MIN, &none), -ENOENT);
	assert_int_equal(sl_image_create(x->image, 1ull << 62, &large), -EFBIG);
	assert_non_null(strstr(large, "too large"));
	assert_int_equal(access(x->image, F_OK), -1);

	if (!no_images()) {
		/* posix_spawnp() looks in the path, then in the usual places: hide those. */
		_cleanup_free_ char *path = strdup(getenv("PATH"));
		pid_t pid = fork();
		if (pid == 0) {
			char *why = NULL;
			if (unshare(CLONE_NEWNS) < 0 ||
			    mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
			    mount("none", "/usr/sbin", "tmpfs", 0, NULL) < 0)
				_exit(77);
			setenv("PATH", "/nowhere", 1);
			int r = sl_image_create(x->image, SL_IMAGE_MIN, &why);
			_exit(r == -ENOENT && why && strstr(why, "xfsprogs") && access(x->image, F_OK) < 0
				  ? 0
				  : 1);
		}
		int status;
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_true(WIFEXITED(status));
		if (WEXITSTATUS(status) != 77)
			assert_int_equal(WEXITSTATUS(status), 0);
	}
}

static void test_create(void **state)
{
	NEED_ROOT();
	struct fx *x = *state;
	struct statfs sf;
	struct stat st;
	assert_int_equal(stat(x->image, &st), 0);
	assert_int_equal(st.st_size, SL_IMAGE_MIN);
	assert_int_equal(st.st_mode & 07777, 0600);
	assert_true(used(x->image) < 100 * MIB);
	assert_int_equal(fstatfs(x->mnt, &sf), 0);
	/* Most of it may become inodes of 512 bytes. */
	assert_true(sf.f_files > SL_IMAGE_MIN / 512 / 2);

	int a = make(x, "a", MIB), b = openat(x->mnt, "b", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	assert_int_equal(ioctl(b, FICLONE, a), 0);
	close(a);
	close(b);
}

static void test_mount(void **state)
{
	NEED_ROOT();
	struct fx *x = *state;
	_cleanup_free_ char *bad = NULL, *type = NULL, *dev = NULL, *not_there = NULL;
	char *why = NULL;
	int fd = -1;
	assert_true(sl_fs_mount("/dev/null", "xfs", NULL, 0, &fd, &dev) < 0);
	assert_non_null(strstr(dev, "/dev/null"));
	assert_true(sl_fs_mount(x->dev, "xfs", "nonsense=7", 0, &fd, &bad) < 0);
	assert_non_null(strstr(bad, "nonsense"));
	assert_true(sl_fs_mount(x->dev, "no-such-fs", NULL, 0, &fd, &type) < 0);
	assert_non_null(strstr(type, "no-such-fs"));

	assert_int_equal(mkdirat(x->mnt, "tree", 0755), 0);
	close(make(x, "tree/f", 10));
	char at[80], f[96];
	snprintf(at, sizeof(at), "%s/at", x->dir);
	snprintf(f, sizeof(f), "%s/f", at);
	assert_int_equal(mkdir(at, 0755), 0);
	int r = sl_mount_clone(x->mnt, "tree", &fd);
	if (r == -EINVAL) { /* before 6.15 */
		print_message("# this kernel clones attached mounts only\n");
		return;
	}
	assert_int_equal(r, 0);
	/* Nobody sees it, nosuid holds, and read-only is the mount's own. */
	assert_int_equal(access(f, F_OK), -1);
	assert_true(sl_mount_attach(fd, "/nowhere", &not_there) < 0);
	assert_non_null(strstr(not_there, "/nowhere"));
	expect_ok(sl_mount_attach(fd, at, &why), &why);
	assert_int_equal(sl_mount_private(fd), 0);
	assert_int_equal(access(f, F_OK), 0);
	struct statfs sf;
	assert_int_equal(statfs(at, &sf), 0);
	assert_true((sf.f_flags & (ST_NOSUID | ST_NODEV)) == (ST_NOSUID | ST_NODEV));
	assert_int_equal(sl_mount_setattr(fd, MOUNT_ATTR_RDONLY, 0), 0);
	assert_int_equal(open(f, O_RDWR | O_CLOEXEC), -1);
	assert_int_equal(errno, EROFS);
	assert_int_equal(sl_mount_setattr(fd, 0, MOUNT_ATTR_RDONLY), 0);
	int w = open(f, O_RDWR | O_CLOEXEC);
	assert_true(w >= 0);
	close(w);
	close(fd);
	assert_int_equal(umount2(at, 0), 0);
}

/* What is deleted is given back to the host. */
static void test_trim(void **state)
{
	NEED_ROOT();
	struct fx *x = *state;
	close(make(x, "a", 100 * MIB));
	uint64_t full = used(x->image), bytes = 0;
	assert_true(full >= 100 * MIB);
	assert_int_equal(unlinkat(x->mnt, "a", 0), 0);
	_cleanup_close_ int dir = openat(x->mnt, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	/* XFS frees in the background. */
	time_t end = time(NULL) + 60;
	do {
		syncfs(dir);
		assert_int_equal(sl_fs_trim(x->mnt, &bytes), 0);
	} while (used(x->image) > full - 90 * MIB && time(NULL) < end);
	assert_true(used(x->image) <= full - 90 * MIB);
	assert_true(bytes > 0);
}

static void test_shutdown(void **state)
{
	NEED_ROOT();
	struct fx *x = *state;
	char *why = NULL;
	int fd = make(x, "a", MIB), tmp = open(x->dir, O_RDWR | O_TMPFILE | O_CLOEXEC, 0600);
	posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	assert_int_equal(sl_fs_shutdown(x->mnt), 0);
	char b;
	assert_int_equal(pread(fd, &b, 1, 0), -1);
	assert_int_equal(errno, EIO);
	assert_int_equal(openat(x->mnt, "a", O_RDONLY | O_CLOEXEC), -1);
	assert_int_equal(openat(x->mnt, "new", O_RDWR | O_CREAT | O_CLOEXEC, 0600), -1);
	close(fd);
	close(x->mnt);
	close(x->loop);
	/* The filesystem goes away behind our back. */
	time_t end = time(NULL) + 60;
	int r;
	do {
		expect_ok(sl_image_attach(x->image, &x->loop, x->dev, &why), &why);
		r = sl_fs_mount(x->dev, "xfs", NULL, 0, &x->mnt, &why);
		if (r < 0 && time(NULL) < end) {
			close(x->loop);
			free(why);
			why = NULL;
		}
	} while (r < 0 && time(NULL) < end);
	expect_ok(r, &why);
	struct stat st;
	assert_int_equal(fstatat(x->mnt, "a", &st, 0), 0);
	assert_int_equal(st.st_size, MIB);
	/* A filesystem of tmpfs or overlayfs cannot, and others' numbers are not used. */
	if (tmp >= 0)
		close(tmp);
	_cleanup_close_ int proc = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_int_equal(sl_fs_shutdown(proc), -EOPNOTSUPP);
}

static bool same_times(const struct stat *a, const struct stat *b)
{
	return a->st_mtim.tv_sec == b->st_mtim.tv_sec && a->st_mtim.tv_nsec == b->st_mtim.tv_nsec &&
	       a->st_ctim.tv_sec == b->st_ctim.tv_sec && a->st_ctim.tv_nsec == b->st_ctim.tv_nsec;
}

/* Wait until the clock that files are stamped with has moved on. */
static void tick(struct fx *x)
{
	struct stat a, b;
	do {
		int fd = openat(x->mnt, "clock", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
		assert_int_equal(fstat(fd, &a), 0);
		assert_int_equal(pwrite(fd, "x", 1, 0), 1);
		assert_int_equal(fstat(fd, &b), 0);
		close(fd);
	} while (same_times(&a, &b));
}

/* Run @act and say whether the times are as they were. The page cache is written back: times that change late
 * count. */
static bool keeps(struct fx *x, int fd, const char *what, int r)
{
	struct stat st;
	static struct stat first;
	if (!what) {
		assert_int_equal(fstat(fd, &first), 0);
		tick(x);
		return true;
	}
	if (r < 0)
		print_message("# %s: %s\n", what, strerror(errno));
	assert_true(r >= 0);
	assert_int_equal(fdatasync(fd), 0);
	assert_int_equal(fstat(fd, &st), 0);
	bool same = same_times(&first, &st);
	print_message("# %s: times %s\n", what, same ? "kept" : "CHANGED");
	return same;
}

static void test_invisible(void **state)
{
	NEED_ROOT();
	struct fx *x = *state;
	int plain = make(x, "a", 4 * MIB), src = make(x, "src", MIB);
	struct stat st;
	int fd = sl_xfs_reopen_invisible(x->mnt, plain, O_RDWR | O_CLOEXEC);
	assert_true(fd >= 0);
	assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
	struct file_clone_range c = {.src_fd = src, .src_length = MIB, .dest_offset = MIB};
	struct timespec ts[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_sec = 1, .tv_nsec = 2}};
	char buf[4096] = "new";

	assert_int_equal(futimens(plain, ts), 0);
	keeps(x, fd, NULL, 0);
	assert_true(keeps(x, fd, "pwrite", (int)pwrite(fd, buf, sizeof(buf), 0)));
	assert_true(keeps(x, fd, "pwrite of a part of a block", (int)pwrite(fd, buf, 100, 777)));
	assert_true(keeps(x, fd, "FICLONERANGE", ioctl(fd, FICLONERANGE, &c)));
	assert_true(keeps(x, fd, "pwrite to what is shared", (int)pwrite(fd, buf, sizeof(buf), MIB)));
	assert_true(keeps(x, fd, "fallocate: punch",
			  fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 2 * MIB, 65536)));
	assert_true(keeps(x, fd, "pwrite to a hole", (int)pwrite(fd, buf, sizeof(buf), 2 * MIB)));
	assert_true(keeps(x, fd, "fallocate: allocate", fallocate(fd, FALLOC_FL_KEEP_SIZE, 2 * MIB, 131072)));
	assert_true(keeps(x, fd, "fallocate: zero", fallocate(fd, FALLOC_FL_ZERO_RANGE, 2 * MIB, 131072)));
	assert_true(keeps(x, fd, "pread", (int)pread(fd, buf, sizeof(buf), 3 * MIB)));
	off_t in = 0, out = 3 * MIB;
	assert_true(keeps(x, fd, "copy_file_range", (int)copy_file_range(src, &in, fd, &out, 65536, 0)));
	in = 100;
	out = 3 * MIB + 50;
	assert_true(keeps(x, fd, "copy_file_range of a part of a block",
			  (int)copy_file_range(src, &in, fd, &out, 100, 0)));
	/* These are not so; a kernel where they are would be welcome. */
	keeps(x, fd, "ftruncate to the same size", ftruncate(fd, 4 * MIB));
	keeps(x, fd, "ftruncate", ftruncate(fd, 4 * MIB - 10));
	assert_int_equal(futimens(plain, ts), 0);
	keeps(x, fd, NULL, 0);
	keeps(x, fd, "fsetxattr", fsetxattr(fd, "trusted.x", "x", 1, 0));
	/* Somebody else's descriptor of the same file is as ever. */
	keeps(x, plain, NULL, 0);
	assert_false(keeps(x, plain, "pwrite through another descriptor", (int)pwrite(plain, buf, 1, 0)));
	/* The data is there. */
	assert_int_equal(pread(plain, buf, 2, 1), 2);
	assert_memory_equal(buf, "ew", 2);
	close(fd);

	/* By handle, as it is kept; then for what is gone, and what is no regular file of an XFS. */
	union {
		struct file_handle h;
		char room[sizeof(struct file_handle) + MAX_HANDLE_SZ];
	} u = {.h.handle_bytes = MAX_HANDLE_SZ};
	int id;
	assert_int_equal(name_to_handle_at(x->mnt, "src", &u.h, &id, 0), 0);
	fd = sl_xfs_open_invisible(x->mnt, &u.h, O_RDWR | O_CLOEXEC);
	assert_true(fd >= 0);
	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(st.st_size, MIB);
	close(fd);
	close(src);
	close(plain);
	assert_int_equal(unlinkat(x->mnt, "src", 0), 0);
	assert_int_equal(sl_xfs_open_invisible(x->mnt, &u.h, O_RDWR | O_CLOEXEC), -ESTALE);
	_cleanup_close_ int other = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_int_equal(sl_xfs_open_invisible(other, &u.h, O_RDONLY | O_CLOEXEC), -EOPNOTSUPP);
}

/* XFS's own way to a handle says the same as the kernel's: an object found by the wrong one would be another.
 */
static void test_handle(void **state)
{
	NEED_ROOT();
	struct fx *x = *state;
	struct sl_handle a, b, root;
	int fd = make(x, "a", 4096), other = make(x, "b", 4096);
	assert_int_equal(sl_handle_get(x->mnt, "", &root), 0);
	assert_int_equal(sl_handle_get(fd, "", &a), 0);
	assert_int_equal(sl_xfs_handle_get(fd, root.type, &b), 0);
	assert_memory_equal(&a, &b, sizeof(a));
	assert_int_equal(sl_xfs_handle_get(other, root.type, &b), 0);
	assert_memory_not_equal(&a, &b, sizeof(a));
	/* Without a name it is the same; with a number that is used again it is another one. */
	assert_int_equal(unlinkat(x->mnt, "a", 0), 0);
	assert_int_equal(sl_xfs_handle_get(fd, root.type, &b), 0);
	assert_memory_equal(&a, &b, sizeof(a));
	close(fd);
	uint64_t ino, again = 0;
	assert_true(sl_handle_ino(&a, &ino));
	for (int i = 0; i < 200 && again != ino; i++) {
		fd = make(x, "a", 4096);
		assert_int_equal(sl_handle_get(fd, "", &a), 0);
		assert_int_equal(sl_xfs_handle_get(fd, root.type, &root), 0);
		assert_memory_equal(&a, &root, sizeof(a));
		assert_true(sl_handle_ino(&root, &again));
		assert_true(again != ino || memcmp(&root, &b, sizeof(b)) != 0);
		assert_int_equal(unlinkat(x->mnt, "a", 0), 0);
		close(fd);
		usleep(again == ino ? 0 : 10000); /* XFS frees behind our back */
	}
	print_message("# the number %s used again\n", again == ino ? "was" : "was NOT");
	close(other);
	assert_int_equal(sl_xfs_handle_get(x->mnt, 0x4d, &b), -EOPNOTSUPP);
	_cleanup_close_ int proc = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
	assert_true(sl_xfs_handle_get(proc, root.type, &b) < 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test_setup_teardown(test_create_fails, setup_dir, teardown),
	    cmocka_unit_test_setup_teardown(test_create, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_mount, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_trim, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_shutdown, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_invisible, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_handle, setup, teardown),
	};
	return cmocka_run_group_tests_name("image", tests, NULL, NULL);
}
