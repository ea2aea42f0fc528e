// SPDX-License-Identifier: GPL-2.0
/*
 * What a guest notices of memslot changes, and how long each takes: one workload, made in every way
 * that there is, by turns in one run.  Prints what it has seen; bench.py makes figures of it.
 *
 * A turn is three blocks of some time each.  In the first all vCPUs look on: they touch memory that
 * does not change.  In the second they do so, too, but this thread only uses the processor as it
 * did in the first one.  In the third a vCPU touches what changes, and each transaction begins when
 * all vCPUs have all their memory mapped; these are the transactions that are timed.
 */
#include "command_line.hpp"
#include "counters.hpp"
#include "json.hpp"
#include "workload.hpp"

#include <array>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <functional>
#include <map>
#include <optional>
#include <stdexcept>
#include <sys/prctl.h>
#include <x86intrin.h>

namespace {

using namespace std::chrono_literals;

using clock = std::chrono::steady_clock;
using guests::json::object;

/* How a transaction is made. */
enum class way : std::uint8_t { kvm, kvm_zap, pause, park, fence, replace_all };

constexpr std::array<std::string_view, 6> way_names{"kvm",  "kvm-zap", "pause",
						    "park", "fence",   "replace-all"};

constexpr const char *usage = R"(Usage: guest_bench --scenario NAME [OPTION]...
Changes memslots in several ways, by turns, while vCPUs run, and prints what was
seen as one JSON object.

  --scenario NAME  ro-flip, window, banks, vsm, layout, plug, split-merge, grow, log,
                   single
  --vcpus N        0 ... 64 (default: 1)
  --ways NAMES     some of these, with commas (default: all that this kernel has;
                   replace-all is for layout):
                   kvm: KVM_SET_USER_MEMORY_REGION, one by one
                   kvm-zap: the same in a VM without KVM_X86_QUIRK_SLOT_ZAP_ALL
                   pause: the same with all vCPUs out of KVM_RUN
                   park: /dev/memslot, asked to park the vCPUs
                   fence: /dev/memslot, as it chooses
                   replace-all: the same, told all slots instead of what changes
  --seconds S      turns begin for so long (default: 5)
  --rounds N       but so many turns of each way at least (default: 1)
  --block MS       each of the three parts of a turn; 0: one round of the
                   workload's transactions each (default: 100)
  --timed          the third part of a turn only, and no exact counts
  --guest MIB      memory that changes, 64 ... 2048 (default: 64)
  --huge           in pages of 2 MiB
  --whole          ro-flip, split-merge: a vCPU touches all of it, not 128 pages
  --other MIB      memory that vCPUs touch besides, 1 ... 256 (default: 8)
  --help           this text

Tells on stderr, by lines, that it gets on.
)";

struct options {
	std::string_view scenario;
	unsigned int vcpus = 1;
	std::vector<way> ways;
	unsigned int seconds = 5;
	unsigned int rounds = 1;
	std::chrono::milliseconds block = 100ms;
	std::uint64_t guest_mib = 64;
	guests::pages_of kind = guests::pages_of::kib_4;
	std::uint64_t other_mib = 8;
	bool whole = false;
	bool timed = false;
};

constexpr std::uint64_t pages_per_mib = (1 << 20) / guests::page_size;

constexpr std::uint64_t quirk_slot_zap_all = 1 << 7;

using gap_counts = decltype(guests::vcpu_page::gaps);

/* Parallel: one element per block. */
struct blocks {
	std::vector<std::uint64_t> touches;
	std::vector<std::uint64_t> ns;
	/* in ticks, the longest of all vCPUs that count */
	std::vector<std::uint64_t> longest;
	gap_counts gaps{};
};

/* Exact counts of the transactions of one kind. */
struct counts {
	std::uint64_t transactions = 0;
	std::uint64_t calls = 0;
	std::uint64_t deletes = 0;
	std::uint64_t grace_periods = 0;
	std::uint64_t zap_alls = 0;
	std::uint64_t zapped_ranges = 0;
	std::uint64_t kicks = 0;
	std::uint64_t eintr = 0;
	std::uint64_t holes = 0;
	/* page faults afterwards: of the vCPU that touches what changes, and of the others */
	std::uint64_t faults = 0;
	std::uint64_t faults_elsewhere = 0;
};

