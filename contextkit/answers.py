"""How a search is answered: by comparing with every message, or by an index that is completed where it is short."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from sqlalchemy import Connection, Row, Select

from contextkit.arrow import columns_of
from contextkit.asked import Asked, Vectors
from contextkit.errors import SchemaError
from contextkit.frames import to_frame
from contextkit.indexes import indexes_to_search
from contextkit.queries import (
    Condition,
    Distance,
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
    done: dict[str, Any]


def answer(connection: Connection, asked: Asked, terms: Terms, mode: Mode, ef_search: int | None) -> Answer:
    """Answer in a mode; the settings of the transaction change."""
    matching = _matching(connection, terms, None if mode == "exact" else FEW_ROWS + 1)
    index = _index(connection, terms.distance, mode, matching.rows)
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


def exact_answer(connection: Connection, asked: Asked, terms: Terms) -> Answer:
    """Compare with every matching message."""
    frame = _exact(connection, asked, range(len(asked.vectors)), terms)
    zero = int(frame["zero"].max()) if len(frame) else 0
    done = {"mode": "exact", "index": None, "ef_search": None, "completed": 0, "zero": zero}
    return Answer(frame.drop(columns="zero"), done)


def index_answer(
    connection: Connection, asked: Asked, terms: Terms, index: Row[Any], *, ef_search: int | None, most: int | None
) -> Answer:
    """Ask an index, and complete what it leaves open.

    Args:
        connection: in a transaction, whose settings change.
        asked: the queries.
        terms: what they are asked with.
        index: a row of `select_indexes`.
        ef_search: None for what k needs.
        most: how many embedded messages match; None if that is not known.
    """
    ef_search = int(ef_search or min(max(SCANS[0] * terms.k + SPARE, 100), MOST_EF_SEARCH))
    connection.execute(set_search(ef_search))
    found: list[pd.DataFrame] = []
    opened, few = list(range(len(asked.vectors))), list[int]()
    for times in SCANS:
        frame = _scanned(connection, asked, opened, terms, halfvec=index.halfvec, scanned=times * terms.k + SPARE)
        states = _states(frame, opened, terms.k, times * terms.k + SPARE, most)
        found.append(frame[frame["query"].isin(states["settled"])])
        opened, few = states["unsettled"], few + states["few"]
        if not opened:
            break
    completed = sorted(opened + few)
    zero = 0 if terms.distance != "cosine" else None
    if completed:
        frame = _exact(connection, asked, completed, terms)
        zero = int(frame["zero"].max()) if len(frame) else 0
        found.append(frame)
    whole = pd.concat([part for part in found if len(part)] or found[:1])
    whole = whole.drop(columns=["zero", "place", "found", "furthest"], errors="ignore")
    done = {
        "mode": "index",
        "index": index.name,
        "ef_search": ef_search,
        "completed": len(completed),
        "zero": zero,
    }
    return Answer(whole.sort_values(["query", "rank"], ignore_index=True), done)


def _states(frame: pd.DataFrame, queries: list[int], k: int, scanned: int, most: int | None) -> dict[str, list[int]]:
    """Queries that an index has answered, those that it should be asked for more, and those that it cannot answer."""
    states: dict[str, list[int]] = {"settled": [], "unsettled": [], "few": []}
    answers = dict(tuple(frame.groupby("query")))
    for query in queries:
        rows = answers.get(query, frame[:0])
        ended = len(rows) == 0 or rows["found"].iloc[0] < scanned
        if len(rows) < (k if most is None else min(k, most)):
            state = "few"
        elif ended:
            state = "settled"
        else:
            late = (rows["place"] > 0.75 * scanned).sum() > 0.01 * k
            tied = rows["distance"].iloc[-1] == rows["furthest"].iloc[0]
            state = "unsettled" if late or tied else "settled"
        states[state].append(query)
    return states


def _scanned(
    connection: Connection, asked: Asked, queries: Sequence[int], terms: Terms, *, halfvec: bool, scanned: int
) -> pd.DataFrame:
    statement = select_neighbors_by_index(
        [_as_text(asked.vectors[query]) for query in queries],
        *terms.where,
        k=terms.k,
        scanned=scanned,
        halfvec=halfvec,
        distance=terms.distance,
        own_ids=_own_ids(asked, queries),
        include_deleted=terms.include_deleted,
    )
    return _renumbered(connection, statement, queries)


def _exact(connection: Connection, asked: Asked, queries: Sequence[int], terms: Terms) -> pd.DataFrame:
    own_ids = _own_ids(asked, queries)
    if len(queries) != 1:
        many = select_neighbors_of_many(
            [_as_text(asked.vectors[query]) for query in queries],
            *terms.where,
            k=terms.k,
            distance=terms.distance,
            own_ids=own_ids,
            include_deleted=terms.include_deleted,
        )
        return _renumbered(connection, many, queries)
    # Only a statement about one vector can be shared by parallel workers.
    one = select_neighbors(
        asked.vectors[queries[0]],
        *terms.where,
        k=terms.k,
        distance=terms.distance,
        own_id=own_ids[0],
        include_deleted=terms.include_deleted,
        zero=True,
    )
    frame = to_frame(columns_of(connection, one))
    frame.insert(0, "query", np.full(len(frame), queries[0], np.int64))
    return frame


def _renumbered(connection: Connection, statement: Select[Any], queries: Sequence[int]) -> pd.DataFrame:
    frame = to_frame(columns_of(connection, statement))
    frame["query"] = np.asarray(queries, np.int64)[frame["query"].to_numpy(np.int64)]
    return frame


def _own_ids(asked: Asked, queries: Sequence[int]) -> list[str | None]:
    return [None if asked.ids is None else asked.ids[query] for query in queries]


def _as_text(vector: Vectors) -> str:
    return f"[{','.join(map(repr, vector.tolist()))}]"
