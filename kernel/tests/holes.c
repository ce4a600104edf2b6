// SPDX-License-Identifier: GPL-2.0-only
// If this fails, a file that is not filled yet shows holes or zeros to somebody without anyone having been
// asked: by its layout, by a mapping through overlayfs, or as the backing file of a loop device.

#include "hsm.h"

#include <linux/fiemap.h>
#include <linux/loop.h>
#include <sys/mman.h>

#define SIZE (256 * 1024)

static struct fs fs;

// Fill a file when it is asked for: every byte becomes 'x'.
static int fill_file(struct service *s, struct event *e)
{
	(void)s;
	if (!(e->mask & FAN_PRE_ACCESS))
		return FAN_ALLOW;
	static char b[SIZE];
	memset(b, 'x', sizeof(b));
	char p[64];
	snprintf(p, sizeof(p), "/proc/self/fd/%d", e->fd);
	struct stat st;
	if (fstat(e->fd, &st) < 0 || st.st_blocks)
		return FAN_ALLOW;
	// By the work mount, for who asks may have come through a read-only one.
	struct {
		struct file_handle h;
		unsigned char bytes[128];
	} h = {.h.handle_bytes = 128};
	int id;
	if (name_to_handle_at(e->fd, "", &h.h, &id, AT_EMPTY_PATH) < 0)
		return FAN_DENY;
	int fd = open_by_handle_at(fs.work, &h.h, O_RDWR | O_CLOEXEC);
	int good = fd >= 0 && pwrite(fd, b, SIZE, 0) == SIZE && fsync(fd) == 0;
	if (fd >= 0)
		close(fd);
	return good ? FAN_ALLOW : FAN_DENY;
}

static void sparse(const char *name)
{
	int fd = openat(fs.work, name, O_RDWR | O_CREAT | O_TRUNC, 0644);
	if (fd < 0 || ftruncate(fd, SIZE) < 0)
		bail("%s", name);
	close(fd);
}

static int open_top(const char *name, int flags)
{
	char p[256];
	snprintf(p, sizeof(p), "%s/%s", fs.top, name);
	return open(p, flags);
}

static int seek_data(void *arg)
{
	(void)arg;
	return lseek(open_top("seek_data", O_RDONLY), 0, SEEK_DATA) == 0 ? 0 : 1;
}
static int seek_hole(void *arg)
{
	(void)arg;
	return lseek(open_top("seek_hole", O_RDONLY), 4096, SEEK_HOLE) == SIZE ? 0 : 1;
}
static int seek_end(void *arg)
{
	(void)arg;
	int fd = open_top("seek_end", O_RDONLY);
	return lseek(fd, SIZE, SEEK_DATA) < 0 && errno == ENXIO && lseek(fd, -1, SEEK_DATA) < 0 ? 0 : 1;
}
static int seek_plain(void *arg)
{
	(void)arg;
	int fd = open_top("seek_end", O_RDONLY);
	return lseek(fd, 0, SEEK_END) == SIZE && lseek(fd, 5, SEEK_SET) == 5 ? 0 : 1;
}
static int fiemap(void *arg)
{
	(void)arg;
	union {
		struct fiemap f;
		char room[4096];
	} m = {.f = {.fm_length = FIEMAP_MAX_OFFSET, .fm_extent_count = 8}};
	int fd = open_top("fiemap", O_RDONLY);
	return ioctl(fd, FS_IOC_FIEMAP, &m) == 0 && m.f.fm_mapped_extents > 0 ? 0 : 1;
}
static int cp_sparse(void *arg)
{
	(void)arg;
	char cmd[512];
	snprintf(cmd, sizeof(cmd),
		 "cp --sparse=auto %s/cp /dev/shm/cp.out && tr -d x </dev/shm/cp.out | cmp - /dev/null",
		 fs.top);
	return system(cmd) == 0 ? 0 : 1;
}

static int ovl_mmap(void *arg)
{
	const char *how = arg;
	char p[128];
	snprintf(p, sizeof(p), "/dev/shm/ovl-holes/%s", how);
	int fd = open(p, O_RDONLY);
	char *m = mmap(NULL, SIZE, PROT_READ, !strcmp(how, "shared") ? MAP_SHARED : MAP_PRIVATE, fd, 0);
	if (fd < 0 || m == MAP_FAILED)
		return errno;
	int bad = m[0] != 'x' || m[SIZE - 1] != 'x';
	munmap(m, SIZE);
	close(fd);
	return bad;
}

static int loop(void *arg)
{
	(void)arg;
	int ctl = open("/dev/loop-control", O_RDWR), back = open_top("loop", O_RDWR);
	int n = ioctl(ctl, LOOP_CTL_GET_FREE);
	char dev[32], b[4096];
	snprintf(dev, sizeof(dev), "/dev/loop%d", n);
	int fd = open(dev, O_RDWR);
	struct loop_config c = {.fd = (unsigned int)back};
	if (back < 0 || fd < 0 || ioctl(fd, LOOP_CONFIGURE, &c) < 0)
		return errno;
	int bad = pread(fd, b, sizeof(b), SIZE - 4096) != 4096 || b[0] != 'x' || b[4095] != 'x';
	ioctl(fd, LOOP_CLR_FD, 0);
	return bad;
}

int main(void)
{
	struct service s;
	fs_new(&fs);
	static const struct {
		const char *name;
		int (*fn)(void *);
		void *arg;
		bool asks;
	} t[] = {
	    {"seek_data", seek_data, NULL, true}, {"seek_hole", seek_hole, NULL, true},
	    {"seek_end", seek_end, NULL, false},  {"seek_end", seek_plain, NULL, false},
	    {"fiemap", fiemap, NULL, true},	  {"cp", cp_sparse, NULL, true},
	    {"shared", ovl_mmap, "shared", true}, {"private", ovl_mmap, "private", true},
	    {"loop", loop, NULL, true},
	};
	for (size_t i = 0; i < sizeof(t) / sizeof(t[0]); i++)
		sparse(t[i].name);
	char opt[256];
	mkdir("/dev/shm/ovl-holes", 0755);
	mkdir("/dev/shm/ovl-upper", 0755);
	mkdir("/dev/shm/ovl-work", 0755);
	snprintf(opt, sizeof(opt), "lowerdir=%s,upperdir=/dev/shm/ovl-upper,workdir=/dev/shm/ovl-work",
		 fs.top);
	if (mount("o", "/dev/shm/ovl-holes", "overlay", 0, opt) < 0)
		bail("overlay %s", opt);

	service_open(&s, &fs, 0, O_RDONLY, FAN_PRE_ACCESS);
	s.answer = fill_file;
	service_run(&s);
	for (size_t i = 0; i < sizeof(t) / sizeof(t[0]); i++) {
		int before = s.seen;
		int res = in_time(t[i].fn, t[i].arg);
		ok(res == 0 && (s.seen > before) == t[i].asks, "%s: %d events", t[i].name, s.seen - before);
	}
	service_stop(&s);
	umount2("/dev/shm/ovl-holes", MNT_DETACH);
	fs_end(&fs);
	return done();
}
