/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <signal.h>
#include <string.h>
#include <sys/stat.h>

#include "cli/mounting.h"
#include "mount/share.h"

static int serve(void *arg, struct sl_transport *t)
{
	return sl_share_serve(arg, t);
}

static int run_share(const struct sl_command *cmd, int argc, char **argv)
{
	static const struct option opts[] = {SL_MOUNTING_OPTIONS, {0}};
	struct sl_mounting m = {.serve = serve};
	for (int c; (c = getopt_long(argc, argv, "bjh", opts, NULL)) != -1;) {
		if (c == 'h')
			return sl_cli_help(cmd);
		if (!sl_mounting_option(&m, c))
			return sl_cli_usage(cmd, "see above");
	}
	if (optind + 2 != argc)
		return sl_cli_usage(cmd, "needs a directory and where to mount it");
	_cleanup_free_ char *why = NULL, *tree = realpath(argv[optind], NULL);
	if (!tree)
		return sl_cli_fail("%s: %s", argv[optind], strerror(errno));
	m.what = tree;
	m.dir = argv[optind + 1];
	int status, r = sl_mounting_begin(&m, tree, &status, &why);
	if (r == 1)
		return status;
	umask(0);
	signal(SIGXFSZ, SIG_IGN);
	struct sl_share s = {.dir = m.path, .uses = m.uses};
	/* Users of this machine: their numbers mean the same on both sides. */
	const struct sl_export_config cfg = {
	    .threads = 8, .writable = !m.read_only, .owners = m.allow_other && geteuid() == 0};
	if (r == 0)
		r = sl_raise_new(&s.raise, &why); /* before there are threads */
	if (r == 0)
		r = sl_export_open(tree, &cfg, &s.e, &why);
	m.arg = &s;
	if (r == 0)
		r = sl_mounting_run(&m, &why);
	sl_raise_free(s.raise);
	sl_export_free(s.e);
	return sl_mounting_end(&m, r, why);
}

const struct sl_command sl_cmd_share = {
    .name = "share",
    .summary = "Mount a local directory tree a second time, as others see it",
    .usage = "[OPTION…] TREE MOUNT",
    .help = "MOUNT shows TREE, and what is changed in one is changed in the other. There is no store and no "
	    "clone: every\n"
	    "access goes to TREE. Symbolic links are shown, and what is mounted below TREE is left "
	    "out.\n\n" SL_MOUNTING_HELP "\nExample:\n  sluice share --background /srv/data ~/data\n",
    .run = run_share,
};
