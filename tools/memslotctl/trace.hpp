// SPDX-License-Identifier: GPL-2.0
/* The module's tracepoints, as text. */
#pragma once

#include <chrono>
#include <cstdint>
#include <linux/memslot.h>
#include <optional>
#include <string>
#include <string_view>
#include <sys/types.h>
#include <unordered_map>
#include <vector>

namespace memslotctl {

/* A commit, from its two events. */
struct commit_seen {
	/* when it ended, by the tracing clock */
	std::chrono::microseconds end;
	/* who created the VM */
	pid_t vm;
	/* 0, or a negative errno */
	int err;
	/* what follows is missing where the module, or the start of the commit, was not seen */
	std::optional<std::chrono::microseconds> took;
	std::optional<std::uint64_t> entries, flags;
	std::optional<std::uint64_t> created, deleted, replaced, moved, reflagged;
	std::optional<std::uint64_t> kept, remapped, removed, added;
	std::optional<std::uint64_t> ns_fenced, grace_periods, late_root;
	enum memslot_reason reason;
	enum memslot_strategy strategy;
	enum memslot_park_cause cause;
	/* -1: no entry is to blame */
	std::int64_t entry;
};

/* Pairs the starts and ends of commits. */
class trace_reader {
public:
	/*
	 * A line of trace_pipe; returns the commit that it ends, if it does.  Fields that are new
	 * at its end are passed over.  Throws a problem if it is not understood: a commit that is
	 * left out would look as if it had not been.
	 */
	std::optional<commit_seen> read(std::string_view line);

	/* Events that the kernel had no room for, as far as it counted them */
	[[nodiscard]] std::uint64_t lost() const noexcept
	{
		return lost_;
	}

private:
	struct start {
		std::chrono::microseconds at;
		std::optional<std::uint64_t> entries, flags;
	};

	/* By thread: it makes one commit at a time */
	std::unordered_map<pid_t, start> running_;
	std::uint64_t lost_ = 0;
};

/*
 * Sorts lines of trace_pipe by their times; what has none comes first.  The kernel looks at one
 * processor's events after the other's, so an event may be handed out before an earlier one of a
 * processor that was looked at already: the end of a commit whose thread has changed its processor
 * before its start.
 */
void put_in_order(std::vector<std::string> &lines);

/* One line about a commit, without its time and VM. */
[[nodiscard]] std::string describe(const commit_seen &commit);

} // namespace memslotctl
