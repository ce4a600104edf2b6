/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What building the names of a native clone costs at least: names ORIGIN IMAGE THREADS [plain] makes an image
 * as a clone has it, and in it, in a plain loop, all objects of the local tree ORIGIN: create, armour,
 * attribute, owner, times, nothing else. plain: without armour and attribute, as any program makes files.
 * What is at ORIGIN is looked up before the clock runs. Prints "OBJECTS SECONDS CPU-SECONDS".
 */
#include <dirent.h>
#include <err.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "base/time.h"
#include "store/fs.h"
#include "store/image.h"
#include "store/zone.h"

#define CAPACITY (8ull << 30)
#define BLOCK	 4096u
#define RECORD	 80 /* and the place */

struct entry {
	char *name, *target;
	struct stat st;
};

struct dir {
	char *path; /* below the root */
	struct entry *v;
	size_t n;
};

static struct dir *dirs;
static size_t ndirs, objects;
static atomic_size_t next;
static int root, cold, tails[BLOCK];
static bool plain;

static char *join(const char *a, const char *b)
{
	char *p;
	if (asprintf(&p, *a ? "%s/%s" : "%s%s", a, b) < 0)
		err(1, NULL);
	return p;
}

static void scan(int at, const char *path)
{
	int fd = openat(at, *path ? path : ".", O_RDONLY | O_DIRECTORY);
	DIR *d = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *e;
	size_t me = ndirs++;
	dirs = reallocarray(dirs, ndirs, sizeof(*dirs));
	if (!d || !dirs)
		err(1, "%s", path);
	dirs[me] = (struct dir){.path = strdup(path)};
	while ((e = readdir(d))) {
		struct entry x = {.name = strdup(e->d_name)};
		char target[4097];
		if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
			continue;
		if (fstatat(fd, x.name, &x.st, AT_SYMLINK_NOFOLLOW) < 0)
			err(1, "%s", x.name);
		ssize_t k = S_ISLNK(x.st.st_mode) ? readlinkat(fd, x.name, target, sizeof(target) - 1) : 0;
		if (k > 0)
			x.target = strndup(target, (size_t)k);
		dirs[me].v = reallocarray(dirs[me].v, dirs[me].n + 1, sizeof(x));
		dirs[me].v[dirs[me].n++] = x;
		objects++;
		if (S_ISDIR(x.st.st_mode))
			scan(at, join(path, x.name));
	}
	closedir(d);
}

static void clone_range(int fd, int from, uint64_t length, uint64_t at)
{
	struct file_clone_range c = {.src_fd = from, .src_length = length, .dest_offset = at};
	if (ioctl(fd, FICLONERANGE, &c) < 0)
		err(1, "FICLONERANGE");
}

static void make_file(int at, const struct entry *e, const char *record, size_t n)
{
	struct timespec ts[2] = {e->st.st_atim, e->st.st_mtim};
	uint64_t size = (uint64_t)e->st.st_size, whole = size / BLOCK * BLOCK;
	int fd = openat(at, e->name, O_RDWR | O_CREAT | O_EXCL, e->st.st_mode & 07777);
	if (fd < 0)
		err(1, "%s", e->name);
	if (plain && ftruncate(fd, (off_t)size) < 0)
		err(1, "%s", e->name);
	for (uint64_t off = 0, k; off < whole && !plain; off += k) {
		k = whole - off < (1u << 20) ? whole - off : 1u << 20;
		clone_range(fd, cold, k, off);
	}
	if (size > whole && !plain)
		clone_range(fd, tails[size - whole], size - whole, whole);
	if (fchown(fd, e->st.st_uid, e->st.st_gid) < 0 ||
	    (!plain && fsetxattr(fd, "trusted.sluice", record, n, 0) < 0) || futimens(fd, ts) < 0)
		err(1, "%s", e->name);
	close(fd);
}

static void *run(void *arg)
{
	(void)arg;
	for (size_t i; (i = next++) < ndirs;) {
		const struct dir *d = &dirs[i];
		char record[RECORD + 512] = "", place[64 + 512];
		int at = openat(root, *d->path ? d->path : ".", O_RDONLY | O_DIRECTORY);
		if (at < 0)
			err(1, "%s", d->path);
		for (size_t k = 0; k < d->n; k++) {
			const struct entry *e = &d->v[k];
			struct timespec ts[2] = {e->st.st_atim, e->st.st_mtim};
			size_t n = RECORD + strlen(d->path) + 1 + strlen(e->name);
			if (S_ISREG(e->st.st_mode)) {
				make_file(at, e, record, n);
				continue;
			}
			if (e->target && symlinkat(e->target, at, e->name) < 0)
				err(1, "%s", e->name);
			snprintf(place, sizeof(place), "/proc/self/fd/%d/%s", at, e->name);
			if (fchownat(at, e->name, e->st.st_uid, e->st.st_gid, AT_SYMLINK_NOFOLLOW) < 0 ||
			    lsetxattr(place, "trusted.sluice", record, n, 0) < 0 ||
			    utimensat(at, e->name, ts, AT_SYMLINK_NOFOLLOW) < 0)
				err(1, "%s", e->name);
		}
		close(at);
	}
	return NULL;
}

static double cpu_seconds(void)
{
	struct rusage u;
	getrusage(RUSAGE_SELF, &u);
	return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
	       (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

int main(int argc, char **argv)
{
	char dev[SL_LOOP_DEV_MAX], name[32], *why = NULL;
	int loop, mnt, origin = argc == 4 || argc == 5 ? open(argv[1], O_RDONLY | O_DIRECTORY) : -1;
	if (origin < 0)
		errx(2, "usage: names ORIGIN IMAGE THREADS [plain]");
	plain = argc == 5;
	struct rlimit rl = {16384, 16384};
	setrlimit(RLIMIT_NOFILE, &rl);
	umask(0);
	scan(origin, "");
	unlink(argv[2]);
	if (sl_image_create(argv[2], CAPACITY, &why) < 0 || sl_image_attach(argv[2], &loop, dev, &why) < 0 ||
	    sl_fs_mount(dev, "xfs", SL_IMAGE_OPTIONS, 0, &mnt, &why) < 0)
		errx(1, "%s", why ? why : "no image");
	int fs = openat(mnt, ".", O_RDONLY | O_DIRECTORY);
	if (sl_zone_make(fs, &why) < 0)
		errx(1, "%s", why ? why : "no cold zone");
	cold = openat(fs, "cold", O_RDONLY);
	for (unsigned i = 1; i < BLOCK; i++) {
		snprintf(name, sizeof(name), "tails/%u", i);
		tails[i] = openat(fs, name, O_RDONLY);
	}
	if (cold < 0 || mkdirat(fs, "tree", 0755) < 0 ||
	    (root = openat(fs, "tree", O_RDONLY | O_DIRECTORY)) < 0)
		err(1, "the image");
	int threads = atoi(argv[3]);
	pthread_t t[16];
	double cpu0 = cpu_seconds();
	uint64_t t0 = sl_now();
	for (size_t i = 1; i < ndirs; i++)
		if (mkdirat(root, dirs[i].path, 0755) < 0)
			err(1, "%s", dirs[i].path);
	for (int i = 1; i < threads && i < 16; i++)
		pthread_create(&t[i], NULL, run, NULL);
	run(NULL);
	for (int i = 1; i < threads && i < 16; i++)
		pthread_join(t[i], NULL);
	double seconds = (double)(sl_now() - t0) / 1e9;
	printf("%zu %.6f %.6f\n", objects, seconds, cpu_seconds() - cpu0);
	return 0;
}
