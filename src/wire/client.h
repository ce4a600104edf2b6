/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The client side of a FUSE connection over a stream: many requests under way at once, answered in any order.
 *
 * A call is a struct that the caller owns until its done() ran. done() runs once, on the client's receiving
 * thread (or on the caller's, when the connection is already gone): it must not block; longer work goes to a
 * pool.
 */
#pragma once

#include "base/list.h"
#include "wire/msg.h"
#include "wire/transport.h"

struct sl_client;
struct sl_call;

/* What done() gets. @err is 0 or a negative errno: the server's, or -ETIMEDOUT, -EINTR (cancelled), -ENOTCONN
 * (the connection broke), -EPROTO (the server broke the protocol). */
struct sl_result {
	int err;
	bool from_server; /* the error is the server's answer */
	const union sl_out *out;
	const void *data;
	size_t data_len;
	void *buf; /* the message's buffer; done() may take it (set it to NULL) and free it later: data points
		      into it */
};

struct sl_call {
	/* set by the caller */
	uint32_t opcode;
	uint64_t nodeid;
	union sl_in in;
	const char *name, *name2;
	const void *data; /* the strings and data need to live until sl_client_call() returns */
	size_t data_len;
	uint64_t deadline; /* sl_now() time; 0: none */
	const struct fuse_in_header
	    *from; /* whose request this passes on: its uid, gid and pid; NULL: the client's own */
	void (*done)(struct sl_call *c, struct sl_result *r);

	/* the client's */
	struct sl_hnode node;
	uint64_t unique;
};

struct sl_client_config {
	uint64_t want_flags;
	uint32_t uid, gid, pid; /* for the request headers */
	int init_timeout_ms;
	uint32_t token[4]; /* of struct fuse_init_in */
	uint64_t seq;
	/** The connection was agreed on; nothing was received after that yet. On the caller's thread. May be
	 * NULL. */
	void (*init)(void *arg, uint64_t flags, const struct fuse_init_out *out);
	/** A notification (unique 0) arrived; runs on the receiving thread. A negative errno ends the
	 * connection. May be NULL. */
	int (*notify)(void *arg, int code, const void *data, size_t len);
	/** The connection is gone, all calls are done. Runs on the receiving thread, once. May be NULL. */
	void (*gone)(void *arg, int err);
	void *arg;
};

/**
 * Take over @t (also on failure), agree on a version, and start receiving. Returns 0; -EPROTO when the peer
 * does not speak FUSE; -EPROTONOSUPPORT when it speaks a version that we do not; -ETIMEDOUT; -ENOTCONN when
 * it hung up; -errno.
 */
int sl_client_new(struct sl_transport *t, const struct sl_client_config *cfg, struct sl_client **ret);
/** End the connection: every call that is under way is done with -ENOTCONN before this returns. */
void sl_client_free(struct sl_client *c);
uint64_t sl_client_flags(const struct sl_client *c);
/** Largest READ, WRITE and READDIR payload that was agreed, in bytes. */
uint32_t sl_client_max_data(const struct sl_client *c);

/** Start @call. done() is certain to run. Never waits: from done() too calls may be started. */
void sl_client_call(struct sl_client *c, struct sl_call *call);
/**
 * Cancel the call numbered @unique: an INTERRUPT is sent and, if it is still under way, it is done with
 * -EINTR now. A late reply is dropped; what it may have given out is forgotten.
 */
void sl_client_cancel(struct sl_client *c, uint64_t unique);
/** Send a request that has no reply (FORGET, BATCH_FORGET). */
int sl_client_post(struct sl_client *c, struct sl_call *call);

/**
 * Call and wait, for tests and tools. On success *@ret_buf (may be NULL) is the message, to be freed; @m
 * points into it.
 */
int sl_client_call_sync(struct sl_client *c, struct sl_call *call, struct sl_msg_out *m, void **ret_buf);
