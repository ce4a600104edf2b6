/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/xattr.h>

#include "base/fd.h"
#include "cli/call.h"
#include "cli/registry.h"
#include "gate/fanotify/probe.h"
#include "gate/fuse/mount.h"
#include "wire/proto.h"
#include "wire/vsock.h"

#define SL_INIT_ROOM 65536 /* the kernel reads into nothing smaller than its largest request */

/* One thing that was tried, not guessed by a version. */
struct check {
	const char *name, *what;
	int (*probe)(char **why); /* 0: yes; negative: no, with a sentence */
	bool needed;
};

static int probe_fuse(char **why)
{
	return sl_fuse_available(why);
}

static int probe_mount(char **why)
{
	char dir[] = "/tmp/sluice-doctor-XXXXXX";
	if (!mkdtemp(dir))
		return sl_fail(why, -errno, "/tmp: %s", strerror(errno));
	struct sl_mount_options o = {0};
	int fd = sl_fuse_mount(dir, &o, why), r = fd < 0 ? fd : 0;
	if (fd >= 0) {
		close(fd);
		sl_fuse_unmount(dir, true, NULL);
	}
	rmdir(dir);
	return r;
}

static int probe_passthrough(char **why)
{
	if (geteuid() != 0)
		return sl_fail(why, -EPERM, "needs root: full files are read through the service");
	/* The ioctl is known to kernels that have it, whatever the descriptor is connected to. */
	_cleanup_close_ int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	struct fuse_backing_map m = {.fd = -1};
	if (fd < 0)
		return sl_fail(why, -errno, "/dev/fuse: %s", strerror(errno));
	int r = ioctl(fd, FUSE_DEV_IOC_BACKING_OPEN, &m) < 0 ? errno : 0;
	return r == ENOTTY || r == EINVAL ? sl_fail(why, -r,
						    "this kernel has none (Linux 6.9 and later): full files "
						    "are read through the service")
					  : 0;
}

static int probe_openat2(char **why)
{
	struct open_how how = {.flags = O_PATH | O_CLOEXEC, .resolve = RESOLVE_BENEATH};
	long fd = syscall(SYS_openat2, AT_FDCWD, ".", &how, sizeof(how));
	if (fd < 0)
		return sl_fail(why, -errno, "openat2: %s (Linux 5.6 and later)", strerror(errno));
	close((int)fd);
	return 0;
}

static int open_registry(char **why)
{
	_cleanup_free_ char *dir = NULL;
	int r = sl_registry_dir(&dir, why);
	if (r < 0)
		return r;
	int fd = open(dir, O_RDWR | O_TMPFILE | O_CLOEXEC, 0600);
	return fd < 0 ? sl_fail(why, -errno, "%s: no unnamed files: %s", dir, strerror(errno)) : fd;
}

static int probe_xattr(char **why)
{
	_cleanup_close_ int fd = open_registry(why);
	if (fd < 0)
		return fd;
	if (fsetxattr(fd, geteuid() ? "user.sluice" : "trusted.sluice", "x", 1, 0) < 0)
		return sl_fail(why, -errno,
			       "where stores are kept by default: %s: use --store on another filesystem",
			       strerror(errno));
	return 0;
}

static int probe_reflink(char **why)
{
	_cleanup_close_ int a = open_registry(why), b = a < 0 ? a : open_registry(why);
	if (b < 0)
		return b;
	char block[4096] = {1};
	struct file_clone_range c = {.src_fd = a, .src_length = sizeof(block)};
	if (sl_pwrite_full(a, block, sizeof(block), 0) < 0 || ioctl(b, FICLONERANGE, &c) < 0)
		return sl_fail(why, -EOPNOTSUPP,
			       "where stores are kept by default the filesystem has none: placeholders are "
			       "sparse, which the fuse gate makes up for");
	return 0;
}

