/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "store/index.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>

#include "base/log.h"
#include "base/time.h"
#include "store/internal.h"

#define AGAIN_NS SL_NS_PER_SEC
#define GATHER_MAX                                                                                           \
	(4ul << 20) /* bytes of names that are noted until all are read anew, and as many as there were */

struct entry {
	uint64_t ino; /* 0: free */
	uint64_t parent;
	uint64_t name; /* where it begins in `names` */
};

struct sl_index {
	struct sl_store *store;
	pthread_mutex_t lock; /* protects all below; an object's and the store's locks are taken after it */
	struct entry *v;      /* open addressing; a power of two, at most half full */
	size_t size, n;
	char *names;
	size_t len, cap;
	uint64_t made;	 /* sl_now() time; 0: never */
	size_t made_len; /* `len` then */
};

int sl_index_new(struct sl_store *s, struct sl_index **ret)
{
	struct sl_index *x = calloc(1, sizeof(*x));
	if (!x)
		return -ENOMEM;
	x->store = s;
	pthread_mutex_init(&x->lock, NULL);
	*ret = x;
	return 0;
}

static void clear(struct sl_index *x)
{
	free(x->v);
	free(x->names);
	x->v = NULL;
	x->names = NULL;
	x->size = x->n = x->len = x->cap = 0;
}

void sl_index_free(struct sl_index *x)
{
	if (!x)
		return;
	clear(x);
	pthread_mutex_destroy(&x->lock);
	free(x);
}

static struct entry *slot(const struct sl_index *x, uint64_t ino)
{
	size_t i = (ino * 0x9e3779b97f4a7c15ull) >> 20 & (x->size - 1);
	while (x->v[i].ino && x->v[i].ino != ino)
		i = (i + 1) & (x->size - 1);
	return &x->v[i];
}

static int grow(struct sl_index *x)
{
	struct sl_index g = {.size = x->size ? x->size * 2 : 4096};
	g.v = calloc(g.size, sizeof(*g.v));
	if (!g.v)
		return -ENOMEM;
	for (size_t i = 0; i < x->size; i++)
		if (x->v[i].ino)
			*slot(&g, x->v[i].ino) = x->v[i];
	free(x->v);
	x->v = g.v;
	x->size = g.size;
	return 0;
}

static int add(struct sl_index *x, uint64_t ino, uint64_t parent, const char *name)
{
	size_t n = strlen(name) + 1;
	if (ino == 0)
		return 0;
	struct entry *known = x->size ? slot(x, ino) : NULL;
	if (known && known->ino && known->parent == parent && !strcmp(x->names + known->name, name))
		return 0;
	if (x->n >= x->size / 2 && grow(x) < 0)
		return -ENOMEM;
	if (x->len + n > x->cap) {
		size_t cap = SL_MAX(x->cap * 2, (size_t)65536);
		char *p = realloc(x->names, cap);
		if (!p)
			return -ENOMEM;
		x->names = p;
		x->cap = cap;
	}
	struct entry *e = slot(x, ino);
	if (!e->ino)
		x->n++;
	*e = (struct entry){.ino = ino, .parent = parent, .name = x->len};
	memcpy(x->names + x->len, name, n);
	x->len += n;
	return 0;
}

/* A directory to be read, under the name it was found by. */
struct todo {
	struct todo *up;
	DIR *dir;
	uint64_t ino;
};

