"""Behind a PgBouncer in transaction mode: the same frames, and no state left to whoever gets the connection next.

The whole suite goes through one with CONTEXTKIT_TEST_POOLER=pgbouncer.
"""

import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psycopg
import pytest
from pandas.testing import assert_frame_equal, assert_series_equal
from sqlalchemy import Engine, make_url, text

import contextkit as ck
from contextkit import ContextkitError, ContextkitWarning, ReadOnlyError, add_context, connect, contexts_df
from contextkit.connection import silence
from tests.conftest import _fresh
from tests.faults.proxy import running_proxy
from tests.pooler import Pooler, pgbouncer, running_pooler
from tests.test_silence import Clock

pytestmark = pytest.mark.skipif(pgbouncer() is None, reason="pgbouncer is not installed")

# What may outlive a transaction on a server's connection, and would be the next client's.
STATE = """
    select 'setting', name, setting from pg_settings where source = 'session' and name <> 'application_name'
    union all select 'prepared', name, statement from pg_prepared_statements
    union all select 'cursor', name, statement from pg_cursors where is_holdable
    union all select 'temporary table', relname, '' from pg_class where relnamespace = pg_my_temp_schema()
    union all select 'lock', locktype, mode from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()
    union all select 'channel', pg_listening_channels(), ''
"""
ACTIVE = "select count(*) from pg_stat_activity where state = 'active' and query like '%%asleep%%' and pid <> %s"
VECTOR = np.random.default_rng(7).normal(size=1536)


@pytest.fixture(scope="module")
def wide(server_url: str) -> Iterator[Pooler]:
    """As many connections as an index build takes at once, each transaction on the one that rested longest."""
    with running_pooler(server_url, pool_size=3) as pooler:
        yield pooler


@pytest.fixture(scope="module")
def narrow(server_url: str) -> Iterator[Pooler]:
    """One connection to the server, which all clients share."""
    with running_pooler(server_url, pool_size=1) as pooler:
        yield pooler


@pytest.fixture(scope="module")
def direct_url(server_url: str, migrated: str) -> Iterator[str]:
    """URL of a database with the sample's conversations, past any pooler."""
    for url in _fresh(server_url, migrated, direct=True):
        engine = connect(url, write=True)
        ck.load_sample(engine)
        engine.dispose()
        yield url


@pytest.fixture
def opened() -> Iterator[Callable[..., Engine]]:
    """Opens engines, and disposes of them."""
    with ExitStack() as stack:

        def open_engine(url: str, **settings: Any) -> Engine:
            engine = connect(url, **settings)
            stack.callback(engine.dispose)
            return engine

        yield open_engine


def states(url: str, connections: int) -> list[list[tuple[str, ...]]]:
    """What is left on each of a pooler's connections to the server, which transactions at once all take."""
    with ExitStack() as stack:
        clients = [stack.enter_context(psycopg.connect(url, prepare_threshold=None)) for _ in range(connections)]
        pids = [client.execute("select pg_backend_pid()").fetchone() for client in clients]
        assert len(set(pids)) == connections
        return [sorted(client.execute(STATE).fetchall()) for client in clients]


# The same as without


READS: dict[str, Callable[[Engine, str], Any]] = {
    "contexts": lambda engine, _: contexts_df(engine),
    "forks": lambda engine, _: ck.forks_df(engine),
    "messages": lambda engine, _: ck.messages_df(engine),
    "embeddings": lambda engine, _: ck.messages_df(engine, embeddings=True),
    "connections": lambda engine, _: ck.messages_df(engine, embeddings=True, connections=3),
    "batches": lambda engine, _: pd.concat(ck.messages_batches(engine, batch_rows=50), ignore_index=True),
    "history": lambda engine, id_: ck.history_df(engine, id_),
    "tool calls": lambda engine, id_: ck.tool_calls_df(engine, id_),
    "window": lambda engine, id_: ck.window_df(engine, id_, 100),
    "difference": lambda engine, id_: ck.diff_df(engine, id_, contexts_df(engine)["context_id"].iloc[1]),
    "preferences": lambda engine, _: ck.preferences_df(engine),
    "neighbors": lambda engine, _: ck.neighbors_df(engine, VECTOR),
    "search": lambda engine, _: ck.search_df(engine, "weather"),
    "sql": lambda engine, _: pd.read_sql("select count(*) from messages", engine),
    "any": lambda engine, _: ck.read_df(engine, text("select i, now() > '2020-1-1' from generate_series(1, 5000) i")),
    "schema": lambda engine, _: ck.schema_status(engine),
}


