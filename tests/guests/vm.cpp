// SPDX-License-Identifier: GPL-2.0
#include "vm.hpp"

#include "vmx.hpp"

#include <bit>
#include <csignal>
#include <cstring>
#include <pthread.h>
#include <stdexcept>
#include <sys/mman.h>

namespace guests {

namespace {

using namespace std::chrono_literals;

/* Pages of the control slot */
enum control_page : std::uint64_t {
	pml4_page = 1,
	pdpt_page = 2,
	directory_page = 3,
	code_page = 4,
	shared_data_page = 5,
	nested_pml4_page = 6,
	nested_pdpt_page = 7,
	nested_directory_page = 8,
	first_vcpu_page = 16,
	first_vmcb_page = first_vcpu_page + max_vcpus,
	/* With Intel's processors a guest's guest takes three */
	first_vmx_page = first_vmcb_page,
	first_vmxon_page = first_vmx_page + max_vcpus,
	first_vmcs_page = first_vmxon_page + max_vcpus,
	upper_directories = first_vmcs_page + max_vcpus,
	control_pages = upper_directories + 3,
};

/* Each maps a GiB */
constexpr std::array<std::uint64_t, 4> directories{directory_page, upper_directories,
						   upper_directories + 1, upper_directories + 2};
constexpr std::array<std::uint64_t, 1> nested_directories{nested_directory_page};

static_assert(directories.size() << 30 == mapped_end);

constexpr std::uint64_t gpa_of(std::uint64_t page)
{
	return page * page_size;
}

/* Mapped for the guest, but no slot is ever there */
constexpr std::uint64_t mailbox_gpa = 512 << 20;

constexpr std::uint64_t pte_present = 1 << 0;
constexpr std::uint64_t pte_writable = 1 << 1;
/* Nested page tables are walked as if by user code */
constexpr std::uint64_t pte_user = 1 << 2;
constexpr std::uint64_t pte_accessed = 1 << 5;
constexpr std::uint64_t pte_dirty = 1 << 6;
constexpr std::uint64_t pte_all = pte_present | pte_writable | pte_user | pte_accessed | pte_dirty;
constexpr std::uint64_t pde_large = 1 << 7;

constexpr std::uint64_t cr0_pe = 1ULL << 0;
constexpr std::uint64_t cr0_et = 1ULL << 4;
constexpr std::uint64_t cr0_ne = 1ULL << 5;
constexpr std::uint64_t cr0_pg = 1ULL << 31;
constexpr std::uint64_t cr4_pae = 1ULL << 5;
constexpr std::uint64_t cr4_vmxe = 1ULL << 13;
constexpr std::uint64_t efer_lme = 1ULL << 8;
constexpr std::uint64_t efer_lma = 1ULL << 10;
constexpr std::uint64_t efer_svme = 1ULL << 12;

/*
 * Interrupts are enabled, though none comes: Bochs gives the host no interrupt
 * while a guest runs that has them disabled.
 */
constexpr std::uint64_t rflags_fixed = 1 << 1;
constexpr std::uint64_t rflags_if = 1 << 9;

/* With VMX, more has to be set than long mode needs: Intel's SDM, volume 3D, appendices A.7 and A.8
 */
constexpr std::uint64_t vmx_cr0 = cr0_pg | cr0_ne | cr0_et | cr0_pe;
constexpr std::uint64_t vmx_cr4 = cr4_vmxe | cr4_pae;

/* CPUID leaf of the processor's features, and the bit in ECX that says there is VMX */
constexpr std::uint32_t feature_leaf = 1;
constexpr std::uint32_t feature_vmx = 1 << 5;

/* The same for SVM */
constexpr std::uint32_t extended_feature_leaf = 0x80000001;
constexpr std::uint32_t extended_feature_svm = 1 << 2;

/* CPUID leaf of SVM's own features, and the bit in EDX that says there is nested paging */
constexpr std::uint32_t svm_leaf = 0x8000000a;
constexpr std::uint32_t svm_npt = 1 << 0;

/* Offsets in a VMCB, and what we put there */
namespace vmcb {

constexpr std::size_t intercepts = 0x010;
constexpr std::uint32_t intercept_vmrun = 1 << 0;
constexpr std::uint32_t intercept_vmmcall = 1 << 1;
constexpr std::size_t asid = 0x058;
constexpr std::size_t np_enable = 0x090;
constexpr std::size_t nested_cr3 = 0x0b0;
constexpr std::size_t es = 0x400;
constexpr std::size_t cs = 0x410;
constexpr std::size_t ss = 0x420;
constexpr std::size_t ds = 0x430;
constexpr std::size_t efer = 0x4d0;
constexpr std::size_t cr4 = 0x548;
constexpr std::size_t cr3 = 0x550;
constexpr std::size_t cr0 = 0x558;
constexpr std::size_t dr7 = 0x560;
constexpr std::size_t dr6 = 0x568;
constexpr std::size_t rflags = 0x570;
constexpr std::size_t pat = 0x668;

constexpr std::uint64_t dr6_after_reset = 0xffff0ff0;
constexpr std::uint64_t dr7_after_reset = 0x400;
constexpr std::uint64_t pat_after_reset = 0x0007040600070406;

struct segment {
	std::uint16_t selector;
	std::uint16_t attributes;
	std::uint32_t limit;
	std::uint64_t base;
};

/* code: present, long mode, readable, accessed; data: present, writable, accessed */
constexpr segment code{1 << 3, 0xa9b, 0xffffffff, 0};
constexpr segment data{2 << 3, 0xc93, 0xffffffff, 0};

} // namespace vmcb

/*
 * struct kvm_cpuid2 and its ioctls: in Debian 12's <asm/kvm.h> the struct has another size in C++
 * than in C.
 */
struct cpuid_table {
	std::uint32_t count;
	std::uint32_t padding;
	std::array<kvm_cpuid_entry2, 256> entries;
};

constexpr unsigned long get_supported_cpuid = _IOWR(KVMIO, 0x05, std::uint64_t);
constexpr unsigned long set_cpuid2 = _IOW(KVMIO, 0x90, std::uint64_t);

std::unique_ptr<cpuid_table> supported_cpuid(int kvm_fd)
{
	auto table = std::make_unique<cpuid_table>();

	table->count = static_cast<std::uint32_t>(table->entries.size());
	if (ioctl(kvm_fd, get_supported_cpuid, table.get()) < 0)
		fail("KVM_GET_SUPPORTED_CPUID");
	return table;
}

/* All zero if there is none */
kvm_cpuid_entry2 leaf(const cpuid_table &table, std::uint32_t function)
{
	const auto known = std::span(table.entries).first(table.count);
	const auto found = std::ranges::find(known, function, &kvm_cpuid_entry2::function);

	return found == known.end() ? kvm_cpuid_entry2{} : *found;
}

constexpr int kick_signal = SIGUSR1;

constexpr auto patience = 300s;

void on_kick(int)
{
}

/* Changed by the guest while we look */
std::uint64_t look(std::uint64_t &word)
{
	return std::atomic_ref(word).load(std::memory_order_relaxed);
}

void copy(std::byte *to, const std::byte *begin, const std::byte *end)
{
	std::copy(begin, end, to);
}

} // namespace

void fail(const std::string &what)
{
	throw std::system_error(errno, std::generic_category(), what);
}

host_memory::host_memory(std::uint64_t pages, pages_of kind)
{
	const std::uint64_t alignment = kind == pages_of::mib_2 ? 2 << 20 : page_size;
	const std::uint64_t bytes = pages * page_size;

	mapped_bytes_ = bytes + alignment - page_size;
	mapped_ = mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		       -1, 0);
	if (mapped_ == MAP_FAILED)
		fail("mmap of " + std::to_string(mapped_bytes_) + " bytes");
	const auto address = reinterpret_cast<std::uintptr_t>(mapped_);
	base_ = static_cast<std::byte *>(mapped_) + (-address & (alignment - 1));
	/* Pages of one size on every machine, so that counts and ratios compare */
	if (madvise(base_, bytes, kind == pages_of::mib_2 ? MADV_HUGEPAGE : MADV_NOHUGEPAGE) ||
	    madvise(base_, bytes, MADV_POPULATE_WRITE))
		fail("madvise of " + std::to_string(bytes) + " bytes");
}

