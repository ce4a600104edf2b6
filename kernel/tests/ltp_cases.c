// SPDX-License-Identifier: GPL-2.0-only
// If this fails, the series has changed what mainline promises of FAN_PRE_ACCESS and of the groups that have
// it. The rows are those of the Linux Test Project's tests, written anew:
//
//     cases(), which          fanotify24: order of events, answers with an errno, an inode's, a mount's, a
//                             filesystem's and a parent's mark, exec of a file that is open for writing
//     event_fd()              fanotify24: reading by the descriptor of an event raises none
//     errnos()                fanotify24: the errnos that an answer may have, and what others do
//     destroyed()             fanotify07: waiters go on when the group is closed
//     ignored()               fanotify10: ignore marks of inode and mount, in each class
//     refused()               fanotify14: flags that do not go together
//     fd_error()              fanotify21, fanotify03: an event whose descriptor cannot be opened
//     ranges()                none of them: what raises the event, and with which range
//
// Beside each is the same with FAN_PRE_DIR_ACCESS in the mask, which must change nothing for files.

#include "hsm.h"

#include <sys/mman.h>

#ifndef FAN_DENY_ERRNO
#define FAN_DENY_ERRNO(err) (FAN_DENY | (((__u32)(err)&0xff) << 24))
#endif

static struct fs fs;
static char file[100], prog[100];

// --- fanotify24

enum mark { INODE, MOUNT, FILESYSTEM, PARENT };
struct answer {
	uint64_t mask;
	unsigned int response;
};
static const struct test {
	const char *name;
	enum mark mark;
	uint64_t mask;
	struct answer answers[5]; // the last without a mask; what comes after them is allowed
	int write_errno, read_errno, exec_errno;
} tests[] = {
#define OPEN_CASE(text, type)                                                                                \
	{                                                                                                    \
		text " mark, open and access", type, FAN_OPEN_PERM | FAN_PRE_ACCESS,                         \
		    {{FAN_OPEN_PERM, FAN_ALLOW},                                                             \
		     {FAN_PRE_ACCESS, FAN_DENY},                                                             \
		     {FAN_PRE_ACCESS, FAN_DENY_ERRNO(EIO)},                                                  \
		     {FAN_OPEN_PERM, FAN_DENY_ERRNO(EBUSY)}},                                                \
		    EPERM, EIO, EBUSY                                                                        \
	}
#define EXEC_CASE(text, type, event_on_child)                                                                \
	{                                                                                                    \
		text " mark, access and exec", type, FAN_PRE_ACCESS | FAN_OPEN_EXEC_PERM | (event_on_child), \
		    {{FAN_PRE_ACCESS, FAN_DENY},                                                             \
		     {FAN_PRE_ACCESS, FAN_DENY_ERRNO(EIO)},                                                  \
		     {FAN_OPEN_EXEC_PERM, FAN_DENY_ERRNO(EBUSY)}},                                           \
		    EPERM, EIO, EBUSY                                                                        \
	}
    OPEN_CASE("inode", INODE),
    EXEC_CASE("inode", INODE, 0),
    OPEN_CASE("mount", MOUNT),
    EXEC_CASE("mount", MOUNT, 0),
    OPEN_CASE("filesystem", FILESYSTEM),
    EXEC_CASE("filesystem", FILESYSTEM, 0),
    EXEC_CASE("parent", PARENT, FAN_EVENT_ON_CHILD),
    // Not asked, so a program that is open for writing is busy.
    {"parent that does not watch children",
     PARENT,
     FAN_PRE_ACCESS | FAN_OPEN_EXEC_PERM,
     {{0}},
     0,
     0,
     ETXTBSY},
    // Asked and allowed: a program that is open for writing runs, or the service could not fill it.
    {"inode mark, all allowed", INODE, FAN_PRE_ACCESS, {{FAN_PRE_ACCESS, FAN_ALLOW}}, 0, 0, 0},
};

