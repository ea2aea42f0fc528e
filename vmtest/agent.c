// SPDX-License-Identifier: GPL-2.0
/*
 * Process 1 of the test VM: runs commands that runner.py sends over a
 * virtio-serial port, or over the serial port that is its argument, one at a
 * time, and sends back what they print, what the kernel logs meanwhile, and how
 * they end.
 *
 * Both directions carry frames: a struct frame, then @length bytes.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/kvm.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <stdnoreturn.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/reboot.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define PORT_NAME "memslot.agent"
#define ARRAY_SIZE(array) (sizeof(array) / sizeof((array)[0]))
#define KILL_WAIT_MS 60000

struct frame {
	uint32_t type;
	uint32_t length;
};

/* From the runner */
enum {
	FRAME_RUN = 1,		/* struct run, then its strings */
	FRAME_INPUT = 2,	/* bytes for the command's stdin; none: end of file */
	FRAME_RESIZE = 3,	/* struct winsize */
};

/* To the runner */
enum {
	FRAME_READY = 1,	/* no payload */
	FRAME_STDOUT = 2,	/* bytes */
	FRAME_STDERR = 3,	/* bytes */
	FRAME_KMSG = 4,		/* one record of /dev/kmsg */
	FRAME_END = 5,		/* struct end */
};

/* Followed by NUL-terminated strings: directory, arguments, environment. */
struct run {
	uint32_t serial;
	uint32_t timeout_ms;
	uint32_t terminal;
	uint32_t argc;
	uint32_t envc;
	struct winsize size;
};

enum {
	END_EXITED = 0,		/* value: exit status */
	END_KILLED = 1,		/* value: signal */
	END_TIMED_OUT = 2,	/* value: 1 if it could not even be killed */
	END_NOT_STARTED = 3,	/* value: errno */
	END_NO_DIRECTORY = 4,	/* value: errno */
};

struct end {
	uint32_t how;
	uint32_t value;
};

static int port = -1;
static int kmsg = -1;
static int children = -1;

/* Process 1 must not just end: that panics without saying why. */
static noreturn void die(const char *what)
{
	fprintf(stderr, "agent: %s: %s\n", what, strerror(errno));
	reboot(RB_POWER_OFF);
	_exit(1);
}

static void write_all(int fd, const void *data, size_t length)
{
	const char *at = data;

	while (length) {
		ssize_t n = write(fd, at, length);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			die("write to the runner");
		at += n;
		length -= n;
	}
}

static void read_all(int fd, void *data, size_t length)
{
	char *at = data;

	while (length) {
		ssize_t n = read(fd, at, length);

		if (n < 0 && errno == EINTR)
			continue;
		/* 0: the runner is gone, and the VM is of no use to anybody */
		if (n <= 0)
			die("read from the runner");
		at += n;
		length -= n;
	}
}

static void send_frame(uint32_t type, const void *data, size_t length)
{
	struct frame frame = { .type = type, .length = length };

	write_all(port, &frame, sizeof(frame));
	write_all(port, data, length);
}

/* The caller frees what this returns; it is NUL-terminated. */
static char *receive_frame(struct frame *frame)
{
	char *data;

	read_all(port, frame, sizeof(*frame));
	data = malloc((size_t)frame->length + 1);
	if (!data)
		die("frame");
	read_all(port, data, frame->length);
	data[frame->length] = '\0';
	return data;
}

static long now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

static void write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		die(path);
	close(fd);
}

static int open_virtio_port(void)
{
	static const char *const class = "/sys/class/virtio-ports";
	struct dirent *entry;
	char path[PATH_MAX];
	char name[64];
	DIR *directory;
	ssize_t n;
	int fd;

	directory = opendir(class);
	if (!directory)
		die(class);
	while ((entry = readdir(directory))) {
		snprintf(path, sizeof(path), "%s/%s/name", class, entry->d_name);
		fd = open(path, O_RDONLY);
		if (fd < 0)
			continue;
		n = read(fd, name, sizeof(name) - 1);
		close(fd);
		if (n <= 0)
			continue;
		name[n] = '\0';
		name[strcspn(name, "\n")] = '\0';
		if (strcmp(name, PORT_NAME))
			continue;
		snprintf(path, sizeof(path), "/dev/%s", entry->d_name);
		closedir(directory);
		return open(path, O_RDWR | O_CLOEXEC);
	}
	errno = ENOENT;
	die("virtio-serial port " PORT_NAME);
}

