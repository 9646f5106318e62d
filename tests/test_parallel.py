"""Messages read over several connections: the frame of one, and nothing left open whatever happens."""

import os
import signal
import threading
import time
import traceback
from typing import Any

import numpy as np
import pandas as pd
import psycopg
import pytest
from sqlalchemy import Engine, create_engine, func

from contextkit import (
    Context,
    ContextkitError,
    DimensionError,
    Message,
    connect,
    embedding_matrix,
    load_sample,
    messages_df,
    parallel,
)
from contextkit.connection import explain

OTHERS = "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"


def count(engine: Engine, wanted: int) -> int:
    """Connections to the database of an engine, once the server had time to end closed ones."""
    url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    until = time.monotonic() + 10
    with psycopg.connect(url, autocommit=True) as connection:
        while True:
            (found,) = connection.execute(OTHERS).fetchone()  # type: ignore[misc]
            if found == wanted or time.monotonic() > until:
                return int(found)


@pytest.fixture(scope="module")
def sample(shared: Engine) -> Engine:
    load_sample(shared)
    return shared


@pytest.fixture
def counted(engine: Engine) -> Engine:
    """The sample in a database whose connections are all the test's."""
    load_sample(engine)
    return engine


@pytest.mark.parametrize("connections", [2, 3])
@pytest.mark.parametrize("embeddings", [False, True])
def test_rows_and_order_are_those_of_one_connection(sample: Engine, connections: int, embeddings: bool) -> None:
    for where in ((), (Message.role == "user",), (Context.name.like("%import%"),), (Message.embedding.is_(None),)):
        one = messages_df(sample, *where, embeddings=embeddings)
        several = messages_df(sample, *where, embeddings=embeddings, connections=connections)
        assert len(one) > 0
        pd.testing.assert_frame_equal(several, one)
    several = messages_df(sample, include_deleted=True, connections=connections)
    pd.testing.assert_frame_equal(several, messages_df(sample, include_deleted=True))
    assert several.attrs["asked"]["connections"] == connections


def test_the_matrix_is_one_and_shared_with_the_frame(sample: Engine) -> None:
    frame = messages_df(sample, Message.embedding.is_not(None), embeddings=True, connections=3)
    assert np.shares_memory(embedding_matrix(frame), embedding_matrix(frame))
    assert frame["embedding"].array.__arrow_array__().num_chunks == 1


def test_one_context_or_none_is_read_over_one_connection(sample: Engine, reader: Engine) -> None:
    context = messages_df(sample)["context_id"].iloc[0]
    for engine in (sample, reader):
        one = messages_df(engine, Message.context_id == context, embeddings=True)
        several = messages_df(engine, Message.context_id == context, embeddings=True, connections=2)
        pd.testing.assert_frame_equal(several, one)


