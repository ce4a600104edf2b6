/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The codec: every operation of the table, both ways, whole and cut off at every byte. If this fails, a peer
 * can make us misread a message or read beyond one. Every message is decoded from a heap block of just its
 * size, so that ASan sees the latter.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/macros.h"
#include "wire/msg.h"

/* A message in a block of its own size. */
struct block {
	char *p;
	size_t len;
};

static struct block flatten(const struct iovec *iov, int n)
{
	struct block b = {0};
	for (int i = 0; i < n; i++)
		b.len += iov[i].iov_len;
	b.p = malloc(b.len);
	size_t o = 0;
	for (int i = 0; i < n; i++) {
		memcpy(b.p + o, iov[i].iov_base, iov[i].iov_len);
		o += iov[i].iov_len;
	}
	return b;
}

static struct block cut(const struct block *b, size_t len)
{
	struct block c = {malloc(len ? len : 1), len};
	memcpy(c.p, b->p, len);
	return c;
}

static void set_len(struct block *b, uint32_t len)
{
	if (b->len >= sizeof(len))
		memcpy(b->p, &len, sizeof(len));
}

/* What a request of each operation may look like. */
struct sample {
	struct fuse_in_header h;
	union sl_in in;
	const char *name, *name2;
	char data[64];
	size_t data_len;
};

static const struct sl_op *make_sample(uint32_t opcode, struct sample *s)
{
	const struct sl_op *op = sl_op_get(opcode);
	*s = (struct sample){
	    .h = {
		.opcode = opcode, .unique = 0x1122334455667788, .nodeid = 42, .uid = 1, .gid = 2, .pid = 3}};
	if (!op)
		return NULL;
	for (size_t i = 0; i < op->in_size; i++)
		((unsigned char *)&s->in)[i] = (unsigned char)(i * 7 + opcode + 1);
	for (size_t i = 0; i < sizeof(s->data); i++)
		s->data[i] = (char)(i * 5);
	switch (op->in_tail) {
	case SL_TAIL_NAME2:
		s->name2 = "the second name";
		/* fall through */
	case SL_TAIL_NAME:
		s->name = "name \xff";
		break;
	case SL_TAIL_NAME_DATA:
		s->name = "user.attribute";
		s->data_len = s->in.setxattr.size = 17;
		break;
	case SL_TAIL_DATA:
		s->data_len = 33;
		if (opcode == FUSE_IOCTL)
			s->in.ioctl.in_size = 33;
		else
			s->in.write.size = 33;
		break;
	case SL_TAIL_FORGETS:
		s->data_len = 3 * sizeof(struct fuse_forget_one);
		s->in.batch_forget.count = 3;
		break;
	}
	return op;
}

static struct block encode(struct sample *s, uint64_t flags)
{
	struct iovec iov[SL_MSG_IOV];
	const struct sl_op *op = sl_op_get(s->h.opcode);
	int n = sl_msg_in_encode(&s->h, op->in_size ? &s->in : NULL, s->name, s->name2, s->data, s->data_len,
				 flags, iov);
	assert_true(n > 0 && n <= SL_MSG_IOV);
	struct block b = flatten(iov, n);
	assert_int_equal(b.len, s->h.len);
	return b;
}

static void assert_same_string(const char *a, const char *b)
{
	assert_int_equal(a != NULL, b != NULL);
	if (a)
		assert_string_equal(a, b);
}

