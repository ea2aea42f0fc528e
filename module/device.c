// SPDX-License-Identifier: GPL-2.0
#include "device.h"

#include <linux/file.h>
#include <linux/fs.h>
#include <linux/kvm_host.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/memslot.h>

#include "batch.h"
#include "commit.h"
#include "gate.h"
#include "kvm_internals.h"
#include "query.h"

#define COMMIT_FLAGS (MEMSLOT_COMMIT_TEST_ONLY | MEMSLOT_COMMIT_PARK | \
		      MEMSLOT_COMMIT_REPLACE_ALL | MEMSLOT_COMMIT_IF_GENERATION)

/* An open /dev/memslot */
struct memslot_file {
	struct mutex lock; /* taken before all else; protects everything here */
	struct kvm *kvm; /* set once, with a reference; NULL until bound */
	struct module *vendor; /* the VM ends in its code; NULL if the VM itself holds it */
	bool query_only;
	struct batch batch;
};

union memslot_argument {
	struct memslot_info info;
	struct memslot_bind bind;
	struct memslot_stage stage;
	struct memslot_commit commit;
	struct memslot_reset reset;
	struct memslot_query query;
};

static int check_owner(struct kvm *kvm, u32 *reason)
{
	if (kvm->mm != current->mm) {
		*reason = MEMSLOT_REASON_OWNER;
		return -EIO;
	}
	if (kvm->vm_dead || kvm->vm_bugged) {
		*reason = MEMSLOT_REASON_DEAD;
		return -EIO;
	}
	return 0;
}

/* May the caller change the VM of this file?  The same right as KVM's own. */
static int check_access(struct memslot_file *file, u32 *reason)
{
	if (!file->kvm) {
		*reason = MEMSLOT_REASON_NOT_BOUND;
		return -ENOTCONN;
	}
	if (file->query_only) {
		*reason = MEMSLOT_REASON_QUERY_ONLY;
		return -EACCES;
	}
	return check_owner(file->kvm, reason);
}

static int ioctl_info(struct memslot_file *file, union memslot_argument *arg)
{
	struct memslot_info *info = &arg->info;
	u32 size = info->size, flags = info->flags;

	*info = (struct memslot_info){
		.size = size,
		.flags = flags,
		.features = MEMSLOT_FEATURE_TEST_ONLY | MEMSLOT_FEATURE_PARK |
			    MEMSLOT_FEATURE_REPLACE_ALL | MEMSLOT_FEATURE_IF_GENERATION |
			    MEMSLOT_FEATURE_DIRTY_BITMAP | MEMSLOT_FEATURE_QUERY,
		.max_slot = KVM_USER_MEM_SLOTS - 1,
		.max_address_spaces = MEMSLOT_MAX_ADDRESS_SPACES,
		.max_entries = BATCH_MAX_ENTRIES,
		.strategies = BIT(MEMSLOT_STRATEGY_FENCE) | BIT(MEMSLOT_STRATEGY_PARK),
	};
	return flags ? -EOPNOTSUPP : 0;
}

static int check_changeable(struct kvm *kvm, u32 *reason)
{
	int err;

	err = check_owner(kvm, reason);
	return err ?: gate_refusal(kvm, reason);
}

static int bind_vm(struct memslot_file *file, struct file *vm_file, bool query_only, u32 *reason)
{
	struct kvm *kvm;
	int err;

	if (!internal(file_is_kvm)(vm_file)) {
		*reason = MEMSLOT_REASON_NOT_KVM;
		return -EINVAL;
	}
	kvm = vm_file->private_data;
	err = query_only ? 0 : check_changeable(kvm, reason);
	if (err)
		return err;
	/* Of the VM, not of its file: closing that must still release it. */
	if (!kvm_get_kvm_safe(kvm)) {
		*reason = MEMSLOT_REASON_DEAD;
		return -EIO;
	}
	file->vendor = vm_file->f_op->owner;
	__module_get(file->vendor);
	file->query_only = query_only;
	/* pairs with ioctl_query(), which does not take the file's lock */
	smp_store_release(&file->kvm, kvm);
	return 0;
}

