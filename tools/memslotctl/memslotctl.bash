# SPDX-License-Identifier: GPL-2.0
# Completes memslotctl's command line in bash(1).

# The processes that have a VM, of those that the user may look into.
_memslotctl_pids()
{
	find /proc/[0-9]*/fd -maxdepth 1 -lname anon_inode:kvm-vm 2>/dev/null | cut -d / -f 3 | sort -nu
}

_memslotctl()
{
	local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} each command=

	COMPREPLY=()
	case $before in
	--svg)
		compopt -o filenames 2>/dev/null
		mapfile -t COMPREPLY < <(compgen -f -- "$word")
		return
		;;
	--vm)
		return
		;;
	--address-space)
		mapfile -t COMPREPLY < <(compgen -W '0 1' -- "$word")
		return
		;;
	esac
	for each in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
		case $each in
		info | list | watch)
			command=$each
			break
			;;
		esac
	done
	case $command:$word in
	list:-*)
		mapfile -t COMPREPLY < <(compgen -W '--vm --address-space --json --svg' -- "$word")
		;;
	list:* | watch:*)
		mapfile -t COMPREPLY < <(compgen -W "$(_memslotctl_pids)" -- "$word")
		;;
	:-*)
		mapfile -t COMPREPLY < <(compgen -W '--help --version' -- "$word")
		;;
	:*)
		mapfile -t COMPREPLY < <(compgen -W 'info list watch' -- "$word")
		;;
	esac
}

complete -F _memslotctl memslotctl
