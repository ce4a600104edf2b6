/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Open files. */
#include <fcntl.h>
#include <linux/falloc.h>

#include "base/log.h"
#include "base/time.h"
#include "gate/fuse/internal.h"

#define SENT_NS	 SL_NS_PER_SEC /* who was sent to look up comes back until then, or not at all */
#define COPY_MAX (16ull << 20) /* of one COPY_FILE_RANGE: what is not here must come first */

/* ---- open and release ---- */

/*
 * Passthrough: reads and writes go to the store's file without us. All opens of an inode at one time are of
 * one kind, and share one backing file. @o->lock is held; returns whether this one is.
 */
static bool open_passthrough(struct sl_gate *g, struct sl_object *o, struct handle *h)
{
	if (!g->passthrough || o->open_cached || (o->follows && !o->open_passthrough))
		return false;
	if (o->open_passthrough == 0) {
		int id = gate_backing_open(g, h);
		if (id <= 0) {
			sl_notice("passthrough is not possible with this store (%s): reads and writes go "
				  "through the service",
				  strerror(-id));
			g->passthrough = false;
			g->h.area->no_passthrough = 1;
			return false;
		}
		o->backing_id = id;
	}
	h->slot->backing_id = o->backing_id;
	o->open_passthrough++;
	return true;
}

static void close_passthrough(struct sl_gate *g, struct sl_object *o)
{
	if (--o->open_passthrough == 0) {
		gate_backing_close(g, o->backing_id);
		o->backing_id = 0;
	}
}

/* The last use of content is what eviction by age goes by: noted when a file is opened, once a minute at
 * most. */
static void note_use(int fd)
{
	struct stat st;
	time_t now = time(NULL);
	if (fstat(fd, &st) == 0 && st.st_atim.tv_sec + 60 < now) {
		struct timespec ts[2] = {{.tv_nsec = UTIME_NOW}, {.tv_nsec = UTIME_OMIT}};
		(void)futimens(fd, ts);
	}
}

static void open_reply(struct sl_gate *g, struct handle *h, struct fuse_open_out *out)
{
	*out = (struct fuse_open_out){.fh = gate_handle_number(g, h),
				      .open_flags = FOPEN_KEEP_CACHE | FOPEN_NOFLUSH};
	if (h->passthrough) {
		out->open_flags = FOPEN_PASSTHROUGH | FOPEN_NOFLUSH;
		out->backing_id = h->slot->backing_id;
	} else if (h->direct) {
		out->open_flags |= FOPEN_DIRECT_IO;
	}
}

/*
 * Reading through the page cache, the kernel fills up a short answer with zeros as far as it believes the
 * file to go; and that it took the answer to a GETATTR is not known, because it drops one that it asked for
 * before it was told to invalidate. So of a file that became shorter at the origin no short answer is given
 * before the kernel knows the size.
 *
 * Who opens it is sent to look it up again, which -ESTALE makes the kernel do once: when the thread comes
 * back, the kernel has taken what it was told. Who cannot be sent (it opens by a handle; or another one is on
 * the way) reads without the page cache. @o->lock is held. True if it is to go.
 */
static bool send_to_look(struct sl_object *o, uint32_t tid)
{
	bool may = tid && o->sent != tid && (!o->sent || sl_now() - o->sent_at > SENT_NS);
	if (may) {
		o->sent = tid; /* 0: of another pid namespace, one of many */
		o->sent_at = sl_now();
		o->looked = false;
	}
	return may;
}

/* Who opens it and was sent has come back; or who is not to go. @o->lock is held. */
static void come_back(struct sl_gate *g, struct sl_object *o, uint32_t tid, struct handle *h)
{
	bool back = tid && o->sent == tid;
	if (back && o->looked && !o->telling)
		gate_told(g, o);
	if (back)
		o->sent = 0;
	h->direct = o->told_size != 0;
}

void gate_looked_up(struct sl_req *rq, struct sl_object *o)
{
	pthread_mutex_lock(&o->lock);
	if (o->sent && o->sent == rq->m.h.pid)
		o->looked = true;
	pthread_mutex_unlock(&o->lock);
}