static int ioctl_bind(struct memslot_file *file, union memslot_argument *arg)
{
	struct memslot_bind *bind = &arg->bind;
	struct file *vm_file;
	int err;

	bind->address_spaces = 0;
	bind->reason = MEMSLOT_REASON_NONE;
	if (bind->flags & ~MEMSLOT_BIND_QUERY_ONLY)
		return -EOPNOTSUPP;
	if (bind->reserved) {
		bind->reason = MEMSLOT_REASON_ARGUMENT;
		return -EINVAL;
	}
	if (file->kvm) {
		bind->reason = MEMSLOT_REASON_BOUND;
		return -EBUSY;
	}
	vm_file = fget(bind->vm_fd);
	if (!vm_file)
		return -EBADF;
	err = bind_vm(file, vm_file, bind->flags & MEMSLOT_BIND_QUERY_ONLY, &bind->reason);
	fput(vm_file);
	if (!err) {
		struct plan_rules rules;

		gate_rules(file->kvm, &rules);
		bind->address_spaces = rules.address_spaces;
	}
	return err;
}

static int ioctl_stage(struct memslot_file *file, union memslot_argument *arg)
{
	struct memslot_stage *stage = &arg->stage;
	const struct batch_input input = {
		.entries = stage->entries,
		.count = stage->count,
		.entry_size = stage->entry_size,
	};
	struct plan_error error;
	struct plan_rules rules;
	u32 staged = file->batch.count;
	int err;

	stage->failed_index = MEMSLOT_NO_ENTRY;
	stage->reason = MEMSLOT_REASON_NONE;
	if (stage->flags)
		return -EOPNOTSUPP;
	err = check_access(file, &stage->reason);
	if (err)
		return err;

	gate_rules(file->kvm, &rules);
	err = batch_append(&file->batch, &input, &rules, &error);
	stage->reason = error.reason;
	if (error.index != MEMSLOT_NO_ENTRY)
		stage->failed_index = error.index - staged;
	return err;
}

/* Flags and the fields that go with them */
static int check_commit(const struct memslot_commit *arg, const struct plan_rules *rules,
			struct plan_error *error)
{
	const u64 *generation = arg->if_generation;
	bool conditional = arg->flags & MEMSLOT_COMMIT_IF_GENERATION;
	bool replaces = arg->flags & MEMSLOT_COMMIT_REPLACE_ALL;

	*error = (struct plan_error){ MEMSLOT_NO_ENTRY, MEMSLOT_REASON_NONE };
	if (arg->reserved || replaces != !!arg->replace_spaces ||
	    (!conditional && (generation[0] || generation[1])))
		error->reason = MEMSLOT_REASON_ARGUMENT;
	else if (arg->replace_spaces >> rules->address_spaces)
		error->reason = MEMSLOT_REASON_ADDRESS_SPACE;
	else
		return 0;
	return -EINVAL;
}

static int commit_batch(struct memslot_file *file, struct memslot_commit *arg)
{
	const struct batch_input input = {
		.entries = arg->entries,
		.count = arg->count,
		.entry_size = arg->entry_size,
	};
	u32 staged = file->batch.count;
	struct plan_request request;
	struct plan_error error;
	struct plan_rules rules;
	int err;

	gate_rules(file->kvm, &rules);
	err = check_commit(arg, &rules, &error);
	if (!err)
		err = batch_append(&file->batch, &input, &rules, &error);
	if (err) {
		arg->failed_index = error.index;
		arg->reason = error.reason;
		commit_refused(file->kvm, arg);
		return err;
	}
	request = (struct plan_request){
		.entries = file->batch.entry,
		.nr_entries = file->batch.count,
		.replace_spaces = arg->replace_spaces,
	};
	err = commit_apply(file->kvm, &request, arg);
	if (!err && !(arg->flags & MEMSLOT_COMMIT_TEST_ONLY))
		staged = 0;
	batch_truncate(&file->batch, staged);
	return err;
}

static int ioctl_commit(struct memslot_file *file, union memslot_argument *arg)
{
	struct memslot_commit *commit = &arg->commit;
	int err;

	*commit = (struct memslot_commit){
		.size = commit->size,
		.flags = commit->flags,
		.entries = commit->entries,
		.count = commit->count,
		.entry_size = commit->entry_size,
		.failed_index = MEMSLOT_NO_ENTRY,
		.if_generation = { commit->if_generation[0], commit->if_generation[1] },
		.replace_spaces = commit->replace_spaces,
		.reserved = commit->reserved,
	};
	if (commit->flags & ~COMMIT_FLAGS)
		return -EOPNOTSUPP;
	err = check_access(file, &commit->reason);
	return err ?: commit_batch(file, commit);
}

static int ioctl_reset(struct memslot_file *file, union memslot_argument *arg)
{
	u32 reason;
	int err;

	if (arg->reset.flags)
		return -EOPNOTSUPP;
	err = check_access(file, &reason);
	if (!err)
		batch_free(&file->batch);
	return err;
}

