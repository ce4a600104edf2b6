// SPDX-License-Identifier: GPL-2.0-only
// If this fails, who uses a directory or a file while a mark on it is being removed is not asked for and sees
// it empty.
//
// A mark that is removed stays in its list as long as somebody waits for an event that it took part in. That
// makes the race one that can be had at will: one waits, the mark is removed, a second one comes.

#include "hsm.h"

static struct fs fs;
static struct service s;

static int look(void *arg)
{
	char p[256];
	struct stat st;
	snprintf(p, sizeof(p), "%s/%s", fs.top, (const char *)arg);
	return stat(p, &st) == 0 ? 0 : errno;
}

static int reads(void *arg)
{
	char p[256], c = 0;
	snprintf(p, sizeof(p), "%s/%s", fs.top, (const char *)arg);
	int fd = open(p, O_RDONLY);
	return fd < 0 ? errno : read(fd, &c, 1) == 1 && c == 'x' ? 0 : 125;
}

static int fill_dir_of(struct event *e)
{
	int d = event_dir(&s, e);
	int err = d < 0 ? -errno : fill(d);
	close(d);
	return err;
}

// Fills the file that the event's descriptor is for, by the work mount.
static int fill_file_of(struct event *e)
{
	(void)e;
	int fd = openat(fs.work, "file", O_WRONLY);
	int err = fd < 0 || pwrite(fd, "x", 1, 0) != 1;
	close(fd);
	return err;
}

static void one(const char *what, uint64_t mask, uint64_t other, const char *object, int (*use)(void *),
		const char *first, const char *second, int (*filler)(struct event *))
{
	struct event e1, e2;
	int o = openat(fs.work, object, O_RDONLY);
	// A mark of the group that does not change what is asked for.
	if (o < 0 || fan_mark(s.group, FAN_MARK_ADD | FAN_MARK_IGNORE_SURV, other, o, NULL) < 0)
		bail("mark on %s", object);
	pid_t p1 = start(use, (void *)first);
	bool got = next_event(s.group, &e1);
	ok(got && e1.mask == mask, "%s: the first waits", what);
	ok(fan_mark(s.group, FAN_MARK_REMOVE | FAN_MARK_IGNORE, other, o, NULL) == 0, "%s: a mark is removed",
	   what);
	pid_t p2 = start(use, (void *)second);
	// It must not come through; a moment is enough for one that does.
	int status = 0;
	bool through = false;
	for (int i = 0; i < 20 && !through; i++, usleep(10000))
		through = waitpid(p2, &status, WNOHANG) == p2;
	ok(!through, "%s: the second does not come through", what);
	pid_t p3 = start(use, (void *)second);
	usleep(50000);
	kill(p3, SIGKILL);
	ok(finish(p3) == -1, "%s: a third can be killed", what);
	ok(filler(&e1) == 0 && respond(s.group, &e1, FAN_ALLOW) == 0 && finish(p1) == 0,
	   "%s: the first is served", what);
	close(e1.fd);
	got = !through && next_event(s.group, &e2) && e2.mask == mask;
	ok(got, "%s: the second is asked for", what);
	if (got) {
		respond(s.group, &e2, FAN_ALLOW);
		close(e2.fd);
		ok(finish(p2) == 0, "%s: and is served", what);
	}
	close(o);
}

int main(void)
{
	fs_new(&fs);
	cold(&fs, "d");
	int fd = openat(fs.work, "file", O_RDWR | O_CREAT, 0644);
	if (ftruncate(fd, 4096) < 0)
		bail("file");
	close(fd);
	service_open(&s, &fs, 0, O_RDONLY, FAN_PRE_DIR_ACCESS | FAN_PRE_ACCESS);
	if (fan_mark(s.group, FAN_MARK_ADD | FAN_MARK_IGNORE_SURV, FAN_PRE_DIR_ACCESS, fs.work, ".") < 0)
		bail("mark of the top");
	one("directory", FAN_PRE_DIR_ACCESS, FAN_PRE_ACCESS, "d", look, "d/f", "d/x", fill_dir_of);
	one("file", FAN_PRE_ACCESS, FAN_OPEN_PERM, "file", reads, "file", "file", fill_file_of);
	service_stop(&s);
	fs_end(&fs);
	return done();
}
