/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "store/image.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <linux/loop.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/fd.h"
#include "base/human.h"
#include "base/why.h"

#define MKFS	     "mkfs.xfs"
#define MIB	     (1ull << 20)
#define SMALL	     (8ull << 30)
#define ATTACH_TRIES 64
/* With direct I/O the kernel would read 2.5 MiB ahead, of which a reader waits for all: not faster in order,
 * and up to twice as slow where the machine is busy. */
#define READAHEAD (512ul << 10)

/* 4 KiB sectors: an image's own writes then never are smaller than a block of the host, which direct I/O
 * would make slow or impossible. No limit on inodes: placeholders are little else. Nothing to discard in a
 * new file. The log is what takes space at once; by default it is as large as fits a disk of that size. */
static int run_mkfs(const char *path, uint64_t bytes, char **why)
{
	char data[64];
	snprintf(data, sizeof(data), bytes ? "sunit=0,swidth=0,size=%llu" : "sunit=0,swidth=0",
		 (unsigned long long)bytes);
	const char *log = bytes < SMALL ? "size=64m" : "size=128m";
	const char *argv[] = {MKFS,
			      "-q",
			      "-K",
			      "-b",
			      "size=4096",
			      "-s",
			      "size=4096",
			      "-m",
			      "crc=1,reflink=1,bigtime=1,inobtcount=1,finobt=1,rmapbt=0",
			      "-i",
			      "size=512,maxpct=100",
			      "-d",
			      data,
			      "-l",
			      log,
			      path,
			      NULL};
	int p[2];
	if (pipe2(p, O_CLOEXEC) < 0)
		return -errno;
	posix_spawn_file_actions_t fa;
	posix_spawn_file_actions_init(&fa);
	posix_spawn_file_actions_adddup2(&fa, p[1], STDOUT_FILENO);
	posix_spawn_file_actions_adddup2(&fa, p[1], STDERR_FILENO);
	/* The directory of system programs is not in everybody's path. */
	static const char *const dirs[] = {"", "/usr/sbin/", "/sbin/", "/usr/local/sbin/"};
	extern char **environ;
	pid_t pid;
	int r = ENOENT;
	for (size_t i = 0; i < SL_ARRAY_SIZE(dirs) && r == ENOENT; i++) {
		char prog[32];
		snprintf(prog, sizeof(prog), "%s" MKFS, dirs[i]);
		r = posix_spawnp(&pid, prog, &fa, NULL, (char *const *)argv, environ);
	}
	posix_spawn_file_actions_destroy(&fa);
	close(p[1]);
	if (r) {
		close(p[0]);
		return r == ENOENT ? sl_fail(why, -r, MKFS " is not installed (Debian: apt install xfsprogs)")
				   : sl_fail(why, -r, "cannot run " MKFS ": %s", strerror(r));
	}
	char msg[1024];
	size_t got = 0;
	ssize_t n;
	while ((n = read(p[0], msg + got, sizeof(msg) - 1 - got)) > 0)
		got = SL_MIN(got + (size_t)n, sizeof(msg) - 2); /* what is too long writes over its end */
	close(p[0]);
	msg[got] = '\0';
	int status;
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
		return 0;
	msg[strcspn(msg, "\n")] = '\0';
	r = strstr(msg, "No space left") ? -ENOSPC : -EIO;
	return sl_fail(why, r, MKFS " failed on %s: %s", path, *msg ? msg : "it said nothing");
}

int sl_device_format(const char *dev, char **why)
{
	struct stat st;
	if (stat(dev, &st) < 0)
		return sl_fail(why, -errno, "%s: %s", dev, strerror(errno));
	if (!S_ISBLK(st.st_mode))
		return sl_fail(why, -ENOTBLK, "%s is not a block device", dev);
	return run_mkfs(dev, 0, why);
}

