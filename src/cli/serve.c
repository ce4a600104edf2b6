/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>

#include "base/fd.h"
#include "base/human.h"
#include "base/why.h"
#include "cli/cli.h"
#include "serve/listener.h"
#include "wire/vsock.h"

struct options {
	const char *unix_path, *listen;
	uint32_t vsock_port, from;
	bool vsock;
	bool stdio, insecure, json, rw, owners;
	unsigned threads, grace;
	bool no_events;
	const char *tree;
};

static int parse(const struct sl_command *cmd, int argc, char **argv, struct options *o)
{
	enum {
		OPT_UNIX = 256,
		OPT_STDIO,
		OPT_LISTEN,
		OPT_VSOCK,
		OPT_FROM,
		OPT_INSECURE,
		OPT_THREADS,
		OPT_GRACE,
		OPT_NO_EVENTS,
		OPT_JSON,
		OPT_RW,
		OPT_OWNERS
	};
	static const struct option longs[] = {{"unix", required_argument, NULL, OPT_UNIX},
					      {"stdio", no_argument, NULL, OPT_STDIO},
					      {"listen", required_argument, NULL, OPT_LISTEN},
					      {"vsock", required_argument, NULL, OPT_VSOCK},
					      {"from", required_argument, NULL, OPT_FROM},
					      {"insecure-plain", no_argument, NULL, OPT_INSECURE},
					      {"threads", required_argument, NULL, OPT_THREADS},
					      {"grace", required_argument, NULL, OPT_GRACE},
					      {"no-events", no_argument, NULL, OPT_NO_EVENTS},
					      {"json", no_argument, NULL, OPT_JSON},
					      {"rw", no_argument, NULL, OPT_RW},
					      {"owners", no_argument, NULL, OPT_OWNERS},
					      {"help", no_argument, NULL, 'h'},
					      {0}};
	for (int c; (c = getopt_long(argc, argv, ":h", longs, NULL)) != -1;) {
		char *end;
		switch (c) {
		case OPT_UNIX:
			o->unix_path = optarg;
			break;
		case OPT_STDIO:
			o->stdio = true;
			break;
		case OPT_LISTEN:
			o->listen = optarg;
			break;
		case OPT_VSOCK:
			o->vsock = true;
			if (sl_vsock_parse_port(optarg, &o->vsock_port) < 0)
				return sl_cli_usage(
				    cmd,
				    "--vsock %s: expected a port, 1 to 4294967294, or 0 for any free one",
				    optarg);
			break;
		case OPT_FROM:
			if (sl_vsock_parse_cid(optarg, &o->from) < 0)
				return sl_cli_usage(
				    cmd,
				    "--from %s: expected the number of a machine: 2 is the host, "
				    "guests have numbers from 3 on",
				    optarg);
			break;
		case OPT_INSECURE:
			o->insecure = true;
			break;
		case OPT_THREADS:
			o->threads = (unsigned)strtoul(optarg, &end, 10);
			if (*end || end == optarg || *optarg == '-' || o->threads < 1 || o->threads > 64)
				return sl_cli_usage(cmd, "--threads %s: expected a number from 1 to 64",
						    optarg);
			break;
		case OPT_NO_EVENTS:
			o->no_events = true;
			break;
		case OPT_GRACE:
			o->grace = (unsigned)strtoul(optarg, &end, 10);
			if (*end || end == optarg || *optarg == '-' || o->grace > 86400)
				return sl_cli_usage(cmd, "--grace %s: expected seconds, 0 to 86400", optarg);
			break;
		case OPT_JSON:
			o->json = true;
			break;
		case OPT_RW:
			o->rw = true;
			break;
		case OPT_OWNERS:
			o->owners = true;
			break;
		case 'h':
			return -1;
		case ':':
			return sl_cli_usage(cmd, "%s needs a value", argv[optind - 1]);
		default:
			return sl_cli_usage(cmd, "unknown option %s", argv[optind - 1]);
		}
	}
	if (optind == argc)
		return sl_cli_usage(cmd, "which directory? TREE is missing");
	if (optind + 1 < argc)
		return sl_cli_usage(cmd, "one TREE at a time, but there is also '%s'", argv[optind + 1]);
	o->tree = argv[optind];
	switch (!!o->unix_path + !!o->listen + o->vsock + o->stdio) {
	case 0:
		return sl_cli_usage(cmd,
				    "say where: --unix PATH, --stdio, --vsock PORT, or --listen HOST:PORT");
	case 1:
		break;
	default:
		return sl_cli_usage(cmd, "only one of --unix, --stdio, --vsock and --listen");
	}
	if (o->unix_path && !*o->unix_path)
		return sl_cli_usage(cmd, "--unix needs a path");
	if (o->stdio && o->json)
		return sl_cli_usage(
		    cmd, "with --stdio, standard output is the connection: there is no place for --json");
	if (o->owners && !o->rw)
		return sl_cli_usage(cmd, "--owners is about what is made here: it needs --rw");
	if (o->owners && geteuid() != 0)
		return sl_cli_usage(cmd, "--owners: only root can make files that belong to others");
	if (o->listen && !o->insecure)
		return sl_cli_usage(
		    cmd,
		    "--listen would open TREE to everybody who can reach %s, unencrypted and without "
		    "asking who it is. Encryption is ssh's job: clone ssh://HOST/TREE instead, which "
		    "needs no server, or forward a --unix socket. In a network that you trust, add "
		    "--insecure-plain",
		    o->listen);
	if (o->from && !o->vsock)
		return sl_cli_usage(cmd, "--from is about who may connect with --vsock");
	if (o->vsock && !o->from && !o->insecure)
		return sl_cli_usage(
		    cmd,
		    "--vsock would open TREE to every user of this machine and of all that can reach it. Say "
		    "which machine may connect: --from CID (a guest's number; 2 for the host). Where all are "
		    "trusted, add --insecure-plain");
	if (o->from == SL_VSOCK_LOCAL && !o->insecure)
		return sl_cli_usage(
		    cmd, "--from 1 would open TREE to every user of this machine, without asking "
			 "who it is: --unix does that. Where all are trusted, add --insecure-plain");
	return 0;
}