/* What one way came to. */
struct record {
	/* by kind of transaction */
	std::map<std::string, std::vector<std::uint64_t>> ns;
	std::map<std::string, counts> counted;
	blocks looking_on;
	blocks undisturbed;
	blocks touching;
	/* in the blocks in which somebody looks on or touches */
	std::uint64_t transactions = 0;
	std::uint64_t eintr = 0;
	std::uint64_t holes = 0;
	std::uint64_t fenced = 0;
	std::uint64_t parked = 0;
};

/* A transaction in the form that each way needs. */
struct prepared {
	std::string kind;
	guests::layout calls;
	memslot::batch batch;
	memslot::batch whole;
};

/* When a thread began something, from the block's beginning, and how long it used the processor for
 * it. */
struct burst {
	std::chrono::nanoseconds at;
	std::chrono::nanoseconds computing;
};

std::chrono::nanoseconds processor_time()
{
	timespec now{};

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
	return std::chrono::seconds(now.tv_sec) + std::chrono::nanoseconds(now.tv_nsec);
}

std::uint64_t count_of(std::chrono::nanoseconds time)
{
	return static_cast<std::uint64_t>(time.count());
}

/* A VM with the workload's slots, and where it stands. */
class machine {
public:
	machine(const options &chosen, const bench::workload_kind &kind,
		const bench::memory &memory, bool zaps_all)
	    : vm_(chosen.vcpus), workload_(kind.make(memory)), other_(memory.other)
	{
		if (!zaps_all)
			switch_off_zap_all();
		vm_.set_region(other_);
		device_.bind(vm_.fd());
		go_to(0);
		for (unsigned int i = 0; i < vm_.vcpus(); i++) {
			vm_.watch(i, others_memory());
			/* KVM gives them to who asks between two KVM_RUNs */
			faults_.emplace_back(vm_.vcpu_fd(i), "pf_fixed");
		}
		vm_.start();
		vm_.pause();
	}

	[[nodiscard]] guests::vm &vm()
	{
		return vm_;
	}

	[[nodiscard]] bench::workload &workload()
	{
		return *workload_;
	}

	void go_to(std::size_t stage)
	{
		guests::layout next = workload_->base(stage);

		guests::make_batch(batch_, now_, next);
		device_.commit(batch_);
		now_ = std::move(next);
		stage_ = stage;
	}

	[[nodiscard]] std::vector<prepared> cycle(bool whole)
	{
		std::vector<prepared> all;

		for (bench::transaction &each : workload_->cycle(stage_)) {
			prepared &made = all.emplace_back();

			made.kind = std::move(each.kind);
			made.calls = guests::one_by_one(each.from, each.to);
			guests::make_batch(made.batch, each.from, each.to);
			if (whole) {
				made.whole.set(vm_.control_slot());
				made.whole.set(other_);
				for (const memslot::region &old : now_)
					made.whole.set(old);
				for (const memslot::region &want : each.to)
					made.whole.set(want);
			}
		}
		return all;
	}

	void make(way how, const prepared &of, record &to)
	{
		switch (how) {
		case way::kvm:
		case way::kvm_zap:
			one_by_one(of);
			break;
		case way::pause:
			vm_.pause();
			one_by_one(of);
			vm_.resume();
			break;
		case way::park:
			note(device_.commit(of.batch, {.park = true}), to);
			break;
		case way::fence:
			note(device_.commit(of.batch), to);
			break;
		case way::replace_all:
			note(device_.commit(of.whole, {.replace_all = {0}}), to);
			break;
		}
	}

	/* Page faults that made KVM map something, of the vCPUs from first on, but before last. */
	[[nodiscard]] std::uint64_t faults(unsigned int first, unsigned int last) const
	{
		std::uint64_t sum = 0;

		for (unsigned int i = first; i < last; i++)
			sum += faults_[i].value();
		return sum;
	}

	/* How many pages of 2 MiB KVM has mapped. */
	[[nodiscard]] std::uint64_t pages_2m() const
	{
		return pages_2m_.value();
	}

	/* Of the last commit that make() made. */
	[[nodiscard]] std::uint32_t grace_periods() const
	{
		return grace_periods_;
	}

	/* One vCPU touches what changes, if the workload has such memory and there is a vCPU. */
	[[nodiscard]] bool touch()
	{
		const guests::watched_pages touched = workload_->touched();

		if (!touched.pages || !vm_.vcpus())
			return false;
		vm_.watch(0, touched);
		return true;
	}

