"""Runs one command and tells what it cost, whatever it leaves in the background included."""

import ctypes
import json
import os
import random
import resource
import signal
import statistics
import sys
import time

PR_SET_CHILD_SUBREAPER = 36
LIBC = ctypes.CDLL(None, use_errno=True)


class Failed(Exception):
    """A command that was to be measured did not do its job."""


class Sample:
    """What one run cost: seconds until it ended, until it was live, until all it left behind had ended too; CPU; memory."""

    def __init__(self, wall, settled, cpu, rss, live=None):
        self.wall, self.settled, self.cpu, self.rss, self.live = wall, settled, cpu, rss, live


def run(command, *, cwd=None, env=None, log=os.devnull, live=None, ok=(0,), stdin=os.devnull):
    """Runs `command` (a list, or a text for the shell) in a process that also reaps what the command's processes leave
    behind, so that a detached worker is counted as a hook's own children are."""
    words = ["/bin/sh", "-euc", command] if isinstance(command, str) else [str(word) for word in command]
    read_end, write_end = os.pipe()
    began = time.time()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        _measured(words, cwd, env, log, stdin, write_end)
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    told = json.loads(text)
    if told["status"] not in ok:
        with open(log, errors="replace") as file:
            raise Failed(f"{' '.join(words)[:200]}: exit {told['status']}: {file.read()[-2000:]}")
    since = None if live is None else max(0.0, os.lstat(live).st_ctime - began)
    return Sample(told["wall"], told["settled"], told["cpu"], told["rss"], since)


def _measured(words, cwd, env, log, stdin, pipe):
    """The forked half of `run`: never returns."""
    status = 127
    told = {"status": status, "wall": 0, "settled": 0, "cpu": 0, "rss": 0}
    try:
        LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        if cwd:
            os.chdir(cwd)
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        actions = [(os.POSIX_SPAWN_DUP2, out, 1), (os.POSIX_SPAWN_DUP2, out, 2),
                   (os.POSIX_SPAWN_OPEN, 0, stdin, os.O_RDONLY, 0)]
        begin = time.monotonic()
        child = os.posix_spawnp(words[0], words, env if env is not None else os.environ, file_actions=actions)
        rss = 0
        ended = None
        while ended is None:
            pid, state, usage = os.wait4(-1, 0)
            rss = max(rss, usage.ru_maxrss)
            if pid == child:
                ended = time.monotonic() - begin
                status = os.waitstatus_to_exitcode(state)
        while True:
            try:
                usage = os.wait4(-1, 0)[2]
                rss = max(rss, usage.ru_maxrss)
            except ChildProcessError:
                break
        spent = resource.getrusage(resource.RUSAGE_CHILDREN)
        told = {"status": status, "wall": ended, "settled": time.monotonic() - begin,
                "cpu": spent.ru_utime + spent.ru_stime, "rss": rss * 1024}
    except BaseException as error:  # the parent must hear of it, whatever it is
        sys.stderr.write(f"{words[0]}: {error}\n")
    os.write(pipe, json.dumps(told).encode())
    os._exit(0)


def quiet():
    """What was written before is on the disk before the next command is measured: nobody pays for another's writes."""
    os.sync()


def drop_caches():
    """Empties the kernel's caches of files, as only root can; tells whether it did."""
    os.sync()
    try:
        with open("/proc/sys/vm/drop_caches", "w") as door:
            door.write("3")
    except OSError:
        return False
    return True


def rounds(count, contenders, *, prepare=None, warm_up=1, tell=None):
    """Measures every contender once in each round, in an order drawn anew for each; the first rounds are not counted.

    `contenders` maps a name to a function that does its job once and returns a `Sample`."""
    samples = {name: [] for name in contenders}
    warm_up = min(warm_up, count)
    for number in range(warm_up + count):
        if prepare:
            prepare(number)
        order = list(contenders)
        random.shuffle(order)
        for name in order:
            quiet()
            sample = contenders[name]()
            if number >= warm_up:
                samples[name].append(sample)
            if tell:
                tell(number, name, sample)
    return samples


def spread(values):
    """The median and the quartiles around it."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, low, high


def paired(ours, theirs):
    """The quotients of the samples of the same round."""
    return [a / b if b else float("inf") for a, b in zip(ours, theirs)]


def stop(pid):
    """Ends a process that we started."""
    os.kill(pid, signal.SIGTERM)
    os.waitpid(pid, 0)
