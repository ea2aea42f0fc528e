// SPDX-License-Identifier: GPL-2.0
/*
 * The same changes one by one through KVM and as one batch, in turn, while vCPUs run.  Numbers from
 * different runs, let alone machines, do not compare; the ratios within one run do.
 */
#include "scenario.hpp"
#include "stamped_memory.hpp"

#include <array>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <getopt.h>
#include <numeric>
#include <stdexcept>

namespace {

using clock = std::chrono::steady_clock;

constexpr std::uint64_t range_pages = 64;
constexpr std::uint64_t split_at = range_pages / 4;

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

constexpr const char *usage = R"(Usage: slot_bench [OPTION]...
Times memslot changes one by one and batched while vCPUs run; prints JSON.

  --vcpus N    0 ... 16; nothing else happens with 0 (default: 1)
  --rounds N   of splitting and merging, each way; creating and deleting 512
               slots is done for every twentieth of them (default: 100)
  --other MIB  memory that the guest uses besides, in pages of 4 KiB; 0 ... 256
               (default: 64; KVM drops its translations with each slot that it
               deletes, so this is what one by one pays for)
  --help       this text
)";

struct options {
	unsigned int vcpus = 1;
	unsigned int rounds = 100;
	unsigned int other_mib = 64;
};

/* Samples of one piece of work, both ways. */
struct comparison {
	std::vector<double> one_by_one;
	std::vector<double> batched;
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
		std::vector<guests::location> visited;

		for (std::uint32_t i = 0; i < many; i++)
			many_.push_back({
				.slot = many_first_slot + i,
				.guest_phys_addr = many_gpa + i * guests::page_size,
				.memory_size = guests::page_size,
				.userspace_addr = many_memory_.page(i),
			});
		guests::append(visited, 0, range_pages, guests::fixed);
		vm_.set_locations(visited);
		vm_.set_region(whole_[0]);
		if (chosen.other_mib)
			use_other_memory(std::uint64_t{chosen.other_mib} << 20);
		device_.bind(vm_.fd());
		vm_.start();
		vm_.wait_for_passes();
	}

	void split_and_merge(comparison &to)
	{
		change(whole_, split_, to);
		change(split_, whole_, to);
	}

	/*
	 * One slot at a time, which KVM's own ioctl can do as well: created, moved, logged, no
	 * longer logged, deleted.  The same call site times both ways.
	 */
	void one_slot(std::array<comparison, 5> &noted)
	{
		memslot::region region{
			.slot = single_slot,
			.guest_phys_addr = single_gpa,
			.memory_size = range_pages * guests::page_size,
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
		kvm_first_ = !kvm_first_;
		for (const bool kvm : {kvm_first_, !kvm_first_}) {
			for (std::size_t i = 0; i < steps.size(); i++) {
				vm_.wait_for_passes();
				kvm ? through_kvm(i) : through_memslot(i);
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

	bool kvm_first_ = false;
	guests::stamped_memory memory_{range_pages};
	guests::host_memory many_memory_{many};
	guests::host_memory other_memory_;
	guests::layout none_;
	guests::layout whole_{memory_.at(0, 0, range_pages, 0)};
	guests::layout split_{
		memory_.at(0, 0, split_at, 0),
		memory_.at(1, split_at, range_pages - 2 * split_at, split_at),
		memory_.at(2, range_pages - split_at, split_at, range_pages - split_at),
	};
	guests::layout many_;
	guests::vm vm_;
	memslot::device device_ = memslot::device::open();
	memslot::batch batch_;
};

unsigned int number(const char *text, unsigned int least, unsigned int most)
{
	char *end = nullptr;
	const unsigned long value = std::strtoul(text, &end, 10);

	if (end == text || *end || value < least || value > most)
		throw std::invalid_argument(std::string(text) + " is not a number from " +
					    std::to_string(least) + " to " + std::to_string(most));
	return static_cast<unsigned int>(value);
}

options parse(int argc, char **argv)
{
	static constexpr std::array<option, 5> known{{
		{"vcpus", required_argument, nullptr, 'v'},
		{"rounds", required_argument, nullptr, 'r'},
		{"other", required_argument, nullptr, 'o'},
		{"help", no_argument, nullptr, 'h'},
		{nullptr, 0, nullptr, 0},
	}};
	options chosen;

	for (int c; (c = getopt_long(argc, argv, "", known.data(), nullptr)) != -1;) {
		switch (c) {
		case 'v':
			chosen.vcpus = number(optarg, 0, guests::max_vcpus);
			break;
		case 'r':
			chosen.rounds = number(optarg, 1, 1000000);
			break;
		case 'o':
			chosen.other_mib = number(optarg, 0, 256);
			break;
		case 'h':
			std::fputs(usage, stdout);
			std::exit(EXIT_SUCCESS);
		default:
			throw std::invalid_argument("try --help");
		}
	}
	if (optind != argc)
		throw std::invalid_argument(std::string("what is ") + argv[optind] + "?");
	return chosen;
}

void print(const char *name, const comparison &noted)
{
	std::printf(", \"%s\": {\"samples\": %zu, \"one_by_one_ns\": %.0f, \"batched_ns\": %.0f, "
		    "\"ratio\": %.2f, \"one_by_one_mean_ns\": %.0f, \"batched_mean_ns\": %.0f, "
		    "\"mean_ratio\": %.2f, \"strategy\": \"%s\"}",
		    name, noted.batched.size(), median(noted.one_by_one), median(noted.batched),
		    median(noted.one_by_one) / median(noted.batched), mean(noted.one_by_one),
		    mean(noted.batched), mean(noted.one_by_one) / mean(noted.batched),
		    memslot::words(noted.strategy).data());
}

} // namespace

int main(int argc, char **argv)
try {
	constexpr unsigned int rounds_per_many = 20;
	const options chosen = parse(argc, argv);
	comparison three;
	comparison created;
	comparison deleted;
	std::array<comparison, 5> single;
	bench bench(chosen);

	for (unsigned int i = 0; i < chosen.rounds; i++) {
		bench.split_and_merge(three);
		bench.one_slot(single);
		if (i % rounds_per_many == 0)
			bench.create_and_delete(created, deleted);
	}
	bench.finish();

	std::printf("{\"vcpus\": %u, \"other_mib\": %u", chosen.vcpus, chosen.other_mib);
	print("three_changes", three);
	print("delete_512", deleted);
	print("create_512", created);
	print("create_one", single[0]);
	print("move_one", single[1]);
	print("log_one", single[2]);
	print("unlog_one", single[3]);
	print("delete_one", single[4]);
	std::printf("}\n");
	return EXIT_SUCCESS;
} catch (const std::invalid_argument &why) {
	std::fprintf(stderr, "slot_bench: %s\n", why.what());
	return 2;
} catch (const std::exception &why) {
	std::fprintf(stderr, "slot_bench: %s\n", why.what());
	return EXIT_FAILURE;
}
