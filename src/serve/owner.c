/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "serve/owner.h"

#include <linux/capability.h>
#include <sys/fsuid.h>
#include <sys/syscall.h>

#include "base/macros.h"

#define NO_ID UINT32_MAX /* changes nothing, and tells the one in force */

/* The C library has no functions for these. Both are about the calling thread alone. */
static int capabilities(long call, struct __user_cap_data_struct d[2])
{
	struct __user_cap_header_struct h = {.version = _LINUX_CAPABILITY_VERSION_3};
	return syscall(call, &h, d) < 0 ? -errno : 0;
}

int sl_owner_set(uint32_t uid, uint32_t gid)
{
	struct __user_cap_data_struct caps[2] = {{0}};
	if (uid == NO_ID || gid == NO_ID)
		return -EINVAL;
	int r = capabilities(SYS_capget, caps);
	if (r < 0)
		return r;
	setfsgid(gid);
	setfsuid(uid);
	/* Leaving root's id behind, a thread loses the capabilities that are about files. */
	r = capabilities(SYS_capset, caps);
	if (r == 0 && ((uint32_t)setfsuid(NO_ID) != uid || (uint32_t)setfsgid(NO_ID) != gid))
		r = -EPERM;
	if (r < 0)
		sl_owner_reset();
	return r;
}

void sl_owner_reset(void)
{
	setfsuid(geteuid());
	setfsgid(getegid());
}
