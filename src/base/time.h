/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Times as 64-bit nanoseconds, for deadlines and intervals. */
#pragma once

#include <stdint.h>
#include <time.h>

#define SL_NS_PER_SEC 1000000000ull
#define SL_NS_PER_MS  1000000ull

/** Now on the monotonic clock, in ns. */
static inline uint64_t sl_now(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * SL_NS_PER_SEC + (uint64_t)ts.tv_nsec;
}

static inline struct timespec sl_ns_to_timespec(uint64_t ns)
{
	return (struct timespec){.tv_sec = (time_t)(ns / SL_NS_PER_SEC),
				 .tv_nsec = (long)(ns % SL_NS_PER_SEC)};
}
