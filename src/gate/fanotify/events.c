/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Accesses: read from the group, looked at, answered at once or when what they want is here. */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "base/time.h"
#include "gate/fanotify/internal.h"
#include "store/zone.h"

#define EVENT_BYTES (FAN_EVENT_METADATA_LEN + sizeof(struct sl_fan_range))
#define READ_MIN    1024 /* bytes: room for any event */
#define MANY	    64	 /* that wait: from there on they are answered together */

/* ---- answers ---- */

static struct slot *slot_of(struct sl_fan *g, int fd)
{
	return (unsigned)fd < g->area->nslots ? &g->area->slot[fd] : NULL;
}

/* What fanotify(7) lets us say; anything else it takes for no answer. */
static uint32_t refusal(int err)
{
	switch (err) {
	case -ENOSPC:
	case -EDQUOT:
	case -EPERM:
	case -EBUSY:
		return SL_FAN_DENY_ERRNO(-err);
	case -EACCES:
		return SL_FAN_DENY_ERRNO(EPERM);
	default:
		return SL_FAN_DENY_ERRNO(EIO);
	}
}

void fan_respond(struct sl_fan *g, int fd, uint32_t response)
{
	struct fanotify_response r = {.fd = fd, .response = response};
	if (write(g->group, &r, sizeof(r)) == sizeof(r) || errno == ENOENT) /* who waited was killed */
		return;
	r.response = FAN_DENY;
	if (response == FAN_ALLOW || write(g->group, &r, sizeof(r)) != sizeof(r))
		sl_err("an access cannot be answered: %s", strerror(errno));
}

/* Only after the answer: a service that dies in between leaves an event that is answered twice, and not one
 * that is not. */
static void settled(struct sl_fan *g, int fd)
{
	struct slot *s = slot_of(g, fd);
	if (s)
		s->mask = 0;
	close(fd);
}

/* ---- looking at one ---- */

static int io_lock(struct sl_object *o, bool exclusive, bool may_wait)
{
	if (may_wait)
		return exclusive ? pthread_rwlock_wrlock(&o->io) : pthread_rwlock_rdlock(&o->io);
	return exclusive ? pthread_rwlock_trywrlock(&o->io) : pthread_rwlock_tryrdlock(&o->io);
}

/* A file that is partly here is opened. What was asked of the file itself is asked when it is read. */
static int look_open(struct sl_fan *g, int fd, struct sl_object *o, bool may_wait)
{
	/* Not while bytes of the origin are written to it: it may be open(O_TRUNC), see settle_opens(). */
	if (io_lock(o, true, may_wait) != 0)
		return FAN_LATER;
	int r = sl_object_mend_tail(o, fd);
	if (r == 0) {
		o->opened = sl_now();
		fan_respond(g, fd, FAN_ALLOW);
	}
	pthread_rwlock_unlock(&o->io);
	if (r == 0)
		sl_fill_note_open(g->fill, o);
	return r < 0 ? r : FAN_ANSWERED;
}

static int look_range(struct sl_fan *g, int fd, struct sl_object *o, uint64_t off, uint64_t len,
		      bool may_wait)
{
	/* Nothing that is here goes until the reader has been let through; after that the descriptor that it
	 * reads by keeps evictions away. */
	if (io_lock(o, false, may_wait) != 0)
		return FAN_LATER;
	pthread_mutex_lock(&o->lock);
	bool here = sl_chunkmap_test(&o->map, off, len), full = sl_chunkmap_full(&o->map);
	pthread_mutex_unlock(&o->lock);
	if (here) {
		o->allowed = sl_now();
		fan_respond(g, fd, FAN_ALLOW);
	}
	pthread_rwlock_unlock(&o->io);
	if (here && !full)
		sl_fill_note_read(g->fill, o, off, len);
	return here ? FAN_ANSWERED : FAN_WANTS;
}

/*
 * The one access that is worth a way of its own: a read of what is here, of a file that is known and not
 * completely here. Its handle says which object it is, and its reader's system call that it changes nothing;
 * so it does not matter what else was done to the file. True if it was answered. @fd is as the kernel gave
 * it.
 */
