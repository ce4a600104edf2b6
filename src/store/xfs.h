/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What of XFS's own ioctls we use, after the kernel's fs/xfs/libxfs/xfs_fs.h: <xfs/xfs_fs.h> is in a package
 * that building should not need. All are part of the kernel's stable interface, for 64-bit machines.
 */
#pragma once

#include <linux/ioctl.h>
#include <stdint.h>

#ifndef XFS_SUPER_MAGIC
#define XFS_SUPER_MAGIC 0x58465342
#endif

/* xfs_fsop_geom_v1: what every version of the ioctl begins with. */
struct xfs_geometry {
	uint32_t blocksize, rtextsize, agblocks, agcount, logblocks, sectsize, inodesize, imaxpct;
	uint64_t datablocks, rtblocks, rtextents, logstart;
	uint8_t uuid[16];
	uint32_t sunit, swidth;
	int32_t version;
	uint32_t flags, logsectsize, rtsectsize, dirblocksize;
};

struct xfs_fsop_resblks {
	uint64_t resblks, avail;
};

struct xfs_handle {
	uint64_t fsid; /* not looked at */
	uint16_t fid_len, fid_pad;
	uint32_t gen;
	uint64_t ino;
};

struct xfs_fsop_handlereq {
	uint32_t fd;
	void *path;
	uint32_t oflags;
	void *ihandle;
	uint32_t ihandlen;
	void *ohandle;
	uint32_t *ohandlen;
};

struct xfs_attr_multiop {
	uint32_t opcode;
	int32_t error;
	void *name, *value;
	uint32_t length, flags;
};

struct xfs_attrmulti {
	struct xfs_fsop_handlereq hreq;
	uint32_t opcount;
	struct xfs_attr_multiop *ops;
};

#define XFS_ATTR_OP_SET	   2
#define XFS_ATTR_OP_REMOVE 3
#define XFS_ATTR_ROOT	   0x0002 /* the namespace "trusted" */

#define XFS_IOC_FSGEOMETRY_V1	    _IOR('X', 100, struct xfs_geometry)
#define XFS_IOC_FD_TO_HANDLE	    _IOWR('X', 106, struct xfs_fsop_handlereq)
#define XFS_IOC_OPEN_BY_HANDLE	    _IOWR('X', 107, struct xfs_fsop_handlereq)
#define XFS_IOC_SET_RESBLKS	    _IOWR('X', 114, struct xfs_fsop_resblks)
#define XFS_IOC_GET_RESBLKS	    _IOR('X', 115, struct xfs_fsop_resblks)
#define XFS_IOC_ATTRMULTI_BY_HANDLE _IOW('X', 123, struct xfs_attrmulti)
#define XFS_IOC_GOINGDOWN	    _IOR('X', 125, uint32_t)

_Static_assert(sizeof(struct xfs_geometry) == 112, "xfs_fsop_geom_v1");
_Static_assert(sizeof(struct xfs_handle) == 24, "xfs_handle_t");
