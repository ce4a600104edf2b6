// SPDX-License-Identifier: GPL-2.0-only
// If this fails, somebody who waits for a directory to be filled and comes by overlayfs or NFS holds what
// others need: a filesystem cannot be frozen or remounted, a waiter cannot be killed, or who waits behind it
// never gets on. deadlock.c has the same for path walks.

#include "nfs_serve.h"

static struct fs fs;
static struct service svc;

#define P(n)                                                                                                 \
	({                                                                                                   \
		static char b_[2][256];                                                                      \
		static int i_;                                                                               \
		i_ = !i_;                                                                                    \
		snprintf(b_[i_], 256, "%s/%s", d, n);                                                        \
		b_[i_];                                                                                      \
	})

static int a_stat(const char *d)
{
	struct stat st;
	return stat(P("f"), &st) < 0;
}
static int a_new(const char *d)
{
	return open(P("new"), O_WRONLY | O_CREAT | O_EXCL, 0600) < 0;
}
static int a_mkdir(const char *d)
{
	return !(mkdir(P("s"), 0755) < 0 && errno == EEXIST);
}
static int a_symlink(const char *d)
{
	return !(symlink("z", P("f")) < 0 && errno == EEXIST);
}
static int a_unlink(const char *d)
{
	return unlink(P("l")) < 0;
}
static int a_rmdir(const char *d)
{
	// NFS has no other word for it.
	return !(rmdir(d) < 0 && (errno == ENOTEMPTY || errno == EEXIST));
}
static int a_from(const char *d)
{
	return rename(P("x"), P("x2")) < 0;
}
static int a_over(const char *d)
{
	return !(rename("from", d) < 0 && errno == ENOTEMPTY);
}
static int a_list(const char *d)
{
	DIR *dir = opendir(d);
	int n = 0;
	while (dir && readdir(dir))
		n++;
	return n != 6;
}
static int a_copy_up(const char *d)
{
	return open(P("f"), O_RDWR) < 0;
}

static const struct access {
	const char *name;
	int (*fn)(const char *d);
} accesses[] = {{"stat", a_stat},	{"new", a_new},	    {"mkdir", a_mkdir}, {"symlink", a_symlink},
		{"unlink", a_unlink},	{"rmdir", a_rmdir}, {"from", a_from},	{"over", a_over},
		{"copy-up", a_copy_up}, {"list", a_list}};
#define N (sizeof(accesses) / sizeof(accesses[0]))

struct run {
	const struct access *a;
	const char *top, *d;
};
static int run(void *arg)
{
	struct run *r = arg;
	return chdir(r->top) < 0 || r->a->fn(r->d);
}

static const char *fresh(void)
{
	static char names[2][64];
	static int n;
	char *d = names[n % 2], p[128];
	snprintf(d, sizeof(names[0]), "c%d", n++);
	snprintf(p, sizeof(p), "low/%s", d);
	cold(&fs, p);
	return d;
}

static void answer(struct event *e)
{
	int how = fill_and_ignore(&svc, e);
	respond(svc.group, e, (unsigned int)how);
	if (e->fd >= 0)
		close(e->fd);
}

