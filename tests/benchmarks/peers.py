"""The other libraries, each a process in an environment of its own: they need old versions of drivers."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.measuring import Timed

NAMES = ("vecs", "langchain-postgres")
PYTHON = Path(__file__).parents[2] / ".venv-bench" / "bin" / "python"
PROGRAM = Path(__file__).with_name("peer.py")


class Peer:
    """A running peer; its process ends when the pipe to it is closed."""

    def __init__(self, name: str, process: "subprocess.Popen[str]") -> None:
        self._name, self._process = name, process
        self.label = f"{name} {self._answer()['version']}"

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def search(self, row: int, k: int, ef_search: int) -> Timed:
        """The ids found, in the time that the peer's own clock tells."""
        answer = self.ask("search", row=row, k=k, ef_search=ef_search)
        return Timed(answer["seconds"], answer["found"])

    def append(self, count: int) -> Timed:
        return Timed(self.ask("append", count=count)["seconds"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._name} has ended, see above")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def opened_peers(url: str, queries: NDArray[np.float32], folder: Path) -> Iterator[list[Peer]]:
    """The peers on a database, with tables of their own in it, and these vectors to search with."""
    if not PYTHON.exists():
        raise SystemExit("the peers are not installed; `make bench` does that")
    path = folder / "queries.npy"
    np.save(path, queries)
    with ExitStack() as stack:
        yield [Peer(name, stack.enter_context(_process(name, url, path))) for name in NAMES]


@contextmanager
def _process(name: str, url: str, queries: Path) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [PYTHON, PROGRAM, name, url, queries],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"LANGSMITH_TRACING": "false"},
    )
    with process:  # closes the pipes, then waits
        yield process
