/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "wire/vsock.h"

#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <linux/vm_sockets.h>

#include "base/fd.h"
#include "base/why.h"

#define CONNECT_TIMEOUT_S 10 /* the kernel's 2 are few for a machine that has a lot to do */

/* All digits, below the number that stands for "any". */
static int parse(const char *s, size_t n, uint32_t least, uint32_t *ret)
{
	uint64_t v = 0;
	if (n == 0 || n > 10)
		return -EINVAL;
	for (size_t i = 0; i < n; i++) {
		if (s[i] < '0' || s[i] > '9')
			return -EINVAL;
		v = v * 10 + (uint64_t)(s[i] - '0');
	}
	if (v < least || v >= VMADDR_CID_ANY)
		return -EINVAL;
	*ret = (uint32_t)v;
	return 0;
}

int sl_vsock_parse_cid(const char *s, uint32_t *ret)
{
	return parse(s, strlen(s), SL_VSOCK_LOCAL, ret);
}

int sl_vsock_parse_port(const char *s, uint32_t *ret)
{
	return parse(s, strlen(s), 0, ret);
}

int sl_vsock_parse(const char *s, uint32_t *ret_cid, uint32_t *ret_port)
{
	const char *colon = strchr(s, ':');
	if (!colon || parse(s, (size_t)(colon - s), SL_VSOCK_LOCAL, ret_cid) < 0)
		return -EINVAL;
	return parse(colon + 1, strlen(colon + 1), 1, ret_port);
}

static struct sockaddr_vm address(uint32_t cid, uint32_t port)
{
	return (struct sockaddr_vm){.svm_family = AF_VSOCK, .svm_cid = cid, .svm_port = port};
}

static int new_socket(char **why)
{
	int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd >= 0)
		return fd;
	int r = -errno;
	return r == -EAFNOSUPPORT ? sl_fail(why, r, "this kernel has no vsock (module vsock)")
				  : sl_fail(why, r, "vsock: %s", strerror(-r));
}

int sl_vsock_listen(uint32_t port, char **why)
{
	struct sockaddr_vm sa = address(VMADDR_CID_ANY, port ? port : VMADDR_PORT_ANY);
	_cleanup_close_ int fd = new_socket(why);
	if (fd < 0)
		return fd;
	if (bind(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0 || listen(fd, 64) < 0) {
		int r = -errno;
		return sl_fail(why, r, "vsock port %u: %s%s", port, strerror(-r),
			       r == -EACCES ? " (ports below 1024 are for root)" : "");
	}
	return sl_steal_fd(&fd);
}

int sl_vsock_port(int fd, uint32_t *ret)
{
	struct sockaddr_vm sa;
	socklen_t len = sizeof(sa);
	if (getsockname(fd, (struct sockaddr *)&sa, &len) < 0)
		return -errno;
	*ret = sa.svm_port;
	return 0;
}

static const char *hint(int err)
{
	switch (err) {
	case ENODEV: /* no transport for this CID */
	case EHOSTUNREACH:
	case ENETUNREACH:
		return " (there is no such machine, or this kernel has no way to it)";
	case ETIMEDOUT:
		return " (is that machine running?)";
	case ECONNRESET:
	case ECONNREFUSED:
		return " (is 'sluice serve --vsock' running there?)";
	default:
		return "";
	}
}

int sl_vsock_connect(uint32_t cid, uint32_t port, char **why)
{
	struct sockaddr_vm sa = address(cid, port);
	struct timeval tv = {.tv_sec = CONNECT_TIMEOUT_S};
	_cleanup_close_ int fd = new_socket(why);
	if (fd < 0)
		return fd;
	(void)setsockopt(fd, AF_VSOCK, SO_VM_SOCKETS_CONNECT_TIMEOUT, &tv, sizeof(tv));
	if (connect(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0) {
		int r = -errno;
		return sl_fail(why, r, "vsock:%u:%u: %s%s", cid, port, strerror(-r), hint(-r));
	}
	return sl_steal_fd(&fd);
}

int sl_vsock_peer(int fd, uint32_t *ret_cid)
{
	struct sockaddr_vm sa;
	socklen_t len = sizeof(sa);
	if (getpeername(fd, (struct sockaddr *)&sa, &len) < 0)
		return -errno;
	*ret_cid = sa.svm_cid;
	return 0;
}

uint32_t sl_vsock_own(void)
{
	uint32_t cid;
	_cleanup_close_ int fd = open("/dev/vsock", O_RDONLY | O_CLOEXEC);
	if (fd < 0 || ioctl(fd, IOCTL_VM_SOCKETS_GET_LOCAL_CID, &cid) < 0)
		return 0;
	return cid == VMADDR_CID_ANY ? 0 : cid;
}

int sl_vsock_available(char **why)
{
	/* A socket can be bound to the numbers of transports that are there. */
	static const uint32_t known[] = {SL_VSOCK_HOST, SL_VSOCK_LOCAL};
	for (size_t i = 0; i < SL_ARRAY_SIZE(known); i++) {
		struct sockaddr_vm sa = address(known[i], VMADDR_PORT_ANY);
		_cleanup_close_ int fd = new_socket(why);
		if (fd < 0)
			return fd;
		if (bind(fd, (struct sockaddr *)&sa, sizeof(sa)) == 0)
			return 0;
	}
	return sl_vsock_own()
		   ? 0
		   : sl_fail(why, -ENODEV,
			     "this kernel has no way to another machine yet (modules vhost_vsock on a "
			     "host, vmw_vsock_virtio_transport in a guest)");
}
