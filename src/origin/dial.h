/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* How to reach an export: parsed once, dialled whenever a connection is needed. */
#pragma once

#include "base/why.h"
#include "wire/transport.h"

struct sl_dial;

/** Parse "unix:PATH", "ssh://…", "HOST:path", "exec:COMMAND", "vsock:CID:PORT", "dev:DEVICE",
 * "tcp:HOST:PORT". -EINVAL with a sentence. */
int sl_dial_parse(const char *spec, bool insecure_plain, struct sl_dial **ret, char **why);
/** The export of the local directory @path by a process of our own, '@program serve'. -ENOMEM. */
int sl_dial_local(const char *program, const char *path, struct sl_dial **ret);
void sl_dial_free(struct sl_dial *d);
/** Connect, or start the command. A command ends when its transport is freed. Not for two threads at a time.
 */
int sl_dial_connect(struct sl_dial *d, struct sl_transport **ret, char **why);
/**
 * Whether it is worth trying again after a connection failed before it began, with @err: a device outlives
 * its connections, and one may meet what is left of the one before. Waits a moment then, and drops the
 * sentence that is in *@why. @until is 0 at first; false after some seconds of that.
 */
bool sl_dial_again(const struct sl_dial *d, int err, uint64_t *until, char **why);
/** After the transport is freed: wait for the command, if there is one, to end; end it if it does not. */
void sl_dial_reap(struct sl_dial *d);
