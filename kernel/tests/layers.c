// SPDX-License-Identifier: GPL-2.0-only
// If this fails, a directory that is not filled is seen as an empty one by overlayfs, which has it in a layer
// and comes without a path. Either it is refused, or the directory is filled.

#include "ways.h"

static struct fs fs;
static struct service s;

// An overlay at /dev/shm/NAME-m; what is not given is a directory of its own in memory.
static const char *overlay(const char *name, const char *lower, const char *upper, const char *work)
{
	static char at[3][64], own[3][64], opt[512];
	static int n;
	const char *dirs[3] = {lower, upper, work};
	snprintf(at[n], sizeof(at[n]), "/dev/shm/%s-m", name);
	mkdir(at[n], 0755);
	for (int i = 0; i < 3; i++) {
		snprintf(own[i], sizeof(own[i]), "/dev/shm/%s-%d", name, i);
		if (!dirs[i]) {
			mkdir(own[i], 0755);
			dirs[i] = own[i];
		}
	}
	snprintf(opt, sizeof(opt), "lowerdir=%s,upperdir=%s,workdir=%s", dirs[0], dirs[1], dirs[2]);
	if (mount("o", at[n], "overlay", 0, opt) < 0)
		bail("overlay %s", opt);
	return at[n++];
}

static void complete(const char *dir)
{
	if (fan_mark(s.group, FAN_MARK_ADD | FAN_MARK_IGNORE_SURV, FAN_PRE_DIR_ACCESS, fs.work, dir) < 0)
		bail("mark of %s", dir);
}

int main(void)
{
	char upper[80], work[80], low[80];
	ways_init();
	fs_new(&fs);
	snprintf(low, sizeof(low), "%s/low", fs.top);
	snprintf(upper, sizeof(upper), "%s/up", fs.top);
	snprintf(work, sizeof(work), "%s/work", fs.top);
	if (mkdirat(fs.work, "low", 0755) < 0 || mkdirat(fs.work, "up", 0755) < 0 ||
	    mkdirat(fs.work, "work", 0755) < 0)
		bail("directories");
	close(openat(fs.work, "low/other", O_WRONLY | O_CREAT, 0644));
	close(openat(fs.work, "up/other", O_WRONLY | O_CREAT, 0644));
	pathless_dirs(&fs, "low/", "l-");
	pathless_dirs(&fs, "low/", "m-");
	pathless_dirs(&fs, "up/", "u-");
	// Merged directories: those of the lower layer are cold.
	mkdir("/dev/shm/lay-b-1", 0755);
	for (const struct way *w = ways_pathless; w->fn; w++) {
		char p[128];
		snprintf(p, sizeof(p), "/dev/shm/lay-b-1/m-%s", w->id);
		mkdir(p, 0755);
	}
	const char *lower_m = overlay("lay-a", low, NULL, NULL), *both_m = overlay("lay-b", low, NULL, NULL),
		   *upper_m = overlay("lay-c", NULL, upper, work);

	service_open(&s, &fs, 0, O_RDONLY, FAN_PRE_DIR_ACCESS);
	const char *const filled[] = {".", "low", "up", "work", "work/work"};
	for (size_t i = 0; i < sizeof(filled) / sizeof(filled[0]); i++)
		complete(filled[i]);
	service_run(&s);

	pathless(&s, "overlayfs: it is in the lower layer", lower_m, low, "l-");
	pathless(&s, "overlayfs: it is in the lower layer, and also in the upper one", both_m, low, "m-");
	pathless(&s, "overlayfs: it is in the upper layer", upper_m, upper, "u-");

	service_stop(&s);
	umount2(lower_m, MNT_DETACH);
	umount2(both_m, MNT_DETACH);
	umount2(upper_m, MNT_DETACH);
	fs_end(&fs);
	return done();
}
