/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "store/store.h"

#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/vfs.h>
#include <sys/xattr.h>

#include "base/fd.h"
#include "base/log.h"
#include "base/why.h"
#include "store/internal.h"

#define CONFIG_NAME   "sluice.json"
#define CONFIG_FORMAT 1

static const char *const parts[] = {"tree", "links", "whiteouts"};
static const char *const files[] = {"clean", "cold", "control", "log", "pid", CONFIG_NAME, "lock"};

void sl_store_config_fini(struct sl_store_config *c)
{
	free(c->origin);
	free(c->dir);
	free(c->id);
	*c = (struct sl_store_config){0};
}

static uint64_t get_u64(json_t *j, const char *key, uint64_t dflt)
{
	json_t *v = json_object_get(j, key);
	return json_is_integer(v) && json_integer_value(v) >= 0 ? (uint64_t)json_integer_value(v) : dflt;
}

static char *get_str(json_t *j, const char *key)
{
	const char *s = json_string_value(json_object_get(j, key));
	return s ? strdup(s) : NULL;
}

int sl_store_config_load(const char *path, struct sl_store_config *c, char **why)
{
	*c = (struct sl_store_config){0};
	_cleanup_close_ int fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return sl_fail(why, -errno, "store %s: %s", path, strerror(errno));
	_cleanup_free_ char *text = NULL;
	size_t len;
	int r = sl_read_file(fd, CONFIG_NAME, 1 << 20, &text, &len);
	if (r == -ENOENT)
		return sl_fail(why, r, "%s is not a store: it has no %s", path, CONFIG_NAME);
	if (r < 0)
		return sl_fail(why, r, "%s/%s: %s", path, CONFIG_NAME, strerror(-r));
	json_error_t je;
	json_t *j = json_loadb(text, len, 0, &je);
	if (!json_is_object(j)) {
		json_decref(j);
		return sl_fail(why, -EBADMSG, "%s/%s is damaged (line %d: %s)", path, CONFIG_NAME, je.line,
			       je.text);
	}
	uint64_t format = get_u64(j, "format", 0);
	c->origin = get_str(j, "origin");
	c->dir = get_str(j, "dir");
	c->id = get_str(j, "id");
	c->allow_other = json_is_true(json_object_get(j, "allow_other"));
	c->insecure_plain = json_is_true(json_object_get(j, "insecure_plain"));
	c->limit = get_u64(j, "limit", 0);
	c->reserve = get_u64(j, "reserve", SL_STORE_DEFAULT_RESERVE);
	c->timeout = get_u64(j, "timeout", SL_STORE_DEFAULT_TIMEOUT);
	c->root_ino = get_u64(j, "root_ino", 0);
	c->root_generation = (uint32_t)get_u64(j, "root_generation", 0);
	json_decref(j);
	if (format > CONFIG_FORMAT)
		r = sl_fail(why, -EPROTONOSUPPORT,
			    "store %s was made by a newer version of sluice (format %llu, this one knows "
			    "%d): use that version",
			    path, (unsigned long long)format, CONFIG_FORMAT);
	else if (format < 1 || !c->origin || !c->dir || !c->id)
		r = sl_fail(why, -EBADMSG, "%s/%s is damaged: fields are missing", path, CONFIG_NAME);
	if (r < 0)
		sl_store_config_fini(c);
	return r;
}

int sl_store_config_save(const char *path, const struct sl_store_config *c)
{
	/* "I" would lose the top bit of an inode number; the root's identity is compared as it is stored. */
	json_t *j =
	    json_pack("{si ss ss ss sb sb sI sI sI sI sI}", "format", CONFIG_FORMAT, "origin", c->origin,
		      "dir", c->dir, "id", c->id, "allow_other", c->allow_other, "insecure_plain",
		      c->insecure_plain, "limit", (json_int_t)c->limit, "reserve", (json_int_t)c->reserve,
		      "timeout", (json_int_t)c->timeout, "root_ino", (json_int_t)(c->root_ino & INT64_MAX),
		      "root_generation", (json_int_t)c->root_generation);
	/* Fails for a path that is not UTF-8: JSON cannot hold it. */
	_cleanup_free_ char *text = j ? json_dumps(j, JSON_INDENT(2)) : NULL;
	json_decref(j);
	if (!text)
		return -EILSEQ;
	_cleanup_close_ int fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	return fd < 0 ? -errno : sl_write_file(fd, CONFIG_NAME, text, strlen(text), 0600);
}

static int set_names(struct sl_store *s)
{
	/* Decided by what the tree's root carries, so that a store stays what it was made as. */
	s->xattr_record = s->privileged ? "trusted.sluice" : "user.sluice";
	s->xattr_map = s->privileged ? "trusted.sluice.map" : "user.sluice.map";
	s->xattr_place = s->privileged ? "trusted.sluice.place" : "user.sluice.place";
	return 0;
}

bool sl_store_xattr_private(const char *name)
{
	return !strncmp(name, "user.sluice", 11) || !strncmp(name, "trusted.", 8);
}

