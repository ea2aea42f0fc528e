// SPDX-License-Identifier: GPL-2.0
#include "trace.hpp"

#include "command.hpp"

#include <memslot.hpp>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdio>
#include <cstring>

namespace memslotctl {

namespace {

constexpr std::string_view marker = ": memslot_commit_";
constexpr std::string_view lost_events = "[LOST ";

/* The names of the interface's constants, by number, as the module's events tell them. */
constexpr std::array<std::string_view, MEMSLOT_REASON_NO_ROOM + 1> reasons{
	"NONE",		 "ARGUMENT",	  "UNREADABLE",
	"ENTRY_TOO_NEW", "TOO_MANY",	  "SLOT_ID",
	"ADDRESS_SPACE", "FLAGS",	  "GPA_ALIGN",
	"SIZE_ALIGN",	 "HVA_ALIGN",	  "HVA_RANGE",
	"GPA_RANGE",	 "TOO_LARGE",	  "DUPLICATE",
	"NO_SLOT",	 "OVERLAP_ENTRY", "OVERLAP_SLOT",
	"GUEST_MEMFD",	 "NOT_BOUND",	  "BOUND",
	"NOT_KVM",	 "OWNER",	  "DEAD",
	"VM_TYPE",	 "PAGE_TRACK",	  "MEMORY",
	"PARK_TIMEOUT",	 "LOCKED",	  "GENERATION",
	"BITMAP_ALIGN",	 "BITMAP_SIZE",	  "BITMAP_UNWRITABLE",
	"BITMAP_LOCKED", "NO_DIRTY_LOG",  "DIRTY_RING",
	"QUERY_ONLY",	 "NO_ROOM",
};

constexpr std::array<std::string_view, MEMSLOT_STRATEGY_PARK + 1> strategies{
	"NONE",
	"FENCE",
	"PARK",
};

constexpr std::array<std::string_view, MEMSLOT_PARK_DIRTY_LOG + 1> park_causes{
	"NOT", "REQUESTED", "SHADOW_PAGING", "NESTED", "UNCOVERS", "DIRTY_LOG",
};

/* All of a text as a number; 0x makes it hexadecimal. */
std::optional<std::int64_t> number(std::string_view text)
{
	std::int64_t value = 0;
	int base = 10;

	if (text.starts_with("0x")) {
		text.remove_prefix(2);
		base = 16;
	}

	const char *end = text.data() + text.size();
	const auto [stopped, error] = std::from_chars(text.data(), end, value, base);

	if (error != std::errc() || stopped != end)
		return std::nullopt;
	return value;
}

/* What a line says that is to be understood; in the error, lest nobody knows which it was. */
class meaning {
public:
	meaning(std::string_view line, std::string_view text) : line_(line), text_(text)
	{
	}

	[[noreturn]] void refuse() const
	{
		std::string shown(line_.substr(0, 200));

		/* The name of a task may be anything */
		std::ranges::replace_if(
			shown, [](char each) { return each < ' ' || each > '~'; }, '?');
		throw problem(failed, "cannot understand this line of the trace: " + shown);
	}

	/* The value of a name among "name=value name=value ...", or nothing if it is not there. */
	[[nodiscard]] std::optional<std::string_view> value(std::string_view name) const
	{
		for (std::string_view rest = text_; !rest.empty();) {
			const std::string_view pair = rest.substr(0, rest.find(' '));

			rest.remove_prefix(std::min(pair.size() + 1, rest.size()));
			if (pair.starts_with(name) && pair.substr(name.size()).starts_with('='))
				return pair.substr(name.size() + 1);
		}
		return std::nullopt;
	}

	/* The same as a number. */
	[[nodiscard]] std::optional<std::int64_t> field(std::string_view name) const
	{
		const auto text = value(name);
		const auto result = text ? number(*text) : std::nullopt;

		if (text && !result)
			refuse();
		return result;
	}

	/* The same of what every module has told. */
	[[nodiscard]] std::int64_t must(std::string_view name) const
	{
		const auto result = field(name);

		if (!result)
			refuse();
		return *result;
	}

	/*
	 * The number of a constant that is told by its name; the kernel tells one that has no name,
	 * of a newer module, as a number.
	 */
	template <std::size_t N>
	[[nodiscard]] std::uint32_t
	must_constant(std::string_view name, const std::array<std::string_view, N> &names) const
	{
		const auto text = value(name);

		if (!text)
			refuse();

		const auto found = std::ranges::find(names, *text);
		const auto known = found - names.begin();
		const auto result = found != names.end() ? std::optional(known) : number(*text);

		if (!result || *result < 0)
			refuse();
		return static_cast<std::uint32_t>(*result);
	}

	[[nodiscard]] std::optional<std::uint64_t> count(std::string_view name) const
	{
		const auto value = field(name);

		if (value && *value < 0)
			refuse();
		return value ? std::optional(static_cast<std::uint64_t>(*value)) : std::nullopt;
	}

