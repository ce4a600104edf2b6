/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What each fuzzer defines, and driver.c or libFuzzer calls. With clang:
 *   clang -fsanitize=fuzzer,address,undefined -Isrc -D_GNU_SOURCE tests/fuzz/fuzz_msg.c src/wire/msg.c
 * src/wire/ops.c src/base/fd.c
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

/** Run one input; abort on a broken invariant. Returns 0. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
/** Write the @i-th valid input into @buf of @cap bytes. Returns its length, or 0 when there are no more. */
size_t sl_fuzz_seed(size_t i, uint8_t *buf, size_t cap);
