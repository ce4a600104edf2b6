/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the backends for changes of a local tree tell of each kind of change, each test over both. If this
 * fails, changes at an origin are not heard of, or under a wrong name. (suite: threads)
 */
#include "notify_fixture.h"

static void test_create(void **state)
{
	BEGIN(f, state);
	make_dir(f, "d");
	int fd = openat(f->root, "d/file", O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
	ok(fd);
	expect(f, "create d/file");
	close(fd);
	expect(f, "written d/file");
	ok(mkdirat(f->root, "d/dir", 0755));
	expect(f, "create,dir d/dir");
	ok(symlinkat("nowhere", f->root, "d/link"));
	expect(f, "create d/link");
	ok(linkat(f->root, "d/file", f->root, "d/hard", 0));
	expect(f, "create d/hard");
	ok(mkfifoat(f->root, "d/fifo", 0644));
	expect(f, "create d/fifo");
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	snprintf(a.sun_path, sizeof(a.sun_path), "/proc/self/fd/%d/d/sock", f->root);
	int s = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	ok(s);
	ok(bind(s, (struct sockaddr *)&a, sizeof(a)));
	close(s);
	expect(f, "create d/sock");
	if (root_user && mknodat(f->root, "d/null", S_IFCHR | 0600, makedev(1, 3)) == 0)
		expect(f, "create d/null");
	/* Where nothing is marked, and above, nothing is known. */
	ok(mkdirat(f->root, "d/dir/below", 0755));
	ok(mkdirat(f->root, "beside", 0755));
	expect_nothing(f);
}

static void test_delete(void **state)
{
	BEGIN(f, state);
	make_dir(f, "d");
	have_file(f, "d/file");
	ok(linkat(f->root, "d/file", f->root, "d/hard", 0));
	ok(mkdirat(f->root, "d/dir", 0755));
	ok(symlinkat("nowhere", f->root, "d/link"));
	settle(f);
	clear(f);
	ok(unlinkat(f->root, "d/hard", 0));
	expect(f, "delete d/hard");
	ok(unlinkat(f->root, "d/file", 0));
	expect(f, "delete d/file");
	ok(unlinkat(f->root, "d/link", 0));
	expect(f, "delete d/link");
	ok(unlinkat(f->root, "d/dir", AT_REMOVEDIR));
	expect(f, "delete,dir d/dir");
}

static void test_content(void **state)
{
	BEGIN(f, state);
	make_dir(f, "d");
	have_file(f, "d/file");
	int fd = openat(f->root, "d/file", O_RDWR | O_CLOEXEC);
	ok(fd);
	expect_nothing(f);
	assert_int_equal(write(fd, "x", 1), 1);
	expect(f, "modify d/file");
	ok(ftruncate(fd, 100));
	expect(f, "modify d/file");
	close(fd);
	expect(f, "written d/file");
	fd = openat(f->root, "d/file", O_RDONLY | O_CLOEXEC);
	char c;
	assert_int_equal(read(fd, &c, 1), 1);
	close(fd);
	expect_nothing(f);
}

static void test_attributes(void **state)
{
	BEGIN(f, state);
	make_dir(f, "d");
	make_dir(f, "d/dir");
	have_file(f, "d/file");
	ok(fchmodat(f->root, "d/file", 0600, 0));
	expect(f, "attrib d/file");
	ok(fchownat(f->root, "d/file", geteuid(), getegid(), 0));
	expect(f, "attrib d/file");
	struct timespec t[2] = {{.tv_sec = 1}, {.tv_sec = 2}};
	ok(utimensat(f->root, "d/file", t, 0));
	expect(f, "attrib d/file");
	ok(fchmodat(f->root, "d/dir", 0700, 0));
	expect(f, "attrib,dir d/dir");
	int fd = openat(f->root, "d/file", O_RDONLY | O_CLOEXEC);
	if (fsetxattr(fd, "user.notify", "1", 1, 0) == 0) {
		expect(f, "attrib d/file");
		ok(fremovexattr(fd, "user.notify"));
		expect(f, "attrib d/file");
	}
	close(fd);
}

static void test_rename(void **state)
{
	BEGIN(f, state);
	make_dir(f, "d");
	make_dir(f, "e");
	ok(mkdirat(f->root, "out", 0755));
	have_file(f, "d/a");
	ok(rename2(f, "d/a", "d/b", 0));
	expect(f, "rename d/a d/b");
	ok(rename2(f, "d/b", "e/c", 0));
	expect(f, "rename d/b e/c");
	/* Over a name that is there: no word of what was there. */
	have_file(f, "d/over");
	ok(rename2(f, "e/c", "d/over", 0));
	expect(f, "rename e/c d/over");
	/* An exchange. */
	have_file(f, "e/x");
	ok(rename2(f, "d/over", "e/x", 2));
	expect(f, "rename d/over e/x", "rename e/x d/over");
	/* Out of what is marked, and into it: fanotify knows the other side all the same. */
	ok(rename2(f, "e/x", "out/y", 0));
	if (f->kind == SL_BACKEND_FANOTIFY)
		expect(f, "rename e/x ?/y");
	else
		expect(f, "from e/x");
	ok(rename2(f, "out/y", "d/z", 0));
	if (f->kind == SL_BACKEND_FANOTIFY)
		expect_nothing(f); /* line() shows changes of a known first directory only */
	else
		expect(f, "to d/z");
	ok(rename2(f, "d/z", "out/y", 0));
	settle(f);
	clear(f);
	ok(rename2(f, "out/y", "e/y", 0));
	settle(f);
	bool heard = false;
	for (size_t i = 0; i < f->n; i++) {
		const struct rec *r = &f->v[i];
		const char *to = label(f, f->kind == SL_BACKEND_FANOTIFY ? &r->newdir : &r->dir);
		heard |= to && strcmp(to, "e") == 0 &&
			 strcmp(f->kind == SL_BACKEND_FANOTIFY ? r->newname : r->name, "y") == 0;
	}
	assert_true(heard);
}

/* Directories keep being heard of wherever they go. */
static void test_rename_directory(void **state)
{
	BEGIN(f, state);
	make_dir(f, "d");
	make_dir(f, "e");
	unsigned n = make_dir(f, "d/sub");
	settle(f);
	clear(f);
	ok(rename2(f, "d/sub", "e/bus", 0));
	expect(f, "rename,dir d/sub e/bus");
	free(f->labels[n]);
	f->labels[n] = strdup("e/bus");
	ok(mkdirat(f->root, "e/bus/x", 0755));
	expect(f, "create,dir e/bus/x");
	have_file(f, "d/file");
	ok(rename2(f, "d/file", "e/bus", 2)); /* a directory and a file change places */
	expect(f, "rename d/file e/bus", "rename,dir e/bus d/file");
}

static void test_unlink_open(void **state)
{
	BEGIN(f, state);
	make_dir(f, "d");
	have_file(f, "d/file");
	int fd = openat(f->root, "d/file", O_WRONLY | O_CLOEXEC);
	ok(unlinkat(f->root, "d/file", 0));
	expect(f, "delete d/file");
	assert_int_equal(write(fd, "x", 1), 1);
	expect(f, "modify d/file");
	close(fd);
	expect(f, "written d/file");
}

static void test_root(void **state)
{
	BEGIN(f, state);
	watch_dir(f, "");
	ok(mkdirat(f->root, "x", 0755));
	expect(f, "create,dir x");
	ok(unlinkat(f->root, "x", AT_REMOVEDIR));
	expect(f, "delete,dir x");
	char a[320], b[320], c[330];
	snprintf(a, sizeof(a), "%s/root", f->path);
	snprintf(b, sizeof(b), "%s/moved", f->path);
	snprintf(c, sizeof(c), "%s/other/moved", f->path);
	ok(chmod(a, 0700));
	expect(f, "attrib,dir .");
	ok(rename(a, b));
	expect(f, "moved,dir .");
	snprintf(a, sizeof(a), "%s/other", f->path);
	ok(mkdir(a, 0755));
	ok(rename(b, c));
	expect(f, "moved,dir .");
	ok(rmdir(c));
	expect(f, "deleted,dir .");
	assert_true(f->kind == SL_BACKEND_INOTIFY || same(&f->ids[0], &f->ids[0]));
}

/* The root tells of itself although nobody marked it. */
static void test_root_unmarked(void **state)
{
	BEGIN(f, state);
	f->ids[0] = id_of(f->root, "");
	f->labels[0] = strdup("");
	f->n_dirs = 1;
	char a[320];
	snprintf(a, sizeof(a), "%s/root", f->path);
	ok(chmod(a, 0700));
	expect(f, "attrib,dir .");
	/* Marked and no longer marked, it still does. */
	assert_int_equal(sl_backend_mark(f->b, f->root, &f->ids[0]), 0);
	sl_backend_unmark(f->b, &f->ids[0]);
	ok(chmod(a, 0711));
	expect(f, "attrib,dir .");
	ok(rmdir(a));
	expect(f, "deleted,dir .");
}

static void test_names(void **state)
{
	BEGIN(f, state);
	make_dir(f, "d");
	char name[256], want[300], path[300];
	for (size_t len = 1; len <= 255; len += len < 20 ? 1 : 47) {
		for (size_t i = 0; i < len; i++) {
			name[i] = (char)(1 + (len * 31 + i * 7) % 255);
			if (name[i] == '/')
				name[i] = '\n';
		}
		name[len] = '\0';
		snprintf(path, sizeof(path), "d/%s", name);
		ok(mkdirat(f->root, path, 0755));
		snprintf(want, sizeof(want), "create,dir d/%s", name);
		expect(f, want);
		ok(unlinkat(f->root, path, AT_REMOVEDIR));
		settle(f);
		clear(f);
	}
	char other[300];
	memset(name, 'a', 255);
	name[255] = '\0';
	snprintf(path, sizeof(path), "d/%s", name);
	memset(name, 0xff, 255);
	snprintf(other, sizeof(other), "d/%s", name);
	have_file(f, path);
	ok(rename2(f, path, other, 0));
	char both[700];
	snprintf(both, sizeof(both), "rename %s %s", path, other);
	expect(f, both);
}

/* The object that an event is about, as serve/ knows it, on the filesystem of the tree and on that of TMPDIR.
 */
static void test_identity(void **state)
{
	BEGIN(f, state);
	unsigned d = make_dir(f, "d");
	ok(mkdirat(f->root, "d/x", 0755));
	struct sl_evid id = id_of(f->root, "d/x");
	settle(f);
	bool heard = false;
	for (size_t i = 0; i < f->n; i++) {
		const struct rec *r = &f->v[i];
		if (!same(&r->dir, &f->ids[d]))
			continue;
		heard = true;
		assert_string_equal(r->name, "x");
		assert_true(f->kind == SL_BACKEND_FANOTIFY ? r->child.generation == id.generation
							   : r->child.generation == 0 && r->child.ino == 0);
	}
	assert_true(heard);
}

/* Which directory was renamed or deleted, if it is a marked one: its name may be another's by the time anybody
 * looks. */
static void test_identity_of_marked(void **state)
{
	BEGIN(f, state);
	unsigned d = make_dir(f, "d");
	for (int i = 0; i < 50; i++) {
		char name[32];
		snprintf(name, sizeof(name), "d/%d", i);
		ok(mkdirat(f->root, name, 0755));
		int fd = openat(f->root, name, O_PATH | O_DIRECTORY | O_CLOEXEC);
		struct sl_evid id = id_of(fd, "");
		assert_int_equal(sl_backend_mark(f->b, fd, &id), 0);
		close(fd);
		settle(f);
		clear(f);
		ok(rename2(f, name, "d/moved", 0));
		ok(mkdirat(f->root, name, 0755)); /* unmarked: nobody takes one for the other */
		ok(unlinkat(f->root, name, AT_REMOVEDIR));
		ok(unlinkat(f->root, "d/moved", AT_REMOVEDIR));
		settle(f);
		int renamed = 0, gone = 0;
		for (size_t k = 0; k < f->n; k++) {
			const struct rec *r = &f->v[k];
			bool is = r->child.generation == id.generation, here = same(&r->dir, &f->ids[d]);
			renamed += here && r->mask & FAN_RENAME && is;
			bool moved = here && r->name && !strcmp(r->name, "moved");
			gone += is && ((moved && r->mask & FAN_DELETE) || r->mask & FAN_DELETE_SELF);
			assert_false(here && r->mask & FAN_DELETE && is && !moved);
		}
		assert_int_equal(renamed, 1);
		assert_true(gone > 0);
		clear(f);
		sl_backend_unmark(f->b, &id);
	}
}

static void test_identity_here(void **state)
{
	(void)state;
	const char *tmp = getenv("TMPDIR");
	char saved[sizeof(top)];
	strcpy(saved, top);
	snprintf(top, sizeof(top), "%s", tmp && strlen(tmp) < 200 ? tmp : "/tmp");
	void *st = NULL;
	int r = setup_fanotify(&st);
	strcpy(top, saved);
	assert_int_equal(r, 0);
	struct fix *f = st;
	start(f, 0, 0);
	bool skipped = f->skip, heard = false;
	/* Others change this filesystem too, and may do so faster than we read. */
	for (int i = 0; !skipped && !heard && i < 1000; i++) {
		char name[32];
		snprintf(name, sizeof(name), "x%d", i);
		ok(mkdirat(f->root, name, 0755));
		struct sl_evid dir = id_of(f->root, ""), child = id_of(f->root, name);
		settle(f);
		pthread_mutex_lock(&f->lock);
		for (size_t k = 0; k < f->n; k++)
			heard |= f->v[k].mask == (FAN_CREATE | FAN_ONDIR) &&
				 f->v[k].dir.generation == dir.generation &&
				 f->v[k].child.generation == child.generation &&
				 strcmp(f->v[k].name, name) == 0;
		pthread_mutex_unlock(&f->lock);
		clear(f);
	}
	teardown(&st);
	if (skipped)
		skip();
	assert_true(heard);
}

/* Of one name by one actor, when nobody reads: the kinds may come as one, and none is missing. */
static void test_merged(void **state)
{
	BEGIN(f, state);
	watch_dir(f, "");
	unsigned d = make_dir(f, "d");
	settle(f);
	hold(f);
	for (int i = 0; i < 3; i++) {
		int fd = openat(f->root, "d/file", O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
		ok(fd);
		assert_int_equal(write(fd, "x", 1), 1);
		close(fd);
		ok(unlinkat(f->root, "d/file", 0));
	}
	let_go(f);
	settle(f);
	uint64_t mask = 0;
	unsigned n = 0, creates = 0;
	for (size_t i = 0; i < f->n; i++)
		if (same(&f->v[i].dir, &f->ids[d])) {
			assert_string_equal(f->v[i].name, "file");
			mask |= f->v[i].mask;
			creates += f->v[i].mask & FAN_CREATE ? 1 : 0;
			n++;
		}
	assert_int_equal(mask, FAN_CREATE | FAN_MODIFY | FAN_CLOSE_WRITE | FAN_DELETE);
	assert_int_equal(creates, 3); /* three objects: never one of them for two */
	assert_int_equal(n, f->kind == SL_BACKEND_FANOTIFY ? 3 : 12);
}

static void test_use(void **state)
{
	struct fix *f = *state;
	start(f, SL_CHANGE_USE, 0);
	if (f->skip)
		skip();
	make_dir(f, "d");
	have_file(f, "d/file");
	int fd = openat(f->root, "d/file", O_RDONLY | O_CLOEXEC);
	ok(fd);
	expect(f, "open d/file");
	ok(pwrite(-1, "", 0, 0) + 1);
	close(fd);
	expect(f, "close d/file");
	/* With fanotify at once, with inotify in what is marked from now on. */
	assert_int_equal(sl_backend_use(f->b, 0), 0);
	if (f->kind == SL_BACKEND_INOTIFY)
		return;
	close(openat(f->root, "d/file", O_RDONLY | O_CLOEXEC));
	expect_nothing(f);
	assert_int_equal(sl_backend_use(f->b, FAN_ACCESS), 0);
	close(openat(f->root, "d/file", O_RDONLY | O_CLOEXEC));
	expect_nothing(f);
}

static void test_limit(void **state)
{
	struct fix *f = *state;
	start(f, 0, 3);
	if (f->skip)
		skip();
	int fd[5];
	struct sl_evid id[5];
	for (int i = 0; i < 5; i++) {
		char name[8];
		snprintf(name, sizeof(name), "%d", i);
		ok(mkdirat(f->root, name, 0755));
		fd[i] = openat(f->root, name, O_PATH | O_DIRECTORY | O_CLOEXEC);
		id[i] = id_of(fd[i], "");
	}
	bool limited = f->kind == SL_BACKEND_INOTIFY;
	struct sl_backend_stats st;
	for (int i = 0; i < 3; i++)
		assert_int_equal(sl_backend_mark(f->b, fd[i], &id[i]), 0);
	assert_int_equal(sl_backend_mark(f->b, fd[0], &id[0]), 0); /* the same again is no other */
	for (int i = 3; i < 5; i++)
		assert_int_equal(sl_backend_mark(f->b, fd[i], &id[i]), limited ? -ENOSPC : 0);
	sl_backend_get_stats(f->b, &st);
	assert_int_equal(st.marks, limited ? 3 : 0);
	sl_backend_unmark(f->b, &id[0]); /* marked twice */
	assert_int_equal(sl_backend_mark(f->b, fd[3], &id[3]), limited ? -ENOSPC : 0);
	sl_backend_unmark(f->b, &id[0]);
	sl_backend_unmark(f->b, &id[0]); /* once too often: nothing */
	assert_int_equal(sl_backend_mark(f->b, fd[3], &id[3]), 0);
	f->ids[0] = id[0];
	f->labels[0] = strdup("0");
	f->ids[1] = id[3];
	f->labels[1] = strdup("3");
	f->n_dirs = 2;
	ok(mkdirat(f->root, "0/x", 0755));
	ok(mkdirat(f->root, "3/x", 0755));
	if (limited)
		expect(f, "create,dir 3/x");
	else
		expect(f, "create,dir 0/x", "create,dir 3/x");
	/* A mark that goes with its directory. */
	ok(unlinkat(f->root, "1", AT_REMOVEDIR));
	close(fd[1]);
	settle(f);
	sl_backend_unmark(f->b, &id[1]);
	assert_int_equal(sl_backend_mark(f->b, fd[4], &id[4]), 0);
	for (int i = 0; i < 5; i++)
		if (i != 1)
			close(fd[i]);
}

/* What cannot be had is said, and AUTO takes what can. */
static void test_choice(void **state)
{
	struct fix *f = *state;
	struct sl_backend_config cfg = {.root_fd = f->root, .changes = on_changes, .arg = f};
	_cleanup_free_ char *why = NULL;
	assert_int_equal(sl_backend_open(&cfg, &f->b, &why), 0);
	if (own_fs)
		assert_int_equal(sl_backend_kind(f->b), SL_BACKEND_FANOTIFY);
	sl_backend_close(f->b);
	f->b = NULL;
	/* /proc has neither an id nor handles. */
	_cleanup_close_ int proc = open("/proc/self", O_PATH | O_DIRECTORY | O_CLOEXEC);
	cfg.root_fd = proc;
	cfg.kind = SL_BACKEND_FANOTIFY;
	int r = sl_backend_open(&cfg, &f->b, &why);
	assert_true(r == -EOPNOTSUPP || r == -EPERM);
	assert_non_null(why);
	cfg.kind = SL_BACKEND_AUTO;
	free(sl_steal_ptr(&why));
	assert_int_equal(sl_backend_open(&cfg, &f->b, &why), 0);
	assert_int_equal(sl_backend_kind(f->b), SL_BACKEND_INOTIFY);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    BOTH(create),	 BOTH(delete),
	    BOTH(content),	 BOTH(attributes),
	    BOTH(rename),	 BOTH(rename_directory),
	    BOTH(unlink_open),	 BOTH(root),
	    BOTH(root_unmarked), BOTH(names),
	    BOTH(identity),	 BOTH(identity_of_marked), BOTH(merged),
	    BOTH(use),		 BOTH(limit),
	    BOTH(choice),	 cmocka_unit_test(test_identity_here),
	};
	return run_notify_tests(tests);
}
