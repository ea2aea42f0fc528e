// SPDX-License-Identifier: GPL-2.0
/*
 * The same changes one by one through KVM and as one batch, in turn, while vCPUs run.  Numbers from
 * different runs, let alone machines, do not compare; the ratios within one run do.
 */
#include "command_line.hpp"
#include "json.hpp"
#include "scenario.hpp"
#include "split_range.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <span>
#include <string_view>

namespace {

using clock = std::chrono::steady_clock;

/* Many slots of one page each, away from the range that vCPUs visit */
constexpr std::uint32_t many = 512;
constexpr std::uint64_t many_gpa = 64 << 20;
constexpr std::uint32_t many_first_slot = 16;

/* A slot that is changed by itself, away from what vCPUs visit */
constexpr std::uint64_t single_gpa = 32 << 20;
constexpr std::uint32_t single_slot = 9;

/* What the guest uses besides: KVM's own deletion of a slot drops its translations, too */
constexpr std::uint64_t other_gpa = 128 << 20;
constexpr std::uint32_t other_slot = 8;

/*
 * With --seconds a piece of work is done until the ratio of its medians is known this well: its
 * relative standard error, which needs some samples to be told at all, and more to be trusted.
 */
constexpr double good_enough = 0.05;
constexpr std::size_t least_to_tell = 4;
constexpr std::size_t least_to_trust = 8;

constexpr const char *usage = R"(Usage: slot_bench [OPTION]...
Times memslot changes one by one and batched while vCPUs run; prints JSON.

  --vcpus N    0 ... 16; nothing else happens with 0 (default: 1)
  --work NAME  three: a range is split into three slots and merged again
               many: 512 slots are created and deleted
               single: one slot is created, moved, logged and deleted
               all (default)
  --rounds N   of each piece of work, each way; creating and deleting 512 slots
               is done for every twentieth of them (default: 100)
  --seconds S  at least --rounds of each piece of work (of 512 slots, too), then
               on until there are eight samples and the ratio of the medians has
               a standard error of 5 %, but no longer than S seconds for each
  --other MIB  memory that the guest uses besides, in pages of 4 KiB; 0 ... 256
               (default: 64; KVM drops its translations with each slot that it
               deletes, so this is what one by one pays for)
  --help       this text

Tells once a second on stderr how far it is.
)";

struct options {
	unsigned int vcpus = 1;
	unsigned int rounds = 100;
	unsigned int seconds = 0; /* 0: rounds alone */
	unsigned int other_mib = 64;
	std::string_view work = "all";
};

/* Samples of one piece of work, both ways, and where it is one slot, with the vCPUs parked, too. */
struct comparison {
	std::vector<double> one_by_one;
	std::vector<double> batched;
	std::vector<double> parked;
	enum memslot_strategy strategy = MEMSLOT_STRATEGY_NONE;
};

double mean(const std::vector<double> &samples)
{
	return std::accumulate(samples.begin(), samples.end(), 0.0) /
	       static_cast<double>(samples.size());
}

double median(std::vector<double> samples)
{
	const auto middle = samples.begin() + static_cast<std::ptrdiff_t>(samples.size() / 2);

	std::ranges::nth_element(samples, middle);
	return *middle;
}

/*
 * Relative standard error of the median, from the distance of the quartiles: outliers, of which a
 * busy machine has many, count as little as they do for the median itself.
 */
double median_error(std::vector<double> samples)
{
	const std::size_t count = samples.size();

	std::ranges::sort(samples);
	/* as for a normal distribution, whose quartiles are 1.349 standard deviations apart */
	return 1.2533 * (samples[count * 3 / 4] - samples[count / 4]) / 1.349 /
	       std::sqrt(static_cast<double>(count)) / samples[count / 2];
}

double ratio(const comparison &noted)
{
	return median(noted.one_by_one) / median(noted.batched);
}

double ratio_error(const comparison &noted)
{
	if (noted.batched.size() < least_to_tell)
		return std::numeric_limits<double>::infinity();
	return std::hypot(median_error(noted.one_by_one), median_error(noted.batched));
}

double time(const std::function<void()> &work)
{
	const auto begin = clock::now();

	work();
	return std::chrono::duration<double, std::nano>(clock::now() - begin).count();
}

