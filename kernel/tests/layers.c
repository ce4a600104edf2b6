// SPDX-License-Identifier: GPL-2.0-only
// If this fails, a directory that is not filled is seen as an empty one by overlayfs, which has it in a layer
// and comes without a path. Either it is refused, or the directory is filled.

#include "ways.h"

static struct fs fs;
static struct service s;

// An overlay at /dev/shm/NAME-m; what is not given is a directory of its own in memory.
static const char *overlay(const char *name, const char *lower, const char *upper, const char *work)
{
	static char at[8][64], own[3][64], opt[512];
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

// Where the cold directories are, and by what they are looked at.
struct place {
	const char *group, *below, *prefix; // prefix: a letter, and the mode's
	const char *at;
};
static struct place places[] = {
    {"overlayfs: it is in the lower layer", "low/", "l", NULL},
    {"overlayfs: it is in the lower layer, and also in the upper one", "low/", "m", NULL},
    {"overlayfs: it is in the upper layer", "up/", "u", NULL},
    {"overlayfs: it is in the lower layer, the upper one is on the same filesystem", "low/", "s", NULL},
};
#define N_PLACES (sizeof(places) / sizeof(places[0]))
#define MODES	 (sizeof(pathless_modes) / sizeof(pathless_modes[0]))

static const char *prefix(const struct place *p, const struct pathless_mode *m)
{
	static char b[16];
	snprintf(b, sizeof(b), "%s%s-", p->prefix, m->prefix);
	return b;
}

// A data-only layer: the file "data-P" of the metadata layer has its content from the file "f" of a cold
// directory.
static const char *data_layer(const char *low)
{
	static const char at[] = "/dev/shm/lay-data", meta[] = "/dev/shm/lay-meta";
	char opt[256];
	mkdir(at, 0755);
	mkdir(meta, 0755);
	for (size_t m = 0; m < MODES; m++) {
		const char *which = pathless_modes[m].prefix;
		char p[128];
		snprintf(p, sizeof(p), "low/data-%s", which);
		cold(&fs, p);
		snprintf(p, sizeof(p), "%s/data-%s", meta, which);
		int fd = open(p, O_WRONLY | O_CREAT, 0644);
		snprintf(p, sizeof(p), "/data-%s/f", which);
		if (fd < 0 || ftruncate(fd, 8) < 0 ||
		    fsetxattr(fd, "trusted.overlay.metacopy", "", 0, 0) < 0 ||
		    fsetxattr(fd, "trusted.overlay.redirect", p, strlen(p), 0) < 0)
			bail("data-%s", which);
		close(fd);
	}
	snprintf(opt, sizeof(opt), "metacopy=on,lowerdir=%s::%s", meta, low);
	if (mount("o", at, "overlay", 0, opt) < 0)
		bail("overlay %s", opt);
	return at;
}

static int reads_data(void *arg)
{
	int fd = open(arg, O_RDONLY);
	if (fd < 0)
		return errno == EPERM ? 2 : 1;
	return reads_content(fd);
}

int main(void)
{
	char upper[80], work[80], low[80], same[80], same_work[80];
	ways_init();
	fs_new(&fs);
	snprintf(low, sizeof(low), "%s/low", fs.top);
	snprintf(upper, sizeof(upper), "%s/up", fs.top);
	snprintf(work, sizeof(work), "%s/work", fs.top);
	snprintf(same, sizeof(same), "%s/same", fs.top);
	snprintf(same_work, sizeof(same_work), "%s/same-work", fs.top);
	static const char *const dirs[] = {"low", "up", "work", "same", "same-work"};
	for (size_t i = 0; i < sizeof(dirs) / sizeof(dirs[0]); i++)
		if (mkdirat(fs.work, dirs[i], 0755) < 0)
			bail("%s", dirs[i]);
	close(openat(fs.work, "low/other", O_WRONLY | O_CREAT, 0644));
	close(openat(fs.work, "up/other", O_WRONLY | O_CREAT, 0644));
	mkdir("/dev/shm/lay-b-1", 0755);
	for (size_t i = 0; i < N_PLACES; i++) {
		for (size_t m = 0; m < MODES; m++) {
			const char *pre = prefix(&places[i], &pathless_modes[m]);
			pathless_dirs(&fs, places[i].below, pre);
			// Merged directories: those of the lower layer are cold.
			for (const struct way *w = ways_pathless; i == 1 && w->fn; w++) {
				char p[128];
				snprintf(p, sizeof(p), "/dev/shm/lay-b-1/%s%s", pre, w->id);
				mkdir(p, 0755);
			}
		}
	}
	places[0].at = overlay("lay-a", low, NULL, NULL);
	places[1].at = overlay("lay-b", low, NULL, NULL);
	places[2].at = overlay("lay-c", NULL, upper, work);
	places[3].at = overlay("lay-d", low, same, same_work);
	const char *data = data_layer(low);

	for (size_t m = 0; m < MODES; m++) {
		const struct pathless_mode *mode = &pathless_modes[m];
		char p[128];
		service_open(&s, &fs, mode->flags, O_RDONLY, FAN_PRE_DIR_ACCESS);
		static const char *const filled[] = {".",	  "low",  "up",	       "work",
						     "work/work", "same", "same-work", "same-work/work"};
		for (size_t i = 0; i < sizeof(filled) / sizeof(filled[0]); i++)
			complete(filled[i]);
		service_run(&s);

		for (size_t i = 0; i < N_PLACES; i++) {
			struct pathless way = {
			    .group = places[i].group,
			    .when = mode->name,
			    .top = places[i].at,
			    .prefix = prefix(&places[i], mode),
			    // Directories that overlayfs makes itself have to be asked for as well.
			    .filler = m == 0 && i != 3 ? (i == 2 ? upper : low) : NULL,
			    .asks = mode->asks,
			};
			pathless(&s, &way);
		}

		snprintf(p, sizeof(p), "%s/data-%s", data, mode->prefix);
		int before = s.seen, res = in_time(reads_data, p);
		bool served = res == 0 && s.seen > before;
		ok(mode->asks == SERVED ? served : res == 2, "data-only layer, %s: %d", mode->name, res);
		row("overlayfs: it is in a data-only layer", "read", mode->name,
		    mode->asks == SERVED && served ? "filled first"
		    : res == 2			   ? "EPERM"
						   : "WRONG");
		service_stop(&s);
	}

	umount2(data, MNT_DETACH);
	for (size_t i = 0; i < N_PLACES; i++)
		umount2(places[i].at, MNT_DETACH);
	fs_end(&fs);
	return done();
}
