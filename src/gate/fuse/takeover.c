/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Taking over from a service that died. What it had opened is in the area; what it was asked and did not
 * answer the kernel sends again (FUSE_NOTIFY_RESEND). What it was told to forget, or gave out references for,
 * nobody knows: nodes that come up are found by their number (store/index.h).
 */
#include <fcntl.h>

#include "base/log.h"
#include "gate/fuse/internal.h"
#include "store/walk.h"

void sl_gate_each_fd(const void *area, size_t size, void (*fn)(void *arg, int fd), void *arg)
{
	const struct gate_area *a = area;
	uint32_t max = (uint32_t)((size - sizeof(*a)) / sizeof(struct slot));
	uint32_t top = a->top;
	for (uint32_t i = 0; i < top && i < max; i++)
		if (a->slots[i].state == SLOT_OPEN && a->slots[i].fd >= 0)
			fn(arg, a->slots[i].fd);
}

bool sl_gate_can_take_over(const void *area)
{
	const struct gate_area *a = area;
	/* Before INIT was answered nothing can be lost. */
	return !a->agreed_known || a->resend;
}

size_t sl_gate_area_used(const void *area)
{
	const struct gate_area *a = area;
	return sizeof(*a) + a->top * sizeof(a->slots[0]);
}

/* The numbers are of a process that is no more: open the object again, where it still has a name. */
static int reopen(struct sl_gate *g, struct slot *s, struct sl_object **ret)
{
	int r = sl_index_find(g->index, s->ino, ret);
	if (r < 0)
		return r;
	if (s->kind == SLOT_FILE)
		return sl_object_open(*ret, (s->flags & O_ACCMODE) == O_RDONLY ? O_RDONLY : O_RDWR);
	return s->kind == SLOT_DIR ? sl_object_open_dir(*ret) : sl_object_pin(*ret);
}

static int restore_object(struct sl_gate *g, struct slot *s, bool numbers_lost, struct sl_object **ret)
{
	int fd = s->fd;
	if (numbers_lost) {
		fd = reopen(g, s, ret);
	} else {
		int r = sl_index_find_fd(g->index, fd, ret);
		if (r == 0 && sl_object_ino(*ret) != s->ino)
			r = -ESTALE;
		fd = r < 0 ? r : fd;
	}
	if (fd < 0) {
		sl_object_put(*ret);
		*ret = NULL;
	}
	return fd;
}

/* One slot that the last service left open. */
static int restore(struct sl_gate *g, struct slot *s, bool numbers_lost)
{
	struct sl_object *o = NULL;
	int fd = restore_object(g, s, numbers_lost, &o);
	if (fd < 0)
		return fd;
	struct handle *h = calloc(1, sizeof(*h));
	if (!h) {
		sl_object_put(o);
		return -ENOMEM;
	}
	s->fd = fd;
	*h = (struct handle){
	    .slot = s, .o = o, .fd = fd, .flags = (int)s->flags, .passthrough = s->backing_id != 0};
	pthread_mutex_init(&h->lock, NULL);
	sl_list_add_tail(&g->handles, &h->link);
	uint32_t i = (uint32_t)(s - g->h.area->slots);
	g->h.chunks[i / HANDLE_CHUNK][i % HANDLE_CHUNK] = h;
	if (sl_htab_add(&g->h.by_open, &h->by_open, s->unique) == 0)
		h->taken_over = true;
	if (s->kind == SLOT_FILE) {
		/* It was opened in passthrough mode because all of it was here. */
		if (h->passthrough)
			(void)sl_fill_complete(g->fill, o);
		pthread_mutex_lock(&o->lock);
		o->opens++;
		if (h->passthrough) {
			o->open_passthrough++;
			o->backing_id = s->backing_id;
		} else {
			o->open_cached++;
		}
		pthread_mutex_unlock(&o->lock);
	} else if (s->kind == SLOT_ORPHAN) {
		pthread_mutex_lock(&o->lock);
		o->orphan = h;
		if (o->nlookup++ == 0)
			sl_object_ref(o);
		pthread_mutex_unlock(&o->lock);
	}
	return 0;
}

