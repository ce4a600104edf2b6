/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Populate: all names of a directory at once; and the extended attributes of one object, which come the same
 * way. */
#include <fcntl.h>
#include <sys/xattr.h>

#include "base/log.h"
#include "fill/internal.h"
#include "store/walk.h"
#include "store/xattr.h"

#define STRAYS_MAX 3 /* listings more because of names that are gone from where they were listed */

struct job {
	struct sl_work work;
	struct sl_fill *f;
	struct sl_object *o;
	struct sl_oreq req;
	char *place;
	int err;
	/* of a directory */
	unsigned tries, strays;
	bool admitted, seen, own_time; /* seen: `before` and `own_time` are known */
	struct stat before;
	atomic_uint left;      /* entries whose extended attributes are on their way, and one */
	struct sl_list hidden; /* of struct attrs: those that are seen when they have come */
	_Atomic int attrs_err; /* of one of them */
	atomic_bool strayed;   /* one of them is not there any more */
	int made;
};

static void populate_run(struct sl_work *work);

static void job_done(struct sl_oreq *r)
{
	struct job *j = sl_container_of(r, struct job, req);
	j->err = r->err;
	sl_pool_push(j->f->workers, &j->work);
}

static void submit(struct job *j, enum sl_oreq_op op, bool fresh)
{
	j->req = (struct sl_oreq){.op = op,
				  .place = j->place,
				  .mark = op == SL_OREQ_LIST && j->f->cfg.mark,
				  .fresh = fresh,
				  .done = job_done};
	sl_origin_submit(j->f->origin, &j->req);
}

/* Ask the origin; @run goes on with the answer on a worker. Always 0: failures come through @run as well. */
static int job_start(struct sl_fill *f, struct sl_object *o, enum sl_oreq_op op,
		     void (*run)(struct sl_work *))
{
	struct job *j;
	while (!(j = calloc(1, sizeof(*j))))
		usleep(10000); /* somebody waits already, and no error could reach them */
	*j = (struct job){.work.run = run, .f = f, .o = sl_object_ref(o)};
	sl_list_init(&j->hidden);
	pthread_mutex_lock(&f->lock);
	f->requests++;
	if (op == SL_OREQ_LIST)
		f->stats.listings++;
	pthread_mutex_unlock(&f->lock);
	j->err = sl_object_place(o, &j->place);
	if (j->err < 0) {
		sl_pool_push(f->workers, &j->work);
		return 0;
	}
	submit(j, op, false);
	return 0;
}

static void job_end(struct job *j, bool names, int err)
{
	struct sl_fill *f = j->f;
	struct sl_object *o = j->o;
	struct sl_list done;
	sl_list_init(&done);
	pthread_mutex_lock(&o->lock);
	struct sl_flight *fl = o->flight;
	sl_list_for_each_safe (l, names ? &fl->names : &fl->xattrs) {
		struct sl_want *w = sl_list_entry(l, struct sl_want, link);
		sl_list_del(&w->link);
		w->tries = UINT32_MAX;
		sl_list_add_tail(&done, &w->link);
	}
	*(names ? &fl->listing : &fl->xattring) = false;
	sl_flight_trim(o);
	pthread_mutex_unlock(&o->lock);
	sl_wants_done(f, &done, err ? sl_fill_map_error(err) : 0);
	sl_oreq_fini(&j->req);
	free(j->place);
	free(j);
	sl_object_put(o);
	pthread_mutex_lock(&f->lock);
	if (--f->requests == 0)
		pthread_cond_broadcast(&f->cond);
	pthread_mutex_unlock(&f->lock);
}

static int cmp_entry(const void *a, const void *b)
{
	return strcmp((*(const struct sl_oentry *const *)a)->name,
		      (*(const struct sl_oentry *const *)b)->name);
}

/* What an interrupted attempt left that the origin no longer has. Usually the directory is empty, and this
 * costs one system call. */