/* What the kernel offers in its first message on a new mount. */
static int probe_resend(char **why)
{
	char dir[] = "/tmp/sluice-doctor-XXXXXX";
	if (!mkdtemp(dir))
		return sl_fail(why, -errno, "/tmp: %s", strerror(errno));
	struct sl_mount_options o = {0};
	int fd = sl_fuse_mount(dir, &o, why), r = fd < 0 ? fd : 0;
	if (fd >= 0) {
		_cleanup_free_ char *buf = malloc(SL_INIT_ROOM);
		struct fuse_init_in in = {0};
		ssize_t n = buf ? read(fd, buf, SL_INIT_ROOM) : -1;
		if (n > (ssize_t)sizeof(struct fuse_in_header))
			memcpy(&in, buf + sizeof(struct fuse_in_header),
			       SL_MIN(sizeof(in), (size_t)n - sizeof(struct fuse_in_header)));
		if (!((uint64_t)in.flags2 << 32 & FUSE_HAS_RESEND))
			r = sl_fail(why, -EOPNOTSUPP,
				    "this kernel cannot (Linux 6.9 and later): what waits when the service "
				    "is killed fails");
		close(fd);
		sl_fuse_unmount(dir, true, NULL);
	}
	rmdir(dir);
	return r;
}

static int probe_handles(char **why)
{
	union {
		struct file_handle h;
		char room[sizeof(struct file_handle) + MAX_HANDLE_SZ];
	} u = {.h.handle_bytes = MAX_HANDLE_SZ};
	int id;
	_cleanup_close_ int root = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (name_to_handle_at(root, "", &u.h, &id, AT_EMPTY_PATH) < 0)
		return sl_fail(why, -errno, "name_to_handle_at: %s", strerror(errno));
	int fd = open_by_handle_at(root, &u.h, O_PATH | O_CLOEXEC);
	if (fd < 0)
		return sl_fail(why, -errno,
			       "open_by_handle_at: %s: an exporter run by this user finds renamed files "
			       "again by path only",
			       strerror(errno));
	close(fd);
	return 0;
}

static int probe_ssh(char **why)
{
	const char *path = getenv("PATH");
	_cleanup_free_ char *copy = strdup(path ? path : "");
	char *save = NULL;
	for (char *d = copy ? strtok_r(copy, ":", &save) : NULL; d; d = strtok_r(NULL, ":", &save)) {
		_cleanup_free_ char *p = sl_path_join(d, "ssh");
		if (p && access(p, X_OK) == 0)
			return 0;
	}
	return sl_fail(why, -ENOENT,
		       "there is no ssh: HOST:PATH and ssh:// origins cannot be used (Debian: apt install "
		       "openssh-client)");
}

static const struct check checks[] = {
    {"fuse", "FUSE can be used by this user", probe_fuse, true},
    {"mount", "a FUSE filesystem can be mounted", probe_mount, true},
    {"openat2", "paths can be confined to a tree", probe_openat2, true},
    {"xattr", "stores can keep their records", probe_xattr, true},
    {"passthrough", "full files are read at the speed of the local filesystem", probe_passthrough, false},
    {"reflink", "placeholders are armoured", probe_reflink, false},
    {"handles", "an exporter finds files again by handle", probe_handles, false},
    {"ssh", "origins on other machines can be reached", probe_ssh, false},
    {"vsock", "other virtual machines, or the host, can be reached without a network", sl_vsock_available,
     false},
    {"resend", "what waits for a killed service is answered by the next one", probe_resend, false},
};

static void print_line(const char *name, const char *what, const char *why, bool ok, bool needed,
		       const char *no)
{
	bool colour = isatty(STDOUT_FILENO) && !getenv("NO_COLOR");
	const char *on = !colour ? "" : ok ? "\033[32m" : needed ? "\033[31m" : "\033[33m";
	printf("%s%-3s%s %-21s %s\n", on, ok ? "yes" : no, colour ? "\033[0m" : "", name,
	       ok    ? what
	       : why ? why
		     : "not tried: see above");
}

static json_t *check_all(bool print, bool *bad)
{
	json_t *list = json_array();
	for (size_t i = 0; i < SL_ARRAY_SIZE(checks); i++) {
		_cleanup_free_ char *why = NULL;
		bool ok = checks[i].probe(&why) >= 0;
		*bad |= !ok && checks[i].needed;
		json_array_append_new(list, json_pack("{ss sb sb ss ss*}", "name", checks[i].name, "ok", ok,
						      "needed", checks[i].needed, "what", checks[i].what,
						      "why", why));
		if (print)
			print_line(checks[i].name, checks[i].what, why, ok, checks[i].needed,
				   checks[i].needed ? "NO" : "no");
	}
	return list;
}

