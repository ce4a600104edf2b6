/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The memory that keepers and services share: the header. Everything in it is written by one side at a time
 * (comments say which), or atomic.
 */
#pragma once

#include <limits.h>
#include <stdatomic.h>
#include <stdint.h>

#include "keeper/keeper.h"

#define SL_STATE_MAGIC	0x6563696c73ull /* "slice" */
#define SL_STATE_SIZE	(64ull << 20)	/* sparse: of the whole memory */
#define SL_STATE_HEADER (16ull << 10)	/* where the area begins */

enum sl_phase {
	SL_PHASE_STARTING, /* set by the keeper */
	SL_PHASE_READY,	   /* the rest by the service */
	SL_PHASE_ENDING,
	SL_PHASE_ENDED,	 /* in good order */
	SL_PHASE_FAILED, /* could not start */
};

struct sl_state {
	uint64_t magic;
	uint32_t version; /* SL_STATE_VERSION */
	uint32_t size;	  /* of this struct, as a second opinion */

	_Atomic int32_t keeper_pid, service_pid;
	_Atomic uint32_t phase;		  /* enum sl_phase */
	_Atomic int32_t fds[SL_KEPT_MAX]; /* number + 1, so that zeros mean none */

	/* the keeper's */
	uint32_t restarts; /* services that died and were followed by another one */
	uint32_t quick;	   /* of the last ones, how many died soon after their start */
	uint32_t tries;	   /* of the last ones, how many did not even come to be ready */
	uint32_t upgrades;
	uint32_t successor; /* the service that runs now follows one that died */
	uint32_t numbers_lost;
	uint32_t was_ready; /* some service of this memory was ready */
	int32_t oom_score;  /* what the service gets: the keeper's own was changed */
	int32_t died_of;    /* wait status of the last service, -1 if not known */
	uint64_t started;   /* sl_now() time of the last start */

	_Atomic uint32_t upgrade; /* the service asks for `program`, which is set before */
	char program[PATH_MAX];
	char store[PATH_MAX];
};

_Static_assert(sizeof(struct sl_state) <= SL_STATE_HEADER, "the header is too large");
