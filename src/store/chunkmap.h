/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The chunk map: which parts of a file are here.
 *
 * In memory it counts in blocks (64 KiB; larger where a file would have more than 16 Mi of them), on disk in
 * chunks (as many blocks each as keep the map below 2 KiB). A chunk's bit is written only when all its blocks
 * are here, so what is lost when the map in memory goes away is fetched again, and a small read of a huge
 * file still fetches little.
 *
 *   file    |....|....|####|####|####|####|.###|....|     # here
 *   blocks    0    0    1    1    1    1    0    0
 *   chunks        0         1         1         0         (two blocks each)
 *
 * Not locked: the object's lock protects it. Offsets and sizes are in bytes.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SL_BLOCK_SHIFT_MIN 16
#define SL_MAP_MAX_BYTES   2048

struct sl_chunkmap {
	uint64_t size;
	uint64_t nblocks;
	uint64_t have; /* blocks that are here */
	uint8_t block_shift;
	uint8_t chunk_shift;
	uint64_t one;	/* the bits, when there are at most 64 */
	uint64_t *bits; /* NULL until the first bit is set, when there are more */
};

/** An empty or a complete map of a file of @size bytes. Allocates nothing. An empty file is always complete.
 */
void sl_chunkmap_init(struct sl_chunkmap *m, uint64_t size, bool full);
void sl_chunkmap_fini(struct sl_chunkmap *m);

static inline bool sl_chunkmap_full(const struct sl_chunkmap *m)
{
	return m->have == m->nblocks;
}

/** Bytes that are here. */
uint64_t sl_chunkmap_bytes(const struct sl_chunkmap *m);
/** True if all of [off, off+len) that lies in the file is here. */
bool sl_chunkmap_test(const struct sl_chunkmap *m, uint64_t off, uint64_t len);
/** Say that all blocks that lie wholly in [off, off+len) are here (the last one ends with the file). 0 or
 * -ENOMEM. */
int sl_chunkmap_set(struct sl_chunkmap *m, uint64_t off, uint64_t len);
/** Forget blocks that touch [off, off+len). */
void sl_chunkmap_clear(struct sl_chunkmap *m, uint64_t off, uint64_t len);
/**
 * The first run of missing blocks that touches [off, end): sets *@start and *@stop (block-aligned; not beyond
 * the end of the file, not beyond the block that holds end-1) and returns true; false if nothing is missing.
 */
bool sl_chunkmap_missing(const struct sl_chunkmap *m, uint64_t off, uint64_t end, uint64_t *start,
			 uint64_t *stop);

/** The map as it goes to disk: returns its length in bytes (at most SL_MAP_MAX_BYTES) in @out. */
size_t sl_chunkmap_save(const struct sl_chunkmap *m, uint8_t out[SL_MAP_MAX_BYTES]);
/** From disk, into an initialised empty map. 0; -EBADMSG where length or shift do not belong to this size;
 * -ENOMEM. */
int sl_chunkmap_load(struct sl_chunkmap *m, uint8_t chunk_shift, const void *buf, size_t len);
