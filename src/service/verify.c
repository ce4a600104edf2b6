/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * verify: compare what is here with the origin, reading nothing into the store. Names of populated
 * directories, types and sizes, symlink targets, and every byte that is here of files that were not modified
 * here.
 *
 * A difference is either `changed`: the origin moved on since (its version is another), or `wrong`: the same
 * version with other names or bytes, which must not happen.
 */
#include <fcntl.h>
#include <stdio.h>

#include "base/fd.h"
#include "base/human.h"
#include "service/commands.h"
#include "store/walk.h"

#define PIECE (4u << 20)

struct verify {
	struct sl_command_call *c;
	uint64_t dirs, files, bytes, changed, wrong, local, failed, last;
};

static void report(struct verify *v, const char *path, const char *kind, const char *what)
{
	json_t *item = json_pack("{so ss ss}", "path", sl_command_name(path), "kind", kind, "what", what);
	sl_control_send(v->c, json_pack("{so}", "item", item));
	if (!strcmp(kind, "wrong"))
		v->wrong++;
	else if (!strcmp(kind, "changed"))
		v->changed++;
	else
		v->failed++;
}

static bool going_on(struct verify *v)
{
	return sl_control_progress(v->c, &v->last,
				   json_pack("{sI sI sI}", "directories", (json_int_t)v->dirs, "files",
					     (json_int_t)v->files, "bytes", (json_int_t)v->bytes));
}

/* Compare [off, off+len), which is here, with the origin. Returns 1 to go on, 0 when the file is settled,
 * -errno. */
static int compare_piece(struct verify *v, struct sl_object *o, const char *path, const char *place, int fd,
			 uint64_t off, size_t len)
{
	struct sl_oreq q = {.op = SL_OREQ_READ, .place = place, .off = off, .len = len, .fresh = true};
	int r = sl_origin_call(v->c->clone->origin, &q);
	if (r < 0) {
		/* That it is gone its directory has said already. */
		if (r != -ENOENT && r != -ESTALE)
			report(v, path, "failed", strerror(-r));
		sl_oreq_fini(&q);
		return 0;
	}
	struct sl_version now = sl_attr_version(&q.attr);
	_cleanup_free_ char *buf = malloc(len);
	pthread_rwlock_rdlock(&o->io);
	pthread_mutex_lock(&o->lock);
	bool same = sl_version_eq(&now, &o->rec.origin), ours = o->rec.flags & (SL_MODIFIED | SL_LOCAL);
	bool here = sl_chunkmap_test(&o->map, off, len);
	pthread_mutex_unlock(&o->lock);
	ssize_t n = !ours && here && same && buf ? sl_pread_full(fd, buf, len, (off_t)off) : 0;
	pthread_rwlock_unlock(&o->io);
	r = 1;
	if (ours || !here) {
		r = 0; /* meanwhile */
	} else if (!same) {
		report(v, path, "changed", "another version at the origin");
		r = 0;
	} else if (n != (ssize_t)len || q.nread != len || memcmp(buf, q.data, len)) {
		report(v, path, "wrong", "the content differs although the version is the same");
		r = 0;
	} else {
		v->bytes += len;
	}
	sl_oreq_fini(&q);
	return r;
}

static int verify_file(struct verify *v, struct sl_object *o, const char *path)
{
	_cleanup_free_ char *place = NULL;
	if (sl_object_place(o, &place) < 0)
		return 0;
	_cleanup_close_ int fd = sl_object_open(o, O_RDONLY);
	if (fd < 0) {
		report(v, path, "failed", strerror(-fd));
		return 0;
	}
	v->files++;
	pthread_mutex_lock(&o->lock);
	uint64_t size = o->map.size, s, e;
	pthread_mutex_unlock(&o->lock);
	for (uint64_t off = 0; off < size;) {
		/* The next run that is here. */
		pthread_mutex_lock(&o->lock);
		bool missing = sl_chunkmap_missing(&o->map, off, size, &s, &e);
		pthread_mutex_unlock(&o->lock);
		uint64_t stop = missing ? s : size;
		if (stop <= off) {
			off = e;
			continue;
		}
		size_t n = (size_t)SL_MIN(stop - off, (uint64_t)PIECE);
		int r = compare_piece(v, o, path, place, fd, off, n);
		if (r <= 0)
			return r;
		off += n;
		if (!going_on(v))
			return -EINTR;
	}
	return 0;
}