/* Every byte goes through it as it is. */
static int open_serial_port(const char *path)
{
	int fd = open(path, O_RDWR | O_NOCTTY | O_CLOEXEC);
	struct termios settings;

	if (fd < 0 || tcgetattr(fd, &settings))
		die(path);
	cfmakeraw(&settings);
	settings.c_cflag |= CLOCAL | CREAD;
	cfsetspeed(&settings, B115200);
	if (tcsetattr(fd, TCSANOW, &settings))
		die(path);
	return fd;
}

static void send_kernel_log(void)
{
	char record[8192];

	for (;;) {
		ssize_t n = read(kmsg, record, sizeof(record));

		if (n > 0) {
			send_frame(FRAME_KMSG, record, n);
		} else if (n < 0 && errno == EPIPE) {
			static const char lost[] =
				"4,0,0,-;WARNING: kernel log overran, messages are lost\n";

			send_frame(FRAME_KMSG, lost, sizeof(lost) - 1);
		} else if (n < 0 && errno == EAGAIN) {
			return;
		} else if (n < 0 && errno != EINTR) {
			die("/dev/kmsg");
		}
	}
}

static void log_marker(int level, const char *what, uint32_t serial, const char *command)
{
	char line[256];

	snprintf(line, sizeof(line), "<%d>memslot-vm: %s %u %.200s\n", level, what, serial,
		 command);
	if (write(kmsg, line, strlen(line)) < 0)
		die("/dev/kmsg");
}

static const char *next_string(const char **at, const char *end)
{
	const char *string = *at;

	if (string >= end) {
		errno = EPROTO;
		die("run request");
	}
	*at += strlen(string) + 1;
	return string;
}

static const char **next_strings(const char **at, const char *end, uint32_t count)
{
	const char **strings = calloc((size_t)count + 1, sizeof(*strings));

	if (!strings)
		die("strings");
	for (uint32_t i = 0; i < count; i++)
		strings[i] = next_string(at, end);
	return strings;
}

/* The command, as long as it lives; -1 for each end of a pipe that is closed. */
struct command {
	pid_t pid;
	int in, out, err;
	char *input;		/* not written to @in yet */
	size_t input_length, input_done;
};

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static void make_pipe(int *reader, int *writer)
{
	int fds[2];

	if (pipe2(fds, O_CLOEXEC))
		die("pipe");
	*reader = fds[0];
	*writer = fds[1];
}

