"""Peak memory of each load beside the size of its result: what a new process grows by, code not counted.

`python -m tests.benchmarks.memory URL LOAD` is that process.
"""

import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from functools import partial

import pandas as pd
import psutil
from sqlalchemy import Engine

from contextkit import Context, connect, forks_df, messages_batches
from tests.benchmarks.cases import LOADS, Load
from tests.benchmarks.ground import Ground
from tests.benchmarks.measuring import Measure

ROWS, MORE_ROWS, BATCH_ROWS = 100_000, 300_000, 10_000
MEGABYTE = 1 << 20


def _size(frame: pd.DataFrame) -> int:
    return int(frame.memory_usage(deep=True).sum())


def _in_a_loop(engine: Engine) -> int:
    """The size of a batch; each goes when the next has come, as in a loop that does nothing else."""
    for batch in messages_batches(engine, batch_rows=BATCH_ROWS, embeddings=True):
        size = _size(batch)
    return size


def _let_go(engine: Engine) -> int:
    """The size of a batch; each goes before the next comes."""
    for batch in messages_batches(engine, batch_rows=BATCH_ROWS, embeddings=True):
        size = _size(batch)
        del batch
    return size


BATCHES = {
    f"messages_batches with embeddings, {BATCH_ROWS:,} each": _in_a_loop,
    f"messages_batches with embeddings, {BATCH_ROWS:,} each, let go before the next": _let_go,
}
MEASURED = LOADS | {name: Load(lambda engine, read=read: partial(read, engine)) for name, read in BATCHES.items()}
SMALL = ("contexts_df", "forks_df")
"""Loads of results so small that what any read takes shows beside them; with more rows it shows less."""


def measure(ground: Ground) -> Iterator[Measure]:
    for name, rows in [*((name, ROWS) for name in MEASURED), *((name, MORE_ROWS) for name in SMALL)]:
        load = MEASURED[name]
        taken = _in_process(load.database(ground, rows).url, name)
        unit = "contexts" if load.forest else "messages"
        yield Measure(
            case=f"{name}, {rows:,} {unit}",
            ours=f"{taken['peak'] / MEGABYTE:,.0f} MB",
            beside="one batch" if name in BATCHES else "its result",
            theirs=f"{taken['result'] / MEGABYTE:,.0f} MB",
            ratio=taken["peak"] / taken["result"],
            most=2 if name in BATCHES else 1.3,
        )


def _in_process(url: str, name: str) -> dict[str, int]:
    # Started by a shell: what a process has before exec counts for its peak, and this one is large by now.
    command = ["sh", "-c", '"$@"; exit $?', "sh", sys.executable, "-m", __spec__.name, url, name]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    taken: dict[str, int] = json.loads(done.stdout)
    return taken


def main(url: str, name: str) -> None:
    """Print the bytes that the process grew by at its peak, and those of the result."""
    engine = connect(url)
    forks_df(engine, Context.name.in_(("conversation 0", "conversation 1")))  # what is imported once
    load = MEASURED[name].prepared(engine)
    before = psutil.Process().memory_info().rss
    result = load()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(json.dumps({"peak": peak - before, "result": result if isinstance(result, int) else _size(result)}))
    engine.dispose()


if __name__ == "__main__":
    main(*sys.argv[1:])
