/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Logging. One line per message to standard error; with the "<N>" priority prefix that the journal
 * understands when standard error is connected to the journal (JOURNAL_STREAM), with a time stamp otherwise.
 * Any thread may call.
 */
#pragma once

#include <stdbool.h>

#include "base/macros.h"

enum sl_log_level { SL_LOG_ERR = 3, SL_LOG_WARN = 4, SL_LOG_NOTICE = 5, SL_LOG_INFO = 6, SL_LOG_DEBUG = 7 };

/** Messages above @level are dropped. The default is SL_LOG_INFO, or SL_LOG_DEBUG with SLUICE_DEBUG=1. */
void sl_log_set_level(enum sl_log_level level);
/** @plain: neither priority nor time stamp, for a command on a terminal. */
void sl_log_set_plain(bool plain);
void sl_log(enum sl_log_level level, const char *fmt, ...) SL_PRINTF(2, 3);

#define sl_err(...)    sl_log(SL_LOG_ERR, __VA_ARGS__)
#define sl_warn(...)   sl_log(SL_LOG_WARN, __VA_ARGS__)
#define sl_notice(...) sl_log(SL_LOG_NOTICE, __VA_ARGS__)
#define sl_info(...)   sl_log(SL_LOG_INFO, __VA_ARGS__)
#define sl_debug(...)  sl_log(SL_LOG_DEBUG, __VA_ARGS__)
