/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "origin/dial.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <termios.h>

#include "base/fd.h"
#include "base/log.h"
#include "base/time.h"
#include "wire/vsock.h"

#define AGAIN_S 10

enum kind { KIND_UNIX, KIND_TCP, KIND_VSOCK, KIND_DEVICE, KIND_COMMAND };

struct sl_dial {
	enum kind kind;
	char *spec;
	char *path;		  /* KIND_UNIX, KIND_DEVICE */
	char *host, *port;	  /* KIND_TCP */
	uint32_t cid, vsock_port; /* KIND_VSOCK */
	char **argv;		  /* KIND_COMMAND, NULL-terminated */
	pid_t pid;
};

void sl_dial_free(struct sl_dial *d)
{
	if (!d)
		return;
	sl_dial_reap(d);
	for (char **a = d->argv; a && *a; a++)
		free(*a);
	free(d->argv);
	free(d->spec);
	free(d->path);
	free(d->host);
	free(d->port);
	free(d);
}

static int set_argv(struct sl_dial *d, const char *const *argv)
{
	size_t n = 0;
	while (argv[n])
		n++;
	d->kind = KIND_COMMAND;
	d->argv = calloc(n + 1, sizeof(char *));
	if (!d->argv)
		return -ENOMEM;
	for (size_t i = 0; i < n; i++)
		if (!(d->argv[i] = strdup(argv[i])))
			return -ENOMEM;
	return 0;
}

/* @s in single quotes, for the shell at the other end. */
static char *shell_quote(const char *s)
{
	char *out = malloc(strlen(s) * 4 + 3), *o = out;
	if (!out)
		return NULL;
	*o++ = '\'';
	for (; *s; s++) {
		if (*s == '\'')
			o = stpcpy(o, "'\\''");
		else
			*o++ = *s;
	}
	*o++ = '\'';
	*o = '\0';
	return out;
}

static int set_ssh(struct sl_dial *d, const char *dest, const char *port, const char *path, char **why)
{
	/* A destination that looks like an option would be one. */
	if (!*dest || *dest == '-')
		return sl_fail(why, -EINVAL, "'%s': not a host name", dest);
	_cleanup_free_ char *q = shell_quote(path), *cmd = NULL;
	const char *remote = getenv("SLUICE_REMOTE_COMMAND"), *ssh = getenv("SLUICE_SSH");
	if (!q || asprintf(&cmd, "exec %s serve --stdio -- %s", remote && *remote ? remote : "sluice", q) < 0)
		return -ENOMEM;
	const char *argv[16];
	size_t n = 0;
	argv[n++] = ssh && *ssh ? ssh : "ssh";
	argv[n++] = "-T";
	argv[n++] = "-oBatchMode=yes"; /* a service has no terminal to ask on */
	argv[n++] = "-oServerAliveInterval=15";
	if (port) {
		argv[n++] = "-p";
		argv[n++] = port;
	}
	argv[n++] = "--";
	argv[n++] = dest;
	argv[n++] = cmd;
	argv[n] = NULL;
	return set_argv(d, argv);
}

static int parse_ssh_url(struct sl_dial *d, const char *s, char **why)
{
	const char *slash = strchr(s, '/');
	if (!slash || slash == s)
		return sl_fail(why, -EINVAL, "'%s': expected ssh://[user@]host[:port]/path", d->spec);
	_cleanup_free_ char *dest = strndup(s, (size_t)(slash - s));
	if (!dest)
		return -ENOMEM;
	char *host = strrchr(dest, '@'), *port = NULL;
	host = host ? host + 1 : dest;
	if (*host == '[') { /* [v6]:port */
		char *close_ = strchr(host, ']');
		if (!close_ || (close_[1] && close_[1] != ':'))
			return sl_fail(why, -EINVAL, "'%s': a ']' is missing in the address", d->spec);
		port = close_[1] == ':' ? close_ + 2 : NULL;
		*close_ = '\0';
		memmove(host, host + 1, strlen(host));
	} else if ((port = strrchr(host, ':'))) {
		*port++ = '\0';
	}
	return set_ssh(d, dest, port, slash, why);
}

