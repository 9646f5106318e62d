"""How a search is answered: by comparing with every message, or by an index that is completed where it is short."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
from sqlalchemy import Connection, Engine, Row, Select

from contextkit.arrow import Column, columns_after, columns_of
from contextkit.asked import Asked
from contextkit.dtypes import to_frame
from contextkit.errors import SchemaError
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
    set_exact,
    set_search,
)

Mode = Literal["auto", "exact", "index"]

FEW_ROWS = 10_000
"""Up to so many matching messages, comparing with each is what auto does."""
MOST_EF_SEARCH = 1000
MANY = 2
"""How many times FEW_ROWS match without conditions for these not to be counted again until the server analyzes them."""
SCANS = (2, 8)
"""How many times k messages and SPARE more an index is asked for, until the last quarter of them adds nothing."""
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


@dataclass(frozen=True)
class _Seen:
    """The index that answered among very many messages without conditions, and the state that it did so in."""

    index: Row[Any]
    state: str


_seen: WeakKeyDictionary[Engine, dict[tuple[Distance, bool], _Seen]] = WeakKeyDictionary()
"""By distance and whether with deleted messages; what was seen holds for as long as the state is the same."""


def answer(connection: Connection, asked: Asked, terms: Terms, mode: Mode, ef_search: int | None) -> Answer:
    """Answer in a mode; the settings of the transaction change."""
    if mode == "exact":
        return exact_answer(connection, asked, terms)
    ef_search = int(ef_search or ef_search_for(terms.k))
    seen = None if terms.where else _seen.get(connection.engine, {}).get((terms.distance, terms.include_deleted))
    if seen is not None and not _overflows(asked, seen.index):
        scan = _scan(terms, seen.index, _scans(terms, seen.index)[0])
        parameters = _parameters(asked, range(len(asked.vectors)))
        ends = not asked.many  # one statement is a snapshot by itself
        (state, *_), first = columns_after(connection, set_search(ef_search), scan, parameters, ends=ends)
        if state == seen.state:
            return index_answer(connection, asked, terms, seen.index, ef_search=ef_search, most=None, first=first)
    limit = FEW_ROWS if terms.where else MANY * FEW_ROWS
    matching = _matching(connection, terms, limit + 1)
    index = _index(connection, terms.distance, mode, matching.rows)
    if index is not None and (obstacle := _obstacle(connection, asked, terms, index)):
        if mode == "index":
            raise SchemaError(obstacle)
        index = None
    if index is None:
        return exact_answer(connection, asked, terms)
    few = matching.rows <= FEW_ROWS
    state = _state(connection, ef_search)
    if not terms.where and matching.rows > limit and not index.rivals:
        _seen.setdefault(connection.engine, {})[terms.distance, terms.include_deleted] = _Seen(index, state)
    most = matching.embedded if few else None
    found = index_answer(connection, asked, terms, index, ef_search=ef_search, most=most)
    found.done["without_embedding"] = matching.rows - matching.embedded if few else None
    return found


def _state(connection: Connection, ef_search: int) -> str:
    """Set what an index is asked with, and tell the state of the database."""
    state: str = connection.execute(set_search(ef_search)).one().state
    return state


def _matching(connection: Connection, terms: Terms, limit: int | None = None) -> Row[Any]:
    return connection.execute(select_matching(*terms.where, limit=limit, include_deleted=terms.include_deleted)).one()


def _index(connection: Connection, distance: Distance, mode: Mode, rows: int) -> Row[Any] | None:
    if mode == "auto" and rows <= FEW_ROWS:
        return None
    try:
        return indexes_to_search(connection, distance)[0]
    except SchemaError:
        if mode == "index":
            raise
        return None


def _obstacle(connection: Connection, asked: Asked, terms: Terms, index: Row[Any]) -> str | None:
    """Say why an index would not be the one that answers, if so."""
    if _overflows(asked, index):
        return f"the query has numbers above {MOST_HALF}, which {index.name} over halfvec cannot compare; scale them"
    if not index.rivals or not len(asked.vectors):
        return None
    settings = connection.begin_nested()
    connection.execute(set_search(ef_search_for(terms.k)))
    scan = _scan(terms, index, terms.k)
    sql = literal_sql(connection, scan, _parameters(asked, range(1)))
    used = set(_index_names(plan_of(connection, sql))) if sql else set(index.rivals)
    settings.rollback()
    if taken := sorted(used.intersection(index.rivals)):
        return f"the planner takes the index {taken[0]} where {index.name} is meant; drop one of the two"
    return None


def _overflows(asked: Asked, index: Row[Any]) -> bool:
    return bool(index.halfvec and (np.abs(asked.vectors) > MOST_HALF).any())


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
    frame, zero, without_embedding = _exact(connection, asked, range(len(asked.vectors)), terms)
    if without_embedding is None:
        matching = _matching(connection, terms)
        without_embedding = matching.rows - matching.embedded
    done: dict[Hashable, Any] = {"mode": "exact", "index": None, "ef_search": None, "completed": 0}
    return Answer(frame, done | {"zero": zero, "without_embedding": without_embedding})


def index_answer(
    connection: Connection,
    asked: Asked,
    terms: Terms,
    index: Row[Any],
    *,
    ef_search: int,
    most: int | None,
    first: list[Column] | None = None,
) -> Answer:
    """Ask an index, and complete what it leaves open.

    Args:
        connection: in a transaction with the settings of `set_search`.
        asked: the queries.
        terms: what they are asked with.
        index: a row of `select_usable`.
        ef_search: what is set there.
        most: how many embedded messages match; None if that is not known.
        first: what the first scan gave, where that was asked already.
    """
    found: list[pd.DataFrame] = []
    opened, short = list(range(len(asked.vectors))), list[int]()
    for scanned in _scans(terms, index):
        columns = first or columns_of(connection, _scan(terms, index, scanned), _parameters(asked, opened))
        states = _states(columns, opened, terms.k, scanned, most, own=asked.ids is not None)
        frame = _framed([column for column in columns if column.name not in STATE], asked, opened)
        if len(states["settled"]) == len(opened):
            found.append(frame)
        elif states["settled"]:
            found.append(frame[frame["query"].isin(states["settled"])])
        opened, short = states["unsettled"], short + states["short"]
        if not opened:
            break
        if first:
            connection.execute(set_search(ef_search))  # those of the first scan may have ended with it
            first = None
    completed = sorted(opened + short)
    zero = 0 if terms.distance != "cosine" else None
    if completed:
        frame, zero, _ = _exact(connection, asked, completed, terms)
        found.append(frame)
    done: dict[Hashable, Any] = {
        "mode": "index",
        "index": index.name,
        "ef_search": ef_search,
        "completed": len(completed),
        "zero": zero,
        "without_embedding": None,
    }
    return Answer(_joined(found), done)


def _joined(found: list[pd.DataFrame]) -> pd.DataFrame:
    if len(found) == 1:
        return found[0]
    parts = [part for part in found if len(part)] or found[:1]
    return pd.concat(parts).sort_values(["query", "rank"], ignore_index=True)


def _states(
    columns: list[Column], queries: list[int], k: int, scanned: int, most: int | None, *, own: bool = False
) -> dict[str, list[int]]:
    """Queries that an index has answered, those that it should be asked for more, and those that it cannot answer.

    Of a query's own message, which is left out, `most` does not tell whether it counts it.
    """
    states: dict[str, list[int]] = {"settled": [], "unsettled": [], "short": []}
    of = {column.name: np.asarray(column.values) for column in columns if column.name in ("query", "distance", *STATE)}
    bounds = np.searchsorted(of["query"], np.arange(len(queries) + 1))
    for query, (start, end) in zip(queries, pairwise(bounds), strict=True):
        found = of["found"][start] if start < end else 0
        ended = found < scanned
        lacks = ended and most is not None and found < most - own
        last = of["distance"][end - 1] if start < end else 0.0
        # Which of equal distances come first, only all of them tell; those that are none come last.
        open_ = np.isnan(last) or (start < end and last == of["following"][end - 1])
        if open_ or lacks or end - start < (k if most is None else min(k, most)):
            state = "short"
        elif ended:
            state = "settled"
        else:
            places = of["place"][start:end]
            late = (places > 0.75 * scanned).sum() > 0.01 * k and (places != np.arange(1, len(places) + 1)).any()
            state = "unsettled" if late else "settled"
        states[state].append(query)
    return states


def _scans(terms: Terms, index: Row[Any]) -> list[int]:
    """How many messages an index is asked for: first for no more than needed where it may well give them in order."""
    sizes = [min(times * terms.k + SPARE, MOST_ROWS) for times in SCANS]
    return sizes if terms.where or index.halfvec else [min(terms.k + 1, MOST_ROWS), *sizes]


def _scan(terms: Terms, index: Row[Any], scanned: int) -> Select[*tuple[Any, ...]]:
    build = select_neighbors_by_index if terms.where else neighbors_template
    return build(
        *terms.where,
        k=terms.k,
        scanned=scanned,
        halfvec=index.halfvec,
        distance=terms.distance,
        include_deleted=terms.include_deleted,
    )


def _parameters(asked: Asked, queries: Sequence[int]) -> dict[str, Any]:
    return {"vectors": asked.vectors[queries], "own_ids": _own_ids(asked, queries)}


def _exact(
    connection: Connection, asked: Asked, queries: Sequence[int], terms: Terms
) -> tuple[pd.DataFrame, int, int | None]:
    """Neighbors of some queries, how many messages have no distance, and of one query how many no embedding."""
    connection.execute(set_exact())
    without_embedding = None
    if len(queries) == 1:
        frame = _exact_one(connection, asked, queries[0], terms)
        without_embedding = _most(frame.pop("without_embedding"))
    else:
        blocks = [queries[start : start + BLOCK] for start in range(0, len(queries), BLOCK)] or [queries]
        frame = pd.concat([_exact_block(connection, asked, block, terms) for block in blocks], ignore_index=True)
    zero = _most(frame.pop("zero"))
    measured = frame["distance"].notna()
    return frame if measured.all() else frame[measured].reset_index(drop=True), zero, without_embedding


def _most(counts: "pd.Series[int]") -> int:
    return int(counts.max()) if len(counts) else 0


def _exact_block(connection: Connection, asked: Asked, queries: Sequence[int], terms: Terms) -> pd.DataFrame:
    many = select_neighbors_of_many(
        [asked.vectors[query] for query in queries],
        *terms.where,
        k=terms.k,
        distance=terms.distance,
        own_ids=_own_ids(asked, queries),
        include_deleted=terms.include_deleted,
    )
    return _framed(columns_of(connection, many), asked, queries)


def _exact_one(connection: Connection, asked: Asked, query: int, terms: Terms) -> pd.DataFrame:
    """Keep nothing but the k nearest, as a block has to."""
    one = select_neighbors(
        asked.vectors[query],
        *terms.where,
        k=terms.k,
        distance=terms.distance,
        own_id=_own_ids(asked, [query])[0],
        include_deleted=terms.include_deleted,
        counted=True,
    )
    frame = to_frame(columns_of(connection, one))
    if asked.many:
        frame.insert(0, "query", np.full(len(frame), query, np.int64))
    return frame


def _framed(columns: list[Column], asked: Asked, queries: Sequence[int]) -> pd.DataFrame:
    """Frame with the numbers of the queries where these are many."""
    if not asked.many:
        return to_frame([column for column in columns if column.name != "query"])
    frame = to_frame(columns)
    frame["query"] = np.asarray(queries, np.int64)[frame["query"].to_numpy(np.int64)]
    return frame


def _own_ids(asked: Asked, queries: Sequence[int]) -> list[str | None]:
    return [None if asked.ids is None else asked.ids[query] for query in queries]
