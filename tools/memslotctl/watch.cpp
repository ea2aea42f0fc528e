// SPDX-License-Identifier: GPL-2.0
#include "command.hpp"
#include "process.hpp"
#include "trace.hpp"

#include <array>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <fcntl.h>
#include <filesystem>
#include <initializer_list>
#include <poll.h>
#include <set>
#include <string>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <vector>

namespace memslotctl {

namespace {

namespace fs = std::filesystem;

constexpr const char *instances = "/sys/kernel/tracing/instances";
constexpr std::string_view instance_prefix = "memslotctl-";

/* In case that poll() is not woken by few events: some kernels wait for a buffer to fill */
constexpr int poll_ms = 200;

/* That are put in order together, at most */
constexpr std::size_t most_lines = 4096;

/* A trace instance of our own: nobody else's tracing sees or stops it. */
class instance {
public:
	instance()
	    : path_(fs::path(instances) / (std::string(instance_prefix) + std::to_string(getpid())))
	{
		remove_abandoned();
		if (mkdir(path_.c_str(), 0700))
			refuse(errno);
		if (!fs::exists(path_ / "events/memslot")) {
			remove();
			throw problem(not_there,
				      "the module is not loaded, or traces nothing: load it "
				      "first (modprobe memslot)");
		}
		try {
			/* Comparable between CPUs, and with the clock that has a date */
			set("trace_clock", "mono");
			set("buffer_size_kb", "256");
			set("buffer_percent", "0");
			set_format();
			for (const char *event : {"memslot_commit_start", "memslot_commit_end"})
				set(std::string("events/memslot/") + event + "/enable", "1");
			pipe_ = file(open((path_ / "trace_pipe").c_str(),
					  O_RDONLY | O_NONBLOCK | O_CLOEXEC));
			if (pipe_.fd() < 0)
				refuse(errno);
		} catch (...) {
			remove();
			throw;
		}
	}

	instance(const instance &) = delete;
	instance &operator=(const instance &) = delete;

	~instance()
	{
		remove();
	}

	[[nodiscard]] int fd() const noexcept
	{
		return pipe_.fd();
	}

private:
	[[noreturn]] static void refuse(int err)
	{
		const std::string where = std::string(instances) + ": " + std::strerror(err);

		if (err == EACCES || err == EPERM)
			throw problem(no_rights, where + ": only root can trace");
		if (err == ENOENT || err == ENOTDIR)
			throw problem(not_there,
				      where + ": mount it first (mount -t tracefs tracefs "
					      "/sys/kernel/tracing), if this kernel has it");
		throw problem(failed, where);
	}

	void set(const fs::path &what, std::string_view value) const
	{
		const file knob(open((path_ / what).c_str(), O_WRONLY | O_TRUNC | O_CLOEXEC));

		if (knob.fd() < 0 || write(knob.fd(), value.data(), value.size()) < 0)
			throw problem(failed,
				      (path_ / what).string() + ": " + std::strerror(errno));
	}

	/*
	 * A new instance has the options of everybody's trace: those by which its lines would be
	 * others than trace_reader reads, or more.  Not record-tgid: clearing it ends the recording
	 * for all instances.
	 */
	void set_format() const
	{
		set("options/context-info", "1");
		for (const char *option : {"bin", "fields", "hex", "latency-format", "raw",
					   "stacktrace", "userstacktrace"}) {
			const std::string knob = std::string("options/") + option;

			/* Not every kernel has each */
			if (fs::exists(path_ / knob))
				set(knob, "0");
		}
	}

	void remove()
	{
		pipe_ = file();
		rmdir(path_.c_str());
	}

	/* Those of memslotctls that were killed; one in use cannot be removed. */
	static void remove_abandoned()
	{
		std::error_code none;

		for (const auto &entry : fs::directory_iterator(instances, none)) {
			const std::string name = entry.path().filename();
			pid_t pid = 0;

			if (!name.starts_with(instance_prefix))
				continue;
			std::from_chars(name.data() + instance_prefix.size(),
					name.data() + name.size(), pid);
			if (pid > 0 && kill(pid, 0) && errno == ESRCH)
				rmdir(entry.path().c_str());
		}
	}

