// SPDX-License-Identifier: GPL-2.0
#include "vmx.hpp"

#include "vm.hpp"

#include <linux/kvm.h>
#include <stdexcept>
#include <sys/ioctl.h>

namespace guests::vmx {

namespace {

/* SDM volume 4, table 2-2; what they say: volume 3D, appendix A */
enum msr : std::uint32_t {
	feature_control = 0x3a,
	basic = 0x480,
	pin_based_controls = 0x481,
	processor_based_controls = 0x482,
	exit_controls = 0x483,
	entry_controls = 0x484,
	secondary_controls = 0x48b,
	ept_vpid_capabilities = 0x48c,
};

constexpr std::uint64_t feature_control_locked = 1 << 0;
constexpr std::uint64_t feature_control_vmxon_outside_smx = 1 << 2;

/* IA32_VMX_EPT_VPID_CAP: tables of four levels, which may be cached as write-back; pages of 2 MiB
 */
constexpr std::uint64_t ept_needed = 1 << 6 | 1 << 14 | 1 << 16;

/* SDM volume 3C, chapter on VMCSs, sections on controls */
constexpr std::uint32_t processor_based_secondary = 1U << 31;
constexpr std::uint32_t secondary_ept = 1 << 1;
constexpr std::uint32_t exit_to_64_bit = 1 << 9;
constexpr std::uint32_t entry_to_ia32e = 1 << 9;

/* Extended-page-table pointer: tables are write-back, and have four levels, of which one less is
 * told */
constexpr std::uint64_t eptp_write_back = 6 << 0;
constexpr std::uint64_t eptp_levels = (4 - 1) << 3;

/* SDM volume 3D, appendix B */
enum encoding : std::uint64_t {
	guest_es_selector = 0x0800,
	guest_cs_selector = 0x0802,
	guest_ss_selector = 0x0804,
	guest_ds_selector = 0x0806,
	guest_fs_selector = 0x0808,
	guest_gs_selector = 0x080a,
	guest_ldtr_selector = 0x080c,
	guest_tr_selector = 0x080e,
	host_es_selector = 0x0c00,
	host_cs_selector = 0x0c02,
	host_ss_selector = 0x0c04,
	host_ds_selector = 0x0c06,
	host_fs_selector = 0x0c08,
	host_gs_selector = 0x0c0a,
	host_tr_selector = 0x0c0c,
	ept_pointer_full = 0x201a,
	guest_vmcs_link_pointer = 0x2800,
	guest_debugctl = 0x2802,
	control_pin_based = 0x4000,
	control_processor_based = 0x4002,
	control_exception_bitmap = 0x4004,
	control_page_fault_mask = 0x4006,
	control_page_fault_match = 0x4008,
	control_cr3_targets = 0x400a,
	control_exit = 0x400c,
	control_exit_msr_stores = 0x400e,
	control_exit_msr_loads = 0x4010,
	control_entry = 0x4012,
	control_entry_msr_loads = 0x4014,
	control_entry_event = 0x4016,
	control_secondary = 0x401e,
	guest_es_limit = 0x4800,
	guest_cs_limit = 0x4802,
	guest_ss_limit = 0x4804,
	guest_ds_limit = 0x4806,
	guest_fs_limit = 0x4808,
	guest_gs_limit = 0x480a,
	guest_ldtr_limit = 0x480c,
	guest_tr_limit = 0x480e,
	guest_gdtr_limit = 0x4810,
	guest_idtr_limit = 0x4812,
	guest_es_rights = 0x4814,
	guest_cs_rights = 0x4816,
	guest_ss_rights = 0x4818,
	guest_ds_rights = 0x481a,
	guest_fs_rights = 0x481c,
	guest_gs_rights = 0x481e,
	guest_ldtr_rights = 0x4820,
	guest_tr_rights = 0x4822,
	guest_interruptibility = 0x4824,
	guest_activity = 0x4826,
	guest_sysenter_cs = 0x482a,
	host_sysenter_cs = 0x4c00,
	control_cr0_mask = 0x6000,
	control_cr4_mask = 0x6002,
	control_cr0_shadow = 0x6004,
	control_cr4_shadow = 0x6006,
	guest_cr0 = 0x6800,
	guest_cr3 = 0x6802,
	guest_cr4 = 0x6804,
	guest_es_base = 0x6806,
	guest_cs_base = 0x6808,
	guest_ss_base = 0x680a,
	guest_ds_base = 0x680c,
	guest_fs_base = 0x680e,
	guest_gs_base = 0x6810,
	guest_ldtr_base = 0x6812,
	guest_tr_base = 0x6814,
	guest_gdtr_base = 0x6816,
	guest_idtr_base = 0x6818,
	guest_dr7 = 0x681a,
	guest_rflags = 0x6820,
	guest_pending_debug = 0x6822,
	guest_sysenter_esp = 0x6824,
	guest_sysenter_eip = 0x6826,
	host_cr0 = 0x6c00,
	host_cr3 = 0x6c02,
	host_cr4 = 0x6c04,
	host_fs_base = 0x6c06,
	host_gs_base = 0x6c08,
	host_tr_base = 0x6c0a,
	host_gdtr_base = 0x6c0c,
	host_idtr_base = 0x6c0e,
	host_sysenter_esp = 0x6c10,
	host_sysenter_eip = 0x6c12,
};

/* What a VMCS keeps may be anything before it is written (SDM volume 3C, "Software Use of the
 * VMCS"). */
constexpr std::array zero{
	control_exception_bitmap,
	control_page_fault_mask,
	control_page_fault_match,
	control_cr3_targets,
	control_exit_msr_stores,
	control_exit_msr_loads,
	control_entry_msr_loads,
	control_entry_event,
	control_cr0_mask,
	control_cr4_mask,
	control_cr0_shadow,
	control_cr4_shadow,
	guest_fs_selector,
	guest_gs_selector,
	guest_ldtr_selector,
	guest_fs_limit,
	guest_gs_limit,
	guest_ldtr_limit,
	guest_gdtr_limit,
	guest_idtr_limit,
	guest_es_base,
	guest_cs_base,
	guest_ss_base,
	guest_ds_base,
	guest_fs_base,
	guest_gs_base,
	guest_ldtr_base,
	guest_tr_base,
	guest_gdtr_base,
	guest_idtr_base,
	guest_debugctl,
	guest_interruptibility,
	guest_activity,
	guest_pending_debug,
	guest_sysenter_cs,
	guest_sysenter_esp,
	guest_sysenter_eip,
	host_fs_selector,
	host_gs_selector,
	host_fs_base,
	host_gs_base,
	host_tr_base,
	host_gdtr_base,
	host_idtr_base,
	host_sysenter_cs,
	host_sysenter_esp,
	host_sysenter_eip,
};

constexpr std::uint64_t code_selector = 1 << 3;
constexpr std::uint64_t data_selector = 2 << 3;
/* There has to be one, though nobody uses it */
constexpr std::uint64_t task_selector = 3 << 3;

/*
 * Access rights, SDM volume 3C, "Guest Register State".  Code: present, 64-bit, readable, accessed;
 * data: present, writable, accessed; both up to the last byte; the task: present, busy.
 */
constexpr std::uint64_t code_rights = 0xa09b;
constexpr std::uint64_t data_rights = 0xc093;
constexpr std::uint64_t task_rights = 0x008b;
constexpr std::uint64_t unusable = 1 << 16;
constexpr std::uint64_t whole_limit = 0xffffffff;
constexpr std::uint64_t task_limit = 0x67;

constexpr std::uint64_t no_vmcs = ~0ULL;
constexpr std::uint64_t dr7_after_reset = 0x400;

/* struct kvm_msrs with one entry, and its ioctls: see cpuid_table in vm.cpp. */
struct one_msr {
	std::uint32_t count;
	std::uint32_t padding;
	kvm_msr_entry entry;
};

constexpr unsigned long get_msrs = _IOWR(KVMIO, 0x88, std::uint64_t);
constexpr unsigned long set_msrs = _IOW(KVMIO, 0x89, std::uint64_t);

std::uint64_t read(int vcpu, std::uint32_t index)
{
	one_msr arg{.count = 1, .padding = 0, .entry{.index = index, .reserved = 0, .data = 0}};

	if (ioctl(vcpu, get_msrs, &arg) != 1)
		fail("KVM_GET_MSRS of " + std::to_string(index));
	return arg.entry.data;
}

std::uint32_t can_be_one(int vcpu, msr which)
{
	return static_cast<std::uint32_t>(read(vcpu, which) >> 32);
}

/*
 * What is wanted, and what has to be 1.  Of the latter the newer IA32_VMX_TRUE_... MSRs have less;
 * but exits and registers for what our guests never do cost nothing.
 */
std::uint32_t controls(int vcpu, msr which, std::uint32_t wanted)
{
	if (wanted & ~can_be_one(vcpu, which))
		throw std::runtime_error("this KVM's VMX lacks a control");
	return wanted | static_cast<std::uint32_t>(read(vcpu, which));
}

} // namespace

void enable(int vcpu)
{
	one_msr arg{.count = 1,
		    .padding = 0,
		    .entry{.index = feature_control,
			   .reserved = 0,
			   .data = feature_control_locked | feature_control_vmxon_outside_smx}};

	if (ioctl(vcpu, set_msrs, &arg) != 1)
		fail("KVM_SET_MSRS of IA32_FEATURE_CONTROL");
}

std::uint32_t revision(int vcpu)
{
	/* Bit 31 is always 0 */
	return static_cast<std::uint32_t>(read(vcpu, basic));
}

bool has_ept(int vcpu)
{
	return can_be_one(vcpu, processor_based_controls) & processor_based_secondary &&
	       can_be_one(vcpu, secondary_controls) & secondary_ept &&
	       (read(vcpu, ept_vpid_capabilities) & ept_needed) == ept_needed;
}

vmcs_field ept_pointer(std::uint64_t root)
{
	return {ept_pointer_full, root | eptp_levels | eptp_write_back};
}

std::vector<vmcs_field> fields(int vcpu, const registers &state,
			       std::optional<std::uint64_t> ept_root)
{
	const std::uint32_t secondary = ept_root ? processor_based_secondary : 0;
	std::vector<vmcs_field> all{
		{control_pin_based, controls(vcpu, pin_based_controls, 0)},
		{control_processor_based, controls(vcpu, processor_based_controls, secondary)},
		{control_exit, controls(vcpu, exit_controls, exit_to_64_bit)},
		{control_entry, controls(vcpu, entry_controls, entry_to_ia32e)},
		{guest_vmcs_link_pointer, no_vmcs},
		{guest_cr0, state.cr0},
		{guest_cr3, state.cr3},
		{guest_cr4, state.cr4},
		{guest_rflags, state.rflags},
		{guest_dr7, dr7_after_reset},
		{guest_cs_selector, code_selector},
		{guest_cs_limit, whole_limit},
		{guest_cs_rights, code_rights},
		{guest_tr_selector, task_selector},
		{guest_tr_limit, task_limit},
		{guest_tr_rights, task_rights},
		{host_cr0, state.cr0},
		{host_cr3, state.cr3},
		{host_cr4, state.cr4},
		{host_cs_selector, code_selector},
		{host_tr_selector, task_selector},
	};

	for (const encoding selector : {guest_ds_selector, guest_es_selector, guest_ss_selector,
					host_ds_selector, host_es_selector, host_ss_selector})
		all.push_back({selector, data_selector});
	for (const encoding limit : {guest_ds_limit, guest_es_limit, guest_ss_limit})
		all.push_back({limit, whole_limit});
	for (const encoding rights : {guest_ds_rights, guest_es_rights, guest_ss_rights})
		all.push_back({rights, data_rights});
	for (const encoding rights : {guest_fs_rights, guest_gs_rights, guest_ldtr_rights})
		all.push_back({rights, unusable});
	for (const encoding field : zero)
		all.push_back({field, 0});
	if (ept_root) {
		all.push_back(
			{control_secondary, controls(vcpu, secondary_controls, secondary_ept)});
		all.push_back(ept_pointer(*ept_root));
	}
	return all;
}

} // namespace guests::vmx