static int cmp_entry(const void *a, const void *b)
{
	return strcmp(((const struct sl_oentry *)a)->name, ((const struct sl_oentry *)b)->name);
}

/* Native: nobody tells of names that users change, but a record says where its object comes from. */
static bool moved_here(struct sl_object *o, const char *dir_place, const char *name)
{
	_cleanup_free_ char *own = NULL, *place = sl_path_join(dir_place, name);
	return sl_store_native(o->store) && sl_object_place(o, &own) == 0 && place && strcmp(own, place) != 0;
}

/* One name that is here, in the directory of @place, against the origin's entry of that name, or none. */
static void verify_name(struct verify *v, struct sl_object *o, const char *path, const char *place,
			const char *name, const struct sl_oentry *e, bool same_dir)
{
	pthread_mutex_lock(&o->lock);
	unsigned flags = o->rec.flags;
	struct sl_version had = o->rec.origin;
	bool recorded = o->has_record;
	pthread_mutex_unlock(&o->lock);
	/* Of several names of one object its place is one. */
	bool linked = e && recorded && e->attr.ino == had.ino;
	if (flags & (SL_LOCAL | SL_MOVED) || (!linked && moved_here(o, place, name))) {
		v->local++;
		return;
	}
	if (!e) {
		if (!recorded)
			v->local++; /* a symlink in an unprivileged store: nothing tells a local one from one
				       that is gone */
		else
			report(v, path, same_dir ? "wrong" : "changed", "not at the origin");
		return;
	}
	struct sl_version now = sl_attr_version(&e->attr);
	bool same_object = !recorded || sl_version_same_object(&had, &now);
	if ((e->attr.mode & S_IFMT) != o->type) {
		report(v, path, same_object && same_dir && recorded ? "wrong" : "changed",
		       "of another type at the origin");
	} else if (S_ISLNK(o->type)) {
		char t[4096 + 1];
		ssize_t n = sl_object_readlink(o, t, sizeof(t) - 1);
		t[n < 0 ? 0 : n] = '\0';
		if (strcmp(t, e->target ? e->target : ""))
			report(v, path, "changed", "another target at the origin");
	} else if (recorded && !same_object) {
		report(v, path, "changed", "another object at the origin");
	}
}

