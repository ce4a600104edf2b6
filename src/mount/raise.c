/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "mount/raise.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/fanotify.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <xxhash.h>

#include "base/log.h"
#include "base/macros.h"
#include "mount/internal.h"
#include "notify/backend.h"

/* ---- what the kernel has cached ---- */

static void notify(struct sl_raise *r, enum fuse_notify_code code, struct iovec *v, int n)
{
	int err = sl_server_notify(r->cfg.server, code, v, n);
	if (err < 0 && err != -ENOENT && err != -ENOTDIR && err != -ENODEV && err != -ENOTCONN)
		sl_debug("the kernel does not forget: %s", strerror(-err));
}

/* Have the kernel ask for the name when it is used next. */
static void expire(struct sl_raise *r, uint64_t dir, const char *name, uint32_t flags)
{
	struct fuse_notify_inval_entry_out n = {
	    .parent = dir, .namelen = (uint32_t)strlen(name), .flags = flags};
	struct iovec v[2] = {{&n, sizeof(n)}, {(char *)name, n.namelen + 1}};
	notify(r, FUSE_NOTIFY_INVAL_ENTRY, v, 2);
}

static void drop_pages(struct sl_raise *r, uint64_t nodeid)
{
	struct fuse_notify_inval_inode_out n = {.ino = nodeid};
	struct iovec v = {&n, sizeof(n)};
	notify(r, FUSE_NOTIFY_INVAL_INODE, &v, 1);
}

/* ---- acts ---- */

static void show_made(struct sl_raise *r, struct shown *s, uint32_t type)
{
	s->there = true;
	s->entry = (struct fuse_entry_out){.nodeid = MADE_NODES + ++r->made};
	s->entry.attr = raise_made_attr(r, s->entry.nodeid, type);
}

/* Show what @p says is at its name now; false: nothing is, or something else than the event is about. */
static bool show_state(const struct sl_fsnotify_part *p, struct shown *s, uint64_t mask)
{
	if (!p->has_state || !p->entry.nodeid)
		return false;
	if (p->child_generation && p->entry.generation && p->child_generation != p->entry.generation)
		return false;
	if (mask && S_ISDIR(p->entry.attr.mode) != !!(mask & FAN_ONDIR))
		return false;
	s->there = true;
	s->entry = p->entry;
	s->counts = 1;
	return true;
}

/* What @p counted, and nobody was shown. */
static void unused(struct sl_raise *r, const struct sl_fsnotify_part *p)
{
	if (p->namelen && p->has_state && p->entry.nodeid)
		r->cfg.forget(r->cfg.arg, p->entry.nodeid, 1);
}

/* Show the object that the event is about, whatever is at its name by now. */
static void show_child(struct sl_raise *r, const struct sl_fsnotify_part *p, struct shown *s, uint64_t mask)
{
	uint32_t type = mask & FAN_ONDIR ? S_IFDIR : S_IFREG;
	if (show_state(p, s, mask))
		return;
	unused(r, p);
	show_made(r, s, type);
	if (!p->child)
		return;
	struct fuse_attr a;
	if (r->cfg.getattr(r->cfg.arg, p->child, &a) < 0)
		a = raise_made_attr(r, p->child, type);
	s->entry.nodeid = p->child;
	s->entry.generation = p->child_generation;
	s->entry.attr = a;
}

static int attach(struct sl_raise *r)
{
	if (r->attached)
		return 0;
	int err = sl_helper_call(
	    r->helper,
	    &(struct sl_helper_call){.op = SL_HELPER_ATTACH, .name = r->cfg.dir, .name2 = r->staging});
	r->attached = err == 0;
	return err;
}

void sl_raise_rest(struct sl_raise *r)
{
	if (r->attached)
		(void)sl_helper_call(r->helper, &(struct sl_helper_call){.op = SL_HELPER_DETACH});
	r->attached = false;
}

static void give_back(struct sl_raise *r, struct shown *s)
{
	if (s->counts)
		r->cfg.forget(r->cfg.arg, s->entry.nodeid, s->counts);
	s->counts = 0;
}

