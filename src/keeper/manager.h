/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The service manager (systemd): tell it how the service is, and have it hold the named descriptors. All
 * functions do nothing where there is none ($NOTIFY_SOCKET is not set), and use nothing but system calls, so
 * that they also work in a process that was cut off from its threads.
 */
#pragma once

#include "keeper/state.h"

/** sd_notify(3): @text is "NAME=VALUE" lines. */
void sl_manager_tell(const char *text);
/** Have it hold all named descriptors (FDSTORE=1), each under its name. */
void sl_manager_store(const struct sl_state *st);
/** It need not hold them any more. */
void sl_manager_unstore(void);
/**
 * What it held for us ($LISTEN_FDS): the descriptor of the memory, or -ENOENT. @fds[i] are the others'
 * numbers, -1 where there is none. Descriptors of unknown names are closed. The environment is cleaned.
 */
int sl_manager_restore(int fds[SL_KEPT_MAX]);
