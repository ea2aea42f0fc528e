// SPDX-License-Identifier: GPL-2.0
/*
 * What it costs to have all vCPUs stand still for a change: parked by the module, or paused by the
 * VMM with a flag and a signal per vCPU, as QEMU does.  In turn, in one VM, while vCPUs run.
 */
#include "command_line.hpp"
#include "json.hpp"
#include "scenario.hpp"
#include "split_range.hpp"

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <numeric>

namespace {

using clock = std::chrono::steady_clock;

struct samples {
	const char *name;
	std::vector<double> ns;
};

class bench {
public:
	explicit bench(unsigned int vcpus) : vm_(vcpus)
	{
		vm_.set_locations(guests::split_range::visited());
		vm_.set_region(range_.whole[0]);
		device_.bind(vm_.fd());
		vm_.start();
	}

	/* Each way there and back, from the same state: all vCPUs in the guest, all memory mapped.
	 */
	void round()
	{
		for (const auto &[from, to] : {std::pair(&range_.whole, &range_.split),
					       std::pair(&range_.split, &range_.whole)}) {
			const memslot::commit_options park{.park = true};

			guests::make_batch(batch_, *from, *to);
			guests::make_batch(back_, *to, *from);

			time(parked_, [&] { device_.commit(batch_, park); });
			device_.commit(back_);
			time(paused_batch_, [&] { paused([&] { device_.commit(batch_); }); });
			device_.commit(back_);
			time(paused_nothing_, [&] { paused([] {}); });
			time(paused_one_by_one_, [&, from = from, to = to] {
				paused([&] { guests::change_one_by_one(vm_, *from, *to); });
			});
		}
	}

	void finish()
	{
		vm_.stop();
	}

	void print()
	{
		guests::json::object report;

		report.add("vcpus", vm_.vcpus());
		for (samples *each :
		     {&parked_, &paused_nothing_, &paused_batch_, &paused_one_by_one_}) {
			std::ranges::sort(each->ns);
			const double sum = std::accumulate(each->ns.begin(), each->ns.end(), 0.0);
			const std::size_t count = each->ns.size();

			report.add(each->name,
				   guests::json::object()
					   .add("samples", count)
					   .add("mean_ns", sum / static_cast<double>(count), 0)
					   .add("median_ns", each->ns[count / 2], 0)
					   .add("p90_ns", each->ns[count * 9 / 10], 0));
		}
		report.print();
	}

private:
	void paused(const std::function<void()> &work)
	{
		vm_.pause();
		work();
		vm_.resume();
	}

	void time(samples &to, const std::function<void()> &work)
	{
		vm_.wait_for_passes();
		const auto begin = clock::now();
		work();
		to.ns.push_back(
			std::chrono::duration<double, std::nano>(clock::now() - begin).count());
	}

	samples parked_{"parked", {}};
	samples paused_nothing_{"paused_nothing", {}};
	samples paused_batch_{"paused_batch", {}};
	samples paused_one_by_one_{"paused_one_by_one", {}};
	guests::split_range range_;
	guests::vm vm_;
	memslot::device device_ = memslot::device::open();
	memslot::batch batch_;
	memslot::batch back_;
};

constexpr const char *usage = R"(Usage: park_bench VCPUS ROUNDS
Times what it costs to have 1 to 16 vCPUs stand still for a change; prints JSON.
)";

int run(int argc, char **argv)
{
	const auto words = guests::command_line(usage).parse(argc, argv, 2);
	const auto vcpus = guests::number(words[0], 1, guests::max_vcpus);
	const auto rounds = guests::number(words[1], 1, 100000);
	bench bench(static_cast<unsigned int>(vcpus));

	auto told = clock::now();
	for (auto i = rounds; i; i--) {
		bench.round();
		if (clock::now() - told > std::chrono::seconds(1)) {
			std::fprintf(stderr, "%llu rounds to go\n",
				     static_cast<unsigned long long>(i - 1));
			told = clock::now();
		}
	}
	bench.finish();
	bench.print();
	return EXIT_SUCCESS;
}

} // namespace

int main(int argc, char **argv)
{
	return guests::run_program("park_bench", [&] { return run(argc, argv); });
}
