// SPDX-License-Identifier: GPL-2.0-only
// If this fails, somebody who waits for a directory to be filled holds what others need: a filesystem cannot
// be frozen, remounted or unmounted, a waiter cannot be killed, or the end of the service leaves processes
// hanging for ever.

#include "hsm.h"

#include <sys/mman.h>

static struct fs fs;
static struct service svc;

struct access {
	const char *name;
	int (*fn)(const char *d);
};

#define P(n)                                                                                                 \
	({                                                                                                   \
		static char b_[2][256];                                                                      \
		static int i_;                                                                               \
		i_ = !i_;                                                                                    \
		snprintf(b_[i_], 256, "%s/%s", d, n);                                                        \
		b_[i_];                                                                                      \
	})

// Each result: 0 when the access saw the directory filled, 1 when it did not, 2 when it was refused.
static int result(bool good)
{
	return good ? 0 : errno == EPERM || errno == EIO ? 2 : 1;
}
static int a_stat(const char *d)
{
	struct stat st;
	return result(!stat(P("f"), &st));
}
static int a_open(const char *d)
{
	return result(open(P("f"), O_RDWR | O_CREAT, 0600) >= 0);
}
static int a_mkdir(const char *d)
{
	return result(mkdir(P("s"), 0755) < 0 && errno == EEXIST);
}
static int a_new(const char *d)
{
	return result(!mkdir(P("new"), 0755));
}
static int a_mknod(const char *d)
{
	return result(mknod(P("f"), S_IFREG | 0600, 0) < 0 && errno == EEXIST);
}
static int a_symlink(const char *d)
{
	return result(symlink("z", P("f")) < 0 && errno == EEXIST);
}
static int a_link(const char *d)
{
	return result(link("other", P("f")) < 0 && errno == EEXIST);
}
static int a_unlink(const char *d)
{
	return result(!unlink(P("l")));
}
static int a_rmdir(const char *d)
{
	return result(rmdir(d) < 0 && errno == ENOTEMPTY);
}
static int a_from(const char *d)
{
	return result(!rename(P("f"), P("f2")));
}
static int a_to(const char *d)
{
	return result((int)syscall(SYS_renameat2, AT_FDCWD, "other", AT_FDCWD, P("f"), RENAME_NOREPLACE) <
			  0 &&
		      errno == EEXIST);
}
static int a_over(const char *d)
{
	return result(rename("other-dir", d) < 0 && errno == ENOTEMPTY);
}
static int a_list(const char *d)
{
	DIR *dir = opendir(d);
	int n = 0;
	errno = 0;
	while (dir && readdir(dir))
		n++;
	return result(n == 6);
}

#define A(n)                                                                                                 \
	{                                                                                                    \
#n, a_##n                                                                                    \
	}
static const struct access accesses[] = {A(stat),   A(open),  A(mkdir), A(new), A(mknod), A(symlink), A(link),
					 A(unlink), A(rmdir), A(from),	A(to),	A(over),  A(list)};
#define N (sizeof(accesses) / sizeof(accesses[0]))

struct run {
	const struct access *a;
	const char *d;
};
static int run(void *arg)
{
	struct run *r = arg;
	return chdir(fs.top) < 0 ? 1 : r->a->fn(r->d);
}

static char *fresh(const char *what)
{
	static char names[64][64];
	static int n;
	char *d = names[n++ % 64];
	snprintf(d, 64, "%s%d", what, n);
	cold(&fs, d);
	return d;
}

static volatile sig_atomic_t signalled;
static void on_signal(int sig)
{
	signalled = sig;
}
static int handles_signal(void *arg)
{
	signal(SIGUSR1, on_signal);
	int res = run(arg);
	return res ? res : signalled != SIGUSR1;
}