static noreturn void exec_command(const char *directory, const char **argv, const char **envp,
				  int report)
{
	sigset_t none;
	struct end end = { .how = END_NO_DIRECTORY };

	signal(SIGPIPE, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	clearenv();
	if (!chdir(directory)) {
		for (const char **e = envp; *e; e++)
			putenv((char *)*e);
		execvp(argv[0], (char **)argv);
		end.how = END_NOT_STARTED;
	}
	end.value = errno;
	write_all(report, &end, sizeof(end));
	_exit(127);
}

/* Returns whether the command could be started; if not, @end says why. */
static bool start(struct command *command, const struct run *run, const char *strings,
		  const char *strings_end, struct end *end)
{
	const char *directory = next_string(&strings, strings_end);
	const char **argv = next_strings(&strings, strings_end, run->argc);
	const char **envp = next_strings(&strings, strings_end, run->envc);
	int child_in, child_out, child_err, report_in, report_out;
	bool started;

	make_pipe(&report_in, &report_out);
	if (run->terminal) {
		int terminal = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);

		if (terminal < 0 || grantpt(terminal) || unlockpt(terminal))
			die("pseudo terminal");
		ioctl(terminal, TIOCSWINSZ, &run->size);
		child_in = open(ptsname(terminal), O_RDWR | O_NOCTTY | O_CLOEXEC);
		if (child_in < 0)
			die(ptsname(terminal));
		child_out = fcntl(child_in, F_DUPFD_CLOEXEC, 0);
		child_err = fcntl(child_in, F_DUPFD_CLOEXEC, 0);
		command->out = terminal;
		command->in = fcntl(terminal, F_DUPFD_CLOEXEC, 0);
		command->err = -1;
	} else {
		make_pipe(&child_in, &command->in);
		make_pipe(&command->out, &child_out);
		make_pipe(&command->err, &child_err);
	}
	fcntl(command->in, F_SETFL, O_NONBLOCK);

	/* <4> is shown on the console, too */
	log_marker(4, "begin", run->serial, argv[0]);
	command->pid = fork();
	if (command->pid < 0)
		die("fork");
	if (!command->pid) {
		setsid();
		if (run->terminal)
			ioctl(child_in, TIOCSCTTY, 0);
		dup2(child_in, STDIN_FILENO);
		dup2(child_out, STDOUT_FILENO);
		dup2(child_err, STDERR_FILENO);
		exec_command(directory, argv, envp, report_out);
	}
	close(child_in);
	close(child_out);
	close(child_err);
	close(report_out);
	/* End of file when exec succeeds */
	started = read(report_in, end, sizeof(*end)) <= 0;
	close(report_in);
	free(argv);
	free(envp);
	return started;
}

/* Sends what can be read now.  Closes @fd at its end. */
static void forward(int *fd, uint32_t type)
{
	static char buffer[65536];
	ssize_t n = read(*fd, buffer, sizeof(buffer));

	if (n > 0)
		send_frame(type, buffer, n);
	else if (n == 0 || (errno != EINTR && errno != EAGAIN))
		/* EIO: the last process left the terminal */
		close_fd(fd);
}

static void write_input(struct command *command)
{
	ssize_t n = write(command->in, command->input + command->input_done,
			  command->input_length - command->input_done);

	if (n > 0)
		command->input_done += n;
	else if (errno != EAGAIN && errno != EINTR)
		close_fd(&command->in);
	if (command->in < 0 || command->input_done == command->input_length) {
		free(command->input);
		command->input = NULL;
	}
}

static void receive_for(struct command *command)
{
	struct frame frame;
	char *data = receive_frame(&frame);

	if (frame.type == FRAME_RESIZE && frame.length == sizeof(struct winsize)) {
		ioctl(command->out, TIOCSWINSZ, data);
	} else if (frame.type != FRAME_INPUT) {
		errno = EPROTO;
		die("frame while a command runs");
	} else if (!frame.length) {
		close_fd(&command->in);
	} else if (command->in >= 0) {
		command->input = data;
		command->input_length = frame.length;
		command->input_done = 0;
		return;
	}
	free(data);
}

/* Reaps what can be reaped; returns true when no child is left. */
static bool reap(struct command *command, struct end *end)
{
	for (;;) {
		int status;
		pid_t pid = waitpid(-1, &status, WNOHANG);

		if (pid < 0)
			return true;
		if (!pid)
			return false;
		if (pid != command->pid)
			continue;
		command->pid = 0;
		end->how = WIFEXITED(status) ? END_EXITED : END_KILLED;
		end->value = WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status);
	}
}

/*
 * Serves the command until it ends or @deadline passes, or, once @killed, until
 * nothing is left of it.  Returns false on the deadline.
 */