static void test_request_round_trip(void **state)
{
	(void)state;
	for (uint32_t opcode = 0; opcode < SL_FUSE_OP_MAX; opcode++) {
		struct sample s;
		const struct sl_op *op = make_sample(opcode, &s);
		if (!op)
			continue;
		struct block b = encode(&s, FUSE_SETXATTR_EXT);
		struct sl_msg_in m;
		int r = sl_msg_in_decode(b.p, b.len, FUSE_SETXATTR_EXT, &m);
		if (r != 0)
			fail_msg("%s: %d", op->name, r);
		assert_ptr_equal(m.op, op);
		assert_memory_equal(&m.h, &s.h, sizeof(m.h));
		assert_memory_equal(&m.in, &s.in, op->in_size);
		for (size_t i = op->in_size; i < sizeof(m.in); i++)
			assert_int_equal(((char *)&m.in)[i], 0);
		assert_same_string(m.name, s.name);
		assert_same_string(m.name2, s.name2);
		assert_int_equal(m.data_len, s.data_len);
		if (s.data_len)
			assert_memory_equal(m.data, s.data, s.data_len);
		free(b.p);
	}
}

static void test_request_truncated(void **state)
{
	(void)state;
	for (uint32_t opcode = 0; opcode < SL_FUSE_OP_MAX; opcode++) {
		struct sample s;
		const struct sl_op *op = make_sample(opcode, &s);
		if (!op)
			continue;
		struct block b = encode(&s, FUSE_SETXATTR_EXT);
		for (size_t len = 0; len < b.len; len++) {
			struct block c = cut(&b, len);
			struct sl_msg_in m;
			assert_int_equal(sl_msg_in_decode(c.p, c.len, FUSE_SETXATTR_EXT, &m),
					 -EPROTO); /* says more */
			set_len(&c, (uint32_t)len);
			int r = sl_msg_in_decode(c.p, c.len, FUSE_SETXATTR_EXT, &m);
			/* Only INIT has a shorter meaning: that of an older peer. */
			if (opcode == FUSE_INIT && len >= sizeof(m.h) + FUSE_COMPAT_INIT_IN_SIZE) {
				assert_int_equal(r, 0);
				assert_memory_equal(&m.in, &s.in, len - sizeof(m.h));
				for (size_t i = len - sizeof(m.h); i < sizeof(m.in); i++)
					assert_int_equal(((char *)&m.in)[i], 0);
			} else if (r != -EPROTO) {
				fail_msg("%s cut to %zu of %zu: %d", op->name, len, b.len, r);
			}
			free(c.p);
		}
		free(b.p);
	}
}

/* One byte too many, a length that says something else, extensions that reach too far. */
static void test_request_wrong_length(void **state)
{
	(void)state;
	for (uint32_t opcode = 0; opcode < SL_FUSE_OP_MAX; opcode++) {
		struct sample s;
		const struct sl_op *op = make_sample(opcode, &s);
		if (!op)
			continue;
		struct block b = encode(&s, FUSE_SETXATTR_EXT);
		struct sl_msg_in m;
		set_len(&b, (uint32_t)b.len + 1);
		assert_int_equal(sl_msg_in_decode(b.p, b.len, FUSE_SETXATTR_EXT, &m), -EPROTO);
		set_len(&b, (uint32_t)b.len - 1);
		assert_int_equal(sl_msg_in_decode(b.p, b.len, FUSE_SETXATTR_EXT, &m), -EPROTO);
		set_len(&b, UINT32_MAX);
		assert_int_equal(sl_msg_in_decode(b.p, b.len, FUSE_SETXATTR_EXT, &m), -EPROTO);

		struct block c = {calloc(1, b.len + 8), b.len + 1};
		memcpy(c.p, b.p, b.len);
		set_len(&c, (uint32_t)c.len);
		int r = sl_msg_in_decode(c.p, c.len, FUSE_SETXATTR_EXT, &m);
		if (r != (opcode == FUSE_INIT ? 0 : -EPROTO))
			fail_msg("%s with a byte more: %d", op->name, r);
		/* The same with a declared extension of eight bytes is fine: it is skipped. */
		c.len = b.len + 8;
		set_len(&c, (uint32_t)c.len);
		((struct fuse_in_header *)c.p)->total_extlen = 1;
		assert_int_equal(sl_msg_in_decode(c.p, c.len, FUSE_SETXATTR_EXT, &m), 0);
		assert_int_equal(m.data_len, s.data_len);
		/* One that reaches a byte beyond what follows the header. */
		((struct fuse_in_header *)c.p)->total_extlen = (uint16_t)((c.len - sizeof(m.h)) / 8 + 1);
		assert_int_equal(sl_msg_in_decode(c.p, c.len, FUSE_SETXATTR_EXT, &m), -EPROTO);
		((struct fuse_in_header *)c.p)->total_extlen = UINT16_MAX;
		assert_int_equal(sl_msg_in_decode(c.p, c.len, FUSE_SETXATTR_EXT, &m), -EPROTO);
		free(c.p);
		free(b.p);
	}
}

