#!/bin/sh
# Starts the application as a daemon; its process id goes to $MC_DATA/guestbook.pid, its output to guestbook.log.
set -eu
umask 027
# A session of its own, and none of our descriptors: it must outlive this step and not hold its output open.
setsid venv/bin/python guestbook.py </dev/null >>"$MC_DATA/guestbook.log" 2>&1 &
echo $! > "$MC_DATA/guestbook.pid"
