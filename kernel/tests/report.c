// SPDX-License-Identifier: GPL-2.0-only
// If this fails, an event does not say what its group asked for: a descriptor that can be used to fill the
// directory, one on the listener's mount, file handles, names; or it says it to a group that did not ask.

#include "hsm.h"

#include <sys/statfs.h>

static struct fs fs;

struct use {
	const char *top, *path;
	bool list;
};
static int use(void *arg)
{
	struct use *u = arg;
	char p[256];
	struct stat st;
	snprintf(p, sizeof(p), "%s/%s", u->top, u->path);
	if (!u->list)
		return stat(p, &st) == 0 ? 0 : errno;
	DIR *d = opendir(p);
	int n = 0;
	errno = 0;
	while (d && readdir(d))
		n++;
	return errno ? errno : n == 6 ? 0 : 1;
}

static int mount_id(int fd, const char *name)
{
	struct {
		struct file_handle h;
		unsigned char b[128];
	} h = {.h.handle_bytes = 128};
	int id;
	return name_to_handle_at(fd, name, &h.h, &id, AT_EMPTY_PATH) < 0 ? -1 : id;
}

static ino_t ino(int fd)
{
	struct stat st;
	return fstat(fd, &st) < 0 ? 0 : st.st_ino;
}

static void allow(struct service *s, struct event *e)
{
	respond(s->group, e, FAN_ALLOW);
	if (e->fd >= 0)
		close(e->fd);
}

static void ignore(struct service *s, int d)
{
	fan_mark(s->group, FAN_MARK_ADD | FAN_MARK_IGNORE_SURV, FAN_PRE_DIR_ACCESS, d, NULL);
}

static int root_ignored(struct service *s)
{
	return fan_mark(s->group, FAN_MARK_ADD | FAN_MARK_IGNORE_SURV, FAN_PRE_DIR_ACCESS, fs.work, ".");
}

