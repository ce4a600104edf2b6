/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The one table of operations: for each opcode its name, its request and its reply structure and what follows
 * them. Codec, server, client, tests and fuzzers all go by it; a new operation is one row here and its
 * structures in proto.h.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "wire/proto.h"

/* What follows the fixed structure of a message. */
enum sl_tail {
	SL_TAIL_NONE,
	SL_TAIL_NAME,	   /* one name, NUL-terminated */
	SL_TAIL_NAME2,	   /* two names */
	SL_TAIL_NAME_DATA, /* a name, then as many bytes as the structure's size field says (setxattr) */
	SL_TAIL_DATA,	 /* as many bytes as the structure's size field says (write); in replies: all that is
			    left */
	SL_TAIL_FORGETS, /* array of struct fuse_forget_one */
	SL_TAIL_DIRENTS, /* records of struct fuse_dirent */
	SL_TAIL_DIRENTSPLUS,
};

struct sl_op {
	const char *name;
	uint16_t in_min;  /* smallest accepted request structure; the rest reads as zero */
	uint16_t in_size; /* its size today, and what is sent */
	uint16_t out_min;
	uint16_t out_size;
	uint8_t in_tail;
	uint8_t out_tail;
	bool no_reply;
	bool entry; /* the reply gives out a node and counts as a lookup of it */
};

/** The row of @opcode, or NULL for one that the table does not know. */
const struct sl_op *sl_op_get(uint32_t opcode);
