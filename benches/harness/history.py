"""`status` and `history` after very many deployments."""

import json
import os
import shutil

from . import measure
from .release import Releases
from .table import Group, OURS

def many(size, corpora, tools, rounds, tell, past=10_000):
    """A node with a few deployments, and one whose past is long: each with all the files that a real one has."""
    releases = Releases(size, corpora, tools, rounds, tell)
    short = releases.place / "short"
    shutil.copytree(releases.ours.node, short, symlinks=True)
    lengthen(releases.project, releases.ours.node / "var/log/mc_project/shop", past)
    groups = []
    for words in (["status", "shop"], ["history", "shop"], ["list"], ["doctor"]):
        run = lambda node: measure.run([releases.ours.binary, *words], env=dict(os.environ, MC_ROOT=str(node)), log=releases.log, ok=(0, 1))
        samples = measure.rounds(rounds, {OURS: lambda: run(releases.ours.node), "with 5 past": lambda: run(short)}, tell=tell)
        groups.append(Group(words[0], f"`{' '.join(words)}` with {past} past deployments, against 5", size, samples))
    releases.remove()
    return groups


def lengthen(project, logs, past):
    """Puts `past` deployments before the real ones: the oldest one again and again, under other ids."""
    history = project / "state/history.jsonl"
    lines = history.read_text().splitlines()
    entries = [unsealed(json.loads(line)) for line in lines]
    old, text = entries[0]["id"], json.dumps(entries[0], separators=(",", ":"))
    files = [path for top in (project / "state", logs) for path in top.rglob(f"*{old}*") if path.is_file()]
    made = []
    for number in range(past):
        stamp, uuid = old[:16], old[17:]
        day = f"2024{1 + number // 1000:02d}{1 + number % 28:02d}T{number % 86400 // 3600:02d}{number // 60 % 60:02d}{number % 60:02d}Z"
        new = f"{day}-{uuid[:-12]}{number:012x}"
        assert len(stamp) == len(day)
        made.append(text.replace(old, new).replace('"seq":1,', f'"seq":{number + 1},'))
        for path in files:
            os.link(path, path.with_name(path.name.replace(old, new)))
    for entry in entries:
        entry["seq"] += past
        made.append(json.dumps(entry, separators=(",", ":")))
    history.write_text("\n".join(made) + "\n")
    last = project / "state/last.json"
    record = unsealed(json.loads(last.read_text()))
    record["seq"] += past
    last.write_text(json.dumps(record))


def unsealed(record):
    """A record without its checksum: what is changed by hand is taken as an older version wrote it."""
    record.pop("seal", None)
    return record
