/* SPDX-License-Identifier: GPL-2.0 */
#pragma once

#include <cstdint>
#include <initializer_list>
#include <span>

namespace fuzz {

/* Random numbers that a seed determines (splitmix64). */
class chance {
public:
	explicit chance(std::uint64_t seed) : state_(seed)
	{
	}

	std::uint64_t bits()
	{
		std::uint64_t z = state_ += 0x9e3779b97f4a7c15;
		z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
		z = (z ^ z >> 27) * 0x94d049bb133111eb;
		return z ^ z >> 31;
	}

	/* 0 ... n - 1 */
	std::uint64_t below(std::uint64_t n)
	{
		return bits() % n;
	}

	bool percent(unsigned int n)
	{
		return below(100) < n;
	}

	template <typename T>
	T of(std::initializer_list<T> list)
	{
		return list.begin()[below(list.size())];
	}

	template <typename T>
	T &of(std::span<T> list)
	{
		return list[below(list.size())];
	}

private:
	std::uint64_t state_;
};

} // namespace fuzz
