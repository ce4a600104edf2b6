/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What users do to names in the clone. Each change is first noted (the old place, the whiteout), then done: a
 * crash between leaves a note too many, which is harmless, never one too few.
 */
#include <fcntl.h>
#include <stdio.h>
#include <sys/xattr.h>

#include "base/log.h"
#include "store/internal.h"
#include "store/remote.h"

char *sl_link_key(const struct sl_version *v, char buf[SL_LINK_KEY_MAX])
{
	snprintf(buf, SL_LINK_KEY_MAX, "%llx.%x", (unsigned long long)v->ino, v->generation);
	return buf;
}

/* ---- whiteouts ---- */

int sl_whiteout_add(struct sl_store *s, uint64_t ino, const char *name)
{
	char path[32 + 256];
	snprintf(path, sizeof(path), "%llu", (unsigned long long)ino);
	if (mkdirat(s->whiteouts_fd, path, 0700) < 0 && errno != EEXIST)
		return -errno;
	snprintf(path, sizeof(path), "%llu/%s", (unsigned long long)ino, name);
	int fd = openat(s->whiteouts_fd, path, O_WRONLY | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0)
		return -errno;
	close(fd);
	return 0;
}

static void whiteout_drop(struct sl_object *dir, const char *name)
{
	char path[32 + 256];
	snprintf(path, sizeof(path), "%llu/%s", (unsigned long long)sl_object_ino(dir), name);
	(void)unlinkat(dir->store->whiteouts_fd, path, 0);
}

void sl_whiteout_drop_dir(struct sl_store *s, uint64_t ino)
{
	char name[32];
	snprintf(name, sizeof(name), "%llu", (unsigned long long)ino);
	int r = sl_remove_tree(s->whiteouts_fd, name);
	if (r < 0)
		sl_warn("whiteouts of directory %s: %s", name, strerror(-r));
}

