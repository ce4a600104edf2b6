/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A link between two programs that is as slow, as narrow and as broken as a test or a benchmark wants it.
 *
 *   relay [OPTIONS] --listen unix:PATH|tcp:PORT --connect unix:PATH|tcp:HOST:PORT
 *   relay [OPTIONS] --listen unix:PATH|tcp:PORT -- COMMAND…      one command per connection, on its stdin and
 * stdout relay [OPTIONS] -- COMMAND…                                  our own stdin and stdout are the
 * connection
 *
 *   --rtt-ms X        every byte arrives X/2 ms after it was sent, in each direction
 *   --mbit Y          Y million bits per second in each direction, for all connections together
 *   --cut-after N     cut all connections after N bytes, once (in both directions together)
 *   SIGUSR1           cut all connections now; new ones are accepted
 *   SIGUSR2           stop moving bytes; again: go on
 *
 * A byte that is read at time t leaves when those before it have left (bandwidth) and arrives half a round
 * trip later. While the link is behind by more than LAG_NS nothing more is read, so that senders feel it as
 * they feel a real one. tcp:0 takes a free port; it is printed on standard output.
 */
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_S   1000000000ull
#define LAG_NS	   10000000ull /* how far a link may fall behind before it reads no more */
#define MAX_QUEUED (64u << 20) /* bytes under way per flow */
#define MAX_CHUNK  (64u << 10)

struct chunk {
	struct chunk *next;
	uint64_t due; /* when it arrives; ns */
	size_t len, off;
	char data[];
};

/* One direction of one connection. */
struct flow {
	int in, out; /* -1 once closed */
	struct chunk *head, **tail;
	size_t queued;
	bool eof;	  /* nothing more comes from in */
	uint64_t eof_due; /* when the other side learns that */
	struct pollfd *pin, *pout;
};

struct conn {
	struct conn *next;
	struct flow f[2]; /* 0: from who connected, 1: to them */
};

static struct {
	uint64_t delay;	    /* one way, ns */
	double ns_per_byte; /* 0: no limit */
	uint64_t cut_after; /* 0: never */
	const char *listen, *connect;
	char **command;
} opt;

static struct conn *conns;
static uint64_t link_free[2]; /* when the last byte of each direction has left */
static uint64_t moved;
static bool stalled;
static volatile sig_atomic_t want_cut, want_stall, want_end;
static pid_t only_child; /* of the stdio form */

