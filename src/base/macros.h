/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Small helpers that every file may use: cleanup attributes, container_of, min/max.
 *
 * A variable with a cleanup attribute owns what it holds; sl_steal_ptr() and sl_steal_fd() hand it on.
 */
#pragma once

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "sluice streams are little-endian and carry native structures: big-endian hosts are not supported"
#endif

#define SL_ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define SL_MIN(a, b)                                                                                         \
	({                                                                                                   \
		__typeof__(a) a_ = (a);                                                                      \
		__typeof__(b) b_ = (b);                                                                      \
		a_ < b_ ? a_ : b_;                                                                           \
	})
#define SL_MAX(a, b)                                                                                         \
	({                                                                                                   \
		__typeof__(a) a_ = (a);                                                                      \
		__typeof__(b) b_ = (b);                                                                      \
		a_ > b_ ? a_ : b_;                                                                           \
	})
#define SL_ALIGN_UP(x, a)	    (((x) + ((a)-1)) & ~((__typeof__(x))(a)-1))
#define SL_ALIGN_DOWN(x, a)	    ((x) & ~((__typeof__(x))(a)-1))
#define SL_DIV_UP(x, d)		    (((x) + (d)-1) / (d))
#define sl_container_of(p, type, m) ((type *)((char *)(p)-offsetof(type, m)))
#define SL_PRINTF(f, a)		    __attribute__((format(printf, f, a)))

static inline void sl_freep(void *p)
{
	free(*(void **)p);
}

static inline void sl_closep(int *fd)
{
	if (*fd >= 0) {
		int saved = errno;
		close(*fd);
		errno = saved;
	}
}

#define _cleanup_(f)	__attribute__((cleanup(f)))
#define _cleanup_free_	_cleanup_(sl_freep)
#define _cleanup_close_ _cleanup_(sl_closep)

#define sl_steal_ptr(pp)                                                                                     \
	({                                                                                                   \
		__typeof__(*(pp)) p_ = *(pp);                                                                \
		*(pp) = NULL;                                                                                \
		p_;                                                                                          \
	})

static inline int sl_steal_fd(int *fd)
{
	int r = *fd;
	*fd = -EBADF;
	return r;
}
