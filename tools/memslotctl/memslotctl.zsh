#compdef memslotctl
# SPDX-License-Identifier: GPL-2.0
# Completes memslotctl's command line in zsh(1).

# The processes that have a VM, of those that the user may look into.
_memslotctl_pids() {
	local -a pids
	local each

	for each in ${(f)"$(find /proc/<->/fd -maxdepth 1 -lname anon_inode:kvm-vm 2>/dev/null)"}; do
		pids+=(${${each#/proc/}%%/*})
	done
	(( $#pids )) && _values 'process with a VM' ${(nu)pids}
}

_memslotctl() {
	local curcontext=$curcontext state line
	local -a commands=(
		'info:what the module can do'
		'list:the memory layout of running VMs'
		'watch:commits as they happen'
	)

	_arguments -C \
		'(- *)'{-h,--help}'[print a summary]' \
		'(- *)--version[print the version]' \
		'1:command:->command' \
		'*::argument:->argument' && return

	case $state in
	command)
		_describe command commands
		;;
	argument)
		case $words[1] in
		list)
			_arguments \
				'--vm[only this VM of the process, counted from 0]:number:' \
				'--address-space[only this address space]:number:(0 1)' \
				'--json[for programs]' \
				'--svg[draw a picture, too]:file:_files' \
				'1:process:_memslotctl_pids'
			;;
		watch)
			_arguments '1:process:_memslotctl_pids'
			;;
		esac
		;;
	esac
}

_memslotctl "$@"
