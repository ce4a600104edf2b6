// SPDX-License-Identifier: GPL-2.0-only
// Ways by io_uring, and programs.

#include "ways.h"

#include <linux/io_uring.h>
#include <sys/mman.h>

// --- io_uring, one request at a time

static int uring(struct io_uring_sqe *sqe, int *res)
{
	struct io_uring_params p = {0};
	int fd = (int)syscall(SYS_io_uring_setup, 2, &p);
	EXPECT(fd >= 0);
	size_t sq_len = p.sq_off.array + p.sq_entries * sizeof(unsigned int),
	       cq_len = p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe);
	char *sq = mmap(NULL, sq_len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, IORING_OFF_SQ_RING);
	char *cq = mmap(NULL, cq_len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, IORING_OFF_CQ_RING);
	struct io_uring_sqe *sqes =
	    mmap(NULL, p.sq_entries * sizeof(*sqes), PROT_READ | PROT_WRITE, MAP_SHARED, fd, IORING_OFF_SQES);
	EXPECT(sq != MAP_FAILED && cq != MAP_FAILED && sqes != MAP_FAILED);
	sqes[0] = *sqe;
	((unsigned int *)(sq + p.sq_off.array))[0] = 0;
	__atomic_store_n((unsigned int *)(sq + p.sq_off.tail), 1, __ATOMIC_RELEASE);
	EXPECT(syscall(SYS_io_uring_enter, fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) == 1);
	*res = ((struct io_uring_cqe *)(cq + p.cq_off.cqes))[0].res;
	munmap(sq, sq_len);
	munmap(cq, cq_len);
	munmap(sqes, p.sq_entries * sizeof(*sqes));
	close(fd);
	return 0;
}

static int w_uring_open(const char *d)
{
	int res;
	struct io_uring_sqe q = {
	    .opcode = IORING_OP_OPENAT, .fd = AT_FDCWD, .addr = (uintptr_t)P("f"), .open_flags = O_RDONLY};
	EXPECT(!uring(&q, &res));
	return reads_content(res);
}

static int w_uring_async(const char *d)
{
	int res;
	struct io_uring_sqe q = {.opcode = IORING_OP_OPENAT,
				 .flags = IOSQE_ASYNC,
				 .fd = AT_FDCWD,
				 .addr = (uintptr_t)P("f"),
				 .open_flags = O_RDONLY};
	EXPECT(!uring(&q, &res));
	return reads_content(res);
}

static int w_uring_statx(const char *d)
{
	int res;
	struct statx st;
	struct io_uring_sqe q = {.opcode = IORING_OP_STATX,
				 .fd = AT_FDCWD,
				 .addr = (uintptr_t)P("f"),
				 .len = STATX_SIZE,
				 .off = (uintptr_t)&st};
	EXPECT(!uring(&q, &res) && res == 0 && st.stx_size == 8);
	return 0;
}

static int w_uring_xattr(const char *d)
{
	int res;
	struct io_uring_sqe q = {.opcode = IORING_OP_SETXATTR,
				 .addr = (uintptr_t) "user.a",
				 .addr2 = (uintptr_t) "b",
				 .len = 1,
				 .addr3 = (uintptr_t)P("f")};
	EXPECT(!uring(&q, &res) && res == 0);
	return 0;
}

static int w_uring_mkdir(const char *d)
{
	int res;
	struct io_uring_sqe q = {
	    .opcode = IORING_OP_MKDIRAT, .fd = AT_FDCWD, .addr = (uintptr_t)P("s"), .len = 0755};
	EXPECT(!uring(&q, &res) && res == -EEXIST);
	return 0;
}

static int w_uring_symlink(const char *d)
{
	int res;
	struct io_uring_sqe q = {.opcode = IORING_OP_SYMLINKAT,
				 .fd = AT_FDCWD,
				 .addr = (uintptr_t) "z",
				 .addr2 = (uintptr_t)P("l")};
	EXPECT(!uring(&q, &res) && res == -EEXIST);
	return 0;
}

