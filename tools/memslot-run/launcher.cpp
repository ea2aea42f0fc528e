// SPDX-License-Identifier: GPL-2.0
/*
 * memslot-run: starts a command with libmemslot-run.so preloaded, waits for it, and reports.
 */
#include "../../userlib/memslot.hpp"
#include "statistics.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <elf.h>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <functional>
#include <getopt.h>
#include <iostream>
#include <optional>
#include <string>
#include <string_view>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>
#include <vector>

using namespace memslot_run;

namespace {

namespace fs = std::filesystem;

/* As env(1) and its kind have it */
constexpr int exit_failed = 125;
constexpr int exit_cannot_run = 126;
constexpr int exit_not_found = 127;

constexpr const char *library_name = "libmemslot-run.so";

[[noreturn]] void die(int status, const std::string &why)
{
	std::cerr << "memslot-run: " << why << '\n';
	std::exit(status);
}

[[noreturn]] void help()
{
	std::cout << "Usage: memslot-run [--stats[=FILE]] [--] COMMAND [ARG]...\n"
		     "Runs COMMAND, a KVM user, with its memory calls batched by /dev/memslot.\n"
		     "\n"
		     "  --stats        at the end, one line about the batches on stderr\n"
		     "  --stats=FILE   the same in FILE, as JSON\n"
		     "  -h, --help     this text\n"
		     "  --version      which version this is\n"
		     "\n"
		     "See memslot-run(1).\n";
	std::exit(EXIT_SUCCESS);
}

struct options {
	bool stats = false;
	/** nothing: stderr */
	std::optional<std::string> stats_file;
	char **command = nullptr;
};

options parse(int argc, char **argv)
{
	constexpr std::array<option, 4> known{{
		{"stats", optional_argument, nullptr, 's'},
		{"help", no_argument, nullptr, 'h'},
		{"version", no_argument, nullptr, 'V'},
		{nullptr, 0, nullptr, 0},
	}};
	options wanted;

	/* getopt_long() complains itself, and names the program so */
	argv[0] = program_invocation_short_name;
	/* The first that is no option is the command: what follows is the command's */
	for (int c; (c = getopt_long(argc, argv, "+h", known.data(), nullptr)) != -1;) {
		switch (c) {
		case 's':
			wanted.stats = true;
			wanted.stats_file.reset();
			if (optarg)
				wanted.stats_file = optarg;
			break;
		case 'h':
			help();
		case 'V':
			std::cout << "memslot-run " MEMSLOT_VERSION "\n";
			std::exit(EXIT_SUCCESS);
		default:
			die(exit_failed, "see memslot-run --help");
		}
	}
	if (optind == argc)
		die(exit_failed, "which command shall be run? See memslot-run --help");
	wanted.command = argv + optind;
	return wanted;
}

/** The device must be there and able before anything is started. */
void check_device()
{
	auto device = memslot::device::try_open();

	if (!device)
		die(exit_failed,
		    "/dev/memslot: " + std::string(std::strerror(device.error().errnum)) + " (" +
			    device.error().message() + ")");

	auto info = device->try_info();

	if (!info)
		die(exit_failed, "/dev/memslot is not this module's, or too old: load the one "
				 "that memslot-run was built with");
	if (!(info->features & MEMSLOT_FEATURE_TEST_ONLY))
		die(exit_failed, "the module is too old: it cannot test a batch; load the one "
				 "that memslot-run was built with");
}

/** The command's file, found as execvp() does. */
fs::path find_command(const std::string &name)
{
	if (name.find('/') != std::string::npos) {
		if (access(name.c_str(), F_OK))
			die(exit_not_found, name + ": " + std::strerror(errno));
		return name;
	}

	const char *path = std::getenv("PATH");
	std::string_view left = path ? path : "/bin:/usr/bin";

	for (;;) {
		const auto colon = left.find(':');
		const fs::path directory = left.substr(0, colon);
		fs::path candidate = (directory.empty() ? "." : directory) / name;

		if (access(candidate.c_str(), X_OK) == 0 && fs::is_regular_file(candidate))
			return candidate;
		if (colon == std::string_view::npos)
			die(exit_not_found, name + ": command not found");
		left.remove_prefix(colon + 1);
	}
}

/** Refuses what the dynamic linker would not preload anything into. */
void check_command(const fs::path &file)
{
	const auto refuse = [&](const std::string &why) {
		die(exit_cannot_run, file.string() + ": " + why);
	};
	struct stat status {};

	if (stat(file.c_str(), &status))
		refuse(std::strerror(errno));
	if (!S_ISREG(status.st_mode) || access(file.c_str(), X_OK))
		refuse("not an executable file");

	/* The kernel then asks the dynamic linker to ignore LD_PRELOAD */
	if ((status.st_mode & S_ISUID && status.st_uid != getuid()) ||
	    (status.st_mode & S_ISGID && status.st_gid != getgid()))
		refuse("set-user-ID or set-group-ID: nothing can be preloaded into it; run it as "
		       "its owner");
	if (getuid() && getxattr(file.c_str(), "security.capability", nullptr, 0) > 0)
		refuse("has file capabilities: nothing can be preloaded into it; run it as root");

	std::ifstream in(file, std::ios::binary);
	Elf64_Ehdr header{};

	if (!in)
		refuse("cannot be read, so nobody can tell whether it is dynamically linked");
	in.read(reinterpret_cast<char *>(&header), sizeof(header));
	/* A script: its interpreter inherits the environment, and so does what it starts */
	if (std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0)
		return;
	if (header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_machine != EM_X86_64)
		refuse("not an x86-64 program");

	for (unsigned i = 0; i < header.e_phnum; i++) {
		Elf64_Phdr segment{};

		in.seekg(static_cast<std::streamoff>(header.e_phoff +
						     Elf64_Off{i} * header.e_phentsize));
		in.read(reinterpret_cast<char *>(&segment), sizeof(segment));
		if (!in)
			refuse("truncated ELF file");
		if (segment.p_type != PT_INTERP)
			continue;

		std::string linker(std::min<std::size_t>(segment.p_filesz, PATH_MAX), '\0');

		in.seekg(static_cast<std::streamoff>(segment.p_offset));
		in.read(linker.data(), static_cast<std::streamsize>(linker.size()));
		if (linker.find("ld-linux") == std::string::npos)
			refuse("linked with another C library than glibc (" +
			       linker.substr(0, linker.find('\0')) + ")");
		return;
	}
	refuse("statically linked: nothing can be preloaded into it; use a dynamically linked "
	       "build");
}

/** Beside this program, as built, or in lib/ beside its bin/, as installed. */
std::string find_library()
{
	std::error_code none;
	const fs::path here = fs::read_symlink("/proc/self/exe", none).parent_path();
	const fs::path installed = here.parent_path() / "lib/memslot";
	const std::array candidates{here / library_name, installed / library_name};

	for (const fs::path &candidate : candidates) {
		if (access(candidate.c_str(), R_OK))
			continue;
		/* These separate the names in LD_PRELOAD, and cannot be quoted */
		if (candidate.string().find_first_of(" :") != std::string::npos)
			die(exit_failed, candidate.string() +
						 ": LD_PRELOAD cannot name a path with a space "
						 "or a colon; move memslot-run");
		return candidate;
	}
	die(exit_failed, std::string(library_name) + " is neither in " + here.string() +
				 " nor in " + installed.string());
}

/** The sanitizers' libraries that the command is linked with and that insist on being first. */
std::vector<std::string> sanitizers(const fs::path &file)
{
	std::error_code none;
	const auto size = fs::file_size(file, none);
	std::string content(none ? 0 : size, '\0');
	std::vector<std::string> found;

	/* A VMM has tens of megabytes, and half of what QEMU has are zeros: to read it byte by
	 * byte, or to look behind each zero, would be most of a guest's boot where processors are
	 * emulated.
	 */
	std::ifstream(file, std::ios::binary)
		.read(content.data(), static_cast<std::streamsize>(content.size()));
	for (const char *name : {"libasan.so.", "libtsan.so.", "libhwasan.so.", "liblsan.so."}) {
		/* Where the dynamic linker's strings are, each ends with a 0 and follows one */
		const std::string wanted = std::string(1, '\0') + name;
		const auto at = std::search(
			content.begin(), content.end(),
			std::boyer_moore_horspool_searcher(wanted.begin(), wanted.end()));

		if (at != content.end())
			found.emplace_back(&*at + 1);
	}
	return found;
}

/**
 * What LD_PRELOAD has before our library, with a colon behind each name.  Other libraries that
 * replace functions (an allocator, a sanitizer) reach us by calling the next one, and some of them
 * refuse to come second.
 */
std::string what_comes_first(const fs::path &file)
{
	const char *others = std::getenv("LD_PRELOAD");
	std::string list;

	for (const std::string &name : sanitizers(file))
		list += name + ':';
	if (others && *others)
		list += std::string(others) + ':';
	return list;
}

/** The counters, and a path by which the command's processes find them. */
class shared_statistics {
public:
	shared_statistics() : fd_(memfd_create("memslot-run", MFD_CLOEXEC))
	{
		if (fd_ < 0 || ftruncate(fd_, sizeof(statistics)))
			die(exit_failed,
			    std::string("no memory for statistics: ") + std::strerror(errno));

		void *memory = mmap(nullptr, sizeof(statistics), PROT_READ | PROT_WRITE, MAP_SHARED,
				    fd_, 0);

		if (memory == MAP_FAILED)
			die(exit_failed,
			    std::string("no memory for statistics: ") + std::strerror(errno));
		counters_ = static_cast<statistics *>(memory);
	}