int main(void)
{
	struct service s;
	struct event e;
	char ro[80];
	fs_new(&fs);
	const char *const dirs[] = {"a", "b", "c", "d", "e", "g", "h", "i"};
	for (size_t i = 0; i < sizeof(dirs) / sizeof(dirs[0]); i++)
		cold(&fs, dirs[i]);
	// A read-only mount, through which nobody could fill anything.
	snprintf(ro, sizeof(ro), "%s-ro", fs.top);
	if (mkdir(ro, 0755) < 0 || mount(fs.top, ro, NULL, MS_BIND, NULL) < 0 ||
	    mount(NULL, ro, NULL, MS_BIND | MS_REMOUNT | MS_RDONLY, NULL) < 0)
		bail("read-only mount");

	// What is not asked for together.
	ok(fan_init(FAN_CLASS_CONTENT, O_PATH) < 0 && errno == EINVAL, "O_PATH: pre-content class only");
	ok(fan_init(FAN_CLASS_PRE_CONTENT, O_PATH | O_RDWR) < 0 && errno == EINVAL,
	   "O_PATH: nothing that opens");
	ok(fan_init(FAN_CLASS_CONTENT | FAN_REPORT_DIR_FD, O_RDONLY) < 0 && errno == EINVAL,
	   "DIR_FD: pre-content class only");
	ok(fan_init(FAN_CLASS_PRE_CONTENT | FAN_REPORT_FID, O_RDONLY) < 0 && errno == EINVAL,
	   "fids: with ids only");
	ok(fan_init(FAN_CLASS_PRE_CONTENT | FAN_REPORT_RESPONSE_ID | FAN_REPORT_NAME, O_RDONLY) < 0 &&
	       errno == EINVAL,
	   "a name: with the directory only");
	ok(fan_init(FAN_CLASS_CONTENT | FAN_REPORT_RESPONSE_ID | FAN_REPORT_FID, O_RDONLY) < 0 &&
	       errno == EINVAL,
	   "fids: not in the content class");
	int g = fan_init(FAN_CLASS_PRE_CONTENT, O_RDONLY);
	ok(fan_mark(g, FAN_MARK_ADD, FAN_PRE_DIR_ACCESS | FAN_ONDIR, fs.work, ".") < 0 && errno == EINVAL,
	   "no FAN_ONDIR");
	close(openat(fs.work, "file", O_WRONLY | O_CREAT, 0644));
	ok(fan_mark(g, FAN_MARK_ADD, FAN_PRE_DIR_ACCESS, fs.work, "file") < 0 && errno == ENOTDIR,
	   "no inode mark on a file");
	ok(fan_mark(g, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, FAN_PRE_DIR_ACCESS, AT_FDCWD, "/proc") < 0,
	   "not on any filesystem");
	close(g);
	g = fan_init(FAN_CLASS_NOTIF, O_RDONLY);
	ok(fan_mark(g, FAN_MARK_ADD, FAN_PRE_DIR_ACCESS, fs.work, ".") < 0 && errno == EINVAL,
	   "not for notification");
	close(g);
	g = fan_init(FAN_CLASS_CONTENT, O_RDONLY);
	ok(fan_mark(g, FAN_MARK_ADD, FAN_PRE_DIR_ACCESS, fs.work, ".") < 0 && errno == EINVAL,
	   "not in the content class");
	close(g);

	// 1: a descriptor on the accessor's mount. The directory is filled through it, without another event.
	service_open(&s, &fs, 0, O_RDONLY, FAN_PRE_DIR_ACCESS);
	root_ignored(&s);
	struct use u = {.top = fs.top, .path = "a/f"};
	pid_t p = start(use, &u);
	bool got = next_event(s.group, &e);
	ok(got && e.mask == FAN_PRE_DIR_ACCESS && e.pid == p, "the event is that one, by that process");
	ok(got && mount_id(e.fd, "") == mount_id(AT_FDCWD, fs.top),
	   "its descriptor is on the mount of the access");
	ok(got && !e.name[0] && !e.has_fid && !e.id, "and it says no more");
	ok(got && fill(e.fd) == 0 && no_event(s.group), "the directory fills through it");
	allow(&s, &e);
	ok(finish(p) == 0, "and is full");
	// The exception is for the event's own directory.
	u.path = "b/s/g";
	p = start(use, &u);
	got = next_event(s.group, &e);
	fill(e.fd);
	int sub = openat(e.fd, "s", O_RDONLY | O_DIRECTORY);
	allow(&s, &e);
	got = next_event(s.group, &e) && got;
	ok(got && ino(e.fd) == ino(sub), "a directory in it has an event of its own");
	fill(e.fd);
	allow(&s, &e);
	ok(finish(p) == 0, "and is full");
	close(sub);
	service_stop(&s);

	// 2: O_PATH
	service_open(&s, &fs, 0, O_PATH, FAN_PRE_DIR_ACCESS);
	root_ignored(&s);
	u.path = "c/f";
	p = start(use, &u);
	got = next_event(s.group, &e);
	ok(got && (fcntl(e.fd, F_GETFL) & O_PATH), "O_PATH: the descriptor is one");
	int x = openat(e.fd, "x", O_WRONLY | O_CREAT, 0644);
	ok(x >= 0 && no_event(s.group), "O_PATH: files are made through it without an event");
	close(x);
	int d = event_dir(&s, &e);
	unlinkat(d, "x", 0);
	fill(d);
	close(d);
	allow(&s, &e);
	ok(finish(p) == 0, "O_PATH: and it is full");
	service_stop(&s);

	// 3: DIR_FD: the access is through a read-only mount, the descriptor is not.
	service_open(&s, &fs, FAN_REPORT_DIR_FD, O_RDONLY, FAN_PRE_DIR_ACCESS);
	root_ignored(&s);
	u = (struct use){.top = ro, .path = "d", .list = true};
	p = start(use, &u);
	got = next_event(s.group, &e);
	ok(got && mount_id(e.fd, "") == mount_id(fs.work, "") && mount_id(e.fd, "") != mount_id(AT_FDCWD, ro),
	   "DIR_FD: the descriptor is on the listener's mount");
	ok(got && fill(e.fd) == 0, "DIR_FD: it can be filled though the access is read-only");
	ignore(&s, e.fd); // a listing asks each time it reads
	allow(&s, &e);
	ok(finish(p) == 0, "DIR_FD: and is listed in full");
	service_stop(&s);

	// 4: fids, without a descriptor
	struct {
		unsigned int flags;
		bool fd, name;
		const char *path, *what;
		bool list;
	} const fids[] = {
	    {FAN_REPORT_FID, false, false, "e/f", "FID", false},
	    {FAN_REPORT_DIR_FID, false, false, "g/f", "DIR_FID", false},
	    {FAN_REPORT_DFID_NAME, false, true, "h/f", "DFID_NAME", false},
	    {FAN_REPORT_DFID_NAME | FAN_REPORT_FID | FAN_REPORT_DIR_FD, true, true, "i/f", "all and DIR_FD",
	     false},
	};
	for (size_t i = 0; i < sizeof(fids) / sizeof(fids[0]); i++) {
		char dir[2] = {fids[i].path[0], 0};
		service_open(&s, &fs, fids[i].flags | FAN_REPORT_RESPONSE_ID, O_RDONLY, FAN_PRE_DIR_ACCESS);
		root_ignored(&s);
		u = (struct use){.top = fs.top, .path = fids[i].path};
		p = start(use, &u);
		got = next_event(s.group, &e);
		int want = openat(fs.work, dir, O_RDONLY | O_DIRECTORY);
		d = got ? event_dir(&s, &e) : -1;
		struct statfs sf;
		statfs(fs.top, &sf);
		ok(got && e.id && e.has_fid && !memcmp(&sf.f_fsid, &e.fsid, sizeof(e.fsid)) &&
		       ino(d) == ino(want),
		   "%s: the handle is that of the directory", fids[i].what);
		ok((e.fd >= 0) == fids[i].fd, "%s: descriptor %d", fids[i].what, e.fd);
		ok(!strcmp(e.name, fids[i].name ? "f" : ""), "%s: name \"%s\"", fids[i].what, e.name);
		if (i == 2) {
			// A single name can be answered for: a directory that is filled in part.
			int f = openat(d, "f", O_WRONLY | O_CREAT, 0644);
			close(f);
			allow(&s, &e);
			ok(finish(p) == 0, "one name is enough for who looked it up");
			u.path = "h/x";
			p = start(use, &u);
			got = next_event(s.group, &e);
			ok(got && !strcmp(e.name, "x"), "the next name is asked for");
			allow(&s, &e);
			ok(finish(p) == ENOENT, "and is not there if the service says so");
			u.path = "h/x";
			p = start(use, &u);
			got = next_event(s.group, &e);
			ok(got && !strcmp(e.name, "x"), "which is believed once");
			unlinkat(d, "f", 0);
			fill(d);
			allow(&s, &e);
			ok(finish(p) == 0, "the third time it is there");
			fremovexattr(d, "user.cold");
			u = (struct use){.top = fs.top, .path = "h", .list = true};
			p = start(use, &u);
			got = next_event(s.group, &e);
			ok(got && e.has_fid && !e.name[0], "a listing has no name");
			ignore(&s, d);
			allow(&s, &e);
			ok(finish(p) == 0, "and is complete");
		} else {
			fill(d);
			allow(&s, &e);
			ok(finish(p) == 0, "%s: filled by the handle", fids[i].what);
		}
		close(d);
		close(want);
		service_stop(&s);
	}

	// 5: the event of files, in a group with fids
	service_open(&s, &fs, FAN_REPORT_DFID_NAME | FAN_REPORT_FID | FAN_REPORT_RESPONSE_ID, O_RDONLY,
		     FAN_PRE_ACCESS);
	char file[100], c;
	snprintf(file, sizeof(file), "%s/a/f", fs.top);
	p = fork();
	if (p == 0) {
		int f = open(file, O_RDONLY);
		_exit(read(f, &c, 1) == 1 ? 0 : 1);
	}
	got = next_event(s.group, &e);
	ok(got && e.mask == FAN_PRE_ACCESS && e.has_fid && !strcmp(e.name, "f") && e.fd < 0,
	   "a file: directory and name");
	allow(&s, &e);
	ok(finish(p) == 0, "a file: read");
	service_stop(&s);

	umount2(ro, MNT_DETACH);
	rmdir(ro);
	fs_end(&fs);
	return done();
}