static bool serve(struct command *command, struct end *end, long deadline, bool killed)
{
	for (;;) {
		bool none_left = reap(command, end);
		long left = deadline - now_ms();
		struct pollfd fds[] = {
			{ command->input ? -1 : port, POLLIN, 0 },
			{ command->input ? command->in : -1, POLLOUT, 0 },
			{ command->out, POLLIN, 0 },
			{ command->err, POLLIN, 0 },
			{ children, POLLIN, 0 },
		};

		if (killed ? none_left && command->out < 0 && command->err < 0 : !command->pid)
			return true;
		if (left <= 0)
			return false;
		if (poll(fds, ARRAY_SIZE(fds), left) < 0)
			continue;
		if (fds[0].revents)
			receive_for(command);
		if (fds[1].revents)
			write_input(command);
		if (fds[2].revents)
			forward(&command->out, FRAME_STDOUT);
		if (fds[3].revents)
			forward(&command->err, FRAME_STDERR);
		if (fds[4].revents) {
			struct signalfd_siginfo info;

			if (read(children, &info, sizeof(info)) < 0)
				die("signalfd");
		}
	}
}

/*
 * Keeps two VMs with a vCPU from the moment that KVM is loaded, without ever
 * running them: one without and one with a local APIC in the kernel.  KVM patches
 * its code and the scheduler's (static keys) for the first and the last VM, vCPU
 * and disabled APIC of a machine; QEMU 7.2's TCG now and then runs a stale
 * translation of such a place, and the test VM hangs in an endless INT3.
 */
static void hold_kvm(void)
{
	static bool held;
	int kvm, vm, apic;

	if (held)
		return;
	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm < 0)
		return;
	for (apic = 0; apic < 2; apic++) {
		vm = ioctl(kvm, KVM_CREATE_VM, 0);
		if (vm < 0 || (apic && ioctl(vm, KVM_CREATE_IRQCHIP) < 0) ||
		    ioctl(vm, KVM_CREATE_VCPU, 0) < 0)
			die("KVM");
	}
	close(kvm);
	held = true;
}

static void run_command(const struct run *run, const char *strings, const char *strings_end)
{
	struct command command = { .in = -1, .out = -1, .err = -1 };
	struct end end, why;
	bool timed_out = false;
	bool started;

	started = start(&command, run, strings, strings_end, &why);
	if (started)
		timed_out = !serve(&command, &end, now_ms() + run->timeout_ms, false);
	if (timed_out)
		/* who waits for what, into the kernel log */
		write_file("/proc/sysrq-trigger", "w");

	/* Nothing may outlive the command: kills all but this process */
	kill(-1, SIGKILL);
	if (!serve(&command, &end, now_ms() + KILL_WAIT_MS, true)) {
		write_file("/proc/sysrq-trigger", "w");
		write_file("/proc/sysrq-trigger", "l");
		end = (struct end){ .how = END_TIMED_OUT, .value = 1 };
	} else if (!started) {
		end = why;
	} else if (timed_out) {
		end = (struct end){ .how = END_TIMED_OUT };
	}
	close_fd(&command.in);
	close_fd(&command.out);
	close_fd(&command.err);
	free(command.input);
	hold_kvm();
	/* Before it, a last line without newline cannot be read */
	log_marker(6, "end", run->serial, "");
	send_kernel_log();
	send_frame(FRAME_END, &end, sizeof(end));
}

int main(int argc, char **argv)
{
	sigset_t mask;

	/* A dead stdin of a command is found out by write() */
	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&mask);
	sigaddset(&mask, SIGCHLD);
	sigprocmask(SIG_BLOCK, &mask, NULL);
	children = signalfd(-1, &mask, SFD_CLOEXEC);
	kmsg = open("/dev/kmsg", O_RDWR | O_NONBLOCK | O_CLOEXEC);
	port = argc > 1 ? open_serial_port(argv[1]) : open_virtio_port();
	if (children < 0 || kmsg < 0 || port < 0)
		die("start");

	send_kernel_log();
	send_frame(FRAME_READY, NULL, 0);
	for (;;) {
		struct frame frame;
		char *data = receive_frame(&frame);

		/* Else it is input for a command that ended before it came */
		if (frame.type == FRAME_RUN && frame.length > sizeof(struct run))
			run_command((struct run *)data, data + sizeof(struct run),
				    data + frame.length);
		free(data);
	}
}
