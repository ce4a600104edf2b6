/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "gate/fanotify/probe.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/fanotify.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "base/fd.h"
#include "base/why.h"
#include "gate/fanotify/abi.h"
#include "store/fs.h"
#include "store/image.h"

#define EVENT_WAIT_MS 5000 /* for what arrives within microseconds, or not at all */

enum feature {
	F_GROUP,
	F_FD_ERROR,
	F_MOUNT_API,
	F_MKFS,
	F_LOOP,
	F_MOUNT,
	F_REFLINK,
	F_INVISIBLE,
	F_ATTACH,
	F_PRE_XFS,
	F_RANGE,
	F_DENY_ERRNO,
	F_IGNORE,
	F_WORK_MOUNT,
	F_CLONE_DETACHED,
	F_OPEN_DIR,
	F_LOOKUP,
	F_LISTING,
	F_FAIL_CLOSED,
	F_PRE_EXT4,
	F_PRE_BTRFS,
	F_COUNT,
};

static const struct sl_fanotify_feature table[F_COUNT] = {
    [F_GROUP] = {"group", "accesses can be held up before content is read", .needed = true},
    [F_FD_ERROR] = {"fd-error", "an event without a descriptor does not stop the others", .needed = true},
    [F_MOUNT_API] = {"mount-api", "a filesystem can be mounted where nobody sees it", .needed = true},
    [F_MKFS] = {"mkfs.xfs", "an image for a clone can be made", .needed = true},
    [F_LOOP] = {"loop", "an image can be used as a device", .needed = true},
    [F_MOUNT] = {"xfs", "the kernel knows XFS", .needed = true},
    [F_REFLINK] = {"image-reflink", "placeholders in an image are armoured", .needed = true},
    [F_INVISIBLE] = {"invisible", "filling a file leaves its times alone", .needed = false},
    [F_ATTACH] = {"attach", "a marked filesystem can be shown", .needed = true},
    [F_PRE_XFS] = {"pre-access-xfs", "XFS asks before content is read, on every mount", .needed = true},
    [F_RANGE] = {"range", "a read says which range it wants", .needed = true},
    [F_DENY_ERRNO] = {"deny-errno", "a reader is told why there is no content", .needed = true},
    [F_IGNORE] = {"ignore-evictable", "full files cost nothing, and no memory for good", .needed = true},
    [F_WORK_MOUNT] = {"work-mount", "the service's own accesses raise no events", .needed = true},
    [F_CLONE_DETACHED] = {"clone-detached", "a mount that nobody sees can be cloned (Linux 6.15)",
			  .needed = false},
    [F_OPEN_DIR] = {"open-dir", "opening a directory can be held up", .needed = false},
    [F_LOOKUP] = {"dir-lookup", "names can come when one is looked up (the kernel series)", .needed = false},
    [F_LISTING] = {"dir-listing", "and when a directory is listed", .needed = false},
    [F_FAIL_CLOSED] = {"fail-closed", "nobody gets in when nobody is left to ask (the kernel series)",
		       .needed = false},
    [F_PRE_EXT4] = {"pre-access-ext4", "ext4 asks before content is read", .needed = false},
    [F_PRE_BTRFS] = {"pre-access-btrfs", "btrfs asks before content is read", .needed = false},
};

struct probe {
	struct sl_fanotify_feature *f;
	const char *scratch;
	char dir[256], image[272], at[272], dev[SL_LOOP_DEV_MAX];
	int group, loop, mnt, file;
	bool attached;
};

/* Note how @which went; returns whether it went well. */
static bool result(struct probe *p, enum feature which, int r, char **why)
{
	struct sl_fanotify_feature *f = &p->f[which];
	f->tried = true;
	f->ok = r >= 0;
	free(f->why);
	f->why = NULL;
	if (r < 0) {
		f->why = sl_steal_ptr(why);
		sl_fail(&f->why, r, "%s", strerror(-r));
	}
	free(*why);
	*why = NULL;
	return f->ok;
}

