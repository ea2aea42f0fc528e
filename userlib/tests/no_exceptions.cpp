// SPDX-License-Identifier: MIT
/* Everything in memslot.hpp that a program built with -fno-exceptions can use. */
#include "expect.hpp"

#include <memslot.hpp>

#include <cstdlib>
#include <string>

#ifdef __cpp_exceptions
#error "to be built with -fno-exceptions"
#endif

int main()
{
	/* Answers every ioctl with ENOTTY */
	auto opened = memslot::device::try_open("/dev/null");

	expect(opened.has_value());
	if (!opened)
		return EXIT_FAILURE;

	memslot::device dev = *std::move(opened);
	memslot::batch batch;
	memslot::layout layout;

	batch.set({.slot = 3, .memory_size = 4096}).remove(4);
	layout.reserve(8);

	const memslot::batch copy = batch;

	expect(copy.size() == 2);

	const auto failed = [](const auto &result, memslot::operation op) {
		expect(!result && result.error().op == op && result.error().errnum == ENOTTY);
	};

	failed(dev.try_info(), memslot::operation::info);
	failed(dev.try_bind(-1), memslot::operation::bind);
	failed(dev.try_stage(batch), memslot::operation::stage);
	failed(dev.try_commit(batch, {.test_only = true, .replace_all = {0}}),
	       memslot::operation::commit);
	failed(dev.try_reset(), memslot::operation::reset);
	failed(dev.try_query(layout), memslot::operation::query);

	const auto missing = memslot::device::try_open("/dev/memslot/none");

	expect(!missing && missing.error().message().starts_with("memslot: open"));
	return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
