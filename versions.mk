# SPDX-License-Identifier: GPL-2.0
# Lowest and highest supported kernel, and the project's own version, which is
# dkms.conf's.  Everything else reads them here.
KERNEL_MIN := 6.1
KERNEL_MAX := 7.3

dkms_conf := $(dir $(lastword $(MAKEFILE_LIST)))dkms.conf
MEMSLOT_VERSION := $(shell sed -n 's/^PACKAGE_VERSION="\(.*\)"$$/\1/p' '$(dkms_conf)')
ifeq ($(MEMSLOT_VERSION),)
$(error $(dkms_conf) must be beside versions.mk and have a PACKAGE_VERSION)
endif
