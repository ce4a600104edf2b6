/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The commands that a running clone carries out: status, evict, pin, unpin, stop, upgrade. hydrate.c and
 * verify.c have their own. */
#include <limits.h>
#include <stdio.h>
#include <time.h>

#include "base/fd.h"
#include "base/human.h"
#include "service/commands.h"
#include "service/unlist.h"
#include "store/walk.h"

json_t *sl_command_error(const char *fmt, ...)
{
	char text[1024];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	return json_pack("{sbss}", "ok", 0, "error", text);
}

json_t *sl_command_name(const char *path)
{
	_cleanup_free_ char *s = sl_printable(path, strlen(path));
	return json_string(s ? s : "?");
}

int sl_command_find(struct sl_command_call *c, const char *shown, bool populate, struct sl_object **ret)
{
	_cleanup_free_ char *bytes = sl_unprintable(shown);
	const char *path = bytes;
	if (!path)
		return -ENOMEM;
	struct sl_object *o = sl_object_ref(sl_object_root(c->clone->store));
	while (*path) {
		size_t n = strcspn(path, "/");
		char name[256];
		struct sl_object *next = NULL;
		int r = n == 0 || n > 255 ? -ENOENT : 0;
		if (r == 0) {
			memcpy(name, path, n);
			name[n] = '\0';
			if (!sl_object_is_dir(o))
				r = -ENOTDIR;
			else if (populate)
				r = sl_fill_wait(c->clone->fill, SL_WANT_NAMES, o, 0, 0);
			if (r == 0)
				r = sl_object_lookup(o, name, &next);
			pthread_mutex_lock(&o->lock);
			if (r == -ENOENT && o->rec.state != SL_FULL)
				r = -ENODATA;
			pthread_mutex_unlock(&o->lock);
		}
		sl_object_put(o);
		if (r < 0)
			return r;
		o = next;
		path += n + (path[n] == '/');
	}
	*ret = o;
	return 0;
}

/* ---- status ---- */

struct counts {
	struct sl_command_call *c;
	uint64_t files, dirs, others, cold, partial, full, unpopulated, modified, local, conflicts, pinned,
	    damaged, bytes, here;
	uint64_t last;
};

/* In a native store a change through a shared mapping is not told before the mapping goes; but the file shows
 * it. */
static bool looks_modified(const struct sl_object *o, const struct sl_attr *a)
{
	return sl_store_native(o->store) && o->has_record && sl_object_is_reg(o) &&
	       (a->size != o->rec.origin.size || a->mtime.tv_sec != o->rec.origin.mtime.tv_sec ||
		a->mtime.tv_nsec != o->rec.origin.mtime.tv_nsec);
}

static int count(void *arg, const char *path, struct sl_object *o, int err)
{
	struct counts *n = arg;
	(void)path;
	(void)err;
	if (!o || o->damaged) {
		n->damaged++;
		return 0;
	}
	struct sl_attr a = {0};
	if (sl_object_is_reg(o) && sl_object_attr(o, &a) < 0)
		return 0;
	pthread_mutex_lock(&o->lock);
	unsigned f = o->rec.flags;
	bool ours = f & (SL_MODIFIED | SL_LOCAL);
	if (sl_object_is_dir(o)) {
		n->dirs++;
		n->unpopulated += o->rec.state != SL_FULL;
	} else if (!sl_object_is_reg(o)) {
		n->others++;
	} else {
		uint64_t here = ours ? a.size : sl_chunkmap_bytes(&o->map);
		n->files++;
		n->bytes += a.size;
		n->here += here;
		if (ours || sl_chunkmap_full(&o->map))
			n->full++;
		else if (here)
			n->partial++;
		else
			n->cold++;
	}
	n->local += !!(f & SL_LOCAL);
	n->modified += (f & (SL_MODIFIED | SL_WRITTEN) || looks_modified(o, &a)) && !(f & SL_LOCAL);
	n->conflicts += !!(f & SL_CONFLICT);
	n->pinned += !!(f & SL_PINNED);
	pthread_mutex_unlock(&o->lock);
	return n->c->gone || n->c->clone->ending ? -EINTR : 0;
}

