/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Files of which the origin has several names: "links/IDENTITY" says which object here stands for one. In
 * most stores it is one more hard link of it. In a native store users see that in its link count; there it is
 * a symlink whose target is the object's handle, and is checked when it is used. While names are still to
 * come, as lazy directories have it, "links/IDENTITY.moreN" are hard links in their stead: who asks how many
 * names a file has is told what the origin would say.
 */
#include <fcntl.h>
#include <stdio.h>

#include "store/internal.h"

#define MORE	   ".more"
#define MORE_MAX   16 /* so many: who asks for the number of a file that has more of them is told less */
#define TARGET_MAX (2 * SL_HANDLE_MAX + 32)

/* "TYPE.HANDLE.CAME": handle, and how many of its names have come here, whatever became of them. */
static char *encode(const struct sl_handle *h, unsigned came, char buf[TARGET_MAX])
{
	int n = snprintf(buf, TARGET_MAX, "%x.", (unsigned)h->type);
	for (uint32_t i = 0; i < h->len; i++)
		n += snprintf(buf + n, TARGET_MAX - (size_t)n, "%02x", h->b[i]);
	snprintf(buf + n, TARGET_MAX - (size_t)n, ".%u", came);
	return buf;
}

static bool decode(const char *text, struct sl_handle *h, unsigned *came)
{
	unsigned type, byte;
	int at = 0;
	*h = (struct sl_handle){0};
	if (sscanf(text, "%x.%n", &type, &at) != 1 || !at)
		return false;
	h->type = (int)type;
	for (text += at; *text && *text != '.' && h->len < SL_HANDLE_MAX && sscanf(text, "%2x", &byte) == 1;
	     text += 2)
		h->b[h->len++] = (unsigned char)byte;
	return h->len && sscanf(text, ".%u", came) == 1;
}

struct sl_store *sl_links_begin(struct sl_store *s)
{
	if (!s->native)
		return NULL;
	pthread_mutex_lock(&s->links_lock);
	return s;
}

void sl_links_end(struct sl_store **s)
{
	if (*s)
		pthread_mutex_unlock(&(*s)->links_lock);
}

/* An error that says nothing of the object. */
static bool passes(int r)
{
	return r == -ENOMEM || r == -EMFILE || r == -ENFILE || r == -EIO;
}

/* Native, lock held: the object that stands for @v. -ENOENT, and then nothing is in the way of another. */
static int find(struct sl_store *s, const struct sl_version *v, struct sl_object **ret, unsigned *came)
{
	char key[SL_LINK_KEY_MAX], text[TARGET_MAX];
	struct sl_handle h;
	struct stat st;
	_cleanup_object_ struct sl_object *o = NULL;
	ssize_t n = readlinkat(s->links_fd, sl_link_key(v, key), text, sizeof(text) - 1);
	if (n < 0 && errno == ENOENT)
		return -ENOENT;
	text[n < 0 ? 0 : n] = '\0';
	_cleanup_close_ int fd = decode(text, &h, came) ? sl_handle_open(s->tree_fd, &h, O_PATH) : -ESTALE;
	if (passes(fd))
		return fd;
	bool same = fd >= 0 && fstat(fd, &st) == 0 && st.st_nlink;
	int r = same ? sl_object_of_fd(s, fd, &o) : 0;
	if (passes(r))
		return r;
	same &= r == 0;
	if (same) {
		pthread_mutex_lock(&o->lock);
		same = o->has_record && !o->damaged && sl_object_is_reg(o) &&
		       sl_version_same_object(&o->rec.origin, v);
		pthread_mutex_unlock(&o->lock);
	}
	if (!same) { /* it is gone, or another one by now */
		unlinkat(s->links_fd, key, 0);
		return -ENOENT;
	}
	*ret = sl_steal_ptr(&o);
	return 0;
}

/* Does @more stand for a name that is to come of the file @st? If it is another file's it goes. */
static bool stands_in(struct sl_store *s, const char *more, const struct stat *st)
{
	struct stat x;
	if (fstatat(s->links_fd, more, &x, AT_SYMLINK_NOFOLLOW) < 0)
		return false;
	if (x.st_ino != st->st_ino)
		unlinkat(s->links_fd, more, 0);
	return x.st_ino == st->st_ino;
}

/* Native, lock held: @came names of @fd, which stands for @v, have come, of the @nlink that it has at the
 * origin: a link stands for each that has not. */
static void balance(struct sl_store *s, const struct sl_version *v, int fd, uint32_t nlink, unsigned came)
{
	char key[SL_LINK_KEY_MAX], more[SL_LINK_KEY_MAX + sizeof(MORE) + 4], p[SL_PROC_FD_MAX];
	struct stat st;
	unsigned had = 0, want = nlink > came ? SL_MIN(nlink - came, (unsigned)MORE_MAX) : 0;
	sl_link_key(v, key);
	if (fstat(fd, &st) < 0)
		return;
	while (had < MORE_MAX &&
	       (snprintf(more, sizeof(more), "%s" MORE "%u", key, had), stands_in(s, more, &st)))
		had++;
	for (; had > want; had--) {
		snprintf(more, sizeof(more), "%s" MORE "%u", key, had - 1);
		unlinkat(s->links_fd, more, 0);
	}
	for (; had < want; had++) {
		snprintf(more, sizeof(more), "%s" MORE "%u", key, had);
		if (linkat(AT_FDCWD, sl_proc_fd_path(p, fd, NULL), s->links_fd, more, AT_SYMLINK_FOLLOW) < 0)
			break;
	}
}

