"""`make bench`: what contextkit takes beside other ways, as ratios within one run.

`python -m tests.benchmarks loads searches` measures these groups only; the other sections of the results stay.
"""

import os
import platform
import signal
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pandas as pd
import psutil

from tests.benchmarks import files, growth, histories, imports, loads, memory, searches, workers, writes
from tests.benchmarks.ground import Ground, opened_ground
from tests.benchmarks.measuring import MOST_ROUNDS, ROUNDS

RESULTS = Path(__file__).with_name("RESULTS.md")
GROUPS = {
    "imports": imports,
    "loads": loads,
    "histories": histories,
    "searches": searches,
    "writes": writes,
    "files": files,
    "workers": workers,
    "memory": memory,
    "growth": growth,
}
PACKAGES = ("contextkit", "sqlalchemy", "psycopg", "adbc-driver-postgresql", "pandas", "numpy", "pyarrow")
HEADING = "\n## "
HEADER = ("case", "contextkit", "beside", "takes", "ratio", "target", "reached")


def main(asked: list[str]) -> None:
    if unknown := set(asked) - GROUPS.keys():
        raise SystemExit(f"no group {', '.join(sorted(unknown))}; there are {', '.join(GROUPS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the folder of gigabytes goes then, too
    with opened_ground() as ground:
        for name in asked or GROUPS:
            sections = _kept() | {name: _measured(name, ground)}
            RESULTS.write_text(_head() + "".join(sections[group] for group in GROUPS if group in sections))


def _kept() -> dict[str, str]:
    """The sections that are there, if they are of this machine and these versions."""
    head, *sections = (RESULTS.read_text() if RESULTS.exists() else "").split(HEADING)
    if head != _head():
        return {}
    return {section.partition("\n")[0].lower(): HEADING + section for section in sections}


def _measured(name: str, ground: Ground) -> str:
    """The section of a group, printed as it comes."""
    group, lines = GROUPS[name], list[str]()

    def say(*more: str) -> None:
        print(*more, sep="\n", flush=True)
        lines.extend(more)

    start = time.perf_counter()
    say(HEADING.strip("\n") + name.capitalize(), "", *_about(group), "")
    say(_row(HEADER), "|---" * len(HEADER) + "|")
    for measure in group.measure(ground):
        say(_row(measure.cells))
    taken, load = time.perf_counter() - start, os.getloadavg()[1]
    say("", f"{pd.Timestamp.now('UTC'):%Y-%m-%d}, in {taken:.0f} s, load average {load:.1f}", "")
    return "\n" + "\n".join(lines)


def _about(group: ModuleType) -> list[str]:
    """What a module says of itself, but for how it is run."""
    return [line for line in (group.__doc__ or "").strip().splitlines() if not line.startswith("`python")]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _head() -> str:
    memory = psutil.virtual_memory().total / 2**30
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GB"
    return f"""# What contextkit takes

Written by `make bench`. Each case is called in turn with what it stands beside, in another order each round, {ROUNDS}
to {MOST_ROUNDS} times after a warm-up; these are medians. Ratios below 1 mean that contextkit is faster. Embedded
server over its socket, as it is installed; messages of 500 characters, embeddings of 1536 dimensions.

- {machine}, Python {platform.python_version()}
- {", ".join(f"{name} {version(name)}" for name in PACKAGES)}
"""


if __name__ == "__main__":
    main(sys.argv[1:])
