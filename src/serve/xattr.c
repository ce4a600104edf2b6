/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "serve/xattr.h"

#include <linux/limits.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#include "base/fd.h"
#include "serve/connection.h"

bool sl_xattr_exported(const char *name)
{
	if (!strncmp(name, "user.", 5))
		return strncmp(name, "user.sluice", 11) != 0;
	return !strcmp(name, "system.posix_acl_access") || !strcmp(name, "system.posix_acl_default");
}

/* Names of a list that may be shown, moved to its start. Returns their length. */
static size_t filter(char *list, size_t len)
{
	size_t out = 0;
	for (size_t i = 0, n; i < len; i += n) {
		n = strnlen(list + i, len - i) + 1;
		if (i + n > len || !sl_xattr_exported(list + i))
			continue;
		memmove(list + out, list + i, n);
		out += n;
	}
	return out;
}

bool sl_xattr_any(int fd, const char *name)
{
	char p[SL_PROC_FD_MAX], list[1024];
	sl_proc_fd_path(p, fd, name);
	/* Without a name, the link to follow is /proc's own. */
	ssize_t n = name ? llistxattr(p, list, sizeof(list)) : listxattr(p, list, sizeof(list));
	if (n < 0)
		return errno != EOPNOTSUPP && errno != ENOENT;
	return filter(list, (size_t)n) > 0;
}

int sl_xattr_find(struct sl_conn *c, uint64_t nodeid)
{
	_cleanup_place_ struct sl_place p;
	struct sl_found o;
	int r = sl_nodes_place(c->nodes, nodeid, &p);
	if (r < 0)
		return r;
	if ((p.type != S_IFREG && p.type != S_IFDIR) || p.foreign)
		return -EOPNOTSUPP;
	return sl_conn_find_at(c, nodeid, &p, &o);
}

/* Answer with @n bytes of @buf, or with their number where the client asked for it with a size of 0. */
static void reply(struct sl_req *rq, ssize_t n, const void *buf)
{
	uint32_t size = rq->m.in.getxattr.size;
	if (n >= 0 && size && (size_t)n > size)
		n = -ERANGE;
	if (n < 0) {
		sl_reply_err(rq, (int)n);
	} else if (size == 0) {
		const struct fuse_getxattr_out out = {.size = (uint32_t)n};
		sl_reply(rq, &out, sizeof(out));
	} else {
		sl_reply_data(rq, NULL, 0, buf, (size_t)n);
	}
}

void sl_op_getxattr(struct sl_conn *c, struct sl_req *rq)
{
	char p[SL_PROC_FD_MAX];
	void *buf = sl_conn_buf_get(c);
	_cleanup_close_ int fd = sl_xattr_exported(rq->m.name) ? sl_xattr_find(c, rq->m.h.nodeid) : -ENODATA;
	ssize_t n = fd == -EOPNOTSUPP ? -ENODATA : fd;
	if (!buf)
		n = -ENOMEM;
	else if (fd >= 0 && (n = getxattr(sl_proc_fd_path(p, fd, NULL), rq->m.name, buf, XATTR_SIZE_MAX)) < 0)
		n = errno == EOPNOTSUPP ? -ENODATA : -errno;
	reply(rq, n, buf);
	sl_conn_buf_put(c, buf);
}

void sl_op_listxattr(struct sl_conn *c, struct sl_req *rq)
{
	char p[SL_PROC_FD_MAX];
	void *buf = sl_conn_buf_get(c);
	_cleanup_close_ int fd = sl_xattr_find(c, rq->m.h.nodeid);
	ssize_t n = fd == -EOPNOTSUPP ? 0 : fd;
	if (!buf)
		n = -ENOMEM;
	else if (fd >= 0 && (n = listxattr(sl_proc_fd_path(p, fd, NULL), buf, XATTR_LIST_MAX)) < 0)
		n = errno == EOPNOTSUPP ? 0 : -errno;
	else if (fd >= 0)
		n = (ssize_t)filter(buf, (size_t)n);
	reply(rq, n, buf);
	sl_conn_buf_put(c, buf);
}
