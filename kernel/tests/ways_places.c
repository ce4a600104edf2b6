// SPDX-License-Identifier: GPL-2.0-only
// Ways by other starting points: descriptors, the working directory, links, mounts, namespaces.

#include "ways.h"

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

static int w_chdir_cwd(const char *d)
{
	char b[256];
	const char *base = strrchr(d, '/');
	EXPECT(!chdir(d) && getcwd(b, sizeof(b)) && strstr(b, base ? base + 1 : d));
	return lists(open(".", O_RDONLY | O_DIRECTORY));
}

static int w_fchdir(const char *d)
{
	int fd = open(d, O_RDONLY | O_DIRECTORY);
	EXPECT(fd >= 0 && !fchdir(fd));
	return reads_content(open("f", O_RDONLY));
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

static int w_symlink_in(const char *d)
{
	return reads_content(open(P("l"), O_RDONLY));
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

static int w_bind_from(const char *d)
{
	char to[64], g[128];
	snprintf(to, sizeof(to), "/dev/shm/s-%d", getpid());
	snprintf(g, sizeof(g), "%s/g", to);
	EXPECT(!mkdir(to, 0755) && !mount(P("s"), to, NULL, MS_BIND, NULL));
	int r = reads_content(open(g, O_RDONLY));
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

static int w_open_tree(const char *d)
{
	int t = (int)syscall(SYS_open_tree, AT_FDCWD, d, OPEN_TREE_CLONE);
	EXPECT(t >= 0);
	int r = reads_content(openat(t, "f", O_RDONLY));
	return r ? r : lists(openat(t, ".", O_RDONLY | O_DIRECTORY));
}

static int w_mntns(const char *d)
{
	EXPECT(!unshare(CLONE_NEWNS));
	return reads_content(open(P("f"), O_RDONLY));
}

static int w_userns(const char *d)
{
	EXPECT(!unshare(CLONE_NEWUSER | CLONE_NEWNS));
	return reads_content(open(P("f"), O_RDONLY));
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

// clang-format off
const struct way ways_places[] = {
    WAY(old_fd, "openat", .by_fd = true, .old_fd = true),
    WAY(old_fd_list, "getdents", .by_fd = true, .old_fd = true),
    WAY(chdir, "chdir, then open of a name", .group = "Working directory, descriptors, links", .by_fd = true),
    WAY(chdir_sub, "chdir two levels down, getcwd, then open of ../f", .by_fd = true),
    WAY(chdir_cwd, "chdir, getcwd, then a listing", .by_fd = true),
    WAY(fchdir, "fchdir, then open", .by_fd = true),
    WAY(dotdot, ".. on the way"),
    WAY(dirfd, "openat at a descriptor", .by_fd = true),
    WAY(dirfd_path, "fstatat, mkdirat, openat at an O_PATH descriptor", .by_fd = true),
    WAY(proc_fd, "/proc/self/fd/N/name", .by_fd = true, .ref = true),
    WAY(proc_cwd, "/proc/self/cwd/name", .by_fd = true, .ref = true),
    WAY(symlink_in, "a symbolic link in it"),
    WAY(symlink_to, "a symbolic link to it on the way"),
    WAY(bind, "a bind mount of it", .group = "Mounts and namespaces"),
    WAY(bind_ro, "a read-only bind mount of it"),
    WAY(bind_from, "a bind mount of a directory in it"),
    WAY(mount_in, "mount on a directory in it, umount"),
    WAY(umount, "umount of a directory in it"),
    WAY(open_tree, "open_tree with OPEN_TREE_CLONE", .by_fd = true),
    WAY(mntns, "another mount namespace"),
    WAY(userns, "another user and mount namespace"),
    WAY(chroot, "chroot into it", .by_fd = true),
    WAY(pivot, "pivot_root into it", .by_fd = true),
    {0},
};
// clang-format on