static int remove_leftovers(struct sl_object *dir, int dirfd, const struct sl_oreq *req)
{
	struct sl_name *v = NULL;
	size_t n = 0;
	int r = sl_names_read(dir, &v, &n);
	if (r < 0 || n == 0)
		return r;
	const struct sl_oentry **by_name = reallocarray(NULL, req->nentries + 1, sizeof(*by_name));
	for (size_t i = 0; by_name && i < req->nentries; i++)
		by_name[i] = &req->entries[i];
	if (by_name && req->nentries)
		qsort(by_name, req->nentries, sizeof(*by_name), cmp_entry);
	else if (!by_name)
		r = -ENOMEM;
	for (size_t i = 0; r == 0 && i < n; i++) {
		struct sl_oentry key = {.name = v[i].name};
		const struct sl_oentry *kp = &key;
		if (req->nentries && bsearch(&kp, by_name, req->nentries, sizeof(*by_name), cmp_entry))
			continue;
		r = sl_placeholder_remove(dir, dirfd, v[i].name);
	}
	free(by_name);
	sl_names_free(v, n);
	return r;
}

/* An entry whose extended attributes are on their way. */
struct attrs {
	struct sl_want want; /* want.o is a reference */
	struct job *j;
	struct sl_list link; /* in j->hidden, if it is seen when they have come */
	const struct sl_oentry *e;
	char hidden[32];
};

static void attrs_left(struct job *j)
{
	if (--j->left == 0)
		sl_pool_push(j->f->workers, &j->work);
}

static void attrs_done(struct sl_want *w, int err)
{
	struct attrs *x = sl_container_of(w, struct attrs, want);
	struct job *j = x->j;
	if (err) {
		_cleanup_free_ char *path = sl_object_path(w->o);
		sl_warn("cannot fetch the extended attributes of '%s': %s", path ? path : "", strerror(-err));
	}
	/* What must not be read there is not read here either. */
	if (err == -ESTALE)
		j->strayed = true;
	else if (err && err != -EACCES)
		j->attrs_err = err;
	sl_object_put(w->o);
	if (!*x->hidden)
		free(x);
	attrs_left(j);
}

static bool has_xattrs(const struct sl_oentry *e)
{
	return !e->attr.no_xattrs && (S_ISREG(e->attr.mode) || S_ISDIR(e->attr.mode));
}

/*
 * Native: nobody asks before extended attributes are read, so they come with the names; where users may be in
 * the tree, before them.
 */
static int want_all_xattrs(struct job *j, int fd)
{
	int r = 0;
	for (size_t i = 0; r >= 0 && i < j->req.nentries; i++) {
		const struct sl_oentry *e = &j->req.entries[i];
		if (!has_xattrs(e))
			continue;
		struct attrs *x = calloc(1, sizeof(*x));
		if (!x)
			return -ENOMEM;
		*x = (struct attrs){.want.done = attrs_done, .j = j, .e = e};
		r = sl_placeholder_hide(j->o, fd, e, x->hidden, &x->want.o);
		if (r == 0) {
			sl_list_add_tail(&j->hidden, &x->link);
		} else {
			*x->hidden = '\0';
			if (r == -EEXIST) /* else it was made with the others */
				r = sl_store_makes_whole(j->f->store)
					? sl_placeholder_make(j->o, fd, e->name, &e->attr, e->target)
					: 0;
			if (r == 0)
				r = sl_object_lookup(j->o, e->name, &x->want.o);
		}
		if (r < 0) {
			free(x);
			break;
		}
		j->left++;
		r = sl_fill_want(j->f, SL_WANT_XATTRS, &x->want);
		if (r != 0)
			attrs_done(&x->want, SL_MIN(r, 0));
	}
	return SL_MIN(r, 0);
}

