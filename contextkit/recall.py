"""How much of the exact answer an index gives, and in what time."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from statistics import mean, median
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from sqlalchemy import Connection, Engine, Row

from contextkit.answers import MOST_EF_SEARCH, Answer, Terms, exact_answer, index_answer
from contextkit.arrow import Column
from contextkit.asked import Asked, read_asked
from contextkit.connection import translated_errors
from contextkit.dtypes import to_frame
from contextkit.errors import SchemaError
from contextkit.frames import read_df
from contextkit.indexes import indexes_df, indexes_to_search
from contextkit.queries import select_sample, set_search

COLUMNS = {
    "index": pa.large_string(),
    "distance": pa.large_string(),
    "halfvec": pa.bool_(),
    "ef_search": pa.int64(),
    "recall": pa.float64(),
    "milliseconds": pa.float64(),
    "exact_milliseconds": pa.float64(),
    "completed": pa.int64(),
}


def recall_df(
    engine: Engine, *, k: int = 10, sample: int = 100, ef_search: Iterable[int] = (40, 100, 200)
) -> pd.DataFrame:
    """One row per valid index and `ef_search`: how much of the exact answer it gives, and in what time.

    Sampled messages ask for their k nearest, of all live ones, as `neighbors_df` does among more than 10,000: among
    fewer it also knows how many there are, and completes what an index lacks. The sample is the same each time.
    Comparing each with every message is what takes long: about a second per query and 100,000 messages.

    Args:
        engine: from `connect`.
        k: neighbors per query.
        sample: most queries.
        ef_search: candidates that an index keeps at once, 1 to 1000 each.

    Returns:
        index, distance, halfvec, ef_search, recall (0 to 1, mean share of found messages that are as near as
        the k exact ones), milliseconds (median per query), exact_milliseconds, completed (queries that the index
        left open, which were answered exactly).

    Raises:
        SchemaError: there is no valid index, or no embedded message to ask with.
        ValueError: an argument is out of range.
    """
    given = [*ef_search]
    if not given:
        raise ValueError("ef_search is at least one whole number")
    for name, value, most in (
        ("k", k, None),
        ("sample", sample, None),
        *(("ef_search", ef, MOST_EF_SEARCH) for ef in given),
    ):
        _check(name, value, most)
    indexes = indexes_df(engine)
    distances: list[Any] = [*indexes.loc[indexes["valid"], "distance"].unique()]
    if not distances:
        raise SchemaError("there is no valid index to measure; create_index(engine) builds one")
    ids = read_df(engine, select_sample(int(sample)))["message_id"]
    if ids.empty:
        raise SchemaError("no message has an embedding, so there is nothing to ask with; embed_missing() fills them in")
    with translated_errors(), engine.connect() as connection:
        asked = read_asked(connection, ids, include_deleted=False)
        queries = [Asked(asked.vectors[row : row + 1], many=True, ids=[id_]) for row, id_ in enumerate(ids)]
        rows = [
            row
            for distance in distances
            for row in _measured(connection, queries, Terms((), int(k), distance, include_deleted=False), given)
        ]
    columns = [
        Column(name, pa.chunked_array([pa.array([row[name] for row in rows], kind)])) for name, kind in COLUMNS.items()
    ]
    frame = to_frame(columns)
    frame.attrs = {
        "function": "recall_df",
        "asked": {"k": int(k), "sample": int(sample), "ef_search": [int(ef) for ef in given]},
        "queries": len(ids),
    }
    return frame


def _measured(connection: Connection, queries: list[Asked], terms: Terms, given: list[int]) -> Iterator[dict[str, Any]]:
    queries = [query for query in queries if terms.distance != "cosine" or query.vectors.any()]
    if not queries:
        return
    exact = [_timed(connection, partial(exact_answer, connection, query, terms)) for query in queries]
    for index in indexes_to_search(connection, terms.distance):
        for ef_search in given:
            by_index = partial(_by_index, connection, terms, index, ef_search)
            found = [_timed(connection, partial(by_index, query)) for query in queries]
            yield {
                "index": index.name,
                "distance": terms.distance,
                "halfvec": index.halfvec,
                "ef_search": ef_search,
                "recall": mean(_share(one.answer, all_.answer) for one, all_ in zip(found, exact, strict=True)),
                "milliseconds": median(one.milliseconds for one in found),
                "exact_milliseconds": median(one.milliseconds for one in exact),
                "completed": sum(one.answer.done["completed"] for one in found),
            }


def _by_index(connection: Connection, terms: Terms, index: Row[Any], ef_search: int, asked: Asked) -> Answer:
    connection.execute(set_search(ef_search))
    return index_answer(connection, asked, terms, index, ef_search=int(ef_search), most=None)


@dataclass(frozen=True)
class _Timed:
    answer: Answer
    milliseconds: float


def _timed(connection: Connection, ask: Callable[[], Answer]) -> _Timed:
    start = time.perf_counter()
    answer = ask()
    milliseconds = (time.perf_counter() - start) * 1e3
    connection.rollback()  # the settings of an index last as long as the transaction
    return _Timed(answer, milliseconds)


def _share(found: Answer, exact: Answer) -> float:
    """Share of the found that are as near as the furthest exact one, so that equal distances count alike."""
    wanted = exact.frame["distance"].dropna()
    return float((found.frame["distance"] <= wanted.max()).sum() / len(wanted)) if len(wanted) else 1.0


def _check(name: str, value: object, most: int | None) -> None:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or not 1 <= value <= (most or np.inf):  # type: ignore[operator]
        raise ValueError(
            f"{name} is a whole number of at least 1{f' and at most {most}' if most else ''}, not {value!r}"
        )
