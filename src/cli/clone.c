/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/statvfs.h>

#include "base/fd.h"
#include "base/human.h"
#include "base/time.h"
#include "cli/call.h"
#include "cli/registry.h"
#include "cli/start.h"
#include "gate/fanotify/probe.h"
#include "gate/fuse/mount.h"
#include "origin/origin.h"
#include "store/image.h"

struct request {
	const char *origin, *dir, *store, *gate, *device;
	bool json, start;
	struct sl_store_config cfg;
	char *store_path;
	char *because; /* of --gate auto */
	bool made_dir, made_store;
};

static bool inside(const char *path, const char *dir)
{
	size_t n = strlen(dir);
	return !strncmp(path, dir, n) && (!path[n] || path[n] == '/' || n == 1);
}

static int check_dir(struct request *q, char **why)
{
	struct stat st;
	q->cfg.dir = sl_absolute(q->dir);
	if (!q->cfg.dir)
		return -ENOMEM;
	if (lstat(q->cfg.dir, &st) < 0) {
		if (errno != ENOENT)
			return sl_fail(why, -errno, "%s: %s", q->dir, strerror(errno));
		if (mkdir(q->cfg.dir, 0755) < 0)
			return sl_fail(why, -errno, "cannot make %s: %s", q->dir, strerror(errno));
		q->made_dir = true;
		return 0;
	}
	if (!S_ISDIR(st.st_mode))
		return sl_fail(why, -ENOTDIR, "%s is not a directory", q->dir);
	if (sl_fuse_mounted(q->cfg.dir) != SL_NOT_MOUNTED)
		return sl_fail(why, -EBUSY, "something is mounted on %s already", q->dir);
	DIR *d = opendir(q->cfg.dir);
	if (!d)
		return sl_fail(why, -errno, "%s: %s", q->dir, strerror(errno));
	int n = 0;
	struct dirent *e;
	while ((e = readdir(d)))
		n += strcmp(e->d_name, ".") && strcmp(e->d_name, "..");
	closedir(d);
	return n ? sl_fail(
		       why, -ENOTEMPTY,
		       "%s is not empty: a clone needs an empty directory, or one that does not exist yet",
		       q->dir)
		 : 0;
}

static int check_places(struct request *q, char **why)
{
	const char *dir = q->cfg.dir, *store = q->store_path, *origin = q->cfg.origin;
	if (inside(dir, store))
		return sl_fail(why, -EINVAL, "%s lies inside the store %s: choose another directory", q->dir,
			       store);
	if (inside(store, dir))
		return sl_fail(
		    why, -EINVAL,
		    "the store %s lies inside %s, which the clone would hide: choose another with --store",
		    store, q->dir);
	if (*origin == '/' && (inside(dir, origin) || inside(origin, dir)))
		return sl_fail(why, -EINVAL, "%s and the origin %s lie one inside the other", q->dir, origin);
	if (*origin == '/' && inside(store, origin))
		return sl_fail(why, -EINVAL,
			       "the store %s lies inside the origin %s: choose another with --store", store,
			       origin);
	return 0;
}

static int choose_store(struct request *q, char **why)
{
	unsigned char id[8];
	char hex[17];
	if (getrandom(id, sizeof(id), 0) != sizeof(id))
		return -EIO;
	for (size_t i = 0; i < sizeof(id); i++)
		snprintf(hex + i * 2, 3, "%02x", id[i]);
	q->cfg.id = strdup(hex);
	if (q->store) {
		q->store_path = sl_absolute(q->store);
		return q->cfg.id && q->store_path ? 0 : -ENOMEM;
	}
	_cleanup_free_ char *reg = NULL, *data = NULL;
	int r = sl_registry_dir(&reg, why);
	if (r < 0)
		return r;
	data = sl_path_join(reg, "data");
	r = data ? sl_mkdirs(data, 0700) : -ENOMEM;
	if (r < 0)
		return sl_fail(why, r, "%s: %s", data, strerror(-r));
	const char *base = strrchr(q->cfg.dir, '/');
	base = base && base[1] ? base + 1 : "clone";
	return asprintf(&q->store_path, "%s/%.64s-%.8s", data, base, hex) < 0 ? -ENOMEM : 0;
}

/*
 * The image is as large as what it lies on, which costs nothing: it is sparse, and what limits it is the room
 * there, and --capacity. Larger where that is, or the origin: what is here may be moved to a larger disk.
 */
