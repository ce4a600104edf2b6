/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <string.h>

#include "base/human.h"
#include "cli/mounting.h"
#include "mount/proxy.h"
#include "origin/dial.h"

struct job {
	struct sl_proxy *p;
};

static int serve(void *arg, struct sl_transport *t)
{
	struct job *j = arg;
	return sl_proxy_serve(j->p, t);
}

static int connect_to(const char *origin, bool insecure, const struct sl_proxy_config *cfg,
		      struct sl_dial **d, struct sl_proxy **p, char **why)
{
	struct sl_transport *t;
	uint64_t until = 0;
	int r = sl_dial_parse(origin, insecure, d, why);
	if (r < 0)
		return r;
	do {
		r = sl_dial_connect(*d, &t, why);
		if (r == 0)
			r = sl_proxy_new(t, cfg, p, why);
	} while (r < 0 && sl_dial_again(*d, r, &until, why));
	return r;
}

static int run_mount(const struct sl_command *cmd, int argc, char **argv)
{
	static const struct option opts[] = {{"insecure-plain", no_argument, NULL, 'i'},
					     {"timeout", required_argument, NULL, 't'},
					     SL_MOUNTING_OPTIONS,
					     {0}};
	struct job j = {0};
	struct sl_mounting m = {.serve = serve, .arg = &j};
	bool insecure = false;
	uint64_t timeout = 120;
	for (int c; (c = getopt_long(argc, argv, "bjh", opts, NULL)) != -1;) {
		if (c == 'h')
			return sl_cli_help(cmd);
		if (c == 'i')
			insecure = true;
		else if (c == 't' && (sl_parse_duration(optarg, &timeout) < 0 || !timeout))
			return sl_cli_usage(cmd, "--timeout: '%s' is not a duration (like 30s or 5m)",
					    optarg);
		else if (c != 't' && !sl_mounting_option(&m, c))
			return sl_cli_usage(cmd, "see above");
	}
	if (optind + 2 != argc)
		return sl_cli_usage(cmd, "needs an origin and where to mount it");
	m.what = argv[optind];
	m.dir = argv[optind + 1];
	if (*m.what == '/' || *m.what == '.')
		return sl_cli_fail("%s is a local directory: 'sluice share' mounts those", m.what);
	_cleanup_free_ char *why = NULL;
	int status, r = sl_mounting_begin(&m, NULL, &status, &why);
	if (r == 1)
		return status;
	struct sl_raise *raise = NULL;
	struct sl_dial *d = NULL;
	if (r == 0)
		r = sl_raise_new(&raise, &why); /* before there are threads */
	const struct sl_proxy_config cfg = {.raise = raise,
					    .dir = m.path,
					    .read_only = m.read_only,
					    .uses = m.uses,
					    .timeout_ms = timeout * 1000};
	if (r == 0)
		r = connect_to(m.what, insecure, &cfg, &d, &j.p, &why);
	bool connected = r == 0;
	if (connected)
		r = sl_mounting_run(&m, &why);
	if (connected && r == -ENOTCONN) {
		free(why);
		if (asprintf(&why, "the connection to %s broke, and %s is not mounted any more", m.what,
			     m.dir) < 0)
			why = NULL;
	}
	sl_proxy_free(j.p);
	sl_raise_free(raise);
	if (d) {
		sl_dial_reap(d);
		sl_dial_free(d);
	}
	return sl_mounting_end(&m, r, why);
}

const struct sl_command sl_cmd_mount = {
    .name = "mount",
    .summary = "Mount a remote tree, without a clone",
    .usage = "[OPTION…] ORIGIN MOUNT",
    .help =
	"MOUNT shows ORIGIN, and every access goes there: nothing is kept here. Where the export is "
	"writable\n"
	"('sluice serve --rw'), changes go there as well. When the connection breaks the mount ends.\n"
	"ORIGIN is as for 'sluice clone': HOST:PATH, ssh://…, unix:SOCKET, exec:COMMAND, vsock:CID:PORT,\n"
	"dev:DEVICE, tcp:HOST:PORT.\n\n"
	"      --timeout TIME  how long an access waits for an answer before it fails with EIO (default 2m)\n"
	"      --insecure-plain\n"
	"                      allow tcp: origins, which are neither encrypted nor "
	"authenticated\n" SL_MOUNTING_HELP
	"\nExample:\n  sluice mount --background nas:/export/data ~/data\n",
    .run = run_mount,
};
