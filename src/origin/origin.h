/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a clone is a clone of. One vtable; implementations: a local directory (local.c), an export over the
 * wire (export.c).
 *
 * Requests are asynchronous, many at a time. Objects are named by their place: the path below the origin's
 * root, "" for the root itself, components separated by one '/'. A place is never resolved through a symlink
 * or out of the root.
 *
 * done() runs once, on a thread of the origin's: it must not block, and must not free the origin.
 */
#pragma once

#include "base/list.h"
#include "base/why.h"
#include "origin/attr.h"

struct sl_origin;
struct sl_oreq;

enum sl_oreq_op {
	SL_OREQ_STAT,	/* attributes */
	SL_OREQ_LIST,	/* a directory: its attributes from before, and all its entries */
	SL_OREQ_READ,	/* bytes of a file, and its attributes from after the last byte was read */
	SL_OREQ_XATTRS, /* user attributes and ACLs */
	SL_OREQ_LSEEK,	/* data or hole, and attributes from after */
	SL_OREQ_STATFS,
	SL_OREQ_MARK, /* attributes; see mark. With mark false: no longer */
	SL_OREQ_TOLD, /* done when event() was called for all that had happened, where that can be known. No
			 place */
};

struct sl_oentry {
	char *name;
	char *target; /* of symlinks */
	struct sl_attr attr;
};

struct sl_oxattr {
	char *name;
	void *value;
	size_t len;
};

/* What is at one name of the origin, at the time of an event or later. */
struct sl_ostate {
	bool known;   /* else the rest says nothing */
	bool present; /* else there is no such name */
	struct sl_attr attr;
	const char *target; /* of symlinks */
};

/* A directory of which something is told: @generation: 0: not known; @id: see sl_origin_where(). Nothing is
 * set for the root. */
struct sl_odir {
	uint64_t generation, id;
};

/*
 * A change at the origin. Strings are valid until the callback returns. @mask: FAN_* bits (<sys/fanotify.h>),
 * with FAN_ONDIR for directories; see struct sl_change in notify/backend.h for what they are. Exactly one of
 * FAN_CREATE, FAN_DELETE, FAN_MOVED_FROM, FAN_MOVED_TO, FAN_RENAME, or any of FAN_ATTRIB, FAN_MODIFY,
 * FAN_CLOSE_WRITE, FAN_OPEN, FAN_ACCESS, FAN_CLOSE_NOWRITE; or 0: no event, but what is there now must be so.
 */
struct sl_oevent {
	uint64_t seq;
	uint64_t mask;
	const char *place;		      /* of what changed, "" for the root; of FAN_RENAME: before */
	const char *newplace;		      /* FAN_RENAME: after */
	struct sl_ostate state, newstate;     /* of place, of newplace */
	uint64_t child_ino, child_generation; /* what it happened to; 0: not known */
	struct sl_odir dir, newdir;	      /* that place and newplace are in */
	uint64_t when;			      /* sl_now() when it was received */
	/* Changes were lost, or the marks were: what the clone knows must be compared with the origin, and
	 * directories that are listed with mark are marked again. Nothing else is set. */
	bool lost;
	bool ignored; /* the mark of place is gone, because the directory is. Nothing else is set. */
};

struct sl_oreq {
	/* set by the caller, who keeps them until done() */
	enum sl_oreq_op op;
	const char *place;
	/* LIST and MARK: from before the listing on, changes in this directory are told to event() of struct
	 * sl_origin_config. Where the origin cannot tell, marked is false afterwards, and nothing else
	 * differs. */
	bool mark;
	bool marked;  /* result */
	uint64_t seq; /* result, if marked: of events with this number and later none is missing */
	bool fresh;   /* look the place up anew instead of going by what is remembered of it */
	uint64_t off; /* READ, LSEEK */
	size_t len;   /* READ */
	int whence;   /* LSEEK: SEEK_DATA or SEEK_HOLE */
	void (*done)(struct sl_oreq *r);

	/*
	 * The result. @err: 0; -ENOENT, -ENOTDIR, -ESTALE: the place is not (or no longer) what it was;
	 * -ETIMEDOUT: the origin could not be reached within the deadline; -E2BIG: a listing beyond all
	 * bounds; -EPROTO: the origin does not keep to the protocol; any other: the origin's own error. Freed
	 * by sl_oreq_fini().
	 */
	int err;
	struct sl_attr attr;
	char *data; /* READ: nread bytes; fewer than len only at the end of the file */
	size_t nread;
	struct sl_oentry *entries; /* LIST, without "." and ".."; every name is valid, none comes twice */
	size_t nentries;
	struct sl_oxattr *xattrs;
	size_t nxattrs;
	uint64_t result; /* LSEEK; UINT64_MAX: there is no more */
	struct {
		uint64_t blocks, bfree, bavail, files, ffree;
		uint32_t bsize, namelen;
	} fs;
};

