/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Our declaration of the protocol against the system's. If this fails, we and the kernel mean different
 * bytes. The list of what both know is made from the two headers at build time (tests/tools/proto_names.py).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "wire/ops.h"
#include "proto_check.h"

static const struct proto_fact ours[] = {
#include "proto_names.h"
};

static void test_same_as_system(void **state)
{
	(void)state;
	size_t n = sizeof(ours) / sizeof(ours[0]), bad = 0;
	assert_int_equal(n, proto_system_count);
	assert_true(n > 300); /* the list was really made */
	for (size_t i = 0; i < n; i++) {
		assert_string_equal(ours[i].name, proto_system[i].name);
		if (ours[i].a == proto_system[i].a && ours[i].b == proto_system[i].b)
			continue;
		bad++;
		print_error("%s: ours %llu/%llu, the system's %llu/%llu\n", ours[i].name,
			    (unsigned long long)ours[i].a, (unsigned long long)ours[i].b,
			    (unsigned long long)proto_system[i].a, (unsigned long long)proto_system[i].b);
	}
	assert_int_equal(bad, 0);
}

/* Structures that the system's header is too old for: their sizes as the protocol's definition has them. */
static void test_newer_than_system(void **state)
{
	(void)state;
	assert_int_equal(sizeof(struct fuse_sx_time), 16);
	assert_int_equal(sizeof(struct fuse_statx), 256);
	assert_int_equal(offsetof(struct fuse_statx, rdev_major), 128);
	assert_int_equal(sizeof(struct fuse_statx_in), 24);
	assert_int_equal(sizeof(struct fuse_statx_out), 288);
	assert_int_equal(sizeof(struct fuse_init_out), 64);
	assert_int_equal(offsetof(struct fuse_init_out, max_stack_depth), 36);
	assert_int_equal(offsetof(struct fuse_init_out, request_timeout), 40);
	assert_int_equal(offsetof(struct fuse_open_out, backing_id), 12);
	assert_int_equal(sizeof(struct fuse_backing_map), 16);
	assert_int_equal(FUSE_TMPFILE, 51);
	assert_int_equal(FUSE_STATX, 52);
	assert_true(FUSE_PASSTHROUGH == 1ull << 37);
	assert_true(FUSE_HAS_RESEND == 1ull << 39);
}

/* On a stream there is no room for padding that a compiler puts in. */
static void test_table_is_complete(void **state)
{
	(void)state;
	for (uint32_t op = 0; op < SL_FUSE_OP_MAX; op++) {
		const struct sl_op *o = sl_op_get(op);
		if (!o)
			continue;
		assert_int_equal(o->in_size % 8, 0);
		assert_int_equal(o->out_size % 8, 0);
		assert_true(o->in_min <= o->in_size);
		assert_true(o->out_min <= o->out_size);
		assert_true(!o->no_reply || (!o->out_size && !o->out_tail));
	}
	assert_null(sl_op_get(SL_FUSE_OP_MAX));
	assert_null(sl_op_get(UINT32_MAX));
	assert_null(sl_op_get(0));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_same_as_system),
	    cmocka_unit_test(test_newer_than_system),
	    cmocka_unit_test(test_table_is_complete),
	};
	return cmocka_run_group_tests_name("proto", tests, NULL, NULL);
}
