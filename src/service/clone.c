/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "service/clone.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <time.h>

#include "base/fd.h"
#include "base/log.h"
#include "base/time.h"
#include "gate/fuse/mount.h"
#include "service/control.h"
#include "service/native.h"
#include "store/remote.h"
#include "store/walk.h"

#define LOOK_MS 1000
#define CLEAN	"clean" /* in the store while no service runs, if the last one ended in good order */

static void on_changing(void *arg, struct sl_object *o, uint64_t old_size)
{
	struct sl_clone *c = arg;
	if (c->gate)
		sl_gate_changing(c->gate, o, old_size);
}

static void on_changed(void *arg, struct sl_object *o)
{
	struct sl_clone *c = arg;
	if (c->gate)
		sl_gate_changed(c->gate, o);
	if (c->fan)
		sl_fan_changed(c->fan, o);
}

static void on_guard(void *arg, struct sl_object *o)
{
	struct sl_clone *c = arg;
	if (c->fan)
		sl_fan_guard(c->fan, o);
}

static void on_complete(void *arg, struct sl_object *o)
{
	struct sl_clone *c = arg;
	struct sl_native_acts *a = c->acts;
	if (c->fan)
		sl_fan_complete(c->fan, o);
	if (a && sl_object_is_dir(o))
		sl_native_acts_note(a, o);
}

static int on_settle(void *arg)
{
	struct sl_clone *c = arg;
	return c->fan ? sl_fan_settle(c->fan) : 0;
}

static int on_open_unheard(void *arg, struct sl_object *o)
{
	struct sl_clone *c = arg;
	struct sl_silent *s = c->silent;
	return s ? sl_silent_open(s, o) : -EOPNOTSUPP;
}

static void on_other(void *arg, struct sl_object *o)
{
	struct sl_clone *c = arg;
	struct sl_replay *p = c->replay;
	struct sl_native_acts *a = c->acts;
	if (a && !sl_object_is_dir(o))
		sl_native_acts_note(a, o);
	if (p)
		sl_replay_look(p, o);
	else
		c->missed = true;
}

/* Before the replay is there, and after it: at its start it compares what it could have missed. */
static void on_event(void *arg, const struct sl_oevent *e)
{
	struct sl_clone *c = arg;
	struct sl_replay *p = c->replay;
	if (c->watchers)
		sl_watchers_event(c->watchers, e);
	if (p)
		sl_replay_event(p, e);
	else
		c->missed = true;
}

/*
 * What changes at the origin is done here. A service that finds names of an earlier one compares them first:
 * nobody has told it what happened since.
 */
static void start_replay(struct sl_clone *c)
{
	struct sl_replay_config rc = {
	    .store = c->store, .fill = c->fill, .origin = c->origin, .find = sl_remote_find, .compare = true};
	struct sl_echo_acts_config ec = {.store = c->store, .gate = c->gate, .helper = c->helper};
	struct sl_native_acts_config nc = {
	    .store = c->store, .fill = c->fill, .fan = c->fan, .lazy = c->fan && sl_fan_lazy(c->fan)};
	struct sl_native_acts *acts = NULL;
	struct sl_replay *p = NULL;
	int r;
	if (c->fan) {
		rc.find = sl_object_by_place;
		rc.compare = !c->listed || c->missed;
		r = sl_native_acts_new(&nc, &acts, &rc.acts);
		c->acts = acts;
		sl_fan_making(c->fan, false);
	} else if (c->gate && c->helper) {
		r = sl_echo_acts_new(&ec, &c->echo, &rc.acts);
	} else {
		return;
	}
	if (r == 0)
		r = sl_replay_new(&rc, &p);
	if (r < 0)
		sl_warn("changes at the origin will not be seen here: %s", strerror(-r));
	c->replay = p;
}

/*
 * Nobody serves what is mounted there any more. statfs() is never answered from a cache; a service that was
 * just killed may take a moment until its last descriptor is closed.
 */
static bool is_dead(const char *dir)
{
	uint64_t until = sl_now() + 2 * SL_NS_PER_SEC;
	for (;;) {
		struct statfs sf;
		if (statfs(dir, &sf) < 0)
			return true;
		if (sl_now() > until)
			return false;
		usleep(20000);
	}
}

