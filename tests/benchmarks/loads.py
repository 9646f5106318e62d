"""Whole tables into frames, beside what the wire, the drivers and pandas take.

The others read the table as it stands, contextkit also leaves out what is deleted and sorts.
"""

from collections.abc import Iterator
from functools import partial

import adbc_driver_postgresql.dbapi
import numpy as np
import pandas as pd
import psycopg
import pyarrow as pa
from numpy.typing import NDArray
from pgvector.psycopg import register_vector
from sqlalchemy import create_engine, select

from contextkit import EMBEDDING_DIMENSIONS, Message, contexts_df, forks_df, messages_df, select_messages
from contextkit.literals import literal_sql
from tests.benchmarks.ground import Database, Ground
from tests.benchmarks.measuring import Call, Measure, compared, in_turns

COLUMNS = "id, context_id, version, created_at, role, content, tool_call_id, tool_name, token_count, model, deleted_at"
MESSAGES = f"select {COLUMNS} from messages"
EMBEDDED = f"select {COLUMNS}, embedding from messages"
CONTEXTS = (
    "select id, name, created_at, updated_at, message_count, total_tokens, latest_version, parent_id,"
    " fork_version, deleted_at from contexts"
)
COPY, PSYCOPG, ADBC = "COPY binary, discarded", "psycopg binary cursor, DataFrame", "ADBC by hand, DataFrame"
SAME = "COPY binary of contextkit's statement, discarded"
READ_SQL, TYPED, UNPARSED = (f"pandas.read_sql{how}" for how in ("", ", pgvector's type", ", vectors left as text"))
MANY, FEW = 100_000, 10_000


def measure(ground: Ground) -> Iterator[Measure]:
    database = ground.sample(MANY)
    yield from _without_embeddings(database)
    yield from _with_embeddings(database)
    yield from _embeddings_as_objects(ground.sample(FEW))
    yield from _contexts(ground.forest(MANY))


def _without_embeddings(database: Database) -> list[Measure]:
    with database.engine.connect() as connection:
        sql = literal_sql(connection, select_messages())
    calls = _calls(database.url, MESSAGES) | {"contextkit": partial(messages_df, database.engine)}
    calls[SAME] = partial(copy_out, database.url, str(sql))
    targets = {COPY: 1.6, SAME: None, READ_SQL: 1 / 3.5, PSYCOPG: None, ADBC: None}
    return compared(f"messages_df, {MANY:,}", in_turns(calls), targets)


def _with_embeddings(database: Database) -> Iterator[Measure]:
    """Each way of contextkit's with its target beside COPY."""
    load, case = partial(messages_df, database.engine, embeddings=True), f"messages_df with embeddings, {MANY:,}"
    ways: dict[str, tuple[Call, float]] = {
        case: (load, 1.5),
        f"{case}, connections=2": (partial(load, connections=2), 1.1),
    }
    others: dict[str, Call] = {
        COPY: partial(copy_out, database.url, EMBEDDED),
        ADBC: partial(by_adbc, database.url, EMBEDDED),
    }
    seconds = in_turns({name: call for name, (call, _) in ways.items()} | others)
    for name, (_, most) in ways.items():
        yield from compared(name, seconds, {COPY: most, ADBC: None}, name)


def _embeddings_as_objects(database: Database) -> list[Measure]:
    """On fewer rows, or these would take most of the time of all."""
    engine = create_engine(database.url)
    calls: dict[str, Call] = {
        "contextkit": partial(messages_df, database.engine, embeddings=True),
        TYPED: partial(pd.read_sql, select(*Message.__table__.columns), engine),
        UNPARSED: partial(pd.read_sql, EMBEDDED, engine),
        PSYCOPG: partial(by_psycopg, database.url, EMBEDDED),
    }
    targets = {TYPED: 1 / 10, UNPARSED: None, PSYCOPG: None}
    measures = compared(f"messages_df with embeddings, {FEW:,}", in_turns(calls), targets)
    engine.dispose()
    return measures


def _contexts(database: Database) -> Iterator[Measure]:
    calls = _calls(database.url, CONTEXTS) | {"contextkit": partial(contexts_df, database.engine)}
    targets = dict.fromkeys((COPY, READ_SQL, PSYCOPG, ADBC))
    yield from compared(f"contexts_df, {MANY:,}", in_turns(calls), targets)
    beside = "messages_df of the stored rows"
    calls = {"contextkit": partial(forks_df, database.engine), beside: partial(messages_df, database.engine)}
    yield from compared(f"forks_df, {MANY:,}, half of them forks", in_turns(calls), {beside: None})


def _calls(url: str, sql: str) -> dict[str, Call]:
    engine = create_engine(url)
    return {
        COPY: partial(copy_out, url, sql),
        READ_SQL: partial(pd.read_sql, sql, engine),
        PSYCOPG: partial(by_psycopg, url, sql),
        ADBC: partial(by_adbc, url, sql),
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
        cursor.execute(f"select count(*) from ({sql}) as rows" if sql == EMBEDDED else "select 0")
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
