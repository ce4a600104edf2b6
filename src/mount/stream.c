/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "mount/stream.h"

#include <string.h>

#include "base/log.h"
#include "base/macros.h"

/* How long the other half of an exchange may take, which is sent with the first. */
#define NEXT_MS 50
/* For so long without a change the helper keeps the mount busy. */
#define REST_MS 5

struct item {
	void *buf;
	struct sl_fsnotify_msg m;
};

static int receive(struct sl_transport *t, int timeout_ms, struct item *it)
{
	struct sl_msg_out out;
	ssize_t n = sl_transport_recv_alloc(t, sizeof(struct fuse_out_header) + SL_FSNOTIFY_MAX, timeout_ms,
					    &it->buf);
	if (n < 0)
		return (int)n;
	int r = sl_msg_out_decode(it->buf, (size_t)n, NULL, &out);
	if (r == 0 && (out.h.unique || out.h.error != FUSE_NOTIFY_FSNOTIFY))
		r = -EPROTO;
	if (r == 0)
		r = sl_fsnotify_parse(out.data, out.data_len, &it->m);
	if (r < 0) {
		free(it->buf);
		it->buf = NULL;
	}
	return r;
}

int sl_stream_raise(struct sl_transport *t, struct sl_raise *r)
{
	struct item cur = {0}, next = {0};
	int err = 0;
	while (err == 0) {
		if (!cur.buf) {
			err = receive(t, REST_MS, &cur);
			if (err == -EAGAIN) {
				sl_raise_rest(r);
				err = receive(t, -1, &cur);
			}
			if (err < 0)
				break;
		}
		if (sl_raise_needs_next(&cur.m)) {
			err = receive(t, NEXT_MS, &next);
			if (err == -EAGAIN)
				err = 0;
		}
		int used = sl_raise_notify(r, &cur.m, next.buf ? &next.m : NULL);
		free(cur.buf);
		cur.buf = NULL;
		if (used)
			free(next.buf);
		else
			cur = next;
		next.buf = NULL;
	}
	free(cur.buf);
	sl_raise_rest(r);
	return err;
}
