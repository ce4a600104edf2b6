/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Records and chunk maps against arbitrary bytes: what is accepted is encoded to the same bytes again, and no map claims more
 * than it says. The first byte chooses: a record as it is, one with its checksum put right, or a map of a file of the size
 * that the next eight bytes say.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#include "base/macros.h"
#include "fuzz.h"
#include "store/chunkmap.h"
#include "store/record.h"

#define must(x)                                                                                              \
	do {                                                                                                 \
		if (!(x))                                                                                    \
			abort();                                                                             \
	} while (0)

static void run_record(const uint8_t *p, size_t len)
{
	struct sl_record r;
	uint8_t out[SL_RECORD_SIZE];
	int e = sl_record_decode(p, len, &r);
	must(e == 0 || e == -EBADMSG || e == -EPROTONOSUPPORT);
	if (e)
		return;
	must(len == SL_RECORD_SIZE && r.state <= SL_FULL && r.origin.mtime.tv_nsec >= 0 && r.origin.mtime.tv_nsec < 1000000000 &&
	     r.origin.ctime.tv_nsec >= 0 && r.origin.ctime.tv_nsec < 1000000000);
	must(sl_state_name(r.state, r.mode));
	sl_record_encode(&r, out);
	/* All but the reserved byte, and what that does to the sum. */
	must(memcmp(out, p, 53) == 0 && memcmp(out + 54, p + 54, 2) == 0);
}

static void run_map(const uint8_t *p, size_t len)
{
	uint64_t size;
	uint8_t out[SL_MAP_MAX_BYTES];
	struct sl_chunkmap m, again;
	if (len < 9)
		return;
	memcpy(&size, p, 8);
	size &= INT64_MAX;
	while (size >> 33)
		size >>= 15; /* the largest ones are slow */
	sl_chunkmap_init(&m, size, false);
	int r = sl_chunkmap_load(&m, p[8] ? p[8] : m.chunk_shift, p + 9, len - 9);
	must(r == 0 || r == -EBADMSG);
	must(sl_chunkmap_bytes(&m) <= size);
	if (r == 0) {
		size_t n = sl_chunkmap_save(&m, out);
		must(n == len - 9);
		sl_chunkmap_init(&again, size, false);
		must(sl_chunkmap_load(&again, m.chunk_shift, out, n) == 0);
		must(again.have == m.have && sl_chunkmap_bytes(&again) == sl_chunkmap_bytes(&m));
		uint64_t s, e;
		if (sl_chunkmap_missing(&m, 0, size, &s, &e))
			must(s < e && e <= size && !sl_chunkmap_full(&m));
		else
			must(sl_chunkmap_full(&m));
		sl_chunkmap_fini(&again);
	}
	sl_chunkmap_fini(&m);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size < 1)
		return 0;
	uint8_t *p = malloc(size); /* of just its size, for ASan */
	must(p);
	memcpy(p, data + 1, size - 1);
	size_t len = size - 1;
	if (data[0] % 3 == 1 && len >= SL_RECORD_SIZE) {
		len = SL_RECORD_SIZE;
		uint64_t sum = XXH3_64bits(p, 56);
		memcpy(p + 56, &sum, 8);
	}
	if (data[0] % 3 == 2)
		run_map(p, len);
	else
		run_record(p, len);
	free(p);
	return 0;
}

size_t sl_fuzz_seed(size_t i, uint8_t *buf, size_t cap)
{
	static const uint64_t sizes[] = {0, 1, 65536, 65537, 64 * 65536, 65 * 65536, 5ull << 30, (1ull << 30) + 1};
	(void)cap;
	if (i < 4) {
		struct sl_record r = {.state = (enum sl_state)(i % 3),
				      .mode = (i & 1 ? S_IFREG : S_IFCHR) | 0644,
				      .nlink = 2,
				      .origin = {.ino = 3, .size = 4, .mtime = {5, 6}, .ctime = {7, 8}}};
		buf[0] = (uint8_t)(i / 2);
		sl_record_encode(&r, buf + 1);
		return 1 + SL_RECORD_SIZE;
	}
	i -= 4;
	if (i >= SL_ARRAY_SIZE(sizes) * 2)
		return 0;
	struct sl_chunkmap m;
	sl_chunkmap_init(&m, sizes[i / 2], i & 1);
	buf[0] = 2;
	memcpy(buf + 1, &sizes[i / 2], 8);
	buf[9] = i & 2 ? m.chunk_shift : 0;
	return 10 + sl_chunkmap_save(&m, buf + 10);
}
