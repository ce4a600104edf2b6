/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The bodies of FUSE_NOTIFY_FSNOTIFY: what is built is what is parsed, and nothing that was cut, stretched or
 * made up is taken. If this fails a peer can make the other side read beyond a message, or believe nonsense.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <sys/fanotify.h>
#include <sys/stat.h>

#include "base/macros.h"
#include "wire/fsnotify.h"

#ifndef FAN_RENAME
#define FAN_RENAME 0x10000000
#endif

#define NAME(s)	  .name = s, .namelen = sizeof(s) - 1
#define TARGET(s) .target = s, .target_len = sizeof(s) - 1

/* One of each shape. */
static const struct sl_fsnotify_msg good[] = {
    {.seq = 1, .mask = FAN_CREATE, .nparts = 1, .part = {{.nodeid = 1, .generation = 2, .child = 3, NAME("a")}}},
    {.seq = 2,
     .mask = FAN_DELETE | FAN_ONDIR,
     .nparts = 1,
     .part = {{.nodeid = 1, NAME("name"), .has_state = true}}},
    {.seq = UINT64_MAX,
     .mask = FAN_MODIFY,
     .cookie = 7,
     .nparts = 1,
     .part = {{.nodeid = 9,
	       .child_generation = 8,
	       NAME("f"),
	       .has_state = true,
	       .entry = {.nodeid = 3, .generation = 4, .attr = {.ino = 5, .mode = S_IFREG | 0644}}}}},
    {.seq = 3,
     .mask = 0,
     .nparts = 1,
     .part = {{.nodeid = 9,
	       NAME("l"),
	       .has_state = true,
	       .entry = {.nodeid = 3, .attr = {.mode = S_IFLNK | 0777}},
	       TARGET("../to")}}},
    {.seq = 4,
     .mask = FAN_RENAME,
     .nparts = 2,
     .part = {{.nodeid = 1, NAME("old")}, {.nodeid = 2, NAME("new")}}},
    {.seq = 5,
     .mask = FAN_RENAME | FAN_ONDIR,
     .cookie = 1,
     .nparts = 2,
     .part = {{.nodeid = 1, NAME("old"), .has_state = true},
	      {.nodeid = 2,
	       NAME("new"),
	       .has_state = true,
	       .entry = {.nodeid = 7, .attr = {.mode = S_IFLNK}},
	       TARGET("x")}}},
    {.seq = 6, .overflow = true, .nparts = 1},
    {.seq = 7, .ignored = true, .nparts = 1, .part = {{.nodeid = 4, .generation = 5}}},
    {.seq = 8, .mask = FAN_ATTRIB | FAN_ONDIR, .nparts = 1, .part = {{.nodeid = 1}}},
};

static char *build(const struct sl_fsnotify_msg *m, size_t *n)
{
	*n = sl_fsnotify_size(m);
	char *buf = malloc(*n);
	assert_non_null(buf);
	sl_fsnotify_build(m, buf);
	return buf;
}

/* From memory of just that size, so that reading beyond it is found. */
static int parse(const char *buf, size_t n, struct sl_fsnotify_msg *m)
{
	char *copy = malloc(n ? n : 1);
	assert_non_null(copy);
	memcpy(copy, buf, n);
	int r = sl_fsnotify_parse(copy, n, m);
	if (r == 0) { /* all that it points to is in it */
		char *again = malloc(n);
		assert_int_equal(sl_fsnotify_size(m), n);
		sl_fsnotify_build(m, again);
		assert_memory_equal(again, copy, n);
		free(again);
	}
	free(copy);
	return r;
}

