"""Run a statement and get its columns in Arrow: in bulk over ADBC when rows are many, else on the engine's pool."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, TypeGuard

import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.compute as pc
from adbc_driver_manager import Error as BulkError
from adbc_driver_postgresql import StatementOptions
from numpy.typing import NDArray
from pgvector import Vector
from pgvector.sqlalchemy import VECTOR
from psycopg.pq import TransactionStatus
from psycopg.types.string import TextLoader
from sqlalchemy import Connection, Engine, Executable, Select, TextClause, event, text

from contextkit.bulk import Bulk, Line, bulk_in_place_of, forget_types
from contextkit.connection import ONLY_READS, reads_in_bulk, settings_of, translated_errors
from contextkit.connection.driver import state_of
from contextkit.errors import ReadOnlyError
from contextkit.gathered import ARROW_TYPES, BULK_TYPES, Gathered, gather, gathered
from contextkit.interrupts import ahead
from contextkit.literals import LITERAL, LiteralDialect, literal_sql
from contextkit.models import EMBEDDING_DIMENSIONS
from contextkit.plans import UNKNOWN, Expected, expected
from contextkit.queries import select_embedding_dimensions, select_stored_dimensions
from contextkit.vectors import VectorColumn

BULK_ROWS = 2_000
"""From how many expected rows on a connection of its own is cheaper than rows through Python (make bench)."""

VECTOR_ROWS = 40
"""As how many rows one with a vector counts there: the pool gives vectors as text."""

SYNTAX = "42601"
"""The SQLSTATE of what cannot be read, or not within COPY."""

BATCHES = 32
"""As how many batches a bulk read comes: fewer take more memory, more take longer, as one thread hands them another."""

BATCH_BYTES = (480 * 2**10, 4 * 2**20)
"""What a batch holds, at least and at most."""

_ROUNDED: dict[str, Callable[[Any], Any]] = {"float4": np.float32, "numeric": float}


SNAPSHOT = b"begin isolation level repeatable read read only"


@dataclass(frozen=True)
class Column:
    """A column of a result: Arrow for what Arrow holds, else a list of Python values."""

    name: str
    values: pa.ChunkedArray | list[Any]


def fetch(
    engine: Engine,
    statement: Executable,
    parameters: Mapping[str, Any] | None = None,
    *,
    bulk: bool | None = None,
) -> list[Column]:
    """Columns of a statement's rows.

    Args:
        engine: in bulk only if `connect` opened it and nothing was added since; else its URL does not say all.
        statement: a select or `text`.
        parameters: values of its bound parameters.
        bulk: whether many rows are expected; by default the planner of the server is asked, if it can know.
    """
    with translated_errors():
        if bulk is False or not reads_in_bulk(engine):
            return _fetch_pooled(engine, statement, parameters)
        # Of what the planner does not take, such as SHOW.
        unplanned = [psycopg.errors.SyntaxError] if isinstance(statement, TextClause) else []
        with suppress(*unplanned), _reading(engine) as connection:
            sql = literal_sql(connection, statement, parameters)
            vectors = vector_bytes(statement)
            # Of a bulk read, only the room for vectors depends on it much.
            size = UNKNOWN if sql is None or (bulk and not vectors) else expected(connection, sql)
            if sql is None or (bulk is None and size.rows * (VECTOR_ROWS if vectors else 1) < BULK_ROWS):
                return columns_of(connection, statement, parameters)
            size = Expected(size.rows, size.row_bytes + vectors)
            with bulk_in_place_of(connection) as reading:
                columns = reading.run(partial(_fetch_bulk, reading, sql, size))
            if columns is not None:
                return columns
        return _fetch_pooled(engine, statement, parameters)


def vector_bytes(statement: Executable) -> int:
    """Bytes that vectors take of each row of a statement, if its columns are known."""
    columns = getattr(statement, "selected_columns", ())
    return 4 * EMBEDDING_DIMENSIONS * sum(isinstance(column.type, VECTOR) for column in columns)


# On the pool


@contextmanager
def _reading(engine: Engine) -> Iterator[Connection]:
    """A connection in a read-only transaction where the engine writes, too: what is not committed would be lost."""
    settings = settings_of(engine)
    writes = settings is not None and settings.write
    try:
        with engine.connect() as connection:
            if writes and reads_in_bulk(engine):  # without a round trip
                connection.execution_options(postgresql_readonly=True)
            elif writes:  # a listener may have begun the transaction already
                connection.exec_driver_sql("set transaction read only")
            yield connection
    except ReadOnlyError as error:
        raise (ReadOnlyError(ONLY_READS) if writes else error) from None


def _fetch_pooled(engine: Engine, statement: Executable, parameters: Mapping[str, Any] | None) -> list[Column]:
    with _reading(engine) as connection, nullcontext() if parameters else _alone(connection):
        return columns_of(connection, statement, parameters)


@contextmanager
def _alone(connection: Connection) -> Iterator[None]:
    """Have the server refuse several statements at once: one may end the transaction, and the next would write.

    It takes one where that has parameters, or is planned first.
    """
    driver = connection.connection.driver_connection
    if not _has_pipeline(driver):
        yield
        return
    with ExitStack() as pipeline:  # in which the protocol takes them one by one
        pipeline.enter_context(driver.pipeline())
        event.listen(connection, "after_cursor_execute", lambda *_: pipeline.close(), once=True)
        yield


def columns_of(
    connection: Connection, statement: Executable, parameters: Mapping[str, Any] | None = None
) -> list[Column]:
    """Columns of a statement's rows, read on this connection."""
    event.listen(connection, "before_cursor_execute", _load_ids_as_text, once=True)
    # All rows at once, also where the engine streams, which would keep the first ones back.
    options = {"stream_results": False, "yield_per": None}
    result = connection.execute(statement, parameters, execution_options=options)
    if not result.returns_rows:
        raise ValueError("the statement gives no rows; read one that selects some")
    cursor: Any = result.cursor
    types = _type_names(connection, _type_oids(cursor))
    # The driver's own rows: a type's Python code for every value would take longer than all the rest.
    rows = cursor.fetchall()
    by_column = list(zip(*rows, strict=True)) or [()] * len(types)
    return [
        Column(name, _from_values(connection, kind, list(values)))
        for name, kind, values in zip(result.keys(), types, by_column, strict=True)
    ]


