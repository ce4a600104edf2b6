/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A filesystem as a native clone has it, without the clone: image FILE DIR makes it in FILE and mounts it on
 * DIR. */
#include <err.h>
#include <unistd.h>

#include "store/fs.h"
#include "store/image.h"

#define CAPACITY (8ull << 30)

int main(int argc, char **argv)
{
	char dev[SL_LOOP_DEV_MAX], *why = NULL;
	int loop, mnt;
	if (argc != 3)
		errx(2, "usage: image FILE DIR");
	unlink(argv[1]);
	if (sl_image_create(argv[1], CAPACITY, &why) < 0 || sl_image_attach(argv[1], &loop, dev, &why) < 0 ||
	    sl_fs_mount(dev, "xfs", SL_IMAGE_OPTIONS, 0, &mnt, &why) < 0 ||
	    sl_mount_attach(mnt, argv[2], &why) < 0)
		errx(1, "%s", why ? why : "no image");
	return 0;
}
