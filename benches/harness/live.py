"""The job `live`: versions change under load. Counted are requests that were lost, and the longest wait for an answer.

Everybody serves the same three real servers: gunicorn and node, which take a socket that they are given, and php, which knows
nothing of it. The peers are what people have: a hook that stops, copies and starts, and this project without held sockets.
"""

import shutil
import socket
import subprocess
import sys
import threading
import time

from .measure import spread
from .peers import Ours, Peer

CLIENTS = 2
# Between two requests of a client: a load, and no test of how much the machine can take.
PAUSE = 0.003

WSGI = b"""def app(environ, start):
    body = open("version", "rb").read()
    start("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""
NODE = b"""const http = require('http'), fs = require('fs');
const version = fs.readFileSync('version', 'utf8');
const server = http.createServer((_, answer) => answer.end(version));
server.listen(process.env.LISTEN_FDS ? { fd: 3 } : { host: '127.0.0.1', port: +process.env.PORT });
process.on('SIGTERM', () => server.close(() => process.exit(0)));
"""
PHP = b"<?php usleep(3000); echo file_get_contents('version');\n"


class Servers:
    """The servers: how each is started, with a socket that it is given and without."""

    def __init__(self, place):
        self.venv = place / "venv"
        if not (self.venv / "bin/gunicorn").exists():
            subprocess.run([sys.executable, "-m", "venv", self.venv], check=True)
            subprocess.run([self.venv / "bin/pip", "install", "-q", "gunicorn==23.0.0"], check=True, capture_output=True)
        gunicorn = f"{self.venv}/bin/gunicorn --workers 2"
        self.all = {
            "gunicorn": (f"{gunicorn} wsgi:app", f"{gunicorn} --bind 127.0.0.1:$PORT wsgi:app"),
            "node": ("node server.js", "node server.js"),
            "php": (None, "php -S 127.0.0.1:$PORT index.php"),
        }

    def present(self):
        return {name: how for name, how in self.all.items() if name == "gunicorn" or shutil.which(name)}

    def write(self, clone):
        for name, text in (("wsgi.py", WSGI), ("server.js", NODE), ("index.php", PHP)):
            (clone / name).write_bytes(text)


class Held(Ours):
    name = "mc_project, listen:"

    def recipe(self, servers, ports):
        lines = ["services:"]
        for name, (taking, own) in servers.items():
            port, inner = ports[self.name, name]
            lines += [f"  {name}:", f"    run: exec {taking or own}", f"    listen: {port}"]
            lines += [f"    port: {inner}"] if taking is None else []
        return "\n".join(lines) + "\n"


class Restarted(Ours):
    name = "mc_project, port:"

    def recipe(self, servers, ports):
        lines = ["services:"]
        for name, (_, own) in servers.items():
            lines += [f"  {name}:", f"    run: exec {own}", f"    port: {ports[self.name, name][0]}"]
        return "\n".join(lines) + "\n"


class Hook(Peer):
    """The hook that people write: stop, copy, start."""

    name = "hook: stop, copy, start"

    def hook_for(self, servers, ports):
        lines = ["D=" + str(self.place), "mkdir -p $D/deploy $D/run", "unset GIT_DIR",
                 "git --git-dir=$D/bare.git --work-tree=$D/deploy checkout -q -f main",
                 "for p in $D/*.pid; do [ ! -e $p ] || kill $(cat $p) 2>/dev/null || true; done",
                 "for p in $D/*.pid; do while [ -e $p ] && kill -0 $(cat $p) 2>/dev/null; do sleep 0.02; done; done",
                 "rsync -a --delete $D/deploy/ $D/run/", "cd $D/run"]
        for name, (_, own) in servers.items():
            port = ports[self.name, name][0]
            lines += [f"PORT={port} setsid sh -c 'exec {own}' < /dev/null > $D/{name}.log 2>&1 & echo $! > $D/{name}.pid"]
        return "#!/bin/sh\nset -eu\n" + "\n".join(lines) + "\n"

    def install(self, servers, ports):
        hook = self.remote / "hooks" / "post-receive"
        hook.write_text(self.hook_for(servers, ports))
        hook.chmod(0o755)

    def stop(self):
        for pid in self.place.glob("*.pid"):
            subprocess.run(["sh", "-c", f"kill -9 $(cat {pid}) 2>/dev/null"])


class Load:
    """Clients that ask on a new connection each time, until they are told to end."""

    def __init__(self, port):
        self.port, self.over, self.good, self.bad, self.waits = port, False, 0, [], []
        self.threads = [threading.Thread(target=self._run) for _ in range(CLIENTS)]
        for thread in self.threads:
            thread.start()

    def _run(self):
        while not self.over:
            begin = time.monotonic()
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=60) as client:
                    client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                    answer = b"".join(iter(lambda: client.recv(65536), b""))
                is_good = b" 200 OK" in answer.split(b"\r\n", 1)[0]
            except OSError as error:
                is_good, answer = False, repr(error).encode()
            self.waits.append((begin, time.monotonic() - begin))
            time.sleep(PAUSE)
            if is_good:
                self.good += 1
            else:
                self.bad.append(answer[:60])
                # Nobody asks a hundred thousand times a second where nobody answers.
                time.sleep(0.005)

    def end(self):
        self.over = True
        for thread in self.threads:
            thread.join()
        return self

    def longest(self, begin, end):
        """The longest wait that touches this time, in milliseconds."""
        return 1e3 * max((wait for at, wait in self.waits if at < end and at + wait > begin), default=0)


class Switched:
    """What came of it: a row for each contender and server."""

    job = "live"

    def __init__(self, deployments, rows):
        self.deployments, self.rows = deployments, rows

    def text(self):
        lines = [f"### live: {self.deployments} versions change while clients ask", "",
                 "| server | who | requests | lost | longest wait, ms | of a change, median ms |", "|---|---|---|---|---|---|"]
        for row in self.rows:
            middle, low, high = row["of a change"]
            lines.append(f"| {row['server']} | {row['who']} | {row['requests']} | {row['lost']} | {row['longest']:.0f} "
                         f"| {middle:.0f} ({low:.0f}–{high:.0f}) |")
        return "\n".join(lines) + "\n"

    def json(self):
        return {"job": self.job, "words": "versions change under load", "size": f"{self.deployments} changes", "rows": self.rows}


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def switches(place, deployments, say):
    """Everybody changes the version so many times, in turn, each under its own load."""
    place = place / "live"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    kinds, servers = (Held, Restarted, Hook), Servers(place)
    present = servers.present()
    all_ports = iter(free_ports(2 * len(kinds) * len(present)))
    ports = {(kind.name, name): (next(all_ports), next(all_ports)) for kind in kinds for name in present}
    contenders = [begin(kind, place, servers, present, ports) for kind in kinds]
    loads = {(kind.name, name): Load(ports[kind.name, name][0]) for kind in kinds for name in present}
    spans = {kind.name: [] for kind in kinds}
    try:
        for number in range(deployments):
            for peer in contenders:
                (peer.clone / "version").write_text(f"version {number}\n")
                subprocess.run(["git", "commit", "-qam", f"version {number}"], cwd=peer.clone, check=True)
                start = time.monotonic()
                push(peer)
                time.sleep(0.5)
                spans[peer.name].append((start, time.monotonic()))
            say(f"  live: {number + 1} of {deployments}")
    finally:
        for load in loads.values():
            load.end()
        for peer in contenders:
            peer.stop()
    rows = []
    for server in present:
        for kind in kinds:
            load = loads[kind.name, server]
            changes = [load.longest(*span) for span in spans[kind.name]]
            rows.append({"server": server, "who": kind.name, "requests": load.good + len(load.bad), "lost": len(load.bad),
                         "longest": max(changes), "of a change": list(spread(changes))})
    shutil.rmtree(place, ignore_errors=True)
    return Switched(deployments, rows)


def begin(kind, place, servers, present, ports):
    """A contender with its own clone, its first version serving."""
    clone = place / f"clone{len(list(place.iterdir()))}"
    clone.mkdir()
    servers.write(clone)
    (clone / "version").write_text("the first\n")
    peer = kind(place / "peers", clone)
    if isinstance(peer, Ours):
        (clone / "mc_project.yaml").write_text("sync: {ignore_drift: [__pycache__/, '*.pyc']}\n" + peer.recipe(present, ports))
        peer.stop = lambda: peer.run("destroy", "shop", "--yes", "--with", "data")
    for words in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-qm", "the first"]):
        subprocess.run(["git", *words], cwd=clone, check=True)
    peer.set_up()
    if isinstance(peer, Hook):
        peer.install(present, ports)
        # The bare repository has the first version already: its hook has to run once.
        subprocess.run([peer.remote / "hooks/post-receive"], cwd=peer.remote, check=True)
    else:
        push(peer)
    until = time.monotonic() + 30
    for name in present:
        while time.monotonic() < until:
            try:
                socket.create_connection(("127.0.0.1", ports[kind.name, name][0]), timeout=1).close()
                break
            except OSError:
                time.sleep(0.05)
    return peer


def push(peer):
    done = subprocess.run(["git", "push", "-q", peer.remote, "main"], cwd=peer.clone, capture_output=True, text=True,
                          env=peer.environment())
    if done.returncode != 0:
        raise RuntimeError(f"{peer.name}: {done.stderr}")