static bool look_quickly(struct sl_fan *g, int fd, const struct slot *s)
{
	if (s->mask & (FAN_OPEN_PERM | FAN_PRE_DIR_ACCESS) || !s->len)
		return false;
	_cleanup_object_ struct sl_object *o = sl_object_known_fd(g->store, fd);
	if (!o || !sl_object_is_reg(o) || o->damaged)
		return false;
	pthread_mutex_lock(&o->lock);
	bool here = !o->evicting && !sl_chunkmap_full(&o->map) && !sl_object_uncertain(o) &&
		    sl_chunkmap_test(&o->map, s->off, s->len);
	pthread_mutex_unlock(&o->lock);
	if (!here || fan_need(g, s->pid, NULL) != FAN_RANGE)
		return false;
	fan_keep_recent(g, o);
	return look_range(g, fd, o, s->off, s->len, false) == FAN_ANSWERED;
}

/*
 * Answer the access @s by descriptor @fd if that is possible now. FAN_WANTS: not before [*off, +*len) of
 * *@ret is here; *@as_said: if that is what it said, and then it can be answered. FAN_LATER: not without
 * waiting for a lock. Or -errno, to be told to who waits.
 */
static int look(struct sl_fan *g, int fd, const struct slot *s, bool may_wait, struct sl_object **ret,
		uint64_t *off, uint64_t *len, bool *as_said)
{
	struct sl_object *o;
	struct stat st;
	int gone;
	if (fstat(fd, &st) < 0)
		return -errno;
	if (s->mask & FAN_PRE_DIR_ACCESS && st.st_nlink)
		return fan_look_dir(g, fd, may_wait, ret);
	if (s->mask & FAN_PRE_DIR_ACCESS && fan_dir_gone(g, fd, &gone) && gone < 0)
		return gone;
	/* A directory that is no more has no names, and never will. */
	if (!S_ISREG(st.st_mode)) {
		fan_respond(g, fd, FAN_ALLOW);
		return FAN_ANSWERED;
	}
	int r = sl_object_of_fd(g->store, fd, &o);
	if (r < 0)
		return r;
	*ret = o;
	if (o->damaged)
		return -EIO;
	/* Its size under the lock: it may just be given another version. */
	pthread_mutex_lock(&o->lock);
	if (fstat(fd, &st) < 0) {
		r = -errno;
		pthread_mutex_unlock(&o->lock);
		return r;
	}
	bool cut = fan_cut(o, &st), evicting = o->evicting, full = fan_full(o, &st);
	bool uncertain = sl_object_uncertain(o), sure = fan_sure(o) || !sl_chunkmap_full(&o->map);
	if (s->mask & FAN_OPEN_PERM && !st.st_nlink && o->rec.flags & SL_EVICTED) {
		/* He had come to it before its name went; what he would write to it nobody would see. */
		pthread_mutex_unlock(&o->lock);
		return -EIO;
	}
	if (full) {
		/* With the lock: whoever evicts it takes the mark away after this. */
		fan_respond(g, fd, FAN_ALLOW);
		fan_ignore(g, fd);
	}
	*len = o->map.size;
	pthread_mutex_unlock(&o->lock);
	if (full) {
		if (s->mask & FAN_OPEN_PERM)
			fan_mark_ahead(g, fd, st.st_ino);
		return FAN_ANSWERED;
	}
	if (cut) {
		/* Somebody opened it with O_TRUNC, of which the kernel tells nobody: from then on it is his.
		 */
		sl_fill_written(g->fill, o);
		fan_respond(g, fd, FAN_ALLOW);
		return FAN_ANSWERED;
	}
	if (evicting) {
		if (may_wait)
			usleep(FAN_LATER_US);
		return FAN_LATER;
	}
	fan_keep_recent(g, o);
	*off = 0;
	*as_said = false;
	if (uncertain) {
		*len = 1;
		return FAN_WANTS; /* and then what was asked for */
	}
	if (s->mask & FAN_OPEN_PERM) {
		if (!g->whole_on_open && fan_mount_known(g, fd, s->pid))
			return look_open(g, fd, o, may_wait);
	} else if (s->len) {
		enum fan_need need = fan_need(g, s->pid, &st);
		*as_said = need == FAN_RANGE;
		pthread_mutex_lock(&o->lock);
		bool end = *len == 0 || sl_chunkmap_test(&o->map, *len - 1, 1);
		pthread_mutex_unlock(&o->lock);
		if (need == FAN_RANGE_AND_END && !end) {
			*off = *len - 1;
			*len = 1;
			return FAN_WANTS; /* and then the range */
		}
		if (need != FAN_WHOLE) {
			*off = s->off;
			*len = s->len;
		}
		if (need == FAN_MAPPED) {
			*off = SL_ALIGN_DOWN(s->off, SL_ZONE_MAP_UNIT);
			*len = SL_ALIGN_UP(s->off + s->len, SL_ZONE_MAP_UNIT) - *off;
		}
		/* Before it is written to the record must say that it is here. */
		if (need != FAN_RANGE && !sure) {
			r = may_wait ? sl_fill_commit_one(g->fill, o) : 0;
			if (r != -ENOENT && r != -ESTALE) /* it has no name any more */
				return r < 0 ? r : FAN_LATER;
		}
	}
	return look_range(g, fd, o, *off, *len, may_wait);
}

