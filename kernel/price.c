// SPDX-License-Identifier: LGPL-2.1-or-later
// What kernel/price runs inside: path walks of several kinds, and what each costs.
//
//   price CLOCK TREE ARCHIVE [files|all]
//
// CLOCK is "tsc", which counts instructions in an emulator where each takes one tick, or "time" (ns). TREE is
// an ext4 with the directory "t" (t/dN/fM) and nothing else that matters. With "files" or "all" there is a
// listener with a mark on the filesystem, for FAN_PRE_ACCESS or also for FAN_PRE_DIR_ACCESS, and all there is
// is marked as filled. Prints one line for each kind: its name, a tab, the cost of one (of the smallest of
// several rounds).
//
// As the first process ("init" in its name) it mounts what it needs, runs itself, and ends the machine.

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <linux/fanotify.h>
#include <linux/loop.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#ifndef FAN_PRE_ACCESS
#define FAN_PRE_ACCESS 0x00100000
#endif
#ifndef FAN_PRE_DIR_ACCESS
#define FAN_PRE_DIR_ACCESS 0x00200000
#endif

#define DIRS   40
#define FILES  25
#define HOT    4000 // calls of a round of those that find everything in the dcache
#define ROUNDS 5

static bool by_tsc;
static const char *top, *archive;

static void die(const char *what)
{
	printf("price: %s: %s\n", what, strerror(errno));
	fflush(stdout);
	_exit(1);
}

