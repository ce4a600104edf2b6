/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Files that grow behind a mount. A page in which a file ends has zeros behind the end, and the kernel that
 * is told a larger size sets that first and drops its pages afterwards: in between a reader finds the zeros.
 * So answers with attributes go this way: where a READ of the file was answered short of the size that they
 * tell, the kernel is made to drop what follows that end before it is told.
 *
 *   READ   answered with less than was asked for: the kernel may have zeros from there on
 *   GETATTR, LOOKUP, READDIRPLUS, SETATTR …
 *          its size is behind that place: held, until FUSE_NOTIFY_INVAL_INODE has returned
 *          a READ of that file is under way that may have been done before: held, until it is answered
 *
 * The kernel waits in the notification for READs under way, so a thread of its own sends it, and no answer to
 * a READ or WRITE is ever held. Of each file no more is kept than the lowest such place, until it was dropped
 * or the kernel forgot the file. Any thread may call.
 */
#pragma once

#include "wire/server.h"

struct sl_ends;
struct sl_ends_read;

int sl_ends_new(struct sl_transport *t, struct sl_ends **ret);
/** What is held is not answered any more. NULL is fine. */
void sl_ends_free(struct sl_ends *s);
/** Before @rq is handled: a READ or a FORGET. 0 or -ENOMEM. */
int sl_ends_request(struct sl_ends *s, struct sl_req *rq);
/**
 * Before @rq is answered with @err, @out and @data. True: that was copied and is sent later; false: it is to
 * be sent, with *@err.
 */
bool sl_ends_answer(struct sl_ends *s, struct sl_req *rq, int *err, const void *out, size_t len,
		    const void *data, size_t data_len);
