/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Room. An image is at least as large as what it lies on, and sparse. So that who writes to it hears "no
 * space left" in time, as on any filesystem, and not from a disk that fails, blocks that must not be used are
 * kept from it: those that --capacity does not allow, and those for which there is no room on the host.
 *
 * Others can take the host's room faster than it is looked at. Then what the filesystem has in its log may
 * have no place on the host yet, and it could not be mounted again before there is some. So a file beside the
 * image, the ballast, has real blocks, which are given up then.
 */
#include <fcntl.h>
#include <sys/file.h>
#include <sys/statvfs.h>

#include "base/human.h"
#include "base/log.h"
#include "base/time.h"
#include "base/why.h"
#include "store/fs.h"
#include "store/image.h"
#include "store/internal.h"

#define STEP   (1ull << 20)  /* not worth a change */
#define MARGIN (16ull << 20) /* on the host, also with --reserve 0: for what the filesystem itself writes */
#define WORK   (2ull << 20)  /* to take a file's blocks away the filesystem needs some itself */
#define LEAK   (64ull << 20) /* others may be faster, and --capacity is missed by that much */
#define TRIM   (16ull << 20) /* not worth a trim */

#define BALLAST	     "ballast"
#define BALLAST_SIZE (16ull << 20)
/* A host may become full by so much in a second. */
#define SPEED	   (1ull << 30)
#define SOONEST_NS (100 * SL_NS_PER_MS)
#define LATEST_NS  (2 * SL_NS_PER_SEC)

struct room {
	uint64_t avail; /* free for users; for who writes now and what is written out later */
	uint64_t kept;	/* free blocks that are kept from users */
	uint64_t want;	/* so many are to be kept: what becomes free goes there first */
	uint64_t here;	/* free in all, as far as --capacity allows, and given back to the host */
	uint64_t host;	/* free on what it lies on, where what was not written out yet is not counted */
};

static uint64_t less(uint64_t a, uint64_t b)
{
	return a > b ? a - b : 0;
}

static int look(const struct sl_store *s, struct room *m)
{
	struct statvfs fs, host;
	*m = (struct room){.host = UINT64_MAX};
	if (fstatvfs(s->base_fd, &fs) < 0)
		return -errno;
	m->here = m->avail = (uint64_t)fs.f_bavail * fs.f_frsize;
	if (!s->cfg.image)
		return 0;
	int r = sl_fs_kept(s->base_fd, &m->kept, &m->want);
	if (r < 0 || fstatvfs(s->root_fd, &host) < 0)
		return r < 0 ? r : -errno;
	m->host = (uint64_t)host.f_bavail * host.f_frsize;
	m->here = less(m->avail + m->kept, s->spare + s->owed);
	return 0;
}

static uint64_t left_on_host(const struct sl_store *s)
{
	return SL_MAX(s->cfg.reserve, MARGIN);
}

uint64_t sl_store_free_bytes(const struct sl_store *s)
{
	struct room m;
	if (look(s, &m) < 0)
		return 0;
	if (!s->cfg.image)
		return m.here;
	uint64_t n = SL_MIN(m.here, m.host), now = m.avail + left_on_host(s);
	return SL_MIN(n, now);
}

static void keep(struct sl_store *s, uint64_t bytes)
{
	int r = sl_fs_keep(s->base_fd, bytes);
	if (r < 0)
		sl_warn("store %s: its filesystem cannot be kept from using more room than there is: %s",
			s->path, strerror(-r));
}

/*
 * What is evicted is free in the image before it is free on the host. Another file need not get the same
 * blocks, so until then it is kept, too.
 */
void sl_store_owe(struct sl_store *s, uint64_t bytes)
{
	struct room m;
	if (!s->cfg.image || !bytes)
		return;
	pthread_mutex_lock(&s->room_lock);
	s->owed += bytes;
	/* It is neither what the user deleted, nor does it make up for what is still to come. */
	s->last += bytes;
	s->synced += bytes;
	if (look(s, &m) == 0)
		keep(s, m.want + bytes);
	pthread_mutex_unlock(&s->room_lock);
}

void sl_store_unlock_room(struct sl_store *s)
{
	struct room m;
	if (!s->cfg.image)
		return;
	pthread_mutex_lock(&s->room_lock);
	if (look(s, &m) == 0 && m.avail < WORK && m.kept > WORK && m.host > left_on_host(s) / 2 &&
	    m.kept + LEAK > s->floor)
		keep(s, m.kept - WORK);
	pthread_mutex_unlock(&s->room_lock);
}

