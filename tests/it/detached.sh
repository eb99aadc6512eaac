#!/bin/sh
# Stands for mc_project in tests of detached processes, for which the bare binary has no long work: the hidden
# subcommand goes to the real binary (`real`, beside the link by which this script is called), all else is a script.
if [ "$1" = step-exec ]; then
    exec "${0%/*}/real" "$@"
fi
eval "$1"
