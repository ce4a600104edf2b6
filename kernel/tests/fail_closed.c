// SPDX-License-Identifier: GPL-2.0-only
// If this fails, the death of the service makes unfilled directories and files look empty, or nobody gets out
// of that state again.

#include "hsm.h"

#include <sys/mman.h>

static struct fs fs;

static int look(void *arg)
{
	char p[256];
	struct stat st;
	snprintf(p, sizeof(p), "%s/%s", fs.top, (const char *)arg);
	return stat(p, &st) == 0 ? 0 : errno;
}

static int list(void *arg)
{
	char p[256];
	snprintf(p, sizeof(p), "%s/%s", fs.top, (const char *)arg);
	DIR *d = opendir(p);
	errno = 0;
	while (d && readdir(d))
		;
	return errno;
}

static int reads(void *arg)
{
	char p[256], c;
	snprintf(p, sizeof(p), "%s/%s", fs.top, (const char *)arg);
	int fd = open(p, O_RDONLY);
	return fd < 0 ? errno : read(fd, &c, 1) < 0 ? errno : 0;
}

static int makes(void *arg)
{
	char p[256];
	snprintf(p, sizeof(p), "%s/%s", fs.top, (const char *)arg);
	return mkdir(p, 0755) == 0 ? 0 : errno;
}

static const uint64_t MASK = FAN_PRE_DIR_ACCESS | FAN_PRE_ACCESS;

static void mark(struct service *s)
{
	if (fan_mark(s->group, FAN_MARK_ADD | FAN_MARK_FILESYSTEM | FAN_MARK_FAIL_CLOSED, MASK, fs.work,
		     ".") < 0)
		bail("a mark that fails closed");
}

int main(void)
{
	struct service s;
	struct event e;
	fs_new(&fs);
	for (int i = 0; i < 6; i++) {
		char name[8];
		snprintf(name, sizeof(name), "d%d", i);
		cold(&fs, name);
	}
	int file = openat(fs.work, "file", O_RDWR | O_CREAT, 0644);
	if (ftruncate(file, 4096) < 0)
		bail("file");
	close(file);

	int g = fan_init(FAN_CLASS_PRE_CONTENT, O_RDONLY);
	ok(fan_mark(g, FAN_MARK_ADD | FAN_MARK_FAIL_CLOSED, MASK, fs.work, ".") < 0 && errno == EINVAL,
	   "not on an inode");
	ok(fan_mark(g, FAN_MARK_ADD | FAN_MARK_MOUNT | FAN_MARK_FAIL_CLOSED, MASK, fs.work, ".") < 0 &&
	       errno == EINVAL,
	   "not on a mount");
	ok(fan_mark(g, FAN_MARK_ADD | FAN_MARK_FILESYSTEM | FAN_MARK_FAIL_CLOSED, FAN_OPEN_PERM, fs.work,
		    ".") < 0 &&
	       errno == EINVAL,
	   "not for other events alone");
	ok(fan_mark(g, FAN_MARK_ADD | FAN_MARK_FILESYSTEM | FAN_MARK_FAIL_CLOSED | FAN_MARK_IGNORE_SURV, MASK,
		    fs.work, ".") < 0 &&
	       errno == EINVAL,
	   "not to ignore");
	close(g);

	// The service goes away with events that were read, events that were not, and more that come while it
	// goes.
	service_open(&s, &fs, 0, O_RDONLY, MASK);
	mark(&s);
	pid_t p = start(look, "d0/f"), q = start(list, "d1"), r = start(reads, "file");
	for (int i = 0; i < 3; i++)
		if (next_event(s.group, &e))
			close(e.fd);
	pid_t more[6];
	for (int i = 0; i < 6; i++)
		more[i] = start(look, "d2/f");
	service_stop(&s);
	ok(finish(p) == EIO && finish(q) == EIO && finish(r) == EIO, "who waits gets EIO");
	int eio = 0;
	for (int i = 0; i < 6; i++)
		eio += finish(more[i]) == EIO;
	ok(eio == 6, "and who comes while it goes: %d of 6", eio);
	ok(in_time(look, "d3/f") == EIO, "a lookup: EIO");
	ok(in_time(list, "d3") == EIO, "a listing: EIO");
	ok(in_time(makes, "d3/s") == EIO, "mkdir: EIO");
	ok(in_time(reads, "file") == EIO, "a read: EIO");
	int fd = openat(fs.work, "file", O_RDONLY);
	char c;
	ok(fd < 0 || (read(fd, &c, 1) < 0 && errno == EIO), "by every mount");

	// A file opened now must ask later.
	char p2[100];
	snprintf(p2, sizeof(p2), "%s/file", fs.top);
	int early = open(p2, O_RDONLY | O_PATH);

	// A group without such a mark does not change it; one with it does.
	struct service other;
	service_open(&other, &fs, 0, O_RDONLY, MASK);
	ok(in_time(look, "d3/f") == EIO, "another group does not open it");
	service_stop(&other);
	service_open(&s, &fs, 0, O_RDONLY, MASK);
	mark(&s);
	if (fan_mark(s.group, FAN_MARK_ADD | FAN_MARK_IGNORE_SURV, FAN_PRE_DIR_ACCESS, fs.work, ".") < 0)
		bail("mark of the top");
	service_run(&s);
	ok(in_time(look, "d3/f") == 0 && in_time(list, "d4") == 0 && in_time(reads, "file") == 0,
	   "a successor serves again");
	if (fd >= 0)
		close(fd);
	if (early >= 0)
		close(early);

	// Removing the mark is no death.
	ok(fan_mark(s.group, FAN_MARK_REMOVE | FAN_MARK_FILESYSTEM, MASK, fs.work, ".") == 0,
	   "the mark is removed");
	service_stop(&s);
	ok(in_time(look, "d5/f") == ENOENT, "then the end of the group closes nothing");

	// Nor does it keep the filesystem from being unmounted, or from being mounted anew.
	service_open(&s, &fs, 0, O_RDONLY, MASK);
	mark(&s);
	service_stop(&s);
	ok(in_time(look, "d5/f") == EIO, "closed again");
	char img[100], cmd[300];
	snprintf(img, sizeof(img), "%s.img", fs.top);
	close(fs.work);
	close(fs.tree);
	int res = -1;
	for (double end = now() + LIMIT_SEC; res < 0 && now() < end; usleep(10000))
		res = umount2(fs.top, 0);
	ok(res == 0, "it can be unmounted");
	snprintf(cmd, sizeof(cmd), "mount -o loop %s %s", img, fs.top);
	ok(system(cmd) == 0 && in_time(look, "d5/f") == ENOENT, "and is new then");
	fs.work = fs.tree = -1;
	fs_end(&fs);
	return done();
}
