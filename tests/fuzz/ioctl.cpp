// SPDX-License-Identifier: GPL-2.0
/*
 * Calls the ioctls of /dev/memslot with arguments that are right, and nearly right, while
 * everything around them changes.  Whether the kernel stood it, its log says.
 */
#include "chance.hpp"
#include "command_line.hpp"
#include "round.hpp"

#include <array>
#include <cerrno>
#include <chrono>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <csignal>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <linux/kvm.h>
#include <optional>
#include <string>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <system_error>
#include <thread>
#include <unistd.h>

namespace {

using namespace std::chrono_literals;
using clock = std::chrono::steady_clock;

constexpr const char *usage = R"(Usage: ioctl [OPTION]...
Makes random calls of /dev/memslot's ioctls, and prints what came of them:
a line per ioctl with the number of calls, and how many ended with which errno.

  --calls N     end after so many calls (default: 100000)
  --seconds N   end after that time, if that is sooner
  --seed N      of the random numbers (default: another one each time)
  --round N     only this round of all that a seed makes, with its number of calls
  --help        this text

Each round is a process with its own VMs.  The seed determines what each thread
of it does, but not when.
)";

struct options {
	std::uint64_t calls = 100'000;
	std::optional<std::uint64_t> seconds;
	std::uint64_t seed = std::chrono::system_clock::now().time_since_epoch().count();
	std::optional<std::uint64_t> round;
};

constexpr std::uint64_t calls_per_round = 3000;
constexpr auto patience = 600s; /* with one round */

options parse(int argc, char **argv)
{
	options chosen;

	guests::command_line(usage)
		.number("calls", chosen.calls)
		.number("seconds", chosen.seconds)
		.number("seed", chosen.seed)
		.number("round", chosen.round)
		.parse(argc, argv);
	return chosen;
}

/*
 * The first and the last vCPU without a local APIC make KVM patch the kernel's text, which QEMU's
 * emulation does not always notice (see tests/kselftest/harness.h): so one is always there.
 */
void hold_a_vm()
{
	const int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	const int vm = kvm < 0 ? -1 : ioctl(kvm, KVM_CREATE_VM, 0);

	if (vm < 0 || ioctl(vm, KVM_CREATE_VCPU, 0) < 0)
		throw std::system_error(errno, std::generic_category(), "a VM");
}

void print_file(const std::filesystem::path &path)
{
	std::ifstream file(path);

	std::cerr << path.string() << ":\n" << file.rdbuf() << "\n";
}

/* Where does a process hang? */
void print_stacks(pid_t process)
{
	const std::filesystem::path tasks = "/proc/" + std::to_string(process) + "/task";
	std::error_code none;

	for (const auto &task : std::filesystem::directory_iterator(tasks, none)) {
		print_file(task.path() / "syscall");
		print_file(task.path() / "stack");
	}
}

/* False: not in that time. */
bool wait_for(pid_t process, std::chrono::milliseconds time, int &status)
{
	const auto end = clock::now() + time;

	while (waitpid(process, &status, WNOHANG) == 0) {
		if (clock::now() >= end)
			return false;
		std::this_thread::sleep_for(5ms);
	}
	return true;
}

/* Runs one round in a process of its own; false if that went wrong. */
bool supervise(std::uint64_t seed, std::uint64_t round, fuzz::tally &tally)
{
	fuzz::chance chance(seed ^ fuzz::chance(round).bits());
	const std::uint64_t ready = tally.ready;
	const bool kills = chance.percent(25);
	const std::chrono::milliseconds until_killed(chance.below(2000));
	int status = 0;

	const pid_t process = fork();
	if (process < 0)
		throw std::system_error(errno, std::generic_category(), "fork");
	if (!process) {
		try {
			fuzz::run_round(chance.bits(), calls_per_round, tally);
		} catch (const std::exception &error) {
			std::fprintf(stderr, "ioctl: %s\n", error.what());
		}
		_exit(1);
	}

	bool ended = false;
	if (kills) {
		while (tally.ready == ready && !(ended = wait_for(process, 5ms, status)))
			;
		if (!ended && !(ended = wait_for(process, until_killed, status)))
			kill(process, SIGKILL);
	}
	if (!ended && !wait_for(process, patience, status)) {
		std::fprintf(stderr, "ioctl: round %" PRIu64 " hangs\n", round);
		print_stacks(process);
		kill(process, SIGKILL);
		if (!wait_for(process, 60s, status))
			std::fprintf(stderr, "ioctl: and it cannot be killed\n");
		return false;
	}
	if (const char *complaint = tally.complaint()) {
		std::fprintf(stderr, "ioctl: round %" PRIu64 ": %s\n", round, complaint);
		return false;
	}
	if (WIFEXITED(status) ? WEXITSTATUS(status) : !kills || WTERMSIG(status) != SIGKILL) {
		std::fprintf(stderr, "ioctl: round %" PRIu64 " ended with wait status 0x%x\n",
			     round, static_cast<unsigned int>(status));
		return false;
	}
	return true;
}

bool fuzz_all(const options &options, fuzz::tally &tally)
{
	const auto start = clock::now();
	auto reported = start;
	std::uint64_t round = options.round.value_or(0);
	bool ok = true;

	std::printf("seed %" PRIu64 "\n", options.seed);
	hold_a_vm();
	while (ok) {
		ok = supervise(options.seed, round++, tally);
		const auto now = clock::now();
		if (options.round || tally.device_calls() >= options.calls ||
		    (options.seconds && now - start >= std::chrono::seconds(*options.seconds)))
			break;
		if (now - reported >= 60s) {
			reported = now;
			std::printf("%" PRIu64 " calls\n", tally.device_calls());
			std::fflush(stdout);
		}
	}
	const std::chrono::duration<double> took = clock::now() - start;
	std::printf("%" PRIu64 " calls in %" PRIu64 " rounds and %.1f seconds\n",
		    tally.device_calls(), round - options.round.value_or(0), took.count());
	tally.print();
	return ok;
}

} // namespace

int main(int argc, char **argv)
{
	return guests::run_program("ioctl", [&] {
		return fuzz_all(parse(argc, argv), fuzz::tally::make()) ? EXIT_SUCCESS
									: EXIT_FAILURE;
	});
}
