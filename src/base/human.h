/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Sizes and durations as people write and read them. */
#pragma once

#include <stdint.h>
#include <stddef.h>

/** "4096", "4k", "1.5M", "10G", "2TiB": units of 1024. Returns 0, -EINVAL or -ERANGE. */
int sl_parse_size(const char *s, uint64_t *ret);
/** "90", "90s", "15m", "12h", "7d", "2w" to seconds. */
int sl_parse_duration(const char *s, uint64_t *ret_s);
/** "512 B", "4.0 KiB", "1.2 GiB". Returns @buf. */
char *sl_format_size(char buf[16], uint64_t bytes);
/** "12 ms", "3.4 s", "5 min", "2.1 h". Returns @buf. */
char *sl_format_ns(char buf[16], uint64_t ns);
/** @s with everything a terminal could act on, and invalid UTF-8, written as \xNN. The caller frees it; NULL
 * without memory. */
char *sl_printable(const char *s, size_t len);
/** Undo sl_printable(). The caller frees it. */
char *sl_unprintable(const char *s);
