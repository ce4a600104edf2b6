// SPDX-License-Identifier: GPL-2.0-only
// The ways to a name in a directory, which side_door.c tries on directories that are not filled.
//
// A way is a function that runs in a child whose working directory is the top of the filesystem, with the
// name of a cold directory (see hsm.h). It returns 0 when it found the directory as if it had always been
// filled, and 1 when it did not; a way that is refused for a reason says so with refused().

#ifndef WAYS_H
#define WAYS_H

#include "hsm.h"

struct way {
	const char *group;     // of the ways that follow too, up to the next that has one
	const char *id, *name; // id: of its directories
	int (*fn)(const char *d);
	bool by_fd;  // begins at a descriptor or at the working directory: its path cannot be chosen
	bool ref;    // goes through a magic link: never an RCU walk
	bool old_fd; // wants a descriptor of the directory from before the mark, in old_dir
	bool once;   // not again on the filled directory: it is gone, or others were made
};
#define WAY(n, text, ...)                                                                                    \
	{                                                                                                    \
		.id = #n, .name = text, .fn = w_##n, __VA_ARGS__                                             \
	}

// Each ends with one that has no function.
extern const struct way ways_names[], ways_changes[], ways_places[], ways_programs[], ways_pathless[];

extern int old_dir;	// descriptor for ways with old_fd
extern int *way_refuse; // shared with the parent: the errno of refused()

static inline void refused(int err)
{
	*way_refuse = err;
}

// First of all.
void ways_init(void);

// One way to one directory, for in_time(): way_run() changes to the top and returns what the way returns.
struct way_run {
	const char *top;
	const struct way *way;
	const char *d;
};
int way_run(void *run);

// For those who come without a path, on cold directories whose names are the prefix and a way's id.
// pathless_dirs() makes them in the directory @below ("" or with a slash at the end). pathless() tries each
// by the place @top while it is cold, which is the column @when of the table. With @filler it is tried again
// after it was filled by that mount, and must be right then. Before, it must have been filled first, or be
// refused, as @asks says.
enum pathless_asks { REFUSED, SERVED };
struct pathless {
	const char *group, *when, *top, *prefix, *filler;
	enum pathless_asks asks;
};
void pathless_dirs(struct fs *f, const char *below, const char *prefix);
void pathless(struct service *s, const struct pathless *p);

// How a group may report who comes without a path, and what comes of it.
struct pathless_mode {
	const char *name, *prefix; // of its column, of its directories
	unsigned int flags;
	enum pathless_asks asks;
};
extern const struct pathless_mode pathless_modes[3];

// What several ways are made of.
int reads_content(int fd); // closes it
int lists(int fd);	   // closes it
int shell(const char *d, const char *command);

#define P(name)                                                                                              \
	({                                                                                                   \
		static char b_[4][256];                                                                      \
		static int i_;                                                                               \
		i_ = (i_ + 1) % 4;                                                                           \
		snprintf(b_[i_], 256, "%s/%s", d, name);                                                     \
		b_[i_];                                                                                      \
	})
#define EXPECT(cond)                                                                                         \
	do {                                                                                                 \
		if (!(cond)) {                                                                               \
			diag("%s: %s", #cond, strerror(errno));                                              \
			return 1;                                                                            \
		}                                                                                            \
	} while (0)
#define FAILS(call, with)                                                                                    \
	do {                                                                                                 \
		errno = 0;                                                                                   \
		if (!((call) < 0 && errno == (with))) {                                                      \
			diag("%s: expected %s, found %s", #call, strerror(with), strerror(errno));           \
			return 1;                                                                            \
		}                                                                                            \
	} while (0)

// A directory that is not empty: filesystems have two words for it.
#define FULL(call)                                                                                           \
	do {                                                                                                 \
		errno = 0;                                                                                   \
		EXPECT((call) < 0 && (errno == ENOTEMPTY || errno == EEXIST));                               \
	} while (0)

#endif
