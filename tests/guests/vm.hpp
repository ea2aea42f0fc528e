// SPDX-License-Identifier: GPL-2.0
/* A raw KVM virtual machine whose vCPUs run guest.S. */
#pragma once

#include "guest.hpp"

#include <memslot.hpp>

#include <atomic>
#include <linux/kvm.h>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <vector>

namespace guests {

/* Slot 0 at guest address 0 holds all that never changes; the slots under test begin at 1. */
inline constexpr std::uint32_t first_test_slot = 1;
inline constexpr unsigned int max_vcpus = 64;

/* Where the range under test begins */
inline constexpr std::uint64_t range_gpa = 16 << 20;

/* Page tables of vCPUs end here; those of their guests after the first GiB */
inline constexpr std::uint64_t mapped_end = 4ULL << 30;

/* Throws errno's text after what was tried. */
[[noreturn]] void fail(const std::string &what);

/* How the host maps a host_memory. */
enum class pages_of : std::uint8_t { kib_4, mib_2 };

/* Host memory, aligned to its pages, populated, and zero. */
class host_memory {
public:
	/* pages: of page_size; with pages_of::mib_2 a multiple of 512 */
	explicit host_memory(std::uint64_t pages, pages_of kind = pages_of::kib_4);
	~host_memory();
	host_memory(const host_memory &) = delete;
	host_memory &operator=(const host_memory &) = delete;

	[[nodiscard]] std::byte *page(std::uint64_t index) const
	{
		return base_ + index * page_size;
	}

private:
	void *mapped_;
	std::uint64_t mapped_bytes_;
	std::byte *base_;
};

/* What the VMM saw of all vCPUs, since the last reset. */
struct exits {
	/* KVM_EXIT_MMIO reads in the range under test */
	std::atomic<std::uint64_t> holes;
	/* KVM_EXIT_INTERNAL_ERROR */
	std::atomic<std::uint64_t> errors;
	/* KVM_EXIT_SHUTDOWN; a hole would not cause it, a lost state may */
	std::atomic<std::uint64_t> shutdowns;
	/* KVM_RUN returned EINTR */
	std::atomic<std::uint64_t> interrupted;
	/* KVM_EXIT_SHUTDOWN because the root of a nested guest's page tables was not there */
	std::atomic<std::uint64_t> rootless;
};

/* Does each vCPU run a guest of its own, and who translates that one's physical addresses? */
enum class nesting {
	none,
	/* the tables of the guest around it: KVM still needs no shadow pages */
	shared_tables,
	/* tables of its own (nested NPT or EPT), which KVM shadows; without these the same as
	   shared */
	own_tables,
};

class vm {
public:
	explicit vm(unsigned int vcpus, nesting nested = nesting::none);
	~vm();
	vm(const vm &) = delete;
	vm &operator=(const vm &) = delete;

	[[nodiscard]] int fd() const
	{
		return vm_fd_;
	}

	[[nodiscard]] unsigned int vcpus() const
	{
		return static_cast<unsigned int>(vcpus_.size());
	}

	/* Whether guests in guests are run with Intel's VMX, not with AMD's SVM. */
	[[nodiscard]] bool has_vmx() const
	{
		return has_vmx_;
	}

	[[nodiscard]] int vcpu_fd(unsigned int vcpu) const
	{
		return vcpus_[vcpu].fd;
	}

	/* Slot 0. */
	[[nodiscard]] memslot::region control_slot() const;

	/* One call of KVM_SET_USER_MEMORY_REGION; memory_size 0 deletes. */
	void set_region(const memslot::region &region);

	/* The locations that vCPUs visit, with no commit seen yet; before start(). */
	void set_locations(std::span<const location> locations);

	/* Memory that every pass touches a byte per page of; before start(). */
	void set_other_memory(std::uint64_t gpa, std::uint64_t bytes);

	/*
	 * What a vCPU touches instead of locations and other memory; before start(), and from then
	 * on with its next round, which wait_for_passes() waits for.
	 */
	void watch(unsigned int vcpu, watched_pages pages);

	/* Forgets the longest gap that a vCPU has seen between two touches. */
	void forget_longest_gap(unsigned int vcpu);

	/*
	 * Puts the root of the nested guests' own page tables into a page of the range under test,
	 * from which it may vanish for a while; before start().
	 */
	void put_nested_root(std::byte *page, std::uint64_t gpa);

	/* A vCPU's own counts, still counting. */
	[[nodiscard]] vcpu_page counts(unsigned int vcpu) const;

	[[nodiscard]] exits &seen()
	{
		return exits_;
	}

	/* Lets every vCPU run in a thread of its own, until stop(). */
	void start();

	/* Takes all vCPUs out of KVM_RUN for good; throws what a vCPU's thread died of. */
	void stop();

	/* Takes all vCPUs out of KVM_RUN until resume(), as QEMU does around its changes. */
	void pause();
	void resume();

	/* Waits until every vCPU has begun and ended a pass since the call. */
	void wait_for_passes();

private:
	struct vcpu {
		int fd = -1;
		kvm_run *run = nullptr;
		std::thread thread;
	};

	[[nodiscard]] vcpu_page *counts_page(unsigned int vcpu) const;
	[[nodiscard]] shared_page *shared() const;
	void put_tables(std::uint64_t pml4, std::uint64_t pdpt,
			std::span<const std::uint64_t> directories, std::uint64_t table_bits,
			std::uint64_t page_bits);
	void create_vcpu(unsigned int index);
	void fill_vmcb(unsigned int index, bool own_tables);
	void fill_vmx(unsigned int index);
	[[nodiscard]] vmx_page *vmx_of(unsigned int vcpu) const;
	void reset_registers(unsigned int index);
	void run_vcpu(unsigned int index);
	void handle_exit(unsigned int index);
	void handle_mmio(unsigned int index);
	void kick();

	int kvm_fd_ = -1;
	int vm_fd_ = -1;
	nesting nested_;
	bool has_vmx_ = false;
	bool root_may_vanish_ = false;
	host_memory control_;
	std::vector<vcpu> vcpus_;
	exits exits_{};
	std::atomic<bool> stop_wanted_ = false;
	std::atomic<bool> pause_wanted_ = false;
	std::atomic<unsigned int> paused_ = 0;
	std::atomic<bool> died_ = false;
	std::string cause_of_death_;
};

} // namespace guests
