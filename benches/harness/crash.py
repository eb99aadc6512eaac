"""Job 1b: the first push after the worker was killed, so that nothing vouches for the spare."""

import os
import signal
import subprocess
import time
from pathlib import Path

from . import measure
from .peers import Ours, Peer
from .push import Clone
from .table import Group

GOALS = {"10k": [("bare push", "wall", "1b", 2.5)], "100k": [("bare push", "wall", "1b", 6)]}


def after_a_crash(size, corpora, rounds, tell):
    """Before each push that is measured there is one whose worker is killed as soon as git has answered."""
    clone = Clone(size, corpora, "crash")
    ours, bare = Ours(clone.place / "peers", clone.clone), Peer(clone.place / "peers", clone.clone)
    for peer in (ours, bare):
        peer.set_up()
    def prepare(number):
        clone.commit(2 * number)
        for peer in (ours, bare):
            subprocess.run(["git", "push", "-q", peer.remote, "main"], cwd=clone.clone, check=True, capture_output=True)
        kill_workers(ours.node)
        clone.commit(2 * number + 1)
    jobs = {peer.name: (lambda peer=peer: clone.push(peer)) for peer in (ours, bare)}
    samples = measure.rounds(max(1, rounds // 2), jobs, prepare=prepare, tell=tell)
    for peer in (ours, bare):
        peer.remove()
    return Group("crash", "`git push` of one changed file, after a push whose worker was killed", size, samples, GOALS.get(size, ()))


def kill_workers(node):
    """Kills what works for this node and waits until all of it is gone, its watcher too."""
    def working():
        for entry in Path("/proc").iterdir():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if entry.name.isdigit() and str(node).encode() in words and words[0].endswith(b"mc_project"):
                yield int(entry.name), words
    for pid, words in list(working()):
        if b"work" in words:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
    until = time.monotonic() + 120
    while any(True for _ in working()) and time.monotonic() < until:
        time.sleep(0.02)