static int w_uring_link(const char *d)
{
	int res;
	struct io_uring_sqe q = {.opcode = IORING_OP_LINKAT,
				 .fd = AT_FDCWD,
				 .addr = (uintptr_t) "other",
				 .len = (unsigned int)AT_FDCWD,
				 .addr2 = (uintptr_t)P("f")};
	EXPECT(!uring(&q, &res) && res == -EEXIST);
	return 0;
}

static int w_uring_unlink(const char *d)
{
	int res;
	struct io_uring_sqe q = {.opcode = IORING_OP_UNLINKAT, .fd = AT_FDCWD, .addr = (uintptr_t)P("l")};
	EXPECT(!uring(&q, &res) && res == 0 && !symlink("f", P("l")));
	return 0;
}

static int w_uring_rmdir(const char *d)
{
	int res;
	struct io_uring_sqe q = {
	    .opcode = IORING_OP_UNLINKAT, .fd = AT_FDCWD, .addr = (uintptr_t)d, .unlink_flags = AT_REMOVEDIR};
	EXPECT(!uring(&q, &res) && res == -ENOTEMPTY);
	return 0;
}

static int w_uring_rename(const char *d)
{
	int res;
	struct io_uring_sqe q = {.opcode = IORING_OP_RENAMEAT,
				 .fd = AT_FDCWD,
				 .addr = (uintptr_t) "other-dir",
				 .len = (unsigned int)AT_FDCWD,
				 .addr2 = (uintptr_t)d};
	EXPECT(!uring(&q, &res) && res == -ENOTEMPTY);
	return 0;
}

// --- programs

#define GIT                                                                                                  \
	"export HOME=/dev/shm GIT_CONFIG_NOSYSTEM=1 GIT_DIR=/dev/shm/git-$$ GIT_WORK_TREE=$D; "              \
	"git init -q; trap 'rm -rf $GIT_DIR' EXIT; "

static int w_ls(const char *d)
{
	return shell(d, "test \"$(ls $D | wc -l)\" = 4");
}

static int w_find(const char *d)
{
	return shell(d, "test \"$(find $D | wc -l)\" = 6");
}

static int w_du(const char *d)
{
	return shell(d, "test \"$(du -a $D | wc -l)\" = 6");
}

static int w_glob(const char *d)
{
	return shell(d, "set -- $D/*; test $# = 4");
}

static int w_tar(const char *d)
{
	return shell(d, "test \"$(tar -cf - $D 2>/dev/null | tar -tf - | wc -l)\" = 6");
}

static int w_cp(const char *d)
{
	return shell(d, "cp -a $D $D.cp && cmp $D/s/g $D.cp/s/g && rm -r $D.cp");
}

static int w_mv(const char *d)
{
	return shell(d, "mv $D $D.mv && cat $D.mv/f && mv $D.mv $D");
}

static int w_git_status(const char *d)
{
	return shell(d, GIT "test \"$(git status --porcelain -uall | wc -l)\" = 4");
}

static int w_git_clean(const char *d)
{
	return shell(d, GIT "test \"$(git clean -ffdx | wc -l)\" = 4 && test -z \"$(ls -A $D)\"");
}

static int w_rm(const char *d)
{
	return shell(d, "test \"$(rm -rfv $D | wc -l)\" = 6 && test ! -e $D");
}

// clang-format off
const struct way ways_programs[] = {
    WAY(uring_open, "openat", .group = "io_uring"),
    WAY(uring_async, "openat by a worker"),
    WAY(uring_statx, "statx"),
    WAY(uring_xattr, "setxattr"),
    WAY(uring_mkdir, "mkdirat"),
    WAY(uring_symlink, "symlinkat"),
    WAY(uring_link, "linkat"),
    WAY(uring_unlink, "unlinkat"),
    WAY(uring_rmdir, "unlinkat of the directory itself"),
    WAY(uring_rename, "renameat of a directory over it"),
    WAY(ls, "ls", .group = "Programs"),
    WAY(find, "find"),
    WAY(du, "du -a"),
    WAY(glob, "a pattern of the shell"),
    WAY(tar, "tar -c"),
    WAY(cp, "cp -a", .once = true),
    WAY(mv, "mv"),
    WAY(git_status, "git status"),
    WAY(git_clean, "git clean -dx", .once = true),
    WAY(rm, "rm -rf", .once = true),
    {0},
};
// clang-format on
