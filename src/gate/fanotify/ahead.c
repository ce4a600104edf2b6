/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Marks ahead. Ignore marks go with their inodes, so after memory was short, or the machine was started, the
 * kernel asks again about each file that is here, and each time its reader waits until this process wakes up.
 * Who walks a tree (tar, grep -r) asks about the files of a directory one after the other: when it comes to
 * the second one, a thread of the pool marks those that follow, which takes a tenth of a wake-up for each.
 */
#include <dirent.h>
#include <fcntl.h>
#include <string.h>

#include "base/time.h"
#include "gate/fanotify/internal.h"
#include "store/walk.h"

#define GAP_NS	     (30 * SL_NS_PER_SEC) /* a longer pause ends a walk */
#define BEGIN	     2 /* this many of one directory, unless its like was just walked through */
#define WINDOW_FIRST 16u
#define WINDOW_MAX   512u
#define NAMES_MAX    16384 /* in larger directories the listing would take longer than it saves */

struct sweep {
	struct sl_work work;
	struct sl_fan *g;
	struct sl_handle dir;
	uint64_t from; /* inode number */
	unsigned window;
};

static void mark_full(struct sl_fan *g, int fd, struct sl_object *o)
{
	struct stat st;
	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || o->damaged)
		return;
	pthread_mutex_lock(&o->lock);
	/* With the lock: whoever evicts it takes the mark away after this. */
	if (fan_full(o, &st))
		fan_ignore(g, fd);
	pthread_mutex_unlock(&o->lock);
}

/* Mark @name of @dirfd if it is completely here. */
static void mark(struct sl_fan *g, int dirfd, const char *name)
{
	_cleanup_close_ int fd = openat(dirfd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	_cleanup_object_ struct sl_object *o = NULL;
	if (fd >= 0 && sl_object_of_fd(g->store, fd, &o) == 0)
		mark_full(g, fd, o);
}

/* Who comes to a file that was fetched ahead of him need not be asked about it. */
void sl_fan_complete(struct sl_fan *g, struct sl_object *o)
{
	_cleanup_close_ int fd = sl_object_is_reg(o) ? sl_object_open(o, O_PATH) : -EBADF;
	if (fd >= 0)
		mark_full(g, fd, o);
}

static void sweep_run(struct sl_work *work)
{
	struct sweep *w = sl_container_of(work, struct sweep, work);
	struct sl_fan *g = w->g;
	_cleanup_object_ struct sl_object *dir = NULL;
	struct sl_name *v = NULL;
	size_t n = 0, i = 0;
	_cleanup_close_ int fd = sl_handle_open(sl_store_fs_fd(g->store), &w->dir, O_RDONLY | O_DIRECTORY);
	if (fd >= 0 && sl_object_of_fd(g->store, fd, &dir) == 0 && sl_object_is_dir(dir) &&
	    sl_names_read(dir, &v, &n) == 0 && n <= NAMES_MAX) {
		/* In the order of the listing, as most walkers go. */
		while (i < n && v[i].ino != w->from)
			i++;
		for (unsigned left = w->window; ++i < n && left && !g->stop; left--)
			if (v[i].type == DT_REG)
				mark(g, fd, v[i].name);
	}
	sl_names_free(v, n);
	pthread_mutex_lock(&g->lock);
	g->sweeping = false;
	pthread_mutex_unlock(&g->lock);
	free(w);
}

/* The walk that goes through @dir, or else the one that was idle longest, from its beginning. Lock held. */
static struct fan_walk *walk_of(struct sl_fan *g, const struct sl_handle *dir, uint64_t now)
{
	struct fan_walk *old = &g->walks[0];
	bool walked = false;
	for (size_t i = 0; i < SL_ARRAY_SIZE(g->walks); i++) {
		struct fan_walk *w = &g->walks[i];
		if (w->dir.len == dir->len && w->dir.type == dir->type &&
		    !memcmp(w->dir.b, dir->b, dir->len) && now - w->when < GAP_NS)
			return w;
		walked |= w->window && now - w->when < GAP_NS;
		if (w->when < old->when)
			old = w;
	}
	*old = (struct fan_walk){.dir = *dir, .count = walked ? BEGIN - 1 : 0};
	return old;
}

void fan_mark_ahead(struct sl_fan *g, int fd, uint64_t ino)
{
	struct sl_handle dir;
	uint64_t now = sl_now();
	if (sl_handle_parent(fd, &dir) < 0)
		return;
	struct sweep *s = NULL;
	pthread_mutex_lock(&g->lock);
	struct fan_walk *w = walk_of(g, &dir, now);
	w->when = now;
	if (++w->count >= BEGIN && !g->sweeping && (s = calloc(1, sizeof(*s)))) {
		w->window = w->window ? SL_MIN(w->window * 2, WINDOW_MAX) : WINDOW_FIRST;
		*s = (struct sweep){
		    .work.run = sweep_run, .g = g, .dir = dir, .from = ino, .window = w->window};
		g->sweeping = true;
	}
	pthread_mutex_unlock(&g->lock);
	if (s)
		sl_pool_push(g->pool, &s->work);
}
