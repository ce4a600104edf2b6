/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Who uses what of the clone's filesystem, as procfs tells: descriptors, also O_PATH ones and those of
 * directories, which no lease shows; the directories that programs are in; mounts of and on directories, in
 * all namespaces; and what inotify and fanotify watch.
 */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/sysmacros.h>

#include "base/log.h"
#include "base/time.h"
#include "gate/fanotify/internal.h"
#include "gate/fanotify/users.h"

#define CALM_US 1000
#define CALM_NS SL_NS_PER_SEC
#define RUN_NS	(5 * SL_NS_PER_SEC)

struct look {
	struct sl_fan_users *u;
	struct sl_fan *g;
	dev_t dev;  /* as stat(2) has it */
	dev_t mdev; /* as mountinfo and fdinfo have it: not the same on btrfs */
	dev_t anon; /* of what has no filesystem: inotify's and fanotify's descriptors are there */
	int err;
};

static void add(struct look *l, uint64_t ino)
{
	struct sl_fan_users *u = l->u;
	if (u->n == u->cap) {
		size_t cap = u->cap ? u->cap * 2 : 64;
		uint64_t *v = reallocarray(u->ino, cap, sizeof(*v));
		if (!v) {
			l->err = -ENOMEM;
			return;
		}
		u->ino = v;
		u->cap = cap;
	}
	u->ino[u->n++] = ino;
}

static void add_at(struct look *l, int dir, const char *name)
{
	struct stat st;
	if (fstatat(dir, name, &st, 0) == 0 && st.st_dev == l->dev)
		add(l, st.st_ino);
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
		l->err = -ENOMEM;
	}
}

static void look_at_mounts(struct look *l, const char *pid)
{
	char path[320], *line = NULL;
	size_t cap = 0, n = 0;
	struct mount *v = NULL;
	snprintf(path, sizeof(path), "/proc/%s/mountinfo", pid);
	FILE *f = fopen(path, "re");
	while (f && getline(&line, &cap, f) > 0)
		look_at_mount(l, line, &v, &n);
	free(line);
	if (f)
		fclose(f);
	for (size_t i = 0; i < n; i++) {
		free(v[i].root);
		free(v[i].point);
	}
	free(v);
}

/* The device of the mount that users see. */
static dev_t device_in_mountinfo(struct sl_fan *g, dev_t otherwise)
{
	char *line = NULL;
	size_t cap = 0;
	FILE *f = fopen("/proc/self/mountinfo", "re");
	while (f && getline(&line, &cap, f) > 0) {
		unsigned long long id;
		unsigned a, b;
		if (sscanf(line, "%llu %*d %u:%u", &id, &a, &b) == 3 && id == g->area->mount)
			otherwise = makedev(a, b);
	}
	free(line);
	if (f)
		fclose(f);
	return otherwise;
}

/* ---- processes ---- */

/* What a descriptor of inotify or fanotify watches. */
static void look_at_watches(struct look *l, const char *pid, const char *fd)
{
	char path[600], *line = NULL;
	size_t cap = 0;
	snprintf(path, sizeof(path), "/proc/%s/fdinfo/%s", pid, fd);
	FILE *f = fopen(path, "re");
	while (f && getline(&line, &cap, f) > 0) {
		unsigned long long ino;
		unsigned dev;
		if ((sscanf(line, "inotify wd:%*x ino:%llx sdev:%x", &ino, &dev) == 2 ||
		     sscanf(line, "fanotify ino:%llx sdev:%x", &ino, &dev) == 2) &&
		    makedev(dev >> 20, dev & 0xfffff) == l->mdev)
			add(l, ino);
	}
	free(line);
	if (f)
		fclose(f);
}

static void look_at_descriptors(struct look *l, const char *pid)
{
	char path[320], link[32];
	struct stat st;
	snprintf(path, sizeof(path), "/proc/%s/fd", pid);
	DIR *d = opendir(path);
	struct dirent *e;
	while (d && (e = readdir(d))) {
		if (*e->d_name == '.' || fstatat(dirfd(d), e->d_name, &st, 0) < 0)
			continue;
		if (st.st_dev == l->dev)
			add(l, st.st_ino);
		ssize_t n =
		    st.st_dev == l->anon ? readlinkat(dirfd(d), e->d_name, link, sizeof(link) - 1) : 0;
		link[n > 0 ? n : 0] = '\0';
		if (strstr(link, "notify"))
			look_at_watches(l, pid, e->d_name);
	}
	if (d)
		closedir(d);
}