host_memory::~host_memory()
{
	munmap(mapped_, mapped_bytes_);
}

vm::vm(unsigned int vcpus, nesting nested) : nested_(nested), control_(control_pages), vcpus_(vcpus)
{
	struct sigaction action {};
	action.sa_handler = on_kick;
	if (sigaction(kick_signal, &action, nullptr) < 0)
		fail("sigaction");

	kvm_fd_ = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm_fd_ < 0)
		fail("/dev/kvm: load kvm_amd or kvm_intel, or use a test VM (vmtest/run)");
	const auto cpuid = supported_cpuid(kvm_fd_);
	has_vmx_ = leaf(*cpuid, feature_leaf).ecx & feature_vmx;
	if (nested_ != nesting::none && !has_vmx_ &&
	    !(leaf(*cpuid, extended_feature_leaf).ecx & extended_feature_svm))
		throw std::runtime_error("this KVM cannot nest (nested=0, or no VMX or SVM)");
	vm_fd_ = ioctl(kvm_fd_, KVM_CREATE_VM, 0);
	if (vm_fd_ < 0)
		fail("KVM_CREATE_VM");

	/* Else KVM answers a failed fetch with #UD, and the retry is no longer the same access */
	kvm_enable_cap exit_on_failure{};
	exit_on_failure.cap = KVM_CAP_EXIT_ON_EMULATION_FAILURE;
	exit_on_failure.args[0] = 1;
	if (ioctl(vm_fd_, KVM_ENABLE_CAP, &exit_on_failure) < 0)
		fail("KVM_CAP_EXIT_ON_EMULATION_FAILURE");

	/* Tables that KVM shadows must not be the ones that the processor walks and writes to */
	put_tables(pml4_page, pdpt_page, directories, pte_all, pde_large | pte_all);
	if (has_vmx_)
		put_tables(nested_pml4_page, nested_pdpt_page, nested_directories, vmx::ept_all,
			   pde_large | vmx::ept_write_back | vmx::ept_all);
	else
		put_tables(nested_pml4_page, nested_pdpt_page, nested_directories, pte_all,
			   pde_large | pte_all);
	copy(control_.page(code_page), guest_code, guest_code_end);
	set_region(control_slot());

	for (unsigned int i = 0; i < vcpus; i++)
		create_vcpu(i);
}