static void test_both_ways(void **state)
{
	(void)state;
	for (size_t i = 0; i < SL_ARRAY_SIZE(good); i++) {
		struct sl_fsnotify_msg m;
		size_t n;
		char *buf = build(&good[i], &n);
		assert_true(n <= SL_FSNOTIFY_MAX);
		assert_int_equal(sl_fsnotify_parse(buf, n, &m), 0);
		assert_int_equal(m.seq, good[i].seq);
		assert_int_equal(m.mask, good[i].mask);
		assert_int_equal(m.cookie, good[i].cookie);
		assert_int_equal(m.overflow, good[i].overflow);
		assert_int_equal(m.ignored, good[i].ignored);
		assert_int_equal(m.nparts, good[i].nparts);
		for (unsigned k = 0; k < m.nparts; k++) {
			const struct sl_fsnotify_part *a = &m.part[k], *b = &good[i].part[k];
			assert_int_equal(a->nodeid, b->nodeid);
			assert_int_equal(a->generation, b->generation);
			assert_int_equal(a->child, b->child);
			assert_int_equal(a->child_generation, b->child_generation);
			assert_int_equal(a->namelen, b->namelen);
			if (b->namelen)
				assert_memory_equal(a->name, b->name, b->namelen);
			assert_int_equal(a->has_state, b->has_state);
			assert_memory_equal(&a->entry, &b->entry, sizeof(a->entry));
			assert_int_equal(a->target_len, b->target_len);
			if (b->target_len)
				assert_memory_equal(a->target, b->target, b->target_len);
		}
		free(buf);
	}
}

static void test_cut(void **state)
{
	(void)state;
	for (size_t i = 0; i < SL_ARRAY_SIZE(good); i++) {
		struct sl_fsnotify_msg m;
		size_t n;
		char *buf = build(&good[i], &n);
		for (size_t k = 0; k < n; k++)
			assert_int_equal(parse(buf, k, &m), -EPROTO);
		char *more = calloc(1, n + 8);
		memcpy(more, buf, n);
		for (size_t k = 1; k <= 8; k++)
			assert_int_equal(parse(more, n + k, &m), -EPROTO);
		free(more);
		free(buf);
	}
}

/* Each byte, each value: taken only if it comes out the same again (parse() checks that). */
static void test_each_byte(void **state)
{
	(void)state;
	for (size_t i = 0; i < SL_ARRAY_SIZE(good); i++) {
		struct sl_fsnotify_msg m;
		size_t n;
		char *buf = build(&good[i], &n);
		for (size_t k = 0; k < n; k++) {
			char was = buf[k];
			for (int v = 0; v < 256; v++) {
				buf[k] = (char)v;
				int r = parse(buf, n, &m);
				assert_true(r == 0 || r == -EPROTO);
			}
			buf[k] = was;
		}
		free(buf);
	}
}

static void refused(struct sl_fsnotify_msg m)
{
	struct sl_fsnotify_msg out;
	size_t n;
	char *buf = build(&m, &n);
	assert_int_equal(parse(buf, n, &out), -EPROTO);
	free(buf);
}

static void test_nonsense(void **state)
{
	(void)state;
	static const char *const names[] = {".", "..", "a/b", "/", "a"};
	struct sl_fsnotify_msg m;
	for (size_t i = 0; i < SL_ARRAY_SIZE(names); i++) {
		m = good[0];
		m.part[0].name = names[i];
		m.part[0].namelen = (uint32_t)strlen(names[i]) + (i == SL_ARRAY_SIZE(names) - 1); /* its NUL */
		refused(m);
	}
	char longer[256];
	memset(longer, 'x', sizeof(longer));
	m = good[0];
	m.part[0].name = longer;
	m.part[0].namelen = sizeof(longer);
	refused(m);
	m = good[0];
	m.mask = 0; /* neither an event nor a state */
	refused(m);
	m = good[0];
	m.part[0].nodeid = 0;
	refused(m);
	m = good[4];
	m.nparts = 1; /* half a rename */
	refused(m);
	m = good[4];
	m.part[1].namelen = 0;
	refused(m);
	m = good[4];
	m.mask = FAN_CREATE; /* two structures that are none */
	refused(m);
	m = good[2];
	m.part[0].target = "to"; /* of a file */
	m.part[0].target_len = 2;
	refused(m);
	m = good[3];
	m.part[0].target_len = 0; /* a symlink to nothing */
	refused(m);
	m = good[3];
	m.part[0].target = "a\0b";
	m.part[0].target_len = 3;
	refused(m);
	m = good[6];
	m.mask = FAN_CREATE;
	refused(m);
	m = good[6];
	m.part[0].nodeid = 1;
	refused(m);
	m = good[7];
	m.overflow = true;
	refused(m);
	m = good[7];
	m.part[0].nodeid = 0;
	refused(m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(test_both_ways), cmocka_unit_test(test_cut),
					   cmocka_unit_test(test_each_byte), cmocka_unit_test(test_nonsense)};
	return cmocka_run_group_tests_name("fsnotify", tests, NULL, NULL);
}
