/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What all connections of an export share, and the bounds that they have together. */
#include <sys/resource.h>

#include "base/why.h"
#include "serve/connection.h"

static unsigned quarter_of_files(void)
{
	struct rlimit rl;
	if (getrlimit(RLIMIT_NOFILE, &rl) < 0)
		return 64;
	unsigned n = (unsigned)SL_MIN(rl.rlim_cur / 4, (rlim_t)1 << 16);
	return SL_MAX(n, 16u);
}

int sl_export_open(const char *path, const struct sl_export_config *cfg, struct sl_export **ret, char **why)
{
	struct sl_export *e = calloc(1, sizeof(*e));
	unsigned quarter = quarter_of_files();
	if (!e)
		return sl_fail(why, -ENOMEM, "no memory");
	if (cfg)
		e->cfg = *cfg;
	if (!e->cfg.threads)
		e->cfg.threads = 4;
	if (!e->cfg.max_nodes)
		e->cfg.max_nodes = 4u << 20;
	if (!e->cfg.max_dirs)
		e->cfg.max_dirs = 1024;
	if (!e->cfg.max_opens)
		e->cfg.max_opens = 4096;
	if (!e->cfg.max_files)
		e->cfg.max_files = SL_MIN(1024u, quarter);
	if (!e->cfg.max_marks)
		e->cfg.max_marks = 1u << 20;
	if (!e->cfg.max_data || e->cfg.max_data > SL_WIRE_MAX_DATA)
		e->cfg.max_data = SL_WIRE_MAX_DATA;
	e->max_open_dirs = e->max_open_files = quarter;
	int r = sl_tree_open(path, &e->tree, why);
	if (r == 0 && (r = sl_files_new(e->cfg.max_files, &e->files)) < 0)
		r = sl_fail(why, r, "cannot start a thread");
	if (r == 0 && (r = sl_events_new(e->tree, e->cfg.backend, &e->events)) < 0)
		r = sl_fail(why, r, "no memory");
	if (r == 0 && (r = sl_sessions_new(e->events, e->cfg.grace, &e->sessions)) < 0)
		r = sl_fail(why, r, "no memory");
	if (r < 0) {
		sl_export_free(e);
		return r;
	}
	*ret = e;
	return 0;
}

void sl_export_free(struct sl_export *e)
{
	if (!e)
		return;
	sl_sessions_free(e->sessions);
	sl_events_free(e->events);
	sl_files_free(e->files);
	sl_tree_close(e->tree);
	free(e);
}

const char *sl_export_path(const struct sl_export *e)
{
	return sl_tree_path(e->tree);
}