static int uses(void *arg)
{
	const struct test *t = arg;
	char b[16];
	int fd = open(file, O_RDWR | O_CREAT, 0700);
	if (fd < 0)
		return 1;
	errno = 0;
	if ((write(fd, "w", 1) == 1) != !t->write_errno || (t->write_errno && errno != t->write_errno))
		return 2;
	lseek(fd, 0, SEEK_SET);
	errno = 0;
	if ((read(fd, b, sizeof(b)) > 0) != !t->read_errno || (t->read_errno && errno != t->read_errno))
		return 3;
	close(fd);
	if (t->exec_errno == ETXTBSY || !t->exec_errno)
		fd = open(prog, O_RDWR);
	char *const argv[] = {prog, NULL};
	execv(prog, argv); // exits with 0
	return errno == t->exec_errno ? 0 : 4;
}

static void cases(uint64_t with)
{
	for (size_t i = 0; i < sizeof(tests) / sizeof(tests[0]); i++) {
		const struct test *t = &tests[i];
		static const unsigned int types[] = {FAN_MARK_INODE, FAN_MARK_MOUNT, FAN_MARK_FILESYSTEM,
						     FAN_MARK_INODE};
		// An inode mark on a file cannot have the event of directories.
		uint64_t also = t->mark == INODE ? 0 : with;
		int group = fan_init(FAN_CLASS_PRE_CONTENT | FAN_NONBLOCK, O_RDONLY | O_LARGEFILE);
		const char *const at[] = {t->mark == PARENT ? fs.top : file,
					  t->mark == PARENT ? fs.top : prog};
		for (int k = 0; k < 2; k++)
			if (fan_mark(group, FAN_MARK_ADD | types[t->mark], t->mask | also, AT_FDCWD, at[k]) <
			    0)
				bail("mark, %s", t->name);
		pid_t p = fork();
		if (p == 0) {
			close(group);
			_exit(uses((void *)t));
		}
		// In this order, by this process; more only behind one that was allowed.
		int n = 0, wrong = 0, status = -1;
		bool done = false;
		for (double end = now() + LIMIT_SEC; !done && now() < end;) {
			struct pollfd w = {.fd = group, .events = POLLIN};
			struct event e;
			if (poll(&w, 1, 5) != 1) {
				done = waitpid(p, &status, WNOHANG) == p && no_event(group);
				continue;
			}
			if (!next_event(group, &e))
				continue;
			const struct answer *a = &t->answers[n];
			unsigned int response = FAN_ALLOW;
			if (e.mask & FAN_PRE_DIR_ACCESS) {
				// What `with` adds; answered and not counted.
			} else if (a->mask) {
				wrong += e.mask != a->mask || e.pid != p;
				response = a->response;
				n++;
			} else {
				wrong += !(n && t->answers[n - 1].response == FAN_ALLOW) || e.pid != p;
			}
			// Reading by the event's descriptor raises no event, or this would wait for ever.
			char c;
			wrong += e.mask == FAN_PRE_ACCESS && e.fd >= 0 && read(e.fd, &c, 1) != 1;
			wrong += respond(group, &e, response) != 0;
			close(e.fd);
		}
		ok(done && !wrong && !t->answers[n].mask && WIFEXITED(status) && WEXITSTATUS(status) == 0,
		   "%s%s: %d events, %d wrong, status %#x", t->name, with ? ", with that of directories" : "",
		   n, wrong, (unsigned int)status);
		close(group);
	}
}

static int reads_file(void *arg)
{
	(void)arg;
	char c;
	int fd = open(file, O_RDONLY);
	return fd < 0 ? 100 : read(fd, &c, 1) == 1 ? 0 : errno;
}

static void errnos(void)
{
	static const int good[] = {EPERM, EIO, EBUSY, ETXTBSY, EAGAIN, ENOSPC, EDQUOT},
			 bad[] = {ENOENT, EINTR, 255};
	int group = fan_init(FAN_CLASS_PRE_CONTENT | FAN_NONBLOCK, O_RDONLY | O_LARGEFILE);
	struct event e;
	if (fan_mark(group, FAN_MARK_ADD, FAN_PRE_ACCESS, AT_FDCWD, file) < 0)
		bail("mark");
	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
		pid_t p = start(reads_file, NULL);
		bool got = next_event(group, &e);
		// One that is not allowed leaves the waiter waiting.
		for (size_t k = 0; i == 0 && k < sizeof(bad) / sizeof(bad[0]); k++)
			ok(got && respond(group, &e, FAN_DENY_ERRNO((unsigned int)bad[k])) == -EINVAL,
			   "errno %d is none for an answer", bad[k]);
		ok(got && respond(group, &e, FAN_DENY_ERRNO((unsigned int)good[i])) == 0 &&
		       finish(p) == good[i],
		   "the answer %s is what the reader gets", strerrorname_np(good[i]));
		close(e.fd);
	}
	close(group);
}

