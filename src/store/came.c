/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Native: which names have come here. A name that the origin has, and that has come and is missing, was taken
 * away by a user: nobody has to tell of that when it happens. What a listing has brought is known by the time
 * of the listing (sl_object_listed()); what came or changed later, one by one, is noted here, by name, with
 * its time and what it is, until its directory is listed again. So are the names of files that have several,
 * also those of a listing: users can give such a file one more, and no record says which are the origin's.
 * What comes to a name at the origin is later than what was there before, so it is taken for what was taken
 * away only if it is that.
 *
 * The notes are in memory, and in a log, "came": a service that is killed loses none, and a machine that
 * loses its power those that were not written yet. A note too few lets a name come back; one too many can
 * only be of an object that has gone at the origin.
 */
#include <fcntl.h>
#include <stdio.h>
#include <xxhash.h>

#include "base/fd.h"
#include "base/log.h"
#include "base/time.h"
#include "origin/origin.h"
#include "store/internal.h"

#define LOG	 "came"
#define LOG_NEW	 "came.new"
#define LOG_IDLE 4096 /* entries, beside four times what is noted, before it is written anew */

/* As in the log. */
struct entry {
	uint64_t key;  /* of directory and name; 0: nothing */
	uint64_t what; /* the object at the origin; 0: no longer noted */
	uint64_t upto; /* when that had changed last, as far as is known here; 0: it is not */
};

struct came {
	struct sl_hnode node;
	struct entry e;
};

/* In ns, of the origin's clock. 0: never; times before the epoch count as that. */
static uint64_t origin_ns(struct timespec t)
{
	return t.tv_sec > 0 ? (uint64_t)t.tv_sec * SL_NS_PER_SEC + (uint64_t)t.tv_nsec : 1;
}

static uint64_t key_of(const struct sl_object *dir, const char *name)
{
	uint64_t h = XXH3_64bits_withSeed(name, strlen(name), sl_handle_hash(&dir->handle));
	return h ? h : 1;
}

static uint64_t what_of(uint64_t ino, uint64_t generation)
{
	const uint64_t v[2] = {ino, (uint32_t)generation};
	uint64_t h = XXH3_64bits(v, sizeof(v));
	return h ? h : 1;
}

/* With the lock held. */
static int set(struct sl_store *s, const struct entry *e, bool *changed)
{
	struct sl_hnode *h = sl_htab_find(&s->came, e->key);
	struct came *c = h ? sl_container_of(h, struct came, node) : NULL;
	*changed = c ? c->e.what != e->what || c->e.upto < e->upto : e->what != 0;
	if (!*changed)
		return 0;
	if (!e->what) {
		sl_htab_del(&s->came, h);
		free(c);
		return 0;
	}
	if (!c) {
		c = calloc(1, sizeof(*c));
		if (!c)
			return -ENOMEM;
		int r = sl_htab_add(&s->came, &c->node, e->key);
		if (r < 0) {
			free(c);
			return r;
		}
	}
	c->e = (struct entry){e->key, e->what, SL_MAX(c->e.upto, e->upto)};
	return 0;
}

static void forget_all(struct sl_store *s)
{
	size_t i;
	for (struct sl_hnode *h; (h = sl_htab_first(&s->came, &i));) {
		sl_htab_del(&s->came, h);
		free(sl_container_of(h, struct came, node));
	}
}