/* *@why: why it cannot be used, for the caller to free; NULL if it can. *@lazy: names need not be fetched
 * first. */
static json_t *check_fanotify(bool print, bool *lazy, char **why)
{
	struct sl_fanotify_feature *f = NULL;
	int n = sl_fanotify_probe(NULL, &f);
	json_t *list = json_array();
	if (n < 0)
		sl_fail(why, n, "%s", strerror(-n));
	for (int i = 0; i < n; i++) {
		json_array_append_new(list, json_pack("{ss sb sb sb ss ss*}", "name", f[i].name, "ok",
						      f[i].ok, "tried", f[i].tried, "needed", f[i].needed,
						      "what", f[i].what, "why", f[i].why));
		if (f[i].needed && !f[i].ok)
			sl_fail(why, -EOPNOTSUPP, "%s: %s", f[i].name, f[i].why ? f[i].why : "not tried");
		if (print)
			print_line(f[i].name, f[i].what, f[i].why, f[i].ok, f[i].needed,
				   f[i].tried ? "no" : "-");
	}
	*lazy = sl_fanotify_lazy(f, n);
	sl_fanotify_features_free(f, n);
	return list;
}

static int run_doctor(const struct sl_command *cmd, int argc, char **argv)
{
	static const struct option opts[] = {
	    {"json", no_argument, NULL, 'j'}, {"help", no_argument, NULL, 'h'}, {0}};
	bool json = false, bad = false, lazy;
	int c;
	while ((c = getopt_long(argc, argv, "jh", opts, NULL)) != -1) {
		if (c == 'h')
			return sl_cli_help(cmd);
		if (c != 'j')
			return sl_cli_usage(cmd, "see above");
		json = true;
	}
	if (optind != argc)
		return sl_cli_usage(cmd, "takes no arguments");
	struct utsname u;
	uname(&u);
	if (!json)
		printf("sluice " SL_VERSION ", Linux %s, %s\n\n", u.release,
		       geteuid() ? "unprivileged" : "root");
	json_t *list = check_all(!json, &bad);
	if (!json)
		printf("\nThe fanotify gate:\n");
	_cleanup_free_ char *no = NULL, *because = NULL;
	json_t *features = check_fanotify(!json, &lazy, &no);
	const char *gate = !no ? "fanotify" : bad ? "none" : "fuse";
	if (asprintf(&because, "%s%s",
		     !no   ? lazy ? "everything that it needs is here, and names need not be fetched first"
				  : "everything that it needs is here, but for lazy directories"
		     : bad ? "neither gate can be used; fanotify: "
			   : "the fanotify gate cannot be used: ",
		     no ? no : "") < 0)
		because = NULL;
	bool fuse = !bad;
	bad = bad && no;
	if (json) {
		json_t *gates =
		    json_pack("{s{sb} s{sb sb ss* so} ss ss*}", "fuse", "ok", fuse, "fanotify", "ok", !no,
			      "lazy", lazy, "why", no, "features", features, "auto", gate, "why", because);
		json_t *j = json_pack("{sb ss ss sb so ss so}", "ok", !bad, "version", SL_VERSION, "kernel",
				      u.release, "root", geteuid() == 0, "checks", list, "gate", gate,
				      "gates", gates);
		sl_print_json(j);
		json_decref(j);
	} else {
		json_decref(list);
		json_decref(features);
		printf("\n%s: gate auto would choose: %s, because %s.\n",
		       bad ? "Clones cannot be used here" : "Clones can be used here", gate, because);
	}
	return bad ? SL_EXIT_DIFFERS : SL_EXIT_OK;
}

const struct sl_command sl_cmd_doctor = {
    .name = "doctor",
    .summary = "Show what this machine and user can do, by trying it",
    .usage = "[OPTION…]",
    .help = "Exit status 3 if something is missing that clones need.\n\n"
	    "  -j, --json   print the results as JSON\n"
	    "  -h, --help   this text\n\n"
	    "Example:\n  sluice doctor\n",
    .run = run_doctor,
};
