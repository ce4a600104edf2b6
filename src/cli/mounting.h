/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What `share` and `mount` have in common: a directory, something that answers the kernel's requests for it,
 * and a process that lives as long as the mount.
 */
#pragma once

#include "base/why.h"
#include "cli/cli.h"
#include "wire/transport.h"

struct sl_mounting {
	/* set by the command */
	const char *dir;
	bool allow_other, read_only, background, json;
	uint64_t uses;	  /* that are raised besides changes: FAN_OPEN, FAN_ACCESS, FAN_CLOSE_NOWRITE */
	const char *what; /* is shown there, for messages */
	/** Answer all requests on @t until it ends; on a thread of its own. Returns 0 or -errno. */
	int (*serve)(void *arg, struct sl_transport *t);
	/** Called when the directory @path is mounted and before anybody is told. May be NULL. */
	int (*mounted)(void *arg, const char *path, char **why);
	void *arg;

	/* its own */
	char *path;
	bool made;
	int stop_fd, tell_fd; /* tell_fd: the process that waits for us to be ready, or -1 */
};

/** One of the options that both have: -a, -b, -e, -r, -j. Returns false for others, and for a wrong argument.
 */
bool sl_mounting_option(struct sl_mounting *m, int c);
#define SL_MOUNTING_OPTIONS                                                                                  \
	{"allow-other", no_argument, NULL, 'a'}, {"background", no_argument, NULL, 'b'},                     \
	    {"ro", no_argument, NULL, 'r'}, {"json", no_argument, NULL, 'j'},                                \
	    {"events", required_argument, NULL, 'e'},                                                        \
	{                                                                                                    \
		"help", no_argument, NULL, 'h'                                                               \
	}
#define SL_MOUNTING_HELP                                                                                     \
	"      --ro            nothing can be changed through MOUNT\n"                                       \
	"      --allow-other   let other users use MOUNT, as far as its permissions do\n"                    \
	"      --events LIST   watchers hear as well of what is only opened, read or closed behind MOUNT:\n" \
	"                      some of " SL_CLI_EVENTS "\n"                                                  \
	"  -b, --background    come back when MOUNT is there, and go on in the background\n"                 \
	"  -j, --json          print {\"ready\":true,…} when MOUNT is there\n"                             \
	"  -h, --help          this text\n\n"                                                                \
	"It ends when MOUNT is unmounted ('umount MOUNT', 'fusermount3 -u MOUNT'), or with SIGINT or "       \
	"SIGTERM, "                                                                                          \
	"which unmount it.\n"
/**
 * Check the directory (@avoid: a local tree that it must not lie in, nor the tree in it, or NULL), and go
 * into the background if that is wanted. Before any thread is started. Returns 0; 1 in the process that has
 * only waited, whose exit status is then in *@status; -errno with a sentence.
 */
int sl_mounting_begin(struct sl_mounting *m, const char *avoid, int *status, char **why);
/** Mount, serve until the end, unmount. Returns 0 or -errno with a sentence. */
int sl_mounting_run(struct sl_mounting *m, char **why);
/** Say what went wrong (to whom waits for us), clean up. Returns the exit status. */
int sl_mounting_end(struct sl_mounting *m, int r, const char *why);
