/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * An export over the wire as an origin: what its parts share.
 *
 * A request is a small state machine: resolve the place to a node (by what is remembered, or by LOOKUPs),
 * then do what was asked, call by call; each step runs in the done() of the call before it, on the
 * connection's receiving thread. No thread waits for anything. When the connection breaks, every request
 * starts over on the next one, until its deadline: all of them only read. One thread, the connector, makes
 * connections and starts requests that waited for one.
 *
 * export.c: connections, and what is given back; request.c: requests and their steps; listing.c: those of
 * LIST; watch.c: marks and events.
 */
#pragma once

#include <pthread.h>

#include "base/fd.h"
#include "base/time.h"
#include "origin/dial.h"
#include "origin/origin.h"
#include "origin/places.h"
#include "wire/client.h"

struct export
{
	struct sl_origin o;
	struct sl_dial *dial;
	uint64_t timeout; /* ns */
	uint64_t root_ino;
	void (*event)(void *arg, const struct sl_oevent *e);
	uint64_t uses; /* of SL_CHANGE_USE: to be told as well */
	void *arg;
	pthread_t connector;

	pthread_mutex_t lock; /* protects all below */
	pthread_cond_t cond;
	struct sl_client *client; /* NULL while there is no connection */
	uint64_t conn;		  /* counts connections: handles of one mean nothing on the next */
	uint64_t session;	  /* counts sessions: nodes of one mean nothing in the next */
	uint32_t token[4];	  /* of the session; 0: it cannot be resumed */
	uint64_t next_seq;	  /* of the notification that is expected */
	uint64_t lost_seq;	  /* marks that were set before this one are gone */
	uint64_t flags;		  /* INIT flags of the connection */
	bool marks;		  /* something was marked in this session */
	bool lost;		  /* and in the one before, which is to be said */
	unsigned unacked;	  /* notifications since the server was last told what is here */
	unsigned users;		  /* threads that are just using client */
	bool dead, stop;
	bool no_open, no_opendir, no_readdirplus; /* what this server says it does not need or have */
	unsigned outstanding;
	struct sl_list waiting; /* requests that need a connection */
	struct sl_places places;
};

struct xreq;

/* One of several calls of one request that are under way at once. */
struct part {
	struct sl_call call;
	struct xreq *x;
	size_t index; /* READ: which chunk; LIST: which entry */
};

struct xreq {
	struct sl_list link;
	struct export *e;
	struct sl_oreq *r;
	struct sl_call call;
	uint64_t deadline, conn, session;
	uint64_t not_before; /* while it waits */
	uint64_t flags;	     /* INIT flags of that connection */
	int tries;
	unsigned held;	    /* times that its node was not where events have it */
	bool fresh, cached; /* @cached: the node comes from memory, and may be stale */
	size_t at;	    /* the place is resolved up to here */
	char name[256];
	struct sl_place_node node;
	uint64_t fh;
	bool opened;
	bool mark_done; /* the mark is there, or cannot be */
	/* TOLD: the number that answers it, of that session; and how long that is waited for */
	uint64_t told_seq, told_session, told_until;

	/* READ and LIST: several calls at once; under e->lock */
	unsigned pending;
	int err;
	bool from_server;
	size_t next;
	unsigned attrs; /* READ: answers that brought attributes */
	bool differ;
	struct part *parts;
	/* LIST */
	size_t cap;
	uint64_t off;
	struct sl_place_node *nodes; /* per entry */
	size_t nodes_cap;
	bool plus;
};

#define FORGET_BATCH 64 /* nodes that are given back in one message, at least */

/* ---- export.c ---- */

/** The client of connection @conn, which stays until sl_ex_client_put(); NULL when it is gone. */
struct sl_client *sl_ex_client_get(struct export *e, uint64_t conn);
void sl_ex_client_put(struct export *e);
/** Send what is to be forgotten, if that is much. */
void sl_ex_send_forgets(struct export *e);

/* ---- request.c ---- */

void sl_ex_submit(struct sl_origin *o, struct sl_oreq *r);
/** Start or start again, on the connection that is there; or wait for one. */
void sl_ex_start(struct xreq *x);
/** What is to be done first or next. With x->conn and x->flags set. */
void sl_ex_resolve(struct xreq *x);
/** The place is resolved (and marked, if that was asked for): go on. */
void sl_ex_operate(struct xreq *x);
void sl_ex_finish(struct xreq *x, int err);
/** A call failed: start over, or give up. */
void sl_ex_failed(struct xreq *x, int err, bool from_server);
/** Forget what was tried, and try again on the connector's thread, not before @when. */
void sl_ex_again(struct xreq *x, uint64_t when);
void sl_ex_issue(struct xreq *x, struct sl_call *call, void (*done)(struct sl_call *, struct sl_result *));
void sl_ex_issue_one(struct xreq *x, uint32_t opcode, uint64_t nodeid,
		     void (*done)(struct sl_call *, struct sl_result *));

/* ---- listing.c ---- */

void sl_ex_list(struct xreq *x);

/* ---- watch.c ---- */

/** Whether @x is to set or take away a mark before anything else. */
bool sl_ex_wants_mark(const struct xreq *x);
void sl_ex_mark(struct xreq *x);
/** Ask the server to tell all that has happened. */
void sl_ex_told(struct xreq *x);
/** For struct sl_client_config. */
int sl_ex_notify(void *arg, int code, const void *data, size_t len);
/** Marks were lost with the session that had them: say so. On the only thread that there is for events. */
void sl_ex_lost(struct export *e);