/* Give back. What a journaling filesystem frees can be had once its journal says so: that is asked for only
 * where it is needed. */
static int give_back(struct sl_store *s)
{
	struct room m;
	/* The loop device does it after this, but before it writes what is written later. */
	int r = sl_fs_trim(s->base_fd, NULL);
	if (r == 0 && look(s, &m) == 0 && m.host < 4 * left_on_host(s))
		(void)syncfs(s->root_fd);
	return r;
}

void sl_store_trim(struct sl_store *s)
{
	if (!s->cfg.image)
		return;
	pthread_mutex_lock(&s->trim_lock);
	uint64_t owed = s->owed;
	int r = give_back(s);
	if (r < 0)
		sl_notice("store %s: what was evicted cannot be given back to the host: %s", s->path,
			  strerror(-r));
	s->owed -= owed;
	pthread_mutex_unlock(&s->trim_lock);
	sl_store_fit(s);
}

/* What the user deleted takes room on the host until it is given back. */
static bool worth_a_trim(struct sl_store *s, const struct room *m)
{
	uint64_t before = s->trimmed, least = SL_MAX(TRIM, m->host / 8);
	before = SL_MIN(before, m->here);
	bool worth = m->here > m->host && m->here - before > least;
	s->trimmed = worth ? m->here : before;
	return worth;
}

/*
 * Of what was written since the last sync, nobody says how much of it the host has got. So all of it counts
 * as still to come, which is too much.
 */
static uint64_t to_come(struct sl_store *s, const struct room *m)
{
	uint64_t now = m->avail + m->kept;
	if (s->last == UINT64_MAX) /* the first time; whoever served before has synced it, or is dead */
		s->synced = now;
	else
		s->synced += less(now, s->last);
	s->last = now;
	return less(s->synced, now);
}

int sl_store_sync(struct sl_store *s)
{
	struct room m;
	uint64_t n = 0;
	pthread_mutex_lock(&s->room_lock);
	if (s->cfg.image && look(s, &m) == 0)
		n = to_come(s, &m);
	pthread_mutex_unlock(&s->room_lock);
	if (syncfs(s->base_fd) < 0)
		return -errno;
	pthread_mutex_lock(&s->room_lock);
	s->synced = less(s->synced, n);
	pthread_mutex_unlock(&s->room_lock);
	return 0;
}

