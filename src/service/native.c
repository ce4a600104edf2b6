/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "service/native.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <linux/major.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/sysmacros.h>

#include "base/fd.h"
#include "base/log.h"
#include "base/time.h"
#include "service/unlist.h"
#include "store/fs.h"
#include "store/pending.h"

#define GONE_NS	     (5 * SL_NS_PER_SEC)
#define ELSEWHERE_NS (15 * SL_NS_PER_SEC)

/* ---- what is mounted where ---- */

/*
 * A line of /proc/PID/mountinfo with the device @dev, of which a part of the tree is shown, or the mount @id.
 * Copies device and mount point.
 */
static bool find_mount(const char *pid, dev_t *dev, int id, char point[4097])
{
	char path[320], *line = NULL, root[4097];
	size_t cap = 0;
	bool found = false;
	snprintf(path, sizeof(path), "/proc/%s/mountinfo", pid);
	FILE *f = fopen(path, "re");
	while (f && !found && getline(&line, &cap, f) > 0) {
		unsigned a, b;
		int n;
		if (sscanf(line, "%d %*s %u:%u %4096s %4096s", &n, &a, &b, root, point) != 5)
			continue;
		found = id ? n == id : makedev(a, b) == *dev && !strncmp(root, "/tree", 5);
		if (found)
			*dev = makedev(a, b);
	}
	free(line);
	if (f)
		fclose(f);
	return found;
}

static bool sees_mount(const char *pid, dev_t dev, char **where)
{
	char point[4097];
	bool found = find_mount(pid, &dev, 0, point);
	if (found && asprintf(where, "%s (as process %s sees it)", point, pid) < 0)
		*where = NULL;
	return found;
}

/* The device as mountinfo has it, which on btrfs is not what stat(2) says. Looked up once: a filesystem that
 * was shut down tells nothing. */
static int device_of(struct sl_clone *c, dev_t *dev)
{
	const struct sl_store_config *cfg = sl_store_config(c->store);
	struct stat st;
	struct statx sx;
	char point[4097];
	*dev = c->dev;
	if (*dev)
		return 0;
	if (fstat(sl_store_tree_fd(c->store), &st) < 0)
		return -errno;
	*dev = st.st_dev;
	if (!cfg->image && !cfg->device &&
	    statx(AT_FDCWD, sl_store_path(c->store), 0, STATX_MNT_ID, &sx) == 0 && sx.stx_mask & STATX_MNT_ID)
		(void)find_mount("self", dev, (int)sx.stx_mnt_id, point);
	c->dev = *dev;
	return 0;
}

/* In any namespace? */
static bool other_mounts(dev_t dev, char **where)
{
	struct stat own, st;
	bool found = sees_mount("self", dev, where);
	DIR *d = !found && stat("/proc/self/ns/mnt", &own) == 0 ? opendir("/proc") : NULL;
	struct dirent *e;
	while (d && !found && (e = readdir(d))) {
		char p[320];
		snprintf(p, sizeof(p), "/proc/%s/ns/mnt", e->d_name);
		if (*e->d_name >= '1' && *e->d_name <= '9' && stat(p, &st) == 0 && st.st_ino != own.st_ino)
			found = sees_mount(e->d_name, dev, where);
	}
	if (d)
		closedir(d);
	return found;
}

