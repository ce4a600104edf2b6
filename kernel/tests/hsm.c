// SPDX-License-Identifier: GPL-2.0-only
#include "hsm.h"

int tap_count, tap_failed;

// The groups of this process: a child that kept one open would wait for itself when the service ends.
static int groups[16];
static size_t n_groups;

void diag(const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	printf("# ");
	vprintf(fmt, ap);
	printf("\n");
	va_end(ap);
	fflush(stdout);
}

void ok(bool good, const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	tap_count++;
	tap_failed += !good;
	printf("%sok %d - ", good ? "" : "not ", tap_count);
	vprintf(fmt, ap);
	printf("\n");
	va_end(ap);
	fflush(stdout);
}

void bail(const char *fmt, ...)
{
	va_list ap;
	int err = errno;
	va_start(ap, fmt);
	printf("Bail out! ");
	vprintf(fmt, ap);
	printf(" (%s)\n", strerror(err));
	va_end(ap);
	fflush(stdout);
	_exit(1);
}

void row(const char *group, const char *way, const char *when, const char *result)
{
	printf("row\t%s\t%s\t%s\t%s\n", group, way, when, result);
	fflush(stdout);
}

int done(void)
{
	printf("1..%d\n", tap_count);
	fflush(stdout);
	return tap_failed ? 1 : 0;
}

double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

int fan_init(unsigned int flags, unsigned int event_flags)
{
	return (int)syscall(SYS_fanotify_init, flags, event_flags);
}

int fan_mark(int group, unsigned int flags, uint64_t mask, int dfd, const char *path)
{
	return (int)syscall(SYS_fanotify_mark, group, flags, mask, dfd, path);
}

const char *fs_kind = "ext4";

