/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the clone has, against what the origin says. */
#include "replay/internal.h"
#include "store/remote.h"

bool replay_populated(struct sl_object *dir)
{
	pthread_mutex_lock(&dir->lock);
	bool full = dir->rec.state == SL_FULL && !(dir->rec.flags & SL_LOCAL) && !dir->evicting;
	pthread_mutex_unlock(&dir->lock);
	return full && sl_object_is_dir(dir);
}

bool replay_foreign(struct sl_object *dir, const char *name, struct sl_object *o)
{
	bool native = sl_store_native(o->store);
	pthread_mutex_lock(&o->lock);
	bool f = o->rec.flags & (SL_LOCAL | SL_MOVED) || o->damaged || (native && !o->has_record);
	bool linked = o->rec.flags & SL_LINKED, recorded = o->has_record;
	pthread_mutex_unlock(&o->lock);
	if (!f && !native && !recorded)
		return sl_object_whiteout(dir, name); /* see sl_object_adopt() */
	if (f || !native || linked)
		return f;
	/* Nobody tells of names that users change there, but a record says where its object belongs. */
	_cleanup_free_ char *above = NULL, *own = NULL, *place = NULL;
	if (sl_object_place(dir, &above) < 0 || sl_object_place(o, &own) < 0)
		return true;
	place = sl_path_join(above, name);
	return !place || strcmp(place, own) != 0;
}

bool replay_deleted(struct sl_object *dir, const char *name, const struct sl_ostate *s)
{
	if (!sl_store_native(dir->store))
		return sl_object_whiteout(dir, name);
	return sl_object_taken(dir, name, &s->attr);
}

bool replay_same(uint64_t ino, uint32_t generation, uint64_t ino2, uint32_t generation2)
{
	if ((ino && ino2 && ino != ino2) || (generation && generation2 && generation != generation2))
		return false;
	return (ino && ino2) || (generation && generation2);
}

/* As husk() in event.c makes it. */
static bool is_nobody(const struct sl_version *v)
{
	return !v->ino && !v->generation;
}

bool replay_is_unknown(struct sl_object *o)
{
	pthread_mutex_lock(&o->lock);
	bool is = o->has_record && is_nobody(&o->rec.origin);
	pthread_mutex_unlock(&o->lock);
	return is;
}

bool replay_is(struct sl_object *o, uint64_t ino, uint64_t generation)
{
	pthread_mutex_lock(&o->lock);
	const struct sl_version *v = &o->rec.origin;
	bool unknown = !o->has_record || is_nobody(v);
	bool same = unknown || replay_same(v->ino, v->generation, ino, (uint32_t)generation);
	pthread_mutex_unlock(&o->lock);
	return same;
}

bool replay_is_other(struct sl_object *dir, const struct sl_odir *which)
{
	pthread_mutex_lock(&dir->lock);
	uint32_t have = dir->has_record ? dir->rec.origin.generation : 0;
	pthread_mutex_unlock(&dir->lock);
	return which->generation && have && have != (uint32_t)which->generation;
}

bool replay_is_state(struct sl_object *o, const struct sl_ostate *s)
{
	return (s->attr.mode & S_IFMT) == o->type && replay_is(o, s->attr.ino, s->attr.generation);
}

bool replay_is_later(struct sl_object *o, const struct sl_ostate *s)
{
	pthread_mutex_lock(&o->lock);
	struct timespec have = o->rec.origin.ctime, said = s->attr.ctime;
	pthread_mutex_unlock(&o->lock);
	return have.tv_sec > said.tv_sec || (have.tv_sec == said.tv_sec && have.tv_nsec > said.tv_nsec);
}

bool replay_is_twin(struct sl_replay *p, struct sl_object *o, const struct sl_ostate *s)
{
	const struct sl_acts *a = &p->cfg.acts;
	_cleanup_object_ struct sl_object *more = NULL;
	if (!s->known || !s->present || !a->twin)
		return false;
	bool is = a->twin(a->arg, o, &s->attr, &more);
	/* It stays, and the other has to go, by whatever names it is here. */
	if (!is && more)
		unsure_of_file(p, more);
	return is;
}

bool replay_is_joined(struct sl_replay *p, struct sl_object *o, const struct sl_ostate *s)
{
	if (!S_ISREG(s->attr.mode) || s->attr.nlink < 2 || !o->has_record)
		return true;
	pthread_mutex_lock(&o->lock);
	bool ours = o->rec.flags & (SL_META | SL_MODIFIED); /* and stays what it is */
	pthread_mutex_unlock(&o->lock);
	if (sl_store_native(o->store))
		return ours || !replay_is_twin(p, o, s);
	return ours || sl_remote_join(o, &s->attr) != -EEXIST;
}

bool replay_same_target(struct sl_object *o, const struct sl_ostate *s)
{
	char t[4096 + 1];
	ssize_t n = sl_object_readlink(o, t, sizeof(t) - 1);
	t[n < 0 ? 0 : n] = '\0';
	return s->target && !strcmp(t, s->target);
}

int replay_find(struct sl_replay *p, const char *place, const struct sl_odir *which, struct sl_object **dir,
		const char **name)
{
	const char *slash = strrchr(place, '/');
	_cleanup_free_ char *up = slash ? strndup(place, (size_t)(slash - place)) : strdup("");
	*name = slash ? slash + 1 : place;
	if (!up)
		return -ENOMEM;
	if (!**name)
		return -EINVAL;
	int r = p->cfg.find(p->cfg.store, up, dir);
	if (r == 0 && replay_is_other(*dir, which))
		r = -ESTALE;
	if (which->id && (r == -ESTALE || r == -ENOENT))
		replay_stray(p, which);
	if (r < 0)
		return r;
	/* It is being listed: what the listing shows comes first, then what happened since. */
	pthread_mutex_lock(&(*dir)->lock);
	bool wait =
	    sl_object_is_dir(*dir) && (*dir)->rec.state != SL_FULL && (*dir)->flight && !(*dir)->damaged;
	pthread_mutex_unlock(&(*dir)->lock);
	if (wait)
		(void)sl_fill_wait(p->cfg.fill, SL_WANT_NAMES, *dir, 0, 0);
	return replay_populated(*dir) ? 0 : -ENODATA;
}