vm::~vm()
{
	stop_wanted_ = true;
	if (pause_wanted_)
		resume();
	kick();
	for (vcpu &each : vcpus_) {
		if (each.thread.joinable())
			each.thread.join();
		if (each.run)
			munmap(each.run,
			       static_cast<std::size_t>(ioctl(kvm_fd_, KVM_GET_VCPU_MMAP_SIZE, 0)));
		if (each.fd >= 0)
			close(each.fd);
	}
	if (vm_fd_ >= 0)
		close(vm_fd_);
	if (kvm_fd_ >= 0)
		close(kvm_fd_);
}

/* Maps guest addresses to themselves.  The bits are those of entries for tables and for pages of
 * 2 MiB.
 */
void vm::put_tables(std::uint64_t pml4, std::uint64_t pdpt,
		    std::span<const std::uint64_t> directories, std::uint64_t table_bits,
		    std::uint64_t page_bits)
{
	using table = std::array<std::uint64_t, 512>;
	table pointers{};
	std::uint64_t mapped = 0;
	const auto put = [&](std::uint64_t page, const table &entries) {
		std::memcpy(control_.page(page), entries.data(), sizeof(entries));
	};

	for (std::size_t i = 0; i < directories.size(); i++) {
		table pages;

		for (std::uint64_t &entry : pages) {
			entry = mapped | page_bits;
			mapped += 2 << 20;
		}
		put(directories[i], pages);
		pointers[i] = gpa_of(directories[i]) | table_bits;
	}
	put(pdpt, pointers);
	pointers.fill(0);
	pointers[0] = gpa_of(pdpt) | table_bits;
	put(pml4, pointers);
}

void vm::create_vcpu(unsigned int index)
{
	vcpu &self = vcpus_[index];

	self.fd = ioctl(vm_fd_, KVM_CREATE_VCPU, index);
	if (self.fd < 0)
		fail("KVM_CREATE_VCPU");
	const int size = ioctl(kvm_fd_, KVM_GET_VCPU_MMAP_SIZE, 0);
	if (size < 0)
		fail("KVM_GET_VCPU_MMAP_SIZE");
	void *run = mmap(nullptr, static_cast<std::size_t>(size), PROT_READ | PROT_WRITE,
			 MAP_SHARED, self.fd, 0);
	if (run == MAP_FAILED)
		fail("mmap of a vCPU");
	self.run = static_cast<kvm_run *>(run);

	const auto cpuid = supported_cpuid(kvm_fd_);
	if (ioctl(self.fd, set_cpuid2, cpuid.get()) < 0)
		fail("KVM_SET_CPUID2");
	if (nested_ != nesting::none) {
		if (has_vmx_)
			fill_vmx(index);
		else
			fill_vmcb(index, nested_ == nesting::own_tables &&
						 leaf(*cpuid, svm_leaf).edx & svm_npt);
	}
	reset_registers(index);
}

