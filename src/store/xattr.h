/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Extended attributes of users and ACLs, as the store keeps them beside its own. */
#pragma once

#include "store/object.h"

/** True for a name that users may see and set through the gate: user.* without the store's, and the two ACLs.
 */
bool sl_xattr_allowed(const char *name);
/** As getxattr(2), listxattr(2), setxattr(2), removexattr(2) on @o, with -errno; only for allowed names. */
ssize_t sl_xattr_get(struct sl_object *o, const char *name, void *buf, size_t n);
ssize_t sl_xattr_list(struct sl_object *o, char *buf, size_t n);
/** Native: the same, or -EEXIST: there are others (security.*, trusted.*), which only somebody here can have
 * set. */
ssize_t sl_xattr_list_all(struct sl_object *o, char *buf, size_t n);
int sl_xattr_set(struct sl_object *o, const char *name, const void *value, size_t n, int flags);
int sl_xattr_remove(struct sl_object *o, const char *name);
/** Set what the origin has; an ACL does not change what the record says of the mode. Unsupported ones are
 * left out. */
int sl_xattr_import(struct sl_object *o, const char *name, const void *value, size_t n);
struct sl_oxattr;
/** Remove those that the origin has no more, unless attributes were changed here. */
int sl_xattr_keep_only(struct sl_object *o, const struct sl_oxattr *v, size_t n);
