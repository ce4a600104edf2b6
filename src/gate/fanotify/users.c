/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Who uses what of the clone's filesystem, as procfs tells: descriptors, also O_PATH ones and those of
 * directories, which no lease shows; the directories that programs are in; mounts of and on directories, in
 * all namespaces; and what inotify and fanotify watch.
 */
#include <dirent.h>
#include <linux/kcmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>

#include "base/log.h"
#include "base/time.h"
#include "gate/fanotify/internal.h"
#include "gate/fanotify/users.h"

#define CALM_US 1000
#define CALM_NS (5 * SL_NS_PER_SEC)
#define RUN_NS	(5 * SL_NS_PER_SEC)

struct place {
	dev_t dev;
	uint64_t ino; /* 0: its filesystem did not tell */
};

struct look {
	struct sl_fan_users *u;
	struct sl_fan *g;
	dev_t dev;  /* as stat(2) has it */
	dev_t mdev; /* as mountinfo and fdinfo have it: not the same on btrfs */
	dev_t anon; /* of what has no filesystem: inotify's and fanotify's descriptors are there */
	struct {
		uint64_t ns;
		struct place root;
	} seen[64]; /* where mounts were looked at */
	size_t nseen;
	int err; /* the first: something is not known */
};

/* @err: why something could not be read. What has gone meanwhile uses nothing. */
static void failed(struct look *l, int err)
{
	if (err != ENOENT && err != ESRCH && l->err == 0)
		l->err = -err;
}

static void add(struct look *l, uint64_t ino)
{
	struct sl_fan_users *u = l->u;
	if (u->n == u->cap) {
		size_t cap = u->cap ? u->cap * 2 : 64;
		uint64_t *v = reallocarray(u->ino, cap, sizeof(*v));
		if (!v) {
			failed(l, ENOMEM);
			return;
		}
		u->ino = v;
		u->cap = cap;
	}
	u->ino[u->n++] = ino;
}

/*
 * Where @name is. No server is asked, as those of FUSE and NFS are by stat(2): it may wait for what is held
 * here, or for ever. Nor is anything but the device wanted: FUSE refuses all else to those who did not mount
 * it, local filesystems tell the number all the same. False: it is gone, or not known.
 */
static bool find(struct look *l, int dir, const char *name, struct place *p)
{
	struct statx sx;
	if (statx(dir, name, AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT, 0, &sx) < 0) {
		/* A filesystem that is broken, not this one; the rest of a path that was removed. */
		if (errno != EIO && errno != ESTALE && errno != ENOTCONN && errno != ENOTDIR)
			failed(l, errno);
		return false;
	}
	p->dev = makedev(sx.stx_dev_major, sx.stx_dev_minor);
	p->ino = sx.stx_mask & STATX_INO ? sx.stx_ino : 0;
	return true;
}

static void add_place(struct look *l, const struct place *p)
{
	if (p->dev == l->dev && p->ino)
		add(l, p->ino);
	else if (p->dev == l->dev)
		failed(l, EOPNOTSUPP);
}

static void add_at(struct look *l, int dir, const char *name)
{
	struct place p;
	if (find(l, dir, name, &p))
		add_place(l, &p);
}

/* For reading; NULL with errno. */
static FILE *open_in(int dir, const char *name)
{
	int fd = openat(dir, name, O_RDONLY | O_CLOEXEC);
	FILE *f = fd < 0 ? NULL : fdopen(fd, "r");
	if (fd >= 0 && !f)
		close(fd);
	return f;
}