/* ---- waiting ---- */

void fan_waiter_end(struct waiter *w, int err)
{
	struct sl_fan *g = w->g;
	if (err)
		fan_respond(g, w->fd, refusal(err));
	settled(g, w->fd);
	free(w);
	g->waiting--;
}

static void want_done(struct sl_want *want, int err)
{
	struct waiter *w = sl_container_of(want, struct waiter, want);
	if (err == -ESTALE && !w->placed && fan_find_place(w->g, w->fd, want->o)) {
		w->placed = true;
		err = 0;
	}
	if (!err && w->s.mask == FAN_PRE_ACCESS && w->g->waiting >= MANY) {
		fan_ready(w);
		return;
	}
	sl_object_put(want->o);
	int gone;
	if (err && w->s.mask & FAN_PRE_DIR_ACCESS && fan_dir_gone(w->g, w->fd, &gone)) {
		if (gone == 0)
			fan_respond(w->g, w->fd, FAN_ALLOW);
		fan_waiter_end(w, gone);
	} else if (err) {
		fan_waiter_end(w, err);
	} else {
		fan_dispatch(w);
	}
}

static void dispatch(struct waiter *w, bool may_wait);

static void run_later(struct sl_work *work)
{
	dispatch(sl_container_of(work, struct waiter, work), true);
}

static void dispatch(struct waiter *w, bool may_wait)
{
	struct sl_fan *g = w->g;
	for (;;) {
		struct sl_object *o = NULL;
		uint64_t off = 0, len = 0;
		int r = look(g, w->fd, &w->s, may_wait, &o, &off, &len, &w->as_said);
		if (r == FAN_WANTS && g->refusing)
			r = -EIO;
		if (r == FAN_WANTS) {
			w->want = (struct sl_want){.o = o, .off = off, .len = len, .done = want_done};
			r = sl_fill_want(g->fill,
					 w->s.mask & FAN_PRE_DIR_ACCESS ? SL_WANT_NAMES : SL_WANT_RANGE,
					 &w->want);
			if (r == 0)
				return; /* want_done() goes on, maybe already has */
			r = r > 0 ? FAN_WANTS : r;
		}
		sl_object_put(o);
		if (r == FAN_WANTS)
			continue; /* it arrived meanwhile */
		if (r == FAN_LATER) {
			w->work.run = run_later;
			sl_pool_push(g->pool, &w->work);
		} else {
			fan_waiter_end(w, r);
		}
		return;
	}
}

void fan_dispatch(struct waiter *w)
{
	dispatch(w, false);
}

/* From here on an access stands in its slot. */
static void note(struct sl_fan *g, int fd, const struct slot *s)
{
	struct slot *at = slot_of(g, fd);
	if (!at)
		return;
	if ((uint32_t)fd >= g->area->top)
		g->area->top = (uint32_t)fd + 1;
	at->off = s->off;
	at->len = s->len;
	at->pid = s->pid;
	at->mask = s->mask; /* last: what stands there is whole, also for the service after this one */
}

static void keep(struct sl_fan *g, int fd, const struct slot *s)
{
	struct waiter *w = calloc(1, sizeof(*w));
	if (!w) {
		fan_respond(g, fd, refusal(-ENOMEM));
		settled(g, fd);
		return;
	}
	*w = (struct waiter){.g = g, .fd = fd, .s = *s};
	g->waiting++;
	fan_dispatch(w);
}