// --- fanotify07

static void destroyed(void)
{
	int group = fan_init(FAN_CLASS_PRE_CONTENT | FAN_NONBLOCK, O_RDONLY | O_LARGEFILE);
	if (fan_mark(group, FAN_MARK_ADD, FAN_PRE_ACCESS, AT_FDCWD, file) < 0)
		bail("mark");
	pid_t p[16];
	for (int i = 0; i < 16; i++) {
		p[i] = fork();
		if (p[i] == 0) {
			close(group);
			_exit(reads_file(NULL));
		}
	}
	struct event e;
	int read = 0;
	// Some are read and not answered, the others are not read.
	for (; read < 5 && next_event(group, &e); read++)
		close(e.fd);
	for (int i = 0; i < 16; i++)
		waits(p[i]);
	close(group);
	int back = 0;
	for (int i = 0; i < 16; i++)
		back += finish(p[i]) == 0;
	ok(read == 5 && back == 16, "a closed group: %d of 16 waiters go on", back);
}

// --- fanotify10

static void ignored(void)
{
	static const unsigned int classes[] = {FAN_CLASS_PRE_CONTENT, FAN_CLASS_CONTENT, FAN_CLASS_NOTIF};
	static const uint64_t masks[] = {FAN_PRE_ACCESS, FAN_OPEN_PERM, FAN_OPEN};
	for (int c = 0; c < 3; c++) {
		for (int how = 0; how < 3; how++) {
			int group = fan_init(classes[c] | FAN_NONBLOCK, O_RDONLY | O_LARGEFILE);
			unsigned int mark = how == 0   ? FAN_MARK_INODE
					    : how == 1 ? FAN_MARK_MOUNT
						       : FAN_MARK_FILESYSTEM;
			// What is marked in one way is ignored in another.
			unsigned int ignore = how == 0 ? FAN_MARK_MOUNT : FAN_MARK_INODE;
			int err = fan_mark(group, FAN_MARK_ADD | mark, masks[c], AT_FDCWD, file);
			err |= fan_mark(group, FAN_MARK_ADD | ignore | FAN_MARK_IGNORE_SURV, masks[c],
					AT_FDCWD, file);
			ok(!err && in_time(reads_file, NULL) == 0 && no_event(group),
			   "class %#x: mark %d is ignored", classes[c], how);
			close(group);
		}
	}
}

// --- fanotify14

static void refused(void)
{
	static const struct {
		unsigned int init;
		uint64_t mask;
		const char *what;
	} bad[] = {
	    {FAN_CLASS_PRE_CONTENT | FAN_REPORT_FID, 0, "pre-content class and FID"},
	    {FAN_CLASS_PRE_CONTENT | FAN_REPORT_DIR_FID, 0, "pre-content class and DIR_FID"},
	    {FAN_CLASS_PRE_CONTENT | FAN_REPORT_DFID_NAME, 0, "pre-content class and DFID_NAME"},
	    {FAN_CLASS_CONTENT | FAN_REPORT_FID, 0, "content class and FID"},
	    {FAN_CLASS_CONTENT | FAN_REPORT_DFID_NAME, 0, "content class and DFID_NAME"},
	    {FAN_CLASS_NOTIF | FAN_REPORT_NAME, 0, "NAME without a directory"},
	    {FAN_CLASS_NOTIF | FAN_REPORT_TARGET_FID, 0, "TARGET_FID alone"},
	    {FAN_CLASS_NOTIF, FAN_PRE_ACCESS, "FAN_PRE_ACCESS to be notified"},
	    {FAN_CLASS_CONTENT, FAN_PRE_ACCESS, "FAN_PRE_ACCESS in the content class"},
	    {FAN_CLASS_PRE_CONTENT, FAN_PRE_ACCESS | FAN_ONDIR, "FAN_PRE_ACCESS of directories"},
	    {FAN_CLASS_PRE_CONTENT, FAN_CREATE, "FAN_CREATE without fids"},
	    {FAN_CLASS_PRE_CONTENT, FAN_RENAME, "FAN_RENAME without names"},
	    {FAN_CLASS_PRE_CONTENT, FAN_FS_ERROR, "FAN_FS_ERROR without fids"},
	};
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		int group = fan_init(bad[i].init, O_RDONLY | O_LARGEFILE), err = errno;
		if (bad[i].mask) {
			err = fan_mark(group, FAN_MARK_ADD, bad[i].mask, AT_FDCWD, fs.top) < 0 ? errno : 0;
			close(group);
		} else if (group >= 0) {
			close(group);
			err = 0;
		}
		ok(err == EINVAL, "EINVAL: %s (%d)", bad[i].what, err);
	}
	int group = fan_init(FAN_CLASS_PRE_CONTENT, O_RDONLY | O_LARGEFILE);
	ok(fan_mark(group, FAN_MARK_ADD, FAN_PRE_ACCESS, AT_FDCWD, fs.top) == 0 &&
	       fan_mark(group, FAN_MARK_ADD, FAN_OPEN | FAN_ONDIR, AT_FDCWD, fs.top) < 0 && errno == EEXIST,
	   "EEXIST: FAN_ONDIR added to a mark with a pre-content event");
	close(group);
}

