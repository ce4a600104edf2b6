/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A clone in one process, whose events come from standard input instead of from the origin, so that each may
 * be given out of season: replay_feed ORIGIN STORE DIR. It prints "ready", then answers each line.
 *
 *   event MASK PLACE[\tNEWPLACE]   what is there now is its state; MASK in hexadecimal, as FAN_*
 *   lost
 *   settle                         answered when all is done: "settled APPLIED SKIPPED CONFLICTS FAILED"
 */
#include <pthread.h>
#include <stdio.h>
#include <sys/fanotify.h>

#include "base/fd.h"
#include "base/log.h"
#include "gate/fuse/mount.h"
#include "replay/echo.h"
#include "replay/replay.h"
#include "store/remote.h"

static struct sl_gate *gate;

static void changing(void *arg, struct sl_object *o, uint64_t size)
{
	(void)arg;
	sl_gate_changing(gate, o, size);
}

static void changed(void *arg, struct sl_object *o)
{
	(void)arg;
	sl_gate_changed(gate, o);
}

static void *run_gate(void *arg)
{
	(void)arg;
	(void)sl_gate_run(gate);
	return NULL;
}

static void check(int r, const char *what, const char *why)
{
	if (r >= 0)
		return;
	fprintf(stderr, "%s: %s (%s)\n", what, strerror(-r), why ? why : "");
	exit(1);
}

static char *state_of(struct sl_origin *o, const char *place, struct sl_ostate *s)
{
	struct sl_oreq q = {.op = SL_OREQ_STAT, .place = place, .fresh = true};
	char *target = NULL;
	int r = sl_origin_call(o, &q);
	*s = (struct sl_ostate){.known = true, .present = r == 0, .attr = q.attr};
	sl_oreq_fini(&q);
	if (r < 0 || !S_ISLNK(s->attr.mode))
		return NULL;
	const char *slash = strrchr(place, '/');
	char *dir = slash ? strndup(place, (size_t)(slash - place)) : strdup("");
	struct sl_oreq l = {.op = SL_OREQ_LIST, .place = dir};
	(void)sl_origin_call(o, &l);
	for (size_t i = 0; i < l.nentries; i++)
		if (!strcmp(l.entries[i].name, slash ? slash + 1 : place) && l.entries[i].target)
			target = strdup(l.entries[i].target);
	sl_oreq_fini(&l);
	free(dir);
	s->target = target;
	return target;
}

static void feed(struct sl_replay *p, struct sl_origin *o, char *line)
{
	static uint64_t seq;
	char *rest;
	struct sl_oevent e = {.seq = ++seq, .mask = strtoull(line, &rest, 16)};
	rest += *rest == ' ';
	char *tab = strchr(rest, '\t');
	if (tab)
		*tab = '\0';
	e.place = rest;
	e.newplace = tab ? tab + 1 : NULL;
	char *t1 = state_of(o, e.place, &e.state), *t2 = tab ? state_of(o, e.newplace, &e.newstate) : NULL;
	struct sl_ostate *s = tab ? &e.newstate : &e.state;
	if (s->present && !(e.mask & FAN_DELETE)) {
		e.child_ino = s->attr.ino;
		e.child_generation = s->attr.generation;
	}
	sl_replay_event(p, &e);
	free(t1);
	free(t2);
}

static void settle(struct sl_replay *p)
{
	struct sl_replay_stats s;
	do {
		usleep(1000);
		sl_replay_get_stats(p, &s);
	} while (s.queued || s.comparing || s.applied + s.skipped < s.events);
	printf("settled %llu %llu %llu %llu\n", (unsigned long long)s.applied, (unsigned long long)s.skipped,
	       (unsigned long long)s.conflicts, (unsigned long long)s.failed);
}

int main(int argc, char **argv)
{
	char *why = NULL, line[16384], id[] = "feed";
	struct sl_helper *helper = NULL;
	struct sl_store *store = NULL;
	struct sl_origin *origin = NULL;
	struct sl_fill *fill = NULL;
	struct sl_echo_acts *echo = NULL;
	struct sl_replay *replay = NULL;
	pthread_t thread;
	if (argc != 4)
		return 2;
	umask(0);
	check(sl_helper_start(&helper), "helper", NULL);
	struct sl_store_config sc = {.origin = argv[1], .dir = argv[3], .id = id, .timeout = 30};
	check(sl_store_create(argv[2], &sc, &why), "store", why);
	check(sl_store_open(argv[2], &store, &why), "store", why);
	struct sl_origin_config oc = {.timeout = 30};
	check(sl_origin_open(argv[1], &oc, &origin, &why), "origin", why);
	struct sl_oreq q = {.op = SL_OREQ_STAT, .place = ""};
	check(sl_origin_call(origin, &q), "root", NULL);
	check(sl_placeholder_root(store, &q.attr), "root", NULL);
	struct sl_fill_config fc = {
	    .store = store, .origin = origin, .changed = changed, .changing = changing, .mark = true};
	check(sl_fill_new(&fc, &fill), "fill", NULL);
	struct sl_mount_options mo = {0};
	int fd = sl_fuse_mount(argv[3], &mo, &why);
	check(fd, "mount", why);
	struct sl_gate_config gc = {.store = store, .fill = fill, .origin = origin, .fuse_fd = fd};
	check(sl_gate_new(&gc, &gate), "gate", NULL);
	check(-pthread_create(&thread, NULL, run_gate, NULL), "thread", NULL);
	struct sl_replay_config rc = {
	    .store = store, .fill = fill, .origin = origin, .find = sl_remote_find, .compare = true};
	struct sl_echo_acts_config ec = {.store = store, .gate = gate, .helper = helper};
	check(sl_echo_acts_new(&ec, &echo, &rc.acts), "acts", NULL);
	check(sl_replay_new(&rc, &replay), "replay", NULL);
	puts("ready");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		line[strcspn(line, "\n")] = '\0';
		if (!strncmp(line, "event ", 6))
			feed(replay, origin, line + 6);
		else if (!strcmp(line, "lost"))
			sl_replay_event(replay, &(struct sl_oevent){.lost = true});
		else if (!strcmp(line, "settle"))
			settle(replay);
		fflush(stdout);
	}
	(void)sl_replay_pause(replay);
	(void)sl_fuse_unmount(argv[3], true, NULL);
	sl_origin_stop(origin);
	sl_replay_stop(replay);
	sl_gate_stop(gate);
	pthread_join(thread, NULL);
	sl_fill_free(fill);
	sl_echo_acts_free(echo);
	sl_gate_free(gate);
	sl_origin_free(origin);
	sl_replay_free(replay);
	sl_helper_stop(helper);
	sl_store_close(store);
	return 0;
}
