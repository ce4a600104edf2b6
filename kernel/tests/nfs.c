// SPDX-License-Identifier: GPL-2.0-only
// If this fails, a directory that is not filled is an empty one for clients of the NFS server. The server
// lists directories by a path, so they are filled first; it looks names up without one, so that is refused.
//
// Server and client (version 3) are this kernel's. What the programs of nfs-utils do is done here: the
// server's tables are written by hand, the client gets the handle of the root with its mount, and for rpcbind
// stands a thread that says yes to everything.

#include "ways.h"

#include <arpa/inet.h>
#include <linux/nfs.h>
#include <linux/nfs_mount.h>
#include <netinet/in.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/un.h>

#define GROUP	"NFS, version 3"
#define FOREVER 2147483647

static bool read_all(int fd, void *buf, size_t len)
{
	for (char *p = buf; len;) {
		ssize_t n = read(fd, p, len);
		if (n <= 0)
			return false;
		p += n;
		len -= (size_t)n;
	}
	return true;
}

// One connection of the kernel to its rpcbind: each call is accepted; what has a result is true.
static void *say_yes(void *arg)
{
	int fd = (int)(intptr_t)arg;
	uint32_t call[256], mark;
	while (read_all(fd, &mark, 4)) {
		uint32_t len = ntohl(mark) & 0x7fffffff;
		if (len < 24 || len > sizeof(call) || !read_all(fd, call, len))
			break;
		bool null = call[5] == 0;
		uint32_t reply[8] = {
		    htonl(0x80000000u | (null ? 24 : 28)), call[0], htonl(1), 0, 0, 0, 0, htonl(1)};
		if (write(fd, reply, null ? 28 : 32) < 0)
			break;
	}
	close(fd);
	return NULL;
}

static void *rpcbind(void *arg)
{
	pthread_t t;
	for (int fd; (fd = accept((int)(intptr_t)arg, NULL, NULL)) >= 0;)
		pthread_create(&t, NULL, say_yes, (void *)(intptr_t)fd);
	return NULL;
}

static void start_rpcbind(void)
{
	static const char name[] = "\0/run/rpcbind.sock";
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	pthread_t t;
	int s = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	memcpy(a.sun_path, name, sizeof(name));
	if (s < 0 ||
	    bind(s, (struct sockaddr *)&a, offsetof(struct sockaddr_un, sun_path) + sizeof(name) - 1) < 0 ||
	    listen(s, 8) < 0 || pthread_create(&t, NULL, rpcbind, (void *)(intptr_t)s) != 0)
		bail("rpcbind");
}

static void put(const char *file, const char *fmt, ...)
{
	char line[512];
	va_list ap;
	va_start(ap, fmt);
	int len = vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	int fd = open(file, O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, line, (size_t)len) != len)
		bail("%s: %s", file, line);
	close(fd);
}

// The server's handle of @path.
static void handle(const char *path, struct nfs3_fh *fh)
{
	char text[512];
	int fd = open("/proc/fs/nfsd/filehandle", O_RDWR | O_CLOEXEC);
	int len = snprintf(text, sizeof(text), "all %s %d\n", path, (int)sizeof(fh->data));
	if (fd < 0 || write(fd, text, (size_t)len) != len)
		bail("filehandle of %s", path);
	ssize_t n = read(fd, text, sizeof(text) - 1);
	close(fd);
	// "\x" and hexadecimal digits
	fh->size = 0;
	for (ssize_t i = 2; i + 1 < n && fh->size < sizeof(fh->data); i += 2) {
		char digits[3] = {text[i], text[i + 1], 0};
		fh->data[fh->size++] = (unsigned char)strtoul(digits, NULL, 16);
	}
	if (fh->size == 0)
		bail("no handle of %s", path);
}

static void start_server(const char *path)
{
	if (mount("nfsd", "/proc/fs/nfsd", "nfsd", 0, NULL) < 0)
		bail("nfsd");
	put("/proc/fs/nfsd/portlist", "tcp 2049\n");
	put("/proc/fs/nfsd/threads", "2\n");
	put("/proc/net/rpc/auth.unix.ip/channel", "nfsd 127.0.0.1 %d all\n", FOREVER);
	// async, no_subtree_check, fsid=0; root is root
	put("/proc/net/rpc/nfsd.export/channel", "all %s %d %d 65534 65534 0\n", path, FOREVER,
	    0x10 | 0x400 | 0x2000);
	put("/proc/net/rpc/nfsd.fh/channel", "all 1 \\x00000000 %d %s\n", FOREVER, path);
}

static void start_client(const char *path, const char *at)
{
	struct nfs_mount_data m = {
	    .version = NFS_MOUNT_VERSION,
	    .fd = -1,
	    // Nothing is cached: each access asks the server.
	    .flags = NFS_MOUNT_VER3 | NFS_MOUNT_TCP | NFS_MOUNT_NONLM | NFS_MOUNT_NOACL | NFS_MOUNT_NOAC |
		     NFS_MOUNT_SECFLAVOUR,
	    .timeo = 600,
	    .retrans = 3,
	    .addr = {.sin_family = AF_INET,
		     .sin_port = htons(2049),
		     .sin_addr.s_addr = htonl(INADDR_LOOPBACK)},
	    .hostname = "127.0.0.1",
	    .pseudoflavor = 1,
	};
	handle(path, &m.root);
	mkdir(at, 0755);
	if (mount("127.0.0.1:/", at, "nfs", 0, &m) < 0)
		bail("client");
}

static int mounts(void *arg)
{
	start_client(arg, "/dev/shm/nfs");
	return 0;
}

int main(void)
{
	struct fs fs;
	struct service s;
	ways_init();
	fs_new(&fs);
	pathless_dirs(&fs, "", "n-");
	close(openat(fs.work, "other", O_WRONLY | O_CREAT, 0644));
	start_rpcbind();
	start_server(fs.top);
	if (in_time(mounts, fs.top) != 0)
		bail("the client does not mount");

	service_open(&s, &fs, 0, O_RDONLY, FAN_PRE_DIR_ACCESS);
	if (fan_mark(s.group, FAN_MARK_ADD | FAN_MARK_IGNORE_SURV, FAN_PRE_DIR_ACCESS, fs.work, ".") < 0)
		bail("mark of the top");
	service_run(&s);
	pathless(&s, GROUP, "/dev/shm/nfs", fs.top, "n-");
	row("NFS, version 4", "all", "not filled",
	    "not tried: version 4 is not in the test kernel, what it needs would double what there is to "
	    "compile for NFS");

	umount2("/dev/shm/nfs", MNT_DETACH);
	put("/proc/fs/nfsd/threads", "0\n");
	service_stop(&s);
	fs_end(&fs);
	return done();
}