	void look_on()
	{
		if (vm_.vcpus())
			vm_.watch(0, others_memory());
	}

private:
	void switch_off_zap_all()
	{
		kvm_enable_cap without{};

		without.cap = KVM_CAP_DISABLE_QUIRKS2;
		without.args[0] = quirk_slot_zap_all;
		if (ioctl(vm_.fd(), KVM_ENABLE_CAP, &without) < 0)
			guests::fail("switching off KVM_X86_QUIRK_SLOT_ZAP_ALL");
	}

	[[nodiscard]] guests::watched_pages others_memory() const
	{
		return {
			.first_gfn = other_.guest_phys_addr / guests::page_size,
			.writes = workload_->writes(),
			.pages = other_.memory_size / guests::page_size,
		};
	}

	void one_by_one(const prepared &of)
	{
		for (const memslot::region &call : of.calls)
			vm_.set_region(call);
	}

	void note(const memslot::report &report, record &to)
	{
		to.fenced += report.strategy == MEMSLOT_STRATEGY_FENCE;
		to.parked += report.strategy == MEMSLOT_STRATEGY_PARK;
		grace_periods_ = report.grace_periods;
	}

	guests::vm vm_;
	memslot::device device_ = memslot::device::open();
	std::unique_ptr<bench::workload> workload_;
	memslot::region other_;
	guests::layout now_;
	std::size_t stage_ = 0;
	memslot::batch batch_;
	std::uint32_t grace_periods_ = 0;
	std::vector<bench::statistic> faults_;
	bench::statistic pages_2m_{vm_.fd(), "pages_2m"};
};

/* What vCPUs count, from one moment to another. */
class observation {
public:
	/* Of the vCPUs from first on, but before last. */
	observation(guests::vm &vm, unsigned int first, unsigned int last)
	    : vm_(vm), first_(first), last_(last)
	{
		vm_.wait_for_passes();
		for (unsigned int i = first_; i < last_; i++) {
			before_.push_back(vm_.counts(i));
			vm_.forget_longest_gap(i);
		}
		begin_ = clock::now();
	}

	/* A gap that has begun is seen to its end. */
	void end(blocks &to)
	{
		const auto time = clock::now() - begin_;
		std::uint64_t touches = 0;
		std::uint64_t longest = 0;

		for (unsigned int i = first_; i < last_; i++)
			touches += vm_.counts(i).touches - before_[i - first_].touches;
		vm_.wait_for_passes();
		for (unsigned int i = first_; i < last_; i++) {
			const guests::vcpu_page after = vm_.counts(i);

			longest = std::max(longest, after.longest);
			for (std::size_t n = 0; n < to.gaps.size(); n++)
				to.gaps[n] += after.gaps[n] - before_[i - first_].gaps[n];
		}
		to.touches.push_back(touches);
		to.ns.push_back(count_of(time));
		to.longest.push_back(longest);
	}

private:
	guests::vm &vm_;
	unsigned int first_;
	unsigned int last_;
	std::vector<guests::vcpu_page> before_;
	clock::time_point begin_;
};

/* What KVM does for this thread. */
class kernel_counts {
public:
	void add_to(counts &to, bool waits)
	{
		if (waits)
			to.grace_periods += since(grace_periods_);
		to.zap_alls += since(zap_alls_);
		to.zapped_ranges += since(zapped_ranges_);
		to.kicks += since(kicks_);
	}

	void begin()
	{
		for (counter *each : {&grace_periods_, &zap_alls_, &zapped_ranges_, &kicks_})
			each->before = each->calls.value();
	}

private:
	struct counter {
		bench::calls_of calls;
		std::uint64_t before = 0;
	};

	[[nodiscard]] static std::uint64_t since(const counter &of)
	{
		return of.calls.value() - of.before;
	}

	counter grace_periods_{bench::calls_of({"synchronize_srcu_expedited"})};
	counter zap_alls_{bench::calls_of("kvmmmu/kvm_mmu_zap_all_fast")};
	counter zapped_ranges_{bench::calls_of({"kvm_unmap_gfn_range"})};
	counter kicks_{bench::calls_of({"__kvm_vcpu_kick", "kvm_vcpu_kick"})};
};

/* Tells once a second. */
class progress {
public:
	void tell(std::string_view what)
	{
		if (clock::now() - told_ < 1s)
			return;
		told_ = clock::now();
		std::fprintf(stderr, "%s\n", std::string(what).c_str());
	}

private:
	clock::time_point told_ = clock::now();
};

