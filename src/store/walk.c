/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "store/walk.h"

#include <dirent.h>
#include <limits.h>
#include <string.h>

#include "base/fd.h"

int sl_names_read(struct sl_object *dir, struct sl_name **ret, size_t *n)
{
	int fd = sl_object_open_dir(dir);
	if (fd < 0)
		return fd;
	DIR *d = fdopendir(fd);
	if (!d) {
		close(fd);
		return -ENOMEM;
	}
	struct sl_name *v = NULL;
	size_t k = 0, cap = 0;
	int r = 0;
	for (;;) {
		errno = 0;
		struct dirent *e = readdir(d);
		if (!e) {
			r = -errno;
			break;
		}
		if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
			continue;
		if (k == cap) {
			cap = cap ? cap * 2 : 64;
			struct sl_name *g = reallocarray(v, cap, sizeof(*g));
			if (!g) {
				r = -ENOMEM;
				break;
			}
			v = g;
		}
		v[k] = (struct sl_name){.ino = e->d_ino, .type = e->d_type, .name = strdup(e->d_name)};
		if (!v[k].name) {
			r = -ENOMEM;
			break;
		}
		k++;
	}
	closedir(d);
	if (r < 0) {
		sl_names_free(v, k);
		return r;
	}
	*ret = v;
	*n = k;
	return 0;
}

void sl_names_free(struct sl_name *v, size_t n)
{
	for (size_t i = 0; i < n; i++)
		free(v[i].name);
	free(v);
}

/* Files of several names that were met already; a table that is NULL knows none. */
struct seen {
	struct sl_hnode node;
};

static bool seen_before(struct sl_htab *seen, struct sl_object *o)
{
	if (!seen || sl_object_is_dir(o) || o->names < 2)
		return false;
	if (sl_htab_find(seen, sl_object_ino(o)))
		return true;
	struct seen *x = malloc(sizeof(*x));
	if (x && sl_htab_add(seen, &x->node, sl_object_ino(o)) < 0)
		free(x);
	return false;
}

static int walk(struct sl_htab *seen, struct sl_object *o, const char *path, sl_walk_fn fn, void *arg)
{
	if (o->damaged)
		return fn(arg, path, NULL, o->damaged);
	if (seen_before(seen, o))
		return 0;
	int r = fn(arg, path, o, 0);
	if (r != 0 || !sl_object_is_dir(o))
		return r < 0 ? r : 0;
	struct sl_name *v = NULL;
	size_t n = 0;
	r = sl_names_read(o, &v, &n);
	for (size_t i = 0; i < n && r >= 0; i++) {
		struct sl_object *child = NULL;
		_cleanup_free_ char *p = sl_path_join(path, v[i].name);
		r = p ? sl_object_lookup(o, v[i].name, &child) : -ENOMEM;
		if (r == 0)
			r = walk(seen, child, p, fn, arg);
		else if (r != -ENOMEM && r != -ENOENT)
			r = fn(arg, p, NULL, r);
		else if (r == -ENOENT)
			r = 0; /* deleted meanwhile */
		sl_object_put(child);
	}
	sl_names_free(v, n);
	return r < 0 ? r : 0;
}

int sl_walk(struct sl_object *o, sl_walk_fn fn, void *arg)
{
	_cleanup_free_ char *path = sl_object_path(o);
	struct sl_htab seen = {0};
	struct sl_hnode *h;
	size_t i;
	int r = path ? walk(&seen, o, path, fn, arg) : -ENOMEM;
	while ((h = sl_htab_first(&seen, &i))) {
		sl_htab_del(&seen, h);
		free(sl_container_of(h, struct seen, node));
	}
	sl_htab_fini(&seen);
	return r;
}

int sl_walk_names(struct sl_object *o, sl_walk_fn fn, void *arg)
{
	_cleanup_free_ char *path = sl_object_path(o);
	return path ? walk(NULL, o, path, fn, arg) : -ENOMEM;
}

int sl_object_by_path(struct sl_store *s, const char *path, struct sl_object **dir, struct sl_object **ret)
{
	_cleanup_object_ struct sl_object *at = sl_object_ref(sl_object_root(s));
	char part[NAME_MAX + 1];
	for (;;) {
		size_t n = strcspn(path, "/");
		struct sl_object *o = NULL;
		if (n >= sizeof(part))
			return -ENAMETOOLONG;
		memcpy(part, path, n);
		part[n] = '\0';
		int r = sl_object_is_dir(at) ? sl_object_lookup(at, part, &o) : -ENOTDIR;
		if (r < 0)
			return r;
		if (!path[n]) {
			*dir = sl_steal_ptr(&at);
			*ret = o;
			return 0;
		}
		sl_object_put(at);
		at = o;
		path += n + 1;
	}
}
