/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A directory of this machine as an origin. Requests run on a few threads; nothing is remembered between
 * them. */
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/xattr.h>

#include "base/beneath.h"
#include "base/fd.h"
#include "base/pool.h"
#include "origin/dial.h"
#include "origin/origin.h"

#define THREADS		 4
#define FUSE_SUPER_MAGIC 0x65735546
#define SYS_LISTXATTRAT	 465 /* the C library has no function for it yet */

struct local {
	struct sl_origin o;
	char *path;
	uint64_t root_ino;
	pthread_mutex_t lock; /* root and dev, while root is not open yet */
	_Atomic int root;
	dev_t dev;
	bool no_handles; /* FUSE: they do not outlive a mount */
	struct sl_pool *pool;
	struct sl_origin *events; /* tells of changes, or NULL */
};

struct job {
	struct sl_work work;
	struct local *l;
	struct sl_oreq *r;
};

static int open_root(struct local *l, char **why)
{
	struct stat st;
	struct statfs sf;
	_cleanup_close_ int fd = open(l->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st) < 0)
		return sl_fail(why, -errno, "origin %s: %s", l->path, strerror(errno));
	if (l->root_ino && l->root_ino != st.st_ino)
		return sl_fail(why, -ESTALE, "origin %s: another directory is there now than before",
			       l->path);
	l->root_ino = st.st_ino;
	l->dev = st.st_dev;
	l->no_handles = fstatfs(fd, &sf) == 0 && sf.f_type == FUSE_SUPER_MAGIC;
	l->root = sl_steal_fd(&fd);
	return 0;
}

/* An origin that was not there when we started may be there now. */
static int need_root(struct local *l)
{
	int r = 0;
	if (l->root >= 0)
		return 0;
	pthread_mutex_lock(&l->lock);
	if (l->root < 0)
		r = open_root(l, NULL);
	pthread_mutex_unlock(&l->lock);
	return r < 0 ? -ETIMEDOUT : 0;
}

static int open_place(struct local *l, const char *place, int flags)
{
	int fd = sl_open_beneath(l->root, place, flags);
	/* What was a directory on the way is a symlink now, or leads elsewhere: the place is not what it was.
	 */
	return fd == -ELOOP || fd == -EXDEV ? -ENOENT : fd;
}

static int stat_fd(struct local *l, int fd, struct sl_attr *a)
{
	struct stat st;
	if (fstat(fd, &st) < 0)
		return -errno;
	sl_attr_from_stat(&st, l->no_handles ? 0 : sl_handle_generation(fd, ""), a);
	return 0;
}

static int do_stat(struct local *l, struct sl_oreq *r)
{
	_cleanup_close_ int fd = open_place(l, r->place, O_PATH);
	return fd < 0 ? fd : stat_fd(l, fd, &r->attr);
}

static bool has_xattrs(int dirfd, const char *name)
{
	char p[SL_PROC_FD_MAX], names[1024];
	/* Since Linux 6.13, without the way through procfs. */
	ssize_t n = syscall(SYS_LISTXATTRAT, dirfd, name, AT_SYMLINK_NOFOLLOW, names, sizeof(names));
	if (n < 0 && errno != ERANGE && errno != EOPNOTSUPP && errno != ENOENT)
		n = llistxattr(sl_proc_fd_path(p, dirfd, name), names, sizeof(names));
	if (n < 0)
		return errno == ERANGE;
	for (const char *x = names; x < names + n; x += strlen(x) + 1)
		if (sl_oreq_xattr_wanted(x))
			return true;
	return false;
}

