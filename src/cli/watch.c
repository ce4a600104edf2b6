/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Printing what changes at an origin: as a running clone hears of it, or by marking a tree ourselves. */
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/fanotify.h>
#include <sys/signalfd.h>

#include "base/fd.h"
#include "base/human.h"
#include "base/list.h"
#include "base/log.h"
#include "cli/call.h"
#include "cli/registry.h"
#include "notify/backend.h"
#include "service/watch.h"

struct options {
	bool json, flat, insecure;
	uint64_t uses;	  /* that mask names: nobody is told of them who does not ask */
	const char *mask; /* kinds, separated by commas; NULL: all */
	const char *below;
};

struct todo {
	struct sl_list link;
	bool found; /* print what is there: it appeared while we watched */
	char place[];
};

struct watch {
	const struct options *o;
	struct sl_origin *origin;
	int wake;	      /* an eventfd */
	int err;	      /* under lock */
	pthread_mutex_t lock; /* todo, and what is printed */
	struct sl_list todo;
};

static bool listed(const char *list, const char *word)
{
	size_t n = strlen(word);
	for (const char *p = list; p && *p; p += strcspn(p, ",") + (p[strcspn(p, ",")] == ','))
		if (strcspn(p, ",") == n && !memcmp(p, word, n))
			return true;
	return false;
}

static bool is_below(const char *place, const char *top)
{
	size_t n = strlen(top);
	return place && (!n || (!strncmp(place, top, n) && (!place[n] || place[n] == '/')));
}

static const char *text_of(json_t *j, const char *key)
{
	return json_string_value(json_object_get(j, key));
}

/* With everything that somebody asked to see. False where standard output has failed. */
static bool show(const struct options *o, json_t *j)
{
	json_t *kinds = json_object_get(j, "events"), *kind;
	const char *place = text_of(j, "place"), *newplace = text_of(j, "newplace");
	bool wanted = !o->mask, always = false;
	size_t i;
	json_array_foreach(kinds, i, kind)
	{
		wanted |= listed(o->mask, json_string_value(kind));
		always |=
		    !strcmp(json_string_value(kind), "lost") || !strcmp(json_string_value(kind), "ready");
	}
	bool here = is_below(place, o->below) || is_below(newplace, o->below);
	if (!always && !(wanted && here))
		return true;
	if (o->json) {
		sl_print_json(j);
	} else if (place || !listed("ready", json_string_value(json_array_get(kinds, 0)))) {
		printf("%llu ", (unsigned long long)sl_json_u64(j, "seq"));
		json_array_foreach(kinds, i, kind) printf("%s%s", i ? "," : "", json_string_value(kind));
		printf("%s", json_is_true(json_object_get(j, "dir")) ? ",dir" : "");
		if (place)
			printf(" %s", *place ? place : ".");
		if (newplace)
			printf(" -> %s", newplace);
		putchar('\n');
	} else {
		fputs("watching\n", stderr);
	}
	return fflush(stdout) == 0;
}

