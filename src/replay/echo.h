/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The acts of the fuse gate: each is one call of the helper, answered by gate/fuse/echo.c. */
#pragma once

#include "gate/fuse/echo.h"
#include "replay/acts.h"
#include "replay/helper.h"

struct sl_echo_acts;

struct sl_echo_acts_config {
	struct sl_store *store;
	struct sl_gate *gate;
	struct sl_helper *helper; /* the caller's, until after sl_echo_acts_free() */
};

int sl_echo_acts_new(const struct sl_echo_acts_config *cfg, struct sl_echo_acts **ret, struct sl_acts *acts);
void sl_echo_acts_free(struct sl_echo_acts *a); /* NULL is fine */
