"""Tries to see and to change everything that it is told of; tells what it could. It changes nothing for good.

usage: probe.py PATHS PIDS   (each a file: names that end with NUL, and numbers)
"""
import ctypes, os, signal, socket, stat, sys

could = []


def attempt(what, act):
    try:
        act()
    except OSError:
        return
    could.append(what)


def there_and_back(path):
    os.rename(path, path + ".probed")
    os.rename(path + ".probed", path)


def add(directory):
    at = os.path.join(directory, "probe-was-here")
    os.close(os.open(at, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    os.unlink(at)


def open_as(path, flags):
    os.close(os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW))


def connect(path):
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(path)


def give_mode(path):
    os.chmod(path, stat.S_IMODE(os.lstat(path).st_mode))


def attach(pid):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(16, pid, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")
    os.waitpid(pid, 0)
    libc.ptrace(17, pid, 0, 0)


for path in open(sys.argv[1], "rb").read().split(b"\0"):
    path = os.fsdecode(path)
    if not path:
        continue
    attempt("list " + path, lambda: os.listdir(path))
    attempt("read " + path, lambda: open_as(path, os.O_RDONLY))
    attempt("write " + path, lambda: open_as(path, os.O_WRONLY | os.O_APPEND))
    attempt("follow " + path, lambda: os.readlink(path))
    attempt("add to " + path, lambda: add(path))
    attempt("rename " + path, lambda: there_and_back(path))
    attempt("chmod " + path, lambda: give_mode(path))
    attempt("connect to " + path, lambda: connect(path))

for pid in open(sys.argv[2]).read().split():
    attempt("signal " + pid, lambda: os.kill(int(pid), 0))
    attempt("trace " + pid, lambda: attach(int(pid)))
    for part in ["environ", "mem", "maps", "stack"]:
        attempt(f"{part} of {pid}", lambda: open(f"/proc/{pid}/{part}", "rb").read(1))
    for part in ["cwd", "root", "exe"]:
        attempt(f"{part} of {pid}", lambda: os.readlink(f"/proc/{pid}/{part}"))
    attempt("fd of " + pid, lambda: os.listdir(f"/proc/{pid}/fd"))

print("\n".join("COULD " + what for what in could))
sys.exit(1 if could else 0)
