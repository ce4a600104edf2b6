// SPDX-License-Identifier: GPL-2.0-only
// Ways that make, rename or remove names.

#include "ways.h"

#include <sys/socket.h>
#include <sys/un.h>

static int w_open_creat(const char *d)
{
	return reads_content(open(P("f"), O_RDWR | O_CREAT, 0600));
}

static int w_creat_old_name(const char *d)
{
	// O_CREAT through the symbolic link in the directory.
	return reads_content(open(P("l"), O_RDWR | O_CREAT, 0600));
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

static int w_socket(const char *d)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	snprintf(a.sun_path, sizeof(a.sun_path), "%s/f", d);
	int s = socket(AF_UNIX, SOCK_STREAM, 0);
	FAILS(bind(s, (struct sockaddr *)&a, sizeof(a)), EADDRINUSE);
	FAILS(connect(s, (struct sockaddr *)&a, sizeof(a)), ECONNREFUSED);
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
	FULL(rename("other-dir", P("s"))); // s is cold as well
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
	return reads_content(open(P("f"), O_RDONLY));
}

static int w_rename_over(const char *d)
{
	FULL(rename("other-dir", d));
	return 0;
}

static int w_moved(const char *d)
{
	// A cold directory keeps being one elsewhere.
	char to[64], below[80];
	snprintf(to, sizeof(to), "moved-%d", getpid());
	snprintf(below, sizeof(below), "%s/f", to);
	EXPECT(!rename(d, to));
	int r = reads_content(open(below, O_RDONLY));
	EXPECT(!rename(to, d));
	return r;
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
	struct stat st;
	EXPECT(!stat(P("f"), &st));
	return 0;
}

static int w_rmdir(const char *d)
{
	FULL(rmdir(d));
	return 0;
}

static int w_rmdir_slash(const char *d)
{
	FULL(rmdir(P("")));
	return 0;
}

static int w_rmdir_sub(const char *d)
{
	FULL(rmdir(P("s")));
	return 0;
}

static int w_old_fd_mkdir(const char *d)
{
	(void)d;
	FAILS(mkdirat(old_dir, "s", 0755), EEXIST);
	FAILS(symlinkat("z", old_dir, "l"), EEXIST);
	FAILS(linkat(AT_FDCWD, "other", old_dir, "f", 0), EEXIST);
	return 0;
}

static int w_old_fd_remove(const char *d)
{
	(void)d;
	FULL(unlinkat(old_dir, "s", AT_REMOVEDIR)); // s is cold as well
	EXPECT(!unlinkat(old_dir, "l", 0) && !symlinkat("f", old_dir, "l"));
	return 0;
}

static int w_old_fd_rename(const char *d)
{
	(void)d;
	EXPECT(!renameat(old_dir, "f", old_dir, "f2") && !renameat(old_dir, "f2", old_dir, "f"));
	return 0;
}

// clang-format off
const struct way ways_changes[] = {
    WAY(open_creat, "open with O_CREAT of a name that is there", .group = "Making names"),
    WAY(creat_old_name, "open with O_CREAT of a symbolic link"),
    WAY(open_excl, "open with O_CREAT and O_EXCL"),
    WAY(open_new, "open with O_CREAT of a new name, then a listing"),
    WAY(tmpfile_link, "O_TMPFILE, then linkat"),
    WAY(mkdir, "mkdir"),
    WAY(mknod, "mknod"),
    WAY(symlink, "symlink"),
    WAY(link_to, "link to a name in it"),
    WAY(link_from, "link of a name in it"),
    WAY(socket, "bind and connect of a unix socket"),
    WAY(rename_from, "rename from", .group = "Renaming"),
    WAY(rename_to, "rename to, of a file and of a directory"),
    WAY(rename_exchange, "rename with RENAME_EXCHANGE"),
    WAY(rename_over, "rename of a directory over it"),
    WAY(moved, "rename of it, then open below the new name"),
    WAY(unlink, "unlink", .group = "Removing names"),
    WAY(unlink_missing, "unlink of a name that does not exist, then stat of one that does"),
    WAY(rmdir, "rmdir"),
    WAY(rmdir_slash, "rmdir with a slash after the name"),
    WAY(rmdir_sub, "rmdir of a directory in it that is not filled either"),
    WAY(old_fd_mkdir, "mkdirat, symlinkat, linkat", .group = "By a descriptor from before the mark", .by_fd = true, .old_fd = true),
    WAY(old_fd_remove, "unlinkat", .by_fd = true, .old_fd = true),
    WAY(old_fd_rename, "renameat", .by_fd = true, .old_fd = true),
    {0},
};
// clang-format on
