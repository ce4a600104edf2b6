/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A program and a library that know what they consist of: a table of 256 KiB that nothing touches before it
 * is looked at. Without an argument it says "right" or where it is wrong; with one it says that it runs, and
 * waits until its standard input ends.
 */
#include <stdint.h>
#include <stdio.h>
#include <unistd.h>

#define V(i)	(((uint32_t)(i) + 1) * 2654435761u ^ ((uint32_t)(i) >> 3) * 40503u)
#define V4(i)	V(i), V((i) + 1), V((i) + 2), V((i) + 3)
#define V16(i)	V4(i), V4((i) + 4), V4((i) + 8), V4((i) + 12)
#define V64(i)	V16(i), V16((i) + 16), V16((i) + 32), V16((i) + 48)
#define V256(i) V64(i), V64((i) + 64), V64((i) + 128), V64((i) + 192)
#define V1K(i)	V256(i), V256((i) + 256), V256((i) + 512), V256((i) + 768)
#define V4K(i)	V1K(i), V1K((i) + 1024), V1K((i) + 2048), V1K((i) + 3072)
#define V16K(i) V4K(i), V4K((i) + 4096), V4K((i) + 8192), V4K((i) + 12288)

#define COUNT 65536
static const uint32_t table[COUNT] = {V16K(0), V16K(16384), V16K(32768), V16K(49152)};

/* The first wrong word's number, or -1. */
__attribute__((visibility("default"))) int payload_wrong(void);
int payload_wrong(void)
{
	const volatile uint32_t *t = table;
	for (int i = 0; i < COUNT; i++)
		if (t[i] != V(i))
			return i;
	return -1;
}

int main(int argc, char **argv)
{
	(void)argv;
	if (argc > 1) {
		char c;
		if (write(STDOUT_FILENO, "running\n", 8) != 8)
			return 1;
		while (read(STDIN_FILENO, &c, 1) > 0)
			;
		return 0;
	}
	int at = payload_wrong();
	if (at < 0)
		printf("right\n");
	else
		printf("wrong from %d on\n", at * 4);
	return at < 0 ? 0 : 1;
}
