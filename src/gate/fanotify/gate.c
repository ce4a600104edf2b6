/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "gate/fanotify/gate.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/fanotify.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "base/log.h"
#include "base/why.h"
#include "gate/fanotify/internal.h"

#ifndef STATX_MNT_ID
#define STATX_MNT_ID 0x1000
#endif
#define MNT_ID_UNIQUE 0x4000 /* STATX_MNT_ID_UNIQUE, Linux 6.8 */
#define THREADS	      4

/* ---- marks ---- */

void fan_ignore(struct sl_fan *g, int fd)
{
	char p[SL_PROC_FD_MAX];
	if (fanotify_mark(g->group, FAN_MARK_ADD | FAN_MARK_EVICTABLE | SL_FAN_IGNORE, FAN_ASKED, AT_FDCWD,
			  sl_proc_fd_path(p, fd, NULL)) < 0)
		sl_debug("no ignore mark: %s", strerror(errno)); /* slower, and right */
}

static void unignore(struct sl_fan *g, struct sl_object *o)
{
	char p[SL_PROC_FD_MAX];
	_cleanup_close_ int fd = sl_object_open(o, O_PATH);
	if (fd >= 0 &&
	    fanotify_mark(g->group, FAN_MARK_REMOVE | SL_FAN_IGNORE, FAN_ASKED, AT_FDCWD,
			  sl_proc_fd_path(p, fd, NULL)) < 0 &&
	    errno != ENOENT)
		sl_err("cannot take back an ignore mark: %s", strerror(errno));
}

void sl_fan_guard(struct sl_fan *g, struct sl_object *o)
{
	unignore(g, o);
}

void sl_fan_changed(struct sl_fan *g, struct sl_object *o)
{
	unignore(g, o);
	pthread_mutex_lock(&o->lock);
	o->invalidating--;
	o->told_size = 0; /* who reads sees the file itself */
	pthread_mutex_unlock(&o->lock);
}

/* The group that asks, on the whole filesystem but for the mount that the store works through. What only the
 * kernel series has is tried first. */
static int mark_asking(struct sl_fan *g)
{
	const uint64_t closed = g->cfg.own ? FAN_MARK_FAIL_CLOSED : 0;
	const struct {
		uint64_t mask, flags;
		bool can;
	} tries[] = {{FAN_ASKED | FAN_PRE_DIR_ACCESS, closed, g->cfg.lazy && closed},
		     {FAN_ASKED, closed, closed},
		     {FAN_ASKED, 0, true}};
	int fd = sl_store_fs_fd(g->store), r = -EINVAL;
	for (size_t i = 0; i < SL_ARRAY_SIZE(tries) && r == -EINVAL; i++) {
		if (!tries[i].can)
			continue;
		g->asked = tries[i].mask;
		r = fanotify_mark(g->group, FAN_MARK_ADD | FAN_MARK_MOUNT | SL_FAN_IGNORE, g->asked, fd,
				  NULL) < 0 ||
			    fanotify_mark(g->group,
					  FAN_MARK_ADD | FAN_MARK_FILESYSTEM | (unsigned)tries[i].flags,
					  g->asked, fd, NULL) < 0
			? -errno
			: 0;
	}
	return r;
}

/* Both groups on the whole filesystem, but for the mount that the store works through. */
static int mark_all(struct sl_fan *g, char **why)
{
	int fd = sl_store_fs_fd(g->store);
	int r = mark_asking(g);
	if (r < 0)
		return sl_fail(why, r,
			       "the kernel cannot ask before access on this filesystem: %s (it takes Linux "
			       "6.14, and ext4, XFS or btrfs)",
			       strerror(-r));
	if (fanotify_mark(g->notify, FAN_MARK_ADD | FAN_MARK_MOUNT | SL_FAN_IGNORE, FAN_TOLD, fd, NULL) < 0 ||
	    fanotify_mark(g->notify, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, FAN_TOLD, fd, NULL) < 0)
		return sl_fail(why, -errno, "the kernel cannot tell of changes on this filesystem: %s",
			       strerror(errno));
	return 0;
}

