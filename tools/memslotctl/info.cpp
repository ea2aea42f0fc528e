// SPDX-License-Identifier: GPL-2.0
#include "command.hpp"

#include <cstdio>

namespace memslotctl {

namespace {

const char *explain(enum memslot_strategy how)
{
	switch (how) {
	case MEMSLOT_STRATEGY_NONE:
		return "a batch that changes nothing costs nothing";
	case MEMSLOT_STRATEGY_FENCE:
		return "vCPUs run on; only page faults in a changed range wait";
	case MEMSLOT_STRATEGY_PARK:
		return "every vCPU leaves KVM_RUN with EINTR and waits";
	}
	return "";
}

void line(bool there, std::string_view what)
{
	std::printf("  %-3s  %.*s\n", there ? "yes" : "no", static_cast<int>(what.size()),
		    what.data());
}

} // namespace

void info()
{
	const auto told = open_device().try_info();

	if (!told)
		throw to_problem(told.error());
	std::printf("Features:\n");
	for (const memslot::feature each : memslot::features)
		line(told->has(each), memslot::words(each));

	std::printf("How vCPUs are kept from seeing a mixture:\n");
	for (const auto how : {MEMSLOT_STRATEGY_FENCE, MEMSLOT_STRATEGY_PARK})
		line(told->has(how), std::string(memslot::words(how)) + ": " + explain(how));

	std::printf("Limits:\n"
		    "  slot ids        0 ... %u, in each address space\n"
		    "  address spaces  %u\n"
		    "  entries         %u in one batch\n",
		    told->max_slot, told->max_address_spaces, told->max_entries);
}

} // namespace memslotctl
