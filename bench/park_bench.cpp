// SPDX-License-Identifier: GPL-2.0
/*
 * What it costs to have all vCPUs stand still for a change: parked by the module, or paused by the
 * VMM with a flag and a signal per vCPU, as QEMU does.  In turn, in one VM, while vCPUs run.
 */
#include "command_line.hpp"
#include "json.hpp"
#include "scenario.hpp"
#include "stamped_memory.hpp"

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <numeric>

namespace {

using clock = std::chrono::steady_clock;

constexpr std::uint64_t range_pages = 64;
constexpr std::uint64_t split_at = range_pages / 4;

struct samples {
	const char *name;
	std::vector<double> ns;
};

class bench {
public:
	explicit bench(unsigned int vcpus) : vm_(vcpus)
	{
		std::vector<guests::location> visited;

		guests::append(visited, 0, range_pages, guests::fixed);
		vm_.set_locations(visited);
		vm_.set_region(whole_[0]);
		device_.bind(vm_.fd());
		vm_.start();
	}

	/* Each way there and back, from the same state: all vCPUs in the guest, all memory mapped.
	 */
	void round()
	{
		for (const auto &[from, to] :
		     {std::pair(&whole_, &split_), std::pair(&split_, &whole_)}) {
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
	guests::stamped_memory memory_{range_pages};
	guests::layout whole_{memory_.at(0, 0, range_pages, 0)};
	guests::layout split_{
		memory_.at(0, 0, split_at, 0),
		memory_.at(1, split_at, range_pages - 2 * split_at, split_at),
		memory_.at(2, range_pages - split_at, split_at, range_pages - split_at),
	};
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
