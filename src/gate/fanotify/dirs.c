/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Lazy directories: the kernel (kernel/series1) asks before the names of a directory are used. What is here
 * has an ignore mark, which goes with its inode, so a warm tree is walked at the filesystem's own speed.
 *
 * Which directories are not filled their records say. What has none was made here, and is its user's; so in
 * the moment in which the replay has made a directory and not written its record, nobody may look into it.
 */
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/fanotify.h>

#include "base/log.h"
#include "gate/fanotify/internal.h"
#include "store/fs.h"

#define TRY_MS 5000 /* for what arrives within microseconds, or not at all */

bool sl_fan_lazy(const struct sl_fan *g)
{
	return g->asked & FAN_PRE_DIR_ACCESS;
}

void sl_fan_making(struct sl_fan *g, bool on)
{
	g->making = on;
}

int sl_fan_unlisted(struct sl_fan *g, struct sl_object *o)
{
	char p[SL_PROC_FD_MAX];
	if (!sl_fan_lazy(g))
		return 0;
	_cleanup_close_ int fd = sl_object_open(o, O_PATH);
	int r = SL_MIN(fd, 0);
	if (r == 0 &&
	    fanotify_mark(g->group, FAN_MARK_REMOVE | SL_FAN_IGNORE, FAN_PRE_DIR_ACCESS, AT_FDCWD,
			  sl_proc_fd_path(p, fd, NULL)) < 0 &&
	    errno != ENOENT)
		r = -errno;
	if (r < 0)
		sl_err("cannot take back an ignore mark: %s", strerror(-r));
	return r;
}

bool fan_dir_gone(struct sl_fan *g, int fd, int *err)
{
	struct stat st;
	_cleanup_object_ struct sl_object *o = NULL;
	if (fstat(fd, &st) < 0 || st.st_nlink)
		return false;
	*err = sl_object_of_fd(g->store, fd, &o);
	if (*err == 0) {
		pthread_mutex_lock(&o->lock);
		*err = o->damaged || o->rec.flags & SL_EVICTED ? -EIO : 0;
		pthread_mutex_unlock(&o->lock);
	}
	return true;
}

int fan_look_dir(struct sl_fan *g, int fd, bool may_wait, struct sl_object **ret)
{
	struct sl_object *o;
	char p[SL_PROC_FD_MAX];
	/* First: a directory without a record, and nobody is making one, is a user's. */
	bool making = g->making;
	int r = sl_object_of_fd(g->store, fd, &o);
	if (r < 0)
		return r;
	*ret = o;
	if (o->damaged)
		return -EIO;
	/* It may have been loaded just before it got one. */
	if (!o->has_record)
		sl_object_recorded(g->store, fd, ".");
	pthread_mutex_lock(&o->lock);
	bool unknown = making && !o->has_record;
	bool here = !unknown && o->rec.state == SL_FULL && !o->evicting;
	if (here) {
		/* With the lock: whoever takes its names away takes the mark away after this. */
		if (fanotify_mark(g->group, FAN_MARK_ADD | FAN_MARK_EVICTABLE | SL_FAN_IGNORE,
				  FAN_PRE_DIR_ACCESS, AT_FDCWD, sl_proc_fd_path(p, fd, NULL)) < 0)
			sl_debug("no ignore mark: %s", strerror(errno)); /* slower, and right */
		fan_respond(g, fd, FAN_ALLOW);
	}
	pthread_mutex_unlock(&o->lock);
	if (unknown) {
		if (may_wait)
			usleep(FAN_LATER_US);
		return FAN_LATER;
	}
	/* Who goes through a tree finds the next directories filled. */
	sl_fill_note_open(g->fill, o);
	return here ? FAN_ANSWERED : FAN_WANTS;
}

/* ---- does the kernel ask? ---- */

struct
try {
	int mnt, r;
};

static void *look_up(void *arg)
{
	struct try *t = arg;
	t->r = faccessat(t->mnt, "tree", F_OK, AT_SYMLINK_NOFOLLOW) < 0 ? -errno : 0;
	if (t->r == 0)
		t->r = faccessat(t->mnt, "no such name", F_OK, AT_SYMLINK_NOFOLLOW) < 0 ? -errno : 0;
	return NULL;
}

/* Refuse what @group asks, if anything. */
static bool refuse(struct sl_fan *g)
{
	int group = g->group;
	struct fanotify_event_metadata m[4];
	bool asked = false;
	ssize_t n = read(group, m, sizeof(m));
	for (struct fanotify_event_metadata *e = m; FAN_EVENT_OK(e, n); e = FAN_EVENT_NEXT(e, n)) {
		struct fanotify_response r = {.fd = e->fd, .response = SL_FAN_DENY_ERRNO(EIO)};
		asked |= e->mask & FAN_PRE_DIR_ACCESS && (!g->own_mount || fan_own_mount(g, e->fd));
		if (e->fd >= 0 && write(group, &r, sizeof(r)) == sizeof(r))
			close(e->fd);
	}
	return asked;
}

bool fan_asks_for_names(struct sl_fan *g)
{
	struct try t = {.mnt = -EBADF};
	struct pollfd p = {.fd = g->group, .events = POLLIN};
	pthread_t thread;
	/* A mount that is not exempt, and that nobody sees. */
	if (sl_mount_clone(sl_store_work_fd(g->store), "", &t.mnt) < 0)
		return false;
	_cleanup_close_ int mnt = t.mnt;
	if (pthread_create(&thread, NULL, look_up, &t) != 0)
		return false;
	bool asked = poll(&p, 1, TRY_MS) > 0 && refuse(g);
	/* Whatever it waits for, it must get away. */
	while (pthread_tryjoin_np(thread, NULL) == EBUSY)
		if (poll(&p, 1, 1) > 0)
			asked |= refuse(g);
	return asked && t.r == -EIO;
}
