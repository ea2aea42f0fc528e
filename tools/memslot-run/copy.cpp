// SPDX-License-Identifier: GPL-2.0
#include "copy.hpp"

#include "counters.hpp"
#include "process.hpp"
#include "table.hpp"
#include "withdrawals.hpp"

#include <pthread.h>

namespace memslot_run {

namespace {

/** In a copy, which has no VM: not those of the original (EIO), and the state of ours may be torn.
 */
void begin_anew()
{
	forget_all();
	withdrawn.abandon();
	vcpus_run.store(false);
	self.collected = 0;
	/* What handlers of fork() initialise anew is released by nobody */
	self.held = {};
	process::settle();
}

void fork_prepare()
{
	leaves(moment::block);
}

void fork_child()
{
	begin_anew();
	threads_allowed.store(true);
}

[[gnu::constructor]] void load()
{
	share_counters();
	count(counters().processes);
	pthread_atfork(fork_prepare, nullptr, fork_child);
}

} // namespace

void notice_copy()
{
	if (process::is_original()) [[likely]]
		return;
	threads_allowed.store(false);
	begin_anew();
}

bool has_our_descriptors()
{
	notice_copy();
	return process::look() == process::kind::same;
}

} // namespace memslot_run