// Take all memory there is, with what can be reclaimed, but a little.
static char *all_memory(void)
{
	unsigned long kb = 0;
	char line[128];
	FILE *f = fopen("/proc/meminfo", "re");
	while (f && fgets(line, sizeof(line), f))
		sscanf(line, "MemAvailable: %lu kB", &kb);
	if (f)
		fclose(f);
	if (kb < 65536)
		return NULL;
	size_t size = (kb - 49152) * 1024;
	char *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	return p == MAP_FAILED ? NULL : p;
}
static int short_of_memory(void *arg)
{
	(void)arg;
	return !all_memory();
}
static int keeps_memory(void *arg)
{
	int fd = *(int *)arg;
	if (all_memory() && write(fd, "", 1) == 1)
		pause();
	return 1;
}

static void *own_access(void *arg)
{
	struct run *r = arg;
	char p[256];
	struct stat st;
	snprintf(p, sizeof(p), "%s/%s/f", fs.top, r->d);
	return (void *)(intptr_t)(stat(p, &st) < 0);
}

// A service of its own, which looks into the tree by the visible mount before it answers anything.
struct lonely {
	struct run *r;
	int ready;
};
static int waits_for_itself(void *arg)
{
	struct lonely *l = arg;
	struct service s;
	service_open(&s, &fs, 0, O_RDONLY, FAN_PRE_DIR_ACCESS);
	if (fan_mark(s.group, FAN_MARK_ADD | FAN_MARK_IGNORE_SURV, FAN_PRE_DIR_ACCESS, fs.work, ".") < 0 ||
	    write(l->ready, "", 1) != 1)
		return 1;
	return run(l->r);
}

static int fill_it(struct event *e)
{
	int d = event_dir(&svc, e);
	int err = d < 0 ? -errno : fill(d);
	if (!err && fan_mark(svc.group, FAN_MARK_ADD | FAN_MARK_IGNORE_SURV, FAN_PRE_DIR_ACCESS, d, NULL) < 0)
		err = -errno;
	close(d);
	if (!err)
		err = respond(svc.group, e, FAN_ALLOW);
	close(e->fd);
	return err;
}