static bool is_dir(int dfd, const struct dirent *e)
{
	struct stat st;
	if (e->d_type != DT_UNKNOWN)
		return e->d_type == DT_DIR;
	return fstatat(dfd, e->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISDIR(st.st_mode);
}

static struct todo *enter(struct todo *up, int dfd, const char *name, uint64_t ino)
{
	int fd = openat(dfd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	struct todo *t = fd >= 0 ? calloc(1, sizeof(*t)) : NULL;
	DIR *d = t ? fdopendir(fd) : NULL;
	if (!d) { /* it is just going away; or we are out of something, and a miss will tell */
		if (fd >= 0)
			close(fd);
		free(t);
		return up;
	}
	*t = (struct todo){up, d, ino};
	return t;
}

static int make(struct sl_index *x)
{
	struct sl_store *s = x->store;
	uint64_t began = sl_now();
	int r = 0;
	clear(x);
	r = grow(x);
	struct todo *t = r == 0 ? enter(NULL, s->tree_fd, ".", sl_object_ino(s->root)) : NULL;
	while (t) {
		struct dirent *e = r == 0 ? readdir(t->dir) : NULL;
		if (!e) {
			struct todo *up = t->up;
			closedir(t->dir);
			free(t);
			t = up;
			continue;
		}
		if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
			continue;
		r = add(x, e->d_ino, t->ino, e->d_name);
		if (r == 0 && is_dir(dirfd(t->dir), e))
			t = enter(t, dirfd(t->dir), e->d_name, e->d_ino);
	}
	x->made = sl_now();
	x->made_len = x->len;
	sl_info("the names of %zu objects were read in %llu ms, to find again what the kernel knows of", x->n,
		(unsigned long long)((x->made - began) / SL_NS_PER_MS));
	return r;
}

/* With the lock held. */
static int find(struct sl_index *x, uint64_t ino, unsigned depth, struct sl_object **ret)
{
	*ret = ino == sl_object_ino(x->store->root) ? sl_object_ref(x->store->root)
						    : sl_object_find(x->store, ino);
	if (*ret)
		return 0;
	struct entry *e = x->size ? slot(x, ino) : NULL;
	if (!e || !e->ino || depth > PATH_MAX / 2)
		return -ENOENT;
	_cleanup_object_ struct sl_object *dir = NULL;
	int r = find(x, e->parent, depth + 1, &dir);
	if (r == 0)
		r = sl_object_lookup(dir, x->names + e->name, ret);
	if (r == 0 && sl_object_ino(*ret) != ino) {
		sl_object_put(*ret);
		*ret = NULL;
		r = -ENOENT;
	}
	return r;
}

int sl_index_find(struct sl_index *x, uint64_t ino, struct sl_object **ret)
{
	pthread_mutex_lock(&x->lock);
	int r = find(x, ino, 0, ret);
	if (r < 0 && (!x->made || sl_now() - x->made > AGAIN_NS)) {
		r = make(x);
		if (r == 0)
			r = find(x, ino, 0, ret);
	}
	pthread_mutex_unlock(&x->lock);
	return r;
}

void sl_index_note(struct sl_index *x, struct sl_object *o)
{
	struct sl_store *s = o->store;
	pthread_mutex_lock(&x->lock);
	pthread_rwlock_rdlock(&s->tree);
	if (o->parent && o->name && x->made)
		(void)add(x, sl_object_ino(o), sl_object_ino(o->parent), o->name);
	/* Names of long ago have gathered: who is looked for next has all read anew. */
	if (x->len > 2 * x->made_len + GATHER_MAX) {
		clear(x);
		x->made = 0;
	}
	pthread_rwlock_unlock(&s->tree);
	pthread_mutex_unlock(&x->lock);
}

/* ---- by descriptor ---- */

static ssize_t path_of(int fd, char buf[PATH_MAX])
{
	char p[SL_PROC_FD_MAX];
	ssize_t n = readlink(sl_proc_fd_path(p, fd, NULL), buf, PATH_MAX - 1);
	if (n >= 0)
		buf[n] = '\0';
	return n;
}

/* Follow the path that the kernel shows for @fd, name by name. It is only a hint: checked at the end. */
static int by_path(struct sl_store *s, int fd, uint64_t ino, struct sl_object **ret)
{
	char top[PATH_MAX], path[PATH_MAX];
	ssize_t n = path_of(s->tree_fd, top);
	if (n < 0 || path_of(fd, path) < n || strncmp(path, top, (size_t)n) || (path[n] && path[n] != '/'))
		return -ENOENT;
	struct sl_object *o = sl_object_ref(s->root);
	char *save = NULL;
	int r = 0;
	for (char *name = strtok_r(path + n, "/", &save); name && r == 0; name = strtok_r(NULL, "/", &save)) {
		struct sl_object *next = NULL;
		r = sl_object_is_dir(o) ? sl_object_lookup(o, name, &next) : -ENOTDIR;
		sl_object_put(o);
		o = next;
	}
	if (r == 0 && sl_object_ino(o) != ino)
		r = -ENOENT;
	if (r < 0)
		sl_object_put(o);
	else
		*ret = o;
	return r;
}

int sl_index_find_fd(struct sl_index *x, int fd, struct sl_object **ret)
{
	struct sl_store *s = x->store;
	struct stat st;
	char p[SL_PROC_FD_MAX];
	if (fstat(fd, &st) < 0)
		return -errno;
	if (st.st_dev != s->dev)
		return -EXDEV;
	*ret = sl_object_find(s, st.st_ino);
	if (*ret || (st.st_nlink && by_path(s, fd, st.st_ino, ret) == 0))
		return 0;
	if (st.st_nlink && sl_index_find(x, st.st_ino, ret) == 0)
		return 0;
	int pin = open(sl_proc_fd_path(p, fd, NULL), O_PATH | O_CLOEXEC);
	return pin < 0 ? -errno : sl_object_new_pinned(s, pin, ret);
}
