/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Notifications, one after the other as they come, to be raised. */
#pragma once

#include "mount/raise.h"
#include "wire/transport.h"

/* Where they come from. */
struct sl_stream {
	/**
	 * The next body of a FUSE_NOTIFY_FSNOTIFY: *@buf is to be freed, and the body is in it. Returns 0;
	 * -EAGAIN when none came within @timeout_ms (-1: for ever); -ENODATA at the end; -errno.
	 */
	int (*next)(void *arg, int timeout_ms, void **buf, const void **body, size_t *len);
	void *arg;
};

/** Raise what comes out of @s until its end, on this thread. Returns what ended it: -ENODATA, -EPROTO,
 * -errno. */
int sl_stream_raise(const struct sl_stream *s, struct sl_raise *r);

/* Bodies that one thread puts in and another takes out, of which there are only so many. */
struct sl_fifo;
int sl_fifo_new(struct sl_fifo **ret);
void sl_fifo_free(struct sl_fifo *f);
/** Never waits. Where too much is in it, all of that is dropped, and an overflow is there instead. */
void sl_fifo_put(struct sl_fifo *f, const void *body, size_t len);
/** Nothing more comes. */
void sl_fifo_end(struct sl_fifo *f);
/** As sl_stream.next; @arg is the fifo. */
int sl_fifo_next(void *arg, int timeout_ms, void **buf, const void **body, size_t *len);
