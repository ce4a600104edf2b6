/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What raising (raise.c) and the answers to its helper (answer.c) share. */
#pragma once

#include <pthread.h>
#include <stdatomic.h>

#include "mount/raise.h"
#include "mount/told.h"
#include "replay/helper.h"
#include "replay/uses.h"

/* Numbers that no server gives out: it counts from 1. */
#define MADE_NODES   (1ull << 62)
#define STAGING_NODE MADE_NODES
#define HANDLE	     (1ull << 62)
#define STAGING_NAME ".sluice-staging-"
#define EXPIRE_ONLY  1u /* of struct fuse_notify_inval_entry_out.flags: a mount on it stays */

/* A name as the helper is shown it. */
struct shown {
	uint64_t dir;
	const char *name;
	bool there;
	struct fuse_entry_out entry;
	unsigned counts; /* lookups that were counted and not given to the kernel yet */
};

/* What the helper is about to do. */
struct act {
	struct shown a, b; /* b: a rename's other name */
	uint32_t opcode;   /* what shall be answered with success */
};

struct sl_raise {
	struct sl_raise_config cfg;
	struct sl_told_table told;
	struct sl_uses uses;
	struct sl_helper *helper;
	uint32_t pid, uid;
	bool attached;
	uint64_t made;	      /* nodes that were made up */
	uint64_t staged;      /* names in the staging directory */
	atomic_bool begun;    /* cfg is set */
	pthread_mutex_t lock; /* protects act, which server threads look at */
	struct act *act;      /* the current one, or NULL */
	char staging[64];
};

static inline bool raise_made_up(uint64_t nodeid)
{
	return nodeid >= MADE_NODES;
}
/** Attributes that say no more than of what kind an object was. */
struct fuse_attr raise_made_attr(struct sl_raise *r, uint64_t ino, uint32_t type);
