/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* An object is as the origin says, and its watchers hear of it. */
#include <fcntl.h>
#include <sys/fanotify.h>

#include "base/beneath.h"
#include "base/fd.h"
#include "base/log.h"
#include "replay/native_internal.h"
#include "store/xattr.h"

static int follow_xattrs(struct sl_native_acts *a, struct sl_object *o, const struct sl_attr *at)
{
	if (!(sl_object_is_reg(o) || sl_object_is_dir(o)) ||
	    (at->no_xattrs && sl_xattr_list(o, NULL, 0) <= 0))
		return 0;
	pthread_mutex_lock(&o->lock);
	o->rec.flags |= SL_XATTRS;
	pthread_mutex_unlock(&o->lock);
	return sl_fill_wait(a->cfg.fill, SL_WANT_XATTRS, o, 0, 0);
}

/* Permissions and owner, unless they were changed here. @was: permissions at the origin before. */
static int follow_mode(int fd, const struct sl_attr *at, uint32_t was, uint64_t *raised)
{
	char p[SL_PROC_FD_MAX];
	struct stat st;
	if (fstat(fd, &st) < 0)
		return -errno;
	if ((st.st_mode ^ was) & 07777)
		return 0;
	if (st.st_uid != at->uid || st.st_gid != at->gid) {
		if (fchownat(fd, "", at->uid, at->gid, AT_EMPTY_PATH) < 0)
			return -errno;
		*raised |= FAN_ATTRIB;
		st.st_mode &= ~(mode_t)(S_ISUID | S_ISGID); /* which that takes away from files */
	}
	if (!S_ISLNK(st.st_mode) && (st.st_mode ^ at->mode) & 07777) {
		if (chmod(sl_proc_fd_path(p, fd, NULL), at->mode & 07777) < 0)
			return -errno;
		*raised |= FAN_ATTRIB;
	}
	return 0;
}

/* The record takes the version of @at, if it still has @had (NULL: whatever): a fill may have met a later
 * version just now, and has given the file its size and time. */
static int keep(struct sl_object *o, const struct sl_version *had, const struct sl_attr *at)
{
	pthread_mutex_lock(&o->lock);
	if (!had || sl_version_eq(&o->rec.origin, had))
		o->rec.origin = sl_attr_version(at);
	o->rec.mode = at->mode;
	int r = sl_object_save(o);
	pthread_mutex_unlock(&o->lock);
	return r;
}

static int conflict(struct sl_object *o)
{
	pthread_mutex_lock(&o->lock);
	int r = 0;
	if (!(o->rec.flags & SL_CONFLICT)) {
		o->rec.flags |= SL_CONFLICT;
		r = sl_object_save(o);
	}
	pthread_mutex_unlock(&o->lock);
	return r < 0 ? r : -EEXIST;
}

static int renew(struct sl_native_acts *a, struct sl_object *o, const struct sl_attr *at, uint64_t mask,
		 uint64_t *raised)
{
	bool invisible;
	int got = a->silent ? sl_silent_open(a->silent, o) : -EOPNOTSUPP;
	_cleanup_close_ int fd = got >= 0 ? got : sl_object_open_fill(o, &invisible);
	if (fd < 0)
		return fd;
	const struct timespec *atime = mask & FAN_MODIFY || !(mask & FAN_ATTRIB) ? NULL : &at->atime;
	*raised |= atime ? FAN_ATTRIB : FAN_MODIFY;
	int r;
	while ((r = sl_fill_renew(a->cfg.fill, o, fd, at, atime)) == -EBUSY)
		usleep(1000); /* an eviction is short */
	return r == -EEXIST ? conflict(o) : r;
}