static void choose_size(struct request *q, const struct sl_oreq *fs)
{
	const uint64_t least = 4ull << 30, most = 4ull << 40;
	uint64_t used = (fs->fs.blocks - SL_MIN(fs->fs.bfree, fs->fs.blocks)) * fs->fs.bsize;
	struct statvfs v;
	_cleanup_free_ char *up = strdup(q->store_path);
	char *slash = up ? strrchr(up, '/') : NULL;
	if (slash > up)
		*slash = '\0';
	uint64_t host =
	    slash && statvfs(slash > up ? up : "/", &v) == 0 ? (uint64_t)v.f_blocks * v.f_frsize : 0;
	uint64_t want = SL_MAX(used + used / 4 + least, host);
	uint64_t size = SL_MIN(want, most), asked = q->cfg.capacity;
	if (asked) {
		size = SL_MAX(asked, SL_IMAGE_MIN);
		if (host > size)
			size = SL_MIN(host, most);
	}
	q->cfg.size = size;
}

/* Is the origin there, and what is at its root? Also tells an origin that is none before anything is made. */
static int meet_origin(struct request *q, char **why)
{
	struct sl_origin_config oc = {.timeout = SL_MIN(q->cfg.timeout, (uint64_t)60),
				      .insecure_plain = q->cfg.insecure_plain};
	struct sl_origin *o;
	_cleanup_free_ char *reason = NULL;
	int r = sl_origin_open(q->cfg.origin, &oc, &o, &reason);
	if (r < 0)
		return sl_fail(why, r, "%s", reason ? reason : strerror(-r));
	struct sl_oreq s = {.op = SL_OREQ_STAT, .place = ""};
	r = sl_origin_call(o, &s);
	if (r < 0)
		sl_fail(why, r, "the origin %s: %s", q->origin, strerror(-r));
	else if (!S_ISDIR(s.attr.mode))
		r = sl_fail(why, -ENOTDIR, "the origin %s is not a directory", q->origin);
	struct sl_oreq fs = {.op = SL_OREQ_STATFS, .place = ""};
	if (r == 0)
		(void)sl_origin_call(o, &fs); /* without an answer it is zeros */
	choose_size(q, &fs);
	sl_oreq_fini(&fs);
	q->cfg.root_ino = s.attr.ino;
	q->cfg.root_generation = (uint32_t)s.attr.generation;
	sl_oreq_fini(&s);
	sl_origin_free(o);
	return r;
}

/* Is @path the root of a filesystem of its own? */
static bool is_mount_root(const char *path)
{
	struct statx sx;
	return statx(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW, STATX_TYPE, &sx) == 0 &&
	       sx.stx_attributes & STATX_ATTR_MOUNT_ROOT;
}

static int choose_gate(struct request *q, char **why)
{
	q->cfg.native = q->gate && !strcmp(q->gate, "fanotify");
	if (q->gate && !strcmp(q->gate, "auto")) {
		_cleanup_free_ char *no = NULL;
		bool lazy = false;
		q->cfg.native = sl_fanotify_available(NULL, &lazy, &no) == 0;
		if (asprintf(
			&q->because, "%s",
			q->cfg.native
			    ? lazy ? "everything that it needs is here, and names need not be fetched first"
				   : "everything that it needs is here, but for lazy directories"
			: no ? no
			     : "it is not possible here") < 0)
			q->because = NULL;
	}
	if (!q->cfg.native && (q->device || q->cfg.capacity))
		return sl_fail(why, -EINVAL, "--%s is for --gate fanotify",
			       q->device ? "device" : "capacity");
	if (!q->cfg.native)
		return sl_fuse_available(why);
	if (geteuid() != 0)
		return sl_fail(why, -EPERM, "the fanotify gate needs root: use --gate fuse");
	if (q->device) {
		q->cfg.device = realpath(q->device, NULL);
		if (!q->cfg.device)
			return sl_fail(why, -errno, "%s: %s", q->device, strerror(errno));
		if (q->cfg.capacity)
			return sl_fail(why, -EINVAL, "--capacity is for an image, and a device has its size");
	} else {
		q->cfg.image = !q->store || !is_mount_root(q->store);
	}
	if (q->cfg.capacity && !q->cfg.image)
		return sl_fail(why, -EINVAL, "--capacity is for an image, and %s has its size", q->store);
	if (q->cfg.capacity && q->cfg.capacity <= q->cfg.reserve)
		return sl_fail(why, -EINVAL,
			       "--capacity must be more than --reserve (%llu bytes), of which it is a part",
			       (unsigned long long)q->cfg.reserve);
	return 0;
}

