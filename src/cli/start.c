/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "cli/start.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/wait.h>

#include "base/fd.h"
#include "base/human.h"
#include "base/log.h"
#include "base/time.h"
#include "cli/call.h"
#include "cli/registry.h"
#include "service/clone.h"

#define PROGRESS_AFTER_NS SL_NS_PER_SEC

bool sl_service_gone(const char *store, unsigned seconds)
{
	_cleanup_free_ char *p = sl_path_join(store, "lock");
	uint64_t until = sl_now() + seconds * SL_NS_PER_SEC;
	for (;;) {
		_cleanup_close_ int fd = open(p, O_RDWR | O_CLOEXEC);
		if (fd < 0 || flock(fd, LOCK_EX | LOCK_NB) == 0)
			return true;
		if (sl_now() > until)
			return false;
		struct timespec ts = {.tv_nsec = 10000000};
		nanosleep(&ts, NULL);
	}
}

static struct sl_keeper_config keeper_config(const char *store, int ready_fd, bool need_origin)
{
	return (struct sl_keeper_config){.store = store,
					 .serve = sl_clone_run,
					 .each_fd = sl_clone_each_fd,
					 .ready_fd = ready_fd,
					 .need_origin = need_origin};
}

/* In the child: away from the terminal and the caller's directory, with the log in the store. Does not
 * return. */
static void daemon_main(const char *store, int ready_fd, bool need_origin)
{
	char *log = sl_path_join(store, "log");
	setsid();
	if (fork() != 0)
		_exit(0); /* the keeper is nobody's child */
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	int out = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	free(log);
	dup2(null, STDIN_FILENO);
	dup2(out >= 0 ? out : null, STDOUT_FILENO);
	dup2(out >= 0 ? out : null, STDERR_FILENO);
	unsetenv("JOURNAL_STREAM");
	(void)!chdir("/");
	/* Whatever else was open belongs to who called. */
	if (ready_fd > 3)
		close_range(3, (unsigned)ready_fd - 1, 0);
	close_range((unsigned)ready_fd + 1, ~0u, 0);
	struct sl_keeper_config cfg = keeper_config(store, ready_fd, need_origin);
	exit(sl_keeper_run(&cfg));
}

struct names_progress {
	uint64_t t0; /* of the first line */
	bool show;
};

/*
 * A line of the service while it builds the names of a native clone. How much there is to come nobody knows
 * before all directories were listed: the estimate is for those that are known, as if none of them had
 * subdirectories.
 */
static void on_names(struct names_progress *p, const char *line)
{
	unsigned long long objects, dirs, left;
	if (!p->t0)
		p->t0 = sl_now();
	uint64_t ns = sl_now() - p->t0;
	if (!p->show || ns < PROGRESS_AFTER_NS ||
	    sscanf(line, "names %llu %llu %llu", &objects, &dirs, &left) != 3)
		return;
	double sec = (double)ns / 1e9;
	char t[16] = "";
	if (dirs)
		sl_format_ns(t, (uint64_t)((double)ns / (double)dirs * (double)left));
	sl_progress("names: %llu objects, %.0f/s, %llu directories left%s%s", objects, (double)objects / sec,
		    left, *t && left ? ", at least " : "", left ? t : "");
}

/* What the service says on its way up. Lines of progress are shown and taken out of @text. */
static size_t read_ready(int fd, char *text, size_t size, struct names_progress *p)
{
	size_t n = 0;
	ssize_t k;
	while (n < size - 1 && ((k = read(fd, text + n, size - 1 - n)) > 0 || (k < 0 && errno == EINTR))) {
		n += k > 0 ? (size_t)k : 0;
		text[n] = '\0';
		for (char *nl; !strncmp(text, "names ", 6) && (nl = strchr(text, '\n'));) {
			on_names(p, text);
			n -= (size_t)(nl + 1 - text);
			memmove(text, nl + 1, n + 1);
		}
	}
	text[n] = '\0';
	return n;
}

int sl_service_start(const char *store, bool need_origin, bool progress, char **why)
{
	int p[2];
	if (pipe2(p, O_CLOEXEC) < 0)
		return -errno;
	fflush(NULL);
	pid_t pid = fork();
	if (pid == 0) {
		close(p[0]);
		daemon_main(store, p[1], need_origin);
	}
	close(p[1]);
	if (pid < 0) {
		close(p[0]);
		return -errno;
	}
	waitpid(pid, NULL, 0);
	char text[2048];
	struct names_progress np = {.show = progress};
	size_t n = read_ready(p[0], text, sizeof(text), &np);
	close(p[0]);
	sl_progress_end();
	if (!strcmp(text, "ready\n"))
		return 0;
	sl_service_gone(store, 30);
	return sl_fail(why, -EIO, "%s",
		       n ? text : "the service ended before it was ready; its log is in the store");
}

/* ---- sluice start ---- */