static int probe_group(struct probe *p, char **why)
{
	unsigned flags =
	    FAN_CLASS_PRE_CONTENT | FAN_UNLIMITED_QUEUE | FAN_UNLIMITED_MARKS | FAN_CLOEXEC | FAN_NONBLOCK;
	int fd = fanotify_init(flags, O_RDONLY | O_LARGEFILE | O_CLOEXEC);
	if (fd < 0)
		return sl_fail(
		    why, -errno, "%s",
		    errno == EPERM    ? "needs root (CAP_SYS_ADMIN), not only in a container"
		    : errno == ENOSYS ? "this kernel was built without fanotify"
		    : errno == EINVAL
			? "this kernel has no access permission events (CONFIG_FANOTIFY_ACCESS_PERMISSIONS)"
			: strerror(errno));
	p->group = fd;
	fd = fanotify_init(flags | FAN_REPORT_FD_ERROR, O_RDONLY | O_LARGEFILE | O_CLOEXEC);
	char *no = NULL;
	result(p, F_FD_ERROR,
	       fd < 0 ? sl_fail(&no, -errno,
				"this kernel does not know FAN_REPORT_FD_ERROR (Linux 6.13 and later)")
		      : 0,
	       &no);
	if (fd >= 0) {
		close(p->group);
		p->group = fd;
	}
	return 0;
}

static int probe_mount_api(char **why)
{
	_cleanup_close_ int fs = fsopen("tmpfs", FSOPEN_CLOEXEC);
	if (fs < 0 && errno != ENODEV)
		return sl_fail(why, -errno, "fsopen: %s (Linux 5.2 and later; needs root)", strerror(errno));
	struct mount_attr a = {0};
	if (mount_setattr(-1, "", 0, &a, sizeof(a)) < 0 && (errno == ENOSYS || errno == EPERM))
		return sl_fail(why, -errno, "mount_setattr: %s (Linux 5.12 and later)", strerror(errno));
	return 0;
}

/* One read, on a thread that may be held up. */
struct reader {
	pthread_t thread;
	int fd, r; /* bytes or -errno */
	off_t off;
};

static void *read_one(void *arg)
{
	struct reader *x = arg;
	char b[4096];
	ssize_t n = pread(x->fd, b, sizeof(b), x->off);
	x->r = n < 0 ? -errno : (int)n;
	return NULL;
}

/* Answer the one event that is expected within @ms; -ETIMEDOUT if none comes. Its range goes to @range. */
static int answer(int group, uint32_t response, struct sl_fan_range *range, int ms)
{
	union {
		struct fanotify_event_metadata m;
		char room[4096];
	} u;
	struct pollfd pfd = {group, POLLIN, 0};
	int n = poll(&pfd, 1, ms);
	if (n <= 0)
		return n < 0 ? -errno : -ETIMEDOUT;
	ssize_t len = read(group, &u, sizeof(u));
	if (len < (ssize_t)sizeof(u.m))
		return len < 0 ? -errno : -EBADMSG;
	memset(range, 0, sizeof(*range));
	int r = -ENODATA;
	for (size_t at = u.m.metadata_len; at + sizeof(range->hdr) <= u.m.event_len;) {
		struct fanotify_event_info_header h;
		memcpy(&h, u.room + at, sizeof(h));
		if (h.info_type == FAN_EVENT_INFO_TYPE_RANGE && h.len >= sizeof(*range)) {
			memcpy(range, u.room + at, sizeof(*range));
			r = 0;
		}
		if (h.len == 0)
			break;
		at += h.len;
	}
	struct fanotify_response a = {.fd = u.m.fd, .response = response};
	if (write(group, &a, sizeof(a)) < 0) {
		r = -errno;
		/* Nobody waits for ever. */
		a.response = FAN_DENY;
		(void)!write(group, &a, sizeof(a));
	}
	if (u.m.fd >= 0)
		close(u.m.fd);
	return r;
}

/* Read 4096 bytes at @off of @fd on another thread; the event is answered with @response. Returns what
 * answer() does; *@got is the reader's result. */
static int read_with_event(int group, int fd, off_t off, uint32_t response, struct sl_fan_range *range,
			   int *got)
{
	struct reader x = {.fd = fd, .off = off};
	int r = pthread_create(&x.thread, NULL, read_one, &x);
	if (r)
		return -r;
	r = answer(group, response, range, EVENT_WAIT_MS);
	/* Where that did not go as it should, the reader must get away all the same. */
	struct sl_fan_range other;
	while (pthread_tryjoin_np(x.thread, NULL) == EBUSY)
		answer(group, FAN_ALLOW, &other, 1);
	*got = x.r;
	return r;
}

