/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Bodies of FUSE_NOTIFY_FSNOTIFY: what is taken points into the message, and is the same when it is built again. */
#include <stdlib.h>
#include <string.h>
#include <sys/fanotify.h>
#include <sys/stat.h>

#include "base/fd.h"
#include "fuzz.h"
#include "wire/fsnotify.h"

#define must(x)                                                                                              \
	do {                                                                                                 \
		if (!(x))                                                                                    \
			abort();                                                                             \
	} while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct sl_fsnotify_msg m;
	if (sl_fsnotify_parse(data, size, &m) < 0)
		return 0;
	must(m.nparts == 1 || m.nparts == 2);
	must(size <= SL_FSNOTIFY_MAX && sl_fsnotify_size(&m) == size);
	for (unsigned i = 0; i < m.nparts; i++)
		must(!m.part[i].namelen || sl_name_valid(m.part[i].name, m.part[i].namelen));
	uint8_t *again = malloc(size);
	must(again);
	sl_fsnotify_build(&m, again);
	must(!memcmp(again, data, size));
	free(again);
	return 0;
}

size_t sl_fuzz_seed(size_t i, uint8_t *buf, size_t cap)
{
	static const struct sl_fsnotify_msg seeds[] = {
		{.seq = 1, .mask = FAN_CREATE, .nparts = 1, .part = {{.nodeid = 1, .name = "a", .namelen = 1}}},
		{.seq = 2,
		 .mask = FAN_MODIFY,
		 .nparts = 1,
		 .part = {{.nodeid = 1,
			   .name = "l",
			   .namelen = 1,
			   .has_state = true,
			   .entry = {.nodeid = 3, .attr = {.mode = S_IFLNK}},
			   .target = "to",
			   .target_len = 2}}},
		{.seq = 3,
		 .mask = 0x10000000, /* FAN_RENAME */
		 .nparts = 2,
		 .part = {{.nodeid = 1, .name = "a", .namelen = 1, .has_state = true},
			  {.nodeid = 2, .name = "b", .namelen = 1, .has_state = true, .entry = {.nodeid = 3}}}},
		{.seq = 4, .overflow = true, .nparts = 1},
		{.seq = 5, .ignored = true, .nparts = 1, .part = {{.nodeid = 3}}},
	};
	if (i >= sizeof(seeds) / sizeof(*seeds) || sl_fsnotify_size(&seeds[i]) > cap)
		return 0;
	sl_fsnotify_build(&seeds[i], buf);
	return sl_fsnotify_size(&seeds[i]);
}