static int decode_with_names(uint32_t opcode, const char *name, const char *name2)
{
	struct sample s;
	make_sample(opcode, &s);
	s.name = name;
	if (s.name2)
		s.name2 = name2;
	struct block b = encode(&s, 0);
	struct sl_msg_in m;
	int r = sl_msg_in_decode(b.p, b.len, 0, &m);
	free(b.p);
	return r;
}

static void test_names(void **state)
{
	(void)state;
	static const uint32_t one[] = {FUSE_MKNOD, FUSE_MKDIR, FUSE_UNLINK,
				       FUSE_RMDIR, FUSE_LINK,  FUSE_CREATE};
	static const uint32_t two[] = {FUSE_RENAME, FUSE_RENAME2};
	char longest[257];
	memset(longest, 'n', 256);
	longest[256] = '\0';
	const char *bad[] = {"", ".", "..", "a/b", "/", "/etc", "../x", longest};
	for (size_t k = 0; k < SL_ARRAY_SIZE(bad); k++) {
		for (size_t i = 0; i < SL_ARRAY_SIZE(one); i++)
			assert_int_equal(decode_with_names(one[i], bad[k], NULL), -EPROTO);
		for (size_t i = 0; i < SL_ARRAY_SIZE(two); i++) {
			assert_int_equal(decode_with_names(two[i], bad[k], "ok"), -EPROTO);
			assert_int_equal(decode_with_names(two[i], "ok", bad[k]), -EPROTO);
		}
		assert_int_equal(decode_with_names(FUSE_SYMLINK, bad[k], "/any/target"), -EPROTO);
	}
	longest[255] = '\0';
	for (size_t i = 0; i < SL_ARRAY_SIZE(one); i++)
		assert_int_equal(decode_with_names(one[i], longest, NULL), 0);
	assert_int_equal(decode_with_names(FUSE_SYMLINK, "name", "../../target/of any kind"), 0);
	/* Lookups of "." and ".." are legal (exported filesystems); paths and nothing are not. */
	assert_int_equal(decode_with_names(FUSE_LOOKUP, ".", NULL), 0);
	assert_int_equal(decode_with_names(FUSE_LOOKUP, "..", NULL), 0);
	assert_int_equal(decode_with_names(FUSE_LOOKUP, "", NULL), -EPROTO);
	assert_int_equal(decode_with_names(FUSE_LOOKUP, "../x", NULL), -EPROTO);
	assert_int_equal(decode_with_names(FUSE_LOOKUP, "/", NULL), -EPROTO);
}

static void test_setxattr_layouts(void **state)
{
	(void)state;
	struct sample s;
	struct sl_msg_in m;
	make_sample(FUSE_SETXATTR, &s);
	struct block ext = encode(&s, FUSE_SETXATTR_EXT), old = encode(&s, 0);
	assert_int_equal(ext.len, old.len + 8);
	assert_int_equal(sl_msg_in_decode(old.p, old.len, 0, &m), 0);
	assert_int_equal(m.in.setxattr.size, s.in.setxattr.size);
	assert_int_equal(m.in.setxattr.flags, s.in.setxattr.flags);
	assert_int_equal(m.in.setxattr.setxattr_flags, 0);
	assert_string_equal(m.name, s.name);
	assert_memory_equal(m.data, s.data, s.data_len);
	assert_int_equal(sl_msg_in_decode(ext.p, ext.len, FUSE_SETXATTR_EXT, &m), 0);
	assert_int_equal(m.in.setxattr.setxattr_flags, s.in.setxattr.setxattr_flags);
	for (size_t len = 0; len < old.len; len++) {
		struct block c = cut(&old, len);
		set_len(&c, (uint32_t)len);
		assert_int_equal(sl_msg_in_decode(c.p, c.len, 0, &m), -EPROTO);
		free(c.p);
	}
	free(old.p);
	free(ext.p);
}

