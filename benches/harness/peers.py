"""Those who also put what is pushed in place: each is a bare repository and the hook that people write into it."""

import os
import shutil
import subprocess
from pathlib import Path

from .corpora import git


class Peer:
    """A bare repository without a hook: what git itself takes."""

    name = "bare push"
    hook = None
    # What is looked at to learn when the push was live, below the peer's directory.
    live = None

    def __init__(self, place, clone):
        self.place, self.clone = place / "".join(letter for letter in self.name if letter.isalnum()), clone
        self.remote = self.place / "bare.git"

    def set_up(self):
        """Begins with the first version; the first push makes the rest."""
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir(parents=True)
        subprocess.run(["git", "clone", "-q", "--bare", "--local", self.clone, self.remote], check=True)
        git(self.remote, "config", "gc.auto", "0")
        git(self.remote, "config", "receive.autogc", "false")
        if self.hook:
            hook = self.remote / "hooks" / "post-receive"
            hook.write_text(f"#!/bin/sh\nset -eu\nD={self.place}\nmkdir -p $D/deploy $D/run\n{self.hook}")
            hook.chmod(0o755)

    def environment(self):
        return dict(os.environ, GIT_TERMINAL_PROMPT="0")

    def looked_at(self):
        return self.place / self.live if self.live else None

    def remove(self):
        shutil.rmtree(self.place, ignore_errors=True)


CHECKOUT = "git --work-tree=$D/deploy checkout -q -f main\n"
RSYNC = "rsync -a --delete $D/deploy/ $D/run/\n"


class Checkout(Peer):
    """Not strict: what somebody left in `run` stays."""

    name = "checkout -f"
    hook = "git --work-tree=$D/run checkout -q -f main\n"
    live = "run/{file}"


class Diy(Peer):
    name = "checkout + rsync"
    hook = CHECKOUT + RSYNC
    live = "run/{file}"


class DiyArchive(Peer):
    """Keeps the last three versions, as hard links."""

    name = "checkout + rsync + cp -al"
    hook = (
        "mkdir -p $D/archives\n"
        "[ -z \"$(ls -A $D/run)\" ] || cp -al $D/run $D/archives/$(date +%s%N)\n" + CHECKOUT + RSYNC +
        "ls $D/archives | head -n -3 | while read -r old; do rm -rf $D/archives/$old; done\n"
    )
    live = "run/{file}"


class Makina(Peer):
    """The steps of makina-states without salt: a full archive, the checkout, the sync, and the end of the oldest archive."""

    name = "makina's steps"
    hook = (
        "new=$D/archives/$(date +%s%N)\nmkdir -p $new\nrsync -a $D/run/ $new/\n" + CHECKOUT + RSYNC +
        "ls $D/archives | head -n -1 | while read -r old; do rm -rf $D/archives/$old; done\n"
    )
    live = "run/{file}"


class Capistrano(Peer):
    """A release directory for each push, a link to the newest, two kept."""

    name = "capistrano's steps"
    hook = (
        "new=$D/releases/$(date +%s%N)\nmkdir -p $new\ngit archive main | tar -x -C $new\n"
        "ln -s $new $D/current.new\nmv -T $D/current.new $D/current\n"
        "ls $D/releases | head -n -2 | while read -r old; do rm -rf $D/releases/$old; done\n"
    )
    live = "current"


class Ostree(Peer):
    name = "ostree"
    hook = (
        "[ -e $D/repo ] || ostree --repo=$D/repo init --mode=bare > /dev/null\n" + CHECKOUT +
        "ostree --repo=$D/repo commit -b app --tree=dir=$D/deploy > /dev/null\n"
        "ostree --repo=$D/repo checkout -H app $D/new\nmv $D/run $D/old\nmv $D/new $D/run\nrm -rf $D/old\n"
    )
    live = "run"


class Piku(Peer):
    """Piku's own script, run as its hook runs it."""

    name = "piku"
    script = None
    live = "apps/app/{file}"

    def set_up(self):
        self.hook = f"export PIKU_ROOT=$D PIKU_BASE=$D\nexec python3 {self.script} git-hook app\n"
        super().set_up()
        bare = self.place / "repos" / "app"
        bare.parent.mkdir()
        self.remote.rename(bare)
        self.remote = bare
        for inner in ["apps", "data", "envs", "logs", "nginx", "cache", "uwsgi", "uwsgi-available", "uwsgi-enabled", "acme"]:
            (self.place / inner).mkdir(exist_ok=True)
        subprocess.run(["git", "clone", "-q", bare, self.place / "apps" / "app"], check=True)


class Ours(Peer):
    """A node in a directory, without mail; the deployment's own durable writes are in what it takes."""

    name = "mc_project"
    live = "node/srv/projects/shop/run"
    binary = None

    def set_up(self):
        shutil.rmtree(self.place, ignore_errors=True)
        self.node, project = self.place / "node", self.place / "node/srv/projects/shop"
        self.node.mkdir(parents=True)
        self.run("init", "shop")
        self.remote = project / "git" / "project"
        settings = self.node / "etc/mc_project/node.yaml"
        settings.parent.mkdir(parents=True, exist_ok=True)
        settings.write_text("mail: {transport: none}\n")
        git(self.remote, "config", "gc.auto", "0")
        git(self.remote, "config", "receive.autogc", "false")

    def run(self, *words, **more):
        """A command of the node."""
        environment = self.environment() | {"MC_ROOT": str(self.node)}
        return subprocess.run([self.binary, *words], check=True, env=environment, capture_output=True, text=True, **more)


ALL = [Peer, Ours, Checkout, Diy, DiyArchive, Makina, Capistrano, Ostree, Piku]
