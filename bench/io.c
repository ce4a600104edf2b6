/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One operation again and again: io random|sequential|open|same FILE COUNT. Prints "MEAN P50 P99" in
 * microseconds. random: 4 KiB anywhere; sequential: 1 MiB in order; open: open and close; same: the first 4
 * KiB, again and again.
 */
#include <err.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/time.h"

#define PAGE  4096
#define LARGE (1 << 20)

static int compare(const void *a, const void *b)
{
	const uint32_t *x = a, *y = b;
	return (*x > *y) - (*x < *y);
}

int main(int argc, char **argv)
{
	struct stat st;
	int fd = argc == 4 ? open(argv[2], O_RDONLY) : -1;
	if (fd < 0 || fstat(fd, &st) < 0)
		errx(2, "usage: io random|sequential|open|same FILE COUNT");
	size_t count = strtoul(argv[3], NULL, 10), unit = !strcmp(argv[1], "sequential") ? LARGE : PAGE;
	bool opens = !strcmp(argv[1], "open"), random_place = !strcmp(argv[1], "random"),
	     same = !strcmp(argv[1], "same");
	uint64_t units = (uint64_t)st.st_size / unit, seed = 1, sum = 0;
	uint32_t *v = calloc(count, sizeof(*v));
	char *buf = malloc(LARGE);
	if (!count || !v || !buf || (!opens && !units))
		errx(1, "nothing to measure");
	for (size_t i = 0; i < count; i++) {
		seed = seed * 6364136223846793005u + 1442695040888963407u;
		uint64_t at = same ? 0 : random_place ? (seed >> 33) % units : i % units;
		uint64_t t0 = sl_now();
		if (opens) {
			int f = open(argv[2], O_RDONLY);
			if (f < 0)
				err(1, "%s", argv[2]);
			close(f);
		} else if (pread(fd, buf, unit, (off_t)(at * unit)) != (ssize_t)unit) {
			err(1, "%s", argv[2]);
		}
		v[i] = (uint32_t)(sl_now() - t0);
		sum += v[i];
	}
	qsort(v, count, sizeof(*v), compare);
	printf("%.3f %.3f %.3f\n", (double)sum / (double)count / 1e3, v[count / 2] / 1e3,
	       v[count - 1 - count / 100] / 1e3);
	return 0;
}