/* Sizes and counts inside that do not match what is there, up to those that would wrap around. */
static void test_inner_sizes(void **state)
{
	(void)state;
	static const uint32_t sizes[] = {0,	     1,		 32,	     34,	 0x0fffffff,
					 0x10000000, 0x7fffffff, 0x80000000, 0xfffffff0, 0xffffffff};
	static const uint32_t opcodes[] = {FUSE_WRITE, FUSE_IOCTL, FUSE_SETXATTR, FUSE_BATCH_FORGET};
	for (size_t o = 0; o < SL_ARRAY_SIZE(opcodes); o++)
		for (size_t k = 0; k < SL_ARRAY_SIZE(sizes); k++) {
			struct sample s;
			make_sample(opcodes[o], &s);
			switch (opcodes[o]) {
			case FUSE_WRITE:
				s.in.write.size = sizes[k];
				break;
			case FUSE_IOCTL:
				s.in.ioctl.in_size = sizes[k];
				break;
			case FUSE_SETXATTR:
				s.in.setxattr.size = sizes[k];
				break;
			default:
				s.in.batch_forget.count = sizes[k];
			}
			struct block b = encode(&s, 0);
			struct sl_msg_in m;
			assert_int_equal(sl_msg_in_decode(b.p, b.len, 0, &m), -EPROTO);
			free(b.p);
		}
	struct sample s;
	struct sl_msg_in m;
	make_sample(FUSE_BATCH_FORGET, &s);
	s.in.batch_forget.count = 0;
	s.data_len = 0;
	struct block b = encode(&s, 0);
	assert_int_equal(sl_msg_in_decode(b.p, b.len, 0, &m), 0);
	assert_int_equal(m.data_len, 0);
	free(b.p);
}

static void test_unknown_opcodes(void **state)
{
	(void)state;
	struct sl_msg_in m;
	static const uint32_t ops[] = {0,    7,	   19,	     41,	48, 49, SL_FUSE_OP_MAX,
				       1000, 4096, 1u << 31, UINT32_MAX};
	for (size_t i = 0; i < SL_ARRAY_SIZE(ops); i++) {
		struct fuse_in_header h = {.len = sizeof(h), .opcode = ops[i], .unique = 8};
		struct iovec iov = {&h, sizeof(h)};
		struct block b = flatten(&iov, 1);
		assert_int_equal(sl_msg_in_decode(b.p, b.len, 0, &m), -ENOSYS);
		assert_int_equal(m.h.unique, 8); /* so that it can be answered */
		free(b.p);
	}
}

static void test_encode_refuses(void **state)
{
	(void)state;
	struct iovec iov[SL_MSG_IOV];
	union sl_in in = {0};
	struct fuse_in_header h = {.opcode = 7};
	assert_int_equal(sl_msg_in_encode(&h, &in, NULL, NULL, NULL, 0, 0, iov), -EINVAL);
	h.opcode = FUSE_GETATTR;
	assert_int_equal(sl_msg_in_encode(&h, NULL, NULL, NULL, NULL, 0, 0, iov), -EINVAL);
	assert_int_equal(sl_msg_in_encode(&h, &in, "name", NULL, NULL, 0, 0, iov), -EINVAL);
	assert_int_equal(sl_msg_in_encode(&h, &in, NULL, NULL, "data", 4, 0, iov), -EINVAL);
	h.opcode = FUSE_LOOKUP;
	assert_int_equal(sl_msg_in_encode(&h, NULL, NULL, NULL, NULL, 0, 0, iov), -EINVAL);
	assert_int_equal(sl_msg_in_encode(&h, NULL, "a", "b", NULL, 0, 0, iov), -EINVAL);
	h.opcode = FUSE_RENAME;
	assert_int_equal(sl_msg_in_encode(&h, &in, "a", NULL, NULL, 0, 0, iov), -EINVAL);
	h.opcode = FUSE_WRITE;
	assert_int_equal(sl_msg_in_encode(&h, &in, NULL, NULL, "", SL_WIRE_MAX_MSG, 0, iov), -EINVAL);
}

