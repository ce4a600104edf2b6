# SPDX-License-Identifier: LGPL-2.1-or-later
# The front door. Meson does the work; this installs what it needs (Debian 12) and calls it.

BUILD  = build
PREFIX =
export DESTDIR

# By name: meson counts the tests' programs to `all`.
PROGRAMS = sluice

all: $(BUILD)/build.ninja
	@ninja -C $(BUILD) $(PROGRAMS)

$(BUILD)/build.ninja:
	@tools/install-deps build
	@meson setup $(if $(PREFIX),-Dprefix='$(PREFIX)') $(BUILD)

check:
	@tools/install-deps check
	@tests/run

demo: all
	@tools/demo

bench: all
	@tools/install-deps bench
	@bench/run

conformance: all
	@tools/install-deps bench
	@ninja -C $(BUILD) checks
	@SLUICE_BUILD=$(abspath $(BUILD)) tests/tools/conformance-table --run fuse,fanotify,sshfs,rclone $(BUILD)/conformance.jsonl >/dev/null
	@for g in fuse fanotify; do \
		SLUICE_BUILD=$(abspath $(BUILD)) kernel/tests/gates -m 4G tests/tools/conformance --gate $$g; \
		case $$? in 0 | 77 | 99) ;; *) exit 1 ;; esac; done >$(BUILD)/conformance-series.jsonl
	@tests/tools/conformance-table --write docs/conformance.md $(BUILD)/conformance.jsonl $(BUILD)/conformance-series.jsonl

fidelity: all
	@tools/install-deps check
	@for g in fuse fanotify share unprivileged; do SLUICE_BUILD=$(abspath $(BUILD)) tests/tools/fidelity --gate $$g; done >$(BUILD)/fidelity.jsonl
	@tests/tools/fidelity --table $(BUILD)/fidelity.jsonl >docs/fidelity.md

side-doors:
	@tools/install-deps check
	@kernel/tests/run -w side_door other_fs layers nfs

install: all
	@$(if $(PREFIX),meson configure $(BUILD) -Dprefix='$(PREFIX)' && ninja -C $(BUILD) $(PROGRAMS))
	@meson install -C $(BUILD) --no-rebuild

clean:
	rm -rf build build-asan build-tsan build-fuzz

help:
	@echo 'make            install what the build needs, build build/sluice'
	@echo 'make check      all tests: plain, with ASan and UBSan, with TSan (TESTS="unit fuzz system asan tsan")'
	@echo 'make demo       a guided tour with a local export'
	@echo 'make bench      measure against the alternatives'
	@echo 'make conformance  try every way to the bytes of cold files, here and with the alternatives; writes docs/conformance.md'
	@echo 'make fidelity   compare what watchers hear here and at the origin; writes docs/fidelity.md'
	@echo 'make side-doors  try every way into directories that are not filled, in the test kernel; writes docs/side-doors.md'
	@echo 'make install    PREFIX=/usr/local, DESTDIR= are honoured'
	@echo 'make clean      remove all build directories'

.PHONY: all check demo bench conformance fidelity side-doors install clean help
