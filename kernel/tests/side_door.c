// SPDX-License-Identifier: GPL-2.0-only
// If this fails, somebody has used a directory that the service had not filled: a name was missing, a listing
// was short, or something was created or removed as if the directory were empty.
//
// Each way to a name (ways.h) gets a directory of its own for each circumstance: with nothing of it in the
// dcache, with negative dentries from before the mark in it, by an RCU walk and by a ref walk, while somebody
// else has it filled, while a mark on it is being removed; and twice when it is filled, where no event may
// come.

#include "ways.h"

#include <semaphore.h>

static struct fs fs;
static struct service svc;
enum when { COLD, COLD_REF, NEGATIVE, NEGATIVE_REF, LISTED, FILLING, UNMARKING, TIMES };
static const char *const when_names[TIMES] = {
    "nothing cached", "nothing cached, ref walk", "negative dentries",	     "negative dentries, ref walk",
    "listed before",  "while it is being filled", "while a mark is removed",
};

// One way and its directories.
struct door {
	const struct way *way;
	const char *group;
	char names[TIMES][64];
	int old_fds[TIMES];
};
static struct door *doors;
static size_t n_doors;

static bool applies(const struct way *w, enum when c)
{
	bool ref = c == COLD_REF || c == NEGATIVE_REF;
	return w->ref ? ref || c > NEGATIVE_REF : !(ref && w->by_fd);
}

static int lists_other(void *arg)
{
	if (chdir(fs.top) < 0)
		return 1;
	DIR *dir = opendir(arg);
	while (dir && readdir(dir))
		;
	return !dir;
}

// --- one event that is held back, until the way has come to where it waits as well

static atomic_int hold; // 0, or how the next event is held: FILLING, UNMARKING
static sem_t held, go;

static int answer(struct service *s, struct event *e)
{
	int how = atomic_exchange(&hold, 0);
	if (how) {
		int d = event_dir(s, e);
		if (how == FILLING && fill_half(d) != 0)
			diag("half a directory: %s", strerror(errno));
		close(d);
		sem_post(&held);
		sem_wait(&go);
	}
	return fill_and_ignore(s, e);
}

// How many threads of the system sleep uninterruptibly, as who waits for an answer does.
static int waiting(void)
{
	int n = 0;
	DIR *proc = opendir("/proc");
	for (struct dirent *e; proc && (e = readdir(proc));) {
		char p[600];
		snprintf(p, sizeof(p), "/proc/%s/task", e->d_name);
		DIR *tasks = e->d_name[0] >= '1' && e->d_name[0] <= '9' ? opendir(p) : NULL;
		for (struct dirent *t; tasks && (t = readdir(tasks));) {
			char line[512] = "";
			snprintf(p, sizeof(p), "/proc/%s/task/%s/stat", e->d_name, t->d_name);
			int fd = t->d_name[0] == '.' ? -1 : open(p, O_RDONLY);
			if (fd < 0)
				continue;
			ssize_t got = read(fd, line, sizeof(line) - 1);
			close(fd);
			char *state = got > 0 ? strrchr(line, ')') : NULL;
			n += state && state[1] == ' ' && state[2] == 'D';
		}
		if (tasks)
			closedir(tasks);
	}
	if (proc)
		closedir(proc);
	return n;
}

static bool ended(pid_t pid)
{
	siginfo_t info = {0};
	return waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT) < 0 || info.si_pid == pid;
}

static int beside(struct way_run *r, enum when c)
{
	int d = openat(fs.work, r->d, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	// A mark that changes nothing, until it goes away.
	if (d < 0 || (c == UNMARKING &&
		      fan_mark(svc.group, FAN_MARK_ADD | FAN_MARK_IGNORE_SURV, FAN_PRE_ACCESS, d, NULL) < 0))
		bail("mark on %s", r->d);
	hold = (int)c;
	pid_t other = start(lists_other, (void *)r->d);
	struct timespec limit;
	clock_gettime(CLOCK_REALTIME, &limit);
	limit.tv_sec += LIMIT_SEC;
	if (sem_timedwait(&held, &limit) < 0)
		bail("nobody asks for %s", r->d);
	if (c == UNMARKING &&
	    fan_mark(svc.group, FAN_MARK_REMOVE | FAN_MARK_IGNORE, FAN_PRE_ACCESS, d, NULL) < 0)
		bail("removing a mark from %s", r->d);
	close(d);
	pid_t p = start(way_run, r);
	double end = now() + LIMIT_SEC;
	while (!ended(p) && waiting() < 2 && now() < end)
		usleep(1000);
	sem_post(&go);
	int res = finish(p);
	if (finish(other) != 0)
		diag("%s: who came first has seen nothing", r->d);
	return res;
}

// --- rows

// How a way may be asked for: it must be, must not be, or somebody else is.
enum asks { ASKED, NOT_ASKED, ELSE };

static void result(const struct door *door, const char *when, int res, int events, enum asks asks)
{
	static const char *const good[] = {"filled first", "not asked", "right"};
	const char *text = good[asks];
	if (res != 0 || (!*way_refuse && asks != ELSE && (events > 0) != (asks == ASKED)))
		text = "WRONG";
	else if (*way_refuse)
		text = strerrorname_np(*way_refuse);
	ok(strcmp(text, "WRONG") != 0, "%s: %s, %d events", when, door->way->name, events);
	row(door->group, door->way->name, when, text);
}

static void all_ways(void)
{
	static const struct way *const lists_of_ways[] = {ways_names, ways_changes, ways_places,
							  ways_programs};
	for (int pass = 0; pass < 2; pass++) {
		const char *group = NULL;
		n_doors = 0;
		for (size_t l = 0; l < sizeof(lists_of_ways) / sizeof(lists_of_ways[0]); l++) {
			for (const struct way *w = lists_of_ways[l]; w->fn; w++, n_doors++) {
				group = w->group ? w->group : group;
				if (pass)
					doors[n_doors] = (struct door){.way = w, .group = group};
			}
		}
		if (!pass && !(doors = calloc(n_doors, sizeof(*doors))))
			bail("memory");
	}
}

static void drop_dentries(void)
{
	int fd = open("/proc/sys/vm/drop_caches", O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, "2\n", 2) != 2)
		bail("drop_caches");
	close(fd);
}