static int perform(struct sl_raise *r, struct act *x, struct sl_helper_call *c)
{
	int err = attach(r);
	pthread_mutex_lock(&r->lock);
	r->act = x;
	pthread_mutex_unlock(&r->lock);
	for (int i = 0; err == 0 && i < 8; i++) {
		err = sl_helper_call(r->helper, c);
		if (err == -ESTALE && c->op == SL_HELPER_RENAME) {
			/* The kernel has that directory elsewhere still, and cannot move it while it renames:
			 * a lookup alone does. (Directories cannot be opened for writing.) */
			if (!S_ISDIR(x->a.entry.attr.mode))
				break;
			(void)sl_helper_call(r->helper, &(struct sl_helper_call){.op = SL_HELPER_CLOSE,
										 .dir = c->dir,
										 .name = c->name,
										 .flags = O_WRONLY});
		} else if (err != -EACCES && err != -EPERM) {
			break;
		} else if (x->a.dir != STAGING_NODE) {
			/* Somebody may have asked in between, and been told the true owner. */
			expire(r, x->a.dir, x->a.name, EXPIRE_ONLY);
		}
		if (i < 7)
			err = 0;
	}
	pthread_mutex_lock(&r->lock);
	r->act = NULL;
	pthread_mutex_unlock(&r->lock);
	if (err < 0)
		sl_debug("'%s': no event for a change (%d, node %llx): %s", c->name, (int)c->op,
			 (unsigned long long)x->a.entry.nodeid, strerror(-err));
	give_back(r, &x->a);
	give_back(r, &x->b);
	return err;
}

/* Whatever came of it, the kernel is not to go on believing what it did. */
static void perform_name(struct sl_raise *r, struct act *x, struct sl_helper_call *c)
{
	if (perform(r, x, c) >= 0)
		return;
	if (x->a.dir != STAGING_NODE)
		expire(r, x->a.dir, x->a.name, 0);
	if (x->b.name && x->b.dir != STAGING_NODE)
		expire(r, x->b.dir, x->b.name, 0);
}

/* One notification's part, as strings. */
struct place {
	char *path; /* of the directory, below the mount */
	char name[256];
};

static bool place_of(struct sl_raise *r, const struct sl_fsnotify_part *p, struct place *at)
{
	memcpy(at->name, p->name, p->namelen);
	at->name[p->namelen] = '\0';
	at->path = r->cfg.path(r->cfg.arg, p->nodeid);
	return at->path;
}

static void raise_create(struct sl_raise *r, const struct sl_fsnotify_part *p, const struct place *at,
			 uint64_t mask)
{
	struct act x = {.a = {.dir = p->nodeid, .name = at->name}};
	char target[SL_FSNOTIFY_TARGET_MAX + 1] = "?";
	if (!show_state(p, &x.a, mask)) {
		unused(r, p);
		show_made(r, &x.a, mask & FAN_ONDIR ? S_IFDIR : S_IFREG);
	}
	x.a.there = false; /* until it is made */
	uint32_t mode = x.a.entry.attr.mode;
	struct sl_helper_call c = {.dir = at->path, .name = at->name, .mode = mode & (S_IFMT | 0777)};
	if (S_ISDIR(mode)) {
		c.op = SL_HELPER_MKDIR;
		x.opcode = FUSE_MKDIR;
	} else if (S_ISLNK(mode)) {
		c.op = SL_HELPER_SYMLINK;
		x.opcode = FUSE_SYMLINK;
		if (p->target_len) {
			memcpy(target, p->target, p->target_len);
			target[p->target_len] = '\0';
		}
		c.name2 = target;
	} else {
		c.op = SL_HELPER_MKNOD;
		x.opcode = FUSE_MKNOD;
		if ((S_ISCHR(mode) || S_ISBLK(mode)) && r->uid != 0) {
			/* A device is not for everybody to make: the event is about a file, and who looks
			 * finds the device. */
			give_back(r, &x.a);
			show_made(r, &x.a, S_IFREG);
			x.a.there = false;
			c.mode = S_IFREG | 0600;
		} else if (S_ISCHR(mode) || S_ISBLK(mode)) {
			c.rdev =
			    makedev((x.a.entry.attr.rdev & 0xfff00) >> 8,
				    (x.a.entry.attr.rdev & 0xff) | ((x.a.entry.attr.rdev >> 12) & 0xfff00));
		}
	}
	sl_told_set(&r->told, p->nodeid, at->name, x.a.entry.nodeid, S_ISDIR(mode));
	perform_name(r, &x, &c);
}