def columns_after(
    connection: Connection,
    first: TextClause,
    statement: Executable,
    parameters: Mapping[str, Any] | None = None,
    *,
    ends: bool,
) -> tuple[tuple[Any, ...], list[Column]]:
    """The row of a statement without parameters, and columns of another that runs after it.

    Both travel at once, with the begin of their transaction and, if it `ends` there, its end; settings are lost then.
    Where a listener has begun it with what is to hold for all of it, it goes on.
    """
    driver = connection.connection.driver_connection
    if not _has_pipeline(driver):
        row = connection.execute(first).one()
        return tuple(row), columns_of(connection, statement, parameters)
    if not connection.in_transaction():
        connection.begin()  # here, as listeners look at what they ask at once
    begins = driver.info.transaction_status == TransactionStatus.IDLE
    if begins:
        driver.autocommit = True  # else psycopg would begin, and wait for that
    with ExitStack() as pipeline:
        pipeline.enter_context(driver.pipeline())
        if begins:
            driver.execute(SNAPSHOT)
        cursor = driver.execute(first.text.encode())

        def send(*_: object) -> None:
            if begins and ends:
                driver.execute("rollback")
            pipeline.close()  # not by its sync, which waits for ever where a parameter is large

        # Here, as SQLAlchemy looks at what came right after it executed a statement.
        event.listen(connection, "after_cursor_execute", send, once=True)
        columns = columns_of(connection, statement, parameters)
    if begins and ends:
        driver.autocommit = False
    return cursor.fetchone() or (), columns


def _has_pipeline(driver: Any) -> TypeGuard[psycopg.Connection[Any]]:
    return isinstance(driver, psycopg.Connection) and psycopg.capabilities.has_pipeline()


def _load_ids_as_text(_connection: Any, cursor: Any, *_: object) -> None:
    if isinstance(cursor, psycopg.Cursor):  # a UUID object per value would take longer than the query
        cursor.adapters.register_loader("uuid", TextLoader)


def _type_oids(cursor: Any) -> list[int]:
    result = getattr(cursor, "pgresult", None)  # of psycopg, whose description takes longer than its rows
    if result is None:
        return [column[1] for column in cursor.description]
    return [result.ftype(place) for place in range(result.nfields)]


@lru_cache
def _known_name(oid: int) -> str | None:
    info = psycopg.adapters.types.get(oid)
    return info.name if info and info.oid == oid else None  # psycopg finds an array's oid under the type of its items


