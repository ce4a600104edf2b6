/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One mark for the whole filesystem: no cost per directory, nothing pinned, and who did it is known. Events
 * name directories and objects by file handle, whose hash is what the exporter knows nodes by.
 *
 * Needs CAP_SYS_ADMIN and Linux 5.17 (FAN_RENAME, FAN_REPORT_TARGET_FID). The layout of events:
 * fanotify(7), include/uapi/linux/fanotify.h.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fanotify.h>
#include <sys/stat.h>

#include "base/beneath.h"
#include "base/why.h"
#include "notify/internal.h"

#ifndef FAN_REPORT_TARGET_FID
#define FAN_REPORT_TARGET_FID 0x00001000
#endif
#ifndef FAN_REPORT_DFID_NAME_TARGET
#define FAN_REPORT_DFID_NAME_TARGET (FAN_REPORT_DFID_NAME | FAN_REPORT_FID | FAN_REPORT_TARGET_FID)
#endif
#ifndef FAN_EVENT_INFO_TYPE_OLD_DFID_NAME
#define FAN_EVENT_INFO_TYPE_OLD_DFID_NAME 10
#define FAN_EVENT_INFO_TYPE_NEW_DFID_NAME 12
#endif
#ifndef AT_HANDLE_FID
#define AT_HANDLE_FID AT_REMOVEDIR /* Linux 6.5, include/uapi/linux/fcntl.h */
#endif

/* The self events of the root are made of what is told of its name; MOVED_* are the halves of FAN_RENAME. */
#define MASK                                                                                                 \
	((SL_CHANGE_MASK & ~(FAN_DELETE_SELF | FAN_MOVE_SELF | FAN_MOVED_FROM | FAN_MOVED_TO)) | FAN_ONDIR)

#define NEEDS "fanotify for a whole filesystem needs CAP_SYS_ADMIN"

/* Header, three handles of 128 bytes at most, two names. */
#define ROOM 2048

/* A record "handle, maybe a name" as it is in @p, of which @left bytes belong to it. */
static bool parse_fid(const char *p, size_t left, struct sl_evid *id, const char **name)
{
	const size_t head = offsetof(struct fanotify_event_info_fid, handle);
	struct file_handle h;
	if (left < head + sizeof(h))
		return false;
	memcpy(&h, p + head, sizeof(h));
	p += head + sizeof(h);
	left -= head + sizeof(h);
	if (h.handle_bytes > left || h.handle_bytes > MAX_HANDLE_SZ)
		return false;
	*id = (struct sl_evid){0};
	if (h.handle_bytes)
		id->generation = sl_handle_number(h.handle_type, p, h.handle_bytes);
	p += h.handle_bytes;
	left -= h.handle_bytes;
	if (!name)
		return true;
	*name = left > 0 && memchr(p, '\0', left) ? p : NULL;
	return *name != NULL;
}

/* The records after the header. False if they are not as they should be. */
static bool parse_info(const char *p, size_t left, struct sl_change *c)
{
	while (left >= sizeof(struct fanotify_event_info_header)) {
		struct fanotify_event_info_header h;
		bool ok = true;
		memcpy(&h, p, sizeof(h));
		if (h.len < sizeof(h) || h.len > left)
			return false;
		switch (h.info_type) {
		case FAN_EVENT_INFO_TYPE_FID:
			ok = parse_fid(p, h.len, &c->child, NULL);
			break;
		case FAN_EVENT_INFO_TYPE_DFID:
			ok = parse_fid(p, h.len, &c->dir, NULL);
			break;
		case FAN_EVENT_INFO_TYPE_DFID_NAME:
		case FAN_EVENT_INFO_TYPE_OLD_DFID_NAME:
			ok = parse_fid(p, h.len, &c->dir, &c->name);
			break;
		case FAN_EVENT_INFO_TYPE_NEW_DFID_NAME:
			ok = parse_fid(p, h.len, &c->newdir, &c->newname);
			break;
		default: /* from a newer kernel, and not asked for */
			break;
		}
		if (!ok)
			return false;
		p += h.len;
		left -= h.len;
	}
	return true;
}

static bool same(const struct sl_evid *a, const struct sl_evid *b)
{
	return a->generation && a->generation == b->generation;
}