static void raise_delete(struct sl_raise *r, const struct sl_fsnotify_part *p, const struct place *at,
			 uint64_t mask)
{
	bool dir = mask & FAN_ONDIR;
	struct act x = {.a = {.dir = p->nodeid, .name = at->name}, .opcode = dir ? FUSE_RMDIR : FUSE_UNLINK};
	struct sl_helper_call c = {
	    .op = dir ? SL_HELPER_RMDIR : SL_HELPER_UNLINK, .dir = at->path, .name = at->name};
	show_child(r, p, &x.a, mask);
	expire(r, p->nodeid, at->name, EXPIRE_ONLY);
	sl_told_set(&r->told, p->nodeid, at->name, 0, false);
	perform_name(r, &x, &c);
}

/* Only one half of a rename is ours: the other is where nobody looks. */
static void raise_moved(struct sl_raise *r, const struct sl_fsnotify_part *p, const struct place *at,
			uint64_t mask, bool away)
{
	char tmp[32];
	snprintf(tmp, sizeof(tmp), "%llu", (unsigned long long)++r->staged);
	struct act x = {.opcode = FUSE_RENAME};
	struct sl_helper_call c = {.op = SL_HELPER_RENAME};
	struct shown *here = away ? &x.a : &x.b, *there = away ? &x.b : &x.a;
	here->dir = p->nodeid;
	here->name = at->name;
	there->dir = STAGING_NODE;
	there->name = tmp;
	show_child(r, p, &x.a, mask);
	if (away) {
		c.dir = at->path;
		c.name = at->name;
		c.name2 = tmp;
		expire(r, p->nodeid, at->name, EXPIRE_ONLY);
	} else {
		c.name = tmp;
		c.dir2 = at->path;
		c.name2 = at->name;
	}
	sl_told_set(&r->told, p->nodeid, at->name, away ? 0 : x.a.entry.nodeid, S_ISDIR(x.a.entry.attr.mode));
	perform_name(r, &x, &c);
	if (away && r->cfg.moved)
		r->cfg.moved(r->cfg.arg, p->nodeid, at->name, 0, NULL, false);
	expire(r, STAGING_NODE, tmp, 0); /* the object itself is somewhere, perhaps */
}

static void raise_rename(struct sl_raise *r, const struct sl_fsnotify_msg *m, bool exchange)
{
	const struct sl_fsnotify_part *from = &m->part[0], *to = &m->part[1];
	struct place a = {0}, b = {0};
	struct act x = {.a = {.dir = from->nodeid, .name = a.name},
			.b = {.dir = to->nodeid, .name = b.name},
			.opcode = FUSE_RENAME};
	if (place_of(r, from, &a) && place_of(r, to, &b)) {
		struct sl_helper_call c = {.op = SL_HELPER_RENAME,
					   .dir = a.path,
					   .name = a.name,
					   .dir2 = b.path,
					   .name2 = b.name,
					   .flags = exchange ? RENAME_EXCHANGE : 0};
		show_child(r, to, &x.a, m->mask);
		expire(r, from->nodeid, a.name, EXPIRE_ONLY);
		if (exchange) {
			x.b.there = true;
			x.b.entry = from->entry;
			x.b.counts = 1;
			expire(r, to->nodeid, b.name, EXPIRE_ONLY);
		}
		sl_told_set(&r->told, from->nodeid, a.name, exchange ? x.b.entry.nodeid : 0,
			    S_ISDIR(x.b.entry.attr.mode));
		sl_told_set(&r->told, to->nodeid, b.name, x.a.entry.nodeid, S_ISDIR(x.a.entry.attr.mode));
		if (perform(r, &x, &c) < 0 && !exchange) {
			/* What the kernel believes to be there may be in the way. */
			expire(r, to->nodeid, b.name, 0);
			perform_name(r, &x, &c);
		}
		if (r->cfg.moved)
			r->cfg.moved(r->cfg.arg, from->nodeid, a.name, to->nodeid, b.name, exchange);
	} else {
		unused(r, to);
		if (exchange)
			unused(r, from);
	}
	free(a.path);
	free(b.path);
}

