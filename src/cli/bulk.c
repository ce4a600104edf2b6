/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "cli/bulk.h"

#include <stdio.h>
#include <string.h>

#include "base/human.h"
#include "base/time.h"

struct bulk {
	const char *name;
	bool json;
	uint64_t t0;
	void (*item)(json_t *i);
};

static void on_progress(void *arg, json_t *p)
{
	struct bulk *b = arg;
	char s[16], r[16];
	double sec = (double)(sl_now() - b->t0) / 1e9;
	uint64_t bytes = sl_json_u64(p, "bytes");
	sl_progress("%s: %llu files, %s, %s/s", b->name, (unsigned long long)sl_json_u64(p, "files"),
		    sl_format_size(s, bytes),
		    sl_format_size(r, (uint64_t)((double)bytes / (sec > 0 ? sec : 1))));
}

static void on_item(void *arg, json_t *i)
{
	struct bulk *b = arg;
	sl_progress_end();
	if (b->json)
		sl_print_json(i);
	else if (b->item)
		b->item(i);
}

int sl_bulk_run(const struct sl_command *cmd, int argc, char **argv, const struct option *more,
		int (*option)(const struct sl_command *cmd, int c, json_t *request), void (*item)(json_t *i),
		void (*show)(json_t *answer))
{
	struct option opts[8] = {{"json", no_argument, NULL, 'j'}, {"help", no_argument, NULL, 'h'}};
	for (size_t n = 2; more && more->name; more++)
		opts[n++] = *more;
	struct bulk b = {.name = cmd->name, .t0 = sl_now(), .item = item};
	json_t *request = json_pack("{ss}", "cmd", cmd->name), *answer = NULL;
	int c, r;
	while ((c = getopt_long(argc, argv, "jh", opts, NULL)) != -1) {
		r = 0;
		if (c == 'j') {
			b.json = true;
		} else if (c == 'h') {
			json_decref(request);
			return sl_cli_help(cmd);
		} else {
			r = c == '?' ? sl_cli_usage(cmd, "see above") : option(cmd, c, request);
		}
		if (r) {
			json_decref(request);
			return r;
		}
	}
	if (optind == argc) {
		json_decref(request);
		return sl_cli_usage(cmd, "needs a path");
	}
	struct sl_paths p;
	_cleanup_free_ char *why = NULL;
	r = sl_paths_collect(argc - optind, argv + optind, &p, &why);
	if (r < 0) {
		json_decref(request);
		return sl_cli_fail("%s", why ? why : strerror(-r));
	}
	json_object_set(request, "paths", p.paths);
	r = sl_call(p.store, request, on_progress, on_item, &b, &answer, &why);
	sl_progress_end();
	sl_paths_fini(&p);
	const char *error = r == 0 ? sl_answer_error(answer) : why ? why : strerror(-r);
	if (b.json && answer)
		sl_print_json(answer);
	else if (!error)
		show(answer);
	if (error)
		sl_cli_fail("%s", error);
	bool differs = sl_json_u64(answer, "wrong") || sl_json_u64(answer, "changed") ||
		       (!error && sl_json_u64(answer, "failed"));
	json_decref(answer);
	return error ? SL_EXIT_FAIL : differs ? SL_EXIT_DIFFERS : SL_EXIT_OK;
}
