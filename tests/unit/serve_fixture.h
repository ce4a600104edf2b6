/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * For tests of the exporter: a tree in a directory of its own, an export of it, a connection to that over a
 * socket pair, and one function per request. Included once, first, by each of the programs.
 */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/xattr.h>

#include "base/fd.h"
#include "base/log.h"
#include "base/time.h"
#include "serve/serve.h"
#include "wire/client.h"

#define ROOT FUSE_ROOT_ID

struct side {
	struct sl_export *e;
	struct sl_transport *t;
	pthread_t thread;
	int result;
};

struct fixture {
	char base[64];
	int dir;  /* base/tree, which is exported */
	int away; /* base/away, which is not */
	struct side s;
	struct sl_client *c;
};

static inline void *serve(void *arg)
{
	struct side *s = arg;
	s->result = sl_serve_connection(s->e, s->t);
	return NULL;
}

static inline void side_start(struct side *s, enum sl_transport_kind kind, int fd)
{
	assert_int_equal(sl_transport_new(kind, fd, fd, &s->t), 0);
	assert_int_equal(pthread_create(&s->thread, NULL, serve, s), 0);
}

static inline void side_join(struct side *s)
{
	pthread_join(s->thread, NULL);
	sl_transport_free(s->t);
}

static inline void connect_with(struct fixture *f, uint64_t flags)
{
	int sv[2];
	struct sl_transport *t;
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
	side_start(&f->s, SL_TRANSPORT_STREAM, sv[0]);
	assert_int_equal(sl_transport_new(SL_TRANSPORT_STREAM, sv[1], sv[1], &t), 0);
	const struct sl_client_config cfg = {.want_flags = flags};
	assert_int_equal(sl_client_new(t, &cfg, &f->c), 0);
}

static inline void disconnect(struct fixture *f)
{
	sl_client_free(f->c);
	f->c = NULL;
	side_join(&f->s);
	assert_int_equal(f->s.result, 0);
}

static inline void open_export(struct fixture *f, const struct sl_export_config *cfg)
{
	char path[80];
	_cleanup_free_ char *why = NULL;
	snprintf(path, sizeof(path), "%s/tree", f->base);
	int r = sl_export_open(path, cfg, &f->s.e, &why);
	if (r < 0)
		print_error("%s\n", why);
	assert_int_equal(r, 0);
}

#define DEFAULT_FLAGS (FUSE_DO_READDIRPLUS | FUSE_NO_OPEN_SUPPORT | SL_FUSE_XATTR_HINT)

