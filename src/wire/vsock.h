/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Stream sockets between virtual machines and their host (AF_VSOCK): no network, nothing to configure.
 *
 * A machine has a number, the CID, that its hypervisor gives it and that it cannot lie about: the other
 * side's CID is certain. Who it is in that machine nobody tells: every user of it may connect, and may wait
 * for connections on a port that is free, from 1024 on; the ports below are root's.
 */
#pragma once

#include <stdint.h>

#define SL_VSOCK_LOCAL 1u /* this machine itself, where the kernel has the loopback transport */
#define SL_VSOCK_HOST  2u /* the host, as a guest sees it; guests have numbers from 3 on */

/* Numbers are decimal and nothing else. -EINVAL. */

/** A machine: 1 to 4294967294. */
int sl_vsock_parse_cid(const char *s, uint32_t *ret);
/** A port to wait at: 1 to 4294967294, or 0 for any that is free. */
int sl_vsock_parse_port(const char *s, uint32_t *ret);
/** "CID:PORT", of an exporter: the port is not 0. */
int sl_vsock_parse(const char *s, uint32_t *ret_cid, uint32_t *ret_port);

/** Wait for connections from all machines, this one included. Returns a descriptor, or -errno with a
 * sentence. */
int sl_vsock_listen(uint32_t port, char **why);
/** The port that sl_vsock_listen() took. Returns 0 or -errno. */
int sl_vsock_port(int fd, uint32_t *ret);
/** Connect, within seconds. Returns a descriptor, or -errno with a sentence. */
int sl_vsock_connect(uint32_t cid, uint32_t port, char **why);
/** The machine at the other end of a connection. Returns 0 or -errno. */
int sl_vsock_peer(int fd, uint32_t *ret_cid);

/** This machine's own number, by which others reach it: a guest's, SL_VSOCK_HOST of a host, or SL_VSOCK_LOCAL
 * where nobody else does. 0: it has none, or does not tell us. */
uint32_t sl_vsock_own(void);
/** Whether there is a way to any machine, this one included. Returns 0, or -errno with a sentence. */
int sl_vsock_available(char **why);