/* They have come, or with @r < 0 something has not. */
static int show_hidden(struct job *j, int fd, int r)
{
	sl_list_for_each_safe (l, &j->hidden) {
		struct attrs *x = sl_list_entry(l, struct attrs, link);
		sl_list_del(l);
		if (r == 0)
			r = sl_placeholder_show(j->o, fd, x->e, x->hidden);
		if (r < 0)
			sl_placeholder_discard(j->f->store, x->hidden);
		free(x);
	}
	return r;
}

bool sl_fill_met_other(struct sl_object *o, const struct sl_attr *a)
{
	struct sl_version v = sl_attr_version(a);
	pthread_mutex_lock(&o->lock);
	const struct sl_version *h = &o->rec.origin;
	bool other = (h->ino && v.ino && h->ino != v.ino) ||
		     (h->generation && v.generation && h->generation != v.generation);
	pthread_mutex_unlock(&o->lock);
	return other;
}

/*
 * Another directory has answered: this one was renamed at the origin, and an event about to be done says so.
 * Those names are not its own. Where nothing is told its place is all there is.
 */
static bool other_directory(struct job *j)
{
	return j->f->cfg.mark && j->req.marked && sl_fill_met_other(j->o, &j->req.attr);
}

/* Native: it was renamed at the origin, and so it was here: its names are at its place. */
static bool moved_since(struct job *j)
{
	char *now = NULL;
	bool gone = j->err == -ENOENT || j->err == -ESTALE || j->err == -ENOTDIR;
	if (!gone || !j->place || !sl_store_native(j->f->store) || j->tries >= RESTARTS_MAX ||
	    sl_object_place(j->o, &now) < 0 || !strcmp(now, j->place)) {
		free(now);
		return false;
	}
	sl_oreq_fini(&j->req);
	free(j->place);
	j->place = now;
	j->tries++;
	j->err = 0;
	submit(j, SL_OREQ_LIST, true);
	return true;
}

/* Native: where names come when they are wanted somebody may have set its time before. What an interrupted
 * attempt has left names in has another one because of that. */
static bool has_own_time(struct sl_object *dir, const struct stat *st)
{
	struct sl_name *v = NULL;
	size_t n = 0;
	pthread_mutex_lock(&dir->lock);
	bool other = sl_store_native(dir->store) && !sl_time_eq(st->st_mtim, dir->rec.origin.mtime);
	pthread_mutex_unlock(&dir->lock);
	if (!other || sl_names_read(dir, &v, &n) < 0)
		return false;
	sl_names_free(v, n);
	return n == 0;
}

static int make_names(struct job *j, int fd)
{
	struct sl_object *dir = j->o;
	bool whiteouts = sl_object_has_whiteouts(dir);
	int r = remove_leftovers(dir, fd, &j->req);
	bool lazy = sl_store_makes_whole(j->f->store);
	for (size_t i = 0, n; r == 0 && i < j->req.nentries; i += n) {
		const struct sl_oentry *e = &j->req.entries[i];
		size_t at = 0;
		n = 1;
		if (whiteouts && sl_object_whiteout(dir, e->name))
			continue; /* it was deleted here, once */
		if (lazy && has_xattrs(e))
			continue; /* it is made when these come: want_all_xattrs() */
		while (!whiteouts && i + n < j->req.nentries && !(lazy && has_xattrs(e + n)))
			n++;
		r = sl_placeholder_make_all(dir, fd, e, n, &at);
		if (r < 0) {
			_cleanup_free_ char *path = sl_object_path(dir);
			sl_err("cannot make the placeholder of '%s' in '%s': %s", e[at].name, path,
			       strerror(-r));
		}
	}
	return r;
}

/*
 * Something is gone from where it was listed, and its extended attributes have not come. It may have another
 * name by now, and would stay without them. Nobody has seen these names: they are listed again. What goes all
 * the time is as good as gone, and has none.
 */