int gate_open_handle(struct sl_gate *g, struct sl_req *rq, struct sl_object *o, int flags, int *fd,
		     struct fuse_open_out *out)
{
	if (*fd < 0)
		*fd = sl_object_open(o, (flags & O_ACCMODE) == O_RDONLY ? O_RDONLY : O_RDWR);
	if (*fd < 0)
		return *fd;
	struct handle *h = gate_handle_new(g, SLOT_FILE, o, *fd, sl_req_unique(rq));
	if (!h)
		return -ENFILE;
	(void)sl_steal_fd(fd);
	h->flags = flags;
	pthread_mutex_lock(&o->lock);
	bool ours = o->rec.flags & (SL_MODIFIED | SL_LOCAL);
	int r = 0;
	o->opens++;
	/* A file opened for writing is modified from its opening on, as far as we can tell: only one that is
	 * so already qualifies. */
	if ((ours || ((flags & O_ACCMODE) == O_RDONLY && sl_chunkmap_full(&o->map))) && !o->evicting)
		h->passthrough = open_passthrough(g, o, h);
	else if (o->open_passthrough && (flags & O_ACCMODE) == O_RDONLY)
		h->passthrough = open_passthrough(g, o, h);
	else if (o->open_passthrough)
		r = -EAGAIN; /* opened in passthrough mode since gate_open() looked: its writes would not be
				seen */
	if (o->invalidating)
		r = -EAGAIN;
	else if (r == 0 && !h->passthrough && o->told_size && send_to_look(o, rq->m.h.pid))
		r = -ESTALE;
	else if (r == 0 && !h->passthrough)
		come_back(g, o, rq->m.h.pid, h);
	if (r < 0 && h->passthrough)
		close_passthrough(g, o);
	if (r < 0)
		o->opens--;
	else if (!h->passthrough)
		o->open_cached++;
	pthread_mutex_unlock(&o->lock);
	if (r < 0) {
		gate_handle_free(g, h);
		return r;
	}
	gate_handle_open(g, h);
	note_use(h->fd);
	open_reply(g, h, out);
	return 0;
}

bool gate_open_again(struct sl_gate *g, struct sl_req *rq, struct fuse_open_out *out, struct sl_object **ret)
{
	struct handle *h = gate_handle_opened(g, rq);
	if (!h || h->slot->kind != SLOT_FILE)
		return false;
	open_reply(g, h, out);
	if (ret)
		*ret = sl_object_ref(h->o);
	return true;
}

/*
 * The name by which we knew @o is gone, and it has others: where it is at the origin is not known until it is
 * looked up by one of them.
 */
static bool needs_name(struct sl_object *o)
{
	_cleanup_object_ struct sl_object *parent = sl_object_parent(o);
	struct stat st;
	if (parent)
		return false;
	pthread_mutex_lock(&o->lock);
	bool here = sl_chunkmap_full(&o->map) || o->rec.flags & (SL_LOCAL | SL_MODIFIED);
	unsigned index = !!(o->rec.flags & SL_LINKED);
	pthread_mutex_unlock(&o->lock);
	_cleanup_close_ int fd = here ? -EBADF : sl_object_pin(o);
	return fd >= 0 && fstat(fd, &st) == 0 && st.st_nlink > index;
}

void gate_open(struct sl_gate *g, struct sl_req *rq, struct sl_object *o)
{
	struct fuse_open_out out;
	_cleanup_close_ int fd = -EBADF;
	int flags = (int)rq->m.in.open.flags;
	if (!sl_object_is_reg(o)) {
		sl_reply_err(rq, sl_object_is_dir(o) ? -EISDIR : -ENXIO);
		return;
	}
	if (gate_hold(g, rq, o))
		return;
	if (gate_open_again(g, rq, &out, NULL)) {
		sl_reply(rq, &out, sizeof(out));
		return;
	}
	bool strange = needs_name(o);
	pthread_mutex_lock(&o->lock);
	bool uncertain = sl_object_uncertain(o);
	if (strange)
		(void)send_to_look(o, rq->m.h.pid);
	pthread_mutex_unlock(&o->lock);
	if (strange) {
		sl_reply_err(rq, -ESTALE); /* the kernel looks its name up again, and opens that */
		return;
	}
	if (uncertain && !gate_need(g, rq, o, SL_WANT_RANGE, 0, 1))
		return;
	if ((flags & O_ACCMODE) != O_RDONLY) {
		/* While others have it open in passthrough mode this one must be so too, and its writes would
		 * not be seen. */
		pthread_mutex_lock(&o->lock);
		bool unseen = o->open_passthrough;
		pthread_mutex_unlock(&o->lock);
		if (unseen && !gate_need_writable(g, rq, o, false))
			return;
	}
	sl_fill_note_open(g->fill, o);
	int r = gate_open_handle(g, rq, o, flags, &fd, &out);
	if (r == -EAGAIN)
		gate_open(g, rq, o);
	else if (r < 0)
		sl_reply_err(rq, r);
	else
		sl_reply(rq, &out, sizeof(out));
}

void gate_file_closed(struct sl_gate *g, struct handle *h)
{
	struct sl_object *o = h->o;
	pthread_mutex_lock(&o->lock);
	o->opens--;
	if (h->passthrough)
		close_passthrough(g, o);
	else
		o->open_cached--;
	pthread_mutex_unlock(&o->lock);
}