static void add_self(const struct sl_change *of, uint64_t mask, const struct sl_evid *root,
		     struct sl_changes *out)
{
	uint32_t tid = of->tid; /* @of may move */
	uint64_t when = of->when;
	struct sl_change *c = sl_changes_add(out);
	if (c)
		*c = (struct sl_change){
		    .mask = mask | FAN_ONDIR, .dir = *root, .child = *root, .tid = tid, .when = when};
}

/* Bring the event into the form that backend.h promises. False: there is nothing to tell. */
static bool normalise(struct sl_change *c)
{
	if (c->mask & FAN_RENAME) {
		c->mask &= FAN_RENAME | FAN_ONDIR;
		if (c->name && c->newname)
			return true;
		/* Where the kernel gives one half only. */
		c->mask = (c->mask & FAN_ONDIR) | (c->name ? FAN_MOVED_FROM : FAN_MOVED_TO);
		if (!c->name) {
			c->dir = c->newdir;
			c->name = c->newname;
		}
		c->newdir = (struct sl_evid){0};
		c->newname = NULL;
		return c->name != NULL;
	}
	if (c->mask & (FAN_CREATE | FAN_DELETE | FAN_MOVED_FROM | FAN_MOVED_TO))
		return c->name != NULL;
	if (c->name && strcmp(c->name, ".") == 0) {
		/* A directory about itself: no name of it is known. */
		c->name = NULL;
		c->child = c->dir;
	} else if (!c->name || strchr(c->name, '/')) {
		/* Of an inode without a name: its link count, or it was opened by its handle. */
		c->name = NULL;
		c->dir = (struct sl_evid){0};
	}
	return c->child.generation != 0;
}

void sl_fanotify_parse(const struct sl_evid *root, const char *buf, size_t n, uint64_t when,
		       struct sl_changes *out)
{
	while (n >= sizeof(struct fanotify_event_metadata)) {
		struct fanotify_event_metadata m;
		memcpy(&m, buf, sizeof(m));
		if (m.event_len < sizeof(m) || m.event_len > n || m.metadata_len < sizeof(m) ||
		    m.metadata_len > m.event_len || m.vers != FANOTIFY_METADATA_VERSION)
			break;
		struct sl_change *c = sl_changes_add(out);
		if (!c)
			return;
		c->when = when;
		if (m.mask & FAN_Q_OVERFLOW) {
			c->mask = FAN_Q_OVERFLOW;
		} else {
			c->mask = m.mask & (SL_CHANGE_MASK | SL_CHANGE_USE | FAN_ONDIR);
			c->tid = m.pid > 0 ? (uint32_t)m.pid : 0;
			if (!parse_info(buf + m.metadata_len, m.event_len - m.metadata_len, c))
				*c = (struct sl_change){.mask = FAN_Q_OVERFLOW, .when = when};
			else if (!normalise(c))
				out->n--;
			else if (c->mask & FAN_DELETE && same(&c->child, root))
				add_self(c, FAN_DELETE_SELF, root, out);
			else if (c->mask & (FAN_RENAME | FAN_MOVED_FROM | FAN_MOVED_TO) &&
				 same(&c->child, root))
				add_self(c, FAN_MOVE_SELF, root, out);
		}
		buf += m.event_len;
		n -= m.event_len;
	}
	if (n > 0) { /* not understood: as good as lost */
		struct sl_change *c = sl_changes_add(out);
		if (c)
			*c = (struct sl_change){.mask = FAN_Q_OVERFLOW, .when = when};
	}
}

static void parse(struct sl_source *s, char *buf, size_t n, uint64_t when, struct sl_changes *out)
{
	sl_fanotify_parse(&s->root, buf, n, when, out);
}

/* Older kernels' FIONREAD counts of each event its header alone. */
static uint64_t units(const char *buf, size_t n)
{
	uint64_t k = 0;
	while (n >= sizeof(struct fanotify_event_metadata)) {
		uint32_t len;
		memcpy(&len, buf, sizeof(len));
		if (len < sizeof(struct fanotify_event_metadata) || len > n)
			break;
		k += sizeof(struct fanotify_event_metadata);
		buf += len;
		n -= len;
	}
	return k;
}

static bool more(const char *buf, size_t n)
{
	(void)buf, (void)n;
	return false;
}

static int mark(struct sl_source *s, int fd, const struct sl_evid *id)
{
	(void)s, (void)fd, (void)id;
	return 0;
}

static void unmark(struct sl_source *s, const struct sl_evid *id)
{
	(void)s, (void)id;
}

