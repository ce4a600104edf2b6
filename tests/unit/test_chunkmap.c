/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The chunk map against a model of one byte per block. If this fails, files are read where nothing is, or fetched again where
 * all is here.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/macros.h"
#include "store/chunkmap.h"

static uint64_t state = 88172645463325252ull;

static uint64_t rnd(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

#define B (1ull << SL_BLOCK_SHIFT_MIN)

static const uint64_t sizes[] = {0,	      1,	    B - 1,	  B,		B + 1,	       63 * B,	      64 * B - 1,
				 64 * B,      64 * B + 1,   65 * B,	  128 * B + 5,	5ull << 30,    (5ull << 30) + 1, 1ull << 34,
				 (1ull << 34) + 1, 1ull << 40, (1ull << 40) - 1, 1ull << 41, (1ull << 50) + 7, INT64_MAX};

struct model {
	struct sl_chunkmap m;
	uint8_t *b;
};

static uint64_t blocks_of(uint64_t size, unsigned shift)
{
	return (size >> shift) + ((size & ((1ull << shift) - 1)) != 0);
}

static uint64_t block_len(const struct model *x, uint64_t b)
{
	return SL_MIN(1ull << x->m.block_shift, x->m.size - (b << x->m.block_shift));
}

static void new_model(struct model *x, uint64_t size, bool full)
{
	sl_chunkmap_init(&x->m, size, full);
	assert_true(x->m.block_shift >= SL_BLOCK_SHIFT_MIN);
	assert_int_equal(x->m.nblocks, blocks_of(size, x->m.block_shift));
	assert_true(x->m.nblocks <= 1u << 24);
	assert_true(x->m.chunk_shift >= x->m.block_shift);
	assert_true(SL_DIV_UP(blocks_of(size, x->m.chunk_shift), 8) <= SL_MAP_MAX_BYTES);
	x->b = malloc(x->m.nblocks + 1);
	assert_non_null(x->b);
	memset(x->b, full, x->m.nblocks);
}

static void free_model(struct model *x)
{
	sl_chunkmap_fini(&x->m);
	free(x->b);
}

static void check_all(const struct model *x)
{
	uint64_t have = 0, bytes = 0;
	for (uint64_t b = 0; b < x->m.nblocks; b++)
		if (x->b[b]) {
			have++;
			bytes += block_len(x, b);
		}
	assert_int_equal(x->m.have, have);
	assert_int_equal(sl_chunkmap_bytes(&x->m), bytes);
	assert_int_equal(sl_chunkmap_full(&x->m), have == x->m.nblocks);
}

static void check_range(const struct model *x, uint64_t off, uint64_t len)
{
	uint64_t size = x->m.size, end = len > UINT64_MAX - off ? UINT64_MAX : off + len, s = 1, e = 2;
	unsigned k = x->m.block_shift;
	uint64_t stop = SL_MIN(end, size), b = off >> k, last = stop ? (stop - 1) >> k : 0;
	bool any = off < stop;
	while (any && b <= last && x->b[b])
		b++;
	bool missing = any && b <= last;
	assert_int_equal(sl_chunkmap_test(&x->m, off, len), !missing);
	assert_int_equal(sl_chunkmap_missing(&x->m, off, end, &s, &e), missing);
	if (!missing)
		return;
	assert_int_equal(s, b << k);
	while (b < last && !x->b[b + 1])
		b++;
	assert_int_equal(e, (b << k) + block_len(x, b));
}

/* Ranges as they come: whole blocks, a byte beside them, anywhere, beyond the end. */
static void any_range(const struct model *x, uint64_t *off, uint64_t *len)
{
	uint64_t n = x->m.nblocks, b = n ? rnd() % n : 0, unit = 1ull << x->m.block_shift;
	switch (rnd() % 6) {
	case 0:
		*off = b << x->m.block_shift;
		*len = (rnd() % 70) << x->m.block_shift;
		break;
	case 1:
		*off = (b << x->m.block_shift) + rnd() % 3 - 1;
		*len = unit + rnd() % 3 - 1;
		break;
	case 2:
		*off = x->m.size ? rnd() % x->m.size : 0;
		*len = rnd() % (unit * 5);
		break;
	case 3:
		*off = x->m.size - SL_MIN(x->m.size, rnd() % (3 * unit));
		*len = UINT64_MAX - (rnd() & 1 ? 0 : rnd());
		break;
	case 4:
		*off = x->m.size + rnd() % 3;
		*len = rnd() % 3;
		break;
	default:
		*off = rnd() % 32 ? rnd() % (unit * 80) : 0;
		*len = rnd() % 32 ? rnd() % (unit * 80) : UINT64_MAX;
	}
}

static void test_model(void **state_)
{
	(void)state_;
	for (size_t i = 0; i < SL_ARRAY_SIZE(sizes); i++)
		for (int full = 0; full < 2; full++) {
			struct model x;
			new_model(&x, sizes[i], full);
			unsigned k = x.m.block_shift;
			bool big = x.m.nblocks > 100000;
			for (int step = 0; step < (big ? 300 : 2000); step++) {
				uint64_t off, len;
				any_range(&x, &off, &len);
				uint64_t end = off >= x.m.size ? 0 : len > x.m.size - off ? x.m.size : off + len;
				/* Of the large ones all of it now and then, not each time. */
				if (big && end > off && (end - off) >> k > 5000 && rnd() % 64)
					continue;
				bool set = rnd() % 2;
				if (set) {
					assert_int_equal(sl_chunkmap_set(&x.m, off, len), 0);
					for (uint64_t b = blocks_of(off, k); end && b < x.m.nblocks && (b << k) + block_len(&x, b) <= end; b++)
						x.b[b] = 1;
				} else {
					sl_chunkmap_clear(&x.m, off, len);
					for (uint64_t b = off >> k; end > off && b <= (end - 1) >> k; b++)
						x.b[b] = 0;
				}
				if (!big || step % 100 == 0)
					check_all(&x);
				any_range(&x, &off, &len);
				check_range(&x, off, len);
			}
			check_all(&x);
			free_model(&x);
		}
}

static void test_save_load(void **state_)
{
	(void)state_;
	uint8_t buf[SL_MAP_MAX_BYTES], second[SL_MAP_MAX_BYTES];
	for (size_t i = 0; i < SL_ARRAY_SIZE(sizes); i++)
		for (int round = 0; round < 6; round++) {
			struct model x;
			struct sl_chunkmap y;
			new_model(&x, sizes[i], round == 5);
			unsigned k = x.m.block_shift, per = x.m.chunk_shift - k;
			bool exact = per == 0;
			for (int n = 0; n < round * 20; n++) {
				/* A run of chunks, now and then with the edges that do not make a whole one. */
				uint64_t b = x.m.nblocks ? rnd() % x.m.nblocks : 0;
				b = SL_ALIGN_DOWN(b, 1ull << per);
				uint64_t off = b << k, len = (rnd() % 4) << x.m.chunk_shift;
				assert_int_equal(sl_chunkmap_set(&x.m, off + (rnd() % 2 ? 1 : 0), len + rnd() % B), 0);
			}
			size_t n = sl_chunkmap_save(&x.m, buf);
			assert_true(n <= SL_MAP_MAX_BYTES);
			sl_chunkmap_init(&y, sizes[i], false);
			assert_int_equal(sl_chunkmap_load(&y, x.m.chunk_shift, buf, n), 0);
			assert_true(y.have <= x.m.have);
			if (exact)
				assert_int_equal(y.have, x.m.have);
			if (x.m.nblocks < 100000 || round == 3)
				for (uint64_t b = 0; b < x.m.nblocks; b++) {
					bool in_y = sl_chunkmap_test(&y, b << k, 1), in_x = sl_chunkmap_test(&x.m, b << k, 1);
					assert_true(in_x || !in_y);
					if (exact)
						assert_int_equal(in_x, in_y);
				}
			assert_int_equal(sl_chunkmap_save(&y, second), n);
			assert_memory_equal(second, buf, n);
			if (round == 5)
				assert_true(sl_chunkmap_full(&y));
			sl_chunkmap_fini(&y);
			free_model(&x);
		}
}

static void test_damaged(void **state_)
{
	(void)state_;
	uint8_t buf[SL_MAP_MAX_BYTES + 8];
	memset(buf, 0xff, sizeof(buf));
	for (size_t i = 0; i < SL_ARRAY_SIZE(sizes); i++) {
		struct sl_chunkmap m;
		uint8_t out[SL_MAP_MAX_BYTES];
		sl_chunkmap_init(&m, sizes[i], false);
		size_t n = sl_chunkmap_save(&m, out);
		for (size_t len = 0; len <= SL_MAP_MAX_BYTES; len += len < 20 || len + 20 > SL_MAP_MAX_BYTES ? 1 : 13) {
			struct sl_chunkmap y;
			sl_chunkmap_init(&y, sizes[i], false);
			int r = sl_chunkmap_load(&y, m.chunk_shift, buf, len);
			assert_int_equal(r, len == n ? 0 : -EBADMSG);
			/* Bits beyond the end mean nothing. */
			if (r == 0)
				assert_int_equal(sl_chunkmap_bytes(&y), sizes[i]);
			sl_chunkmap_fini(&y);
		}
		for (unsigned shift = 0; shift < 256; shift++) {
			struct sl_chunkmap y;
			if (shift == m.chunk_shift)
				continue;
			sl_chunkmap_init(&y, sizes[i], false);
			assert_int_equal(sl_chunkmap_load(&y, (uint8_t)shift, buf, n), -EBADMSG);
			assert_int_equal(y.have, 0);
			sl_chunkmap_fini(&y);
		}
	}
}

/* Bits that were counted only must be there once single ones are taken away. */
static void test_full_then_clear(void **state_)
{
	(void)state_;
	for (size_t i = 0; i < SL_ARRAY_SIZE(sizes); i++) {
		struct sl_chunkmap m;
		sl_chunkmap_init(&m, sizes[i], true);
		if (sizes[i] < 2 * B) {
			sl_chunkmap_fini(&m);
			continue;
		}
		uint64_t unit = 1ull << m.block_shift;
		sl_chunkmap_clear(&m, unit, 1);
		assert_int_equal(m.have, m.nblocks - 1);
		assert_true(sl_chunkmap_test(&m, 0, unit));
		assert_false(sl_chunkmap_test(&m, 0, unit + 1));
		assert_int_equal(sl_chunkmap_set(&m, unit, unit), 0);
		assert_true(sl_chunkmap_full(&m));
		assert_null(m.bits);
		sl_chunkmap_clear(&m, 0, UINT64_MAX);
		assert_int_equal(m.have, 0);
		assert_false(sl_chunkmap_test(&m, sizes[i] - 1, 1));
		assert_int_equal(sl_chunkmap_bytes(&m), 0);
		sl_chunkmap_fini(&m);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_model),
		cmocka_unit_test(test_save_load),
		cmocka_unit_test(test_damaged),
		cmocka_unit_test(test_full_then_clear),
	};
	return cmocka_run_group_tests_name("chunkmap", tests, NULL, NULL);
}
