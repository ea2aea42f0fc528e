// SPDX-License-Identifier: GPL-2.0
/* The parts of memslotctl that need no VM: words, pictures, and reading traces. */
#include "../../memslot-run/tests/check.hpp"
#include "command.hpp"
#include "picture.hpp"
#include "text.hpp"
#include "trace.hpp"

using namespace memslotctl;
using test::holds;
using test::same;

namespace {

memslot::slot_info at(std::uint32_t id, std::uint64_t gpa, std::uint64_t bytes)
{
	memslot::slot_info slot;

	slot.slot = id;
	slot.guest_phys_addr = gpa;
	slot.memory_size = bytes;
	return slot;
}

void words()
{
	same(human_size(4096), "4 KiB", "a page");
	same(human_size(1023 << 10), "1023 KiB", "just below a unit");
	same(human_size(1 << 20), "1 MiB", "a unit");
	same(human_size(3ULL << 29), "1.5 GiB", "a part");
	same(human_size(1ULL << 60), "1 EiB", "the last unit");
	same(human_size(~0xfffULL), "16.0 EiB", "the most");
	same(hex(0), "0x0", "nothing");
	same(hex(0xfffff000, 10), "0x00fffff000", "digits");

	memslot::slot_info slot = at(0, 0, 4096);

	same(flags_in_words(slot), "", "plain memory");
	slot.readonly = slot.log_dirty_pages = slot.guest_memfd = true;
	same(flags_in_words(slot), "read-only, dirty log, guest_memfd", "all flags");
}

void gaps()
{
	const std::vector<memslot::slot_info> slots{at(3, 0x1000, 0x1000), at(1, 0x2000, 0x3000),
						    at(2, 0x10000, 0x1000)};
	const std::vector<piece> all = pieces(slots);

	same(all.size(), 5U, "a gap below, one between, none after");
	holds(!all[0].slot && all[0].begin == 0 && all[0].bytes == 0x1000, "below the first");
	holds(all[1].slot == &slots[0] && all[2].slot == &slots[1], "adjacent slots");
	holds(!all[3].slot && all[3].begin == 0x5000 && all[3].bytes == 0xb000, "between");
	holds(all[4].slot == &slots[2], "the last");
	holds(pieces({}).empty(), "no slots");
}

void terminal_picture()
{
	std::vector<memslot::slot_info> slots{at(0, 0, 0x10000), at(12, 0x10000, 0x1000),
					      at(3, 0x100000, 0x400000000000)};

	slots[1].readonly = true;
	/* 2^4 pages, 1 page, 2^34 pages: 5, 1 and 35 parts of a length */
	same(draw(slots, {.columns = 64, .utf8 = false, .colour = false}),
	     "       0x0 |#####                                 slot 0  64 KiB\n"
	     "   0x10000 |=                                     slot 12  4 KiB\n"
	     "   0x11000 : 956 KiB gap\n"
	     "  0x100000 |####################################  slot 3  64 TiB\n"
	     "            = read-only  # memory  (lengths: logarithm of the size)\n",
	     "ASCII");

	const std::string plain = draw(slots, {.columns = 64, .utf8 = true, .colour = false});
	const std::string coloured = draw(slots, {.columns = 64, .utf8 = true, .colour = true});

	holds(plain.find("▕▒  ") != plain.npos, "blocks");
	same(plain.find('\033'), plain.npos, "no escapes without colours");
	holds(coloured.find("\033[33m▒\033[0m") != coloured.npos, "colours");
	same(draw({}, {}), "", "nothing to draw");
	/* Too narrow for anything: still something */
	holds(draw(slots, {.columns = 1, .utf8 = false, .colour = false})
			      .find("|########  slot 3") != std::string::npos,
	      "narrow");
}

std::size_t count(const std::string &text, std::string_view what)
{
	std::size_t n = 0;

	for (std::size_t at = 0; (at = text.find(what, at)) != text.npos; at++)
		n++;
	return n;
}

void svg_picture()
{
	std::vector<memslot::slot_info> many;

	for (std::uint32_t i = 0; i < 600; i++)
		many.push_back(at(i, i * 0x3000ULL, 0x1000ULL + i % 2 * 0x1000ULL));

	const std::vector<memslot::slot_info> one{at(9, 0x8000, 0x4000)};
	const std::vector<subject> subjects{
		{.vm = "VM 0 of \"<&>\"", .address_space = 0, .slots = many},
		{.vm = "another", .address_space = 1, .slots = one},
	};
	const std::string drawn = svg(subjects);

	same(count(drawn, "<rect "), 601U, "a rectangle per slot");
	holds(drawn.find("VM 0 of &quot;&lt;&amp;&gt;&quot;<") != drawn.npos, "escapes");
	holds(drawn.find("address space 1 (SMM): 1 slot, 16 KiB") != drawn.npos, "caption");
	holds(drawn.find("slot 9: 0x8000 ... 0xbfff, 16 KiB") != drawn.npos, "hint");
	same(count(svg({}), "<rect "), 0U, "no VMs");
}

/* As the kernel prints them; the names of tasks may be anything */
constexpr const char *start = "    a b-c-[0]: d-77      [003] d..1.   123.000100: "
			      "memslot_commit_start: vm=70 entries=3 flags=0x1";
constexpr const char *step =
	"    a b-c-[0]: d-77      [003] d..1.   123.000200: memslot_commit_step: vm=70 step=plan";
constexpr const char *end =
	"    a b-c-[0]: d-77      [003] .....   124.000350: memslot_commit_end: vm=70 err=0 "
	"entry=-1 reason=NONE strategy=PARK cause=UNCOVERS created=1 deleted=2 replaced=3 moved=4 "
	"reflagged=5 grace_periods=1 kept=6 remapped=7 removed=8 added=9 ns_fenced=1234567";

void traces()
{
	trace_reader reader;

	holds(!reader.read(start), "a start is no commit yet");
	holds(!reader.read(step), "nor is a step");

	const auto seen = reader.read(end);

	if (!seen) {
		holds(false, "an end is a commit");
		return;
	}
	same(seen->vm, 70, "vm");
	same(seen->end.count(), 124000350, "end");
	same(seen->took.value_or(seen->took->zero()).count(), 1000250, "took");
	same(seen->entries.value_or(99), 3U, "entries");
	same(seen->flags.value_or(99), 1U, "flags");
	same(seen->created.value_or(99), 1U, "created");
	same(seen->reflagged.value_or(99), 5U, "reflagged");
	same(seen->kept.value_or(99), 6U, "kept");
	same(seen->added.value_or(99), 9U, "added");
	same(seen->ns_fenced.value_or(99), 1234567U, "fenced");
	same(seen->entry, -1, "entry");
	same(describe(*seen),
	     "test only: 3 entries: 1 created, 2 deleted, 3 replaced, 4 moved, 5 reflagged; park "
	     "(memory goes away uncovered while a vCPU could start a nested guest); pages: 6 kept, "
	     "7 remapped, 8 removed, 9 added; 1000.250 ms, fenced 1.235 ms",
	     "in words");

	/* The start was used up: this is one that began before the watch */
	const auto late = reader.read(end);

	holds(late && !late->took && !late->entries, "an end without a start");
	same(late ? describe(*late).substr(0, 10) : "", "1 created,", "words of that");
}

void traces_of_threads()
{
	trace_reader reader;

	/* Two threads at once, the second one's is the first to end */
	reader.read("  x-1  [000] .....  1.000000: memslot_commit_start: vm=7 entries=1 flags=0x0");
	reader.read("  x-2  [001] .....  1.000010: memslot_commit_start: vm=8 entries=2 flags=0x0");

	const auto second =
		reader.read("  x-2  [000] .....  1.000030: memslot_commit_end: vm=8 err=-17 "
			    "entry=1 reason=OVERLAP_SLOT strategy=NONE cause=NOT grace_periods=0 "
			    "kept=0 remapped=0 removed=0 added=0 ns_fenced=0");
	const auto first = reader.read("  x-1  [001] .....  1.000040: memslot_commit_end: vm=7 "
				       "err=0 entry=-1 reason=NONE strategy=NONE cause=NOT");

	holds(first && first->entries == 1U && first->took->count() == 40, "the first");
	holds(second && second->entries == 2U && second->took->count() == 20, "the second");
	same(first ? describe(*first) : "", "1 entry: nothing changed; 0.040 ms", "no work");
	same(second ? describe(*second) : "",
	     "2 entries: failed: File exists, entry 1: " +
		     std::string(memslot::words(MEMSLOT_REASON_OVERLAP_SLOT)) + "; 0.020 ms",
	     "an error");

	const auto uncovering =
		reader.read("  x-3  [001] .....  1.000040: memslot_commit_end: vm=7 err=0 entry=-1 "
			    "reason=NONE strategy=FENCE cause=NOT deleted=1 grace_periods=2 "
			    "removed=2 ns_fenced=0 tombstones=1 late_root=1");

	same(uncovering ? describe(*uncovering) : "",
	     "1 deleted; fence; pages: 2 removed; 2 grace periods; the VM's first shadow root came "
	     "in between",
	     "memory that goes away");

	/* An older module that does not say what became of slots */
	const auto old = reader.read("  x-3  [001] .....  1.000040: memslot_commit_end: vm=7 err=0 "
				     "entry=-1 reason=NONE strategy=FENCE cause=NOT kept=2");

	holds(old && !old->created && !old->ns_fenced, "fields that are absent");
	same(old ? describe(*old) : "", "changed; fence; pages: 2 kept", "their words");
}

/* The thread has changed its processor, and events of the second one are handed out first. */
void lines_in_order()
{
	std::vector<std::string> lines{
		"  x-1  [001] .....  9.000040: memslot_commit_end: vm=7 err=0 entry=-1 reason=NONE "
		"strategy=NONE cause=NOT",
		"  x-1  [001] .....  12.000000: memslot_commit_start: vm=7 entries=2 flags=0x0",
		"  x-1  [000] .....  9.000000: memslot_commit_start: vm=7 entries=1 flags=0x0",
		"CPU:1 [LOST 2 EVENTS]",
	};
	trace_reader reader;

	put_in_order(lines);
	same(lines.front(), "CPU:1 [LOST 2 EVENTS]", "what has no time");
	holds(!reader.read(lines[0]) && !reader.read(lines[1]), "the start comes first");

	const auto seen = reader.read(lines[2]);

	holds(seen && seen->entries == 1U && seen->took->count() == 40, "with its own end");
	holds(!reader.read(lines[3]), "the next start");
}

/* As other trace options print it: an event that is passed over would be a commit that never was.
 */
constexpr std::array not_understood{
	"",
	"#  TASK-PID  CPU#",
	": memslot_commit_end: vm=1",
	"x-1 [0] 1: memslot_commit_end:",
	"  x-1  [000] .....  1.0: memslot_commit_other: vm=1 err=0",
	"  x-1  [000] .....  1.000000: kvm_entry: vcpu 0",
	"  x-1  [000] .....  1.000000: memslot_commit_start: vm=7 entries=1",
	"  x-1  [000] .....  1.000000: memslot_commit_start: vm=7 entries=x flags=0x0",
	"  x-1  [000] .....  1.000000: memslot_commit_end: vm=7 err=0 entry=-1 reason=NONE "
	"strategy=FENCE",
	"  x-1  [000] .....  1.000000: memslot_commit_end: vm=7 err=0 entry=-1 reason=NONE "
	"strategy=FENCE cause=NOT kept=1x",
	"  x-1  [000] .....  1.000000: memslot_commit_end: vm=7 err=0 entry=-1 reason=NONE "
	"strategy=FENCE cause=NOT kept=-2",
	"  x-1  [000] .....  1.000000: memslot_commit_end: vm=7 err=0 entry=-1 reason=none "
	"strategy=FENCE cause=NOT",
	/* fields, nocontext-info, latency-format, its verbose form, raw, hex, stacktrace */
	"  x-1  [000] .....  1.000000: memslot_commit_end: vm=0x7 (7) err=0x0 (0)",
	"memslot_commit_end: vm=7 err=0 entry=-1 reason=NONE strategy=FENCE cause=NOT kept=2",
	"  churn-70      1..... 1276us : memslot_commit_end: vm=70 err=0 entry=-1 reason=NONE "
	"strategy=FENCE",
	"churn 70 1 0 00000000 [000011d4] [    1.000] 1ms (+0.2ms): memslot_commit_end: vm=70 "
	"err=0",
	"70 1 12345678 # 1494 vm=70",
	"46000000010000000000",
	"           churn-70      [001] .....    18.123456: <stack trace>",
	" => memslot_commit",
};

void other_lines()
{
	trace_reader reader;

	for (const char *line : not_understood) {
		std::string why = "nothing";

		try {
			holds(!reader.read(line), line);
		} catch (const problem &refused) {
			why = refused.what();
		}
		same(why, "cannot understand this line of the trace: " + std::string(line), line);
	}
	holds(!reader.read("  x-1  [000] .....  1.000000: memslot_commit_step: vm=1 step=plan"),
	      "another event of the module");
	same(reader.lost(), 0U, "nothing lost");
	holds(!reader.read("CPU:1 [LOST 12 EVENTS]"), "no commit");
	reader.read("CPU:0 [LOST 3 EVENTS]");
	same(reader.lost(), 15U, "lost");
	reader.read("CPU:0 [LOST EVENTS]");
	same(reader.lost(), 16U, "nobody counted, but some were lost");
}

/* What another kernel, other options, or a newer module add. */
void lines_with_more()
{
	const std::string newer = std::string(end) + " met=3 sort=of new";
	trace_reader reader;
	const auto seen = reader.read(newer);

	holds(seen && seen->ns_fenced == 1234567U && seen->vm == 70, "fields at the end");

	const auto unnamed = reader.read("  x-1  [000] .....  1.000000: memslot_commit_end: vm=7 "
					 "err=-22 entry=-1 reason=0x99 strategy=NONE cause=NOT");

	same(unnamed ? describe(*unnamed) : "",
	     "failed: Invalid argument: " + std::string(memslot::words(memslot::to_reason(0x99))),
	     "a reason that has no name yet");
	for (const char *line : {"  x-1       (-------) [000] .....  1.000000: "
				 "memslot_commit_start: vm=7 entries=1 flags=0x0",
				 "  x-1       (      1) [000]  1.000000: memslot_commit_start: "
				 "vm=7 entries=1 flags=0x0"})
		holds(!reader.read(line), line);
	holds(reader.read("  x-1       (      1) [001] .....  1.000040: memslot_commit_end: vm=7 "
			  "err=0 entry=-1 reason=NONE strategy=NONE cause=NOT")
			      ->took->count() == 40,
	      "record-tgid, and noirq-info");
}

} // namespace

int main()
{
	words();
	gaps();
	terminal_picture();
	svg_picture();
	traces();
	traces_of_threads();
	lines_in_order();
	other_lines();
	lines_with_more();
	return test::report("test_memslotctl");
}
