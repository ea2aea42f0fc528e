// SPDX-License-Identifier: GPL-2.0
// A libFuzzer target: what the fuzzer finds makes a layout and a batch.
#include <iostream>

#include "model.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	choices c({data, size});
	scenario s = draw_scenario(c);
	try {
		check_scenario(s);
	} catch (const wrong &) {
		std::cerr << s;
		throw;
	}
	return 0;
}