static bool list_again(struct job *j, int fd)
{
	char *now = NULL;
	if (j->made < 0 || j->attrs_err || !j->strayed || j->strays >= STRAYS_MAX ||
	    sl_object_place(j->o, &now) < 0) {
		free(now);
		return false;
	}
	(void)show_hidden(j, fd, -ESTALE);
	sl_space_settle(j->f, j->req.nentries * 512);
	sl_oreq_fini(&j->req);
	free(j->place);
	j->place = now;
	j->strays++;
	j->admitted = j->strayed = false;
	j->work.run = populate_run;
	submit(j, SL_OREQ_LIST, true);
	return true;
}

/* All names are there, with what belongs to them, or @j->made says why not. */
static void populate_end(struct sl_work *work)
{
	struct job *j = sl_container_of(work, struct job, work);
	struct sl_object *dir = j->o;
	struct sl_fill *f = j->f;
	int r = j->made < 0 ? j->made : j->attrs_err;
	_cleanup_close_ int fd = j->admitted ? sl_object_open_dir(dir) : -EBADF;
	if (list_again(j, fd))
		return;
	r = show_hidden(j, fd, r);
	/* Before the replay may go on with the names. */
	if (r == 0 && sl_store_native(f->store))
		r = sl_object_listed(dir, j->req.entries, j->req.nentries, sl_oreq_latest(&j->req));
	if (r == 0)
		r = sl_placeholder_populated(dir, &j->req.attr, j->before.st_mtim);
	if (r == 0 && j->own_time && fd >= 0) {
		struct timespec ts[2] = {j->before.st_atim, j->before.st_mtim};
		(void)futimens(fd, ts);
	}
	if (fd >= 0 && (r == -ENOSPC || r == -EDQUOT) && !sl_store_makes_whole(f->store)) {
		/* What was made is seen by nobody, and takes the room that others need. (Where names are lazy
		 * somebody may have it open.) */
		const struct sl_oreq nothing = {0};
		(void)remove_leftovers(dir, fd, &nothing);
	}
	if (j->admitted)
		sl_space_settle(f, j->req.nentries * 512);
	if (r < 0 && j->err == 0 && r != -ENOSPC && r != -EDQUOT && r != -ENOMEM && r != -ENAMETOOLONG)
		r = -EIO; /* our own trouble with the store is not the origin's */
	if (r < 0 && j->err < 0) {
		_cleanup_free_ char *path = sl_object_path(dir);
		sl_warn("cannot list '%s' at the origin: %s", path, strerror(-r));
	}
	if (r == 0 && sl_store_native(f->store) && f->cfg.complete)
		f->cfg.complete(f->cfg.arg, dir);
	job_end(j, true, r);
}

static void populate_run(struct sl_work *work)
{
	struct job *j = sl_container_of(work, struct job, work);
	struct sl_object *dir = j->o;
	struct sl_fill *f = j->f;
	int r = j->err;
	if (r == 0 && other_directory(j)) {
		if (!j->req.fresh) {
			sl_oreq_fini(&j->req);
			submit(j, SL_OREQ_LIST, true);
			return;
		}
		r = j->err = -ESTALE;
	}
	if (r < 0 && moved_since(j))
		return;
	if (r == 0)
		r = sl_space_admit(f, j->req.nentries * 512);
	j->admitted = r == 0 && j->err == 0;
	_cleanup_close_ int fd = r == 0 ? sl_object_open_dir(dir) : -EBADF;
	if (r == 0 && fd < 0)
		r = fd;
	if (r == 0 && !j->seen && fstat(fd, &j->before) < 0)
		r = -errno;
	if (r == 0) {
		j->own_time = j->seen ? j->own_time : has_own_time(dir, &j->before);
		j->seen = true;
		r = make_names(j, fd);
	}
	j->made = r;
	j->work.run = populate_end;
	j->left = 1;
	if (r == 0 && sl_store_native(f->store))
		j->made = want_all_xattrs(j, fd);
	if (--j->left == 0)
		populate_end(&j->work);
}