/* Content or attributes have changed. */
static void raise_use(struct sl_raise *r, const struct sl_fsnotify_part *p, const struct place *at,
		      uint64_t mask)
{
	struct act x = {.a = {.dir = p->nodeid, .name = at->name}};
	struct sl_helper_call c = {.op = SL_HELPER_TIMES, .dir = at->path, .name = at->name};
	mask = sl_uses_news(&r->uses, XXH64(at->name, strlen(at->name), p->nodeid) | 1, mask);
	if (!(mask & ~(uint64_t)FAN_ONDIR)) {
		unused(r, p);
		return;
	}
	show_child(r, p, &x.a, mask);
	const struct fuse_attr *a = &x.a.entry.attr;
	const struct timespec mtime = {(time_t)a->mtime, a->mtimensec},
			      atime = {(time_t)a->atime, a->atimensec};
	bool reg = S_ISREG(a->mode) && !raise_made_up(x.a.entry.nodeid);
	if (reg && mask & FAN_MODIFY)
		drop_pages(r, x.a.entry.nodeid);
	if (r->uid != 0 && *at->name)
		expire(r, p->nodeid, at->name, EXPIRE_ONLY);
	c.mtime = mtime;
	if (mask & FAN_MODIFY) {
		c.atime = (struct timespec){.tv_nsec = UTIME_OMIT};
		(void)perform(r, &x, &c);
	}
	if (mask & FAN_ATTRIB) {
		c.atime = atime;
		(void)perform(r, &x, &c);
	}
	if (mask & FAN_CLOSE_WRITE && S_ISREG(a->mode)) {
		c.op = SL_HELPER_CLOSE;
		c.flags = O_WRONLY;
		(void)perform(r, &x, &c);
	}
	if ((mask & FAN_CLOSE_NOWRITE || (mask & FAN_OPEN && !(mask & FAN_CLOSE_WRITE))) &&
	    (S_ISREG(a->mode) || S_ISDIR(a->mode))) {
		c.op = SL_HELPER_CLOSE;
		c.flags = O_RDONLY;
		(void)perform(r, &x, &c);
	}
	if (mask & FAN_ACCESS) {
		c.op = SL_HELPER_TIMES;
		c.atime = atime;
		c.mtime = (struct timespec){.tv_nsec = UTIME_OMIT};
		(void)perform(r, &x, &c);
	}
	give_back(r, &x.a);
}

/* Nothing happened that anybody told of, but this is what is there. */
static void raise_state(struct sl_raise *r, const struct sl_fsnotify_part *p, const struct place *at)
{
	struct sl_told *was = sl_told_get(&r->told, p->nodeid, at->name);
	uint64_t now = p->entry.nodeid;
	if (!was || was->nodeid == now) {
		/* Of names that nobody was told of, or that are as they were told, the kernel finds out
		 * itself. */
		if (!was)
			expire(r, p->nodeid, at->name, EXPIRE_ONLY);
		unused(r, p);
		return;
	}
	if (was->nodeid) {
		struct sl_fsnotify_part gone = *p;
		gone.has_state = false;
		gone.child = raise_made_up(was->nodeid) ? 0 : was->nodeid;
		raise_delete(r, &gone, at, was->dir ? FAN_ONDIR : 0);
	}
	if (now)
		raise_create(r, p, at, S_ISDIR(p->entry.attr.mode) ? FAN_ONDIR : 0);
	was = sl_told_get(&r->told, p->nodeid, at->name);
	if (was)
		was->early = true;
}

static void raise_name(struct sl_raise *r, const struct sl_fsnotify_part *p, const struct place *at,
		       uint64_t mask)
{
	bool come = mask & (FAN_CREATE | FAN_MOVED_TO), gone = mask & (FAN_DELETE | FAN_MOVED_FROM);
	bool same_kind = gone || !p->has_state || S_ISDIR(p->entry.attr.mode) == !!(mask & FAN_ONDIR);
	if ((come || gone) && same_kind &&
	    sl_told_early(&r->told, p->nodeid, at->name, come && p->has_state ? p->entry.nodeid : 0)) {
		unused(r, p);
		return;
	}
	if (mask & FAN_CREATE)
		raise_create(r, p, at, mask);
	else if (mask & FAN_DELETE)
		raise_delete(r, p, at, mask);
	else if (come || gone)
		raise_moved(r, p, at, mask, gone);
	else
		raise_use(r, p, at, mask);
}

