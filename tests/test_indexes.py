"""Indexes: built once whoever asks, nothing left of a build that ended early, nothing of others touched."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import psycopg
import pytest
from sqlalchemy import Engine, create_engine, make_url, text

from contextkit import (
    ContextkitError,
    ContextkitWarning,
    DimensionError,
    ReadOnlyError,
    SchemaError,
    add_context,
    append_messages,
    connect,
    create_index,
    drop_index,
    indexes_df,
    upgrade,
)

KINDS = [(distance, halfvec) for distance in ("cosine", "l2", "inner", "l1") for halfvec in (False, True)]
COLUMNS = ["name", "distance", "halfvec", "m", "ef_construction", "size", "valid", "building"]
INVALID = "select count(*) from pg_index where not indisvalid"
BUILDING = "select count(*) from pg_stat_progress_create_index"
WAITING = "select count(*) from pg_stat_activity where query like '%p.index_relid%' and state = 'idle'"
"""Looks for the index again and again."""
LOCKS = "select count(*) from pg_locks where locktype = 'advisory'"
CLIENT = (
    "import sys; from contextkit import *; engine = connect(sys.argv[1], write=True); "
    "print(create_index(engine, progress=False).created, flush=True)"
)


def write(engine: Engine, rows: int) -> None:
    vectors = np.random.default_rng(0).normal(size=(rows, 1536)).astype(np.float32)
    append_messages(
        engine, add_context(engine), [{"role": "user", "content": "x", "embedding": vector} for vector in vectors]
    )


def run(url: str, *statements: str) -> Any:
    """Run statements, and give the first value of the last."""
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements[:-1]:
            connection.execute(statement)
        cursor = connection.execute(statements[-1])
        return cursor.fetchone()[0] if cursor.description else None  # type: ignore[index]


def until(holds: Callable[[], Any], seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        threading.Event().wait(0.02)
    return True


@contextmanager
def stopped_build(url: str) -> Iterator[psycopg.Connection]:
    """A writer that any build has to wait for, after it has made its index, still invalid."""
    with psycopg.connect(url) as writer:
        writer.execute("insert into contexts (name) values ('open')")
        writer.execute("update messages set content = content")
        yield writer


@pytest.fixture
def filled(engine: Engine) -> Engine:
    write(engine, 20)
    return engine


# What is built


def test_each_kind_is_built_once_described_and_dropped_once(filled: Engine) -> None:
    for distance, halfvec in KINDS:
        index = create_index(filled, distance, halfvec=halfvec, progress=False)  # type: ignore[arg-type]
        assert list(index.index) == [*COLUMNS, "created"]
        assert index.drop(["name", "size"]).to_dict() == {
            "distance": distance,
            "halfvec": halfvec,
            "m": 16,
            "ef_construction": 64,
            "valid": True,
            "building": False,
            "created": True,
        }
    frame = indexes_df(filled)
    assert sorted(zip(frame["distance"], frame["halfvec"], strict=True)) == sorted(KINDS)
    again = create_index(filled, "l1", halfvec=True)
    assert not again.created
    assert again.drop("created").to_dict() == frame[frame["name"] == again["name"]].iloc[0].to_dict()
    for distance, halfvec in KINDS:
        assert drop_index(filled, distance, halfvec=halfvec) == 1  # type: ignore[arg-type]
        assert drop_index(filled, distance, halfvec=halfvec) == 0  # type: ignore[arg-type]
    empty = indexes_df(filled)
    assert list(empty.columns) == COLUMNS
    assert empty.dtypes.tolist() == frame.dtypes.tolist()
    assert frame.dtypes.astype(str).tolist() == ["str", "str", "bool", "int64", "int64", "int64", "bool", "bool"]


def test_the_index_is_on_what_it_says(filled: Engine, database_url: str) -> None:
    name = create_index(filled, "inner", halfvec=True, m=8, ef_construction=32)["name"]
    definition = run(database_url, f"select pg_get_indexdef('{name}'::regclass)")
    assert "USING hnsw (((embedding)::halfvec(1536)) halfvec_ip_ops) WITH (m='8', ef_construction='32')" in definition


def test_an_existing_index_with_other_numbers_stays_and_is_told_of(filled: Engine) -> None:
    create_index(filled, m=8, ef_construction=40)
    with pytest.warns(ContextkitWarning, match="m=8 and ef_construction=40; to change that, drop it first"):
        assert not create_index(filled).created
    assert indexes_df(filled)["m"].tolist() == [8]


def test_memory_and_workers_are_those_of_the_build_alone(filled: Engine) -> None:
    before = pool_settings(filled)
    create_index(filled)
    assert pool_settings(filled) == before


def pool_settings(engine: Engine) -> list[Any]:
    names = ("maintenance_work_mem", "max_parallel_maintenance_workers", "statement_timeout", "lock_timeout")
    with engine.connect() as connection:
        return [connection.execute(text(f"show {name}")).scalar_one() for name in names]


@pytest.mark.parametrize(
    ("rows", "own", "buffers", "halfvec", "megabytes"),
    [
        (1_000, 64, 128, False, 64),  # the server's own is enough
        (50_000, 64, 1024, False, 341),
        (50_000, 64, 1024, True, 195),
        (5_000_000, 64, 1024, False, 2048),
        (5_000_000, 64, 128, False, 1024),
        (5_000_000, 4096, 128, False, 4096),
    ],
)
def test_memory_grows_with_the_rows_up_to_a_bound(
    rows: int, own: int, buffers: int, halfvec: bool, megabytes: int
) -> None:
    from types import SimpleNamespace

    from contextkit.indexes import _memory

    means: Any = SimpleNamespace(rows=rows, memory=own << 20, buffers=buffers << 20)
    assert _memory(means, halfvec=halfvec, m=16) >> 20 == megabytes


@pytest.mark.direct("a pooler keeps no settings for a build")
def test_no_statement_timeout_ends_a_build(filled: Engine, database_url: str) -> None:
    name = make_url(database_url).database
    run(database_url, f"alter database {name} set statement_timeout = '300ms'")
    engine = connect(database_url, write=True, statement_timeout=0.3)
    longer = (
        "select count(*) from pg_stat_activity where query like 'create index%' and state = 'active'"
        " and clock_timestamp() > query_start + interval '400 ms'"
    )
    with ThreadPoolExecutor(1) as executor, stopped_build(database_url):
        built = executor.submit(create_index, engine, progress=False)
        assert until(lambda: run(database_url, longer) or built.done())
        assert not built.done()
    assert built.result().valid
    engine.dispose()


def test_one_connection_in_the_pool_is_enough_and_a_plain_engine_works(filled: Engine, database_url: str) -> None:
    one = connect(database_url, write=True, pool_size=1)
    with one.connect():
        assert create_index(one).created
    one.dispose()
    plain = create_engine(make_url(database_url).set(drivername="postgresql+psycopg"))
    assert not create_index(plain).created
    assert drop_index(plain) == 1
    assert create_index(plain).created
    plain.dispose()
    assert run(database_url, LOCKS) == 0


# The bar


def test_a_bar_shows_what_a_build_does_once_it_takes_long(
    filled: Engine, database_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("contextkit.building.QUIET_SECONDS", 0.0)
    with ThreadPoolExecutor(1) as executor, stopped_build(database_url):
        built = executor.submit(create_index, filled)
        assert until(lambda: "waiting for writers before build" in capsys.readouterr().err)
    assert built.result().created
    assert "20/20" in capsys.readouterr().err
    drop_index(filled)
    create_index(filled, progress=False)
    assert capsys.readouterr().err == ""


# Two at once, and ends in the middle


def client(url: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-W", "ignore:a pooler", "-c", CLIENT, url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_processes_that_build_the_same_index_end_with_one_and_no_error(filled: Engine, database_url: str) -> None:
    with stopped_build(database_url):
        clients = [client(database_url), client(database_url)]
        assert until(lambda: run(database_url, BUILDING) and run(database_url, WAITING))
    results = [process.communicate(timeout=30) for process in clients]
    assert sorted(out.strip() for out, _ in results) == ["False", "True"]
    assert [error for _, error in results] == ["", ""]
    assert indexes_df(filled)["valid"].tolist() == [True]


def test_builds_of_different_indexes_at_once_wait_for_each_other(filled: Engine) -> None:
    with ThreadPoolExecutor(4) as executor:
        built = [executor.submit(create_index, filled, distance, progress=False) for distance in ("cosine", "l2", "l1")]
        assert all(future.result().created for future in built)
    assert indexes_df(filled)["valid"].all()


def test_an_index_that_is_there_is_found_while_another_is_built(filled: Engine, database_url: str) -> None:
    create_index(filled, "l2")
    with ThreadPoolExecutor(1) as executor, stopped_build(database_url):
        built = executor.submit(create_index, filled, progress=False)
        assert until(lambda: run(database_url, BUILDING))
        assert not create_index(filled, "l2").created
        frame = indexes_df(filled).set_index("distance")
        assert frame.loc["cosine", ["valid", "building"]].tolist() == [False, True]
        assert frame.loc["l2", ["valid", "building"]].tolist() == [True, False]
    assert built.result().created


def test_an_interrupt_ends_the_build_and_leaves_nothing(filled: Engine, database_url: str) -> None:
    dropping = "select count(*) from pg_stat_activity where query like 'drop index%' and wait_event_type = 'Lock'"
    with stopped_build(database_url) as writer:

        def interrupt() -> None:
            assert until(lambda: run(database_url, BUILDING))
            os.kill(os.getpid(), signal.SIGINT)
            assert until(lambda: run(database_url, dropping))
            assert run(database_url, BUILDING) == 0
            writer.rollback()  # for which removing what there is has to wait, as building had

        with ThreadPoolExecutor(1) as executor:
            helper = executor.submit(interrupt)
            with pytest.raises(KeyboardInterrupt):
                create_index(filled, progress=False)
            helper.result()
    assert nothing_left(database_url)
    assert create_index(filled, progress=False).created


def nothing_left(url: str) -> bool:
    return until(lambda: not any(run(url, count) for count in (BUILDING, INVALID, LOCKS)))


def test_a_build_cancelled_on_the_server_leaves_nothing(filled: Engine, database_url: str) -> None:
    cancel = "select pg_cancel_backend(pid) from pg_stat_progress_create_index"
    with ThreadPoolExecutor(1) as executor, stopped_build(database_url):
        built = executor.submit(create_index, filled, progress=False)
        assert until(lambda: run(database_url, BUILDING))
        assert run(database_url, cancel)
    with pytest.raises(ContextkitError, match="57014"):
        built.result()
    assert nothing_left(database_url)


def test_a_build_whose_client_was_killed_is_waited_for(filled: Engine, database_url: str) -> None:
    with ThreadPoolExecutor(1) as executor, stopped_build(database_url):
        killed = client(database_url)
        assert until(lambda: run(database_url, BUILDING))
        killed.kill()
        killed.communicate()
        built = executor.submit(create_index, filled, progress=False)
        assert until(lambda: run(database_url, WAITING))
    assert not built.result().created
    assert indexes_df(filled)["valid"].tolist() == [True]
    assert nothing_left(database_url)


def test_what_is_left_of_a_build_is_removed_by_the_next(filled: Engine, database_url: str) -> None:
    with stopped_build(database_url):
        killed = client(database_url)
        assert until(lambda: run(database_url, BUILDING))
        killed.kill()
        killed.communicate()
        run(database_url, "select pg_terminate_backend(pid) from pg_stat_progress_create_index")
        assert until(lambda: run(database_url, INVALID) and not run(database_url, BUILDING))
        assert indexes_df(filled)[["valid", "building"]].to_numpy().tolist() == [[False, False]]
    assert create_index(filled, progress=False).created
    assert indexes_df(filled)["valid"].tolist() == [True]


def test_what_is_left_of_a_build_can_be_dropped(filled: Engine, database_url: str) -> None:
    create_index(filled)
    run(database_url, "update pg_index set indisvalid = false where indexrelid = 'contextkit_cosine_idx'::regclass")
    assert drop_index(filled) == 1
    assert indexes_df(filled).empty


# Others' indexes

FITTING = {
    "whole": ("(embedding vector_cosine_ops)", False),
    "with numbers": ("(embedding vector_cosine_ops) with (m=20, ef_construction=50)", False),
    "half": ("((embedding::halfvec(1536)) halfvec_cosine_ops)", True),
}
OTHER = {
    "partial": "using hnsw (embedding vector_cosine_ops) where deleted_at is null",
    "ivfflat": "using ivfflat (embedding vector_cosine_ops) with (lists=1)",
    "another distance": "using hnsw (embedding vector_l2_ops)",
    "another length": "using hnsw ((subvector(embedding, 1, 100)::vector(100)) vector_cosine_ops)",
    "bits": "using hnsw ((binary_quantize(embedding)::bit(1536)) bit_hamming_ops)",
}


@pytest.mark.parametrize("name", FITTING)
def test_a_fitting_index_of_another_tool_counts_and_is_not_dropped(
    filled: Engine, database_url: str, name: str
) -> None:
    definition, halfvec = FITTING[name]
    run(database_url, f'create index "Their Index" on messages using hnsw {definition}')
    if name == "with numbers":
        index = create_index(filled, halfvec=halfvec, m=20, ef_construction=50)
    else:
        index = create_index(filled, halfvec=halfvec)
    assert (index["name"], index.created) == ('"Their Index"', False)
    with pytest.raises(ContextkitError, match=r'"Their Index" was not made by contextkit.*drop index concurrently'):
        drop_index(filled, halfvec=halfvec)
    assert indexes_df(filled)["name"].tolist() == ['"Their Index"']


@pytest.mark.parametrize("name", OTHER)
def test_an_index_that_does_not_fit_does_not_count(filled: Engine, database_url: str, name: str) -> None:
    run(database_url, f"create index theirs on messages {OTHER[name]}")
    assert create_index(filled).created
    assert drop_index(filled) == 1
    assert run(database_url, "select count(*) from pg_class where relname = 'theirs'") == 1


def test_an_invalid_index_of_another_tool_stays(filled: Engine, database_url: str) -> None:
    run(database_url, "create index theirs on messages using hnsw (embedding vector_cosine_ops)")
    run(database_url, "update pg_index set indisvalid = false where indexrelid = 'theirs'::regclass")
    assert create_index(filled).created
    assert drop_index(filled) == 1
    assert indexes_df(filled)[["name", "valid"]].to_numpy().tolist() == [["theirs", False]]


@pytest.mark.parametrize("other", ["index contextkit_cosine_idx on messages (role)", "table contextkit_cosine_idx ()"])
def test_something_else_with_the_name_stays_and_is_named(filled: Engine, database_url: str, other: str) -> None:
    run(database_url, f"create {other}")
    with pytest.raises(SchemaError, match="contextkit_cosine_idx is the name of something else"):
        create_index(filled)
    assert drop_index(filled) == 0
    assert run(database_url, "select count(*) from pg_class where relname = 'contextkit_cosine_idx'") == 1


# What is refused


def test_a_reader_builds_and_drops_nothing(reader: Engine, engine: Engine) -> None:
    for change in (create_index, drop_index):
        with pytest.raises(ReadOnlyError, match=r"connect\(write=True\)"):
            change(reader)
    assert indexes_df(reader).empty


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"distance": "euclid"}, "distance is one of cosine, l2, inner, l1"),
        ({"m": 1}, "m is a whole number from 2 to 100"),
        ({"m": True}, "m is a whole number"),
        ({"m": 16.0}, "m is a whole number"),
        ({"ef_construction": 31}, "ef_construction is a whole number from 32 to 1000"),
        ({"ef_construction": 1001}, "ef_construction is a whole number"),
    ],
)
def test_arguments_out_of_range_are_refused(engine: Engine, arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        create_index(engine, **arguments)


def test_missing_tables_are_a_schema_error(empty_url: str) -> None:
    engine = connect(empty_url, write=True)
    for ask in (create_index, drop_index, indexes_df):
        with pytest.raises(SchemaError, match="upgrade"):
            ask(engine)
    engine.dispose()


@pytest.mark.parametrize("kind", ["vector(3)", "vector", "halfvec(1536)"])
def test_a_column_of_another_length_is_a_dimension_error(engine: Engine, database_url: str, kind: str) -> None:
    run(database_url, f"alter table messages alter embedding type {kind}")
    with pytest.raises(DimensionError, match=re.escape(f"is {kind}, and contextkit needs vector(1536)")):
        create_index(engine)


def test_a_missing_column_is_a_schema_error(engine: Engine, database_url: str) -> None:
    run(database_url, "alter table messages drop embedding")
    with pytest.raises(SchemaError, match="embedding is missing"):
        create_index(engine)


def test_an_old_pgvector_is_a_schema_error_that_says_which_is_needed(engine: Engine, database_url: str) -> None:
    run(database_url, "update pg_extension set extversion = '0.6.2' where extname = 'vector'")
    for halfvec in (False, True):
        with pytest.raises(SchemaError, match=r"pgvector is 0\.6\.2; indexes need 0\.8"):
            create_index(engine, halfvec=halfvec)


def test_a_role_without_the_right_is_told_so(engine: Engine, database_url: str) -> None:
    run(
        database_url,
        "drop role if exists index_reader",
        "create role index_reader login",
        "grant select on contexts, messages to index_reader",
    )
    other = connect(make_url(database_url).set(username="index_reader"), write=True)
    with pytest.raises(ContextkitError, match="lacks a right"):
        create_index(other)
    other.dispose()
    run(database_url, "revoke all on contexts, messages from index_reader", "drop role index_reader")


@pytest.mark.direct("settings of a database reach new connections only")
def test_the_tables_of_another_schema_are_indexed_there(engine: Engine, database_url: str) -> None:
    engine.dispose()
    name = make_url(database_url).database
    run(
        database_url,
        "create schema elsewhere",
        "drop table messages, contexts, contextkit_revision cascade",
        f"alter database {name} set search_path = elsewhere, public",
    )
    moved = connect(database_url, write=True)
    upgrade(moved)
    write(moved, 3)
    assert create_index(moved).created
    assert not create_index(moved).created
    assert (
        run(database_url, "select schemaname from pg_indexes where indexname like 'contextkit%cosine%'") == "elsewhere"
    )
    assert drop_index(moved) == 1
    moved.dispose()