int sl_dial_parse(const char *spec, bool insecure_plain, struct sl_dial **ret, char **why)
{
	struct sl_dial *d = calloc(1, sizeof(*d));
	int r = 0;
	if (!d || !(d->spec = strdup(spec))) {
		free(d);
		return -ENOMEM;
	}
	/* A host may be called "dev". */
	if (!strncmp(spec, "unix:", 5) || !strncmp(spec, "dev:/dev/", 9)) {
		d->kind = *spec == 'u' ? KIND_UNIX : KIND_DEVICE;
		d->path = strdup(strchr(spec, ':') + 1);
		r = !d->path	      ? -ENOMEM
		    : *d->path == '/' ? 0
				      : sl_fail(why, -EINVAL, "'%s': the path is not absolute", spec);
	} else if (!strncmp(spec, "exec:", 5)) {
		const char *argv[] = {"/bin/sh", "-c", spec + 5, NULL};
		r = spec[5] ? set_argv(d, argv) : sl_fail(why, -EINVAL, "'exec:' needs a command");
	} else if (!strncmp(spec, "tcp:", 4)) {
		d->kind = KIND_TCP;
		const char *colon = strrchr(spec + 4, ':');
		if (!insecure_plain)
			r = sl_fail(why, -EINVAL,
				    "'%s': the connection would be neither encrypted nor authenticated; use "
				    "ssh://, or say "
				    "--insecure-plain if the network is trusted",
				    spec);
		else if (!colon || colon == spec + 4 || !colon[1])
			r = sl_fail(why, -EINVAL, "'%s': expected tcp:HOST:PORT", spec);
		else {
			d->host = spec[4] == '[' && colon[-1] == ']'
				      ? strndup(spec + 5, (size_t)(colon - spec - 6))
				      : strndup(spec + 4, (size_t)(colon - spec - 4));
			d->port = strdup(colon + 1);
		}
	} else if (!strncmp(spec, "vsock:", 6)) {
		d->kind = KIND_VSOCK;
		r = sl_vsock_parse(spec + 6, &d->cid, &d->vsock_port);
		if (r < 0)
			r = sl_fail(why, r, "'%s': expected vsock:CID:PORT, two numbers (CID 2 is the host)",
				    spec);
	} else if (!strncmp(spec, "ssh://", 6)) {
		r = parse_ssh_url(d, spec + 6, why);
	} else {
		const char *colon = strchr(spec, ':');
		if (colon && !memchr(spec, '/', (size_t)(colon - spec))) {
			_cleanup_free_ char *dest = strndup(spec, (size_t)(colon - spec));
			r = dest ? set_ssh(d, dest, NULL, colon[1] ? colon + 1 : ".", why) : -ENOMEM;
		} else {
			r = sl_fail(why, -EINVAL, "'%s' is not an origin", spec);
		}
	}
	if (r < 0) {
		sl_dial_free(d);
		return r;
	}
	*ret = d;
	return 0;
}

static int connect_tcp(struct sl_dial *d, char **why)
{
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *list;
	int g = getaddrinfo(d->host, d->port, &hints, &list);
	if (g)
		return sl_fail(why, -EHOSTUNREACH, "%s: %s", d->spec, gai_strerror(g));
	int r = -ECONNREFUSED;
	for (struct addrinfo *a = list; a; a = a->ai_next) {
		int fd = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol);
		if (fd < 0)
			continue;
		if (connect(fd, a->ai_addr, a->ai_addrlen) == 0) {
			int one = 1;
			setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
			setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
			r = fd;
			break;
		}
		r = -errno;
		close(fd);
	}
	freeaddrinfo(list);
	return r >= 0 ? r : sl_fail(why, r, "%s: %s", d->spec, strerror(-r));
}

/* A device that carries bytes both ways, such as a virtual machine's port to its host, or a serial line. */
static int open_device(struct sl_dial *d, char **why)
{
	struct stat st;
	struct termios tio;
	_cleanup_close_ int fd = open(d->path, O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0) {
		int r = -errno;
		return sl_fail(why, r, "%s: %s%s", d->spec, strerror(-r),
			       r == -EBUSY ? " (somebody has it open already)" : "");
	}
	if (fstat(fd, &st) < 0 || !S_ISCHR(st.st_mode))
		return sl_fail(why, -ENOTTY, "%s: not a character device", d->spec);
	/* Two of us would share what comes between them. Who does not ask is kept out of a terminal line. */
	if (flock(fd, LOCK_EX | LOCK_NB) < 0)
		return sl_fail(why, -EBUSY, "%s: somebody has it open already", d->spec);
	if (tcgetattr(fd, &tio) == 0) {
		(void)ioctl(fd, TIOCEXCL);
		cfmakeraw(&tio);
		tio.c_cflag |= CLOCAL;
		if (tcsetattr(fd, TCSAFLUSH, &tio) < 0) {
			int r = -errno;
			return sl_fail(why, r, "%s: %s", d->spec, strerror(-r));
		}
	}
	return sl_steal_fd(&fd);
}