// --- fanotify21, fanotify03

static int reads_ro(void *arg)
{
	char p[200], c;
	snprintf(p, sizeof(p), "%s/file", (char *)arg);
	int fd = open(p, O_RDONLY);
	return fd < 0 ? 100 : read(fd, &c, 1) == 1 ? 0 : errno;
}

// The access is through a read-only mount, the group wants descriptors for writing.
static void fd_error(void)
{
	char ro[100];
	snprintf(ro, sizeof(ro), "%s-ltp", fs.top);
	if (mkdir(ro, 0755) < 0 || mount(fs.top, ro, NULL, MS_BIND, NULL) < 0 ||
	    mount(NULL, ro, NULL, MS_BIND | MS_REMOUNT | MS_RDONLY, NULL) < 0)
		bail("read-only mount");
	for (int with = 0; with < 3; with++) {
		static const unsigned int flags[] = {0, FAN_REPORT_FD_ERROR,
						     FAN_REPORT_FD_ERROR | FAN_REPORT_RESPONSE_ID};
		static const char *const names[] = {"without FD_ERROR", "FD_ERROR", "FD_ERROR and ids"};
		int group =
		    fan_init(FAN_CLASS_PRE_CONTENT | FAN_NONBLOCK | flags[with], O_RDWR | O_LARGEFILE);
		if (fan_mark(group, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, FAN_PRE_ACCESS, AT_FDCWD, fs.top) < 0)
			bail("mark");
		pid_t p = fork();
		if (p == 0) {
			close(group);
			_exit(reads_ro(ro));
		}
		struct event e = {.fd = FAN_NOFD};
		struct pollfd w = {.fd = group, .events = POLLIN};
		bool came = poll(&w, 1, LIMIT_SEC * 1000) == 1;
		errno = 0;
		bool got = came && next_event(group, &e);
		if (with == 0)
			ok(came && !got && errno == EROFS && finish(p) == EPERM,
			   "%s: read() fails, the access is denied", names[with]);
		else if (with == 1)
			ok(got && e.fd == -EROFS && finish(p) == EPERM,
			   "%s: the event says so, the access is denied", names[with]);
		else
			ok(got && e.fd == -EROFS && e.id && respond(group, &e, FAN_ALLOW) == 0 &&
			       finish(p) == 0,
			   "%s: the event says so and can be answered", names[with]);
		close(group);
	}
	umount2(ro, MNT_DETACH);
	rmdir(ro);
}

// --- what raises the event, with which range

