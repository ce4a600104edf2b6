/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Reading directories: from the store's own, once the names are here. */
#include <dirent.h>
#include <sys/syscall.h>

#include "gate/fuse/internal.h"

#define DIR_BUFFER 65536

struct linux_dirent64 {
	uint64_t d_ino;
	int64_t d_off;
	unsigned short d_reclen;
	unsigned char d_type;
	char d_name[];
};

static void reply_opendir(struct sl_req *rq, uint64_t fh)
{
	struct fuse_open_out out = {.fh = fh, .open_flags = FOPEN_KEEP_CACHE | FOPEN_CACHE_DIR};
	sl_reply(rq, &out, sizeof(out));
}

void gate_opendir(struct sl_gate *g, struct sl_req *rq, struct sl_object *o)
{
	sl_fill_note_open(g->fill, o);
	if (!gate_need(g, rq, o, SL_WANT_NAMES, 0, 0))
		return;
	struct handle *h = gate_handle_opened(g, rq);
	if (h) {
		reply_opendir(rq, gate_handle_number(g, h));
		return;
	}
	int fd = sl_object_open_dir(o);
	if (fd < 0) {
		sl_reply_err(rq, fd);
		return;
	}
	h = gate_handle_new(g, SLOT_DIR, o, fd, sl_req_unique(rq));
	if (!h) {
		close(fd);
		sl_reply_err(rq, -ENFILE);
		return;
	}
	reply_opendir(rq, gate_handle_open(g, h));
}

/* The record at @offset, or NULL at the end; *@err for what goes wrong. The handle is locked. */
static struct linux_dirent64 *dir_peek(struct handle *h, uint64_t offset, int *err)
{
	*err = 0;
	if (!h->buf && !(h->buf = malloc(DIR_BUFFER))) {
		*err = -ENOMEM;
		return NULL;
	}
	if (offset != h->next || offset == 0) {
		if (lseek(h->fd, (off_t)offset, SEEK_SET) < 0) {
			*err = -errno;
			return NULL;
		}
		h->len = h->pos = 0;
		h->next = offset;
	}
	if (h->pos == h->len) {
		long n = syscall(SYS_getdents64, h->fd, h->buf, DIR_BUFFER);
		if (n <= 0) {
			*err = n < 0 ? -errno : 0;
			return NULL;
		}
		h->len = (size_t)n;
		h->pos = 0;
	}
	return (struct linux_dirent64 *)(h->buf + h->pos);
}

/* Append one entry. 1: it does not fit; 0: done, or nothing to show; -errno. */
static int dir_add(struct sl_gate *g, struct handle *h, const struct linux_dirent64 *e, bool plus, char *out,
		   size_t cap, size_t *len)
{
	struct sl_dirent d = {.ino = e->d_ino,
			      .off = (uint64_t)e->d_off,
			      .type = e->d_type,
			      .namelen = (uint32_t)strlen(e->d_name),
			      .name = e->d_name};
	bool dots = e->d_name[0] == '.' && (!e->d_name[1] || (e->d_name[1] == '.' && !e->d_name[2]));
	_cleanup_object_ struct sl_object *o = NULL;
	size_t head = plus ? FUSE_NAME_OFFSET_DIRENTPLUS : FUSE_NAME_OFFSET;
	if (FUSE_REC_ALIGN(head + d.namelen) > cap - *len)
		return 1;
	if (!dots) {
		struct sl_attr a;
		int r = sl_object_lookup_attr(h->o, e->d_name, &o, &a);
		if (r == -ENOENT)
			return 0;
		/* A name whose object is damaged is shown; using it is what fails. */
		if (r == 0)
			d.type = o->type >> 12;
		r = r == 0 && plus ? gate_entry(g, NULL, o, &a, &d.entry) : 0;
		if (r == -EAGAIN)
			d.entry = (struct fuse_entry_out){0}; /* whoever wants to know more looks it up */
		else if (r < 0)
			return 0;
	}
	sl_dirent_add(out, cap, len, plus, &d);
	return 0;
}

void gate_readdir(struct sl_gate *g, struct sl_req *rq)
{
	struct handle *h = gate_handle(g, rq, rq->m.in.read.fh);
	if (!h)
		return;
	bool plus = rq->m.h.opcode == FUSE_READDIRPLUS;
	size_t cap = SL_MIN(rq->m.in.read.size, SL_WIRE_MAX_DATA), len = 0;
	_cleanup_free_ char *out = malloc(cap + 8);
	if (!out) {
		sl_reply_err(rq, -ENOMEM);
		return;
	}
	int err = 0;
	pthread_mutex_lock(&h->lock);
	uint64_t off = rq->m.in.read.offset;
	for (;;) {
		struct linux_dirent64 *e = dir_peek(h, off, &err);
		if (!e)
			break;
		int r = dir_add(g, h, e, plus, out, cap, &len);
		if (r)
			break;
		h->pos += e->d_reclen;
		off = h->next = (uint64_t)e->d_off;
	}
	pthread_mutex_unlock(&h->lock);
	/* Not ENOENT: the C library takes that for the end of the directory. */
	if (h->o->leaving)
		sl_reply_err(rq, -ESTALE);
	else if (err && len == 0)
		sl_reply_err(rq, err);
	else
		sl_reply_data(rq, NULL, 0, out, len);
}