// Answer all that comes until the process is done; what it returns.
static int serve_until(pid_t p)
{
	for (double end = now() + LIMIT_SEC; now() < end;) {
		struct pollfd w = {.fd = svc.group, .events = POLLIN};
		struct event e;
		siginfo_t info = {0};
		if (waitid(P_PID, (id_t)p, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid == p)
			break;
		if (poll(&w, 1, 5) == 1 && next_event(svc.group, &e))
			answer(&e);
	}
	return finish(p);
}

static void all(const char *by, const char *top, bool layer)
{
	struct event e;
	char from[128];
	snprintf(from, sizeof(from), "%s/from", top);
	if (mkdir(from, 0755) < 0 && errno != EEXIST)
		bail("%s", from);
	for (size_t i = 0; i < N; i++) {
		struct run r = {.a = &accesses[i], .top = top, .d = fresh()};
		pid_t p = start(run, &r);
		bool got = next_event(svc.group, &e);
		ok(got, "%s: %s waits", by, r.a->name);
		ok(got && in_time(fs_freeze, &fs) == 0 && in_time(fs_thaw, &fs) == 0,
		   "%s: %s waits: the filesystem freezes and thaws", by, r.a->name);
		ok(in_time(fs_reclaim, &fs) == 0, "%s: %s waits: sync and reclaim", by, r.a->name);
		// An upper layer keeps the filesystem writable.
		if (!layer)
			ok(in_time(fs_remount, &fs) == 0, "%s: %s waits: remounts read-only and back", by,
			   r.a->name);
		else
			ok(in_time(is_busy, (void *)top) == 0, "%s: %s waits: umount says EBUSY", by,
			   r.a->name);
		if (got)
			answer(&e);
		ok(serve_until(p) == 0, "%s: %s waited: sees all", by, r.a->name);
	}

	for (size_t i = 0; i < N; i++) {
		struct run r = {.a = &accesses[i], .top = top, .d = fresh()};
		ok(in_time(fs_freeze, &fs) == 0, "%s: freeze", by);
		pid_t p = start(run, &r);
		bool got = next_event(svc.group, &e);
		ok(got, "%s: frozen: %s asks", by, r.a->name);
		ok(in_time(fs_thaw, &fs) == 0, "%s: frozen: thaws while %s waits", by, r.a->name);
		if (got)
			answer(&e);
		ok(serve_until(p) == 0, "%s: frozen: %s sees all", by, r.a->name);
	}

	// Two wait for one name. The first is killed; the second gets on, by an event of its own if need be.
	struct run r = {.a = &accesses[0], .top = top, .d = fresh()};
	pid_t p = start(run, &r);
	bool got = next_event(svc.group, &e);
	pid_t q = start(run, &r);
	ok(got && waits(q), "%s: another waits for the same name", by);
	kill(p, SIGKILL);
	ok(finish(p) == -1, "%s: who waits can be killed", by);
	if (got)
		answer(&e);
	ok(serve_until(q) == 0, "%s: and the other sees all", by);
}

static void ignore(const char *dir)
{
	if (fan_mark(svc.group, FAN_MARK_ADD | FAN_MARK_IGNORE_SURV, FAN_PRE_DIR_ACCESS, fs.work, dir) < 0)
		bail("mark of %s", dir);
}

static int stat_error(void *arg)
{
	struct run *r = arg;
	struct stat st;
	char p[256];
	snprintf(p, sizeof(p), "%s/%s/f", r->top, r->d);
	return stat(p, &st) < 0 ? errno : 0;
}

int main(void)
{
	const char *ovl = "/dev/shm/pd-ovl";
	char opt[512], low[80];
	fs_new(&fs);
	static const char *const dirs[] = {"low", "up", "work"};
	for (size_t i = 0; i < sizeof(dirs) / sizeof(dirs[0]); i++)
		if (mkdirat(fs.work, dirs[i], 0755) < 0)
			bail("%s", dirs[i]);
	snprintf(low, sizeof(low), "%s/low", fs.top);
	mkdir(ovl, 0755);
	snprintf(opt, sizeof(opt), "lowerdir=%s,upperdir=%s/up,workdir=%s/work", low, fs.top, fs.top);
	if (mount("o", ovl, "overlay", 0, opt) < 0)
		bail("overlay %s", opt);

	service_open(&svc, &fs, FAN_REPORT_DIR_FD, O_RDONLY, FAN_PRE_DIR_ACCESS);
	static const char *const filled[] = {".", "low", "up", "work", "work/work"};
	for (size_t i = 0; i < sizeof(filled) / sizeof(filled[0]); i++)
		ignore(filled[i]);

	all("overlayfs", ovl, true);

	// The end of the service, with waiters: nobody hangs, and nobody sees an empty directory who was
	// promised that. What waits behind a waiter gets on as well.
	if (fan_mark(svc.group, FAN_MARK_ADD | FAN_MARK_FILESYSTEM | FAN_MARK_FAIL_CLOSED, FAN_PRE_DIR_ACCESS,
		     fs.work, ".") < 0)
		bail("fail closed");
	struct run r = {.top = ovl, .d = fresh()};
	struct event e;
	pid_t p[4];
	for (int i = 0; i < 4; i++)
		p[i] = start(stat_error, &r);
	bool got = next_event(svc.group, &e);
	if (got && e.fd >= 0)
		close(e.fd);
	service_stop(&svc);
	int refused = 0;
	for (int i = 0; i < 4; i++)
		refused += finish(p[i]) == EIO;
	ok(got && refused == 4, "overlayfs: without the service %d of 4 get EIO", refused);
	ok(in_time(stat_error, &r) == EIO, "overlayfs: and who comes later");
	umount2(ovl, MNT_DETACH);

	// The NFS server exports the same filesystem.
	nfs_serve(fs.top);
	struct nfs_client clients[] = {{3, fs.top, "/dev/shm/pd-3"}, {4, fs.top, "/dev/shm/pd-4"}};
	service_open(&svc, &fs, FAN_REPORT_DIR_FD, O_RDONLY, FAN_PRE_DIR_ACCESS);
	if (fan_mark(svc.group, FAN_MARK_ADD | FAN_MARK_FILESYSTEM | FAN_MARK_FAIL_CLOSED, FAN_PRE_DIR_ACCESS,
		     fs.work, ".") < 0)
		bail("fail closed");
	ignore(".");
	ignore("low");
	for (size_t c = 0; c < 2; c++) {
		char at[80];
		if (in_time(nfs_mount, &clients[c]) != 0)
			bail("the client of version %d does not mount", clients[c].version);
		snprintf(at, sizeof(at), "%s/low", clients[c].at);
		all(c ? "NFS 4.2" : "NFS 3", at, false);
	}
	for (size_t c = 0; c < 2; c++)
		umount2(clients[c].at, MNT_DETACH);
	nfs_end();
	service_stop(&svc);
	fs_end(&fs);
	return done();
}
