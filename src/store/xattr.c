/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "store/xattr.h"

#include <fcntl.h>
#include <linux/posix_acl_xattr.h>
#include <linux/posix_acl.h>
#include <sys/xattr.h>

#include "origin/origin.h"
#include "store/internal.h"

#define ACL_ACCESS "system.posix_acl_access"

bool sl_xattr_allowed(const char *name)
{
	return sl_oreq_xattr_wanted(name);
}

/* Attributes of symlinks and special files are not in the user namespace; what stands in for one must not
 * show any. */
static bool can_have(const struct sl_object *o)
{
	return !o->damaged && (sl_object_is_reg(o) || sl_object_is_dir(o));
}

/* The owner's permissions in an ACL: the first entry, if there is one and it is well-formed. NULL otherwise.
 */
static struct posix_acl_xattr_entry *acl_user_obj(void *value, size_t n)
{
	const size_t h = sizeof(struct posix_acl_xattr_header), e = sizeof(struct posix_acl_xattr_entry);
	for (size_t at = h; at + e <= n; at += e) {
		struct posix_acl_xattr_entry *x = (struct posix_acl_xattr_entry *)((char *)value + at);
		if (x->e_tag == ACL_USER_OBJ)
			return x;
	}
	return NULL;
}

/* The permission bits that an ACL means: owner, mask or group, others. */
static uint32_t acl_mode(const void *value, size_t n)
{
	const size_t h = sizeof(struct posix_acl_xattr_header), e = sizeof(struct posix_acl_xattr_entry);
	uint32_t mode = 0, group = 0;
	bool mask = false;
	for (size_t at = h; at + e <= n; at += e) {
		const struct posix_acl_xattr_entry *x = (const void *)((const char *)value + at);
		uint32_t p = x->e_perm & 7;
		if (x->e_tag == ACL_USER_OBJ)
			mode |= p << 6;
		else if (x->e_tag == ACL_OTHER)
			mode |= p;
		else if (x->e_tag == ACL_MASK || (x->e_tag == ACL_GROUP_OBJ && !mask)) {
			group = p << 3;
			mask = x->e_tag == ACL_MASK;
		}
	}
	return mode | group;
}

ssize_t sl_xattr_get(struct sl_object *o, const char *name, void *buf, size_t n)
{
	struct sl_at at;
	char p[SL_PROC_FD_MAX];
	if (!sl_xattr_allowed(name) || !can_have(o))
		return -ENODATA;
	int r = sl_at_begin(o, &at);
	if (r < 0)
		return r;
	ssize_t k = getxattr(sl_at_path(&at, p), name, buf, n);
	k = k < 0 ? -errno : k;
	sl_at_end(&at);
	/* In an unprivileged store the owner always has access; what users are shown is the record's. */
	if (k > 0 && n && !strcmp(name, ACL_ACCESS) && !o->store->privileged) {
		struct posix_acl_xattr_entry *u = acl_user_obj(buf, (size_t)k);
		pthread_mutex_lock(&o->lock);
		if (u && o->has_record)
			u->e_perm = (uint16_t)(o->rec.mode >> 6 & 7);
		pthread_mutex_unlock(&o->lock);
	}
	return k;
}

/* What the store needs, and what the system gives to everything. */
static bool of_nobody(const struct sl_object *o, const char *name)
{
	const char *own = o->store->xattr_record;
	size_t n = strlen(own);
	return (!strncmp(name, own, n) && (!name[n] || name[n] == '.')) || !strcmp(name, "security.selinux");
}

/* With @all: -EEXIST where there are some that users do not set through the gate. */
static ssize_t list(struct sl_object *o, char *buf, size_t n, bool all)
{
	struct sl_at at;
	char p[SL_PROC_FD_MAX];
	if (!can_have(o) && (!all || o->damaged))
		return 0;
	_cleanup_free_ char *names = malloc(65536);
	if (!names)
		return -ENOMEM;
	int r = sl_at_begin(o, &at);
	if (r < 0)
		return r;
	ssize_t k = listxattr(sl_at_path(&at, p), names, 65536);
	k = k < 0 ? -errno : k;
	sl_at_end(&at);
	size_t out = 0;
	for (char *x = names; k > 0 && x < names + k; x += strlen(x) + 1) {
		size_t l = strlen(x) + 1;
		if (!sl_xattr_allowed(x) && (!all || of_nobody(o, x)))
			continue;
		if (!sl_xattr_allowed(x))
			return -EEXIST;
		if (n && out + l > n)
			return -ERANGE;
		if (n)
			memcpy(buf + out, x, l);
		out += l;
	}
	return k < 0 ? k : (ssize_t)out;
}