static struct block make_reply(const struct sl_op *op, union sl_out *out, const void *data, size_t data_len)
{
	struct fuse_out_header h = {.unique = 6, .len = (uint32_t)(sizeof(h) + op->out_size + data_len)};
	for (size_t i = 0; i < op->out_size; i++)
		((unsigned char *)out)[i] = (unsigned char)(i * 3 + 1);
	struct iovec iov[3] = {{&h, sizeof(h)}, {out, op->out_size}, {(void *)data, data_len}};
	return flatten(iov, 3);
}

static void test_reply_round_trip_and_truncated(void **state)
{
	(void)state;
	for (uint32_t opcode = 0; opcode < SL_FUSE_OP_MAX; opcode++) {
		const struct sl_op *op = sl_op_get(opcode);
		if (!op || op->no_reply)
			continue;
		char data[21] = "some bytes of a tail";
		size_t n = op->out_tail ? sizeof(data) : 0;
		union sl_out out = {0};
		struct block b = make_reply(op, &out, data, n);
		struct sl_msg_out m;
		assert_int_equal(sl_msg_out_decode(b.p, b.len, op, &m), 0);
		assert_int_equal(m.h.unique, 6);
		assert_memory_equal(&m.out, &out, op->out_size);
		assert_int_equal(m.data_len, n);
		if (n)
			assert_memory_equal(m.data, data, n);
		for (size_t len = 0; len < b.len; len++) {
			struct block c = cut(&b, len);
			assert_int_equal(sl_msg_out_decode(c.p, c.len, op, &m), -EPROTO);
			set_len(&c, (uint32_t)len);
			int r = sl_msg_out_decode(c.p, c.len, op, &m);
			if (len >= sizeof(m.h) + op->out_min) {
				assert_int_equal(
				    r, 0); /* less data, or an older structure: zero from there on */
				size_t got = SL_MIN(len - sizeof(m.h), (size_t)op->out_size);
				assert_memory_equal(&m.out, &out, got);
				for (size_t i = got; i < sizeof(m.out); i++)
					assert_int_equal(((char *)&m.out)[i], 0);
				assert_int_equal(m.data_len, len - sizeof(m.h) - got);
			} else if (r != -EPROTO) {
				fail_msg("%s cut to %zu of %zu: %d", op->name, len, b.len, r);
			}
			free(c.p);
		}
		/* A byte more than an operation without a tail has. */
		struct block c = {calloc(1, b.len + 1), b.len + 1};
		memcpy(c.p, b.p, b.len);
		set_len(&c, (uint32_t)c.len);
		int r = sl_msg_out_decode(c.p, c.len, op, &m);
		assert_int_equal(r, op->out_tail || op->out_min != op->out_size ? 0 : -EPROTO);
		free(c.p);
		free(b.p);
	}
}

static int decode_error(int32_t error, size_t extra)
{
	struct fuse_out_header h = {.unique = 6, .error = error, .len = (uint32_t)(sizeof(h) + extra)};
	char zero[8] = "";
	struct iovec iov[2] = {{&h, sizeof(h)}, {zero, extra}};
	struct block b = flatten(iov, 2);
	struct sl_msg_out m;
	int r = sl_msg_out_decode(b.p, b.len, sl_op_get(FUSE_GETATTR), &m);
	if (r == 0)
		assert_int_equal(m.h.error, error);
	free(b.p);
	return r;
}

