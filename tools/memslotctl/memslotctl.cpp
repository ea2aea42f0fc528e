// SPDX-License-Identifier: GPL-2.0
/* memslotctl: what /dev/memslot can do, the memory layout of running VMs, commits as they happen.
 */
#include "command.hpp"

#include <array>
#include <cerrno>
#include <clocale>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <getopt.h>
#include <string_view>
#include <sys/stat.h>

namespace memslotctl {

problem to_problem(const memslot::failure &why)
{
	enum status how = failed;

	if (why.op == memslot::operation::open) {
		if (why.errnum == ENOENT || why.errnum == ENXIO || why.errnum == ENODEV)
			how = not_there;
		else if (why.errnum == EACCES || why.errnum == EPERM)
			how = no_rights;
	} else if (why.errnum == ENOTTY || why.errnum == EOPNOTSUPP) {
		return {not_there, "the module is older than memslotctl and cannot " +
					   std::string(memslot::words(why.op)) +
					   "; load the one that memslotctl was built with"};
	}
	return {how, std::string(memslot::default_path) + ": " + std::strerror(why.errnum) + " (" +
			     why.message() + ")"};
}

bool flush_output()
{
	if (std::fflush(stdout) == 0)
		return true;
	if (errno != EPIPE)
		throw problem(failed, std::string("standard output: ") + std::strerror(errno));
	return false;
}

bool is_standard_output(const std::string &file)
{
	struct stat named {
	}, output{};

	if (file == "-")
		return true;
	/* By its other names, too: /dev/stdout, or the file that the shell redirected it to */
	return !file.empty() && stat(file.c_str(), &named) == 0 &&
	       fstat(STDOUT_FILENO, &output) == 0 && !S_ISCHR(output.st_mode) &&
	       named.st_dev == output.st_dev && named.st_ino == output.st_ino;
}

memslot::device open_device()
{
	auto device = memslot::device::try_open();

	if (!device)
		throw to_problem(device.error());
	return std::move(device).value();
}

namespace {

constexpr const char *usage = R"(Usage: memslotctl info
       memslotctl list [PID] [OPTION]...
       memslotctl watch [PID]
Looks at /dev/memslot and at the memory slots of KVM virtual machines.

  info                  what the module can do
  list                  the VMs of all processes, one line for each
  list PID              the memory layout of the VMs of a running process
    --vm N              only the Nth of the process, counted from 0
    --address-space N   only this address space: 0, or 1 (SMM)
    --json              for programs
    --svg FILE          draw a picture, too; - is standard output
  watch [PID]           commits as they happen, of one process or of all

  -h, --help            this text
      --version         which version this is

See memslotctl(1).
)";

[[noreturn]] void complain(const std::string &what)
{
	throw problem(wrong_usage, what + "; see memslotctl --help");
}

unsigned int number(const char *text, const char *what, unsigned int least)
{
	char *end = nullptr;

	errno = 0;
	const unsigned long value = std::strtoul(text, &end, 10);
	if (errno || end == text || *end || *text < '0' || *text > '9' || value < least ||
	    value > INT32_MAX)
		complain(std::string(what) + ": " + text + " is not a number from " +
			 std::to_string(least) + " on");
	return static_cast<unsigned int>(value);
}

enum status run(int argc, char **argv)
{
	static constexpr std::array<option, 7> known{{
		{"vm", required_argument, nullptr, 'v'},
		{"address-space", required_argument, nullptr, 'a'},
		{"json", no_argument, nullptr, 'j'},
		{"svg", required_argument, nullptr, 's'},
		{"help", no_argument, nullptr, 'h'},
		{"version", no_argument, nullptr, 'V'},
		{nullptr, 0, nullptr, 0},
	}};
	list_options wanted;
	std::string list_only;

	/* getopt_long() complains itself, and names the program so */
	argv[0] = program_invocation_short_name;
	for (int c; (c = getopt_long(argc, argv, "h", known.data(), nullptr)) != -1;) {
		switch (c) {
		case 'v':
			wanted.vm = number(optarg, "--vm", 0);
			list_only = "--vm";
			break;
		case 'a':
			wanted.address_space = number(optarg, "--address-space", 0);
			list_only = "--address-space";
			break;
		case 'j':
			wanted.json = true;
			list_only = "--json";
			break;
		case 's':
			wanted.svg_file = optarg;
			if (wanted.svg_file.empty())
				complain("--svg needs the name of a file");
			list_only = "--svg";
			break;
		case 'h':
			std::fputs(usage, stdout);
			return done;
		case 'V':
			std::fputs("memslotctl " MEMSLOT_VERSION "\n", stdout);
			return done;
		default:
			throw problem(wrong_usage, "see memslotctl --help");
		}
	}

	const int words = argc - optind;
	const std::string_view command = words ? argv[optind] : "";

	if (command != "list" && !list_only.empty())
		complain(list_only + " is for list");
	if (command == "info" && words == 1) {
		info();
	} else if (command == "list" && words <= 2) {
		if (words == 2)
			wanted.pid = static_cast<pid_t>(number(argv[optind + 1], "PID", 1));
		else if (wanted.vm)
			complain("--vm counts the VMs of one process; give its PID, too");
		if (wanted.json && is_standard_output(wanted.svg_file))
			complain("--json and --svg cannot both go to standard output; give --svg "
				 "another file");
		return list(wanted);
	} else if (command == "watch" && words <= 2) {
		watch(words == 2 ? static_cast<pid_t>(number(argv[optind + 1], "PID", 1)) : 0);
	} else if (command.empty()) {
		complain("what to do? info, list or watch");
	} else if (command == "info" || command == "list" || command == "watch") {
		complain("too many words");
	} else {
		complain("there is no command " + std::string(command));
	}
	return done;
}

} // namespace

} // namespace memslotctl

int main(int argc, char **argv)
try {
	std::setlocale(LC_CTYPE, "");

	const auto status = memslotctl::run(argc, argv);

	static_cast<void>(memslotctl::flush_output());
	return status;
} catch (const memslotctl::problem &why) {
	std::fflush(stdout);
	std::fprintf(stderr, "memslotctl: %s\n", why.what());
	return why.status();
} catch (const std::exception &why) {
	std::fprintf(stderr, "memslotctl: %s\n", why.what());
	return memslotctl::failed;
}
