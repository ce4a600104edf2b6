/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Operations on names. A directory has its names before any of them is looked up, made or removed. */
#include <fcntl.h>
#include <stdio.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>

#include "gate/fuse/internal.h"

static void reply_entry(struct sl_gate *g, struct sl_req *rq, struct sl_object *o, const struct sl_attr *a)
{
	struct fuse_entry_out e;
	int r = gate_entry(g, rq, o, a, &e);
	if (r < 0)
		sl_reply_err(rq, r);
	else if (r == 0)
		sl_reply(rq, &e, sizeof(e));
}

/* What the store says of a name that cannot be shown is our trouble, not the reader's mistake. */
static int show_error(int r)
{
	return r == -EBADMSG || r == -EPROTONOSUPPORT || r == -EXDEV ? -EIO : r;
}

void gate_lookup(struct sl_gate *g, struct sl_req *rq, struct sl_object *dir)
{
	if (!sl_object_is_dir(dir)) {
		sl_reply_err(rq, -ENOTDIR);
		return;
	}
	if (!gate_need(g, rq, dir, SL_WANT_NAMES, 0, 0))
		return;
	_cleanup_object_ struct sl_object *o = NULL;
	struct sl_attr a;
	int r = sl_object_lookup_attr(dir, rq->m.name, &o, &a);
	if (r == 0) {
		gate_looked_up(rq, o);
		reply_entry(g, rq, o, &a);
	} else if (r == -ENOENT && dir->leaving) {
		sl_reply_err(rq, -ESTALE);
	} else if (r == -ENOENT) {
		/* Names come and go through us only: that there is none may be remembered. */
		struct fuse_entry_out none = {.entry_valid = VALID_SECONDS};
		sl_reply(rq, &none, sizeof(none));
	} else {
		sl_reply_err(rq, show_error(r));
	}
}

static dev_t rdev_decode(uint32_t d)
{
	return makedev((d & 0xfff00) >> 8, (d & 0xff) | ((d >> 12) & 0xfff00));
}

/* Modes of what is made: the umask does not count where a default ACL does. */
static uint32_t make_mode(int dirfd, uint32_t mode, uint32_t umask_)
{
	return fgetxattr(dirfd, "system.posix_acl_default", NULL, 0) > 0 ? mode : mode & ~umask_;
}

/*
 * Give what was just made to the user who asked for it. In an unprivileged store the file stays accessible to
 * the store's owner; what users see as its mode goes into the record. Returns that mode, or -errno.
 */