/* Of the group that asks. What only the kernel series has is tried first. */
static int make_asking(struct sl_fan *g, unsigned common)
{
	const unsigned flags = FAN_CLASS_PRE_CONTENT | FAN_REPORT_FD_ERROR | FAN_REPORT_TID | common;
	const unsigned event = O_RDONLY | O_LARGEFILE | O_CLOEXEC;
	g->group = g->cfg.lazy ? fanotify_init(flags | FAN_REPORT_DIR_FD, event) : -EBADF;
	g->own_mount = g->group >= 0;
	if (g->group < 0)
		g->group = fanotify_init(flags, event);
	return g->group < 0 ? -errno : 0;
}

/* As procfs has it: an earlier service has made it, maybe another program. */
static bool reports_own_mount(int group)
{
	char path[64], *line = NULL;
	size_t cap = 0;
	unsigned flags = 0;
	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", group);
	FILE *f = fopen(path, "re");
	while (f && getline(&line, &cap, f) > 0 && sscanf(line, "fanotify flags:%x", &flags) != 1)
		;
	free(line);
	if (f)
		fclose(f);
	return flags & FAN_REPORT_DIR_FD;
}

static int make_groups(struct sl_fan *g, char **why)
{
	unsigned common = FAN_CLOEXEC | FAN_NONBLOCK | FAN_UNLIMITED_QUEUE | FAN_UNLIMITED_MARKS;
	/*
	 * The one that asks comes last, and so has the higher number. When the service and its keeper are
	 * killed the kernel closes that first: an access that waits for it may also hold a mark of the other,
	 * whose end would wait for the access, for ever.
	 */
	g->notify =
	    fanotify_init(FAN_CLASS_NOTIF | FAN_REPORT_FID | common, O_RDONLY | O_LARGEFILE | O_CLOEXEC);
	if (g->notify < 0 || make_asking(g, common) < 0)
		return sl_fail(why, -errno, "no fanotify group: %s%s", strerror(errno),
			       errno == EPERM ? " (the fanotify gate needs root)" : "");
	int r = mark_all(g, why);
	/* The bits are not Linux's yet: what they do here is believed when it is seen. */
	if (r < 0 || !g->cfg.lazy || (sl_fan_lazy(g) && fan_asks_for_names(g)))
		return r;
	g->cfg.lazy = false;
	sl_closep(&g->group);
	sl_closep(&g->notify);
	g->group = g->notify = -EBADF;
	return make_groups(g, why);
}

/* Those of an earlier service: marked as it was done then, by the same rules. */
static int take_groups(struct sl_fan *g, char **why)
{
	g->own_mount = reports_own_mount(g->group);
	int r = mark_asking(g);
	return r < 0 ? sl_fail(why, r, "cannot exempt the store's own mount: %s", strerror(-r)) : 0;
}

/* ---- whose mount ---- */

static uint64_t mount_id(int fd, unsigned kind)
{
	struct statx sx;
	return statx(fd, "", AT_EMPTY_PATH, kind, &sx) < 0 || !(sx.stx_mask & kind) ? 0 : sx.stx_mnt_id;
}

static bool in_mountinfo(int pid, uint64_t id)
{
	char path[64], *line = NULL;
	size_t cap = 0;
	bool found = false;
	snprintf(path, sizeof(path), "/proc/%d/mountinfo", pid);
	FILE *f = pid > 0 && id ? fopen(path, "re") : NULL;
	while (f && !found && getline(&line, &cap, f) > 0)
		found = strtoull(line, NULL, 10) == id;
	free(line);
	if (f)
		fclose(f);
	return found;
}

static void know(struct sl_fan *g, uint64_t id)
{
	pthread_mutex_lock(&g->lock);
	g->mounts[g->nmounts++ % MOUNTS] = id;
	pthread_mutex_unlock(&g->lock);
}