void sl_oreq_fini(struct sl_oreq *r); /* what the result holds, not @r itself */

struct sl_origin_ops {
	void (*submit)(struct sl_origin *o, struct sl_oreq *r);
	void (*stop)(struct sl_origin *o);
	void (*free)(struct sl_origin *o);
	bool (*connected)(struct sl_origin *o);
	char *(*where)(struct sl_origin *o, uint64_t id); /* or NULL */
};

struct sl_origin {
	const struct sl_origin_ops *ops;
	_Atomic uint64_t nreads, nlists,
	    nbytes; /* READs and LISTs asked of it, and bytes received: for status and tests */
};

struct sl_origin_config {
	uint64_t timeout; /* seconds after which a request that cannot be answered fails with -ETIMEDOUT */
	bool insecure_plain;
	bool may_be_down; /* succeed although it cannot be reached now: it is tried again when it is needed */
	bool connect_later; /* do not even try now: with the first request */
	/* Changes at the origin, in order, on one thread at a time; must not block and not submit and wait.
	 * NULL: none are wanted. */
	void (*event)(void *arg, const struct sl_oevent *e);
	void *arg;
	uint64_t uses; /* FAN_OPEN, FAN_ACCESS, FAN_CLOSE_NOWRITE: those that are wanted as well */
	/* Of a local directory changes are told by a process of its own, as they are of a remote one: this
	 * program, as 'PROGRAM serve --stdio PATH'. NULL: of local directories none are told. */
	const char *program;
	uint64_t root_ino; /* what is reached must have this inode number at its root; 0: whatever it has */
};

/**
 * Open the origin that @spec names: "/path"; "unix:PATH"; "ssh://[user@]host[:port]/path";
 * "[user@]HOST:path"; "exec:COMMAND"; "vsock:CID:PORT"; "dev:DEVICE"; "tcp:HOST:PORT" with insecure_plain.
 * Connects at once and fails with a sentence where that does not work.
 */
int sl_origin_open(const char *spec, const struct sl_origin_config *cfg, struct sl_origin **ret, char **why);
/** The place of a directory of which an event told, by all events that were told since; to be freed. NULL: it
 * is not known any more, or nothing is told of it. */
char *sl_origin_where(struct sl_origin *o, uint64_t id);
/** From now on every request fails soon with -ETIMEDOUT, also those that are under way. */
void sl_origin_stop(struct sl_origin *o);
/** Waits for the requests that are under way; none may be submitted any more. NULL is fine. */
void sl_origin_free(struct sl_origin *o);
/** @spec with relative paths made absolute, so that it means the same from everywhere. */
int sl_origin_normalize(const char *spec, char **ret, char **why);
/** Is the origin reachable, as far as is known now? */
bool sl_origin_connected(struct sl_origin *o);

void sl_origin_submit(struct sl_origin *o, struct sl_oreq *r);
/** Submit and wait. Returns r->err. */
int sl_origin_call(struct sl_origin *o, struct sl_oreq *r);

/* Implementations, for origin.c. */
int sl_origin_local_open(const char *path, const struct sl_origin_config *cfg, struct sl_origin **ret,
			 char **why);
struct sl_dial; /* how to get a connection: dial.h */
int sl_origin_export_open(struct sl_dial *d, const struct sl_origin_config *cfg, struct sl_origin **ret,
			  char **why);

/* A listing that grows; for implementations. */
#define SL_LIST_MAX (4u << 20) /* entries */
int sl_oreq_add_entry(struct sl_oreq *r, size_t *cap, const char *name, size_t len, const struct sl_attr *a);
int sl_oreq_add_xattr(struct sl_oreq *r, const char *name, const void *value, size_t len);
/** Of a LIST: when what it shows changed last, the directory itself included. */
struct timespec sl_oreq_latest(const struct sl_oreq *r);
/** Order the listing by name and refuse it (-EPROTO) if a name comes twice. */
int sl_oreq_check_entries(struct sl_oreq *r);
/** The xattrs that travel: user.* without the store's own, and the two ACLs. */
bool sl_oreq_xattr_wanted(const char *name);
