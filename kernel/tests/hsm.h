// SPDX-License-Identifier: GPL-2.0-only
// What the selftests of the series share: a filesystem, a small service that fills directories, and TAP.
//
// The filesystem is in memory, mounted at fs.top. Directories of it can be *cold*: empty on disk,
// with a content that the service knows. A cold directory has the file "f" ("content\n"), the cold directory
// "s" (with the file "g"), the symbolic link "l" to "f" and the program "x", which exits with 7. Whoever sees
// less has come through a side door.
//
// The service is a thread of the test with a group of its own: a filesystem mark, and a work mount that
// ignores the events. It fills a directory, marks it to be ignored, and answers. Those who access are child
// processes, so that one that hangs can be killed; in_time() gives each its limit.

#ifndef HSM_H
#define HSM_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fanotify.h>
#include <linux/fs.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/xattr.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

// A limit that no slow machine reaches; what takes longer hangs.
#define LIMIT_SEC 40

extern int tap_count, tap_failed;
void ok(bool good, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void diag(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void bail(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));
int done(void);
// A line from which docs/side-doors.md is made: what came of this way to a directory, under which
// circumstances.
void row(const char *group, const char *way, const char *when, const char *result);

struct event {
	__u64 mask;
	int fd;	  // of the event, or a negative number
	__u64 id; // with FAN_REPORT_RESPONSE_ID, else 0
	int pid;
	char name[256];	     // "" when none is reported
	__u64 offset, count; // of FAN_PRE_ACCESS
	bool has_fid;
	__kernel_fsid_t fsid;
	struct {
		struct file_handle h;
		unsigned char bytes[128];
	} handle; // of the directory, or of the file when there is no directory in the event
};

struct service {
	int group, work; // work: the root of the work mount
	// When set, called for each event instead of filling; returns the answer, or -1 to leave it
	// unanswered.
	int (*answer)(struct service *s, struct event *e);
	void *arg;
	pthread_t thread;
	bool running;
	int stop[2];
	atomic_int seen;   // events, all
	atomic_int filled; // directories
	pthread_mutex_t lock;
	struct event last; // under lock
};

struct fs {
	char top[64]; // where it is mounted
	int tree;     // keeps a mount of its own of the same filesystem, attached nowhere
	int work;     // its root; marks on it are the service's
};

int fan_init(unsigned int flags, unsigned int event_flags);
int fan_mark(int group, unsigned int flags, uint64_t mask, int dfd, const char *path);

// A new filesystem that is mounted at a new place; ends the program when it cannot. Of the kind that fs_kind
// says, which is ext4 if nobody changes it.
extern const char *fs_kind;
void fs_new(struct fs *f);
void fs_end(struct fs *f);

// What others do with a filesystem while somebody waits, for in_time(); @fs is a struct fs. 0 when it went well.
int fs_freeze(void *fs);
int fs_thaw(void *fs);
int fs_remount(void *fs); // read-only and back
int fs_reclaim(void *fs); // sync, and drop what is in the dcache
// Is what is mounted at @path in use, so that it cannot be unmounted?
int is_busy(void *path);

// Make a cold directory below the top, through the work mount.
void cold(struct fs *f, const char *name);
// Fill a directory that was made with cold(); 0 or -errno.
int fill(int dirfd);
// The first two names only; fill() does the rest.
int fill_half(int dirfd);

// Open the directory of an event through the work mount.
int event_dir(struct service *s, const struct event *e);

// Start a service with a group of these flags (FAN_CLASS_PRE_CONTENT is added) and a filesystem mark with
// this mask.
void service_start(struct service *s, struct fs *f, unsigned int init_flags, unsigned int event_flags,
		   uint64_t mask);
// Only the group and its marks, no thread.
void service_open(struct service *s, struct fs *f, unsigned int init_flags, unsigned int event_flags,
		  uint64_t mask);
void service_run(struct service *s);
void service_stop(struct service *s);

// What a service does with an event when it has no answer() of its own; returns the answer.
int fill_and_ignore(struct service *s, struct event *e);

// Read one event within the limit; false when none came. The caller owns e->fd.
bool next_event(int group, struct event *e);
// No event is there now.
bool no_event(int group);
int respond(int group, const struct event *e, unsigned int response);

// Run fn in a child within the limit; its result (a small number), -1 when it hung or was killed.
int in_time(int (*fn)(void *), void *arg);
pid_t start(int (*fn)(void *), void *arg);
int finish(pid_t pid);
// Is this process asleep in the kernel, waiting for an answer? Waits for that up to the limit.
bool waits(pid_t pid);
double now(void);

#endif
