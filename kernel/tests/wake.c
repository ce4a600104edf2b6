// SPDX-License-Identifier: GPL-2.0-only
// If this fails, an answer wakes others than the one who waits for it: with thousands who wait nobody gets
// on, because all are woken for each answer. Counted are the times that those who wait were switched away
// from, not seconds.

#include "hsm.h"

#include <sys/resource.h>

#define WAITERS 2000
#define EACH	4 // switches that an access may take: one to wait, the others for locks on its way

static struct fs fs;
static struct service svc;

struct waiter {
	pthread_t thread;
	int nr, error;
	long switches;
};
static atomic_int begun;

static long switches(void)
{
	struct rusage u;
	getrusage(RUSAGE_THREAD, &u);
	return u.ru_nvcsw;
}

static void *look(void *arg)
{
	struct waiter *w = arg;
	char p[128];
	struct stat st;
	snprintf(p, sizeof(p), "%s/d/n%d", fs.top, w->nr);
	long before = switches();
	begun++;
	w->error = stat(p, &st) < 0 ? errno : 0;
	w->switches = switches() - before;
	return NULL;
}

// Do all of them sleep in the kernel?
static bool all_wait(void)
{
	for (double end = now() + 10 * LIMIT_SEC; now() < end; usleep(10000)) {
		int n = 0;
		DIR *d = opendir("/proc/self/task");
		for (struct dirent *e; d && (e = readdir(d));) {
			char name[300], line[512];
			snprintf(name, sizeof(name), "/proc/self/task/%s/stat", e->d_name);
			FILE *f = e->d_name[0] == '.' ? NULL : fopen(name, "re");
			char *p = f && fgets(line, sizeof(line), f) ? strrchr(line, ')') : NULL;
			n += p && p[1] == ' ' && p[2] == 'D';
			if (f)
				fclose(f);
		}
		if (d)
			closedir(d);
		if (begun == WAITERS && n >= WAITERS)
			return true;
	}
	return false;
}

static struct waiter waiters[WAITERS];

static void begin(void)
{
	pthread_attr_t attr;
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 65536);
	begun = 0;
	for (int i = 0; i < WAITERS; i++) {
		waiters[i] = (struct waiter){.nr = i};
		if (pthread_create(&waiters[i].thread, &attr, look, &waiters[i]) != 0)
			bail("thread %d", i);
	}
}

// How many ended with this error; the switches of all.
static int join(int error, long *sum)
{
	int n = 0;
	*sum = 0;
	for (int i = 0; i < WAITERS; i++) {
		pthread_join(waiters[i].thread, NULL);
		n += waiters[i].error == error;
		*sum += waiters[i].switches;
	}
	return n;
}

int main(void)
{
	struct event e;
	long sum;
	fs_new(&fs);
	cold(&fs, "d");
	service_open(&svc, &fs, FAN_REPORT_RESPONSE_ID | FAN_REPORT_DIR_FID, O_RDONLY, FAN_PRE_DIR_ACCESS);
	if (fan_mark(svc.group, FAN_MARK_ADD | FAN_MARK_IGNORE_SURV, FAN_PRE_DIR_ACCESS, fs.work, ".") < 0)
		bail("mark of the top");

	// All wait, then one after the other is answered; half of the events have been read before.
	begin();
	ok(all_wait(), "%d accesses wait", WAITERS);
	static struct event early[WAITERS / 2];
	int n = 0;
	while (n < WAITERS / 2 && next_event(svc.group, &early[n]))
		n++;
	for (int i = 0; i < n; i++)
		if (respond(svc.group, &early[i], FAN_DENY_ERRNO(EBUSY)) < 0)
			bail("answer %d", i);
	while (n < WAITERS && next_event(svc.group, &e) && respond(svc.group, &e, FAN_DENY_ERRNO(EBUSY)) == 0)
		n++;
	ok(n == WAITERS && join(EBUSY, &sum) == WAITERS, "each gets its answer");
	ok(sum <= (long)WAITERS * EACH, "%ld switches for %d answers", sum, WAITERS);

	// The end of the group is an answer for all, read or not.
	begin();
	ok(all_wait(), "%d accesses wait again", WAITERS);
	for (n = 0; n < WAITERS / 2 && next_event(svc.group, &e); n++)
		;
	service_stop(&svc);
	ok(join(ENOENT, &sum) == WAITERS, "all get on when the group ends");
	ok(sum <= (long)WAITERS * EACH, "%ld switches for its end", sum);
	fs_end(&fs);
	return done();
}