def _type_names(connection: Connection, oids: list[int]) -> list[str]:
    known = {oid: name for oid in oids if (name := _known_name(oid))}
    if unknown := [oid for oid in oids if oid not in known]:
        catalog = text(
            "select oid, case typtype when 'e' then 'text' else typname end from pg_type where oid = any(:oids)"
        )
        known |= dict(connection.execute(catalog, {"oids": unknown}).all())
    return [known.get(oid, "unknown") for oid in oids]


def _from_values(connection: Connection, kind: str, values: list[Any]) -> pa.ChunkedArray | list[Any]:
    if kind == "vector":
        vectors = VectorColumn(len(values))
        vectors.add_rows([_vector(value) for value in values])
        return vectors.finish(partial(_dimensions, lambda statement: connection.execute(statement).scalar()))
    if kind not in ARROW_TYPES:
        return values
    if kind == "uuid":
        values = [value if value is None else str(value) for value in values]
    if kind in _ROUNDED:
        values = [None if value is None else float(_ROUNDED[kind](value)) for value in values]
    return pa.chunked_array([pa.array(values, ARROW_TYPES[kind])])


def _vector(value: str | Vector | None) -> NDArray[np.float32] | None:
    if isinstance(value, Vector):  # where the engine's owner registered pgvector's types
        return value.to_numpy()
    return None if value is None else np.array(json.loads(value), np.float32)


def _dimensions(ask: Callable[[Select[*tuple[Any, ...]] | TextClause], int | None]) -> int:
    """Length of the vectors of a column that are all null, so that it fits others: as declared, or as those stored."""
    length = ask(select_embedding_dimensions())
    if length == -1:
        length = ask(select_stored_dimensions())
    return length or EMBEDDING_DIMENSIONS


# In bulk


def _fetch_bulk(bulk: Bulk, sql: str, size: Expected) -> list[Column] | None:
    """Columns of a query, or None if one has a type that has to go through the pool."""
    with bulk.cursor() as line:
        return execute_bulk(bulk, line, sql, size)


def execute_bulk(
    bulk: Bulk, line: Line, sql: str, size: Expected, matrix: NDArray[np.float32] | None = None
) -> list[Column] | None:
    """Columns of a query, vectors in the matrix given for them, or None if only the pool reads or refuses one."""
    least, most = BATCH_BYTES
    batch_bytes = min(max(least, size.rows * size.row_bytes // BATCHES), most)
    line.cursor.adbc_statement.set_options(**{StatementOptions.BATCH_SIZE_HINT_BYTES.value: str(batch_bytes)})
    try:
        line.execute(sql)
    except BulkError as error:
        if state_of(error) == SYNTAX:  # such as a comment after a semicolon
            return None
        raise
    with line.waiting():
        reader = line.cursor.fetch_record_batch()
    if not all(_type_name(field) in BULK_TYPES for field in reader.schema):
        forget_types(bulk.engine)
        return None
    columns = _read(line, reader, size.rows, matrix)
    return columns if all(_is_told(column.values) for column in columns) else None


def _type_name(field: pa.Field) -> str:
    return bytes((field.metadata or {}).get(b"POSTGRESQL:type", b"'unknown'")).decode().strip("'")


def _read(line: Line, reader: pa.RecordBatchReader, rows: int, matrix: NDArray[np.float32] | None) -> list[Column]:
    kinds = [_type_name(field) for field in reader.schema]
    columns: list[Gathered | VectorColumn] = [
        VectorColumn(rows, matrix) if kind == "vector" else gathered(kind, rows) for kind in kinds
    ]

    def read() -> pa.RecordBatch | None:
        with line.waiting():
            return next(reader, None)

    # Beside the reading only where there is much to do: a thread more than processors holds up the server.
    with ahead(read) if "vector" in kinds else nullcontext(iter(read, None)) as batches:
        gather(columns, batches)

    def ask(statement: Select[*tuple[Any, ...]] | TextClause) -> int | None:
        line.execute(str(statement.compile(dialect=LiteralDialect(), compile_kwargs=LITERAL)))
        with line.waiting():
            return (line.cursor.fetchone() or (None,))[0]

    return [
        Column(name, column.finish(partial(_dimensions, ask)) if isinstance(column, VectorColumn) else column.finish())
        for name, column in zip(reader.schema.names, columns, strict=True)
    ]


def _is_told(values: pa.ChunkedArray | list[Any]) -> bool:
    """Tell whether Python has all of these times; it has none for infinity, nor beyond the year 9999."""
    if isinstance(values, list) or not pa.types.is_temporal(values.type):
        return True
    try:
        pc.call_function("min_max", [values]).as_py()
    except (OverflowError, ValueError):
        return False
    return True