/* The mount point must be an empty directory; what a dead service left mounted there is taken away. */
static int prepare_dir(const char *dir, char **why)
{
	if (sl_fuse_mounted(dir) == SL_MOUNTED_OURS) {
		if (!is_dead(dir))
			return sl_fail(why, -EBUSY, "another clone is mounted on %s", dir);
		int r = sl_fuse_unmount(dir, true, why);
		if (r < 0)
			return r;
		sl_notice("removed the dead mount that the last service left on %s", dir);
	}
	DIR *d = opendir(dir);
	if (!d)
		return sl_fail(why, -errno, "%s: %s", dir, strerror(errno));
	int n = 0;
	struct dirent *e;
	while ((e = readdir(d)))
		n += strcmp(e->d_name, ".") && strcmp(e->d_name, "..");
	closedir(d);
	return n ? sl_fail(why, -ENOTEMPTY, "%s is not empty: the clone would hide what is in it", dir) : 0;
}

static int meet_origin(struct sl_clone *c, bool need, char **why)
{
	struct sl_oreq q = {.op = SL_OREQ_STAT, .place = ""};
	struct sl_object *root = sl_object_root(c->store);
	pthread_mutex_lock(&root->lock);
	bool known = root->rec.origin.ino != 0;
	pthread_mutex_unlock(&root->lock);
	if (known)
		return 0;
	if (!need && !sl_origin_connected(c->origin))
		return 0;
	int r = sl_origin_call(c->origin, &q);
	if (r == 0)
		r = sl_placeholder_root(c->store, &q.attr);
	sl_oreq_fini(&q);
	return r < 0 ? sl_fail(why, r, "the origin's root: %s", strerror(-r)) : 0;
}

/* After a crash: what is in files beyond what their records claim will be fetched again. Say how much. */
static int count_forgotten(void *arg, const char *path, struct sl_object *o, int err)
{
	struct sl_clone *c = arg;
	(void)path;
	(void)err;
	struct stat st;
	if (c->ending)
		return -EINTR;
	if (!o || !sl_object_is_reg(o))
		return 0;
	pthread_mutex_lock(&o->lock);
	uint64_t have = sl_chunkmap_bytes(&o->map);
	bool partial = !(o->rec.flags & (SL_MODIFIED | SL_LOCAL)) && !sl_chunkmap_full(&o->map) &&
		       !o->flight && !o->opens;
	pthread_mutex_unlock(&o->lock);
	if (!partial)
		return 0;
	_cleanup_close_ int fd = sl_object_open(o, O_RDONLY | O_NOATIME);
	if (fd >= 0 && fstat(fd, &st) == 0 && (uint64_t)st.st_blocks * 512 > have + 4096) {
		c->forgotten_files++;
		c->forgotten_bytes += (uint64_t)st.st_blocks * 512 - have;
	}
	return 0;
}

static void *recovery_thread(void *arg)
{
	struct sl_clone *c = arg;
	/* An armoured placeholder has blocks of its own from the beginning: there is nothing to tell by. */
	if (!sl_store_reflinks(c->store) && sl_walk(sl_object_root(c->store), count_forgotten, c) == 0 &&
	    (c->forgotten_files || !sl_keeper_successor(c->keeper)))
		sl_notice("the last service did not end in good order: %llu files had together %llu bytes "
			  "that were not committed yet; "
			  "they are fetched again when they are read",
			  (unsigned long long)c->forgotten_files, (unsigned long long)c->forgotten_bytes);
	c->forgotten_known = true;
	return NULL;
}

static void *gate_thread(void *arg)
{
	struct sl_clone *c = arg;
	int r = sl_gate_run(c->gate);
	if (r < 0)
		sl_err("the gate ended: %s", strerror(-r));
	uint64_t one = 1;
	(void)!write(c->stop_fd, &one, sizeof(one));
	return NULL;
}

/* The kernel reads ahead in pieces of 128 KiB unless it is told otherwise, which root may. */
static void larger_readahead(const char *dir)
{
	struct stat st;
	char path[64];
	if (geteuid() != 0 || stat(dir, &st) < 0)
		return;
	snprintf(path, sizeof(path), "/sys/class/bdi/%u:%u/read_ahead_kb", major(st.st_dev),
		 minor(st.st_dev));
	_cleanup_close_ int fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd >= 0)
		(void)!write(fd, "1024", 4);
}

static void say_ready(int fd, const char *text)
{
	if (fd < 0)
		return;
	(void)sl_write_full(fd, text, strlen(text));
	close(fd);
}

/*
 * Until a signal comes, a command says so, or the mount is gone. /dev/fuse says that by itself. Of a native
 * clone's the kernel only says that something was mounted or unmounted in this namespace; while it is still
 * in use, or mounted in another one, we look from time to time.
 */
