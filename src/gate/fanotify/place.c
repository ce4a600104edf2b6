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
#include "store/walk.h"

bool fan_find_place(struct sl_fan *g, int fd, struct sl_object *o)
{
	char link[SL_PROC_FD_MAX], path[PATH_MAX];
	pthread_mutex_lock(&o->lock);
	bool linked = o->rec.flags & SL_LINKED, lost = o->rec.flags & SL_GONE;
	pthread_mutex_unlock(&o->lock);
	if (!linked || !lost)
		return linked; /* another one who waited has found it */
	ssize_t n = readlink(sl_proc_fd_path(link, fd, NULL), path, sizeof(path) - 1);
	if (n <= 0)
		return false;
	path[n] = '\0';
	/* As somebody sees it: what of it is above the clone depends on where that is mounted. */
	for (const char *below = strchr(path, '/'); below; below = strchr(below, '/')) {
		_cleanup_object_ struct sl_object *dir = NULL, *there = NULL;
		_cleanup_free_ char *up = NULL, *place = NULL;
		const char *name = strrchr(below++, '/') + 1;
		if (sl_object_by_path(g->store, below, &dir, &there) < 0 || there != o)
			continue;
		return sl_object_place(dir, &up) == 0 && (place = sl_path_join(up, name)) &&
		       sl_object_set_place(o, place) == 0;
	}
	return false;
}
