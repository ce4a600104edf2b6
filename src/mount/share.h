/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A local tree served to the kernel by this process, and its changes raised as events on the mount. */
#pragma once

#include "mount/raise.h"
#include "serve/serve.h"

struct sl_share {
	/* set by the caller */
	struct sl_export *e;
	struct sl_raise *raise; /* NULL: without events */
	const char *dir;	/* where it will be mounted */
	uint64_t uses;		/* FAN_OPEN, FAN_ACCESS, FAN_CLOSE_NOWRITE: those to raise as well */
};

/** Serve @t (/dev/fuse) until the unmount. Returns 0 or -errno. */
int sl_share_serve(struct sl_share *s, struct sl_transport *t);
