"""What is printed: medians, ratios of the same round, their spread, and whether a goal is reached."""

import os
import platform
import shutil
import subprocess

from .measure import paired, spread

OURS = "mc_project"
HEADS = {"wall": "wall", "live": "live", "settled": "all done", "cpu": "cpu"}


class Group:
    """One job on one corpus: samples of everybody who did it."""

    def __init__(self, job, words, size, samples, goals=(), note=None):
        self.job, self.words, self.size, self.samples, self.note = job, words, size, samples, note
        self.goals = {(goal[0], goal[1]): goal[2:] for goal in goals}

    def rows(self):
        """A row of plain numbers for each contender; times in milliseconds."""
        ours = {name: of for name, of in self.samples.items() if name.startswith(OURS)}
        for name, of in self.samples.items():
            row = {"who": name, "rounds": len(of), "megabytes": max(sample.rss for sample in of) / 1e6}
            for what in ("wall", "live", "settled", "cpu"):
                values = [getattr(sample, what) for sample in of]
                row[what] = None if None in values else [1e3 * value for value in spread(values)]
            row["ratios"] = [] if name in ours else [ratio for our in ours for ratio in self._ratios(our, name)]
            yield row

    def _ratios(self, our, name):
        for what in ("wall", "live", "cpu"):
            mine = [getattr(sample, what) for sample in self.samples[our]]
            # A bare push is live when it has ended.
            theirs = [getattr(s, what) if getattr(s, what) is not None else s.wall for s in self.samples[name]]
            if None in mine:
                continue
            middle, low, high = spread(paired(mine, theirs))
            number, goal = self.goals.get((name, what), (None, None)) if our == OURS else (None, None)
            yield {"ours": our, "of": what, "ratio": middle, "low": low, "high": high, "goal": goal, "number": number}

    def text(self):
        lines = [f"### {self.job}, {self.size}: {self.words}", ""]
        if self.note:
            lines += [self.note, ""]
        rows = list(self.rows())
        # A command that leaves nothing behind and switches nothing is over when it ends.
        plain = all(row["live"] is None for row in rows)
        times, quotients = (["wall", "cpu"],) * 2 if plain else (["wall", "live", "settled", "cpu"], ["wall", "live", "cpu"])
        heads = ["who", "n", *(f"{HEADS[what]} ms" for what in times), "MB", *(f"{HEADS[what]}: ours/theirs" for what in quotients)]
        lines += [_line(heads), "|---" * len(heads) + "|"]
        for row in rows:
            ratios = {ratio["of"]: ratio for ratio in row["ratios"] if ratio["ours"] == OURS}
            lines.append(_line([row["who"], str(row["rounds"]), *(_times(row[what]) for what in times),
                                f"{row['megabytes']:.0f}", *(_ratio(ratios.get(what)) for what in quotients)]))
        lines.append("")
        for row in rows:
            for ratio in row["ratios"]:
                if ratio["ours"] != OURS and ratio["of"] == "wall":
                    lines.append(f"- {ratio['ours']} / {row['who']}: {_ratio(ratio)}")
                if ratio["goal"]:
                    verdict = "reached" if ratio["ratio"] <= ratio["goal"] else "**missed**"
                    lines.append(f"- goal {ratio['number']}: {ratio['of']} / {row['who']} ≤ {ratio['goal']}: "
                                 f"{ratio['ratio']:.3g}, {verdict}")
        return "\n".join(lines) + "\n"

    def json(self):
        return {"job": self.job, "words": self.words, "size": self.size, "note": self.note, "rows": list(self.rows()),
                "samples": {name: [vars(sample) for sample in of] for name, of in self.samples.items()}}


class Facts:
    """Numbers that are counted, not timed: lines of a list."""

    def __init__(self, job, words, size, facts):
        self.job, self.words, self.size, self.facts = job, words, size, facts

    def text(self):
        return "\n".join([f"### {self.job}, {self.size}: {self.words}", ""] + [f"- {fact}" for fact in self.facts]) + "\n"

    def json(self):
        return {"job": self.job, "words": self.words, "size": self.size, "facts": self.facts}


def _line(cells):
    return "| " + " | ".join(cells) + " |"


def _times(values):
    if values is None:
        return ""
    middle, low, high = values
    digits = 1 if middle < 10 else 0
    return f"{middle:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def _ratio(ratio):
    return "" if ratio is None else f"{ratio['ratio']:.3g} ({ratio['low']:.2g}–{ratio['high']:.2g})"


def machine(place):
    """What the numbers were measured on."""
    said = lambda *words: subprocess.run(words, capture_output=True, text=True).stdout.strip().splitlines()
    kind = (said("findmnt", "-n", "-o", "FSTYPE,SOURCE", "-T", place) or ["?"])[0].split()
    with open("/proc/meminfo") as file:
        memory = int(file.readline().split()[1]) / 1e6
    model = [line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
    version = lambda name, *words: next((line.strip(" *'") for line in said(name, *words) if any(map(str.isdigit, line))), name)
    programs = [name for name in ("git", "rsync", "tar", "zstd", "ostree", "restic") if shutil.which(name)]
    versions = {name: version(name, "version" if name == "restic" else "--version") for name in programs}
    return {"kernel": platform.release(), "cores": os.cpu_count(), "processor": (model or ["?"])[0],
            "memory_gb": round(memory), "file_system": " ".join(kind), "load": os.getloadavg(), "versions": versions}


def machine_text(before, after):
    lines = [f"{before['cores']} cores ({before['processor']}), {before['memory_gb']} GB, Linux {before['kernel']}, "
             f"{before['file_system']}; load before {before['load'][0]:.1f}, after {after['load'][0]:.1f}."]
    lines.append("; ".join(before["versions"].values()) + ".")
    return "\n".join(lines) + "\n"