// Directories as they are before there is a mark.
static void prepare(void)
{
	for (int c = 0; c < TIMES; c++) {
		for (size_t i = 0; i < n_doors; i++) {
			snprintf(doors[i].names[c], 64, "%s-%d", doors[i].way->id, c);
			if (applies(doors[i].way, (enum when)c))
				cold(&fs, doors[i].names[c]);
		}
	}
	sync();
	drop_dentries();
	for (int c = 0; c < TIMES; c++) {
		for (size_t i = 0; i < n_doors; i++) {
			char p[256];
			struct stat st;
			const char *const in[] = {"f", "s", "l", "x", "none", "g"};
			if (!applies(doors[i].way, (enum when)c))
				continue;
			for (size_t k = 0;
			     (c == NEGATIVE || c == NEGATIVE_REF) && k < sizeof(in) / sizeof(in[0]); k++) {
				snprintf(p, sizeof(p), "%s/%s/%s", fs.top, doors[i].names[c], in[k]);
				if (stat(p, &st) == 0)
					bail("%s is there", p);
			}
			snprintf(p, sizeof(p), "%s/%s", fs.top, doors[i].names[c]);
			if (c == LISTED) {
				DIR *d = opendir(p);
				while (d && readdir(d))
					;
				closedir(d);
			}
			doors[i].old_fds[c] = doors[i].way->old_fd ? open(p, O_RDONLY | O_DIRECTORY) : -1;
		}
	}
}

static void try_door(struct door *door)
{
	for (int c = 0; c < TIMES; c++) {
		char path[128];
		struct way_run r = {.top = fs.top, .way = door->way, .d = door->names[c]};
		int before = svc.seen, res;
		old_dir = door->old_fds[c];
		*way_refuse = 0;
		if (!applies(door->way, (enum when)c)) {
			row(door->group, door->way->name, when_names[c], "–");
			continue;
		}
		if (c == FILLING || c == UNMARKING) {
			res = beside(&r, (enum when)c);
		} else {
			snprintf(path, sizeof(path), "/proc/self/cwd/%s", r.d);
			if ((c == COLD_REF || c == NEGATIVE_REF) && !door->way->by_fd)
				r.d = path;
			res = in_time(way_run, &r);
		}
		result(door, when_names[c], res, svc.seen - before,
		       c == FILLING || c == UNMARKING ? ELSE : ASKED);
	}

	// Filled and ignored, it is like any other directory. "moved" and such leave it as it was.
	enum when c = door->way->ref ? COLD_REF : COLD;
	struct way_run r = {.top = fs.top, .way = door->way, .d = door->names[c]};
	static const char *const later[] = {"filled", "filled, dentries dropped"};
	old_dir = door->old_fds[c];
	for (int i = 0; i < 2; i++) {
		if (door->way->once) {
			row(door->group, door->way->name, later[i], "–");
			continue;
		}
		if (i)
			drop_dentries();
		int before = svc.seen;
		*way_refuse = 0;
		int res = in_time(way_run, &r);
		result(door, later[i], res, svc.seen - before, NOT_ASKED);
	}
}

int main(void)
{
	if (sem_init(&held, 0, 0) < 0 || sem_init(&go, 0, 0) < 0)
		bail("semaphores");
	ways_init();
	fs_new(&fs);
	if (mkdirat(fs.work, "other-dir", 0755) < 0)
		bail("other-dir");
	close(openat(fs.work, "other", O_WRONLY | O_CREAT, 0644));
	if (fchmodat(fs.work, ".", 0777, 0) < 0)
		bail("chmod");
	all_ways();
	prepare();

	service_open(&svc, &fs, 0, O_RDONLY, FAN_PRE_DIR_ACCESS);
	svc.answer = answer;
	// What is there beside the cold directories is complete.
	if (fan_mark(svc.group, FAN_MARK_ADD | FAN_MARK_IGNORE_SURV, FAN_PRE_DIR_ACCESS, fs.work, ".") < 0)
		bail("mark of the top");
	service_run(&svc);

	for (size_t i = 0; i < n_doors; i++)
		try_door(&doors[i]);
	service_stop(&svc);
	fs_end(&fs);
	return done();
}
