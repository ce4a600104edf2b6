/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a request is about to change, or to use, for own.h. */
#include <fcntl.h>
#include <linux/fs.h>

#include "serve/connection.h"

#define NOTES_MAX 4

struct notes {
	struct sl_own_note v[NOTES_MAX];
	unsigned n;
};

static void note(struct notes *t, const struct sl_evid *dir, const char *name, uint64_t mask)
{
	t->v[t->n++] = (struct sl_own_note){.dir = *dir, .name = name, .mask = mask};
}

/* A name in the directory @id. */
static void note_name(struct sl_conn *c, struct notes *t, uint64_t id, const char *name, uint64_t mask)
{
	struct sl_noderef dir;
	struct sl_evid obj;
	if (sl_nodes_where(c->nodes, id, &obj, &dir, NULL))
		note(t, &obj, name, mask);
}

/* The content or the attributes of @id: by what it is, and by where it is, for it may be gone when that is
 * heard of. */
static void note_use(struct sl_conn *c, struct notes *t, uint64_t id, uint64_t mask, char name[256])
{
	struct sl_noderef dir;
	struct sl_evid obj, parent;
	if (!sl_nodes_where(c->nodes, id, &obj, &dir, name))
		return;
	note(t, &obj, NULL, mask);
	if (dir.id && sl_nodes_where(c->nodes, dir.id, &parent, &dir, NULL))
		note(t, &parent, name, mask);
}

uint64_t sl_conn_note_use(struct sl_conn *c, const struct sl_req *rq, struct sl_own *uses)
{
	const struct sl_msg_in *m = &rq->m;
	struct notes t = {.n = 0};
	char name[256];
	switch (m->h.opcode) {
	case FUSE_CREATE:
		note_name(c, &t, m->h.nodeid, m->name, SL_CHANGE_USE);
		break;
	case FUSE_OPEN:
	case FUSE_READ:
	case FUSE_LSEEK:
	case FUSE_RELEASE:
	case FUSE_OPENDIR:
	case FUSE_READDIR:
	case FUSE_READDIRPLUS:
	case FUSE_RELEASEDIR:
		note_use(c, &t, m->h.nodeid, SL_CHANGE_USE, name);
		break;
	default:
		break;
	}
	return t.n ? sl_own_begin(uses, t.v, t.n) : 0;
}

uint64_t sl_conn_note(struct sl_conn *c, const struct sl_req *rq)
{
	const struct sl_msg_in *m = &rq->m;
	uint64_t id = m->h.nodeid, to;
	struct notes t = {.n = 0};
	char name[256];
	uint32_t flags = 0;
	switch (m->h.opcode) {
	case FUSE_SYMLINK:
	case FUSE_MKNOD:
	case FUSE_MKDIR:
	case FUSE_LINK:
	case FUSE_CREATE:
		note_name(c, &t, id, m->name, FAN_CREATE);
		break;
	case FUSE_UNLINK:
	case FUSE_RMDIR:
		note_name(c, &t, id, m->name, FAN_DELETE);
		break;
	case FUSE_RENAME:
	case FUSE_RENAME2:
		flags = m->h.opcode == FUSE_RENAME2 ? m->in.rename2.flags : 0;
		to = m->h.opcode == FUSE_RENAME2 ? m->in.rename2.newdir : m->in.rename.newdir;
		note_name(c, &t, id, m->name, FAN_MOVED_FROM);
		note_name(c, &t, to, m->name2, FAN_MOVED_TO);
		if (flags & RENAME_EXCHANGE) {
			note_name(c, &t, to, m->name2, FAN_MOVED_FROM);
			note_name(c, &t, id, m->name, FAN_MOVED_TO);
		}
		break;
	case FUSE_OPEN:
		if (m->in.open.flags & O_TRUNC)
			note_use(c, &t, id, FAN_MODIFY, name);
		break;
	case FUSE_WRITE:
	case FUSE_FALLOCATE:
		note_use(c, &t, id, FAN_MODIFY, name);
		break;
	case FUSE_COPY_FILE_RANGE:
		note_use(c, &t, m->in.copy_file_range.nodeid_out, FAN_MODIFY, name);
		break;
	case FUSE_SETATTR:
		note_use(c, &t, id, FAN_MODIFY | FAN_ATTRIB, name);
		break;
	case FUSE_SETXATTR:
	case FUSE_REMOVEXATTR:
		note_use(c, &t, id, FAN_ATTRIB, name);
		break;
	case FUSE_RELEASE:
		note_use(c, &t, id, FAN_CLOSE_WRITE, name);
		break;
	default:
		break;
	}
	return t.n ? sl_own_begin(sl_session_own(c->session), t.v, t.n) : 0;
}
