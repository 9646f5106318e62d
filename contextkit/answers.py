"""How a search is answered: by comparing with every message, or by an index that is completed where it is short."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pandas as pd
from sqlalchemy import Connection, Row, Select

from contextkit.arrow import Column, columns_of
from contextkit.asked import Asked, Vectors
from contextkit.errors import SchemaError
from contextkit.frames import to_frame
from contextkit.indexes import indexes_to_search
from contextkit.literals import literal_sql
from contextkit.plans import plan_of
from contextkit.queries import (
    Condition,
    Distance,
    neighbors_template,
    select_matching,
    select_neighbors,
    select_neighbors_by_index,
    select_neighbors_of_many,
    set_search,
)

Mode = Literal["auto", "exact", "index"]

FEW_ROWS = 10_000
"""Up to so many matching messages, comparing with each is what auto does."""
MOST_EF_SEARCH = 1000
SCANS = (2, 8)
"""How many times k messages an index is asked for, until the last quarter of them adds nothing."""
SPARE = 40
STATE = ("place", "found", "following")
"""Columns of a scan that tell whether it has answered."""
BLOCK = 32
"""Queries that one reading of the messages answers; it keeps 8 bytes per message and query meanwhile."""
MOST_ROWS = 2**31 - 1
MOST_HALF = 65_504
"""The largest number of halfvec."""


@dataclass(frozen=True)
class Terms:
    """What every query of a search is asked with."""

    where: tuple[Condition, ...]
    k: int
    distance: Distance
    include_deleted: bool


@dataclass
class Answer:
    """Neighbors of every query, by query and rank, and what was done to find them."""

    frame: pd.DataFrame
    done: dict[Hashable, Any]


def answer(connection: Connection, asked: Asked, terms: Terms, mode: Mode, ef_search: int | None) -> Answer:
    """Answer in a mode; the settings of the transaction change."""
    matching = _matching(connection, terms, None if mode == "exact" else FEW_ROWS + 1)
    index = _index(connection, terms.distance, mode, matching.rows)
    if index is not None and (obstacle := _obstacle(connection, asked, terms, index)):
        if mode == "index":
            raise SchemaError(obstacle)
        index = None
    if index is None:
        if matching.rows > FEW_ROWS and mode != "exact":
            matching = _matching(connection, terms, None)
        found = exact_answer(connection, asked, terms)
    else:
        most = matching.embedded if matching.rows <= FEW_ROWS else None
        found = index_answer(connection, asked, terms, index, ef_search=ef_search, most=most)
    counted = index is None or matching.rows <= FEW_ROWS
    found.done["without_embedding"] = matching.rows - matching.embedded if counted else None
    return found


def _matching(connection: Connection, terms: Terms, limit: int | None) -> Row[Any]:
    return connection.execute(select_matching(*terms.where, limit=limit, include_deleted=terms.include_deleted)).one()


def _index(connection: Connection, distance: Distance, mode: Mode, rows: int) -> Row[Any] | None:
    if mode == "exact" or (mode == "auto" and rows <= FEW_ROWS):
        return None
    try:
        return indexes_to_search(connection, distance)[0]
    except SchemaError:
        if mode == "index":
            raise
        return None


def _obstacle(connection: Connection, asked: Asked, terms: Terms, index: Row[Any]) -> str | None:
    """Say why an index would not be the one that answers, if so."""
    if index.halfvec and (np.abs(asked.vectors) > MOST_HALF).any():
        return f"the query has numbers above {MOST_HALF}, which {index.name} over halfvec cannot compare; scale them"
    if not index.rivals or not len(asked.vectors):
        return None
    settings = connection.begin_nested()
    connection.execute(set_search(ef_search_for(terms.k)))
    scan = _scan(terms, halfvec=index.halfvec, scanned=terms.k)
    sql = literal_sql(connection, scan, _parameters(asked, range(1)))
    used = set(_index_names(plan_of(connection, sql))) if sql else set(index.rivals)
    settings.rollback()
    if taken := sorted(used.intersection(index.rivals)):
        return f"the planner takes the index {taken[0]} where {index.name} is meant; drop one of the two"
    return None


def _index_names(plan: dict[str, Any]) -> Iterator[str]:
    if "Index Name" in plan:
        yield plan["Index Name"]
    for part in plan.get("Plans", ()):
        yield from _index_names(part)


def ef_search_for(k: int) -> int:
    """Give the candidates that an index keeps at once by default."""
    return min(max(SCANS[0] * k + SPARE, 100), MOST_EF_SEARCH)


def exact_answer(connection: Connection, asked: Asked, terms: Terms) -> Answer:
    """Compare with every matching message."""
    frame, zero = _exact(connection, asked, range(len(asked.vectors)), terms)
    done: dict[Hashable, Any] = {"mode": "exact", "index": None, "ef_search": None, "completed": 0, "zero": zero}
    return Answer(frame, done)


def index_answer(
    connection: Connection, asked: Asked, terms: Terms, index: Row[Any], *, ef_search: int | None, most: int | None
) -> Answer:
    """Ask an index, and complete what it leaves open.

    Args:
        connection: in a transaction, whose settings change.
        asked: the queries.
        terms: what they are asked with.
        index: a row of `select_usable`.
        ef_search: None for what k needs.
        most: how many embedded messages match; None if that is not known.
    """
    ef_search = int(ef_search or ef_search_for(terms.k))
    connection.execute(set_search(ef_search))
    found: list[pd.DataFrame] = []
    opened, short = list(range(len(asked.vectors))), list[int]()
    for times in SCANS:
        scanned = min(times * terms.k + SPARE, MOST_ROWS)
        statement = _scan(terms, halfvec=index.halfvec, scanned=scanned)
        columns = columns_of(connection, statement, _parameters(asked, opened))
        states = _states(columns, opened, terms.k, scanned, most)
        frame = _renumbered([column for column in columns if column.name not in STATE], opened)
        whole = len(states["settled"]) == len(opened)
        found.append(frame if whole else frame[frame["query"].isin(states["settled"])])
        opened, short = states["unsettled"], short + states["short"]
        if not opened:
            break
    completed = sorted(opened + short)
    zero = 0 if terms.distance != "cosine" else None
    if completed:
        frame, zero = _exact(connection, asked, completed, terms)
        found.append(frame)
    done: dict[Hashable, Any] = {
        "mode": "index",
        "index": index.name,
        "ef_search": ef_search,
        "completed": len(completed),
        "zero": zero,
    }
    return Answer(_joined(found), done)


def _joined(found: list[pd.DataFrame]) -> pd.DataFrame:
    if len(found) == 1:
        return found[0]
    parts = [part for part in found if len(part)] or found[:1]
    return pd.concat(parts).sort_values(["query", "rank"], ignore_index=True)


def _states(columns: list[Column], queries: list[int], k: int, scanned: int, most: int | None) -> dict[str, list[int]]:
    """Queries that an index has answered, those that it should be asked for more, and those that it cannot answer."""
    states: dict[str, list[int]] = {"settled": [], "unsettled": [], "short": []}
    of = {column.name: np.asarray(column.values) for column in columns if column.name in ("query", "distance", *STATE)}
    bounds = np.searchsorted(of["query"], np.arange(len(queries) + 1))
    for query, (start, end) in zip(queries, pairwise(bounds), strict=True):
        ended = start == end or of["found"][start] < scanned
        tied = start < end and of["distance"][end - 1] == of["following"][end - 1]
        if end - start < (k if most is None else min(k, most)) or tied:
            state = "short"  # which of equal distances come first, only all of them tell
        elif ended:
            state = "settled"
        else:
            late = (of["place"][start:end] > 0.75 * scanned).sum() > 0.01 * k
            state = "unsettled" if late else "settled"
        states[state].append(query)
    return states


def _scan(terms: Terms, *, halfvec: bool, scanned: int) -> Select[*tuple[Any, ...]]:
    build = select_neighbors_by_index if terms.where else neighbors_template
    return build(
        *terms.where,
        k=terms.k,
        scanned=scanned,
        halfvec=halfvec,
        distance=terms.distance,
        include_deleted=terms.include_deleted,
    )


def _parameters(asked: Asked, queries: Sequence[int]) -> dict[str, Any]:
    return {"vectors": [_as_text(asked.vectors[query]) for query in queries], "own_ids": _own_ids(asked, queries)}


def _exact(connection: Connection, asked: Asked, queries: Sequence[int], terms: Terms) -> tuple[pd.DataFrame, int]:
    """Neighbors of some queries, and how many messages have no distance."""
    if len(queries) == 1:
        frame = _exact_one(connection, asked, queries[0], terms)
    else:
        blocks = [queries[start : start + BLOCK] for start in range(0, len(queries), BLOCK)] or [queries]
        frame = pd.concat([_exact_block(connection, asked, block, terms) for block in blocks], ignore_index=True)
    zero = frame.pop("zero")
    return frame, int(zero.max()) if len(zero) else 0


def _exact_block(connection: Connection, asked: Asked, queries: Sequence[int], terms: Terms) -> pd.DataFrame:
    many = select_neighbors_of_many(
        [asked.vectors[query] for query in queries],
        *terms.where,
        k=terms.k,
        distance=terms.distance,
        own_ids=_own_ids(asked, queries),
        include_deleted=terms.include_deleted,
    )
    return _renumbered(columns_of(connection, many), queries)


def _exact_one(connection: Connection, asked: Asked, query: int, terms: Terms) -> pd.DataFrame:
    """Keep nothing but the k nearest, as a block has to."""
    one = select_neighbors(
        asked.vectors[query],
        *terms.where,
        k=terms.k,
        distance=terms.distance,
        own_id=_own_ids(asked, [query])[0],
        include_deleted=terms.include_deleted,
        zero=True,
    )
    frame = to_frame(columns_of(connection, one))
    frame.insert(0, "query", np.full(len(frame), query, np.int64))
    return frame


def _renumbered(columns: list[Column], queries: Sequence[int]) -> pd.DataFrame:
    frame = to_frame(columns)
    frame["query"] = np.asarray(queries, np.int64)[frame["query"].to_numpy(np.int64)]
    return frame


def _own_ids(asked: Asked, queries: Sequence[int]) -> list[str | None]:
    return [None if asked.ids is None else asked.ids[query] for query in queries]


def _as_text(vector: Vectors) -> str:
    # Nine digits tell every float32 from the next.
    return f"[{','.join(['%.9g'] * len(vector)) % tuple(vector.tolist())}]"
