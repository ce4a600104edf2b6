// SPDX-License-Identifier: GPL-2.0-only
// If this fails, a directory that is not filled is an empty one for clients of the NFS server, versions 3 and
// 4. The server has a path for everything that it looks into, so the directory is filled first, whatever the
// group reports.

#include "nfs_serve.h"
#include "ways.h"

#define MODES (sizeof(pathless_modes) / sizeof(pathless_modes[0]))

int main(void)
{
	struct fs fs;
	struct service s;
	struct nfs_client clients[] = {{3, fs.top, "/dev/shm/nfs3"}, {4, fs.top, "/dev/shm/nfs4"}};
	static const char *const groups[] = {"NFS, version 3", "NFS, version 4.2"};
	ways_init();
	fs_new(&fs);
	for (size_t c = 0; c < 2; c++) {
		for (size_t m = 0; m < MODES; m++) {
			char prefix[16];
			snprintf(prefix, sizeof(prefix), "n%d%s-", clients[c].version,
				 pathless_modes[m].prefix);
			pathless_dirs(&fs, "", prefix);
		}
	}
	close(openat(fs.work, "other", O_WRONLY | O_CREAT, 0644));
	nfs_serve(fs.top);
	for (size_t c = 0; c < 2; c++)
		if (in_time(nfs_mount, &clients[c]) != 0)
			bail("the client of version %d does not mount", clients[c].version);

	for (size_t m = 0; m < MODES; m++) {
		const struct pathless_mode *mode = &pathless_modes[m];
		service_open(&s, &fs, mode->flags, O_RDONLY, FAN_PRE_DIR_ACCESS);
		if (fan_mark(s.group, FAN_MARK_ADD | FAN_MARK_IGNORE_SURV, FAN_PRE_DIR_ACCESS, fs.work, ".") <
		    0)
			bail("mark of the top");
		service_run(&s);
		for (size_t c = 0; c < 2; c++) {
			char prefix[16];
			snprintf(prefix, sizeof(prefix), "n%d%s-", clients[c].version, mode->prefix);
			struct pathless way = {
			    .group = groups[c],
			    .when = mode->name,
			    .top = clients[c].at,
			    .prefix = prefix,
			    .filler = m == 0 ? fs.top : NULL,
			    .asks = SERVED,
			};
			pathless(&s, &way);
		}
		service_stop(&s);
	}

	for (size_t c = 0; c < 2; c++)
		umount2(clients[c].at, MNT_DETACH);
	nfs_end();
	fs_end(&fs);
	return done();
}