void gate_release(struct sl_gate *g, struct sl_req *rq)
{
	if (rq->m.in.release.fh == ECHO_HANDLE) {
		sl_reply_err(rq, 0);
		return;
	}
	/* If it comes again it may be done. */
	struct handle *h = gate_handle(g, sl_req_resent(rq) ? NULL : rq, rq->m.in.release.fh);
	if (h)
		gate_handle_free(g, h);
	else if (!sl_req_resent(rq))
		return;
	sl_reply_err(rq, 0);
}

/* ---- content ---- */

void gate_read(struct sl_gate *g, struct sl_req *rq)
{
	const struct fuse_read_in *in = &rq->m.in.read;
	struct handle *h = gate_handle(g, rq, in->fh);
	if (!h)
		return;
	struct sl_object *o = h->o;
	size_t n = SL_MIN(in->size, SL_WIRE_MAX_DATA);
	uint64_t off = in->offset, believed;
	bool full,
	    cached = !(in->read_flags & FUSE_READ_LOCKOWNER); /* the page cache does not say who reads */
	for (;;) {
		if (!gate_need(g, rq, o, SL_WANT_RANGE, in->offset, n))
			return;
		/* From here to the answer nobody takes away or replaces what is read. */
		pthread_rwlock_rdlock(&o->io);
		pthread_mutex_lock(&o->lock);
		bool here = sl_chunkmap_test(&o->map, in->offset, n);
		full = sl_chunkmap_full(&o->map);
		believed = o->told_size;
		pthread_mutex_unlock(&o->lock);
		if (here)
			break;
		pthread_rwlock_unlock(&o->io);
	}
	_cleanup_free_ char *buf = malloc(n + 1);
	ssize_t k = buf ? sl_pread_full(h->fd, buf, n, (off_t)in->offset) : -ENOMEM;
	sl_object_ref(o); /* once it is answered, the file may be closed */
	if (k >= 0 && cached && (size_t)k < n && believed > off + (size_t)k)
		k = -EIO;
	if (k < 0)
		sl_reply_err(rq, (int)k);
	else
		sl_reply_data(rq, NULL, 0, buf, (size_t)k);
	pthread_rwlock_unlock(&o->io);
	if (!full)
		sl_fill_note_read(g->fill, o, off, n);
	sl_object_put(o);
}

static bool believes_in_more(struct handle *h)
{
	struct stat st;
	pthread_mutex_lock(&h->o->lock);
	uint64_t believed = h->o->told_size;
	pthread_mutex_unlock(&h->o->lock);
	return believed && (fstat(h->fd, &st) < 0 || believed > (uint64_t)st.st_size);
}

void gate_write(struct sl_gate *g, struct sl_req *rq)
{
	struct handle *h = gate_handle(g, rq, rq->m.in.write.fh);
	if (!h)
		return;
	if (!gate_need_writable(g, rq, h->o, false))
		return;
	if (rq->m.in.write.flags & O_APPEND && believes_in_more(h)) {
		sl_reply_err(rq, -EIO); /* it would be written behind an end that there is not */
		return;
	}
	int r = sl_pwrite_full(h->fd, rq->m.data, rq->m.data_len, (off_t)rq->m.in.write.offset);
	if (r < 0) {
		sl_reply_err(rq, r);
		return;
	}
	struct fuse_write_out out = {.size = (uint32_t)rq->m.data_len};
	sl_reply(rq, &out, sizeof(out));
}

void gate_fallocate(struct sl_gate *g, struct sl_req *rq)
{
	const struct fuse_fallocate_in *in = &rq->m.in.fallocate;
	struct handle *h = gate_handle(g, rq, in->fh);
	if (!h)
		return;
	if (!gate_need_writable(g, rq, h->o, false))
		return;
	sl_reply_err(rq,
		     fallocate(h->fd, (int)in->mode, (off_t)in->offset, (off_t)in->length) < 0 ? -errno : 0);
}