int sl_ballast_take(int root_fd)
{
	_cleanup_close_ int fd = openat(root_fd, BALLAST, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	return fd < 0 || fallocate(fd, 0, 0, (off_t)BALLAST_SIZE) < 0 ? -errno : 0;
}

int sl_ballast_drop(int root_fd)
{
	if (unlinkat(root_fd, BALLAST, 0) < 0 || syncfs(root_fd) < 0)
		return -errno;
	return 0;
}

static void keep_ballast(struct sl_store *s, const struct room *m)
{
	if (!s->ballast && m->host > left_on_host(s) + 2 * BALLAST_SIZE)
		s->ballast = sl_ballast_take(s->root_fd) == 0;
}

/* With room_lock held. Once the capacity was lowered below what is in use, less is kept than it forbids. What
 * was kept once may be missed by LEAK, and by no more. */
static void raise_floor(struct sl_store *s, const struct room *m)
{
	uint64_t kept = SL_MIN(m->avail + m->kept, s->spare);
	if (s->floor == UINT64_MAX)
		s->floor = kept + 2 * LEAK < s->spare ? kept : s->spare;
	s->floor = SL_MAX(s->floor, kept);
}

uint64_t sl_store_fit(struct sl_store *s)
{
	struct room m;
	bool trim = false;
	uint64_t left = 0;
	if (!s->cfg.image)
		return LATEST_NS;
	for (int tries = 0; tries < 2; tries++) {
		pthread_mutex_lock(&s->room_lock);
		int r = look(s, &m);
		uint64_t coming = r == 0 ? to_come(s, &m) : 0, room = less(m.host, left_on_host(s) + coming);
		uint64_t most = SL_MIN(m.here, room), want = less(m.avail + m.kept, most);
		trim = r == 0 && worth_a_trim(s, &m);
		if (r == 0)
			raise_floor(s, &m);
		/* Of what is wanted and not kept yet, what becomes free goes there: that may be more than is
		 * wanted now. */
		if (r == 0 &&
		    (less(want, m.kept) >= STEP || less(m.kept, want) >= STEP || m.want >= m.kept + STEP))
			keep(s, want);
		if (r == 0)
			keep_ballast(s, &m);
		left = room;
		pthread_mutex_unlock(&s->room_lock);
		if (room >= m.here || coming <= room / 4 || coming < STEP || sl_store_sync(s) < 0)
			break;
	}
	/* And the next time there is more room. */
	if (trim)
		(void)give_back(s);
	/* Where there is nothing left, nothing can be promised any more. */
	uint64_t until = left / SPEED * SL_NS_PER_SEC + left % SPEED * SL_NS_PER_SEC / SPEED;
	until = SL_MAX(until, SOONEST_NS);
	return left ? SL_MIN(until, LATEST_NS) : LATEST_NS;
}

int sl_room_free(int base_fd, uint64_t *bytes)
{
	struct statvfs fs;
	uint64_t kept, want;
	int r = sl_fs_kept(base_fd, &kept, &want);
	if (r == 0 && fstatvfs(base_fd, &fs) < 0)
		r = -errno;
	if (r == 0)
		*bytes = (uint64_t)fs.f_bavail * fs.f_frsize + kept;
	return r;
}

/* ---- the capacity ---- */

void sl_room_bound(struct sl_store *s)
{
	s->spare = s->cfg.capacity ? less(s->cfg.room, s->cfg.capacity) : 0;
	s->floor = UINT64_MAX;
}

uint64_t sl_store_beyond(const struct sl_store *s)
{
	struct room m;
	return s->cfg.image && look(s, &m) == 0 ? less(s->spare, m.avail + m.kept) : 0;
}

uint64_t sl_store_capacity(struct sl_store *s)
{
	pthread_mutex_lock(&s->room_lock);
	uint64_t bytes = s->cfg.capacity;
	pthread_mutex_unlock(&s->room_lock);
	return bytes;
}

/* Save it; @c changes only where that succeeds. */
static int change(int root_fd, const char *path, struct sl_store_config *c, uint64_t capacity, char **why)
{
	struct sl_store_config n = *c;
	uint64_t size;
	char h[16];
	if (!c->image)
		return sl_fail(why, -EINVAL, "a capacity is for an image, and this clone has none");
	if (capacity && capacity <= c->reserve)
		return sl_fail(
		    why, -EINVAL,
		    "the capacity must be more than the reserve (%llu bytes), which is a part of it",
		    (unsigned long long)c->reserve);
	_cleanup_close_ int image = openat(root_fd, "image", O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	int r = image < 0 ? -errno : sl_image_fs_size(image, &size);
	if (r < 0)
		return sl_fail(why, r, "%s/image: %s", path, strerror(-r));
	if (capacity > size)
		return sl_fail(why, -EINVAL, "the image was made with %s, and does not grow",
			       sl_format_size(h, size));
	if (capacity && !c->room)
		return sl_fail(
		    why, -EOPNOTSUPP,
		    "an earlier version made this clone, and did not note what a capacity is held against");
	n.capacity = capacity;
	r = sl_store_config_save(path, &n);
	if (r < 0)
		return sl_fail(why, r, "store %s: %s", path, strerror(-r));
	c->capacity = capacity;
	return 0;
}

int sl_store_set_capacity(struct sl_store *s, uint64_t capacity, char **why)
{
	pthread_mutex_lock(&s->room_lock);
	int r = change(s->root_fd, s->path, &s->cfg, capacity, why);
	if (r == 0)
		sl_room_bound(s);
	pthread_mutex_unlock(&s->room_lock);
	if (r == 0)
		(void)sl_store_fit(s);
	return r;
}

int sl_store_config_capacity(const char *path, uint64_t capacity, char **why)
{
	struct sl_store_config c = {0};
	_cleanup_close_ int root = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	_cleanup_close_ int lock =
	    root < 0 ? -EBADF : openat(root, "lock", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (lock < 0)
		return sl_fail(why, -errno, "store %s: %s", path, strerror(errno));
	if (flock(lock, LOCK_EX | LOCK_NB) < 0)
		return sl_fail(why, errno == EWOULDBLOCK ? -EBUSY : -errno,
			       "store %s is in use by a running service", path);
	int r = sl_store_config_load(path, &c, why);
	if (r == 0 && c.capacity != capacity)
		r = change(root, path, &c, capacity, why);
	sl_store_config_fini(&c);
	return r;
}
