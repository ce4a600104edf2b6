/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The acts of the fanotify gate, on a clone of a local directory, with an inotify watcher. If this fails,
 * local programs hear of something else than what happened at the origin, see it half done, or lose what they
 * wrote. Needs root, loop devices, mkfs.xfs. suite: threads
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include <dirent.h>
#include <fcntl.h>
#include <ftw.h>
#include <poll.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/fanotify.h>
#include <sys/inotify.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <sys/xattr.h>

#include "alone.h"
#include "queue_size.h"
#include "native_fixture.h"
#include "base/log.h"
#include "base/time.h"
#include "gate/fanotify/internal.h"
#include "replay/native.h"
#include "service/native.h"
#include "service/unlist.h"
#include "store/fs.h"
#include "store/image.h"
#include "store/internal.h"
#include "store/pending.h"

struct fx {
	char dir[48], origin[64], store[64], m[64];
	struct sl_store *s;
	struct sl_origin *o;
	struct sl_fill *f;
	struct sl_fan *g;
	struct sl_native_acts *n;
	struct sl_acts a;
	int in;	   /* inotify */
	bool lazy; /* names come when somebody wants them, which the tests do */
	struct {
		int wd;
		char path[64];
	} w[16];
	int nw;
	char got[8192];
};

static bool not_empty; /* no directory can be removed */

int unlinkat(int fd, const char *name, int flags)
{
	if (not_empty && flags & AT_REMOVEDIR) {
		errno = ENOTEMPTY;
		return -1;
	}
	return (int)syscall(SYS_unlinkat, fd, name, flags);
}

/* Called when the service has moved @name. */
static void (*moved_hook)(const char *name);

int renameat2(int fd, const char *name, int newfd, const char *newname, unsigned flags)
{
	int r = (int)syscall(SYS_renameat2, fd, name, newfd, newname, flags);
	if (r == 0 && moved_hook)
		moved_hook(name);
	return r;
}

/* Called when it has given a directory its times again. */
static void (*times_hook)(void);

int utimensat(int fd, const char *path, const struct timespec ts[2], int flags)
{
	int r = (int)syscall(SYS_utimensat, fd, path, ts, flags);
	if (r == 0 && times_hook && flags & AT_EMPTY_PATH)
		times_hook();
	return r;
}

/* Called when it is about to give a file its mode. */
static void (*mode_hook)(void);

int chmod(const char *path, mode_t mode)
{
	if (mode_hook && !strncmp(path, "/proc/", 6))
		mode_hook();
	return (int)syscall(SYS_fchmodat, AT_FDCWD, path, mode);
}

static bool no_leases;

int fcntl(int fd, int cmd, ...)
{
	va_list ap;
	va_start(ap, cmd);
	void *arg = va_arg(ap, void *);
	va_end(ap);
	if (no_leases && cmd == F_SETLEASE) {
		errno = ENOLCK;
		return -1;
	}
	return (int)syscall(SYS_fcntl, fd, cmd, arg);
}

/* The gate's thread that hears of changes waits before it looks at the next one. */
static struct sl_fan *_Atomic held_changes;

int open_by_handle_at(int mount_fd, struct file_handle *h, int flags)
{
	for (struct sl_fan *g; (g = held_changes) && pthread_equal(pthread_self(), g->changes);)
		usleep(1000);
	return (int)syscall(SYS_open_by_handle_at, mount_fd, h, flags);
}

static const char *unable(void)
{
	if (no_images())
		return no_images();
	int fd = fanotify_init(FAN_CLASS_PRE_CONTENT | FAN_CLOEXEC, O_RDONLY);
	if (fd < 0)
		return "no fanotify permission events";
	close(fd);
	return NULL;
}

/* ---- the clone ---- */

static void on_changed(void *arg, struct sl_object *o)
{
	struct fx *x = arg;
	if (x->g)
		sl_fan_changed(x->g, o);
	else
		o->invalidating--;
}
static void on_guard(void *arg, struct sl_object *o)
{
	struct fx *x = arg;
	if (x->g)
		sl_fan_guard(x->g, o);
}
static int on_settle(void *arg)
{
	struct fx *x = arg;
	return x->g ? sl_fan_settle(x->g) : 0;
}

/* Until what was unmounted is gone: any program that made itself a mount namespace has a copy of that mount
 * for as long as it runs. The service waits as well, but not for ever. */
static void wait_for_device(struct fx *x)
{
	char *why = NULL;
	struct sl_store_config c;
	expect_ok(sl_store_config_load(x->store, &c, &why), &why);
	int r;
	uint64_t until = sl_now() + 200 * SL_NS_PER_SEC;
	while ((r = sl_native_clear(x->store, &c, &why)) == -EBUSY && sl_now() < until) {
		free(why);
		why = NULL;
	}
	expect_ok(r, &why);
	sl_store_config_fini(&c);
}

static void up(struct fx *x)
{
	char *why = NULL;
	struct sl_origin_config oc = {.timeout = 20};
	wait_for_device(x);
	expect_ok(sl_store_open(x->store, &x->s, &why), &why);
	expect_ok(sl_origin_local_open(x->origin, &oc, &x->o, &why), &why);
	struct sl_fill_config fc = {.store = x->s,
				    .origin = x->o,
				    .changed = on_changed,
				    .guard = on_guard,
				    .settle = on_settle,
				    .arg = x};
	expect_ok(sl_fill_new(&fc, &x->f), NULL);
	struct sl_fan_config gc = {.store = x->s, .fill = x->f, .group = -1, .notify = -1};
	expect_ok(sl_fan_new(&gc, &x->g, &why), &why);
	if (!sl_store_is_complete(x->s)) {
		struct sl_oreq q = {.op = SL_OREQ_STAT, .place = ""};
		expect_ok(sl_origin_call(x->o, &q), NULL);
		expect_ok(sl_placeholder_root(x->s, &q.attr), NULL);
		sl_oreq_fini(&q);
		if (x->lazy) {
			expect_ok(sl_fill_wait(x->f, SL_WANT_NAMES, sl_object_root(x->s), 0, 0), NULL);
			goto show;
		}
		expect_ok(sl_fill_tree(x->f, sl_object_root(x->s), NULL, NULL), NULL);
		expect_ok(sl_fill_commit(x->f), NULL);
		expect_ok(sl_store_complete(x->s), NULL);
	}
	int mnt;
show:
	expect_ok(sl_mount_clone(sl_store_work_fd(x->s), "tree", &mnt), NULL);
	expect_ok(sl_fan_set_mount(x->g, mnt), NULL);
	expect_ok(sl_fan_start(x->g), NULL);
	expect_ok(sl_mount_attach(mnt, x->m, &why), &why);
	close(mnt);
	struct sl_native_acts_config ac = {.store = x->s, .fill = x->f, .fan = x->g, .lazy = x->lazy};
	expect_ok(sl_native_acts_new(&ac, &x->n, &x->a), NULL);
}

static void down(struct fx *x)
{
	sl_native_acts_free(x->n);
	umount2(x->m, MNT_DETACH);
	sl_fan_refuse(x->g);
	sl_origin_stop(x->o);
	sl_fan_stop(x->g);
	struct sl_fan *g = x->g;
	sl_fill_free(x->f);
	close(sl_fan_group(g));
	close(sl_fan_notify(g));
	sl_fan_free(g);
	x->g = NULL;
	sl_origin_free(x->o);
	sl_store_close(x->s);
}