static int make_parts(int fd, const char *path, char **why)
{
	for (size_t i = 0; i < SL_ARRAY_SIZE(parts); i++)
		if (mkdirat(fd, parts[i], 0700) < 0)
			return sl_fail(why, -errno, "%s/%s: %s", path, parts[i], strerror(errno));
	_cleanup_close_ int tree = openat(fd, "tree", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (tree < 0)
		return sl_fail(why, -errno, "%s/tree: %s", path, strerror(errno));
	/* No service has run yet: that counts as one that ended in good order. */
	_cleanup_close_ int clean = openat(fd, "clean", O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	if (clean < 0)
		return sl_fail(why, -errno, "%s: %s", path, strerror(errno));
	/* The root's record is written here for the first time; its content comes with the first contact to
	 * the origin. */
	struct sl_record r = {.state = SL_COLD, .mode = S_IFDIR | 0755};
	uint8_t b[SL_RECORD_SIZE];
	sl_record_encode(&r, b);
	if (fsetxattr(tree, "trusted.sluice", b, sizeof(b), 0) == 0)
		return 0;
	if (fsetxattr(tree, "user.sluice", b, sizeof(b), 0) == 0)
		return 0;
	return sl_fail(why, errno == EOPNOTSUPP ? -EOPNOTSUPP : -errno,
		       "%s: the filesystem keeps no extended attributes, which a store needs (%s): choose "
		       "another with --store",
		       path, strerror(errno));
}

int sl_store_create(const char *path, const struct sl_store_config *c, char **why)
{
	bool made = mkdir(path, 0700) == 0;
	if (!made && errno != EEXIST)
		return sl_fail(why, -errno, "store %s: %s", path, strerror(errno));
	_cleanup_close_ int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return sl_fail(why, -errno, "store %s: %s", path, strerror(errno));
	struct stat st;
	if (faccessat(fd, CONFIG_NAME, F_OK, 0) == 0)
		return sl_fail(why, -EEXIST,
			       "%s is a store already: 'sluice start' starts it, 'sluice remove' removes it",
			       path);
	if (fstat(fd, &st) < 0)
		return sl_fail(why, -errno, "store %s: %s", path, strerror(errno));
	if (!made) {
		/* rmdir tells whether it is empty, without a race: then it is ours. */
		if (rmdir(path) < 0 || mkdir(path, 0700) < 0)
			return sl_fail(why, errno == EEXIST ? -ENOTEMPTY : -errno, "store %s: %s", path,
				       errno == EEXIST || errno == ENOTEMPTY ? "the directory is not empty"
									     : strerror(errno));
		close(fd);
		fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (fd < 0)
			return sl_fail(why, -errno, "store %s: %s", path, strerror(errno));
	}
	int r = make_parts(fd, path, why);
	if (r == 0) {
		r = sl_store_config_save(path, c);
		if (r == -EILSEQ)
			sl_fail(why, r, "store %s: the paths of a clone must be valid UTF-8", path);
		else if (r < 0)
			sl_fail(why, r, "store %s: %s", path, strerror(-r));
	}
	if (r < 0)
		(void)sl_store_remove(path, NULL);
	return r;
}

int sl_store_remove(const char *path, char **why)
{
	_cleanup_close_ int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return errno == ENOENT ? 0 : sl_fail(why, -errno, "store %s: %s", path, strerror(errno));
	for (size_t i = 0; i < SL_ARRAY_SIZE(parts); i++) {
		int r = sl_remove_tree(fd, parts[i]);
		if (r < 0)
			return sl_fail(why, r, "store %s/%s: %s", path, parts[i], strerror(-r));
	}
	/* The configuration goes last: until then an interrupted removal can be repeated. */
	for (size_t i = 0; i < SL_ARRAY_SIZE(files); i++)
		if (unlinkat(fd, files[i], 0) < 0 && errno != ENOENT)
			return sl_fail(why, -errno, "store %s/%s: %s", path, files[i], strerror(errno));
	if (rmdir(path) < 0 && errno != ENOTEMPTY && errno != EEXIST && errno != EBUSY)
		return sl_fail(why, -errno, "store %s: %s", path, strerror(errno));
	return 0;
}

static void store_free(struct sl_store *s)
{
	int fds[] = {s->root_fd, s->tree_fd, s->links_fd, s->whiteouts_fd, s->cold_fd, s->lock_fd};
	for (size_t i = 0; i < SL_ARRAY_SIZE(fds); i++)
		if (fds[i] >= 0)
			close(fds[i]);
	sl_htab_fini(&s->table);
	sl_store_config_fini(&s->cfg);
	free(s->path);
	free(s);
}

static void probe_reflinks(struct sl_store *s)
{
	s->cold_fd = openat(s->root_fd, "cold", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	_cleanup_close_ int probe = openat(s->root_fd, ".", O_RDWR | O_TMPFILE | O_CLOEXEC, 0600);
	s->reflinks = true; /* or sl_armour() would not try */
	s->reflinks = s->cold_fd >= 0 && probe >= 0 && sl_armour(s, probe, s->block) == 0;
	if (!s->reflinks && s->cold_fd >= 0)
		(void)!ftruncate(s->cold_fd, 0);
}

int sl_store_open(const char *path, struct sl_store **ret, char **why)
{
	return sl_store_open_locked(path, -EBADF, ret, why);
}

int sl_store_open_locked(const char *path, int lock_fd, struct sl_store **ret, char **why)
{
	struct sl_store *s = calloc(1, sizeof(*s));
	if (!s)
		return -ENOMEM;
	s->root_fd = s->tree_fd = s->links_fd = s->whiteouts_fd = s->cold_fd = -EBADF;
	s->lock_fd = lock_fd;
	s->path = strdup(path);
	int r = sl_store_config_load(path, &s->cfg, why);
	if (r < 0)
		goto fail;
	r = -ENOENT;
	s->root_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (s->lock_fd < 0)
		s->lock_fd = openat(s->root_fd, "lock", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (s->lock_fd < 0) {
		r = sl_fail(why, -errno, "store %s: cannot open the lock: %s", path, strerror(errno));
		goto fail;
	}
	if (flock(s->lock_fd, LOCK_EX | LOCK_NB) < 0) {
		r = sl_fail(why, errno == EWOULDBLOCK ? -EBUSY : -errno,
			    "store %s is in use by a running service", path);
		goto fail;
	}
	int *part_fds[] = {&s->tree_fd, &s->links_fd, &s->whiteouts_fd};
	for (size_t i = 0; i < SL_ARRAY_SIZE(parts); i++) {
		*part_fds[i] = openat(s->root_fd, parts[i], O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
		if (*part_fds[i] < 0) {
			r = sl_fail(why, -errno, "store %s/%s: %s", path, parts[i], strerror(errno));
			goto fail;
		}
	}
	struct stat st;
	struct statfs sf;
	if (fstat(s->tree_fd, &st) < 0 || fstatfs(s->tree_fd, &sf) < 0) {
		r = -errno;
		goto fail;
	}
	s->dev = st.st_dev;
	s->block = (unsigned)sf.f_bsize;
	char b[SL_RECORD_SIZE + 1];
	s->privileged = fgetxattr(s->tree_fd, "trusted.sluice", b, sizeof(b)) >= 0;
	if (!s->privileged && geteuid() != st.st_uid) {
		r = sl_fail(why, -EPERM, "store %s belongs to another user (uid %u)", path,
			    (unsigned)st.st_uid);
		goto fail;
	}
	if (!s->privileged && fgetxattr(s->tree_fd, "user.sluice", b, sizeof(b)) < 0) {
		r = sl_fail(
		    why, -EPERM,
		    "store %s: its records cannot be read: it was made with privilege, start it as root",
		    path);
		goto fail;
	}
	set_names(s);
	pthread_mutex_init(&s->cold_lock, NULL);
	pthread_mutex_init(&s->table_lock, NULL);
	pthread_mutex_init(&s->fd_lock, NULL);
	pthread_rwlockattr_t ra;
	pthread_rwlockattr_init(&ra);
	pthread_rwlockattr_setkind_np(&ra, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(&s->tree, &ra);
	pthread_rwlockattr_destroy(&ra);
	sl_list_init(&s->fd_lru);
	s->fd_max = (unsigned)SL_MIN(sl_raise_nofile() / 4, (size_t)4096);

	probe_reflinks(s);
	r = sl_object_load_root(s, &s->root);
	if (r < 0) {
		sl_fail(why, r, "store %s: the record of the root is damaged", path);
		goto fail;
	}
	*ret = s;
	return 0;
fail:
	store_free(s);
	return r;
}

void sl_store_close(struct sl_store *s)
{
	if (!s)
		return;
	sl_object_put(s->root);
	if (s->table.n)
		sl_warn("store %s: %zu objects are still referenced", s->path, s->table.n);
	pthread_rwlock_destroy(&s->tree);
	pthread_mutex_destroy(&s->table_lock);
	pthread_mutex_destroy(&s->fd_lock);
	pthread_mutex_destroy(&s->cold_lock);
	store_free(s);
}

const struct sl_store_config *sl_store_config(const struct sl_store *s)
{
	return &s->cfg;
}

const char *sl_store_path(const struct sl_store *s)
{
	return s->path;
}

bool sl_store_reflinks(const struct sl_store *s)
{
	return s->reflinks;
}

bool sl_store_privileged(const struct sl_store *s)
{
	return s->privileged;
}

int sl_store_lock_fd(const struct sl_store *s)
{
	return s->lock_fd;
}

int sl_store_root_fd(const struct sl_store *s)
{
	return s->root_fd;
}

int sl_store_sync(struct sl_store *s)
{
	return syncfs(s->root_fd) < 0 ? -errno : 0;
}