ssize_t sl_xattr_list(struct sl_object *o, char *buf, size_t n)
{
	return list(o, buf, n, false);
}

ssize_t sl_xattr_list_all(struct sl_object *o, char *buf, size_t n)
{
	return list(o, buf, n, true);
}

static int set(struct sl_object *o, const char *name, const void *value, size_t n, int flags, bool import)
{
	struct sl_at at;
	char p[SL_PROC_FD_MAX];
	if (!sl_xattr_allowed(name))
		return -EPERM;
	if (!can_have(o))
		return -EPERM;
	bool access = !strcmp(name, ACL_ACCESS);
	_cleanup_free_ char *copy = malloc(n + 1);
	if (!copy)
		return -ENOMEM;
	memcpy(copy, value, n);
	if (access && !o->store->privileged) {
		struct posix_acl_xattr_entry *u = acl_user_obj(copy, n);
		if (u)
			u->e_perm |= ACL_READ | ACL_WRITE | (sl_object_is_dir(o) ? ACL_EXECUTE : 0);
	}
	pthread_mutex_lock(&o->lock);
	int r = import ? 0 : sl_object_set_meta(o);
	if (r == 0)
		r = sl_at_begin(o, &at);
	if (r == 0) {
		if (setxattr(sl_at_path(&at, p), name, copy, n, flags) < 0)
			r = -errno;
		sl_at_end(&at);
	}
	if (r == 0 && access && !import) {
		o->rec.mode = (o->rec.mode & ~0777u) | acl_mode(value, n);
		r = sl_object_save(o);
	}
	pthread_mutex_unlock(&o->lock);
	return r;
}

int sl_xattr_set(struct sl_object *o, const char *name, const void *value, size_t n, int flags)
{
	return set(o, name, value, n, flags, false);
}

int sl_xattr_import(struct sl_object *o, const char *name, const void *value, size_t n)
{
	int r = set(o, name, value, n, 0, true);
	return r == -EOPNOTSUPP ? 0 : r;
}

int sl_xattr_remove(struct sl_object *o, const char *name)
{
	struct sl_at at;
	char p[SL_PROC_FD_MAX];
	if (!sl_xattr_allowed(name) || !can_have(o))
		return -ENODATA;
	pthread_mutex_lock(&o->lock);
	int r = sl_object_set_meta(o);
	if (r == 0)
		r = sl_at_begin(o, &at);
	if (r == 0) {
		if (removexattr(sl_at_path(&at, p), name) < 0)
			r = -errno;
		sl_at_end(&at);
	}
	pthread_mutex_unlock(&o->lock);
	return r;
}

int sl_xattr_keep_only(struct sl_object *o, const struct sl_oxattr *v, size_t n)
{
	struct sl_at at;
	char p[SL_PROC_FD_MAX];
	_cleanup_free_ char *names = malloc(65536);
	if (!names)
		return -ENOMEM;
	ssize_t k = sl_xattr_list(o, names, 65536);
	int r = 0;
	pthread_mutex_lock(&o->lock);
	for (char *x = names; k > 0 && x < names + k && !(o->rec.flags & SL_META); x += strlen(x) + 1) {
		size_t i = 0;
		while (i < n && strcmp(v[i].name, x))
			i++;
		if (i < n)
			continue;
		r = sl_at_begin(o, &at);
		if (r < 0)
			break;
		if (removexattr(sl_at_path(&at, p), x) < 0 && errno != ENODATA)
			r = -errno;
		sl_at_end(&at);
	}
	pthread_mutex_unlock(&o->lock);
	return r;
}
