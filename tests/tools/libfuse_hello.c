/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A small tree served by libfuse over a stream, so that our client is tested against a server that is not
 * ours. Usage: libfuse_hello SOCKET. Listens there, serves one connection, and says at its end what was left
 * open.
 */
#define FUSE_USE_VERSION 314

#include <errno.h>
#include <fuse_lowlevel.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define BIG_SIZE 300000

/* The tree: node ids are indexes. */
static const struct node {
	fuse_ino_t parent;
	const char *name;
	const char *content; /* NULL: a directory, or the big file */
	off_t size;
} nodes[] = {
    [1] = {1, "/", NULL, 0},   [2] = {1, "hello", "Hello, world!\n", 14},
    [3] = {1, "dir", NULL, 0}, [4] = {3, "inner", "inside\n", 7},
    [5] = {3, "empty", "", 0}, [6] = {1, "big", NULL, BIG_SIZE},
};
#define N_NODES (sizeof(nodes) / sizeof(nodes[0]))

static long lookups[N_NODES], handles;

static int is_dir(fuse_ino_t ino)
{
	return ino == 1 || ino == 3;
}

static void fill_stat(fuse_ino_t ino, struct stat *st)
{
	*st = (struct stat){.st_ino = ino,
			    .st_mode = is_dir(ino) ? S_IFDIR | 0755 : S_IFREG | 0444,
			    .st_nlink = is_dir(ino) ? 2 : 1,
			    .st_size = nodes[ino].size,
			    .st_mtim = {1600000000, 123456789}};
}

static void do_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	for (fuse_ino_t i = 2; i < N_NODES; i++)
		if (nodes[i].parent == parent && !strcmp(nodes[i].name, name)) {
			struct fuse_entry_param e = {
			    .ino = i, .generation = 1, .attr_timeout = 1, .entry_timeout = 1};
			fill_stat(i, &e.attr);
			lookups[i]++;
			fuse_reply_entry(req, &e);
			return;
		}
	fuse_reply_err(req, ENOENT);
}

static void do_forget(fuse_req_t req, fuse_ino_t ino, uint64_t n)
{
	if (ino < N_NODES)
		lookups[ino] -= (long)n;
	fuse_reply_none(req);
}

static void do_forget_multi(fuse_req_t req, size_t count, struct fuse_forget_data *f)
{
	for (size_t i = 0; i < count; i++)
		if (f[i].ino < N_NODES)
			lookups[f[i].ino] -= (long)f[i].nlookup;
	fuse_reply_none(req);
}

static void do_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct stat st;
	(void)fi;
	if (ino < 1 || ino >= N_NODES) {
		fuse_reply_err(req, ENOENT);
		return;
	}
	fill_stat(ino, &st);
	fuse_reply_attr(req, &st, 1);
}

static void do_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	handles++;
	fi->fh = 1000 + ino;
	fuse_reply_open(req, fi);
}

static void do_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	handles -= fi->fh == 1000 + ino;
	fuse_reply_err(req, 0);
}

static void do_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
	char buf[100]; /* little at a time, so that the client has to come again */
	size_t len = 0;
	(void)fi;
	if (size > sizeof(buf))
		size = sizeof(buf);
	for (fuse_ino_t i = (fuse_ino_t)(off ? off : 1); i < N_NODES; i++) {
		if (i == 1 ? 0 : nodes[i].parent != ino)
			continue;
		struct stat st = {.st_ino = i, .st_mode = is_dir(i) ? S_IFDIR : S_IFREG};
		size_t n = fuse_add_direntry(req, buf + len, size - len, i == 1 ? "." : nodes[i].name, &st,
					     (off_t)i + 1);
		if (n > size - len)
			break;
		len += n;
	}
	fuse_reply_buf(req, buf, len);
}

static void do_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
	static char big[BIG_SIZE];
	(void)fi;
	if (ino == 6 && !big[1])
		for (size_t i = 0; i < BIG_SIZE; i++)
			big[i] = (char)(i % 251);
	const char *p = ino == 6 ? big : nodes[ino].content;
	off_t left = off < nodes[ino].size ? nodes[ino].size - off : 0;
	fuse_reply_buf(req, left ? p + off : NULL, (size_t)left < size ? (size_t)left : size);
}

static const struct fuse_lowlevel_ops ops = {
    .lookup = do_lookup,
    .forget = do_forget,
    .forget_multi = do_forget_multi,
    .getattr = do_getattr,
    .open = do_open,
    .release = do_release,
    .opendir = do_open,
    .releasedir = do_release,
    .readdir = do_readdir,
    .read = do_read,
};

static int read_all(int fd, char *p, size_t n)
{
	while (n > 0) {
		ssize_t k = read(fd, p, n);
		if (k < 0 && errno == EINTR)
			continue;
		if (k <= 0) {
			errno = ENODEV; /* for libfuse: the filesystem is unmounted */
			return -1;
		}
		p += k;
		n -= (size_t)k;
	}
	return 0;
}

static ssize_t stream_read(int fd, void *buf, size_t cap, void *arg)
{
	uint32_t len;
	(void)arg;
	if (read_all(fd, (char *)&len, sizeof(len)) < 0)
		return -1;
	if (len < sizeof(len) || len > cap) {
		errno = EPROTO;
		return -1;
	}
	memcpy(buf, &len, sizeof(len));
	return read_all(fd, (char *)buf + sizeof(len), len - sizeof(len)) < 0 ? -1 : (ssize_t)len;
}

static ssize_t stream_writev(int fd, struct iovec *iov, int count, void *arg)
{
	ssize_t total = 0;
	(void)arg;
	for (int i = 0; i < count; i++)
		for (size_t o = 0; o < iov[i].iov_len;) {
			ssize_t k = send(fd, (char *)iov[i].iov_base + o, iov[i].iov_len - o, MSG_NOSIGNAL);
			if (k < 0)
				return -1;
			o += (size_t)k;
			total += k;
		}
	return total;
}

static int accept_one(const char *path)
{
	struct sockaddr_un sa = {.sun_family = AF_UNIX};
	/* Who sees the socket may connect: it gets its name when it listens. */
	if (snprintf(sa.sun_path, sizeof(sa.sun_path), "%s~", path) >= (int)sizeof(sa.sun_path))
		return -1;
	int l = socket(AF_UNIX, SOCK_STREAM, 0);
	if (l < 0 || bind(l, (struct sockaddr *)&sa, sizeof(sa)) < 0 || listen(l, 1) < 0 ||
	    rename(sa.sun_path, path) < 0)
		return -1;
	return accept(l, NULL, NULL);
}

int main(int argc, char **argv)
{
	static const struct fuse_custom_io io = {.writev = stream_writev, .read = stream_read};
	char *args_v[] = {argv[0], NULL};
	struct fuse_args args = FUSE_ARGS_INIT(1, args_v);
	int fd = argc == 2 ? accept_one(argv[1]) : -1;
	if (fd < 0) {
		perror("libfuse_hello");
		return 2;
	}
	struct fuse_session *se = fuse_session_new(&args, &ops, sizeof(ops), NULL);
	if (!se || fuse_session_custom_io(se, &io, fd) != 0)
		return 2;
	int r = fuse_session_loop(se);
	fuse_session_destroy(se);
	fuse_opt_free_args(&args);
	long left = 0;
	for (size_t i = 0; i < N_NODES; i++)
		left += labs(lookups[i]);
	printf("status %d, %ld lookups and %ld handles left\n", r, left, handles);
	return 0;
}
