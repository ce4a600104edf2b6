/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "cli/registry.h"

#include <dirent.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "base/fd.h"

int sl_registry_dir(char **ret, char **why)
{
	const char *state = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
	_cleanup_free_ char *dir = NULL, *clones = NULL;
	if (geteuid() == 0 && !(state && *state == '/'))
		dir = strdup("/var/lib/sluice");
	else if (state && *state == '/')
		dir = sl_path_join(state, "sluice");
	else if (home && *home == '/')
		dir = sl_path_join(home, ".local/state/sluice");
	else
		return sl_fail(
		    why, -ENOENT,
		    "neither HOME nor XDG_STATE_HOME is set: it is not known where clones are kept");
	clones = dir ? sl_path_join(dir, "clones") : NULL;
	if (!clones)
		return -ENOMEM;
	int r = sl_mkdirs(clones, 0700);
	if (r < 0)
		return sl_fail(why, r, "%s: %s", clones, strerror(-r));
	*ret = sl_steal_ptr(&dir);
	return 0;
}

static int entry_path(const char *id, char **ret, char **why)
{
	_cleanup_free_ char *dir = NULL;
	int r = sl_registry_dir(&dir, why);
	if (r < 0)
		return r;
	return asprintf(ret, "%s/clones/%s", dir, id) < 0 ? -ENOMEM : 0;
}

int sl_registry_add(const char *id, const char *store, char **why)
{
	_cleanup_free_ char *p = NULL;
	int r = entry_path(id, &p, why);
	if (r == 0 && symlink(store, p) < 0)
		r = sl_fail(why, -errno, "%s: %s", p, strerror(errno));
	return r;
}

void sl_registry_remove(const char *id)
{
	_cleanup_free_ char *p = NULL;
	if (entry_path(id, &p, NULL) == 0)
		unlink(p);
}

int sl_registry_each(int (*fn)(void *arg, const char *store, const struct sl_store_config *c), void *arg,
		     char **why)
{
	_cleanup_free_ char *dir = NULL, *clones = NULL;
	int r = sl_registry_dir(&dir, why);
	if (r < 0)
		return r;
	clones = sl_path_join(dir, "clones");
	DIR *d = clones ? opendir(clones) : NULL;
	if (!d)
		return sl_fail(why, -errno, "%s: %s", clones, strerror(errno));
	struct dirent *e;
	while (r == 0 && (e = readdir(d))) {
		char store[PATH_MAX];
		struct sl_store_config c;
		ssize_t n = readlinkat(dirfd(d), e->d_name, store, sizeof(store) - 1);
		if (n < 0)
			continue;
		store[n] = '\0';
		/* A store that somebody deleted by hand is no longer a clone; one that cannot be read still is, and
		 * nobody should believe that there is none. */
		_cleanup_free_ char *reason = NULL;
		int k = sl_store_config_load(store, &c, &reason);
		if (k < 0 && k != -ENOENT)
			fprintf(stderr, "sluice: %s\n", reason ? reason : strerror(-k));
		if (k < 0)
			continue;
		r = fn(arg, store, &c);
		sl_store_config_fini(&c);
	}
	closedir(d);
	return r;
}

char *sl_absolute(const char *path)
{
	_cleanup_free_ char *cwd = NULL, *joined = NULL, *base = NULL;
	char *real = realpath(path, NULL);
	if (real)
		return real;
	if (*path != '/') {
		cwd = getcwd(NULL, 0);
		joined = cwd ? sl_path_join(cwd, path) : NULL;
	} else {
		joined = strdup(path);
	}
	if (!joined)
		return NULL;
	/* Resolve all but the last component, which may be a dead mount or not exist. */
	size_t n = strlen(joined);
	while (n > 1 && joined[n - 1] == '/')
		joined[--n] = '\0';
	char *slash = strrchr(joined, '/');
	base = strdup(slash + 1);
	if (!base || !strcmp(base, ".") || !strcmp(base, ".."))
		return sl_steal_ptr(&joined);
	slash[slash == joined] = '\0';
	_cleanup_free_ char *parent = realpath(joined, NULL);
	if (!parent)
		return strdup(path);
	return strcmp(parent, "/") ? sl_path_join(parent, base) : sl_path_join("", base);
}

/* @path made absolute by its text alone. */
static char *lexical(const char *path)
{
	_cleanup_free_ char *cwd = *path == '/' ? strdup("") : getcwd(NULL, 0), *in = NULL;
	if (!cwd || asprintf(&in, "%s/%s", strcmp(cwd, "/") ? cwd : "", path) < 0)
		return NULL;
	char *out = malloc(strlen(in) + 2), *o = out, *save = NULL;
	if (!out)
		return NULL;
	for (char *c = strtok_r(in, "/", &save); c; c = strtok_r(NULL, "/", &save)) {
		if (!strcmp(c, "."))
			continue;
		if (!strcmp(c, "..")) {
			while (o > out && *--o != '/')
				;
			continue;
		}
		*o++ = '/';
		o = stpcpy(o, c);
	}
	if (o == out)
		*o++ = '/';
	*o = '\0';
	return out;
}

struct find {
	const char *path;
	char *store, *below;
	size_t best;
};

static int match(void *arg, const char *store, const struct sl_store_config *c)
{
	struct find *f = arg;
	size_t n = strlen(c->dir);
	bool is_store = !strcmp(f->path, store);
	if (!is_store && (strncmp(f->path, c->dir, n) || (f->path[n] && f->path[n] != '/') || n <= f->best))
		return 0;
	f->best = is_store ? SIZE_MAX / 2 : n;
	free(f->store);
	free(f->below);
	f->store = strdup(store);
	f->below = strdup(is_store || !f->path[n] ? "" : f->path + n + 1);
	return f->store && f->below ? 0 : -ENOMEM;
}

int sl_registry_find(const char *path, char **store, char **below, char **why)
{
	_cleanup_free_ char *abs = lexical(path);
	struct sl_store_config c;
	if (!abs)
		return -ENOMEM;
	struct find f = {.path = abs};
	/* The registry first, by names alone: looking into a clone's directory would be a use of the clone.
	 */
	int r = sl_registry_each(match, &f, why);
	if (r == 0 && !f.store) { /* through a symlink, perhaps */
		char *real = sl_absolute(path);
		if (!real)
			return -ENOMEM;
		free(abs);
		f.path = abs = real;
		r = sl_registry_each(match, &f, why);
	}
	if (r == 0 && !f.store) { /* a store that is not registered, perhaps */
		_cleanup_free_ char *reason = NULL;
		int k = sl_store_config_load(abs, &c, &reason);
		if (k == 0) {
			sl_store_config_fini(&c);
			f.store = sl_steal_ptr(&abs);
			f.below = strdup("");
		} else if (k == -EPROTONOSUPPORT || k == -EBADMSG) {
			r = sl_fail(why, k, "%s", reason ? reason : strerror(-k));
		}
	}
	if (r == 0 && !f.store)
		r = sl_fail(why, -ENOENT, "%s belongs to no clone ('sluice list' shows which there are)",
			    path);
	if (r < 0) {
		free(f.store);
		free(f.below);
		return r;
	}
	*store = f.store;
	if (below)
		*below = f.below;
	else
		free(f.below);
	return 0;
}
