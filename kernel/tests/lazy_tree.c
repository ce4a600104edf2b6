// SPDX-License-Identifier: GPL-2.0-only
// If this fails, the example that the documentation of the interface is built on does not do what it says.

#include "hsm.h"

static struct fs fs;

static pid_t serve(const char *source, bool new)
{
	int out[2];
	char line[16] = "";
	if (pipe(out) < 0)
		bail("pipe");
	pid_t pid = fork();
	if (pid == 0) {
		char program[256];
		dup2(out[1], 1);
		close(out[0]);
		close(out[1]);
		snprintf(program, sizeof(program), "%s/lazy-tree", getenv("KT_BIN"));
		if (new)
			execl(program, "lazy-tree", "--new", source, fs.top, (char *)NULL);
		else
			execl(program, "lazy-tree", source, fs.top, (char *)NULL);
		_exit(127);
	}
	close(out[1]);
	struct pollfd p = {.fd = out[0], .events = POLLIN};
	if (poll(&p, 1, LIMIT_SEC * 1000) != 1 || read(out[0], line, sizeof(line) - 1) <= 0 ||
	    strcmp(line, "ready\n") != 0)
		bail("lazy-tree does not start");
	close(out[0]);
	return pid;
}

static int shell(void *arg)
{
	int st = system(arg);
	return WIFEXITED(st) ? WEXITSTATUS(st) : 127;
}

static int sh(const char *fmt, ...)
{
	char cmd[1024];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(cmd, sizeof(cmd), fmt, ap);
	va_end(ap);
	return in_time(shell, cmd);
}

int main(void)
{
	fs_new(&fs);
	if (sh("rmdir %s/lost+found; mkdir -p /dev/shm/src/a/b/c /dev/shm/src/empty && cd /dev/shm/src && "
	       "echo top >top && echo deep >a/b/c/deep && "
	       "head -c 3000000 /dev/urandom >a/big && ln -s b/c a/link && printf '#!/bin/sh\\nexit 3\\n' "
	       ">a/run && chmod 755 a/run",
	       fs.top) != 0)
		bail("source");
	pid_t p = serve("/dev/shm/src", true);
	ok(sh("test \"$(cat %s/a/link/deep)\" = deep", fs.top) == 0, "a file deep in the tree");
	ok(sh("%s/a/run", fs.top) == 3, "a program");
	ok(sh("test $(find %s | wc -l) = $(find /dev/shm/src | wc -l)", fs.top) == 0, "all names");
	ok(sh("diff -r /dev/shm/src %s", fs.top) == 0, "all content");
	ok(sh("echo mine >%s/empty/mine && cat %s/empty/mine", fs.top, fs.top) == 0,
	   "what users make is theirs");

	// Names that come to the source are of no concern; a new clone is made of a copy that nobody has
	// looked at yet.
	sh("mkdir -p /dev/shm/src/late/er && echo 1 >/dev/shm/src/late/er/f");
	kill(p, SIGKILL);
	ok(finish(p) == -1, "the service dies");
	ok(sh("cat %s/empty/none 2>&1 | grep -q 'Input/output error'", fs.top) == 0,
	   "then unknown names are errors");
	p = serve("/dev/shm/src", false);
	ok(sh("diff -r -x late -x mine /dev/shm/src %s", fs.top) == 0, "a new one goes on");
	ok(sh("test ! -e %s/empty/none", fs.top) == 0, "and knows what is not there");
	kill(p, SIGKILL);
	finish(p);
	fs_end(&fs);
	return done();
}