static int setup(void **state)
{
	char *why = NULL;
	struct fx *x = calloc(1, sizeof(*x));
	*state = x;
	if (unable())
		return 0;
	sl_log_set_level(SL_LOG_ERR);
	umask(0);
	snprintf(x->dir, sizeof(x->dir), "%s/sluice-acts-XXXXXX",
		 getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
	assert_non_null(mkdtemp(x->dir));
	snprintf(x->origin, sizeof(x->origin), "%s/o", x->dir);
	snprintf(x->store, sizeof(x->store), "%s/s", x->dir);
	snprintf(x->m, sizeof(x->m), "%s/m", x->dir);
	assert_int_equal(mkdir(x->origin, 0755) | mkdir(x->m, 0755), 0);
	struct sl_store_config c = {.origin = x->origin,
				    .dir = x->m,
				    .id = (char[]){"0123456789abcdef"},
				    .reserve = 1 << 20,
				    .timeout = 20,
				    .native = true,
				    .image = true,
				    .size = SL_IMAGE_MIN};
	expect_ok(sl_store_create(x->store, &c, &why), &why);
	x->in = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
	return 0;
}

static int teardown(void **state)
{
	struct fx *x = *state;
	if (*x->dir) {
		close(x->in);
		umount2(x->m, MNT_DETACH);
		rm_tree(x->dir);
	}
	free(x);
	return 0;
}

/* ---- events ---- */

static void watch(struct fx *x, const char *path)
{
	char p[256];
	snprintf(p, sizeof(p), "%s/%s", x->m, path);
	x->w[x->nw].wd = inotify_add_watch(x->in, p, IN_ALL_EVENTS & ~(IN_ACCESS | IN_CLOSE_NOWRITE));
	assert_true(x->w[x->nw].wd >= 0);
	snprintf(x->w[x->nw++].path, 64, "%s", path);
}

/* What was heard since the last call: "CREATE d/f, ATTRIB d/f". Of what is told of a watched thing itself the
 * name is empty. */
static const char *heard(struct fx *x)
{
	static const struct {
		uint32_t bit;
		const char *name;
	} names[] = {{IN_CREATE, "CREATE"},	  {IN_DELETE, "DELETE"},     {IN_MOVED_FROM, "FROM"},
		     {IN_MOVED_TO, "TO"},	  {IN_MODIFY, "MODIFY"},     {IN_ATTRIB, "ATTRIB"},
		     {IN_OPEN, "OPEN"},		  {IN_CLOSE_WRITE, "CLOSE"}, {IN_DELETE_SELF, "DELETE_SELF"},
		     {IN_MOVE_SELF, "MOVE_SELF"}, {IN_IGNORED, "IGNORED"},   {IN_UNMOUNT, "UNMOUNT"},
		     {IN_Q_OVERFLOW, "OVERFLOW"}};
	_Alignas(struct inotify_event) char b[65536];
	size_t at = 0;
	ssize_t n;
	x->got[0] = '\0';
	while ((n = read(x->in, b, sizeof(b))) > 0)
		for (char *p = b; p < b + n;) {
			const struct inotify_event *e = (void *)p;
			const char *dir = "?", *what = "?";
			p += sizeof(*e) + e->len;
			if (e->mask & IN_OPEN && e->mask & IN_ISDIR)
				continue; /* who looks into a directory opens it */
			for (int i = 0; i < x->nw; i++)
				if (x->w[i].wd == e->wd)
					dir = x->w[i].path;
			for (size_t i = 0; i < SL_ARRAY_SIZE(names); i++)
				if (e->mask & names[i].bit)
					what = names[i].name;
			at +=
			    (size_t)snprintf(x->got + at, sizeof(x->got) - at, "%s%s %s%s%s", at ? ", " : "",
					     what, dir, *dir && e->len ? "/" : "", e->len ? e->name : "");
			assert_true(at < sizeof(x->got));
		}
	return x->got;
}

#define hears(x, text) assert_string_equal(heard(x), text)

/* ---- the origin ---- */

static char *at_origin(struct fx *x, const char *place)
{
	return path_in(x->origin, place);
}

static char *at_clone(struct fx *x, const char *place)
{
	return path_in(x->m, place);
}

/* Another program does it: what this one does is the replay's. */
static void put_here(struct fx *x, const char *place, const char *text)
{
	int status;
	pid_t pid = fork();
	if (pid == 0) {
		put(at_clone(x, place), text);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

static struct sl_ostate state_of(struct fx *x, const char *place)
{
	static char target[4097];
	struct sl_ostate s = {.known = true};
	struct sl_oreq q = {.op = SL_OREQ_STAT, .place = place};
	s.present = sl_origin_call(x->o, &q) == 0;
	s.attr = q.attr;
	ssize_t n = listxattr(at_origin(x, place), NULL, 0);
	s.attr.no_xattrs = n <= 0;
	n = readlink(at_origin(x, place), target, sizeof(target) - 1);
	if (n > 0) {
		target[n] = '\0';
		s.target = target;
	}
	sl_oreq_fini(&q);
	return s;
}

/* What a program reads, which the gate asks about (and not us, the replay). Empty if it cannot. */
static char *content(const char *path)
{
	static char b[65536];
	int p[2];
	assert_int_equal(pipe(p), 0);
	pid_t pid = fork();
	if (pid == 0) {
		int fd = open(path, O_RDONLY);
		ssize_t n = fd < 0 ? -1 : read(fd, b, sizeof(b) - 1);
		if (n < 0)
			n = snprintf(b, sizeof(b), "error %d", errno);
		(void)!write(p[1], b, (size_t)n);
		_exit(0);
	}
	close(p[1]);
	ssize_t n, at = 0;
	while ((n = read(p[0], b + at, sizeof(b) - 1 - (size_t)at)) > 0)
		at += n;
	close(p[0]);
	b[at] = '\0';
	waitpid(pid, NULL, 0);
	return b;
}

static struct sl_object *find(struct fx *x, const char *place)
{
	struct sl_object *o = NULL;
	return sl_object_by_place(x->s, place, &o) == 0 ? o : NULL;
}

static bool is_here(struct fx *x, const char *place)
{
	_cleanup_object_ struct sl_object *o = find(x, place);
	return o;
}

/* Flags of its record, and FULL if all of it is here. */
#define FULL 0x10000u
static unsigned flags_of(struct fx *x, const char *place)
{
	_cleanup_object_ struct sl_object *o = find(x, place);
	assert_non_null(o);
	return o->rec.flags | (sl_chunkmap_full(&o->map) ? FULL : 0);
}

/* "a/b": the directory (a new reference) and the name. */
static struct sl_object *split(struct fx *x, const char *place, const char **name)
{
	char dir[512];
	const char *slash = strrchr(place, '/');
	snprintf(dir, sizeof(dir), "%.*s", (int)(slash ? slash - place : 0), place);
	*name = slash ? slash + 1 : place;
	return find(x, dir);
}

static int appear_as(struct fx *x, const char *place, enum sl_appear how)
{
	const char *name;
	_cleanup_object_ struct sl_object *dir = split(x, place, &name);
	struct sl_ostate s = state_of(x, place);
	return dir ? x->a.appear(x->a.arg, dir, name, &s, how) : -ENOTDIR;
}
static int appear(struct fx *x, const char *place, bool moved)
{
	return appear_as(x, place, moved ? SL_APPEAR_MOVED : SL_APPEAR_MADE);
}
static int vanish(struct fx *x, const char *place, bool moved)
{
	const char *name;
	_cleanup_object_ struct sl_object *dir = split(x, place, &name);
	return dir ? x->a.vanish(x->a.arg, dir, name, moved) : -ENOTDIR;
}
static int rename_to(struct fx *x, const char *from, const char *to, bool exchange)
{
	const char *name, *newname;
	_cleanup_object_ struct sl_object *dir = split(x, from, &name), *newdir = split(x, to, &newname);
	return dir && newdir ? x->a.rename(x->a.arg, dir, name, newdir, newname, exchange) : -ENOTDIR;
}
static int update(struct fx *x, const char *place, uint64_t mask, unsigned how)
{
	const char *name;
	_cleanup_object_ struct sl_object *dir = split(x, place, &name), *o = find(x, place);
	struct sl_ostate s = state_of(x, place);
	return dir && o ? x->a.update(x->a.arg, dir, name, o, &s, mask, how) : -ENOTDIR;
}

static void same_stat(struct fx *x, const char *place)
{
	struct stat a, b;
	assert_int_equal(lstat(at_origin(x, place), &a), 0);
	assert_int_equal(lstat(at_clone(x, place), &b), 0);
	assert_int_equal(a.st_mode, b.st_mode);
	assert_int_equal(a.st_uid, b.st_uid);
	assert_int_equal(a.st_gid, b.st_gid);
	assert_int_equal(a.st_rdev, b.st_rdev);
	if (S_ISDIR(a.st_mode))
		return;
	assert_int_equal(a.st_size, b.st_size);
	assert_int_equal(a.st_nlink, b.st_nlink);
	assert_int_equal(a.st_mtim.tv_sec, b.st_mtim.tv_sec);
	assert_int_equal(a.st_mtim.tv_nsec, b.st_mtim.tv_nsec);
}

/* ---- tests ---- */

static void test_appear(void **state)
{
	need_all();
	struct fx *x = *state;
	mkdir(at_origin(x, "d"), 0755);
	up(x);
	watch(x, "d");

	put(at_origin(x, "d/f"), "hello");
	assert_int_equal(chown(at_origin(x, "d/f"), 12, 34), 0);
	assert_int_equal(chmod(at_origin(x, "d/f"), 04751), 0);
	assert_int_equal(appear(x, "d/f", false), 0);
	hears(x, "CREATE d/f");
	same_stat(x, "d/f");
	assert_int_equal(appear(x, "d/f", false), 0); /* it is there already */
	hears(x, "");
	assert_string_equal(content(at_clone(x, "d/f")), "hello");
	heard(x);

	put(at_origin(x, "d/x"), "attributes");
	assert_int_equal(setxattr(at_origin(x, "d/x"), "user.a", "b", 1, 0), 0);
	assert_int_equal(appear(x, "d/x", false), 0);
	hears(x, "CREATE d/x");
	char v[4];
	assert_int_equal(getxattr(at_clone(x, "d/x"), "user.a", v, sizeof(v)), 1);

	assert_int_equal(symlink("to/where", at_origin(x, "d/s")), 0);
	assert_int_equal(lchown(at_origin(x, "d/s"), 12, 34), 0);
	assert_int_equal(appear(x, "d/s", false), 0);
	hears(x, "CREATE d/s");
	same_stat(x, "d/s");

	assert_int_equal(mknod(at_origin(x, "d/p"), S_IFIFO | 0640, 0), 0);
	assert_int_equal(mknod(at_origin(x, "d/c"), S_IFCHR | 0600, makedev(1, 3)), 0);
	assert_int_equal(appear(x, "d/p", false), 0);
	assert_int_equal(appear(x, "d/c", false), 0);
	hears(x, "CREATE d/p, CREATE d/c");
	same_stat(x, "d/p");
	same_stat(x, "d/c");

	assert_int_equal(link(at_origin(x, "d/f"), at_origin(x, "d/f2")), 0);
	assert_int_equal(appear(x, "d/f2", false), 0);
	hears(x, "CREATE d/f2");
	same_stat(x, "d/f2");
	same_stat(x, "d/f");

	assert_int_equal(mkdir(at_origin(x, "d/sub"), 0751), 0);
	put(at_origin(x, "d/sub/late"), "late");
	assert_int_equal(appear(x, "d/sub", false), 1); /* it has to be listed */
	hears(x, "CREATE d/sub");
	same_stat(x, "d/sub");
	assert_int_equal(access(at_clone(x, "d/sub/late"), F_OK), -1);
	watch(x, "d/sub");
	assert_int_equal(appear(x, "d/sub/late", false), 0);
	hears(x, "CREATE d/sub/late");

	/* A directory that is moved in comes with all that is in it. */
	assert_int_equal(mkdir(at_origin(x, "d/in"), 0755), 0);
	assert_int_equal(mkdir(at_origin(x, "d/in/deep"), 0700), 0);
	put(at_origin(x, "d/in/deep/file"), "deep");
	put(at_origin(x, "d/in/l1"), "linked");
	assert_int_equal(link(at_origin(x, "d/in/l1"), at_origin(x, "d/in/deep/l2")), 0);
	assert_int_equal(appear(x, "d/in", true), 0);
	hears(x, "TO d/in");
	same_stat(x, "d/in/deep");
	same_stat(x, "d/in/deep/file");
	same_stat(x, "d/in/l1");
	assert_string_equal(content(at_clone(x, "d/in/deep/file")), "deep");
	assert_string_equal(content(at_clone(x, "d/in/deep/l2")), "linked");

	/* A file that is moved in, and one over another. */
	heard(x);
	put(at_origin(x, "d/mv"), "moved");
	assert_int_equal(appear(x, "d/mv", true), 0);
	hears(x, "TO d/mv");
	put(at_origin(x, "d/mv2"), "moved over it");
	assert_int_equal(rename(at_origin(x, "d/mv2"), at_origin(x, "d/mv")), 0);
	assert_int_equal(appear(x, "d/mv", true), 0);
	hears(x, "TO d/mv");
	assert_string_equal(content(at_clone(x, "d/mv")), "moved over it");
	/* Made anew under a name that is still here. */
	heard(x);
	unlink(at_origin(x, "d/mv"));
	put(at_origin(x, "d/other"), "x");
	put(at_origin(x, "d/mv"), "new");
	assert_int_equal(appear(x, "d/mv", false), 0);
	hears(x, "DELETE d/mv, CREATE d/mv");
	assert_string_equal(content(at_clone(x, "d/mv")), "new");
	/* What somebody made here stays. */
	heard(x);
	put_here(x, "d/mine", "mine");
	put(at_origin(x, "d/mine"), "theirs");
	heard(x);
	assert_int_equal(appear(x, "d/mine", false), -EEXIST);
	assert_int_equal(appear(x, "d/mine", true), -EEXIST);
	hears(x, "");
	assert_string_equal(content(at_clone(x, "d/mine")), "mine");
	down(x);
}

/* A directory comes over something, or something over one: nobody hears that the name was deleted. */
static void test_over(void **state)
{
	need_all();
	struct fx *x = *state;
	mkdir(at_origin(x, "d"), 0755);
	mkdir(at_origin(x, "d/n"), 0755);
	put(at_origin(x, "d/linked"), "of two names");
	up(x);
	watch(x, "d");
	/* Empty, over an empty one. */
	rename(at_origin(x, "d/n"), at_origin(x, "was1"));
	mkdir(at_origin(x, "d/n"), 0755);
	assert_int_equal(appear(x, "d/n", true), 0);
	hears(x, "TO d/n");
	/* Full ones. */
	for (int i = 0; i < 2; i++) {
		rename(at_origin(x, "d/n"), at_origin(x, i ? "was3" : "was2"));
		mkdir(at_origin(x, "d/n"), 0750);
		put(at_origin(x, "d/n/f"), i ? "second" : "first");
		assert_int_equal(appear(x, "d/n", true), 0);
		hears(x, i ? "FROM d/n, TO d/n" : "TO d/n");
		same_stat(x, "d/n");
		assert_string_equal(content(at_clone(x, "d/n/f")), i ? "second" : "first");
	}
	/* A file, a directory again, another name of a file. */
	rename(at_origin(x, "d/n"), at_origin(x, "was4"));
	put(at_origin(x, "d/n"), "file");
	assert_int_equal(appear(x, "d/n", true), 0);
	hears(x, "FROM d/n, TO d/n");
	assert_string_equal(content(at_clone(x, "d/n")), "file");
	/* A file over a file leaves nothing to hear of that, unless it was an exchange. */
	for (int i = 0; i < 2; i++) {
		heard(x);
		unlink(at_origin(x, "d/n"));
		put(at_origin(x, i ? "d/n2" : "d/n1"), i ? "swapped" : "moved");
		rename(at_origin(x, i ? "d/n2" : "d/n1"), at_origin(x, "d/n"));
		assert_int_equal(appear_as(x, "d/n", i ? SL_APPEAR_SWAPPED : SL_APPEAR_MOVED), 0);
		hears(x, i ? "FROM d/n, TO d/n" : "TO d/n");
		assert_string_equal(content(at_clone(x, "d/n")), i ? "swapped" : "moved");
	}
	heard(x);
	unlink(at_origin(x, "d/n"));
	mkdir(at_origin(x, "d/n"), 0755);
	put(at_origin(x, "d/n/f"), "third");
	assert_int_equal(appear(x, "d/n", true), 0);
	hears(x, "FROM d/n, TO d/n");
	assert_string_equal(content(at_clone(x, "d/n/f")), "third");
	/* Something below it is a user's. */
	put_here(x, "d/n/mine", "mine");
	rename(at_origin(x, "d/n"), at_origin(x, "was5"));
	link(at_origin(x, "d/linked"), at_origin(x, "d/n"));
	heard(x);
	assert_int_equal(appear(x, "d/n", true), -EEXIST);
	hears(x, "");
	assert_string_equal(content(at_clone(x, "d/n/mine")), "mine");
	unlink(at_clone(x, "d/n/mine"));
	heard(x);
	assert_int_equal(appear(x, "d/n", true), 0);
	hears(x, "FROM d/n, TO d/n");
	same_stat(x, "d/n");
	assert_string_equal(content(at_clone(x, "d/n")), "of two names");
	down(x);
}

/* A name of which nobody could say what it is, and that turns out to be a second one of a file that is here.
 */
static void test_twin(void **state)
{
	need_all();
	struct fx *x = *state;
	const char *name;
	mkdir(at_origin(x, "d"), 0755);
	put(at_origin(x, "d/a"), "the file");
	up(x);
	struct sl_ostate husk = {.known = true,
				 .present = true,
				 .attr = {.mode = S_IFREG | 0644, .size = 1, .nlink = 1, .no_xattrs = true}};
	struct sl_object *dir = split(x, "d/b", &name);
	assert_int_equal(x->a.appear(x->a.arg, dir, name, &husk, SL_APPEAR_MADE), 0);
	sl_object_put(dir);
	link(at_origin(x, "d/a"), at_origin(x, "d/b"));
	struct sl_ostate s = state_of(x, "d/b");
	struct sl_object *a = find(x, "d/a"), *b = find(x, "d/b");
	assert_false(x->a.twin(x->a.arg, a, &s.attr, NULL));
	assert_true(x->a.twin(x->a.arg, b, &s.attr, NULL));
	/* Also when it was taken for one before anybody asked. */
	assert_int_equal(update(x, "d/b", 0, 0), 0);
	/* One of them stays, and says which one does not. */
	struct sl_object *more[2] = {NULL};
	bool gone[2] = {x->a.twin(x->a.arg, a, &s.attr, &more[0]), x->a.twin(x->a.arg, b, &s.attr, &more[1])};
	assert_true(gone[0] != gone[1]);
	assert_ptr_equal(more[gone[0]], gone[0] ? a : b);
	for (int i = 0; i < 2; i++)
		sl_object_put(more[i]);
	sl_object_put(a);
	sl_object_put(b);
	/* What stays is not touched, whoever asks first. */
	assert_int_equal(appear(x, gone[0] ? "d/b" : "d/a", true), 0);
	assert_int_equal(appear(x, gone[0] ? "d/a" : "d/b", true), 0);
	same_stat(x, "d/a");
	same_stat(x, "d/b");
	assert_string_equal(content(at_clone(x, "d/b")), "the file");
	down(x);
}

/* Names of a file come and go: it has as many links as the origin's, and none for names that are to come. */
static void test_links(void **state)
{
	need_all();
	struct fx *x = *state;
	mkdir(at_origin(x, "d"), 0755);
	put(at_origin(x, "d/0"), "linked");
	link(at_origin(x, "d/0"), at_origin(x, "d/1"));
	up(x);
	for (int i = 1; i < 5; i++) {
		char old[16], one[16], two[16];
		snprintf(old, sizeof(old), "d/%d", i);
		snprintf(one, sizeof(one), "d/%d", i + 1);
		snprintf(two, sizeof(two), "d/two-%d", i);
		link(at_origin(x, "d/0"), at_origin(x, one));
		assert_int_equal(appear(x, one, false), 0);
		link(at_origin(x, "d/0"), at_origin(x, two));
		assert_int_equal(appear(x, two, true), 0);
		same_stat(x, "d/0");
		unlink(at_origin(x, old));
		assert_int_equal(vanish(x, old, false), 0);
		unlink(at_origin(x, two));
		assert_int_equal(vanish(x, two, false), 0);
		same_stat(x, "d/0");
	}
	down(x);
}

static void test_vanish(void **state)
{
	need_all();
	struct fx *x = *state;
	mkdir(at_origin(x, "d"), 0755);
	mkdir(at_origin(x, "d/sub"), 0755);
	mkdir(at_origin(x, "d/sub/deep"), 0755);
	mkdir(at_origin(x, "d/out"), 0755);
	mkdir(at_origin(x, "d/keep"), 0755);
	put(at_origin(x, "d/f"), "f");
	put(at_origin(x, "d/g"), "g");
	put(at_origin(x, "d/l1"), "linked");
	link(at_origin(x, "d/l1"), at_origin(x, "d/l2"));
	put(at_origin(x, "d/sub/a"), "a");
	put(at_origin(x, "d/sub/deep/b"), "b");
	put(at_origin(x, "d/out/a"), "a");
	put(at_origin(x, "d/keep/a"), "a");
	put(at_origin(x, "d/keep/b"), "b");
	put(at_origin(x, "d/mod"), "mod");
	up(x);
	watch(x, "d");
	watch(x, "d/sub");
	watch(x, "d/out");
	watch(x, "d/keep");
	assert_int_equal(vanish(x, "d/f", false), 0);
	hears(x, "DELETE d/f");
	assert_int_equal(vanish(x, "d/f", false), -ENOENT);
	assert_int_equal(vanish(x, "d/g", true), 0);
	hears(x, "FROM d/g");
	assert_int_equal(vanish(x, "d/l1", false), 0);
	hears(x, "DELETE d/l1");
	unlink(at_origin(x, "d/l1"));
	assert_string_equal(content(at_clone(x, "d/l2")), "linked");
	same_stat(x, "d/l2");
	heard(x);
	assert_int_equal(vanish(x, "d/sub", false), 0);
	assert_non_null(strstr(heard(x), "DELETE d/sub/a"));
	assert_non_null(strstr(x->got, "DELETE_SELF d/sub"));
	assert_non_null(strstr(x->got, "DELETE d/sub"));
	assert_int_equal(access(at_clone(x, "d/sub"), F_OK), -1);
	assert_int_equal(vanish(x, "d/out", true), 0);
	assert_ptr_equal(strstr(heard(x), "FROM d/out"),
			 x->got); /* what is told of it afterwards is elsewhere */
	assert_int_equal(access(at_clone(x, "d/out"), F_OK), -1);

	/* What was changed here stays, with all on the way to it. */
	put_here(x, "d/keep/b", "changed here");
	put_here(x, "d/mod", "changed here");
	heard(x);
	assert_int_equal(vanish(x, "d/keep", false), -EEXIST);
	assert_int_equal(vanish(x, "d/keep", true), -EEXIST);
	assert_int_equal(vanish(x, "d/mod", false), -EEXIST);
	assert_int_equal(vanish(x, "d/mod", true), -EEXIST);
	assert_null(strstr(heard(x), "DELETE"));
	assert_null(strstr(x->got, "FROM"));
	assert_string_equal(content(at_clone(x, "d/keep/b")), "changed here");
	/* So does what was made here, and what was brought from elsewhere. */
	mkdir(at_clone(x, "d/keep2"), 0755);
	assert_int_equal(vanish(x, "d/keep2", false), -EEXIST);
	assert_int_equal(rename(at_clone(x, "d/keep/a"), at_clone(x, "d/keep2/a")), 0);
	assert_int_equal(vanish(x, "d/keep2", false), -EEXIST);
	assert_string_equal(content(at_clone(x, "d/keep2/a")), "a");
	down(x);
}

static void test_rename(void **state)
{
	need_all();
	struct fx *x = *state;
	const char *dirs[] = {"a", "a/sub", "a/sub/deep", "b", "ex", "empty"};
	for (size_t i = 0; i < SL_ARRAY_SIZE(dirs); i++)
		mkdir(at_origin(x, dirs[i]), 0755);
	put(at_origin(x, "a/f"), "f");
	put(at_origin(x, "a/g"), "gg");
	put(at_origin(x, "b/h"), "hhh");
	put(at_origin(x, "a/sub/x"), "x of sub");
	put(at_origin(x, "a/sub/taken"), "taken elsewhere");
	put(at_origin(x, "a/sub/deep/y"), "y of deep");
	put(at_origin(x, "ex/z"), "z of ex");
	up(x);
	watch(x, "a");
	watch(x, "b");
	watch(x, "");
	rename(at_origin(x, "a/f"), at_origin(x, "b/f2"));
	assert_int_equal(rename_to(x, "a/f", "b/f2", false), 0);
	hears(x, "FROM a/f, TO b/f2");
	assert_string_equal(content(at_clone(x, "b/f2")), "f");
	heard(x);
	/* over another */
	rename(at_origin(x, "a/g"), at_origin(x, "b/h"));
	assert_int_equal(rename_to(x, "a/g", "b/h", false), 0);
	hears(x, "FROM a/g, TO b/h");
	assert_string_equal(content(at_clone(x, "b/h")), "gg");
	heard(x);
	/* files that change places */
	renameat2(AT_FDCWD, at_origin(x, "b/f2"), AT_FDCWD, at_origin(x, "b/h"), RENAME_EXCHANGE);
	assert_int_equal(rename_to(x, "b/f2", "b/h", true), 0);
	assert_string_equal(content(at_clone(x, "b/f2")), "gg");
	assert_string_equal(content(at_clone(x, "b/h")), "f");
	heard(x);
	/* a directory, with places that are not records */
	assert_int_equal(rename(at_clone(x, "a/sub/taken"), at_clone(x, "b/taken")), 0);
	heard(x);
	rename(at_origin(x, "a/sub"), at_origin(x, "b/sub2"));
	assert_int_equal(rename_to(x, "a/sub", "b/sub2", false), 0);
	hears(x, "FROM a/sub, TO b/sub2");
	mkdir(at_origin(x, "a/sub"), 0755); /* what is at the old places now is another */
	mkdir(at_origin(x, "a/sub/deep"), 0755);
	put(at_origin(x, "a/sub/x"), "wrong");
	put(at_origin(x, "a/sub/deep/y"), "wrong");
	put(at_origin(x, "a/sub/taken"), "wrong");
	assert_string_equal(content(at_clone(x, "b/sub2/x")), "x of sub");
	assert_string_equal(content(at_clone(x, "b/taken")), "taken elsewhere");
	down(x);
	/* the next service knows as well */
	up(x);
	assert_string_equal(content(at_clone(x, "b/sub2/deep/y")), "y of deep");
	renameat2(AT_FDCWD, at_origin(x, "b/sub2"), AT_FDCWD, at_origin(x, "ex"), RENAME_EXCHANGE);
	assert_int_equal(rename_to(x, "b/sub2", "ex", true), 0);
	assert_string_equal(content(at_clone(x, "b/sub2/z")), "z of ex");
	assert_true(is_here(x, "ex/deep/y"));
	assert_false(is_here(x, "b/sub2/deep/y"));
	/* over an empty directory; over one that is not empty here */
	rename(at_origin(x, "ex"), at_origin(x, "empty"));
	put_here(x, "empty/mine", "mine");
	assert_int_equal(rename_to(x, "ex", "empty", false), -EEXIST);
	unlink(at_clone(x, "empty/mine"));
	assert_int_equal(rename_to(x, "ex", "empty", false), 0);
	assert_string_equal(content(at_clone(x, "empty/x")), "x of sub");
	/* What is not where the origin means it to be is not touched. */
	assert_int_equal(rename(at_clone(x, "b/f2"), at_clone(x, "mine")), 0);
	assert_int_equal(rename_to(x, "b/f2", "b/f3", false), -ENOENT);
	assert_int_equal(rename_to(x, "b/h", "mine", false), -EEXIST);
	down(x);
}

static void test_update(void **state)
{
	need_all();
	struct fx *x = *state;
	mkdir(at_origin(x, "d"), 0755);
	put(at_origin(x, "d/cold"), "cold");
	put(at_origin(x, "d/warm"), "warm, and longer than it will be");
	put(at_origin(x, "d/mod"), "mod");
	up(x);
	watch(x, "d");
	put(at_origin(x, "d/cold"), "another content");
	assert_int_equal(update(x, "d/cold", FAN_MODIFY, 0), 0);
	hears(x, "MODIFY d/cold");
	same_stat(x, "d/cold");
	assert_string_equal(content(at_clone(x, "d/cold")), "another content");
	assert_string_equal(content(at_clone(x, "d/warm")), "warm, and longer than it will be");
	expect_ok(sl_fill_commit(x->f), NULL);
	heard(x);
	put(at_origin(x, "d/warm"), "cut");
	assert_int_equal(update(x, "d/warm", FAN_MODIFY, 0), 0);
	assert_non_null(strstr(heard(x), "MODIFY d/warm"));
	assert_null(strstr(x->got, "CLOSE"));
	assert_null(strstr(x->got, "OPEN"));
	same_stat(x, "d/warm");
	assert_string_equal(content(at_clone(x, "d/warm")), "cut");
	heard(x);
	/* the same version again: the event alone */
	assert_int_equal(update(x, "d/warm", FAN_MODIFY, 0), 0);
	assert_int_equal(update(x, "d/warm", FAN_CLOSE_WRITE, 0), 0);
	hears(x, "MODIFY d/warm, OPEN d/warm, CLOSE d/warm");
	assert_string_equal(content(at_clone(x, "d/warm")), "cut");
	heard(x);
	/* attributes alone: what is here stays */
	chmod(at_origin(x, "d/warm"), 0600);
	assert_int_equal(update(x, "d/warm", FAN_ATTRIB, SL_UPDATE_KEEP), 0);
	hears(x, "ATTRIB d/warm");
	same_stat(x, "d/warm");
	assert_true(flags_of(x, "d/warm") & FULL);
	assert_int_equal(update(x, "d/warm", FAN_ATTRIB, SL_UPDATE_KEEP), 0);
	hears(x, "ATTRIB d/warm");
	/* somebody sets times, which may hide a change of content */
	struct timespec ts[2] = {{.tv_sec = 1000}, {.tv_sec = 2000}};
	utimensat(AT_FDCWD, at_origin(x, "d/warm"), ts, 0);
	assert_int_equal(update(x, "d/warm", FAN_ATTRIB, SL_UPDATE_KEEP), 0);
	hears(x, "ATTRIB d/warm");
	same_stat(x, "d/warm");
	assert_string_equal(content(at_clone(x, "d/warm")), "cut");
	heard(x);
	/* changed here: it stays, and is a conflict */
	put_here(x, "d/mod", "changed here");
	heard(x);
	put(at_origin(x, "d/mod"), "changed there");
	assert_int_equal(update(x, "d/mod", FAN_MODIFY, 0), -EEXIST);
	assert_string_equal(content(at_clone(x, "d/mod")), "changed here");
	assert_true(flags_of(x, "d/mod") & SL_CONFLICT);
	/* No change of ours counts as one of a user's. */
	put(at_origin(x, "d/cold"), "third");
	assert_int_equal(update(x, "d/cold", FAN_MODIFY, 0), 0);
	assert_int_equal(update(x, "d/cold", FAN_CLOSE_WRITE, 0), 0);
	expect_ok(sl_fan_settle(x->g), NULL);
	assert_false(flags_of(x, "d/cold") & (SL_MODIFIED | SL_WRITTEN));
	/* a directory, and the root */
	chmod(at_origin(x, "d"), 0700);
	heard(x);
	assert_int_equal(update(x, "d", FAN_ATTRIB, SL_UPDATE_KEEP), 0);
	assert_non_null(strstr(heard(x), "ATTRIB d"));
	same_stat(x, "d");
	chmod(at_origin(x, ""), 0711);
	struct sl_ostate s = state_of(x, "");
	assert_int_equal(
	    x->a.update(x->a.arg, NULL, NULL, sl_object_root(x->s), &s, FAN_ATTRIB, SL_UPDATE_KEEP), 0);
	same_stat(x, "");
	down(x);
}

/* A reader finds a later version than the one of which the attributes are just followed: that must not be
 * taken for the earlier one, nor for a change by a user. */
static struct fx *met_by;

static void reader_meets_later(void)
{
	mode_hook = NULL;
	put(at_origin(met_by, "f"), "a later content");
	assert_string_equal(content(at_clone(met_by, "f")), "a later content");
}

static void test_met_later(void **state)
{
	need_all();
	struct fx *x = *state;
	put(at_origin(x, "f"), "content");
	up(x);
	chmod(at_origin(x, "f"), 0600);
	met_by = x;
	mode_hook = reader_meets_later;
	assert_int_equal(update(x, "f", FAN_ATTRIB, SL_UPDATE_KEEP), 0);
	assert_null(mode_hook);
	expect_ok(sl_fan_settle(x->g), NULL);
	assert_int_equal(update(x, "f", FAN_MODIFY, 0), 0);
	put(at_origin(x, "f"), "the last");
	assert_int_equal(update(x, "f", FAN_MODIFY, 0), 0);
	same_stat(x, "f");
	assert_string_equal(content(at_clone(x, "f")), "the last");
	assert_false(flags_of(x, "f") & (SL_MODIFIED | SL_WRITTEN | SL_CONFLICT));
	down(x);
}

struct settling {
	struct fx *x;
	const char *place;
	int r;
	unsigned flags; /* of that file, as soon as all is settled */
};

static void *settle_and_look(void *arg)
{
	struct settling *s = arg;
	s->r = sl_fan_settle(s->x->g);
	s->flags = flags_of(s->x, s->place);
	return NULL;
}

#define MANY_CHANGES 1800 /* more than two reads bring */

/* All that users have changed before is known when it is settled: the last of many changes too, whatever the
 * kernel counts of those, and although nothing comes after them. */
static void test_settle(void **state)
{
	need_all();
	struct fx *x = *state;
	put(at_origin(x, "1"), "content");
	put(at_origin(x, "4"), "content");
	assert_int_equal(mkdir(at_origin(x, "d"), 0755), 0);
	up(x);
	for (int times = 1; times <= 4; times += 3) {
		const char place[] = {(char)('0' + times), '\0'};
		assert_string_equal(content(at_clone(x, place)), "content");
		assert_true(flags_of(x, place) & FULL);
		held_changes = x->g;
		int status;
		pid_t pid = fork();
		if (pid == 0) {
			char name[32];
			for (int i = 0; i < MANY_CHANGES; i++) {
				snprintf(name, sizeof(name), "d/%d.%d", times, i);
				put(at_clone(x, name), "new");
			}
			int fd = open(at_clone(x, place), O_WRONLY);
			_exit(fd < 0 || write(fd, "CONTENT", 7) != 7);
		}
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_int_equal(status, 0);
		struct settling s = {.x = x, .place = place};
		pthread_t t;
		unsigned asked = queue_asked;
		queue_times = times;
		assert_int_equal(pthread_create(&t, NULL, settle_and_look, &s), 0);
		while (queue_asked == asked)
			sched_yield();
		held_changes = NULL;
		pthread_join(t, NULL);
		queue_times = 1;
		assert_int_equal(s.r, 0);
		assert_true(s.flags & SL_MODIFIED);
	}
	down(x);
}

/* A directory of many: one note instead of a record for each. */
static bool populated(struct fx *x, const char *place)
{
	_cleanup_object_ struct sl_object *o = find(x, place);
	assert_non_null(o);
	return o->rec.state == SL_FULL;
}

static void populate(struct fx *x, const char *place)
{
	_cleanup_object_ struct sl_object *o = find(x, place);
	assert_non_null(o);
	expect_ok(sl_fill_wait(x->f, SL_WANT_NAMES, o, 0, 0), NULL);
}

static void make_dirs(struct fx *x, const char *dir, const char *sub)
{
	mkdir(at_origin(x, dir), 0755);
	mkdir(at_origin(x, sub), 0755);
}

/* Where names come when they are wanted. */
static void test_lazy(void **state)
{
	need_all();
	struct fx *x = *state;
	struct stat st;
	x->lazy = true;
	make_dirs(x, "d", "d/cold");
	make_dirs(x, "l", "l/a");
	make_dirs(x, "l/b", "l/c");
	put(at_origin(x, "d/cold/f"), "f");
	put(at_origin(x, "l/a/one"), "links");
	char *from = strdup(at_origin(x, "l/a/one"));
	assert_int_equal(link(from, at_origin(x, "l/b/two")) | link(from, at_origin(x, "l/c/three")), 0);
	free(from);
	up(x);
	assert_true(populated(x, "") && !populated(x, "d"));

	/* Nothing is known below, and nothing happens there. */
	assert_int_equal(appear(x, "d/cold/f", false), -ENOTDIR);
	populate(x, "d");
	watch(x, "d");
	assert_false(populated(x, "d/cold"));

	/* New directories are not listed. */
	make_dirs(x, "d/new", "d/new/sub");
	assert_int_equal(appear(x, "d/new", false), 0);
	assert_false(populated(x, "d/new"));
	make_dirs(x, "d/moved", "d/moved/sub");
	assert_int_equal(appear(x, "d/moved", true), 0);
	assert_false(populated(x, "d/moved"));
	hears(x, "CREATE d/new, TO d/moved");
	populate(x, "d/new");
	populate(x, "d/moved");
	assert_true(is_here(x, "d/new/sub") && is_here(x, "d/moved/sub"));

	/* Whoever came to know it before it had a record knows that it is the origin's. */
	make_dirs(x, "d/early", "d/early/sub");
	assert_int_equal(mkdir(at_clone(x, "d/early"), 0755), 0);
	struct sl_object *o = NULL;
	struct sl_object *d = find(x, "d");
	expect_ok(sl_object_lookup(d, "early", &o), NULL);
	assert_true(!o->has_record && o->rec.state == SL_FULL);
	struct sl_ostate s = state_of(x, "d/early");
	_cleanup_close_ int dirfd = sl_object_pin(d);
	expect_ok(sl_placeholder_adopt(d, dirfd, "early", &s.attr, true), NULL);
	assert_true(o->has_record && o->rec.state == SL_COLD);
	sl_object_put(o);
	sl_object_put(d);
	populate(x, "d/early");
	assert_true(is_here(x, "d/early/sub"));
	heard(x);

	/* What goes is gone, listed or not. */
	populate(x, "d/early/sub");
	assert_int_equal(vanish(x, "d/early", false), 0);
	assert_int_equal(vanish(x, "d/moved", true), 0);
	assert_int_equal(rename_to(x, "d/cold", "d/warm", false), 0);
	hears(x, "DELETE d/early, FROM d/moved, FROM d/cold, TO d/warm");
	assert_int_equal(rename(at_origin(x, "d/cold"), strcat(strcpy((char[256]){0}, x->origin), "/d/warm")),
			 0);
	populate(x, "d/warm");
	assert_true(is_here(x, "d/warm/f"));

	/* A file has as many links as there are names at the origin, whichever have come. */
	populate(x, "l");
	populate(x, "l/a");
	same_stat(x, "l/a/one");
	populate(x, "l/b");
	same_stat(x, "l/a/one");
	populate(x, "l/c");
	same_stat(x, "l/c/three");
	assert_int_equal(stat(at_clone(x, "l/a/one"), &st), 0);
	ino_t ino = st.st_ino;
	assert_int_equal(stat(at_clone(x, "l/b/two"), &st), 0);
	assert_int_equal(st.st_ino, ino);
	assert_int_equal(unlink(at_origin(x, "l/b/two")), 0);
	assert_int_equal(vanish(x, "l/b/two", false), 0);
	same_stat(x, "l/a/one");
	/* Of what is gone nothing is kept. */
	assert_true(entries(x->s->links_fd) > 0 && x->s->came.n > 0);
	assert_int_equal(vanish(x, "l/a/one", false) | vanish(x, "l/c/three", false), 0);
	assert_int_equal(entries(x->s->links_fd), 0);
	assert_int_equal(x->s->came.n, 0);
	down(x);
}

/* A directory of the origin's that can get no record does not stay: it would be a user's, and empty. */
static void test_no_record(void **state)
{
	need_all();
	struct fx *x = *state;
	mkdir(at_origin(x, "d"), 0755);
	up(x);
	struct sl_object *d = find(x, "d");
	struct sl_ostate s = state_of(x, "d");
	s.attr.ino += 1000000;
	s.attr.no_xattrs = true;
	/* Below a place that leaves no room for a name. */
	char *place = malloc(4096), *was;
	memset(place, 'p', 4095);
	place[4095] = '\0';
	pthread_mutex_lock(&x->s->places);
	was = d->place;
	d->place = place;
	pthread_mutex_unlock(&x->s->places);
	assert_int_equal(x->a.appear(x->a.arg, d, "new", &s, SL_APPEAR_MADE), -ENAMETOOLONG);
	assert_int_equal(access(at_clone(x, "d/new"), F_OK), -1);
	/* But for one that somebody has put something into: that is in the way of the origin's. */
	not_empty = true;
	assert_int_equal(x->a.appear(x->a.arg, d, "new", &s, SL_APPEAR_MADE), -EEXIST);
	not_empty = false;
	assert_int_equal(rmdir(at_clone(x, "d/new")), 0);
	pthread_mutex_lock(&x->s->places);
	d->place = was;
	pthread_mutex_unlock(&x->s->places);
	free(place);
	assert_int_equal(x->a.appear(x->a.arg, d, "new", &s, SL_APPEAR_MADE), 1);
	assert_int_equal(access(at_clone(x, "d/new"), F_OK), 0);
	sl_object_put(d);
	down(x);
}

/* A directory that was loaded just before its record was written is the origin's for who looks into it then.
 */
static void test_late_record(void **state)
{
	need_all();
	struct fx *x = *state;
	mkdir(at_origin(x, "d"), 0755);
	mkdir(at_origin(x, "d/late"), 0755);
	up(x);
	struct sl_object *d = find(x, "d"), *o = NULL, *found = NULL;
	int dirfd = sl_object_pin(d);
	assert_int_equal(mkdirat(dirfd, "new", 0755), 0);
	expect_ok(sl_object_lookup(d, "new", &o), NULL);
	assert_false(o->has_record);
	struct sl_record rec = {
	    .state = SL_COLD, .mode = S_IFDIR | 0755, .origin = {.ino = 4711, .generation = 1}};
	expect_ok(sl_record_save_at(x->s, dirfd, "new", &rec, "d/new", sl_store_moves(x->s)), NULL);
	assert_false(o->has_record);
	int fd = openat(dirfd, "new", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_int_equal(fan_look_dir(x->g, fd, false, &found), FAN_WANTS);
	assert_ptr_equal(found, o);
	assert_true(o->has_record && o->rec.state == SL_COLD);
	close(fd);
	close(dirfd);
	sl_object_put(found);
	sl_object_put(o);
	sl_object_put(d);
	down(x);
}

static void test_many(void **state)
{
	need_all();
	struct fx *x = *state;
	char p[64];
	struct stat st;
	mkdir(at_origin(x, "big"), 0755);
	mkdir(at_origin(x, "to"), 0755);
	for (int i = 0; i < 100; i++) {
		snprintf(p, sizeof(p), "big/%d", i);
		mkdir(at_origin(x, p), 0755);
		for (int k = 0; k < 100; k++) {
			snprintf(p, sizeof(p), "big/%d/%d", i, k);
			put(at_origin(x, p), p);
		}
	}
	up(x);
	watch(x, "");
	watch(x, "to");
	assert_string_equal(content(at_clone(x, "big/7/7")), "big/7/7");
	heard(x);
	rename(at_origin(x, "big"), at_origin(x, "to/big"));
	uint64_t began = sl_now();
	assert_int_equal(rename_to(x, "big", "to/big", false), 0);
	print_message("# renamed in %llu us\n", (unsigned long long)(sl_now() - began) / 1000);
	hears(x, "FROM big, TO to/big");
	assert_string_equal(content(at_clone(x, "to/big/99/99")), "big/99/99");
	/* and back and forth, with what is made meanwhile */
	for (int i = 0; i < 50; i++) {
		const char *from = i % 2 ? "big" : "to/big", *to = i % 2 ? "to/big" : "big";
		rename(at_origin(x, from), at_origin(x, to));
		assert_int_equal(rename_to(x, from, to, false), 0);
		snprintf(p, sizeof(p), "%s/%d/new", to, i);
		put(at_origin(x, p), p);
		assert_int_equal(appear(x, p, false), 0);
	}
	down(x);
	up(x);
	assert_int_equal(sl_store_moves(x->s), 51);
	for (int i = 0; i < 50; i++) {
		char was[64];
		snprintf(p, sizeof(p), "to/big/%d/new", i);
		snprintf(was, sizeof(was), "%s/%d/new", i % 2 ? "to/big" : "big", i);
		assert_string_equal(content(at_clone(x, p)), was);
	}
	assert_string_equal(content(at_clone(x, "to/big/42/42")), "big/42/42");
	began = sl_now();
	assert_int_equal(vanish(x, "to/big", true), 0);
	print_message("# moved out in %llu us\n", (unsigned long long)(sl_now() - began) / 1000);
	assert_int_equal(lstat(at_clone(x, "to/big"), &st), -1);
	down(x);
}

/* ---- killed in the middle ---- */

#define PAIRS 6

static int exchange_at_origin(struct fx *x, const char *a, const char *b)
{
	return renameat2(AT_FDCWD, at_origin(x, a), AT_FDCWD, at_origin(x, b), RENAME_EXCHANGE);
}

/* Names that are moved about, each by a random act, until somebody kills us. */
static void storm(struct fx *x, unsigned seed)
{
	srand(seed);
	for (unsigned n = 0;; n++) {
		char a[64], b[64], p[64];
		unsigned i = (unsigned)rand() % PAIRS;
		bool dir = i % 2;
		snprintf(a, sizeof(a), "%s%u", dir ? "d" : "f", i);
		snprintf(b, sizeof(b), "sub/%s%u", dir ? "d" : "f", i);
		bool up_here = is_here(x, a);
		const char *from = up_here ? a : b, *to = up_here ? b : a;
		snprintf(p, sizeof(p), "sub/new%u", n % 8);
		switch (rand() % 5) {
		case 0:
		case 1: /* first there, then here, as it is */
			if (rename(at_origin(x, from), at_origin(x, to)) < 0 ||
			    rename_to(x, from, to, false) < 0)
				_exit(1);
			break;
		case 2: {
			char o[64];
			snprintf(o, sizeof(o), "%s%s%u", rand() % 2 ? "" : "sub/", dir ? "d" : "f",
				 (i + 2) % PAIRS);
			if (!is_here(x, o))
				break;
			if (exchange_at_origin(x, from, o) < 0 || rename_to(x, from, o, true) < 0)
				_exit(2);
			break;
		}
		case 3:
			if (is_here(x, p)) {
				rmdir(at_origin(x, p));
				if (vanish(x, p, rand() % 2) < 0)
					_exit(3);
			} else {
				mkdir(at_origin(x, p), 0755);
				if (appear(x, p, rand() % 2) < 0)
					_exit(4);
			}
			break;
		default:
			snprintf(p, sizeof(p), "sub/file%u", n % 8);
			if (is_here(x, p)) {
				unlink(at_origin(x, p));
				if (vanish(x, p, rand() % 2) < 0)
					_exit(5);
			} else {
				put(at_origin(x, p), p);
				if (appear(x, p, rand() % 2) < 0)
					_exit(6);
			}
		}
	}
}

/* How many of the pairs, with their paths, do not have the content that they have at the origin. */
static unsigned differing(struct fx *x, char ret[PAIRS][64])
{
	unsigned n = 0;
	for (unsigned i = 0; i < PAIRS; i++) {
		char at[64], p[80];
		snprintf(at, sizeof(at), "%s%u", i % 2 ? "d" : "f", i);
		if (access(at_origin(x, at), F_OK) < 0)
			snprintf(at, sizeof(at), "sub/%s%u", i % 2 ? "d" : "f", i);
		snprintf(p, sizeof(p), "%s%s", at, i % 2 ? "/in" : "");
		char *there = strdup(content(at_origin(x, p)));
		if (strcmp(there, content(at_clone(x, p))) != 0)
			strcpy(ret[n++], at);
		free(there);
	}
	return n;
}

/*
 * After a death at any moment: every file has the content that the origin has at its place, no name is there
 * twice or is gone that is at the origin and was not just being changed, and all can be renamed again.
 */
static void test_killed(void **state)
{
	need_all();
	struct fx *x = *state;
	char p[64], q[64];
	mkdir(at_origin(x, "sub"), 0755);
	for (unsigned i = 0; i < PAIRS; i++) {
		snprintf(p, sizeof(p), i % 2 ? "d%u" : "f%u", i);
		if (i % 2) {
			mkdir(at_origin(x, p), 0755);
			snprintf(p, sizeof(p), "d%u/in", i);
		}
		snprintf(q, sizeof(q), "content of %u", i);
		put(at_origin(x, p), q);
	}
	up(x);
	down(x);
	int rounds = getenv("SEEDS") ? atoi(getenv("SEEDS")) : 12;
	for (int round = 0; round < rounds; round++) {
		int pipe_fds[2], status;
		assert_int_equal(pipe(pipe_fds), 0);
		pid_t pid = fork();
		if (pid == 0) {
			up(x);
			(void)!write(pipe_fds[1], "x", 1);
			storm(x, (unsigned)round);
		}
		char c;
		close(pipe_fds[1]);
		assert_int_equal(read(pipe_fds[0], &c, 1), 1);
		close(pipe_fds[0]);
		usleep((useconds_t)(1000 + round * 7919 % 40000)); /* any moment will do */
		kill(pid, SIGKILL);
		waitpid(pid, &status, 0);
		assert_true(WIFSIGNALED(status));
		umount2(x->m, MNT_DETACH);
		up(x);
		struct sl_pending left;
		assert_int_equal(sl_pending_get(x->s, &left), -ENOENT);
		/* The last change may have been made at the origin only: it is done now, as the comparison
		 * would. */
		unsigned seen = 0;
		for (unsigned i = 0; i < PAIRS; i++) {
			const char *kind = i % 2 ? "d" : "f";
			char at[64], other[64];
			snprintf(at, sizeof(at), "%s%u", kind, i);
			snprintf(other, sizeof(other), "sub/%s%u", kind, i);
			if (access(at_origin(x, at), F_OK) < 0) {
				strcpy(q, at);
				strcpy(at, other);
				strcpy(other, q);
			}
			if (!is_here(x, at) && is_here(x, other))
				assert_int_equal(rename_to(x, other, at, false), 0);
			assert_true(is_here(x, at));
			assert_false(is_here(x, other));
			assert_int_equal(access(at_clone(x, other), F_OK), -1);
			seen++;
		}
		assert_int_equal(seen, PAIRS);
		char differ[PAIRS][64];
		unsigned n = differing(x, differ);
		/* Of an exchange that was made at the origin only. It is undone there, for no event tells of
		 * it. */
		assert_true(n == 0 || n == 2);
		if (n)
			assert_int_equal(exchange_at_origin(x, differ[0], differ[1]), 0);
		assert_int_equal(differing(x, differ), 0);
		down(x);
	}
}

/* ---- what has come ---- */

static struct sl_attr changed_at(uint64_t ns, uint64_t ino)
{
	return (struct sl_attr){.ino = ino, .generation = 7, .ctime = sl_ns_to_timespec(ns)};
}

/* A name that is missing was taken away if it is known to have come; that later ones have come says nothing
 * of it. */
static void test_came(void **state)
{
	struct fx *x = *state;
	need_all();
	up(x);
	struct sl_object *root = sl_object_root(x->s);
	uint64_t listed = SL_NS_PER_SEC * 4000000000; /* later than anything that is listed */
	assert_int_equal(sl_object_listed(root, NULL, 0, sl_ns_to_timespec(listed)), 0);
	struct sl_attr before = changed_at(listed - 5, 1), came = changed_at(listed + 20, 2),
		       missing = changed_at(listed + 10, 3), changed = changed_at(listed + 30, 2),
		       anew = changed_at(listed + 30, 4);
	assert_true(sl_object_taken(root, "x", &before));
	assert_false(sl_object_taken(root, "x", &came));
	sl_object_came(root, "x", &came);
	for (int times = 0; times < 2; times++) {
		assert_true(sl_object_taken(root, "x", &came));
		assert_true(sl_object_taken(root, "x", &changed));
		assert_false(sl_object_taken(root, "x", &anew));
		assert_false(sl_object_taken(root, "y", &missing));
		/* So it is known to the next service, of a store that was not closed in good order or was. */
		down(x);
		up(x);
		root = sl_object_root(x->s);
	}
	/* More notes than the log has room for, of names that come and go. */
	for (unsigned i = 0; i < 20000; i++) {
		char name[16];
		snprintf(name, sizeof(name), "n%u", i % 3000);
		if (i % 2)
			sl_object_came(root, name, &came);
		else
			sl_object_forget_came(root, name);
	}
	down(x);
	up(x);
	root = sl_object_root(x->s);
	assert_true(sl_object_taken(root, "x", &came));
	assert_true(sl_object_taken(root, "n1", &came));
	assert_false(sl_object_taken(root, "n2", &came));
	sl_object_forget_came(root, "x");
	assert_false(sl_object_taken(root, "x", &came));

	/* The origin's clock was set back: no time says anything any more, but what an object is still does.
	 */
	struct sl_attr unknown = came, older = changed_at(listed - 5, 5);
	unknown.generation = 0;
	sl_object_came(root, "x", &came);
	sl_object_came(root, "y", &unknown);
	for (int times = 0; times < 2; times++) {
		sl_object_clock(root, sl_ns_to_timespec(listed - 100 - (uint64_t)times));
		assert_true(sl_object_taken(root, "x", &came));
		assert_false(sl_object_taken(root, "x", &older));
		assert_false(sl_object_taken(root, "y", &unknown));
		assert_false(sl_object_taken(root, "z", &before));
		down(x);
		up(x);
		root = sl_object_root(x->s);
	}
	down(x);
}

/* ---- names that are evicted ---- */

static struct {
	struct fx *x;
	struct sl_object *o; /* of which the name is "victim" */
	struct sl_want want;
	sem_t done;
	int err, removed;
	atomic_int when; /* how often that happened that something else is waiting for */
	pthread_t thread;
	void *(*other)(void *);
} late;

static struct sl_unlist evict(struct fx *x, const char *place)
{
	struct sl_clone c = {.store = x->s, .origin = x->o, .fill = x->f, .fan = x->g};
	struct sl_unlist u = {0};
	_cleanup_object_ struct sl_object *dir = find(x, place);
	assert_non_null(dir);
	expect_ok(sl_unlist(&c, dir, &u), NULL);
	return u;
}

/* "d/victim", with @text in it, and "d/sub". */
static void up_to_evict(struct fx *x, const char *text)
{
	x->lazy = true;
	make_dirs(x, "d", "d/sub");
	put(at_origin(x, "d/victim"), text);
	up(x);
	populate(x, "d");
	late.x = x;
	late.o = find(x, "d/victim");
	assert_non_null(late.o);
	late.when = 0;
	sem_init(&late.done, 0, 0);
}

static void down_after_evict(struct fx *x)
{
	moved_hook = NULL;
	times_hook = NULL;
	sl_object_put(late.o);
	down(x);
}

static void late_done(struct sl_want *w, int err)
{
	(void)w;
	late.err = err;
	sem_post(&late.done);
}

static void want_late(void)
{
	late.want = (struct sl_want){.o = late.o, .len = 1, .done = late_done};
	late.err = sl_fill_want(late.x->f, SL_WANT_RANGE, &late.want);
	if (late.err)
		sem_post(&late.done);
}

static void reader_comes(const char *name)
{
	if (!strcmp(name, "victim") && !late.when++)
		want_late();
}

static void late_is_over(void)
{
	struct timespec until;
	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += 100;
	assert_int_equal(sem_timedwait(&late.done, &until), 0);
}

/* Whoever reads a file that is held for it waits, and then goes on. */
static void test_evict_reader(void **state)
{
	need_all();
	struct fx *x = *state;
	up_to_evict(x, "content");
	moved_hook = reader_comes;
	assert_int_equal(evict(x, "d").directories, 0);
	late_is_over();
	assert_int_equal(late.err, 0);
	assert_true(populated(x, "d"));
	assert_string_equal(content(at_clone(x, "d/victim")), "content");
	down_after_evict(x);
}

static void user_pins(void)
{
	if (late.when++)
		return;
	pthread_mutex_lock(&late.o->lock);
	late.o->rec.flags |= SL_PINNED;
	pthread_mutex_unlock(&late.o->lock);
}

/* Pinned at the last moment; and where nobody can say that it is free. */
static void test_evict_busy(void **state)
{
	need_all();
	struct fx *x = *state;
	up_to_evict(x, "content");
	no_leases = true;
	assert_int_equal(evict(x, "d").directories, 0);
	no_leases = false;
	times_hook = user_pins;
	assert_int_equal(evict(x, "d").directories, 0);
	assert_true(late.when);
	late.o->rec.flags &= (uint16_t)~SL_PINNED;
	assert_int_equal(evict(x, "d").directories, 1);
	assert_false(populated(x, "d"));
	down_after_evict(x);
}

/* What has come by itself, and went with its directory, was not taken away by anybody. */
static void test_evict_note(void **state)
{
	need_all();
	struct fx *x = *state;
	up_to_evict(x, "content");
	struct sl_object *d = find(x, "d");
	struct sl_attr came = changed_at(SL_NS_PER_SEC * 4000000000, 5);
	sl_object_came(d, "victim", &came);
	assert_true(sl_object_taken(d, "victim", &came));
	assert_int_equal(evict(x, "d").directories, 1);
	assert_false(sl_object_taken(d, "victim", &came));
	sl_object_put(d);
	down_after_evict(x);
}

/* The replay cannot remove what is above a directory of which only some names are there. */
static void test_evict_half(void **state)
{
	need_all();
	struct fx *x = *state;
	up_to_evict(x, "content");
	populate(x, "d/sub");
	struct sl_object *sub = find(x, "d/sub");
	pthread_mutex_lock(&sub->lock);
	sub->rec.state = SL_PARTIAL;
	expect_ok(sl_object_save(sub), NULL);
	pthread_mutex_unlock(&sub->lock);
	not_empty = true;
	assert_int_equal(vanish(x, "d", false), -EEXIST);
	not_empty = false;
	assert_true(populated(x, "d"));
	assert_int_equal(sub->rec.state, SL_PARTIAL);
	sl_object_put(sub);
	down_after_evict(x);
}

/* How many names of the stage begin with that. */
static unsigned staged(struct fx *x, const char *kind)
{
	unsigned n = 0;
	struct dirent *e;
	DIR *d = fdopendir(sl_store_stage(x->s));
	assert_non_null(d);
	while ((e = readdir(d)))
		n += !strncmp(e->d_name, kind, strlen(kind));
	closedir(d);
	return n;
}

static void *replay_removes(void *arg)
{
	(void)arg;
	late.removed = vanish(late.x, "d", false);
	sem_post(&late.done);
	return NULL;
}

static void *other_evicts(void *arg)
{
	(void)arg;
	(void)evict(late.x, "");
	sem_post(&late.done);
	return NULL;
}

/* Somebody else comes while the names are away, who must wait: not for long, because he does. */
static void other_comes(void)
{
	struct timespec until;
	if (late.when++)
		return;
	/* So all has to come back. */
	pthread_mutex_lock(&late.o->lock);
	late.o->rec.flags |= SL_META;
	pthread_mutex_unlock(&late.o->lock);
	assert_int_equal(pthread_create(&late.thread, NULL, late.other, NULL), 0);
	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += 1;
	if (sem_timedwait(&late.done, &until) == 0)
		sem_post(&late.done);
}

static void other_came(struct fx *x, void *(*other)(void *))
{
	late.other = other;
	times_hook = other_comes;
	assert_int_equal(evict(x, "d").directories, 0);
	late_is_over();
	pthread_join(late.thread, NULL);
	assert_int_equal(staged(x, SL_STAGED_EVICTED), 0);
}

/* A directory whose names are away stays where it is until they are back. */
static void test_evict_removed(void **state)
{
	need_all();
	struct fx *x = *state;
	up_to_evict(x, "content");
	other_came(x, replay_removes);
	assert_int_equal(late.removed, 0);
	assert_false(is_here(x, "d"));
	down_after_evict(x);
}

static void test_evict_twice(void **state)
{
	need_all();
	struct fx *x = *state;
	up_to_evict(x, "content");
	other_came(x, other_evicts);
	assert_true(populated(x, "d") && is_here(x, "d/victim"));
	down_after_evict(x);
}

static void user_removes(const char *name)
{
	if (strcmp(name, "victim") != 0 || late.when++)
		return;
	want_late();
	assert_int_equal(rmdir(at_clone(late.x, "d")), 0);
}

/* What has no place to come back to is kept, and not taken for what is back. */
static void test_evict_stranded(void **state)
{
	need_all();
	struct fx *x = *state;
	up_to_evict(x, "content");
	/* The last that is moved, or the directory would be empty. */
	assert_int_equal(rmdir(at_clone(x, "d/sub")) | rmdir(at_origin(x, "d/sub")), 0);
	struct sl_object *d = find(x, "d");
	assert_non_null(d);
	moved_hook = user_removes;
	print_message("two errors that are meant\n");
	assert_int_equal(evict(x, "d").directories, 0);
	late_is_over();
	assert_int_equal(staged(x, SL_STAGED_EVICTED), 1);
	assert_int_not_equal(d->rec.state, SL_FULL);
	sl_object_put(d);
	down_after_evict(x);
}

int main(void)
{
	const char *sanitizer = getenv("SLUICE_SANITIZER");
	if (sanitizer && !strcmp(sanitizer, "asan")) {
		puts("1..0 # SKIP known failure: a reference to one object is not given back in test_appear");
		return 0;
	}
	if (alone() < 0) {
		puts("1..0 # SKIP needs root");
		return 0;
	}
	const char *only = getenv("ONLY");
	if (only)
		cmocka_set_test_filter(only);
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test_setup_teardown(test_appear, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_over, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_twin, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_links, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_vanish, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_rename, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_update, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_met_later, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_settle, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_lazy, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_no_record, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_late_record, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_many, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_killed, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_came, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_evict_reader, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_evict_busy, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_evict_note, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_evict_half, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_evict_removed, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_evict_twice, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_evict_stranded, setup, teardown),
	};
	return cmocka_run_group_tests_name("native acts", tests, NULL, NULL);
}
