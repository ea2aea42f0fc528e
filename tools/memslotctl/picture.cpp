// SPDX-License-Identifier: GPL-2.0
#include "picture.hpp"

#include "text.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <sstream>

namespace memslotctl {

namespace {

/* What a slot looks like; the first one that fits. */
struct look {
	const char *name;
	bool (*fits)(const memslot::slot_info &slot);
	/* of SGR */
	const char *colour;
	const char *utf8;
	char ascii;
	/* dark enough for white letters, bright enough for a black page */
	const char *fill;
};

constexpr std::array looks{
	look{"guest_memfd", [](const memslot::slot_info &slot) { return slot.guest_memfd; }, "35",
	     "░", '@', "#8a5aa8"},
	look{"read-only", [](const memslot::slot_info &slot) { return slot.readonly; }, "33", "▒",
	     '=', "#a86b1e"},
	look{"dirty log", [](const memslot::slot_info &slot) { return slot.log_dirty_pages; }, "32",
	     "▓", '%', "#3a8055"},
	look{"memory", [](const memslot::slot_info &) { return true; }, "34", "█", '#', "#3f73ad"},
};

const look &look_of(const memslot::slot_info &slot)
{
	return *std::ranges::find_if(looks, [&slot](const look &each) { return each.fits(slot); });
}

/* The looks that occur, in the order of their table. */
std::vector<const look *> looks_of(std::span<const memslot::slot_info> slots)
{
	std::vector<const look *> seen;

	for (const look &each : looks)
		if (std::ranges::any_of(slots, [&each](const memslot::slot_info &slot) {
			    return &look_of(slot) == &each;
		    }))
			seen.push_back(&each);
	return seen;
}

/* 1 for a page, 1 more each time the size doubles */
double length(std::uint64_t bytes)
{
	return 1 + std::log2(std::max(1.0, static_cast<double>(bytes) / 4096));
}

std::string title(const memslot::slot_info &slot)
{
	return "slot " + std::to_string(slot.slot);
}

} // namespace

std::vector<piece> pieces(std::span<const memslot::slot_info> slots)
{
	std::vector<piece> all;
	std::uint64_t at = 0;

	for (const memslot::slot_info &slot : slots) {
		if (slot.guest_phys_addr > at)
			all.push_back({nullptr, at, slot.guest_phys_addr - at});
		all.push_back({&slot, slot.guest_phys_addr, slot.memory_size});
		at = slot.guest_phys_addr + slot.memory_size;
	}
	return all;
}

std::string draw(std::span<const memslot::slot_info> slots, const terminal &on)
{
	const std::vector<piece> all = pieces(slots);
	const auto paint = [&on](const char *colour, const std::string &what) {
		return on.colour && !what.empty()
			       ? "\033[" + std::string(colour) + "m" + what + "\033[0m"
			       : what;
	};
	const auto bar = [&](const look &how, std::size_t cells) {
		std::string text;

		while (cells--)
			text += on.utf8 ? std::string(how.utf8) : std::string(1, how.ascii);
		return paint(how.colour, text);
	};
	std::size_t address_width = 0, text_width = 0;
	double longest = 1;

	for (const piece &each : all) {
		address_width = std::max(address_width, hex(each.begin).size());
		if (!each.slot)
			continue;
		text_width = std::max(text_width,
				      title(*each.slot).size() + human_size(each.bytes).size() + 2);
		longest = std::max(longest, length(each.bytes));
	}

	/* Two in front, one beside the edge, two between bar and text */
	const std::size_t used = address_width + text_width + 6;
	const std::size_t room =
		std::max<std::size_t>(on.columns > used ? on.columns - used : 0, 8);
	std::ostringstream out;

	for (const piece &each : all) {
		const std::string address = hex(each.begin);

		out << "  " << std::string(address_width - address.size(), ' ') << address << ' ';
		if (!each.slot) {
			out << paint("2", std::string(on.utf8 ? "┊" : ":") + " " +
						  human_size(each.bytes) + " gap")
			    << '\n';
			continue;
		}

		const auto cells = std::max<std::size_t>(
			1, static_cast<std::size_t>(std::lround(length(each.bytes) / longest *
								static_cast<double>(room))));
		const std::string name = title(*each.slot);
		const std::string size = human_size(each.bytes);

		out << (on.utf8 ? "▕" : "|") << bar(look_of(*each.slot), cells)
		    << std::string(room - cells + 2, ' ') << name
		    << std::string(text_width - name.size() - size.size(), ' ') << size << '\n';
	}
	if (!slots.empty()) {
		out << "  " << std::string(address_width + 2, ' ');
		for (const look *each : looks_of(slots))
			out << bar(*each, 1) << ' ' << each->name << "  ";
		out << paint("2", "(lengths: logarithm of the size)") << '\n';
	}
	return out.str();
}

namespace {

std::string escape(const std::string &text)
{
	std::string safe;

	for (const char each : text) {
		switch (each) {
		case '&':
			safe += "&amp;";
			break;
		case '<':
			safe += "&lt;";
			break;
		case '>':
			safe += "&gt;";
			break;
		case '"':
			safe += "&quot;";
			break;
		default:
			safe += each;
		}
	}
	return safe;
}

/* In pixels */
namespace size {
constexpr int margin = 16;
constexpr int header = 64;
constexpr int legend = 56;
constexpr int address = 150;
constexpr int box = 230;
constexpr int notes = 150;
constexpr int column = address + box + notes;
constexpr int page = 20;
constexpr int doubling = 4;
constexpr int gap = 30;
} // namespace size

int height(const piece &each)
{
	return each.slot ? static_cast<int>(std::lround(size::page +
							size::doubling * (length(each.bytes) - 1)))
			 : size::gap;
}

void text(std::ostream &out, int x, int y, const char *style, const std::string &what)
{
	out << "<text x=\"" << x << "\" y=\"" << y << "\" class=\"" << style << "\">"
	    << escape(what) << "</text>\n";
}

/* One subject, its upper left corner at x and 0; returns its height. */
int draw_subject(std::ostream &out, const subject &what, int x)
{
	const std::uint64_t total =
		std::accumulate(what.slots.begin(), what.slots.end(), std::uint64_t{0},
				[](std::uint64_t sum, const memslot::slot_info &slot) {
					return sum + slot.memory_size;
				});
	const int left = x + size::address, right = left + size::box;
	int y = size::header;

	text(out, x + size::margin, 26, "head", what.vm);
	text(out, x + size::margin, 46, "note",
	     "address space " + std::to_string(what.address_space) +
		     (what.address_space == 1 ? " (SMM): " : ": ") +
		     std::to_string(what.slots.size()) +
		     (what.slots.size() == 1 ? " slot, " : " slots, ") + human_size(total));

	for (const piece &each : pieces(what.slots)) {
		const int h = height(each), middle = y + h / 2 + 4;

		text(out, left - 8, y + 4, "address", hex(each.begin));
		if (!each.slot) {
			/* Two broken edges: something was folded here */
			for (const int edge : {left, right})
				out << "<path class=\"gap\" d=\"M" << edge << ' ' << y << 'V'
				    << y + h / 2 - 6 << "l-5 4l10 4l-5 4V" << y + h << "\"/>\n";
			text(out, left + size::box / 2, middle, "middle",
			     human_size(each.bytes) + " gap");
		} else {
			const std::string flags = flags_in_words(*each.slot);

			out << "<rect x=\"" << left << "\" y=\"" << y << "\" width=\"" << size::box
			    << "\" height=\"" << h << "\" fill=\"" << look_of(*each.slot).fill
			    << "\"><title>" << title(*each.slot) << ": " << hex(each.begin)
			    << " ... " << hex(each.begin + each.bytes - 1) << ", "
			    << human_size(each.bytes) << (flags.empty() ? "" : ", ") << flags
			    << "</title></rect>\n";
			text(out, left + 10, middle, "slot", title(*each.slot));
			text(out, right - 10, middle, "size", human_size(each.bytes));
			text(out, right + 10, middle, "note", flags);
		}
		y += h;
	}
	if (!what.slots.empty())
		text(out, left - 8, y + 4, "address",
		     hex(what.slots.back().guest_phys_addr + what.slots.back().memory_size));
	return y;
}

} // namespace

std::string svg(std::span<const subject> subjects)
{
	std::vector<const look *> seen;
	std::ostringstream content;
	int x = 0, y = size::header;

	for (const subject &each : subjects) {
		y = std::max(y, draw_subject(content, each, x));
		for (const look *one : looks_of(each.slots))
			if (std::ranges::find(seen, one) == seen.end())
				seen.push_back(one);
		x += size::column;
	}

	/* Not a rectangle: those are slots, for who counts them */
	int at = size::margin;
	for (const look *each : seen) {
		content << "<circle cx=\"" << at + 6 << "\" cy=\"" << y + 28 << "\" r=\"6\" fill=\""
			<< each->fill << "\"/>\n";
		text(content, at + 18, y + 32, "note", each->name);
		at += 120;
	}
	if (!seen.empty())
		text(content, size::margin, y + 54, "note", "heights: logarithm of the size");

	std::ostringstream out;

	out << "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
	    << "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"" << x << "\" height=\""
	    << y + size::legend + size::margin << "\" viewBox=\"0 0 " << x << ' '
	    << y + size::legend + size::margin << "\">\n"
	    << R"(<style>
text { font: 12px sans-serif; fill: #7b7b7b; }
.head { font-size: 15px; font-weight: bold; }
.address { font-family: monospace; text-anchor: end; }
.middle { text-anchor: middle; }
.slot { fill: #fff; font-weight: bold; }
.size { fill: #fff; text-anchor: end; }
rect { stroke: #fff; stroke-width: 1; }
.gap { fill: none; stroke: #7b7b7b; }
</style>
)" << content.str()
	    << "</svg>\n";
	return out.str();
}

} // namespace memslotctl