static json_t *counts_json(const struct counts *n)
{
	return json_pack("{sI sI sI sI sI sI sI sI sI sI sI sI sI sI}", "files", (json_int_t)n->files,
			 "directories", (json_int_t)n->dirs, "others", (json_int_t)n->others, "cold",
			 (json_int_t)n->cold, "partial", (json_int_t)n->partial, "full", (json_int_t)n->full,
			 "unpopulated", (json_int_t)n->unpopulated, "modified", (json_int_t)n->modified,
			 "local", (json_int_t)n->local, "conflicts", (json_int_t)n->conflicts, "pinned",
			 (json_int_t)n->pinned, "damaged", (json_int_t)n->damaged, "bytes",
			 (json_int_t)n->bytes, "bytes_here", (json_int_t)n->here);
}

static json_t *service_json(struct sl_clone *c)
{
	const struct sl_store_config *cfg = sl_store_config(c->store);
	struct sl_fill_stats fs;
	sl_fill_get_stats(c->fill, &fs);
	json_t *j = json_pack("{ss so so so si sI sb sb sb sb sI sb}", "state", "running", "origin",
			      sl_command_name(cfg->origin), "dir", sl_command_name(cfg->dir), "store",
			      sl_command_name(sl_store_path(c->store)), "service_pid", (int)getpid(),
			      "started", (json_int_t)c->started, "connected", sl_origin_connected(c->origin),
			      "passthrough", c->gate && sl_gate_passthrough(c->gate), "armoured",
			      sl_store_reflinks(c->store), "privileged", sl_store_privileged(c->store),
			      "limit", (json_int_t)cfg->limit, "unclean_start", c->unclean);
	json_object_set_new(j, "gate", json_string(c->fan ? "fanotify" : "fuse"));
	if (cfg->image)
		json_object_set_new(j, "capacity", json_integer((json_int_t)sl_store_capacity(c->store)));
	json_object_set_new(j, "lazy", json_boolean(!c->fan || sl_fan_lazy(c->fan)));
	char program[PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", program, sizeof(program) - 1);
	program[n < 0 ? 0 : n] = '\0';
	json_object_set_new(j, "program", sl_command_name(program));
	json_object_set_new(j, "keeper_pid", json_integer(sl_keeper_pid(c->keeper)));
	json_object_set_new(j, "service_restarts", json_integer(sl_keeper_restarts(c->keeper)));
	json_object_set_new(j, "fetches", json_integer((json_int_t)fs.fetches));
	json_object_set_new(j, "fetched_bytes", json_integer((json_int_t)fs.fetched_bytes));
	json_object_set_new(j, "listings", json_integer((json_int_t)fs.listings));
	json_object_set_new(j, "prefetched", json_integer((json_int_t)fs.prefetched));
	json_object_set_new(j, "restarts", json_integer((json_int_t)fs.restarts));
	json_object_set_new(j, "waiting", json_integer((json_int_t)fs.waiting));
	struct sl_replay *p = c->replay;
	if (p) {
		struct sl_replay_stats rs;
		sl_replay_get_stats(p, &rs);
		json_object_set_new(
		    j, "events",
		    json_pack("{sI sI sI sI sI sI sI sI sI sI sI sI sI sb}", "received",
			      (json_int_t)rs.events, "applied", (json_int_t)rs.applied, "skipped",
			      (json_int_t)rs.skipped, "queued", (json_int_t)rs.queued, "seq",
			      (json_int_t)rs.seq, "overflows", (json_int_t)rs.overflows, "lost",
			      (json_int_t)rs.lost, "comparisons", (json_int_t)rs.comparisons, "compared",
			      (json_int_t)rs.compared, "differences", (json_int_t)rs.differences, "unmarked",
			      (json_int_t)rs.unmarked, "conflicts", (json_int_t)rs.conflicts, "failed",
			      (json_int_t)rs.failed, "comparing", rs.comparing));
	}
	if (c->unclean && c->forgotten_known) {
		json_object_set_new(j, "forgotten_files", json_integer((json_int_t)c->forgotten_files));
		json_object_set_new(j, "forgotten_bytes", json_integer((json_int_t)c->forgotten_bytes));
	}
	return j;
}

static json_t *object_json(struct sl_object *o, const char *path)
{
	struct sl_attr a = {0};
	(void)sl_object_attr(o, &a);
	pthread_mutex_lock(&o->lock);
	unsigned f = o->rec.flags;
	bool ours = f & (SL_MODIFIED | SL_LOCAL), reg = sl_object_is_reg(o);
	if (f & SL_WRITTEN || looks_modified(o, &a))
		f |= SL_MODIFIED;
	enum sl_state s = o->rec.state;
	uint64_t here = reg ? ours ? a.size : sl_chunkmap_bytes(&o->map) : 0;
	if (reg)
		s = ours || sl_chunkmap_full(&o->map) ? SL_FULL : here ? SL_PARTIAL : SL_COLD;
	json_t *flags = json_array();
	static const struct {
		unsigned bit;
		const char *name;
	} names[] = {{SL_PINNED, "pinned"},
		     {SL_MODIFIED, "modified"},
		     {SL_CONFLICT, "conflict"},
		     {SL_LOCAL, "local"},
		     {SL_MOVED, "moved"}};
	for (size_t i = 0; i < SL_ARRAY_SIZE(names); i++)
		if (f & names[i].bit)
			json_array_append_new(flags, json_string(names[i].name));
	pthread_mutex_unlock(&o->lock);
	return json_pack("{so ss ss sI sI so}", "path", sl_command_name(path), "type",
			 S_ISDIR(o->type)   ? "directory"
			 : S_ISREG(o->type) ? "file"
			 : S_ISLNK(o->type) ? "symlink"
					    : "special",
			 "state", sl_state_name(s, o->type), "bytes", (json_int_t)(reg ? a.size : 0),
			 "bytes_here", (json_int_t)here, "flags", flags);
}

struct found {
	struct sl_command_call *c;
	json_t *list;
};

static int add_conflict(void *arg, const char *path, struct sl_object *o, int err)
{
	struct found *f = arg;
	(void)err;
	bool is = false;
	if (o) {
		pthread_mutex_lock(&o->lock);
		is = o->rec.flags & SL_CONFLICT;
		pthread_mutex_unlock(&o->lock);
	}
	if (is)
		json_array_append_new(f->list, object_json(o, path));
	return f->c->gone || f->c->clone->ending ? -EINTR : 0;
}

/* What was changed both here and at the origin. */
static json_t *cmd_conflicts(struct sl_command_call *c)
{
	json_t *paths = json_object_get(c->request, "paths");
	struct found f = {c, json_array()};
	size_t n = json_array_size(paths);
	for (size_t i = 0; i < SL_MAX(n, (size_t)1); i++) {
		const char *path = n ? json_string_value(json_array_get(paths, i)) : "";
		_cleanup_object_ struct sl_object *o = NULL;
		int r = path ? sl_command_find(c, path, false, &o) : -EINVAL;
		if (r == 0)
			r = sl_walk(o, add_conflict, &f);
		if (r < 0 && r != -ENODATA) {
			json_decref(f.list);
			return sl_command_error("%s: %s", path ? path : "?", strerror(-r));
		}
	}
	json_t *j = service_json(c->clone);
	json_object_set_new(j, "ok", json_true());
	json_object_set_new(j, "conflicts", f.list);
	return j;
}

static json_t *cmd_status(struct sl_command_call *c)
{
	if (json_is_true(json_object_get(c->request, "conflicts")))
		return cmd_conflicts(c);

	json_t *paths = json_object_get(c->request, "paths");
	json_t *items = json_array();
	struct counts total = {.c = c};
	bool brief = json_is_true(json_object_get(c->request, "brief"));
	for (size_t i = 0; i < json_array_size(paths); i++) {
		const char *path = json_string_value(json_array_get(paths, i));
		_cleanup_object_ struct sl_object *o = NULL;
		int r = path ? sl_command_find(c, path, false, &o) : -EINVAL;
		if (r < 0) {
			json_decref(items);
			return sl_command_error("%s: %s", path ? path : "?",
						r == -ENODATA ? "not here (it may not have been listed yet)"
							      : strerror(-r));
		}
		struct counts n = {.c = c};
		json_t *j = object_json(o, path);
		if (sl_object_is_dir(o)) {
			if (sl_walk(o, count, &n) == 0)
				json_object_set_new(j, "below", counts_json(&n));
		}
		json_array_append_new(items, j);
	}
	json_t *j = service_json(c->clone);
	json_object_set_new(j, "ok", json_true());
	if (json_array_size(paths) == 0 && !brief) {
		int r = sl_walk(sl_object_root(c->clone->store), count, &total);
		if (r == 0)
			json_object_set_new(j, "counts", counts_json(&total));
	}
	json_object_set_new(j, "paths", items);
	return j;
}

/* ---- evict ---- */

static bool go_on(void *arg)
{
	struct sl_command_call *c = arg;
	return !c->gone && !c->clone->ending;
}

static json_t *cmd_evict(struct sl_command_call *c)
{
	json_t *paths = json_object_get(c->request, "paths");
	struct sl_fill_reclaim sum = {0};
	uint64_t older = (uint64_t)json_integer_value(json_object_get(c->request, "older_than"));
	uint64_t want = (uint64_t)json_integer_value(json_object_get(c->request, "to_free"));
	bool names = json_is_true(json_object_get(c->request, "names"));
	struct sl_unlist un = {.go_on = go_on, .arg = c};
	if (names && !(c->clone->fan && sl_fan_lazy(c->clone->fan)))
		return sl_command_error("the names of this clone stay: its directories are not lazy");
	/* What arrived last may not be committed yet: eviction goes by records. */
	(void)sl_fill_commit(c->clone->fill);
	for (size_t i = 0; i < json_array_size(paths); i++) {
		const char *path = json_string_value(json_array_get(paths, i));
		_cleanup_object_ struct sl_object *o = NULL;
		int r = path ? sl_command_find(c, path, false, &o) : -EINVAL;
		if (r == -ENODATA) /* a name that has not arrived has no content here */
			continue;
		if (r < 0)
			return sl_command_error("%s: %s", path ? path : "?", strerror(-r));
		struct sl_fill_reclaim rc = {.older_than = older};
		if (want) {
			if (sum.bytes >= want)
				break;
			rc.to_free = want - sum.bytes;
		}
		r = sl_fill_reclaim(c->clone->fill, o, &rc);
		if (r == 0 && names && sl_object_is_dir(o))
			r = sl_unlist(c->clone, o, &un);
		if (r < 0)
			return sl_command_error("%s: %s", path, strerror(-r));
		sum.files += rc.files;
		sum.bytes += rc.bytes;
		sum.busy += rc.busy;
		sum.kept += rc.kept;
	}
	json_t *answer =
	    json_pack("{sb sI sI sI sI}", "ok", 1, "files", (json_int_t)sum.files, "bytes",
		      (json_int_t)sum.bytes, "busy", (json_int_t)sum.busy, "kept", (json_int_t)sum.kept);
	if (names) {
		json_object_set_new(answer, "directories", json_integer((json_int_t)un.directories));
		json_object_set_new(answer, "names", json_integer((json_int_t)un.names));
		json_object_set_new(answer, "directories_kept", json_integer((json_int_t)un.kept));
	}
	return answer;
}

/* ---- pin ---- */

#define PIN_TRIES 8

struct pin {
	struct sl_command_call *c;
	bool on;
	bool missing; /* names of a directory, which have just been evicted */
	uint64_t changed;
};

static int pin_one(void *arg, const char *path, struct sl_object *o, int err)
{
	struct pin *p = arg;
	int r = 0;
	(void)path;
	(void)err;
	if (!o || !o->has_record || (!sl_object_is_reg(o) && !sl_object_is_dir(o)))
		return 0;
	pthread_mutex_lock(&o->lock);
	uint16_t old = o->rec.flags;
	o->rec.flags = p->on ? old | SL_PINNED : (uint16_t)(old & ~SL_PINNED);
	if (o->rec.flags != old) {
		r = sl_object_save(o);
		if (r < 0)
			o->rec.flags = old;
		else if (sl_object_is_reg(o))
			p->changed++;
	}
	p->missing |= sl_object_is_dir(o) && o->rec.state != SL_FULL;
	pthread_mutex_unlock(&o->lock);
	return r < 0 ? r : p->c->gone ? -EINTR : 0;
}

static json_t *pin_paths(struct pin *p)
{
	struct sl_command_call *c = p->c;
	struct sl_fill *f = c->clone->fill;
	json_t *paths = json_object_get(c->request, "paths"), *answer = NULL;
	p->missing = false;
	if (p->on) {
		answer = sl_command_hydrate(c);
		if (!json_is_true(json_object_get(answer, "ok")))
			return answer;
	}
	for (size_t i = 0; i < json_array_size(paths); i++) {
		const char *path = json_string_value(json_array_get(paths, i));
		_cleanup_object_ struct sl_object *o = NULL;
		int r = path ? sl_command_find(c, path, p->on, &o) : -EINVAL;
		if (r == -ENODATA) /* nor is it pinned */
			continue;
		if (r == 0) {
			sl_fill_lock_names(f); /* all are here, or have gone */
			r = sl_walk(o, pin_one, p);
			sl_fill_unlock_names(f);
		}
		if (r < 0) {
			json_decref(answer);
			return sl_command_error("%s: %s", path ? path : "?", strerror(-r));
		}
	}
	if (!answer)
		answer = json_pack("{sb}", "ok", 1);
	json_object_set_new(answer, p->on ? "pinned" : "unpinned", json_integer((json_int_t)p->changed));
	return answer;
}

static json_t *cmd_pin(struct sl_command_call *c, bool on)
{
	struct pin p = {.c = c, .on = on};
	json_t *answer = pin_paths(&p);
	/* What is pinned by now is not evicted again. */
	for (int tries = 0;
	     on && p.missing && json_is_true(json_object_get(answer, "ok")) && tries < PIN_TRIES; tries++) {
		json_decref(answer);
		answer = pin_paths(&p);
	}
	return answer;
}

/* ---- stop ---- */

static json_t *cmd_stop(struct sl_command_call *c)
{
	const char *dir = sl_store_config(c->clone->store)->dir;
	_cleanup_free_ char *why = NULL;
	bool force = json_is_true(json_object_get(c->request, "force"));
	/* The unmount is what ends the service: it fails while something is in use, and then nothing has
	 * happened. */
	int r = sl_clone_hide(c->clone, force, &why);
	if (r < 0)
		return sl_command_error("%s is in use (%s): close what is open there, or use --force", dir,
					why ? why : strerror(-r));
	uint64_t one = 1;
	(void)!write(c->clone->stop_fd, &one, sizeof(one));
	return json_pack("{sb}", "ok", 1);
}

/* ---- capacity ---- */

static json_t *cmd_capacity(struct sl_command_call *c)
{
	struct sl_store *s = c->clone->store;
	_cleanup_free_ char *why = NULL;
	uint64_t bytes = (uint64_t)json_integer_value(json_object_get(c->request, "bytes"));
	int r = sl_store_set_capacity(s, bytes, &why);
	if (r < 0)
		return sl_command_error("%s", why ? why : strerror(-r));
	/* What arrived last may not be committed yet: eviction goes by records. */
	(void)sl_fill_commit(c->clone->fill);
	(void)sl_fill_make_room(c->clone->fill);
	return json_pack("{sb sI sI}", "ok", 1, "capacity", (json_int_t)bytes, "beyond",
			 (json_int_t)sl_store_beyond(s));
}

/* ---- upgrade ---- */

static json_t *cmd_upgrade(struct sl_command_call *c)
{
	const char *program = json_string_value(json_object_get(c->request, "program"));
	_cleanup_free_ char *why = NULL;
	int r = program ? sl_keeper_check(c->clone->keeper, program, &why) : -EINVAL;
	if (r < 0)
		return sl_command_error("%s", why ? why : strerror(-r));
	(void)sl_fill_commit(c->clone->fill); /* what is here need not be fetched again */
	/* This process has no time to say it afterwards. */
	sl_control_send(c, json_pack("{sb}", "ok", 1));
	sl_keeper_upgrade(c->clone->keeper, program);
	return NULL;
}

json_t *sl_command_run(struct sl_command_call *c)
{
	const char *cmd = json_string_value(json_object_get(c->request, "cmd"));
	if (!cmd)
		return sl_command_error("the request names no command");
	if (!strcmp(cmd, "status"))
		return cmd_status(c);
	if (!strcmp(cmd, "capacity"))
		return cmd_capacity(c);
	if (!strcmp(cmd, "upgrade"))
		return cmd_upgrade(c);
	if (!strcmp(cmd, "hydrate"))
		return sl_command_hydrate(c);
	if (!strcmp(cmd, "evict"))
		return cmd_evict(c);
	if (!strcmp(cmd, "pin"))
		return cmd_pin(c, true);
	if (!strcmp(cmd, "unpin"))
		return cmd_pin(c, false);
	if (!strcmp(cmd, "watch"))
		return sl_command_watch(c);
	if (!strcmp(cmd, "verify"))
		return sl_command_verify(c);
	if (!strcmp(cmd, "stop"))
		return cmd_stop(c);
	return sl_command_error("there is no command '%s'", cmd);
}
