/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Addresses of machines: if this fails, a mistake in one is taken for another machine or port, or an exporter
 * lets in whom it should not.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "origin/dial.h"
#include "wire/vsock.h"

static const struct {
	const char *text;
	uint32_t value; /* where it is one */
	bool cid, port, listen;
} numbers[] = {
    {"0", 0, false, false, true},
    {"1", 1, true, true, true},
    {"2", 2, true, true, true},
    {"0005000", 5000, true, true, true},
    {"4294967294", UINT32_MAX - 1, true, true, true},
    {"4294967295", 0, false, false, false}, /* any */
    {"4294967296", 0, false, false, false},
    {"4294967298", 0, false, false, false}, /* 2, in 32 bits */
    {"18446744073709551618", 0, false, false, false}, /* 2, in 64 */
    {"", 0, false, false, false},
    {"-1", 0, false, false, false},
    {"+2", 0, false, false, false},
    {" 2", 0, false, false, false},
    {"2 ", 0, false, false, false},
    {"2/", 0, false, false, false},
    {"0x2", 0, false, false, false},
    {"2.0", 0, false, false, false},
    {"host", 0, false, false, false},
    {"\xff", 0, false, false, false},
};

static void test_numbers(void **state)
{
	(void)state;
	for (size_t i = 0; i < SL_ARRAY_SIZE(numbers); i++) {
		uint32_t v = 77;
		assert_int_equal(sl_vsock_parse_cid(numbers[i].text, &v), numbers[i].cid ? 0 : -EINVAL);
		assert_int_equal(v, numbers[i].cid ? numbers[i].value : 77);
		v = 77;
		assert_int_equal(sl_vsock_parse_port(numbers[i].text, &v), numbers[i].listen ? 0 : -EINVAL);
		assert_int_equal(v, numbers[i].listen ? numbers[i].value : 77);
	}
}

/* Every pair of them, as an origin. */
static void test_origins(void **state)
{
	(void)state;
	for (size_t i = 0; i < SL_ARRAY_SIZE(numbers); i++)
		for (size_t j = 0; j < SL_ARRAY_SIZE(numbers); j++) {
			char s[64];
			uint32_t cid, port;
			struct sl_dial *d = NULL;
			_cleanup_free_ char *why = NULL;
			bool good = numbers[i].cid && numbers[j].port;
			snprintf(s, sizeof(s), "vsock:%s:%s", numbers[i].text, numbers[j].text);
			assert_int_equal(sl_vsock_parse(s + 6, &cid, &port), good ? 0 : -EINVAL);
			assert_int_equal(sl_dial_parse(s, false, &d, &why), good ? 0 : -EINVAL);
			assert_int_equal(!!why, !good);
			if (good) {
				assert_int_equal(cid, numbers[i].value);
				assert_int_equal(port, numbers[j].value);
			}
			sl_dial_free(good ? d : NULL);
		}
	static const char *const bad[] = {"vsock:", "vsock:2", "vsock::5000", "vsock:2:5000:1", "vsock:2:5000/data", "vsock://2:5000"};
	for (size_t i = 0; i < SL_ARRAY_SIZE(bad); i++) {
		struct sl_dial *d;
		_cleanup_free_ char *why = NULL;
		assert_int_equal(sl_dial_parse(bad[i], true, &d, &why), -EINVAL);
		assert_non_null(strstr(why, "vsock:CID:PORT"));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_numbers),
	    cmocka_unit_test(test_origins),
	};
	return cmocka_run_group_tests_name("vsock", tests, NULL, NULL);
}