static bool backing_in_use(const struct gate_area *a, int id)
{
	for (uint32_t i = 0; i < a->top; i++)
		if (a->slots[i].state == SLOT_OPEN && a->slots[i].backing_id == id)
			return true;
	return false;
}

static int restore_handles(struct sl_gate *g, bool numbers_lost)
{
	struct gate_area *a = g->h.area;
	size_t n = 0, lost = 0;
	if (a->top > g->h.max)
		return -EBADMSG;
	for (uint32_t i = 0; i < a->top; i += HANDLE_CHUNK) {
		g->h.chunks[i / HANDLE_CHUNK] = calloc(HANDLE_CHUNK, sizeof(struct handle *));
		if (!g->h.chunks[i / HANDLE_CHUNK])
			return -ENOMEM;
	}
	for (uint32_t i = 0; i < a->top; i++) {
		struct slot *s = &a->slots[i];
		if (s->state == SLOT_HALF) {
			int id = s->backing_id;
			s->state = SLOT_FREE;
			if (id && !backing_in_use(a, id))
				gate_backing_close(g, id);
		}
		if (s->state == SLOT_OPEN) {
			int r = restore(g, s, numbers_lost);
			if (r == -ENOMEM)
				return r;
			n += r == 0;
			if (r < 0) {
				/* Whoever uses it is told so (EBADF). */
				lost += s->kind != SLOT_ORPHAN;
				s->state = SLOT_FREE;
			}
		}
		if (s->state == SLOT_FREE)
			gate_slot_spare(&g->h, s);
	}
	/* One backing id may have been given out and not written down. */
	if (a->last_backing && !backing_in_use(a, a->last_backing + 1))
		gate_backing_close(g, a->last_backing + 1);
	if (n)
		sl_info("taken over: %zu open files and directories", n);
	if (lost)
		sl_warn("%zu open files and directories could not be taken over: what uses them gets errors",
			lost);
	return 0;
}

static int invalidate_any(void *arg, const char *path, struct sl_object *o, int err)
{
	struct sl_gate *g = arg;
	(void)path;
	(void)err;
	if (o && sl_object_is_reg(o)) {
		pthread_mutex_lock(&o->lock);
		sl_object_telling(o, UINT64_MAX);
		o->invalidating++;
		pthread_mutex_unlock(&o->lock);
		sl_gate_changed(g, o);
	}
	return 0;
}

/* What the kernel had to be told of, and perhaps was not. */
static void restore_changes(struct sl_gate *g)
{
	struct gate_area *a = g->h.area;
	for (unsigned i = 0; i < CHANGES; i++) {
		uint64_t ino = a->changes[i].ino;
		_cleanup_object_ struct sl_object *o = NULL;
		if (ino == 0)
			continue;
		if (ino == UINT64_MAX || sl_index_find(g->index, ino, &o) < 0) {
			a->changes[i].ino = 0; /* had not come to the change; or it is gone */
			continue;
		}
		pthread_mutex_lock(&o->lock);
		sl_object_telling(o, a->changes[i].size);
		o->invalidating++;
		pthread_mutex_unlock(&o->lock);
		sl_gate_changed(g, o);
	}
	if (a->changes_lost) {
		a->changes_lost = 0;
		(void)sl_walk(sl_object_root(g->store), invalidate_any, g);
	}
}

int gate_takeover(struct sl_gate *g, bool numbers_lost)
{
	int r = sl_index_new(g->store, &g->index);
	if (r == 0)
		r = restore_handles(g, numbers_lost);
	if (r < 0)
		return r;
	gate_echo_takeover(g);
	restore_changes(g);
	r = sl_server_resend(g->server);
	/* ENODEV, ENOTCONN: it was unmounted meanwhile, which sl_gate_run() will notice. */
	return r == -ENODEV || r == -ENOTCONN || r == -EPERM ? 0 : r;
}
