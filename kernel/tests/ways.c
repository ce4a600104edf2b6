// SPDX-License-Identifier: GPL-2.0-only
#include "ways.h"

#include <sys/mman.h>

int old_dir = -1;
int *way_refuse;

void ways_init(void)
{
	way_refuse =
	    mmap(NULL, sizeof(*way_refuse), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (way_refuse == MAP_FAILED)
		bail("mmap");
}

int way_run(void *arg)
{
	struct way_run *r = arg;
	if (chdir(r->top) < 0) {
		diag("chdir %s: %s", r->top, strerror(errno));
		return 1;
	}
	return r->way->fn(r->d);
}

int reads_content(int fd)
{
	char b[32] = "";
	EXPECT(fd >= 0);
	EXPECT(pread(fd, b, sizeof(b) - 1, 0) == 8 && !strcmp(b, "content\n"));
	close(fd);
	return 0;
}

int lists(int fd)
{
	EXPECT(fd >= 0);
	DIR *dir = fdopendir(fd);
	EXPECT(dir);
	int n = 0, known = 0;
	for (struct dirent *e; (e = readdir(dir));) {
		n++;
		known += !strcmp(e->d_name, "f") || !strcmp(e->d_name, "x") || !strcmp(e->d_name, "l") ||
			 !strcmp(e->d_name, "s");
	}
	closedir(dir);
	EXPECT(known == 4 && n == 6);
	return 0;
}

int shell(const char *d, const char *command)
{
	char cmd[512];
	setenv("D", d, 1);
	snprintf(cmd, sizeof(cmd), "{ %s; } >/dev/null", command);
	EXPECT(system(cmd) == 0);
	return 0;
}
