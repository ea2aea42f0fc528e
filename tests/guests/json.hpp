/* SPDX-License-Identifier: GPL-2.0 */
/* How the test and bench programs print JSON: for a program that reads it, all on one line. */
#ifndef MEMSLOT_GUESTS_JSON_H
#define MEMSLOT_GUESTS_JSON_H

#include <cmath>
#include <concepts>
#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace guests::json {

/** A number, a boolean, a name without characters that JSON escapes, or a list of numbers. */
inline std::string value(std::integral auto number)
{
	if constexpr (std::same_as<decltype(number), bool>)
		return number ? "true" : "false";
	else
		return std::to_string(number);
}

/** With as many digits after the point as asked for; null for what is no number. */
inline std::string value(double number, int digits = 6)
{
	if (!std::isfinite(number))
		return "null";

	const auto digits_needed = std::snprintf(nullptr, 0, "%.*f", digits, number);
	std::string text(static_cast<std::size_t>(digits_needed) + 1, '\0');

	std::snprintf(text.data(), text.size(), "%.*f", digits, number);
	text.pop_back();
	return text;
}

inline std::string value(std::string_view name)
{
	return '"' + std::string(name) + '"';
}

inline std::string value(const std::vector<std::uint64_t> &numbers)
{
	std::string text;

	for (const std::uint64_t number : numbers)
		text += (text.empty() ? "" : ", ") + std::to_string(number);
	return '[' + text + ']';
}

class object;
std::string value(const object &members);

/** Members in the order in which they are added. */
class object {
public:
	template <typename... arguments>
	object &add(std::string_view name, arguments &&...of_value)
	{
		members_ += (members_.empty() ? "" : ", ") + value(name) + ": " +
			    value(std::forward<arguments>(of_value)...);
		return *this;
	}

	/** All members of another object. */
	object &add_all(const object &other)
	{
		if (!other.members_.empty())
			members_ += (members_.empty() ? "" : ", ") + other.members_;
		return *this;
	}

	[[nodiscard]] std::string text() const
	{
		return '{' + members_ + '}';
	}

	/** On standard output, as a line. */
	void print() const
	{
		std::puts(text().c_str());
	}

private:
	std::string members_;
};

inline std::string value(const object &members)
{
	return members.text();
}

} // namespace guests::json

#endif /* MEMSLOT_GUESTS_JSON_H */