static int verify_dir(struct verify *v, struct sl_object *dir, const char *path)
{
	_cleanup_free_ char *place = NULL;
	pthread_mutex_lock(&dir->lock);
	bool populated = dir->rec.state == SL_FULL, local = dir->rec.flags & SL_LOCAL;
	struct sl_version had = dir->rec.origin;
	pthread_mutex_unlock(&dir->lock);
	if (!populated || local || sl_object_place(dir, &place) < 0)
		return 0;
	struct sl_oreq q = {.op = SL_OREQ_LIST, .place = place, .fresh = true};
	int r = sl_origin_call(v->c->clone->origin, &q);
	if (r < 0) {
		report(v, path, r == -ENOENT || r == -ESTALE || r == -ENOTDIR ? "changed" : "failed",
		       r == -ENOENT || r == -ESTALE ? "gone at the origin" : strerror(-r));
		sl_oreq_fini(&q);
		return r == -ETIMEDOUT ? r : 0;
	}
	v->dirs++;
	struct sl_version now = sl_attr_version(&q.attr);
	bool same =
	    sl_time_eq(had.mtime, now.mtime) && sl_time_eq(had.ctime, now.ctime) && had.ino == now.ino;
	if (q.nentries)
		qsort(q.entries, q.nentries, sizeof(*q.entries), cmp_entry);
	struct sl_name *names = NULL;
	size_t n = 0;
	r = sl_names_read(dir, &names, &n);
	_cleanup_free_ char *seen = calloc(q.nentries + 1, 1);
	if (r == 0 && !seen)
		r = -ENOMEM;
	for (size_t i = 0; i < n && r == 0; i++) {
		_cleanup_object_ struct sl_object *o = NULL;
		_cleanup_free_ char *p = sl_path_join(path, names[i].name);
		struct sl_oentry key = {.name = names[i].name};
		struct sl_oentry *e =
		    q.nentries ? bsearch(&key, q.entries, q.nentries, sizeof(key), cmp_entry) : NULL;
		if (e)
			seen[e - q.entries] = 1;
		int k = sl_object_lookup(dir, names[i].name, &o);
		if (k == 0 && o->damaged)
			report(v, p, "failed", "its record is damaged");
		else if (k == 0)
			verify_name(v, o, p, place, names[i].name, e, same);
		else if (k != -ENOENT)
			report(v, p, "failed", "its record is damaged");
	}
	for (size_t i = 0; i < q.nentries && r == 0; i++) {
		if (seen[i] || sl_object_whiteout(dir, q.entries[i].name))
			continue;
		if (sl_store_native(dir->store) &&
		    sl_object_taken(dir, q.entries[i].name, &q.entries[i].attr)) {
			v->local++;
			continue;
		}
		_cleanup_free_ char *p = sl_path_join(path, q.entries[i].name);
		report(v, p, same ? "wrong" : "changed", "only at the origin");
	}
	sl_names_free(names, n);
	sl_oreq_fini(&q);
	return r;
}

static int verify_one(void *arg, const char *path, struct sl_object *o, int err)
{
	struct verify *v = arg;
	int r = 0;
	(void)err;
	if (!going_on(v))
		return -EINTR;
	if (!o || o->damaged)
		return 0; /* its directory has reported it */
	if (sl_object_is_dir(o)) {
		r = verify_dir(v, o, path);
	} else if (sl_object_is_reg(o)) {
		pthread_mutex_lock(&o->lock);
		bool skip = o->rec.flags & (SL_MODIFIED | SL_LOCAL) || o->map.have == 0;
		pthread_mutex_unlock(&o->lock);
		if (!skip)
			r = verify_file(v, o, path);
	}
	return r;
}

json_t *sl_command_verify(struct sl_command_call *c)
{
	json_t *paths = json_object_get(c->request, "paths");
	struct verify v = {.c = c};
	int r = 0;
	for (size_t i = 0; i < json_array_size(paths) && r == 0; i++) {
		const char *path = json_string_value(json_array_get(paths, i));
		_cleanup_object_ struct sl_object *o = NULL;
		r = path ? sl_command_find(c, path, false, &o) : -EINVAL;
		if (r == -ENODATA) { /* nothing of it is here that could be wrong */
			r = 0;
			continue;
		}
		if (r < 0)
			return sl_command_error("%s: %s", path ? path : "?", strerror(-r));
		r = sl_walk(o, verify_one, &v);
	}
	if (r < 0)
		return sl_command_error("%s", r == -ETIMEDOUT ? "the origin cannot be reached"
					      : r == -EINTR   ? "interrupted"
							      : strerror(-r));
	return json_pack("{sb sI sI sI sI sI sI sI}", "ok", 1, "directories", (json_int_t)v.dirs, "files",
			 (json_int_t)v.files, "bytes", (json_int_t)v.bytes, "changed", (json_int_t)v.changed,
			 "wrong", (json_int_t)v.wrong, "local", (json_int_t)v.local, "failed",
			 (json_int_t)v.failed);
}
