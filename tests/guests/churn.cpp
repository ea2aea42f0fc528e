// SPDX-License-Identifier: GPL-2.0
/*
 * Guests that tell the truth: changes the memslots of a range over and over while vCPUs read and
 * execute all of it, and reports what they saw as one JSON object.
 */
#include "command_line.hpp"
#include "json.hpp"
#include "scenario.hpp"

#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <stdexcept>

namespace {

using clock = std::chrono::steady_clock;

enum class mode { one_by_one, batched, paused };

constexpr std::array<std::string_view, 3> mode_names{"one-by-one", "batched", "paused"};
constexpr std::array<std::string_view, 3> nesting_names{"none", "shared", "own"};

struct options {
	mode how = mode::batched;
	unsigned int vcpus = 1;
	std::uint64_t transactions = 100;
	std::uint64_t milliseconds = 0; /* 0: transactions counts */
	std::string scenario = "all";
	memslot::commit_options commit{};
	guests::nesting nested = guests::nesting::none;
};

/*
 * Most changes follow each other at once, when vCPUs have not faulted the last layout in yet; after
 * this many all vCPUs get to visit all of the newest one.
 */
constexpr std::uint64_t breather = 4;

constexpr const char *usage = R"(Usage: churn [OPTION]...
Changes the memslots of running guests and prints what they saw as JSON.

  --mode MODE         one-by-one: through KVM_SET_USER_MEMORY_REGION
                      batched: through /dev/memslot, one commit each (default)
                      paused: one by one, with all vCPUs out of KVM_RUN
  --vcpus N           1 ... 64 (default: 1)
  --transactions N    changes of layout per scenario (default: 100)
  --milliseconds T    as many changes as go into this time, per scenario, and
                      four at least; --transactions is not looked at
  --scenario NAME     split-merge, replace, move, swap, resize, uncover or all
                      (default)
  --park              batched: park the vCPUs even where a fence would do
  --nested TABLES     each vCPU runs a guest of its own, half of the time; whose
                      page tables translate that one's physical addresses:
                      shared: those of the guest around it
                      own: its own (nested NPT or EPT)
                      none: no such guest (default)
  --help              this text
)";

/* What one scenario came to, or several together. */
struct outcome {
	std::uint64_t transactions = 0;
	/* seen by the VMM, see guests::exits */
	std::uint64_t holes = 0;
	std::uint64_t errors = 0;
	std::uint64_t interrupted = 0;
	std::uint64_t shutdowns = 0;
	/* sums over all vCPUs, see guests::vcpu_page; torn includes torn_across */
	std::uint64_t guest_holes = 0;
	std::uint64_t torn = 0;
	std::uint64_t torn_across = 0;
	std::uint64_t wrong = 0;
	std::uint64_t emulated_reads = 0;
	/* vCPUs that visited all of a layout and saw nothing of what it brought in */
	std::uint64_t stale = 0;
	/* reported by the module */
	std::uint64_t fenced = 0;
	std::uint64_t parked = 0;
	std::uint64_t created = 0;
	std::uint64_t deleted = 0;
	std::uint64_t replaced = 0;
	std::uint64_t moved = 0;
	std::uint64_t total_ns_fenced = 0;
	std::uint64_t grace_periods = 0;
	std::uint64_t tombstones = 0;
	/* of those that parked: why */
	std::uint64_t park_requested = 0;
	std::uint64_t park_shadow_paging = 0;
	std::uint64_t park_nested = 0;
	/* of guests in guests, see guests::vcpu_page */
	std::uint64_t nested_errors = 0;

	/* per vCPU, from the first change to the last */
	std::vector<std::uint64_t> loops;
	/* per vCPU: commits seen */
	std::vector<std::uint64_t> versions;
	/* per vCPU: passes that its own guest made */
	std::vector<std::uint64_t> nested_loops;
	/* per transaction */
	std::vector<std::uint64_t> ns;

	void note(const memslot::report &report)
	{
		fenced += report.strategy == MEMSLOT_STRATEGY_FENCE;
		parked += report.strategy == MEMSLOT_STRATEGY_PARK;
		park_requested += report.park_cause == MEMSLOT_PARK_REQUESTED;
		park_shadow_paging += report.park_cause == MEMSLOT_PARK_SHADOW_PAGING;
		park_nested += report.park_cause == MEMSLOT_PARK_NESTED;
		created += report.created;
		deleted += report.deleted;
		replaced += report.replaced;
		moved += report.moved;
		grace_periods += report.grace_periods;
		tombstones += report.tombstones;
		total_ns_fenced += static_cast<std::uint64_t>(report.ns_fenced.count());
	}

