// SPDX-License-Identifier: GPL-2.0-only
// If this fails, somebody has used a directory that the service had not filled: a name was missing, a listing
// was short, or something was created or removed as if the directory were empty.
//
// Each way to a name gets a directory of its own, several times: with nothing of it in the dcache, with
// negative dentries from before the mark in it, through a descriptor from before the mark, and once more when
// it is filled, where no event may come.

#include "hsm.h"

#include <dirent.h>
#include <linux/io_uring.h>
#include <linux/openat2.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/statvfs.h>
#include <sys/time.h>
#include <sys/un.h>

static struct fs fs;
static struct service svc;

// Every way runs in a child whose working directory is the top. d: the cold directory. Result 0: as if it had
// always been full.
struct way {
	const char *name;
	int (*fn)(const char *d);
	bool old_fd; // wants a descriptor of the directory from before the mark, in old_dir
	bool once;   // not again on the filled directory: it is gone, or others were made
};
static int old_dir = -1;

#define P(name)                                                                                              \
	({                                                                                                   \
		static char b_[4][256];                                                                      \
		static int i_;                                                                               \
		i_ = (i_ + 1) % 4;                                                                           \
		snprintf(b_[i_], 256, "%s/%s", d, name);                                                     \
		b_[i_];                                                                                      \
	})