static void wait_for_end(struct sl_clone *c, int sig_fd)
{
	_cleanup_close_ int mounts = c->fan ? open("/proc/self/mountinfo", O_RDONLY | O_CLOEXEC) : -EBADF;
	struct pollfd p[3] = {{.fd = sig_fd, .events = POLLIN},
			      {.fd = c->stop_fd, .events = POLLIN},
			      {.fd = mounts, .events = POLLPRI}};
	do {
		if (c->fan && sl_native_gone(c)) {
			sl_info("ending because it was unmounted");
			return;
		}
		bool look = c->fan && !sl_native_shown(c);
		while (poll(p, 3, look ? LOOK_MS : -1) < 0 && errno == EINTR)
			;
	} while (!p[0].revents && !p[1].revents);
	struct signalfd_siginfo si;
	if (p[0].revents && read(sig_fd, &si, sizeof(si)) == sizeof(si))
		sl_info("ending on signal %u", si.ssi_signo);
}

static int prepare(struct sl_clone *c, const char *path, char **why)
{
	struct sl_store_config cfg = {0};
	if (sl_kept_get(c->keeper, SL_KEPT_WORK) >= 0)
		return 0; /* an earlier service has done it */
	int r = sl_store_config_load(path, &cfg, why);
	if (r == 0)
		r = cfg.native ? sl_native_clear(path, &cfg, why) : sl_fuse_available(why);
	sl_store_config_fini(&cfg);
	return r;
}

/* True if the mount of a service that died is ours now: who waits in it goes on waiting. */
static bool inherit(struct sl_clone *c, const char *dir)
{
	size_t size;
	int fd = sl_kept_get(c->keeper, SL_KEPT_FUSE);
	void *area = sl_kept_area(c->keeper, &size);
	if (fd < 0)
		return false;
	if (sl_gate_can_take_over(area))
		return true;
	sl_warn("this kernel cannot send requests again that a dead service has received (Linux 6.9 can): "
		"what is in use in %s "
		"gets errors",
		dir);
	sl_kept_put(c->keeper, SL_KEPT_FUSE, -1);
	close(fd);
	memset(area, 0, sl_gate_area_used(area));
	return false;
}

static int open_parts(struct sl_clone *c, const char *path, bool need_origin, char **why)
{
	int r = prepare(c, path, why);
	if (r == 0)
		r = sl_store_open_kept(path, sl_kept_get(c->keeper, SL_KEPT_LOCK),
				       sl_kept_get(c->keeper, SL_KEPT_WORK), &c->store, why);
	if (r < 0)
		return r;
	sl_kept_put(c->keeper, SL_KEPT_LOCK, sl_store_lock_fd(c->store));
	const struct sl_store_config *cfg = sl_store_config(c->store);
	if (cfg->native)
		sl_kept_put(c->keeper, SL_KEPT_WORK, sl_store_work_fd(c->store));
	bool there = cfg->native ? sl_native_shown(c) : inherit(c, cfg->dir);
	r = there ? 0 : prepare_dir(cfg->dir, why);
	if (r < 0)
		return r;
	struct sl_origin_config oc = {.timeout = cfg->timeout,
				      .insecure_plain = cfg->insecure_plain,
				      .may_be_down = !need_origin,
				      /* What is here is wanted now, whether the origin answers or not. */
				      .connect_later = sl_keeper_successor(c->keeper),
				      .event = on_event,
				      .program = "/proc/self/exe",
				      .arg = c,
				      .uses = cfg->uses,
				      .root_ino = cfg->root_ino};
	_cleanup_free_ char *reason = NULL;
	r = sl_watchers_new(&c->watchers);
	if (r < 0)
		return r;
	r = sl_origin_open(cfg->origin, &oc, &c->origin, &reason);
	if (r < 0)
		return sl_fail(why, r, "%s", reason ? reason : strerror(-r));
	if (reason)
		sl_warn("%s; what is here can be used meanwhile", reason);
	r = meet_origin(c, need_origin, why);
	if (r < 0)
		return r;
	struct sl_fill_config fc = {
	    .store = c->store, .origin = c->origin, .changed = on_changed, .changing = on_changing, .arg = c};
	fc.mark = oc.event != NULL;
	fc.other = on_other;
	if (cfg->native) {
		fc.guard = on_guard;
		fc.complete = on_complete;
		fc.settle = on_settle;
		fc.open_unheard = on_open_unheard;
	}
	return sl_fill_new(&fc, &c->fill);
}

