/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The exporter: a local tree, served over the wire to any number of clients, read-only unless told otherwise.
 *
 * What a client sees is TREE and nothing else. Names are resolved with openat2() beneath TREE's descriptor,
 * no symlink is followed, no mount is entered, and every object is checked to be the one that the client
 * looked up before anything of it is served. The exporter acts with its own credentials, whatever uid a
 * request claims: who may connect may read what the exporter can read.
 *
 * Every operation that would change something is answered with EROFS, unless the export is writable: then who
 * may connect may change what the exporter can change. Names are made and removed in a directory that was
 * found as above, and are single components. Files are opened for each OPEN, so that what is deleted can be
 * used until it is closed; one that is moved out of TREE meanwhile is ESTALE.
 *
 * Identity. (attr.ino, generation) names an object for as long as it lives, over connections and restarts of
 * the exporter. The generation is XXH64 of the bytes of the kernel's file handle, with the handle's type as
 * seed; 0 where the filesystem has no handles, or none that last. Node ids are per connection and never
 * reused. Hard links are one node.
 *
 * Mounts below TREE are not entered: their inode numbers are those of other filesystems and would be
 * ambiguous. A directory that something is mounted on (a btrfs subvolume counts) shows as an empty one with
 * mode 0555 and an inode number made from its parent's and its name (top bit set); a file that something is
 * mounted on is not there.
 *
 * What changes under the exporter: an object that was deleted, replaced or moved out of TREE is ESTALE, and a
 * new LOOKUP tells what is there now. One that was moved inside TREE is still found if the exporter may use
 * file handles (CAP_DAC_READ_SEARCH), else it is ESTALE until it is looked up again.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "notify/backend.h"
#include "wire/transport.h"

struct sl_export;

/* How long an open descriptor is served from without looking whether its object is still in its place. */
#define SL_EXPORT_REVALIDATE_MS 20
/* For how long a client's kernel may believe names and attributes, in seconds. */
#define SL_EXPORT_VALID_S 1

/* Zero means the default. */
struct sl_export_config {
	/* The process's umask has to be 0 then, and SIGXFSZ ignored. */
	bool writable;
	/* What is made belongs to the uid and gid of the request. For root, and for clients whose ids mean
	 * the same as ours; otherwise it belongs to who runs the exporter. */
	bool owners;
	/* of each connection */
	unsigned threads;    /* default 4 */
	uint64_t max_nodes;  /* 4 Mi; a LOOKUP beyond is ENFILE, a READDIRPLUS lists names without nodes */
	unsigned max_dirs;   /* open directories: 1024; OPENDIR beyond is ENFILE */
	unsigned max_opens;  /* open files of a writable export: 4096; OPEN beyond is ENFILE */
	uint64_t max_marks;  /* 1 Mi; a FUSE_FSNOTIFY beyond is ENOSPC */
	unsigned max_events; /* notifications that a client has not read: 64 Ki; then it is told that some
				were lost */
	uint32_t max_data;   /* largest READ and READDIR reply, in bytes: SL_WIRE_MAX_DATA */
	/* of all together; open directories are bounded together as well, by a quarter of RLIMIT_NOFILE */
	enum sl_backend_kind backend;
	bool no_events; /* clients are not told of changes */
	unsigned grace; /* seconds for which what a client has is kept when its connection breaks; 0: not */
	unsigned max_files; /* cached open files: 1024, or a quarter of RLIMIT_NOFILE if that is less */
};

/**
 * Open the directory @path for export. Returns 0 or -errno, with a sentence in *@why (base/why.h) that the
 * caller frees. An export is shared by all connections; any thread may use it.
 */
int sl_export_open(const char *path, const struct sl_export_config *cfg, struct sl_export **ret, char **why);
/** All connections must have ended. */
void sl_export_free(struct sl_export *e);
/** The absolute path that was opened. */
const char *sl_export_path(const struct sl_export *e);

/**
 * Serve one connection, on this thread and others of its own, until the client goes away or
 * sl_transport_shutdown(@t).
 * @t is a stream or a /dev/fuse descriptor and stays the caller's. Returns 0 at the end, or as
 * sl_server_run().
 */
int sl_serve_connection(struct sl_export *e, struct sl_transport *t);

struct sl_conn;
struct sl_req;
struct sl_server;

/* For a mount of our own: changes are told to us, not to the kernel (which does not listen), for each
 * directory that the kernel was told of. */
struct sl_serve_hooks {
	/** Answer @rq instead of the export; false: it is not for us. Several threads. */
	bool (*take)(void *arg, struct sl_req *rq);
	/** Before the first request. */
	void (*begin)(void *arg, struct sl_server *s, struct sl_conn *c);
	/** After the last; none of both may be used after this. */
	void (*end)(void *arg);
	void *arg;
	struct sl_transport *events; /* where FUSE_NOTIFY_FSNOTIFY go; NULL: nobody wants any */
	uint64_t uses;		     /* of SL_CHANGE_USE, to be told of as well */
};
/** As sl_serve_connection(), on /dev/fuse. */
int sl_serve_mount(struct sl_export *e, struct sl_transport *t, const struct sl_serve_hooks *hooks);
