/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "store/store.h"

#include <dirent.h>
#include <fcntl.h>
#include <jansson.h>
#include <linux/mount.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/vfs.h>
#include <sys/xattr.h>

#include "base/fd.h"
#include "base/log.h"
#include "base/why.h"
#include "store/fs.h"
#include "store/image.h"
#include "store/internal.h"
#include "store/xfs.h"
#include "store/zone.h"

#define CONFIG_NAME   "sluice.json"
#define CONFIG_FORMAT 1

static const char *const parts[] = {"tree", "links", "whiteouts"};
static const char *const files[] = {"clean", "cold",	  "complete", "control", "log",	     "pid",
				    "image", CONFIG_NAME, "lock",     "came",	 "came.new", "ballast"};

void sl_store_config_fini(struct sl_store_config *c)
{
	free(c->origin);
	free(c->dir);
	free(c->id);
	free(c->device);
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

static int config_load(int fd, const char *path, struct sl_store_config *c, char **why)
{
	*c = (struct sl_store_config){0};
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
	c->uses = get_u64(j, "uses", 0);
	c->limit = get_u64(j, "limit", 0);
	c->reserve = get_u64(j, "reserve", SL_STORE_DEFAULT_RESERVE);
	c->timeout = get_u64(j, "timeout", SL_STORE_DEFAULT_TIMEOUT);
	c->root_ino = get_u64(j, "root_ino", 0);
	c->root_generation = (uint32_t)get_u64(j, "root_generation", 0);
	c->native = json_is_true(json_object_get(j, "native"));
	c->image = json_is_true(json_object_get(j, "image"));
	c->device = get_str(j, "device");
	c->capacity = get_u64(j, "capacity", 0);
	/* Before there was "room" there was what the capacity does not allow of it. */
	c->room = get_u64(j, "room", c->capacity ? c->capacity + get_u64(j, "spare", 0) : 0);
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

int sl_store_config_load(const char *path, struct sl_store_config *c, char **why)
{
	*c = (struct sl_store_config){0};
	_cleanup_close_ int fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	return fd < 0 ? sl_fail(why, -errno, "store %s: %s", path, strerror(errno))
		      : config_load(fd, path, c, why);
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
	if (j && c->uses)
		json_object_set_new(j, "uses", json_integer((json_int_t)c->uses));
	if (j && c->native) {
		json_object_set_new(j, "native", json_true());
		json_object_set_new(j, "image", json_boolean(c->image));
		json_object_set_new(j, "capacity", json_integer((json_int_t)c->capacity));
		json_object_set_new(j, "room", json_integer((json_int_t)c->room));
		if (c->device)
			json_object_set_new(j, "device", json_string(c->device));
	}
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

/* What the tree and all that belongs to it is made in: the store's directory, or its filesystem. */
static int make_base(int fd, const char *path, bool native, char **why)
{
	for (size_t i = 0; i < SL_ARRAY_SIZE(parts); i++)
		if (mkdirat(fd, parts[i], 0700) < 0)
			return sl_fail(why, -errno, "%s/%s: %s", path, parts[i], strerror(errno));
	_cleanup_close_ int tree = openat(fd, "tree", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (tree < 0)
		return sl_fail(why, -errno, "%s/tree: %s", path, strerror(errno));
	/* The root's record is written here for the first time; its content comes with the first contact to
	 * the origin. */
	struct sl_record r = {.state = SL_COLD, .mode = S_IFDIR | 0755};
	uint8_t b[SL_PLACED_MAX];
	struct sl_handle h;
	size_t n = SL_RECORD_SIZE;
	sl_record_encode(&r, b);
	if (native) {
		int q = sl_handle_get(tree, "", &h);
		if (q < 0)
			return sl_fail(why, q,
				       "%s: the filesystem has no file handles that a native clone can go by",
				       path);
		n = sl_record_encode_placed(&r, sl_handle_hash(&h), "", 0, b);
	}
	if (fsetxattr(tree, "trusted.sluice", b, n, 0) == 0)
		return 0;
	if (!native && fsetxattr(tree, "user.sluice", b, n, 0) == 0)
		return 0;
	return sl_fail(why, errno == EOPNOTSUPP ? -EOPNOTSUPP : -errno,
		       "%s: the filesystem keeps no extended attributes, which a store needs (%s): choose "
		       "another with --store",
		       path, strerror(errno));
}

/* The filesystem of a native store, as a mount that nobody sees. */
static int mount_fs(const char *path, const struct sl_store_config *c, int *ret, char **why)
{
	_cleanup_close_ int loop = -EBADF;
	_cleanup_free_ char *image = NULL;
	char dev[SL_LOOP_DEV_MAX];
	if (!c->image && !c->device) {
		_cleanup_close_ int fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
		int r = fd < 0 ? -errno : sl_mount_clone(fd, "", ret);
		return r < 0 ? sl_fail(why, r, "store %s: %s", path, strerror(-r)) : 0;
	}
	if (c->image) {
		image = sl_path_join(path, "image");
		int r = image ? sl_image_attach(image, &loop, dev, why) : -ENOMEM;
		if (r < 0)
			return r;
	}
	int r =
	    sl_fs_mount(c->image ? dev : c->device, "xfs", c->image ? SL_IMAGE_OPTIONS : NULL, 0, ret, why);
	if (r != -ENOSPC || !c->image)
		return r;
	/* Nothing is left below it for what is in its log. */
	_cleanup_close_ int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0 || sl_ballast_drop(fd) < 0)
		return r;
	if (why)
		free(sl_steal_ptr(why));
	return sl_fs_mount(dev, "xfs", SL_IMAGE_OPTIONS, 0, ret, why);
}

static int make_fs(const char *path, struct sl_store_config *c, char **why)
{
	_cleanup_close_ int mnt = -EBADF;
	_cleanup_free_ char *image = sl_path_join(path, "image");
	int r = image ? 0 : -ENOMEM;
	if (r == 0 && c->image)
		r = sl_image_create(image, c->size, why);
	else if (r == 0 && c->device)
		r = sl_device_format(c->device, why);
	if (r == 0)
		r = mount_fs(path, c, &mnt, why);
	_cleanup_close_ int fd = r == 0 ? openat(mnt, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -EBADF;
	if (r == 0)
		r = fd < 0 ? -errno : make_base(fd, path, true, why);
	_cleanup_free_ char *no_zone = NULL;
	if (r == 0 && c->image && sl_zone_make(fd, &no_zone) < 0)
		sl_notice("no cold zone: %s", no_zone ? no_zone : "?");
	if (r == 0 && c->image)
		r = sl_room_free(fd, &c->room);
	return r;
}

static int make_parts(int fd, const char *path, struct sl_store_config *c, char **why)
{
	/* No service has run yet: that counts as one that ended in good order. */
	_cleanup_close_ int clean = openat(fd, "clean", O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	if (clean < 0)
		return sl_fail(why, -errno, "%s: %s", path, strerror(errno));
	return c->native ? make_fs(path, c, why) : make_base(fd, path, false, why);
}

/* A filesystem that was just made may have this in its root. */
static bool is_empty(int fd)
{
	int copy = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *d = copy < 0 ? NULL : fdopendir(copy);
	struct dirent *e;
	bool empty = d;
	while (empty && (e = readdir(d)))
		empty =
		    !strcmp(e->d_name, ".") || !strcmp(e->d_name, "..") || !strcmp(e->d_name, "lost+found");
	if (d)
		closedir(d);
	return empty;
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
	if (!made && c->native && !c->image && !c->device) {
		/* The root of a filesystem: it cannot be removed and made again. */
		if (!is_empty(fd))
			return sl_fail(why, -ENOTEMPTY, "store %s: the filesystem is not empty", path);
	} else if (!made) {
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
	struct sl_store_config cfg = *c;
	int r = make_parts(fd, path, &cfg, why);
	if (r == 0) {
		r = sl_store_config_save(path, &cfg);
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
	static const char *const trees[] = {"tree", "links", "whiteouts", SL_STAGING, SL_TAILS, SL_MOVES};
	for (size_t i = 0; i < SL_ARRAY_SIZE(trees); i++) {
		int r = sl_remove_tree(fd, trees[i]);
		if (r < 0)
			return sl_fail(why, r, "store %s/%s: %s", path, trees[i], strerror(-r));
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
	int fds[] = {s->root_fd,  s->base_fd,	   s->work_fd, s->tree_fd,
		     s->links_fd, s->whiteouts_fd, s->lock_fd, s->stage_fd};
	sl_armour_close(s);
	sl_places_close(s);
	sl_came_close(s);
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
	_cleanup_close_ int probe = openat(s->base_fd, ".", O_RDWR | O_TMPFILE | O_CLOEXEC, 0600);
	s->reflinks = true; /* or sl_armour() would not try */
	s->reflinks = sl_armour_open(s) == 0 && probe >= 0 && sl_armour(s, probe, 0, s->block) == 0;
	if (!s->reflinks && s->cold_fd >= 0)
		(void)!ftruncate(s->cold_fd, 0);
}

static int open_base(struct sl_store *s, char **why)
{
	if (!s->cfg.native) {
		s->base_fd = fcntl(s->root_fd, F_DUPFD_CLOEXEC, 3);
		return s->base_fd < 0 ? -errno : 0;
	}
	s->native = true;
	int r = s->work_fd >= 0 ? 0 : mount_fs(s->path, &s->cfg, &s->work_fd, why);
	if (r < 0)
		return r;
	s->base_fd = openat(s->work_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (s->base_fd < 0)
		return -errno;
	_cleanup_free_ char *image = sl_path_join(s->path, "image"), *no_zone = NULL;
	s->sealed = s->cfg.image && image && sl_zone_seal(image, s->base_fd, &no_zone) == 0;
	if (!s->sealed)
		sl_notice(
		    "this filesystem has no cold zone%s%s: files are fetched as a whole when they are opened",
		    no_zone ? ": " : "", no_zone ? no_zone : "");
	return 0;
}

int sl_store_open(const char *path, struct sl_store **ret, char **why)
{
	return sl_store_open_kept(path, -EBADF, -EBADF, ret, why);
}

int sl_store_open_kept(const char *path, int lock_fd, int work_fd, struct sl_store **ret, char **why)
{
	struct sl_store *s = calloc(1, sizeof(*s));
	if (!s)
		return -ENOMEM;
	s->base_fd = -EBADF;
	s->root_fd = s->tree_fd = s->links_fd = s->whiteouts_fd = s->cold_fd = s->stage_fd = -EBADF;
	s->came_fd = -EBADF;
	s->lock_fd = lock_fd;
	s->work_fd = work_fd;
	s->path = strdup(path);
	/*
	 * A store on the clone's own filesystem: by the mount that is exempt. By any other, the gate would be
	 * asked, and there is nobody yet to answer.
	 */
	bool own = work_fd >= 0 && faccessat(work_fd, CONFIG_NAME, F_OK, 0) == 0;
	s->root_fd = own ? openat(work_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC)
			 : open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int r = s->root_fd < 0 ? sl_fail(why, -errno, "store %s: %s", path, strerror(errno))
			       : config_load(s->root_fd, path, &s->cfg, why);
	if (r < 0)
		goto fail;
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
	r = open_base(s, why);
	if (r < 0)
		goto fail;
	int *part_fds[] = {&s->tree_fd, &s->links_fd, &s->whiteouts_fd};
	for (size_t i = 0; i < SL_ARRAY_SIZE(parts); i++) {
		*part_fds[i] = openat(s->base_fd, parts[i], O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
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
	s->uid = geteuid();
	s->gid = getegid();
	s->block = (unsigned)sf.f_bsize;
	char b[SL_PLACED_MAX];
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
	pthread_mutex_init(&s->links_lock, NULL);
	pthread_mutex_init(&s->cold_lock, NULL);
	pthread_mutex_init(&s->armour_lock, NULL);
	pthread_mutex_init(&s->table_lock, NULL);
	pthread_mutex_init(&s->room_lock, NULL);
	pthread_mutex_init(&s->trim_lock, NULL);
	pthread_mutex_init(&s->fd_lock, NULL);
	pthread_rwlockattr_t ra;
	pthread_rwlockattr_init(&ra);
	pthread_rwlockattr_setkind_np(&ra, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(&s->tree, &ra);
	pthread_rwlockattr_destroy(&ra);
	sl_list_init(&s->fd_lru);
	s->fd_max = (unsigned)SL_MIN(sl_raise_nofile() / 4, (size_t)4096);
	s->invisible = s->native && sf.f_type == XFS_SUPER_MAGIC;

	r = sl_places_open(s);
	if (r < 0) {
		sl_fail(why, r, "store %s/moves: %s", path, strerror(-r));
		goto fail;
	}
	r = sl_came_open(s);
	if (r < 0) {
		sl_fail(why, r, "store %s/came: %s", path, strerror(-r));
		goto fail;
	}
	probe_reflinks(s);
	s->trimmed = s->last = UINT64_MAX;
	sl_room_bound(s);
	(void)sl_store_sync(s);
	sl_store_fit(s);
	r = sl_object_load_root(s, &s->root);
	if (r < 0) {
		sl_fail(why, r, "store %s: the record of the root is damaged", path);
		goto fail;
	}
	*ret = s;
	return 0;
fail:
	/* What was handed in stays: the next service tries again with it. */
	if (s->lock_fd == lock_fd)
		s->lock_fd = -EBADF;
	if (s->work_fd == work_fd)
		s->work_fd = -EBADF;
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
	pthread_mutex_destroy(&s->links_lock);
	pthread_mutex_destroy(&s->cold_lock);
	pthread_mutex_destroy(&s->room_lock);
	pthread_mutex_destroy(&s->trim_lock);
	pthread_mutex_destroy(&s->armour_lock);
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

bool sl_store_sealed(const struct sl_store *s)
{
	return s->sealed;
}

bool sl_store_privileged(const struct sl_store *s)
{
	return s->privileged;
}

void sl_store_leave_lock(struct sl_store *s)
{
	s->lock_fd = -EBADF;
}

int sl_store_lock_fd(const struct sl_store *s)
{
	return s->lock_fd;
}

int sl_store_root_fd(const struct sl_store *s)
{
	return s->root_fd;
}

int sl_store_work_fd(const struct sl_store *s)
{
	return s->work_fd;
}

bool sl_store_native(const struct sl_store *s)
{
	return s->native;
}

bool sl_store_invisible(const struct sl_store *s)
{
	return s->invisible;
}

int sl_store_fs_fd(const struct sl_store *s)
{
	return s->base_fd;
}

int sl_store_tree_fd(const struct sl_store *s)
{
	return s->tree_fd;
}

bool sl_store_is_complete(struct sl_store *s)
{
	return faccessat(s->base_fd, "complete", F_OK, 0) == 0;
}

int sl_store_complete(struct sl_store *s)
{
	/* Nobody needs the index any more, and an earlier version made it of names that users would see. */
	int r = sl_remove_tree(s->base_fd, "links");
	if (r == 0 && mkdirat(s->base_fd, "links", 0700) < 0)
		r = -errno;
	int fd = r < 0 ? r : openat(s->base_fd, "links", O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	if (r == 0 && fd < 0)
		r = -errno;
	if (fd >= 0) {
		close(s->links_fd);
		s->links_fd = fd;
	}
	if (r == 0)
		r = sl_store_sync(s);
	return r < 0 ? r : sl_write_file(s->base_fd, "complete", "", 0, 0600);
}

int sl_store_drop_links(struct sl_store *s)
{
	int fd = openat(s->links_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), r = 0;
	DIR *d = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *e;
	if (!d) {
		r = -errno;
		if (fd >= 0)
			close(fd);
		return r;
	}
	while (r == 0 && (e = readdir(d)))
		if (strcmp(e->d_name, ".") && strcmp(e->d_name, "..") &&
		    unlinkat(s->links_fd, e->d_name, 0) < 0)
			r = -errno;
	closedir(d);
	return r;
}

int sl_store_make_whole(struct sl_store *s)
{
	int fd = sl_store_stage(s), copy = fd < 0 ? fd : openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *d = copy < 0 ? NULL : fdopendir(copy);
	struct dirent *e;
	if (!d) {
		int r = fd < 0 ? fd : -errno;
		if (copy >= 0)
			close(copy);
		if (fd >= 0)
			close(fd);
		return r;
	}
	/* What an earlier service was about to show. */
	while ((e = readdir(d)))
		if (!strncmp(e->d_name, SL_STAGED_NEW, strlen(SL_STAGED_NEW)))
			(void)sl_remove_tree(fd, e->d_name);
	closedir(d);
	s->stage_fd = fd;
	return 0;
}

bool sl_store_makes_whole(const struct sl_store *s)
{
	return s->stage_fd >= 0;
}

int sl_store_stage(struct sl_store *s)
{
	int flags = O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW;
	int fd = openat(s->base_fd, SL_STAGING, flags);
	if (fd < 0 && errno == ENOENT && (mkdirat(s->base_fd, SL_STAGING, 0700) == 0 || errno == EEXIST))
		fd = openat(s->base_fd, SL_STAGING, flags);
	return fd < 0 ? -errno : fd;
}