/* The service makes it hold, at once, and evicts what is beyond it. */
static int tell_capacity(const char *store, uint64_t bytes, json_t **ret, char **why)
{
	int r = sl_call(store, json_pack("{ss sI}", "cmd", "capacity", "bytes", (json_int_t)bytes), NULL,
			NULL, NULL, ret, why);
	const char *error = r == 0 ? sl_answer_error(*ret) : NULL;
	return error ? sl_fail(why, -EIO, "%s", error) : r;
}

static void show_capacity(const char *dir, json_t *answer)
{
	char a[16];
	uint64_t bytes = sl_json_u64(answer, "capacity"), beyond = sl_json_u64(answer, "beyond");
	if (bytes)
		printf("%s has room for %s\n", dir, sl_format_size(a, bytes));
	else
		printf("%s has as much room as there is\n", dir);
	if (beyond)
		printf("%s more is in use and cannot be evicted: what becomes free makes up for it first\n",
		       sl_format_size(a, beyond));
}

static int run_start(const struct sl_command *cmd, int argc, char **argv)
{
	static const struct option opts[] = {{"capacity", required_argument, NULL, 'c'},
					     {"foreground", no_argument, NULL, 'f'},
					     {"json", no_argument, NULL, 'j'},
					     {"help", no_argument, NULL, 'h'},
					     {0}};
	bool foreground = false, json = false, bound = false;
	uint64_t capacity = 0;
	int c;
	while ((c = getopt_long(argc, argv, "fjh", opts, NULL)) != -1)
		switch (c) {
		case 'c':
			if (sl_parse_size(optarg, &capacity) < 0 || capacity > INT64_MAX)
				return sl_cli_usage(
				    cmd, "--capacity: '%s' is not a size (like 100G, or 0 for no bound)",
				    optarg);
			bound = true;
			break;
		case 'f':
			foreground = true;
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
	_cleanup_free_ char *store = NULL, *why = NULL;
	int r = sl_registry_find(argv[optind], &store, NULL, &why);
	struct sl_store_config cfg = {0};
	if (r == 0)
		r = sl_store_config_load(store, &cfg, &why);
	if (r < 0)
		return sl_cli_fail("%s", why ? why : strerror(-r));
	bool alive = sl_call_alive(store);
	if (alive && (foreground || !bound)) {
		sl_store_config_fini(&cfg);
		return sl_cli_fail("the clone %s is running already", argv[optind]);
	}
	/* One that was asked to end may still be about it. Not where a manager hands over what it held, for
	 * the lock is among that. */
	if (!alive && !getenv("LISTEN_FDS"))
		sl_service_gone(store, 30);
	/* Before the start, which may need the room. */
	if (!alive && bound && capacity != cfg.capacity)
		r = sl_store_config_capacity(store, capacity, &why);
	if (r == 0 && foreground) {
		sl_store_config_fini(&cfg);
		struct sl_keeper_config kc = keeper_config(store, -1, false);
		return sl_keeper_run(&kc) ? SL_EXIT_FAIL : SL_EXIT_OK;
	}
	json_t *told = NULL;
	if (r == 0 && !alive)
		r = sl_service_start(store, false, !json, &why);
	if (r == 0 && bound)
		r = tell_capacity(store, capacity, &told, &why);
	if (r == 0 && json) {
		json_t *j = json_pack("{sb ss ss}", "ok", 1, "dir", cfg.dir, "store", store);
		if (told)
			json_object_update(j, told);
		sl_print_json(j);
		json_decref(j);
	} else if (r == 0) {
		if (!alive)
			printf("%s is up\n", cfg.dir);
		if (told)
			show_capacity(cfg.dir, told);
	}
	json_decref(told);
	sl_store_config_fini(&cfg);
	return r < 0 ? sl_cli_fail("%s", why ? why : strerror(-r)) : SL_EXIT_OK;
}

const struct sl_command sl_cmd_start = {
    .name = "start",
    .summary = "Start the service of a clone that is not running",
    .usage = "[OPTION…] DIR|STORE",
    .help = "What was here before is here again. Without its origin a clone starts all the same: what is "
	    "here can be used.\n\n"
	    "      --capacity SIZE  the room of a clone on an image from now on (0: as much as there is);\n"
	    "                       one that is running goes on\n"
	    "  -f, --foreground     stay in the foreground and log to standard error (for service managers)\n"
	    "  -j, --json           print the result as JSON\n"
	    "  -h, --help           this text\n\n"
	    "Example:\n  sluice start ~/data\n",
    .run = run_start,
};

/* ---- sluice keeper: how a keeper starts over ---- */

static int run_keeper(const struct sl_command *cmd, int argc, char **argv)
{
	if (argc != 2)
		return sl_cli_usage(cmd, "is run by the keeper itself");
	struct sl_keeper_config kc = keeper_config(NULL, -1, false);
	return sl_keeper_resume(atoi(argv[1]), &kc) ? SL_EXIT_FAIL : SL_EXIT_OK;
}

const struct sl_command sl_cmd_keeper = {
    .name = "keeper",
    .summary = "Go on as the keeper of a service that died",
    .usage = "DESCRIPTOR",
    .help = "Not to be called by hand.\n",
    .run = run_keeper,
    .hidden = true,
};
