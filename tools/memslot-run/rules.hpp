// SPDX-License-Identifier: GPL-2.0
/**
 * @file
 * Which calls of KVM do not wait until collected changes are applied, and why that is right.
 *
 * What a call has done must be true when it returns.  So every call of KVM, of whatever descriptor,
 * applies first what its thread has collected and waits for what another thread has, but for those
 * in this table.  The table of memslot-run(1) has the same rows, which a test compares.
 */
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <linux/kvm.h>

namespace memslot_run {

/** What happens to collected changes before a call is made. */
enum class before : std::uint8_t {
	/** they are applied */
	commit,
	/** nothing: the call has no part in them */
	nothing,
	/** they are applied if the slot that the call names is among them */
	if_collected,
};

struct rule {
	unsigned long request;
	const char *name;
	before what;
	/** as the man page has it */
	const char *why;
};

inline constexpr std::array rules{
	rule{KVM_CHECK_EXTENSION, "KVM_CHECK_EXTENSION", before::nothing, "asks what KVM can do"},
	rule{KVM_IOEVENTFD, "KVM_IOEVENTFD", before::nothing,
	     "changes a list of addresses that no slot is in"},
	rule{KVM_REGISTER_COALESCED_MMIO, "KVM_REGISTER_COALESCED_MMIO", before::nothing,
	     "changes a list of addresses that no slot is in"},
	rule{KVM_UNREGISTER_COALESCED_MMIO, "KVM_UNREGISTER_COALESCED_MMIO", before::nothing,
	     "changes a list of addresses that no slot is in"},
	rule{KVM_RESET_DIRTY_RINGS, "KVM_RESET_DIRTY_RINGS", before::nothing,
	     "protects pages that vCPUs have written: a slot that is not there yet has none"},
	rule{KVM_GET_DIRTY_LOG, "KVM_GET_DIRTY_LOG", before::if_collected,
	     "reads the log of one slot"},
	rule{KVM_CLEAR_DIRTY_LOG, "KVM_CLEAR_DIRTY_LOG", before::if_collected,
	     "clears the log of one slot"},
};

/** What the table says of a call; of one that it does not have, that it commits. */
constexpr before before_call(unsigned long request) noexcept
{
	const auto found = std::ranges::find(rules, request, &rule::request);

	return found == rules.end() ? before::commit : found->what;
}

} // namespace memslot_run
