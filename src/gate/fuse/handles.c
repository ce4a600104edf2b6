/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "gate/fuse/handles.h"

#include <sys/ioctl.h>
#include <sys/mman.h>

#include "gate/fuse/internal.h"

#define OWN_AREA (16ull << 20) /* of a gate without keeper */

int gate_handles_init(struct handles *t, void *area, size_t size)
{
	if (!area) {
		size = OWN_AREA;
		t->own = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
			      -1, 0);
		if (t->own == MAP_FAILED) {
			t->own = NULL;
			return -errno;
		}
		area = t->own;
	}
	t->area = area;
	t->max = (uint32_t)((size - sizeof(struct gate_area)) / sizeof(struct slot));
	t->chunks = calloc(SL_DIV_UP(t->max, HANDLE_CHUNK), sizeof(*t->chunks));
	pthread_mutex_init(&t->backing_lock, NULL);
	return t->chunks ? 0 : -ENOMEM;
}

void gate_handles_fini(struct handles *t)
{
	for (uint32_t i = 0; t->chunks && i < SL_DIV_UP(t->max, HANDLE_CHUNK); i++)
		free((void *)t->chunks[i]);
	free(t->chunks);
	free(t->spare);
	sl_htab_fini(&t->by_open);
	if (t->own)
		munmap(t->own, OWN_AREA);
	pthread_mutex_destroy(&t->backing_lock);
}

static uint32_t index_of(const struct handles *t, const struct slot *s)
{
	return (uint32_t)(s - t->area->slots);
}

uint64_t gate_handle_number(const struct sl_gate *g, const struct handle *h)
{
	return (uint64_t)h->slot->generation << 32 | index_of(&g->h, h->slot);
}

/* Gate's lock held. */
static struct slot *take_slot(struct handles *t)
{
	if (t->nspare)
		return &t->area->slots[t->spare[--t->nspare]];
	uint32_t i = t->area->top;
	if (i == t->max)
		return NULL;
	uint32_t c = i / HANDLE_CHUNK;
	if (!t->chunks[c]) {
		struct handle *_Atomic *chunk = calloc(HANDLE_CHUNK, sizeof(*chunk));
		if (!chunk)
			return NULL;
		t->chunks[c] = chunk;
	}
	t->area->top = i + 1;
	return &t->area->slots[i];
}

/* Gate's lock held, or nobody else is there yet. */
void gate_slot_spare(struct handles *t, struct slot *s)
{
	s->state = SLOT_FREE;
	if (t->nspare == t->cap) {
		size_t cap = t->cap ? t->cap * 2 : 256;
		uint32_t *v = reallocarray(t->spare, cap, sizeof(*v));
		if (!v)
			return; /* the slot is lost; there are many */
		t->spare = v;
		t->cap = cap;
	}
	t->spare[t->nspare++] = index_of(t, s);
}

static struct handle *_Atomic *place_of(const struct handles *t, const struct slot *s)
{
	uint32_t i = index_of(t, s);
	return &t->chunks[i / HANDLE_CHUNK][i % HANDLE_CHUNK];
}

struct handle *gate_handle_new(struct sl_gate *g, enum slot_kind kind, struct sl_object *o, int fd,
			       uint64_t unique)
{
	struct handle *h = calloc(1, sizeof(*h));
	if (!h)
		return NULL;
	pthread_mutex_lock(&g->lock);
	struct slot *s = take_slot(&g->h);
	if (s)
		s->state = SLOT_HALF;
	pthread_mutex_unlock(&g->lock);
	if (!s) {
		free(h);
		return NULL;
	}
	s->generation++;
	s->fd = fd;
	s->backing_id = 0;
	s->kind = kind;
	s->flags = 0;
	s->ino = sl_object_ino(o);
	s->unique = unique;
	h->slot = s;
	h->o = sl_object_ref(o);
	h->fd = fd;
	pthread_mutex_init(&h->lock, NULL);
	sl_list_init(&h->link);
	return h;
}

