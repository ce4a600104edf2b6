/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What of fanotify's interface the system's headers may be too old to know. Linux 6.14,
 * include/uapi/linux/fanotify.h; and what the project's kernel series adds (kernel/series1). */
#pragma once

#include <linux/fanotify.h>
#include <stdint.h>

#ifndef FAN_PRE_ACCESS
#define FAN_PRE_ACCESS 0x00100000
#endif
#ifndef FAN_REPORT_FD_ERROR
#define FAN_REPORT_FD_ERROR 0x00002000
#endif
#ifndef FAN_EVENT_INFO_TYPE_RANGE
#define FAN_EVENT_INFO_TYPE_RANGE 6
#endif
#ifndef FAN_MARK_IGNORE
#define FAN_MARK_IGNORE 0x00000400
#endif
#ifndef FAN_MARK_EVICTABLE
#define FAN_MARK_EVICTABLE 0x00000200
#endif
/* kernel/series1: before a directory's content is used; EIO when the group is gone; descriptors of events on
 * the mount by which the filesystem was marked. */
#ifndef FAN_PRE_DIR_ACCESS
#define FAN_PRE_DIR_ACCESS 0x00200000
#endif
#ifndef FAN_MARK_FAIL_CLOSED
#define FAN_MARK_FAIL_CLOSED 0x00000800
#endif
#ifndef FAN_REPORT_DIR_FD
#define FAN_REPORT_DIR_FD 0x00010000
#endif
#define SL_FAN_IGNORE (FAN_MARK_IGNORE | FAN_MARK_IGNORED_SURV_MODIFY)

/** Refuse with an errno: EPERM, EIO, EBUSY, ETXTBSY, EAGAIN, ENOSPC or EDQUOT; any other makes the response
 * fail. */
#define SL_FAN_DENY_ERRNO(e) (FAN_DENY | ((uint32_t)(e)&0xff) << 24)

/* struct fanotify_event_info_range. @count 0: to the end of the file, or a truncation. */
struct sl_fan_range {
	struct fanotify_event_info_header hdr;
	uint32_t pad;
	uint64_t offset, count;
};
