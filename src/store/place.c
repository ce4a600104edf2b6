/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Places of a native store. Each record holds a whole place, for users rename as they like. When a directory
 * moves at the origin the places of everything below it change, also of what users have taken elsewhere; so
 * that is not written into a million records but noted once: a *move*, with a number that grows. A record
 * says after how many moves its place was the place, and the later ones are applied to it when it is used.
 *
 * A move is a file "moves/NUMBER" with the places in an extended attribute: nothing but metadata, which the
 * filesystem's journal keeps in order with the rename that follows.
 */
#include <assert.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/xattr.h>

#include "base/fd.h"
#include "store/internal.h"

#define XATTR "trusted.sluice.move" /* u8 exchange, from, NUL, to */

/* ---- moves ---- */

/* The part of @place behind the directory @dir ("" for itself), or NULL if it is not there. */
static const char *below(const char *place, const char *dir)
{
	size_t n = strlen(dir);
	return strncmp(place, dir, n) || (place[n] && place[n] != '/') ? NULL : place + n;
}

/* What @place becomes by @m. Returns 1 and *@ret; 0 if it stays; -ENOENT where another object has come there.
 */
static int apply(const struct sl_move *m, const char *place, char **ret)
{
	const char *rest = below(place, m->from), *to = m->to;
	if (!rest) {
		rest = below(place, m->to);
		if (!rest)
			return 0;
		if (!m->exchange)
			return -ENOENT;
		to = m->from;
	}
	return asprintf(ret, "%s%s", to, rest) < 0 ? -ENOMEM : 1;
}

/* Places lock held: apply what has moved since to *@place. */
static int advance(struct sl_store *s, char **place, uint32_t *moves, bool *gone)
{
	uint32_t last = s->moves_base + s->nmoves;
	if (*moves < s->moves_base)
		*gone = true; /* nobody knows any more */
	while (*moves < last && !*gone) {
		char *next = NULL;
		int r = apply(&s->moves[*moves - s->moves_base], *place, &next);
		if (r == -ENOMEM)
			return r;
		if (r > 0) {
			free(*place);
			*place = next;
		}
		/* As it is written down then, the next service will find the same. */
		*gone = r < 0;
		*moves += !*gone;
	}
	return 0;
}

static int add(struct sl_store *s, const char *from, const char *to, bool exchange)
{
	if (s->nmoves % 64 == 0) {
		struct sl_move *v = reallocarray(s->moves, s->nmoves + 64, sizeof(*v));
		if (!v)
			return -ENOMEM;
		s->moves = v;
	}
	struct sl_move m = {.from = strdup(from), .to = strdup(to), .exchange = exchange};
	if (!m.from || !m.to) {
		free(m.from);
		free(m.to);
		return -ENOMEM;
	}
	s->moves[s->nmoves++] = m;
	return 0;
}