uint64_t gate_handle_open(struct sl_gate *g, struct handle *h)
{
	h->slot->flags = (uint32_t)h->flags;
	pthread_mutex_lock(&g->lock);
	sl_list_add_tail(&g->handles, &h->link);
	*place_of(&g->h, h->slot) = h;
	h->slot->state = SLOT_OPEN;
	pthread_mutex_unlock(&g->lock);
	return gate_handle_number(g, h);
}

void gate_handle_free(struct sl_gate *g, struct handle *h)
{
	struct sl_object *o = h->o;
	bool shown;
	pthread_mutex_lock(&g->lock);
	h->slot->state = SLOT_HALF;
	shown = !sl_list_empty(&h->link);
	sl_list_del(&h->link);
	if (shown)
		*place_of(&g->h, h->slot) = NULL;
	if (h->taken_over)
		sl_htab_del(&g->h.by_open, &h->by_open);
	pthread_mutex_unlock(&g->lock);
	if (shown && h->slot->kind == SLOT_FILE)
		gate_file_closed(g, h);
	if (h->fd >= 0)
		close(h->fd);
	sl_object_put(o);
	pthread_mutex_lock(&g->lock);
	gate_slot_spare(&g->h, h->slot);
	pthread_mutex_unlock(&g->lock);
	pthread_mutex_destroy(&h->lock);
	free(h->buf);
	free(h);
}

struct handle *gate_handle(struct sl_gate *g, struct sl_req *rq, uint64_t fh)
{
	uint32_t i = (uint32_t)fh;
	struct handle *_Atomic *chunk = i < g->h.max ? g->h.chunks[i / HANDLE_CHUNK] : NULL;
	struct handle *h = chunk ? chunk[i % HANDLE_CHUNK] : NULL;
	if (h && h->slot->generation == fh >> 32)
		return h;
	if (rq)
		sl_reply_err(rq, -EBADF);
	return NULL;
}

struct handle *gate_handle_opened(struct sl_gate *g, const struct sl_req *rq)
{
	if (!sl_req_resent(rq))
		return NULL;
	pthread_mutex_lock(&g->lock);
	struct sl_hnode *n = sl_htab_find(&g->h.by_open, sl_req_unique(rq));
	pthread_mutex_unlock(&g->lock);
	return n ? sl_container_of(n, struct handle, by_open) : NULL;
}

/* ---- passthrough ---- */

int gate_backing_open(struct sl_gate *g, struct handle *h)
{
	struct fuse_backing_map m = {.fd = h->fd};
	pthread_mutex_lock(&g->h.backing_lock);
	int id = ioctl(sl_transport_fd(g->transport), FUSE_DEV_IOC_BACKING_OPEN, &m);
	id = id < 0 ? -errno : id;
	if (id > 0) {
		h->slot->backing_id = id;
		g->h.area->last_backing = id;
	}
	pthread_mutex_unlock(&g->h.backing_lock);
	return id;
}

void gate_backing_close(struct sl_gate *g, int id)
{
	uint32_t n = (uint32_t)id;
	ioctl(sl_transport_fd(g->transport), FUSE_DEV_IOC_BACKING_CLOSE, &n);
}

/* ---- what the kernel has still to be told ---- */

void gate_note_change(struct sl_gate *g, struct sl_object *o, uint64_t old_size)
{
	struct gate_area *a = g->h.area;
	for (unsigned i = 0; i < CHANGES; i++) {
		uint64_t none = 0;
		if (!atomic_compare_exchange_strong(&a->changes[i].ino, &none, UINT64_MAX))
			continue;
		a->changes[i].size = old_size;
		a->changes[i].ino = sl_object_ino(o);
		return;
	}
	a->changes_lost = 1;
}

void gate_note_changed(struct sl_gate *g, uint64_t ino)
{
	struct gate_area *a = g->h.area;
	for (unsigned i = 0; i < CHANGES; i++) {
		uint64_t have = ino;
		(void)atomic_compare_exchange_strong(&a->changes[i].ino, &have, 0);
	}
}
