# SPDX-License-Identifier: GPL-2.0
"""What a kernel's log must not have in it while it is tested, be it that of the test VM or of this machine."""

from __future__ import annotations

import re

# The kernel ends "general protection fault" with a comma or a colon where the fault is its own; the lines about a
# program's ("traps: a.out[9] general protection fault ip:…") have neither.
COMPLAINT = re.compile(
    r"WARNING: |BUG: |kernel BUG at| \[#\d+\]|Kernel panic|UBSAN: |KCSAN: |general protection fault[,:]"
    r"|INFO: (?:task .* blocked for|rcu.*stall|trying to register non-static key)|detected stalls? on"
    r"|unreferenced object|suspected memory leaks|page allocation failure|list_(?:add|del) corruption"
    r"|unchecked MSR access|nobody cared"
)
