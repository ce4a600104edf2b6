/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Native: users change files behind our back. */
#include <fcntl.h>

#include "base/log.h"
#include "fill/internal.h"

static bool open_for_write(struct sl_object *o)
{
	_cleanup_close_ int fd = sl_object_open(o, O_RDONLY);
	if (fd < 0 || fcntl(fd, F_SETLEASE, F_RDLCK) == 0)
		return false;
	return errno == EAGAIN;
}

/*
 * With the io lock held shared. open(O_TRUNC) asks before it opens, and cuts the file off a moment later
 * without asking again; what was written in between would make it long again. No open is let through while
 * the io lock is held; one that was let through just now, and is for writing, gets time to be done.
 */
void sl_settle_opens(struct sl_object *o)
{
	while (o->opened && sl_now() - o->opened < SL_OPENING_NS && open_for_write(o)) {
		pthread_rwlock_unlock(&o->io);
		usleep(SL_OPENING_NS / 10000);
		pthread_rwlock_rdlock(&o->io);
	}
}

void sl_own(struct sl_fill *f, struct sl_object *o)
{
	o->rec.flags = (uint16_t)((o->rec.flags | SL_MODIFIED) & ~SL_WRITTEN);
	o->rec.state = SL_FULL;
	int r = sl_object_save(o);
	if (r < 0)
		sl_err("cannot note that inode %llu was changed here: %s",
		       (unsigned long long)sl_object_ino(o), strerror(-r));
	(void)sl_object_save_map(o, true);
	sl_space_add(f, -(int64_t)sl_chunkmap_bytes(&o->map));
	o->epoch++;
	sl_chunkmap_fini(&o->map);
	sl_chunkmap_init(&o->map, 0, true);
}

static void rest_done(struct sl_want *w, int err)
{
	if (err)
		sl_warn("inode %llu was changed here, and its missing parts cannot be fetched: %s",
			(unsigned long long)sl_object_ino(w->o), strerror(-err));
	sl_object_put(w->o);
	free(w);
}

void sl_fill_written(struct sl_fill *f, struct sl_object *o)
{
	bool rest = false, here = false;
	struct sl_attr a;
	if (!sl_object_is_reg(o) || o->damaged)
		return;
	/* Under the lock: it may just be given another version. */
	pthread_mutex_lock(&o->lock);
	int r = sl_object_attr(o, &a);
	uint64_t size = o->map.size;
	if (!(o->rec.flags & (SL_MODIFIED | SL_LOCAL))) {
		/* Who cuts it off otherwise than by open(O_TRUNC) has all of it fetched first. */
		here = sl_chunkmap_full(&o->map) || (r == 0 && a.size < size);
		if (here) {
			sl_own(f, o);
		} else if (!(o->rec.flags & SL_WRITTEN)) {
			o->rec.flags |= SL_WRITTEN;
			r = sl_object_save(o);
			if (r < 0)
				sl_err("cannot note that inode %llu was changed here: %s",
				       (unsigned long long)sl_object_ino(o), strerror(-r));
			rest = true;
		}
	}
	pthread_mutex_unlock(&o->lock);
	if (here)
		sl_fill_kick(f, o);
	struct sl_want *w = rest ? calloc(1, sizeof(*w)) : NULL;
	if (!w)
		return;
	*w = (struct sl_want){.o = sl_object_ref(o), .len = size, .done = rest_done};
	r = sl_fill_want(f, SL_WANT_RANGE, w);
	if (r != 0)
		rest_done(w, SL_MIN(r, 0));
}

bool sl_changed_here(struct sl_object *o, int fd)
{
	struct stat st;
	if (o->rec.flags & SL_WRITTEN)
		return true;
	if (!sl_store_native(o->store))
		return false;
	return fstat(fd, &st) < 0 || (uint64_t)st.st_size != o->map.size || sl_looks_changed(o, &st);
}
