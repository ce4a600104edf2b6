/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Read a file asynchronously and write it to standard output: aread HOW FILE, where HOW is
 *   aio, aio-direct                  io_submit
 *   uring, async, sqpoll             io_uring: in place or by a worker, by a worker, by the thread that polls
 *   nowait                           with RWF_NOWAIT first; what is refused with EAGAIN is read again without
 *   fixed                            with registered file and buffer
 *   splice                           through a pipe
 * Ends with status 1 and the error's text, or with 77 where the kernel has no such thing.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/io_uring.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define CHUNK 65536

#ifndef RWF_NOWAIT
#define RWF_NOWAIT 8
#endif

static void fail(const char *what, int err)
{
	fprintf(stderr, "%s: %s\n", what, strerror(err));
	exit(1);
}

/* Where the kernel has none of it, or lets nobody use it. */
static void fail_setup(const char *what, int err)
{
	fprintf(stderr, "%s: %s\n", what, strerror(err));
	exit(77);
}

static void put(const char *data, size_t n)
{
	for (size_t at = 0; at < n;) {
		ssize_t k = write(STDOUT_FILENO, data + at, n - at);
		if (k < 0)
			fail("write", errno);
		at += (size_t)k;
	}
}

/* ---- io_submit ---- */

static long aio_read(aio_context_t ctx, int fd, char *buffer, off_t at)
{
	struct iocb cb = {.aio_lio_opcode = IOCB_CMD_PREAD,
			  .aio_fildes = (uint32_t)fd,
			  .aio_buf = (uintptr_t)buffer,
			  .aio_nbytes = CHUNK,
			  .aio_offset = at};
	struct iocb *list[1] = {&cb};
	struct io_event done;
	if (syscall(SYS_io_submit, ctx, 1L, list) != 1)
		return -errno;
	while (syscall(SYS_io_getevents, ctx, 1L, 1L, &done, NULL) != 1)
		if (errno != EINTR)
			return -errno;
	return (long)done.res;
}

/* ---- io_uring, one request at a time ---- */

struct ring {
	int fd;
	bool sqpoll;
	struct io_uring_params p;
	struct io_uring_sqe *sqes;
	char *sq, *cq;
};

static uint32_t *at(char *base, uint32_t offset)
{
	return (uint32_t *)(void *)(base + offset);
}

static void ring_open(struct ring *r, bool sqpoll)
{
	memset(r, 0, sizeof(*r));
	r->sqpoll = sqpoll;
	r->p.flags = sqpoll ? IORING_SETUP_SQPOLL : 0;
	r->p.sq_thread_idle = 100;
	r->fd = (int)syscall(SYS_io_uring_setup, 4, &r->p);
	if (r->fd < 0)
		fail_setup("io_uring_setup", errno);
	size_t sq = r->p.sq_off.array + r->p.sq_entries * sizeof(uint32_t);
	size_t cq = r->p.cq_off.cqes + r->p.cq_entries * sizeof(struct io_uring_cqe);
	int prot = PROT_READ | PROT_WRITE, flags = MAP_SHARED | MAP_POPULATE;
	r->sq = mmap(NULL, sq, prot, flags, r->fd, IORING_OFF_SQ_RING);
	r->cq = mmap(NULL, cq, prot, flags, r->fd, IORING_OFF_CQ_RING);
	r->sqes = mmap(NULL, r->p.sq_entries * sizeof(*r->sqes), prot, flags, r->fd, (off_t)IORING_OFF_SQES);
	if (r->sq == MAP_FAILED || r->cq == MAP_FAILED || (void *)r->sqes == MAP_FAILED)
		fail("mmap of the ring", errno);
}

