"""Job 1: `git push` of a change to what runs, on one machine, without a build."""

from pathlib import Path

from . import measure
from .corpora import git, repository
from .table import Group

GOALS = {
    "10k": [("bare push", "wall", 1, 1.5), ("checkout + rsync", "wall", 2, 0.2), ("makina's steps", "wall", 3, 0.04), ("piku", "wall", 4, 0.2)],
    "100k": [("bare push", "wall", 1, 1.5), ("checkout + rsync", "wall", 2, 0.06), ("makina's steps", "wall", 3, 0.008), ("piku", "wall", 4, 0.12)],
}


class Clone:
    """Where the developer works: one file changes in each commit."""

    def __init__(self, size, corpora, job):
        self.place = corpora.place / job / size
        self.place.mkdir(parents=True, exist_ok=True)
        self.clone = repository(corpora.make(size).tree, self.place / "clone")
        names = git(self.clone, "ls-files", "-z", "*.py").split("\0")
        self.file = next(name for name in names if (self.clone / name).stat().st_size)
        self.log = self.place / "log"

    def commit(self, number, words=("-a",)):
        if "--allow-empty" not in words:
            with (self.clone / self.file).open("a") as file:
                file.write(f"# change {number}\n")
        git(self.clone, "commit", "-q", *words, "-m", f"Change {number}")

    def push(self, peer, changes=True):
        looked_at = peer.looked_at() if changes else None
        live = Path(str(looked_at).format(file=self.file)) if looked_at else None
        words = ["git", "push", "-q", peer.remote, "main"]
        return measure.run(words, cwd=self.clone, env=peer.environment(), log=self.log, live=live)


class Pushes(Clone):
    """One commit a round, pushed to every peer."""

    def __init__(self, size, corpora, rounds, tell):
        super().__init__(size, corpora, "push")
        self.size, self.count, self.tell = size, rounds, tell

    def contend(self, kinds):
        """The groups of the job for these peers."""
        contenders = [kind(self.place / "peers", self.clone) for kind in kinds]
        for peer in contenders:
            peer.set_up()
        jobs = {peer.name: (lambda peer=peer: self.push(peer)) for peer in contenders}
        # Two rounds to warm up: the first deployment, and the first that has something to be compared with.
        one = measure.rounds(self.count, jobs, prepare=self.commit, warm_up=2, tell=self.tell)
        yield Group("push", "`git push` of one changed file", self.size, one, GOALS.get(self.size, ()))
        empty = lambda number: self.commit(number, ("--allow-empty",))
        count = max(1, self.count // 2)
        jobs = {peer.name: (lambda peer=peer: self.push(peer, changes=False)) for peer in contenders}
        same = measure.rounds(count, jobs, prepare=empty, warm_up=0, tell=self.tell)
        yield Group("push nothing", "`git push` of a commit that changes no file", self.size, same)
        for peer in contenders:
            peer.remove()
