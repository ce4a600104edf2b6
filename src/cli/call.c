/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "cli/call.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/fd.h"
#include "base/human.h"
#include "base/why.h"
#include "cli/registry.h"

static int dial(const char *store)
{
	_cleanup_free_ char *p = sl_path_join(store, "control");
	return p ? sl_unix_connect(p) : -ENOMEM;
}

bool sl_call_alive(const char *store)
{
	int fd = dial(store);
	if (fd >= 0)
		close(fd);
	return fd >= 0;
}

int sl_call(const char *store, json_t *request, void (*progress)(void *arg, json_t *p),
	    void (*item)(void *arg, json_t *i), void *arg, json_t **ret, char **why)
{
	_cleanup_free_ char *text = json_dumps(request, JSON_COMPACT | JSON_ENSURE_ASCII);
	json_decref(request);
	*ret = NULL;
	if (!text)
		return -ENOMEM;
	int fd = dial(store);
	if (fd == -EACCES)
		return sl_fail(why, fd, "the service of %s belongs to another user", store);
	if (fd < 0)
		return sl_fail(why, -ENOTCONN, "no service is running for %s: 'sluice start' starts it",
			       store);
	FILE *f = fdopen(fd, "r+");
	if (!f) {
		close(fd);
		return -ENOMEM;
	}
	fprintf(f, "%s\n", text);
	fflush(f);
	char *line = NULL;
	size_t cap = 0;
	int r = 0;
	while (!*ret && getline(&line, &cap, f) > 0) {
		json_error_t e;
		json_t *j = json_loads(line, 0, &e), *v;
		if (!json_is_object(j))
			r = sl_fail(why, -EPROTO, "the service answers nonsense");
		else if ((v = json_object_get(j, "progress")) && progress)
			progress(arg, v);
		else if ((v = json_object_get(j, "item")) && item)
			item(arg, v);
		else if (json_object_get(j, "ok"))
			*ret = json_incref(j);
		json_decref(j);
		if (r < 0)
			break;
	}
	if (r == 0 && !*ret)
		r = sl_fail(why, -EPIPE, "the service ended, or does not listen to this user");
	free(line);
	fclose(f);
	return r;
}

int sl_paths_collect(int n, char **argv, struct sl_paths *p, char **why)
{
	static char *here[] = {(char *)"."};
	*p = (struct sl_paths){.paths = json_array()};
	if (n == 0) {
		argv = here;
		n = 1;
	}
	for (int i = 0; i < n; i++) {
		_cleanup_free_ char *store = NULL, *below = NULL;
		int r = sl_registry_find(argv[i], &store, &below, why);
		if (r == 0 && p->store && strcmp(p->store, store))
			r = sl_fail(
			    why, -EXDEV,
			    "%s belongs to another clone than the paths before it: one clone at a time",
			    argv[i]);
		if (r < 0) {
			sl_paths_fini(p);
			return r;
		}
		if (!p->store)
			p->store = sl_steal_ptr(&store);
		_cleanup_free_ char *shown = sl_printable(below, strlen(below));
		json_array_append_new(p->paths, json_string(shown ? shown : ""));
	}
	return 0;
}

void sl_paths_fini(struct sl_paths *p)
{
	free(p->store);
	json_decref(p->paths);
	*p = (struct sl_paths){0};
}

static bool progress_shown;

void sl_progress(const char *fmt, ...)
{
	if (!isatty(STDERR_FILENO))
		return;
	va_list ap;
	va_start(ap, fmt);
	fputs("\r\033[K", stderr);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fflush(stderr);
	progress_shown = true;
}

void sl_progress_end(void)
{
	if (progress_shown)
		fputs("\r\033[K", stderr);
	progress_shown = false;
}

void sl_print_json(json_t *j)
{
	_cleanup_free_ char *s = json_dumps(j, JSON_COMPACT);
	puts(s ? s : "{}");
}

const char *sl_answer_error(json_t *answer)
{
	if (json_is_true(json_object_get(answer, "ok")))
		return NULL;
	const char *e = json_string_value(json_object_get(answer, "error"));
	return e ? e : "the service gave no reason";
}

uint64_t sl_json_u64(json_t *j, const char *key)
{
	return (uint64_t)json_integer_value(json_object_get(j, key));
}
