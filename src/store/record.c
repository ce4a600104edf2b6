/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "store/record.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <xxhash.h>

#include "base/macros.h"

/* The 64 bytes, as they lie on disk. */
struct disk {
	uint8_t format, state;
	uint16_t flags;
	uint32_t nlink;
	uint64_t ino, size;
	int64_t mtime, ctime;
	uint32_t mtime_ns, ctime_ns, generation;
	uint8_t chunk_shift, reserved;
	uint16_t mode;
	uint64_t sum;
};
_Static_assert(sizeof(struct disk) == SL_RECORD_SIZE, "the record has no padding");

void sl_record_encode(const struct sl_record *r, uint8_t out[SL_RECORD_SIZE])
{
	struct disk d = {.format = SL_RECORD_FORMAT,
			 .state = (uint8_t)r->state,
			 .flags = r->flags,
			 .nlink = r->nlink,
			 .ino = r->origin.ino,
			 .size = S_ISCHR(r->mode) || S_ISBLK(r->mode) ? r->rdev
				 : S_ISDIR(r->mode)		      ? r->listed
								      : r->origin.size,
			 .mtime = r->origin.mtime.tv_sec,
			 .ctime = r->origin.ctime.tv_sec,
			 .mtime_ns = (uint32_t)r->origin.mtime.tv_nsec,
			 .ctime_ns = (uint32_t)r->origin.ctime.tv_nsec,
			 .generation = r->origin.generation,
			 .chunk_shift = r->chunk_shift,
			 .mode = (uint16_t)r->mode};
	d.sum = XXH3_64bits(&d, offsetof(struct disk, sum));
	memcpy(out, &d, sizeof(d));
}

int sl_record_decode(const void *buf, size_t len, struct sl_record *r)
{
	struct disk d;
	if (len < 1)
		return -EBADMSG;
	/* A newer format may have another size and another checksum: look at its number first. */
	if (*(const uint8_t *)buf > SL_RECORD_FORMAT)
		return -EPROTONOSUPPORT;
	if (len != sizeof(d))
		return -EBADMSG;
	memcpy(&d, buf, sizeof(d));
	if (d.format != SL_RECORD_FORMAT || d.sum != XXH3_64bits(&d, offsetof(struct disk, sum)) ||
	    d.state > SL_FULL || d.mtime_ns >= 1000000000u || d.ctime_ns >= 1000000000u)
		return -EBADMSG;
	bool dev = S_ISCHR(d.mode) || S_ISBLK(d.mode), dir = S_ISDIR(d.mode);
	*r = (struct sl_record){
	    .state = d.state,
	    .flags = d.flags,
	    .chunk_shift = d.chunk_shift,
	    .mode = d.mode,
	    .nlink = d.nlink,
	    .rdev = dev ? d.size : 0,
	    .listed = dir ? d.size : 0,
	    .origin = {.ino = d.ino,
		       .generation = d.generation,
		       .size = dev || dir ? 0 : d.size,
		       .mtime = {.tv_sec = d.mtime, .tv_nsec = d.mtime_ns},
		       .ctime = {.tv_sec = d.ctime, .tv_nsec = d.ctime_ns}},
	};
	return 0;
}

/* What follows the record in a native store; the place after that. */
struct tail {
	uint64_t self, sum;
};

static uint64_t tail_sum(uint64_t self, const void *place, size_t n)
{
	return XXH3_64bits_withSeed(place, n, self);
}

size_t sl_record_encode_placed(const struct sl_record *r, uint64_t self, const char *place, uint32_t moves,
			       uint8_t out[SL_PLACED_MAX])
{
	size_t n = strlen(place);
	if (n > SL_PLACED_MAX - SL_RECORD_SIZE - sizeof(struct tail) - 1 - sizeof(moves))
		return 0;
	uint8_t *p = out + SL_RECORD_SIZE + sizeof(struct tail);
	memcpy(p, place, n);
	if (moves) {
		p[n++] = 0;
		memcpy(p + n, &moves, sizeof(moves));
		n += sizeof(moves);
	}
	struct tail t = {.self = self, .sum = tail_sum(self, p, n)};
	sl_record_encode(r, out);
	memcpy(out + SL_RECORD_SIZE, &t, sizeof(t));
	return SL_RECORD_SIZE + sizeof(t) + n;
}

int sl_record_decode_placed(const void *buf, size_t len, uint64_t self, struct sl_record *r, char **place,
			    uint32_t *moves)
{
	const uint8_t *b = buf;
	struct tail t;
	int q = sl_record_decode(b, SL_MIN(len, (size_t)SL_RECORD_SIZE), r);
	if (q < 0)
		return q;
	if (len < SL_RECORD_SIZE + sizeof(t) || len > SL_PLACED_MAX)
		return -EBADMSG;
	memcpy(&t, b + SL_RECORD_SIZE, sizeof(t));
	const uint8_t *p = b + SL_RECORD_SIZE + sizeof(t);
	size_t n = len - SL_RECORD_SIZE - sizeof(t);
	if (t.sum != tail_sum(t.self, p, n))
		return -EBADMSG;
	const uint8_t *end = memchr(p, 0, n);
	*moves = 0;
	if (end) {
		if (n < 1 + sizeof(*moves) || end != p + n - 1 - sizeof(*moves))
			return -EBADMSG;
		memcpy(moves, end + 1, sizeof(*moves));
		n = (size_t)(end - p);
	}
	if (t.self != self)
		return -ENODATA;
	*place = strndup((const char *)p, n);
	return *place ? 0 : -ENOMEM;
}

const char *sl_state_name(enum sl_state s, uint32_t mode)
{
	static const char *const file[] = {"cold", "partial", "full"};
	static const char *const dir[] = {"unpopulated", "partial", "populated"};
	return S_ISDIR(mode) ? dir[s] : file[s];
}