class bench_run {
public:
	bench_run(const options &chosen, const bench::workload_kind &kind)
	    : chosen_(chosen), other_(chosen.other_mib * pages_per_mib),
	      changing_(chosen.guest_mib * pages_per_mib, chosen.kind)
	{
		const bench::memory memory{
			.bytes = changing_,
			.pages = chosen.guest_mib * pages_per_mib,
			.other = {.slot = bench::other_slot,
				  .guest_phys_addr = bench::other_gpa,
				  .memory_size = chosen.other_mib << 20,
				  .userspace_addr = other_.page(0)},
			.all_touched = chosen.whole,
		};
		const auto is_asked_for = [&](bool zaps_all) {
			return std::ranges::any_of(chosen_.ways, [&](way how) {
				return (how != way::kvm_zap) == zaps_all;
			});
		};

		for (const bool zaps_all : {true, false}) {
			if (is_asked_for(zaps_all))
				machines_[zaps_all].emplace(chosen, kind, memory, zaps_all);
		}
	}

	void run()
	{
		if (!chosen_.timed) {
			/* Gone before anything is timed */
			kernel_counts kernel;

			for_each_turn(0, [&](way how) { count(how, kernel); });
		}
		const auto end = clock::now() + std::chrono::seconds(chosen_.seconds);
		for (unsigned int i = 0; i < chosen_.rounds || clock::now() < end; i++)
			for_each_turn(i, [this](way how) { turn(how); });
		for (auto &machine : machines_) {
			if (machine) {
				machine->vm().resume();
				machine->vm().stop();
			}
		}
	}

	void print()
	{
		object report;
		object ways;
		const auto ticks = static_cast<double>(__rdtsc() - ticks_begin_);

		for (const way how : chosen_.ways) {
			const auto index = static_cast<std::size_t>(how);

			ways.add(way_names[index], json(records_[index]));
		}
		report.add("scenario", chosen_.scenario)
			.add("vcpus", chosen_.vcpus)
			.add("guest_mib", chosen_.guest_mib)
			.add("huge", chosen_.kind == guests::pages_of::mib_2)
			.add("pages_2m", pages_2m_)
			.add("other_mib", chosen_.other_mib)
			.add("ticks_per_ns",
			     ticks / std::chrono::duration<double, std::nano>(clock::now() - begin_)
					     .count())
			.add("ways", ways);
		report.print();
	}

private:
	[[nodiscard]] machine &machine_for(way how)
	{
		return *machines_[how != way::kvm_zap];
	}

	[[nodiscard]] record &record_of(way how)
	{
		return records_[static_cast<std::size_t>(how)];
	}

	/* Each stage, and each way in it, another one first each time; only its VM runs. */
	void for_each_turn(unsigned int first, const std::function<void(way)> &take)
	{
		const std::size_t stages = machine_for(chosen_.ways.front()).workload().stages();
		std::size_t at = first;

		for (std::size_t stage = 0; stage < stages; stage++) {
			for (auto &machine : machines_) {
				if (machine && stages > 1)
					machine->go_to(stage);
			}
			for (std::size_t i = 0; i < chosen_.ways.size(); i++, at++) {
				const way how = chosen_.ways[at % chosen_.ways.size()];
				guests::vm &vm = machine_for(how).vm();

				vm.resume();
				vm.wait_for_passes();
				take(how);
				progress_.tell(way_names[static_cast<std::size_t>(how)]);
				vm.pause();
			}
		}
	}

	/* The exact counts of one round of the workload's transactions. */
	void count(way how, kernel_counts &kernel)
	{
		machine &on = machine_for(how);
		guests::vm &vm = on.vm();
		const bool touching = on.touch();
		const auto touched = [&] { return on.faults(0, touching); };
		const auto elsewhere = [&] { return on.faults(touching, vm.vcpus()); };
		const bool commits = how == way::park || how == way::fence ||
				     how == way::replace_all;
		record ignored;

		for (const prepared &each : on.cycle(how == way::replace_all)) {
			vm.wait_for_passes();
			counts &to = record_of(how).counted[each.kind];
			const std::uint64_t touched_before = touched();
			const std::uint64_t elsewhere_before = elsewhere();
			const std::uint64_t eintr_before = vm.seen().interrupted;
			const std::uint64_t holes_before = vm.seen().holes;

			kernel.begin();
			on.make(how, each, ignored);
			kernel.add_to(to, !commits);
			vm.wait_for_passes();
			to.transactions++;
			to.deletes += static_cast<std::uint64_t>(
				std::ranges::count(each.calls, 0, &memslot::region::memory_size));
			to.calls += commits ? 1 : each.calls.size();
			if (commits)
				to.grace_periods += on.grace_periods();
			if (how == way::pause)
				to.kicks += vm.vcpus();
			to.eintr += vm.seen().interrupted - eintr_before;
			to.holes += vm.seen().holes - holes_before;
			to.faults += touched() - touched_before;
			to.faults_elsewhere += elsewhere() - elsewhere_before;
		}
		pages_2m_ = std::max(pages_2m_, on.pages_2m());
		on.look_on();
	}

