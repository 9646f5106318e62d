"""Vector indexes (HNSW): built without blocking anyone, one at a time, and never left half built."""

import re
import warnings
from typing import Any, get_args

import numpy as np
import pandas as pd
from sqlalchemy import Connection, Engine, Row
from sqlalchemy.exc import DBAPIError

from contextkit.arrow import fetch
from contextkit.building import Work, opened
from contextkit.dtypes import to_frame
from contextkit.errors import ContextkitError, ContextkitWarning, DimensionError, SchemaError
from contextkit.models import EMBEDDING_DIMENSIONS
from contextkit.queries import (
    Distance,
    create_sql,
    drop_sql,
    index_name,
    select_ground,
    select_indexes,
    select_means,
    select_usable,
)

OLDEST_PGVECTOR = (0, 8)
"""The first with iterative scans; before it, a search with conditions loses rows."""
LINK_BYTES = 64
"""Per message and m, of the graph while it is built; the vector itself comes on top."""
MOST_MEMORY = 2 << 30
MOST_WORKERS = 4
NO_MEMORY = ("53100", "53200")


def create_index(
    engine: Engine,
    distance: Distance = "cosine",
    *,
    halfvec: bool = False,
    m: int = 16,
    ef_construction: int = 64,
    progress: bool = True,
) -> pd.Series:
    """The HNSW index that searches by a distance use, as a Series; built now unless there is one.

    Reading and writing go on meanwhile. Two builds at once are fine: one waits for the other. An interrupt ends
    the build on the server, too, and removes what there is of it. If its client is killed the server goes on
    building: the next call waits for that, or removes what is left of it and builds anew.

    The build has connections of its own, past Neon's pooler. It may use the memory that the graph takes, about
    7 kB per message, 4 kB with halfvec; but no more than 2 GB, or 8 times the server's shared_buffers, unless the
    server's own maintenance_work_mem is more. What does not fit is built more slowly. Through another pooler it gets
    the server's own memory and timeouts only, and warns of that; the server's own URL leads past it.

    Args:
        engine: from `connect(write=True)`.
        distance: cosine, l2, inner or l1.
        halfvec: index 16-bit numbers, for half the size. Searches still measure by the full vectors. Numbers above
            65,504 cannot be stored then, and vectors that 16 bits take for zero are not found by cosine.
        m: links per message, 2 to 100.
        ef_construction: candidates for them, 4 to 1000 and at least 2 m.
        progress: a bar, once it takes longer than two seconds.

    Returns:
        A row of `indexes_df`, and created: False if the index was there. One of another tool counts, too.

    Raises:
        SchemaError: tables are missing, pgvector is older than 0.8, or another relation has the index's name.
        DimensionError: the column has another length.
        ReadOnlyError: the engine was opened for reading.

    The graph, m and ef_construction: Malkov and Yashunin, "Efficient and robust approximate nearest neighbor
    search using Hierarchical Navigable Small World graphs", 2018.
    """
    _check(distance, m, ef_construction)
    with opened(engine, progress=progress) as work:
        _check_ground(work.connection)
        found = work.lock(unless=lambda: find_index(work.connection, distance, halfvec=halfvec))
        if found is None:
            _build(work, distance, halfvec=halfvec, m=m, ef_construction=ef_construction)
        elif (found.m, found.ef_construction) != (m, ef_construction):
            warnings.warn(
                f"the index {found.name} is there already, with m={found.m} and "
                f"ef_construction={found.ef_construction}; to change that, drop it first",
                ContextkitWarning,
                stacklevel=2,
            )
        index: Any = found or find_index(work.connection, distance, halfvec=halfvec)
        values: dict[str, Any] = {**index._mapping, "created": found is None}
        return pd.Series(values, dtype=object)


def drop_index(engine: Engine, distance: Distance = "cosine", *, halfvec: bool = False) -> int:
    """Number of indexes dropped: 1, or 0 if there was none. Reading and writing go on meanwhile.

    Raises:
        ContextkitError: the index was made by another tool.
        ReadOnlyError: the engine was opened for reading.
    """
    _check(distance, 16, 64)
    with opened(engine, progress=False) as work:
        work.lock(unless=lambda: None)
        if own := _own_index(work.connection, distance, halfvec=halfvec):
            work.run(drop_sql(own.name))
            return 1
        if foreign := find_index(work.connection, distance, halfvec=halfvec):
            raise ContextkitError(
                f"the index {foreign.name} was not made by contextkit; to drop it nevertheless run: "
                f"drop index concurrently {foreign.name}"
            )
        return 0


