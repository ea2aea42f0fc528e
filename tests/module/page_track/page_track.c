// SPDX-License-Identifier: GPL-2.0
/*
 * Does what KVMGT does to a VM: registers to be told of writes to its tracked
 * pages.  Write the VM's file descriptor to the parameter vm_fd, and -1 to end it.
 */
#include <linux/file.h>
#include <linux/kvm_host.h>
#include <linux/module.h>
#include <asm/kvm_page_track.h>

static DEFINE_MUTEX(track_lock); /* protects tracked */
static struct kvm *tracked;

/* Nothing is tracked, so there is nothing to be told of. */
static struct kvm_page_track_notifier_node tracker;

static void untrack(void)
{
	if (!tracked)
		return;
	kvm_page_track_unregister_notifier(tracked, &tracker);
	kvm_put_kvm(tracked);
	tracked = NULL;
}

static int track(int fd)
{
	struct file *file = fget(fd);
	int err = -EINVAL;

	if (!file)
		return -EBADF;
	/* file_is_kvm() is not for modules any more */
	if (!strcmp(file->f_path.dentry->d_name.name, "kvm-vm")) {
		struct kvm *kvm = file->private_data;

		INIT_HLIST_NODE(&tracker.node);
		kvm_page_track_register_notifier(kvm, &tracker);
		/* what that returns depends on the kernel */
		err = -EIO;
		if (!hlist_unhashed(&tracker.node)) {
			kvm_get_kvm(kvm);
			tracked = kvm;
			err = 0;
		}
	}
	fput(file);
	return err;
}

static int set_vm_fd(const char *value, const struct kernel_param *parameter)
{
	int fd, err;

	err = kstrtoint(value, 0, &fd);
	if (err)
		return err;
	mutex_lock(&track_lock);
	untrack();
	err = fd < 0 ? 0 : track(fd);
	mutex_unlock(&track_lock);
	return err;
}

static const struct kernel_param_ops vm_fd_ops = {
	.set = set_vm_fd,
};

module_param_cb(vm_fd, &vm_fd_ops, NULL, 0200);
MODULE_PARM_DESC(vm_fd, "file descriptor of a VM of the writing process");

static int __init page_track_init(void)
{
	return 0;
}

static void __exit page_track_exit(void)
{
	untrack();
}

module_init(page_track_init);
module_exit(page_track_exit);
MODULE_DESCRIPTION("Tracks pages of a VM, to be refused by memslot");
MODULE_LICENSE("GPL");
