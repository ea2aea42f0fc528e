// SPDX-License-Identifier: GPL-2.0
#include "command.hpp"
#include "picture.hpp"
#include "process.hpp"
#include "text.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <langinfo.h>
#include <sstream>
#include <sys/ioctl.h>

namespace memslotctl {

namespace {

/* A VM, and its address spaces, each as it was at one moment. */
struct seen_vm {
	/* counted from 0, for --vm */
	unsigned int number;
	std::vector<int> fds;
	std::vector<memslot::layout> layouts;
};

struct seen_process {
	pid_t pid;
	std::string name;
	std::vector<seen_vm> vms;
};

seen_vm look_at(unsigned int number, const found_vm &found, const list_options &wanted)
{
	memslot::device device = open_device();
	const auto spaces = device.try_bind(found.vm.fd(), memslot::access::query_only);
	seen_vm seen{.number = number, .fds = found.fds, .layouts = {}};

	if (!spaces)
		throw to_problem(spaces.error());
	/* Among all VMs those that have it are shown */
	if (wanted.pid && wanted.address_space && *wanted.address_space >= *spaces)
		throw problem(no_vm, "VM " + std::to_string(number) + " has " +
					     std::to_string(*spaces) + " address space" +
					     (*spaces == 1 ? ", number 0" : "s, counted from 0"));
	for (std::uint32_t space = 0; space < *spaces; space++) {
		if (wanted.address_space && *wanted.address_space != space)
			continue;

		const auto done = device.try_query(seen.layouts.emplace_back(), space);

		if (!done)
			throw to_problem(done.error());
	}
	return seen;
}

seen_process look_into(pid_t pid, const list_options &wanted)
{
	const std::vector<found_vm> found = find_vms(pid);
	seen_process seen{.pid = pid, .name = process_name(pid), .vms = {}};

	if (wanted.vm && *wanted.vm >= found.size())
		throw problem(no_vm,
			      "process " + std::to_string(pid) + " has " +
				      std::to_string(found.size()) + " VM" +
				      (found.size() == 1 ? ", number 0" : "s, counted from 0"));
	for (unsigned int i = 0; i < found.size(); i++)
		if (!wanted.vm || *wanted.vm == i)
			seen.vms.push_back(look_at(i, found[i], wanted));
	return seen;
}

/* All processes that have a VM, and whether there are some that only another user sees. */
struct overview {
	std::vector<seen_process> processes;
	bool some_hidden = false;
	enum status how = done;
};

overview look_around(const list_options &wanted)
{
	overview all;

	for (const pid_t pid : all_processes()) {
		try {
			all.processes.push_back(look_into(pid, wanted));
		} catch (const problem &why) {
			/* Most processes have no VM, and some have ended since */
			if (why.status() == no_vm || why.status() == no_process)
				continue;
			if (why.status() == no_rights) {
				all.some_hidden = true;
				continue;
			}
			/* One VM that cannot be asked must not hide the others */
			all.how = why.status();
			std::fprintf(stderr, "memslotctl: process %d: %s\n", pid, why.what());
		}
	}
	return all;
}

/* For printable ASCII. */
std::string quoted(const std::string &text)
{
	std::string safe = "\"";

	for (const char each : text) {
		if (each == '"' || each == '\\')
			safe += '\\';
		safe += each;
	}
	return safe + '"';
}

void print_json(const seen_process &process)
{
	std::ostream &out = std::cout;
	const char *between_vms = "", *between = "";
	const auto boolean = [](bool is) { return is ? "true" : "false"; };

	out << "{\"pid\": " << process.pid << ", \"name\": " << quoted(process.name)
	    << ", \"vms\": [";
	for (const seen_vm &vm : process.vms) {
		out << std::exchange(between_vms, ", ") << "{\"vm\": " << vm.number
		    << ", \"fds\": [";
		between = "";
		for (const int fd : vm.fds)
			out << std::exchange(between, ", ") << fd;
		out << "], \"address_spaces\": [";
		between = "";
		for (const memslot::layout &layout : vm.layouts) {
			const char *between_slots = "\n  ";

			out << std::exchange(between, ", ")
			    << "{\"address_space\": " << layout.address_space()
			    << ", \"generation\": " << layout.generation().value_or(0)
			    << ", \"slots\": [";
			for (const memslot::slot_info &slot : layout) {
				out << std::exchange(between_slots, ",\n  ")
				    << "{\"slot\": " << slot.slot
				    << ", \"guest_phys_addr\": " << slot.guest_phys_addr
				    << ", \"memory_size\": " << slot.memory_size
				    << ", \"userspace_addr\": ";
				/* Shown to the owner only */
				if (slot.userspace_addr)
					out << reinterpret_cast<std::uintptr_t>(
						slot.userspace_addr);
				else
					out << "null";
				out << ", \"log_dirty_pages\": " << boolean(slot.log_dirty_pages)
				    << ", \"readonly\": " << boolean(slot.readonly)
				    << ", \"guest_memfd\": " << boolean(slot.guest_memfd) << '}';
			}
			out << "]}";
		}
		out << "]}";
	}
	out << "]}";
}

void print_json(const std::vector<seen_process> &processes)
{
	const char *between = "\n ";

	std::cout << "{\"processes\": [";
	for (const seen_process &each : processes) {
		std::cout << std::exchange(between, ",\n ");
		print_json(each);
	}
	std::cout << "]}";
}

using row = std::vector<std::string>;

/* Columns as wide as they must be, numbers to the right. */
void print_table(const std::vector<row> &rows, const std::vector<bool> &right)
{
	std::vector<std::size_t> widths(right.size());

	for (const row &each : rows)
		for (std::size_t i = 0; i < each.size(); i++)
			widths[i] = std::max(widths[i], each[i].size());
	for (const row &each : rows) {
		std::string line;

		for (std::size_t i = 0; i < each.size(); i++) {
			const std::string blank(widths[i] - each[i].size(), ' ');

			line += "  " + (right[i] ? blank + each[i] : each[i] + blank);
		}
		line.erase(line.find_last_not_of(' ') + 1);
		std::cout << line << '\n';
	}
}

void print_slots(const memslot::layout &layout)
{
	const bool host = std::ranges::any_of(
		layout, [](const memslot::slot_info &slot) { return slot.userspace_addr; });
	const memslot::slot_info &last = layout[layout.size() - 1];
	const int digits = std::max(
		8, static_cast<int>(hex(last.guest_phys_addr + last.memory_size - 1).size()) - 2);
	std::vector<row> rows{{"SLOT", "FIRST", "LAST", "SIZE", "FLAGS"}};

	if (host)
		rows[0].push_back("HOST ADDRESS");
	for (const memslot::slot_info &slot : layout) {
		const std::string flags = flags_in_words(slot);

		rows.push_back({std::to_string(slot.slot), hex(slot.guest_phys_addr, digits),
				hex(slot.guest_phys_addr + slot.memory_size - 1, digits),
				human_size(slot.memory_size), flags.empty() ? "-" : flags});
		if (host)
			rows.back().push_back(
				hex(reinterpret_cast<std::uintptr_t>(slot.userspace_addr)));
	}
	print_table(rows, {true, false, false, true, false, false});
}

terminal find_terminal()
{
	terminal here;
	winsize window{};
	const char *term = std::getenv("TERM");
	const bool is_terminal = isatty(STDOUT_FILENO);

	if (is_terminal && ioctl(STDOUT_FILENO, TIOCGWINSZ, &window) == 0 && window.ws_col)
		here.columns = window.ws_col;
	here.utf8 = std::string_view(nl_langinfo(CODESET)) == "UTF-8";
	here.colour = is_terminal && term && std::string_view(term) != "dumb" &&
		      !std::getenv("NO_COLOR");
	return here;
}

std::string caption(const seen_process &process, const seen_vm &vm)
{
	return "VM " + std::to_string(vm.number) + " of process " + std::to_string(process.pid) +
	       " (" + process.name + ")";
}

std::uint64_t size_of(const memslot::layout &layout)
{
	std::uint64_t total = 0;

	for (const memslot::slot_info &slot : layout)
		total += slot.memory_size;
	return total;
}

/* Few VMs use SMM's address space: an empty one would be noise, unless it was asked for */
bool worth_showing(const memslot::layout &layout, const list_options &wanted)
{
	return !layout.empty() || layout.address_space() == 0 || wanted.address_space;
}

void print(const list_options &wanted, const std::vector<seen_process> &processes)
{
	std::vector<row> rows{
		{"PID", "NAME", "VM", "DESCRIPTORS", "SPACE", "GENERATION", "SLOTS", "SIZE"}};

	for (const seen_process &process : processes)
		for (const seen_vm &vm : process.vms)
			for (const memslot::layout &layout : vm.layouts) {
				std::string fds;

				if (!worth_showing(layout, wanted))
					continue;
				for (const int fd : vm.fds)
					fds += (fds.empty() ? "" : ",") + std::to_string(fd);
				rows.push_back(
					{std::to_string(process.pid), process.name,
					 std::to_string(vm.number), fds,
					 std::to_string(layout.address_space()),
					 std::to_string(layout.generation().value_or(0)),
					 std::to_string(layout.size()),
					 layout.empty() ? "-" : human_size(size_of(layout))});
			}
	if (rows.size() > 1)
		print_table(rows, {true, false, true, false, true, true, true, true});
}

void print(const seen_process &process)
{
	const terminal here = find_terminal();
	const char *between = "";

	for (const seen_vm &vm : process.vms) {
		std::cout << std::exchange(between, "\n") << caption(process, vm)
			  << ", file descriptor" << (vm.fds.size() == 1 ? "" : "s");
		for (const int fd : vm.fds)
			std::cout << ' ' << fd;
		std::cout << '\n';
		for (const memslot::layout &layout : vm.layouts) {
			std::cout << "\nAddress space " << layout.address_space()
				  << (layout.address_space() == 1 ? " (SMM)" : "")
				  << ", generation " << layout.generation().value_or(0) << ": "
				  << layout.size() << (layout.size() == 1 ? " slot" : " slots");
			if (layout.empty()) {
				std::cout << '\n';
				continue;
			}
			std::cout << ", " << human_size(size_of(layout)) << "\n\n";
			print_slots(layout);
			std::cout << '\n' << draw({layout.begin(), layout.end()}, here);
		}
	}
}

void write_svg(const list_options &wanted, const std::vector<seen_process> &processes)
{
	std::vector<subject> subjects;

	for (const seen_process &process : processes)
		for (const seen_vm &vm : process.vms)
			for (const memslot::layout &layout : vm.layouts)
				if (worth_showing(layout, wanted))
					subjects.push_back(
						{.vm = caption(process, vm),
						 .address_space = layout.address_space(),
						 .slots = {layout.begin(), layout.end()}});
	if (is_standard_output(wanted.svg_file)) {
		std::cout << svg(subjects);
		return;
	}

	std::ofstream file(wanted.svg_file);

	file << svg(subjects);
	if (!file.flush())
		throw problem(failed, wanted.svg_file + ": " + std::strerror(errno));
}

} // namespace

enum status list(const list_options &wanted)
{
	/* What is missing altogether is said before what this process lacks */
	static_cast<void>(open_device());

	overview seen;

	if (wanted.pid)
		seen.processes.push_back(look_into(wanted.pid, wanted));
	else
		seen = look_around(wanted);

	if (!wanted.svg_file.empty())
		write_svg(wanted, seen.processes);
	if (wanted.json) {
		if (wanted.pid)
			print_json(seen.processes.front());
		else
			print_json(seen.processes);
		std::cout << '\n';
	} else if (!is_standard_output(wanted.svg_file)) {
		if (wanted.pid)
			print(seen.processes.front());
		else
			print(wanted, seen.processes);
	}
	if (!std::cout.flush())
		throw problem(failed, std::string("standard output: ") + std::strerror(errno));

	if (seen.processes.empty())
		std::fprintf(stderr, "memslotctl: no process%s has a KVM virtual machine%s\n",
			     seen.some_hidden ? " that you may look into" : "",
			     seen.some_hidden ? "; root may look into all" : "");
	else if (seen.some_hidden)
		std::fprintf(stderr, "memslotctl: some processes could not be looked into; root "
				     "may look into all\n");
	return seen.how;
}

} // namespace memslotctl
