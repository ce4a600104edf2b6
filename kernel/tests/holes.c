// SPDX-License-Identifier: GPL-2.0-only
// If this fails, a file that is not filled yet shows holes or zeros to somebody without anyone having been
// asked: by its layout, by a mapping through overlayfs or FUSE, by a mapping that grows, as the backing file
// of a loop device or as a swap file.

#include "hsm.h"

#include <linux/fiemap.h>
#include <linux/fuse.h>
#include <linux/loop.h>
#include <sys/mman.h>
#include <sys/swap.h>
#include <sys/uio.h>

#define SIZE (256 * 1024)

static struct fs fs;

static char swap_file[SIZE];

// Fill a file when it is asked for: every byte becomes 'x'. Of files that are called grow-… only the range of
// the event.
static int fill_file(struct service *s, struct event *e)
{
	(void)s;
	if (!(e->mask & FAN_PRE_ACCESS))
		return FAN_ALLOW;
	static char b[SIZE];
	memset(b, 'x', sizeof(b));
	char p[64], name[256] = "";
	snprintf(p, sizeof(p), "/proc/self/fd/%d", e->fd);
	if (readlink(p, name, sizeof(name) - 1) < 0)
		return FAN_DENY;
	struct stat st;
	bool part = strstr(name, "grow-") != NULL;
	if (fstat(e->fd, &st) < 0 || (st.st_blocks && !part))
		return FAN_ALLOW;
	if (strstr(name, "swap"))
		memcpy(b, swap_file, sizeof(b));
	off_t from = part ? (off_t)e->offset : 0;
	if (from >= SIZE)
		return FAN_ALLOW;
	size_t count = part && e->count < (__u64)(SIZE - from) ? e->count : (size_t)(SIZE - from);
	// By the work mount, for who asks may have come through a read-only one.
	struct {
		struct file_handle h;
		unsigned char bytes[128];
	} h = {.h.handle_bytes = 128};
	int id;
	if (name_to_handle_at(e->fd, "", &h.h, &id, AT_EMPTY_PATH) < 0)
		return FAN_DENY;
	int fd = open_by_handle_at(fs.work, &h.h, O_RDWR | O_CLOEXEC);
	int good = fd >= 0 && pwrite(fd, b + from, count, from) == (ssize_t)count && fsync(fd) == 0;
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
	union {
		struct fiemap f;
		char room[4096];
	} m = {.f = {.fm_length = FIEMAP_MAX_OFFSET, .fm_extent_count = 8}};
	int fd = open(arg, O_RDONLY);
	return ioctl(fd, FS_IOC_FIEMAP, &m) == 0 && m.f.fm_mapped_extents > 0 ? 0 : 1;
}
static int fibmap(void *arg)
{
	int fd = open(arg, O_RDONLY), block = 3;
	return ioctl(fd, FIBMAP, &block) == 0 && block > 0 ? 0 : 1;
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

static int map(void *arg)
{
	int fd = open(arg, O_RDONLY);
	char *m = mmap(NULL, SIZE, PROT_READ, strstr(arg, "private") ? MAP_PRIVATE : MAP_SHARED, fd, 0);
	if (fd < 0 || m == MAP_FAILED)
		return errno;
	int bad = m[0] != 'x' || m[SIZE - 1] != 'x';
	munmap(m, SIZE);
	close(fd);
	return bad;
}

// A mapping of the first page becomes one of all, or there is a second one.
static int grow(void *arg)
{
	int fd = open(arg, O_RDWR);
	char *m = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
	if (fd < 0 || m == MAP_FAILED)
		return errno;
	size_t from = strstr(arg, "second") ? 0 : 4096;
	char *n = mremap(m, from, SIZE, MREMAP_MAYMOVE);
	return n == MAP_FAILED ? errno : n[0] != 'x' || n[4096] != 'x' || n[SIZE - 1] != 'x';
}
static int grow_private(void *arg)
{
	int fd = open(arg, O_RDONLY);
	char *m = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 4096);
	char *n = m == MAP_FAILED ? m : mremap(m + 4096, 4096, 12288, MREMAP_MAYMOVE);
	return n == MAP_FAILED ? errno : n[0] != 'x' || n[12287] != 'x';
}
static int remap_pages(void *arg)
{
	int fd = open(arg, O_RDWR);
	char *m = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
	if (m == MAP_FAILED || remap_file_pages(m, 4096, 0, 9, 0) < 0)
		return errno;
	return m[0] != 'x' || m[4095] != 'x';
}
static int remap_other(void *arg)
{
	// Nothing of a file comes to be seen here.
	int fd = open(arg, O_RDWR);
	char *m = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	m = m == MAP_FAILED ? m : mremap(m, 8192, 65536, MREMAP_MAYMOVE);
	if (m == MAP_FAILED || m[65535])
		return 1;
	m = mmap(NULL, 8192, PROT_READ, MAP_SHARED, fd, 0);
	m = m == MAP_FAILED ? m : mremap(m, 8192, 4096, 0);
	m = m == MAP_FAILED ? m : mremap(m, 4096, 4096, MREMAP_MAYMOVE | MREMAP_FIXED, (char *)m - 1048576);
	return m == MAP_FAILED ? errno : m[0] != 'y';
}