/* True if a read of @fd in this thread raises no event: else it would wait, so it is done in another. */
static bool silent(int group, int fd)
{
	struct reader x = {.fd = fd};
	if (pthread_create(&x.thread, NULL, read_one, &x))
		return false;
	struct pollfd pfd = {group, POLLIN, 0};
	/* Once the reader is through, an event would have been there before. */
	bool event = false;
	struct sl_fan_range range;
	while (pthread_tryjoin_np(x.thread, NULL) == EBUSY)
		if (poll(&pfd, 1, 1) > 0) {
			event = true;
			answer(group, FAN_ALLOW, &range, 0);
		}
	return !event && x.r > 0;
}

static int mark(int group, unsigned flags, uint64_t mask, int fd, const char *what, char **why)
{
	char path[SL_PROC_FD_MAX];
	if (fanotify_mark(group, FAN_MARK_ADD | flags, mask, AT_FDCWD, sl_proc_fd_path(path, fd, NULL)) < 0)
		return sl_fail(why, -errno, "%s: %s", what, strerror(errno));
	return 0;
}

/* ---- directories ---- */

/* A look into the directory @at, on a thread that may be held up. */
struct look {
	pthread_t thread;
	const char *at;
	bool list;
	int r; /* 0 or -errno */
};

static void *look_one(void *arg)
{
	struct look *x = arg;
	_cleanup_close_ int fd = open(x->at, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	char b[1024];
	if (fd < 0)
		x->r = -errno;
	else if (x->list)
		x->r = syscall(SYS_getdents64, fd, b, sizeof(b)) < 0 ? -errno : 0;
	else
		x->r = faccessat(fd, "no such name", F_OK, 0) < 0 ? -errno : 0;
	return NULL;
}

/* Refuse what @group asks of a look with EIO; @group may be negative. *@asked: it asked for the directory.
 * What came of it. */
static int look_with_event(int group, struct look *x, bool *asked)
{
	struct pollfd pfd = {group, POLLIN, 0};
	int r = pthread_create(&x->thread, NULL, look_one, x);
	*asked = false;
	if (r)
		return -r;
	while (pthread_tryjoin_np(x->thread, NULL) == EBUSY) {
		struct fanotify_event_metadata m[4];
		ssize_t n = poll(&pfd, 1, 1) > 0 ? read(group, m, sizeof(m)) : 0;
		for (struct fanotify_event_metadata *e = m; FAN_EVENT_OK(e, n); e = FAN_EVENT_NEXT(e, n)) {
			struct fanotify_response a = {.fd = e->fd, .response = SL_FAN_DENY_ERRNO(EIO)};
			*asked |= e->mask & FAN_PRE_DIR_ACCESS;
			if (write(group, &a, sizeof(a)) == sizeof(a) && e->fd >= 0)
				close(e->fd);
		}
	}
	return x->r;
}

static int probe_look(struct probe *p, int group, bool list, char **why)
{
	struct look x = {.at = p->at, .list = list};
	bool asked;
	int r = look_with_event(group, &x, &asked);
	if (!asked)
		return sl_fail(why, -EBADMSG, "%s raises no event", list ? "a listing" : "a lookup");
	return r == -EIO ? 0
			 : sl_fail(why, -EBADMSG, "%s that was refused with EIO ended with %d",
				   list ? "a listing" : "a lookup", r);
}

static int probe_fail_closed(struct probe *p, int group, char **why)
{
	struct look x = {.at = p->at, .list = true};
	char path[SL_PROC_FD_MAX];
	bool asked;
	close(group);
	int r = look_with_event(-1, &x, &asked);
	if (r != -EIO)
		return sl_fail(why, -EBADMSG, "a listing after the end of the group ended with %d", r);
	_cleanup_close_ int next = fanotify_init(FAN_CLASS_PRE_CONTENT | FAN_CLOEXEC, O_RDONLY | O_CLOEXEC);
	r = mark(next, FAN_MARK_FILESYSTEM | FAN_MARK_FAIL_CLOSED, FAN_PRE_DIR_ACCESS, p->mnt,
		 "it cannot be opened again", why);
	if (r == 0 && fanotify_mark(next, FAN_MARK_REMOVE | FAN_MARK_FILESYSTEM, FAN_PRE_DIR_ACCESS, AT_FDCWD,
				    sl_proc_fd_path(path, p->mnt, NULL)) < 0)
		r = -errno;
	x.r = 0;
	if (r == 0 && (r = look_with_event(-1, &x, &asked)) < 0)
		sl_fail(why, r, "it stays closed");
	return r;
}

static void probe_dirs(struct probe *p)
{
	char *why = NULL;
	int group = fanotify_init(FAN_CLASS_PRE_CONTENT | FAN_CLOEXEC | FAN_NONBLOCK, O_RDONLY | O_CLOEXEC);
	int r = group < 0
		    ? -errno
		    : mark(group, FAN_MARK_FILESYSTEM, FAN_PRE_DIR_ACCESS, p->mnt,
			   "this kernel does not ask before names are used: all are fetched before a clone "
			   "is shown (the kernel series has it)",
			   &why);
	if (r == 0)
		r = probe_look(p, group, false, &why);
	if (result(p, F_LOOKUP, r, &why)) {
		r = probe_look(p, group, true, &why);
		result(p, F_LISTING, r, &why);
	}
	r = group < 0
		? -errno
		: mark(group, FAN_MARK_FILESYSTEM | FAN_MARK_FAIL_CLOSED,
		       p->f[F_LOOKUP].ok ? FAN_PRE_DIR_ACCESS : FAN_PRE_ACCESS, p->mnt,
		       "what is missing is an error of the cold zone then (the kernel series has it)", &why);
	if (r == 0 && p->f[F_LOOKUP].ok)
		r = probe_fail_closed(p, sl_steal_fd(&group), &why);
	result(p, F_FAIL_CLOSED, r, &why);
	if (group >= 0)
		close(group);
}

static void probe_events(struct probe *p)
{
	char *why = NULL;
	struct sl_fan_range range;
	int got, r = mark(p->group, FAN_MARK_FILESYSTEM, FAN_PRE_ACCESS, p->mnt,
			  "the kernel has no pre-content events (Linux 6.14 and later)", &why);
	if (!result(p, F_PRE_XFS, r, &why))
		return;
	/* Only what is opened under the mark raises events. */
	char path[300];
	snprintf(path, sizeof(path), "%s/f", p->at);
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
	r = fd < 0 ? -errno : read_with_event(p->group, fd, 8192, FAN_ALLOW, &range, &got);
	if (r == 0 && (range.offset != 8192 || range.count < 4096 || got != 4096))
		r = sl_fail(&why, -EBADMSG, "a read of 4096 bytes at 8192 was reported as %llu at %llu",
			    (unsigned long long)range.count, (unsigned long long)range.offset);
	if (r == -ENODATA)
		sl_fail(&why, r, "events have no range (Linux 6.14 and later)");
	if (!result(p, F_RANGE, r, &why))
		return;
	r = read_with_event(p->group, fd, 0, SL_FAN_DENY_ERRNO(ENOSPC), &range, &got);
	if (r == 0 && got != -ENOSPC)
		r = sl_fail(&why, -EBADMSG, "a read that was refused with ENOSPC ended with %d", got);
	result(p, F_DENY_ERRNO, r, &why);

	_cleanup_close_ int work = -1;
	_cleanup_close_ int at = open(p->at, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	r = sl_mount_clone(at, NULL, &work);
	if (r == 0)
		r = mark(p->group, FAN_MARK_MOUNT | SL_FAN_IGNORE, FAN_PRE_ACCESS, work,
			 "no ignore marks on mounts", &why);
	_cleanup_close_ int through = r < 0 ? -1 : openat(work, "f", O_RDONLY | O_CLOEXEC);
	if (r == 0 && !silent(p->group, through))
		r = sl_fail(&why, -EBADMSG, "an ignored mount raises events all the same");
	result(p, F_WORK_MOUNT, r, &why);

	r = mark(p->group, SL_FAN_IGNORE | FAN_MARK_EVICTABLE, FAN_PRE_ACCESS, fd,
		 "no evictable ignore marks (Linux 6.0)", &why);
	if (r == 0 && !silent(p->group, fd))
		r = sl_fail(&why, -EBADMSG, "an ignored file raises events all the same");
	result(p, F_IGNORE, r, &why);

	_cleanup_close_ int spare = fanotify_init(FAN_CLASS_PRE_CONTENT | FAN_CLOEXEC, O_RDONLY | O_CLOEXEC);
	r = mark(spare, FAN_MARK_FILESYSTEM, FAN_OPEN_PERM | FAN_ONDIR, p->mnt,
		 "no permission events for directories", &why);
	result(p, F_OPEN_DIR, r, &why);
}

static int probe_reflink(struct probe *p)
{
	char b[4096] = "x";
	p->file = openat(p->mnt, "f", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	_cleanup_close_ int copy = openat(p->mnt, "g", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (p->file < 0 || copy < 0)
		return -errno;
	for (int i = 0; i < 4; i++)
		if (pwrite(p->file, b, sizeof(b), i * (off_t)sizeof(b)) < 0)
			return -errno;
	return ioctl(copy, FICLONE, p->file) < 0 ? -errno : 0;
}

static int probe_invisible(struct probe *p, char **why)
{
	struct stat a, b;
	int fd = sl_xfs_reopen_invisible(p->mnt, p->file, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return fd;
	_cleanup_close_ int f = fd;
	struct timespec ts[2] = {{.tv_sec = 1}, {.tv_sec = 1}};
	if (futimens(p->file, ts) < 0 || fstat(f, &a) < 0 || pwrite(f, "y", 1, 0) < 0 || fstat(f, &b) < 0)
		return -errno;
	if (a.st_mtim.tv_sec != b.st_mtim.tv_sec)
		return sl_fail(why, -EBADMSG, "XFS changes times all the same");
	return 0;
}

/* Another filesystem's answer, on an image of its own. Not everybody has its tools: then it is not tried. */
static void probe_other(struct probe *p, enum feature which, const char *mkfs, const char *type,
			uint64_t bytes)
{
	char image[300], dev[SL_LOOP_DEV_MAX], *why = NULL;
	snprintf(image, sizeof(image), "%s/%s", p->dir, type);
	_cleanup_close_ int fd = open(image, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0 || ftruncate(fd, (off_t)bytes) < 0)
		return;
	const char *argv[] = {mkfs, "-q", image, NULL};
	extern char **environ;
	posix_spawn_file_actions_t fa;
	posix_spawn_file_actions_init(&fa);
	posix_spawn_file_actions_addopen(&fa, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
	posix_spawn_file_actions_addopen(&fa, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
	char prog[64];
	pid_t pid;
	int status = -1, r;
	r = posix_spawnp(&pid, mkfs, &fa, NULL, (char *const *)argv, environ);
	snprintf(prog, sizeof(prog), "/usr/sbin/%s", mkfs);
	if (r)
		r = posix_spawn(&pid, prog, &fa, NULL, (char *const *)argv, environ);
	posix_spawn_file_actions_destroy(&fa);
	if (r == 0)
		while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
			;
	_cleanup_close_ int loop = -1, mnt = -1;
	if (r || status) {
		sl_fail(&p->f[which].why, -ENOENT, "not tried: there is no %s", mkfs);
	} else {
		r = sl_image_attach(image, &loop, dev, &why);
		if (r == 0)
			r = sl_fs_mount(dev, type, NULL, 0, &mnt, &why);
		if (r == 0)
			r = mark(p->group, FAN_MARK_FILESYSTEM, FAN_PRE_ACCESS, mnt,
				 "the kernel has no pre-content events for it (Linux 6.14 and later)", &why);
		result(p, which, r, &why);
	}
	unlink(image);
}

static void probe_image(struct probe *p)
{
	char *why = NULL;
	int r = sl_image_create(p->image, SL_IMAGE_MIN, &why);
	if (!result(p, F_MKFS, r, &why))
		return;
	r = sl_image_attach(p->image, &p->loop, p->dev, &why);
	if (!result(p, F_LOOP, r, &why))
		return;
	r = sl_fs_mount(p->dev, "xfs", SL_IMAGE_OPTIONS, 0, &p->mnt, &why);
	if (!result(p, F_MOUNT, r, &why) || !result(p, F_REFLINK, probe_reflink(p), &why))
		return;
	r = probe_invisible(p, &why);
	result(p, F_INVISIBLE, r, &why);
	int hidden = -1;
	r = sl_mount_clone(p->mnt, NULL, &hidden);
	result(p, F_CLONE_DETACHED, r, &why);
	if (r == 0)
		close(hidden);
	r = sl_mount_attach(p->mnt, p->at, &why);
	p->attached = r == 0;
	if (!result(p, F_ATTACH, r, &why))
		return;
	probe_events(p);
	if (p->f[F_PRE_XFS].ok)
		probe_dirs(p);
}

static void probe_in(struct probe *p)
{
	char *why = NULL;
	int r = probe_mount_api(&why);
	if (!result(p, F_MOUNT_API, r, &why))
		return;
	snprintf(p->dir, sizeof(p->dir), "%s/sluice-probe-XXXXXX", p->scratch);
	if (!mkdtemp(p->dir)) {
		r = sl_fail(&why, -errno, "%s: %s", p->scratch, strerror(errno));
		result(p, F_MKFS, r, &why);
		return;
	}
	snprintf(p->image, sizeof(p->image), "%s/image", p->dir);
	snprintf(p->at, sizeof(p->at), "%s/at", p->dir);
	(void)mkdir(p->at, 0700);
	probe_image(p);
	if (p->f[F_PRE_XFS].ok) {
		probe_other(p, F_PRE_EXT4, "mkfs.ext4", "ext4", 16ull << 20);
		probe_other(p, F_PRE_BTRFS, "mkfs.btrfs", "btrfs", 128ull << 20);
	}
	if (p->attached)
		umount2(p->at, MNT_DETACH | UMOUNT_NOFOLLOW);
	rmdir(p->at);
	unlink(p->image);
	rmdir(p->dir);
}

/* A thread of its own, for a mount namespace of its own: nobody else sees what is mounted, and whatever
 * happens to this process, nothing of it stays. */
static void *probe_all(void *arg)
{
	struct probe *p = arg;
	char *why = NULL;
	int r = probe_group(p, &why);
	if (result(p, F_GROUP, r, &why)) {
		if (unshare(CLONE_NEWNS) == 0)
			(void)mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL);
		probe_in(p);
	}
	int fds[] = {p->group, p->file, p->mnt, p->loop};
	for (size_t i = 0; i < SL_ARRAY_SIZE(fds); i++)
		if (fds[i] >= 0)
			close(fds[i]);
	return NULL;
}

int sl_fanotify_probe(const char *scratch, struct sl_fanotify_feature **ret)
{
	const char *tmp = getenv("TMPDIR");
	struct probe p = {.scratch = scratch	   ? scratch
				     : tmp && *tmp ? tmp
						   : "/var/tmp",
			  .group = -1,
			  .loop = -1,
			  .mnt = -1,
			  .file = -1};
	p.f = malloc(sizeof(table));
	if (!p.f)
		return -ENOMEM;
	memcpy(p.f, table, sizeof(table));
	pthread_t t;
	int r = pthread_create(&t, NULL, probe_all, &p);
	if (r) {
		free(p.f);
		return -r;
	}
	pthread_join(t, NULL);
	*ret = p.f;
	return F_COUNT;
}

void sl_fanotify_features_free(struct sl_fanotify_feature *f, int n)
{
	for (int i = 0; f && i < n; i++)
		free(f[i].why);
	free(f);
}

bool sl_fanotify_lazy(const struct sl_fanotify_feature *f, int n)
{
	return n == F_COUNT && f[F_LOOKUP].ok && f[F_LISTING].ok && f[F_FAIL_CLOSED].ok;
}

int sl_fanotify_available(const char *scratch, bool *lazy, char **why)
{
	struct sl_fanotify_feature *f = NULL;
	int n = sl_fanotify_probe(scratch, &f), r = n < 0 ? n : 0;
	for (int i = 0; i < n && r == 0; i++)
		if (f[i].needed && !f[i].ok)
			r = sl_fail(why, -EOPNOTSUPP, "the fanotify gate cannot be used here: %s: %s",
				    f[i].name, f[i].why ? f[i].why : "not tried");
	*lazy = sl_fanotify_lazy(f, n);
	sl_fanotify_features_free(f, n);
	return r;
}