int sl_image_create(const char *path, uint64_t bytes, char **why)
{
	char h[16], min[16];
	bytes = SL_ALIGN_DOWN(bytes, MIB);
	if (bytes < SL_IMAGE_MIN)
		return sl_fail(why, -EINVAL, "an image of %s is too small: at least %s",
			       sl_format_size(h, bytes), sl_format_size(min, SL_IMAGE_MIN));
	_cleanup_close_ int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return sl_fail(why, -errno, "cannot make the image %s: %s", path, strerror(errno));
	int r;
	if (ftruncate(fd, (off_t)bytes) < 0)
		r = sl_fail(why, errno == EINVAL ? -EFBIG : -errno, "cannot make an image of %s in %s: %s",
			    sl_format_size(h, bytes), path,
			    errno == EINVAL ? strerror(EFBIG) : strerror(errno));
	else
		r = run_mkfs(path, bytes, why);
	if (r == 0 && fsync(fd) < 0)
		r = sl_fail(why, -errno, "%s: %s", path, strerror(errno));
	if (r < 0)
		unlink(path);
	return r;
}

/* One try on one device: -EBUSY if somebody else took it, -ENXIO if it went away. */
static int configure(int ctl, int image, const char *path, int *ret, char dev[SL_LOOP_DEV_MAX], char **why)
{
	int n = ioctl(ctl, LOOP_CTL_GET_FREE);
	if (n < 0)
		return sl_fail(why, -errno, "no loop device is free: %s", strerror(errno));
	snprintf(dev, SL_LOOP_DEV_MAX, "/dev/loop%d", n);
	_cleanup_close_ int fd = open(dev, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return errno == ENXIO || errno == EBUSY
			   ? -EBUSY
			   : sl_fail(why, -errno, "%s: %s%s", dev, strerror(errno),
				     errno == ENOENT ? " (a container needs the host's /dev for it)" : "");
	struct loop_config c = {.fd = (uint32_t)image,
				.info.lo_flags = LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO};
	snprintf((char *)c.info.lo_file_name, LO_NAME_SIZE, "%s", path);
	int r = ioctl(fd, LOOP_CONFIGURE, &c) < 0 ? -errno : 0;
	if (r == -EINVAL) {
		c.info.lo_flags = LO_FLAGS_AUTOCLEAR;
		r = ioctl(fd, LOOP_CONFIGURE, &c) < 0 ? -errno : 0;
	}
	if (r < 0)
		return r == -EBUSY ? r : sl_fail(why, r, "cannot put %s on %s: %s", dev, path, strerror(-r));
	(void)ioctl(fd, BLKRASET, READAHEAD / 512);
	*ret = sl_steal_fd(&fd);
	return 0;
}

int sl_image_fs_size(int image, uint64_t *bytes)
{
	/* sb_magicnum, sb_blocksize, sb_dblocks: big-endian. */
	unsigned char b[16];
	if (sl_pread_full(image, b, sizeof(b), 0) != sizeof(b) || memcmp(b, "XFSB", 4))
		return -EBADMSG;
	uint64_t size = 0, blocks = 0;
	for (int i = 4; i < 8; i++)
		size = size << 8 | b[i];
	for (int i = 8; i < 16; i++)
		blocks = blocks << 8 | b[i];
	return __builtin_mul_overflow(size, blocks, bytes) || *bytes > INT64_MAX ? -EBADMSG : 0;
}

int sl_image_attach(const char *path, int *ret_loop_fd, char dev[SL_LOOP_DEV_MAX], char **why)
{
	_cleanup_close_ int image = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
	if (image < 0)
		return sl_fail(why, -errno, "cannot open the image %s: %s", path, strerror(errno));
	struct stat st;
	uint64_t bytes;
	if (sl_image_fs_size(image, &bytes) == 0 && fstat(image, &st) == 0 && (uint64_t)st.st_size < bytes &&
	    ftruncate(image, (off_t)bytes) < 0)
		return sl_fail(why, -errno, "cannot make the image %s whole: %s", path, strerror(errno));
	_cleanup_close_ int ctl = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
	if (ctl < 0)
		return sl_fail(why, -errno, "no loop devices: /dev/loop-control: %s", strerror(errno));
	int r = -EBUSY;
	/* Between asking for a free device and taking it, others do the same. */
	for (int i = 0; i < ATTACH_TRIES && r == -EBUSY; i++)
		r = configure(ctl, image, path, ret_loop_fd, dev, why);
	return r == -EBUSY ? sl_fail(why, r, "all loop devices are taken faster than they can be had") : r;
}