static int update_file(struct sl_native_acts *a, struct sl_object *o, int fd, const struct sl_attr *at,
		       uint64_t mask, unsigned how, uint64_t *raised)
{
	struct sl_version v = sl_attr_version(at);
	bool changed = native_content_changed(a, o);
	pthread_mutex_lock(&o->lock);
	struct sl_version had = o->rec.origin;
	uint32_t was = o->rec.mode;
	bool local = !o->has_record || o->rec.flags & SL_LOCAL, linked = o->rec.flags & SL_LINKED;
	pthread_mutex_unlock(&o->lock);
	bool same = sl_version_eq(&had, &v) && !(how & SL_UPDATE_CONTENT);
	bool stays = sl_version_same_content(&had, &v) && how & SL_UPDATE_KEEP;
	if (local)
		return -EEXIST;
	if (a->cfg.lazy && (linked || at->nlink > 1) && sl_version_same_object(&had, &v))
		(void)sl_links_note(o, at->nlink, 0);
	/* A fill that met this version first has left the mode to us. */
	if (same && at->mode == was)
		return 0;
	stays |= same;
	if (changed)
		return stays ? 0 : conflict(o);
	int r = stays ? 0 : renew(a, o, at, mask, raised);
	if (r == 0 && !sl_version_same_object(&had, &v))
		sl_peers_note(a->peers, o);
	if (r == 0)
		r = follow_mode(fd, at, was, raised);
	if (r == 0 && (stays || at->mode != was))
		r = keep(o, stays ? &had : &v, at);
	return r;
}

/*
 * A directory keeps the version with which it was listed last: what was there then is known to have been
 * here. Its times are those of the last change here; to set them would be an event that the origin never saw.
 */
static int update_dir(struct sl_object *o, int fd, const struct sl_attr *at, uint64_t mask, unsigned how,
		      uint64_t *raised)
{
	struct timespec ts[2] = {at->atime, at->mtime};
	struct sl_version v = sl_attr_version(at);
	pthread_mutex_lock(&o->lock);
	uint32_t was = o->rec.mode;
	bool local = !o->has_record || o->rec.flags & SL_LOCAL;
	bool same = sl_version_eq(&o->rec.origin, &v) && at->mode == was && !(mask & FAN_ATTRIB);
	bool unknown = !o->rec.origin.ino && !o->rec.origin.generation; /* which one it is */
	pthread_mutex_unlock(&o->lock);
	if (local)
		return -EEXIST;
	/* Records have no owner: where nothing has changed there, another one was given to it here. */
	int r = same ? 0 : follow_mode(fd, at, was, raised);
	pthread_mutex_lock(&o->lock);
	if (r == 0 && (at->mode != o->rec.mode || unknown ||
		       (how & SL_UPDATE_LISTED && !sl_version_eq(&o->rec.origin, &v)))) {
		o->rec.mode = at->mode;
		o->rec.origin.ino = v.ino;
		o->rec.origin.generation = v.generation;
		if (how & SL_UPDATE_LISTED)
			o->rec.origin = v;
		r = sl_object_save(o);
	}
	pthread_mutex_unlock(&o->lock);
	if (r == 0 && mask & FAN_ATTRIB && !(*raised & FAN_ATTRIB)) {
		r = utimensat(fd, "", ts, AT_EMPTY_PATH) < 0 ? -errno : 0;
		*raised |= FAN_ATTRIB;
	}
	return r;
}

static int update_other(struct sl_object *o, int fd, const struct sl_attr *at, uint64_t *raised)
{
	struct timespec ts[2] = {at->atime, at->mtime};
	struct sl_version v = sl_attr_version(at);
	pthread_mutex_lock(&o->lock);
	bool same = sl_version_eq(&o->rec.origin, &v), local = !o->has_record || o->rec.flags & SL_LOCAL;
	uint32_t was = o->rec.mode;
	pthread_mutex_unlock(&o->lock);
	if (local || same)
		return local ? -EEXIST : 0;
	int r = follow_mode(fd, at, was, raised);
	if (r == 0)
		r = keep(o, NULL, at);
	struct stat st;
	if (r < 0 || fstat(fd, &st) < 0)
		return r < 0 ? r : -errno;
	/* Without need it would be an event. */
	if (sl_time_eq(st.st_mtim, at->mtime))
		return 0;
	*raised |= FAN_ATTRIB;
	return utimensat(fd, "", ts, AT_EMPTY_PATH) < 0 ? -errno : 0;
}