	[[nodiscard]] std::uint64_t must_count(std::string_view name) const
	{
		static_cast<void>(must(name));
		return *count(name);
	}

private:
	std::string_view line_;
	std::string_view text_;
};

/* "   name-123   [001] .....  12.345678" before the event's name: who and when. */
struct prefix {
	pid_t thread;
	std::chrono::microseconds at;
};

std::optional<prefix> read_prefix(std::string_view text)
{
	const auto cpu = text.rfind(" [");
	const auto time = text.rfind(' ');

	if (cpu == text.npos || time == text.npos || time <= cpu)
		return std::nullopt;

	const std::string_view clock = text.substr(time + 1);
	const auto point = clock.find('.');

	if (point == clock.npos)
		return std::nullopt;

	std::string_view who = text.substr(0, cpu);
	const auto trim = [&who] { who = who.substr(0, who.find_last_not_of(' ') + 1); };

	trim();
	/* With the option record-tgid the process follows: (  123), or dashes if it is unknown */
	if (who.ends_with(')') && who.rfind('(') != who.npos) {
		who = who.substr(0, who.rfind('('));
		trim();
	}

	const auto dash = who.rfind('-');

	if (dash == who.npos)
		return std::nullopt;

	const auto thread = number(who.substr(dash + 1));
	const auto seconds = number(clock.substr(0, point));
	const auto micros = number(clock.substr(point + 1));

	/* Six digits: with another clock, or another format, it would be something else */
	if (!thread || !seconds || !micros || clock.size() - point - 1 != 6)
		return std::nullopt;
	return prefix{static_cast<pid_t>(*thread),
		      std::chrono::seconds(*seconds) + std::chrono::microseconds(*micros)};
}

} // namespace

void put_in_order(std::vector<std::string> &lines)
{
	std::ranges::stable_sort(lines, {}, [](std::string_view line) {
		const auto event = line.find(marker);
		const auto who = read_prefix(line.substr(0, event == line.npos ? 0 : event));

		return who ? who->at : std::chrono::microseconds::zero();
	});
}

std::optional<commit_seen> trace_reader::read(std::string_view line)
{
	const auto event = line.find(marker);

	if (event == line.npos) {
		/* CPU:1 [LOST 12 EVENTS], or without the number if the kernel did not count */
		const auto lost = line.find(lost_events);

		if (!line.starts_with("CPU:") || lost == line.npos)
			meaning(line, line).refuse();

		const std::string_view many = line.substr(lost + lost_events.size());

		lost_ += static_cast<std::uint64_t>(
			number(many.substr(0, many.find(' '))).value_or(1));
		return std::nullopt;
	}

	const auto who = read_prefix(line.substr(0, event));
	const std::string_view rest = line.substr(event + marker.size());
	const meaning text(line, rest.substr(std::min(rest.find(": ") + 2, rest.size())));

	if (!who)
		text.refuse();
	if (rest.starts_with("start: ")) {
		running_[who->thread] = {
			.at = who->at,
			.entries = text.must_count("entries"),
			.flags = text.must_count("flags"),
		};
		return std::nullopt;
	}
	if (!rest.starts_with("end: "))
		return std::nullopt;

	commit_seen seen{
		.end = who->at,
		.vm = static_cast<pid_t>(text.must("vm")),
		.err = static_cast<int>(text.must("err")),
		.took = std::nullopt,
		.entries = std::nullopt,
		.flags = std::nullopt,
		.created = text.count("created"),
		.deleted = text.count("deleted"),
		.replaced = text.count("replaced"),
		.moved = text.count("moved"),
		.reflagged = text.count("reflagged"),
		.kept = text.count("kept"),
		.remapped = text.count("remapped"),
		.removed = text.count("removed"),
		.added = text.count("added"),
		.ns_fenced = text.count("ns_fenced"),
		.grace_periods = text.count("grace_periods"),
		.late_root = text.count("late_root"),
		.reason = memslot::to_reason(text.must_constant("reason", reasons)),
		.strategy = memslot::to_strategy(text.must_constant("strategy", strategies)),
		.cause = memslot::to_park_cause(text.must_constant("cause", park_causes)),
		.entry = text.must("entry"),
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

	if (commit.flags.value_or(0) & MEMSLOT_COMMIT_TEST_ONLY)
		text += "test only: ";
	if (commit.entries)
		text += std::to_string(*commit.entries) +
			(*commit.entries == 1 ? " entry: " : " entries: ");
	if (commit.err) {
		text += "failed: " + std::string(std::strerror(-commit.err));
		if (commit.entry >= 0)
			text += ", entry " + std::to_string(commit.entry);
		if (commit.reason != MEMSLOT_REASON_NONE)
			text.append(": ").append(memslot::words(commit.reason));
	} else {
		const std::string changed = list_counts(commit, changes);
		const std::string moved = list_counts(commit, pages);

		if (!changed.empty())
			text += changed;
		else
			text += commit.strategy == MEMSLOT_STRATEGY_NONE ? "nothing changed"
									 : "changed";
		if (commit.strategy != MEMSLOT_STRATEGY_NONE)
			text.append("; ").append(memslot::words(commit.strategy));
		if (commit.cause != MEMSLOT_PARK_NOT)
			text.append(" (").append(memslot::words(commit.cause)).append(")");
		if (!moved.empty())
			text += "; pages: " + moved;
		if (commit.grace_periods.value_or(1) > 1)
			text += "; " + std::to_string(*commit.grace_periods) + " grace periods";
		if (commit.late_root.value_or(0))
			text += "; the VM's first shadow root came in between";
	}
	if (commit.took)
		text += "; " +
			milliseconds(static_cast<std::uint64_t>(commit.took->count()) * 1000);
	if (commit.ns_fenced.value_or(0))
		text += ", fenced " + milliseconds(*commit.ns_fenced);
	return text;
}

} // namespace memslotctl
