"""Fuzz every target, or those named, for CONTEXTKIT_EXAMPLES executions each; ends with 1 if one failed."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.fuzz.seeds import seeds_of
from tests.fuzz.targets import TARGETS

RUNS = int(os.environ.get("CONTEXTKIT_EXAMPLES", "100000"))
SLOW = {"markdown": 20, "files": 4}
"""By what the executions of a target are divided."""
FOLDER = Path(".fuzz")
DONE = re.compile(r"Done (\d+) runs in (\d+) second")


def fuzz(name: str) -> bool:
    """Whether a target held; what it reached is kept for the next time."""
    corpus, finds = FOLDER / name, FOLDER / "finds"
    for folder in (corpus, finds):
        folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds_of(name)):
        (corpus / f"seed-{number}").write_bytes(seed)
    options = [f"-runs={RUNS // SLOW.get(name, 1)}", "-max_len=6000", "-timeout=60", "-rss_limit_mb=2048"]
    command = [sys.executable, "-m", "tests.fuzz.one", name, str(finds), *options, str(corpus)]
    ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    found = re.findall(r"^(?:FOUND|==\d+== ERROR).*", ran.stdout, re.MULTILINE)
    done = DONE.search(ran.stdout)
    count = f"{done[1]} executions in {done[2]} s" if done else ran.stdout[-2_000:]
    print(f"{name}: {count}, {len(found)} found", *found, sep="\n  ", flush=True)
    return bool(done) and not found


if __name__ == "__main__":
    held = [fuzz(name) for name in sys.argv[1:] or TARGETS]
    sys.exit(not all(held))
