// SPDX-License-Identifier: GPL-2.0-only
// If this fails, directories that are not filled are seen as empty ones on another filesystem than ext4,
// which has its own way to look names up, to list, or to make and remove them: btrfs and XFS, on which the
// event of files exists as well.

#include "ways.h"

static struct fs fs;
static struct service svc;

// What is about the way to a name, more than about paths, mounts and programs.
static const struct way *const lists_of_ways[] = {ways_names, ways_changes};

static void each(void (*fn)(const char *group, const struct way *w))
{
	for (size_t l = 0; l < sizeof(lists_of_ways) / sizeof(lists_of_ways[0]); l++)
		for (const struct way *w = lists_of_ways[l]; w->fn; w++)
			// Descriptors from before, and the device of a quota file, are ext4's test.
			if (!w->old_fd && strncmp(w->id, "quota", 5) != 0)
				fn("Other filesystems", w);
}

static void prepare(const char *group, const struct way *w)
{
	(void)group;
	cold(&fs, w->id);
}

static void try_way(const char *group, const struct way *w)
{
	char path[128];
	struct way_run r = {.top = fs.top, .way = w, .d = w->id};
	if (w->ref) {
		snprintf(path, sizeof(path), "/proc/self/cwd/%s", w->id);
		r.d = path;
	}
	for (int filled = 0; filled < (w->once ? 1 : 2); filled++) {
		int before = svc.seen;
		*way_refuse = 0;
		int res = in_time(way_run, &r), events = svc.seen - before;
		const char *text = filled ? "not asked" : "filled first";
		if (res != 0 || (!*way_refuse && (events > 0) == filled))
			text = "WRONG";
		else if (*way_refuse)
			text = strerrorname_np(*way_refuse);
		ok(strcmp(text, "WRONG") != 0, "%s%s: %s, %d events", fs_kind, filled ? ", filled" : "",
		   w->name, events);
		char when[64];
		snprintf(when, sizeof(when), "%s%s", fs_kind, filled ? ", filled" : "");
		row(group, w->name, when, text);
	}
}

int main(void)
{
	static const char *const kinds[] = {"btrfs", "xfs"};
	ways_init();
	for (size_t k = 0; k < sizeof(kinds) / sizeof(kinds[0]); k++) {
		fs_kind = kinds[k];
		fs_new(&fs);
		if (mkdirat(fs.work, "other-dir", 0755) < 0 || fchmodat(fs.work, ".", 0777, 0) < 0)
			bail("other-dir");
		close(openat(fs.work, "other", O_WRONLY | O_CREAT, 0644));
		each(prepare);
		sync();
		int drop = open("/proc/sys/vm/drop_caches", O_WRONLY);
		if (drop < 0 || write(drop, "2\n", 2) != 2 || close(drop) < 0)
			bail("drop_caches");

		service_open(&svc, &fs, 0, O_RDONLY, FAN_PRE_DIR_ACCESS);
		if (fan_mark(svc.group, FAN_MARK_ADD | FAN_MARK_IGNORE_SURV, FAN_PRE_DIR_ACCESS, fs.work,
			     ".") < 0)
			bail("mark of the top");
		service_run(&svc);
		each(try_way);
		service_stop(&svc);
		fs_end(&fs);
	}
	return done();
}
