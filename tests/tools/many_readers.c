/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * many_readers ORIGIN CLONE COUNT READY: so many threads read 5,000 bytes each at places of the same files in
 * both directories; the files of the clone are open before. READY is made when all have begun. Prints how
 * often they were woken, and how many got something else than the origin's, or an error; the status is zero
 * if none did.
 */
#include <dirent.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILES_MAX 1024
#define PIECE	  5000

static struct {
	int there, here;
	off_t size;
} files[FILES_MAX];
static size_t nfiles;
static atomic_uint bad, failed;
static atomic_int last_errno; /* of those that failed */

static void *reader(void *arg)
{
	size_t i = (size_t)arg, f = i % nfiles;
	char got[PIECE], want[PIECE];
	off_t off = (off_t)(i * 7919) % files[f].size;
	ssize_t n = pread(files[f].here, got, sizeof(got), off),
		m = pread(files[f].there, want, sizeof(want), off);
	int e = errno;
	if (n < 0) {
		last_errno = e;
		failed++;
	} else if (n != m || memcmp(got, want, (size_t)n))
		bad++;
	return NULL;
}

int main(int argc, char **argv)
{
	if (argc != 5)
		errx(2, "usage: many_readers ORIGIN CLONE COUNT READY");
	size_t count = strtoul(argv[3], NULL, 10);
	DIR *d = opendir(argv[1]);
	struct dirent *e;
	if (!d)
		err(2, "%s", argv[1]);
	while ((e = readdir(d)) && nfiles < FILES_MAX) {
		struct stat st;
		char path[4096];
		if (*e->d_name == '.')
			continue;
		snprintf(path, sizeof(path), "%s/%s", argv[2], e->d_name);
		files[nfiles].there = openat(dirfd(d), e->d_name, O_RDONLY);
		files[nfiles].here = open(path, O_RDONLY);
		if (files[nfiles].there < 0 || files[nfiles].here < 0 || fstat(files[nfiles].there, &st) < 0)
			err(2, "%s", path);
		files[nfiles++].size = st.st_size;
	}
	pthread_t *t = calloc(count, sizeof(*t));
	pthread_attr_t a;
	pthread_attr_init(&a);
	pthread_attr_setstacksize(&a, 64 << 10);
	for (size_t i = 0; t && i < count; i++)
		if ((errno = pthread_create(&t[i], &a, reader, (void *)i)))
			err(2, "thread %zu", i);
	int ready = open(argv[4], O_WRONLY | O_CREAT, 0600);
	if (!t || ready < 0)
		err(2, "%s", argv[4]);
	for (size_t i = 0; i < count; i++)
		pthread_join(t[i], NULL);
	free(t);
	closedir(d);
	struct rusage u;
	getrusage(RUSAGE_SELF, &u);
	printf("woken %ld times each\n", u.ru_nvcsw / (long)count);
	printf("%zu readers: %u got something else, %u an error%s%s\n", count, bad, failed,
	       failed ? ": " : "", failed ? strerror(last_errno) : "");
	return bad || failed;
}