struct range {
	const char *what;
	int flags;
	int (*fn)(int fd);
	long long offset, count; // -1: there is no event
};
static int r_read(int fd)
{
	char b[100];
	return pread(fd, b, sizeof(b), 5000) < 0;
}
static int r_write(int fd)
{
	return pwrite(fd, "x", 1, 9000) != 1;
}
static int r_mmap(int fd)
{
	void *p = mmap(NULL, 8192, PROT_READ, MAP_SHARED, fd, 4096);
	return p == MAP_FAILED;
}
static int r_anon(int fd)
{
	(void)fd;
	return mmap(NULL, 8192, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED;
}
static int r_truncate(int fd)
{
	return ftruncate(fd, 12288) < 0;
}
static int r_fallocate(int fd)
{
	return fallocate(fd, 0, 4096, 4096) < 0;
}
static int r_fsync(int fd)
{
	return fsync(fd) < 0;
}
static int r_stat(int fd)
{
	struct stat st;
	return fstat(fd, &st) < 0 || fchmod(fd, 0600) < 0;
}
static int r_splice(int fd)
{
	int p[2];
	loff_t off = 4096;
	return pipe(p) < 0 || splice(fd, &off, p[1], NULL, 4096, 0) < 0;
}
static int r_copy(int fd)
{
	loff_t from = 0, to = 8192;
	return copy_file_range(fd, &from, fd, &to, 4096, 0) < 0;
}
static int r_readahead(int fd)
{
	return readahead(fd, 0, 4096) < 0;
}
static const struct range ranges_of[] = {
    {"pread of 100 bytes", O_RDWR, r_read, 4096, 4096},
    {"pwrite of one byte", O_RDWR, r_write, 8192, 4096},
    {"mmap of two pages", O_RDWR, r_mmap, 4096, 8192},
    {"mmap of no file", O_RDWR, r_anon, -1, 0},
    {"ftruncate", O_RDWR, r_truncate, 12288, 0},
    {"fallocate", O_RDWR, r_fallocate, 4096, 4096},
    {"splice", O_RDWR, r_splice, 4096, 4096},
    {"copy_file_range", O_RDWR, r_copy, 0, 4096},
    {"fsync", O_RDWR, r_fsync, -1, 0},
    {"fstat and fchmod", O_RDWR, r_stat, -1, 0},
    {"readahead", O_RDWR, r_readahead, -1, 0},
};

static void ranges(void)
{
	static char data[16384];
	int fd = open(file, O_WRONLY),
	    group = fan_init(FAN_CLASS_PRE_CONTENT | FAN_NONBLOCK, O_RDONLY | O_LARGEFILE);
	memset(data, 'd', sizeof(data));
	if (write(fd, data, sizeof(data)) != sizeof(data) || close(fd) < 0 ||
	    fan_mark(group, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, FAN_PRE_ACCESS, AT_FDCWD, fs.top) < 0)
		bail("mark");
	for (size_t i = 0; i < sizeof(ranges_of) / sizeof(ranges_of[0]); i++) {
		const struct range *r = &ranges_of[i];
		pid_t p = fork();
		if (p == 0) {
			close(group);
			int fd = open(file, r->flags);
			_exit(fd < 0 ? 100 : r->fn(fd));
		}
		// The first event is the one that counts.
		long long offset = -1, count = 0;
		int status = -1;
		for (double end = now() + LIMIT_SEC; now() < end;) {
			struct pollfd w = {.fd = group, .events = POLLIN};
			struct event e;
			if (poll(&w, 1, 5) != 1) {
				if (waitpid(p, &status, WNOHANG) == p)
					break;
				continue;
			}
			if (!next_event(group, &e))
				continue;
			if (offset < 0) {
				offset = (long long)e.offset;
				count = (long long)e.count;
			}
			respond(group, &e, FAN_ALLOW);
			close(e.fd);
		}
		ok(status == 0 && offset == r->offset && count == r->count, "%s: %lld, %lld", r->what, offset,
		   count);
	}
	close(group);
}

int main(void)
{
	fs_new(&fs);
	snprintf(file, sizeof(file), "%s/file", fs.top);
	snprintf(prog, sizeof(prog), "%s/prog", fs.top);
	char cmd[300];
	snprintf(cmd, sizeof(cmd), "echo content >%s && cp /bin/true %s && sync", file, prog);
	if (system(cmd) != 0)
		bail("files");

	cases(0);
	cases(FAN_PRE_DIR_ACCESS);
	errnos();
	destroyed();
	ignored();
	refused();
	fd_error();
	ranges();
	fs_end(&fs);
	return done();
}