	void turn(way how)
	{
		machine &on = machine_for(how);
		guests::vm &vm = on.vm();
		const std::vector<prepared> all = on.cycle(how == way::replace_all);
		record &to = record_of(how);
		const std::uint64_t eintr_before = vm.seen().interrupted;
		const std::uint64_t holes_before = vm.seen().holes;

		if (vm.vcpus() && !chosen_.timed) {
			std::vector<burst> done;
			observation looking_on(vm, 0, vm.vcpus());

			disturb(on, how, all, done);
			looking_on.end(to.looking_on);
			observation undisturbed(vm, 0, vm.vcpus());
			repeat(done);
			undisturbed.end(to.undisturbed);
		}
		measure(on, how, all);
		to.eintr += vm.seen().interrupted - eintr_before;
		to.holes += vm.seen().holes - holes_before;
	}

	void for_a_block(const std::vector<prepared> &all,
			 const std::function<void(const prepared &)> &work)
	{
		const auto end = clock::now() + chosen_.block;

		do {
			for (const prepared &each : all) {
				work(each);
				progress_.tell(each.kind);
			}
		} while (clock::now() < end);
	}

	void disturb(machine &on, way how, const std::vector<prepared> &all,
		     std::vector<burst> &done)
	{
		const auto period = on.workload().period();
		const auto block = clock::now();
		record &to = record_of(how);

		for_a_block(all, [&](const prepared &each) {
			const auto begin = clock::now();
			const auto computing = processor_time();

			on.make(how, each, to);
			to.transactions++;
			done.push_back({begin - block, processor_time() - computing});
			std::this_thread::sleep_until(begin + period);
		});
		/* Where the last one ended */
		done.push_back({clock::now() - block, 0ns});
	}

	/* Uses the processor in the same way at the same times, without any change. */
	static void repeat(const std::vector<burst> &done)
	{
		const auto block = clock::now();

		for (const burst &each : done) {
			std::this_thread::sleep_until(block + each.at);
			const auto computing = processor_time() + each.computing;
			while (processor_time() < computing)
				;
		}
	}

	void measure(machine &on, way how, const std::vector<prepared> &all)
	{
		guests::vm &vm = on.vm();
		record &to = record_of(how);
		std::optional<observation> touching;

		if (on.touch())
			touching.emplace(vm, 0, 1);
		for_a_block(all, [&](const prepared &each) {
			vm.wait_for_passes();
			const auto begin = clock::now();
			on.make(how, each, to);
			to.ns[each.kind].push_back(count_of(clock::now() - begin));
			to.transactions++;
		});
		if (touching)
			touching->end(to.touching);
		on.look_on();
		vm.wait_for_passes();
	}

	[[nodiscard]] static object json(const blocks &of)
	{
		object members;

		members.add("touches", of.touches)
			.add("ns", of.ns)
			.add("longest_ticks", of.longest)
			.add("gaps", std::vector(of.gaps.begin(), of.gaps.end()));
		return members;
	}

	[[nodiscard]] static object json(const counts &of)
	{
		object members;

		members.add("transactions", of.transactions)
			.add("calls", of.calls)
			.add("deletes", of.deletes)
			.add("grace_periods", of.grace_periods)
			.add("zap_alls", of.zap_alls)
			.add("zapped_ranges", of.zapped_ranges)
			.add("kicks", of.kicks)
			.add("eintr", of.eintr)
			.add("holes", of.holes)
			.add("faults", of.faults)
			.add("faults_elsewhere", of.faults_elsewhere);
		return members;
	}