/* A guest in the state of its parent, which sets its program counter and its stack. */
void vm::fill_vmcb(unsigned int index, bool own_tables)
{
	std::byte *page = control_.page(first_vmcb_page + index);
	const auto put = [page](std::size_t offset, const auto &value) {
		std::memcpy(page + offset, &value, sizeof(value));
	};

	put(vmcb::intercepts, vmcb::intercept_vmrun | vmcb::intercept_vmmcall);
	put(vmcb::asid, std::uint32_t{1});
	put(vmcb::np_enable, std::uint64_t{own_tables});
	put(vmcb::nested_cr3, gpa_of(nested_pml4_page));
	put(vmcb::cs, vmcb::code);
	for (const std::size_t data : {vmcb::ds, vmcb::es, vmcb::ss})
		put(data, vmcb::data);
	put(vmcb::efer, efer_svme | efer_lme | efer_lma);
	put(vmcb::cr0, cr0_pg | cr0_et | cr0_pe);
	put(vmcb::cr3, gpa_of(pml4_page));
	put(vmcb::cr4, cr4_pae);
	put(vmcb::dr6, vmcb::dr6_after_reset);
	put(vmcb::dr7, vmcb::dr7_after_reset);
	put(vmcb::rflags, rflags_fixed);
	put(vmcb::pat, vmcb::pat_after_reset);
	counts_page(index)->vmcb = gpa_of(first_vmcb_page + index);
}

vmx_page *vm::vmx_of(unsigned int vcpu) const
{
	return reinterpret_cast<vmx_page *>(control_.page(first_vmx_page + vcpu));
}

/* The same with VMX: what the parent makes a VMCS of. */
void vm::fill_vmx(unsigned int index)
{
	const int fd = vcpus_[index].fd;
	vmx_page *page = vmx_of(index);

	vmx::enable(fd);
	for (const std::uint64_t region : {first_vmxon_page + index, first_vmcs_page + index}) {
		const std::uint32_t revision = vmx::revision(fd);

		std::memcpy(control_.page(region), &revision, sizeof(revision));
	}
	const vmx::registers state{.cr0 = vmx_cr0,
				   .cr3 = gpa_of(pml4_page),
				   .cr4 = vmx_cr4,
				   .rflags = rflags_fixed | rflags_if};
	std::optional<std::uint64_t> ept_root;
	if (nested_ == nesting::own_tables && vmx::has_ept(fd))
		ept_root = gpa_of(nested_pml4_page);
	const std::vector<vmcs_field> fields = vmx::fields(fd, state, ept_root);
	if (fields.size() > page->fields.size())
		throw std::logic_error("too many fields of a VMCS");
	page->vmxon_region = gpa_of(first_vmxon_page + index);
	page->vmcs = gpa_of(first_vmcs_page + index);
	std::ranges::copy(fields, page->fields.begin());
	page->end = gpa_of(first_vmx_page + index) + offsetof(vmx_page, fields) +
		    fields.size() * sizeof(vmcs_field);
	counts_page(index)->vmx = gpa_of(first_vmx_page + index);
}

void vm::put_nested_root(std::byte *page, std::uint64_t gpa)
{
	root_may_vanish_ = true;
	std::memcpy(page, control_.page(nested_pml4_page), page_size);
	for (unsigned int i = 0; i < vcpus(); i++) {
		if (has_vmx_) {
			const vmcs_field pointer = vmx::ept_pointer(gpa);

			std::ranges::replace(vmx_of(i)->fields, pointer.encoding, pointer,
					     &vmcs_field::encoding);
		} else {
			std::memcpy(control_.page(first_vmcb_page + i) + vmcb::nested_cr3, &gpa,
				    sizeof(gpa));
		}
	}
}