	[[nodiscard]] std::string path() const
	{
		return "/proc/" + std::to_string(getpid()) + "/fd/" + std::to_string(fd_);
	}

	[[nodiscard]] const statistics &operator*() const
	{
		return *counters_;
	}

private:
	int fd_;
	statistics *counters_;
};

double milliseconds(const counter &nanoseconds)
{
	return static_cast<double>(nanoseconds.load()) / 1e6;
}

/** A file that cannot be written is to be known before the command runs. */
void check_stats_file(const std::string &name)
{
	if (!std::ofstream(name))
		die(exit_failed, "--stats=" + name + ": " + std::strerror(errno));
}

/** For people. */
void print_line(std::ostream &to, const statistics &from)
{
	std::array<char, 512> line{};

	std::snprintf(line.data(), line.size(),
		      "memslot-run: %llu changes in %llu commits (%llu entries; %llu fenced, %llu "
		      "parked, %llu failed), %llu calls passed on; %.3f ms in commits (longest "
		      "%.3f), %.3f ms in checks\n",
		      static_cast<unsigned long long>(from.changes),
		      static_cast<unsigned long long>(from.commits),
		      static_cast<unsigned long long>(from.entries),
		      static_cast<unsigned long long>(from.fenced),
		      static_cast<unsigned long long>(from.parked),
		      static_cast<unsigned long long>(from.failed),
		      static_cast<unsigned long long>(from.passed),
		      milliseconds(from.ns_in_commits), milliseconds(from.ns_longest_commit),
		      milliseconds(from.ns_in_checks));
	to << line.data();
}

/** For programs. */
void print_json(std::ostream &to, const statistics &from)
{
	to << "{\n  \"processes\": " << from.processes << ",\n  \"vms\": " << from.vms
	   << ",\n  \"vms_passed\": " << from.vms_passed << ",\n  \"changes\": " << from.changes
	   << ",\n  \"passed\": " << from.passed << ",\n  \"commits\": " << from.commits
	   << ",\n  \"withdrawals\": " << from.withdrawals << ",\n  \"at_once\": " << from.at_once
	   << ",\n  \"retries\": " << from.retries << ",\n  \"entries\": " << from.entries
	   << ",\n  \"fenced\": " << from.fenced << ",\n  \"parked\": " << from.parked
	   << ",\n  \"failed\": " << from.failed << ",\n  \"lost\": " << from.lost
	   << ",\n  \"grace_periods\": " << from.grace_periods
	   << ",\n  \"ms_in_commits\": " << milliseconds(from.ns_in_commits)
	   << ",\n  \"ms_longest_commit\": " << milliseconds(from.ns_longest_commit)
	   << ",\n  \"ms_in_checks\": " << milliseconds(from.ns_in_checks)
	   << ",\n  \"commits_at\": {";
	for (std::size_t i = 0; i < moment_names.size(); i++)
		to << (i ? ", " : "") << '"' << moment_names[i] << "\": " << from.moments[i];
	to << "}\n}\n";
}

void report(const options &wanted, const statistics &counters)
{
	/* A measurement that measured nothing must not look like one */
	if (!counters.processes)
		std::cerr << "memslot-run: the library was never loaded; did the command clear its "
			     "environment?\n";
	else if (wanted.stats && !counters.vms && !counters.vms_passed)
		std::cerr << "memslot-run: no VM was created by a dynamically linked program\n";

	if (!wanted.stats)
		return;
	if (!wanted.stats_file) {
		print_line(std::cerr, counters);
		return;
	}

	std::ofstream file(*wanted.stats_file);

	print_json(file, counters);
	if (!file.flush())
		std::cerr << "memslot-run: " << *wanted.stats_file << ": " << std::strerror(errno)
			  << '\n';
}

/** The command, in the child; does not return. */
[[noreturn]] void become(const fs::path &file, char **command, const sigset_t &mask,
			 const struct sigaction &on_child, pid_t parent)
{
	/* Who kills the launcher for good means the command */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(exit_failed);
	/* As it would have it without us: ignored, perhaps */
	sigaction(SIGCHLD, &on_child, nullptr);
	sigprocmask(SIG_SETMASK, &mask, nullptr);
	execvp(file.c_str(), command);
	die(exit_cannot_run, file.string() + ": " + std::strerror(errno));
}

/** True for what the terminal sends to the child as well, if the kernel sends it to us. */
bool comes_from_terminal(const siginfo_t &info)
{
	return info.si_code == SI_KERNEL && info.si_signo != SIGTERM;
}

/** Waits for the child and hands it the signals that we get meanwhile; returns its wait status. */
int attend(pid_t child, const sigset_t &signals)
{
	for (;;) {
		siginfo_t info{};
		const int signal = sigwaitinfo(&signals, &info);

		if (signal == SIGCHLD) {
			int status = 0;

			if (waitpid(child, &status, WNOHANG) == child)
				return status;
		} else if (signal > 0 && !comes_from_terminal(info)) {
			kill(child, signal);
		}
	}
}

/** Ends as the child did. */
[[noreturn]] void end_as(int status)
{
	if (WIFEXITED(status))
		std::exit(WEXITSTATUS(status));

	const rlimit no_core{};
	const int signal = WTERMSIG(status);
	sigset_t just_it;

	std::cout.flush();
	setrlimit(RLIMIT_CORE, &no_core);
	std::signal(signal, SIG_DFL);
	raise(signal);
	sigemptyset(&just_it);
	sigaddset(&just_it, signal);
	sigprocmask(SIG_UNBLOCK, &just_it, nullptr);
	std::exit(128 + signal);
}

} // namespace

int main(int argc, char **argv)
{
	const options wanted = parse(argc, argv);
	const fs::path file = find_command(wanted.command[0]);

	check_command(file);
	check_device();
	if (wanted.stats_file)
		check_stats_file(*wanted.stats_file);

	const shared_statistics counters;

	setenv("LD_PRELOAD", (what_comes_first(file) + find_library()).c_str(), 1);
	setenv(statistics_variable, counters.path().c_str(), 1);

	sigset_t signals;
	sigset_t before;
	struct sigaction on_child {};
	struct sigaction by_default {};

	/* A parent may have it ignored, and then the kernel tells nobody that the command has ended
	 */
	by_default.sa_handler = SIG_DFL;
	sigaction(SIGCHLD, &by_default, &on_child);

	sigemptyset(&signals);
	for (const int one :
	     {SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGCONT, SIGWINCH})
		sigaddset(&signals, one);
	sigprocmask(SIG_BLOCK, &signals, &before);

	const pid_t self = getpid();
	const pid_t child = fork();

	if (child < 0)
		die(exit_failed, std::string("fork: ") + std::strerror(errno));
	if (child == 0)
		become(file, wanted.command, before, on_child, self);

	const int status = attend(child, signals);

	report(wanted, *counters);
	end_as(status);
}