int sl_populate_start(struct sl_fill *f, struct sl_object *dir)
{
	return job_start(f, dir, SL_OREQ_LIST, populate_run);
}

/* In the order in which they came: a mutex goes to whoever is quickest, which is who has just had it. */
void sl_fill_lock_names(struct sl_fill *f)
{
	pthread_mutex_lock(&f->lock);
	for (uint64_t mine = f->names_came++; mine != f->names_turn;)
		pthread_cond_wait(&f->names_cond, &f->lock);
	pthread_mutex_unlock(&f->lock);
}

void sl_fill_unlock_names(struct sl_fill *f)
{
	pthread_mutex_lock(&f->lock);
	f->names_turn++;
	pthread_cond_broadcast(&f->names_cond);
	pthread_mutex_unlock(&f->lock);
}

int sl_fill_hold_names(struct sl_fill *f, struct sl_object *dir)
{
	(void)f;
	pthread_mutex_lock(&dir->lock);
	int r = !sl_object_is_dir(dir) || dir->damaged		? -EINVAL
		: !dir->has_record || dir->rec.flags & SL_LOCAL ? -EEXIST
		: dir->rec.flags & SL_PINNED			? -EPERM
		: dir->rec.state != SL_FULL			? -EALREADY
		: dir->evicting || dir->flight			? -EBUSY
								: 0;
	if (r == 0)
		dir->evicting = true;
	pthread_mutex_unlock(&dir->lock);
	return r;
}

void sl_fill_release_names(struct sl_fill *f, struct sl_object *dir)
{
	struct sl_list done;
	sl_list_init(&done);
	bool start = false;
	pthread_mutex_lock(&dir->lock);
	struct sl_flight *fl = dir->flight;
	dir->evicting = false;
	if (fl && dir->rec.state == SL_FULL) {
		sl_list_for_each_safe (l, &fl->names) {
			struct sl_want *w = sl_list_entry(l, struct sl_want, link);
			sl_list_del(&w->link);
			w->tries = UINT32_MAX;
			sl_list_add_tail(&done, &w->link);
		}
		sl_flight_trim(dir);
	} else if (fl && !sl_list_empty(&fl->names) && !fl->listing) {
		start = fl->listing = true;
	}
	pthread_mutex_unlock(&dir->lock);
	sl_wants_done(f, &done, 0);
	if (start)
		(void)sl_populate_start(f, dir);
}

static void xattrs_run(struct sl_work *work)
{
	struct job *j = sl_container_of(work, struct job, work);
	struct sl_object *o = j->o;
	int r = j->err;
	bool other = r == 0 && sl_fill_met_other(o, &j->req.attr);
	if (other && !j->req.fresh) {
		sl_oreq_fini(&j->req);
		submit(j, SL_OREQ_XATTRS, true);
		return;
	}
	if (r == 0) {
		r = sl_xattr_keep_only(o, j->req.xattrs, j->req.nxattrs);
		for (size_t i = 0; r == 0 && i < j->req.nxattrs; i++) {
			const struct sl_oxattr *x = &j->req.xattrs[i];
			r = sl_xattr_import(o, x->name, x->value, x->len);
		}
		pthread_mutex_lock(&o->lock);
		if (r == 0) {
			o->rec.flags &= (uint16_t)~SL_XATTRS;
			r = sl_object_save(o);
			if (r < 0)
				o->rec.flags |= SL_XATTRS;
		}
		pthread_mutex_unlock(&o->lock);
		if (r < 0 && r != -ENOSPC && r != -EDQUOT && r != -ENOMEM)
			r = -EIO;
	}
	/* These are those of what has taken its place. */
	if (other && j->f->cfg.other)
		j->f->cfg.other(j->f->cfg.arg, o);
	job_end(j, false, r);
}

int sl_xattrs_start(struct sl_fill *f, struct sl_object *o)
{
	return job_start(f, o, SL_OREQ_XATTRS, xattrs_run);
}
