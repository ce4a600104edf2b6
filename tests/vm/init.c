/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The first process of the virtual machine of tests/t/vm.t: loads the modules that /modules names, one a line
 * in order, and runs /guest with bash on the serial line. The machine ends with it.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void say(const char *what, const char *name)
{
	fprintf(stderr, "init: %s %s: %s\n", what, name, strerror(errno));
}

static void mnt(const char *type, const char *where)
{
	if (mount("none", where, type, 0, NULL) < 0)
		say("mount", where);
}

static void load_modules(void)
{
	FILE *f = fopen("/modules", "re");
	char name[256];
	while (f && fgets(name, sizeof(name), f)) {
		name[strcspn(name, "\n")] = '\0';
		int fd = open(name, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || syscall(SYS_finit_module, fd, "", 0) < 0)
			say("module", name);
		close(fd);
	}
	if (f)
		fclose(f);
}

int main(void)
{
	mnt("proc", "/proc");
	mnt("sysfs", "/sys");
	mnt("devtmpfs", "/dev");
	mnt("tmpfs", "/tmp"); /* the root has no extended attributes */
	load_modules();
	pid_t pid = fork();
	if (pid == 0) {
		setenv("PATH", "/bin", 1);
		setenv("HOME", "/tmp", 1);
		setenv("LC_ALL", "C", 1);
		execl("/bin/bash", "bash", "/guest", NULL);
		say("exec", "/bin/bash");
		_exit(127);
	}
	int status = -1;
	while (pid > 0 && wait(&status) != pid)
		;
	printf("\nguest ended with %d\n", status);
	fflush(stdout);
	reboot(RB_AUTOBOOT); /* which ends QEMU -no-reboot, with and without ACPI */
	return 1;
}
