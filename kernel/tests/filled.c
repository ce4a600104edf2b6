// SPDX-License-Identifier: GPL-2.0-only
// If this fails, a directory is taken for filled by somebody who has not said so: the service that filled it
// is not the only one to ask, has taken its word back, or is gone.

#include "hsm.h"

static struct fs fs;

struct look {
	const char *dir;
	int error;
};
static int look(void *arg)
{
	struct look *l = arg;
	struct stat st;
	char p[256];
	snprintf(p, sizeof(p), "%s/%s/none", fs.top, l->dir);
	return stat(p, &st) < 0 ? errno : 0;
}
static int list(void *arg)
{
	struct look *l = arg;
	char p[256];
	snprintf(p, sizeof(p), "%s/%s", fs.top, l->dir);
	DIR *d = opendir(p);
	if (!d)
		return errno;
	errno = 0;
	while (readdir(d))
		;
	return errno;
}

// Which of the services are asked by this access, as bits; all answers allow it.
static int asked(int (*fn)(void *), struct look *l, struct service *s, int n)
{
	int bits = 0, status;
	pid_t p = start(fn, l);
	for (double end = now() + LIMIT_SEC; now() < end;) {
		if (waitpid(p, &status, WNOHANG) == p) {
			l->error = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
			return bits;
		}
		for (int i = 0; i < n; i++) {
			struct event e;
			if (s[i].group < 0 || no_event(s[i].group) || !next_event(s[i].group, &e))
				continue;
			bits |= 1 << i;
			respond(s[i].group, &e, FAN_ALLOW);
			close(e.fd);
		}
		usleep(200);
	}
	kill(p, SIGKILL);
	l->error = -1;
	finish(p);
	return -1;
}

// A name that is not there: unknown to the dcache, known to it, in RCU walk mode then, and all names.
static void expect(const char *what, struct service *s, int n, int bits, int error)
{
	struct look l = {.dir = "d"};
	int got;
	if (in_time(fs_reclaim, &fs) != 0)
		bail("drop_caches");
	got = asked(look, &l, s, n);
	ok(got == bits && l.error == error, "%s: a name: asks %x, error %d", what, got, l.error);
	got = asked(look, &l, s, n);
	ok(got == bits && l.error == error, "%s: the same again: asks %x, error %d", what, got, l.error);
	got = asked(list, &l, s, n);
	ok(got == bits && l.error == (error == ENOENT ? 0 : error), "%s: all names: asks %x, error %d", what,
	   got, l.error);
}

static void mark(struct service *s, unsigned int how, const char *path)
{
	if (fan_mark(s->group, how, FAN_PRE_DIR_ACCESS, fs.work, path) < 0)
		bail("mark %x of %s", how, path);
}

static void serve(struct service *s)
{
	service_open(s, &fs, 0, O_RDONLY, FAN_PRE_DIR_ACCESS);
	mark(s, FAN_MARK_ADD | FAN_MARK_IGNORE_SURV, ".");
}

int main(void)
{
	enum {
		ADD_FILLED = FAN_MARK_ADD | FAN_MARK_IGNORE_SURV,
		DEL_FILLED = FAN_MARK_REMOVE | FAN_MARK_IGNORE
	};
	enum { ADD_SB = FAN_MARK_ADD | FAN_MARK_FILESYSTEM, DEL_SB = FAN_MARK_REMOVE | FAN_MARK_FILESYSTEM };
	struct service s[2] = {{.group = -1}, {.group = -1}};
	fs_new(&fs);
	cold(&fs, "d");
	serve(&s[0]);
	expect("not filled", s, 2, 1, ENOENT);
	mark(&s[0], ADD_FILLED, "d");
	expect("filled", s, 2, 0, ENOENT);
	mark(&s[0], DEL_FILLED, "d");
	expect("not any more", s, 2, 1, ENOENT);
	mark(&s[0], FAN_MARK_ADD | FAN_MARK_IGNORED_MASK, "d");
	expect("until it is modified", s, 2, 0, ENOENT);
	mark(&s[0], FAN_MARK_REMOVE | FAN_MARK_IGNORED_MASK, "d");
	mark(&s[0], ADD_FILLED, "d");

	// Another service on the same filesystem.
	serve(&s[1]);
	expect("filled for one of two", s, 2, 2, ENOENT);
	mark(&s[1], ADD_FILLED, "d");
	expect("filled for both", s, 2, 0, ENOENT);
	mark(&s[0], DEL_FILLED, "d");
	expect("filled for the other", s, 2, 1, ENOENT);
	mark(&s[0], DEL_SB, ".");
	expect("only the other asks", s, 2, 0, ENOENT);
	mark(&s[1], DEL_FILLED, "d");
	mark(&s[0], ADD_FILLED, "d");
	expect("filled for one that does not ask", s, 2, 2, ENOENT);
	mark(&s[1], DEL_SB, ".");
	mark(&s[0], ADD_SB, ".");
	expect("the asking one again", s, 2, 0, ENOENT);

	// Who asks for this directory, or this mount, only.
	mark(&s[1], FAN_MARK_ADD, "d");
	expect("another asks for the directory", s, 2, 2, ENOENT);
	mark(&s[1], FAN_MARK_REMOVE, "d");
	expect("and does not any more", s, 2, 0, ENOENT);
	mark(&s[0], FAN_MARK_ADD, "d");
	expect("asks for what it ignores", s, 2, 0, ENOENT);
	mark(&s[0], DEL_FILLED, "d");
	expect("and does not ignore it any more", s, 2, 1, ENOENT);
	mark(&s[0], FAN_MARK_REMOVE, "d");
	mark(&s[0], ADD_FILLED, "d");
	if (fan_mark(s[1].group, FAN_MARK_ADD | FAN_MARK_MOUNT, FAN_PRE_DIR_ACCESS, AT_FDCWD, fs.top) < 0)
		bail("mark of the mount");
	expect("another asks for the mount", s, 2, 2, ENOENT);
	if (fan_mark(s[1].group, FAN_MARK_REMOVE | FAN_MARK_MOUNT, FAN_PRE_DIR_ACCESS, AT_FDCWD, fs.top) < 0)
		bail("mark of the mount");
	expect("and not any more", s, 2, 0, ENOENT);

	// One of two goes, and is needed.
	mark(&s[1], ADD_SB, ".");
	mark(&s[1], ADD_FILLED, "d");
	expect("filled for both again", s, 2, 0, ENOENT);
	mark(&s[0], ADD_SB | FAN_MARK_FAIL_CLOSED, ".");
	service_stop(&s[0]);
	expect("one is gone", s, 2, 0, EIO);
	service_open(&s[0], &fs, 0, O_RDONLY, FAN_PRE_DIR_ACCESS);
	mark(&s[0], ADD_SB | FAN_MARK_FAIL_CLOSED, ".");
	mark(&s[0], ADD_FILLED, ".");
	expect("its successor knows nothing", s, 2, 1, ENOENT);
	mark(&s[0], ADD_FILLED, "d");
	expect("and now it does", s, 2, 0, ENOENT);
	service_stop(&s[1]);
	expect("the other goes", s, 2, 0, ENOENT);
	service_stop(&s[0]);
	expect("both are gone", s, 2, 0, EIO);
	fs_end(&fs);
	return done();
}
