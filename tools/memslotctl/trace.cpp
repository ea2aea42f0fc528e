// SPDX-License-Identifier: GPL-2.0
#include "trace.hpp"

#include <memslot.hpp>

#include <array>
#include <charconv>
#include <cstdio>
#include <cstring>

namespace memslotctl {

namespace {

constexpr std::string_view marker = ": memslot_commit_";
constexpr std::string_view lost_events = "[LOST ";

/* The number that text begins with; 0x makes it hexadecimal. */
std::optional<std::int64_t> number(std::string_view text)
{
	std::int64_t value = 0;
	int base = 10;

	if (text.starts_with("0x")) {
		text.remove_prefix(2);
		base = 16;
	}
	if (std::from_chars(text.data(), text.data() + text.size(), value, base).ec != std::errc())
		return std::nullopt;
	return value;
}

/* The number after a name among "name number name number ..."; a name may be two words. */
std::optional<std::int64_t> field(std::string_view text, std::string_view name)
{
	for (std::size_t at = 0; (at = text.find(name, at)) != text.npos; at++) {
		const bool begins = at == 0 || text[at - 1] == ' ';
		const std::string_view rest = text.substr(at + name.size());

		if (begins && rest.starts_with(' '))
			return number(rest.substr(1));
	}
	return std::nullopt;
}

std::optional<std::uint64_t> count(std::string_view text, std::string_view name)
{
	const auto value = field(text, name);

	if (!value || *value < 0)
		return std::nullopt;
	return static_cast<std::uint64_t>(*value);
}

/* "   name-123   [001] .....  12.345678" before the event's name: who and when. */
struct prefix {
	pid_t thread;
	std::chrono::microseconds at;
};

std::optional<prefix> read_prefix(std::string_view text)
{
	const auto cpu = text.rfind(" [");
	const auto time = text.rfind(' ');

	if (cpu == text.npos || time == text.npos || time < cpu)
		return std::nullopt;

	const auto dash = text.rfind('-', cpu);
	const auto point = text.find('.', time);

	if (dash == text.npos || point == text.npos)
		return std::nullopt;

	const auto thread = number(text.substr(dash + 1));
	const auto seconds = number(text.substr(time + 1));
	const auto micros = number(text.substr(point + 1));

	if (!thread || !seconds || !micros)
		return std::nullopt;
	return prefix{static_cast<pid_t>(*thread),
		      std::chrono::seconds(*seconds) + std::chrono::microseconds(*micros)};
}

} // namespace

std::optional<commit_seen> trace_reader::read(std::string_view line)
{
	const auto event = line.find(marker);

	if (event == line.npos) {
		/* CPU:1 [LOST 12 EVENTS] */
		const auto lost = line.find(lost_events);

		if (line.starts_with("CPU:") && lost != line.npos)
			lost_ += static_cast<std::uint64_t>(
				number(line.substr(lost + lost_events.size())).value_or(0));
		return std::nullopt;
	}

	const auto who = read_prefix(line.substr(0, event));
	const std::string_view rest = line.substr(event + marker.size());
	const std::string_view text = rest.substr(std::min(rest.find(": ") + 2, rest.size()));

	if (!who)
		return std::nullopt;
	if (rest.starts_with("start: ")) {
		running_[who->thread] = {
			.at = who->at,
			.entries = count(text, "entries"),
			.flags = count(text, "flags"),
		};
		return std::nullopt;
	}
	if (!rest.starts_with("end: "))
		return std::nullopt;

	commit_seen seen{
		.end = who->at,
		.vm = static_cast<pid_t>(field(text, "vm").value_or(0)),
		.err = static_cast<int>(field(text, "err").value_or(0)),
		.took = std::nullopt,
		.entries = std::nullopt,
		.flags = std::nullopt,
		.created = count(text, "created"),
		.deleted = count(text, "deleted"),
		.replaced = count(text, "replaced"),
		.moved = count(text, "moved"),
		.reflagged = count(text, "reflagged"),
		.kept = count(text, "kept"),
		.remapped = count(text, "remapped"),
		.removed = count(text, "removed"),
		.added = count(text, "added"),
		.reason = count(text, "reason"),
		.strategy = count(text, "strategy"),
		.cause = count(text, "cause"),
		.ns_fenced = count(text, "fenced"),
		.entry = field(text, "entry").value_or(-1),
	};
	const auto begun = running_.find(who->thread);

	if (begun != running_.end()) {
		seen.took = who->at - begun->second.at;
		seen.entries = begun->second.entries;
		seen.flags = begun->second.flags;
		running_.erase(begun);
	}
	return seen;
}

namespace {

std::string milliseconds(std::uint64_t nanoseconds)
{
	std::array<char, 32> text{};

	std::snprintf(text.data(), text.size(), "%.3f ms", static_cast<double>(nanoseconds) / 1e6);
	return text.data();
}

struct named_count {
	std::optional<std::uint64_t> commit_seen::*value;
	const char *name;
};

constexpr std::array changes{
	named_count{&commit_seen::created, "created"},
	named_count{&commit_seen::deleted, "deleted"},
	named_count{&commit_seen::replaced, "replaced"},
	named_count{&commit_seen::moved, "moved"},
	named_count{&commit_seen::reflagged, "reflagged"},
};

constexpr std::array pages{
	named_count{&commit_seen::kept, "kept"},
	named_count{&commit_seen::remapped, "remapped"},
	named_count{&commit_seen::removed, "removed"},
	named_count{&commit_seen::added, "added"},
};

/* Those that are not 0; empty if all are, or if none is known. */
template <std::size_t N>
std::string list_counts(const commit_seen &commit, const std::array<named_count, N> &which)
{
	std::string text;

	for (const named_count &each : which) {
		const std::uint64_t value = (commit.*each.value).value_or(0);

		if (value)
			text += (text.empty() ? "" : ", ") + std::to_string(value) + " " +
				each.name;
	}
	return text;
}

} // namespace

std::string describe(const commit_seen &commit)
{
	std::string text;
	const auto strategy = memslot::to_strategy(commit.strategy.value_or(MEMSLOT_STRATEGY_NONE));
	const auto cause = memslot::to_park_cause(commit.cause.value_or(MEMSLOT_PARK_NOT));
	const auto reason = memslot::to_reason(commit.reason.value_or(MEMSLOT_REASON_NONE));

	if (commit.flags.value_or(0) & MEMSLOT_COMMIT_TEST_ONLY)
		text += "test only: ";
	if (commit.entries)
		text += std::to_string(*commit.entries) +
			(*commit.entries == 1 ? " entry: " : " entries: ");
	if (commit.err) {
		text += "failed: " + std::string(std::strerror(-commit.err));
		if (commit.entry >= 0)
			text += ", entry " + std::to_string(commit.entry);
		if (reason != MEMSLOT_REASON_NONE)
			text.append(": ").append(memslot::words(reason));
	} else {
		const std::string changed = list_counts(commit, changes);
		const std::string moved = list_counts(commit, pages);

		if (!changed.empty())
			text += changed;
		else
			text += strategy == MEMSLOT_STRATEGY_NONE ? "nothing changed" : "changed";
		if (strategy != MEMSLOT_STRATEGY_NONE)
			text.append("; ").append(memslot::words(strategy));
		if (cause != MEMSLOT_PARK_NOT)
			text.append(" (").append(memslot::words(cause)).append(")");
		if (!moved.empty())
			text += "; pages: " + moved;
	}
	if (commit.took)
		text += "; " +
			milliseconds(static_cast<std::uint64_t>(commit.took->count()) * 1000);
	if (commit.ns_fenced.value_or(0))
		text += ", fenced " + milliseconds(*commit.ns_fenced);
	return text;
}

} // namespace memslotctl