#define EXPECT(cond)                                                                                         \
	do {                                                                                                 \
		if (!(cond)) {                                                                               \
			diag("%s: %s", #cond, strerror(errno));                                              \
			return 1;                                                                            \
		}                                                                                            \
	} while (0)
#define FAILS(call, with)                                                                                    \
	do {                                                                                                 \
		errno = 0;                                                                                   \
		if (!((call) < 0 && errno == (with))) {                                                      \
			diag("%s: expected %s, found %s", #call, strerror(with), strerror(errno));           \
			return 1;                                                                            \
		}                                                                                            \
	} while (0)

static int reads_content(int fd)
{
	char b[32] = "";
	EXPECT(fd >= 0);
	EXPECT(pread(fd, b, sizeof(b) - 1, 0) == 8 && !strcmp(b, "content\n"));
	close(fd);
	return 0;
}

static int lists(int fd)
{
	EXPECT(fd >= 0);
	DIR *dir = fdopendir(fd);
	EXPECT(dir);
	int n = 0, known = 0;
	for (struct dirent *e; (e = readdir(dir));) {
		n++;
		known += !strcmp(e->d_name, "f") || !strcmp(e->d_name, "x") || !strcmp(e->d_name, "l") ||
			 !strcmp(e->d_name, "s");
	}
	closedir(dir);
	EXPECT(known == 4 && n == 6);
	return 0;
}

static int w_stat(const char *d)
{
	struct stat st;
	EXPECT(!stat(P("f"), &st) && st.st_size == 8);
	return 0;
}
static int w_lstat(const char *d)
{
	struct stat st;
	EXPECT(!lstat(P("l"), &st) && S_ISLNK(st.st_mode));
	return 0;
}
static int w_stat_missing(const char *d)
{
	struct stat st;
	FAILS(stat(P("none"), &st), ENOENT);
	EXPECT(!stat(P("f"), &st));
	return 0;
}
static int w_stat_deep(const char *d)
{
	struct stat st;
	EXPECT(!stat(P("s/g"), &st));
	return 0;
}
static int w_statx(const char *d)
{
	struct statx st;
	EXPECT(!statx(AT_FDCWD, P("f"), AT_STATX_DONT_SYNC, STATX_SIZE, &st));
	return 0;
}
static int w_statfs(const char *d)
{
	struct statvfs st;
	EXPECT(!statvfs(P("f"), &st));
	return 0;
}
static int w_access(const char *d)
{
	EXPECT(!access(P("x"), X_OK));
	return 0;
}
static int w_open(const char *d)
{
	return reads_content(open(P("f"), O_RDONLY));
}
static int w_open_slash(const char *d)
{
	FAILS(open(P("f/"), O_RDONLY), ENOTDIR);
	return 0;
}
static int w_open_rdwr(const char *d)
{
	return reads_content(open(P("f"), O_RDWR));
}
static int w_open_trunc(const char *d)
{
	int fd = open(P("x"), O_WRONLY | O_TRUNC);
	EXPECT(fd >= 0);
	close(fd);
	return 0;
}
static int w_open_path(const char *d)
{
	int fd = open(P("f"), O_PATH);
	EXPECT(fd >= 0);
	close(fd);
	return 0;
}
static int w_open_creat(const char *d)
{
	return reads_content(open(P("f"), O_RDWR | O_CREAT, 0600));
}
static int w_open_excl(const char *d)
{
	FAILS(open(P("f"), O_WRONLY | O_CREAT | O_EXCL, 0600), EEXIST);
	return 0;
}
static int w_open_new(const char *d)
{
	int fd = open(P("new"), O_WRONLY | O_CREAT | O_EXCL, 0600);
	EXPECT(fd >= 0);
	close(fd);
	EXPECT(!unlink(P("new")));
	return lists(open(d, O_RDONLY | O_DIRECTORY));
}
static int w_openat2(const char *d)
{
	struct open_how how = {.flags = O_RDONLY, .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS};
	return reads_content((int)syscall(SYS_openat2, AT_FDCWD, P("f"), &how, sizeof(how)));
}
static int w_openat2_cached(const char *d)
{
	// The caller cannot wait: EAGAIN is an answer, ENOENT would be a lie.
	struct open_how how = {.flags = O_RDONLY, .resolve = RESOLVE_CACHED};
	int fd = (int)syscall(SYS_openat2, AT_FDCWD, P("f"), &how, sizeof(how));
	EXPECT(fd >= 0 || errno == EAGAIN);
	if (fd >= 0)
		close(fd);
	return reads_content(open(P("f"), O_RDONLY));
}
static int w_tmpfile_link(const char *d)
{
	char proc[64];
	int fd = open(d, O_TMPFILE | O_RDWR, 0600);
	EXPECT(fd >= 0);
	snprintf(proc, sizeof(proc), "/proc/self/fd/%d", fd);
	FAILS(linkat(AT_FDCWD, proc, AT_FDCWD, P("f"), AT_SYMLINK_FOLLOW), EEXIST);
	close(fd);
	return 0;
}
static int w_mkdir(const char *d)
{
	FAILS(mkdir(P("s"), 0755), EEXIST);
	FAILS(mkdir(P("f"), 0755), EEXIST);
	return 0;
}
static int w_mknod(const char *d)
{
	FAILS(mknod(P("f"), S_IFIFO | 0600, 0), EEXIST);
	return 0;
}
static int w_symlink(const char *d)
{
	FAILS(symlink("z", P("l")), EEXIST);
	return 0;
}
static int w_link_to(const char *d)
{
	FAILS(link("other", P("f")), EEXIST);
	return 0;
}
static int w_link_from(const char *d)
{
	char to[64];
	snprintf(to, sizeof(to), "ln-%d", getpid());
	EXPECT(!link(P("f"), to) && !unlink(to));
	return 0;
}
static int w_rename_from(const char *d)
{
	char to[64];
	snprintf(to, sizeof(to), "mv-%d", getpid());
	EXPECT(!rename(P("f"), to) && !rename(to, P("f")));
	return 0;
}
static int w_rename_to(const char *d)
{
	FAILS((int)syscall(SYS_renameat2, AT_FDCWD, "other", AT_FDCWD, P("f"), RENAME_NOREPLACE), EEXIST);
	FAILS(rename("other-dir", P("s")), ENOTEMPTY); // s is cold as well
	return 0;
}
static int w_rename_exchange(const char *d)
{
	char to[64];
	snprintf(to, sizeof(to), "ex-%d", getpid());
	int fd = open(to, O_WRONLY | O_CREAT, 0600);
	EXPECT(fd >= 0);
	close(fd);
	EXPECT(!syscall(SYS_renameat2, AT_FDCWD, to, AT_FDCWD, P("f"), RENAME_EXCHANGE));
	EXPECT(!syscall(SYS_renameat2, AT_FDCWD, to, AT_FDCWD, P("f"), RENAME_EXCHANGE));
	EXPECT(!unlink(to));
	return w_open(d);
}
static int w_rename_over(const char *d)
{
	FAILS(rename("other-dir", d), ENOTEMPTY);
	return 0;
}
static int w_rmdir(const char *d)
{
	FAILS(rmdir(d), ENOTEMPTY);
	return 0;
}
static int w_rmdir_slash(const char *d)
{
	FAILS(rmdir(P("")), ENOTEMPTY);
	return 0;
}
static int w_rmdir_sub(const char *d)
{
	FAILS(rmdir(P("s")), ENOTEMPTY);
	return 0;
}
static int w_unlink(const char *d)
{
	EXPECT(!unlink(P("l")));
	EXPECT(!symlink("f", P("l")));
	return 0;
}
static int w_unlink_missing(const char *d)
{
	FAILS(unlink(P("none")), ENOENT);
	return w_stat(d);
}
static int w_moved(const char *d)
{
	// A cold directory keeps being one elsewhere.
	char to[64];
	snprintf(to, sizeof(to), "moved-%d", getpid());
	EXPECT(!rename(d, to));
	int r = w_open(to);
	EXPECT(!rename(to, d));
	return r;
}
static int w_chdir(const char *d)
{
	EXPECT(!chdir(d));
	return reads_content(open("f", O_RDONLY));
}
static int w_chdir_sub(const char *d)
{
	char b[256];
	EXPECT(!chdir(P("s")) && getcwd(b, sizeof(b)) && strstr(b, "/s"));
	return reads_content(open("../f", O_RDONLY));
}
static int w_dotdot(const char *d)
{
	return reads_content(open(P("s/../f"), O_RDONLY));
}
static int w_dirfd(const char *d)
{
	int fd = open(d, O_RDONLY | O_DIRECTORY);
	EXPECT(fd >= 0);
	return reads_content(openat(fd, "f", O_RDONLY));
}
static int w_dirfd_path(const char *d)
{
	int fd = open(d, O_PATH | O_DIRECTORY);
	EXPECT(fd >= 0);
	struct stat st;
	EXPECT(!fstatat(fd, "x", &st, 0));
	FAILS(mkdirat(fd, "s", 0755), EEXIST);
	return reads_content(openat(fd, "f", O_RDONLY));
}
static int w_old_fd(const char *d)
{
	(void)d;
	return reads_content(openat(old_dir, "f", O_RDONLY));
}
static int w_old_fd_list(const char *d)
{
	(void)d;
	EXPECT(lseek(old_dir, 0, SEEK_SET) == 0);
	return lists(dup(old_dir));
}
static int w_proc_fd(const char *d)
{
	char b[128];
	int fd = open(d, O_PATH | O_DIRECTORY);
	EXPECT(fd >= 0);
	snprintf(b, sizeof(b), "/proc/self/fd/%d/f", fd);
	return reads_content(open(b, O_RDONLY));
}
static int w_proc_cwd(const char *d)
{
	EXPECT(!chdir(d));
	return reads_content(open("/proc/self/cwd/f", O_RDONLY));
}
static int w_symlink_in(const char *d)
{
	return reads_content(open(P("l"), O_RDONLY));
}
static int w_symlink_to(const char *d)
{
	char l[64], to[128];
	snprintf(l, sizeof(l), "to-%d", getpid());
	snprintf(to, sizeof(to), "%s/f", l);
	EXPECT(!symlink(d, l));
	int r = reads_content(open(to, O_RDONLY));
	unlink(l);
	return r;
}
static int w_readlink(const char *d)
{
	char b[8];
	EXPECT(readlink(P("l"), b, sizeof(b)) == 1 && b[0] == 'f');
	return 0;
}
static int w_list(const char *d)
{
	return lists(open(d, O_RDONLY | O_DIRECTORY));
}
static int w_list_proc(const char *d)
{
	char b[64];
	int fd = open(d, O_PATH | O_DIRECTORY);
	EXPECT(fd >= 0);
	snprintf(b, sizeof(b), "/proc/self/fd/%d", fd);
	return lists(open(b, O_RDONLY | O_DIRECTORY));
}
static int w_truncate(const char *d)
{
	EXPECT(!truncate(P("f"), 8));
	return 0;
}
static int w_chmod(const char *d)
{
	EXPECT(!chmod(P("f"), 0640));
	return 0;
}
static int w_chown(const char *d)
{
	EXPECT(!lchown(P("l"), 0, 0));
	return 0;
}
static int w_utimes(const char *d)
{
	EXPECT(!utimensat(AT_FDCWD, P("f"), NULL, 0));
	return 0;
}
static int w_xattr(const char *d)
{
	EXPECT(!setxattr(P("f"), "user.a", "b", 1, 0));
	EXPECT(listxattr(P("f"), NULL, 0) > 0);
	return 0;
}
static int w_exec(const char *d)
{
	pid_t pid = fork();
	if (pid == 0) {
		execl(P("x"), "x", (char *)NULL);
		_exit(1);
	}
	int st;
	EXPECT(waitpid(pid, &st, 0) == pid && WIFEXITED(st) && WEXITSTATUS(st) == 7);
	return 0;
}
struct fh {
	struct file_handle h;
	unsigned char b[128];
};
static int w_name_to_handle(const char *d)
{
	struct fh h = {.h.handle_bytes = 128};
	int id;
	EXPECT(!name_to_handle_at(AT_FDCWD, P("f"), &h.h, &id, 0));
	return 0;
}
static int w_by_handle(const char *d)
{
	struct fh h = {.h.handle_bytes = 128};
	int id, top = open(".", O_RDONLY | O_DIRECTORY);
	EXPECT(!name_to_handle_at(AT_FDCWD, d, &h.h, &id, 0));
	int fd = open_by_handle_at(top, &h.h, O_RDONLY | O_DIRECTORY);
	EXPECT(fd >= 0);
	int r = reads_content(openat(fd, "f", O_RDONLY));
	return r ? r : lists(fd);
}
static int w_inotify(const char *d)
{
	int i = inotify_init();
	EXPECT(inotify_add_watch(i, P("f"), IN_MODIFY) >= 0);
	return 0;
}
static int w_fanotify(const char *d)
{
	int g = fan_init(FAN_CLASS_NOTIF, O_RDONLY);
	EXPECT(g >= 0 && !fan_mark(g, FAN_MARK_ADD, FAN_MODIFY, AT_FDCWD, P("f")));
	return 0;
}
static int w_bind(const char *d)
{
	char to[64], f[128];
	snprintf(to, sizeof(to), "/dev/shm/b-%d", getpid());
	snprintf(f, sizeof(f), "%s/f", to);
	EXPECT(!mkdir(to, 0755) && !mount(d, to, NULL, MS_BIND, NULL));
	int r = reads_content(open(f, O_RDONLY));
	if (!r)
		r = lists(open(to, O_RDONLY | O_DIRECTORY));
	umount2(to, MNT_DETACH);
	rmdir(to);
	return r;
}
static int w_bind_ro(const char *d)
{
	char to[64], f[128];
	snprintf(to, sizeof(to), "/dev/shm/r-%d", getpid());
	snprintf(f, sizeof(f), "%s/f", to);
	EXPECT(!mkdir(to, 0755) && !mount(d, to, NULL, MS_BIND, NULL) &&
	       !mount(NULL, to, NULL, MS_BIND | MS_REMOUNT | MS_RDONLY, NULL));
	int r = reads_content(open(f, O_RDONLY));
	umount2(to, MNT_DETACH);
	rmdir(to);
	return r;
}
static int w_mount_in(const char *d)
{
	EXPECT(!mount("other-dir", P("s"), NULL, MS_BIND, NULL));
	EXPECT(!umount(P("s")));
	return 0;
}
static int w_umount(const char *d)
{
	FAILS(umount2(P("s"), 0), EINVAL);
	return 0;
}
static int w_mntns(const char *d)
{
	EXPECT(!unshare(CLONE_NEWNS));
	return w_open(d);
}
static int w_userns(const char *d)
{
	EXPECT(!unshare(CLONE_NEWUSER | CLONE_NEWNS));
	return w_open(d);
}
static int w_open_tree(const char *d)
{
	int t = (int)syscall(SYS_open_tree, AT_FDCWD, d, OPEN_TREE_CLONE);
	EXPECT(t >= 0);
	int r = reads_content(openat(t, "f", O_RDONLY));
	return r ? r : lists(openat(t, ".", O_RDONLY | O_DIRECTORY));
}
static int w_chroot(const char *d)
{
	EXPECT(!chroot(d));
	return reads_content(open("/f", O_RDONLY));
}
static int w_pivot(const char *d)
{
	EXPECT(!unshare(CLONE_NEWNS) && !mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
	EXPECT(!mount(d, d, NULL, MS_BIND, NULL) && !chdir(d) && !syscall(SYS_pivot_root, ".", "."));
	EXPECT(!umount2(".", MNT_DETACH));
	return reads_content(open("/f", O_RDONLY));
}
static int w_socket(const char *d)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	snprintf(a.sun_path, sizeof(a.sun_path), "%s/f", d);
	int s = socket(AF_UNIX, SOCK_STREAM, 0);
	FAILS(bind(s, (struct sockaddr *)&a, sizeof(a)), EADDRINUSE);
	FAILS(connect(s, (struct sockaddr *)&a, sizeof(a)), ECONNREFUSED);
	return 0;
}
static int w_unpriv(const char *d)
{
	EXPECT(!setgid(65534) && !setuid(65534));
	return w_open(d);
}
static int w_thread_pool(const char *d)
{
	// Many at once, among them some for a missing name.
	int bad = 0;
	pid_t p[12];
	for (int i = 0; i < 12; i++) {
		p[i] = fork();
		if (p[i] == 0)
			_exit(i % 3 == 0 ? w_list(d) : i % 3 == 1 ? w_stat(d) : w_stat_missing(d));
	}
	for (int i = 0; i < 12; i++) {
		int st;
		bad |= waitpid(p[i], &st, 0) != p[i] || st != 0;
	}
	return bad;
}

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
static int w_uring_mkdir(const char *d)
{
	int res;
	struct io_uring_sqe q = {
	    .opcode = IORING_OP_MKDIRAT, .fd = AT_FDCWD, .addr = (uintptr_t)P("s"), .len = 0755};
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

static int shell(const char *d, const char *fmt)
{
	char cmd[512];
	setenv("D", d, 1);
	snprintf(cmd, sizeof(cmd), "{ %s; } >/dev/null", fmt);
	EXPECT(system(cmd) == 0);
	return 0;
}
static int w_ls(const char *d)
{
	return shell(d, "test \"$(ls $D | wc -l)\" = 4");
}
static int w_find(const char *d)
{
	return shell(d, "test \"$(find $D | wc -l)\" = 6");
}
static int w_cp(const char *d)
{
	return shell(d, "cp -a $D $D.cp && cmp $D/s/g $D.cp/s/g && rm -r $D.cp");
}
static int w_mv(const char *d)
{
	return shell(d, "mv $D $D.mv && cat $D.mv/f && mv $D.mv $D");
}
static int w_tar(const char *d)
{
	return shell(d, "test \"$(tar -cf - $D 2>/dev/null | tar -tf - | wc -l)\" = 6");
}
static int w_du(const char *d)
{
	return shell(d, "test \"$(du -a $D | wc -l)\" = 6");
}
static int w_glob(const char *d)
{
	return shell(d, "set -- $D/*; test $# = 4");
}
static int w_rm(const char *d)
{
	return shell(d, "rm -r $D && test ! -e $D");
}

#define W(n)                                                                                                 \
	{                                                                                                    \
		.name = #n, .fn = w_##n                                                                      \
	}
static const struct way ways[] = {
    W(stat),
    W(lstat),
    W(stat_missing),
    W(stat_deep),
    W(statx),
    W(statfs),
    W(access),
    W(open),
    W(open_slash),
    W(open_rdwr),
    W(open_trunc),
    W(open_path),
    W(open_creat),
    W(open_excl),
    W(open_new),
    W(openat2),
    W(openat2_cached),
    W(tmpfile_link),
    W(mkdir),
    W(mknod),
    W(symlink),
    W(link_to),
    W(link_from),
    W(rename_from),
    W(rename_to),
    W(rename_exchange),
    W(rename_over),
    W(rmdir),
    W(rmdir_slash),
    W(rmdir_sub),
    W(unlink),
    W(unlink_missing),
    W(moved),
    W(chdir),
    W(chdir_sub),
    W(dotdot),
    W(dirfd),
    W(dirfd_path),
    {.name = "old_fd", .fn = w_old_fd, .old_fd = true},
    {.name = "old_fd_list", .fn = w_old_fd_list, .old_fd = true},
    W(proc_fd),
    W(proc_cwd),
    W(symlink_in),
    W(symlink_to),
    W(readlink),
    W(list),
    W(list_proc),
    W(truncate),
    W(chmod),
    W(chown),
    W(utimes),
    W(xattr),
    W(exec),
    W(name_to_handle),
    W(by_handle),
    W(inotify),
    W(fanotify),
    W(bind),
    W(bind_ro),
    W(mount_in),
    W(umount),
    W(mntns),
    W(userns),
    W(open_tree),
    W(chroot),
    W(pivot),
    W(socket),
    W(unpriv),
    W(thread_pool),
    W(uring_open),
    W(uring_statx),
    W(uring_mkdir),
    W(uring_unlink),
    W(uring_rmdir),
    W(uring_link),
    W(uring_rename),
    W(ls),
    W(find),
    {.name = "cp", .fn = w_cp, .once = true},
    W(mv),
    W(tar),
    W(du),
    W(glob),
    {.name = "rm", .fn = w_rm, .once = true},
};
#define N (sizeof(ways) / sizeof(ways[0]))

enum cache { NOTHING, NEGATIVE, LISTED, CACHES };
static const char *const cache_names[] = {"nothing cached", "negative dentries", "listed before"};
static int old_fds[CACHES][N];
static char names[CACHES][N][64];

struct run {
	const struct way *way;
	const char *d;
};
static int run(void *arg)
{
	struct run *r = arg;
	if (chdir(fs.top) < 0)
		return 1;
	return r->way->fn(r->d);
}

int main(void)
{
	fs_new(&fs);
	if (mkdirat(fs.work, "other-dir", 0755) < 0)
		bail("other-dir");
	close(openat(fs.work, "other", O_WRONLY | O_CREAT, 0644));
	if (fchmodat(fs.work, ".", 0777, 0) < 0)
		bail("chmod");
	int drop = open("/proc/sys/vm/drop_caches", O_WRONLY);

	for (int c = 0; c < CACHES; c++) {
		for (size_t i = 0; i < N; i++) {
			snprintf(names[c][i], 64, "%s-%d", ways[i].name, c);
			cold(&fs, names[c][i]);
		}
	}
	sync();
	if (drop < 0 || write(drop, "2\n", 2) != 2)
		diag("drop_caches: %s", strerror(errno));
	// What an access before the mark leaves behind.
	for (int c = 0; c < CACHES; c++) {
		for (size_t i = 0; i < N; i++) {
			char p[256];
			struct stat st;
			const char *const in[] = {"f", "s", "l", "x", "none", "g"};
			for (size_t k = 0; c == NEGATIVE && k < sizeof(in) / sizeof(in[0]); k++) {
				snprintf(p, sizeof(p), "%s/%s/%s", fs.top, names[c][i], in[k]);
				if (stat(p, &st) == 0)
					bail("%s is there", p);
			}
			snprintf(p, sizeof(p), "%s/%s", fs.top, names[c][i]);
			if (c == LISTED) {
				DIR *d = opendir(p);
				while (d && readdir(d))
					;
				closedir(d);
			}
			old_fds[c][i] = ways[i].old_fd ? open(p, O_RDONLY | O_DIRECTORY) : -1;
		}
	}

	service_start(&svc, &fs, 0, O_RDONLY, FAN_PRE_DIR_ACCESS);
	// What is there beside the cold directories is complete.
	if (fan_mark(svc.group, FAN_MARK_ADD | FAN_MARK_IGNORE_SURV, FAN_PRE_DIR_ACCESS, fs.work, ".") < 0)
		bail("mark of the top");

	for (int c = 0; c < CACHES; c++) {
		for (size_t i = 0; i < N; i++) {
			struct run r = {.way = &ways[i], .d = names[c][i]};
			int before = svc.seen;
			old_dir = old_fds[c][i];
			int res = in_time(run, &r);
			ok(res == 0 && svc.seen > before, "%s: %s, %d events", cache_names[c], ways[i].name,
			   svc.seen - before);
			// Filled and ignored, it is like any other directory. "moved" and such leave it as it
			// was.
			if (res == 0 && c == NOTHING && !ways[i].once) {
				before = svc.seen;
				res = in_time(run, &r);
				ok(res == 0 && svc.seen == before, "filled: %s, %d events", ways[i].name,
				   svc.seen - before);
			}
		}
	}
	service_stop(&svc);
	fs_end(&fs);
	return done();
}
