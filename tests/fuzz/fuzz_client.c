/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The client against a hostile server: the input is what the server sends, whatever is asked. Every call that was started is
 * done once, and none hangs. The first byte: whether a valid INIT reply comes first, and whether lengths are put right.
 */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/macros.h"
#include "base/time.h"
#include "fuzz.h"
#include "wire/client.h"

#define GREET	   0x01
#define FIX_LENGTH 0x02
#define CALLS	   6

#define must(x)                                                                                              \
	do {                                                                                                 \
		if (!(x))                                                                                    \
			abort();                                                                             \
	} while (0)

struct fcall {
	struct sl_call call;
	int ran;
};

static void touch(const void *p, size_t n)
{
	static volatile unsigned char sum;
	for (size_t i = 0; i < n; i++)
		sum = (unsigned char)(sum + ((const unsigned char *)p)[i]);
}

static void done(struct sl_call *c, struct sl_result *r)
{
	struct fcall *x = sl_container_of(c, struct fcall, call);
	must(x->ran++ == 0);
	must(r->err <= 0);
	if (r->err == 0)
		touch(r->data, r->data_len);
}

static int notified(void *arg, int code, const void *data, size_t len)
{
	(void)arg;
	(void)code;
	touch(data, len);
	return 0;
}

static size_t greeting(uint8_t *buf)
{
	struct fuse_out_header h = {.unique = 1};
	struct fuse_init_out init = {.major = FUSE_KERNEL_VERSION,
				     .minor = FUSE_KERNEL_MINOR_VERSION,
				     .flags = FUSE_DO_READDIRPLUS | FUSE_MAX_PAGES,
				     .max_write = 65536,
				     .max_pages = 16};
	h.len = sizeof(h) + sizeof(init);
	memcpy(buf, &h, sizeof(h));
	memcpy(buf + sizeof(h), &init, sizeof(init));
	return h.len;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size < 1)
		return 0;
	uint8_t what = data[0], out[8192], hello[256];
	size_t len = size - 1;
	if (len > sizeof(out))
		return 0;
	int sv[2];
	struct sl_transport *t;
	struct sl_client *c;
	memcpy(out, data + 1, len);
	for (size_t p = 0; (what & FIX_LENGTH) && p + sizeof(struct fuse_out_header) <= len;) {
		/* Each message is as long as it says, or as what is left. */
		uint32_t n;
		memcpy(&n, out + p, 4);
		if (n < sizeof(struct fuse_out_header) || n > len - p) {
			n = (uint32_t)(len - p);
			memcpy(out + p, &n, 4);
		}
		p += n;
	}
	must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv) == 0);
	must(sl_transport_new(SL_TRANSPORT_STREAM, sv[0], sv[0], &t) == 0);
	if (what & GREET) {
		size_t n = greeting(hello);
		must(send(sv[1], hello, n, MSG_NOSIGNAL) == (ssize_t)n);
	} else {
		must(send(sv[1], out, len, MSG_NOSIGNAL) == (ssize_t)len);
		shutdown(sv[1], SHUT_WR);
	}
	const struct sl_client_config cfg = {
		.want_flags = FUSE_DO_READDIRPLUS, .init_timeout_ms = 1000, .notify = notified};
	int r = sl_client_new(t, &cfg, &c);
	if (r == 0) {
		struct fcall calls[CALLS] = {0}; /* done for good when the client is freed */
		static const uint32_t ops[CALLS] = {FUSE_LOOKUP, FUSE_GETATTR, FUSE_READ, FUSE_READDIRPLUS, FUSE_READLINK, FUSE_LISTXATTR};
		for (int i = 0; i < CALLS; i++) {
			calls[i].call = (struct sl_call){.opcode = ops[i], .nodeid = 1, .done = done};
			if (ops[i] == FUSE_LOOKUP)
				calls[i].call.name = "x";
			if (ops[i] == FUSE_READ || ops[i] == FUSE_READDIRPLUS)
				calls[i].call.in.read.size = 4096;
			if (ops[i] == FUSE_LISTXATTR)
				calls[i].call.in.getxattr.size = 4096;
			sl_client_call(c, &calls[i].call);
		}
		/* What answers nothing that was asked ends the connection: so it comes after that. */
		if (what & GREET) {
			(void)!send(sv[1], out, len, MSG_NOSIGNAL);
			shutdown(sv[1], SHUT_WR);
		}
		sl_client_cancel(c, calls[1].call.unique);
		sl_client_free(c);
		for (int i = 0; i < CALLS; i++)
			must(calls[i].ran == 1);
	}
	close(sv[1]);
	return 0;
}

static size_t reply(uint8_t *buf, uint64_t unique, int32_t error, size_t n)
{
	struct fuse_out_header h = {.len = (uint32_t)(sizeof(h) + n), .error = error, .unique = unique};
	memcpy(buf, &h, sizeof(h));
	memset(buf + sizeof(h), 1, n);
	return h.len;
}

size_t sl_fuzz_seed(size_t i, uint8_t *buf, size_t cap)
{
	static const size_t lens[] = {sizeof(struct fuse_entry_out), sizeof(struct fuse_attr_out), 100, 300, 20, 30};
	size_t at = 1;
	(void)cap;
	buf[0] = GREET;
	switch (i) {
	case 0: /* answers to all that is asked */
		for (size_t k = 0; k < SL_ARRAY_SIZE(lens); k++)
			at += reply(buf + at, 2 + 2 * k, 0, lens[k]);
		return at;
	case 1: /* in another order, one of them twice */
		for (size_t k = SL_ARRAY_SIZE(lens); k-- > 0;)
			at += reply(buf + at, 2 + 2 * k, 0, lens[k]);
		return at + reply(buf + at, 2, 0, lens[0]);
	case 2: /* errors, and a notification */
		for (size_t k = 0; k < SL_ARRAY_SIZE(lens); k++)
			at += reply(buf + at, 2 + 2 * k, -2, 0);
		return at + reply(buf + at, 0, FUSE_NOTIFY_INVAL_INODE, sizeof(struct fuse_notify_inval_inode_out));
	case 3:
		buf[0] = 0;
		return at + greeting(buf + at);
	case 4:
		buf[0] = GREET | FIX_LENGTH;
		return at + reply(buf + at, 2, 0, 40);
	default:
		return 0;
	}
}
