# SPDX-License-Identifier: GPL-2.0
# Stops the build for a kernel that the module cannot do.  Included by Kbuild;
# "make clean" comes without a configuration.

ifdef CONFIG_MODULES

needs = $(if $(filter y m,$($(1))),,$(error memslot needs a kernel with $(1): $(2)))
refuses = $(if $(filter y m,$($(1))),$(error memslot needs a kernel without $(1): $(2)))

$(call needs,CONFIG_X86_64,it knows the MMU of KVM on x86-64 only)
$(call needs,CONFIG_KVM,it changes the memory of KVM guests)
$(call needs,CONFIG_KPROBES,it finds kallsyms_lookup_name() with a kprobe)
$(call needs,CONFIG_KALLSYMS,it looks functions of KVM up by name)
$(call needs,CONFIG_KALLSYMS_ALL,it looks variables of KVM up by name)
$(call needs,CONFIG_HAVE_STATIC_CALL,it calls functions of KVM with static_call())
$(call needs,CONFIG_TASKS_RCU,unloading waits for threads that leave its code)
$(call refuses,CONFIG_PREEMPT_RT,parking reads the owner of a struct mutex)

# A version is a number here: 6.1 is 6001.
version_number = $(shell echo $$(($(subst ., * 1000 + ,$(1)))))
ifeq ($(shell test $(call version_number,$(VERSION).$(PATCHLEVEL)) -lt \
	$(call version_number,$(KERNEL_MIN)) && echo older),older)
$(error memslot needs Linux $(KERNEL_MIN) or newer, this is $(VERSION).$(PATCHLEVEL))
endif

endif