static int write_move(struct sl_store *s, uint32_t number, const char *from, const char *to, bool exchange)
{
	char name[16], p[SL_PROC_FD_MAX];
	size_t nf = strlen(from), n = 1 + nf + 1 + strlen(to);
	_cleanup_free_ char *b = malloc(n + 1);
	if (!b)
		return -ENOMEM;
	b[0] = (char)exchange;
	memcpy(b + 1, from, nf + 1);
	strcpy(b + 1 + nf + 1, to);
	if (mkdirat(s->base_fd, SL_MOVES, 0700) < 0 && errno != EEXIST)
		return -errno;
	_cleanup_close_ int dir = openat(s->base_fd, SL_MOVES, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	_cleanup_close_ int fd = dir < 0 ? -EBADF : openat(dir, ".", O_WRONLY | O_TMPFILE | O_CLOEXEC, 0600);
	snprintf(name, sizeof(name), "%u", number);
	/* Complete, or not at all. */
	if (fd < 0 || fsetxattr(fd, XATTR, b, n, 0) < 0 ||
	    linkat(AT_FDCWD, sl_proc_fd_path(p, fd, NULL), dir, name, AT_SYMLINK_FOLLOW) < 0)
		return -errno;
	return 0;
}

int sl_store_move(struct sl_store *s, const char *from, const char *to, bool exchange)
{
	pthread_mutex_lock(&s->places);
	int r = add(s, from, to, exchange);
	if (r == 0) {
		r = write_move(s, s->moves_base + s->nmoves, from, to, exchange);
		if (r < 0) {
			struct sl_move *m = &s->moves[--s->nmoves];
			free(m->from);
			free(m->to);
		}
	}
	pthread_mutex_unlock(&s->places);
	return r;
}

uint32_t sl_store_moves(struct sl_store *s)
{
	pthread_mutex_lock(&s->places);
	uint32_t n = s->moves_base + s->nmoves;
	pthread_mutex_unlock(&s->places);
	return n;
}

static int read_move(struct sl_store *s, int dir, uint32_t number)
{
	char name[16], b[1 + 2 * 4097];
	snprintf(name, sizeof(name), "%u", number);
	_cleanup_close_ int fd = openat(dir, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	ssize_t n = fgetxattr(fd, XATTR, b, sizeof(b) - 1);
	if (n < 0)
		return -errno;
	b[n] = '\0';
	const char *end = n > 1 ? memchr(b + 1, 0, (size_t)n - 1) : NULL;
	return end ? add(s, b + 1, end + 1, b[0]) : -EBADMSG;
}

static int cmp_number(const void *a, const void *b)
{
	const uint32_t *x = a, *y = b;
	return *x < *y ? -1 : *x > *y;
}

int sl_places_open(struct sl_store *s)
{
	pthread_mutex_init(&s->places, NULL);
	if (!s->native)
		return 0;
	int fd = openat(s->base_fd, SL_MOVES, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return errno == ENOENT ? 0 : -errno;
	DIR *d = fdopendir(fd);
	if (!d) {
		close(fd);
		return -ENOMEM;
	}
	_cleanup_free_ uint32_t *v = NULL;
	size_t n = 0;
	int r = 0;
	struct dirent *e;
	while (r == 0 && (e = readdir(d))) {
		char *end;
		unsigned long k = strtoul(e->d_name, &end, 10);
		if (*end || k == 0 || k > UINT32_MAX)
			continue;
		uint32_t *g = n % 64 ? v : reallocarray(v, n + 64, sizeof(*v));
		if (!g)
			r = -ENOMEM;
		else
			(v = g)[n++] = (uint32_t)k;
	}
	if (n)
		qsort(v, n, sizeof(*v), cmp_number);
	for (size_t i = 0; i < n && r == 0; i++)
		/* One that is missing: what was noted before it is worth nothing. */
		r = i && v[i] != v[i - 1] + 1 ? -EBADMSG : read_move(s, fd, v[i]);
	s->moves_base = n ? v[0] - 1 : 0;
	closedir(d);
	return r;
}

void sl_places_close(struct sl_store *s)
{
	for (uint32_t i = 0; i < s->nmoves; i++) {
		free(s->moves[i].from);
		free(s->moves[i].to);
	}
	free(s->moves);
}

/* ---- places ---- */

int sl_place_get(struct sl_object *o, char **place, uint32_t *moves)
{
	struct sl_store *s = o->store;
	pthread_mutex_lock(&s->places);
	int r = o->place ? advance(s, &o->place, &o->place_moves, &o->place_gone) : -ENOENT;
	if (r == 0 && o->place_gone)
		r = -ESTALE;
	*moves = o->place_moves;
	*place = r == 0 || r == -ESTALE ? strdup(o->place) : NULL;
	pthread_mutex_unlock(&s->places);
	return r == 0 && !*place ? -ENOMEM : r;
}

int sl_place_below(struct sl_object *dir, const char *name, char **place, uint32_t *moves)
{
	_cleanup_free_ char *at = NULL;
	int r = sl_place_get(dir, &at, moves);
	*place = r == 0 ? sl_path_join(at, name) : NULL;
	return r == 0 && !*place ? -ENOMEM : r;
}

int sl_object_set_place(struct sl_object *o, const char *place)
{
	struct sl_store *s = o->store;
	char *copy = strdup(place);
	if (!copy)
		return -ENOMEM;
	pthread_mutex_lock(&o->lock);
	pthread_mutex_lock(&s->places);
	free(o->place);
	o->place = copy;
	o->place_moves = s->moves_base + s->nmoves;
	o->place_gone = false;
	o->rec.flags &= (uint16_t)~SL_GONE;
	pthread_mutex_unlock(&s->places);
	int r = o->has_record ? sl_object_save(o) : 0;
	pthread_mutex_unlock(&o->lock);
	return r;
}

int sl_object_lose_place(struct sl_object *o)
{
	pthread_mutex_lock(&o->lock);
	o->rec.flags |= SL_GONE;
	int r = o->has_record ? sl_object_save(o) : 0;
	pthread_mutex_lock(&o->store->places);
	o->place_gone = true;
	pthread_mutex_unlock(&o->store->places);
	pthread_mutex_unlock(&o->lock);
	return r;
}

int sl_object_by_place(struct sl_store *s, const char *place, struct sl_object **ret)
{
	_cleanup_free_ char *path = strdup(place);
	if (!path)
		return -ENOMEM;
	struct sl_object *o = sl_object_ref(s->root);
	int r = 0;
	for (char *c = path, *end; *c && r == 0; c = end) {
		size_t n = strcspn(c, "/");
		end = c + n + (c[n] == '/');
		char more = c[n];
		c[n] = '\0';
		struct sl_object *child = NULL;
		r = sl_object_is_dir(o) ? sl_object_lookup(o, c, &child) : -ENOENT;
		sl_object_put(o);
		o = child;
		_cleanup_free_ char *own = NULL;
		uint32_t moves;
		if (r == 0 && !o->damaged) {
			int q = sl_place_get(o, &own, &moves);
			if (q == -ENOMEM)
				r = q;
			else if (q < 0 || (!sl_object_linked(o) && strcmp(own, path)))
				r = -ENOENT; /* made or moved here */
		}
		c[n] = more;
	}
	if (r < 0) {
		sl_object_put(o);
		return r == -ENOTDIR || r == -ESTALE ? -ENOENT : r;
	}
	*ret = o;
	return 0;
}
