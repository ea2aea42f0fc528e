/* SPDX-License-Identifier: GPL-2.0 */
/* The command lines of the test and bench programs, and what they say when something goes wrong. */
#ifndef MEMSLOT_GUESTS_COMMAND_LINE_H
#define MEMSLOT_GUESTS_COMMAND_LINE_H

#include <charconv>
#include <concepts>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <iterator>
#include <limits>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace guests {

/** What was asked for is not possible: the message says why. */
class wrong_usage : public std::invalid_argument {
public:
	using std::invalid_argument::invalid_argument;
};

/** A decimal number within limits; wrong_usage if it is none. */
inline std::uint64_t number(std::string_view text, std::uint64_t least, std::uint64_t most)
{
	std::uint64_t value = 0;
	const char *const end = text.data() + text.size();
	const auto [rest, error] = std::from_chars(text.data(), end, value);

	if (rest != end || error != std::errc{} || value < least || value > most)
		throw wrong_usage(std::string(text) + " is not a number from " +
				  std::to_string(least) + " to " + std::to_string(most));
	return value;
}

/** Which of these names it is, as the enum or the index that they stand for; @a what they name. */
template <typename to = std::size_t>
to called(std::string_view name, std::span<const std::string_view> names, const char *what)
{
	for (std::size_t i = 0; i < names.size(); i++) {
		if (names[i] == name)
			return static_cast<to>(i);
	}
	throw wrong_usage("no " + std::string(what) + " is called " + std::string(name));
}

/** Long options (--name VALUE, --name=VALUE, --flag), then words. */
class command_line {
public:
	/** @a usage is what --help prints. */
	explicit command_line(const char *usage) : usage_(usage)
	{
	}

	command_line &flag(std::string_view name, bool &value)
	{
		known_.push_back({name, false, [&value](std::string_view) { value = true; }});
		return *this;
	}

	template <typename type>
	command_line &number(std::string_view name, type &value, std::uint64_t least = 0,
			     std::uint64_t most = std::numeric_limits<std::uint64_t>::max())
	{
		known_.push_back({name, true, [&value, least, most](std::string_view text) {
					  if constexpr (std::integral<type>)
						  value = static_cast<type>(
							  guests::number(text, least, most));
					  else
						  value = guests::number(text, least, most);
				  }});
		return *this;
	}

	command_line &text(std::string_view name, std::function<void(std::string_view)> take)
	{
		known_.push_back({name, true, std::move(take)});
		return *this;
	}

	/** Takes the options; returns the words. Ends the program after --help. */
	std::vector<std::string_view> parse(int argc, char **argv, std::size_t words = 0) const
	{
		const std::span<char *> arguments(argv, static_cast<std::size_t>(argc));
		std::vector<std::string_view> found;

		for (std::size_t i = 1; i < arguments.size(); i++) {
			const std::string_view argument = arguments[i];

			if (!argument.starts_with("--")) {
				found.push_back(argument);
				continue;
			}
			const std::size_t equals = argument.find('=');
			const std::string_view name = argument.substr(2, equals - 2);
			if (name == "help") {
				std::fputs(usage_, stdout);
				std::exit(EXIT_SUCCESS);
			}
			const known &option = find(name);
			if (!option.has_value)
				option.take({});
			else if (equals != std::string_view::npos)
				option.take(argument.substr(equals + 1));
			else if (++i < arguments.size())
				option.take(arguments[i]);
			else
				throw wrong_usage(std::string(argument) + " needs a value");
		}
		if (found.size() > words)
			throw wrong_usage("what is " + std::string(found[words]) + "?");
		if (found.size() < words)
			throw wrong_usage("try --help");
		return found;
	}

private:
	struct known {
		std::string_view name;
		bool has_value;
		std::function<void(std::string_view)> take;
	};

	const known &find(std::string_view name) const
	{
		for (const known &option : known_) {
			if (option.name == name)
				return option;
		}
		throw wrong_usage("there is no option --" + std::string(name) + "; try --help");
	}

	const char *usage_;
	std::vector<known> known_;
};

/** Runs a program: its exit status, 2 for wrong usage, after saying what was wrong, as NAME: why.
 */
inline int run_program(const char *name, const std::function<int()> &program)
try {
	return program();
} catch (const std::invalid_argument &why) {
	std::fprintf(stderr, "%s: %s\n", name, why.what());
	return 2;
} catch (const std::exception &why) {
	std::fprintf(stderr, "%s: %s\n", name, why.what());
	return EXIT_FAILURE;
}

} // namespace guests

#endif /* MEMSLOT_GUESTS_COMMAND_LINE_H */