	void note(const guests::vcpu_page &counts)
	{
		guest_holes += counts.holes;
		torn += counts.torn + counts.torn_across;
		torn_across += counts.torn_across;
		wrong += counts.wrong;
		emulated_reads += counts.emulated_reads;
		versions.push_back(counts.versions);
		nested_errors += counts.nested_faults + counts.nested_errors;
		nested_loops.push_back(counts.nested_loops);
	}
};

struct counter {
	const char *name;
	std::uint64_t outcome::*value;
};

constexpr std::array counters{
	counter{"transactions", &outcome::transactions},
	counter{"holes", &outcome::holes},
	counter{"errors", &outcome::errors},
	counter{"interrupted", &outcome::interrupted},
	counter{"shutdowns", &outcome::shutdowns},
	counter{"guest_holes", &outcome::guest_holes},
	counter{"torn", &outcome::torn},
	counter{"torn_across", &outcome::torn_across},
	counter{"wrong", &outcome::wrong},
	counter{"emulated_reads", &outcome::emulated_reads},
	counter{"stale", &outcome::stale},
	counter{"fenced", &outcome::fenced},
	counter{"parked", &outcome::parked},
	counter{"created", &outcome::created},
	counter{"deleted", &outcome::deleted},
	counter{"replaced", &outcome::replaced},
	counter{"moved", &outcome::moved},
	counter{"total_ns_fenced", &outcome::total_ns_fenced},
	counter{"grace_periods", &outcome::grace_periods},
	counter{"tombstones", &outcome::tombstones},
	counter{"park_requested", &outcome::park_requested},
	counter{"park_shadow_paging", &outcome::park_shadow_paging},
	counter{"park_nested", &outcome::park_nested},
	counter{"nested_errors", &outcome::nested_errors},
};

options parse(int argc, char **argv)
{
	options chosen;

	guests::command_line(usage)
		.text("mode",
		      [&](std::string_view name) {
			      chosen.how = guests::called<mode>(name, mode_names, "mode");
		      })
		.number("vcpus", chosen.vcpus, 1, guests::max_vcpus)
		/* A version has to fit the operand of an instruction */
		.number("transactions", chosen.transactions, 1, 1 << 30)
		.number("milliseconds", chosen.milliseconds, 1, 86'400'000)
		.text("scenario", [&](std::string_view name) { chosen.scenario = name; })
		.flag("park", chosen.commit.park)
		.text("nested",
		      [&](std::string_view name) {
			      chosen.nested = guests::called<guests::nesting>(name, nesting_names,
									      "nesting");
		      })
		.parse(argc, argv);
	if (chosen.commit.park && chosen.how != mode::batched)
		throw guests::wrong_usage("--park needs --mode batched");
	return chosen;
}

/* Lets every vCPU visit all locations; counts those that see nothing of the newest layout. */
std::uint64_t passes_without(guests::vm &vm, std::uint64_t version)
{
	std::uint64_t stale = 0;

	vm.wait_for_passes();
	for (unsigned int i = 0; i < vm.vcpus(); i++)
		stale += vm.counts(i).newest != version;
	return stale;
}

/*
 * A commit that parks gives up when a vCPU was not out of KVM_RUN within two seconds, and has
 * changed nothing.  Where the machine is that busy it is made again, as by a VMM; not for ever.
 */
memslot::report commit_in_the_end(memslot::device &device, const memslot::batch &batch,
				  const memslot::commit_options &how)
{
	constexpr int most = 50;

	for (int tries = 1;; tries++) {
		try {
			return device.commit(batch, how);
		} catch (const memslot::error &why) {
			if (why.reason() != MEMSLOT_REASON_PARK_TIMEOUT || tries == most)
				throw;
		}
	}
}

/* Whether a scenario goes on, after this many transactions; one that is timed ends on a breather.
 */
bool goes_on(const options &chosen, std::uint64_t done, clock::time_point begin)
{
	if (!chosen.milliseconds)
		return done < chosen.transactions;
	return !done || done % breather ||
	       clock::now() - begin < std::chrono::milliseconds(chosen.milliseconds);
}

