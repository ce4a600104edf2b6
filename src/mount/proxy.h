/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A mount of an export: the kernel's requests are passed on to it, and its answers back; both speak the same
 * protocol, and nodes and handles have the same numbers on both sides. Changes that the export tells of are
 * raised as events.
 *
 * What comes from the export is hostile input: the codec checks it, and the kernel checks what it is given.
 * When the connection breaks, everything fails with EIO and the mount ends: node numbers mean something on
 * one connection only.
 */
#pragma once

#include "mount/raise.h"
#include "wire/client.h"

struct sl_proxy;

struct sl_proxy_config {
	struct sl_raise *raise; /* NULL: without events */
	const char *dir;	/* where it will be mounted */
	bool read_only;
	uint64_t uses;	     /* FAN_OPEN, FAN_ACCESS, FAN_CLOSE_NOWRITE: those to raise as well */
	uint64_t timeout_ms; /* for one request; then it is EIO */
};

/** Agree on a protocol with the export behind @t (taken over, also on failure). Returns 0 or -errno with a
 * sentence. */
int sl_proxy_new(struct sl_transport *t, const struct sl_proxy_config *cfg, struct sl_proxy **ret,
		 char **why);
void sl_proxy_free(struct sl_proxy *p);
/** Serve @dev (/dev/fuse) until the unmount (0) or until the connection breaks (-ENOTCONN, -EPROTO). */
int sl_proxy_serve(struct sl_proxy *p, struct sl_transport *dev);