static void greeted(struct sl_oreq *q)
{
	sl_oreq_fini(q);
	free(q);
}

/* A connection that was not made at the start is made before somebody waits for it. */
static void greet_origin(struct sl_clone *c)
{
	struct sl_oreq *q = calloc(1, sizeof(*q));
	if (!q)
		return;
	*q = (struct sl_oreq){.op = SL_OREQ_STAT, .place = "", .done = greeted};
	sl_origin_submit(c->origin, q);
}

struct teller {
	struct sl_clone *c;
	int ready_fd, sig_fd;
};

static bool tell_progress(void *arg, const struct sl_fill_progress *p)
{
	struct teller *t = arg;
	char text[96];
	struct pollfd pf[2] = {{.fd = t->sig_fd, .events = POLLIN}, {.fd = t->c->stop_fd, .events = POLLIN}};
	int n = snprintf(text, sizeof(text), "names %llu %llu %llu\n", (unsigned long long)p->objects,
			 (unsigned long long)p->directories, (unsigned long long)p->left);
	/* Who is gone does not want it any more; what is there already is used by the next attempt. */
	if (t->ready_fd >= 0 && sl_write_full(t->ready_fd, text, (size_t)n) == -EPIPE)
		return false;
	return poll(pf, 2, 0) == 0;
}

int sl_clone_hide(struct sl_clone *c, bool force, char **why)
{
	const char *dir = sl_store_config(c->store)->dir;
	if (!c->fan && sl_fuse_mounted(dir) != SL_MOUNTED_OURS)
		return 0;
	/* It has the mount open while it is at work. */
	struct sl_replay *p = c->replay;
	if (p)
		(void)sl_replay_pause(p);
	int r = c->fan ? sl_native_hide(c, force, why) : sl_fuse_unmount(dir, force, why);
	if (p && r < 0)
		sl_replay_resume(p);
	return r;
}

static int open_gate(struct sl_clone *c, int ready_fd, int sig_fd, char **why)
{
	const struct sl_store_config *cfg = sl_store_config(c->store);
	struct teller t = {c, ready_fd, sig_fd};
	if (cfg->native)
		return sl_native_open(c, tell_progress, &t, why);
	struct sl_mount_options mo = {.allow_other = cfg->allow_other};
	int fd = sl_kept_get(c->keeper, SL_KEPT_FUSE);
	bool inherited = fd >= 0;
	if (!inherited)
		fd = sl_fuse_mount(cfg->dir, &mo, why);
	if (fd < 0)
		return fd;
	sl_kept_put(c->keeper, SL_KEPT_FUSE, fd);
	struct sl_gate_config gc = {.store = c->store,
				    .fill = c->fill,
				    .origin = c->origin,
				    .fuse_fd = fd,
				    .takeover = inherited,
				    .numbers_lost = sl_keeper_numbers_lost(c->keeper)};
	gc.area = sl_kept_area(c->keeper, &gc.area_size);
	int r = sl_gate_new(&gc, &c->gate);
	if (r < 0 && inherited)
		return sl_fail(why, r, "cannot take the mount over: %s", strerror(-r));
	if (r < 0) {
		sl_fuse_unmount(cfg->dir, true, NULL);
		return sl_fail(why, r, "cannot start the gate: %s", strerror(-r));
	}
	return 0;
}

/* @clean: the service ended in good order. That is noted while the store is still locked: the next service
 * may be waiting. */