/* Does one scenario in a VM of its own. */
outcome run(const options &chosen, std::string_view name)
{
	const auto scenario = guests::make_scenario(name);
	guests::vm vm(chosen.vcpus, chosen.nested);
	std::uint64_t version = guests::first_version;
	guests::layout now = scenario->next(version);
	memslot::device device;
	memslot::batch batch;
	outcome result;

	for (const memslot::region &region : now)
		vm.set_region(region);
	if (chosen.how == mode::batched) {
		device = memslot::device::open();
		device.bind(vm.fd());
	}
	vm.set_locations(scenario->locations());
	vm.start();
	vm.wait_for_passes();

	for (unsigned int i = 0; i < vm.vcpus(); i++)
		result.loops.push_back(vm.counts(i).loops);
	const auto started = clock::now();
	auto told = started;
	for (std::uint64_t i = 0; goes_on(chosen, i, started); i++) {
		guests::layout next = scenario->next(++version);

		if (chosen.how == mode::batched)
			guests::make_batch(batch, now, next);
		const auto begin = clock::now();
		switch (chosen.how) {
		case mode::one_by_one:
			guests::change_one_by_one(vm, now, next);
			break;
		case mode::batched:
			result.note(commit_in_the_end(device, batch, chosen.commit));
			break;
		case mode::paused:
			vm.pause();
			guests::change_one_by_one(vm, now, next);
			vm.resume();
			break;
		}
		const auto end = clock::now();
		result.ns.push_back(
			static_cast<std::uint64_t>(std::chrono::nanoseconds(end - begin).count()));
		now = std::move(next);
		if (i % breather == breather - 1)
			result.stale += passes_without(vm, version);
		if (clock::now() - told > std::chrono::seconds(1)) {
			std::fprintf(stderr, "%.*s: %" PRIu64 " transactions\n",
				     static_cast<int>(name.size()), name.data(), i + 1);
			told = clock::now();
		}
	}
	for (unsigned int i = 0; i < vm.vcpus(); i++)
		result.loops[i] = vm.counts(i).loops - result.loops[i];
	result.stale += passes_without(vm, version);
	vm.stop();

	for (unsigned int i = 0; i < vm.vcpus(); i++)
		result.note(vm.counts(i));
	result.transactions = result.ns.size();
	result.holes = vm.seen().holes;
	result.errors = vm.seen().errors;
	result.interrupted = vm.seen().interrupted;
	result.shutdowns = vm.seen().shutdowns;
	return result;
}

guests::json::object members(outcome result)
{
	guests::json::object members;

	for (const counter &each : counters)
		members.add(each.name, result.*each.value);
	members.add("loops", result.loops);
	members.add("versions", result.versions);
	members.add("nested_loops", result.nested_loops);

	const std::uint64_t total =
		std::accumulate(result.ns.begin(), result.ns.end(), std::uint64_t{0});
	std::ranges::sort(result.ns);
	members.add("ns_per_transaction", total / result.ns.size());
	members.add("ns_median", result.ns[result.ns.size() / 2]);
	members.add("ns_max", result.ns.back());
	return members;
}

void add(std::vector<std::uint64_t> &to, const std::vector<std::uint64_t> &more)
{
	to.resize(more.size());
	for (std::size_t i = 0; i < more.size(); i++)
		to[i] += more[i];
}

void add(outcome &to, const outcome &more)
{
	for (const counter &each : counters)
		to.*each.value += more.*each.value;
	add(to.loops, more.loops);
	add(to.versions, more.versions);
	add(to.nested_loops, more.nested_loops);
	to.ns.insert(to.ns.end(), more.ns.begin(), more.ns.end());
}

int run(int argc, char **argv)
{
	const options chosen = parse(argc, argv);
	std::vector<std::string_view> names{chosen.scenario};

	if (chosen.scenario == "all")
		names.assign(guests::scenario_names().begin(), guests::scenario_names().end());

	outcome total;
	guests::json::object scenarios;
	for (const std::string_view name : names) {
		const outcome one = run(chosen, name);

		add(total, one);
		scenarios.add(name, members(one));
	}
	guests::json::object()
		.add("mode", mode_names[static_cast<std::size_t>(chosen.how)])
		.add("nested", nesting_names[static_cast<std::size_t>(chosen.nested)])
		.add("vcpus", chosen.vcpus)
		.add("park", chosen.commit.park)
		.add_all(members(total))
		.add("scenarios", scenarios)
		.print();
	return EXIT_SUCCESS;
}

} // namespace

int main(int argc, char **argv)
{
	return guests::run_program("churn", [&] { return run(argc, argv); });
}
