/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The cold zone of an image: the filesystem's last blocks, which belong to nothing but the files that
 * placeholders are made of ("cold" and "tails/", see store/store.h). Once they are written, the host's file
 * is cut off in front of them, while the device keeps its size. A block in there can be cloned and freed like
 * any other, but reading it is an I/O error, for every program and in every way. So whatever gets past the
 * gate finds EIO where content is missing, not zeros. It also takes no space.
 *
 *     image file   |==============================|            cut off here while the clone is in use
 * (sealed) device, XFS  |==============================|-- zone --|
 *
 * What has to be kept in mind:
 *   - A *part* of a cold block cannot be written: XFS reads the rest first, and fails. Fill whole blocks, and
 * punch the block out before when it is a file's last and not whole. Truncation into a cold block fails.
 *   - A page fault needs a whole folio, of up to 2 MiB, and gives SIGBUS where a part of it is cold: fill
 * what is mapped to boundaries of 2 MiB (SL_ZONE_MAP_UNIT). read() needs what it reads only.
 *   - What is zeros at the origin has to be written or punched like anything else.
 *   - The kernel reads ahead into what is cold, which fails without harm, and says so in its log ("I/O error,
 * dev loop0").
 *   - XFS reads a device's last block when it mounts it: sl_image_attach() makes the file as long as it has
 * to be, and the seal is put on again after each mount.
 *   - A filesystem that grew would leave its zone behind, and what is made of it would read as zeros. So an
 * image is made as large as it may ever be, which costs nothing, and does not grow (store/room.c).
 *
 * Functions return 0 or -errno with a sentence in *@why, and keep no state.
 */
#pragma once

#include <stdint.h>

#define SL_ZONE_SIZE	 (48ull << 20)
#define SL_ZONE_MAP_UNIT (2ull << 20)

/**
 * Make "cold" and "tails/" in the store's directory @store_fd (a real descriptor, on the image's XFS) out of
 * the last blocks; what was there under these names is removed. Before the store is opened, and while nobody
 * else writes to the filesystem, which is full for a moment. Takes about 0.3 s. Where it fails, the store is
 * as if it had never been called: its armour gives zeros, as everywhere.
 */
int sl_zone_make(int store_fd, char **why);

/**
 * Cut the image @path off in front of the zone, and see that what is cold cannot be read. After each mount,
 * before anybody can read. -ENXIO if there is no zone at the end of the filesystem, -EOPNOTSUPP where the
 * kernel gives zeros all the same.
 */
int sl_zone_seal(const char *path, int store_fd, char **why);

/**
 * The first piece in [*off, end) of the file @fd, on such an image, that is made of the zone: *off becomes
 * its beginning, and its length is returned; 0 if there is none. Of a last block that is not whole a hole
 * counts too: that is what it is for a moment when it is filled. Writes what is dirty. -errno.
 */
int64_t sl_zone_cold(int fd, uint64_t *off, uint64_t end);
