// SPDX-License-Identifier: GPL-2.0-only
// Ways for those who come by another filesystem, overlayfs or NFS, which looks names up without a path. They
// may be refused.

#include "ways.h"

#include <ftw.h>

static int right(bool good)
{
	if (!good && (errno == EPERM || errno == EIO)) {
		refused(errno);
		return 0;
	}
	EXPECT(good);
	return 0;
}
static bool fails(int res, int with)
{
	return res < 0 && errno == with;
}

static int w_stat(const char *d)
{
	struct stat st;
	return right(!stat(P("f"), &st) && st.st_size == 8);
}
static int w_missing(const char *d)
{
	struct stat st;
	return right(fails(stat(P("none"), &st), ENOENT));
}
static int w_deep(const char *d)
{
	struct stat st;
	return right(!stat(P("s/g"), &st));
}
static int w_open(const char *d)
{
	int fd = open(P("f"), O_RDONLY);
	return fd < 0 ? right(false) : reads_content(fd);
}
static int w_list(const char *d)
{
	DIR *dir = opendir(d);
	int n = 0;
	errno = 0;
	while (dir && readdir(dir))
		n++;
	int err = errno;
	if (dir)
		closedir(dir);
	errno = err;
	return right(!err && n == 6);
}
static int w_creat(const char *d)
{
	int fd = open(P("f"), O_RDWR | O_CREAT, 0600);
	return fd < 0 ? right(false) : reads_content(fd);
}
static int w_excl(const char *d)
{
	return right(fails(open(P("f"), O_WRONLY | O_CREAT | O_EXCL, 0600), EEXIST));
}
static int w_new(const char *d)
{
	int fd = open(P("new"), O_WRONLY | O_CREAT | O_EXCL, 0600);
	if (fd < 0)
		return right(false);
	close(fd);
	struct stat st;
	return right(!unlink(P("new")) && !stat(P("f"), &st));
}
static int w_mkdir(const char *d)
{
	return right(fails(mkdir(P("s"), 0755), EEXIST));
}
static int w_mknod(const char *d)
{
	return right(fails(mknod(P("f"), S_IFIFO | 0600, 0), EEXIST));
}
static int w_symlink(const char *d)
{
	return right(fails(symlink("z", P("l")), EEXIST));
}
static int w_link_to(const char *d)
{
	return right(fails(link("other", P("f")), EEXIST));
}
static int w_link_from(const char *d)
{
	char to[64];
	snprintf(to, sizeof(to), "ln-%d", getpid());
	return right(!link(P("f"), to) && !unlink(to));
}
static int w_rename_from(const char *d)
{
	return right(!rename(P("x"), P("x2")) && !rename(P("x2"), P("x")));
}
static int w_rename_to(const char *d)
{
	char from[64];
	snprintf(from, sizeof(from), "rn-%d", getpid());
	EXPECT(!mkdir(from, 0755));
	return right(fails(rename(from, P("f")), ENOTDIR));
}
static int w_rename_over(const char *d)
{
	char from[64];
	snprintf(from, sizeof(from), "ov-%d", getpid());
	EXPECT(!mkdir(from, 0755));
	return right(fails(rename(from, d), ENOTEMPTY));
}
static int w_unlink(const char *d)
{
	return right(!unlink(P("l")) && !symlink("f", P("l")));
}
static int w_rmdir(const char *d)
{
	// NFS has no other word for it.
	return right(rmdir(d) < 0 && (errno == ENOTEMPTY || errno == EEXIST));
}
static int w_chmod(const char *d)
{
	return right(!chmod(P("f"), 0640));
}
static int w_exec(const char *d)
{
	int st;
	pid_t pid = fork();
	if (pid == 0) {
		execl(P("x"), "x", (char *)NULL);
		_exit(errno == EPERM ? 1 : 2);
	}
	EXPECT(waitpid(pid, &st, 0) == pid && WIFEXITED(st));
	errno = WEXITSTATUS(st) == 1 ? EPERM : 0;
	return right(WEXITSTATUS(st) == 7);
}

// clang-format off
const struct way ways_pathless[] = {
    WAY(list, "a listing"),
    WAY(stat, "stat"),
    WAY(missing, "stat of a name that does not exist"),
    WAY(deep, "stat two levels down"),
    WAY(open, "open"),
    WAY(exec, "exec"),
    WAY(chmod, "chmod"),
    WAY(creat, "open with O_CREAT of a name that is there"),
    WAY(excl, "open with O_CREAT and O_EXCL"),
    WAY(new, "open with O_CREAT of a new name"),
    WAY(mkdir, "mkdir"),
    WAY(mknod, "mknod"),
    WAY(symlink, "symlink"),
    WAY(link_to, "link to a name in it"),
    WAY(link_from, "link of a name in it"),
    WAY(rename_from, "rename from"),
    WAY(rename_to, "rename to"),
    WAY(rename_over, "rename of a directory over it"),
    WAY(unlink, "unlink"),
    WAY(rmdir, "rmdir"),
    {0},
};
// clang-format on

void pathless_dirs(struct fs *f, const char *below, const char *prefix)
{
	for (const struct way *w = ways_pathless; w->fn; w++) {
		char name[128];
		snprintf(name, sizeof(name), "%s%s%s", below, prefix, w->id);
		cold(f, name);
	}
}

static int found;
static int count(const char *path, const struct stat *st, int what, struct FTW *at)
{
	(void)path, (void)st, (void)what, (void)at;
	found++;
	return 0;
}
static int finds_all(void *arg)
{
	return nftw(arg, count, 4, FTW_PHYS) != 0 || found != 6;
}

const struct pathless_mode pathless_modes[3] = {
    {"not filled; the group needs a path", "p", 0, REFUSED},
    {"not filled; FAN_REPORT_DIR_FD", "d", FAN_REPORT_DIR_FD, SERVED},
    {"not filled; file handles", "h", FAN_REPORT_DFID_NAME | FAN_REPORT_RESPONSE_ID, SERVED},
};

void pathless(struct service *s, const struct pathless *p)
{
	for (const struct way *w = ways_pathless; w->fn; w++) {
		char name[64], path[256];
		snprintf(name, sizeof(name), "%s%s", p->prefix, w->id);
		snprintf(path, sizeof(path), "%s/%s", p->filler ? p->filler : "", name);
		struct way_run r = {.top = p->top, .way = w, .d = name};
		for (int filled = 0; filled < (p->filler ? 2 : 1); filled++) {
			const char *when = filled ? "filled by a mount before" : p->when;
			int before = s->seen;
			// All of it, and nothing that a way has made where it was refused.
			bool whole = !filled || in_time(finds_all, path) == 0;
			if (!whole)
				diag("%s is not what it should be", path);
			*way_refuse = 0;
			int res = in_time(way_run, &r);
			bool asked = s->seen > before;
			const char *text = "right";
			if (res != 0 || !whole || (filled && *way_refuse))
				text = "WRONG";
			else if (*way_refuse)
				text = p->asks == SERVED ? "WRONG" : strerrorname_np(*way_refuse);
			else if (!filled)
				text = asked ? "filled first" : "WRONG";
			ok(strcmp(text, "WRONG") != 0, "%s: %s, %s: %s", p->group, w->name, when,
			   *way_refuse ? strerrorname_np(*way_refuse) : text);
			row(p->group, w->name, when, text);
		}
	}
}
