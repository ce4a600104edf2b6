/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The parser of fanotify's events against arbitrary bytes: nothing is read outside of them, names are strings
 * inside them, and each change has the form that notify/backend.h promises.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "base/macros.h"
#include "fuzz.h"
#include "notify/internal.h"

#define must(x)                                                                                              \
	do {                                                                                                 \
		if (!(x))                                                                                    \
			abort();                                                                             \
	} while (0)

static bool known(const struct sl_evid *id)
{
	return id->generation || id->ino;
}

static void check_name(const char *name, const char *buf, size_t n)
{
	must(name >= buf && name < buf + n && memchr(name, '\0', (size_t)(buf + n - name)));
}

static void check(const struct sl_change *c, const char *buf, size_t n)
{
	must(c->when == 7);
	must(!(c->mask & ~(uint64_t)(SL_CHANGE_MASK | SL_CHANGE_USE | FAN_ONDIR | FAN_Q_OVERFLOW)));
	if (c->mask & FAN_Q_OVERFLOW) {
		must(c->mask == FAN_Q_OVERFLOW && !c->name && !known(&c->dir) && !known(&c->child));
		return;
	}
	if (c->name)
		check_name(c->name, buf, n);
	if (c->mask & FAN_RENAME) {
		must(c->name && c->newname);
		check_name(c->newname, buf, n);
	}
	if (c->mask & (FAN_CREATE | FAN_DELETE | FAN_MOVED_FROM | FAN_MOVED_TO))
		must(c->name);
	if (!c->name)
		must(known(&c->child) && (!known(&c->dir) || c->dir.generation == c->child.generation));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *p = malloc(size ? size : 1); /* of just its size, for ASan */
	must(p);
	memcpy(p, data, size);
	struct sl_changes out = {0};
	const struct sl_evid root = {.generation = 0x1234567890abcdef, .ino = 2};
	sl_fanotify_parse(&root, p, size, 7, &out);
	must(!out.lost);
	for (size_t i = 0; i < out.n; i++)
		check(&out.v[i], p, size);
	/* What settling counts is what is there. */
	must(sl_fanotify_source.units(p, size) <= size);
	free(out.v);
	free(p);
	return 0;
}

static size_t put_fid(uint8_t *p, uint8_t type, size_t handle, const char *name)
{
	const size_t head = offsetof(struct fanotify_event_info_fid, handle);
	struct file_handle h = {.handle_bytes = (unsigned)handle, .handle_type = 1};
	size_t n = head + sizeof(h) + handle;
	memset(p, type, n);
	memcpy(p + head, &h, sizeof(h));
	if (name) {
		memcpy(p + n, name, strlen(name) + 1);
		n += strlen(name) + 1;
	}
	while (n % 4)
		p[n++] = 0;
	struct fanotify_event_info_header ih = {.info_type = type, .len = (uint16_t)n};
	memcpy(p, &ih, sizeof(ih));
	return n;
}

static size_t put_event(uint8_t *p, size_t i)
{
	static const struct {
		uint64_t mask;
		uint8_t dir, newdir, child;
		const char *name;
	} kinds[] = {{FAN_CREATE, 2, 0, 1, "name"},
		     {FAN_DELETE | FAN_ONDIR, 2, 0, 1, "d"},
		     {FAN_RENAME, 10, 12, 1, "a longer name"},
		     {FAN_ATTRIB | FAN_ONDIR, 2, 0, 0, "."},
		     {FAN_ATTRIB, 0, 0, 1, NULL},
		     {FAN_MODIFY, 2, 0, 1, "/"},
		     {FAN_CREATE | FAN_MODIFY | FAN_CLOSE_WRITE, 2, 0, 1, "x"},
		     {FAN_RENAME, 10, 0, 1, "gone"},
		     {FAN_Q_OVERFLOW, 0, 0, 0, NULL}};
	i %= SL_ARRAY_SIZE(kinds);
	struct fanotify_event_metadata m = {.vers = FANOTIFY_METADATA_VERSION,
					    .metadata_len = sizeof(m),
					    .mask = kinds[i].mask,
					    .fd = FAN_NOFD,
					    .pid = 17};
	size_t n = sizeof(m), handle = i % 2 ? 8 : 20;
	if (kinds[i].dir)
		n += put_fid(p + n, kinds[i].dir, handle, kinds[i].name);
	if (kinds[i].newdir)
		n += put_fid(p + n, kinds[i].newdir, handle, "new");
	if (kinds[i].child)
		n += put_fid(p + n, kinds[i].child, handle, NULL);
	m.event_len = (uint32_t)n;
	memcpy(p, &m, sizeof(m));
	return n;
}

size_t sl_fuzz_seed(size_t i, uint8_t *buf, size_t cap)
{
	size_t n = 0;
	if (i >= 18 || cap < 4096)
		return 0;
	for (size_t k = 0; k <= (i < 9 ? 0 : i); k++)
		n += put_event(buf + n, i + k);
	return n;
}