int sl_fan_set_mount(struct sl_fan *g, int mount_fd)
{
	uint64_t id = mount_id(mount_fd, MNT_ID_UNIQUE);
	char p[SL_PROC_FD_MAX];
	if (!id)
		return -EOPNOTSUPP;
	know(g, id);
	/*
	 * It asks nothing that the filesystem's own mark does not. But it is there as long as the mount is,
	 * and who unmounts it lazily leaves it to those who have something open. Not in the other group: who
	 * waits for this one would keep that one from being closed, which comes first when both of us are
	 * killed.
	 */
	if (fanotify_mark(g->group, FAN_MARK_ADD | FAN_MARK_MOUNT, FAN_OPEN_PERM, AT_FDCWD,
			  sl_proc_fd_path(p, mount_fd, NULL)) < 0)
		return -errno;
	g->area->mount = mount_id(mount_fd, STATX_MNT_ID);
	return 0;
}

void sl_fan_set_shown(struct sl_fan *g)
{
	g->area->shown = 1;
}

bool sl_fan_was_shown(const struct sl_fan *g)
{
	return g->area->shown;
}

bool sl_fan_mount_gone(struct sl_fan *g)
{
	char path[64], *line = NULL;
	size_t cap = 0;
	unsigned id, flags, mask;
	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", g->group);
	FILE *f = fopen(path, "re");
	bool gone = f;
	uint64_t shown = g->area->mount;
	while (gone && getline(&line, &cap, f) > 0)
		/* Numbers of mounts come again, for one that is exempt: of that nothing is asked. */
		gone = sscanf(line, "fanotify mnt_id:%x mflags:%x mask:%x", &id, &flags, &mask) != 3 ||
		       id != shown || !mask;
	free(line);
	if (f)
		fclose(f);
	return gone;
}

bool fan_own_mount(struct sl_fan *g, int fd)
{
	uint64_t id = mount_id(fd, MNT_ID_UNIQUE);
	return id && id == mount_id(sl_store_fs_fd(g->store), MNT_ID_UNIQUE);
}

bool fan_mount_known(struct sl_fan *g, int fd, int pid)
{
	if (g->own_mount)
		return true;
	uint64_t id = mount_id(fd, MNT_ID_UNIQUE);
	bool known = false;
	pthread_mutex_lock(&g->lock);
	for (size_t i = 0; i < MOUNTS && id; i++)
		known |= g->mounts[i] == id;
	pthread_mutex_unlock(&g->lock);
	if (!known && id && in_mountinfo(pid, mount_id(fd, STATX_MNT_ID))) {
		know(g, id);
		known = true;
	}
	return known;
}

/* ---- the whole ---- */

void fan_keep_recent(struct sl_fan *g, struct sl_object *o)
{
	struct sl_object *old = NULL;
	pthread_mutex_lock(&g->lock);
	if (!o->recent) {
		o->recent = true;
		old = g->recent[g->next_recent];
		g->recent[g->next_recent] = sl_object_ref(o);
		g->next_recent = (g->next_recent + 1) % RECENT;
		if (old)
			old->recent = false;
	}
	pthread_mutex_unlock(&g->lock);
	sl_object_put(old);
}

/* The newest is last, and the one that was noted first is forgotten. */
static void note_pid(struct sl_fan *g, int32_t pid)
{
	size_t n = SL_ARRAY_SIZE(g->area->pids), i = 0;
	while (i + 1 < n && g->area->pids[i] != pid)
		i++;
	if (g->area->pids[i] != pid)
		i = 0;
	for (; i + 1 < n; i++)
		g->area->pids[i] = g->area->pids[i + 1];
	g->area->pids[n - 1] = pid;
}

