/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The codec against arbitrary bytes: nothing is read outside the message, and what is accepted means the same
 * when it is encoded again. The first byte chooses request, reply or listing, and whether the header's length
 * is put right (else almost nothing would get past it); the second is a reply's opcode.
 */
#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "base/macros.h"
#include "fuzz.h"
#include "wire/msg.h"

enum kind { REQUEST, REPLY, DIRENTS, DIRENTS_PLUS, KINDS };
#define FIX_LENGTH 0x10
#define OLD_XATTR  0x20

#define must(x)                                                                                              \
	do {                                                                                                 \
		if (!(x))                                                                                    \
			abort();                                                                             \
	} while (0)

static void touch(const void *p, size_t n)
{
	static volatile unsigned char sum;
	for (size_t i = 0; i < n; i++)
		sum = (unsigned char)(sum + ((const unsigned char *)p)[i]);
}

static void run_request(const void *msg, size_t len, uint64_t flags)
{
	struct sl_msg_in m;
	int r = sl_msg_in_decode(msg, len, flags, &m);
	must(r == 0 || r == -EPROTO || r == -ENOSYS);
	if (r < 0)
		return;
	touch(m.data, m.data_len);
	if (m.name)
		touch(m.name, strlen(m.name) + 1);
	if (m.name2)
		touch(m.name2, strlen(m.name2) + 1);
	if (m.h.opcode != FUSE_LOOKUP && m.h.opcode != FUSE_TMPFILE && m.op->in_tail == SL_TAIL_NAME &&
	    m.h.opcode != FUSE_GETXATTR && m.h.opcode != FUSE_REMOVEXATTR)
		must(sl_name_valid(m.name, strlen(m.name)));
	if (m.h.opcode == FUSE_INIT || m.h.total_extlen)
		return;
	struct fuse_in_header h = m.h;
	struct iovec iov[SL_MSG_IOV];
	int n = sl_msg_in_encode(&h, m.op->in_size ? &m.in : NULL, m.name, m.name2, m.data, m.data_len, flags,
				 iov);
	must(n > 0 && h.len == len);
	size_t at = 0;
	for (int i = 0; i < n; i++) {
		must(memcmp((const char *)msg + at, iov[i].iov_base, iov[i].iov_len) == 0);
		at += iov[i].iov_len;
	}
	must(at == len);
}

static void run_reply(const void *msg, size_t len, uint32_t opcode)
{
	struct sl_msg_out m;
	int r = sl_msg_out_decode(msg, len, sl_op_get(opcode), &m);
	must(r == 0 || r == -EPROTO);
	if (r == 0)
		touch(m.data, m.data_len);
}

static void run_dirents(const void *p, size_t left, bool plus)
{
	const char *start = p;
	size_t cap = left, len = 0;
	char *copy = malloc(cap + 1);
	struct sl_dirent d;
	int r;
	must(copy);
	while ((r = sl_dirent_next(&p, &left, plus, &d)) > 0) {
		must(d.namelen >= 1 && d.namelen <= 255 && !memchr(d.name, '/', d.namelen) &&
		     !memchr(d.name, 0, d.namelen));
		must(sl_dirent_add(copy, cap, &len, plus, &d)); /* takes no more room than it had */
		must((size_t)((const char *)p - start) == len);
	}
	must(r == 0 || r == -EPROTO);
	free(copy);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size < 2)
		return 0;
	uint8_t what = data[0], opcode = data[1];
	size_t len = size - 2;
	char *msg = malloc(len ? len : 1); /* of just its size, for ASan */
	must(msg);
	memcpy(msg, data + 2, len);
	if ((what & FIX_LENGTH) && len >= 4)
		memcpy(msg, &(uint32_t){(uint32_t)len}, 4);
	switch ((what & 0x0f) % KINDS) {
	case REQUEST:
		run_request(msg, len, what & OLD_XATTR ? 0 : FUSE_SETXATTR_EXT);
		break;
	case REPLY:
		run_reply(msg, len, opcode);
		break;
	default:
		run_dirents(msg, len, (what & 0x0f) % KINDS == DIRENTS_PLUS);
	}
	free(msg);
	return 0;
}

