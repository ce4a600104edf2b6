// SPDX-License-Identifier: GPL-2.0-only
// The NFS server of this kernel, and its clients. What the programs of nfs-utils do is done here: the
// server's tables are written by hand, the client of version 3 gets the handle of the root with its mount,
// and for rpcbind stands a thread that says yes to everything.

#ifndef NFS_SERVE_H
#define NFS_SERVE_H

#include "hsm.h"

// Start the server; it exports the filesystem that is mounted at @path. Ends the program when it cannot.
void nfs_serve(const char *path);
void nfs_end(void);

// Mount what is exported (@path, as for nfs_serve()) at @at, without a cache: each access asks the server.
// For in_time().
struct nfs_client {
	int version; // 3 or 4
	const char *path, *at;
};
int nfs_mount(void *client);

#endif