class bench {
public:
	explicit bench(const options &chosen)
	    : other_memory_(std::max(1U, chosen.other_mib * 256)), vm_(chosen.vcpus)
	{
		for (std::uint32_t i = 0; i < many; i++)
			many_.push_back({
				.slot = many_first_slot + i,
				.guest_phys_addr = many_gpa + i * guests::page_size,
				.memory_size = guests::page_size,
				.userspace_addr = many_memory_.page(i),
			});
		vm_.set_locations(guests::split_range::visited());
		vm_.set_region(range_.whole[0]);
		if (chosen.other_mib)
			use_other_memory(std::uint64_t{chosen.other_mib} << 20);
		device_.bind(vm_.fd());
		vm_.start();
		vm_.wait_for_passes();
	}

	void split_and_merge(comparison &to)
	{
		change(range_.whole, range_.split, to);
		change(range_.split, range_.whole, to);
	}

	/*
	 * One slot at a time, which KVM's own ioctl can do as well: created, moved, logged, no
	 * longer logged, deleted.  The three ways take turns in being the first.
	 */
	void one_slot(std::array<comparison, 5> &noted)
	{
		memslot::region region{
			.slot = single_slot,
			.guest_phys_addr = single_gpa,
			.memory_size = guests::split_range::pages * guests::page_size,
			.userspace_addr = many_memory_.page(0),
		};
		std::array<memslot::region, 5> steps;

		steps[0] = region;
		region.guest_phys_addr += 2 * region.memory_size;
		steps[1] = region;
		region.log_dirty_pages = true;
		steps[2] = region;
		region.log_dirty_pages = false;
		steps[3] = region;
		region.memory_size = 0;
		steps[4] = region;
		const auto through_kvm = [&](std::size_t i) {
			noted[i].one_by_one.push_back(time([&] { vm_.set_region(steps[i]); }));
		};
		const auto through_memslot = [&](std::size_t i) {
			batch_.clear();
			batch_.set(steps[i]);
			noted[i].batched.push_back(
				time([&] { noted[i].strategy = device_.commit(batch_).strategy; }));
		};
		const auto with_vcpus_parked = [&](std::size_t i) {
			batch_.clear();
			batch_.set(steps[i]);
			noted[i].parked.push_back(
				time([&] { device_.commit(batch_, {.park = true}); }));
		};
		const std::array<std::function<void(std::size_t)>, 3> ways{
			through_kvm, through_memslot, with_vcpus_parked};

		first_way_++;
		for (std::size_t way = 0; way < ways.size(); way++) {
			for (std::size_t i = 0; i < steps.size(); i++) {
				vm_.wait_for_passes();
				ways[(first_way_ + way) % ways.size()](i);
			}
		}
	}

	void create_and_delete(comparison &created, comparison &deleted)
	{
		one_by_one(none_, many_, created);
		one_by_one(many_, none_, deleted);
		batched(none_, many_, created);
		batched(many_, none_, deleted);
	}

	void finish()
	{
		vm_.stop();
	}

private:
	void use_other_memory(std::uint64_t bytes)
	{
		vm_.set_region({
			.slot = other_slot,
			.guest_phys_addr = other_gpa,
			.memory_size = bytes,
			.userspace_addr = other_memory_.page(0),
		});
		vm_.set_other_memory(other_gpa, bytes);
	}

	/* There one way, back untimed, there the other way */
	void change(const guests::layout &from, const guests::layout &to, comparison &noted)
	{
		one_by_one(from, to, noted);
		guests::make_batch(batch_, to, from);
		device_.commit(batch_);
		batched(from, to, noted);
	}

	void one_by_one(const guests::layout &from, const guests::layout &to, comparison &noted)
	{
		vm_.wait_for_passes();
		noted.one_by_one.push_back(time([&] { guests::change_one_by_one(vm_, from, to); }));
	}

	void batched(const guests::layout &from, const guests::layout &to, comparison &noted)
	{
		guests::make_batch(batch_, from, to);
		vm_.wait_for_passes();
		noted.batched.push_back(
			time([&] { noted.strategy = device_.commit(batch_).strategy; }));
	}

	std::size_t first_way_ = 0;
	guests::split_range range_;
	guests::host_memory many_memory_{many};
	guests::host_memory other_memory_;
	guests::layout none_;
	guests::layout many_;
	guests::vm vm_;
	memslot::device device_ = memslot::device::open();
	memslot::batch batch_;
};

