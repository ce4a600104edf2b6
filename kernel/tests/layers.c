// SPDX-License-Identifier: GPL-2.0-only
// If this fails, a directory that is not filled is seen as an empty one by those who come without a path:
// overlayfs that has it as a layer. Either they are refused, or it is filled.

#include "hsm.h"

static struct fs fs;
static const char *top;

static int look(void *arg)
{
	char p[256];
	struct stat st;
	snprintf(p, sizeof(p), "%s/%s", top, (const char *)arg);
	return stat(p, &st) == 0 ? 0 : errno;
}
static int list(void *arg)
{
	char p[256];
	int n = 0;
	snprintf(p, sizeof(p), "%s/%s", top, (const char *)arg);
	DIR *d = opendir(p);
	errno = 0;
	while (d && readdir(d))
		n++;
	return errno ? errno : n == 6 ? 0 : 1;
}
static int makes(void *arg)
{
	char p[256];
	snprintf(p, sizeof(p), "%s/%s", top, (const char *)arg);
	return mkdir(p, 0755) == 0 ? 0 : errno;
}
static int removes(void *arg)
{
	char p[256];
	snprintf(p, sizeof(p), "%s/%s", top, (const char *)arg);
	return rmdir(p) == 0 ? 0 : errno;
}
static int moves_over(void *arg)
{
	char p[256], q[256];
	snprintf(p, sizeof(p), "%s/%s", top, (const char *)arg);
	snprintf(q, sizeof(q), "%s/over", top);
	mkdir(q, 0755);
	return rename(q, p) == 0 ? 0 : errno;
}

int main(void)
{
	struct service s;
	char opt[256];
	fs_new(&fs);
	const char *const dirs[] = {"a", "b", "c", "d", "e", "filled"};
	for (size_t i = 0; i < sizeof(dirs) / sizeof(dirs[0]); i++)
		cold(&fs, dirs[i]);
	mkdir("/dev/shm/lay-m", 0755);
	mkdir("/dev/shm/lay-u", 0755);
	mkdir("/dev/shm/lay-w", 0755);
	snprintf(opt, sizeof(opt), "lowerdir=%s,upperdir=/dev/shm/lay-u,workdir=/dev/shm/lay-w", fs.top);
	if (mount("o", "/dev/shm/lay-m", "overlay", 0, opt) < 0)
		bail("overlay %s", opt);

	service_open(&s, &fs, 0, O_RDONLY, FAN_PRE_DIR_ACCESS);
	if (fan_mark(s.group, FAN_MARK_ADD | FAN_MARK_IGNORE_SURV, FAN_PRE_DIR_ACCESS, fs.work, ".") < 0)
		bail("mark of the top");
	service_run(&s);

	top = "/dev/shm/lay-m";
	ok(in_time(look, "a/f") == EPERM, "a lookup in a lower layer is refused");
	ok(in_time(look, "a/none") == EPERM, "also of what is not there");
	ok(in_time(list, "b") == EPERM, "so is a listing");
	ok(in_time(makes, "c/s") == EPERM, "and mkdir");
	ok(in_time(removes, "d") == EPERM, "and rmdir");
	ok(in_time(moves_over, "e") == EPERM, "and a rename over it");
	ok(s.seen == 0, "nobody was asked");

	top = fs.top;
	for (size_t i = 0; i < sizeof(dirs) / sizeof(dirs[0]); i++)
		ok(in_time(list, (void *)dirs[i]) == 0, "%s is filled by a listing through the mount",
		   dirs[i]);
	top = "/dev/shm/lay-m";
	ok(in_time(look, "a/f") == 0 && in_time(list, "b") == 0, "then overlayfs sees all");
	ok(in_time(makes, "c/s") == EEXIST && in_time(removes, "d") == ENOTEMPTY,
	   "and changes nothing wrong");
	ok(in_time(look, "c/s/g") == EPERM, "the next level is refused still");
	service_stop(&s);
	umount2("/dev/shm/lay-m", MNT_DETACH);
	fs_end(&fs);
	return done();
}
