/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What tests of native stores have in common. Include after cmocka.h. */
#pragma once

#include <dirent.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"

/** Why no store with an image can be made here, or NULL. */
static inline const char *no_images(void)
{
	if (geteuid() != 0)
		return "needs root";
	if (access("/dev/loop-control", R_OK | W_OK) < 0)
		return "no loop devices";
	if (system("PATH=$PATH:/usr/sbin:/sbin; command -v mkfs.xfs >/dev/null") != 0)
		return "no mkfs.xfs";
	return NULL;
}

/** Skips the test where the function unable() of the file says why. */
#define need_all()                                                                                           \
	do {                                                                                                 \
		if (unable()) {                                                                              \
			print_message("%s\n", unable());                                                     \
			skip();                                                                              \
		}                                                                                            \
	} while (0)

static inline void expect_ok(int r, char **why)
{
	if (r < 0)
		print_error("%s (%s)\n", why && *why ? *why : "?", strerror(-r));
	if (why) {
		free(*why);
		*why = NULL;
	}
	assert_true(r >= 0);
}

static inline int rm_one(const char *p, const struct stat *st, int type, struct FTW *w)
{
	(void)st, (void)type, (void)w;
	return remove(p);
}

static inline void rm_tree(const char *path)
{
	nftw(path, rm_one, 16, FTW_DEPTH | FTW_PHYS | FTW_MOUNT);
}

/** A place in a directory. Good for three more calls. */
static inline char *path_in(const char *dir, const char *place)
{
	static char p[4][512];
	static unsigned turn;
	turn = (turn + 1) % 4;
	snprintf(p[turn], sizeof(p[0]), "%s/%s", dir, place);
	return p[turn];
}

static inline void put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
	close(fd);
}

/** How many names a directory has. */
static inline unsigned entries(int dirfd)
{
	unsigned n = 0;
	DIR *d = fdopendir(openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
	assert_non_null(d);
	while (readdir(d))
		n++;
	closedir(d);
	return n - 2;
}
