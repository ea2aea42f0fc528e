// SPDX-License-Identifier: GPL-2.0
/*
 * The character device: what an ioctl's struct asks for goes to batch.c, commit.c and
 * query.c in their own words, and what came of it goes back into the struct.
 */
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
#include "deadline.h"
#include "gate.h"
#include "kvm_internals.h"
#include "plan.h"
#include "query.h"

#define CREATE_TRACE_POINTS
#include "trace.h"

#define COMMIT_FLAGS (MEMSLOT_COMMIT_TEST_ONLY | MEMSLOT_COMMIT_PARK | \
		      MEMSLOT_COMMIT_REPLACE_ALL | MEMSLOT_COMMIT_IF_GENERATION)

/* An open /dev/memslot */
struct memslot_file {
	struct mutex lock; /* taken before all else; protects everything here */
	struct file *filp; /* whose private data this is; set once, without a reference */
	struct kvm *kvm; /* set once, with a reference; NULL until bound */
	struct module *vendor; /* the VM ends in its code; NULL if the VM itself holds it */
	bool query_only;
	struct plan_rules rules; /* of the VM; set once, before kvm */
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

/* May the caller change the VM of this file?  The same right as KVM's own. */
static int check_access(struct memslot_file *file, u32 *reason)
{
	/* set once, and lives as long as the file; its lock is not needed to look */
	struct kvm *kvm = smp_load_acquire(&file->kvm);

	if (!kvm) {
		*reason = MEMSLOT_REASON_NOT_BOUND;
		return -ENOTCONN;
	}
	if (file->query_only) {
		*reason = MEMSLOT_REASON_QUERY_ONLY;
		return -EACCES;
	}
	return gate_access(kvm, reason);
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

static int bind_vm(struct memslot_file *file, struct file *vm_file, bool query_only, u32 *reason)
{
	struct kvm *kvm;
	int err;

	if (!internal(file_is_kvm)(vm_file)) {
		*reason = MEMSLOT_REASON_NOT_KVM;
		return -EINVAL;
	}
	kvm = vm_file->private_data;
	if (!query_only) {
		err = gate_access(kvm, reason);
		if (!err)
			err = gate_admission(kvm, NULL, reason);
		if (err)
			return err;
	}
	/* Of the VM, not of its file: closing that must still release it. */
	if (!kvm_get_kvm_safe(kvm)) {
		*reason = MEMSLOT_REASON_DEAD;
		return -EIO;
	}
	file->vendor = vm_file->f_op->owner;
	__module_get(file->vendor);
	file->query_only = query_only;
	gate_rules(kvm, &file->rules);
	/* pairs with smp_load_acquire() of those that do not take the file's lock */
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
	if (!err)
		bind->address_spaces = file->rules.address_spaces;
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
	u32 staged = file->batch.count;
	int err;

	stage->failed_index = MEMSLOT_NO_ENTRY;
	stage->reason = MEMSLOT_REASON_NONE;
	if (stage->flags)
		return -EOPNOTSUPP;
	err = check_access(file, &stage->reason);
	if (err)
		return err;

	err = batch_append(&file->batch, &input, &file->rules, &error);
	stage->reason = error.reason;
	if (error.index != MEMSLOT_NO_ENTRY)
		stage->failed_index = error.index - staged;
	return err;
}

/* Flags and the fields that go with them */
static int check_commit(const struct memslot_file *file, const struct memslot_commit *arg,
			struct plan_error *error)
{
	bool conditional = arg->flags & MEMSLOT_COMMIT_IF_GENERATION;
	bool replaces = arg->flags & MEMSLOT_COMMIT_REPLACE_ALL;

	if (arg->reserved || replaces != !!arg->replace_spaces ||
	    (!conditional && (arg->if_generation[0] || arg->if_generation[1])))
		return plan_blame(error, MEMSLOT_NO_ENTRY, MEMSLOT_REASON_ARGUMENT, -EINVAL);
	if (arg->replace_spaces >> file->rules.address_spaces)
		return plan_blame(error, MEMSLOT_NO_ENTRY, MEMSLOT_REASON_ADDRESS_SPACE, -EINVAL);
	return 0;
}

/*
 * A field of the report has its place in struct memslot_commit, in struct commit_result
 * or in struct plan_totals, here, and in the event memslot_commit_end.
 */
static void encode_commit(const struct commit_result *result, struct memslot_commit *arg)
{
	const struct plan_totals *totals = &result->totals;

	arg->failed_index = result->error.index;
	arg->reason = result->error.reason;
	arg->strategy = result->strategy;
	arg->park_cause = result->park_cause;
	arg->created = totals->count[PLAN_CREATE];
	arg->deleted = totals->count[PLAN_DELETE];
	arg->replaced = totals->count[PLAN_REPLACE];
	arg->moved = totals->count[PLAN_MOVE];
	arg->reflagged = totals->count[PLAN_REFLAG];
	arg->grace_periods = result->grace_periods;
	arg->pages_kept = totals->pages_kept;
	arg->pages_remapped = totals->pages_remapped;
	arg->pages_removed = totals->pages_removed;
	arg->pages_added = totals->pages_added;
	arg->ns_fenced = result->ns_fenced;
	memcpy(arg->generation, result->generation, sizeof(arg->generation));
	arg->tombstones = result->nr_tombstones;
	arg->late_root = result->late_root;
}

/*
 * A commit that is asked to park has its time from the start of the ioctl.  The holder of
 * the file's lock may be a commit that waits for a vCPU which sleeps.
 */
static int lock_batch(struct memslot_file *file, struct commit_options *options, u32 *reason)
{
	int err;

	options->deadline = deadline_from_now();
	if (options->park)
		return deadline_lock(&file->lock, options->deadline, reason);
	err = mutex_lock_killable(&file->lock);
	options->deadline = deadline_from_now();
	return err;
}

/* With the file's lock */
static int commit_batch(struct memslot_file *file, const struct memslot_commit *arg,
			const struct commit_options *options, struct commit_result *result)
{
	const struct batch_input input = {
		.entries = arg->entries,
		.count = arg->count,
		.entry_size = arg->entry_size,
	};
	u32 staged = file->batch.count;
	struct plan_request request;
	int err;

	err = check_commit(file, arg, &result->error);
	if (!err)
		err = batch_append(&file->batch, &input, &file->rules, &result->error);
	if (err) {
		commit_refused(file->kvm, result);
		return err;
	}
	request = (struct plan_request){
		.entries = file->batch.entry,
		.nr_entries = file->batch.count,
		.replace_spaces = arg->replace_spaces,
		.rules = &file->rules,
	};
	trace_memslot_commit_start(file->kvm, request.nr_entries, arg->flags);
	err = commit_apply(file->kvm, &request, options, result);
	trace_memslot_commit_end(file->kvm, err, result);
	if (!err && !options->test_only)
		staged = 0;
	batch_truncate(&file->batch, staged);
	return err;
}

static int ioctl_commit(struct memslot_file *file, union memslot_argument *arg)
{
	struct memslot_commit *commit = &arg->commit;
	struct commit_options options = {
		.test_only = commit->flags & MEMSLOT_COMMIT_TEST_ONLY,
		.park = commit->flags & MEMSLOT_COMMIT_PARK,
		.if_generation = commit->flags & MEMSLOT_COMMIT_IF_GENERATION,
		.generation = { commit->if_generation[0], commit->if_generation[1] },
		.file = file->filp,
	};
	struct commit_result result = { .error = PLAN_NO_ERROR };
	u32 *reason = &result.error.reason;
	int err;

	if (commit->flags & ~COMMIT_FLAGS) {
		err = -EOPNOTSUPP;
		goto out;
	}
	err = check_access(file, reason);
	if (err)
		goto out;
	err = lock_batch(file, &options, reason);
	if (err) {
		commit_refused(file->kvm, &result);
		goto out;
	}
	err = commit_batch(file, commit, &options, &result);
	mutex_unlock(&file->lock);
out:
	encode_commit(&result, commit);
	return err;
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

/**
 * struct memslot_ioctl - how an ioctl is served
 * @cmd: its number, as userspace has it
 * @size: of its struct today
 * @min_size: of its struct's first version, which old programs pass for ever
 * @locked: it runs with the file's lock.  A question is answered without: whoever asks may
 *	have slow memory, and must not hold others up.  A commit takes that lock by itself,
 *	for it may have a deadline
 * @must_reply: it fails where the reply cannot be written.  Only a question does: anything
 *	else has been done by then, and must not be reported as failed
 * @run: does it
 */
struct memslot_ioctl {
	unsigned int cmd;
	u32 size;
	u32 min_size;
	bool locked;
	bool must_reply;
	int (*run)(struct memslot_file *file, union memslot_argument *arg);
};

#define MEMSLOT_IOCTL(_cmd, _struct, _last_of_first, _run, ...)			\
	[_IOC_NR(_cmd)] = {							\
		.cmd = (_cmd),							\
		.size = sizeof(struct _struct),					\
		.min_size = offsetofend(struct _struct, _last_of_first),	\
		.run = (_run),							\
		__VA_ARGS__							\
	}

static const struct memslot_ioctl ioctls[] = {
	MEMSLOT_IOCTL(MEMSLOT_IOC_INFO, memslot_info, strategies, ioctl_info, .must_reply = true),
	MEMSLOT_IOCTL(MEMSLOT_IOC_BIND, memslot_bind, reserved, ioctl_bind, .locked = true),
	MEMSLOT_IOCTL(MEMSLOT_IOC_STAGE, memslot_stage, reason, ioctl_stage, .locked = true),
	MEMSLOT_IOCTL(MEMSLOT_IOC_COMMIT, memslot_commit, generation, ioctl_commit),
	MEMSLOT_IOCTL(MEMSLOT_IOC_RESET, memslot_reset, flags, ioctl_reset, .locked = true),
	MEMSLOT_IOCTL(MEMSLOT_IOC_QUERY, memslot_query, generation, ioctl_query,
		      .must_reply = true),
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

	if (ioctl->locked && mutex_lock_killable(&file->lock))
		return -EINTR;
	err = ioctl->run(file, &arg);
	if (ioctl->locked)
		mutex_unlock(&file->lock);

	if (copy_to_user(user, &arg, min(size, ioctl->size)) && !err && ioctl->must_reply)
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
	file->filp = filp;
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
