#!/bin/sh
# Stops the application that start.sh started; nothing to do if none runs.
set -eu
file=$MC_DATA/guestbook.pid
[ -s "$file" ] || exit 0
pid=$(cat "$file")
# The number may belong to another process by now (after a boot, for example): look before killing.
ours() { tr '\0' ' ' 2>/dev/null < "/proc/$pid/cmdline" | grep -q guestbook.py; }
if ours; then
    kill "$pid"
    tries=0
    while ours; do
        tries=$((tries + 1))
        [ "$tries" -lt 100 ] || { kill -9 "$pid"; break; }
        sleep 0.1
    done
fi
rm -f "$file"