static long ring_do(struct ring *r, const struct io_uring_sqe *sqe)
{
	uint32_t tail = *at(r->sq, r->p.sq_off.tail), mask = *at(r->sq, r->p.sq_off.ring_mask);
	r->sqes[tail & mask] = *sqe;
	at(r->sq, r->p.sq_off.array)[tail & mask] = tail & mask;
	__atomic_store_n(at(r->sq, r->p.sq_off.tail), tail + 1, __ATOMIC_RELEASE);
	unsigned flags = IORING_ENTER_GETEVENTS;
	if (r->sqpoll) {
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
		if (__atomic_load_n(at(r->sq, r->p.sq_off.flags), __ATOMIC_ACQUIRE) & IORING_SQ_NEED_WAKEUP)
			flags |= IORING_ENTER_SQ_WAKEUP;
	}
	if (syscall(SYS_io_uring_enter, r->fd, 1, 1, flags, NULL, 0L) < 0 && errno != EINTR)
		return -errno;
	uint32_t *head = at(r->cq, r->p.cq_off.head);
	while (__atomic_load_n(at(r->cq, r->p.cq_off.tail), __ATOMIC_ACQUIRE) == *head)
		if (syscall(SYS_io_uring_enter, r->fd, 0, 1, IORING_ENTER_GETEVENTS, NULL, 0L) < 0 &&
		    errno != EINTR)
			return -errno;
	struct io_uring_cqe *cqes = (void *)(r->cq + r->p.cq_off.cqes);
	long res = cqes[*head & *at(r->cq, r->p.cq_off.ring_mask)].res;
	__atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
	return res;
}

static long ring_read(struct ring *r, const char *how, int fd, char *buffer, off_t offset)
{
	struct io_uring_sqe sqe = {.opcode = IORING_OP_READ,
				   .fd = fd,
				   .addr = (uintptr_t)buffer,
				   .len = CHUNK,
				   .off = (uint64_t)offset};
	static int out[2] = {-1, -1};
	if (strcmp(how, "async") == 0) {
		sqe.flags = IOSQE_ASYNC;
	} else if (strcmp(how, "fixed") == 0) {
		sqe.opcode = IORING_OP_READ_FIXED;
		sqe.fd = 0;
		sqe.flags = IOSQE_FIXED_FILE;
	} else if (strcmp(how, "nowait") == 0) {
		sqe.rw_flags = RWF_NOWAIT;
		long n = ring_do(r, &sqe);
		if (n != -EAGAIN && n != -EOPNOTSUPP)
			return n;
		sqe.rw_flags = 0;
	} else if (strcmp(how, "splice") == 0) {
		if (out[0] < 0 && pipe(out) < 0)
			return -errno;
		sqe = (struct io_uring_sqe){.opcode = IORING_OP_SPLICE,
					    .fd = out[1],
					    .off = (uint64_t)-1,
					    .splice_fd_in = fd,
					    .splice_off_in = (uint64_t)offset,
					    .len = CHUNK};
		long n = ring_do(r, &sqe);
		return n > 0 ? read(out[0], buffer, (size_t)n) : n;
	}
	return ring_do(r, &sqe);
}

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	const char *how = argv[1];
	bool aio = strncmp(how, "aio", 3) == 0;
	int fd = open(argv[2], O_RDONLY | (strcmp(how, "aio-direct") == 0 ? O_DIRECT : 0));
	if (fd < 0)
		fail(argv[2], errno);
	char *buffer = aligned_alloc(4096, CHUNK);
	if (!buffer)
		fail("memory", ENOMEM);
	aio_context_t ctx = 0;
	struct ring ring;
	if (aio && syscall(SYS_io_setup, 4, &ctx) < 0)
		fail_setup("io_setup", errno);
	if (!aio)
		ring_open(&ring, strcmp(how, "sqpoll") == 0);
	struct iovec iov = {buffer, CHUNK};
	if (strcmp(how, "fixed") == 0 &&
	    (syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_FILES, &fd, 1) < 0 ||
	     syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_BUFFERS, &iov, 1) < 0))
		fail("io_uring_register", errno);
	long n;
	for (off_t offset = 0;; offset += n) {
		n = aio ? aio_read(ctx, fd, buffer, offset) : ring_read(&ring, how, fd, buffer, offset);
		if (n < 0)
			fail("read", (int)-n);
		if (n == 0)
			break;
		put(buffer, (size_t)n);
	}
	return 0;
}
