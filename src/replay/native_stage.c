/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What comes into the tree and what has left it, where nobody sees it. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/beneath.h"
#include "base/fd.h"
#include "base/log.h"
#include "replay/native_internal.h"
#include "store/walk.h"

const char *stage_name(struct sl_native_acts *a, const char *kind, char name[32])
{
	snprintf(name, 32, "%s-%llu", kind, (unsigned long long)a->next++);
	return name;
}

int stage_object(struct sl_native_acts *a, const char *name, struct sl_object **ret)
{
	_cleanup_close_ int fd = openat(a->stage, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	return fd < 0 ? -errno : sl_object_of_fd(a->cfg.store, fd, ret);
}

int stage_link(struct sl_object *o, int dirfd, const char *name)
{
	char p[SL_PROC_FD_MAX];
	pthread_mutex_lock(&o->lock);
	o->rec.flags |= SL_LINKED;
	int r = sl_object_save(o);
	pthread_mutex_unlock(&o->lock);
	_cleanup_close_ int fd = r == 0 ? sl_object_pin(o) : r;
	if (fd < 0)
		return fd;
	return linkat(AT_FDCWD, sl_proc_fd_path(p, fd, NULL), dirfd, name, AT_SYMLINK_FOLLOW) < 0 ? -errno
												  : 0;
}

struct join {
	struct sl_native_acts *a;
	const char *name;
	size_t above; /* of each path */
};

/* A file that comes with a directory may be one that is here under another name. */
static int join_one(void *arg, const char *path, struct sl_object *o, int err)
{
	struct join *j = arg;
	if (!o || !sl_object_is_reg(o))
		return err;
	pthread_mutex_lock(&o->lock);
	struct sl_version v = o->rec.origin;
	bool linked = o->rec.flags & SL_LINKED;
	pthread_mutex_unlock(&o->lock);
	_cleanup_object_ struct sl_object *other = linked ? sl_peers_find(j->a->peers, &v, NULL) : NULL;
	const char *rest = strlen(path) > j->above ? path + j->above + 1 : NULL;
	if (!other || other == o || !rest) {
		sl_peers_note(j->a->peers, o);
		return 0;
	}
	const char *slash = strrchr(rest, '/');
	_cleanup_free_ char *below = slash ? strndup(rest, (size_t)(slash - rest)) : strdup("");
	_cleanup_free_ char *up = below ? (*below ? sl_path_join(j->name, below) : strdup(j->name)) : NULL;
	_cleanup_close_ int fd = up ? sl_open_beneath(j->a->stage, up, O_PATH | O_DIRECTORY) : -ENOMEM;
	if (fd < 0)
		return fd;
	rest = slash ? slash + 1 : rest;
	return unlinkat(fd, rest, 0) < 0 ? -errno : stage_link(other, fd, rest);
}

static int join_all(struct sl_native_acts *a, const char *name, struct sl_object *o)
{
	_cleanup_free_ char *place = NULL;
	int r = sl_object_place(o, &place);
	struct join j = {.a = a, .name = name, .above = r == 0 ? strlen(place) : 0};
	return r < 0 ? r : sl_walk(o, join_one, &j);
}

int stage_complete(struct sl_native_acts *a, const char *name, const struct sl_attr *at, bool whole)
{
	_cleanup_object_ struct sl_object *o = NULL;
	int r = stage_object(a, name, &o);
	if (r < 0)
		return r;
	if (S_ISDIR(at->mode) && whole) {
		r = sl_fill_tree(a->cfg.fill, o, NULL, NULL);
		int q = sl_store_drop_links(a->cfg.store);
		if (r == 0 && q == 0)
			q = join_all(a, name, o);
		return r < 0 ? r : q;
	}
	sl_peers_note(a->peers, o);
	return at->no_xattrs ? 0 : sl_fill_wait(a->cfg.fill, SL_WANT_XATTRS, o, 0, 0);
}

void stage_discard(struct sl_native_acts *a, const char *name)
{
	int r = sl_remove_tree(a->stage, name);
	if (r < 0)
		sl_warn("what is no longer at the origin cannot be removed from the store: %s", strerror(-r));
}

/* What an earlier service left there. */
static int purge_one(struct sl_native_acts *a, const char *name)
{
	_cleanup_object_ struct sl_object *o = NULL;
	/* Of this service: names are just being made, or taken away. */
	if (!strncmp(name, SL_STAGED_NEW, strlen(SL_STAGED_NEW)) ||
	    !strncmp(name, SL_STAGED_EVICTED, strlen(SL_STAGED_EVICTED)))
		return 0;
	if (!strncmp(name, "out-", 4) && stage_object(a, name, &o) == 0 && native_kept(a, o) < 0) {
		_cleanup_free_ char *path = sl_object_path(o);
		sl_err("'%s' was moved away at the origin, and holds something that was changed here: it is "
		       "in the "
		       "store, as staging/%s",
		       path, name);
		unsigned long long n = strtoull(name + 4, NULL, 10);
		a->next = SL_MAX(a->next, n + 1);
		return 0;
	}
	stage_discard(a, name);
	return 0;
}

int stage_purge(struct sl_native_acts *a)
{
	struct sl_object *o = NULL;
	struct sl_name *v = NULL;
	size_t n = 0;
	int r = sl_object_of_fd(a->cfg.store, a->stage, &o);
	if (r == 0)
		r = sl_names_read(o, &v, &n);
	for (size_t i = 0; i < n && r == 0; i++)
		r = purge_one(a, v[i].name);
	sl_names_free(v, n);
	sl_object_put(o);
	return r;
}