static size_t seed_request(uint32_t opcode, uint8_t *buf, size_t cap, bool old)
{
	const struct sl_op *op = sl_op_get(opcode);
	struct fuse_in_header h = {.opcode = opcode, .unique = 2, .nodeid = 1};
	union sl_in in = {0};
	struct fuse_forget_one one[3] = {{2, 1}, {3, 1}, {4, 2}};
	const char *name = NULL, *name2 = NULL;
	const void *data = "some data";
	size_t data_len = 0;
	switch (op->in_tail) {
	case SL_TAIL_NAME2:
		name2 = "second";
		/* fall through */
	case SL_TAIL_NAME:
		name = "first";
		break;
	case SL_TAIL_NAME_DATA:
		name = "user.name";
		in.setxattr.size = 9;
		data_len = 9;
		break;
	case SL_TAIL_DATA:
		if (opcode == FUSE_IOCTL)
			in.ioctl.in_size = 9;
		else
			in.write.size = 9;
		data_len = 9;
		break;
	case SL_TAIL_FORGETS:
		in.batch_forget.count = 3;
		data = one;
		data_len = sizeof(one);
		break;
	}
	struct iovec iov[SL_MSG_IOV];
	int n = sl_msg_in_encode(&h, op->in_size ? &in : NULL, name, name2, data, data_len,
				 old ? 0 : FUSE_SETXATTR_EXT, iov);
	size_t at = 2;
	buf[0] = REQUEST | FIX_LENGTH | (old ? OLD_XATTR : 0);
	buf[1] = 0;
	for (int i = 0; i < n; i++) {
		must(at + iov[i].iov_len <= cap);
		memcpy(buf + at, iov[i].iov_base, iov[i].iov_len);
		at += iov[i].iov_len;
	}
	return at;
}

static size_t seed_reply(uint32_t opcode, uint8_t *buf, size_t cap)
{
	const struct sl_op *op = sl_op_get(opcode);
	struct fuse_out_header h = {.unique = 2};
	h.len = (uint32_t)(sizeof(h) + op->out_size + (op->out_tail ? 11 : 0));
	must(2 + h.len <= cap);
	buf[0] = REPLY | FIX_LENGTH;
	buf[1] = (uint8_t)opcode;
	memset(buf + 2, 1, h.len);
	memcpy(buf + 2, &h, sizeof(h));
	return 2 + h.len;
}

static size_t seed_dirents(bool plus, uint8_t *buf, size_t cap)
{
	static const char *const names[] = {".", "..", "a", "a longer name", "eightchr", "\xc3\xa4"};
	size_t len = 0;
	buf[0] = plus ? DIRENTS_PLUS : DIRENTS;
	buf[1] = 0;
	for (size_t i = 0; i < SL_ARRAY_SIZE(names); i++) {
		struct sl_dirent d = {.ino = i + 1,
				      .off = i,
				      .type = 8,
				      .name = names[i],
				      .namelen = (uint32_t)strlen(names[i])};
		must(sl_dirent_add(buf + 2, cap - 2, &len, plus, &d));
	}
	return len + 2;
}

size_t sl_fuzz_seed(size_t i, uint8_t *buf, size_t cap)
{
	size_t n = 0;
	for (uint32_t op = 0; op < SL_FUSE_OP_MAX; op++) {
		if (!sl_op_get(op))
			continue;
		if (n++ == i)
			return seed_request(op, buf, cap, false);
		if (n++ == i)
			return seed_reply(op, buf, cap);
	}
	if (n++ == i)
		return seed_request(FUSE_SETXATTR, buf, cap, true);
	for (int plus = 0; plus < 2; plus++)
		if (n++ == i)
			return seed_dirents(plus, buf, cap);
	return 0;
}
