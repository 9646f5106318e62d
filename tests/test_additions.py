"""What users set on an engine holds for every read: of few rows or many, over one connection or several."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pandas as pd
import psycopg
import pytest
from sqlalchemy import Engine, create_engine, event, select, text

from contextkit import (
    Message,
    ReadOnlyError,
    add_context,
    append_messages,
    arrow,
    connect,
    contexts_df,
    fork_context,
    forks_df,
    load_sample,
    messages_df,
    read_df,
)
from contextkit.connection import reads_in_bulk
from contextkit.distributed import messages_dask

MINE = "set search_path to mine, public"
Added = Iterator[Engine]


@pytest.fixture
def url(engine: Engine, database_url: str) -> str:
    """A database with the sample in public, and a context and its fork, with a message each, in the schema mine."""
    load_sample(engine)
    with engine.begin() as connection:
        connection.execute(text("create schema mine"))
        for table in ("contexts", "messages"):
            connection.execute(text(f"create table mine.{table} (like {table} including all)"))
    with connect_listener(connect(database_url, write=True)) as mine:
        root = add_context(mine)
        append_messages(mine, root, [{"role": "user", "content": "mine"}])
        append_messages(mine, fork_context(mine, root), [{"role": "user", "content": "mine"}])
    return database_url


@contextmanager
def listening(target: Any, name: str, listener: Callable[..., None]) -> Iterator[None]:
    event.listen(target, name, listener)
    yield
    event.remove(target, name, listener)


def on_driver(connection: Any, *_: object) -> None:
    connection.cursor().execute(MINE)
    connection.commit()


def on_begin(connection: Any) -> None:
    connection.exec_driver_sql(MINE.replace("set", "set local", 1))


def on_cursor(_connection: Any, cursor: Any, *_: object) -> None:
    cursor.execute(MINE)


@contextmanager
def connect_listener(engine: Engine) -> Added:
    with listening(engine, "connect", on_driver):
        yield engine


@contextmanager
def checkout_listener(engine: Engine) -> Added:
    with listening(engine, "checkout", lambda connection, *_: connection.cursor().execute(MINE)):
        yield engine


@contextmanager
def begin_listener(engine: Engine) -> Added:
    with listening(engine, "begin", on_begin):
        yield engine


@contextmanager
def cursor_listener(engine: Engine) -> Added:
    with listening(engine, "before_cursor_execute", on_cursor):
        yield engine


@contextmanager
def listener_on_all_engines(engine: Engine) -> Added:
    with listening(Engine, "connect", on_driver):
        yield engine


@contextmanager
def listener_on_a_derived_engine(engine: Engine) -> Added:
    derived = engine.execution_options()
    with listening(derived, "begin", on_begin):
        yield derived


@contextmanager
def do_connect_listener(engine: Engine) -> Added:
    """As it is used for passwords that change."""

    def add_option(_dialect: Any, _record: Any, _args: Any, params: dict[str, Any]) -> None:
        params["options"] = "-c search_path=mine,public"

    with listening(engine, "do_connect", add_option):
        yield engine


@contextmanager
def translate_map(engine: Engine) -> Added:
    yield engine.execution_options(schema_translate_map={None: "mine"})


ADDITIONS = [
    connect_listener,
    checkout_listener,
    begin_listener,
    cursor_listener,
    listener_on_all_engines,
    listener_on_a_derived_engine,
    do_connect_listener,
    translate_map,
]


@pytest.mark.direct("a pooler keeps no search_path")
@pytest.mark.parametrize("write", [False, True])
@pytest.mark.parametrize("add", ADDITIONS)
def test_every_read_sees_what_pandas_sees(url: str, monkeypatch: pytest.MonkeyPatch, add: Any, write: bool) -> None:
    monkeypatch.setattr(arrow, "BULK_ROWS", 0)
    with add(connect(url, write=write)) as engine:
        seen = pd.read_sql(select(Message.id).order_by(Message.id), engine)["id"].astype(str).tolist()
        assert len(seen) == 2
        assert sorted(messages_df(engine)["message_id"]) == seen
        assert sorted(messages_df(engine, embeddings=True, connections=2)["message_id"]) == seen
        assert len(forks_df(engine)) == 2
        with pytest.raises(ValueError, match="do not travel to workers"):
            messages_dask(engine, 2)
        engine.dispose()


def test_engines_read_in_bulk_until_something_is_added(database_url: str) -> None:
    engine = connect(database_url, statement_timeout=60)
    messages_df(engine)
    engine.dispose()
    assert reads_in_bulk(engine)
    assert reads_in_bulk(engine.execution_options())
    with listening(engine, "after_cursor_execute", lambda *_: None):
        assert reads_in_bulk(engine)
    with begin_listener(engine):
        assert not reads_in_bulk(engine)
        assert not reads_in_bulk(engine.execution_options())
    assert reads_in_bulk(engine)
    assert not reads_in_bulk(engine.execution_options(stream_results=True))
    assert not reads_in_bulk(create_engine(engine.url))


@pytest.mark.parametrize("rows", [0, 10**9])
@pytest.mark.parametrize("listens", [False, True])
def test_reading_on_an_engine_that_writes_only_reads(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, rows: int, listens: bool
) -> None:
    monkeypatch.setattr(arrow, "BULK_ROWS", rows)
    if listens:
        event.listen(engine, "begin", lambda _: None)
    with pytest.raises(ReadOnlyError, match=r"read_df .*only read; write with engine.begin\(\)"):
        read_df(engine, text("insert into contexts default values returning name"))
    with engine.begin() as connection:
        connection.execute(text("insert into contexts default values"))
    add_context(engine)
    assert read_df(engine, text("select count(*) from contexts")).iloc[0, 0] == 2


@pytest.mark.parametrize("rows", [1, 9000])
@pytest.mark.parametrize("first", ["select i from generate_series(1, {}) i", "commit", "select {}; commit"])
def test_several_statements_at_once_are_refused_before_one_of_them_runs(engine: Engine, rows: int, first: str) -> None:
    several = text(f"{first.format(rows)}; insert into contexts default values returning 2 as j")
    for each in (engine, engine.execution_options()):
        with pytest.raises(ValueError, match="several statements"):
            read_df(each, several)
    with begin_listener(engine), pytest.raises(ValueError, match="several statements"):
        read_df(engine, several)
    hidden = select(text("1; commit; insert into contexts default values returning 2"))
    with pytest.raises(ValueError, match="several statements"):
        read_df(engine, hidden)
    assert contexts_df(engine).empty


@pytest.mark.parametrize("statement", ["set work_mem = '1MB'", "notify something", "commit"])
def test_a_statement_without_rows_is_refused(engine: Engine, statement: str) -> None:
    with pytest.raises(ValueError, match="gives no rows"):
        read_df(engine, text(statement))


def test_a_connection_that_a_listener_opened_is_used_as_it_is(engine: Engine, database_url: str) -> None:
    def connect_plainly(*_: object) -> Any:
        return psycopg.connect(database_url)

    with listening(engine, "do_connect", connect_plainly):
        assert [len(read_df(engine, text("select 1"))) for _ in range(3)] == [1, 1, 1]


def test_what_the_planner_does_not_take_is_read_all_the_same(engine: Engine) -> None:
    frame = read_df(engine, text("show client_encoding"))
    assert frame["client_encoding"].tolist() == ["UTF8"]
    with pytest.raises(ValueError, match="the SQL cannot be read"):
        read_df(engine, text("select from where"))