/* ---- reading ---- */

/* What an event is about. Its range; without one, or of no length, all of the file. */
static struct slot parse(const struct fanotify_event_metadata *m)
{
	struct slot s = {.mask = m->mask & FAN_OPEN_PERM	? FAN_OPEN_PERM
				 : m->mask & FAN_PRE_DIR_ACCESS ? FAN_PRE_DIR_ACCESS
								: FAN_PRE_ACCESS,
			 .pid = m->pid};
	const char *p = (const char *)m + m->metadata_len, *end = (const char *)m + m->event_len;
	while (end - p >= (ptrdiff_t)sizeof(struct fanotify_event_info_header)) {
		const struct sl_fan_range *x = (const void *)p;
		if (x->hdr.len < sizeof(x->hdr))
			break;
		if (x->hdr.info_type == FAN_EVENT_INFO_TYPE_RANGE && x->hdr.len >= sizeof(*x)) {
			s.off = x->offset;
			s.len = x->count;
		}
		p += x->hdr.len;
	}
	return s;
}

/* The events in @buf; stops at what is none, as zeros are. */
#define for_each_event(m, buf, n)                                                                            \
	for (size_t _left = (n), _once = 1; _once; _once = 0)                                                \
		for (struct fanotify_event_metadata *m = (void *)(buf); FAN_EVENT_OK(m, _left);              \
		     m = FAN_EVENT_NEXT(m, _left))

/* One of many that came at once: if its file is known it is looked at with others. */
static bool take_with_others(struct sl_fan *g, struct fanotify_event_metadata *m, const struct slot *s)
{
	_cleanup_object_ struct sl_object *o =
	    s->mask == FAN_PRE_ACCESS && s->len ? sl_object_known_fd(g->store, m->fd) : NULL;
	struct waiter *w = o && sl_object_is_reg(o) ? calloc(1, sizeof(*w)) : NULL;
	if (!w)
		return false;
	*w = (struct waiter){.g = g, .fd = m->fd, .s = *s, .as_said = fan_need(g, s->pid, NULL) == FAN_RANGE};
	w->want.o = sl_steal_ptr(&o);
	fan_keep_recent(g, w->want.o);
	note(g, m->fd, s);
	m->fd = FAN_NOFD;
	g->waiting++;
	fan_ready(w);
	return true;
}

static void take(struct sl_fan *g, struct fanotify_event_metadata *m, bool many)
{
	int fd = m->fd;
	struct slot s = parse(m);
	struct sl_object *o = NULL;
	if (many && m->pid != g->replay && take_with_others(g, m, &s))
		return;
	if (m->pid == g->replay && m->pid) {
		fan_respond(g, fd, FAN_ALLOW);
		m->fd = FAN_NOFD;
		settled(g, fd);
		return;
	}
	uint64_t off, len;
	bool as_said;
	int r = look_quickly(g, fd, &s) ? FAN_ANSWERED : look(g, fd, &s, false, &o, &off, &len, &as_said);
	sl_object_put(o);
	if (r == FAN_ANSWERED) {
		/* Before it is closed, and the number may mean something else. */
		m->fd = FAN_NOFD;
		settled(g, fd);
	} else {
		note(g, fd, &s);
		m->fd = FAN_NOFD;
		keep(g, fd, &s);
	}
}

/*
 * How many bytes of events. Each one is a descriptor, and one for which there is none left is refused by the
 * kernel. So a part of them is left for what has to be done for those that wait; who comes later waits in the
 * kernel's queue.
 */
static size_t may_read(struct sl_fan *g)
{
	size_t waiting = g->waiting, most = g->nofile / 4 * 3;
	size_t bytes = waiting < most ? (most - waiting) * FAN_EVENT_METADATA_LEN : 0;
	return bytes < READ_MIN ? 0 : SL_MIN(bytes, (size_t)READ_BYTES);
}