void fs_new(struct fs *f)
{
	static int count;
	char cmd[1024];
	// XFS and btrfs want more room than they use.
	bool ext4 = !strcmp(fs_kind, "ext4");
	snprintf(f->top, sizeof(f->top), "/dev/shm/m%d-%d", getpid(), count++);
	if (mkdir(f->top, 0755) < 0)
		bail("mkdir %s", f->top);
	snprintf(cmd, sizeof(cmd),
		 "PATH=$PATH:/sbin:/usr/sbin; truncate -s %s %s.img && mkfs.%s -q %s %s.img >/dev/null && "
		 "mount -t %s -o loop %s.img %s",
		 ext4 ? "64M" : "512M", f->top, fs_kind, ext4 ? "-I 256 -N 16384" : "", f->top, fs_kind,
		 f->top, f->top);
	if (system(cmd) != 0)
		bail("%s", cmd);
	f->tree = (int)syscall(SYS_open_tree, AT_FDCWD, f->top, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
	f->work = openat(f->tree, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (f->work < 0)
		bail("open_tree");
}

void fs_end(struct fs *f)
{
	char img[80];
	close(f->work);
	close(f->tree);
	if (umount2(f->top, MNT_DETACH) < 0)
		diag("umount %s: %s", f->top, strerror(errno));
	rmdir(f->top);
	snprintf(img, sizeof(img), "%s.img", f->top);
	unlink(img);
}

int fs_freeze(void *fs)
{
	return ioctl(((struct fs *)fs)->work, FIFREEZE, 0) < 0;
}

int fs_thaw(void *fs)
{
	return ioctl(((struct fs *)fs)->work, FITHAW, 0) < 0;
}

int fs_remount(void *fs)
{
	const char *top = ((struct fs *)fs)->top;
	return mount(NULL, top, NULL, MS_REMOUNT | MS_RDONLY, NULL) < 0 ||
	       mount(NULL, top, NULL, MS_REMOUNT, NULL) < 0;
}

int fs_reclaim(void *fs)
{
	int fd = open("/proc/sys/vm/drop_caches", O_WRONLY);
	return syncfs(((struct fs *)fs)->work) < 0 || fd < 0 || write(fd, "2\n", 2) != 2;
}

int is_busy(void *path)
{
	return !(umount2(path, 0) < 0 && errno == EBUSY);
}

void cold(struct fs *f, const char *name)
{
	if (mkdirat(f->work, name, 0755) < 0)
		bail("mkdir %s", name);
	int d = openat(f->work, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (d < 0 || fsetxattr(d, "user.cold", "d", 1, 0) < 0)
		bail("xattr of %s", name);
	close(d);
}

static int put(int d, const char *name, const char *text, mode_t mode)
{
	// It gets its name when it is complete: who finds a name is not held back.
	int fd = openat(d, ".", O_TMPFILE | O_WRONLY | O_CLOEXEC, mode);
	if (fd < 0)
		return -errno;
	int err = write(fd, text, strlen(text)) != (ssize_t)strlen(text) ? -EIO
		  : linkat(fd, "", d, name, AT_EMPTY_PATH) < 0		 ? -errno
									 : 0;
	close(fd);
	return err;
}

static int put_f(int d)
{
	return put(d, "f", "content\n", 0644);
}
static int put_x(int d)
{
	return put(d, "x", "#!/bin/sh\nexit 7\n", 0755);
}
static int put_l(int d)
{
	return symlinkat("f", d, "l") < 0 ? -errno : 0;
}
static int put_s(int d)
{
	if (mkdirat(d, "s", 0755) < 0)
		return -errno;
	int s = openat(d, "s", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int err = s < 0 || fsetxattr(s, "user.cold", "s", 1, 0) < 0 ? -errno : 0;
	if (s >= 0)
		close(s);
	return err;
}
static int put_g(int d)
{
	return put(d, "g", "content\n", 0644);
}

// Make the first @most of the names that are not there; all: it is no cold directory any more.
static int fill_some(int d, int most)
{
	static int (*const top[])(int) = {put_f, put_x, put_l, put_s, NULL},
			   (*const sub[])(int) = {put_g, NULL};
	char kind = 0;
	if (fgetxattr(d, "user.cold", &kind, 1) != 1)
		return 0; // filled already, or never cold
	for (int (*const *p)(int) = kind == 's' ? sub : top; *p; p++) {
		if (most-- == 0)
			return 0;
		int err = (*p)(d);
		if (err && err != -EEXIST)
			return err;
	}
	return fremovexattr(d, "user.cold") < 0 ? -errno : 0;
}

int fill(int d)
{
	return fill_some(d, INT_MAX);
}

int fill_half(int d)
{
	return fill_some(d, 2);
}

int event_dir(struct service *s, const struct event *e)
{
	if (e->has_fid)
		return open_by_handle_at(s->work, (struct file_handle *)&e->handle,
					 O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	struct {
		struct file_handle h;
		unsigned char bytes[128];
	} h = {.h.handle_bytes = 128};
	int id;
	if (name_to_handle_at(e->fd, "", &h.h, &id, AT_EMPTY_PATH) < 0)
		return -1;
	return open_by_handle_at(s->work, &h.h, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

static void parse(struct event *e, const struct fanotify_event_metadata *m)
{
	memset(e, 0, sizeof(*e));
	e->mask = m->mask;
	e->fd = m->fd;
	e->pid = m->pid;
	const char *at = (const char *)m + m->metadata_len, *end = (const char *)m + m->event_len;
	while (at < end) {
		const struct fanotify_event_info_header *h = (const void *)at;
		if (h->info_type == FAN_EVENT_INFO_TYPE_FID || h->info_type == FAN_EVENT_INFO_TYPE_DFID ||
		    h->info_type == FAN_EVENT_INFO_TYPE_DFID_NAME) {
			const struct fanotify_event_info_fid *fid = (const void *)at;
			const struct file_handle *fh = (const void *)fid->handle;
			if (!e->has_fid && fh->handle_bytes <= sizeof(e->handle.bytes)) {
				e->has_fid = true;
				e->fsid = fid->fsid;
				memcpy(&e->handle, fh, sizeof(*fh) + fh->handle_bytes);
				if (h->info_type == FAN_EVENT_INFO_TYPE_DFID_NAME)
					snprintf(e->name, sizeof(e->name), "%s",
						 (const char *)fh->f_handle + fh->handle_bytes);
			}
		}
		if (h->info_type == FAN_EVENT_INFO_TYPE_RANGE) {
			e->offset = ((const struct fanotify_event_info_range *)at)->offset;
			e->count = ((const struct fanotify_event_info_range *)at)->count;
		}
#ifdef FAN_EVENT_INFO_TYPE_RESPONSE_ID
		if (h->info_type == FAN_EVENT_INFO_TYPE_RESPONSE_ID)
			e->id = ((const struct fanotify_event_info_response_id *)at)->id;
#endif
#ifdef FAN_EVENT_INFO_TYPE_NAME
		if (h->info_type == FAN_EVENT_INFO_TYPE_NAME)
			snprintf(e->name, sizeof(e->name), "%s",
				 ((const struct fanotify_event_info_name *)at)->name);
#endif
		at += h->len;
	}
}

// One event per read: the buffer has room for one with its records, not always for a second, so take the
// first and insist.
static ssize_t read_one(int group, struct event *e)
{
	union {
		struct fanotify_event_metadata m;
		char room[1024];
	} buf;
	size_t size = sizeof(buf.m);
	for (;;) {
		ssize_t n = read(group, &buf, size);
		if (n < 0 && errno == EINVAL && size < sizeof(buf)) {
			size += 4; // there is more of it
			continue;
		}
		if (n > 0)
			parse(e, &buf.m);
		return n;
	}
}

bool next_event(int group, struct event *e)
{
	struct pollfd p = {.fd = group, .events = POLLIN};
	if (poll(&p, 1, LIMIT_SEC * 1000) != 1)
		return false;
	return read_one(group, e) > 0;
}

bool no_event(int group)
{
	struct pollfd p = {.fd = group, .events = POLLIN};
	return poll(&p, 1, 0) == 0;
}

int respond(int group, const struct event *e, unsigned int response)
{
#ifdef FAN_RESPONSE_INFO_ID
	if (e->id) {
		struct {
			struct fanotify_response r;
			struct fanotify_response_info_id id;
		} r = {
		    .r = {.fd = FAN_NOFD, .response = response | FAN_INFO},
		    .id = {.hdr = {.type = FAN_RESPONSE_INFO_ID, .len = sizeof(r.id)}, .id = e->id},
		};
		return write(group, &r, sizeof(r)) == sizeof(r) ? 0 : -errno;
	}
#endif
	struct fanotify_response r = {.fd = e->fd, .response = response};
	return write(group, &r, sizeof(r)) == sizeof(r) ? 0 : -errno;
}

int fill_and_ignore(struct service *s, struct event *e)
{
	if (!(e->mask & FAN_PRE_DIR_ACCESS))
		return FAN_ALLOW;
	int d = event_dir(s, e);
	if (d < 0) {
		diag("the directory of an event does not open: %s", strerror(errno));
		return FAN_DENY;
	}
	int err = fill(d);
	if (!err && fan_mark(s->group, FAN_MARK_ADD | FAN_MARK_IGNORE_SURV, FAN_PRE_DIR_ACCESS, d, NULL) < 0)
		err = -errno;
	close(d);
	if (err)
		diag("a directory does not fill: %s", strerror(-err));
	s->filled++;
	return err ? FAN_DENY : FAN_ALLOW;
}

static void *serve(void *arg)
{
	struct service *s = arg;
	for (;;) {
		struct pollfd p[2] = {{.fd = s->group, .events = POLLIN},
				      {.fd = s->stop[0], .events = POLLIN}};
		if (poll(p, 2, -1) < 0 && errno != EINTR)
			break;
		if (p[1].revents)
			break;
		struct event e;
		if (!(p[0].revents & POLLIN))
			continue;
		ssize_t n = read_one(s->group, &e);
		if (n <= 0) {
			if (n < 0 && errno != EAGAIN && errno != EINTR)
				diag("read of the group: %s", strerror(errno));
			continue;
		}
		s->seen++;
		pthread_mutex_lock(&s->lock);
		s->last = e;
		pthread_mutex_unlock(&s->lock);
		int answer = s->answer ? s->answer(s, &e) : fill_and_ignore(s, &e);
		if (answer >= 0) {
			int err = respond(s->group, &e, (unsigned int)answer);
			if (err && err != -ENOENT)
				diag("answer: %s", strerror(-err));
			if (e.fd >= 0)
				close(e.fd);
		}
	}
	return NULL;
}

void service_open(struct service *s, struct fs *f, unsigned int init_flags, unsigned int event_flags,
		  uint64_t mask)
{
	memset(s, 0, sizeof(*s));
	pthread_mutex_init(&s->lock, NULL);
	s->work = f->work;
	s->group = fan_init(FAN_CLASS_PRE_CONTENT | FAN_UNLIMITED_QUEUE | FAN_UNLIMITED_MARKS | FAN_CLOEXEC |
				FAN_NONBLOCK | init_flags,
			    event_flags | O_LARGEFILE | O_CLOEXEC);
	if (s->group < 0 || n_groups == sizeof(groups) / sizeof(groups[0]))
		bail("fanotify_init");
	groups[n_groups++] = s->group;
	// The work mount first, so that nothing is asked twice.
	if (fan_mark(s->group, FAN_MARK_ADD | FAN_MARK_MOUNT | FAN_MARK_IGNORE_SURV, mask, f->work, ".") < 0)
		bail("the work mount's mark");
	if (fan_mark(s->group, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, mask, f->work, ".") < 0)
		bail("the filesystem's mark");
}

void service_run(struct service *s)
{
	if (pipe2(s->stop, O_CLOEXEC) < 0 || pthread_create(&s->thread, NULL, serve, s) != 0)
		bail("service");
	s->running = true;
}

void service_start(struct service *s, struct fs *f, unsigned int init_flags, unsigned int event_flags,
		   uint64_t mask)
{
	service_open(s, f, init_flags, event_flags, mask);
	service_run(s);
}

void service_stop(struct service *s)
{
	if (s->running) {
		if (write(s->stop[1], "", 1) != 1)
			bail("stop");
		pthread_join(s->thread, NULL);
		close(s->stop[0]);
		close(s->stop[1]);
		s->running = false;
	}
	for (size_t i = 0; i < n_groups; i++)
		if (groups[i] == s->group)
			groups[i] = groups[--n_groups];
	if (s->group >= 0)
		close(s->group);
	s->group = -1;
}

pid_t start(int (*fn)(void *), void *arg)
{
	fflush(stdout);
	pid_t pid = fork();
	if (pid < 0)
		bail("fork");
	if (pid == 0) {
		for (size_t i = 0; i < n_groups; i++)
			close(groups[i]);
		int r = fn(arg);
		fflush(stdout);
		_exit(r & 127);
	}
	return pid;
}

int finish(pid_t pid)
{
	double end = now() + LIMIT_SEC;
	for (;;) {
		int status;
		pid_t got = waitpid(pid, &status, WNOHANG);
		if (got == pid)
			return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
		if (got < 0)
			return -1;
		if (now() > end) {
			diag("process %d hangs", pid);
			kill(pid, SIGKILL);
			waitpid(pid, &status, 0);
			return -1;
		}
		usleep(1000);
	}
}

int in_time(int (*fn)(void *), void *arg)
{
	return finish(start(fn, arg));
}

bool waits(pid_t pid)
{
	char name[64], line[512];
	snprintf(name, sizeof(name), "/proc/%d/stat", pid);
	for (double end = now() + LIMIT_SEC; now() < end; usleep(1000)) {
		FILE *f = fopen(name, "re");
		if (!f)
			return false;
		bool got = fgets(line, sizeof(line), f) != NULL;
		fclose(f);
		char *p = got ? strrchr(line, ')') : NULL;
		if (p && p[1] == ' ' && p[2] == 'D')
			return true;
	}
	return false;
}