/* Where its threads are. */
static void look_at_places(struct look *l, const char *pid)
{
	char path[320];
	snprintf(path, sizeof(path), "/proc/%s/task", pid);
	DIR *d = opendir(path);
	struct dirent *e;
	while (d && (e = readdir(d))) {
		if (*e->d_name == '.')
			continue;
		snprintf(path, sizeof(path), "%.200s/cwd", e->d_name);
		add_at(l, dirfd(d), path);
		snprintf(path, sizeof(path), "%.200s/root", e->d_name);
		add_at(l, dirfd(d), path);
	}
	if (d)
		closedir(d);
}

/* This service and its keeper have descriptors for their work, and for accesses that wait: see waiting(). */
static bool ours(struct sl_fan *g, const char *pid)
{
	int n = atoi(pid);
	return n == getpid() || (n && n == g->cfg.keeper);
}

static int look_at_processes(struct look *l)
{
	ino_t seen[64];
	size_t nseen = 0;
	DIR *d = opendir("/proc");
	struct dirent *e;
	if (!d)
		return -errno;
	while ((e = readdir(d))) {
		char path[320];
		struct stat st;
		if (*e->d_name < '1' || *e->d_name > '9')
			continue;
		snprintf(path, sizeof(path), "%.200s/ns/mnt", e->d_name);
		bool known = fstatat(dirfd(d), path, &st, 0) < 0;
		for (size_t i = 0; i < nseen; i++)
			known |= seen[i] == st.st_ino;
		if (!known) {
			look_at_mounts(l, e->d_name);
			if (nseen < SL_ARRAY_SIZE(seen)) /* else some are read more than once */
				seen[nseen++] = st.st_ino;
		}
		if (ours(l->g, e->d_name))
			continue;
		look_at_places(l, e->d_name);
		look_at_descriptors(l, e->d_name);
	}
	closedir(d);
	return 0;
}

/* ---- what waits for us ---- */

/*
 * Everything that the kernel had asked before this call is noted in its slot, or answered. It is given up
 * where there is always more to read.
 */
static void calm(struct sl_fan *g)
{
	uint64_t until = sl_now() + CALM_NS;
	int left = 0;
	while (ioctl(g->group, FIONREAD, &left) == 0 && left && sl_now() < until)
		usleep(CALM_US);
	/* What is not queued any more is about to be looked at. */
	usleep(CALM_US);
	uint64_t reads = g->reads;
	while (g->reads % 2 && g->reads < reads + 2 && sl_now() < until)
		usleep(CALM_US / 10);
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
	struct look l = {
	    .u = u, .g = g, .dev = st.st_dev, .mdev = device_in_mountinfo(g, st.st_dev), .anon = anon.st_dev};
	calm(g);
	waiting(&l);
	int r = look_at_processes(&l);
	if (r == 0)
		r = l.err;
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

/* False if it sleeps, or is gone. */
static bool runs(struct runner *r)
{
	char path[64], text[4096];
	char state = 'X';
	unsigned long long u = 0, s = 0, a = 0, b = 0;
	snprintf(path, sizeof(path), "%s/stat", r->path);
	FILE *f = fopen(path, "re");
	size_t n = f ? fread(text, 1, sizeof(text) - 1, f) : 0;
	text[n] = '\0';
	if (f)
		fclose(f);
	const char *end = strrchr(text, ')'); /* of its name, in which there may be others */
	if (!end ||
	    sscanf(end + 1, " %c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %llu %llu", &state, &u, &s) != 3 ||
	    state != 'R')
		return false;
	snprintf(path, sizeof(path), "%s/status", r->path);
	f = fopen(path, "re");
	n = f ? fread(text, 1, sizeof(text) - 1, f) : 0;
	text[n] = '\0';
	if (f)
		fclose(f);
	const char *at = strstr(text, "\nvoluntary_ctxt_switches:");
	if (!at ||
	    sscanf(at, "\nvoluntary_ctxt_switches: %llu nonvoluntary_ctxt_switches: %llu", &a, &b) != 2)
		return false;
	r->ticks = u + s;
	r->switches = a + b;
	return true;
}

static int find_runners(struct runner **v, size_t *n)
{
	int r = 0;
	size_t cap = 0;
	DIR *d = opendir("/proc");
	struct dirent *e, *t;
	while (d && r == 0 && (e = readdir(d))) {
		char path[300];
		snprintf(path, sizeof(path), "/proc/%.16s/task", e->d_name);
		DIR *tasks = *e->d_name >= '1' && *e->d_name <= '9' ? opendir(path) : NULL;
		while (tasks && r == 0 && (t = readdir(tasks))) {
			struct runner x;
			snprintf(x.path, sizeof(x.path), "/proc/%.16s/task/%.16s", e->d_name, t->d_name);
			if (*t->d_name == '.' || atoi(t->d_name) == gettid() || !runs(&x))
				continue;
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
			if (runs(&x) && x.ticks == v[i].ticks && x.switches == v[i].switches)
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