void gate_copy(struct sl_gate *g, struct sl_req *rq)
{
	const struct fuse_copy_file_range_in *in = &rq->m.in.copy_file_range;
	struct handle *from = gate_handle(g, rq, in->fh_in),
		      *to = from ? gate_handle(g, rq, in->fh_out) : NULL;
	if (!to)
		return;
	size_t n = (size_t)SL_MIN(in->len, COPY_MAX);
	if (!gate_need_writable(g, rq, to->o, false))
		return;
	for (;;) {
		if (!gate_need(g, rq, from->o, SL_WANT_RANGE, in->off_in, n))
			return;
		pthread_rwlock_rdlock(&from->o->io);
		pthread_mutex_lock(&from->o->lock);
		bool here = sl_chunkmap_test(&from->o->map, in->off_in, n);
		pthread_mutex_unlock(&from->o->lock);
		if (here)
			break;
		pthread_rwlock_unlock(&from->o->io);
	}
	off_t a = (off_t)in->off_in, b = (off_t)in->off_out;
	ssize_t k = copy_file_range(from->fd, &a, to->fd, &b, n, 0);
	pthread_rwlock_unlock(&from->o->io);
	struct fuse_write_out out = {.size = (uint32_t)k};
	if (k < 0)
		sl_reply_err(rq, -errno);
	else
		sl_reply(rq, &out, sizeof(out));
}

/* ---- holes ---- */

struct seek {
	struct sl_oreq req;
	struct sl_req *rq;
	struct sl_object *o;
	char *place;
	uint64_t size;
};

/* What is always true: there is data up to the end. */
static void seek_plain(struct sl_req *rq, uint64_t size)
{
	const struct fuse_lseek_in *in = &rq->m.in.lseek;
	struct fuse_lseek_out out = {.offset = in->whence == SEEK_DATA ? in->offset : size};
	if (in->offset >= size)
		sl_reply_err(rq, -ENXIO);
	else
		sl_reply(rq, &out, sizeof(out));
}

static void seek_done(struct sl_oreq *r)
{
	struct seek *s = sl_container_of(r, struct seek, req);
	struct sl_version v = sl_attr_version(&r->attr);
	pthread_mutex_lock(&s->o->lock);
	bool same = r->err == 0 && sl_version_eq(&v, &s->o->rec.origin) && !(s->o->rec.flags & SL_MODIFIED);
	pthread_mutex_unlock(&s->o->lock);
	if (!same) {
		seek_plain(s->rq, s->size); /* of another version, or not known */
	} else if (r->result == UINT64_MAX) {
		sl_reply_err(s->rq, -ENXIO);
	} else {
		struct fuse_lseek_out out = {.offset = r->result};
		sl_reply(s->rq, &out, sizeof(out));
	}
	sl_oreq_fini(r);
	sl_object_put(s->o);
	free(s->place);
	free(s);
}

void gate_lseek(struct sl_gate *g, struct sl_req *rq)
{
	const struct fuse_lseek_in *in = &rq->m.in.lseek;
	struct handle *h = gate_handle(g, rq, in->fh);
	if (!h)
		return;
	struct sl_object *o = h->o;
	if (in->whence != SEEK_DATA && in->whence != SEEK_HOLE) {
		sl_reply_err(rq, -EINVAL);
		return;
	}
	pthread_rwlock_rdlock(&o->io);
	pthread_mutex_lock(&o->lock);
	bool ours = o->rec.flags & (SL_MODIFIED | SL_LOCAL);
	bool full = sl_chunkmap_full(&o->map), sparse = o->rec.flags & SL_SPARSE;
	uint64_t size = o->map.size;
	pthread_mutex_unlock(&o->lock);
	if (ours || (full && !sl_store_reflinks(g->store))) {
		off_t at = lseek(h->fd, (off_t)in->offset, (int)in->whence);
		pthread_rwlock_unlock(&o->io);
		struct fuse_lseek_out out = {.offset = (uint64_t)at};
		if (at < 0)
			sl_reply_err(rq, -errno);
		else
			sl_reply(rq, &out, sizeof(out));
		return;
	}
	pthread_rwlock_unlock(&o->io);
	struct seek *s = sparse ? calloc(1, sizeof(*s)) : NULL;
	if (!s || sl_object_place(o, &s->place) < 0) {
		free(s);
		seek_plain(rq, size);
		return;
	}
	s->rq = sl_req_keep(rq);
	if (!s->rq) {
		free(s->place);
		free(s);
		return;
	}
	s->o = sl_object_ref(o);
	s->size = size;
	s->req = (struct sl_oreq){.op = SL_OREQ_LSEEK,
				  .place = s->place,
				  .off = in->offset,
				  .whence = (int)in->whence,
				  .done = seek_done};
	sl_origin_submit(g->cfg.origin, &s->req);
}

void gate_fsync(struct sl_gate *g, struct sl_req *rq)
{
	struct handle *h = gate_handle(g, rq, rq->m.in.fsync.fh);
	if (!h)
		return;
	bool data = rq->m.in.fsync.fsync_flags & FUSE_FSYNC_FDATASYNC;
	sl_reply_err(rq, (data ? fdatasync(h->fd) : fsync(h->fd)) < 0 ? -errno : 0);
}