@pytest.mark.parametrize("read", READS)
def test_it_reads_what_is_read_without(
    wide: Pooler, direct_url: str, opened: Callable[..., Engine], read: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    direct, pooled = opened(direct_url), opened(wide.url(direct_url))
    context = contexts_df(direct)["context_id"].iloc[0]
    wanted = READS[read](direct, context)
    equal = assert_series_equal if isinstance(wanted, pd.Series) else assert_frame_equal
    equal(READS[read](pooled, context), wanted)
    monkeypatch.setattr("contextkit.arrow.BULK_ROWS", 0)
    equal(READS[read](pooled, context), wanted)


# What writes, and what sets something


def _build(engine: Engine) -> None:
    with pytest.warns(ContextkitWarning, match="a pooler keeps no settings"):
        assert ck.create_index(engine, progress=False).created
    assert not ck.create_index(engine, progress=False).created


def _search(engine: Engine) -> None:
    assert len(ck.neighbors_df(engine, VECTOR, ck.Message.role == "user", mode="index", ef_search=200)) == 10
    assert len(ck.recall_df(engine, k=2, sample=3, ef_search=(40,))) > 0


def _write(engine: Engine) -> None:
    context = add_context(engine, "one")
    message = ck.append_messages(engine, context, [{"role": "user", "content": "one"}])["message_id"]
    ck.fork_context(engine, context)
    assert ck.delete_messages(engine, message) == ck.restore_messages(engine, message) == 1
    assert ck.delete_context(engine, context) == ck.restore_context(engine, context) == 1


def _embed(engine: Engine) -> None:
    frame = ck.embed_missing(engine, lambda texts: np.ones((len(texts), 1536)), batch_size=2, progress=False)
    assert (len(frame) > 1, frame.attrs["left"]) == (True, 0)


def _files(engine: Engine, folder: Path) -> None:
    ck.export_file(engine, folder / "all.parquet", progress=False)
    path = folder / "openai.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}\n')
    assert ck.import_file(engine, path, progress=False)["messages"].tolist() == [2]


def test_nothing_that_writes_leaves_anything_to_the_next_client(
    wide: Pooler, empty_url: str, server_url: str, opened: Callable[..., Engine], tmp_path: Path
) -> None:
    pooled = wide.url(empty_url)
    before = states(pooled, 3)
    engine = opened(pooled, write=True, statement_timeout=20)
    ck.upgrade(engine)
    ck.load_sample(engine)
    for step in (_build, _search, _write, _embed):
        step(engine)
        assert states(pooled, 3) == before, step
    _files(engine, tmp_path)
    assert ck.drop_index(engine) == 1
    assert len(ck.messages_df(engine, embeddings=True, connections=2)) == len(ck.messages_df(engine))
    assert "nothing to do" in ck.push(engine, force=True)
    assert ck.info(engine).schema == "current"
    assert states(pooled, 3) == before
    with psycopg.connect(server_url) as server:
        assert server.execute("select count(*) from pg_locks where locktype = 'advisory'").fetchone() == (0,)


def test_engines_that_share_a_connection_keep_their_own_settings(
    narrow: Pooler, database_url: str, opened: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    pooled = narrow.url(database_url)
    hurried, writer = opened(pooled, write=True, statement_timeout=1), opened(pooled, write=True)
    reader = opened(pooled)
    ask = "select current_setting('statement_timeout'), current_setting('transaction_read_only') as x, pg_backend_pid()"
    seen = []
    for rows in (10**9, 0):  # on the pool and in bulk
        monkeypatch.setattr("contextkit.arrow.BULK_ROWS", rows)
        with pytest.raises(ContextkitError, match="57014"):
            ck.read_df(hurried, text("select i, pg_sleep(60) as asleep from generate_series(1, 5000) i"))
        for engine in (hurried, writer, reader):
            with pytest.raises(ReadOnlyError):
                add_context(reader)
            assert add_context(writer)
            assert add_context(hurried)
            seen.append(tuple(ck.read_df(engine, text(ask)).iloc[0]))
    limits_and_writes = [row[:2] for row in seen]
    # Reads never write, on engines for writing either.
    assert limits_and_writes == [("1s", "on"), ("0", "on"), ("0", "on")] * 2
    assert len({pid for *_, pid in seen[:3]}) == len({pid for *_, pid in seen[3:]}) == 1
    assert len(contexts_df(reader)) == 12


@pytest.mark.parametrize("rows", [10**9, 0], ids=["pool", "bulk"])
def test_an_interrupt_stops_the_statement_and_the_connection_goes_on(
    narrow: Pooler,
    database_url: str,
    server_url: str,
    opened: Callable[..., Engine],
    monkeypatch: pytest.MonkeyPatch,
    rows: int,
) -> None:
    monkeypatch.setattr("contextkit.arrow.BULK_ROWS", rows)
    engine = opened(narrow.url(database_url))
    with psycopg.connect(server_url, autocommit=True) as server:
        own = server.info.backend_pid

        def active() -> int:
            return server.execute(ACTIVE, [own]).fetchone()[0]  # type: ignore[index]

        def interrupt() -> None:
            while not active():
                threading.Event().wait(0.02)
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            ck.read_df(engine, text("select i, pg_sleep(1) as asleep from generate_series(1, 5000) i"))
        thread.join()
        assert ck.read_df(engine, text("select 1 as one"))["one"].tolist() == [1]
        assert not active()


def test_a_lock_of_one_client_keeps_another_from_building(
    wide: Pooler, database_url: str, opened: Callable[..., Engine]
) -> None:
    pooled = wide.url(database_url)
    engine = opened(pooled, write=True)
    built = threading.Event()

    def build() -> None:
        with warnings.catch_warnings(action="ignore"):
            ck.create_index(engine, progress=False)
        built.set()

    with psycopg.connect(database_url) as other:
        other.execute("select pg_advisory_xact_lock(7235094619)")
        thread = threading.Thread(target=build)
        thread.start()
        with psycopg.connect(database_url, autocommit=True) as server:
            tries = "select count(*) from pg_stat_activity where query like '%p.index_relid%' and state = 'idle'"
            while server.execute(tries).fetchone() == (0,):
                threading.Event().wait(0.02)
        assert not built.is_set()
        other.rollback()
        thread.join()
    assert built.is_set()


def test_a_pooler_is_not_asked_again_about_processes_that_it_does_not_know(
    wide: Pooler, direct_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, asked = make_url(direct_url).database, []

    def found(partner: silence.Partner, *arguments: Any) -> Any:
        asked.append(partner)
        return unpatched(partner, *arguments)

    unpatched = silence.Partner._found
    monkeypatch.setattr(silence.Partner, "_found", found)
    with running_proxy(str(wide.folder / ".s.PGSQL.5432")) as proxy:
        engine = connect(f"postgresql://postgres@127.0.0.1:{proxy.port}/{database}")
        with engine.connect() as connection:
            monkeypatch.setattr(silence, "time", clock := Clock())
            clock.step = 2.0
            assert connection.scalar(text("select 7 from pg_sleep(1)")) == 7
            assert len(asked) == 1
            sleeps = text("select i, case i when 9000 then pg_sleep(1)::text end as x from generate_series(1, 9000) i")
            assert len(ck.read_df(engine, sleeps)) == 9000
            assert len(asked) == 2
            clock.step = 0
        assert [partner.asked for partner in asked] == [float("inf")] * 2
        engine.dispose()
