// SPDX-License-Identifier: GPL-2.0
// plan.c against the model, with random layouts and batches.  MEMSLOT_BATCHES
// says how many, MEMSLOT_SEED which.
#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <map>
#include <random>
#include <string>

#include "model.hpp"

namespace {

u64 from_environment(const char *name, u64 otherwise)
{
	const char *value = std::getenv(name);
	return value ? std::strtoull(value, nullptr, 0) : otherwise;
}

// Of the same numbers that make a seed for the fuzzer, so that it can take over.
std::array<uint8_t, 1024> bytes_of(u64 seed)
{
	std::mt19937_64 random(seed);
	std::array<uint8_t, 1024> bytes{};
	for (size_t i = 0; i < bytes.size(); i += sizeof(u64)) {
		u64 value = random();
		std::memcpy(&bytes[i], &value, sizeof(value));
	}
	return bytes;
}

TEST(Model, RandomBatches)
{
	const u64 rounds = from_environment("MEMSLOT_BATCHES", 200000);
	const u64 seed = from_environment("MEMSLOT_SEED", 1000000000);
	std::map<u32, u64> reasons, kinds, kinds_of_a_batch;
	u64 large = 0, refused = 0, cuts = 0, ring_zaps = 0, kept = 0, dropped = 0;

	for (u64 round = 0; round < rounds; round++) {
		std::array<uint8_t, 1024> bytes = bytes_of(seed + round);
		choices c(bytes);
		scenario s = draw_scenario(c);
		try {
			findings f = check_scenario(s);
			reasons[f.reason]++;
			refused += f.refused_entries;
			large += f.changes > 12;
			cuts += f.cuts;
			ring_zaps += f.ring_zaps;
			kept += f.kept;
			dropped += f.dropped;
			if (f.reason)
				continue;
			for (u32 kind = PLAN_NOTHING; kind <= PLAN_REFLAG; kind++)
				kinds[kind] += f.kinds >> kind & 1;
			kinds_of_a_batch[std::popcount(f.kinds)]++;
		} catch (const wrong &what) {
			FAIL() << what.what() << "\nMEMSLOT_SEED=" << seed + round
			       << " MEMSLOT_BATCHES=1\n"
			       << s;
		}
	}

	for (const auto &[reason, n] : reasons)
		RecordProperty("reason" + std::to_string(reason), std::to_string(n));
	for (const auto &[kind, n] : kinds)
		RecordProperty("kind" + std::to_string(kind), std::to_string(n));
	for (const auto &[n, batches] : kinds_of_a_batch)
		RecordProperty("kinds" + std::to_string(n), std::to_string(batches));
	RecordProperty("refused_entries", std::to_string(refused));
	RecordProperty("large", std::to_string(large));
	RecordProperty("cuts", std::to_string(cuts));
	RecordProperty("ring_zaps", std::to_string(ring_zaps));
	RecordProperty("kept", std::to_string(kept));
	RecordProperty("dropped", std::to_string(dropped));

	// What never happened was not tested.
	if (rounds < 10000)
		return;
	for (u32 reason :
	     {MEMSLOT_REASON_DUPLICATE, MEMSLOT_REASON_NO_SLOT, MEMSLOT_REASON_OVERLAP_ENTRY,
	      MEMSLOT_REASON_OVERLAP_SLOT, MEMSLOT_REASON_GUEST_MEMFD, MEMSLOT_REASON_BITMAP_SIZE,
	      MEMSLOT_REASON_NO_DIRTY_LOG, MEMSLOT_REASON_DIRTY_RING})
		EXPECT_GT(reasons[reason], rounds / 500) << "reason " << reason;
	EXPECT_GT(reasons[MEMSLOT_REASON_NONE], rounds / 4);
	for (u32 kind = PLAN_NOTHING; kind <= PLAN_REFLAG; kind++)
		EXPECT_GT(kinds[kind], rounds / 100) << "kind " << kind;
	EXPECT_GT(large, rounds / 500);
	for (u64 n : {refused, cuts, ring_zaps, kept, dropped})
		EXPECT_GT(n, rounds / 100);
}

} // namespace
