"""Importing the package, in new processes."""

import subprocess
import sys
from collections.abc import Iterator

from tests.benchmarks.ground import Ground
from tests.benchmarks.measuring import Measure, Timed, compared, in_turns

BESIDE = "import pandas, sqlalchemy"


def measure(_ground: Ground) -> Iterator[Measure]:
    seconds = in_turns({"contextkit": lambda: _import("contextkit"), BESIDE: lambda: _import("pandas, sqlalchemy")})
    yield from compared("import contextkit", seconds, {BESIDE: 1.2})


def _import(names: str) -> Timed:
    """Without the start of the interpreter, which would bring any two imports nearer."""
    program = f"import time; start = time.perf_counter(); import {names}; print(time.perf_counter() - start)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return Timed(float(done.stdout))