static int use(struct sl_source *s, uint64_t mask)
{
	uint64_t more = mask & ~s->use, less = s->use & ~mask;
	if (more &&
	    fanotify_mark(s->fd, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, more | FAN_ONDIR, s->root_fd, ".") < 0)
		return -errno;
	/* FAN_ONDIR is the whole mark's. */
	if (less && fanotify_mark(s->fd, FAN_MARK_REMOVE | FAN_MARK_FILESYSTEM, less, s->root_fd, ".") < 0)
		return -errno;
	return 0;
}

static void close_source(struct sl_source *s)
{
	sl_closep(&s->fd);
	free(s);
}

/*
 * Do events name objects by the handle that everybody else gets? Filesystems that cannot open by handle
 * (overlayfs as it mostly is) have handles for events only.
 */
static bool handles_agree(int root_fd)
{
	union {
		struct file_handle h;
		char room[sizeof(struct file_handle) + MAX_HANDLE_SZ];
	} a = {.h.handle_bytes = MAX_HANDLE_SZ}, b = {.h.handle_bytes = MAX_HANDLE_SZ};
	int mount_id;
	if (name_to_handle_at(root_fd, "", &a.h, &mount_id, AT_EMPTY_PATH) < 0)
		return false;
	if (name_to_handle_at(root_fd, "", &b.h, &mount_id, AT_EMPTY_PATH | AT_HANDLE_FID) < 0)
		return errno == EINVAL; /* kernels that cannot tell have events with such handles only */
	return a.h.handle_type == b.h.handle_type && a.h.handle_bytes == b.h.handle_bytes &&
	       memcmp(a.h.f_handle, b.h.f_handle, a.h.handle_bytes) == 0;
}

static int open_group(const struct sl_backend_config *cfg, struct sl_source *s, char **why)
{
	struct stat st;
	if (fstat(cfg->root_fd, &st) < 0)
		return sl_fail(why, -errno, "the tree's root: %s", strerror(errno));
	if (!handles_agree(cfg->root_fd))
		return sl_fail(why, -EOPNOTSUPP, "the filesystem has no file handles that last");
	s->root = (struct sl_evid){.generation = sl_handle_generation(cfg->root_fd, ""), .ino = st.st_ino};
	s->fd = fanotify_init(FAN_CLASS_NOTIF | FAN_CLOEXEC | FAN_NONBLOCK | FAN_REPORT_DFID_NAME_TARGET |
				  FAN_REPORT_TID,
			      O_RDONLY);
	if (s->fd < 0) {
		switch (errno) {
		case EPERM:
			return sl_fail(why, -EPERM, NEEDS);
		case EINVAL:
		case ENOSYS:
			return sl_fail(why, -EOPNOTSUPP, "fanotify with names of objects needs Linux 5.17");
		case EMFILE:
			return sl_fail(
			    why, -EMFILE,
			    "too many fanotify groups (fs.fanotify.max_user_groups) or open files");
		default:
			return sl_fail(why, -errno, "fanotify: %s", strerror(errno));
		}
	}
	if (fanotify_mark(s->fd, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, MASK, cfg->root_fd, ".") ==
	    0) /* not the descriptor itself: it may be O_PATH */
		return 0;
	switch (errno) {
	case EPERM:
		return sl_fail(why, -EPERM, NEEDS);
	case ENODEV:
	case EXDEV:
	case EOPNOTSUPP:
	case EINVAL:
		return sl_fail(why, -EOPNOTSUPP,
			       "the filesystem cannot be watched as a whole (it has no id, or several)");
	default:
		return sl_fail(why, -errno, "fanotify: %s", strerror(errno));
	}
}

static int open_source(const struct sl_backend_config *cfg, struct sl_source **ret, char **why)
{
	struct sl_source *s = calloc(1, sizeof(*s));
	if (!s)
		return sl_fail(why, -ENOMEM, "no memory");
	s->ops = &sl_fanotify_source;
	s->root_fd = cfg->root_fd;
	s->fd = -EBADF;
	int r = open_group(cfg, s, why);
	if (r < 0)
		close_source(s);
	else
		*ret = s;
	return r;
}

const struct sl_source_ops sl_fanotify_source = {
    .kind = SL_BACKEND_FANOTIFY,
    .limit = "fs.fanotify.max_queued_events",
    .room = ROOM,
    .open = open_source,
    .close = close_source,
    .units = units,
    .more = more,
    .parse = parse,
    .mark = mark,
    .unmark = unmark,
    .use = use,
};
