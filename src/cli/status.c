/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/human.h"
#include "cli/call.h"
#include "cli/registry.h"
#include "gate/fuse/mount.h"
#include "service/native.h"

static const char *str(json_t *j, const char *key)
{
	const char *s = json_string_value(json_object_get(j, key));
	return s ? s : "";
}

static void print_counts(json_t *n, const char *indent)
{
	char a[16], b[16];
	printf("%scontent     %s of %s here", indent, sl_format_size(a, sl_json_u64(n, "bytes_here")),
	       sl_format_size(b, sl_json_u64(n, "bytes")));
	if (sl_json_u64(n, "bytes"))
		printf(" (%.1f %%)",
		       100.0 * (double)sl_json_u64(n, "bytes_here") / (double)sl_json_u64(n, "bytes"));
	printf("\n%sfiles       %llu known: %llu full, %llu partial, %llu cold\n", indent,
	       (unsigned long long)sl_json_u64(n, "files"), (unsigned long long)sl_json_u64(n, "full"),
	       (unsigned long long)sl_json_u64(n, "partial"), (unsigned long long)sl_json_u64(n, "cold"));
	printf("%sdirectories %llu known: %llu not listed yet\n", indent,
	       (unsigned long long)sl_json_u64(n, "directories"),
	       (unsigned long long)sl_json_u64(n, "unpopulated"));
	static const struct {
		const char *key, *text;
	} more[] = {{"modified", "modified here"},
		    {"local", "made here"},
		    {"pinned", "pinned"},
		    {"conflicts", "in conflict"},
		    {"damaged", "damaged"}};
	for (size_t i = 0; i < SL_ARRAY_SIZE(more); i++)
		if (sl_json_u64(n, more[i].key))
			printf("%s            %llu %s\n", indent,
			       (unsigned long long)sl_json_u64(n, more[i].key), more[i].text);
}

static void print_events(json_t *e)
{
	if (!e)
		return;
	printf("  events      %llu received, %llu done here", (unsigned long long)sl_json_u64(e, "received"),
	       (unsigned long long)sl_json_u64(e, "applied"));
	if (sl_json_u64(e, "queued"))
		printf(", %llu waiting", (unsigned long long)sl_json_u64(e, "queued"));
	if (sl_json_u64(e, "failed"))
		printf(", %llu failed", (unsigned long long)sl_json_u64(e, "failed"));
	if (json_is_true(json_object_get(e, "comparing")))
		printf("; comparing with the origin: %llu directories, %llu differences so far",
		       (unsigned long long)sl_json_u64(e, "compared"),
		       (unsigned long long)sl_json_u64(e, "differences"));
	putchar('\n');
}

static void print_service(json_t *j)
{
	char a[16], b[16];
	printf("%s\n", str(j, "dir"));
	printf("  origin      %s (%s)\n", str(j, "origin"),
	       json_is_true(json_object_get(j, "connected")) ? "connected" : "not connected");
	printf("  store       %s%s\n", str(j, "store"),
	       json_is_true(json_object_get(j, "armoured")) ? " (armoured)" : "");
	printf("  gate        %s%s\n", str(j, "gate"),
	       json_is_true(json_object_get(j, "passthrough")) ? ", full files in passthrough mode" : "");
	if (sl_json_u64(j, "capacity"))
		printf("  capacity    %s\n", sl_format_size(a, sl_json_u64(j, "capacity")));
	uint64_t now = (uint64_t)time(NULL), since = sl_json_u64(j, "started");
	uint64_t up = now > since ? now - since : 0; /* the clock may have been set back */
	printf("  service     pid %llu (keeper %llu), up for %s",
	       (unsigned long long)sl_json_u64(j, "service_pid"),
	       (unsigned long long)sl_json_u64(j, "keeper_pid"), sl_format_ns(a, up * 1000000000ull));
	uint64_t restarts = sl_json_u64(j, "service_restarts");
	if (restarts)
		printf(", restarted %llu time%s", (unsigned long long)restarts, restarts == 1 ? "" : "s");
	putchar('\n');
	printf("  fetched     %s in %llu requests, %llu listings%s",
	       sl_format_size(a, sl_json_u64(j, "fetched_bytes")),
	       (unsigned long long)sl_json_u64(j, "fetches"), (unsigned long long)sl_json_u64(j, "listings"),
	       sl_json_u64(j, "waiting") ? "" : "\n");
	if (sl_json_u64(j, "waiting"))
		printf("; %llu accesses are waiting\n", (unsigned long long)sl_json_u64(j, "waiting"));
	if (sl_json_u64(j, "forgotten_files"))
		printf("  recovered   from an unclean end: %s in %llu files to be fetched again\n",
		       sl_format_size(b, sl_json_u64(j, "forgotten_bytes")),
		       (unsigned long long)sl_json_u64(j, "forgotten_files"));
	print_events(json_object_get(j, "events"));
	json_t *n = json_object_get(j, "counts");
	if (n)
		print_counts(n, "  ");
}