static int make(struct request *q, char **why)
{
	int r = choose_gate(q, why);
	if (r == 0)
		r = sl_origin_normalize(q->origin, &q->cfg.origin, why);
	if (r == 0)
		r = check_dir(q, why);
	if (r == 0)
		r = choose_store(q, why);
	if (r == 0)
		r = check_places(q, why);
	if (r == 0)
		r = meet_origin(q, why);
	if (r == 0)
		r = sl_store_create(q->store_path, &q->cfg, why);
	if (r < 0)
		return r;
	q->made_store = true;
	/* As it will be found: without symlinks on the way. */
	char *real = realpath(q->store_path, NULL);
	if (real) {
		free(q->store_path);
		q->store_path = real;
	}
	r = sl_registry_add(q->cfg.id, q->store_path, why);
	if (r == 0 && q->start)
		r = sl_service_start(q->store_path, true, !q->json, why);
	return r;
}

static void undo(struct request *q)
{
	if (q->made_store) {
		sl_registry_remove(q->cfg.id);
		(void)sl_store_remove(q->store_path, NULL);
	}
	if (q->made_dir)
		rmdir(q->cfg.dir);
}

static int parse(const struct sl_command *cmd, int argc, char **argv, struct request *q)
{
	static const struct option opts[] = {
	    {"store", required_argument, NULL, 's'},	{"limit", required_argument, NULL, 'l'},
	    {"reserve", required_argument, NULL, 'r'},	{"timeout", required_argument, NULL, 't'},
	    {"allow-other", no_argument, NULL, 'a'},	{"insecure-plain", no_argument, NULL, 'i'},
	    {"events", required_argument, NULL, 'e'},	{"gate", required_argument, NULL, 'g'},
	    {"capacity", required_argument, NULL, 'c'}, {"device", required_argument, NULL, 'd'},
	    {"no-start", no_argument, NULL, 'n'},	{"json", no_argument, NULL, 'j'},
	    {"help", no_argument, NULL, 'h'},		{0}};
	int c;
	while ((c = getopt_long(argc, argv, "jh", opts, NULL)) != -1)
		switch (c) {
		case 's':
			q->store = optarg;
			break;
		case 'l':
			if (sl_parse_size(optarg, &q->cfg.limit) < 0)
				return sl_cli_usage(cmd, "--limit: '%s' is not a size (like 10G)", optarg);
			break;
		case 'r':
			if (sl_parse_size(optarg, &q->cfg.reserve) < 0)
				return sl_cli_usage(cmd, "--reserve: '%s' is not a size (like 1G)", optarg);
			break;
		case 't':
			if (sl_parse_duration(optarg, &q->cfg.timeout) < 0 || !q->cfg.timeout)
				return sl_cli_usage(cmd, "--timeout: '%s' is not a duration (like 30s or 5m)",
						    optarg);
			break;
		case 'a':
			q->cfg.allow_other = true;
			break;
		case 'i':
			q->cfg.insecure_plain = true;
			break;
		case 'e':
			if (!sl_cli_events(optarg, &q->cfg.uses))
				return sl_cli_usage(cmd, "--events: '%s' is not of " SL_CLI_EVENTS, optarg);
			break;
		case 'g':
			if (strcmp(optarg, "fuse") && strcmp(optarg, "fanotify") && strcmp(optarg, "auto"))
				return sl_cli_usage(
				    cmd, "--gate: there is no gate '%s', only auto, fuse and fanotify",
				    optarg);
			q->gate = optarg;
			break;
		case 'c':
			if (sl_parse_size(optarg, &q->cfg.capacity) < 0)
				return sl_cli_usage(cmd, "--capacity: '%s' is not a size (like 100G)",
						    optarg);
			break;
		case 'd':
			q->device = optarg;
			break;
		case 'n':
			q->start = false;
			break;
		case 'j':
			q->json = true;
			break;
		case 'h':
			return -1;
		default:
			return sl_cli_usage(cmd, "see above");
		}
	if (optind + 2 != argc)
		return sl_cli_usage(cmd, "needs an origin and a directory");
	q->origin = argv[optind];
	q->dir = argv[optind + 1];
	return 0;
}