def indexes_df(engine: Engine) -> pd.DataFrame:
    """One row per vector index that searches can use once it is valid, of contextkit or another tool, by name.

    That is HNSW over the whole column, or over its halfvec, and over all rows.

    Args:
        engine: from `connect`.

    Returns:
        name, distance, halfvec, m, ef_construction, size (bytes), valid, building (now, by one's own role).

    Raises:
        SchemaError: the tables are missing.
    """
    frame = to_frame(fetch(engine, select_indexes(), bulk=False))
    frame.attrs = {"function": "indexes_df", "asked": {}}
    return frame


def find_index(connection: Connection, distance: Distance, *, halfvec: bool) -> Row[Any] | None:
    """Give the row of a valid index, contextkit's own before others."""
    rows = [row for row in connection.execute(select_indexes()) if row.valid]
    alike = [row for row in rows if (row.distance, row.halfvec) == (distance, halfvec)]
    return min(alike, key=lambda row: not _is_own(row), default=None)


def indexes_to_search(connection: Connection, distance: Distance) -> list[Row[Any]]:
    """Give the rows of `select_usable` for a distance, over whole vectors before halfvec, own ones before others.

    Raises:
        SchemaError: there are none, or pgvector is too old for them.
    """
    rows = sorted(connection.execute(select_usable(distance)), key=lambda row: (row.halfvec, not _is_own(row)))
    if not rows:
        raise SchemaError(
            f"no valid index is for the distance {distance}; create_index(engine, {distance!r}) builds one"
        )
    _check_pgvector(rows[0].pgvector)
    return rows


def _own_index(connection: Connection, distance: Distance, *, halfvec: bool) -> Row[Any] | None:
    rows = [row for row in connection.execute(select_indexes()) if _is_own(row)]
    return next((row for row in rows if (row.distance, row.halfvec) == (distance, halfvec)), None)


def _is_own(row: Row[Any]) -> bool:
    return str(row.name).rpartition(".")[2] == index_name(row.distance, halfvec=row.halfvec)


def _build(work: Work, distance: Distance, *, halfvec: bool, m: int, ef_construction: int) -> None:
    name = index_name(distance, halfvec=halfvec)

    def drop_rest() -> None:
        rest = _own_index(work.connection, distance, halfvec=halfvec)
        if rest is not None and not rest.valid:
            work.run(drop_sql(rest.name))

    drop_rest()
    if work.connection.execute(select_ground(name)).one().taken:
        raise SchemaError(f"{name} is the name of something else in this database; rename or drop that first")
    means = work.connection.execute(select_means()).one()
    if not work.keeps_settings:
        warnings.warn(
            "a pooler keeps no settings for a build, which has to do with the server's own memory, workers and "
            "timeouts; the server's own URL gives it more",
            ContextkitWarning,
            stacklevel=3,
        )
    work.set("maintenance_work_mem", f"{_memory(means, halfvec=halfvec, m=m) >> 10}kB")
    create = create_sql(distance, halfvec=halfvec, m=m, ef_construction=ef_construction)
    with work.undone_by(drop_rest):
        work.set("max_parallel_maintenance_workers", max(means.workers, min(means.most_workers, MOST_WORKERS)))
        try:
            work.run(create, rows=means.rows)
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) not in NO_MEMORY:
                raise
            # Workers share memory in a place of its own, which is 64 MB in a container unless somebody asked.
            drop_rest()
            work.set("max_parallel_maintenance_workers", 0)
            work.run(create, rows=means.rows)


def _memory(means: Row[Any], *, halfvec: bool, m: int) -> int:
    """Bytes that a build may take."""
    graph = means.rows * ((2 if halfvec else 4) * EMBEDDING_DIMENSIONS + m * LINK_BYTES)
    return int(max(means.memory, min(graph, 8 * means.buffers, MOST_MEMORY)))


def _check(distance: str, m: int, ef_construction: int) -> None:
    if distance not in get_args(Distance):
        raise ValueError(f"distance is one of {', '.join(get_args(Distance))}, not {distance!r}")
    for name, value, least, most in (("m", m, 2, 100), ("ef_construction", ef_construction, max(4, 2 * m), 1000)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or not least <= value <= most:
            raise ValueError(f"{name} is a whole number from {least} to {most}, not {value!r}")


def _check_ground(connection: Connection) -> None:
    ground = connection.execute(select_ground("messages")).one_or_none()
    if ground is None or ground.pgvector is None:
        raise SchemaError("the column messages.embedding is missing; schema_status(engine) lists what differs")
    _check_pgvector(ground.pgvector)
    wanted = f"vector({EMBEDDING_DIMENSIONS})"
    if ground.type.rpartition(".")[2] != wanted:
        raise DimensionError(f"the column messages.embedding is {ground.type}, and contextkit needs {wanted}")


def _check_pgvector(version: str) -> None:
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < OLDEST_PGVECTOR:
        raise SchemaError(
            f"pgvector is {version}; indexes need 0.8 or newer. install it on the server, then run: "
            "alter extension vector update"
        )