/* Opened and closed where users see it. */
static void touch(struct sl_native_acts *a, struct sl_object *o, int flags)
{
	_cleanup_free_ char *place = NULL;
	if (sl_object_place(o, &place) < 0)
		return;
	const char *dir = sl_store_config(a->cfg.store)->dir;
	_cleanup_close_ int root = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
	struct stat st, own;
	if (root < 0 || fstat(root, &st) < 0 || fstat(sl_store_tree_fd(a->cfg.store), &own) < 0 ||
	    st.st_dev != own.st_dev || st.st_ino != own.st_ino)
		return;
	_cleanup_close_ int fd = sl_open_beneath(root, place, flags | O_NOCTTY | O_NONBLOCK);
	if (fd < 0)
		sl_debug("'%s': no event for a change at the origin: %s", place, strerror(-fd));
}

/* An event without a change. */
static void raise_events(struct sl_native_acts *a, struct sl_object *o, int fd, uint64_t mask)
{
	char p[SL_PROC_FD_MAX];
	struct stat st;
	/* Under the lock: a fill may just be giving it another version, and its time. */
	pthread_mutex_lock(&o->lock);
	if (fstat(fd, &st) < 0) {
		pthread_mutex_unlock(&o->lock);
		return;
	}
	struct timespec mtime[2] = {{.tv_nsec = UTIME_OMIT}, st.st_mtim},
			atime[2] = {st.st_atim, {.tv_nsec = UTIME_OMIT}}, both[2] = {st.st_atim, st.st_mtim};
	if (mask & FAN_MODIFY)
		(void)utimensat(fd, "", mtime, AT_EMPTY_PATH);
	if (mask & FAN_ATTRIB && S_ISLNK(st.st_mode))
		(void)utimensat(fd, "", both, AT_EMPTY_PATH);
	else if (mask & FAN_ATTRIB)
		(void)chmod(sl_proc_fd_path(p, fd, NULL), st.st_mode & 07777);
	if (mask & FAN_ACCESS)
		(void)utimensat(fd, "", atime, AT_EMPTY_PATH);
	pthread_mutex_unlock(&o->lock);
	if (mask & (FAN_CLOSE_WRITE) && sl_object_is_reg(o))
		touch(a, o, O_WRONLY);
	if (mask & (FAN_OPEN | FAN_CLOSE_NOWRITE) && !(mask & FAN_CLOSE_WRITE) &&
	    (sl_object_is_reg(o) || sl_object_is_dir(o)))
		touch(a, o, O_RDONLY);
}

int native_update(void *arg, struct sl_object *dir, const char *name, struct sl_object *o,
		  const struct sl_ostate *s, uint64_t mask, unsigned how)
{
	struct sl_native_acts *a = arg;
	uint64_t raised = 0;
	int r = 0;
	native_on_thread(a);
	/* By its name: of what is opened by handle the directory's watchers do not hear. */
	_cleanup_close_ int dirfd = dir ? sl_object_pin(dir) : -EBADF;
	_cleanup_close_ int fd = !dir	     ? sl_object_pin(o)
				 : dirfd < 0 ? dirfd
					     : openat(dirfd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return dir && dirfd >= 0 ? -errno : fd;
	if (!native_is_at(fd, "", &o->handle))
		return -ENOENT;
	if (s && s->known && s->present) {
		if ((s->attr.mode & S_IFMT) != o->type)
			return -ESTALE;
		r = sl_object_is_reg(o)	  ? update_file(a, o, fd, &s->attr, mask, how, &raised)
		    : sl_object_is_dir(o) ? update_dir(o, fd, &s->attr, mask, how, &raised)
					  : update_other(o, fd, &s->attr, &raised);
		if (r == 0 && mask & FAN_ATTRIB)
			r = follow_xattrs(a, o, &s->attr);
	}
	if (r == 0 || r == -EEXIST)
		raise_events(a, o, fd, mask & ~raised);
	return r;
}
