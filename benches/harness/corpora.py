"""The trees that are measured: real packages of PyPI and npm, cut to a number of files."""

import json
import os
import random
import shutil
import subprocess
import sysconfig
from pathlib import Path

PYTHON = ["django", "numpy", "djangorestframework", "celery", "requests", "sqlalchemy", "flask"]
NPM = ["next", "jest", "webpack", "webpack-cli", "typescript", "eslint", "react", "react-dom", "@angular/core",
       "@angular/cli", "rxjs", "lodash", "date-fns", "core-js", "antd", "@mui/material", "@mui/icons-material"]
SIZES = {"tiny": 200, "1k": 1_000, "10k": 10_000, "100k": 100_000, "1m": 1_000_000}
BIG = 1024 * 1024
COPIES = 10
# A deployment refuses attributes that ask for filters; one package brings such a file.
LEFT_OUT = {".gitattributes", ".git"}


class Corpus:
    """A tree, and the same tree a version later."""

    def __init__(self, name, place):
        self.name, self.tree, self.v2 = name, place / "v1", place / "v2"

    def facts(self):
        files = dirs = size = 0
        for _, inner, names, fd in os.fwalk(self.tree):
            dirs += len(inner)
            files += len(names)
            size += sum(os.lstat(name, dir_fd=fd).st_size for name in names)
        return {"files": files, "dirs": dirs, "bytes": size}


class Corpora:
    """Where packages are downloaded to and corpora are made; `quick` takes Python's own library, which is here already."""

    def __init__(self, cache, place, say, quick=False):
        self.cache, self.place, self.say, self.quick = cache, place, say, quick

    def packages(self):
        """Downloads the packages, once."""
        if self.quick:
            return [Path(sysconfig.get_path("stdlib"))]
        done = self.cache / "packages" / "done"
        if not done.exists():
            python, npm = self.cache / "packages" / "py", self.cache / "packages" / "js"
            python.mkdir(parents=True, exist_ok=True)
            npm.mkdir(parents=True, exist_ok=True)
            self.say("downloading packages of PyPI and npm")
            subprocess.run(["python3", "-m", "pip", "install", "-q", "--no-compile", "--target", python, *PYTHON], check=True)
            (npm / "package.json").write_text(json.dumps({"name": "corpus", "private": True}))
            subprocess.run(["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--silent", *NPM], cwd=npm, check=True)
            done.touch()
        return [self.cache / "packages" / "py", self.cache / "packages" / "js" / "node_modules"]

    def make(self, name):
        """The corpus of this name, made if it is not there."""
        corpus = Corpus(name, self.place / "corpora" / name)
        if not (corpus.tree.parent / "made").exists():
            shutil.rmtree(corpus.tree.parent, ignore_errors=True)
            corpus.tree.mkdir(parents=True)
            self.say(f"making the corpus {name}")
            if name == "big":
                self._big(corpus.tree)
            elif name == "1m":
                hundred = self.make("100k")
                for number in range(COPIES):
                    copy(hundred.tree, corpus.tree / f"part-{number}")
            else:
                self._cut(corpus.tree, SIZES[name])
            copy(corpus.tree, corpus.v2)
            change(corpus.v2)
            (corpus.tree.parent / "made").touch()
        return corpus

    def _files(self):
        """All files of the packages below `BIG`, package by package, those of Python first."""
        for top in self.packages():
            for here, dirs, names in os.walk(top):
                dirs.sort()
                for name in sorted(names):
                    path = Path(here, name)
                    if name not in LEFT_OUT and (path.is_symlink() or path.stat().st_size < BIG):
                        yield path, Path(top.name, path.relative_to(top))

    def _cut(self, tree, count):
        made = 0
        for path, relative in self._files():
            if made == count:
                return
            place_file(path, tree / relative)
            made += 1
        if made < count:
            raise SystemExit(f"the packages have {made} files only, {count} are needed")

    def _big(self, tree):
        for top in self.packages():
            for path in sorted(p for p in top.rglob("*") if p.is_file() and not p.is_symlink()):
                if path.stat().st_size >= BIG:
                    place_file(path, tree / path.relative_to(top).as_posix().replace("/", "-"))


def place_file(path, target):
    """Copies one file, as a checkout of git would make it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink():
        target.symlink_to(os.readlink(path))
    else:
        shutil.copyfile(path, target)
        target.chmod(0o755 if os.access(path, os.X_OK) and path.stat().st_mode & 0o100 else 0o644)


def copy(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "-a", source, target], check=True)


def change(tree, seed=0):
    """Changes 1 % of the files, adds 0.1 % and deletes 0.1 %; always the same ones for the same seed."""
    files = []
    for here, dirs, names in os.walk(tree):
        if ".git" in dirs:
            dirs.remove(".git")
        files += [path for path in (Path(here, name) for name in names) if not path.is_symlink()]
    files.sort()
    draw = random.Random(seed)
    drawn = draw.sample(files, max(3, len(files) * 12 // 1000))
    tenth = max(1, len(drawn) // 12)
    for path in drawn[:tenth]:
        path.unlink()
    for path in drawn[tenth:2 * tenth]:
        path.with_name(path.name + ".added").write_bytes(path.read_bytes() + b"added\n")
    for path in drawn[2 * tenth:]:
        with path.open("ab") as file:
            file.write(b"/* changed */\n")


def repository(tree, place):
    """A clone that a developer works in, with the tree as its first commit."""
    if (place / ".git" / "made").exists():
        return place
    shutil.rmtree(place, ignore_errors=True)
    copy(tree, place)
    git(place, "init", "-q", "-b", "main")
    for key, value in {"user.name": "Developer", "user.email": "developer@example.org", "gc.auto": "0",
                       "core.untrackedCache": "true", "commit.gpgsign": "false", "core.excludesFile": "/dev/null"}.items():
        git(place, "config", key, value)
    git(place, "add", "-A", "-f")
    git(place, "commit", "-q", "-m", "First version")
    git(place, "repack", "-q", "-a", "-d")
    (place / ".git" / "made").touch()
    return place


def git(place, *words):
    """What git says."""
    return subprocess.run(["git", "-C", str(place), *words], check=True, capture_output=True, text=True).stdout.strip()
