"""Whole tables into frames, beside what the wire, the drivers and pandas take."""

from collections.abc import Iterator

import adbc_driver_postgresql.dbapi
import numpy as np
import pandas as pd
import psycopg
import pyarrow as pa
from numpy.typing import NDArray
from pgvector.psycopg import register_vector
from sqlalchemy import create_engine, select

from contextkit import EMBEDDING_DIMENSIONS, Message, contexts_df, forks_df, messages_df
from tests.benchmarks.ground import Database, Ground
from tests.benchmarks.measuring import Call, Measure, compared, in_turns

COLUMNS = "id, context_id, version, created_at, role, content, tool_call_id, tool_name, token_count, model, deleted_at"
MESSAGES = f"select {COLUMNS} from messages"
EMBEDDED = f"select {COLUMNS}, embedding from messages"
CONTEXTS = (
    "select id, name, created_at, updated_at, message_count, total_tokens, latest_version, parent_id,"
    " fork_version, deleted_at from contexts"
)
COPY, PSYCOPG, ADBC = "COPY binary, discarded", "psycopg binary cursor, DataFrame", "ADBC by hand"
READ_SQL = "pandas.read_sql"


def measure(ground: Ground) -> Iterator[Measure]:
    database = ground.sample(100_000)
    yield from _without_embeddings(database, 100_000)
    yield from _with_embeddings(database, 100_000)
    yield from _embeddings_by_pandas(ground.sample(10_000), 10_000)
    yield from _contexts(ground.forest(100_000), 100_000)


def _without_embeddings(database: Database, rows: int) -> Iterator[Measure]:
    calls = _calls(database.url, MESSAGES) | {"contextkit": lambda: messages_df(database.engine)}
    yield from compared(
        f"messages_df, {rows:,}", in_turns(calls), {COPY: 1.6, READ_SQL: 1 / 3.5, PSYCOPG: None, ADBC: None}
    )


def _with_embeddings(database: Database, rows: int) -> Iterator[Measure]:
    calls: dict[str, Call] = {
        "contextkit": lambda: messages_df(database.engine, embeddings=True),
        COPY: lambda: copy_out(database.url, EMBEDDED),
        PSYCOPG: lambda: by_psycopg(database.url, EMBEDDED),
        ADBC: lambda: by_adbc(database.url, EMBEDDED),
    }
    yield from compared(
        f"messages_df with embeddings, {rows:,}", in_turns(calls), {COPY: 1.5, PSYCOPG: None, ADBC: None}
    )


def _embeddings_by_pandas(database: Database, rows: int) -> Iterator[Measure]:
    """On fewer rows, or this alone would take minutes."""
    engine = create_engine(database.url)
    typed = "pandas.read_sql, pgvector's type"
    calls: dict[str, Call] = {
        "contextkit": lambda: messages_df(database.engine, embeddings=True),
        typed: lambda: pd.read_sql(select(*Message.__table__.columns), engine),
        "pandas.read_sql, vectors left as text": lambda: pd.read_sql(EMBEDDED, engine),
    }
    yield from compared(
        f"messages_df with embeddings, {rows:,}",
        in_turns(calls),
        {typed: 1 / 10, "pandas.read_sql, vectors left as text": None},
    )
    engine.dispose()


def _contexts(database: Database, rows: int) -> Iterator[Measure]:
    calls = _calls(database.url, CONTEXTS) | {"contextkit": lambda: contexts_df(database.engine)}
    yield from compared(
        f"contexts_df, {rows:,}", in_turns(calls), {COPY: None, READ_SQL: None, PSYCOPG: None, ADBC: None}
    )
    seconds = in_turns(
        {"contextkit": lambda: forks_df(database.engine), "messages_df": lambda: messages_df(database.engine)}
    )
    yield from compared(f"forks_df, {rows:,}", seconds, {"messages_df": None})


def _calls(url: str, sql: str) -> dict[str, Call]:
    engine = create_engine(url)
    return {
        COPY: lambda: copy_out(url, sql),
        READ_SQL: lambda: pd.read_sql(sql, engine),
        PSYCOPG: lambda: by_psycopg(url, sql),
        ADBC: lambda: by_adbc(url, sql),
    }


def copy_out(url: str, sql: str) -> None:
    """Plain COPY in binary form, bytes thrown away."""
    copy_sql = f"copy ({sql}) to stdout (format binary)"
    with psycopg.connect(url) as connection, connection.cursor() as cursor, cursor.copy(copy_sql) as copy:
        for _ in copy:
            pass


def by_psycopg(url: str, sql: str) -> pd.DataFrame:
    with psycopg.connect(url) as connection:
        register_vector(connection)
        cursor = connection.cursor(binary=True)
        rows = cursor.execute(sql).fetchall()
        frame = pd.DataFrame(rows, columns=[column.name for column in cursor.description or ()])
    if "embedding" in frame:
        frame.attrs["matrix"] = np.stack([vector.to_numpy() for vector in frame.pop("embedding")])
    return frame


def by_adbc(url: str, sql: str) -> tuple[pd.DataFrame, NDArray[np.float32]]:
    """What somebody who knows both formats writes: the vectors of each batch into their place in one matrix."""
    with adbc_driver_postgresql.dbapi.connect(url) as connection, connection.cursor() as cursor:
        cursor.execute("select count(*) from messages")
        matrix = np.empty((cursor.fetchone()[0], EMBEDDING_DIMENSIONS), np.float32)
        cursor.execute(sql)
        batches, start = [], 0
        for batch in cursor.fetch_record_batch():
            if batch.schema.names[-1] == "embedding":
                width = 4 + 4 * EMBEDDING_DIMENSIONS
                storage = batch.column(batch.num_columns - 1).storage
                raw = np.frombuffer(storage.buffers()[2], np.uint8, len(batch) * width)
                matrix[start : start + len(batch)] = raw.reshape(-1, width)[:, 4:].view(">f4")
                start += len(batch)
                batch = batch.drop_columns(["embedding"])
            batches.append(batch)
        return pa.Table.from_batches(batches).to_pandas(types_mapper=pd.ArrowDtype), matrix