/* Native, lock held. */
static int enter(struct sl_store *s, const struct sl_version *v, const struct sl_handle *h, unsigned came)
{
	char key[SL_LINK_KEY_MAX], text[TARGET_MAX];
	unlinkat(s->links_fd, "next", 0);
	if (symlinkat(encode(h, came, text), s->links_fd, "next") < 0 ||
	    renameat(s->links_fd, "next", s->links_fd, sl_link_key(v, key)) < 0)
		return -errno;
	return 0;
}

/* Its place is one of several from now on. */
static int set_linked(struct sl_object *o)
{
	int r = 0;
	pthread_mutex_lock(&o->lock);
	if (!(o->rec.flags & SL_LINKED)) {
		o->rec.flags |= SL_LINKED;
		r = sl_object_save(o);
		if (r < 0)
			o->rec.flags &= (uint16_t)~SL_LINKED;
	}
	pthread_mutex_unlock(&o->lock);
	return r;
}

int sl_links_name(struct sl_store *s, const struct sl_version *v, uint32_t nlink, int dirfd, const char *name)
{
	char key[SL_LINK_KEY_MAX], p[SL_PROC_FD_MAX];
	if (!s->native)
		return linkat(s->links_fd, sl_link_key(v, key), dirfd, name, 0) < 0 ? -errno : 0;
	_cleanup_object_ struct sl_object *o = NULL;
	unsigned came;
	int r = find(s, v, &o, &came);
	if (r == 0)
		r = set_linked(o);
	_cleanup_close_ int fd = r == 0 ? sl_object_pin(o) : r;
	if (fd < 0)
		return fd;
	if (linkat(AT_FDCWD, sl_proc_fd_path(p, fd, NULL), dirfd, name, AT_SYMLINK_FOLLOW) < 0)
		return -errno;
	r = enter(s, v, &o->handle, came + 1);
	balance(s, v, fd, nlink, came + 1);
	return r;
}

int sl_links_add(struct sl_store *s, const struct sl_version *v, uint32_t nlink, int dirfd, const char *name)
{
	char key[SL_LINK_KEY_MAX], text[TARGET_MAX];
	struct sl_handle h;
	sl_link_key(v, key);
	if (!s->native)
		return linkat(dirfd, name, s->links_fd, key, 0) < 0 ? -errno : 0;
	int r = sl_handle_get(dirfd, name, &h);
	if (r == 0 && readlinkat(s->links_fd, key, text, sizeof(text)) >= 0)
		r = -EEXIST;
	if (r == 0)
		r = enter(s, v, &h, 1);
	_cleanup_close_ int fd = r == 0 ? openat(dirfd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC) : -EBADF;
	if (fd >= 0)
		balance(s, v, fd, nlink, 1);
	return r;
}

int sl_links_stat(struct sl_store *s, const struct sl_version *v, struct stat *st)
{
	char key[SL_LINK_KEY_MAX];
	if (!s->native)
		return fstatat(s->links_fd, sl_link_key(v, key), st, AT_SYMLINK_NOFOLLOW) < 0 ? -errno : 0;
	_cleanup_object_ struct sl_object *o = NULL;
	unsigned came;
	int r = find(s, v, &o, &came);
	_cleanup_close_ int fd = r == 0 ? sl_object_pin(o) : r;
	return fd < 0 ? fd : fstat(fd, st) < 0 ? -errno : 0;
}

int sl_links_note(struct sl_object *o, uint32_t nlink, int change)
{
	struct sl_store *s = o->store;
	_cleanup_object_ struct sl_object *known = NULL;
	_cleanup_(sl_links_end) struct sl_store *held = sl_links_begin(s);
	char key[SL_LINK_KEY_MAX];
	struct stat st;
	unsigned came;
	pthread_mutex_lock(&o->lock);
	struct sl_version v = o->rec.origin;
	bool may = s->native && o->has_record && sl_object_is_reg(o) && v.ino;
	pthread_mutex_unlock(&o->lock);
	_cleanup_close_ int fd = may ? sl_object_pin(o) : -EBADF;
	if (!may)
		return 0;
	int r = find(s, &v, &known, &came); /* what stands for nothing any more goes */
	if (fd < 0 || fstat(fd, &st) < 0)
		return SL_MIN(fd, 0);
	if (r == 0 && known != o)
		return 0;
	came = r < 0 ? (unsigned)st.st_nlink : change < 0 && came == 0 ? 0 : came + (unsigned)change;
	if (nlink == 0) /* one went there and here: as many as before are to come */
		nlink = (uint32_t)SL_MAX(came, 1u);
	r = enter(s, &v, &o->handle, came);
	balance(s, &v, fd, nlink, came);
	/* The last name is gone, and somebody has it open. */
	if (fstat(fd, &st) == 0 && st.st_nlink == 0)
		unlinkat(s->links_fd, sl_link_key(&v, key), 0);
	return r;
}
