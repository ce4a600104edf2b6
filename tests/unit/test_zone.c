/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The cold zone: placeholders whose content is not here are I/O errors, not zeros, when nothing stops a
 * reader. If this fails, what gets past the gate reads wrong content, or an image is damaged by the seal.
 * Needs root, loop devices and mkfs.xfs.
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
#include <sys/mman.h>
#include <sys/stat.h>
#include <signal.h>
#include <sys/statfs.h>
#include <sys/wait.h>

#include "native_fixture.h"
#include "base/why.h"
#include "store/fs.h"
#include "store/image.h"
#include "store/internal.h"
#include "store/zone.h"

#define MIB (1ull << 20)

static const uint64_t sizes[] = {1, 100, 4095, 4096, 4097, 10000, 65536, 100001, MIB, 50 * MIB + 4095};

struct fx {
	char dir[48], image[64], dev[SL_LOOP_DEV_MAX], store[64];
	int loop, mnt, store_fd;
	struct sl_store *s;
};

static void attach(struct fx *x)
{
	char *why = NULL;
	expect_ok(sl_image_attach(x->image, &x->loop, x->dev, &why), &why);
	expect_ok(sl_fs_mount(x->dev, "xfs", SL_IMAGE_OPTIONS, 0, &x->mnt, &why), &why);
	snprintf(x->store, sizeof(x->store), "/proc/self/fd/%d/store", x->mnt);
}