static int set_area(struct sl_fan *g)
{
	/* Every waiting access is an open file. */
	struct rlimit rl = {1 << 20, 1 << 20};
	if (setrlimit(RLIMIT_NOFILE, &rl) < 0)
		rl.rlim_cur = sl_raise_nofile();
	size_t size = g->cfg.area_size;
	g->nofile = rl.rlim_cur;
	g->area = g->cfg.area;
	if (!g->area) {
		size = sizeof(*g->area) + rl.rlim_cur * sizeof(struct slot);
		g->area = mmap(NULL, size, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (g->area == MAP_FAILED) {
			g->area = NULL;
			return -ENOMEM;
		}
		g->own_area = true;
		g->cfg.area_size = size;
	}
	if (size < sizeof(*g->area))
		return -ENOMEM;
	g->area->nslots = (uint32_t)SL_MIN((size - sizeof(*g->area)) / sizeof(struct slot), rl.rlim_cur);
	g->area->magic = AREA_MAGIC;
	/* The keeper closes what a service that died had open for writing, and that is told as well. */
	if (g->cfg.keeper)
		note_pid(g, g->cfg.keeper);
	note_pid(g, getpid());
	return 0;
}

int sl_fan_new(const struct sl_fan_config *cfg, struct sl_fan **ret, char **why)
{
	struct sl_fan *g = calloc(1, sizeof(*g));
	if (!g)
		return -ENOMEM;
	g->cfg = *cfg;
	g->store = cfg->store;
	g->fill = cfg->fill;
	g->group = cfg->group;
	g->notify = cfg->notify;
	g->whole_on_open = !sl_store_sealed(cfg->store);
	pthread_mutex_init(&g->lock, NULL);
	pthread_mutex_init(&g->caller_lock, NULL);
	g->caller_fd = -EBADF;
	pthread_cond_init(&g->cond, NULL);
	sl_list_init(&g->ready);
	g->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	int r = g->stop_fd < 0 ? -errno : set_area(g);
	if (r == 0)
		r = sl_pool_new(THREADS, "gate", &g->pool);
	if (r == 0 && g->group >= 0 && cfg->numbers_lost)
		fan_refuse_lost(g);
	if (r == 0 && (g->group < 0 || g->notify < 0))
		r = make_groups(g, why);
	else if (r == 0)
		r = take_groups(g, why);
	if (r < 0) {
		/* Groups that were just made have let nobody wait. */
		if (cfg->group < 0 && g->group >= 0)
			close(g->group);
		if (cfg->notify < 0 && g->notify >= 0)
			close(g->notify);
		sl_fan_free(g);
		return r;
	}
	*ret = g;
	return 0;
}

int sl_fan_group(const struct sl_fan *g)
{
	return g->group;
}

int sl_fan_notify(const struct sl_fan *g)
{
	return g->notify;
}

void sl_fan_refuse(struct sl_fan *g)
{
	g->refusing = true;
}

void sl_fan_set_replay(struct sl_fan *g, int tid)
{
	g->replay = tid;
}

int sl_fan_exempt(struct sl_fan *g, int fd)
{
	if (fanotify_mark(g->group, FAN_MARK_ADD | FAN_MARK_MOUNT | SL_FAN_IGNORE, g->asked, fd, NULL) < 0 ||
	    fanotify_mark(g->notify, FAN_MARK_ADD | FAN_MARK_MOUNT | SL_FAN_IGNORE, FAN_TOLD, fd, NULL) < 0)
		return -errno;
	return 0;
}

size_t sl_fan_waiting(struct sl_fan *g)
{
	return g->waiting;
}

void sl_fan_free(struct sl_fan *g)
{
	if (!g)
		return;
	sl_pool_free(g->pool);
	for (size_t i = 0; i < RECENT; i++)
		sl_object_put(g->recent[i]);
	if (g->own_area)
		munmap(g->area, g->cfg.area_size);
	close(g->stop_fd);
	if (g->caller_fd >= 0)
		close(g->caller_fd);
	pthread_mutex_destroy(&g->caller_lock);
	pthread_mutex_destroy(&g->lock);
	pthread_cond_destroy(&g->cond);
	free(g);
}
