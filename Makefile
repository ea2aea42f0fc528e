# SPDX-License-Identifier: GPL-2.0
# What people type.  The module's own build is in module/Kbuild.

include versions.mk

VERSION := $(shell sed -n 's/^PACKAGE_VERSION="\(.*\)"$$/\1/p' dkms.conf)
KERNEL ?= $(KERNEL_MIN)
# Kernels that are tested in full, and those that are tested in brief.
KERNELS ?= $(KERNEL_MIN)
BRIEF_KERNELS ?= $(filter-out $(KERNELS),6.1 6.12 7.3)
PYTEST_ARGS ?=
PREFIX ?= /usr/local
DESTDIR ?=
INSTALL ?= install
PYTHON := /usr/bin/python3
BUILD := $(CURDIR)/build

export BUILD PREFIX DESTDIR INSTALL

# The directories of the tools.
tools := $(patsubst %/Makefile,%,$(wildcard tools/*/Makefile))

.DEFAULT_GOAL := help

.PHONY: help
help: ## show this list
	@echo "Targets (variables: KERNEL=$(KERNEL), PYTEST_ARGS, BATCHES, FUZZ_SECONDS, SOAK, CALLS, SEED;"
	@echo "for test: KERNELS=\"$(KERNELS)\" in full, BRIEF_KERNELS=\"$(BRIEF_KERNELS)\";"
	@echo "for install: PREFIX=$(PREFIX), DESTDIR):"
	@sed -n 's/^\([a-z-]*\):.*## /  \1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 14

.PHONY: setup
setup: ## install the Debian packages that the rest needs (as root)
	@tests/vm/setup

# Kbuild writes beside the sources, so it gets a directory of links to them;
# ../uapi is there as it is beside module/.
.PHONY: module
module: setup ## build the kernel module for KERNEL
	@set -e; kernel=$$(tests/vm/kernels.py kernel $(KERNEL)); \
	out=$(BUILD)/module/$${kernel%% *}; mkdir -p $$out; \
	(cd module && find . -type f \( -name '*.[chS]' -o -name '*.mk' -o -name Kbuild \) -printf '%P\n') | \
	while read -r file; do \
		mkdir -p "$$out/$$(dirname "$$file")"; \
		ln -sfn "$(CURDIR)/module/$$file" "$$out/$$file"; \
	done; \
	find $$out -xtype l -delete; \
	ln -sfn $(CURDIR)/uapi $(CURDIR)/versions.mk $(BUILD)/module; \
	tests/vm/kernels.py make $(KERNEL) --no-print-directory M=$$out W=1 modules

.PHONY: modules
modules: setup
	@set -e; for kernel in $(KERNELS) $(BRIEF_KERNELS); do \
		$(MAKE) --no-print-directory module KERNEL=$$kernel; \
	done

.PHONY: include
include: $(BUILD)/include/linux/memslot.h ## stage the interface header in build/include

$(BUILD)/include/linux/memslot.h: uapi/linux/memslot.h
	@install -D -m 644 $< $@

.PHONY: tools
tools: setup include ## build the tools
	@set -e; for tool in $(tools); do $(MAKE) --no-print-directory -C $$tool; done

.PHONY: guests
guests: setup include ## build the guests that the tests run
	@$(MAKE) --no-print-directory -C tests/guests

.PHONY: kselftest
kselftest: setup include ## build the kernel selftests
	@set -e; source=$$(tests/vm/kernels.py source $(KERNEL_MIN)); \
	$(MAKE) --no-print-directory -C tests/kselftest LINUX_SOURCE=$$source

.PHONY: vm
vm: module tools guests kselftest ## open a shell in a test VM with the module loaded
	@tests/vm/run --kernel $(KERNEL) --module --shell

.PHONY: demo
demo: module tools guests ## show what the module does, in a test VM
	@$(PYTHON) bench/demo.py --kernel $(KERNEL)

.PHONY: bench
bench: module guests ## compare with KVM's own ioctl, and with pausing in userspace
	@$(PYTHON) bench/one_slot.py --kernel $(KERNEL)
	@$(PYTHON) bench/parking.py --kernel $(KERNEL)

.PHONY: test
test: modules tools guests kselftest ## build everything and run the tests
	@$(PYTHON) -m pytest -o cache_dir=$(BUILD)/pytest $(KERNELS:%=--kernel %) \
		$(BRIEF_KERNELS:%=--brief-kernel %) $(PYTEST_ARGS) tests

# SOAK: how long guests run while their memory changes at random, in pytest's
# last item (90s, 30m, 2h).
.PHONY: test-debug
test-debug: ## run the tests on a kernel that checks everything; SOAK=30m
	@$(MAKE) --no-print-directory test KERNELS=6.1-debug BRIEF_KERNELS= \
		PYTEST_ARGS="--soak $(or $(SOAK),90s) $(PYTEST_ARGS)"

CALLS ?= 1000000
SEED ?=

.PHONY: fuzz-ioctl
fuzz-ioctl: ## make CALLS random ioctls on a kernel that checks everything
	@$(MAKE) --no-print-directory module KERNEL=6.1-debug
	@$(MAKE) --no-print-directory -C tests/fuzz
	@tests/vm/run --kernel 6.1-debug --module --timeout 86400 \
		$(BUILD)/fuzz/ioctl --calls $(CALLS) $(if $(SEED),--seed $(SEED))

# With the defaults: a million random batches, and ten minutes.
BATCHES ?= 1000000
FUZZ_SECONDS ?= 600

.PHONY: model
model: setup ## compare plan.c with a model of it on BATCHES random batches
	@$(MAKE) --no-print-directory -C tests/unit
	@MEMSLOT_BATCHES=$(BATCHES) $(BUILD)/unit/test_plan --gtest_filter='Model.*'

.PHONY: fuzz
fuzz: setup ## let a fuzzer compare plan.c with its model for FUZZ_SECONDS
	@$(MAKE) --no-print-directory -C tests/unit fuzz FUZZ_SECONDS=$(FUZZ_SECONDS)

.PHONY: check
check: setup ## run the static checks; none may find anything
	@$(PYTHON) tests/vm/checks.py

# DKMS looks into /usr/src only, whatever the PREFIX.
dkms_source := $(DESTDIR)/usr/src/memslot-$(VERSION)
udev_rules := $(DESTDIR)$(PREFIX)/lib/udev/rules.d/60-memslot.rules
modules_load := $(DESTDIR)$(PREFIX)/lib/modules-load.d/memslot.conf
man4 := $(DESTDIR)$(PREFIX)/share/man/man4

.PHONY: install
install: install-dkms install-dev install-tools ## install everything; the README says what comes then

.PHONY: install-dkms
install-dkms:
	find dkms.conf versions.mk module uapi -type f \
		\( -name '*.[chS]' -o -name '*.mk' -o -name Kbuild -o -name dkms.conf \) ! -name '*.mod.c' \
		-exec $(INSTALL) -D -m 644 '{}' '$(dkms_source)/{}' ';'
	$(INSTALL) -D -m 644 system/60-memslot.rules '$(udev_rules)'
	$(INSTALL) -D -m 644 system/memslot.conf '$(modules_load)'

.PHONY: install-dev
install-dev:
	$(MAKE) -C userlib install
	for page in uapi/man/*.4; do $(INSTALL) -D -m 644 $$page '$(man4)'/$${page##*/}; done

.PHONY: install-tools
install-tools:
	set -e; for tool in $(tools); do $(MAKE) -C $$tool install; done

.PHONY: uninstall
uninstall: ## remove what install installed
	@if [ -e '$(DESTDIR)/var/lib/dkms/memslot/$(VERSION)' ]; then \
		echo 'DKMS still has the module; first run: dkms remove memslot/$(VERSION) --all' >&2; \
		exit 1; \
	fi
	set -e; for part in userlib $(tools); do $(MAKE) -C $$part uninstall; done
	cd uapi/man && for page in *.4; do rm -f '$(man4)'/$$page; done
	rm -f '$(udev_rules)' '$(modules_load)'
	rm -rf '$(dkms_source)'

.PHONY: packages
packages: setup ## build the Debian packages, in a Debian 12 root, into build/packages
	@$(PYTHON) tests/vm/roots.py packages

.PHONY: clean
clean: ## remove what was built
	rm -rf $(BUILD)
	find . -name .cache -prune -o -name __pycache__ -prune -exec rm -rf {} +

.PHONY: distclean
distclean: clean ## remove what was downloaded, too
	rm -rf .cache