static int swap(void *arg)
{
	if (swapon(arg, 0) < 0)
		return errno;
	return swapoff(arg) < 0;
}

// --- a FUSE server with one file, "p", in passthrough mode

static struct fuse_attr fuse_attr(uint64_t ino)
{
	return (struct fuse_attr){.ino = ino,
				  .size = ino == 1 ? 0 : SIZE,
				  .mode = ino == 1 ? S_IFDIR | 0755 : S_IFREG | 0644,
				  .nlink = 1};
}

static void fuse_reply(int dev, uint64_t unique, int error, const void *data, size_t len)
{
	struct fuse_out_header h = {.len = (uint32_t)(sizeof(h) + len), .error = error, .unique = unique};
	struct iovec v[2] = {{&h, sizeof(h)}, {(void *)data, len}};
	if (writev(dev, v, len ? 2 : 1) < 0)
		diag("fuse: %s", strerror(errno));
}

static int fuse_dev;
static char fuse_backing_path[128];

static void *fuse_serve(void *arg)
{
	static char buf[256 * 1024];
	(void)arg;
	while (read(fuse_dev, buf, sizeof(buf)) > 0) {
		struct fuse_in_header *in = (void *)buf;
		switch (in->opcode) {
		case FUSE_INIT: {
			struct fuse_init_out o = {.major = FUSE_KERNEL_VERSION,
						  .minor = FUSE_KERNEL_MINOR_VERSION,
						  .max_write = 65536,
						  .max_stack_depth = 1,
						  .flags = FUSE_INIT_EXT,
						  .flags2 = (uint32_t)(FUSE_PASSTHROUGH >> 32)};
			fuse_reply(fuse_dev, in->unique, 0, &o, sizeof(o));
			break;
		}
		case FUSE_LOOKUP: {
			struct fuse_entry_out o = {.nodeid = 2, .generation = 1, .attr = fuse_attr(2)};
			fuse_reply(fuse_dev, in->unique, 0, &o, sizeof(o));
			break;
		}
		case FUSE_GETATTR: {
			struct fuse_attr_out o = {.attr = fuse_attr(in->nodeid)};
			fuse_reply(fuse_dev, in->unique, 0, &o, sizeof(o));
			break;
		}
		case FUSE_OPEN: {
			struct fuse_backing_map map = {.fd = open(fuse_backing_path, O_RDONLY)};
			struct fuse_open_out o = {.open_flags = FOPEN_PASSTHROUGH};
			o.backing_id = ioctl(fuse_dev, FUSE_DEV_IOC_BACKING_OPEN, &map);
			fuse_reply(fuse_dev, in->unique, o.backing_id > 0 ? 0 : -EIO, &o,
				   o.backing_id > 0 ? sizeof(o) : 0);
			break;
		}
		case FUSE_FORGET:
		case FUSE_BATCH_FORGET:
		case FUSE_INTERRUPT:
			break;
		default:
			fuse_reply(fuse_dev, in->unique, -ENOSYS, NULL, 0);
		}
	}
	return NULL;
}

