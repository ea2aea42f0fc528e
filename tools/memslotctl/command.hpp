// SPDX-License-Identifier: GPL-2.0
/* What the commands share: how they end, and what they are asked for. */
#pragma once

#include <memslot.hpp>

#include <optional>
#include <stdexcept>
#include <string>
#include <sys/types.h>

namespace memslotctl {

/* Exit statuses; memslotctl.1 explains them. */
enum status : int {
	done = 0,
	failed = 1,
	wrong_usage = 2,
	not_there = 3,
	no_rights = 4,
	no_process = 5,
	no_vm = 6,
};

/* Why a command ends, and with which status; what to do about it is in the words. */
class problem : public std::runtime_error {
public:
	problem(enum status how, const std::string &why) : std::runtime_error(why), status_(how)
	{
	}

	[[nodiscard]] enum status status() const noexcept
	{
		return status_;
	}

private:
	enum status status_;
};

/* What memslot.hpp reports, as a problem. */
[[nodiscard]] problem to_problem(const memslot::failure &why);

/* Writes out what was printed; false if nobody reads it any more.  Throws a problem. */
[[nodiscard]] bool flush_output();

/* Whether a file of this name is where standard output goes. */
[[nodiscard]] bool is_standard_output(const std::string &file);

/* An open /dev/memslot; throws a problem. */
[[nodiscard]] memslot::device open_device();

struct list_options {
	/* 0: an overview of all processes that have a VM */
	pid_t pid = 0;
	std::optional<unsigned int> vm;
	std::optional<std::uint32_t> address_space;
	bool json = false;
	/* empty: no SVG */
	std::string svg_file;
};

void info();
/* How it ends: with done, or with a process that could not be looked at. */
[[nodiscard]] enum status list(const list_options &wanted);
/* pid 0: of all VMs */
void watch(pid_t pid);

} // namespace memslotctl