static void print_path(json_t *p)
{
	char a[16], b[16];
	json_t *flags = json_object_get(p, "flags"), *v, *below = json_object_get(p, "below");
	size_t i;
	const char *path = str(p, "path");
	printf("%s: %s, %s", *path ? path : ".", str(p, "type"), str(p, "state"));
	if (!strcmp(str(p, "type"), "file"))
		printf(", %s of %s here", sl_format_size(a, sl_json_u64(p, "bytes_here")),
		       sl_format_size(b, sl_json_u64(p, "bytes")));
	json_array_foreach(flags, i, v) printf(", %s", json_string_value(v));
	putchar('\n');
	if (below)
		print_counts(below, "  ");
}

/* Nothing answers: say what can be known all the same. */
static int not_running(const char *store, bool json)
{
	struct sl_store_config c;
	_cleanup_free_ char *why = NULL;
	if (sl_store_config_load(store, &c, &why) < 0)
		return sl_cli_fail("%s", why);
	const char *state =
	    sl_fuse_mounted(c.dir) == SL_MOUNTED_OURS || sl_native_left(store, &c) ? "dead" : "stopped";
	if (json) {
		json_t *j = json_pack("{sb ss ss ss ss}", "ok", 1, "state", state, "dir", c.dir, "origin",
				      c.origin, "store", store);
		sl_print_json(j);
		json_decref(j);
	} else {
		printf(
		    "%s\n  origin      %s\n  store       %s\n  service     %s ('sluice start' starts it)\n",
		    c.dir, c.origin, store, state);
	}
	sl_store_config_fini(&c);
	return SL_EXIT_OK;
}

static int run_status(const struct sl_command *cmd, int argc, char **argv)
{
	static const struct option opts[] = {{"json", no_argument, NULL, 'j'},
					     {"brief", no_argument, NULL, 'b'},
					     {"conflicts", no_argument, NULL, 'c'},
					     {"help", no_argument, NULL, 'h'},
					     {0}};
	bool json = false, brief = false, conflicts = false;
	int c;
	while ((c = getopt_long(argc, argv, "bcjh", opts, NULL)) != -1)
		switch (c) {
		case 'b':
			brief = true;
			break;
		case 'c':
			conflicts = true;
			break;
		case 'j':
			json = true;
			break;
		case 'h':
			return sl_cli_help(cmd);
		default:
			return sl_cli_usage(cmd, "see above");
		}
	struct sl_paths p;
	_cleanup_free_ char *why = NULL;
	int r = sl_paths_collect(argc - optind, argv + optind, &p, &why);
	if (r < 0)
		return sl_cli_fail("%s", why ? why : strerror(-r));
	if (!sl_call_alive(p.store)) {
		r = not_running(p.store, json);
		sl_paths_fini(&p);
		return r;
	}
	/* The clone's own directory, or its store: the whole. */
	json_t *paths = json_array(), *v, *answer = NULL;
	size_t i;
	json_array_foreach(p.paths, i, v) if (*json_string_value(v)) json_array_append(paths, v);
	r = sl_call(p.store,
		    json_pack("{ss so sb sb}", "cmd", "status", "paths", paths, "brief", brief, "conflicts",
			      conflicts),
		    NULL, NULL, NULL, &answer, &why);
	sl_paths_fini(&p);
	const char *error = r == 0 ? sl_answer_error(answer) : why;
	if (json && answer) {
		sl_print_json(answer);
	} else if (!error && conflicts) {
		json_array_foreach(json_object_get(answer, "conflicts"), i, v) puts(str(v, "path"));
	} else if (!error) {
		json_t *list = json_object_get(answer, "paths");
		if (json_array_size(list) == 0)
			print_service(answer);
		json_array_foreach(list, i, v) print_path(v);
	}
	if (error)
		sl_cli_fail("%s", error);
	json_decref(answer);
	return error || r < 0 ? SL_EXIT_FAIL : SL_EXIT_OK;
}

const struct sl_command sl_cmd_status = {
    .name = "status",
    .summary = "Show a clone: what is here of it, and what is not",
    .usage = "[OPTION…] [PATH…]",
    .help = "PATH is a clone's directory or store, or something inside a clone; without PATH, the current "
	    "directory.\n\n"
	    "  -b, --brief      only the service, without counting what is here\n"
	    "  -c, --conflicts  only the paths of what was changed here and at the origin\n"
	    "  -j, --json       print everything as JSON\n"
	    "  -h, --help       this text\n\n"
	    "Example:\n  sluice status ~/data ~/data/2026\n",
    .run = run_status,
};
