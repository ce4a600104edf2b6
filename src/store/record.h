/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The record: what the store knows of one object, in one extended attribute of 64 bytes (just what ext4 keeps
 * in a 256-byte inode beside its own fields). All integers little-endian.
 *
 *    0  u8  format (1)        1  u8 state           2  u16 flags          4  u32 nlink
 *    8  u64 origin inode     16  u64 origin size, or the device number of a device
 *   24  s64 origin mtime (s) 32  s64 origin ctime (s)
 *   40  u32 mtime (ns)       44  u32 ctime (ns)    48  u32 origin generation
 *   52  u8 chunk shift       53  u8 reserved       54  u16 mode (type and permissions)
 *   56  u64 XXH3 checksum of the 56 bytes before
 */
#pragma once

#include "origin/attr.h"

#define SL_RECORD_FORMAT 1
#define SL_RECORD_SIZE	 64

enum sl_state {
	SL_COLD = 0,	/* a file without content; a directory without names ("unpopulated") */
	SL_PARTIAL = 1, /* native directories: its names are being taken away; as unpopulated */
	SL_FULL = 2,	/* a directory: populated */
};

enum sl_record_flag {
	SL_PINNED = 1 << 0,
	SL_MODIFIED = 1 << 1, /* content was changed here: never evicted, never overwritten */
	SL_META = 1 << 2,     /* mode, owner or times were changed here */
	SL_CONFLICT = 1 << 3, /* modified here and changed at the origin */
	SL_LOCAL = 1 << 4,    /* made here: the origin has nothing of it */
	SL_LINKED = 1 << 5,   /* the origin has several names for it: it stands in the store's link index */
	SL_XATTRS = 1 << 6,   /* may have extended attributes at the origin that are not here yet */
	SL_SPARSE = 1 << 7,   /* has holes at the origin */
	SL_MOVED = 1 << 8,    /* its place at the origin is in an attribute of its own */
	SL_WRITTEN =
	    1 << 9,	    /* native stores: content was changed here while parts of it are still missing: as
			     * SL_MODIFIED, but what is missing is fetched, as long as the origin has this version */
	SL_GONE = 1 << 10,  /* native stores: deleted at the origin: what lies at its place now is another */
	SL_MIXED = 1 << 11, /* native stores: it may hold bytes that are not claimed and not of its version */
	SL_UNTOLD =
	    1
	    << 13, /* a reader came before the replay: this version is here, and no watcher has heard of it */
	SL_EVICTED = 1 << 14, /* native stores: taken away with its name, which comes again as another object:
			       * who has this one still gets an error */
	SL_RENEWED =
	    1 << 12, /* native stores: being given another version; its size and times are no user's */
};

struct sl_record {
	enum sl_state state;
	uint16_t flags;	     /* enum sl_record_flag */
	uint8_t chunk_shift; /* of the chunk map on disk, when state is SL_PARTIAL */
	uint32_t mode;
	uint32_t nlink;	 /* with SL_LINKED: how many names the object has, here and not yet here */
	dev_t rdev;	 /* of devices */
	uint64_t listed; /* native directories: ns since the epoch, see sl_object_listed() */
	struct sl_version origin;
};

void sl_record_encode(const struct sl_record *r, uint8_t out[SL_RECORD_SIZE]);
/** Returns 0; -EBADMSG where size, checksum or a field is wrong; -EPROTONOSUPPORT for the format of a newer
 * version. */
int sl_record_decode(const void *buf, size_t len, struct sl_record *r);

/*
 * In a native store users rename as they like and copy extended attributes with their files, so the record is
 * followed by
 *
 *   64  u64 whose it is: sl_handle_hash() of the file      72  u64 XXH3 checksum of that and of the place
 *   80  the place at the origin, not terminated; if directories have moved there since the clone was made
 *       (place.c), a NUL and u32 after how many such moves it was the place
 */
#define SL_PLACED_MAX (SL_RECORD_SIZE + 16 + 4096 + 5)
/** Returns the length. @place is at most 4096 bytes long; otherwise 0. @moves: 0 before the first. */
size_t sl_record_encode_placed(const struct sl_record *r, uint64_t self, const char *place, uint32_t moves,
			       uint8_t out[SL_PLACED_MAX]);
/** As sl_record_decode(); -ENODATA where the record is another file's. *@place is allocated. */
int sl_record_decode_placed(const void *buf, size_t len, uint64_t self, struct sl_record *r, char **place,
			    uint32_t *moves);

/** "cold", "partial", "full", or the directory's words for them. */
const char *sl_state_name(enum sl_state s, uint32_t mode);
