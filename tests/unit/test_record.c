/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The record's encoding. If this fails, a store is not understood after an upgrade, or damage to it goes unnoticed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <sys/sysmacros.h>

#include "base/macros.h"
#include "store/record.h"

static uint64_t state = 4101842887655102017ull;

static uint64_t rnd(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

static struct sl_record random_record(void)
{
	static const uint32_t types[] = {S_IFREG, S_IFDIR, S_IFLNK, S_IFIFO, S_IFSOCK, S_IFCHR, S_IFBLK};
	struct sl_record r = {.state = (enum sl_state)(rnd() % 3),
			      .flags = (uint16_t)rnd(),
			      .chunk_shift = (uint8_t)rnd(),
			      .mode = types[rnd() % SL_ARRAY_SIZE(types)] | (rnd() & 07777),
			      .nlink = (uint32_t)rnd()};
	if (S_ISCHR(r.mode) || S_ISBLK(r.mode))
		r.rdev = makedev(rnd() & 0xfff, rnd() & 0xfffff);
	else
		*(S_ISDIR(r.mode) ? &r.listed : &r.origin.size) = rnd() >> (rnd() % 64);
	r.origin.ino = rnd();
	r.origin.generation = (uint32_t)rnd();
	r.origin.mtime = (struct timespec){(time_t)(rnd() >> (rnd() % 64)), (long)(rnd() % 1000000000)};
	r.origin.ctime = (struct timespec){-(time_t)(rnd() >> 24), 999999999};
	return r;
}

static void assert_same(const struct sl_record *a, const struct sl_record *b)
{
	assert_int_equal(a->state, b->state);
	assert_int_equal(a->flags, b->flags);
	assert_int_equal(a->chunk_shift, b->chunk_shift);
	assert_int_equal(a->mode, b->mode);
	assert_int_equal(a->nlink, b->nlink);
	assert_int_equal(a->rdev, b->rdev);
	assert_int_equal(a->origin.size, b->origin.size);
	assert_int_equal(a->listed, b->listed);
	assert_true(sl_version_eq(&a->origin, &b->origin));
}

static void test_round_trip(void **s)
{
	(void)s;
	for (int i = 0; i < 100000; i++) {
		struct sl_record a = random_record(), b;
		uint8_t buf[SL_RECORD_SIZE], again[SL_RECORD_SIZE];
		sl_record_encode(&a, buf);
		assert_int_equal(sl_record_decode(buf, sizeof(buf), &b), 0);
		assert_same(&a, &b);
		sl_record_encode(&b, again);
		assert_memory_equal(again, buf, sizeof(buf));
	}
}

static void test_every_bit(void **s)
{
	(void)s;
	for (int i = 0; i < 200; i++) {
		struct sl_record a = random_record(), b;
		uint8_t buf[SL_RECORD_SIZE];
		sl_record_encode(&a, buf);
		for (unsigned bit = 0; bit < SL_RECORD_SIZE * 8; bit++) {
			buf[bit / 8] ^= (uint8_t)(1u << (bit % 8));
			int r = sl_record_decode(buf, sizeof(buf), &b);
			assert_true(r == -EBADMSG || (r == -EPROTONOSUPPORT && bit < 8));
			buf[bit / 8] ^= (uint8_t)(1u << (bit % 8));
		}
		assert_int_equal(sl_record_decode(buf, sizeof(buf), &b), 0);
	}
}

static void test_lengths(void **s)
{
	(void)s;
	struct sl_record a = random_record(), b;
	uint8_t buf[SL_RECORD_SIZE * 2] = {0};
	sl_record_encode(&a, buf);
	for (size_t n = 0; n <= sizeof(buf); n++)
		assert_int_equal(sl_record_decode(buf, n, &b), n == SL_RECORD_SIZE ? 0 : -EBADMSG);
	/* A newer format is recognised whatever its size is. */
	for (unsigned f = SL_RECORD_FORMAT + 1; f < 256; f++) {
		buf[0] = (uint8_t)f;
		for (size_t n = 1; n <= sizeof(buf); n++)
			assert_int_equal(sl_record_decode(buf, n, &b), -EPROTONOSUPPORT);
	}
	buf[0] = 0;
	assert_int_equal(sl_record_decode(buf, SL_RECORD_SIZE, &b), -EBADMSG);
}

/* What other code wrote with a right checksum and wrong fields. */
static void test_bad_fields(void **s)
{
	(void)s;
	struct sl_record a = {.mode = S_IFREG | 0644}, b;
	uint8_t buf[SL_RECORD_SIZE];
	a.state = (enum sl_state)3;
	sl_record_encode(&a, buf);
	assert_int_equal(sl_record_decode(buf, sizeof(buf), &b), -EBADMSG);
	a = (struct sl_record){.mode = S_IFREG | 0644, .origin.mtime.tv_nsec = 1000000000};
	sl_record_encode(&a, buf);
	assert_int_equal(sl_record_decode(buf, sizeof(buf), &b), -EBADMSG);
	a = (struct sl_record){.mode = S_IFREG | 0644, .origin.ctime.tv_nsec = -1};
	sl_record_encode(&a, buf);
	assert_int_equal(sl_record_decode(buf, sizeof(buf), &b), -EBADMSG);
}

/* The bytes on disk, once and for all: who changes them raises the format. */
static void test_layout(void **s)
{
	(void)s;
	const struct sl_record r = {.state = SL_PARTIAL,
				    .flags = SL_PINNED | SL_MOVED,
				    .chunk_shift = 16,
				    .mode = S_IFREG | 0644,
				    .nlink = 2,
				    .origin = {.ino = 0x1122334455667788, .generation = 0xa1b2c3d4, .size = 0x99, .mtime = {-1, 5}, .ctime = {7, 9}}};
	static const uint8_t want[56] = {1,    1,    0x01, 0x01, 2,    0,    0,	   0,	 0x88, 0x77, 0x66, 0x55, 0x44, 0x33,
					 0x22, 0x11, 0x99, 0,	 0,    0,    0,	   0,	 0,    0,    0xff, 0xff, 0xff, 0xff,
					 0xff, 0xff, 0xff, 0xff, 7,    0,    0,	   0,	 0,    0,    0,	   0,	 5,    0,
					 0,    0,    9,	   0,	 0,    0,    0xd4, 0xc3, 0xb2, 0xa1, 16,   0,	 0xa4, 0x81};
	uint8_t buf[SL_RECORD_SIZE];
	sl_record_encode(&r, buf);
	assert_memory_equal(buf, want, sizeof(want));
}

static void test_state_names(void **s)
{
	(void)s;
	assert_string_equal(sl_state_name(SL_COLD, S_IFREG), "cold");
	assert_string_equal(sl_state_name(SL_PARTIAL, S_IFREG), "partial");
	assert_string_equal(sl_state_name(SL_FULL, S_IFREG), "full");
	assert_string_equal(sl_state_name(SL_COLD, S_IFDIR), "unpopulated");
	assert_string_equal(sl_state_name(SL_FULL, S_IFDIR), "populated");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_round_trip), cmocka_unit_test(test_every_bit), cmocka_unit_test(test_lengths),
		cmocka_unit_test(test_bad_fields), cmocka_unit_test(test_layout),    cmocka_unit_test(test_state_names),
	};
	return cmocka_run_group_tests_name("record", tests, NULL, NULL);
}
