"""Run a select over several connections on one snapshot: each reads whole contexts, into its slice of one matrix."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import chain
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sqlalchemy import Connection, Engine, Select

from contextkit.arrow import Column, execute_bulk, fetch, vector_bytes
from contextkit.bulk import Bulk, Line, bulk_in_place_of
from contextkit.connection import reads_in_bulk, settings_of, translated_errors
from contextkit.interrupts import start
from contextkit.literals import literal_sql
from contextkit.models import Message
from contextkit.partitions import Partition, partitions_of
from contextkit.plans import Expected
from contextkit.queries import select_embedding_dimensions
from contextkit.vectors import fixed_size_lists, of_one_length

_Result = TypeVar("_Result")
Matrix = NDArray[np.float32]
ONE_SNAPSHOT = "set transaction isolation level repeatable read"
SNAPSHOT_IS_GONE = {"22023", "42704", "55000"}
"""The SQLSTATEs of it."""

Columns = list[Column] | None


def fetch_parallel(
    engine: Engine, statement: Select[*tuple[Any, ...]], partitions: Select[*tuple[Any, ...]], connections: int
) -> list[Column]:
    """Columns of a statement over messages, as `fetch` gives them, read over several connections at once.

    Args:
        engine: from `connect`; with listeners or options that were added to it, read over one connection.
        statement: from `select_messages`, by context and version.
        partitions: of the same messages, from `select_message_partitions`.
        connections: at most the pool's size; each takes a place in it.

    Raises:
        ValueError: the pool has fewer connections, or the engine is not from `connect`.
    """
    settings = settings_of(engine)
    if settings is None:
        raise ValueError(f"connections={connections} needs an engine from connect(); with another one leave it out")
    if connections > settings.pool_size:
        raise ValueError(
            f"connections is {connections}, and the pool of this engine has {settings.pool_size}; "
            f"open it with connect(pool_size={connections})"
        )
    if not reads_in_bulk(engine):
        return fetch(engine, statement, bulk=False)
    with translated_errors():
        with _places(engine, connections) as places, bulk_in_place_of(*places) as bulk:
            columns = bulk.run(partial(_Reading(bulk, places[0], statement).columns, partitions))
        return fetch(engine, statement, bulk=False) if columns is None else columns


_taking: WeakKeyDictionary[Engine, threading.Lock] = WeakKeyDictionary()


@contextmanager
def _places(engine: Engine, count: int) -> Iterator[list[Connection]]:
    """Hold so many places of the pool.

    Taken one reader after the other, so that two never wait for each other's.
    """
    with ExitStack() as stack:
        with _taking.setdefault(engine, threading.Lock()):
            taken = [stack.enter_context(engine.connect()) for _ in range(count)]
        yield taken


class _Reading:
    """Cursors on one snapshot."""

    def __init__(self, bulk: Bulk, place: Connection, statement: Select[*tuple[Any, ...]]) -> None:
        self.bulk = bulk
        self._connection = place
        self._statement = statement

    def columns(self, partitions: Select[*tuple[Any, ...]]) -> Columns:
        """Columns of the statement, or None if bulk does not read them."""
        with self.bulk.cursor(ONE_SNAPSHOT) as line:
            ((snapshot,),) = self._rows(line, "select pg_export_snapshot()")
            sql = self._sql(partitions)
            if sql is None:
                return None
            parts = partitions_of(self._rows(line, sql))
            matrix = self._matrix(line, sum(part.rows for part in parts))
            ends = np.cumsum([part.rows for part in parts])[:-1]
            slices = [None] * len(parts) if matrix is None else np.split(matrix, ends)
            first, *others = zip(parts, slices, strict=True)
            tasks = [partial(self._read, line, *first)]
            tasks += [partial(self._read_beside, snapshot, *other) for other in others]
            read = _at_once(tasks, self.bulk.cancel)
        return _joined(read, parts, matrix)

    def _matrix(self, line: Line, rows: int) -> Matrix | None:
        """Room for all embeddings, if there are any and their length is declared."""
        if not vector_bytes(self._statement):
            return None
        ((length,),) = self._rows(line, str(self._sql(select_embedding_dimensions())))
        return np.empty((rows, length), np.float32) if length > 0 else None

    def _read_beside(self, snapshot: str, part: Partition, target: Matrix | None) -> Columns:
        with self.bulk.cursor(ONE_SNAPSHOT, f"set transaction snapshot '{snapshot}'") as line:
            return self._read(line, part, target)

    def _read(self, line: Line, part: Partition, target: Matrix | None) -> Columns:
        sql = self._sql(self._statement.where(*part.holds(Message.context_id)))
        size = Expected(part.rows, vector_bytes(self._statement))
        return None if sql is None else execute_bulk(self.bulk, line, sql, size, target)

    def _rows(self, line: Line, sql: str) -> list[Any]:
        line.execute(sql)
        with line.waiting():
            rows: list[Any] = line.cursor.fetchall()
        return rows

    def _sql(self, statement: Select[*tuple[Any, ...]]) -> str | None:
        return literal_sql(self._connection, statement)


def _at_once(tasks: Sequence[Callable[[], _Result]], cancel: Callable[[], None]) -> list[_Result]:
    """Results of tasks, each in a thread; when one fails the others are cancelled, and have ended."""
    futures: list[Future[_Result]] = []
    try:
        futures += (start(task, Future()) for task in tasks)
        ended = wait(futures, return_when=FIRST_EXCEPTION).done
    finally:
        while wait(futures, timeout=0.1).not_done:
            cancel()
    # Of those that failed first, whose cause is not that another one did.
    for future in sorted([*ended, *futures], key=_has_lost_the_snapshot):
        future.result()
    return [future.result() for future in futures]


def _has_lost_the_snapshot(future: Future[Any]) -> bool:
    return getattr(future.exception(), "sqlstate", None) in SNAPSHOT_IS_GONE


def _joined(read: list[Columns], parts: list[Partition], matrix: Matrix | None) -> Columns:
    known = [columns for columns in read if columns is not None]
    if len(known) < len(read):
        return None
    rows = [part.rows for part in parts]
    return [
        Column(columns[0].name, _end_to_end([column.values for column in columns], rows, matrix))
        for columns in zip(*known, strict=True)
    ]


def _end_to_end(values: list[Any], rows: list[int], matrix: Matrix | None) -> pa.ChunkedArray | list[Any]:
    if isinstance(values[0], list):
        return list(chain.from_iterable(values))
    if pa.types.is_fixed_size_list(values[0].type):
        values = of_one_length(values)
    together = pa.chunked_array([chunk for part in values for chunk in part.chunks], values[0].type)
    if not pa.types.is_fixed_size_list(together.type):
        return together
    # A condition such as `random() < 0.5` gives other rows than were counted, which do not fill their slices.
    if matrix is None or [len(part) for part in values] != rows:
        return pa.chunked_array([together.combine_chunks()], together.type)
    return fixed_size_lists(matrix, together.is_null().to_numpy())