static int start_command(struct sl_dial *d, char **why)
{
	int sv[2];
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv) < 0)
		return -errno;
	posix_spawn_file_actions_t fa;
	posix_spawnattr_t at;
	posix_spawn_file_actions_init(&fa);
	posix_spawn_file_actions_adddup2(&fa, sv[1], STDIN_FILENO);
	posix_spawn_file_actions_adddup2(&fa, sv[1], STDOUT_FILENO);
	posix_spawnattr_init(&at);
	sigset_t dfl, none;
	sigemptyset(&none);
	sigemptyset(&dfl);
	sigaddset(&dfl, SIGPIPE);
	sigaddset(&dfl, SIGIO);
	posix_spawnattr_setsigdefault(&at, &dfl);
	posix_spawnattr_setsigmask(&at, &none);
	/* Its own process group: a Ctrl-C meant for somebody else must not cut the connection. */
	posix_spawnattr_setpgroup(&at, 0);
	posix_spawnattr_setflags(&at, POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETPGROUP);
	extern char **environ;
	int r = posix_spawnp(&d->pid, d->argv[0], &fa, &at, d->argv, environ);
	posix_spawn_file_actions_destroy(&fa);
	posix_spawnattr_destroy(&at);
	close(sv[1]);
	if (r) {
		close(sv[0]);
		d->pid = 0;
		return sl_fail(why, -r, "cannot start '%s': %s", d->argv[0], strerror(r));
	}
	return sv[0];
}

int sl_dial_local(const char *program, const char *path, struct sl_dial **ret)
{
	struct sl_dial *d = calloc(1, sizeof(*d));
	const char *const argv[] = {program, "serve", "--stdio", "--", path, NULL};
	if (d)
		d->spec = strdup(path);
	if (!d || !d->spec || set_argv(d, argv) < 0) {
		sl_dial_free(d);
		return -ENOMEM;
	}
	*ret = d;
	return 0;
}

int sl_dial_connect(struct sl_dial *d, struct sl_transport **ret, char **why)
{
	int fd;
	sl_dial_reap(d);
	switch (d->kind) {
	case KIND_UNIX:
		fd = sl_unix_connect(d->path);
		if (fd < 0)
			return sl_fail(why, fd, "%s: %s%s", d->spec, strerror(-fd),
				       fd == -ECONNREFUSED || fd == -ENOENT
					   ? " (is 'sluice serve' running there?)"
					   : "");
		break;
	case KIND_TCP:
		fd = connect_tcp(d, why);
		break;
	case KIND_VSOCK:
		fd = sl_vsock_connect(d->cid, d->vsock_port, why);
		break;
	case KIND_DEVICE:
		fd = open_device(d, why);
		break;
	default:
		fd = start_command(d, why);
	}
	return fd < 0 ? fd : sl_transport_new(SL_TRANSPORT_STREAM, fd, fd, ret);
}

bool sl_dial_again(const struct sl_dial *d, int err, uint64_t *until, char **why)
{
	/* Nobody at the other end yet; the end of an old conversation; and what the exporter says in that. */
	if (d->kind != KIND_DEVICE ||
	    (err != -EBUSY && err != -ENOTCONN && err != -EPROTO && err != -EPROTONOSUPPORT))
		return false;
	uint64_t now = sl_now();
	if (!*until)
		*until = now + AGAIN_S * SL_NS_PER_SEC;
	if (now >= *until)
		return false;
	if (why) {
		free(*why);
		*why = NULL;
	}
	nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
	return true;
}

void sl_dial_reap(struct sl_dial *d)
{
	if (d->pid <= 0)
		return;
	/* Its input is closed: a server ends by itself. One that does not is not left behind. */
	uint64_t until = sl_now() + 2 * SL_NS_PER_SEC;
	bool killed = false;
	for (;;) {
		pid_t p = waitpid(d->pid, NULL, WNOHANG);
		if (p != 0)
			break;
		if (sl_now() > until) {
			kill(-d->pid, killed ? SIGKILL : SIGTERM);
			killed = true;
			until = sl_now() + SL_NS_PER_SEC;
		}
		struct timespec ts = {.tv_nsec = 2000000};
		nanosleep(&ts, NULL);
	}
	d->pid = 0;
}