static void raise_one(struct sl_raise *r, const struct sl_fsnotify_part *p, uint64_t mask)
{
	struct place at;
	if (!place_of(r, p, &at))
		unused(r, p);
	else if (!p->namelen)
		raise_use(r, p, &at, mask);
	else if (!mask)
		raise_state(r, p, &at);
	else
		raise_name(r, p, &at, mask);
	free(at.path);
}

/* What of a rename was not told already; false where that is not both halves: then it was raised. */
static bool both_are_news(struct sl_raise *r, const struct sl_fsnotify_msg *m)
{
	const struct sl_fsnotify_part *from = &m->part[0], *to = &m->part[1];
	char a[256], b[256];
	snprintf(a, sizeof(a), "%.*s", (int)from->namelen, from->name);
	snprintf(b, sizeof(b), "%.*s", (int)to->namelen, to->name);
	bool from_told = sl_told_early(&r->told, from->nodeid, a, 0);
	bool to_told =
	    to->has_state && to->entry.nodeid && sl_told_early(&r->told, to->nodeid, b, to->entry.nodeid);
	uint64_t kind = m->mask & FAN_ONDIR;
	if (!from_told && !to_told)
		return true;
	if (from_told)
		unused(r, from);
	else
		raise_one(r, from, kind | FAN_MOVED_FROM);
	if (to_told)
		unused(r, to);
	else
		raise_one(r, to, kind | FAN_MOVED_TO);
	return false;
}

bool sl_raise_needs_next(const struct sl_fsnotify_msg *m)
{
	return m->nparts == 2 && m->part[0].has_state && m->part[0].entry.nodeid;
}

static bool same_place(const struct sl_fsnotify_part *a, const struct sl_fsnotify_part *b)
{
	return a->nodeid == b->nodeid && a->namelen == b->namelen && !memcmp(a->name, b->name, a->namelen);
}

int sl_raise_notify(struct sl_raise *r, const struct sl_fsnotify_msg *m, const struct sl_fsnotify_msg *next)
{
	if (m->overflow) {
		sl_warn("changes behind %s came faster than they could be told of: some raise no event",
			r->cfg.dir);
		r->cfg.lost(r->cfg.arg);
		return 0;
	}
	if (m->ignored)
		return 0;
	if (m->nparts < 2) {
		raise_one(r, &m->part[0], m->mask);
		return 0;
	}
	bool exchange = sl_raise_needs_next(m) && next && next->nparts == 2 &&
			same_place(&m->part[0], &next->part[1]) && same_place(&m->part[1], &next->part[0]);
	if (!exchange && !both_are_news(r, m))
		return 0;
	raise_rename(r, m, exchange);
	if (!exchange)
		unused(r, &m->part[0]);
	for (int i = 0; exchange && i < 2; i++)
		unused(r, &next->part[i]);
	return exchange;
}

/* ---- the whole ---- */

int sl_raise_new(struct sl_raise **ret, char **why)
{
	struct sl_raise *r = calloc(1, sizeof(*r));
	if (!r)
		return -ENOMEM;
	int err = sl_helper_start(&r->helper);
	if (err < 0) {
		free(r);
		return sl_fail(why, err, "cannot start a process: %s", strerror(-err));
	}
	pthread_mutex_init(&r->lock, NULL);
	r->pid = (uint32_t)sl_helper_pid(r->helper);
	r->uid = geteuid();
	snprintf(r->staging, sizeof(r->staging), STAGING_NAME "%u", (unsigned)r->pid);
	*ret = r;
	return 0;
}

void sl_raise_stop(struct sl_raise *r)
{
	kill(sl_helper_pid(r->helper), SIGKILL);
}

void sl_raise_begin(struct sl_raise *r, const struct sl_raise_config *cfg)
{
	r->cfg = *cfg;
	r->begun = true;
}

void sl_raise_free(struct sl_raise *r)
{
	if (!r)
		return;
	sl_helper_stop(r->helper);
	pthread_mutex_destroy(&r->lock);
	free(r);
}
