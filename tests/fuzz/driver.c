/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A small driver for fuzzers without libFuzzer: mutates the valid inputs with a generator that its seed
 * determines. Usage: fuzz_x [--seed N] [--runs N] [--seconds N] [FILE...]; with files it runs just these.
 * Prints TAP. A failure is an abort, whose input is then in fuzz-crash.PID in $TMPDIR.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "fuzz.h"

#define MAX_INPUT 8192
#define MAX_SEEDS 512

static uint8_t seeds[MAX_SEEDS][MAX_INPUT];
static size_t seed_len[MAX_SEEDS], n_seeds;
static uint8_t input[MAX_INPUT];
static size_t input_len;
static uint64_t state;
static char crash_path[4096];

static uint64_t next(void)
{
	/* xorshift64*: small, and good enough to choose bytes with */
	state ^= state >> 12;
	state ^= state << 25;
	state ^= state >> 27;
	return state * 0x2545f4914f6cdd1dull;
}

static size_t below(size_t n)
{
	return n ? next() % n : 0;
}

/* Of the sanitizers, where there is one: what it calls before it ends the process. */
void __sanitizer_set_death_callback(void (*callback)(void)) __attribute__((weak));

static void save_input(void)
{
	int fd = open(crash_path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	ssize_t r = write(fd, input, input_len);
	(void)r;
}

static void on_crash(int sig)
{
	save_input();
	signal(sig, SIG_DFL);
	raise(sig);
}

/* Put a piece of another input at @at. */
static void insert_piece(size_t at)
{
	size_t s = below(n_seeds), from = below(seed_len[s]), n = below(seed_len[s] - from + 1);
	if (n > MAX_INPUT - at)
		n = MAX_INPUT - at;
	memcpy(input + at, seeds[s] + from, n);
	if (at + n > input_len)
		input_len = at + n;
}

static void mutate_once(void)
{
	static const uint32_t odd[] = {0,      1,	2,	    7,		8,	    15,	       16,
				       17,     39,	40,	    255,	256,	    4096,      0x7fff,
				       0xffff, 0x10000, 0x7fffffff, 0x80000000, 0xfffffff8, 0xffffffff};
	size_t at = below(input_len), n;
	switch (below(8)) {
	case 0:
		input[at] ^= (uint8_t)(1u << below(8));
		break;
	case 1:
		input[at] = (uint8_t)next();
		break;
	case 2: /* a 32-bit number, usually where one is */
		at &= below(4) ? ~(size_t)3 : ~(size_t)0;
		if (at + 4 <= input_len)
			memcpy(input + at, &odd[below(sizeof(odd) / sizeof(odd[0]))], 4);
		break;
	case 3: /* shorter */
		input_len = at;
		break;
	case 4: /* longer */
		n = below(64);
		if (input_len + n <= MAX_INPUT) {
			memset(input + input_len, (int)next(), n);
			input_len += n;
		}
		break;
	case 5: /* drop a piece */
		n = below(input_len - at + 1);
		memmove(input + at, input + at + n, input_len - at - n);
		input_len -= n;
		break;
	case 6:
		insert_piece(at);
		break;
	default: /* names end, and paths begin, in odd places */
		input[at] = "\0/.\xff"[below(4)];
	}
}

static void run_file(const char *path)
{
	int fd = open(path, O_RDONLY);
	ssize_t n = fd < 0 ? -1 : read(fd, input, sizeof(input));
	if (n < 0) {
		perror(path);
		exit(2);
	}
	close(fd);
	input_len = (size_t)n;
	LLVMFuzzerTestOneInput(input, input_len);
}

int main(int argc, char **argv)
{
	uint64_t seed = (uint64_t)time(NULL), runs = 3000000, seconds = 5, done = 0;
	int i = 1;
	for (; i + 1 < argc && argv[i][0] == '-'; i += 2) {
		uint64_t v = strtoull(argv[i + 1], NULL, 0);
		if (!strcmp(argv[i], "--seed"))
			seed = v;
		else if (!strcmp(argv[i], "--runs"))
			runs = v;
		else if (!strcmp(argv[i], "--seconds"))
			seconds = v;
		else
			return 2;
	}
	const char *tmp = getenv("TMPDIR");
	snprintf(crash_path, sizeof(crash_path), "%s/fuzz-crash.%d", tmp ? tmp : "/tmp", (int)getpid());
	signal(SIGABRT, on_crash);
	if (__sanitizer_set_death_callback)
		__sanitizer_set_death_callback(save_input);
	else
		signal(SIGSEGV, on_crash);
	if (i < argc) {
		for (; i < argc; i++)
			run_file(argv[i]);
		return 0;
	}
	printf("# seed %llu (crash: %s)\n", (unsigned long long)seed, crash_path);
	fflush(stdout);
	while (n_seeds < MAX_SEEDS &&
	       (seed_len[n_seeds] = sl_fuzz_seed(n_seeds, seeds[n_seeds], MAX_INPUT)) > 0)
		n_seeds++;
	for (size_t s = 0; s < n_seeds; s++) {
		input_len = seed_len[s];
		memcpy(input, seeds[s], input_len);
		LLVMFuzzerTestOneInput(input, input_len);
	}
	printf("%sok 1 - %zu valid inputs\n", n_seeds ? "" : "not ", n_seeds);
	state = seed | 1;
	for (int k = 0; k < 20; k++)
		next();
	time_t end = time(NULL) + (time_t)seconds;
	for (; done < runs && (done % 256 || time(NULL) < end); done++) {
		size_t s = below(n_seeds);
		input_len = seed_len[s];
		memcpy(input, seeds[s], input_len);
		for (size_t m = 1 + below(4); m > 0 && input_len > 0; m--)
			mutate_once();
		LLVMFuzzerTestOneInput(input, input_len);
	}
	printf("ok 2 - %llu mutated inputs\n1..2\n", (unsigned long long)done);
	return n_seeds ? 0 : 1;
}
