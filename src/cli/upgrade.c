/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Replacing the program of a running clone. */
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/time.h"
#include "base/why.h"
#include "cli/call.h"
#include "cli/registry.h"

#define WAIT_NS (120 * SL_NS_PER_SEC)

/* The service's pid and program. */
static int ask(const char *store, json_t **ret, char **why)
{
	int r = sl_call(store, json_pack("{ss s[] sb}", "cmd", "status", "paths", "brief", 1), NULL, NULL,
			NULL, ret, why);
	if (r == 0 && sl_answer_error(*ret))
		r = sl_fail(why, -EIO, "%s", sl_answer_error(*ret));
	return r;
}

/* Until another service answers than @old. Meanwhile the socket is there, and who connects waits. */
static int wait_for_next(const char *store, uint64_t old, json_t **ret, char **why)
{
	uint64_t until = sl_now() + WAIT_NS;
	for (;;) {
		_cleanup_free_ char *reason = NULL;
		int r = ask(store, ret, &reason);
		if (r == 0 && sl_json_u64(*ret, "service_pid") != old)
			return 0;
		json_decref(*ret);
		*ret = NULL;
		if (sl_now() > until)
			return sl_fail(why, -ETIMEDOUT, "the new service does not answer%s%s",
				       reason ? ": " : "", reason ? reason : "");
		struct timespec ts = {.tv_nsec = 10000000};
		nanosleep(&ts, NULL);
	}
}

static int upgrade(const char *store, const char *program, json_t **now, char **why)
{
	json_t *before = NULL, *answer = NULL;
	int r = ask(store, &before, why);
	uint64_t old = r == 0 ? sl_json_u64(before, "service_pid") : 0;
	json_decref(before);
	if (r == 0)
		r = sl_call(store, json_pack("{ss ss}", "cmd", "upgrade", "program", program), NULL, NULL,
			    NULL, &answer, why);
	if (r == 0 && sl_answer_error(answer))
		r = sl_fail(why, -EIO, "%s", sl_answer_error(answer));
	json_decref(answer);
	if (r == 0)
		r = wait_for_next(store, old, now, why);
	if (r == 0 && strcmp(program, json_string_value(json_object_get(*now, "program")) ?: ""))
		r = sl_fail(why, -EIO, "%s could not be executed: the program that ran before goes on",
			    program);
	return r;
}

static int run_upgrade(const struct sl_command *cmd, int argc, char **argv)
{
	static const struct option opts[] = {{"program", required_argument, NULL, 'p'},
					     {"json", no_argument, NULL, 'j'},
					     {"help", no_argument, NULL, 'h'},
					     {0}};
	const char *with = "/proc/self/exe";
	bool json = false;
	int c;
	while ((c = getopt_long(argc, argv, "p:jh", opts, NULL)) != -1)
		switch (c) {
		case 'p':
			with = optarg;
			break;
		case 'j':
			json = true;
			break;
		case 'h':
			return sl_cli_help(cmd);
		default:
			return sl_cli_usage(cmd, "see above");
		}
	if (optind + 1 != argc)
		return sl_cli_usage(cmd, "needs one clone: its directory or its store");
	char program[PATH_MAX];
	if (!realpath(with, program))
		return sl_cli_fail("%s: %s", with, strerror(errno));
	_cleanup_free_ char *store = NULL, *why = NULL;
	json_t *now = NULL;
	int r = sl_registry_find(argv[optind], &store, NULL, &why);
	if (r == 0)
		r = upgrade(store, program, &now, &why);
	if (r == 0 && json) {
		json_t *j = json_pack("{sb ss sO sO}", "ok", 1, "program", program, "service_pid",
				      json_object_get(now, "service_pid"), "keeper_pid",
				      json_object_get(now, "keeper_pid"));
		sl_print_json(j);
		json_decref(j);
	} else if (r == 0) {
		printf("%s runs %s now\n", argv[optind], program);
	}
	json_decref(now);
	return r < 0 ? sl_cli_fail("%s", why ? why : strerror(-r)) : SL_EXIT_OK;
}

const struct sl_command sl_cmd_upgrade = {
    .name = "upgrade",
    .summary = "Replace the program of a running clone, without a gap",
    .usage = "[OPTION…] DIR|STORE",
    .help = "The clone's service ends and this program goes on in its place; what is open stays open, and no "
	    "access\n"
	    "fails. Where the two programs cannot take over from each other nothing happens.\n\n"
	    "  -p, --program FILE   go on with FILE instead of this program\n"
	    "  -j, --json           print the result as JSON\n"
	    "  -h, --help           this text\n\n"
	    "Example:\n  sluice upgrade ~/data\n",
    .run = run_upgrade,
};
