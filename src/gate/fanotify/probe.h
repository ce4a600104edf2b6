/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What this machine can do for the native gate, found out by doing it: on a filesystem image of its own that
 * nobody sees and that is gone afterwards. Takes a quarter of a second as root, nothing otherwise.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

/** What is tried, in this order; later ones build on earlier ones. */
struct sl_fanotify_feature {
	const char *name; /* for programs: "range" */
	const char *what; /* for people: what it is good for */
	bool needed;	  /* without it there is no native gate on an image */
	bool tried;	  /* not, where something that it builds on is missing */
	bool ok;
	char *why; /* if not ok: a sentence, or NULL if not tried */
};

/**
 * Try everything. @scratch: a directory for the image, as large as a log (64 MiB); NULL: $TMPDIR or /var/tmp.
 * *@ret is an array for sl_fanotify_features_free(). Runs in a thread of its own with a mount namespace of
 * its own, and returns when that is gone. Returns the number of features, or -errno.
 */
int sl_fanotify_probe(const char *scratch, struct sl_fanotify_feature **ret);
void sl_fanotify_features_free(struct sl_fanotify_feature *f, int n);

/** Of all of them: names need not be there before a clone on an image is shown. */
bool sl_fanotify_lazy(const struct sl_fanotify_feature *f, int n);
/** 0 if all that is needed is there, and whether names can be lazy in *@lazy; else -errno, with the first
 * thing that is missing in *@why. */
int sl_fanotify_available(const char *scratch, bool *lazy, char **why);
