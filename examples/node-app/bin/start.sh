#!/bin/sh
# Starts the server as a daemon; its process id goes to $MC_DATA/server.pid, its output to server.log.
set -eu
umask 027
# A session of its own, and none of our descriptors: it must outlive this step and not hold its output open.
setsid node server.js </dev/null >>"$MC_DATA/server.log" 2>&1 &
echo $! > "$MC_DATA/server.pid"