static uint64_t ticks(void)
{
	struct timespec t;
	if (by_tsc)
		return __rdtsc();
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static void drop_dentries(void)
{
	int fd = open("/proc/sys/vm/drop_caches", O_WRONLY);
	if (fd < 0 || write(fd, "2\n", 2) != 2)
		die("drop_caches");
	close(fd);
}

static void run(const char *const argv[])
{
	pid_t p = fork();
	if (p == 0) {
		int null = open("/dev/null", O_WRONLY);
		dup2(null, 1);
		execv(argv[0], (char *const *)argv);
		_exit(127);
	}
	int status;
	if (p < 0 || waitpid(p, &status, 0) != p || status)
		die(argv[0]);
}

// --- one call each; the path is that of a file, or of none

static void c_stat(const char *p)
{
	struct stat st;
	stat(p, &st);
}
static void c_open(const char *p)
{
	int fd = open(p, O_RDONLY);
	if (fd >= 0)
		close(fd);
}
static void c_access(const char *p)
{
	access(p, R_OK);
}
static void c_create(const char *p)
{
	int fd = open(p, O_WRONLY | O_CREAT | O_EXCL, 0600);
	if (fd < 0 || close(fd) < 0 || unlink(p) < 0)
		die(p);
}

static char paths[DIRS * FILES][64];

static double hot(void (*call)(const char *), const char *name)
{
	char p[128];
	snprintf(p, sizeof(p), "%s/t/d7/%s", top, name);
	call(p);
	uint64_t from = ticks();
	for (int i = 0; i < HOT; i++)
		call(p);
	return (double)(ticks() - from) / HOT;
}

static double cold(void (*call)(const char *))
{
	drop_dentries();
	uint64_t from = ticks();
	for (int i = 0; i < DIRS * FILES; i++)
		call(paths[i]);
	return (double)(ticks() - from) / (DIRS * FILES);
}

static double hot_stat(void)
{
	return hot(c_stat, "f3");
}
static double hot_open(void)
{
	return hot(c_open, "f3");
}
static double hot_access(void)
{
	return hot(c_access, "f3");
}
static double hot_missing(void)
{
	return hot(c_stat, "none");
}
static double hot_create(void)
{
	return hot(c_create, "new");
}
static double cold_stat(void)
{
	return cold(c_stat);
}
static double cold_open(void)
{
	return cold(c_open);
}
static double cold_access(void)
{
	return cold(c_access);
}

static double find(bool drop)
{
	char t[64];
	snprintf(t, sizeof(t), "%s/t", top);
	const char *const argv[] = {"/usr/bin/find", t, "-newermt", "2001-01-01", NULL};
	run(argv);
	if (drop)
		drop_dentries();
	uint64_t from = ticks();
	run(argv);
	return (double)(ticks() - from);
}
static double find_hot(void)
{
	return find(false);
}
static double find_cold(void)
{
	return find(true);
}

static int removes(const char *p, const struct stat *st, int what, struct FTW *at)
{
	(void)st, (void)what, (void)at;
	return remove(p);
}
static double unpack(void)
{
	char t[64];
	snprintf(t, sizeof(t), "%s/new", top);
	if (mkdir(t, 0755) < 0)
		die(t);
	const char *const argv[] = {"/bin/tar", "-xf", archive, "-C", t, NULL};
	sync();
	uint64_t from = ticks();
	run(argv);
	double cost = (double)(ticks() - from);
	if (nftw(t, removes, 16, FTW_DEPTH | FTW_PHYS) != 0)
		die(t);
	sync();
	return cost;
}

// --- the listener: everything is filled, and what is new is so from the start

static int group = -1;
static uint64_t events;

static void ignore(int fd, const char *path, bool dir)
{
	uint64_t what = events & (dir ? FAN_PRE_DIR_ACCESS : FAN_PRE_ACCESS);
	if (what &&
	    syscall(SYS_fanotify_mark, group,
		    FAN_MARK_ADD | FAN_MARK_IGNORED_MASK | FAN_MARK_IGNORED_SURV_MODIFY, what, fd, path) < 0)
		die("ignore mark");
}

static int ignores(const char *p, const struct stat *st, int what, struct FTW *at)
{
	(void)st, (void)at;
	ignore(AT_FDCWD, p, what == FTW_D);
	return 0;
}

static pid_t listener(const char *what)
{
	events = FAN_PRE_ACCESS | (!strcmp(what, "all") ? FAN_PRE_DIR_ACCESS : 0);
	group =
	    (int)syscall(SYS_fanotify_init, FAN_CLASS_PRE_CONTENT | FAN_UNLIMITED_QUEUE | FAN_UNLIMITED_MARKS,
			 O_RDONLY | O_LARGEFILE);
	if (group < 0 || nftw(top, ignores, 16, FTW_PHYS) != 0 ||
	    syscall(SYS_fanotify_mark, group, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, events, AT_FDCWD, top) < 0)
		die("listener");
	pid_t p = fork();
	if (p)
		return p;
	char buf[4096] __attribute__((aligned(8)));
	for (ssize_t n; (n = read(group, buf, sizeof(buf))) > 0;) {
		for (struct fanotify_event_metadata *e = (void *)buf; FAN_EVENT_OK(e, n);
		     e = FAN_EVENT_NEXT(e, n)) {
			struct fanotify_response r = {.fd = e->fd, .response = FAN_ALLOW};
			ignore(e->fd, NULL, e->mask & FAN_PRE_DIR_ACCESS);
			if (write(group, &r, sizeof(r)) != sizeof(r))
				_exit(1);
			close(e->fd);
		}
	}
	_exit(1);
}

static const struct {
	const char *name;
	double (*fn)(void);
} kinds[] = {
    {"stat, hot", hot_stat},
    {"open and close, hot", hot_open},
    {"access, hot", hot_access},
    {"stat of a missing name, hot", hot_missing},
    {"create and unlink", hot_create},
    {"stat, dentries dropped", cold_stat},
    {"open and close, dentries dropped", cold_open},
    {"access, dentries dropped", cold_access},
    {"find with a test of times", find_hot},
    {"find, dentries dropped", find_cold},
    {"tar -x", unpack},
};

static void as_init(void)
{
	// The image is a file of the initial file system.
	if (mount("d", "/dev", "devtmpfs", 0, NULL) < 0 || mount("p", "/proc", "proc", 0, NULL) < 0)
		die("mounts");
	int con = open("/dev/console", O_RDWR);
	dup2(con, 0), dup2(con, 1), dup2(con, 2);
	int img = open("/image", O_RDWR), dev = open("/dev/loop0", O_RDWR);
	struct loop_config c = {.fd = (unsigned int)img};
	if (dev < 0 || ioctl(dev, LOOP_CONFIGURE, &c) < 0 || mount("/dev/loop0", "/mnt", "ext4", 0, NULL) < 0)
		die("image");
	pid_t p = fork();
	if (p == 0)
		execl("/price-init", "price", "tsc", "/mnt", "/archive.tar", getenv("PRICE_MARK"), NULL);
	int status;
	while (waitpid(p, &status, 0) != p)
		;
	printf("\nprice: end %d\n", status);
	fflush(stdout);
	sleep(1);
	reboot(RB_AUTOBOOT);
}

int main(int argc, char **argv)
{
	const char *name = strrchr(argv[0], '/');
	if (strstr(name ? name : argv[0], "init"))
		as_init();
	if (argc < 4)
		return 2;
	by_tsc = !strcmp(argv[1], "tsc");
	top = argv[2];
	archive = argv[3];
	pid_t l = argc > 4 ? listener(argv[4]) : 0;
	for (int i = 0; i < DIRS * FILES; i++)
		snprintf(paths[i], sizeof(paths[i]), "%s/t/d%d/f%d", top, i % DIRS, i / DIRS);
	for (size_t k = 0; k < sizeof(kinds) / sizeof(kinds[0]); k++) {
		double least = 0;
		for (int i = 0; i < ROUNDS; i++) {
			double cost = kinds[k].fn();
			least = i == 0 || cost < least ? cost : least;
		}
		printf("\nrow\t%s\t%.0f\n", kinds[k].name, least);
		fflush(stdout);
	}
	if (l)
		kill(l, SIGKILL);
	return 0;
}