static void close_parts(struct sl_clone *c, bool clean)
{
	if (c->origin)
		sl_origin_stop(c->origin);
	clean = clean && sl_fill_commit(c->fill) == 0;
	sl_fill_free(c->fill);
	sl_silent_free(c->silent);
	sl_echo_acts_free(c->echo);
	sl_native_acts_free(c->acts);
	sl_gate_free(c->gate);
	if (c->fan) {
		close(sl_fan_group(c->fan));
		close(sl_fan_notify(c->fan));
	}
	sl_fan_free(c->fan);
	sl_origin_free(c->origin);
	sl_watchers_free(c->watchers);
	sl_replay_free(c->replay);
	sl_helper_stop(c->helper);
	if (clean) {
		_cleanup_close_ int fd =
		    openat(sl_store_root_fd(c->store), CLEAN, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
		sl_info("ended in good order");
	}
	/* The keeper ends last, and has the log open until then. */
	if (c->keeper && c->store)
		sl_store_leave_lock(c->store);
	sl_store_close(c->store);
}

/* Events may still come until the origin is gone; nobody does them any more. */
static void stop_replay(struct sl_clone *c)
{
	struct sl_replay *p = c->replay;
	if (!p)
		return;
	sl_origin_stop(c->origin); /* it may wait for a listing */
	sl_replay_stop(p);
}

static int run(struct sl_clone *c, int sig_fd, int *ready_fd, char **why)
{
	struct sl_control *control = NULL;
	pthread_t gate, recovery;
	c->unclean = faccessat(sl_store_root_fd(c->store), CLEAN, F_OK, 0) < 0;
	c->forgotten_known = !c->unclean;
	int r = open_gate(c, *ready_fd, sig_fd, why);
	if (r < 0) {
		if (c->fan && !sl_keeper_successor(c->keeper))
			sl_native_stop(c);
		return r;
	}
	/* First, because on a full filesystem the socket needs just this room. */
	(void)unlinkat(sl_store_root_fd(c->store), CLEAN, 0);
	r = sl_control_start(c, &control, why);
	if (r == 0 && c->gate)
		r = -pthread_create(&gate, NULL, gate_thread, c);
	if (r < 0 && sl_keeper_successor(c->keeper))
		return r;
	if (r < 0) {
		sl_clone_hide(c, true, NULL);
		sl_control_stop(control);
		if (c->fan)
			sl_native_stop(c);
		return r;
	}
	bool recovering = c->unclean && pthread_create(&recovery, NULL, recovery_thread, c) == 0;
	const struct sl_store_config *cfg = sl_store_config(c->store);
	sl_info("clone of %s is up on %s (store %s, %s%s)", cfg->origin, cfg->dir, sl_store_path(c->store),
		sl_store_privileged(c->store) ? "privileged" : "unprivileged",
		sl_store_reflinks(c->store) ? ", armoured" : "");
	if (c->gate)
		larger_readahead(cfg->dir);
	start_replay(c);
	say_ready(sl_steal_fd(ready_fd), "ready\n");
	sl_keeper_ready(c->keeper);
	if (sl_keeper_successor(c->keeper))
		greet_origin(c);

	wait_for_end(c, sig_fd);
	c->ending = true;
	if (sl_clone_hide(c, false, NULL) < 0) {
		sl_notice("%s is still in use: what is open there gets errors from now on", cfg->dir);
		sl_clone_hide(c, true, NULL);
	}
	sl_keeper_ending(c->keeper); /* there is nothing left to take over */
	stop_replay(c);		     /* the helper's calls are answered until then */
	if (c->gate) {
		sl_gate_stop(c->gate);
		pthread_join(gate, NULL);
	} else {
		sl_native_stop(c);
	}
	sl_origin_stop(c->origin);
	sl_control_stop(control);
	if (recovering)
		pthread_join(recovery, NULL);
	return 0;
}

int sl_clone_run(struct sl_keeper *keeper, const char *path, int ready_fd, bool need_origin, char **why)
{
	struct sl_clone c = {
	    .keeper = keeper, .stop_fd = eventfd(0, EFD_CLOEXEC), .started = (uint64_t)time(NULL)};
	sigset_t set;
	_cleanup_free_ char *reason = NULL;
	umask(0); /* modes are what the gate is told */
	signal(SIGPIPE, SIG_IGN);
	signal(SIGIO, SIG_IGN); /* somebody wants to break a lease of ours: it ends soon by itself */
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	_cleanup_close_ int sig_fd = signalfd(-1, &set, SFD_CLOEXEC);
	int r = sl_helper_start(&c.helper); /* while there is one thread only */
	if (r == 0)
		r = open_parts(&c, path, need_origin, &reason);
	if (r == 0)
		r = run(&c, sig_fd, &ready_fd, &reason);
	if (r < 0 && sl_keeper_successor(keeper)) {
		/* Whoever waits goes on waiting: nothing may be closed in good order here. */
		sl_err("cannot take over from the last service: %s", reason ? reason : strerror(-r));
		sl_keeper_fail(keeper);
	}
	close_parts(&c, r == 0);
	if (r < 0 && !reason)
		sl_fail(&reason, r, "%s", strerror(-r));
	if (r < 0 && ready_fd >= 0)
		say_ready(sl_steal_fd(&ready_fd), reason);
	close(c.stop_fd);
	if (r < 0 && why)
		*why = sl_steal_ptr(&reason);
	return r;
}

void sl_clone_each_fd(const void *area, size_t size, void (*fn)(void *arg, int fd), void *arg)
{
	(sl_fan_area(area) ? sl_fan_each_fd : sl_gate_each_fd)(area, size, fn, arg);
}
