/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "wire/msg.h"

#include <errno.h>
#include <string.h>

#include "base/fd.h"
#include "base/macros.h"

/* A cursor over the bytes of a message that are not yet consumed. */
struct cursor {
	const char *p;
	size_t left;
};

static const void *take(struct cursor *c, size_t n)
{
	if (n > c->left)
		return NULL;
	const void *p = c->p;
	c->p += n;
	c->left -= n;
	return p;
}

static const char *take_string(struct cursor *c)
{
	const char *nul = c->left ? memchr(c->p, '\0', c->left) : NULL;
	return nul ? take(c, (size_t)(nul - c->p) + 1) : NULL;
}

/*
 * Names that become part of a path must be names; symlink targets and xattr names are free text. A LOOKUP may
 * be for
 * "." and "..", which exported filesystems need, and the kernel looks up names that are too long: both are
 * the server's to answer.
 */
static bool name_ok(uint32_t opcode, bool second, const char *name)
{
	switch (opcode) {
	case FUSE_SETXATTR:
	case FUSE_GETXATTR:
	case FUSE_REMOVEXATTR:
	case FUSE_TMPFILE:
		return true;
	case FUSE_LOOKUP:
		return *name && !strchr(name, '/');
	case FUSE_SYMLINK:
		return second || sl_name_valid(name, strlen(name));
	default:
		return sl_name_valid(name, strlen(name));
	}
}

static size_t in_size(const struct sl_op *op, uint64_t init_flags)
{
	return op->in_min == FUSE_COMPAT_SETXATTR_IN_SIZE && op->in_tail == SL_TAIL_NAME_DATA &&
		       !(init_flags & FUSE_SETXATTR_EXT)
		   ? op->in_min
		   : op->in_size;
}

static int decode_tail(struct cursor *c, struct sl_msg_in *m)
{
	const struct sl_op *op = m->op;
	size_t want = 0;

	switch (op->in_tail) {
	case SL_TAIL_NAME:
	case SL_TAIL_NAME2:
	case SL_TAIL_NAME_DATA:
		m->name = take_string(c);
		if (!m->name || !name_ok(m->h.opcode, false, m->name))
			return -EPROTO;
		if (op->in_tail == SL_TAIL_NAME2) {
			m->name2 = take_string(c);
			if (!m->name2 || !name_ok(m->h.opcode, true, m->name2))
				return -EPROTO;
		}
		if (op->in_tail != SL_TAIL_NAME_DATA)
			break;
		want = m->in.setxattr.size;
		goto data;
	case SL_TAIL_DATA:
		want = m->h.opcode == FUSE_IOCTL ? m->in.ioctl.in_size : m->in.write.size;
		goto data;
	case SL_TAIL_FORGETS:
		if (m->in.batch_forget.count > c->left / sizeof(struct fuse_forget_one))
			return -EPROTO;
		want = m->in.batch_forget.count * sizeof(struct fuse_forget_one);
	data:
		m->data = take(c, want);
		m->data_len = want;
		if (!m->data)
			return -EPROTO;
		break;
	default:
		break;
	}
	return c->left ? -EPROTO : 0;
}

int sl_msg_in_decode(const void *buf, size_t len, uint64_t init_flags, struct sl_msg_in *m)
{
	*m = (struct sl_msg_in){0};
	struct cursor c = {buf, len};
	const void *p = take(&c, sizeof(m->h));
	if (!p)
		return -EPROTO;
	memcpy(&m->h, p, sizeof(m->h));
	if (m->h.len != len)
		return -EPROTO;
	size_t ext = (size_t)m->h.total_extlen * 8;
	if (ext > c.left)
		return -EPROTO;
	c.left -= ext;
	m->op = sl_op_get(m->h.opcode);
	if (!m->op)
		return -ENOSYS;
	size_t n = in_size(m->op, init_flags);
	if (m->h.opcode == FUSE_INIT) {
		/* The one structure that grew: a peer sends what it knows. A longer one is of a newer
		 * version; its start is ours. */
		if (c.left < m->op->in_min)
			return -EPROTO;
		memcpy(&m->in, c.p, SL_MIN(c.left, n));
		return 0;
	}
	p = take(&c, n);
	if (!p)
		return -EPROTO;
	memcpy(&m->in, p, n);
	return decode_tail(&c, m);
}

