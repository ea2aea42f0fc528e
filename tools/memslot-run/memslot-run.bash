# SPDX-License-Identifier: GPL-2.0
# Completes memslot-run's command line in bash(1): its options, then a command with its own completion.

_memslot_run()
{
	local word=${COMP_WORDS[COMP_CWORD]} i

	COMPREPLY=()
	# The first word that is no option is the command
	for ((i = 1; i < COMP_CWORD; i++)); do
		case ${COMP_WORDS[i]} in
		--)
			i=$((i + 1))
			break
			;;
		# bash takes --stats=FILE apart
		= | -*)
			[ "${COMP_WORDS[i]}" != = ] || i=$((i + 1))
			;;
		*)
			break
			;;
		esac
	done
	if [ "$i" -lt "$COMP_CWORD" ] && declare -F _command_offset >/dev/null; then
		_command_offset "$i"
	elif [ "$i" -lt "$COMP_CWORD" ] || [ "$i" -gt "$COMP_CWORD" ] || [ "$word" = = ]; then
		# a file of --stats=FILE, or an argument of a command of which nothing is known
		compopt -o filenames 2>/dev/null
		mapfile -t COMPREPLY < <(compgen -f -- "${word#=}")
	elif [ "${COMP_WORDS[COMP_CWORD - 1]}" != -- ] && [[ $word == -* ]]; then
		mapfile -t COMPREPLY < <(compgen -W '--stats --stats= --help --version --' -- "$word")
		[[ ${COMPREPLY[*]} != --stats= ]] || compopt -o nospace 2>/dev/null
	else
		mapfile -t COMPREPLY < <(compgen -c -- "$word")
	fi
}

complete -F _memslot_run memslot-run