int main(void)
{
	struct event e;
	fs_new(&fs);
	if (mkdirat(fs.work, "other-dir", 0755) < 0)
		bail("other-dir");
	close(openat(fs.work, "other", O_WRONLY | O_CREAT, 0644));
	service_open(&svc, &fs, 0, O_RDONLY, FAN_PRE_DIR_ACCESS);
	if (fan_mark(svc.group, FAN_MARK_ADD | FAN_MARK_IGNORE_SURV, FAN_PRE_DIR_ACCESS, fs.work, ".") < 0)
		bail("mark of the top");

	for (size_t i = 0; i < N; i++) {
		struct run r = {.a = &accesses[i], .d = fresh("w")};
		pid_t p = start(run, &r);
		bool got = next_event(svc.group, &e);
		ok(got, "%s waits", r.a->name);
		ok(got && in_time(fs_freeze, &fs) == 0, "%s waits: the filesystem freezes", r.a->name);
		ok(in_time(fs_thaw, &fs) == 0, "%s waits: and thaws", r.a->name);
		ok(got && fill_it(&e) == 0, "%s waits: is filled afterwards", r.a->name);
		ok(finish(p) == 0, "%s waited: sees all", r.a->name);
	}

	for (size_t i = 0; i < N; i++) {
		struct run r = {.a = &accesses[i], .d = fresh("z")};
		ok(in_time(fs_freeze, &fs) == 0, "freeze");
		pid_t p = start(run, &r);
		bool got = next_event(svc.group, &e);
		ok(got, "frozen: %s asks", r.a->name);
		ok(in_time(fs_thaw, &fs) == 0, "frozen: thaws while %s waits", r.a->name);
		ok(got && fill_it(&e) == 0 && finish(p) == 0, "frozen: %s sees all", r.a->name);
	}

	for (size_t i = 0; i < N; i++) {
		struct run r = {.a = &accesses[i], .d = fresh("r")};
		pid_t p = start(run, &r);
		bool got = next_event(svc.group, &e);
		ok(got && in_time(fs_reclaim, &fs) == 0, "%s waits: sync and reclaim", r.a->name);
		ok(in_time(fs_remount, &fs) == 0, "%s waits: remounts read-only and back", r.a->name);
		ok(in_time(is_busy, fs.top) == 0, "%s waits: umount says EBUSY", r.a->name);
		ok(got && fill_it(&e) == 0 && finish(p) == 0, "%s waited: sees all", r.a->name);
	}

	// Signals: a waiter can be killed, before and after the event was read, and the event is gone or can
	// be answered.
	for (int read_first = 0; read_first < 2; read_first++) {
		struct run r = {.a = &accesses[0], .d = fresh("k")};
		pid_t p = start(run, &r);
		struct pollfd pfd = {.fd = svc.group, .events = POLLIN};
		bool got = read_first ? next_event(svc.group, &e) : poll(&pfd, 1, LIMIT_SEC * 1000) == 1;
		kill(p, SIGTERM);
		ok(got && finish(p) == -1, "a waiter dies of a signal, event %s",
		   read_first ? "read" : "not read");
		if (read_first) {
			ok(respond(svc.group, &e, FAN_ALLOW) == 0, "its event can be answered");
			close(e.fd);
		} else {
			ok(no_event(svc.group), "its event is gone");
		}
	}

	// A signal with a handler ends no wait, and is delivered when it is over.
	{
		struct run r = {.a = &accesses[0], .d = fresh("h")};
		pid_t p = start(handles_signal, &r);
		bool got = next_event(svc.group, &e);
		kill(p, SIGUSR1);
		kill(p, SIGSTOP);
		kill(p, SIGCONT);
		ok(got && waits(p), "a waiter goes on to wait at a signal that does not kill");
		ok(got && fill_it(&e) == 0 && finish(p) == 0, "and sees all, and the signal");
	}

	// Memory is short while somebody waits, and while the directory is filled.
	{
		struct run r = {.a = &accesses[N - 1], .d = fresh("m")};
		pid_t p = start(run, &r);
		bool got = next_event(svc.group, &e);
		ok(got && in_time(short_of_memory, NULL) == 0, "memory is reclaimed while somebody waits");
		int pipes[2];
		if (pipe(pipes) < 0)
			bail("pipe");
		pid_t q = start(keeps_memory, &pipes[1]);
		char c;
		bool held = read(pipes[0], &c, 1) == 1;
		ok(held && got && fill_it(&e) == 0 && finish(p) == 0, "and while the directory is filled");
		kill(q, SIGKILL);
		finish(q);
		close(pipes[0]);
		close(pipes[1]);
	}

	// The service's own access to its tree by the visible mount asks the service: one with threads
	// answers, one without waits for itself until it is killed, and then everybody goes on.
	{
		struct run r = {.a = &accesses[0], .d = fresh("o")};
		pthread_t t;
		bool own = pthread_create(&t, NULL, own_access, &r) == 0, got = next_event(svc.group, &e);
		void *res = (void *)1;
		ok(own && got && e.pid == getpid() && fill_it(&e) == 0 && pthread_join(t, &res) == 0 && !res,
		   "the service looks into its tree by the visible mount and is asked itself");
	}
	{
		struct run r = {.a = &accesses[0], .d = fresh("i")};
		struct run other = {.a = &accesses[0], .d = fresh("j")};
		int ready[2];
		char c;
		// It is the only one for this.
		if (pipe(ready) < 0 || fan_mark(svc.group, FAN_MARK_REMOVE | FAN_MARK_FILESYSTEM,
						FAN_PRE_DIR_ACCESS, fs.work, ".") < 0)
			bail("a service alone");
		pid_t lonely = start(waits_for_itself, &(struct lonely){&r, ready[1]});
		bool up = read(ready[0], &c, 1) == 1;
		pid_t p = start(run, &other);
		ok(up && waits(lonely) && waits(p), "a service without threads waits for itself");
		ok(in_time(fs_freeze, &fs) == 0 && in_time(fs_thaw, &fs) == 0, "and the filesystem freezes");
		kill(lonely, SIGKILL);
		ok(finish(lonely) == -1, "it can be killed");
		ok(finish(p) >= 0, "and who waited for it goes on");
		if (fan_mark(svc.group, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, FAN_PRE_DIR_ACCESS, fs.work,
			     ".") < 0)
			bail("mark");
		close(ready[0]);
		close(ready[1]);
	}

	// Several wait for one directory, another group waits on the same filesystem.
	{
		struct service two;
		service_open(&two, &fs, 0, O_RDONLY, FAN_PRE_DIR_ACCESS);
		if (fan_mark(two.group, FAN_MARK_ADD | FAN_MARK_IGNORE_SURV, FAN_PRE_DIR_ACCESS, fs.work,
			     ".") < 0)
			bail("mark of the top");
		struct run r = {.a = &accesses[0], .d = fresh("t")};
		pid_t p = start(run, &r), q = start(run, &r);
		// Both groups are asked, one after the other. The second access may find the name when the
		// first one has looked it up.
		int groups[2] = {svc.group, two.group}, asked[2] = {0, 0}, res[2] = {-1, -1}, gone = 0;
		for (double end = now() + LIMIT_SEC; gone < 2 && now() < end;) {
			struct pollfd w[2] = {{.fd = groups[0], .events = POLLIN},
					      {.fd = groups[1], .events = POLLIN}};
			int status;
			for (int i = 0; i < 2; i++) {
				if (res[i] < 0 && waitpid(i ? q : p, &status, WNOHANG) > 0) {
					res[i] = WIFEXITED(status) ? WEXITSTATUS(status) : 99;
					gone++;
				}
			}
			if (poll(w, 2, 10) <= 0)
				continue;
			for (int g = 0; g < 2; g++) {
				if (!(w[g].revents & POLLIN) || !next_event(groups[g], &e))
					continue;
				int d = event_dir(&svc, &e);
				fill(d);
				close(d);
				asked[g]++;
				respond(groups[g], &e, FAN_ALLOW);
				close(e.fd);
			}
		}
		ok(asked[0] >= 1 && asked[1] == asked[0], "two groups are asked for two accesses: %d, %d",
		   asked[0], asked[1]);
		ok(res[0] == 0 && res[1] == 0, "both see all");
		service_stop(&two);
	}

	// Lazy umount with waiters: the name is gone at once, the waiter is served.
	{
		struct run r = {.a = &accesses[0], .d = fresh("u")};
		pid_t p = start(run, &r);
		bool got = next_event(svc.group, &e);
		ok(got && umount2(fs.top, MNT_DETACH) == 0, "a lazy umount succeeds while somebody waits");
		ok(got && fill_it(&e) == 0 && finish(p) == 0, "and who waited sees all");
		int again = (int)syscall(SYS_open_tree, fs.work, ".", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
		if (again < 0 || move_mount(again, "", AT_FDCWD, fs.top, MOVE_MOUNT_F_EMPTY_PATH) < 0)
			bail("move_mount");
		close(again);
	}

	// The end of the service, by which waiters go on as they do for every permission event.
	{
		struct run r = {.a = &accesses[0], .d = fresh("e")};
		pid_t p[8];
		for (int i = 0; i < 8; i++)
			p[i] = start(run, &r);
		bool got = next_event(svc.group, &e);
		service_stop(&svc);
		int back = 0;
		for (int i = 0; i < 8; i++)
			back += finish(p[i]) >= 0;
		ok(got && back == 8, "without a service nobody hangs: %d of 8", back);
		close(e.fd);
	}
	fs_end(&fs);
	return done();
}
