/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The wire client as a command, for tests against servers of all kinds.
 *
 *   wire_client SOCKET tree         every object below the root: type, size, content's sum, path; sorted by
 * the caller wire_client SOCKET cat PATH     a file's bytes wire_client SOCKET flags        the INIT flags
 * and the payload size that were agreed
 *
 * What it looked up is forgotten and what it opened is released before it ends. Status 1 for an error of the
 * server's.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/fd.h"
#include "base/human.h"
#include "wire/client.h"

static struct sl_client *client;

/* Returns the server's error. With @ret the caller frees the message that @m points into. */
static int request(struct sl_call *call, struct sl_msg_out *m, void **ret)
{
	void *buf = NULL;
	int r = sl_client_call_sync(client, call, m, &buf);
	if (r == 0 && ret)
		*ret = buf;
	else
		free(buf);
	return r;
}

static int lookup(uint64_t dir, const char *name, struct fuse_entry_out *e)
{
	struct sl_call call = {.opcode = FUSE_LOOKUP, .nodeid = dir, .name = name};
	struct sl_msg_out m;
	int r = request(&call, &m, NULL);
	if (r == 0)
		*e = m.out.entry;
	return r == 0 && e->nodeid == 0 ? -ENOENT : r;
}

static void forget(uint64_t nodeid)
{
	struct fuse_forget_one one = {nodeid, 1};
	struct sl_call call = {
	    .opcode = FUSE_BATCH_FORGET, .in.batch_forget.count = 1, .data = &one, .data_len = sizeof(one)};
	if (nodeid != FUSE_ROOT_ID)
		sl_client_post(client, &call);
}

static int open_node(uint64_t nodeid, bool dir, uint64_t *fh)
{
	struct sl_call call = {
	    .opcode = dir ? FUSE_OPENDIR : FUSE_OPEN, .nodeid = nodeid, .in.open.flags = O_RDONLY};
	struct sl_msg_out m;
	int r = request(&call, &m, NULL);
	*fh = r == 0 ? m.out.open.fh : 0;
	return r;
}

static void release(uint64_t nodeid, bool dir, uint64_t fh)
{
	struct sl_call call = {
	    .opcode = dir ? FUSE_RELEASEDIR : FUSE_RELEASE, .nodeid = nodeid, .in.release.fh = fh};
	struct sl_msg_out m;
	request(&call, &m, NULL);
}

/* Read a whole file, to @out or for its sum only. */
static int read_file(uint64_t nodeid, FILE *out, uint64_t *sum)
{
	uint64_t fh, off = 0;
	int r = open_node(nodeid, false, &fh);
	if (r < 0)
		return r;
	*sum = 14695981039346656037ull;
	for (;;) {
		struct sl_call call = {
		    .opcode = FUSE_READ,
		    .nodeid = nodeid,
		    .in.read = {.fh = fh, .offset = off, .size = sl_client_max_data(client)}};
		struct sl_msg_out m;
		void *buf = NULL;
		r = request(&call, &m, &buf);
		if (r == 0) {
			for (size_t i = 0; i < m.data_len; i++)
				*sum = (*sum ^ ((const unsigned char *)m.data)[i]) * 1099511628211ull;
			if (out)
				fwrite(m.data, 1, m.data_len, out);
			off += m.data_len;
		}
		free(buf);
		if (r < 0 || m.data_len == 0)
			break;
	}
	release(nodeid, false, fh);
	return r;
}

static int walk(uint64_t dir, const char *path);

static int show(uint64_t dir, const char *path, const char *name)
{
	_cleanup_free_ char *p = sl_path_join(path, name);
	_cleanup_free_ char *shown = sl_printable(p, strlen(p));
	struct fuse_entry_out e;
	uint64_t sum = 0;
	int r = lookup(dir, name, &e);
	if (r < 0) {
		fprintf(stderr, "lookup %s: %s\n", shown, strerror(-r));
		return r;
	}
	if (S_ISREG(e.attr.mode))
		r = read_file(e.nodeid, NULL, &sum);
	printf("%o %" PRIu64 " %016" PRIx64 " %s\n", e.attr.mode, S_ISREG(e.attr.mode) ? e.attr.size : 0, sum,
	       shown);
	if (S_ISDIR(e.attr.mode))
		r = walk(e.nodeid, p);
	forget(e.nodeid);
	return r;
}

static int walk(uint64_t dir, const char *path)
{
	uint64_t fh, off = 0;
	int r = open_node(dir, true, &fh);
	while (r == 0) {
		struct sl_call call = {.opcode = FUSE_READDIR,
				       .nodeid = dir,
				       .in.read = {.fh = fh, .offset = off, .size = 65536}};
		struct sl_msg_out m;
		void *buf = NULL;
		r = request(&call, &m, &buf);
		if (r < 0)
			break;
		const void *p = m.data;
		size_t left = m.data_len;
		struct sl_dirent d;
		int more, n = 0;
		while (r == 0 && (more = sl_dirent_next(&p, &left, false, &d)) > 0) {
			char name[256];
			n++;
			off = d.off;
			memcpy(name, d.name, d.namelen);
			name[d.namelen] = '\0';
			if (strcmp(name, ".") && strcmp(name, ".."))
				r = show(dir, path, name);
		}
		if (r == 0 && more < 0)
			r = more;
		free(buf);
		if (n == 0)
			break;
	}
	release(dir, true, fh);
	return r;
}

static int cat(char *path)
{
	uint64_t nodes[256], sum;
	int n = 0, r = 0;
	nodes[0] = FUSE_ROOT_ID;
	for (char *c = strtok(path, "/"); r == 0 && c && n < 255; c = strtok(NULL, "/")) {
		struct fuse_entry_out e;
		r = lookup(nodes[n], c, &e);
		if (r == 0)
			nodes[++n] = e.nodeid;
	}
	if (r == 0)
		r = read_file(nodes[n], stdout, &sum);
	while (n > 0)
		forget(nodes[n--]);
	return r;
}

int main(int argc, char **argv)
{
	if (argc < 3 || (strcmp(argv[2], "cat") == 0) != (argc == 4)) {
		fputs("usage: wire_client SOCKET tree|flags|cat PATH\n", stderr);
		return 2;
	}
	int fd = sl_unix_connect(argv[1]);
	struct sl_transport *t;
	struct sl_client_config cfg = {.want_flags = FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_SETXATTR_EXT |
						     FUSE_PARALLEL_DIROPS};
	int r = fd < 0 ? fd : sl_transport_new(SL_TRANSPORT_STREAM, fd, fd, &t);
	if (r == 0)
		r = sl_client_new(t, &cfg, &client);
	if (r < 0) {
		fprintf(stderr, "wire_client: %s: %s\n", argv[1], strerror(-r));
		return 2;
	}
	if (!strcmp(argv[2], "tree"))
		r = walk(FUSE_ROOT_ID, "");
	else if (!strcmp(argv[2], "cat"))
		r = cat(argv[3]);
	else
		printf("flags %#" PRIx64 " max_data %u\n", sl_client_flags(client),
		       sl_client_max_data(client));
	if (r < 0)
		fprintf(stderr, "wire_client: %s\n", strerror(-r));
	sl_client_free(client);
	return r < 0;
}
