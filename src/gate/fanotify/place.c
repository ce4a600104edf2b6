/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A file of several names has one of them for its place at the origin. When that name goes there, another one
 * takes over; which there are nobody has written down, but who waits for the file came by one.
 */
#include <limits.h>
#include <string.h>
#include <unistd.h>

#include "base/beneath.h"
#include "base/fd.h"
#include "gate/fanotify/internal.h"

static int lookup_path(struct sl_store *s, const char *path, struct sl_object **dir, struct sl_object **ret,
		       const char **name)
{
	_cleanup_object_ struct sl_object *at = sl_object_ref(sl_object_root(s));
	char part[NAME_MAX + 1];
	for (;;) {
		size_t n = strcspn(path, "/");
		struct sl_object *o = NULL;
		if (n >= sizeof(part))
			return -ENAMETOOLONG;
		memcpy(part, path, n);
		part[n] = '\0';
		int r = sl_object_is_dir(at) ? sl_object_lookup(at, part, &o) : -ENOTDIR;
		if (r < 0)
			return r;
		if (!path[n]) {
			*dir = sl_steal_ptr(&at);
			*ret = o;
			*name = path;
			return 0;
		}
		sl_object_put(at);
		at = o;
		path += n + 1;
	}
}

bool fan_find_place(struct sl_fan *g, int fd, struct sl_object *o)
{
	char link[SL_PROC_FD_MAX], path[PATH_MAX];
	pthread_mutex_lock(&o->lock);
	bool lost = o->rec.flags & SL_LINKED && o->rec.flags & SL_GONE;
	pthread_mutex_unlock(&o->lock);
	ssize_t n = lost ? readlink(sl_proc_fd_path(link, fd, NULL), path, sizeof(path) - 1) : -1;
	if (n <= 0)
		return false;
	path[n] = '\0';
	/* As somebody sees it: what of it is above the clone depends on where that is mounted. */
	for (const char *below = strchr(path, '/'); below; below = strchr(below, '/')) {
		_cleanup_object_ struct sl_object *dir = NULL, *there = NULL;
		_cleanup_free_ char *up = NULL, *place = NULL;
		const char *name;
		if (lookup_path(g->store, ++below, &dir, &there, &name) < 0 || there != o)
			continue;
		return sl_object_place(dir, &up) == 0 && (place = sl_path_join(up, name)) &&
		       sl_object_set_place(o, place) == 0;
	}
	return false;
}