def test_a_column_without_a_declared_length_is_read_alike(engine: Engine) -> None:
    load_sample(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("alter table messages alter embedding type vector")
        connection.exec_driver_sql("update messages set embedding = subvector(embedding, 1, 700)")
    frame = messages_df(engine, embeddings=True, connections=2)
    assert embedding_matrix(frame).shape == (356, 700)
    pd.testing.assert_frame_equal(frame, messages_df(engine, embeddings=True))


def test_a_part_without_vectors_has_the_length_of_the_others(engine: Engine) -> None:
    load_sample(engine)
    ids = messages_df(engine)["context_id"].sort_values().array
    with engine.begin() as connection:
        connection.exec_driver_sql("alter table messages alter embedding type vector")
        connection.exec_driver_sql("update messages set embedding = subvector(embedding, 1, 700)")
        connection.exec_driver_sql("update messages set embedding = null where context_id <= %s", (ids[200],))
    frame = messages_df(engine, embeddings=True, connections=2)
    assert embedding_matrix(frame).shape == (356, 700)
    pd.testing.assert_frame_equal(frame, messages_df(engine, embeddings=True))


def test_parts_of_different_lengths_are_refused(engine: Engine) -> None:
    load_sample(engine)
    ids = messages_df(engine)["context_id"].sort_values().array
    with engine.begin() as connection:
        connection.exec_driver_sql("alter table messages alter embedding type vector")
        connection.exec_driver_sql("update messages set embedding = '[1,2]' where context_id <= %s", (ids[178],))
    with pytest.raises(DimensionError, match="2, 1536"):
        messages_df(engine, embeddings=True, connections=2)


def test_types_that_bulk_does_not_read_come_over_one_connection(engine: Engine) -> None:
    load_sample(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("alter table messages alter tool_name type text[] using array[tool_name]")
    frame = messages_df(engine, connections=2)
    assert frame["tool_name"].map(type).eq(list).all()
    assert len(frame) == 356


def test_a_condition_that_counts_otherwise_than_it_reads_gives_what_was_read(sample: Engine) -> None:
    frame = messages_df(sample, func.random() < 0.5, embeddings=True, connections=2)
    whole = messages_df(sample, embeddings=True).set_index("message_id")
    expected = embedding_matrix(whole.loc[frame["message_id"]])
    np.testing.assert_array_equal(embedding_matrix(frame), expected)


def test_vectors_of_several_lengths_are_refused(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("alter table messages alter embedding type vector")
    load_sample(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("update messages set embedding = '[1,2]' where version = 1")
    with pytest.raises(DimensionError, match="2, 1536"):
        messages_df(engine, embeddings=True, connections=2)


def test_all_parts_are_of_one_snapshot(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are committed between the first part and the others do not show."""
    load_sample(engine)
    expected = messages_df(engine)
    real = parallel.partitions_of

    def then_write(counted: Any) -> Any:
        found = real(counted)
        with engine.begin() as connection:
            connection.exec_driver_sql(
                "insert into messages (context_id, version, role, content)"
                " select context_id, max(version) + 1, 'user', 'late' from messages group by context_id"
            )
        return found

    monkeypatch.setattr(parallel, "partitions_of", then_write)
    pd.testing.assert_frame_equal(messages_df(engine, connections=2), expected)
    monkeypatch.undo()
    assert "late" in set(messages_df(engine, connections=2)["content"])


@pytest.mark.direct("counts the server's connections")
def test_never_more_connections_than_the_pool_has(counted: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = connect(counted.url, pool_size=2)
    counted.dispose()
    seen: list[tuple[int, int]] = []
    taken = narrow.pool.checkedout  # type: ignore[attr-defined]
    both = threading.Barrier(2, action=lambda: seen.append((count(counted, 2), taken())))
    real = parallel.execute_bulk

    def counting(*arguments: Any) -> Any:
        both.wait(30)
        return real(*arguments)

    monkeypatch.setattr(parallel, "execute_bulk", counting)
    assert len(messages_df(narrow, connections=2)) == 356
    assert (seen, taken()) == ([(2, 2)], 0)
    with pytest.raises(ValueError, match=r"connections is 3, and the pool of this engine has 2"):
        messages_df(narrow, connections=3)
    narrow.dispose()


def test_readers_at_once_wait_for_each_other_and_never_for_ever(sample: Engine) -> None:
    narrow = connect(sample.url, pool_size=2)
    frames: list[int] = []
    threads = [
        threading.Thread(target=lambda: frames.append(len(messages_df(narrow, connections=2)))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert frames == [356] * 6
    narrow.dispose()


@pytest.mark.parametrize("connections", [0, True, 1.5, "2", None])
def test_connections_are_a_whole_number(sample: Engine, connections: Any) -> None:
    with pytest.raises(ValueError, match="connections is a whole number of at least 1"):
        messages_df(sample, connections=connections)


def test_an_engine_that_connect_did_not_open_is_refused(sample: Engine) -> None:
    foreign = create_engine(sample.url)
    with pytest.raises(ValueError, match=r"connections=2 needs an engine from connect\(\)"):
        messages_df(foreign, connections=2)
    assert len(messages_df(foreign)) == 356
    foreign.dispose()


@pytest.mark.direct("counts the server's connections")
def test_an_error_in_one_part_ends_the_others_and_is_ours(counted: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = connect(counted.url)
    places = iter(["pg_sleep(600)::text", "('TOPSECRET' || version)::int"])
    real = parallel.execute_bulk

    def failing(engine: Engine, cursor: Any, sql: str, *rest: Any) -> Any:
        return real(engine, cursor, f"select {next(places)} as x, part.* from ({sql}) as part", *rest)

    monkeypatch.setattr(parallel, "execute_bulk", failing)
    with pytest.raises(ValueError, match="22P02") as caught:
        messages_df(reader, connections=2)
    assert "TOPSECRET" not in "".join(traceback.format_exception(caught.value))
    reader.dispose()
    counted.dispose()
    assert count(counted, 0) == 0


@pytest.mark.direct("counts the server's connections")
def test_a_timeout_ends_every_part(counted: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    limited = connect(counted.url, statement_timeout=0.5)
    with pytest.raises(ContextkitError, match="57014"):
        messages_df(limited, func.pg_sleep(60).is_not(None), connections=2)
    limited.dispose()
    counted.dispose()
    assert count(counted, 0) == 0


@pytest.mark.direct("counts the server's connections")
def test_an_interrupt_cancels_every_part_and_leaves_nothing_open(
    counted: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = connect(counted.url)
    running = threading.Barrier(3)
    real = parallel.execute_bulk

    def slow(engine: Engine, cursor: Any, sql: str, *rest: Any) -> Any:
        running.wait(30)
        return real(engine, cursor, f"select pg_sleep(600)::text as x, part.* from ({sql}) as part", *rest)

    def interrupt() -> None:
        running.wait(30)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(parallel, "execute_bulk", slow)
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        messages_df(reader, connections=2)
    thread.join()
    monkeypatch.undo()
    assert len(messages_df(reader, connections=2)) == 356
    reader.dispose()
    counted.dispose()
    assert count(counted, 0) == 0


@pytest.mark.parametrize("state", ["22023", "42704", "55000"])
def test_where_a_snapshot_is_gone_the_error_is_of_what_ended_it(state: str) -> None:
    class Gone(psycopg.Error):
        sqlstate = state

    gone = explain(Gone())
    cancelled = threading.Event()

    def exporting() -> None:
        cancelled.wait(10)
        raise ValueError("the cause")

    def importing() -> None:
        raise gone

    with pytest.raises(ValueError, match="the cause"):
        parallel._at_once([exporting, importing], cancelled.set)
