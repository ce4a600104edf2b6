/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "wire/ops.h"

#include "base/macros.h"

#define SZ(t)	   sizeof(struct fuse_##t)
#define IN(t)	   .in_min = SZ(t), .in_size = SZ(t)
#define OUT(t)	   .out_min = SZ(t), .out_size = SZ(t)
#define INTAIL(t)  .in_tail = SL_TAIL_##t
#define OUTTAIL(t) .out_tail = SL_TAIL_##t

static const struct sl_op ops[SL_FUSE_OP_MAX] = {
    [FUSE_LOOKUP] = {"LOOKUP", INTAIL(NAME), OUT(entry_out), .entry = true},
    [FUSE_FORGET] = {"FORGET", IN(forget_in), .no_reply = true},
    [FUSE_GETATTR] = {"GETATTR", IN(getattr_in), OUT(attr_out)},
    [FUSE_SETATTR] = {"SETATTR", IN(setattr_in), OUT(attr_out)},
    [FUSE_READLINK] = {"READLINK", OUTTAIL(DATA)},
    [FUSE_SYMLINK] = {"SYMLINK", INTAIL(NAME2), OUT(entry_out), .entry = true},
    [FUSE_MKNOD] = {"MKNOD", IN(mknod_in), INTAIL(NAME), OUT(entry_out), .entry = true},
    [FUSE_MKDIR] = {"MKDIR", IN(mkdir_in), INTAIL(NAME), OUT(entry_out), .entry = true},
    [FUSE_UNLINK] = {"UNLINK", INTAIL(NAME)},
    [FUSE_RMDIR] = {"RMDIR", INTAIL(NAME)},
    [FUSE_RENAME] = {"RENAME", IN(rename_in), INTAIL(NAME2)},
    [FUSE_LINK] = {"LINK", IN(link_in), INTAIL(NAME), OUT(entry_out), .entry = true},
    [FUSE_OPEN] = {"OPEN", IN(open_in), OUT(open_out)},
    [FUSE_READ] = {"READ", IN(read_in), OUTTAIL(DATA)},
    [FUSE_WRITE] = {"WRITE", IN(write_in), INTAIL(DATA), OUT(write_out)},
    [FUSE_STATFS] = {"STATFS", OUT(statfs_out)},
    [FUSE_RELEASE] = {"RELEASE", IN(release_in)},
    [FUSE_FSYNC] = {"FSYNC", IN(fsync_in)},
    [FUSE_SETXATTR] = {"SETXATTR", .in_min = FUSE_COMPAT_SETXATTR_IN_SIZE, .in_size = SZ(setxattr_in),
		       INTAIL(NAME_DATA)},
    [FUSE_GETXATTR] = {"GETXATTR", IN(getxattr_in), INTAIL(NAME), OUTTAIL(DATA)},
    [FUSE_LISTXATTR] = {"LISTXATTR", IN(getxattr_in), OUTTAIL(DATA)},
    [FUSE_REMOVEXATTR] = {"REMOVEXATTR", INTAIL(NAME)},
    [FUSE_FLUSH] = {"FLUSH", IN(flush_in)},
    [FUSE_INIT] = {"INIT", .in_min = FUSE_COMPAT_INIT_IN_SIZE, .in_size = SZ(init_in),
		   .out_min = FUSE_COMPAT_INIT_OUT_SIZE, .out_size = SZ(init_out)},
    [FUSE_OPENDIR] = {"OPENDIR", IN(open_in), OUT(open_out)},
    [FUSE_READDIR] = {"READDIR", IN(read_in), OUTTAIL(DIRENTS)},
    [FUSE_RELEASEDIR] = {"RELEASEDIR", IN(release_in)},
    [FUSE_FSYNCDIR] = {"FSYNCDIR", IN(fsync_in)},
    [FUSE_GETLK] = {"GETLK", IN(lk_in), OUT(lk_out)},
    [FUSE_SETLK] = {"SETLK", IN(lk_in)},
    [FUSE_SETLKW] = {"SETLKW", IN(lk_in)},
    [FUSE_ACCESS] = {"ACCESS", IN(access_in)},
    [FUSE_CREATE] = {"CREATE", IN(create_in), INTAIL(NAME), OUT(create_out), .entry = true},
    [FUSE_INTERRUPT] = {"INTERRUPT", IN(interrupt_in), .no_reply = true},
    [FUSE_BMAP] = {"BMAP", IN(bmap_in), OUT(bmap_out)},
    [FUSE_DESTROY] = {"DESTROY"},
    [FUSE_IOCTL] = {"IOCTL", IN(ioctl_in), INTAIL(DATA), OUT(ioctl_out), OUTTAIL(DATA)},
    [FUSE_POLL] = {"POLL", IN(poll_in), OUT(poll_out)},
    [FUSE_BATCH_FORGET] = {"BATCH_FORGET", IN(batch_forget_in), INTAIL(FORGETS), .no_reply = true},
    [FUSE_FALLOCATE] = {"FALLOCATE", IN(fallocate_in)},
    [FUSE_READDIRPLUS] = {"READDIRPLUS", IN(read_in), OUTTAIL(DIRENTSPLUS), .entry = true},
    [FUSE_RENAME2] = {"RENAME2", IN(rename2_in), INTAIL(NAME2)},
    [FUSE_LSEEK] = {"LSEEK", IN(lseek_in), OUT(lseek_out)},
    [FUSE_COPY_FILE_RANGE] = {"COPY_FILE_RANGE", IN(copy_file_range_in), OUT(write_out)},
    [FUSE_SYNCFS] = {"SYNCFS", IN(syncfs_in)},
    [FUSE_TMPFILE] = {"TMPFILE", IN(create_in), INTAIL(NAME), OUT(create_out), .entry = true},
    [FUSE_STATX] = {"STATX", IN(statx_in), OUT(statx_out)},
    [FUSE_FSNOTIFY] = {"FSNOTIFY", IN(fsnotify_in), OUT(fsnotify_out)},
};

const struct sl_op *sl_op_get(uint32_t opcode)
{
	return opcode < SL_ARRAY_SIZE(ops) && ops[opcode].name ? &ops[opcode] : NULL;
}
