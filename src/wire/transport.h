/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A transport moves whole messages: /dev/fuse, where the kernel keeps their bounds, or a byte stream (a unix
 * or TCP socket, a pair of pipes), where the length that every header starts with does. Several threads may
 * receive and send at the same time; each message is received by one of them and sent in one piece.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <sys/uio.h>

struct sl_transport;

enum sl_transport_kind { SL_TRANSPORT_DEV, SL_TRANSPORT_STREAM };

/** Takes ownership of both descriptors, which may be the same. */
int sl_transport_new(enum sl_transport_kind kind, int rfd, int wfd, struct sl_transport **ret);
void sl_transport_free(struct sl_transport *t);
int sl_transport_fd(const struct sl_transport *t);
bool sl_transport_is_dev(const struct sl_transport *t);
/** A character device carries the stream: it may have kept something of an earlier one. */
bool sl_transport_outlives(const struct sl_transport *t);

/**
 * Receive one message into @buf of @cap bytes. Returns its length; -ENODATA at the end of the stream or after
 * the unmount; -EMSGSIZE and -EPROTO for a length that cannot be, after which the stream is of no use;
 * -errno.
 */
ssize_t sl_transport_recv(struct sl_transport *t, void *buf, size_t cap);
/**
 * Receive one message into a buffer of just its size that the caller frees (streams only). @timeout_ms: how
 * long to wait, -1 for ever; -EAGAIN when it is not complete by then, and the next call goes on with it. Not
 * to be mixed with sl_transport_recv() on one transport.
 */
ssize_t sl_transport_recv_alloc(struct sl_transport *t, size_t max, int timeout_ms, void **ret);
/** Send one message. @iov is changed. Returns 0 or -errno; after an error on a stream the stream is of no
 * use. */
int sl_transport_send(struct sl_transport *t, struct iovec *iov, int cnt);
/**
 * Send of one message as much as goes without waiting. Returns how many bytes that were, or -errno: -EAGAIN
 * for none. The rest has to be the next that is sent.
 */
ssize_t sl_transport_try_send(struct sl_transport *t, const void *msg, size_t len);
/** Make every present and future receive and send end. Pipes end only when the other side closes or
 * sl_transport_free(). */
void sl_transport_shutdown(struct sl_transport *t);