static int settle(struct sl_gate *g, struct sl_object *dir, int dirfd, const char *name,
		  const struct fuse_in_header *h, uint32_t mode)
{
	struct stat st;
	if (fstatat(dirfd, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
		return -errno;
	pthread_mutex_lock(&dir->lock);
	bool setgid = dir->rec.mode & S_ISGID;
	pthread_mutex_unlock(&dir->lock);
	if (!g->privileged)
		return (int)((st.st_mode & (S_IFMT | 01077)) | (mode & 06700) |
			     (setgid && S_ISDIR(st.st_mode) ? S_ISGID : 0));
	gid_t gid = setgid ? (gid_t)-1 : h->gid;
	if (fchownat(dirfd, name, h->uid, gid, AT_SYMLINK_NOFOLLOW) < 0)
		return -errno;
	if (!S_ISLNK(st.st_mode) && st.st_mode & (S_ISUID | S_ISGID) &&
	    fchmodat(dirfd, name, st.st_mode & 07777, 0) < 0)
		return -errno;
	return (int)st.st_mode;
}

static mode_t store_mode(const struct sl_gate *g, uint32_t mode, bool dir)
{
	return g->privileged ? mode & 07777 : (mode & 01777) | (dir ? 0700 : 0600);
}

/*
 * A request that comes again may have been carried out by a service that died before it could say so. The
 * kernel holds the directory locked from before it asks until it is answered, and asks to make only what it
 * knows not to be there: what is there now, and was made here, is what this very request made, perhaps not to
 * its end.
 */
static bool made_already(struct sl_req *rq, struct sl_object *dir, const char *name, uint32_t type, int err)
{
	_cleanup_object_ struct sl_object *o = NULL;
	if (err != -EEXIST || !sl_req_resent(rq) || sl_object_lookup(dir, name, &o) < 0)
		return false;
	pthread_mutex_lock(&o->lock);
	bool ours = o->type == type && (o->rec.flags & SL_LOCAL || !o->has_record);
	pthread_mutex_unlock(&o->lock);
	return ours;
}

void gate_make(struct sl_gate *g, struct sl_req *rq, struct sl_object *dir)
{
	if (!gate_need(g, rq, dir, SL_WANT_NAMES, 0, 0))
		return;
	uint32_t op = rq->m.h.opcode;
	const char *name = rq->m.name;
	_cleanup_close_ int dfd = sl_object_open_dir(dir);
	int r = dfd < 0 ? dfd : sl_object_touch(dir);
	uint32_t mode = 0, type = op == FUSE_MKDIR   ? S_IFDIR
				  : op == FUSE_MKNOD ? rq->m.in.mknod.mode & S_IFMT
						     : S_IFLNK;
	dev_t rdev = 0;
	bool noted = false;
	if (r == 0)
		r = sl_object_announce(dir, name, type, &noted);
	if (r == 0 && op == FUSE_MKDIR) {
		mode = make_mode(dfd, rq->m.in.mkdir.mode, rq->m.in.mkdir.umask);
		r = mkdirat(dfd, name, store_mode(g, mode, true)) < 0 ? -errno : 0;
	} else if (r == 0 && op == FUSE_MKNOD) {
		mode = make_mode(dfd, rq->m.in.mknod.mode, rq->m.in.mknod.umask);
		rdev = S_ISCHR(mode) || S_ISBLK(mode) ? rdev_decode(rq->m.in.mknod.rdev) : 0;
		r = mknodat(dfd, name, (mode & S_IFMT) | store_mode(g, mode, false), rdev) < 0 ? -errno : 0;
	} else if (r == 0) {
		mode = S_IFLNK;
		r = symlinkat(rq->m.name2, dfd, name) < 0 ? -errno : 0;
	}
	if (made_already(rq, dir, name, type, r))
		r = 0;
	if (r == 0) {
		_cleanup_object_ struct sl_object *o = NULL;
		r = settle(g, dir, dfd, name, &rq->m.h, mode);
		if (r >= 0)
			r = sl_object_adopt(dir, name, (uint32_t)r, rdev, &o);
		if (r == 0) {
			reply_entry(g, rq, o, NULL);
			return;
		}
		unlinkat(dfd, name, op == FUSE_MKDIR ? AT_REMOVEDIR : 0);
	}
	sl_object_renounce(dir, name, noted);
	sl_reply_err(rq, r);
}

void gate_link(struct sl_gate *g, struct sl_req *rq, struct sl_object *dir)
{
	if (!gate_need(g, rq, dir, SL_WANT_NAMES, 0, 0))
		return;
	_cleanup_object_ struct sl_object *o = gate_object(g, rq, rq->m.in.link.oldnodeid);
	if (!o)
		return;
	int r = sl_object_link(o, dir, rq->m.name);
	if (r == -EEXIST && (sl_req_resent(rq) || rq->kept)) { /* or its answer was held */
		_cleanup_object_ struct sl_object *there = NULL;
		if (sl_object_lookup(dir, rq->m.name, &there) == 0 && there == o)
			r = 0; /* done before */
	}
	if (r < 0)
		sl_reply_err(rq, r);
	else
		reply_entry(g, rq, o, NULL);
}

/* A directory that goes, or is replaced, must be known to be empty: that needs its names. */
static bool need_victim(struct sl_gate *g, struct sl_req *rq, struct sl_object *dir, const char *name)
{
	_cleanup_object_ struct sl_object *o = NULL;
	if (sl_object_lookup(dir, name, &o) < 0 || !sl_object_is_dir(o))
		return true;
	return gate_need(g, rq, o, SL_WANT_NAMES, 0, 0);
}

/* The object that loses its name, if anybody knows it. */
static struct sl_object *loser(struct sl_object *dir, const char *name)
{
	struct sl_object *o = NULL;
	return sl_object_lookup(dir, name, &o) < 0 ? NULL : o;
}

void gate_unlink(struct sl_gate *g, struct sl_req *rq, struct sl_object *dir)
{
	bool rmdir = rq->m.h.opcode == FUSE_RMDIR;
	if (!gate_need(g, rq, dir, SL_WANT_NAMES, 0, 0))
		return;
	if (rmdir && !need_victim(g, rq, dir, rq->m.name))
		return;
	_cleanup_object_ struct sl_object *o = loser(dir, rq->m.name);
	int r = sl_object_unlink(dir, rq->m.name, rmdir);
	if (r == 0 && o)
		gate_orphan(g, o);
	if (r == -ENOENT && sl_req_resent(rq))
		r = 0; /* done before: see made_already() */
	sl_reply_err(rq, r);
}

/*
 * A rename that comes again may have been carried out, and an exchange must not be carried out twice: what
 * its source was is noted before. Notes of requests that were answered after all are left by a service that
 * died just then; the oldest makes room.
 */
static unsigned note_of(const struct gate_area *a, uint64_t unique)
{
	unsigned i = 0;
	while (i < SL_ARRAY_SIZE(a->renames) && a->renames[i].unique != unique)
		i++;
	return i;
}

static bool renamed_already(struct sl_gate *g, struct sl_req *rq, struct sl_object *newdir)
{
	const struct gate_area *a = g->h.area;
	unsigned i = sl_req_resent(rq) ? note_of(a, sl_req_unique(rq)) : SL_ARRAY_SIZE(a->renames);
	if (i == SL_ARRAY_SIZE(a->renames))
		return false;
	_cleanup_object_ struct sl_object *there = loser(newdir, rq->m.name2);
	return there && sl_object_ino(there) == a->renames[i].ino;
}

static void note_rename(struct sl_gate *g, struct sl_req *rq, struct sl_object *o)
{
	struct gate_area *a = g->h.area;
	uint64_t unique = sl_req_unique(rq);
	pthread_mutex_lock(&g->lock);
	unsigned i = note_of(a, unique);
	if (i == SL_ARRAY_SIZE(a->renames))
		i = note_of(a, 0);
	if (i == SL_ARRAY_SIZE(a->renames)) {
		i = 0;
		for (unsigned k = 1; k < SL_ARRAY_SIZE(a->renames); k++)
			if (a->renames[k].unique < a->renames[i].unique)
				i = k;
		a->renames[i].unique = 0;
	}
	a->renames[i].ino = sl_object_ino(o);
	a->renames[i].unique = unique;
	pthread_mutex_unlock(&g->lock);
}

static void drop_note(struct sl_gate *g, uint64_t unique)
{
	struct gate_area *a = g->h.area;
	pthread_mutex_lock(&g->lock);
	unsigned i = note_of(a, unique);
	if (i < SL_ARRAY_SIZE(a->renames))
		a->renames[i].unique = 0;
	pthread_mutex_unlock(&g->lock);
}

void gate_rename(struct sl_gate *g, struct sl_req *rq, struct sl_object *dir)
{
	bool two = rq->m.h.opcode == FUSE_RENAME2;
	_cleanup_object_ struct sl_object *newdir =
	    gate_object(g, rq, two ? rq->m.in.rename2.newdir : rq->m.in.rename.newdir);
	if (!newdir)
		return;
	if (!gate_need(g, rq, dir, SL_WANT_NAMES, 0, 0) || !gate_need(g, rq, newdir, SL_WANT_NAMES, 0, 0))
		return;
	uint64_t unique = sl_req_unique(rq);
	if (renamed_already(g, rq, newdir)) {
		sl_reply_err(rq, 0);
		drop_note(g, unique);
		return;
	}
	if (!need_victim(g, rq, newdir, rq->m.name2))
		return;
	unsigned flags = two ? rq->m.in.rename2.flags : 0;
	_cleanup_object_ struct sl_object *o = loser(dir, rq->m.name), *target = loser(newdir, rq->m.name2);
	if (o)
		note_rename(g, rq, o);
	int r = sl_object_rename(dir, rq->m.name, newdir, rq->m.name2, flags);
	if (r == 0 && target && target != o && !(flags & RENAME_EXCHANGE))
		gate_orphan(g, target);
	if (g->index && r == 0 && o)
		sl_index_note(g->index, o);
	if (g->index && r == 0 && target && flags & RENAME_EXCHANGE)
		sl_index_note(g->index, target);
	sl_reply_err(rq, r);
	drop_note(g, unique);
}

/* ---- making and opening at once ---- */

static int make_file(struct sl_gate *g, struct sl_req *rq, struct sl_object *dir, int dfd,
		     struct sl_object **ret, int *ret_fd)
{
	const struct fuse_create_in *in = &rq->m.in.create;
	bool tmp = rq->m.h.opcode == FUSE_TMPFILE;
	uint32_t mode = make_mode(dfd, in->mode, in->umask);
	_cleanup_close_ int fd = -EBADF;
	int r = tmp ? 0 : sl_object_touch(dir);
	if (r < 0)
		return r;
	if (tmp)
		fd = openat(dfd, ".", O_RDWR | O_TMPFILE | O_CLOEXEC, store_mode(g, mode, false));
	else
		fd = openat(dfd, rq->m.name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC,
			    store_mode(g, mode, false));
	if (fd < 0 && !tmp && made_already(rq, dir, rq->m.name, S_IFREG, -errno))
		fd = openat(dfd, rq->m.name, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (tmp) {
		if (g->privileged && fchown(fd, rq->m.h.uid, rq->m.h.gid) < 0)
			return -errno;
		r = sl_object_adopt_tmpfile(dir, fd, S_IFREG | (mode & 07777), ret);
	} else {
		r = settle(g, dir, dfd, rq->m.name, &rq->m.h, mode);
		if (r >= 0)
			r = sl_object_adopt(dir, rq->m.name, (uint32_t)r, 0, ret);
		if (r < 0)
			unlinkat(dfd, rq->m.name, 0);
	}
	if (r == 0)
		*ret_fd = sl_steal_fd(&fd);
	return r;
}

void gate_create(struct sl_gate *g, struct sl_req *rq, struct sl_object *dir)
{
	if (!gate_need(g, rq, dir, SL_WANT_NAMES, 0, 0))
		return;
	_cleanup_object_ struct sl_object *o = NULL;
	struct fuse_create_out out = {0};
	if (gate_open_again(g, rq, &out.open, &o)) {
		int err = gate_entry(g, rq, o, NULL, &out.entry);
		if (err < 0)
			sl_reply_err(rq, err);
		else if (err == 0)
			sl_reply(rq, &out, sizeof(out));
		return;
	}
	_cleanup_close_ int dfd = sl_object_open_dir(dir);
	_cleanup_close_ int fd = -EBADF;
	int r = dfd < 0 ? dfd : make_file(g, rq, dir, dfd, &o, &fd);
	if (r == -EEXIST && rq->m.h.opcode == FUSE_CREATE && !(rq->m.in.create.flags & O_EXCL)) {
		/* Made by somebody else since the kernel last looked. */
		r = sl_object_lookup(dir, rq->m.name, &o);
		if (r == 0 && !sl_object_is_reg(o))
			r = -EEXIST;
	}
	if (r == 0)
		r = gate_entry(g, rq, o, NULL, &out.entry);
	if (r > 0)
		return;
	if (r == 0) {
		r = gate_open_handle(g, rq, o, (int)rq->m.in.create.flags, &fd, &out.open);
		if (r < 0)
			gate_unentry(o, 1);
	}
	if (r == -EAGAIN && o) {
		/* Or others have it open in passthrough mode: see gate_open(). */
		bool writes = (rq->m.in.create.flags & O_ACCMODE) != O_RDONLY;
		if (!gate_hold(g, rq, o) && (!writes || gate_need_writable(g, rq, o, false)))
			gate_create(g, rq, dir);
		return;
	}
	if (r < 0)
		sl_reply_err(rq, show_error(r));
	else
		sl_reply(rq, &out, sizeof(out));
}