static void open_store(struct fx *x)
{
	char *why = NULL;
	expect_ok(sl_store_open(x->store, &x->s, &why), &why);
	assert_true(sl_store_reflinks(x->s));
	x->store_fd = open(x->store, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_true(x->store_fd >= 0);
}

static void detach(struct fx *x)
{
	sl_store_close(x->s);
	int *fds[] = {&x->store_fd, &x->mnt, &x->loop};
	for (size_t i = 0; i < SL_ARRAY_SIZE(fds); i++) {
		if (*fds[i] >= 0)
			close(*fds[i]);
		*fds[i] = -1;
	}
	x->s = NULL;
}

static void create(struct fx *x, uint64_t bytes)
{
	char *why = NULL;
	struct sl_store_config config = {.origin = (char *)"/o", .dir = (char *)"/d", .id = (char *)"i"};
	expect_ok(sl_image_create(x->image, bytes, &why), &why);
	attach(x);
	expect_ok(sl_store_create(x->store, &config, &why), &why);
	int fd = open(x->store, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_true(fd >= 0);
	expect_ok(sl_zone_make(fd, &why), &why);
	close(fd);
	open_store(x);
}

static int setup(void **state)
{
	struct fx *x = calloc(1, sizeof(*x));
	x->loop = x->mnt = x->store_fd = -1;
	strcpy(x->dir, "/tmp/sluice-zone-XXXXXX");
	assert_non_null(mkdtemp(x->dir));
	snprintf(x->image, sizeof(x->image), "%s/image", x->dir);
	*state = x;
	return 0;
}

static int teardown(void **state)
{
	struct fx *x = *state;
	detach(x);
	sl_remove_tree(AT_FDCWD, x->dir);
	free(x);
	return 0;
}

#define NEED_ROOT()                                                                                          \
	do {                                                                                                 \
		if (no_images()) {                                                                           \
			print_message("# skipped: needs root, loop devices and mkfs.xfs\n");                 \
			skip();                                                                              \
		}                                                                                            \
	} while (0)

static int placeholder(struct fx *x, const char *name, uint64_t size)
{
	struct stat st;
	int fd = openat(x->mnt, name, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
	assert_true(fd >= 0);
	assert_int_equal(sl_armour(x->s, fd, 0, size), 0);
	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(st.st_size, size);
	assert_int_equal(lseek(fd, 0, SEEK_HOLE), size);
	return fd;
}

/* What a read of one byte at @off says: the byte or -errno. */
static int byte_at(int fd, uint64_t off)
{
	unsigned char b;
	ssize_t n = pread(fd, &b, 1, (off_t)off);
	return n < 0 ? -errno : n == 0 ? -ENODATA : b;
}

static void seal(struct fx *x)
{
	char *why = NULL;
	struct stat st;
	struct statfs sf;
	expect_ok(sl_zone_seal(x->image, x->store_fd, &why), &why);
	assert_int_equal(stat(x->image, &st), 0);
	assert_int_equal(fstatfs(x->mnt, &sf), 0);
	assert_int_equal(st.st_size % MIB, 0);
}

static uint64_t length(struct fx *x)
{
	struct stat st;
	assert_int_equal(stat(x->image, &st), 0);
	return (uint64_t)st.st_size;
}

static void all_cold(struct fx *x, const char *prefix)
{
	for (size_t i = 0; i < SL_ARRAY_SIZE(sizes); i++) {
		char name[32];
		snprintf(name, sizeof(name), "%s%zu", prefix, i);
		int fd = openat(x->mnt, name, O_RDONLY | O_CLOEXEC);
		assert_true(fd >= 0);
		assert_int_equal(byte_at(fd, 0), -EIO);
		assert_int_equal(byte_at(fd, sizes[i] / 2), -EIO);
		assert_int_equal(byte_at(fd, sizes[i] - 1), -EIO);
		close(fd);
	}
}

static void make_all(struct fx *x, const char *prefix)
{
	for (size_t i = 0; i < SL_ARRAY_SIZE(sizes); i++) {
		char name[32];
		snprintf(name, sizeof(name), "%s%zu", prefix, i);
		close(placeholder(x, name, sizes[i]));
	}
}

/* Placeholders made before the seal, after it, and after a new mount: every byte is an error, in every way.
 */
static void test_cold(void **state)
{
	NEED_ROOT();
	struct fx *x = *state;
	create(x, SL_IMAGE_MIN);
	uint64_t whole = length(x);
	make_all(x, "before");
	seal(x);
	assert_int_equal(length(x), whole - SL_ZONE_SIZE);
	make_all(x, "after");
	all_cold(x, "before");
	all_cold(x, "after");

	int fd = openat(x->mnt, "before9", O_RDONLY | O_DIRECT | O_CLOEXEC);
	void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_int_equal(pread(fd, page, 4096, MIB), -1);
	assert_int_equal(errno, EIO);
	volatile char *map = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, fd, 0);
	assert_ptr_not_equal(map, MAP_FAILED);
	pid_t pid = fork();
	if (pid == 0) {
		signal(SIGBUS, SIG_DFL);
		_exit(map[0] == 0 ? 1 : 2);
	}
	int status;
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
	munmap((void *)map, 4096);
	munmap(page, 4096);
	close(fd);
	for (int i = 0; i < 2; i++) {
		detach(x);
		attach(x);
		assert_int_equal(length(x), whole);
		open_store(x);
		seal(x);
		make_all(x, "again");
		all_cold(x, "before");
		all_cold(x, "after");
		all_cold(x, "again");
	}
	/* The filesystem is sound, as the next mount and xfs_repair see it. */
	detach(x);
	attach(x);
	char cmd[128];
	snprintf(cmd, sizeof(cmd), "PATH=$PATH:/usr/sbin:/sbin; xfs_repair -n %s >/dev/null 2>&1", x->dev);
	close(x->mnt);
	x->mnt = -1;
	assert_int_equal(system(cmd), 0);
}

/* What is filled is right and stays it, beside what is cold; and times stay. */
static void test_fill(void **state)
{
	NEED_ROOT();
	struct fx *x = *state;
	create(x, SL_IMAGE_MIN);
	seal(x);
	char buf[65536], got[65536];
	for (size_t i = 0; i < sizeof(buf); i++)
		buf[i] = (char)(i * 7 + 1);
	struct stat before, after;
	int fd = placeholder(x, "f", 100001), inv = sl_xfs_reopen_invisible(x->mnt, fd, O_RDWR | O_CLOEXEC);
	assert_true(inv >= 0);
	assert_int_equal(fstat(fd, &before), 0);
	assert_int_equal(sl_pwrite_full(inv, buf, 65536, 0), 0);
	/* A part of a cold block is refused, not made up: the fill punches first. */
	assert_int_equal(pwrite(inv, buf, 34465, 65536), 32768);
	assert_int_equal(pwrite(inv, buf, 1697, 98304), -1);
	assert_int_equal(errno, EIO);
	assert_int_equal(ftruncate(fd, 98310), -1);
	assert_int_equal(fallocate(inv, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 98304, 4096), 0);
	assert_int_equal(sl_pwrite_full(inv, buf, 1697, 98304), 0);
	assert_int_equal(fdatasync(inv), 0);
	assert_int_equal(fstat(fd, &after), 0);
	assert_int_equal(after.st_size, 100001);
	assert_int_equal(before.st_mtim.tv_nsec, after.st_mtim.tv_nsec);
	assert_int_equal(before.st_ctim.tv_nsec, after.st_ctim.tv_nsec);
	/* Armoured again over what it has, its size never changes; filled again. */
	assert_int_equal(sl_armour(x->s, inv, 0, 100001), 0);
	assert_int_equal(fstat(fd, &after), 0);
	assert_int_equal(after.st_size, 100001);
	assert_int_equal(before.st_ctim.tv_nsec, after.st_ctim.tv_nsec);
	assert_int_equal(byte_at(fd, 0), -EIO);
	assert_int_equal(byte_at(fd, 100000), -EIO);
	assert_int_equal(sl_pwrite_full(inv, buf, 65536, 0), 0);
	close(inv);
	close(fd);

	detach(x);
	attach(x);
	open_store(x);
	seal(x);
	fd = openat(x->mnt, "f", O_RDONLY | O_CLOEXEC);
	for (int i = 0; i < 2; i++) { /* with readahead into what is cold, and after it */
		assert_int_equal(sl_pread_full(fd, got, sizeof(got), 0), sizeof(got));
		assert_memory_equal(got, buf, sizeof(got));
		assert_int_equal(byte_at(fd, 65536), -EIO);
	}
	char *map = mmap(NULL, 65536, PROT_READ, MAP_SHARED, fd, 0);
	assert_memory_equal(map, buf, sizeof(got));
	munmap(map, 65536);
	close(fd);
}

/* Mappings of what is filled to whole units see it, beside what is cold, however they are read. */
static void test_map(void **state)
{
	NEED_ROOT();
	struct fx *x = *state;
	create(x, SL_IMAGE_MIN);
	seal(x);
	static const int advice[] = {MADV_NORMAL, MADV_SEQUENTIAL, MADV_WILLNEED, MADV_HUGEPAGE};
	const size_t unit = SL_ZONE_MAP_UNIT;
	int fd = placeholder(x, "m", 16 * SL_ZONE_MAP_UNIT);
	char *buf = malloc(unit);
	memset(buf, 'm', unit);
	for (uint64_t off = 0; off < 16 * unit; off += 2 * unit)
		assert_int_equal(sl_pwrite_full(fd, buf, unit, (off_t)off), 0);
	assert_int_equal(fsync(fd), 0);
	for (size_t a = 0; a < SL_ARRAY_SIZE(advice); a++) {
		posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
		for (uint64_t off = 0; off < 16 * unit; off += 2 * unit) {
			char *map = mmap(NULL, unit, PROT_READ, MAP_SHARED, fd, (off_t)off);
			assert_ptr_not_equal(map, MAP_FAILED);
			(void)madvise(map, unit, advice[a]);
			assert_memory_equal(map + unit / 2, buf, unit / 2);
			assert_memory_equal(map, buf, unit / 2);
			munmap(map, unit);
			assert_int_equal(byte_at(fd, off + unit), -EIO);
		}
	}
	free(buf);
	close(fd);
}

/* A full filesystem, many names, freed space given back: the zone stays as it is, and so does the file's
 * length. */
static void test_full(void **state)
{
	NEED_ROOT();
	struct fx *x = *state;
	create(x, SL_IMAGE_MIN);
	make_all(x, "a");
	seal(x);
	uint64_t len = length(x);
	int fd = openat(x->mnt, "big", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	char *buf = malloc(MIB);
	memset(buf, 'x', MIB);
	int r = 0;
	for (uint64_t off = 0; r == 0; off += MIB)
		r = sl_pwrite_full(fd, buf, MIB, (off_t)off);
	free(buf);
	assert_int_equal(r, -ENOSPC);
	assert_int_equal(fsync(fd), 0);
	for (int i = 0; i < 20000; i++) {
		char name[32];
		snprintf(name, sizeof(name), "n%d", i);
		int f = openat(x->mnt, name, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
		if (f < 0)
			break;
		close(f);
	}
	syncfs(x->store_fd);
	assert_int_equal(length(x), len);
	all_cold(x, "a");
	close(fd);
	assert_int_equal(unlinkat(x->mnt, "big", 0), 0);
	/* Placeholders that go away do not take the zone with them. */
	assert_int_equal(unlinkat(x->mnt, "a9", 0), 0);
	syncfs(x->store_fd);
	assert_int_equal(sl_fs_trim(x->mnt, NULL), 0);
	assert_int_equal(length(x), len);
	close(placeholder(x, "a9", sizes[9]));
	all_cold(x, "a");
}

/* A large image costs no more than a small one. */
static void test_large(void **state)
{
	NEED_ROOT();
	struct fx *x = *state;
	create(x, 2ull << 40);
	seal(x);
	struct stat st;
	assert_int_equal(stat(x->image, &st), 0);
	assert_true((uint64_t)st.st_blocks * 512 < 700 * MIB);
	make_all(x, "a");
	all_cold(x, "a");
}

/* Without a zone nothing is cut off. */
static void test_none(void **state)
{
	NEED_ROOT();
	struct fx *x = *state;
	_cleanup_free_ char *why = NULL, *other = NULL;
	char *no = NULL;
	expect_ok(sl_image_create(x->image, SL_IMAGE_MIN, &no), &no);
	attach(x);
	x->store_fd = openat(x->mnt, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_int_equal(sl_zone_seal(x->image, x->store_fd, &why), -ENXIO);
	assert_int_equal(length(x), SL_IMAGE_MIN);
	/* No room at the end: nothing is left behind. */
	int fd = openat(x->store_fd, "big", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	uint64_t off = 0;
	for (uint64_t step = 64 * MIB; step >= 4096;)
		if (fallocate(fd, 0, (off_t)off, (off_t)step) == 0)
			off += step;
		else
			step /= 2;
	assert_true(sl_zone_make(x->store_fd, &other) < 0);
	assert_non_null(other);
	assert_int_equal(faccessat(x->store_fd, "zone", F_OK, 0), -1);
	assert_int_equal(faccessat(x->store_fd, "cold", F_OK, 0), -1);
	assert_int_equal(faccessat(x->store_fd, "tails", F_OK, 0), -1);
	close(fd);
	_cleanup_free_ char *notxfs = NULL;
	_cleanup_close_ int proc = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_int_equal(sl_zone_make(proc, &notxfs), -EOPNOTSUPP);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test_setup_teardown(test_cold, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_fill, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_map, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_full, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_large, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_none, setup, teardown),
	};
	return cmocka_run_group_tests_name("zone", tests, NULL, NULL);
}
