/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Where clients come in: a unix socket, a TCP or vsock port, or one pair of descriptors. Each connection gets
 * a thread of its own, which serves it (serve.h). All functions are for one thread, the one that runs it.
 */
#pragma once

#include "serve/serve.h"

struct sl_listener;

/** At most @max connections at a time, 0 for the default of 64; those beyond are closed at once, and logged.
 */
int sl_listener_new(struct sl_export *e, unsigned max, struct sl_listener **ret);
/** Ends the connections first. */
void sl_listener_free(struct sl_listener *l);

/* One of these four. Each returns 0, or -errno with a sentence in *@why. */

/**
 * A unix socket of mode 0600. Only processes of our own user and root are accepted, whoever can reach the
 * socket. It is removed at the end, if what is at @path is still ours.
 */
int sl_listener_unix(struct sl_listener *l, const char *path, char **why);
/** @hostport: "HOST:PORT" or "[V6]:PORT"; port 0 is any free one. Neither encrypted nor authenticated. */
int sl_listener_tcp(struct sl_listener *l, const char *hostport, char **why);
/**
 * A vsock @port, 0 for any free one. @from: only the machine with this CID is served, every user of it; 0:
 * all machines that can reach this one, and every user of this one.
 */
int sl_listener_vsock(struct sl_listener *l, uint32_t port, uint32_t from, char **why);
/** A connection that is already there, the only one. Takes over the descriptors. */
int sl_listener_adopt(struct sl_listener *l, int rfd, int wfd, char **why);

/** What clients connect to: "unix:/PATH", "tcp:ADDRESS:PORT", "vsock:CID:PORT" ("vsock:?:PORT" where our own
 * number cannot be known), or "stdio". */
const char *sl_listener_address(const struct sl_listener *l);

/**
 * Accept and serve until @stop_fd is readable or, after sl_listener_adopt(), the connection has ended.
 * Returns 0; what ended the adopted connection; -ETIMEDOUT where connections did not end within seconds after
 * the stop (a disk that hangs): then their threads still use the export, and neither it nor the listener may
 * be freed.
 */
int sl_listener_run(struct sl_listener *l, int stop_fd);
