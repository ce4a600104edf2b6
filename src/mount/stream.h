/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Notifications out of a stream, one after the other, to be raised. */
#pragma once

#include "mount/raise.h"
#include "wire/transport.h"

/** Raise what comes out of @t until its end, on this thread. Returns what ended it: -ENODATA, -EPROTO,
 * -errno. */
int sl_stream_raise(struct sl_transport *t, struct sl_raise *r);
