/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "keeper/keeper.h"
#include "notify/backend.h"
#include "service/watch.h"

static const struct sl_command *const commands[] = {
    &sl_cmd_clone,  &sl_cmd_serve,  &sl_cmd_share,  &sl_cmd_mount,   &sl_cmd_start, &sl_cmd_stop,
    &sl_cmd_remove, &sl_cmd_list,   &sl_cmd_status, &sl_cmd_hydrate, &sl_cmd_evict, &sl_cmd_pin,
    &sl_cmd_unpin,  &sl_cmd_verify, &sl_cmd_doctor, &sl_cmd_upgrade, &sl_cmd_watch, &sl_cmd_keeper,
};

int sl_cli_help(const struct sl_command *cmd)
{
	printf("Usage: sluice %s %s\n\n%s.\n\n%s", cmd->name, cmd->usage, cmd->summary, cmd->help);
	return SL_EXIT_OK;
}

int sl_cli_usage(const struct sl_command *cmd, const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	fprintf(stderr, "sluice %s: ", cmd->name);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fprintf(stderr, "\nUsage: sluice %s %s\nTry 'sluice %s --help'.\n", cmd->name, cmd->usage, cmd->name);
	return SL_EXIT_USAGE;
}

bool sl_cli_events(const char *list, uint64_t *uses)
{
	return sl_event_bits(list, uses) == 0 && !(*uses & ~(uint64_t)SL_CHANGE_USE);
}

int sl_cli_fail(const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	fputs("sluice: ", stderr);
	vfprintf(stderr, fmt, ap);
	fputc('\n', stderr);
	va_end(ap);
	return SL_EXIT_FAIL;
}

static int help(FILE *f)
{
	fputs("sluice: lazy local clones of remote file trees\n\nUsage: sluice COMMAND [OPTION…] "
	      "[ARGUMENT…]\n\nCommands:\n",
	      f);
	for (size_t i = 0; i < SL_ARRAY_SIZE(commands); i++)
		if (!commands[i]->hidden)
			fprintf(f, "  %-10s %s\n", commands[i]->name, commands[i]->summary);
	fputs("\n'sluice COMMAND --help' explains one command, 'sluice --version' prints the version.\n", f);
	return f == stdout ? SL_EXIT_OK : SL_EXIT_USAGE;
}

int main(int argc, char **argv)
{
	signal(SIGPIPE, SIG_IGN);
	if (argc < 2)
		return help(stderr);
	if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help"))
		return help(stdout);
	if (!strcmp(argv[1], "--version") || !strcmp(argv[1], "-V")) {
		puts("sluice " SL_VERSION);
		return SL_EXIT_OK;
	}
	if (!strcmp(
		argv[1],
		"--state-version")) { /* asked by a running service before it is replaced by this program */
		sl_keeper_print_version();
		return SL_EXIT_OK;
	}
	for (size_t i = 0; i < SL_ARRAY_SIZE(commands); i++)
		if (!strcmp(argv[1], commands[i]->name))
			return commands[i]->run(commands[i], argc - 1, argv + 1);
	fprintf(stderr, "sluice: there is no command '%s'; 'sluice --help' lists them\n", argv[1]);
	return SL_EXIT_USAGE;
}