static inline int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	char p[80];
	strcpy(f->base, "/tmp/sluice-serve-XXXXXX");
	assert_non_null(mkdtemp(f->base));
	snprintf(p, sizeof(p), "%s/tree", f->base);
	assert_int_equal(mkdir(p, 0755), 0);
	f->dir = open(p, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	snprintf(p, sizeof(p), "%s/away", f->base);
	assert_int_equal(mkdir(p, 0755), 0);
	f->away = open(p, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	open_export(f, NULL);
	connect_with(f, DEFAULT_FLAGS);
	*state = f;
	return 0;
}

static inline int teardown(void **state)
{
	struct fixture *f = *state;
	if (f->c)
		disconnect(f);
	sl_export_free(f->s.e);
	close(f->dir);
	close(f->away);
	assert_int_equal(sl_remove_tree(AT_FDCWD, f->base), 0);
	free(f);
	return 0;
}

/* Connect anew with other bounds or flags. */
static inline void again(struct fixture *f, const struct sl_export_config *cfg, uint64_t flags)
{
	disconnect(f);
	sl_export_free(f->s.e);
	open_export(f, cfg);
	connect_with(f, flags);
}

static inline void put(int dir, const char *name, const char *text)
{
	_cleanup_close_ int fd = openat(dir, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	assert_true(fd >= 0);
	assert_int_equal(sl_write_full(fd, text, strlen(text)), 0);
}

/* ---- requests ---- */

static inline int lookup(struct fixture *f, uint64_t dir, const char *name, struct fuse_entry_out *e)
{
	struct sl_msg_out m;
	struct sl_call c = {.opcode = FUSE_LOOKUP, .nodeid = dir, .name = name};
	*e = (struct fuse_entry_out){0};
	int r = sl_client_call_sync(f->c, &c, &m, NULL);
	if (r == 0)
		*e = m.out.entry;
	return r;
}

static inline uint64_t node(struct fixture *f, uint64_t dir, const char *name)
{
	struct fuse_entry_out e;
	assert_int_equal(lookup(f, dir, name, &e), 0);
	assert_true(e.nodeid > ROOT);
	return e.nodeid;
}

static inline int getattr(struct fixture *f, uint64_t id, struct fuse_attr *a)
{
	struct sl_msg_out m;
	struct sl_call c = {.opcode = FUSE_GETATTR, .nodeid = id};
	if (a)
		*a = (struct fuse_attr){0};
	int r = sl_client_call_sync(f->c, &c, &m, NULL);
	if (r == 0 && a)
		*a = m.out.attr.attr;
	return r;
}

static inline ssize_t pull(struct fixture *f, uint32_t opcode, uint64_t id, uint64_t fh, uint64_t off,
			   void *buf, size_t n)
{
	struct sl_msg_out m;
	void *msg = NULL;
	struct sl_call c = {.opcode = opcode, .nodeid = id};
	if (opcode != FUSE_READLINK)
		c.in.read = (struct fuse_read_in){.fh = fh, .offset = off, .size = (uint32_t)n};
	int r = sl_client_call_sync(f->c, &c, &m, &msg);
	if (r == 0) {
		assert_true(m.data_len <= n);
		memcpy(buf, m.data, m.data_len);
	}
	free(msg);
	return r < 0 ? r : (ssize_t)m.data_len;
}

static inline ssize_t reads(struct fixture *f, uint64_t id, uint64_t off, void *buf, size_t n)
{
	return pull(f, FUSE_READ, id, 0, off, buf, n);
}

static inline int plain(struct fixture *f, struct sl_call c)
{
	return sl_client_call_sync(f->c, &c, NULL, NULL);
}

static inline void forget(struct fixture *f, uint64_t id, uint64_t n)
{
	struct sl_call c = {.opcode = FUSE_FORGET, .nodeid = id, .in.forget.nlookup = n};
	assert_int_equal(sl_client_post(f->c, &c), 0);
}

/* FORGETs have no answer, and requests may overtake them: wait until @id is unknown. */
static inline void wait_forgotten(struct fixture *f, uint64_t id)
{
	uint64_t end = sl_now() + 30 * SL_NS_PER_SEC;
	while (getattr(f, id, NULL) != -ESTALE) {
		assert_true(sl_now() < end);
		sched_yield();
	}
}

static inline int opendir_(struct fixture *f, uint64_t id, uint64_t *fh)
{
	struct sl_msg_out m;
	struct sl_call c = {.opcode = FUSE_OPENDIR, .nodeid = id};
	*fh = 0;
	int r = sl_client_call_sync(f->c, &c, &m, NULL);
	if (r == 0)
		*fh = m.out.open.fh;
	return r;
}

static inline int releasedir(struct fixture *f, uint64_t id, uint64_t fh)
{
	return plain(f, (struct sl_call){.opcode = FUSE_RELEASEDIR, .nodeid = id, .in.release.fh = fh});
}

static inline ssize_t xattr(struct fixture *f, uint64_t id, const char *name, void *buf, size_t n)
{
	struct sl_msg_out m;
	void *msg = NULL;
	struct sl_call c = {.opcode = name ? FUSE_GETXATTR : FUSE_LISTXATTR, .nodeid = id, .name = name};
	c.in.getxattr.size = (uint32_t)n;
	ssize_t r = sl_client_call_sync(f->c, &c, &m, &msg);
	if (r == 0 && n) {
		assert_true(m.data_len <= n);
		memcpy(buf, m.data, m.data_len);
		r = (ssize_t)m.data_len;
	} else if (r == 0) {
		struct fuse_getxattr_out out;
		assert_int_equal(m.data_len, sizeof(out));
		memcpy(&out, m.data, sizeof(out));
		r = out.size;
	}
	free(msg);
	return r;
}

/* Call @each for every record of a directory, in replies of at most @max bytes. Returns 0 or the server's
 * error. */
static inline int list(struct fixture *f, uint64_t id, bool plus, size_t max,
		       void (*each)(const struct sl_dirent *, void *), void *arg, unsigned *replies)
{
	uint64_t fh = 0, off = 0;
	int r = opendir_(f, id, &fh);
	if (r < 0)
		return r;
	_cleanup_free_ char *buf = malloc(max);
	ssize_t n;
	while ((n = pull(f, plus ? FUSE_READDIRPLUS : FUSE_READDIR, id, fh, off, buf, max)) > 0) {
		const void *p = buf;
		size_t left = (size_t)n;
		struct sl_dirent d;
		while ((r = sl_dirent_next(&p, &left, plus, &d)) > 0) {
			each(&d, arg);
			off = d.off;
		}
		assert_int_equal(r, 0);
		if (replies)
			++*replies;
	}
	assert_int_equal(releasedir(f, id, fh), 0);
	return (int)n;
}

static inline void make_many(struct fixture *f, size_t n)
{
	char name[32];
	for (size_t i = 0; i < n; i++) {
		snprintf(name, sizeof(name), "f%zu", i);
		put(f->dir, name, "xx" + 2 - i % 3);
	}
}

#define T(name) cmocka_unit_test_setup_teardown(test_##name, setup, teardown)

/* A mount namespace of our own: what a test mounts is gone when it ends, however it does. False where we may
 * not mount. */
static inline bool own_mount_namespace(void)
{
	return unshare(CLONE_NEWNS) == 0 && mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0;
}
