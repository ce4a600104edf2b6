// SPDX-License-Identifier: LGPL-2.1-or-later
// The first process inside: what kernel/run needs before and after the command.
//
// The root is the host's, read-only, through hostfs. Over it lies an overlay whose upper layer is in memory;
// /proc, /sys, /dev and the loopback interface are there. The run directory on the host (SLUICE_RUN, from the
// kernel's command line) has the files
//     argv, env, cwd   what to run, strings that each end with a zero byte
//     status           written here: the command's exit status, 128 + N when signal N killed it
// Nothing but the status reaches the host's files. Any failure here ends the machine without a status, which
// kernel/run reports.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

static void off(void)
{
	sync();
	reboot(RB_POWER_OFF);
	_exit(1);
}

static void die(const char *what)
{
	fprintf(stderr, "kernel/init: %s: %s\n", what, strerror(errno));
	off();
}

static void mnt(const char *type, const char *where, unsigned long flags, const char *options)
{
	if (mount("none", where, type, flags, options) < 0)
		die(where);
}

// A whole file of zero-terminated strings as a vector that ends with NULL; never freed.
static char **strings(const char *name)
{
	int fd = open(name, O_RDONLY | O_CLOEXEC);
	struct stat st;
	if (fd < 0 || fstat(fd, &st) < 0)
		die(name);
	char *text = calloc(1, (size_t)st.st_size + 1);
	char **v = calloc((size_t)st.st_size + 2, sizeof(*v));
	if (!text || !v)
		die(name);
	ssize_t len = read(fd, text, (size_t)st.st_size);
	if (len != st.st_size)
		die(name);
	size_t n = 0;
	for (char *s = text; s < text + len; s += strlen(s) + 1)
		v[n++] = s;
	close(fd);
	return v;
}

// The terminal passes bytes on as they are.
static void raw(int fd)
{
	struct termios t;
	if (tcgetattr(fd, &t) == 0) {
		cfmakeraw(&t);
		tcsetattr(fd, TCSANOW, &t);
	}
}

static void loopback(void)
{
	struct ifreq ifr = {.ifr_name = "lo"};
	int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	ifr.ifr_flags = IFF_UP | IFF_RUNNING;
	if (s < 0 || ioctl(s, SIOCSIFFLAGS, &ifr) < 0)
		die("lo");
	close(s);
}

int main(void)
{
	const char *run = getenv("SLUICE_RUN");
	if (!run)
		die("SLUICE_RUN");

	mnt("tmpfs", "/tmp", 0, "mode=755");
	// The first terminal is the output of kernel/run; the kernel's own messages are on the second.
	int tty =
	    mknod("/tmp/tty", S_IFCHR | 0600, makedev(4, 0)) < 0 ? -1 : open("/tmp/tty", O_RDWR | O_NOCTTY);
	if (tty < 0)
		die("/tmp/tty");
	raw(tty);
	dup2(tty, 1);
	dup2(tty, 2);
	if (mkdir("/tmp/run", 0755) || mkdir("/tmp/up", 0755) || mkdir("/tmp/work", 0755) ||
	    mkdir("/tmp/root", 0755))
		die("/tmp");
	mnt("hostfs", "/tmp/run", 0, run);
	char **argv = strings("/tmp/run/argv"), **env = strings("/tmp/run/env"),
	     **cwd = strings("/tmp/run/cwd");
	int status_fd = open("/tmp/run/status", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	if (status_fd < 0 || !argv[0] || !cwd[0])
		die("run directory");

	mnt("overlay", "/tmp/root", 0, "lowerdir=/,upperdir=/tmp/up,workdir=/tmp/work");
	// Not chroot: in one, user namespaces cannot be made.
	if (chdir("/tmp/root") < 0 || syscall(SYS_pivot_root, ".", ".") < 0 || umount2(".", MNT_DETACH) < 0 ||
	    chdir("/") < 0)
		die("pivot_root");
	mnt("proc", "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	mnt("sysfs", "/sys", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	mnt("devtmpfs", "/dev", MS_NOSUID, "mode=755");
	mkdir("/dev/pts", 0755);
	mkdir("/dev/shm", 01777);
	mnt("devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620");
	mnt("tmpfs", "/dev/shm", MS_NOSUID | MS_NODEV, "mode=1777");
	if (symlink("/proc/self/fd", "/dev/fd") || symlink("/proc/self/fd/0", "/dev/stdin") ||
	    symlink("/proc/self/fd/1", "/dev/stdout") || symlink("/proc/self/fd/2", "/dev/stderr"))
		die("/dev");
	loopback();
	struct rlimit files = {.rlim_cur = 1024, .rlim_max = 1048576};
	setrlimit(RLIMIT_NOFILE, &files);

	pid_t pid = fork();
	if (pid < 0)
		die("fork");
	if (pid == 0) {
		setsid();
		int null = open("/dev/null", O_RDONLY);
		if (null < 0 || dup2(null, 0) < 0 || chdir(cwd[0]) < 0) {
			perror(cwd[0]);
			_exit(126);
		}
		close(null);
		clearenv();
		for (char **e = env; *e; e++)
			putenv(*e);
		execvp(argv[0], argv);
		perror(argv[0]);
		_exit(127);
	}

	int status = 0;
	for (pid_t got; (got = wait(&status)) != pid;)
		if (got < 0 && errno != EINTR)
			die("wait");
	dprintf(status_fd, "%d\n", WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
	close(status_fd);
	off();
}