bool sl_object_whiteout(struct sl_object *dir, const char *name)
{
	char path[32 + 256];
	snprintf(path, sizeof(path), "%llu/%s", (unsigned long long)sl_object_ino(dir), name);
	return faccessat(dir->store->whiteouts_fd, path, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
}

bool sl_object_has_whiteouts(struct sl_object *dir)
{
	char path[32];
	snprintf(path, sizeof(path), "%llu", (unsigned long long)sl_object_ino(dir));
	return faccessat(dir->store->whiteouts_fd, path, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
}

/* ---- changes ---- */

/* The directory's own times count from now on. */
int sl_object_touch(struct sl_object *dir)
{
	pthread_mutex_lock(&dir->lock);
	int r = sl_object_set_meta(dir);
	pthread_mutex_unlock(&dir->lock);
	return r;
}

/* Write down where the object is at the origin, before a name of it changes. */
static int note_place(struct sl_object *o)
{
	_cleanup_free_ char *place = NULL;
	int r = 0;
	pthread_mutex_lock(&o->lock);
	if (!(o->rec.flags & (SL_LOCAL | SL_MOVED)) && o->has_record) {
		r = sl_object_place(o, &place);
		struct sl_at at;
		if (r == 0)
			r = sl_at_begin(o, &at);
		if (r == 0) {
			r = sl_at_setxattr(&at, o->store->xattr_place, place, strlen(place));
			sl_at_end(&at);
			if (r == -ENOSPC || r == -E2BIG || r == -ERANGE)
				r = -EXDEV; /* too long for an attribute: mv then copies */
		}
		if (r == 0) {
			o->rec.flags |= SL_MOVED;
			r = sl_object_save(o);
			if (r < 0)
				o->rec.flags &= (uint16_t)~SL_MOVED;
		}
	}
	pthread_mutex_unlock(&o->lock);
	return r;
}

/* Who has it open may still want content that is not here, also of a later service: the object then only has
 * its record. */
static void note_open_place(struct sl_object *o)
{
	if (!o || !sl_object_is_reg(o) || o->damaged)
		return;
	pthread_mutex_lock(&o->lock);
	bool open = o->opens && !sl_chunkmap_full(&o->map);
	pthread_mutex_unlock(&o->lock);
	if (open)
		(void)note_place(o);
}

static bool is_moved(struct sl_object *o)
{
	pthread_mutex_lock(&o->lock);
	bool m = o->rec.flags & SL_MOVED;
	pthread_mutex_unlock(&o->lock);
	return m;
}

/*
 * With the tree lock held for writing, before the name @name of @o in @dir goes: if it is the one we know,
 * keep hold of the object by a descriptor. Sets *@pinned, which the caller hands to lose_name() or closes.
 */
static int hold(struct sl_object *o, struct sl_object *dir, const char *name, int dfd, int *pinned)
{
	if (!o || o->parent != dir || strcmp(o->name, name))
		return 0;
	*pinned = openat(dfd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	return *pinned < 0 ? -errno : 0;
}

/* The name is gone. Returns the parent reference to be put after the lock is dropped. */
static struct sl_object *lose_name(struct sl_object *o, int *pinned, char **place)
{
	if (!o || *pinned < 0)
		return NULL;
	if (!o->orphan_place)
		o->orphan_place =
		    sl_steal_ptr(place); /* who has it open may still want content that is not here */
	struct sl_object *parent = o->parent;
	o->parent = NULL;
	free(o->name);
	o->name = NULL;
	o->fd = sl_steal_fd(pinned);
	return parent;
}

/*
 * One name of a file with several names at the origin is gone. While there may be names that were not listed
 * here yet the index keeps the object: they are names of this one, with all that was changed here, and one
 * less if it was deleted here. Where the origin deleted it (@remote) and nothing was changed, it would be
 * made anew for them.
 */
static void unlinked(struct sl_object *o, bool remote)
{
	char key[SL_LINK_KEY_MAX];
	struct stat st;
	if (!o || !sl_object_is_reg(o))
		return;
	pthread_mutex_lock(&o->lock);
	if (o->rec.flags & SL_LINKED) {
		if (o->rec.nlink > 0)
			o->rec.nlink--;
		(void)sl_object_save(o);
		sl_link_key(&o->rec.origin, key);
		if (fstatat(o->store->links_fd, key, &st, AT_SYMLINK_NOFOLLOW) == 0 && st.st_nlink == 1 &&
		    st.st_ino == sl_object_ino(o) &&
		    (o->rec.nlink == 0 || (remote && !(o->rec.flags & (SL_LOCAL | SL_MODIFIED | SL_META)))))
			unlinkat(o->store->links_fd, key, 0);
	}
	pthread_mutex_unlock(&o->lock);
}

/* @remote: the origin has done it. Nothing is noted then: the place is gone there, too. */
static int unlink_name(struct sl_object *dir, const char *name, bool rmdir, bool remote)
{
	struct sl_store *s = dir->store;
	_cleanup_object_ struct sl_object *o = NULL;
	_cleanup_object_ struct sl_object *parent = NULL;
	_cleanup_close_ int pinned = -EBADF;
	int r = sl_object_lookup(dir, name, &o);
	if (r < 0 && r != -EBADMSG && r != -EPROTONOSUPPORT) /* what is damaged may be deleted */
		return r;
	if (o && sl_object_is_dir(o) != rmdir)
		return rmdir ? -ENOTDIR : -EISDIR;
	if (!remote)
		note_open_place(o);
	_cleanup_free_ char *place = NULL;
	if (o)
		(void)sl_object_place(o, &place);
	r = remote ? 0 : sl_object_touch(dir);
	if (r < 0)
		return r;

	pthread_rwlock_wrlock(&s->tree);
	int dfd = sl_dirfd_pin(dir);
	r = dfd < 0 ? dfd : 0;
	if (r == 0) {
		r = hold(o, dir, name, dfd, &pinned);
		if (r == 0 && !remote && !(o && o->local))
			r = sl_whiteout_add(s, sl_object_ino(dir), name);
		if (r == 0 && unlinkat(dfd, name, rmdir ? AT_REMOVEDIR : 0) < 0)
			r = -errno;
		if (r == 0)
			parent = lose_name(o, &pinned, &place);
		sl_dirfd_unpin(dir);
	}
	pthread_rwlock_unlock(&s->tree);
	if (r == 0)
		unlinked(o, remote);
	if (r == 0 && rmdir && o)
		sl_whiteout_drop_dir(s, sl_object_ino(o));
	return r;
}

int sl_object_unlink(struct sl_object *dir, const char *name, bool rmdir)
{
	return unlink_name(dir, name, rmdir, false);
}

static int rename_name(struct sl_object *dir, const char *name, struct sl_object *newdir, const char *newname,
		       unsigned flags, bool remote)
{
	struct sl_store *s = dir->store;
	bool exchange = flags & RENAME_EXCHANGE;
	if (flags & ~(unsigned)(RENAME_EXCHANGE | RENAME_NOREPLACE) ||
	    !sl_name_valid(newname, strlen(newname)))
		return -EINVAL;
	_cleanup_object_ struct sl_object *o = NULL, *target = NULL, *parent = NULL;
	_cleanup_free_ char *new1 = strdup(newname), *new2 = strdup(name);
	_cleanup_close_ int pinned = -EBADF, o_pinned = -EBADF;
	if (!new1 || !new2)
		return -ENOMEM;
	int r = sl_object_lookup(dir, name, &o);
	if (r < 0)
		return r;
	r = sl_object_lookup(newdir, newname, &target);
	if (r < 0 && r != -ENOENT && r != -EBADMSG && r != -EPROTONOSUPPORT)
		return r;
	if (r == 0 && flags & RENAME_NOREPLACE)
		return -EEXIST;
	if (exchange && !target)
		return r == 0 ? -ENOENT : r;
	if (o == target)
		return 0; /* two names of one object: POSIX says nothing happens */
	_cleanup_free_ char *place = NULL;
	if (!exchange && !remote)
		note_open_place(target);
	if (target)
		(void)sl_object_place(target, &place);
	r = remote ? 0 : note_place(o);
	if (r == 0 && exchange && !remote)
		r = note_place(target);
	if (r == 0 && !remote)
		r = sl_object_touch(dir);
	if (r == 0 && !remote)
		r = sl_object_touch(newdir);
	if (r < 0)
		return r;
	bool o_moved = is_moved(o), t_moved = target && is_moved(target);

	pthread_rwlock_wrlock(&s->tree);
	int dfd = sl_dirfd_pin(dir), nfd = sl_dirfd_pin(newdir);
	r = dfd < 0 ? dfd : nfd < 0 ? nfd : 0;
	if (r == 0 && !exchange)
		r = hold(target, newdir, newname, nfd, &pinned);
	if (r == 0 && !remote && !o->local)
		r = sl_whiteout_add(s, sl_object_ino(dir), name);
	/* That what has no record is not the origin's there the whiteout says: see sl_object_adopt(). */
	if (r == 0 && !remote && !o->has_record)
		r = sl_whiteout_add(s, sl_object_ino(newdir), newname);
	if (r == 0 && !remote && exchange && !target->has_record)
		r = sl_whiteout_add(s, sl_object_ino(dir), name);
	if (r == 0 && !remote && target && !target->local)
		r = sl_whiteout_add(s, sl_object_ino(newdir), newname);
	if (r == 0 && renameat2(dfd, name, nfd, newname, flags) < 0)
		r = -errno;
	if (r == 0) {
		bool known = o->parent == dir && !strcmp(o->name, name);
		bool t_known = exchange && target->parent == newdir && !strcmp(target->name, newname);
		if (!exchange)
			parent = lose_name(target, &pinned, &place);
		o->moved = o_moved;
		if (known) {
			free(o->name);
			o->name = sl_steal_ptr(&new1);
			if (dir != newdir) {
				o->parent = sl_object_ref(newdir);
				parent = parent ? (sl_object_put(dir), parent) : dir;
			}
		}
		if (exchange) {
			target->moved = t_moved;
			if (t_known) {
				free(target->name);
				target->name = sl_steal_ptr(&new2);
				if (dir != newdir) {
					target->parent = sl_object_ref(dir);
					parent = parent ? (sl_object_put(newdir), parent) : newdir;
				}
			}
		}
	}
	if (dfd >= 0)
		sl_dirfd_unpin(dir);
	if (nfd >= 0)
		sl_dirfd_unpin(newdir);
	pthread_rwlock_unlock(&s->tree);
	if (r == 0 && !exchange && target) {
		if (sl_object_is_dir(target))
			sl_whiteout_drop_dir(s, sl_object_ino(target));
		unlinked(target, remote);
	}
	return r;
}

int sl_object_rename(struct sl_object *dir, const char *name, struct sl_object *newdir, const char *newname,
		     unsigned flags)
{
	return rename_name(dir, name, newdir, newname, flags, false);
}

int sl_remote_unlink(struct sl_object *dir, const char *name, bool rmdir)
{
	return unlink_name(dir, name, rmdir, true);
}

int sl_remote_rename(struct sl_object *dir, const char *name, struct sl_object *newdir, const char *newname,
		     unsigned flags)
{
	return rename_name(dir, name, newdir, newname, flags, true);
}

int sl_object_link(struct sl_object *o, struct sl_object *newdir, const char *newname)
{
	struct sl_store *s = o->store;
	_cleanup_free_ char *copy = strdup(newname);
	if (!copy)
		return -ENOMEM;
	if (!sl_name_valid(newname, strlen(newname)))
		return -EINVAL;
	int r = note_place(o);
	if (r == 0)
		r = sl_object_touch(newdir);
	if (r < 0)
		return r;
	bool moved = is_moved(o);
	int old = -EBADF;

	pthread_rwlock_wrlock(&s->tree);
	int nfd = sl_dirfd_pin(newdir);
	r = nfd < 0 ? nfd : 0;
	bool noted = !o->has_record && !sl_object_whiteout(newdir, newname);
	if (r == 0 && noted)
		r = sl_whiteout_add(s, sl_object_ino(newdir), newname);
	if (r == 0 && o->fd >= 0) {
		char p[SL_PROC_FD_MAX];
		if (linkat(AT_FDCWD, sl_proc_fd_path(p, o->fd, NULL), nfd, newname, AT_SYMLINK_FOLLOW) < 0)
			r = -errno;
	} else if (r == 0) {
		int dfd = sl_dirfd_pin(o->parent);
		if (dfd < 0 || linkat(dfd, o->name, nfd, newname, 0) < 0)
			r = dfd < 0 ? dfd : -errno;
		if (dfd >= 0)
			sl_dirfd_unpin(o->parent);
	}
	if (r < 0 && noted)
		whiteout_drop(newdir, newname);
	if (r == 0) {
		o->moved = moved;
		if (!o->parent && o != s->root) { /* it had no name that we knew: now it has */
			o->parent = sl_object_ref(newdir);
			o->name = sl_steal_ptr(&copy);
			old = sl_steal_fd(&o->fd);
		}
	}
	if (nfd >= 0)
		sl_dirfd_unpin(newdir);
	pthread_rwlock_unlock(&s->tree);
	if (old >= 0)
		close(old);
	if (r == 0) {
		pthread_mutex_lock(&o->lock);
		if (o->rec.flags & SL_LINKED) {
			o->rec.nlink++;
			r = sl_object_save(o);
		}
		pthread_mutex_unlock(&o->lock);
	}
	return r;
}

static struct sl_record local_record(uint32_t mode, dev_t rdev)
{
	return (struct sl_record){
	    .state = SL_FULL, .flags = SL_LOCAL | SL_MODIFIED, .mode = mode, .rdev = rdev, .nlink = 1};
}

/* A symlink or special file in an unprivileged store: that it is not the origin's the whiteout says. */
static bool no_record(struct sl_object *dir, uint32_t mode)
{
	return !dir->store->privileged && !S_ISREG(mode) && !S_ISDIR(mode);
}

int sl_object_announce(struct sl_object *dir, const char *name, uint32_t mode, bool *noted)
{
	*noted = no_record(dir, mode) && !sl_object_whiteout(dir, name);
	return *noted ? sl_whiteout_add(dir->store, sl_object_ino(dir), name) : 0;
}

void sl_object_renounce(struct sl_object *dir, const char *name, bool noted)
{
	if (noted)
		whiteout_drop(dir, name);
}

int sl_object_adopt(struct sl_object *dir, const char *name, uint32_t mode, dev_t rdev,
		    struct sl_object **ret)
{
	struct sl_record rec = local_record(mode, rdev);
	struct sl_at at;
	int r = sl_at_begin_dir(dir, &at);
	if (r < 0)
		return r;
	at.name = name;
	r = sl_record_save_at(dir->store, at.fd, name, &rec, NULL, 0);
	sl_at_end(&at);
	if ((r == -EPERM || r == -EOPNOTSUPP) && no_record(dir, mode))
		r = 0;
	if (r < 0)
		return r;
	r = sl_object_lookup(dir, name, ret);
	if (r == 0 && S_ISDIR(mode))
		sl_whiteout_drop_dir(
		    dir->store, sl_object_ino(*ret)); /* of an earlier directory with this inode number */
	return r;
}

int sl_object_adopt_tmpfile(struct sl_object *dir, int fd, uint32_t mode, struct sl_object **ret)
{
	struct sl_record rec = local_record(mode, 0);
	char p[SL_PROC_FD_MAX];
	uint8_t b[SL_RECORD_SIZE];
	sl_record_encode(&rec, b);
	if (fsetxattr(fd, dir->store->xattr_record, b, sizeof(b), 0) < 0)
		return -errno;
	_cleanup_close_ int pin = open(sl_proc_fd_path(p, fd, NULL), O_PATH | O_CLOEXEC);
	if (pin < 0)
		return -errno;
	return sl_object_new_pinned(dir->store, sl_steal_fd(&pin), ret);
}