/* NULL with errno. */
static DIR *dir_at(int dir, const char *name)
{
	int fd = openat(dir, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *d = fd < 0 ? NULL : fdopendir(fd);
	if (!d && fd >= 0)
		close(fd);
	return d;
}

/* NULL: it is gone, or not known. */
static DIR *open_dir(struct look *l, int dir, const char *name)
{
	DIR *d = dir_at(dir, name);
	if (!d)
		failed(l, errno);
	return d;
}

static struct dirent *next(struct look *l, DIR *d)
{
	struct dirent *e;
	do {
		errno = 0;
		e = readdir(d);
	} while (e && *e->d_name == '.');
	if (!e)
		failed(l, errno);
	return e;
}

/* ---- mounts ---- */

struct mount {
	int id;
	char *root, *point;
};

/* "\040" and the like. */
static void unescape(char *s)
{
	char *to = s;
	for (; *s; to++) {
		unsigned c;
		if (s[0] == '\\' && sscanf(s + 1, "%3o", &c) == 1) {
			*to = (char)c;
			s += 4;
		} else {
			*to = *s++;
		}
	}
	*to = '\0';
}

/* One mount of a namespace; @v: those of the clone's filesystem so far. */
static void look_at_mount(struct look *l, char *line, struct mount **v, size_t *n)
{
	char root[4097], point[4097], path[2 * 4097 + 2];
	unsigned a, b;
	int id, up, base = sl_store_fs_fd(l->g->store);
	if (sscanf(line, "%d %d %u:%u %4096s %4096s", &id, &up, &a, &b, root, point) != 6)
		return;
	unescape(root);
	unescape(point);
	for (size_t i = 0; i < *n; i++) {
		const struct mount *m = &(*v)[i];
		size_t k = strlen(m->point);
		if (m->id != up || strncmp(point, m->point, k) != 0)
			continue;
		snprintf(path, sizeof(path), ".%s/%s", m->root, point + k);
		add_at(l, base, path);
	}
	if (makedev(a, b) != l->mdev)
		return;
	if (strcmp(root, "/tree") != 0) { /* that is the clone itself */
		snprintf(path, sizeof(path), ".%s", root);
		add_at(l, base, path);
	}
	struct mount m = {.id = id, .root = strdup(root), .point = strdup(point)};
	struct mount *more = reallocarray(*v, *n + 1, sizeof(m));
	if (more)
		*v = more;
	if (more && m.root && m.point) {
		more[(*n)++] = m;
	} else {
		free(m.root);
		free(m.point);
		failed(l, ENOMEM);
	}
}

/* @task: a directory of procfs, as all that are called so here. False: it is gone, or not known. */
static bool look_at_mounts(struct look *l, int task)
{
	char *line = NULL;
	size_t cap = 0, n = 0;
	struct mount *v = NULL;
	FILE *f = open_in(task, "mountinfo");
	if (!f) {
		if (errno != EINVAL) /* it has ended */
			failed(l, errno);
		return false;
	}
	while (errno = 0, getline(&line, &cap, f) > 0)
		look_at_mount(l, line, &v, &n);
	failed(l, errno);
	free(line);
	fclose(f);
	for (size_t i = 0; i < n; i++) {
		free(v[i].root);
		free(v[i].point);
	}
	free(v);
	return true;
}

/* The device of the mount that users see. */
static void find_device(struct look *l)
{
	char *line = NULL;
	size_t cap = 0;
	FILE *f = open_in(AT_FDCWD, "/proc/self/mountinfo");
	if (!f) {
		failed(l, errno);
		return;
	}
	while (errno = 0, getline(&line, &cap, f) > 0) {
		unsigned long long id;
		unsigned a, b;
		if (sscanf(line, "%llu %*d %u:%u", &id, &a, &b) == 3 && id == l->g->area->mount)
			l->mdev = makedev(a, b);
	}
	failed(l, errno);
	free(line);
	fclose(f);
}

/* ---- processes ---- */

/* What a descriptor of inotify or fanotify watches. */
static void look_at_watches(struct look *l, int task, const char *fd)
{
	char path[300], *line = NULL;
	size_t cap = 0;
	snprintf(path, sizeof(path), "fdinfo/%s", fd);
	FILE *f = open_in(task, path);
	if (!f) {
		failed(l, errno);
		return;
	}
	while (errno = 0, getline(&line, &cap, f) > 0) {
		unsigned long long ino;
		unsigned dev;
		if ((sscanf(line, "inotify wd:%*x ino:%llx sdev:%x", &ino, &dev) == 2 ||
		     sscanf(line, "fanotify ino:%llx sdev:%x", &ino, &dev) == 2) &&
		    makedev(dev >> 20, dev & 0xfffff) == l->mdev)
			add(l, ino);
	}
	failed(l, errno);
	free(line);
	fclose(f);
}

static void look_at_descriptors(struct look *l, int task)
{
	DIR *d = open_dir(l, task, "fd");
	struct dirent *e;
	while (d && (e = next(l, d))) {
		struct place p;
		char link[32];
		if (!find(l, dirfd(d), e->d_name, &p))
			continue;
		add_place(l, &p);
		if (p.dev != l->anon)
			continue;
		ssize_t n = readlinkat(dirfd(d), e->d_name, link, sizeof(link) - 1);
		if (n < 0)
			failed(l, errno);
		link[n > 0 ? n : 0] = '\0';
		if (strstr(link, "notify"))
			look_at_watches(l, task, e->d_name);
	}
	if (d)
		closedir(d);
}

/* A namespace is seen from each root that somebody has there: what is not below it is not shown to him. */
static void look_at_namespace(struct look *l, int task)
{
	struct stat ns;
	struct place root;
	if (fstatat(task, "ns/mnt", &ns, 0) < 0) {
		failed(l, errno);
		return;
	}
	if (!find(l, task, "root", &root))
		root = (struct place){0};
	for (size_t i = 0; root.ino && i < l->nseen; i++)
		if (l->seen[i].ns == ns.st_ino && l->seen[i].root.dev == root.dev &&
		    l->seen[i].root.ino == root.ino)
			return;
	/* Else some are read more than once. */
	if (look_at_mounts(l, task) && root.ino && l->nseen < SL_ARRAY_SIZE(l->seen)) {
		l->seen[l->nseen].ns = ns.st_ino;
		l->seen[l->nseen++].root = root;
	}
}

/* This service and its keeper have descriptors for their work, and for accesses that wait: see waiting(). */
static bool ours(struct sl_fan *g, const char *pid)
{
	int n = atoi(pid);
	return n == getpid() || (n && n == g->cfg.keeper);
}

/*
 * Thread by thread: each can have left what it shares with the others, and a process has nothing of all that
 * when its first thread has ended.
 */
static void look_at_process(struct look *l, int proc, const char *pid)
{
	char path[300];
	int last = 0; /* the thread whose descriptors were looked at */
	bool own = ours(l->g, pid);
	snprintf(path, sizeof(path), "%s/task", pid);
	DIR *d = open_dir(l, proc, path);
	struct dirent *e;
	while (d && (e = next(l, d))) {
		int tid = atoi(e->d_name);
		_cleanup_close_ int task = openat(dirfd(d), e->d_name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (task < 0) {
			failed(l, errno);
			continue;
		}
		look_at_namespace(l, task);
		if (own)
			continue;
		add_at(l, task, "cwd");
		add_at(l, task, "root");
		/* 0: they are the same. An error: nobody knows. */
		if (last && syscall(SYS_kcmp, last, tid, KCMP_FILES, 0, 0) == 0)
			continue;
		look_at_descriptors(l, task);
		last = tid;
	}
	if (d)
		closedir(d);
}

static void look_at_processes(struct look *l)
{
	DIR *d = open_dir(l, AT_FDCWD, "/proc");
	struct dirent *e;
	if (!d && l->err == 0)
		l->err = -ENOENT;
	while (d && l->err == 0 && (e = next(l, d))) {
		if (*e->d_name < '1' || *e->d_name > '9')
			continue;
		look_at_process(l, dirfd(d), e->d_name);
		if (l->err)
			sl_info("what process %s uses cannot be known: %s", e->d_name, strerror(-l->err));
	}
	if (d)
		closedir(d);
}

/* ---- what waits for us ---- */

/*
 * Everything that the kernel had asked before this call is noted in its slot, or answered. -EBUSY: there is
 * always more to read.
 */
static int calm(struct sl_fan *g)
{
	uint64_t until = sl_now() + CALM_NS;
	int left;
	for (;;) {
		if (ioctl(g->group, FIONREAD, &left) < 0)
			return -errno;
		if (!left)
			break;
		if (sl_now() > until)
			return -EBUSY;
		usleep(CALM_US);
	}
	/* What is not queued any more is about to be looked at. */
	usleep(CALM_US);
	for (uint64_t reads = g->reads; reads % 2 && g->reads == reads; usleep(CALM_US / 10))
		if (sl_now() > until)
			return -EBUSY;
	return 0;
}

static void waiting(struct look *l)
{
	struct area *a = l->g->area;
	for (uint32_t fd = 0; fd < SL_MIN(a->nslots, a->top); fd++) {
		struct stat st;
		if (a->slot[fd].mask && fstat((int)fd, &st) == 0 && st.st_dev == l->dev)
			add(l, st.st_ino);
	}
}

static int by_number(const void *a, const void *b)
{
	const uint64_t *x = a, *y = b;
	return *x < *y ? -1 : *x > *y;
}

int sl_fan_users_get(struct sl_fan *g, struct sl_fan_users *u)
{
	struct stat st, anon;
	*u = (struct sl_fan_users){0};
	if (fstat(sl_store_tree_fd(g->store), &st) < 0 || fstat(g->stop_fd, &anon) < 0)
		return -errno;
	struct look l = {.u = u, .g = g, .dev = st.st_dev, .mdev = st.st_dev, .anon = anon.st_dev};
	int r = calm(g);
	if (r == 0) {
		find_device(&l);
		waiting(&l);
		look_at_processes(&l);
		r = l.err;
	}
	if (r < 0) {
		sl_fan_users_fini(u);
		return r;
	}
	if (u->n)
		qsort(u->ino, u->n, sizeof(*u->ino), by_number);
	return 0;
}

bool sl_fan_users_has(const struct sl_fan_users *u, uint64_t ino)
{
	return u->n && bsearch(&ino, u->ino, u->n, sizeof(ino), by_number);
}

void sl_fan_users_fini(struct sl_fan_users *u)
{
	free(u->ino);
	*u = (struct sl_fan_users){0};
}

/* ---- who had been let through ---- */

/* A thread that could run and had not yet, when it was looked at first. */
struct runner {
	char path[48];
	unsigned long long ticks, switches;
};

/* A file of procfs, as text; -errno. */
static int read_text(const struct runner *r, const char *name, char *text, size_t size)
{
	char path[64];
	snprintf(path, sizeof(path), "%s/%s", r->path, name);
	_cleanup_close_ int fd = openat(AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, text, size - 1);
	if (n < 0)
		return -errno;
	text[n] = '\0';
	return 0;
}

/* 1; 0 if it sleeps, or is gone; -errno: that is not known. */
static int runs(struct runner *r)
{
	char text[4096], state = 'X';
	unsigned long long u = 0, s = 0, a = 0, b = 0;
	int err = read_text(r, "stat", text, sizeof(text));
	if (err < 0)
		return err == -ENOENT || err == -ESRCH ? 0 : err;
	const char *end = strrchr(text, ')'); /* of its name, in which there may be others */
	if (!end ||
	    sscanf(end + 1, " %c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %llu %llu", &state, &u, &s) != 3 ||
	    state != 'R')
		return 0;
	err = read_text(r, "status", text, sizeof(text));
	if (err < 0)
		return err == -ENOENT || err == -ESRCH ? 0 : err;
	const char *at = strstr(text, "\nvoluntary_ctxt_switches:");
	if (!at ||
	    sscanf(at, "\nvoluntary_ctxt_switches: %llu nonvoluntary_ctxt_switches: %llu", &a, &b) != 2)
		return 0;
	r->ticks = u + s;
	r->switches = a + b;
	return 1;
}

static int find_runners(struct runner **v, size_t *n)
{
	int r = 0;
	size_t cap = 0;
	DIR *d = dir_at(AT_FDCWD, "/proc");
	struct dirent *e, *t;
	while (d && r == 0 && (e = readdir(d))) {
		char path[300];
		snprintf(path, sizeof(path), "/proc/%.16s/task", e->d_name);
		if (*e->d_name < '1' || *e->d_name > '9')
			continue;
		DIR *tasks = dir_at(AT_FDCWD, path);
		if (!tasks && errno != ENOENT && errno != ESRCH)
			r = -errno;
		while (tasks && r == 0 && (t = readdir(tasks))) {
			struct runner x;
			snprintf(x.path, sizeof(x.path), "/proc/%.16s/task/%.16s", e->d_name, t->d_name);
			int is = *t->d_name == '.' || atoi(t->d_name) == gettid() ? 0 : runs(&x);
			if (is <= 0) {
				r = is;
				continue;
			}
			if (*n == cap) {
				cap = cap ? cap * 2 : 64;
				struct runner *more = reallocarray(*v, cap, sizeof(x));
				r = more ? 0 : -ENOMEM;
				*v = more ? more : *v;
			}
			if (r == 0)
				(*v)[(*n)++] = x;
		}
		if (tasks)
			closedir(tasks);
	}
	if (d)
		closedir(d);
	return d ? r : -errno;
}

int sl_fan_let_run(uint64_t ns)
{
	struct runner *v = NULL;
	size_t n = 0;
	int r = find_runners(&v, &n);
	uint64_t until = sl_now() + ns + RUN_NS;
	usleep((useconds_t)(ns / 1000));
	while (r == 0 && n) {
		size_t left = 0;
		for (size_t i = 0; i < n; i++) {
			struct runner x = v[i];
			int is = runs(&x);
			if (is < 0 || (is && x.ticks == v[i].ticks && x.switches == v[i].switches))
				v[left++] = v[i];
		}
		n = left;
		if (n && sl_now() > until)
			r = -EAGAIN;
		else if (n)
			usleep(20 * CALM_US);
	}
	free(v);
	return r;
}
