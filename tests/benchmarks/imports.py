"""Importing the package, in new processes."""

import subprocess
import sys
from collections.abc import Iterator
from functools import partial

from tests.benchmarks.ground import Ground
from tests.benchmarks.measuring import Measure, Timed, compared, in_turns

PACKAGE, USED = "import contextkit", "from contextkit import connect, messages_df"
BESIDE = "import pandas, sqlalchemy"


def measure(_ground: Ground) -> Iterator[Measure]:
    """Names import what they need when they are first used, so the package alone is not the whole of it."""
    seconds = in_turns({line: partial(_import, line) for line in (PACKAGE, USED, BESIDE)})
    yield from compared(PACKAGE, seconds, {BESIDE: 1.2}, PACKAGE)
    yield from compared(USED, seconds, {BESIDE: None}, USED)


def _import(line: str) -> Timed:
    """Without the start of the interpreter, which would bring any two imports nearer."""
    program = f"import time; start = time.perf_counter(); {line}; print(time.perf_counter() - start)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return Timed(float(done.stdout))
