// SPDX-License-Identifier: GPL-2.0-only
// If this fails, a directory is seen empty or in part by somebody while others use it, while it is being
// filled, while the dcache is dropped under everybody's feet, or while marks come and go.

#include "hsm.h"

#include <sys/mman.h>

#define DIRS  60
#define USERS 6

static struct fs fs;
static struct service s;
static atomic_int *stop;

static int list(const char *d, int want)
{
	DIR *dir = opendir(d);
	int n = 0;
	if (!dir)
		return 1;
	errno = 0;
	while (readdir(dir))
		n++;
	int bad = errno != 0 || n != want;
	closedir(dir);
	return bad;
}

// Every user goes through all directories, each in an order and with habits of its own.
static int use(void *arg)
{
	int nr = *(int *)arg, bad = 0;
	if (chdir(fs.top) < 0)
		return 1;
	for (int i = 0; i < DIRS && !bad; i++) {
		char d[32], p[64];
		struct stat st;
		snprintf(d, sizeof(d), "d%d", (i * (2 * nr + 1) + nr * 7) % DIRS);
		switch ((i + nr) % 4) {
		case 0:
			bad |= list(d, 6);
			break;
		case 1:
			snprintf(p, sizeof(p), "%s/f", d);
			bad |= stat(p, &st) < 0 || st.st_size != 8;
			break;
		case 2:
			snprintf(p, sizeof(p), "%s/s", d);
			bad |= !(mkdir(p, 0755) < 0 && errno == EEXIST) || list(p, 3);
			break;
		case 3:
			snprintf(p, sizeof(p), "%s/none", d);
			bad |= !(stat(p, &st) < 0 && errno == ENOENT);
			snprintf(p, sizeof(p), "%s/s/g", d);
			bad |= stat(p, &st) < 0 || rmdir(d) == 0;
			break;
		}
		if (bad)
			diag("user %d, %s: %s", nr, d, strerror(errno));
	}
	return bad;
}

static int drop(void *arg)
{
	(void)arg;
	int fd = open("/proc/sys/vm/drop_caches", O_WRONLY);
	while (!*stop) {
		if (fd < 0 || write(fd, "2\n", 2) != 2)
			return 1;
		usleep(2000);
	}
	return 0;
}

// Marks of another group, which are of no consequence for anybody.
static int marks(void *arg)
{
	(void)arg;
	int g = fan_init(FAN_CLASS_PRE_CONTENT, O_RDONLY);
	for (int i = 0; !*stop; i = (i + 1) % DIRS) {
		char d[32];
		snprintf(d, sizeof(d), "d%d", i);
		if (fan_mark(g, FAN_MARK_ADD | FAN_MARK_IGNORE_SURV, FAN_PRE_DIR_ACCESS, fs.work, d) < 0 ||
		    fan_mark(g, FAN_MARK_REMOVE | FAN_MARK_IGNORE, FAN_PRE_DIR_ACCESS, fs.work, d) < 0)
			return 1;
		usleep(500);
	}
	return 0;
}

int main(void)
{
	fs_new(&fs);
	stop = mmap(NULL, sizeof(*stop), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (stop == MAP_FAILED)
		bail("mmap");
	for (int i = 0; i < DIRS; i++) {
		char d[32];
		snprintf(d, sizeof(d), "d%d", i);
		cold(&fs, d);
	}
	service_open(&s, &fs, 0, O_RDONLY, FAN_PRE_DIR_ACCESS);
	if (fan_mark(s.group, FAN_MARK_ADD | FAN_MARK_IGNORE_SURV, FAN_PRE_DIR_ACCESS, fs.work, ".") < 0)
		bail("mark of the top");
	service_run(&s);

	pid_t dropper = start(drop, NULL), marker = start(marks, NULL), p[USERS];
	int nr[USERS];
	for (int i = 0; i < USERS; i++) {
		nr[i] = i;
		p[i] = start(use, &nr[i]);
	}
	for (int i = 0; i < USERS; i++)
		ok(finish(p[i]) == 0, "user %d sees every directory in full", i);
	*stop = 1;
	ok(finish(dropper) == 0, "the dcache was dropped all the time");
	ok(finish(marker) == 0, "marks came and went all the time");
	ok(s.seen >= DIRS, "%d events for %d directories", s.seen, DIRS);
	service_stop(&s);
	fs_end(&fs);
	return done();
}