static void test_reply_errors(void **state)
{
	(void)state;
	assert_int_equal(decode_error(-ENOENT, 0), 0);
	assert_int_equal(decode_error(-4095, 0), 0);
	assert_int_equal(decode_error(-4096, 0), -EPROTO);
	assert_int_equal(decode_error(INT32_MIN, 0), -EPROTO);
	assert_int_equal(decode_error(1, 0), -EPROTO);
	assert_int_equal(decode_error(-ENOENT, 8), -EPROTO);
}

static void test_notification(void **state)
{
	(void)state;
	struct fuse_out_header h = {.error = FUSE_NOTIFY_INVAL_INODE, .len = sizeof(h) + 5};
	struct iovec iov[2] = {{&h, sizeof(h)}, {(void *)"abcde", 5}};
	struct block b = flatten(iov, 2);
	struct sl_msg_out m;
	assert_int_equal(sl_msg_out_decode(b.p, b.len, NULL, &m), 0);
	assert_int_equal(m.h.error, FUSE_NOTIFY_INVAL_INODE);
	assert_int_equal(m.data_len, 5);
	assert_memory_equal(m.data, "abcde", 5);
	free(b.p);
}

/* Count the records of a listing; -EPROTO where it ends badly. */
static int walk(const void *p, size_t left, bool plus)
{
	struct sl_dirent d;
	int r, n = 0;
	while ((r = sl_dirent_next(&p, &left, plus, &d)) > 0) {
		assert_true(d.namelen >= 1 && d.namelen <= 255);
		n++;
	}
	return r < 0 ? r : n;
}

static void check_dirents(bool plus)
{
	static const char *const names[] = {".",	"..",	     "a",	 "seven77",
					    "eightchr", "nine chrs", "\xff\x01", NULL};
	char buf[4096];
	size_t len = 0, ends[16] = {0};
	int n = 0;
	char longest[255];
	memset(longest, 'L', 255);
	memset(buf, 0x5a, sizeof(buf)); /* padding must be written, not left */
	for (int i = 0; i < 8; i++) {
		struct sl_dirent d = {.ino = 100 + (uint64_t)i,
				      .off = (uint64_t)i,
				      .type = 8,
				      .name = names[i] ? names[i] : longest};
		d.namelen = names[i] ? (uint32_t)strlen(names[i]) : 255;
		d.entry.nodeid = 7 + (uint64_t)i;
		d.entry.attr.mode = 0100644;
		assert_true(sl_dirent_add(buf, sizeof(buf), &len, plus, &d));
		ends[++n] = len;
		assert_int_equal(len % 8, 0);
	}
	struct block b = {malloc(len), len};
	memcpy(b.p, buf, len);
	const void *p = b.p;
	size_t left = len;
	struct sl_dirent d;
	for (int i = 0; i < n; i++) {
		assert_int_equal(sl_dirent_next(&p, &left, plus, &d), 1);
		assert_int_equal(d.ino, 100 + i);
		assert_int_equal(d.off, i);
		assert_int_equal(d.type, 8);
		assert_int_equal(d.namelen, names[i] ? strlen(names[i]) : 255);
		assert_memory_equal(d.name, names[i] ? names[i] : longest, d.namelen);
		assert_int_equal(d.entry.nodeid, plus ? 7 + i : 0);
		for (const char *c = d.name + d.namelen; c < (const char *)p; c++)
			assert_int_equal(*c, 0);
	}
	assert_int_equal(sl_dirent_next(&p, &left, plus, &d), 0);
	for (size_t cut_at = 0; cut_at < len; cut_at++) {
		struct block c = cut(&b, cut_at);
		int whole = -1;
		for (int i = 0; i <= n; i++)
			if (ends[i] == cut_at)
				whole = i;
		assert_int_equal(walk(c.p, c.len, plus), whole >= 0 ? whole : -EPROTO);
		free(c.p);
	}
	/* Fits exactly, and one byte less does not. */
	struct sl_dirent e = {.name = "12345678", .namelen = 8};
	size_t need = (plus ? FUSE_NAME_OFFSET_DIRENTPLUS : FUSE_NAME_OFFSET) + 8, at = 0;
	char *tight = malloc(need);
	assert_false(sl_dirent_add(tight, need - 1, &at, plus, &e));
	assert_int_equal(at, 0);
	assert_true(sl_dirent_add(tight, need, &at, plus, &e));
	assert_int_equal(at, need);
	assert_false(sl_dirent_add(tight, need, &at, plus, &e));
	free(tight);
	free(b.p);
}