void vm::reset_registers(unsigned int index)
{
	const int fd = vcpus_[index].fd;
	kvm_sregs sregs{};
	kvm_regs regs{};

	if (ioctl(fd, KVM_GET_SREGS, &sregs) < 0)
		fail("KVM_GET_SREGS");
	kvm_segment segment{};
	segment.limit = 0xffffffff;
	segment.present = 1;
	segment.s = 1;
	segment.g = 1;
	segment.selector = 1 << 3;
	segment.type = 11; /* code, readable, accessed */
	segment.l = 1;
	sregs.cs = segment;
	segment.selector = 2 << 3;
	segment.type = 3; /* data, writable, accessed */
	segment.l = 0;
	segment.db = 1;
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = segment;
	sregs.cr3 = gpa_of(pml4_page);
	sregs.cr4 = cr4_pae;
	sregs.efer = efer_lme | efer_lma;
	sregs.cr0 = cr0_pg | cr0_et | cr0_pe;
	if (nested_ != nesting::none && has_vmx_) {
		sregs.cr4 = vmx_cr4;
		sregs.cr0 = vmx_cr0;
	} else if (nested_ != nesting::none) {
		sregs.efer |= efer_svme;
	}
	if (ioctl(fd, KVM_SET_SREGS, &sregs) < 0)
		fail("KVM_SET_SREGS");

	regs.rip = gpa_of(code_page);
	regs.rbx = gpa_of(first_vcpu_page + index);
	regs.rsp = gpa_of(first_vcpu_page + index + 1);
	regs.rbp = gpa_of(shared_data_page);
	regs.rflags = rflags_fixed | rflags_if;
	if (ioctl(fd, KVM_SET_REGS, &regs) < 0)
		fail("KVM_SET_REGS");
}

memslot::region vm::control_slot() const
{
	return {
		.slot = 0,
		.guest_phys_addr = 0,
		.memory_size = control_pages * page_size,
		.userspace_addr = control_.page(0),
	};
}

void vm::set_region(const memslot::region &region)
{
	kvm_userspace_memory_region arg{};

	arg.slot = region.slot;
	arg.flags = (region.log_dirty_pages ? KVM_MEM_LOG_DIRTY_PAGES : 0U) |
		    (region.readonly ? KVM_MEM_READONLY : 0U);
	arg.guest_phys_addr = region.guest_phys_addr;
	arg.memory_size = region.memory_size;
	arg.userspace_addr = reinterpret_cast<std::uintptr_t>(region.userspace_addr);
	if (ioctl(vm_fd_, KVM_SET_USER_MEMORY_REGION, &arg) < 0)
		fail("KVM_SET_USER_MEMORY_REGION of slot " + std::to_string(region.slot));
}

void vm::set_locations(std::span<const location> locations)
{
	shared_page *page = shared();

	if (locations.size() > max_locations)
		throw std::logic_error("too many locations");
	page->newest = 0;
	page->mailbox = mailbox_gpa;
	std::ranges::copy(locations, page->locations.begin());
	page->end = gpa_of(shared_data_page) + offsetof(shared_page, locations) +
		    locations.size_bytes();
}

void vm::set_other_memory(std::uint64_t gpa, std::uint64_t bytes)
{
	shared()->other = gpa;
	shared()->other_end = gpa + bytes;
}

void vm::watch(unsigned int vcpu, watched_pages pages)
{
	std::atomic_ref(counts_page(vcpu)->watch).store(std::bit_cast<std::uint64_t>(pages));
}

void vm::forget_longest_gap(unsigned int vcpu)
{
	std::atomic_ref(counts_page(vcpu)->longest).store(0);
}

vcpu_page *vm::counts_page(unsigned int vcpu) const
{
	return reinterpret_cast<vcpu_page *>(control_.page(first_vcpu_page + vcpu));
}

shared_page *vm::shared() const
{
	return reinterpret_cast<shared_page *>(control_.page(shared_data_page));
}

vcpu_page vm::counts(unsigned int vcpu) const
{
	vcpu_page *page = counts_page(vcpu);
	std::array<std::uint64_t, std::tuple_size_v<decltype(page->gaps)>> gaps{};

	std::ranges::transform(page->gaps, gaps.begin(), look);
	return {
		.loops = look(page->loops),
		.newest = look(page->newest),
		.versions = look(page->versions),
		.torn = look(page->torn),
		.torn_across = look(page->torn_across),
		.holes = look(page->holes),
		.emulated = look(page->emulated),
		.emulated_reads = look(page->emulated_reads),
		.wrong = look(page->wrong),
		.vmcb = look(page->vmcb),
		.nested_loops = look(page->nested_loops),
		.nested_faults = look(page->nested_faults),
		.nested_errors = look(page->nested_errors),
		.vmx = look(page->vmx),
		.watch = look(page->watch),
		.touches = look(page->touches),
		.longest = look(page->longest),
		.gaps = gaps,
	};
}

