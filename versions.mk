# SPDX-License-Identifier: GPL-2.0
# Lowest and highest supported kernel.  Everything else reads them here.
KERNEL_MIN := 6.1
KERNEL_MAX := 7.3
