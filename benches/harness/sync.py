"""Job 2: operations on trees, the engine against those who copy trees."""

import shutil
import subprocess

from . import measure
from .corpora import copy
from .table import Group, OURS

RSYNC = {
    "rsync -a": ["rsync", "-a", "--delete"],
    "rsync -aHAX": ["rsync", "-aHAX", "--delete"],
    "rsync -a --checksum": ["rsync", "-a", "--checksum", "--delete"],
}
UNKNOWN = f"{OURS}, nothing known"


class Trees:
    """Everybody's copy of one corpus, on one file system."""

    def __init__(self, size, corpora, tools, rounds, tell):
        self.size, self.corpus, self.tools, self.count, self.tell = size, corpora.make(size), tools, rounds, tell
        self.place = corpora.place / "sync" / size
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir(parents=True)
        self.state = self.place / "state"
        self.state.mkdir()
        self.log = self.place / "log"

    def remove(self):
        shutil.rmtree(self.place, ignore_errors=True)

    def contender(self, name, target, source):
        """Makes `target` what `source()` is, in the way of `name`."""
        def job():
            if name.startswith(OURS):
                words = [self.tools.tree, "sync", source(), target] + ([] if name == UNKNOWN else [self.state])
            else:
                words = [*RSYNC[name], f"{source()}/", f"{target}/"]
            return measure.run(words, log=self.log)
        return job

    def contenders(self, names, source):
        """One target each, which is a copy of the first version already."""
        jobs = {}
        for name in names:
            target = self.place / "".join(letter for letter in name if letter.isalnum())
            if not target.exists():
                copy(self.corpus.tree, target)
            jobs[name] = self.contender(name, target, source)
        return jobs

    def identical(self):
        """Both trees are looked at, as rsync does. Goal 5 has no row: a time alone is never believed."""
        jobs = self.contenders([OURS, UNKNOWN, *RSYNC], lambda: self.corpus.tree)
        samples = measure.rounds(self.count, jobs, warm_up=2, tell=self.tell)
        return Group("identical", "strict sync of a tree that is the same already, warm", self.size, samples, [])

    def proof(self):
        """Goals 6, 7: what a deployment does with the tree that it will change, after it was made once by `identical`."""
        names = ["rsync -a", "rsync -aHAX"]
        jobs = self.contenders(names, lambda: self.corpus.tree)
        target = self.place / OURS.replace("_", "")
        jobs[OURS] = lambda: measure.run([self.tools.tree, "verify", target, self.state], log=self.log)
        samples = measure.rounds(self.count, jobs, warm_up=1, tell=self.tell)
        goals = [("rsync -a", "wall", 6, 0.17), ("rsync -aHAX", "wall", 7, 0.25)] if self.size == "100k" else []
        return Group("proof", "a tree is what its record says, whatever stands elsewhere", self.size, samples, goals)

    def cold(self):
        """Goal 8."""
        jobs = self.contenders([OURS, "rsync -a"], lambda: self.corpus.tree)
        after_dropping = {name: (lambda job=job: measure.drop_caches() and job()) for name, job in jobs.items()}
        if not measure.drop_caches():
            return None
        samples = measure.rounds(max(1, self.count // 2), after_dropping, tell=self.tell)
        goals = [("rsync -a", "wall", 8, 0.15)] if self.size == "100k" else []
        return Group("cold", "the same with the kernel's caches dropped before each", self.size, samples, goals)

    def changed(self):
        """Goal 9: to and fro between two versions."""
        versions = [self.corpus.v2, self.corpus.tree]
        turn = {"number": 0}
        def prepare(number):
            turn["number"] = number
        jobs = self.contenders([OURS, UNKNOWN, *RSYNC], lambda: versions[turn["number"] % 2])
        samples = measure.rounds(self.count, jobs, prepare=prepare, warm_up=2, tell=self.tell)
        goals = [("rsync -a", "wall", 9, 0.35)] if self.size == "100k" else []
        return Group("changed", "1 % of the files changed, 0.1 % added, 0.1 % deleted", self.size, samples, goals)

    def times(self):
        """Goal 10: what a fresh clone or `git archive` gives."""
        source = self.place / "touched"
        copy(self.corpus.tree, source)
        jobs = self.contenders([OURS, "rsync -a", "rsync -a --checksum"], lambda: source)
        touch = lambda number: subprocess.run(["find", source, "-type", "f", "-exec", "touch", "{}", "+"], check=True)
        samples = measure.rounds(max(1, self.count // 2), jobs, prepare=touch, tell=self.tell)
        shutil.rmtree(source)
        goals = [("rsync -a", "wall", 10, 0.15), ("rsync -a --checksum", "wall", 10, 0.35)] if self.size == "100k" else []
        return Group("times", "the same contents with new times", self.size, samples, goals)

    def first(self):
        """Goal 11."""
        new = self.place / "new"
        def fresh(words):
            def job():
                shutil.rmtree(new, ignore_errors=True)
                measure.quiet()
                return measure.run(words, log=self.log)
            return job
        source = self.corpus.tree
        jobs = {OURS: fresh([self.tools.tree, "sync", source, new, self.state]),
                UNKNOWN: fresh([self.tools.tree, "sync", source, new]),
                "rsync -a": fresh(["rsync", "-a", f"{source}/", f"{new}/"]),
                "cp -a": fresh(["cp", "-a", source, new]),
                "tar to tar": fresh(f"mkdir {new}; tar -C {source} -c . | tar -C {new} -x"),
                "cp -a; sync": fresh(f"cp -a {source} {new}; sync -f {new}")}
        samples = measure.rounds(max(1, self.count // 2), jobs, tell=self.tell)
        shutil.rmtree(new, ignore_errors=True)
        goals = [("rsync -a", "cpu", 11, 0.27), ("cp -a", "cpu", 11, 0.5)] if self.size == "100k" else []
        return Group("first", "the first copy; ours is on the disk when it ends", self.size, samples, goals)
