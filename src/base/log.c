/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

/* The only process-wide state: where and how much this process logs. */
static atomic_int log_level = -1;
static atomic_bool log_plain;

void sl_log_set_level(enum sl_log_level level)
{
	log_level = (int)level;
}

void sl_log_set_plain(bool plain)
{
	log_plain = plain;
}

static int level_now(void)
{
	int l = log_level;
	if (l < 0) {
		const char *d = getenv("SLUICE_DEBUG");
		log_level = l = d && *d && *d != '0' ? SL_LOG_DEBUG : SL_LOG_INFO;
	}
	return l;
}

void sl_log(enum sl_log_level level, const char *fmt, ...)
{
	if ((int)level > level_now())
		return;

	char line[2048];
	size_t n = 0;
	if (log_plain) {
		n = 0;
	} else if (getenv("JOURNAL_STREAM")) {
		n = (size_t)snprintf(line, sizeof(line), "<%d>", (int)level);
	} else {
		struct timespec ts;
		struct tm tm;
		clock_gettime(CLOCK_REALTIME, &ts);
		gmtime_r(&ts.tv_sec, &tm);
		n = strftime(line, sizeof(line), "%Y-%m-%dT%H:%M:%S", &tm);
		n += (size_t)snprintf(line + n, sizeof(line) - n, ".%03ldZ %s ", ts.tv_nsec / 1000000,
				      level <= SL_LOG_ERR      ? "error:"
				      : level == SL_LOG_WARN   ? "warning:"
				      : level == SL_LOG_NOTICE ? "notice:"
				      : level == SL_LOG_INFO   ? "info:"
							       : "debug:");
	}
	va_list ap;
	va_start(ap, fmt);
	int m = vsnprintf(line + n, sizeof(line) - n - 1, fmt, ap);
	va_end(ap);
	if (m > 0)
		n = SL_MIN(n + (size_t)m, sizeof(line) - 2);
	/* A message is one line, whatever a name in it contains. */
	for (size_t i = 0; i < n; i++)
		if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f)
			line[i] = '?';
	line[n++] = '\n';
	ssize_t w = write(STDERR_FILENO, line, n);
	(void)w;
}
