/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/human.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include <stdbool.h>

#include "base/macros.h"

static int parse_number(const char *s, double *v, const char **end)
{
	/* Digits and one point: strtod() alone would take "0x10", "1e3" and "nan" as well. */
	size_t n = strspn(s, "0123456789.");
	char num[40], *e;
	if (n == 0 || n >= sizeof(num))
		return -EINVAL;
	memcpy(num, s, n);
	num[n] = '\0';
	*v = strtod(num, &e);
	if (e == num || *e)
		return -EINVAL;
	e = (char *)s + n;
	while (*e == ' ')
		e++;
	*end = e;
	return 0;
}

int sl_parse_size(const char *s, uint64_t *ret)
{
	double v;
	const char *u;
	int r = parse_number(s, &v, &u);
	if (r < 0)
		return r;
	const char units[] = "BKMGTPE";
	int p = 0;
	if (*u) {
		const char *f = strchr(units, toupper((unsigned char)*u));
		if (!f)
			return -EINVAL;
		p = (int)(f - units);
		u++;
		if (p > 0 && (*u == 'i' || *u == 'I'))
			u++;
		if (p > 0 && (*u == 'b' || *u == 'B'))
			u++;
		if (*u)
			return -EINVAL;
	}
	v = ldexp(v, 10 * p);
	if (v >= 0x1p63)
		return -ERANGE;
	*ret = (uint64_t)v;
	return 0;
}

int sl_parse_duration(const char *s, uint64_t *ret_s)
{
	static const struct {
		const char *u;
		double f;
	} units[] = {{"", 1},	  {"s", 1},	{"sec", 1},    {"m", 60},      {"min", 60},
		     {"h", 3600}, {"d", 86400}, {"w", 604800}, {"y", 31557600}};
	double v;
	const char *u;
	int r = parse_number(s, &v, &u);
	if (r < 0)
		return r;
	for (size_t i = 0; i < SL_ARRAY_SIZE(units); i++)
		if (!strcasecmp(u, units[i].u)) {
			v *= units[i].f;
			if (v >= 0x1p53)
				return -ERANGE;
			*ret_s = (uint64_t)v;
			return 0;
		}
	return -EINVAL;
}

char *sl_format_size(char buf[16], uint64_t bytes)
{
	static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
	double v = (double)bytes;
	size_t u = 0;
	while (v >= 1024 && u + 1 < SL_ARRAY_SIZE(units)) {
		v /= 1024;
		u++;
	}
	snprintf(buf, 16, u && v < 100 ? "%.1f %s" : "%.0f %s", v, units[u]);
	return buf;
}

char *sl_format_ns(char buf[16], uint64_t ns)
{
	double s = (double)ns / 1e9;
	if (ns == 0)
		strcpy(buf, "0 s");
	else if (s < 1e-3)
		snprintf(buf, 16, "%.0f us", s * 1e6);
	else if (s < 1)
		snprintf(buf, 16, "%.0f ms", s * 1e3);
	else if (s < 120)
		snprintf(buf, 16, "%.1f s", s);
	else if (s < 7200)
		snprintf(buf, 16, "%.0f min", s / 60);
	else
		snprintf(buf, 16, "%.1f h", s / 3600);
	return buf;
}

/* Length of the valid UTF-8 sequence at @s (at most @n bytes), 0 if there is none. */
static size_t utf8_len(const unsigned char *s, size_t n)
{
	size_t l = s[0] < 0x80			 ? 1
		   : s[0] >= 0xc2 && s[0] < 0xe0 ? 2
		   : (s[0] & 0xf0) == 0xe0	 ? 3
		   : s[0] >= 0xf0 && s[0] < 0xf5 ? 4
						 : 0;
	if (l == 0 || l > n)
		return 0;
	for (size_t i = 1; i < l; i++)
		if ((s[i] & 0xc0) != 0x80)
			return 0;
	if ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] >= 0xa0) ||
	    (s[0] == 0xf0 && s[1] < 0x90) || (s[0] == 0xf4 && s[1] >= 0x90))
		return 0;
	return l;
}

char *sl_printable(const char *s, size_t len)
{
	char *out = malloc(len * 4 + 1), *o = out;
	if (!out)
		return NULL;
	const unsigned char *u = (const unsigned char *)s;
	for (size_t i = 0; i < len;) {
		size_t l = utf8_len(u + i, len - i);
		bool control = l == 1 && (u[i] < 0x20 || u[i] == 0x7f || u[i] == '\\');
		bool c1 = l == 2 && u[i] == 0xc2 && u[i + 1] < 0xa0;
		if (l == 0 || control || c1) {
			l = l ? l : 1;
			for (size_t k = 0; k < l; k++)
				o += sprintf(o, "\\x%02x", u[i + k]);
		} else {
			memcpy(o, s + i, l);
			o += l;
		}
		i += l;
	}
	*o = '\0';
	return out;
}

char *sl_unprintable(const char *s)
{
	char *out = malloc(strlen(s) + 1), *o = out;
	unsigned v;
	if (!out)
		return NULL;
	while (*s) {
		if (s[0] == '\\' && s[1] == 'x' && isxdigit((unsigned char)s[2]) &&
		    isxdigit((unsigned char)s[3]) && sscanf(s + 2, "%2x", &v) == 1 && v) {
			*o++ = (char)v;
			s += 4;
		} else {
			*o++ = *s++;
		}
	}
	*o = '\0';
	return out;
}