static uint64_t now(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

static void die(const char *what)
{
	fprintf(stderr, "relay: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void on_signal(int sig)
{
	if (sig == SIGUSR1)
		want_cut = 1;
	else if (sig == SIGUSR2)
		want_stall = !want_stall;
	else if (sig != SIGCHLD)
		want_end = 1;
}

/* ---- addresses ---- */

static int unix_address(const char *path, struct sockaddr_un *sa)
{
	memset(sa, 0, sizeof(*sa));
	sa->sun_family = AF_UNIX;
	if (strlen(path) >= sizeof(sa->sun_path)) {
		errno = ENAMETOOLONG;
		return -1;
	}
	strcpy(sa->sun_path, path);
	return 0;
}

static int listen_on(const char *where)
{
	int fd = -1, one = 1;
	if (!strncmp(where, "unix:", 5)) {
		/* Who sees the socket may connect: it gets its name when it listens. */
		struct sockaddr_un sa;
		char unready[sizeof(sa.sun_path)];
		snprintf(unready, sizeof(unready), "%s~", where + 5);
		if (unix_address(unready, &sa) < 0)
			die(where);
		fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
		unlink(sa.sun_path);
		if (fd < 0 || bind(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0 || listen(fd, 128) < 0 ||
		    rename(sa.sun_path, where + 5) < 0)
			die(where);
	} else if (!strncmp(where, "tcp:", 4)) {
		struct sockaddr_in sa = {.sin_family = AF_INET,
					 .sin_port = htons((uint16_t)atoi(where + 4)),
					 .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
		socklen_t n = sizeof(sa);
		fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
		if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) < 0 ||
		    bind(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0 || listen(fd, 128) < 0 ||
		    getsockname(fd, (struct sockaddr *)&sa, &n) < 0)
			die(where);
		printf("%d\n", ntohs(sa.sin_port));
		fflush(stdout);
	} else {
		errno = EINVAL;
		die(where);
	}
	return fd;
}

static void no_delay(int fd)
{
	int one = 1;
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one,
		   sizeof(one)); /* fails on unix sockets, which have no such delay */
}

/* Returns a connected socket or -1. Blocks for the time of a local connect. */
static int connect_to(const char *where)
{
	if (!strncmp(where, "unix:", 5)) {
		struct sockaddr_un sa;
		int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
		if (fd < 0 || unix_address(where + 5, &sa) < 0 ||
		    connect(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0) {
			if (fd >= 0)
				close(fd);
			return -1;
		}
		return fd;
	}
	char host[256];
	const char *port = strrchr(where, ':');
	if (strncmp(where, "tcp:", 4) != 0 || port < where + 4 ||
	    (size_t)(port - where - 4) >= sizeof(host)) {
		errno = EINVAL;
		return -1;
	}
	memcpy(host, where + 4, (size_t)(port - where - 4));
	host[port - where - 4] = '\0';
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *list;
	if (getaddrinfo(host, port + 1, &hints, &list) != 0) {
		errno = EHOSTUNREACH;
		return -1;
	}
	int fd = -1;
	for (struct addrinfo *a = list; a && fd < 0; a = a->ai_next) {
		fd = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol);
		if (fd >= 0 && connect(fd, a->ai_addr, a->ai_addrlen) < 0) {
			close(fd);
			fd = -1;
		}
	}
	freeaddrinfo(list);
	return fd;
}

/* ---- connections ---- */

static void nonblocking(int fd)
{
	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

static void add_conn(int in0, int out0, int in1, int out1)
{
	struct conn *c = calloc(1, sizeof(*c));
	if (!c)
		die("connection");
	c->f[0] = (struct flow){.in = in0, .out = out0, .tail = &c->f[0].head};
	c->f[1] = (struct flow){.in = in1, .out = out1, .tail = &c->f[1].head};
	for (int i = 0; i < 2; i++) {
		nonblocking(c->f[i].in);
		nonblocking(c->f[i].out);
	}
	c->next = conns;
	conns = c;
}

/* Start the command; its stdin and stdout as @wr and @rd. Returns its pid. */
static pid_t start_command(int *rd, int *wr)
{
	int to[2], from[2];
	if (pipe2(to, O_CLOEXEC) < 0 || pipe2(from, O_CLOEXEC) < 0)
		die("pipe");
	pid_t pid = fork();
	if (pid < 0)
		die("fork");
	if (pid == 0) {
		sigset_t none;
		sigemptyset(&none);
		sigprocmask(SIG_SETMASK, &none, NULL);
		signal(SIGPIPE, SIG_DFL);
		dup2(to[0], 0);
		dup2(from[1], 1);
		execvp(opt.command[0], opt.command);
		die(opt.command[0]);
	}
	close(to[0]);
	close(from[1]);
	*rd = from[0];
	*wr = to[1];
	return pid;
}

static void accept_conn(int lfd)
{
	int a = accept4(lfd, NULL, NULL, SOCK_CLOEXEC), rd, wr;
	if (a < 0)
		return;
	no_delay(a);
	if (opt.command) {
		start_command(&rd, &wr);
	} else {
		rd = connect_to(opt.connect);
		if (rd < 0) {
			fprintf(stderr, "relay: %s: %s\n", opt.connect, strerror(errno));
			close(a);
			return;
		}
		no_delay(rd);
		wr = fcntl(rd, F_DUPFD_CLOEXEC, 0);
	}
	add_conn(a, wr, rd, fcntl(a, F_DUPFD_CLOEXEC, 0));
}

static void close_in(struct flow *f)
{
	if (f->in >= 0)
		close(f->in);
	f->in = -1;
}

/* The reader is gone or has all: end the direction for the writing side as well. */
static void close_out(struct flow *f)
{
	if (f->out < 0)
		return;
	shutdown(f->out, SHUT_WR); /* a pipe is closed, a socket may go on in the other direction */
	close(f->out);
	f->out = -1;
}

static void drop_queue(struct flow *f)
{
	for (struct chunk *k; (k = f->head); free(k))
		f->head = k->next;
	f->tail = &f->head;
	f->queued = 0;
}

static void cut_all(void)
{
	for (struct conn *c = conns; c; c = c->next)
		for (int i = 0; i < 2; i++) {
			struct flow *f = &c->f[i];
			if (f->in >= 0)
				shutdown(f->in, SHUT_RDWR);
			close_in(f);
			close_out(f);
			drop_queue(f);
			f->eof = true;
		}
}

/* Free the connections that are done in both directions. */
static void reap_conns(void)
{
	for (struct conn **p = &conns, *c; (c = *p);) {
		if (c->f[0].out >= 0 || c->f[1].out >= 0) {
			p = &c->next;
			continue;
		}
		*p = c->next;
		for (int i = 0; i < 2; i++) {
			close_in(&c->f[i]);
			drop_queue(&c->f[i]);
		}
		free(c);
	}
}

/* ---- moving bytes ---- */

static bool wants_in(const struct flow *f, int dir, uint64_t t)
{
	return f->in >= 0 && !f->eof && f->out >= 0 && f->queued < MAX_QUEUED && link_free[dir] <= t + LAG_NS;
}

static void read_some(struct flow *f, int dir)
{
	size_t max = MAX_CHUNK;
	if (opt.ns_per_byte > 0 && LAG_NS / 4 / opt.ns_per_byte < (double)max)
		max = (size_t)((double)LAG_NS / 4 / opt.ns_per_byte) + 1;
	struct chunk *k = malloc(sizeof(*k) + max);
	if (!k)
		die("chunk");
	ssize_t n = read(f->in, k->data, max);
	uint64_t t = now();
	if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
		free(k);
		return;
	}
	if (link_free[dir] < t)
		link_free[dir] = t;
	if (n <= 0) {
		free(k);
		f->eof = true;
		f->eof_due = link_free[dir] + opt.delay;
		return;
	}
	link_free[dir] += (uint64_t)((double)n * opt.ns_per_byte);
	k->next = NULL;
	k->due = link_free[dir] + opt.delay;
	k->len = (size_t)n;
	k->off = 0;
	*f->tail = k;
	f->tail = &k->next;
	f->queued += (size_t)n;
}

/* Write what has arrived by @t. */
static void write_some(struct flow *f, uint64_t t)
{
	while (f->out >= 0 && f->head && f->head->due <= t) {
		struct chunk *k = f->head;
		size_t len = k->len - k->off;
		if (opt.cut_after && moved + len > opt.cut_after)
			len = (size_t)(opt.cut_after - moved);
		ssize_t n = len ? write(f->out, k->data + k->off, len) : 0;
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		if (n < 0) { /* nobody reads any more */
			close_out(f);
			close_in(f);
			drop_queue(f);
			return;
		}
		moved += (uint64_t)n;
		if (opt.cut_after && moved >= opt.cut_after) {
			opt.cut_after = 0;
			want_cut = 1;
			return;
		}
		k->off += (size_t)n;
		f->queued -= (size_t)n;
		if (k->off < k->len)
			return;
		f->head = k->next;
		if (!f->head)
			f->tail = &f->head;
		free(k);
	}
	if (f->out >= 0 && !f->head && f->eof && f->eof_due <= t)
		close_out(f);
}

/* One round: wait for what can go on, and do it. */
static void turn(int lfd, const sigset_t *unblocked)
{
	size_t n = 1, i = 1;
	for (struct conn *c = conns; c; c = c->next)
		n += 4;
	struct pollfd *p = calloc(n, sizeof(*p));
	if (!p)
		die("poll");
	uint64_t t = now(), wake = UINT64_MAX;
	p[0] = (struct pollfd){.fd = lfd, .events = POLLIN};
	for (struct conn *c = conns; c; c = c->next)
		for (int d = 0; d < 2; d++) {
			struct flow *f = &c->f[d];
			f->pin = f->pout = NULL;
			if (stalled)
				continue;
			if (wants_in(f, d, t)) {
				f->pin = &p[i++];
				*f->pin = (struct pollfd){.fd = f->in, .events = POLLIN};
			} else if (f->in >= 0 && !f->eof && link_free[d] > t + LAG_NS &&
				   link_free[d] - LAG_NS < wake) {
				wake = link_free[d] - LAG_NS;
			}
			uint64_t due = f->head ? f->head->due : f->eof ? f->eof_due : UINT64_MAX;
			if (f->out >= 0 && due <= t) {
				f->pout = &p[i++];
				*f->pout = (struct pollfd){.fd = f->out, .events = POLLOUT};
			} else if (f->out >= 0) {
				if (due < wake)
					wake = due;
				/* Without an event only POLLERR is reported: the reader went away. */
				f->pout = &p[i++];
				*f->pout = (struct pollfd){.fd = f->out};
			}
		}
	struct timespec ts = {0}, *timeout = NULL;
	if (wake != UINT64_MAX) {
		uint64_t left = wake > t ? wake - t : 0;
		ts = (struct timespec){.tv_sec = (time_t)(left / NS_PER_S),
				       .tv_nsec = (long)(left % NS_PER_S)};
		timeout = &ts;
	}
	int r = ppoll(p, i, timeout, unblocked);
	if (r < 0 && errno != EINTR)
		die("poll");
	if (r > 0 && p[0].revents)
		accept_conn(lfd); /* a new connection is at the list's head: the loop below skips it, it has
				     no pollfds */
	t = now();
	for (struct conn *c = conns; r >= 0 && !stalled && c; c = c->next)
		for (int d = 0; d < 2; d++) {
			struct flow *f = &c->f[d];
			if (f->pin && f->pin->revents && f->in >= 0 && link_free[d] <= t + LAG_NS)
				read_some(f, d);
			if (f->pout && (f->pout->revents & POLLERR) && f->out >= 0) {
				close_out(f);
				close_in(f);
				drop_queue(f);
			}
			write_some(f, t);
		}
	free(p);
}

static void usage(void)
{
	fputs("usage: relay [--rtt-ms X] [--mbit Y] [--cut-after N] [--listen ADDRESS] (--connect ADDRESS | "
	      "-- COMMAND...)\n",
	      stderr);
	exit(2);
}

static void parse(int argc, char **argv)
{
	int i = 1;
	for (; i + 1 < argc && strcmp(argv[i], "--") != 0; i += 2) {
		const char *v = argv[i + 1];
		if (!strcmp(argv[i], "--rtt-ms"))
			opt.delay = (uint64_t)(atof(v) * 500000);
		else if (!strcmp(argv[i], "--mbit"))
			opt.ns_per_byte = atof(v) > 0 ? 8000 / atof(v) : 0;
		else if (!strcmp(argv[i], "--cut-after"))
			opt.cut_after = strtoull(v, NULL, 0);
		else if (!strcmp(argv[i], "--listen"))
			opt.listen = v;
		else if (!strcmp(argv[i], "--connect"))
			opt.connect = v;
		else
			usage();
	}
	if (i < argc && !strcmp(argv[i], "--") && i + 1 < argc)
		opt.command = argv + i + 1;
	else if (i < argc)
		usage();
	if (!opt.command == !opt.connect || (opt.connect && !opt.listen))
		usage();
}

int main(int argc, char **argv)
{
	parse(argc, argv);
	static const int sigs[] = {SIGUSR1, SIGUSR2, SIGTERM, SIGINT, SIGHUP, SIGCHLD};
	sigset_t blocked, unblocked;
	sigemptyset(&blocked);
	for (size_t i = 0; i < sizeof(sigs) / sizeof(sigs[0]); i++) {
		signal(sigs[i], on_signal);
		sigaddset(&blocked, sigs[i]);
	}
	sigprocmask(SIG_BLOCK, &blocked, &unblocked);
	for (size_t i = 0; i < sizeof(sigs) / sizeof(sigs[0]); i++)
		sigdelset(&unblocked, sigs[i]);
	signal(SIGPIPE, SIG_IGN);

	int lfd = -1, status = 0;
	if (opt.listen) {
		lfd = listen_on(opt.listen);
	} else {
		int rd, wr;
		only_child = start_command(&rd, &wr);
		int in = fcntl(0, F_DUPFD_CLOEXEC, 3), out = fcntl(1, F_DUPFD_CLOEXEC, 3);
		close(0); /* so that the last of ours closes it for the other side */
		close(1);
		add_conn(in, wr, rd, out);
	}
	while (!want_end && (opt.listen || conns)) {
		turn(lfd, &unblocked);
		stalled = want_stall;
		if (want_cut) {
			want_cut = 0;
			cut_all();
			status = 255;
		}
		/* The stdio form is over when the command has said its last word, whether or not our stdin
		 * ends. */
		if (!opt.listen && conns && conns->f[1].out < 0)
			cut_all();
		reap_conns();
		int st;
		for (pid_t pid; (pid = waitpid(-1, &st, WNOHANG)) > 0;)
			if (pid == only_child) {
				only_child = 0;
				if (!status)
					status = WIFEXITED(st) ? WEXITSTATUS(st) : 128 + WTERMSIG(st);
			}
	}
	cut_all();
	if (opt.listen && !strncmp(opt.listen, "unix:", 5))
		unlink(opt.listen + 5);
	if (!opt.listen && only_child) {
		int st;
		if (status || want_end)
			kill(only_child, SIGTERM);
		if (waitpid(only_child, &st, 0) > 0 && !status)
			status = WIFEXITED(st) ? WEXITSTATUS(st) : 128 + WTERMSIG(st);
	}
	return opt.listen ? 0 : status;
}
