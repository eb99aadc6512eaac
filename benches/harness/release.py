"""Jobs 3 and 4: what is done with deployed versions and with data, and what they cost on the disk."""

import os
import random
import shutil
import subprocess
from pathlib import Path

from . import measure
from .corpora import change, copy, git, repository
from .peers import Ours
from .table import Facts, Group, OURS

VERSIONS = 5
RESTIC = dict(os.environ, RESTIC_PASSWORD="bench", RESTIC_CACHE_DIR="/nonexistent")


class Releases:
    """A node with some versions of a corpus, and what others would have in its place."""

    def __init__(self, size, corpora, tools, rounds, tell):
        self.size, self.tools, self.count, self.tell = size, tools, rounds, tell
        self.corpus = corpora.make(size)
        self.versions = 3 if corpora.quick else VERSIONS
        self.place = corpora.place / "release" / size
        shutil.rmtree(self.place, ignore_errors=True)
        self.clone = repository(self.corpus.tree, self.place / "clone")
        self.log = self.place / "log"
        self.ours = Ours(self.place, self.clone)
        self.ours.set_up()
        settings = self.ours.node / "etc/mc_project/node.yaml"
        settings.write_text(settings.read_text() + "defaults: {keep_archives: 20}\n")
        self.project = self.ours.node / "srv/projects/shop"
        self.disk = [self._used()]
        self.commits = []
        for number in range(self.versions):
            self._commit(number)
            self._push()

    def remove(self):
        shutil.rmtree(self.place, ignore_errors=True)

    def _commit(self, number):
        if number:
            change(self.clone, number)
            git(self.clone, "add", "-A", "-f")
            git(self.clone, "commit", "-q", "-m", f"Version {number}")
        self.commits.append(git(self.clone, "rev-parse", "HEAD"))

    def _push(self):
        sample = measure.run(["git", "push", "-q", self.ours.remote, "main"], cwd=self.clone, log=self.log)
        self.disk.append(self._used())
        return sample

    def _used(self):
        parts = {}
        for name in ("run", "deploy/spare", "deploy", "archives", "releases", "git", "state", "data"):
            words = subprocess.run(["du", "-s", "--block-size=1", self.project / name], capture_output=True, text=True).stdout
            parts[name] = int((words or "0").split()[0])
        return parts

    def command(self, *words, live=None, ok=(0,)):
        environment = self.ours.environment() | {"MC_ROOT": str(self.ours.node)}
        words = [self.ours.binary, *words]
        return lambda: measure.run(words, env=environment, log=self.log, live=live, ok=ok)

    def shell(self, text, live=None, env=None):
        return lambda: measure.run(text, log=self.log, live=live, env=env)

    def group(self, job, words, contenders, goals=(), rounds=None, prepare=None, note=None, warm_up=1):
        samples = measure.rounds(rounds or self.count, contenders, prepare=prepare, warm_up=warm_up, tell=self.tell)
        return Group(job, words, self.size, samples, goals if self.size == "100k" else (), note)

    def drift(self):
        run, again = self.project / "run", self.place / "again"
        copy(run, again)
        git_status = f"git -C {self.clone} status --porcelain"
        group = self.group("drift", "has somebody changed `run`? nobody has", {
            OURS: self.command("drift", "shop"),
            "rsync -an": self.shell(f"rsync -an --delete --itemize-changes {again}/ {run}/"),
            "rsync -anHAX": self.shell(f"rsync -anHAX --delete --itemize-changes {again}/ {run}/"),
            "git status": self.shell(git_status),
        }, [("rsync -an", "wall", 6, 0.17)])
        shutil.rmtree(again)
        return group

    def verify(self):
        run, again = self.project / "run", self.place / "again"
        copy(run, again)
        group = self.group("verify", "reads every content of trees, pool and archives", {
            OURS: self.command("verify", "shop"),
            "rsync -anc": self.shell(f"rsync -anc --delete --itemize-changes {again}/ {run}/"),
        }, rounds=min(2, self.count))
        shutil.rmtree(again)
        return group

    def rollback(self):
        """Goals 12 and 13."""
        run, peer = self.project / "run", self.place / "peer"
        peer.mkdir()
        for name in ("run", "one", "two"):
            copy(self.corpus.v2 if name == "two" else self.corpus.tree, peer / name)
        turn = {"number": 0}
        def prepare(number):
            turn["number"] += 1
        trees = [self.versions - 1, self.versions - 2]  # which versions `run` and the spare hold
        def back(choose):
            def job():
                wanted = choose()
                trees[:] = [wanted, trees[0]]
                return self.command("rollback", "shop", "--to", self.commits[wanted], "--yes", live=run)()
            return job
        before = lambda: trees[1]
        far = lambda: random.choice([number for number in range(self.versions) if number not in trees])
        other = lambda: peer / ["two", "one"][turn["number"] % 2]
        peers = {
            "rsync from an archive": lambda: measure.run(["rsync", "-a", "--delete", f"{other()}/", f"{peer}/run/"], log=self.log),
            "a link (capistrano)": lambda: measure.run(f"ln -s {other()} {peer}/new; mv -T {peer}/new {peer}/current",
                                                       log=self.log, live=peer),
        }
        one = self.group("rollback", "to the version before", peers | {OURS: back(before)},
                         prepare=prepare, warm_up=2)
        many = self.group("rollback far", f"each time to another of {self.versions} versions, 1 % apart, that neither tree holds",
                          peers | {OURS: back(far)},
                          [("rsync from an archive", "wall", 13, 0.1)], prepare=prepare, warm_up=3)
        shutil.rmtree(peer)
        return [one, many]

    def checkout(self):
        new, run = self.place / "new", self.project / "run"
        def fresh(job):
            def made():
                shutil.rmtree(new, ignore_errors=True)
                measure.quiet()
                return job()
            return made
        group = self.group("checkout", "a kept version as a new tree", {
            OURS: fresh(self.command("release", "checkout", "shop", self.commits[1], new)),
            "rsync -a": fresh(self.shell(f"rsync -a {run}/ {new}/")),
            "cp -a": fresh(self.shell(f"cp -a {run} {new}")),
            "git archive": fresh(self.shell(f"mkdir {new}; git -C {self.clone} archive {self.commits[1]} | tar -C {new} -x")),
        }, rounds=max(1, self.count // 2))
        shutil.rmtree(new, ignore_errors=True)
        return group

    def pack(self):
        """Goals 16 and 17."""
        run, new, tarball = self.project / "run", self.place / "new", self.place / "run.tar.zst"
        packed = self.group("pack", "a deliverable of what runs", {
            OURS: self.command("release", "pack", "shop"),
            "tar | zstd -3 -T2": self.shell(f"tar -C {run} --sort=name -c . | zstd -q -3 -T2 -f -o {tarball}"),
        }, [("tar | zstd -3 -T2", "wall", 16, 0.6)], rounds=max(1, self.count // 2))
        ours = sorted(self.project.glob("releases/*.tar.zst"), key=lambda path: path.stat().st_mtime)[-1]
        packed.note = f"ours {ours.stat().st_size} bytes, tar | zstd {tarball.stat().st_size} bytes."
        state, releases = self.place / "state", self.place / "releases"
        state.mkdir()
        releases.mkdir()
        for words in (["sync", run, self.place / "seed", state], ["pack", run, releases, state]):
            measure.run([self.tools.tree, *words], log=self.log)
        shutil.rmtree(self.place / "seed", ignore_errors=True)
        def fresh(job):
            def made():
                for old in (new, new.with_suffix(".store")):
                    shutil.rmtree(old, ignore_errors=True)
                measure.quiet()
                return job()
            return made
        unpacked = self.group("unpack", "a deliverable becomes a tree; ours is verified, and on the disk when it ends", {
            OURS: fresh(lambda: measure.run([self.tools.tree, "unpack", releases, new], log=self.log)),
            "zstd -d | tar x": fresh(self.shell(f"mkdir {new}; zstd -q -d -c {tarball} | tar -C {new} -x")),
            "the same, synced": fresh(self.shell(f"mkdir {new}; zstd -q -d -c {tarball} | tar -C {new} -x; sync -f {new}")),
        }, [("zstd -d | tar x", "wall", 17, 0.6)], rounds=max(1, self.count // 2))
        for old in (new, new.with_suffix(".store"), state, releases):
            shutil.rmtree(old, ignore_errors=True)
        return [packed, unpacked]

    def data(self):
        """Snapshots of data, the corpus as data: unchanged, 1 % changed; and what brings them back."""
        data, vault = self.project / "data", self.place / "vault"
        copy(self.corpus.tree, data / "files")
        vault.mkdir()
        has_restic = shutil.which("restic")
        names = [OURS, "rsync -a", "cp -al + rsync"] + (["restic"] if has_restic else [])
        if has_restic:
            subprocess.run(["restic", "-q", "init", "-r", vault / "restic"], check=True, env=RESTIC)
        rotate = (f"[ ! -e {vault}/last ] || cp -al {vault}/last {vault}/older; rsync -a --delete {data}/ {vault}/last/; "
                  f"rm -rf {vault}/older")
        takers = dict(zip(names, [
            lambda: measure.run([self.tools.tree, "snapshot", self.ours.node, "shop"], log=self.log),
            self.shell(f"rsync -a --delete {data}/ {vault}/plain/"),
            self.shell(rotate),
            self.shell(f"restic -q --no-cache backup -r {vault}/restic {data}", env=RESTIC),
        ]))
        same = self.group("snapshot, nothing changed", "of data", takers, warm_up=2)
        edit = lambda number: change(data / "files", 100 + number)
        changed = self.group("snapshot, 1 % changed", "of data", takers, prepare=edit, rounds=max(1, self.count // 2))
        self._commit(len(self.commits))
        self._push()
        live, out, turn = vault / "live", vault / "out", {"number": 0}
        copy(data / "files", live / "files")
        def prepare(number):
            turn["number"] += 1
            for tree in (data, live):
                change(tree / "files", 200 + turn["number"])
            shutil.rmtree(out, ignore_errors=True)
        def ours():
            words = ("rollback", "shop", "--yes", "--with", "data")
            return self.command(*words, live=self.project / "run")()
        bringers = {OURS: ours, "rsync -a": self.shell(f"rsync -a --delete {vault}/last/ {live}/")}
        if has_restic:
            words = f"restic -q --no-cache restore latest -r {vault}/restic --target {out}"
            bringers["restic restore"] = self.shell(words, env=RESTIC)
        restored = self.group("restore", "data back, 1 % of them changed since; ours brings code back too, and keeps what it "
                              "replaces", bringers, prepare=prepare, rounds=min(2, self.count))
        shutil.rmtree(vault)
        return [same, changed, restored]

    def disk_facts(self):
        """Goal 15."""
        last = self.disk[self.versions]
        trees = last["run"] + last["deploy/spare"]
        kept = lambda used: used["deploy"] - used["deploy/spare"] + used["archives"]
        sizes = [sum(path.lstat().st_blocks * 512 for path in map(Path, self._changed(number))) for number in range(1, self.versions)]
        facts = [f"one tree: {last['run']} bytes on the disk; run and spare: {trees}",
                 f"{self.versions} kept versions and their restore points, beside the two trees: {kept(last)} bytes",
                 f"the files that the {self.versions - 1} changes touched: {sum(sizes)} bytes on the disk",
                 f"deliverables ({self.versions}): {last['releases']} bytes; the bare repository: {last['git']}; state: {last['state']}",
                 f"{self.versions} full copies would take {self.versions * last['run']} bytes"]
        return Facts("disk", "what kept versions cost", self.size, facts)

    def _changed(self, number):
        names = git(self.clone, "diff", "--name-only", "-z", "--diff-filter=d", self.commits[number - 1], self.commits[number])
        return [self.clone / name for name in names.split("\0") if name and os.path.lexists(self.clone / name)]
