/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The server side of a FUSE connection: a loop of several threads that receives requests, answers INIT
 * itself, and hands everything else to one handler. The handler answers at once, or keeps the request and
 * answers later from any thread; every request gets exactly one answer.
 */
#pragma once

#include "wire/msg.h"
#include "wire/transport.h"

struct sl_server;

/* What INIT agreed on: all that a server must know of a connection that another one has begun. */
struct sl_server_agreed {
	uint64_t flags;	   /* INIT flags in force */
	uint32_t max_data; /* largest READ, WRITE and READDIR */
	bool resend;	   /* the kernel knows FUSE_NOTIFY_RESEND */
};

/* A request under way. Valid until it is answered. */
struct sl_req {
	struct sl_server *server;
	struct sl_msg_in m;
	void *kept;		   /* set by sl_req_keep(): its own copy of the message */
	int err;		   /* what it was answered with; of one that was not kept */
	struct sl_ends_read *read; /* for wire/ends.h */
};

struct sl_server_config {
	unsigned threads;
	uint64_t want_flags;	/* INIT flags to switch on where the client offers them */
	uint32_t max_data;	/* largest READ, WRITE and READDIR; at most SL_WIRE_MAX_DATA */
	uint32_t max_readahead; /* bytes; what the kernel may read ahead */
	uint16_t max_background;
	uint32_t max_stack_depth; /* with FUSE_PASSTHROUGH */
	bool changing_sizes;	  /* files grow without the kernel, and pages are cached: see wire/ends.h */

	/** The connection is not new: INIT came to another server, which ended without answering everything.
	 * Else NULL. */
	const struct sl_server_agreed *agreed;

	/** Called before any other request (and before INIT is answered) with what was agreed. May be NULL.
	 */
	void (*init)(void *arg, const struct sl_server_agreed *agreed);
	/** The same, for who goes on with what another connection began: @in is what was asked, @out is sent
	 * after this. May be NULL. */
	void (*resume)(void *arg, uint64_t flags, const struct fuse_init_in *in, struct fuse_init_out *out);
	/** INIT was answered. May be NULL. */
	void (*started)(void *arg);
	/** Answer @rq, or sl_req_keep() it. Runs on the server's threads, several at a time. FORGETs come
	 * here as well. */
	void (*handle)(struct sl_req *rq, void *arg);
	/** The client no longer waits for the request @unique, if that is still under way. May be NULL. */
	void (*interrupt)(void *arg, uint64_t unique);
	void *arg;
};

int sl_server_new(struct sl_transport *t, const struct sl_server_config *cfg, struct sl_server **ret);
/**
 * Serve until the client goes away or sl_server_stop(). Returns 0 at the end of the stream or after the
 * unmount, a negative errno when the client broke the protocol (-EPROTO, -EMSGSIZE) or the transport failed.
 * All handlers have returned then, but kept requests may still be unanswered; answering them is harmless
 * until sl_server_free().
 */
int sl_server_run(struct sl_server *s);
/** Make sl_server_run() return. Not on a thread of the server; with /dev/fuse, uses SIGUSR1 to wake the
 * threads. */
void sl_server_stop(struct sl_server *s);
/** Does not free the transport. */
void sl_server_free(struct sl_server *s);
uint64_t sl_server_flags(const struct sl_server *s);

/** Take the request over from the loop: a heap copy to be answered later, or NULL (then @rq was answered with
 * ENOMEM). */
struct sl_req *sl_req_keep(struct sl_req *rq);
/** Answer. Each frees a kept request. @err is 0 or a negative errno. */
void sl_reply_err(struct sl_req *rq, int err);
void sl_reply(struct sl_req *rq, const void *out, size_t len);
void sl_reply_data(struct sl_req *rq, const void *out, size_t len, const void *data, size_t data_len);
/** For FORGET and its like: free without an answer. */
void sl_reply_none(struct sl_req *rq);

/** True for a request that the kernel had sent before, to a server that ended: it may have been carried out.
 */
static inline bool sl_req_resent(const struct sl_req *rq)
{
	return rq->m.h.unique & FUSE_UNIQUE_RESEND;
}
/** Its number, whether or not it was sent before. */
static inline uint64_t sl_req_unique(const struct sl_req *rq)
{
	return rq->m.h.unique & ~FUSE_UNIQUE_RESEND;
}
/** Have the kernel send again what was received and not answered. -EINVAL where it cannot. */
int sl_server_resend(struct sl_server *s);

/** Send a notification. Returns 0, -ENOENT where the kernel does not have the object, or -errno. */
int sl_server_notify(struct sl_server *s, enum fuse_notify_code code, struct iovec *body, int cnt);