static void test_dirents(void **state)
{
	(void)state;
	check_dirents(false);
}

static void test_dirents_plus(void **state)
{
	(void)state;
	check_dirents(true);
}

static void test_bad_dirents(void **state)
{
	(void)state;
	for (int plus = 0; plus < 2; plus++) {
		struct {
			const char *name;
			uint32_t namelen;
		} t[] = {{"a/b", 3}, {"/", 1},		{"a\0b", 3},	   {"", 0},
			 {"x", 256}, {"x", 0x7fffffff}, {"x", UINT32_MAX}, {"x", UINT32_MAX - 30}};
		for (size_t i = 0; i < SL_ARRAY_SIZE(t); i++) {
			size_t head = plus ? sizeof(struct fuse_entry_out) : 0,
			       len = head + FUSE_NAME_OFFSET + 8;
			char *p = calloc(1, len);
			struct fuse_dirent d = {.ino = 1, .namelen = t[i].namelen};
			memcpy(p + head, &d, FUSE_NAME_OFFSET);
			memcpy(p + head + FUSE_NAME_OFFSET, t[i].name,
			       SL_MIN(t[i].namelen, 3u) > 1 ? (t[i].namelen == 3 ? 3u : 1u) : t[i].namelen);
			assert_int_equal(walk(p, len, plus), -EPROTO);
			free(p);
		}
	}
}

/* A name that is all there, and too long for one. */
static void test_long_dirents(void **state)
{
	(void)state;
	for (uint32_t n = 255; n <= 257; n++)
		for (int plus = 0; plus < 2; plus++) {
			char buf[1024], name[257];
			size_t len = 0;
			memset(name, 'n', sizeof(name));
			struct sl_dirent d = {.name = name, .namelen = n};
			assert_true(sl_dirent_add(buf, sizeof(buf), &len, plus, &d));
			assert_int_equal(walk(buf, len, plus), n == 255 ? 1 : -EPROTO);
		}
}

static void test_init_flags(void **state)
{
	(void)state;
	assert_true(sl_init_flags(5, 7) == 5); /* without INIT_EXT the second word means nothing */
	assert_true(sl_init_flags((uint32_t)FUSE_INIT_EXT | 5, 7) == (FUSE_INIT_EXT | 5 | 7ull << 32));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_request_round_trip),
	    cmocka_unit_test(test_request_truncated),
	    cmocka_unit_test(test_request_wrong_length),
	    cmocka_unit_test(test_names),
	    cmocka_unit_test(test_setxattr_layouts),
	    cmocka_unit_test(test_inner_sizes),
	    cmocka_unit_test(test_unknown_opcodes),
	    cmocka_unit_test(test_encode_refuses),
	    cmocka_unit_test(test_reply_round_trip_and_truncated),
	    cmocka_unit_test(test_reply_errors),
	    cmocka_unit_test(test_notification),
	    cmocka_unit_test(test_dirents),
	    cmocka_unit_test(test_dirents_plus),
	    cmocka_unit_test(test_bad_dirents),
	    cmocka_unit_test(test_long_dirents),
	    cmocka_unit_test(test_init_flags),
	};
	return cmocka_run_group_tests_name("msg", tests, NULL, NULL);
}
