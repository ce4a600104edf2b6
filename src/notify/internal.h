/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a kernel interface has to do for a backend: backend.c reads its descriptor, keeps what was read in
 * order, and gives it to the callback; a source knows what the bytes mean, and what is watched.
 */
#pragma once

#include <stdatomic.h>
#include <stddef.h>

#include "notify/backend.h"

/* What one read(2) brings at most: some 700 changes of fanotify's, 2000 of inotify's. Larger ones are no
 * faster. */
#define SL_NOTIFY_CHUNK (64u << 10)

/* The changes of one chunk. Their strings lie in the chunk. */
struct sl_changes {
	struct sl_change *v;
	size_t n, size;
	bool lost; /* no memory: what is missing makes it an overflow */
};

/** A zeroed element at the end, or NULL without memory (then @lost). */
struct sl_change *sl_changes_add(struct sl_changes *c);

struct sl_source;

struct sl_source_ops {
	enum sl_backend_kind kind;
	const char *limit; /* the sysctl that bounds the kernel's queue */
	size_t room;	   /* no single event is larger than this */
	/** Returns 0 and a source whose first members are those of struct sl_source; -errno, and why. */
	int (*open)(const struct sl_backend_config *cfg, struct sl_source **ret, char **why);
	void (*close)(struct sl_source *s);
	/** What FIONREAD said at least of these @n bytes while they were in the kernel's queue. */
	uint64_t (*units)(const char *buf, size_t n);
	/** The last of these events wants to be seen together with another one that will come soon, if it
	 * comes. */
	bool (*more)(const char *buf, size_t n);
	/** Append to @out what @buf says; @buf may be changed. One thread. */
	void (*parse)(struct sl_source *s, char *buf, size_t n, uint64_t when, struct sl_changes *out);
	int (*mark)(struct sl_source *s, int fd, const struct sl_evid *id);
	void (*unmark)(struct sl_source *s, const struct sl_evid *id);
	/** From now on @mask of SL_CHANGE_USE is wanted, and not s->use. */
	int (*use)(struct sl_source *s, uint64_t mask);
};

struct sl_source {
	const struct sl_source_ops *ops;
	int fd;	     /* the group's, not blocking */
	int root_fd; /* the caller's */
	_Atomic uint64_t use;
	struct sl_evid root;
	atomic_uint_fast64_t marks;
};

extern const struct sl_source_ops sl_fanotify_source, sl_inotify_source;

/**
 * The events of @buf, parsed as fanotify's. @root: whose own removal and move are told as well. Apart from
 * the rest for the fuzzer.
 */
void sl_fanotify_parse(const struct sl_evid *root, const char *buf, size_t n, uint64_t when,
		       struct sl_changes *out);
