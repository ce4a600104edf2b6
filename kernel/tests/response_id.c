// SPDX-License-Identifier: GPL-2.0-only
// If this fails, an answer reaches another event than the one it is for, or what a service had read and not
// answered is lost when another takes over its group.

#include "hsm.h"

static struct fs fs;

static int look(void *arg)
{
	char p[256];
	struct stat st;
	snprintf(p, sizeof(p), "%s/%s/f", fs.top, (const char *)arg);
	return stat(p, &st) == 0 ? 0 : errno;
}

static int raw_answer(int group, int fd, unsigned int response, const void *info, size_t len)
{
	char b[64];
	struct fanotify_response r = {.fd = fd, .response = response};
	memcpy(b, &r, sizeof(r));
	memcpy(b + sizeof(r), info, len);
	ssize_t n = write(group, b, sizeof(r) + len);
	return n < 0 ? -errno : (int)n;
}

int main(void)
{
	struct service svc;
	struct event e[4];
	fs_new(&fs);
	for (int i = 0; i < 8; i++) {
		char name[8];
		snprintf(name, sizeof(name), "d%d", i);
		cold(&fs, name);
	}

	ok(fan_init(FAN_CLASS_NOTIF | FAN_REPORT_RESPONSE_ID, O_RDONLY) < 0 && errno == EINVAL,
	   "not without permission events");
	service_open(&svc, &fs, FAN_REPORT_RESPONSE_ID, O_RDONLY, FAN_PRE_DIR_ACCESS);
	if (fan_mark(svc.group, FAN_MARK_ADD | FAN_MARK_IGNORE_SURV, FAN_PRE_DIR_ACCESS, fs.work, ".") < 0)
		bail("mark of the top");

	// Two events; the second is answered first.
	pid_t p0 = start(look, "d0");
	bool got = next_event(svc.group, &e[0]);
	pid_t p1 = start(look, "d1");
	got = next_event(svc.group, &e[1]) && got;
	ok(got && e[0].id && e[1].id && e[0].id != e[1].id, "each event has an id of its own");
	ok(e[0].fd >= 0, "and a descriptor as before");
	ok(respond(svc.group, &e[1], FAN_DENY_ERRNO(EBUSY)) == 0 && finish(p1) == EBUSY,
	   "the second is answered first");
	ok(respond(svc.group, &e[1], FAN_ALLOW) == -ENOENT, "and once only");

	struct fanotify_response_info_id id = {.hdr = {.type = FAN_RESPONSE_INFO_ID, .len = sizeof(id)},
					       .id = e[0].id};
	ok(raw_answer(svc.group, e[0].fd, FAN_ALLOW, "", 0) == -EINVAL, "a descriptor is no answer");
	ok(raw_answer(svc.group, FAN_NOFD, FAN_ALLOW, "", 0) == -EINVAL, "nor is nothing");
	ok(raw_answer(svc.group, e[0].fd, FAN_ALLOW | FAN_INFO, &id, sizeof(id)) == -EINVAL, "nor both");
	ok(raw_answer(svc.group, FAN_NOFD, FAN_ALLOW | FAN_INFO, &id, sizeof(id) - 1) == -EINVAL,
	   "nor a part of the record");
	struct fanotify_response_info_id bad = id;
	bad.pad = 1;
	ok(raw_answer(svc.group, FAN_NOFD, FAN_ALLOW | FAN_INFO, &bad, sizeof(bad)) == -EINVAL,
	   "nor what is reserved");
	bad = id;
	bad.id = e[1].id + 1000;
	ok(raw_answer(svc.group, FAN_NOFD, FAN_ALLOW | FAN_INFO, &bad, sizeof(bad)) == -ENOENT,
	   "nor an id that nobody has");
	ok(raw_answer(svc.group, FAN_NOFD, FAN_ALLOW | FAN_INFO, &id, sizeof(id)) ==
	       (int)(sizeof(struct fanotify_response) + sizeof(id)),
	   "the id is");
	ok(finish(p0) == ENOENT, "allowed: what is on disk is seen");
	close(e[0].fd);
	close(e[1].fd);

	// A successor asks for what was not answered. Of three events one is answered, and of another the
	// process is gone.
	pid_t p[3];
	const char *const dirs[] = {"d2", "d3", "d4"};
	for (int i = 0; i < 3; i++) {
		p[i] = start(look, (void *)dirs[i]);
		got = next_event(svc.group, &e[i]) && got;
	}
	ok(got && respond(svc.group, &e[1], FAN_ALLOW) == 0 && finish(p[1]) == ENOENT,
	   "one of three is answered");
	kill(p[2], SIGKILL);
	ok(finish(p[2]) == -1, "one is killed");
	for (int i = 0; i < 3; i++)
		close(e[i].fd);
	ok(no_event(svc.group), "nothing is to be read");
	ok(ioctl(svc.group, FAN_IOC_REPORT_AGAIN) == 1, "one event is unanswered");
	struct event again;
	ok(next_event(svc.group, &again) && again.id == e[0].id && again.fd >= 0 && no_event(svc.group),
	   "it is reported again, with its id and a new descriptor");
	int d = event_dir(&svc, &again);
	ok(fill(d) == 0 && respond(svc.group, &again, FAN_ALLOW) == 0 && finish(p[0]) == 0,
	   "and served by the successor");
	close(d);
	close(again.fd);
	ok(ioctl(svc.group, FAN_IOC_REPORT_AGAIN) == 0, "then there is none");

	// Who is killed while the event is queued again leaves nothing behind.
	pid_t k = start(look, "d5");
	got = next_event(svc.group, &e[0]);
	close(e[0].fd);
	ok(got && ioctl(svc.group, FAN_IOC_REPORT_AGAIN) == 1, "again");
	kill(k, SIGKILL);
	ok(finish(k) == -1 && no_event(svc.group), "killed while it is queued again");

	// And a group that ends with an event queued again lets nobody hang.
	k = start(look, "d6");
	got = next_event(svc.group, &e[0]);
	close(e[0].fd);
	ok(got && ioctl(svc.group, FAN_IOC_REPORT_AGAIN) == 1, "once more");
	service_stop(&svc);
	ok(finish(k) == ENOENT, "the end of the group ends it");

	// A group without ids has no such call.
	service_open(&svc, &fs, 0, O_RDONLY, FAN_PRE_DIR_ACCESS);
	ok(ioctl(svc.group, FAN_IOC_REPORT_AGAIN) < 0 && errno == EINVAL, "not in a group without ids");
	service_stop(&svc);
	fs_end(&fs);
	return done();
}
