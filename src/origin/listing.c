/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* LIST: a directory, entry by entry. */
#include "origin/export.h"

#define WINDOW 128 /* LOOKUPs or READLINKs of one listing under way at once */

static void list_details(struct xreq *x);

/* ---- listing ---- */

static int list_add(struct xreq *x, const struct sl_dirent *d, bool hint)
{
	struct sl_attr a = {0};
	int r = 0;
	if (d->name[0] == '.' && (d->namelen == 1 || (d->namelen == 2 && d->name[1] == '.')))
		return 0;
	if (x->plus && d->entry.nodeid)
		r = sl_attr_from_fuse(&d->entry.attr, d->entry.generation, hint, &a);
	if (r == 0)
		r = sl_oreq_add_entry(x->r, &x->cap, d->name, d->namelen, &a);
	if (r == 0 && x->r->nentries > x->nodes_cap) {
		struct sl_place_node *n = reallocarray(x->nodes, x->cap, sizeof(*n));
		if (n) {
			x->nodes = n;
			x->nodes_cap = x->cap;
		} else {
			free(x->r->entries[--x->r->nentries].name);
			r = -ENOMEM;
		}
	}
	if (r == 0)
		x->nodes[x->r->nentries - 1] =
		    (struct sl_place_node){x->plus ? d->entry.nodeid : 0, d->entry.generation};
	return r;
}

static void list_done(struct sl_call *call, struct sl_result *res)
{
	struct xreq *x = sl_container_of(call, struct xreq, call);
	if (res->err == -ENOSYS && res->from_server && x->plus) {
		pthread_mutex_lock(&x->e->lock);
		x->e->no_readdirplus = true;
		pthread_mutex_unlock(&x->e->lock);
		sl_ex_list(x);
		return;
	}
	if (res->err) {
		sl_ex_failed(x, res->err, res->from_server);
		return;
	}
	if (res->data_len == 0) {
		x->next = 0;
		list_details(x);
		return;
	}
	bool hint = x->flags & SL_FUSE_XATTR_HINT;
	const void *p = res->data;
	size_t left = res->data_len;
	struct sl_dirent d;
	int r;
	while ((r = sl_dirent_next(&p, &left, x->plus, &d)) > 0) {
		r = list_add(x, &d, hint);
		if (r < 0)
			break;
		x->off = d.off;
	}
	if (r < 0)
		sl_ex_finish(x, r);
	else
		sl_ex_list(x);
}

void sl_ex_list(struct xreq *x)
{
	struct export *e = x->e;
	pthread_mutex_lock(&e->lock);
	x->plus = !e->no_readdirplus && x->flags & FUSE_DO_READDIRPLUS;
	uint32_t max = e->client ? sl_client_max_data(e->client) : 4096;
	pthread_mutex_unlock(&e->lock);
	x->call.in.read = (struct fuse_read_in){.fh = x->fh, .offset = x->off, .size = max};
	sl_ex_issue_one(x, x->plus ? FUSE_READDIRPLUS : FUSE_READDIR, x->node.nodeid, list_done);
}

static void list_finish(struct xreq *x)
{
	struct export *e = x->e;
	struct sl_oreq *r = x->r;
	/* Entries that vanished while they were listed have lost their name. */
	size_t k = 0;
	for (size_t i = 0; i < r->nentries; i++) {
		if (!r->entries[i].name)
			continue;
		r->entries[k] = r->entries[i];
		x->nodes[k++] = x->nodes[i];
	}
	r->nentries = k;
	int err = sl_oreq_check_entries(r);
	if (err) {
		sl_ex_finish(x, err);
		return;
	}
	pthread_mutex_lock(&e->lock);
	bool same = e->session == x->session;
	struct sl_pname *dir = same ? sl_places_at(&e->places, r->place) : NULL;
	bool there = dir && dir->n.nodeid == x->node.nodeid; /* it may have been moved, or thrown out */
	for (size_t i = 0; i < k && same; i++) {
		if (there)
			sl_places_add(&e->places, dir, r->entries[i].name, strlen(r->entries[i].name),
				      x->nodes[i]);
		else
			sl_places_forget(&e->places, x->nodes[i].nodeid, 1);
	}
	pthread_mutex_unlock(&e->lock);
	sl_ex_send_forgets(e);
	sl_ex_finish(x, 0);
}

static void detail_done(struct sl_call *call, struct sl_result *res)
{
	struct part *p = sl_container_of(call, struct part, call);
	struct xreq *x = p->x;
	struct sl_oentry *en = &x->r->entries[p->index];
	int err = res->err;
	bool hint = x->flags & SL_FUSE_XATTR_HINT;
	bool gone = res->from_server &&
		    (err == -ENOENT || err == -ESTALE || (err == -EINVAL && call->opcode == FUSE_READLINK));
	if (err == 0 && call->opcode == FUSE_LOOKUP) {
		const struct fuse_entry_out *e = &res->out->entry;
		x->nodes[p->index] = (struct sl_place_node){e->nodeid, e->generation};
		gone = e->nodeid == 0;
		if (!gone)
			err = sl_attr_from_fuse(&e->attr, e->generation, hint, &en->attr);
	} else if (err == 0) {
		if (res->data_len == 0 || res->data_len > 4096 || memchr(res->data, '\0', res->data_len))
			err = -EPROTO;
		else if (!(en->target = strndup(res->data, res->data_len)))
			err = -ENOMEM;
	}
	pthread_mutex_lock(&x->e->lock);
	if (gone) {
		if (x->nodes[p->index].nodeid)
			sl_places_forget(&x->e->places, x->nodes[p->index].nodeid, 1);
		x->nodes[p->index].nodeid = 0;
		free(en->name);
		en->name = NULL;
	} else if (err && !x->err) {
		x->err = err;
		x->from_server = res->from_server;
	}
	bool last = --x->pending == 0;
	pthread_mutex_unlock(&x->e->lock);
	if (!last)
		return;
	if (x->err)
		sl_ex_failed(x, x->err, x->from_server);
	else
		list_details(x);
}

/* What the listing alone does not say: attributes of a plain READDIR, targets of symlinks. In rounds of
 * WINDOW calls. */
static void list_details(struct xreq *x)
{
	struct sl_oreq *r = x->r;
	struct part *parts = x->parts;
	if (!parts)
		parts = x->parts = calloc(WINDOW, sizeof(*x->parts));
	if (!parts) {
		sl_ex_finish(x, -ENOMEM);
		return;
	}
	unsigned n = 0;
	for (; x->next < r->nentries && n < WINDOW; x->next++) {
		struct sl_oentry *en = &r->entries[x->next];
		if (!en->name)
			continue;
		uint64_t nodeid = x->nodes[x->next].nodeid;
		if (nodeid && !(S_ISLNK(en->attr.mode) && !en->target))
			continue;
		struct part *p = &parts[n++];
		*p = (struct part){.x = x, .index = x->next};
		p->call.opcode = nodeid ? FUSE_READLINK : FUSE_LOOKUP;
		p->call.nodeid = nodeid ? nodeid : x->node.nodeid;
		p->call.name = nodeid ? NULL : en->name;
	}
	if (n == 0) {
		/* A second pass finds the symlinks among what was looked up in the first. */
		for (size_t i = 0; i < r->nentries; i++)
			if (r->entries[i].name && S_ISLNK(r->entries[i].attr.mode) && !r->entries[i].target) {
				x->next = i;
				list_details(x);
				return;
			}
		list_finish(x);
		return;
	}
	x->pending = n;
	for (unsigned i = 0; i < n; i++)
		sl_ex_issue(x, &parts[i].call, detail_done);
}