/* With the lock held: the log as short as can be. */
static int write_anew(struct sl_store *s)
{
	size_t n = 0, i;
	_cleanup_free_ struct entry *v = reallocarray(NULL, s->came.n + 1, sizeof(*v));
	if (!v)
		return -ENOMEM;
	for (struct sl_hnode *h = sl_htab_first(&s->came, &i); h; h = sl_htab_step(&s->came, &i, h))
		v[n++] = sl_container_of(h, struct came, node)->e;
	_cleanup_close_ int fd = openat(s->base_fd, LOG_NEW, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	int r = fd < 0 ? -errno : sl_write_full(fd, v, n * sizeof(*v));
	if (r == 0 && fdatasync(fd) < 0)
		r = -errno;
	if (r == 0 && renameat(s->base_fd, LOG_NEW, s->base_fd, LOG) < 0)
		r = -errno;
	if (r < 0)
		return r;
	if (s->came_fd >= 0)
		close(s->came_fd);
	s->came_fd = sl_steal_fd(&fd);
	s->came_logged = n;
	return 0;
}

static void note(struct sl_store *s, const struct entry *e)
{
	bool changed = false;
	pthread_mutex_lock(&s->came_lock);
	int r = set(s, e, &changed);
	if (r == 0 && changed && s->came_fd >= 0)
		r = sl_pwrite_full(s->came_fd, e, sizeof(*e), (off_t)(s->came_logged * sizeof(*e)));
	s->came_logged += changed && r == 0;
	if (r == 0 && changed && s->came_logged > LOG_IDLE + 4 * s->came.n)
		r = write_anew(s);
	pthread_mutex_unlock(&s->came_lock);
	if (r < 0)
		sl_debug("that a name has come is not noted: %s", strerror(-r));
}

static int load(struct sl_store *s)
{
	struct entry v[170];
	bool changed;
	int r = 0;
	_cleanup_close_ int fd = openat(s->base_fd, LOG, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return errno == ENOENT ? 0 : -errno;
	for (off_t at = 0; r == 0; at += (off_t)sizeof(v)) {
		ssize_t n = sl_pread_full(fd, v, sizeof(v), at);
		for (size_t i = 0; r == 0 && n > 0 && i < (size_t)n / sizeof(v[0]); i++)
			if (v[i].key)
				r = set(s, &v[i], &changed);
		s->came_logged += n > 0 ? (size_t)n / sizeof(v[0]) : 0;
		if (n < (ssize_t)sizeof(v))
			return n < 0 ? (int)n : r;
	}
	return r;
}

int sl_came_open(struct sl_store *s)
{
	pthread_mutex_init(&s->came_lock, NULL);
	s->came_fd = -EBADF;
	if (!s->native)
		return 0;
	int r = load(s);
	/* On a full filesystem it goes on. */
	if (r == 0 && (s->came_logged <= LOG_IDLE + 4 * s->came.n || write_anew(s) < 0))
		s->came_fd = openat(s->base_fd, LOG, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	return r;
}

void sl_came_close(struct sl_store *s)
{
	forget_all(s);
	sl_htab_fini(&s->came);
	if (s->came_fd >= 0)
		close(s->came_fd);
	pthread_mutex_destroy(&s->came_lock);
}

void sl_object_came(struct sl_object *dir, const char *name, const struct sl_attr *a)
{
	note(dir->store,
	     &(struct entry){key_of(dir, name), what_of(a->ino, a->generation), origin_ns(a->ctime)});
}

void sl_object_forget_came(struct sl_object *dir, const char *name)
{
	note(dir->store, &(struct entry){.key = key_of(dir, name)});
}

bool sl_object_has_come(struct sl_object *dir, const char *name, struct sl_object *o)
{
	struct sl_store *s = dir->store;
	pthread_mutex_lock(&o->lock);
	uint64_t what = what_of(o->rec.origin.ino, o->rec.origin.generation);
	bool known = o->has_record && o->rec.origin.generation;
	pthread_mutex_unlock(&o->lock);
	pthread_mutex_lock(&s->came_lock);
	struct sl_hnode *h = known ? sl_htab_find(&s->came, key_of(dir, name)) : NULL;
	bool came = h && sl_container_of(h, struct came, node)->e.what == what;
	pthread_mutex_unlock(&s->came_lock);
	return came;
}

int sl_object_listed(struct sl_object *dir, const struct sl_oentry *v, size_t n, struct timespec upto)
{
	int r = 0;
	pthread_mutex_lock(&dir->lock);
	uint64_t was = dir->rec.listed;
	if (dir->has_record && origin_ns(upto) > was) {
		dir->rec.listed = origin_ns(upto);
		r = sl_object_save(dir);
		if (r < 0)
			dir->rec.listed = was;
	}
	pthread_mutex_unlock(&dir->lock);
	for (size_t i = 0; r == 0 && i < n; i++) {
		if (S_ISREG(v[i].attr.mode) && v[i].attr.nlink > 1)
			sl_object_came(dir, v[i].name, &v[i].attr);
		else
			sl_object_forget_came(dir, v[i].name);
	}
	return r;
}

void sl_object_clock(struct sl_object *dir, struct timespec ctime)
{
	struct sl_store *s = dir->store;
	pthread_mutex_lock(&dir->lock);
	bool back = origin_ns(ctime) < dir->rec.listed && !sl_time_eq(ctime, dir->rec.origin.ctime);
	if (back)
		dir->rec.listed = 0;
	pthread_mutex_unlock(&dir->lock);
	if (!back)
		return;
	size_t i;
	pthread_mutex_lock(&s->came_lock);
	for (struct sl_hnode *h = sl_htab_first(&s->came, &i); h; h = sl_htab_step(&s->came, &i, h))
		sl_container_of(h, struct came, node)->e.upto = 0;
	int r = s->came_fd >= 0 ? write_anew(s) : 0;
	pthread_mutex_unlock(&s->came_lock);
	if (r < 0)
		sl_debug("the times of what has come are still noted: %s", strerror(-r));
}

bool sl_object_taken(struct sl_object *dir, const char *name, const struct sl_attr *a)
{
	struct sl_store *s = dir->store;
	pthread_mutex_lock(&dir->lock);
	bool taken = origin_ns(a->ctime) <= dir->rec.listed;
	pthread_mutex_unlock(&dir->lock);
	pthread_mutex_lock(&s->came_lock);
	struct sl_hnode *h = sl_htab_find(&s->came, key_of(dir, name));
	if (h) {
		const struct entry *e = &sl_container_of(h, struct came, node)->e;
		/* Without generations, inode numbers come again. */
		taken |= ((uint32_t)a->generation && e->what == what_of(a->ino, a->generation)) ||
			 origin_ns(a->ctime) <= e->upto;
	}
	pthread_mutex_unlock(&s->came_lock);
	return taken;
}