	fs::path path_;
	file pipe_;
};

/* HH:MM:SS.microseconds, here */
std::string wall_clock(std::chrono::microseconds monotonic)
{
	using namespace std::chrono;

	const auto since = steady_clock::now().time_since_epoch() - monotonic;
	const auto then = time_point_cast<microseconds>(
		system_clock::now() - duration_cast<system_clock::duration>(since));
	const std::time_t whole = system_clock::to_time_t(floor<seconds>(then));
	std::tm parts{};
	std::array<char, 48> text{};

	localtime_r(&whole, &parts);
	std::snprintf(text.data(), text.size(), "%02d:%02d:%02d.%06d", parts.tm_hour, parts.tm_min,
		      parts.tm_sec,
		      static_cast<int>((then.time_since_epoch() % seconds(1)).count()));
	return text.data();
}

class watcher {
public:
	explicit watcher(pid_t pid) : pid_(pid)
	{
		if (pid)
			look_for_threads();
	}

	/* Prints what there is; false if nobody reads it any more.  Throws a problem. */
	bool drain(int fd)
	{
		/* NOLINTNEXTLINE(cppcoreguidelines-pro-type-member-init): read() fills it */
		std::array<char, 65536> buffer;

		ssize_t got = 0;

		while ((got = ::read(fd, buffer.data(), buffer.size())) > 0) {
			rest_.append(buffer.data(), static_cast<std::size_t>(got));
			for (std::size_t end; (end = rest_.find('\n')) != rest_.npos;) {
				lines_.push_back(rest_.substr(0, end));
				rest_.erase(0, end + 1);
			}
			/* Where events never cease, somebody still wants to see them */
			if (lines_.size() >= most_lines)
				take_lines();
		}
		take_lines();
		if (got < 0 && errno != EAGAIN && errno != EINTR)
			throw problem(failed, std::string("trace_pipe: ") + std::strerror(errno));
		/* Only what is no text ends without the end of a line */
		if (got < 0 && errno == EAGAIN && !rest_.empty()) {
			take(rest_);
			rest_.clear();
		}
		return flush_output();
	}

	void sum_up() const
	{
		std::fprintf(stderr, "memslotctl: %llu commit%s", commits_,
			     commits_ == 1 ? "" : "s");
		if (reader_.lost())
			std::fprintf(stderr, "; %llu events lost, they came too fast",
				     static_cast<unsigned long long>(reader_.lost()));
		std::fprintf(stderr, "\n");
	}

private:
	/* The threads of the process; one that has ended is still the creator of its VM. */
	void look_for_threads()
	{
		try {
			for (const pid_t thread : threads_of(pid_))
				threads_.insert(thread);
		} catch (const problem &why) {
			/* That it ended the pidfd tells */
			if (why.status() != no_process)
				throw;
		}
	}

	/* The one who created a VM is told as a thread. */
	bool belongs(pid_t thread)
	{
		if (!threads_.contains(thread))
			look_for_threads();
		return threads_.contains(thread);
	}

	void take_lines()
	{
		put_in_order(lines_);
		for (const std::string &line : lines_)
			take(line);
		lines_.clear();
	}

	void take(std::string_view line)
	{
		const auto commit = reader_.read(line);

		if (!commit || (pid_ && !belongs(commit->vm)))
			return;
		commits_++;
		std::printf("%s  vm %d  %s\n", wall_clock(commit->end).c_str(), commit->vm,
			    describe(*commit).c_str());
	}

	pid_t pid_;
	std::set<pid_t> threads_;
	trace_reader reader_;
	std::string rest_;
	std::vector<std::string> lines_;
	unsigned long long commits_ = 0;
};

file block_signals()
{
	sigset_t ends;

	sigemptyset(&ends);
	for (const int one : {SIGINT, SIGTERM, SIGHUP})
		sigaddset(&ends, one);
	sigprocmask(SIG_BLOCK, &ends, nullptr);
	std::signal(SIGPIPE, SIG_IGN);
	return file(signalfd(-1, &ends, SFD_CLOEXEC));
}

} // namespace

void watch(pid_t pid)
{
	const file process = pid ? open_process(pid) : file();
	/* Before there is something to clean up */
	const file signals = block_signals();
	const instance trace;
	watcher events(pid);
	std::array<pollfd, 3> wait{{
		{.fd = trace.fd(), .events = POLLIN, .revents = 0},
		{.fd = signals.fd(), .events = POLLIN, .revents = 0},
		/* A negative one is not looked at */
		{.fd = process.fd(), .events = POLLIN, .revents = 0},
	}};
	bool end = false;

	std::fprintf(stderr, "memslotctl: watching, until interrupted%s\n",
		     pid ? " or the process ends" : "");
	while (!end) {
		if (poll(wait.data(), wait.size(), poll_ms) < 0 && errno != EINTR)
			throw problem(failed, std::string("poll: ") + std::strerror(errno));
		/* Looked at before the last look at the events, or some could be missed */
		end = wait[1].revents || wait[2].revents;
		if (!events.drain(trace.fd()))
			break;
	}
	events.sum_up();
}

} // namespace memslotctl