options parse(int argc, char **argv)
{
	static constexpr std::array<std::string_view, 4> works{"three", "many", "single", "all"};
	options chosen;

	guests::command_line(usage)
		.number("vcpus", chosen.vcpus, 0, guests::max_vcpus)
		.number("rounds", chosen.rounds, 1, 1000000)
		.number("seconds", chosen.seconds, 1, 86400)
		.number("other", chosen.other_mib, 0, 256)
		.text("work",
		      [&](std::string_view name) {
			      chosen.work = works.at(guests::called(name, works, "work"));
		      })
		.parse(argc, argv);
	return chosen;
}

void add(guests::json::object &to, const char *name, const comparison &noted)
{
	if (noted.batched.empty())
		return;

	guests::json::object members;
	members.add("samples", noted.batched.size())
		.add("one_by_one_ns", median(noted.one_by_one), 0)
		.add("batched_ns", median(noted.batched), 0)
		.add("ratio", ratio(noted), 2)
		.add("ratio_error", ratio_error(noted))
		.add("one_by_one_mean_ns", mean(noted.one_by_one), 0)
		.add("batched_mean_ns", mean(noted.batched), 0)
		.add("mean_ratio", mean(noted.one_by_one) / mean(noted.batched), 2)
		.add("strategy", memslot::words(noted.strategy));
	if (!noted.parked.empty())
		members.add("parked_ns", median(noted.parked), 0);
	to.add(name, members);
}

/* What is measured together: a round of it, and where that goes. */
struct piece {
	std::string_view name;
	std::function<void()> round;
	std::span<const comparison> noted;
	/* of the rounds of all, with --rounds alone */
	unsigned int every;
};

/* Tells once a second. */
class progress {
public:
	void tell(const piece &of)
	{
		if (clock::now() - told_ < std::chrono::seconds(1))
			return;
		told_ = clock::now();
		std::fprintf(stderr, "%s: %zu pairs\n", of.name.data(), of.noted[0].batched.size());
	}

private:
	clock::time_point told_ = clock::now();
};

void measure_rounds(std::span<const piece> pieces, unsigned int rounds)
{
	progress progress;

	for (unsigned int i = 0; i < rounds; i++) {
		for (const piece &each : pieces) {
			if (i % each.every == 0) {
				each.round();
				progress.tell(each);
			}
		}
	}
}

void measure_until_known(const piece &of, unsigned int rounds, std::chrono::seconds at_most)
{
	const auto end = clock::now() + at_most;
	const auto known = [](const comparison &noted) {
		return noted.batched.size() >= least_to_trust && ratio_error(noted) <= good_enough;
	};
	progress progress;

	for (unsigned int i = 0;
	     i < rounds || (clock::now() < end && !std::ranges::all_of(of.noted, known)); i++) {
		of.round();
		progress.tell(of);
	}
}

int run(int argc, char **argv)
{
	constexpr unsigned int rounds_per_many = 20;
	const options chosen = parse(argc, argv);
	std::array<comparison, 1> three;
	std::array<comparison, 2> created_deleted;
	std::array<comparison, 5> single;
	bench bench(chosen);
	std::vector<piece> pieces{
		{"three", [&] { bench.split_and_merge(three[0]); }, three, 1},
		{"single", [&] { bench.one_slot(single); }, single, 1},
		{"many", [&] { bench.create_and_delete(created_deleted[0], created_deleted[1]); },
		 created_deleted, rounds_per_many},
	};

	std::erase_if(pieces, [&](const piece &each) {
		return chosen.work != "all" && chosen.work != each.name;
	});
	if (chosen.seconds) {
		for (const piece &each : pieces)
			measure_until_known(each, chosen.rounds,
					    std::chrono::seconds(chosen.seconds));
	} else {
		measure_rounds(pieces, chosen.rounds);
	}
	bench.finish();

	guests::json::object report;
	report.add("vcpus", chosen.vcpus).add("other_mib", chosen.other_mib);
	add(report, "three_changes", three[0]);
	add(report, "delete_512", created_deleted[1]);
	add(report, "create_512", created_deleted[0]);
	add(report, "create_one", single[0]);
	add(report, "move_one", single[1]);
	add(report, "log_one", single[2]);
	add(report, "unlog_one", single[3]);
	add(report, "delete_one", single[4]);
	report.print();
	return EXIT_SUCCESS;
}

} // namespace

int main(int argc, char **argv)
{
	return guests::run_program("slot_bench", [&] { return run(argc, argv); });
}