int sl_msg_out_decode(const void *buf, size_t len, const struct sl_op *op, struct sl_msg_out *m)
{
	*m = (struct sl_msg_out){0};
	struct cursor c = {buf, len};
	const void *p = take(&c, sizeof(m->h));
	if (!p)
		return -EPROTO;
	memcpy(&m->h, p, sizeof(m->h));
	if (m->h.len != len)
		return -EPROTO;
	if (!op || m->h.unique == 0) {
		m->data = c.p;
		m->data_len = c.left;
		return 0;
	}
	if (m->h.error != 0)
		return c.left == 0 && m->h.error < 0 && m->h.error > -4096 ? 0 : -EPROTO;
	if (op->out_size) {
		if (c.left < op->out_min)
			return -EPROTO;
		size_t n = SL_MIN(c.left, (size_t)op->out_size);
		memcpy(&m->out, take(&c, n), n);
	}
	if (c.left && op->out_tail == SL_TAIL_NONE && op->out_min == op->out_size)
		return -EPROTO;
	m->data = c.p;
	m->data_len = c.left;
	return 0;
}

int sl_msg_in_encode(struct fuse_in_header *h, const union sl_in *in, const char *name, const char *name2,
		     const void *data, size_t data_len, uint64_t init_flags, struct iovec iov[SL_MSG_IOV])
{
	const struct sl_op *op = sl_op_get(h->opcode);
	if (!op)
		return -EINVAL;
	int n = 0;
	iov[n++] = (struct iovec){h, sizeof(*h)};
	size_t isz = in_size(op, init_flags);
	if (isz) {
		if (!in)
			return -EINVAL;
		iov[n++] = (struct iovec){(void *)in, isz};
	}
	bool has_name =
	    op->in_tail == SL_TAIL_NAME || op->in_tail == SL_TAIL_NAME2 || op->in_tail == SL_TAIL_NAME_DATA;
	if (has_name != (name != NULL) || (op->in_tail == SL_TAIL_NAME2) != (name2 != NULL))
		return -EINVAL;
	if (name)
		iov[n++] = (struct iovec){(void *)name, strlen(name) + 1};
	if (name2)
		iov[n++] = (struct iovec){(void *)name2, strlen(name2) + 1};
	bool has_data =
	    op->in_tail == SL_TAIL_DATA || op->in_tail == SL_TAIL_NAME_DATA || op->in_tail == SL_TAIL_FORGETS;
	if (!has_data && data_len)
		return -EINVAL;
	if (data_len)
		iov[n++] = (struct iovec){(void *)data, data_len};
	size_t len = 0;
	for (int i = 0; i < n; i++)
		len += iov[i].iov_len;
	if (len > SL_WIRE_MAX_MSG)
		return -EINVAL;
	h->len = (uint32_t)len;
	return n;
}

int sl_dirent_next(const void **p, size_t *left, bool plus, struct sl_dirent *d)
{
	if (*left == 0)
		return 0;
	struct cursor c = {*p, *left};
	const void *q;
	*d = (struct sl_dirent){0};
	if (plus) {
		q = take(&c, sizeof(d->entry));
		if (!q)
			return -EPROTO;
		memcpy(&d->entry, q, sizeof(d->entry));
	}
	struct fuse_dirent fd;
	q = take(&c, FUSE_NAME_OFFSET);
	if (!q)
		return -EPROTO;
	memcpy(&fd, q, FUSE_NAME_OFFSET);
	if (fd.namelen == 0 || fd.namelen > 255)
		return -EPROTO;
	d->name = take(&c, fd.namelen);
	if (!d->name || memchr(d->name, '/', fd.namelen) || memchr(d->name, '\0', fd.namelen))
		return -EPROTO;
	size_t used = *left - c.left, pad = FUSE_REC_ALIGN(used) - used;
	if (!take(&c, pad))
		return -EPROTO;
	d->ino = fd.ino;
	d->off = fd.off;
	d->type = fd.type;
	d->namelen = fd.namelen;
	*p = c.p;
	*left = c.left;
	return 1;
}

bool sl_dirent_add(void *buf, size_t cap, size_t *len, bool plus, const struct sl_dirent *d)
{
	size_t head = plus ? FUSE_NAME_OFFSET_DIRENTPLUS : FUSE_NAME_OFFSET;
	size_t n = FUSE_REC_ALIGN(head + d->namelen);
	if (n > cap - *len)
		return false;
	char *o = (char *)buf + *len;
	memset(o + n - 8, 0, 8);
	if (plus) {
		memcpy(o, &d->entry, sizeof(d->entry));
		o += sizeof(d->entry);
	}
	struct fuse_dirent fd = {.ino = d->ino, .off = d->off, .namelen = d->namelen, .type = d->type};
	memcpy(o, &fd, FUSE_NAME_OFFSET);
	memcpy(o + FUSE_NAME_OFFSET, d->name, d->namelen);
	*len += n;
	return true;
}
