"""`make bench-neighbors`: searches under conditions, by both kinds of index, beside a plain statement."""

import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import psycopg
from sqlalchemy import Engine, text

from contextkit import Message, create_index, drop_index, embedding_matrix, messages_df, neighbors_df
from tests.benchmarks.data import write_clusters
from tests.benchmarks.ground import opened_ground
from tests.benchmarks.loads import COLUMNS

RESULTS = Path(__file__).with_name("NEIGHBORS.md")
MESSAGES, CONTEXTS, CLUSTERS = 100_000, 2_000, 300
QUERIES = 20
SHARES = {"50 %": 5_000, "5 %": 500, "0.5 %": 50, "0.01 %": 1}
"""Of 10,000 values of token_count, how many a condition lets through."""
KS = (10, 100, 5_000)


@dataclass(frozen=True)
class Run:
    """A way of searching: rows found, share of the exact ones among them, milliseconds per query."""

    rows: list[int]
    recall: float
    milliseconds: float

    @property
    def cells(self) -> list[str]:
        rows = f"{min(self.rows)}" if len(set(self.rows)) == 1 else f"{min(self.rows)}-{max(self.rows)}"
        return [rows, f"{self.recall:.3f}", f"{self.milliseconds:,.1f}"]


def measured(search: Callable[[Any], list[float]], queries: Any, exact: list[list[float]]) -> Run:
    rows, recalls, times = [], [], []
    search(queries[0])
    for query, wanted in zip(queries, exact, strict=True):
        start = time.perf_counter()
        distances = search(query)
        times.append(time.perf_counter() - start)
        rows.append(len(distances))
        recalls.append(sum(distance <= wanted[-1] for distance in distances) / len(wanted))
    return Run(rows, statistics.mean(recalls), statistics.median(times) * 1e3)


def ours(engine: Engine, where: Any, k: int, mode: Any, query: Any) -> list[float]:
    found = neighbors_df(engine, query, where, k=k, mode=mode)
    return list(found["distance"])


def plain(connection: psycopg.Connection, halfvec: bool, tokens: int, k: int, query: Any) -> list[float]:
    """What a tutorial does; sorting is off, or the planner leaves the index."""
    vector = f"[{','.join(map(str, query.tolist()))}]"
    order = "embedding::halfvec(1536) <=> %s::halfvec(1536)" if halfvec else "embedding <=> %s::vector"
    connection.execute("set local enable_sort = off")
    rows = connection.execute(
        f"select embedding <=> %s::vector as distance, {COLUMNS} from messages"
        f" where deleted_at is null and token_count < {tokens} order by {order} limit {k}",
        [vector, vector],
    ).fetchall()
    connection.rollback()
    return [row[0] for row in rows]


def rows_of_table(engine: Engine, url: str, halfvec: bool, references: dict[tuple[str, int], Any]) -> Iterator[str]:
    queries = sampled(engine)
    with psycopg.connect(url) as connection:
        for (share, k), (exact, compared) in references.items():
            where = Message.token_count < SHARES[share]
            runs = [
                measured(partial(plain, connection, halfvec, SHARES[share], k), queries, exact),
                compared,
                *(measured(partial(ours, engine, where, k, mode), queries, exact) for mode in ("auto", "index")),
            ]
            cells = [share, f"{k:,}", "halfvec" if halfvec else "vector", *(cell for run in runs for cell in run.cells)]
            line = f"| {' | '.join(cells)} |"
            print(line, flush=True)
            yield line


def sampled(engine: Engine) -> Any:
    """Stored vectors, a little off, so that none is its own neighbor at distance 0."""
    frame = messages_df(engine, Message.version == 7, embeddings=True)
    return embedding_matrix(frame.head(QUERIES * 100).iloc[::100]) * 0.99 + 0.0002


def compared_with_all(engine: Engine) -> dict[tuple[str, int], Any]:
    queries = sampled(engine)
    references = {}
    for share, tokens in SHARES.items():
        for k in KS:
            search = partial(ours, engine, Message.token_count < tokens, k, "exact")
            exact = [search(query) for query in queries]
            references[share, k] = exact, measured(search, queries, exact)
    return references


def batched(engine: Engine, mode: Any) -> str:
    """Milliseconds per query of a batch and of single calls, at k 10 and half of the messages."""
    where, queries = Message.token_count < SHARES["50 %"], sampled(engine)
    neighbors_df(engine, queries, where, mode=mode)
    ways: tuple[Callable[[], object], ...] = (
        lambda: neighbors_df(engine, queries, where, mode=mode),
        lambda: [neighbors_df(engine, query, where, mode=mode) for query in queries],
    )
    times = [[_seconds(way) for way in ways] for _ in range(3)]
    batch, single = (statistics.median(way) / len(queries) * 1e3 for way in zip(*times, strict=True))
    return f"{batch:,.1f} ms per query in a batch of {len(queries)}, {single:,.1f} ms one by one"


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def seconds_to_build(engine: Engine, halfvec: bool) -> float:
    return _seconds(lambda: create_index(engine, halfvec=halfvec, progress=False))


def main() -> None:
    with opened_ground() as ground:
        database = ground.empty("clusters")
        write_clusters(database.url, contexts=CONTEXTS, messages=MESSAGES, clusters=CLUSTERS)
        measure(database.url, database.engine)


def measure(url: str, engine: Engine) -> None:
    references = compared_with_all(engine)
    lines, built = [], [f"- exact, 50 %, k 10: {batched(engine, 'exact')}"]
    for halfvec in (False, True):
        seconds = seconds_to_build(engine, halfvec)
        with engine.connect() as connection:
            size = connection.execute(text("select pg_indexes_size('messages')")).scalar_one()
        kind = "halfvec" if halfvec else "vector"
        built.append(f"- {kind}: built in {seconds:.0f} s; all indexes {size >> 20} MB")
        built.append(f"- {kind}, 50 %, k 10: {batched(engine, 'index')}")
        lines += rows_of_table(engine, url, halfvec, references)
        drop_index(engine, halfvec=halfvec)
    packages = ("contextkit", "sqlalchemy", "psycopg", "pandas", "numpy")
    RESULTS.write_text(
        "\n".join(
            [
                "# Searches under conditions",
                "",
                f"Written by `make bench-neighbors`: {MESSAGES:,} messages of 1536 dimensions in {CLUSTERS} clusters",
                "of unequal size, cosine, embedded server over its socket. A condition lets through the given share of",
                f"the messages, apart from the clusters. {QUERIES} queries each: rows found, recall against comparing",
                "with all, median milliseconds of `neighbors_df`. *plain* is one statement through psycopg with its",
                "defaults (ef_search 40, no iterative scan), sorting switched off so that it takes the index.",
                "",
                f"- {platform.system()} {platform.machine()}, {pd.Timestamp.now('UTC'):%Y-%m-%d}",
                f"- {', '.join(f'{name} {version(name)}' for name in packages)}",
                *built,
                "",
                "| condition | k | index | "
                + " | ".join(f"{way}: rows | recall | ms" for way in ("plain", "exact", "auto", "index"))
                + " |",
                "|---|---|---|" + "---|" * 12,
                *lines,
                "",
            ]
        )
    )
    print(RESULTS.read_text())


if __name__ == "__main__":
    main()
