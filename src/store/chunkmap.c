/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "store/chunkmap.h"

#include <assert.h>
#include <string.h>

#include "base/macros.h"

#define MAX_BLOCKS (1ull << 24)
#define MAX_CHUNKS (SL_MAP_MAX_BYTES * 8ull)

static uint64_t count(uint64_t size, unsigned shift)
{
	return (size >> shift) + ((size & ((1ull << shift) - 1)) != 0);
}

void sl_chunkmap_init(struct sl_chunkmap *m, uint64_t size, bool full)
{
	*m = (struct sl_chunkmap){.size = size, .block_shift = SL_BLOCK_SHIFT_MIN};
	while (count(size, m->block_shift) > MAX_BLOCKS)
		m->block_shift++;
	m->chunk_shift = m->block_shift;
	while (count(size, m->chunk_shift) > MAX_CHUNKS)
		m->chunk_shift++;
	m->nblocks = count(size, m->block_shift);
	m->have = full ? m->nblocks : 0;
}

void sl_chunkmap_fini(struct sl_chunkmap *m)
{
	free(m->bits);
	m->bits = NULL;
}

static bool get(const struct sl_chunkmap *m, uint64_t b)
{
	if (m->have == m->nblocks)
		return true;
	if (m->nblocks <= 64)
		return m->one >> b & 1;
	return m->bits && (m->bits[b / 64] >> (b % 64) & 1);
}

/* Make room for bits, with those set that the counter alone has stood for until now. */
static int need_bits(struct sl_chunkmap *m)
{
	bool full = m->have == m->nblocks;
	if (m->nblocks <= 64) {
		if (full)
			m->one = ~0ull;
		return 0;
	}
	if (!m->bits) {
		size_t n = (size_t)SL_DIV_UP(m->nblocks, 64) * 8;
		m->bits = malloc(n);
		if (!m->bits)
			return -ENOMEM;
		memset(m->bits, full ? 0xff : 0, n);
	}
	return 0;
}

static void put(struct sl_chunkmap *m, uint64_t b, bool v)
{
	uint64_t *w = m->nblocks <= 64 ? &m->one : &m->bits[b / 64];
	uint64_t bit = 1ull << (b % 64);
	bool was = *w & bit;
	if (was == v)
		return;
	*w ^= bit;
	if (v)
		m->have++;
	else
		m->have--;
}

static uint64_t block_end(const struct sl_chunkmap *m, uint64_t b)
{
	return SL_MIN((b + 1) << m->block_shift, m->size);
}

uint64_t sl_chunkmap_bytes(const struct sl_chunkmap *m)
{
	if (m->have == m->nblocks)
		return m->size;
	uint64_t n = m->have << m->block_shift, last = m->nblocks - 1;
	if (m->nblocks && get(m, last))
		n -= ((last + 1) << m->block_shift) - m->size;
	return n;
}

bool sl_chunkmap_test(const struct sl_chunkmap *m, uint64_t off, uint64_t len)
{
	uint64_t s, e;
	if (len == 0 || off >= m->size)
		return true;
	return !sl_chunkmap_missing(m, off, off + SL_MIN(len, m->size - off), &s, &e);
}

int sl_chunkmap_set(struct sl_chunkmap *m, uint64_t off, uint64_t len)
{
	if (m->have == m->nblocks || off >= m->size)
		return 0;
	uint64_t end = len > m->size - off ? m->size : off + len;
	uint64_t b = count(off, m->block_shift);
	int r = need_bits(m);
	if (r < 0)
		return r;
	for (; b < m->nblocks && block_end(m, b) <= end; b++)
		put(m, b, true);
	if (m->have == m->nblocks) {
		free(m->bits);
		m->bits = NULL;
	}
	return 0;
}

void sl_chunkmap_clear(struct sl_chunkmap *m, uint64_t off, uint64_t len)
{
	if (m->have == 0 || off >= m->size || len == 0)
		return;
	uint64_t end = len > m->size - off ? m->size : off + len;
	if ((off == 0 && end == m->size) || need_bits(m) < 0) {
		/* Without memory everything is forgotten: that is always true. */
		free(m->bits);
		m->bits = NULL;
		m->one = 0;
		m->have = 0;
		return;
	}
	for (uint64_t b = off >> m->block_shift; b <= (end - 1) >> m->block_shift; b++)
		put(m, b, false);
}

bool sl_chunkmap_missing(const struct sl_chunkmap *m, uint64_t off, uint64_t end, uint64_t *start,
			 uint64_t *stop)
{
	end = SL_MIN(end, m->size);
	if (off >= end || m->have == m->nblocks)
		return false;
	uint64_t b = off >> m->block_shift, last = (end - 1) >> m->block_shift;
	while (b <= last && get(m, b))
		b++;
	if (b > last)
		return false;
	*start = b << m->block_shift;
	while (b < last && !get(m, b + 1))
		b++;
	*stop = block_end(m, b);
	return true;
}

size_t sl_chunkmap_save(const struct sl_chunkmap *m, uint8_t out[SL_MAP_MAX_BYTES])
{
	uint64_t nchunks = count(m->size, m->chunk_shift);
	unsigned per = m->chunk_shift - m->block_shift;
	size_t n = (size_t)SL_DIV_UP(nchunks, 8);
	assert(n <= SL_MAP_MAX_BYTES);
	memset(out, 0, n);
	for (uint64_t c = 0; c < nchunks; c++) {
		uint64_t b = c << per, e = SL_MIN((c + 1) << per, m->nblocks);
		while (b < e && get(m, b))
			b++;
		if (b == e)
			out[c / 8] |= (uint8_t)(1u << (c % 8));
	}
	return n;
}

int sl_chunkmap_load(struct sl_chunkmap *m, uint8_t chunk_shift, const void *buf, size_t len)
{
	uint64_t nchunks = count(m->size, m->chunk_shift);
	if (chunk_shift != m->chunk_shift || len != SL_DIV_UP(nchunks, 8))
		return -EBADMSG;
	const uint8_t *in = buf;
	for (uint64_t c = 0; c < nchunks; c++)
		if (in[c / 8] >> (c % 8) & 1) {
			int r = sl_chunkmap_set(m, c << chunk_shift, 1ull << chunk_shift);
			if (r < 0)
				return r;
		}
	return 0;
}