static void fuse_start(const char *at)
{
	char opt[128];
	pthread_t t;
	snprintf(fuse_backing_path, sizeof(fuse_backing_path), "%s/fuse-backing", fs.top);
	mkdir(at, 0755);
	fuse_dev = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	snprintf(opt, sizeof(opt), "fd=%d,rootmode=40000,user_id=0,group_id=0", fuse_dev);
	if (fuse_dev < 0 || mount("f", at, "fuse", 0, opt) < 0 ||
	    pthread_create(&t, NULL, fuse_serve, NULL) != 0)
		bail("fuse %s", opt);
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

static void overlay(const char *at, const char *lower, const char *name)
{
	char up[64], work[64], opt[256];
	snprintf(up, sizeof(up), "/dev/shm/%s-upper", name);
	snprintf(work, sizeof(work), "/dev/shm/%s-work", name);
	mkdir(at, 0755);
	mkdir(up, 0755);
	mkdir(work, 0755);
	snprintf(opt, sizeof(opt), "lowerdir=%s,upperdir=%s,workdir=%s", lower, up, work);
	if (mount("o", at, "overlay", 0, opt) < 0)
		bail("overlay %s", opt);
}

int main(void)
{
	struct service s;
	fs_new(&fs);
#define OVL  "/dev/shm/ovl-holes"
#define OVL2 "/dev/shm/ovl-twice"
#define FUSE "/dev/shm/fuse-holes"
	// @at: where, by default the filesystem itself; @arg: what a test gets is the path of its file.
	static const struct {
		const char *name, *at;
		int (*fn)(void *);
		bool asks;
		const char *by; // the name there
	} t[] = {
	    {"seek_data", NULL, seek_data, true, NULL},
	    {"seek_hole", NULL, seek_hole, true, NULL},
	    {"seek_end", NULL, seek_end, false, NULL},
	    {"seek_end", NULL, seek_plain, false, NULL},
	    {"fiemap", NULL, fiemap, true, NULL},
	    {"fiemap-ovl", OVL, fiemap, true, NULL},
	    {"fiemap-ovl-2", OVL2, fiemap, true, NULL},
	    {"fibmap", NULL, fibmap, true, NULL},
	    {"cp", NULL, cp_sparse, true, NULL},
	    {"shared", OVL, map, true, NULL},
	    {"private", OVL, map, true, NULL},
	    {"shared-2", OVL2, map, true, NULL},
	    {"fuse-backing", FUSE, map, true, "p"},
	    {"grow-first", NULL, grow, true, NULL},
	    {"grow-second", NULL, grow, true, NULL},
	    {"grow-ovl", OVL, grow, true, NULL},
	    {"grow-private", NULL, grow_private, true, NULL},
	    {"grow-pages", NULL, remap_pages, true, NULL},
	    {"remap", NULL, remap_other, false, NULL},
	    {"loop", NULL, loop, true, NULL},
	    {"swap", NULL, swap, true, NULL},
	};
	for (size_t i = 0; i < sizeof(t) / sizeof(t[0]); i++)
		sparse(t[i].name);
	// What is mapped here is filled and marked so.
	int fd = openat(fs.work, "remap", O_WRONLY);
	static char y[SIZE];
	memset(y, 'y', sizeof(y));
	if (write(fd, y, sizeof(y)) != sizeof(y))
		bail("remap");
	close(fd);
	char cmd[300];
	snprintf(cmd, sizeof(cmd),
		 "truncate -s %d /dev/shm/swap.img && chmod 600 /dev/shm/swap.img && /sbin/mkswap "
		 "/dev/shm/swap.img >/dev/null",
		 SIZE);
	fd = system(cmd) == 0 ? open("/dev/shm/swap.img", O_RDONLY) : -1;
	if (read(fd, swap_file, SIZE) != SIZE)
		bail("mkswap");
	close(fd);
	overlay(OVL, fs.top, "ovl-a");
	overlay(OVL2, OVL, "ovl-b");

	service_open(&s, &fs, 0, O_RDONLY, FAN_PRE_ACCESS);
	if (fan_mark(s.group, FAN_MARK_ADD | FAN_MARK_IGNORE_SURV, FAN_PRE_ACCESS, fs.work, "remap") < 0)
		bail("mark of remap");
	s.answer = fill_file;
	service_run(&s);
	fuse_start(FUSE);
	for (size_t i = 0; i < sizeof(t) / sizeof(t[0]); i++) {
		char p[200];
		snprintf(p, sizeof(p), "%s/%s", t[i].at ? t[i].at : fs.top, t[i].by ? t[i].by : t[i].name);
		int before = s.seen;
		int res = in_time(t[i].fn, p);
		ok(res == 0 && (s.seen > before) == t[i].asks, "%s: %d, %d events", t[i].name, res,
		   s.seen - before);
	}
	umount2(FUSE, MNT_DETACH);
	service_stop(&s);
	umount2(OVL2, MNT_DETACH);
	umount2(OVL, MNT_DETACH);
	fs_end(&fs);
	return done();
}