static int mount_id(const char *path)
{
	char p[64], line[128];
	int id = -1;
	_cleanup_close_ int fd = open(path, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	snprintf(p, sizeof(p), "/proc/self/fdinfo/%d", fd);
	FILE *f = fd >= 0 ? fopen(p, "re") : NULL;
	while (f && fgets(line, sizeof(line), f) && sscanf(line, "mnt_id: %d", &id) != 1)
		;
	if (f)
		fclose(f);
	return id;
}

/* Not by stat(2), which fails on a filesystem that was shut down. */
static bool mounted_on(const char *dir, dev_t *dev)
{
	char point[4097];
	_cleanup_free_ char *parent = strdup(dir);
	char *end = parent ? strrchr(parent, '/') : NULL;
	if (!end)
		return false;
	end[end == parent] = '\0';
	int id = mount_id(dir);
	return id >= 0 && id != mount_id(parent) && find_mount("self", dev, id, point);
}

/* The loop device whose backing file is @image; its number in @n. */
static bool loop_of(const char *image, unsigned *n)
{
	struct stat st;
	DIR *d = stat(image, &st) == 0 ? opendir("/sys/block") : NULL;
	struct dirent *e;
	bool found = false;
	while (d && !found && (e = readdir(d))) {
		char dev[320];
		struct loop_info64 li;
		if (sscanf(e->d_name, "loop%u", n) != 1)
			continue;
		snprintf(dev, sizeof(dev), "/dev/%s", e->d_name);
		_cleanup_close_ int fd = open(dev, O_RDONLY | O_CLOEXEC);
		found = fd >= 0 && ioctl(fd, LOOP_GET_STATUS64, &li) == 0 && li.lo_inode == st.st_ino &&
			(dev_t)li.lo_device == st.st_dev;
	}
	if (d)
		closedir(d);
	return found;
}

/* ---- what was left ---- */

/* The device of the filesystem that the clone is on, if that is there; *@own: it is the clone's alone. */
static bool left_on(const char *store, const struct sl_store_config *cfg, dev_t *dev, bool *own)
{
	_cleanup_free_ char *image = sl_path_join(store, "image");
	struct stat st;
	char point[4097];
	unsigned n;
	*own = cfg->image || cfg->device;
	if (cfg->image) {
		if (!image || !loop_of(image, &n))
			return false;
		*dev = makedev(LOOP_MAJOR, n);
		return true;
	}
	if (cfg->device) {
		if (stat(cfg->device, &st) < 0 || !S_ISBLK(st.st_mode))
			return false;
		*dev = st.st_rdev;
		return true;
	}
	int id = mount_id(store);
	return id >= 0 && find_mount("self", dev, id, point);
}

bool sl_native_left(const char *store, const struct sl_store_config *cfg)
{
	dev_t dev, at;
	bool own;
	return cfg->native && left_on(store, cfg, &dev, &own) && mounted_on(cfg->dir, &at) && at == dev;
}

static bool still_used(const char *store, const struct sl_store_config *cfg)
{
	dev_t dev;
	bool own;
	if (cfg->image)
		return left_on(store, cfg, &dev, &own);
	_cleanup_close_ int fd = open(cfg->device, O_RDONLY | O_EXCL | O_CLOEXEC);
	return fd < 0 && errno == EBUSY;
}

int sl_native_clear(const char *store, const struct sl_store_config *cfg, char **why)
{
	dev_t dev, at;
	bool own;
	if (!left_on(store, cfg, &dev, &own))
		return 0;
	/*
	 * Its service and its keeper are gone, and what is not here reads as zeros, or as an error. Whoever
	 * has it open must not go on. A filesystem that the user has mounted stays the user's.
	 */
	while (mounted_on(cfg->dir, &at) && at == dev) {
		_cleanup_close_ int fd = open(cfg->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (fd >= 0 && own)
			(void)sl_fs_shutdown(fd);
		if (umount2(cfg->dir, MNT_DETACH | UMOUNT_NOFOLLOW) < 0)
			return sl_fail(why, -errno, "cannot unmount what the last service left on %s: %s",
				       cfg->dir, strerror(errno));
		sl_notice("removed the mount that the last service left on %s", cfg->dir);
	}
	uint64_t until = sl_now() + GONE_NS;
	while (own && still_used(store, cfg)) {
		if (sl_now() > until)
			return sl_fail(
			    why, -EBUSY,
			    "the clone's filesystem (device %u:%u) is still in use by what the last "
			    "service left: end those programs, or unmount it where else it is mounted",
			    major(dev), minor(dev));
		usleep(20000);
	}
	return 0;
}

/* ---- showing it ---- */

static int attach(struct sl_clone *c, char **why)
{
	_cleanup_close_ int mnt = -EBADF;
	int r = sl_mount_clone(sl_store_work_fd(c->store), "tree", &mnt);
	if (r < 0)
		return sl_fail(why, r, "cannot show the clone's filesystem: %s%s", strerror(-r),
			       r == -EINVAL ? " (it takes Linux 6.15)" : "");
	r = sl_fan_set_mount(c->fan, mnt);
	if (r < 0)
		return sl_fail(why, r, "cannot tell mounts apart: %s", strerror(-r));
	r = sl_mount_attach(mnt, sl_store_config(c->store)->dir, why);
	if (r == 0)
		sl_fan_set_shown(c->fan);
	return r;
}

/*
 * The kernel asks before names are used: the root is enough, and what is missing comes when it is wanted.
 * What is in it was listed, and marked, by an earlier service, if at all.
 */
static int show_root(struct sl_clone *c, char **why)
{
	struct sl_object *root = sl_object_root(c->store);
	pthread_mutex_lock(&root->lock);
	bool known = root->rec.origin.ino, xattrs = root->rec.flags & SL_XATTRS;
	c->listed = root->rec.state != SL_FULL;
	pthread_mutex_unlock(&root->lock);
	if (!known)
		return sl_fail(why, -EIO,
			       "nothing is known of the origin's root yet, and it cannot be reached");
	int r = xattrs ? sl_fill_wait(c->fill, SL_WANT_XATTRS, root, 0, 0) : 0;
	return r < 0 ? sl_fail(why, r, "the extended attributes of the origin's root: %s", strerror(-r)) : 0;
}

static int bring_all_names(struct sl_clone *c, bool (*progress)(void *arg, const struct sl_fill_progress *p),
			   void *arg, char **why)
{
	struct sl_object *root = sl_object_root(c->store);
	pthread_mutex_lock(&root->lock);
	bool none = root->rec.state != SL_FULL; /* else some were listed by an earlier service */
	pthread_mutex_unlock(&root->lock);
	/* Nobody asks before names are looked up: it must not be seen as it is. */
	int r = sl_native_shown(c) ? sl_native_hide(c, true, why) : 0;
	if (r < 0)
		return r;
	r = sl_fill_tree(c->fill, root, progress, arg);
	c->listed = r == 0 && none;
	if (r == 0)
		r = sl_fill_commit(c->fill);
	if (r == 0)
		r = sl_store_complete(c->store);
	return r == 0
		   ? 0
		   : sl_fail(why, r, "not all names could be fetched: %s%s", strerror(-r),
			     r == -EACCES ? " (a directory that the exporter may not read; the log names it)"
			     : r == -ENOSPC
				 ? " (the clone's filesystem is too small for them: give it more with "
				   "--capacity, or another place with --store)"
			     : r == -ENAMETOOLONG
				 ? " (a path, or the target of a symlink, is longer than the clone's "
				   "filesystem has room for; the log names it)"
				 : "");
}

int sl_native_open(struct sl_clone *c, bool (*progress)(void *arg, const struct sl_fill_progress *p),
		   void *arg, char **why)
{
	const struct sl_store_config *cfg = sl_store_config(c->store);
	bool own = cfg->image || cfg->device, complete = sl_store_is_complete(c->store);
	struct sl_fan_config fc = {.store = c->store,
				   .own = own,
				   .lazy = own && !complete,
				   .keeper = sl_keeper_pid(c->keeper),
				   .numbers_lost = sl_keeper_numbers_lost(c->keeper),
				   .fill = c->fill,
				   .group = sl_kept_get(c->keeper, SL_KEPT_GROUP),
				   .notify = sl_kept_get(c->keeper, SL_KEPT_NOTIFY)};
	fc.area = sl_kept_area(c->keeper, &fc.area_size);
	int r = sl_fan_new(&fc, &c->fan, why);
	if (r < 0)
		return r;
	sl_keeper_numbers_known(c->keeper);
	sl_kept_put(c->keeper, SL_KEPT_GROUP, sl_fan_group(c->fan));
	sl_kept_put(c->keeper, SL_KEPT_NOTIFY, sl_fan_notify(c->fan));
	struct sl_silent *silent = NULL;
	int q = sl_silent_new(c->fan, c->store, O_RDONLY, &silent);
	if (q < 0)
		sl_info("watchers hear of files that are opened to be written down: %s", strerror(-q));
	c->silent = silent;
	struct sl_pending p;
	sl_unlist_undo(c->store);
	if (sl_fan_lazy(c->fan)) {
		r = sl_store_make_whole(c->store);
		if (r == 0)
			r = show_root(c, why);
		/* What the last service was about to make will have its record soon. */
		sl_fan_making(c->fan, sl_pending_get(c->store, &p) == 0 && p.op == SL_PENDING_MKDIR);
	} else if (!complete) {
		r = bring_all_names(c, progress, arg, why);
	}
	if (r < 0)
		return r;
	/* An earlier service may have shown it. */
	_cleanup_close_ int dir = sl_native_shown(c) ? open(cfg->dir, O_PATH | O_CLOEXEC) : -EBADF;
	if (dir >= 0)
		(void)sl_fan_set_mount(c->fan, dir);
	r = sl_fan_start(c->fan);
	/* What an earlier one had shown, and is not there any more, somebody has unmounted meanwhile: that is
	 * the end of this one as well. */
	bool unmounted = dir < 0 && sl_keeper_successor(c->keeper) && sl_fan_was_shown(c->fan);
	return r < 0 || dir >= 0 || unmounted ? r : attach(c, why);
}

/* ---- and hiding it ---- */

bool sl_native_shown(struct sl_clone *c)
{
	dev_t dev, own;
	return mounted_on(sl_store_config(c->store)->dir, &dev) && device_of(c, &own) == 0 && own == dev;
}

bool sl_native_gone(struct sl_clone *c)
{
	_cleanup_free_ char *where = NULL;
	dev_t dev;
	return !sl_native_shown(c) && sl_fan_mount_gone(c->fan) && device_of(c, &dev) == 0 &&
	       !other_mounts(dev, &where);
}

/* -EAGAIN: what holds it is a mount elsewhere, and it is shown again. */
static int unmount(struct sl_clone *c, dev_t dev, bool force, char **why)
{
	_cleanup_free_ char *where = NULL;
	bool shown = sl_native_shown(c);
	if (shown && umount2(sl_store_config(c->store)->dir, UMOUNT_NOFOLLOW) < 0)
		return sl_fail(why, -errno, "%s", strerror(errno));
	/* Only now: what namespaces have of it by propagation goes with it. */
	if (!other_mounts(dev, &where))
		return 0;
	sl_fail(why, -EBUSY, "it is mounted on %s as well", where ? where : "another place");
	if (force || !shown)
		return -EBUSY;
	return attach(c, NULL) < 0 ? -EBUSY : -EAGAIN;
}

int sl_native_hide(struct sl_clone *c, bool force, char **why)
{
	const char *dir = sl_store_config(c->store)->dir;
	dev_t dev;
	int r = device_of(c, &dev);
	if (r < 0)
		return r;
	/* Programs that make themselves a mount namespace have all mounts in it, until they have tidied up or
	 * are done: many are soon. */
	uint64_t until = sl_now() + ELSEWHERE_NS;
	while ((r = unmount(c, dev, force, why)) == -EAGAIN && sl_now() < until) {
		if (why)
			free(sl_steal_ptr(why));
		usleep(500000);
	}
	if (r == -EAGAIN)
		r = -EBUSY;
	if (r == 0 || !force)
		return r;
	/* Who goes on using it would soon see what a placeholder is made of. What is here is noted as long as
	 * that is possible. */
	(void)sl_fill_commit(c->fill);
	(void)sl_store_sync(c->store);
	r = sl_fs_shutdown(sl_store_fs_fd(c->store));
	if (r < 0)
		return sl_fail(why, r, "its filesystem cannot be shut down while it is in use (%s)",
			       strerror(-r));
	if (sl_native_shown(c) && umount2(dir, MNT_DETACH | UMOUNT_NOFOLLOW) < 0)
		return sl_fail(why, -errno, "%s", strerror(errno));
	return 0;
}

void sl_native_stop(struct sl_clone *c)
{
	sl_fan_refuse(c->fan);
	sl_origin_stop(c->origin);
	uint64_t until = sl_now() + GONE_NS;
	while (sl_fan_waiting(c->fan) && sl_now() < until)
		usleep(5000);
	sl_fan_stop(c->fan);
}