static int catch_signals(void)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigprocmask(SIG_BLOCK, &set, NULL);
	int fd = signalfd(-1, &set, SFD_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

/* ---- a clone ---- */

static void on_item(void *arg, json_t *item)
{
	if (!show(arg, item))
		exit(SL_EXIT_FAIL); /* nobody reads */
}

static void end_at_once(int sig)
{
	(void)sig;
	_exit(SL_EXIT_OK);
}

static int watch_clone(const struct options *o, const char *store)
{
	_cleanup_free_ char *why = NULL;
	json_t *answer = NULL;
	/* Nothing has to be put in order: the service notices that we are gone. */
	signal(SIGINT, end_at_once);
	signal(SIGTERM, end_at_once);
	int r = sl_call(store, json_pack("{ss}", "cmd", "watch"), NULL, on_item, (void *)o, &answer, &why);
	const char *error = r < 0 ? (why ? why : strerror(-r)) : sl_answer_error(answer);
	int status = sl_cli_fail("%s", error ? error : "the service ended");
	json_decref(answer);
	return status;
}

/* ---- an origin ---- */

static void add(struct watch *w, const char *place, bool found)
{
	size_t n = strlen(place) + 1;
	struct todo *t = malloc(sizeof(*t) + n);
	pthread_mutex_lock(&w->lock);
	if (t) {
		*t = (struct todo){.found = found};
		memcpy(t->place, place, n);
		sl_list_add_tail(&w->todo, &t->link);
	} else {
		w->err = -ENOMEM;
	}
	pthread_mutex_unlock(&w->lock);
	eventfd_write(w->wake, 1);
}

static void print(struct watch *w, json_t *j)
{
	pthread_mutex_lock(&w->lock);
	if (!show(w->o, j))
		w->err = -EPIPE;
	pthread_mutex_unlock(&w->lock);
	if (w->err)
		eventfd_write(w->wake, 1);
	json_decref(j);
}

static void on_event(void *arg, const struct sl_oevent *e)
{
	struct watch *w = arg;
	json_t *j = sl_event_json(e);
	if (j)
		print(w, j);
	if (e->lost)
		add(w, w->o->below, false);
	else if (!w->o->flat && (e->mask & FAN_ONDIR) && (e->mask & (FAN_CREATE | FAN_MOVED_TO)))
		add(w, e->place, true);
}

static int mark(struct watch *w, const struct todo *t)
{
	struct sl_oreq r = {.op = SL_OREQ_LIST, .place = t->place, .mark = true};
	int err = sl_origin_call(w->origin, &r);
	if (err == -ENOENT || err == -ESTALE || err == -ENOTDIR) {
		bool top = !strcmp(t->place, w->o->below);
		if (top)
			sl_warn("%s: there is no such directory", *t->place ? t->place : ".");
		return top ? err : 0; /* gone again */
	}
	if (err) {
		sl_warn("%s: %s", *t->place ? t->place : ".", strerror(-err));
		return err == -EACCES ? 0 : err;
	}
	if (!r.marked)
		sl_warn("%s: the origin cannot tell what changes there", *t->place ? t->place : ".");
	for (size_t i = 0; i < r.nentries && err == 0; i++) {
		const struct sl_oentry *en = &r.entries[i];
		_cleanup_free_ char *place = *t->place ? sl_path_join(t->place, en->name) : strdup(en->name);
		_cleanup_free_ char *shown = place ? sl_printable(place, strlen(place)) : NULL;
		if (!shown) {
			err = -ENOMEM;
			break;
		}
		if (t->found)
			print(w, json_pack("{si ss s[s] sb ss}", "seq", 0, "side", "origin", "events",
					   "found", "dir", S_ISDIR(en->attr.mode), "place", shown));
		if (S_ISDIR(en->attr.mode) && !w->o->flat)
			add(w, place, t->found);
	}
	bool marked = r.marked;
	sl_oreq_fini(&r);
	return err ? err : marked || strcmp(t->place, w->o->below) != 0 ? 0 : -EOPNOTSUPP;
}

/* Until there is nothing to mark. */
static int mark_all(struct watch *w, int signals)
{
	for (;;) {
		struct todo *t = NULL;
		struct pollfd p = {.fd = signals, .events = POLLIN};
		pthread_mutex_lock(&w->lock);
		int r = w->err;
		if (r == 0 && !sl_list_empty(&w->todo)) {
			t = sl_list_entry(w->todo.next, struct todo, link);
			sl_list_del(&t->link);
		}
		pthread_mutex_unlock(&w->lock);
		if (!t || poll(&p, 1, 0) > 0) {
			free(t);
			return r;
		}
		r = mark(w, t);
		free(t);
		if (r < 0)
			return r;
	}
}

static int watch_origin(const struct options *o, const char *spec)
{
	struct watch w = {.o = o};
	_cleanup_free_ char *why = NULL;
	_cleanup_close_ int signals = catch_signals(), wake = eventfd(0, EFD_CLOEXEC);
	const struct sl_origin_config cfg = {.timeout = 60,
					     .insecure_plain = o->insecure,
					     .event = on_event,
					     .uses = o->uses,
					     .arg = &w,
					     .program = "/proc/self/exe"};
	if (signals < 0 || wake < 0)
		return sl_cli_fail("%s", strerror(errno));
	w.wake = wake;
	sl_list_init(&w.todo);
	pthread_mutex_init(&w.lock, NULL);
	int r = sl_origin_open(spec, &cfg, &w.origin, &why);
	if (r < 0)
		return sl_cli_fail("%s", why ? why : strerror(-r));
	add(&w, o->below, false);
	bool said = false;
	for (;;) {
		uint64_t n;
		struct pollfd p[2] = {{.fd = signals, .events = POLLIN}, {.fd = wake, .events = POLLIN}};
		r = mark_all(&w, signals);
		if (r == 0 && !said)
			print(&w, json_pack("{s[s]}", "events", "ready"));
		said = true;
		if (r < 0 || poll(p, 2, -1) < 0 || p[0].revents)
			break;
		(void)!read(wake, &n, sizeof(n));
	}
	sl_origin_free(w.origin);
	while (!sl_list_empty(&w.todo)) {
		struct todo *t = sl_list_entry(w.todo.next, struct todo, link);
		sl_list_del(&t->link);
		free(t);
	}
	pthread_mutex_destroy(&w.lock);
	return r < 0 ? sl_cli_fail("%s: %s", spec, strerror(-r)) : SL_EXIT_OK;
}

static int run_watch(const struct sl_command *cmd, int argc, char **argv)
{
	static const char *const all =
	    "create,delete,moved_from,moved_to,rename,modify,attrib,close_write,open,"
	    "access,close,state,ignored,lost,found";
	enum { OPT_INSECURE = 256 };
	static const struct option opts[] = {{"json", no_argument, NULL, 'j'},
					     {"mask", required_argument, NULL, 'm'},
					     {"flat", no_argument, NULL, 'f'},
					     {"below", required_argument, NULL, 'b'},
					     {"insecure-plain", no_argument, NULL, OPT_INSECURE},
					     {"help", no_argument, NULL, 'h'},
					     {0}};
	struct options o = {.below = ""};
	for (int c; (c = getopt_long(argc, argv, "jm:fb:h", opts, NULL)) != -1;) {
		switch (c) {
		case 'j':
			o.json = true;
			break;
		case 'm':
			o.mask = optarg;
			for (char *p = optarg; *p; p += strcspn(p, ",") + (p[strcspn(p, ",")] == ',')) {
				char word[32];
				uint64_t bits = 0;
				snprintf(word, sizeof(word), "%.*s", (int)strcspn(p, ","), p);
				if (!listed(all, word))
					return sl_cli_usage(cmd, "--mask %s: '%s' is none of %s", optarg,
							    word, all);
				(void)sl_event_bits(word, &bits);
				o.uses |= bits & SL_CHANGE_USE;
			}
			break;
		case 'f':
			o.flat = true;
			break;
		case 'b':
			o.below = optarg;
			break;
		case OPT_INSECURE:
			o.insecure = true;
			break;
		case 'h':
			return sl_cli_help(cmd);
		default:
			return sl_cli_usage(cmd, "see above");
		}
	}
	if (optind + 1 != argc)
		return sl_cli_usage(cmd, "needs one PATH or ORIGIN");
	_cleanup_free_ char *store = NULL, *below = NULL, *why = NULL, *shown = NULL;
	if (strchr(argv[optind], ':') == NULL && sl_registry_find(argv[optind], &store, &below, &why) == 0) {
		shown = sl_printable(below, strlen(below));
		if (!*o.below && shown)
			o.below = shown;
		return watch_clone(&o, store);
	}
	return watch_origin(&o, argv[optind]);
}

const struct sl_command sl_cmd_watch = {
    .name = "watch",
    .summary = "Print what changes at an origin",
    .usage = "[OPTION…] PATH | ORIGIN",
    .help =
	"PATH is in a clone: printed is what its service is told, which is of the directories that were\n"
	"listed. ORIGIN is as for 'sluice clone', or a directory: all of it is watched.\n"
	"\n"
	"One line for each change: its number, what happened, where. 'lost' says that an unknown number of\n"
	"changes was lost; 'state' that something is there, or not, although no change was told; 'found' "
	"what\n"
	"was in a directory already that appeared. Ends with SIGINT or SIGTERM.\n"
	"\n"
	"  -j, --json           print one JSON object per line\n"
	"  -m, --mask LIST      only these: create,delete,rename,moved_from,moved_to,modify,attrib,\n"
	"                       close_write,state,ignored,found (lost is always printed), or what is told "
	"only\n"
	"                       when it is asked for (of a clone, with 'clone --events'): open,access,close\n"
	"  -b, --below PLACE    of an origin, only this directory\n"
	"  -f, --flat           of an origin, only that directory itself, not what is below\n"
	"      --insecure-plain allow tcp: origins\n"
	"  -h, --help           this text\n\n"
	"Example:\n  sluice watch --mask create,rename ssh://nas/export/data\n",
    .run = run_watch,
};