	[[nodiscard]] static object json(const record &of)
	{
		object members;
		object ns;
		object counted;

		for (const auto &[kind, samples] : of.ns)
			ns.add(kind, samples);
		for (const auto &[kind, exact] : of.counted)
			counted.add(kind, json(exact));
		members.add("ns", ns)
			.add("counted", counted)
			.add("looking_on", json(of.looking_on))
			.add("undisturbed", json(of.undisturbed))
			.add("touching", json(of.touching))
			.add("transactions", of.transactions)
			.add("eintr", of.eintr)
			.add("holes", of.holes)
			.add("fenced", of.fenced)
			.add("parked", of.parked);
		return members;
	}

	const options &chosen_;
	std::uint64_t ticks_begin_ = __rdtsc();
	clock::time_point begin_ = clock::now();
	guests::host_memory other_;
	guests::host_memory changing_;
	/* by whether KVM zaps all where it deletes a slot */
	std::array<std::optional<machine>, 2> machines_;
	std::array<record, way_names.size()> records_;
	/* most that any VM had mapped */
	std::uint64_t pages_2m_ = 0;
	progress progress_;
};

bool has_quirk()
{
	const int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	if (kvm < 0)
		guests::fail("/dev/kvm");
	const int quirks = ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_DISABLE_QUIRKS2);
	close(kvm);
	return quirks > 0 && quirks & static_cast<int>(quirk_slot_zap_all);
}

std::vector<way> ways_of(std::string_view names)
{
	std::vector<way> all;

	while (!names.empty()) {
		const std::size_t end = std::min(names.find(','), names.size());

		all.push_back(guests::called<way>(names.substr(0, end), way_names, "way"));
		names.remove_prefix(std::min(end + 1, names.size()));
	}
	if (all.empty())
		throw guests::wrong_usage("--ways names none");
	return all;
}

const bench::workload_kind &scenario_called(std::string_view name)
{
	const auto all = bench::workloads();
	const auto found = std::ranges::find(all, name, &bench::workload_kind::name);

	if (found == all.end())
		throw guests::wrong_usage(name.empty()
						  ? "--scenario is missing; try --help"
						  : "no scenario is called " + std::string(name));
	return *found;
}

options parse(int argc, char **argv)
{
	options chosen;
	bool huge = false;
	unsigned int block = 100;

	guests::command_line(usage)
		.text("scenario", [&](std::string_view name) { chosen.scenario = name; })
		.number("vcpus", chosen.vcpus, 0, guests::max_vcpus)
		.text("ways", [&](std::string_view names) { chosen.ways = ways_of(names); })
		.number("seconds", chosen.seconds, 0, 86400)
		.number("rounds", chosen.rounds, 1, 1000000)
		.number("block", block, 0, 60000)
		.number("guest", chosen.guest_mib, 64, 2048)
		.flag("huge", huge)
		.flag("whole", chosen.whole)
		.flag("timed", chosen.timed)
		.number("other", chosen.other_mib, 1, 256)
		.parse(argc, argv);
	chosen.block = std::chrono::milliseconds(block);
	if (huge)
		chosen.kind = guests::pages_of::mib_2;
	scenario_called(chosen.scenario);
	if (chosen.whole && chosen.scenario != "split-merge" && chosen.scenario != "ro-flip")
		throw guests::wrong_usage("--whole is for ro-flip and split-merge");
	return chosen;
}

/* All that this kernel has and that make a difference. */
void choose_ways(options &of)
{
	if (!of.ways.empty()) {
		if (std::ranges::count(of.ways, way::kvm_zap) && !has_quirk())
			throw guests::wrong_usage("kvm-zap: this KVM has no "
						  "KVM_X86_QUIRK_SLOT_ZAP_ALL (Linux 6.12 has)");
		return;
	}
	of.ways = {way::kvm, way::pause, way::park, way::fence};
	if (has_quirk())
		of.ways.insert(of.ways.begin() + 1, way::kvm_zap);
	if (of.scenario == "layout")
		of.ways.push_back(way::replace_all);
}

int run(int argc, char **argv)
{
	options chosen = parse(argc, argv);

	choose_ways(chosen);
	/* Sleeps of less than its 50 us else last as long */
	if (prctl(PR_SET_TIMERSLACK, 1UL))
		guests::fail("PR_SET_TIMERSLACK");
	bench_run run(chosen, scenario_called(chosen.scenario));
	run.run();
	run.print();
	return EXIT_SUCCESS;
}

} // namespace

int main(int argc, char **argv)
{
	return guests::run_program("guest_bench", [&] { return run(argc, argv); });
}
