# SPDX-License-Identifier: GPL-2.0
# What people type.  The module's own build is in module/Kbuild.

include versions.mk

KERNEL ?= $(KERNEL_MIN)
# Kernels that are tested in full, and those that are tested in brief.
KERNELS ?= $(KERNEL_MIN)
BRIEF_KERNELS ?= $(filter-out $(KERNELS),6.1 6.12 7.3)
# The same for whose virtualization.
VENDORS ?= amd
BRIEF_VENDORS ?= $(filter-out $(VENDORS),amd intel)
PYTEST_ARGS ?=
MUTATION ?=
PREFIX ?= /usr/local
DESTDIR ?=
INSTALL ?= install
PYTHON := /usr/bin/python3
BUILD := $(CURDIR)/build

export BUILD PREFIX DESTDIR INSTALL

# As many jobs as there are processors, unless make has been told.
jobs = $(if $(filter -j%,$(MAKEFLAGS)),,-j$(shell nproc))

# The directories of the tools.
tools := $(patsubst %/Makefile,%,$(wildcard tools/*/Makefile))

.DEFAULT_GOAL := help

.PHONY: help
help: ## show this list
	@echo "Targets (variables: KERNEL=$(KERNEL), PYTEST_ARGS, QUICK, SCENARIO, BOOTS, BATCHES, MUTATION, FUZZ_SECONDS, SOAK, CALLS, SEED;"
	@echo "for test: KERNELS=\"$(KERNELS)\" in full, BRIEF_KERNELS=\"$(BRIEF_KERNELS)\", VENDORS=\"$(VENDORS)\" in full,"
	@echo "BRIEF_VENDORS=\"$(BRIEF_VENDORS)\";"
	@echo "for install: PREFIX=$(PREFIX), DESTDIR):"
	@sed -n 's/^\([a-z-]*\):.*## /  \1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 14

.PHONY: setup
setup: ## install the Debian packages that the rest needs (as root)
	@scripts/setup

# Kbuild writes beside the sources, so it gets a directory of links to them ($$out);
# ../uapi is there as it is beside module/.
link_module = mkdir -p $$out; \
	(cd module && find . -type f \( -name '*.[chS]' -o -name '*.mk' -o -name Kbuild \) -printf '%P\n') | \
	while read -r file; do \
		mkdir -p "$$out/$$(dirname "$$file")"; \
		ln -sfn "$(CURDIR)/module/$$file" "$$out/$$file"; \
	done; \
	find $$out -xtype l -delete; \
	ln -sfn $(CURDIR)/uapi $(CURDIR)/versions.mk $(CURDIR)/dkms.conf $(BUILD)/module

.PHONY: module
module: setup ## build the kernel module for KERNEL
	@set -e; kernel=$$(scripts/kernels.py kernel $(KERNEL)); \
	out=$(BUILD)/module/$${kernel%% *}; $(link_module); \
	scripts/kernels.py make $(KERNEL) --no-print-directory $(jobs) M=$$out W=1 modules

.PHONY: modules
modules: setup
	@set -e; for kernel in $(KERNELS) $(BRIEF_KERNELS); do \
		$(MAKE) --no-print-directory module KERNEL=$$kernel; \
	done

.PHONY: include
include: build/include/linux/memslot.h ## stage the interface header in build/include

# Relative: scripts/setup tells which paths make cannot work in, once make has read this
build/include/linux/memslot.h: uapi/linux/memslot.h
	@install -D -m 644 $< $@

.PHONY: tools
tools: setup include ## build the tools
	@set -e; for tool in $(tools); do $(MAKE) $(jobs) --no-print-directory -C $$tool; done

.PHONY: memslot-run
memslot-run: setup include
	@$(MAKE) $(jobs) --no-print-directory -C tools/memslot-run

.PHONY: guests
guests: setup include ## build the guests that the tests run
	@$(MAKE) $(jobs) --no-print-directory -C tests/guests

.PHONY: benchmarks
benchmarks: setup include
	@$(MAKE) $(jobs) --no-print-directory -C bench

.PHONY: kselftest
kselftest: setup include ## build the kernel selftests
	@set -e; source=$$(scripts/kernels.py source $(KERNEL_MIN)); \
	$(MAKE) $(jobs) --no-print-directory -C tests/kselftest LINUX_SOURCE=$$source

.PHONY: qemu
qemu: setup ## build a QEMU with the patches of contrib/qemu, and say how it is started
	@scripts/patched_qemu.py

.PHONY: vm
vm: module tools guests benchmarks kselftest ## open a shell in a test VM with the module loaded
	@vmtest/run --kernel $(KERNEL) --module --shell

.PHONY: demo
demo: module memslot-run guests benchmarks ## show what the module does, in a test VM; QUICK=1: with few boots and samples
	@$(PYTHON) bench/demo.py --kernel $(KERNEL) $(if $(QUICK),--quick)

.PHONY: bench
bench: module benchmarks ## compare with KVM's own ioctl, and with pausing in userspace; QUICK=1, SCENARIO="ro-flip grow"
	@$(PYTHON) bench/bench.py --kernel $(KERNEL) $(if $(QUICK),--quick) $(if $(SCENARIO),--scenario $(SCENARIO))

# Of each QEMU, for each number of vCPUs
BOOTS ?= 50

.PHONY: bench-qemu
bench-qemu: module memslot-run qemu ## compare what boots of four QEMUs spend in changes of memslots; BOOTS=50
	@$(PYTHON) bench/boot_commits.py --kernel $(KERNEL) --boots $(BOOTS)

# What the project builds for itself must be without warnings
test: export WERROR := -Werror

# One per processor: a VM that waits leaves its processor to another one's.
PYTEST_WORKERS ?= $(shell nproc)

.PHONY: test
test: modules tools guests benchmarks kselftest qemu ## build everything and run the tests
	@$(PYTHON) -m pytest -o cache_dir=$(BUILD)/pytest -n $(PYTEST_WORKERS) --dist loadgroup $(KERNELS:%=--kernel %) \
		$(BRIEF_KERNELS:%=--brief-kernel %) $(VENDORS:%=--vendor %) $(BRIEF_VENDORS:%=--brief-vendor %) \
		$(PYTEST_ARGS) tests

# Its tests are those that have a VM, and know whose it is.
.PHONY: test-intel
test-intel: ## run all tests that can be run on Intel's virtualization, on all KERNELS and BRIEF_KERNELS
	@$(MAKE) --no-print-directory test VENDORS=intel BRIEF_VENDORS= \
		PYTEST_ARGS="-m 'any_vendor or every_vendor or every_machine' $(PYTEST_ARGS)"

# SOAK: how long guests run while their memory changes at random, in pytest's
# last item (90s, 30m, 2h).
.PHONY: test-debug
test-debug: ## run the tests on kernels that check everything, the second one races; SOAK=30m
	@$(MAKE) --no-print-directory test KERNELS=6.1-debug BRIEF_KERNELS= \
		PYTEST_ARGS="--soak $(or $(SOAK),90s) $(PYTEST_ARGS)"
	@$(MAKE) --no-print-directory test KERNELS=6.1-kcsan BRIEF_KERNELS= BRIEF_VENDORS= \
		PYTEST_ARGS="-m races --soak $(or $(SOAK),90s) $(PYTEST_ARGS)"

# Everything else runs in emulated machines.
.PHONY: hw-test
hw-test: tools guests kselftest ## load the module into this machine's own kernel, run tests, write a report; asks first
	@set -e; out=$(BUILD)/module/hw-$$(uname -r); headers=/lib/modules/$$(uname -r)/build; \
	if ! [ -e $$headers/Makefile ]; then \
		echo "hw-test: there are no headers of this kernel: apt-get install linux-headers-$$(uname -r)" >&2; \
		exit 2; \
	fi; \
	$(link_module); \
	$(MAKE) --no-print-directory $(jobs) -C $$headers M=$$out modules; \
	scripts/hw_test.py --module $$out/memslot.ko $(HW_TEST_ARGS)

CALLS ?= 1000000
SEED ?=

.PHONY: fuzz-ioctl
fuzz-ioctl: ## make CALLS random ioctls on a kernel that checks everything
	@$(MAKE) --no-print-directory module KERNEL=6.1-debug
	@$(MAKE) --no-print-directory -C tests/fuzz
	@vmtest/run --kernel 6.1-debug --module --timeout 86400 \
		$(BUILD)/fuzz/ioctl --calls $(CALLS) $(if $(SEED),--seed $(SEED))

# With the defaults: a million random batches, and ten minutes.
BATCHES ?= 1000000
FUZZ_SECONDS ?= 600

.PHONY: model
model: setup ## check the model of the commit, and that its mutations are found; MUTATION=NAME shows one
	@tests/model/check.py $(MUTATION)

.PHONY: compare-plan
compare-plan: setup ## compare plan.c with a model of it on BATCHES random batches
	@$(MAKE) --no-print-directory -C tests/unit
	@MEMSLOT_BATCHES=$(BATCHES) $(BUILD)/unit/test_plan --gtest_filter='Model.*'

.PHONY: fuzz-plan
fuzz-plan: setup ## let a fuzzer compare plan.c with its model for FUZZ_SECONDS
	@$(MAKE) --no-print-directory -C tests/fuzz plan FUZZ_SECONDS=$(FUZZ_SECONDS)

.PHONY: format
format: setup ## bring the C++ sources into the form that make check asks for
	@git ls-files -z '*.cpp' '*.hpp' | xargs -0 clang-format -i

.PHONY: check
check: setup ## run the static checks; none may find anything
	@$(PYTHON) scripts/checks.py

# DKMS looks into /usr/src only, whatever the PREFIX.
dkms_source := $(DESTDIR)/usr/src/memslot-$(MEMSLOT_VERSION)
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
	@if [ -e '$(DESTDIR)/var/lib/dkms/memslot/$(MEMSLOT_VERSION)' ]; then \
		echo 'DKMS still has the module; first run: dkms remove memslot/$(MEMSLOT_VERSION) --all' >&2; \
		exit 1; \
	fi
	set -e; for part in userlib $(tools); do $(MAKE) -C $$part uninstall; done
	cd uapi/man && for page in *.4; do rm -f '$(man4)'/$$page; done
	rm -f '$(udev_rules)' '$(modules_load)'
	rm -rf '$(dkms_source)'

.PHONY: packages
packages: setup ## build the Debian packages, in a Debian 12 root, into build/packages
	@$(PYTHON) scripts/roots.py packages

.PHONY: clean
clean: ## remove what was built
	rm -rf $(BUILD)
	find . -name .cache -prune -o -name __pycache__ -prune -exec rm -rf {} +

.PHONY: distclean
distclean: clean ## remove what was downloaded, too
	rm -rf .cache
