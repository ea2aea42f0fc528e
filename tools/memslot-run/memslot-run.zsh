#compdef memslot-run
# SPDX-License-Identifier: GPL-2.0
# Completes memslot-run's command line in zsh(1): its options, then a command with its own completion.

_arguments -S \
	'(- *)'{-h,--help}'[print a summary]' \
	'(- *)--version[print the version]' \
	'--stats=-[at the end tell about the batches, on standard error or in a file]::file:_files' \
	'(-):command: _command_names -e' \
	'*::argument: _normal'
