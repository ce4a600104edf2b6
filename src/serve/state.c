/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "serve/state.h"

#include <limits.h>
#include <string.h>
#include <sys/stat.h>
#include <xxhash.h>

#include "base/fd.h"
#include "base/list.h"

#define DIRS_MAX 64 /* directories that are kept open until the next clear */

struct state {
	struct sl_hnode node;
	struct sl_state s;
	struct sl_evid dir;
	const char *name; /* NULL: the directory itself */
	char room[];
};

struct dir {
	struct sl_evid id;
	int fd; /* or why there is none */
};

struct sl_states {
	struct sl_tree *tree;
	struct sl_htab table;
	struct dir dirs[DIRS_MAX];
	unsigned ndirs;
};

static bool same(const struct sl_evid *a, const struct sl_evid *b)
{
	return a->generation == b->generation && a->ino == b->ino;
}

uint64_t sl_states_key(const struct sl_evid *dir, const char *name)
{
	return XXH3_64bits_withSeed(name ? name : "", name ? strlen(name) : 0, dir->generation ^ dir->ino);
}

static void close_dirs(struct sl_states *st)
{
	while (st->ndirs)
		sl_closep(&st->dirs[--st->ndirs].fd);
}

/* An O_PATH descriptor of the directory, which stays ours, or -errno. */
static int open_dir(struct sl_states *st, struct sl_nodes *nodes, uint64_t id, const struct sl_evid *dir)
{
	for (unsigned i = 0; i < st->ndirs; i++)
		if (same(&st->dirs[i].id, dir))
			return st->dirs[i].fd;
	_cleanup_place_ struct sl_place p;
	struct sl_found o;
	int fd = sl_nodes_place(nodes, id, &p);
	if (fd == 0)
		fd = sl_tree_find(st->tree, &p, false, &o);
	if (st->ndirs == DIRS_MAX)
		close_dirs(st);
	st->dirs[st->ndirs++] = (struct dir){*dir, fd};
	return fd;
}

/* Returns 0, -ENOENT, or what kept us from finding out. */
static int look(struct sl_states *st, int dirfd, const char *name, struct sl_found *o, char *target)
{
	/* Whoever asks about attributes may want the hint, and the others do not mind. */
	int r = sl_tree_lookup(st->tree, dirfd, name ? name : ".", true, o);
	if (r < 0 || !S_ISLNK(o->attr.mode))
		return r;
	ssize_t n = readlinkat(dirfd, name, target, PATH_MAX - 1);
	if (n > 0)
		target[n] = '\0';
	return n > 0 ? 0 : -EAGAIN; /* it is another object by now: a later change says so */
}

const struct sl_state *sl_states_get(struct sl_states *st, struct sl_nodes *nodes, uint64_t id,
				     const struct sl_evid *dir, const char *name)
{
	uint64_t key = sl_states_key(dir, name);
	for (struct sl_hnode *h = sl_htab_find(&st->table, key); h; h = sl_htab_next(h)) {
		struct state *x = sl_container_of(h, struct state, node);
		if (same(&x->dir, dir) && !!name == !!x->name && (!name || !strcmp(x->name, name)))
			return &x->s;
	}
	char target[PATH_MAX] = "";
	struct sl_found o = {0};
	int fd = open_dir(st, nodes, id, dir);
	int r = fd < 0 ? fd : look(st, fd, name, &o, target);
	size_t n = name ? strlen(name) + 1 : 0, k = *target ? strlen(target) + 1 : 0;
	struct state *x = malloc(sizeof(*x) + n + k);
	if (!x)
		return NULL;
	*x = (struct state){.dir = *dir};
	x->s.known = r == 0 || (r == -ENOENT && fd >= 0);
	x->s.present = r == 0;
	x->s.found = o;
	if (name)
		x->name = memcpy(x->room, name, n);
	if (k)
		x->s.target = memcpy(x->room + n, target, k);
	if (sl_htab_add(&st->table, &x->node, key) < 0) {
		free(x);
		return NULL;
	}
	return &x->s;
}

void sl_states_clear(struct sl_states *st)
{
	size_t i;
	for (struct sl_hnode *h = sl_htab_first(&st->table, &i), *next; h; h = next) {
		next = sl_htab_step(&st->table, &i, h);
		free(sl_container_of(h, struct state, node));
	}
	sl_htab_fini(&st->table);
	close_dirs(st);
}

int sl_states_new(struct sl_tree *tree, struct sl_states **ret)
{
	*ret = calloc(1, sizeof(**ret));
	if (!*ret)
		return -ENOMEM;
	(*ret)->tree = tree;
	return 0;
}

void sl_states_free(struct sl_states *st)
{
	if (!st)
		return;
	sl_states_clear(st);
	free(st);
}