/* A descriptor that is readable once somebody wants us to stop. Before any thread starts: they inherit the
 * mask. */
static int catch_signals(void)
{
	sigset_t set;
	struct sigaction hup;
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	if (sigaction(SIGHUP, NULL, &hup) == 0 && hup.sa_handler != SIG_IGN) /* not under nohup */
		sigaddset(&set, SIGHUP);
	sigprocmask(SIG_BLOCK, &set, NULL);
	int fd = signalfd(-1, &set, SFD_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

/* The connection gets descriptors of its own: whatever writes to standard output by mistake must not write
 * into it. */
static int adopt_stdio(struct sl_listener *l, char **why)
{
	int in = fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 3), out = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3);
	_cleanup_close_ int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	if (in < 0 || out < 0 || null < 0) {
		int r = -errno;
		sl_closep(&in);
		sl_closep(&out);
		return sl_fail(why, r, "standard input or output: %s", strerror(-r));
	}
	dup2(null, STDIN_FILENO);
	dup2(STDERR_FILENO, STDOUT_FILENO);
	return sl_listener_adopt(l, in, out, why);
}

static json_t *json_text(const char *s)
{
	json_t *j = json_string(s);
	if (j)
		return j;
	_cleanup_free_ char *p = sl_printable(s, strlen(s)); /* not UTF-8 */
	return json_string(p ? p : "");
}

static void print_ready(const struct options *o, struct sl_export *e, struct sl_listener *l)
{
	const char *address = sl_listener_address(l), *tree = sl_export_path(e);
	if (o->json) {
		json_t *j = json_pack("{s:b, s:o, s:o}", "ready", 1, "listen", json_text(address), "tree",
				      json_text(tree));
		_cleanup_free_ char *s = j ? json_dumps(j, JSON_COMPACT | JSON_PRESERVE_ORDER) : NULL;
		json_decref(j);
		puts(s ? s : "{\"ready\":true}");
	} else {
		_cleanup_free_ char *t = sl_printable(tree, strlen(tree)),
				    *a = sl_printable(address, strlen(address));
		printf("serving %s on %s\n", t ? t : "?", a ? a : "?");
	}
	fflush(stdout);
}