static void *events_thread(void *arg)
{
	struct sl_fan *g = arg;
	while (!g->stop) {
		/* Waits in here: with poll() it would be two calls more for each event that comes alone. */
		size_t room = may_read(g);
		ssize_t n = room ? read(g->group, g->area->read, room) : -1;
		if (room == 0)
			usleep(1000);
		if (room == 0 || (n < 0 && errno == EINTR))
			continue;
		if (n < 0 && (errno == EMFILE || errno == ENFILE || errno == ENOMEM)) {
			usleep(1000); /* who waits does so until there is room for one more descriptor */
			continue;
		}
		if (n < 0) {
			sl_err("cannot read what the kernel asks: %s", strerror(errno));
			break;
		}
		g->reads++;
		for_each_event(m, g->area->read, (size_t)n)
		{
			if (m->fd >= 0)
				take(g, m, (size_t)n >= MANY * EVENT_BYTES);
			else if (m->mask & FAN_Q_OVERFLOW)
				sl_err("the kernel's queue of accesses overflowed, although it has no limit");
		}
		memset(g->area->read, 0, (size_t)n);
		g->reads++;
	}
	g->stopped = true;
	return NULL;
}

/* What an earlier service had read, and not got to, stands in its slot as well. */
static void note_read(struct sl_fan *g)
{
	for_each_event(m, g->area->read, READ_BYTES)
	{
		struct slot s = parse(m);
		if (m->fd >= 0)
			note(g, m->fd, &s);
		m->fd = FAN_NOFD;
	}
	memset(g->area->read, 0, READ_BYTES);
}

/*
 * The group was kept, and the descriptors of its events were not: which files they are about nobody knows. An
 * answer goes by the number all the same, and it must come before the kernel gives that number again.
 */
void fan_refuse_lost(struct sl_fan *g)
{
	size_t n = 0;
	note_read(g);
	for (uint32_t fd = 0; fd < SL_MIN(g->area->top, g->area->nslots); fd++) {
		struct slot *s = &g->area->slot[fd];
		if (s->mask) {
			fan_respond(g, (int)fd, refusal(-EIO));
			s->mask = 0;
			n++;
		}
	}
	if (n)
		sl_notice("%zu accesses waited when service and keeper were killed: they are refused", n);
}

int sl_fan_start(struct sl_fan *g)
{
	size_t n = 0;
	note_read(g);
	for (uint32_t fd = 0; fd < SL_MIN(g->area->top, g->area->nslots); fd++) {
		struct slot s = g->area->slot[fd];
		if (s.mask) {
			n++;
			keep(g, (int)fd, &s);
		}
	}
	if (n)
		sl_info("%zu accesses waited for this service", n);
	int flags = fcntl(g->group, F_GETFL);
	int r = flags < 0 || fcntl(g->group, F_SETFL, flags & ~O_NONBLOCK) < 0 ? -errno : 0;
	if (r == 0)
		r = -pthread_create(&g->changes, NULL, fan_changes, g);
	if (r == 0) {
		r = -pthread_create(&g->events, NULL, events_thread, g);
		g->started = r == 0;
	}
	return r;
}

static void wake(int sig)
{
	(void)sig;
}

/* A signal that comes just before the read is lost, so it is sent until the thread is out. */
static void stop_events(struct sl_fan *g)
{
	struct sigaction sa = {.sa_handler = wake}, old;
	sigaction(SIGUSR1, &sa, &old);
	g->stop = true;
	while (!g->stopped) {
		pthread_kill(g->events, SIGUSR1);
		usleep(1000);
	}
	sigaction(SIGUSR1, &old, NULL);
}

void sl_fan_stop(struct sl_fan *g)
{
	uint64_t n = 2;
	(void)!write(g->stop_fd, &n, sizeof(n));
	if (g->started) {
		stop_events(g);
		pthread_join(g->events, NULL);
		pthread_join(g->changes, NULL);
	}
	/* What is being answered uses the fill. */
	while (fan_answering(g))
		usleep(1000);
	g->started = false;
}

bool sl_fan_area(const void *area)
{
	return *(const uint32_t *)area == AREA_MAGIC;
}

void sl_fan_each_fd(const void *area, size_t size, void (*fn)(void *arg, int fd), void *arg)
{
	const struct area *a = area;
	if (size < sizeof(*a) || a->nslots > (size - sizeof(*a)) / sizeof(a->slot[0]))
		return;
	for_each_event(m, a->read, READ_BYTES) if (m->fd >= 0) fn(arg, m->fd);
	for (uint32_t i = 0; i < a->nslots && i < a->top; i++)
		if (a->slot[i].mask)
			fn(arg, (int)i);
}
