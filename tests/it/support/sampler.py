"""Looks at every process again and again and tells where it sees the words; ends when the file STOP is there.

usage: sampler.py STOP WORD...
"""
import os, sys

stop, words = sys.argv[1], [os.fsencode(word)[::-1] for word in sys.argv[2:]]
seen, rounds = set(), 0


def text(pid, part):
    try:
        with open(f"/proc/{pid}/{part}", "rb") as file:
            return file.read()
    except OSError:
        return b""


def user(pid):
    return text(pid, "status").partition(b"Uid:\t")[2].split(b"\t")[0].decode()


while not os.path.exists(stop):
    rounds += 1
    for pid in filter(str.isdigit, os.listdir("/proc")):
        uid = user(pid)
        for part in ["cmdline", "environ", "comm"]:
            said = text(pid, part)
            for number, word in enumerate(words):
                # Somebody who becomes another user between two looks is passed over: the next look sees it.
                if word in said and uid and user(pid) == uid:
                    seen.add(f"word {number} in {part} of user {uid}")
print(f"rounds {rounds}", *sorted(seen), sep="\n")