void vm::start()
{
	for (unsigned int i = 0; i < vcpus(); i++)
		vcpus_[i].thread = std::thread(&vm::run_vcpu, this, i);
}

/* The flag first, then the kick: a vCPU that misses the flag leaves KVM_RUN at once. */
void vm::kick()
{
	for (vcpu &each : vcpus_) {
		if (!each.thread.joinable())
			continue;
		std::atomic_ref(each.run->immediate_exit).store(1);
		pthread_kill(each.thread.native_handle(), kick_signal);
	}
}

void vm::stop()
{
	stop_wanted_ = true;
	kick();
	for (vcpu &each : vcpus_)
		each.thread.join();
	if (died_)
		throw std::runtime_error(cause_of_death_);
}

void vm::pause()
{
	pause_wanted_ = true;
	kick();
	for (unsigned int now; (now = paused_) != vcpus() && !died_;)
		paused_.wait(now);
}

void vm::resume()
{
	pause_wanted_ = false;
	pause_wanted_.notify_all();
}

void vm::wait_for_passes()
{
	const auto deadline = std::chrono::steady_clock::now() + patience;
	std::vector<std::uint64_t> goals;

	/* The pass under way began before; a vCPU and its guest take turns */
	for (unsigned int i = 0; i < vcpus(); i++)
		goals.push_back(look(counts_page(i)->loops) + (nested_ == nesting::none ? 2 : 3));
	for (unsigned int i = 0; i < vcpus(); i++) {
		while (look(counts_page(i)->loops) < goals[i] && !died_) {
			if (std::chrono::steady_clock::now() > deadline)
				throw std::runtime_error("vCPU " + std::to_string(i) +
							 " does not get on");
			std::this_thread::sleep_for(50us);
		}
	}
}

void vm::run_vcpu(unsigned int index)
try {
	vcpu &self = vcpus_[index];

	while (!stop_wanted_) {
		if (pause_wanted_) {
			paused_++;
			paused_.notify_all();
			pause_wanted_.wait(true);
			paused_--;
			continue;
		}
		if (ioctl(self.fd, KVM_RUN, nullptr) == 0) {
			handle_exit(index);
		} else if (errno == EINTR) {
			std::atomic_ref(self.run->immediate_exit).store(0);
			if (!stop_wanted_)
				exits_.interrupted++;
		} else if (errno != EAGAIN) {
			fail("KVM_RUN");
		}
	}
} catch (const std::exception &why) {
	if (!died_.exchange(true))
		cause_of_death_ = "vCPU " + std::to_string(index) + ": " + why.what();
	paused_ = vcpus();
	paused_.notify_all();
}

void vm::handle_exit(unsigned int index)
{
	const kvm_run *run = vcpus_[index].run;

	switch (run->exit_reason) {
	case KVM_EXIT_MMIO:
		handle_mmio(index);
		break;
	case KVM_EXIT_INTERNAL_ERROR:
		/* A real VMM gives up here; going on shows how often it would have had to */
		exits_.errors++;
		break;
	case KVM_EXIT_SHUTDOWN:
		if (root_may_vanish_ && !has_vmx_) {
			/* KVM did not enter the nested guest, and tries again */
			exits_.rootless++;
			break;
		}
		exits_.shutdowns++;
		reset_registers(index);
		break;
	default:
		throw std::runtime_error("unexpected KVM exit " + std::to_string(run->exit_reason));
	}
}

void vm::handle_mmio(unsigned int index)
{
	auto &mmio = vcpus_[index].run->mmio;

	if (mmio.phys_addr == mailbox_gpa && mmio.is_write && mmio.len == sizeof(std::uint64_t)) {
		std::memcpy(&counts_page(index)->emulated, mmio.data, mmio.len);
		return;
	}
	if (mmio.phys_addr < range_gpa || mmio.phys_addr == mailbox_gpa || mmio.is_write)
		throw std::runtime_error("unexpected MMIO at " + std::to_string(mmio.phys_addr));
	exits_.holes++;
	std::memcpy(mmio.data, &hole, mmio.len);
}

} // namespace guests