static int serve(const struct options *o, struct sl_export *e, struct sl_listener *l, int stop_fd, char **why)
{
	int r;
	if (o->stdio)
		r = adopt_stdio(l, why);
	else if (o->unix_path)
		r = sl_listener_unix(l, o->unix_path, why);
	else if (o->vsock)
		r = sl_listener_vsock(l, o->vsock_port, o->from, why);
	else
		r = sl_listener_tcp(l, o->listen, why);
	if (r < 0)
		return r;
	if (!o->stdio)
		print_ready(o, e, l);
	r = sl_listener_run(l, stop_fd);
	return r < 0 && r != -ETIMEDOUT ? sl_fail(why, r, "the connection broke: %s", strerror(-r)) : r;
}

static int run(const struct sl_command *cmd, int argc, char **argv)
{
	struct options o = {.grace = 300};
	int r = parse(cmd, argc, argv, &o);
	if (r != 0)
		return r < 0 ? sl_cli_help(cmd) : r;

	_cleanup_free_ char *why = NULL;
	struct sl_export *e = NULL;
	struct sl_listener *l = NULL;
	_cleanup_close_ int stop_fd = catch_signals();
	if (stop_fd < 0)
		return sl_cli_fail("signals: %s", strerror(-stop_fd));
	(void)sl_raise_nofile();
	/* A command at the end of a pipe ends with it: the next one knows nothing of this one. */
	const struct sl_export_config cfg = {.threads = o.threads,
					     .no_events = o.no_events,
					     .grace = o.stdio ? 0 : o.grace,
					     .writable = o.rw,
					     .owners = o.owners};
	if (o.rw) {
		umask(0);
		signal(SIGXFSZ, SIG_IGN); /* a write beyond the limit is an error */
	}
	r = sl_export_open(o.tree, &cfg, &e, &why);
	if (r == 0)
		r = sl_listener_new(e, 0, &l);
	if (r == 0)
		r = serve(&o, e, l, stop_fd, &why);
	/* Threads hang in the kernel and still use all of it: they end with the process. */
	if (r == -ETIMEDOUT)
		return SL_EXIT_OK;
	sl_listener_free(l);
	sl_export_free(e);
	return r < 0 ? sl_cli_fail("%s", why ? why : strerror(-r)) : SL_EXIT_OK;
}

const struct sl_command sl_cmd_serve = {
    .name = "serve",
    .summary = "Serve a directory tree for others to clone or mount",
    .usage = "[OPTION…] TREE (--unix PATH | --stdio | --vsock PORT --from CID | --listen HOST:PORT "
	     "--insecure-plain)",
    .help =
	"Shows TREE and nothing else: no symlink is followed, and what is mounted below TREE is left out\n"
	"(such a mount point shows as an empty directory). Whoever may connect can read what the user that\n"
	"runs this can read, and with --rw change what that user can change. You need not start this "
	"yourself to clone over ssh: 'sluice clone' does.\n"
	"\n"
	"Where clients connect, one of:\n"
	"  --unix PATH          a unix socket of mode 0600; only the same user and root are accepted\n"
	"  --stdio              standard input and output; ends when the client closes them\n"
	"  --vsock PORT         a vsock, for virtual machines, port 0 for any free one; together with\n"
	"  --from CID           only machine CID may connect (a guest's number; 2 for the host), every user "
	"of it\n"
	"  --listen HOST:PORT   TCP, port 0 for any free one; only together with\n"
	"  --insecure-plain     I know that this is neither encrypted nor authenticated; with --vsock "
	"instead\n"
	"                       of --from: everybody here and in all machines that reach this one\n"
	"\n"
	"Options:\n"
	"  --rw                 let clients change TREE; the default is read-only\n"
	"  --owners             what a client makes belongs to the user that asked there, by number (root; "
	"the\n"
	"                       default: to the user that runs this)\n"
	"  --threads N          threads per connection, 1 to 64 (default 4)\n"
	"  --grace SECONDS      how long a clone whose connection broke can go on where it was, without "
	"comparing\n"
	"                       its tree (default 300; not with --stdio)\n"
	"  --no-events          do not tell clones what changes\n"
	"  --json               print {\"ready\":true,\"listen\":…,\"tree\":…} when ready\n"
	"  -h, --help           print this\n"
	"\n"
	"SIGTERM and SIGINT end it cleanly.\n"
	"\n"
	"Example:\n"
	"  sluice serve --unix /run/user/1000/data.sock /srv/data\n"
	"  sluice clone unix:/run/user/1000/data.sock ./data\n",
    .run = run,
};