static int do_list(struct local *l, struct sl_oreq *r)
{
	int fd = open_place(l, r->place, O_RDONLY | O_DIRECTORY);
	if (fd < 0)
		return fd;
	int ret = stat_fd(l, fd, &r->attr);
	DIR *d = fdopendir(fd);
	if (!d) {
		close(fd);
		return -ENOMEM;
	}
	size_t cap = 0;
	while (ret == 0) {
		errno = 0;
		struct dirent *e = readdir(d);
		if (!e) {
			ret = -errno;
			break;
		}
		if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
			continue;
		struct stat st;
		struct sl_attr a;
		if (fstatat(fd, e->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0) {
			if (errno != ENOENT)
				ret = -errno;
			continue;
		}
		/* What is mounted below is another tree, with inode numbers of its own. */
		bool foreign = st.st_dev != l->dev;
		if (foreign && !S_ISDIR(st.st_mode))
			continue;
		sl_attr_from_stat(&st, foreign || l->no_handles ? 0 : sl_handle_generation(fd, e->d_name),
				  &a);
		a.no_xattrs =
		    !((S_ISREG(a.mode) || S_ISDIR(a.mode)) && !foreign && has_xattrs(fd, e->d_name));
		char target[4096 + 1];
		ssize_t n = 0;
		if (S_ISLNK(a.mode)) {
			n = readlinkat(fd, e->d_name, target, sizeof(target) - 1);
			if (n < 0)
				continue; /* gone, or no symlink any more */
		}
		ret = sl_oreq_add_entry(r, &cap, e->d_name, strlen(e->d_name), &a);
		if (ret == 0 && S_ISLNK(a.mode)) {
			r->entries[r->nentries - 1].target = strndup(target, (size_t)n);
			if (!r->entries[r->nentries - 1].target)
				ret = -ENOMEM;
		}
	}
	closedir(d);
	return ret;
}

/* Open for reading without waiting for anything: a file may have become a fifo meanwhile. */
static int open_file(struct local *l, const char *place)
{
	_cleanup_close_ int fd = open_place(l, place, O_RDONLY | O_NOCTTY | O_NONBLOCK | O_NOATIME);
	if (fd == -EPERM)
		fd = open_place(l, place, O_RDONLY | O_NOCTTY | O_NONBLOCK);
	struct stat st;
	if (fd >= 0 && fstat(fd, &st) == 0 && !S_ISREG(st.st_mode))
		return -ESTALE;
	return fd < 0 ? fd : sl_steal_fd(&fd);
}

static int do_read(struct local *l, struct sl_oreq *r)
{
	_cleanup_close_ int fd = open_file(l, r->place);
	if (fd < 0)
		return fd;
	r->data = malloc(r->len + 1);
	if (!r->data)
		return -ENOMEM;
	ssize_t n = sl_pread_full(fd, r->data, r->len, (off_t)r->off);
	if (n < 0)
		return (int)n;
	r->nread = (size_t)n;
	return stat_fd(l, fd, &r->attr);
}

static int do_lseek(struct local *l, struct sl_oreq *r)
{
	_cleanup_close_ int fd = open_file(l, r->place);
	if (fd < 0)
		return fd;
	off_t o = lseek(fd, (off_t)r->off, r->whence);
	if (o < 0 && errno != ENXIO)
		return -errno;
	r->result = o < 0 ? UINT64_MAX : (uint64_t)o;
	return stat_fd(l, fd, &r->attr);
}

static int do_xattrs(struct local *l, struct sl_oreq *r)
{
	char p[SL_PROC_FD_MAX];
	_cleanup_close_ int fd = open_place(l, r->place, O_PATH);
	if (fd < 0)
		return fd;
	int ret = stat_fd(l, fd, &r->attr);
	if (ret < 0 || !(S_ISREG(r->attr.mode) || S_ISDIR(r->attr.mode)))
		return ret;
	sl_proc_fd_path(p, fd, NULL);
	_cleanup_free_ char *names = malloc(65536), *value = malloc(65536);
	if (!names || !value)
		return -ENOMEM;
	ssize_t n = listxattr(p, names, 65536);
	if (n < 0)
		return errno == EOPNOTSUPP ? 0 : -errno;
	for (const char *x = names; x < names + n && ret == 0; x += strlen(x) + 1) {
		if (!sl_oreq_xattr_wanted(x))
			continue;
		ssize_t v = getxattr(p, x, value, 65536);
		if (v < 0 && errno != ENODATA)
			ret = -errno;
		else if (v >= 0)
			ret = sl_oreq_add_xattr(r, x, value, (size_t)v);
	}
	return ret;
}

static int do_statfs(struct local *l, struct sl_oreq *r)
{
	struct statvfs v;
	if (fstatvfs(l->root, &v) < 0)
		return -errno;
	r->fs.blocks = v.f_blocks;
	r->fs.bfree = v.f_bfree;
	r->fs.bavail = v.f_bavail;
	r->fs.files = v.f_files;
	r->fs.ffree = v.f_ffree;
	r->fs.bsize = (uint32_t)v.f_frsize;
	r->fs.namelen = (uint32_t)v.f_namemax;
	return 0;
}

static void job_run(struct sl_work *w)
{
	struct job *j = sl_container_of(w, struct job, work);
	struct local *l = j->l;
	struct sl_oreq *r = j->r;
	static int (*const run[])(struct local *, struct sl_oreq *) = {
	    [SL_OREQ_STAT] = do_stat,	  [SL_OREQ_LIST] = do_list,   [SL_OREQ_READ] = do_read,
	    [SL_OREQ_XATTRS] = do_xattrs, [SL_OREQ_LSEEK] = do_lseek, [SL_OREQ_STATFS] = do_statfs,
	    [SL_OREQ_MARK] = do_stat,
	};
	free(j);
	r->err = need_root(l);
	if (r->err == 0)
		r->err = run[r->op](l, r);
	l->o.nbytes += r->nread;
	r->done(r);
}

static void push(struct local *l, struct sl_oreq *r)
{
	struct job *j = malloc(sizeof(*j));
	if (!j) {
		r->err = -ENOMEM;
		r->done(r);
		return;
	}
	*j = (struct job){.work.run = job_run, .l = l, .r = r};
	sl_pool_push(l->pool, &j->work);
}

/* A request that waits for its mark. */
struct marking {
	struct sl_oreq q;
	struct local *l;
	struct sl_oreq *r;
};

static void marked(struct sl_oreq *q)
{
	struct marking *m = sl_container_of(q, struct marking, q);
	struct sl_oreq *r = m->r;
	struct local *l = m->l;
	int err = q->err;
	r->marked = q->marked;
	r->seq = q->seq;
	free(m);
	if (err) {
		r->err = err;
		r->done(r);
	} else {
		push(l, r);
	}
}

static void local_submit(struct sl_origin *o, struct sl_oreq *r)
{
	struct local *l = sl_container_of(o, struct local, o);
	bool mark = r->op == SL_OREQ_MARK || (r->op == SL_OREQ_LIST && r->mark);
	if (r->op == SL_OREQ_TOLD) {
		if (l->events) {
			sl_origin_submit(l->events, r);
		} else {
			r->err = 0;
			r->done(r);
		}
		return;
	}
	if (!l->events || !mark) {
		push(l, r);
		return;
	}
	struct marking *m = malloc(sizeof(*m));
	if (!m) {
		r->err = -ENOMEM;
		r->done(r);
		return;
	}
	*m = (struct marking){
	    .q = {.op = SL_OREQ_MARK, .place = r->place, .mark = r->mark, .done = marked}, .l = l, .r = r};
	sl_origin_submit(l->events, &m->q);
}

static void local_free(struct sl_origin *o)
{
	struct local *l = sl_container_of(o, struct local, o);
	sl_origin_free(l->events);
	sl_pool_free(l->pool);
	if (l->root >= 0)
		close(l->root);
	pthread_mutex_destroy(&l->lock);
	free(l->path);
	free(l);
}

static bool local_connected(struct sl_origin *o)
{
	struct local *l = sl_container_of(o, struct local, o);
	struct stat st;
	return need_root(l) == 0 && fstat(l->root, &st) == 0 && st.st_nlink > 0;
}

/* Requests never wait here, but for marks and events. */
static void local_stop(struct sl_origin *o)
{
	struct local *l = sl_container_of(o, struct local, o);
	if (l->events)
		sl_origin_stop(l->events);
}

static char *local_where(struct sl_origin *o, uint64_t id)
{
	struct local *l = sl_container_of(o, struct local, o);
	return l->events ? sl_origin_where(l->events, id) : NULL;
}

static const struct sl_origin_ops local_ops = {local_submit, local_stop, local_free, local_connected,
					       local_where};

static int open_events(struct local *l, const struct sl_origin_config *cfg)
{
	struct sl_origin_config ec = *cfg;
	struct sl_dial *d;
	if (!cfg->event || !cfg->program)
		return 0;
	int r = sl_dial_local(cfg->program, l->path, &d);
	ec.connect_later = ec.may_be_down = true;
	return r < 0 ? r : sl_origin_export_open(d, &ec, &l->events, NULL);
}

int sl_origin_local_open(const char *path, const struct sl_origin_config *cfg, struct sl_origin **ret,
			 char **why)
{
	struct local *l = calloc(1, sizeof(*l));
	if (!l)
		return -ENOMEM;
	l->o.ops = &local_ops;
	l->root = -EBADF;
	l->root_ino = cfg->root_ino;
	l->path = strdup(path);
	pthread_mutex_init(&l->lock, NULL);
	int r = l->path ? open_root(l, why) : -ENOMEM;
	if (r == 0 || (cfg->may_be_down && r != -ENOMEM))
		r = sl_pool_new(THREADS, "origin", &l->pool);
	if (r == 0)
		r = open_events(l, cfg);
	if (r < 0) {
		sl_pool_free(l->pool);
		if (l->root >= 0)
			close(l->root);
		free(l->path);
		free(l);
		return r;
	}
	*ret = &l->o;
	return 0;
}