static int run_clone(const struct sl_command *cmd, int argc, char **argv)
{
	struct request q = {
	    .start = true, .cfg = {.reserve = SL_STORE_DEFAULT_RESERVE, .timeout = SL_STORE_DEFAULT_TIMEOUT}};
	_cleanup_free_ char *why = NULL;
	int r = parse(cmd, argc, argv, &q);
	if (r)
		return r < 0 ? sl_cli_help(cmd) : r;
	uint64_t t0 = sl_now();
	r = make(&q, &why);
	if (r < 0) {
		undo(&q);
		if (q.json) {
			json_t *j = json_pack("{sbss}", "ok", 0, "error", why ? why : strerror(-r));
			if (j)
				sl_print_json(j);
			json_decref(j);
		}
		sl_cli_fail("%s", why ? why : strerror(-r));
	} else if (q.json) {
		json_t *j =
		    json_pack("{sb ss ss ss ss sf}", "ok", 1, "id", q.cfg.id, "origin", q.cfg.origin, "dir",
			      q.cfg.dir, "store", q.store_path, "seconds", (double)(sl_now() - t0) / 1e9);
		json_object_set_new(j, "gate", json_string(q.cfg.native ? "fanotify" : "fuse"));
		if (q.because)
			json_object_set_new(j, "gate_because", json_string(q.because));
		sl_print_json(j);
		json_decref(j);
	} else {
		char t[16];
		printf("%s is a clone of %s (%s)\n", q.dir, q.cfg.origin, sl_format_ns(t, sl_now() - t0));
		if (q.because)
			printf("behind the %s gate: %s\n", q.cfg.native ? "fanotify" : "fuse", q.because);
	}
	free(q.store_path);
	free(q.because);
	sl_store_config_fini(&q.cfg);
	return r < 0 ? SL_EXIT_FAIL : SL_EXIT_OK;
}

const struct sl_command sl_cmd_clone = {
    .name = "clone",
    .summary = "Make a lazy clone of a remote tree, or of a local one",
    .usage = "[OPTION…] ORIGIN DIR",
    .help =
	"DIR shows the whole tree at once. Names arrive when a directory is first looked into, bytes when "
	"they are first read.\n\n"
	"ORIGIN is one of\n"
	"  HOST:PATH, ssh://[USER@]HOST[:PORT]/PATH   a tree on another machine that has sluice, by ssh\n"
	"  unix:SOCKET                                what 'sluice serve --unix SOCKET TREE' exports here\n"
	"  exec:COMMAND                               a command that speaks the protocol on its standard "
	"input and output\n"
	"  vsock:CID:PORT                             what 'sluice serve --vsock' exports in another "
	"virtual\n"
	"                                             machine, or on the host (CID 2)\n"
	"  dev:DEVICE                                 a virtual machine's port to an exporter on its host\n"
	"  tcp:HOST:PORT                              a plain connection; needs --insecure-plain\n"
	"  PATH                                       a local directory; no server needed\n\n"
	"      --store PATH      where to keep what arrives (default: below ~/.local/state/sluice, for root "
	"/var/lib/sluice)\n"
	"      --limit SIZE      keep at most this much content; the longest unused is evicted first\n"
	"      --reserve SIZE    leave this much free on the store's filesystem (default 256M)\n"
	"      --timeout TIME    how long an access waits for the origin before it fails with EIO (default "
	"2m)\n"
	"      --allow-other     let other users use DIR, as far as its permissions do\n"
	"      --gate GATE       auto, fuse, or fanotify: DIR is then a real local filesystem (root, Linux "
	"6.15; without "
	"the project's kernel series all names are fetched first)\n"
	"      --capacity SIZE   give a fanotify clone so much room, with what is written locally (default: "
	"as "
	"much as there is)\n"
	"      --device DEV      put it on a block device, which must be empty\n"
	"      --events LIST     let watchers hear as well of what is only opened, read or closed at the "
	"origin:\n"
	"                        some of " SL_CLI_EVENTS "\n"
	"      --insecure-plain  allow tcp: origins, which are neither encrypted nor authenticated\n"
	"      --no-start        make the clone, but do not start it\n"
	"  -j, --json            print the result as JSON\n"
	"  -h, --help            this text\n\n"
	"Example:\n  sluice clone nas:/export/data ~/data\n",
    .run = run_clone,
};
