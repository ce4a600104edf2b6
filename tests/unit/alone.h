/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* For tests of who uses what. */
#pragma once

#include <sched.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

/** From here on the process is alone with its children: it sees no others, of which it may not be allowed to
 * look at one. Returns 0; negative: that cannot be had. */
static inline int alone(void)
{
	if (geteuid() != 0 || unshare(CLONE_NEWNS | CLONE_NEWPID) < 0)
		return -1;
	pid_t child = fork();
	if (child) {
		int status = 0;
		waitpid(child, &status, 0);
		_exit(WIFEXITED(status) ? WEXITSTATUS(status) : 1);
	}
	return mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0
		   ? -1
		   : mount("proc", "/proc", "proc", 0, NULL);
}