static int ioctl_query(struct memslot_file *file, union memslot_argument *arg)
{
	struct memslot_query *query = &arg->query;
	/* set once, and lives as long as the file */
	struct kvm *kvm = smp_load_acquire(&file->kvm);
	const struct query_output output = {
		.entries = query->entries,
		.count = query->count,
		.entry_size = query->entry_size,
	};

	query->reason = MEMSLOT_REASON_NONE;
	query->generation = 0;
	if (query->flags)
		return -EOPNOTSUPP;
	if (!kvm) {
		query->reason = MEMSLOT_REASON_NOT_BOUND;
		return -ENOTCONN;
	}
	return query_layout(kvm, &output, query);
}

/*
 * @min_size is the size of the struct's first version.  The reply of an ioctl
 * that @asks nothing but a question has to arrive; any other has been done by
 * then, and must not be reported as failed.  A question is answered without
 * the file's lock: who asks may have slow memory, and must not hold others up.
 */
struct memslot_ioctl {
	unsigned int cmd;
	u32 size;
	u32 min_size;
	bool asks;
	int (*run)(struct memslot_file *file, union memslot_argument *arg);
};

static const struct memslot_ioctl ioctls[] = {
	{ MEMSLOT_IOC_INFO, sizeof(struct memslot_info),
	  offsetofend(struct memslot_info, strategies), true, ioctl_info },
	{ MEMSLOT_IOC_BIND, sizeof(struct memslot_bind),
	  offsetofend(struct memslot_bind, reserved), false, ioctl_bind },
	{ MEMSLOT_IOC_STAGE, sizeof(struct memslot_stage),
	  offsetofend(struct memslot_stage, reason), false, ioctl_stage },
	{ MEMSLOT_IOC_COMMIT, sizeof(struct memslot_commit),
	  offsetofend(struct memslot_commit, generation), false, ioctl_commit },
	{ MEMSLOT_IOC_RESET, sizeof(struct memslot_reset),
	  offsetofend(struct memslot_reset, flags), false, ioctl_reset },
	{ MEMSLOT_IOC_QUERY, sizeof(struct memslot_query),
	  offsetofend(struct memslot_query, generation), true, ioctl_query },
};

static const struct memslot_ioctl *find_ioctl(unsigned int cmd)
{
	unsigned int nr = _IOC_NR(cmd);

	if (nr >= ARRAY_SIZE(ioctls) || ioctls[nr].cmd != cmd)
		return NULL;
	return &ioctls[nr];
}

static long memslot_ioctl(struct file *filp, unsigned int cmd, unsigned long address)
{
	struct memslot_file *file = filp->private_data;
	const struct memslot_ioctl *ioctl = find_ioctl(cmd);
	void __user *user = (void __user *)address;
	union memslot_argument arg = {};
	u32 size;
	int err;

	if (!ioctl)
		return -ENOTTY;
	if (get_user(size, (u32 __user *)user))
		return -EFAULT;
	if (size < ioctl->min_size)
		return -EINVAL;
	if (size > PAGE_SIZE)
		return -E2BIG;
	err = copy_struct_from_user(&arg, ioctl->size, user, size);
	if (err)
		return err;

	if (!ioctl->asks && mutex_lock_killable(&file->lock))
		return -EINTR;
	err = ioctl->run(file, &arg);
	if (!ioctl->asks)
		mutex_unlock(&file->lock);

	if (copy_to_user(user, &arg, min(size, ioctl->size)) && !err && ioctl->asks)
		err = -EFAULT;
	return err;
}

static int memslot_open(struct inode *inode, struct file *filp)
{
	struct memslot_file *file;

	file = kzalloc(sizeof(*file), GFP_KERNEL_ACCOUNT);
	if (!file)
		return -ENOMEM;
	mutex_init(&file->lock);
	filp->private_data = file;
	return 0;
}

static int memslot_release(struct inode *inode, struct file *filp)
{
	struct memslot_file *file = filp->private_data;

	batch_free(&file->batch);
	if (file->kvm)
		kvm_put_kvm(file->kvm);
	module_put(file->vendor);
	mutex_destroy(&file->lock);
	kfree(file);
	return 0;
}

static const struct file_operations memslot_fops = {
	.owner = THIS_MODULE,
	.open = memslot_open,
	.release = memslot_release,
	.unlocked_ioctl = memslot_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.llseek = noop_llseek,
};

static struct miscdevice memslot_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "memslot",
	.fops = &memslot_fops,
	.mode = 0660,
};

int memslot_device_register(void)
{
	return misc_register(&memslot_device);
}

void memslot_device_unregister(void)
{
	misc_deregister(&memslot_device);
}
