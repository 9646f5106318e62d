"""Dask frames: what pandas gives, read by worker processes over one connection each, with no password in sight."""

import pickle
import sys
import time
from collections.abc import Iterator
from typing import Any

import dask
import pandas as pd
import psycopg
import pytest
from distributed import Client, LocalCluster, wait
from sqlalchemy import Engine, create_engine, make_url

from contextkit import (
    Context,
    LineageError,
    Message,
    MissingExtraError,
    SchemaError,
    add_context,
    append_messages,
    connect,
    contexts_df,
    delete_context,
    distributed,
    history_df,
    load_sample,
    messages_df,
    with_turn,
)
from contextkit.distributed import histories_dask, messages_dask


@pytest.fixture(scope="module")
def cluster() -> Iterator[Client]:
    """Two processes of four threads each."""
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=4, host="127.0.0.1", dashboard_address=None, worker_dashboard_address=None
        ) as local,
        Client(local) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def sample(shared: Engine) -> Engine:
    load_sample(shared)
    return shared


def same(dask_frame: Any, expected: pd.DataFrame, scheduler: Any = None) -> None:
    found = dask_frame.compute(scheduler=scheduler)
    assert list(found.index) == list(found["context_id"])
    pd.testing.assert_frame_equal(found.reset_index(drop=True), expected)


def by_id(engine: Engine, *where: Any) -> list[str]:
    return sorted(contexts_df(engine, *where)["context_id"])


@pytest.mark.parametrize("npartitions", [1, 3, 1000])
def test_both_give_the_rows_and_dtypes_of_pandas_on_a_cluster(
    sample: Engine, cluster: Client, npartitions: int
) -> None:
    same(messages_dask(sample, npartitions, embeddings=True), messages_df(sample, embeddings=True))
    expected = history_df(sample, by_id(sample), embeddings=True)
    same(histories_dask(sample, npartitions, embeddings=True), expected)


@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
def test_both_work_without_a_cluster(sample: Engine, scheduler: str) -> None:
    same(messages_dask(sample, 4), messages_df(sample), scheduler)
    same(histories_dask(sample, 4), history_df(sample, by_id(sample)), scheduler)


@pytest.mark.parametrize("name", ["messages", "histories"])
def test_dtypes_are_told_before_anything_is_read(sample: Engine, name: str) -> None:
    lazy = messages_dask if name == "messages" else histories_dask
    for embeddings in (False, True):
        frame = lazy(sample, 4, embeddings=embeddings)
        assert frame.dtypes.equals(frame.compute(scheduler="synchronous").dtypes)


def test_every_context_is_whole_in_one_partition_and_partitions_are_about_equal(sample: Engine) -> None:
    for frame in (messages_dask(sample, 4), histories_dask(sample, 4)):
        parts = dask.compute(*frame.to_delayed(), scheduler="synchronous")
        contexts = [set(part["context_id"]) for part in parts]
        assert sum(map(len, contexts)) == len(set.union(*contexts))
        sizes = [len(part) for part in parts]
        assert max(sizes) < 1.5 * sum(sizes) / 4


HOSTILE = ["100%", "a:b", "\\:b", ":name", "::text", "it's", "back\\slash", "%(x)s", "naïve 🙂", "a\nb"]


def test_conditions_and_deleted_rows_are_as_in_pandas(engine: Engine) -> None:
    for content in HOSTILE:
        append_messages(engine, add_context(engine, content), [{"role": "user", "content": content}])
    delete_context(engine, by_id(engine, Context.name == "a:b")[0])
    for content in HOSTILE:
        for deleted in (False, True):
            found = messages_dask(engine, 2, Message.content == content, include_deleted=deleted)
            expected = messages_df(engine, Message.content == content, include_deleted=deleted)
            assert len(expected) == (deleted or content != "a:b")
            same(found, expected, "synchronous")
            histories = histories_dask(engine, 2, Context.name == content, include_deleted=deleted)
            assert histories["content"].compute(scheduler="synchronous").tolist() == expected["content"].tolist()


def test_an_empty_database_gives_one_empty_partition(reader: Engine) -> None:
    for frame, expected in (
        (messages_dask(reader, 3), messages_df(reader)),
        (histories_dask(reader, 3), history_df(reader, [])),
    ):
        assert frame.npartitions == 1
        same(frame, expected, "synchronous")


def test_groups_by_context_equal_those_of_pandas_and_need_no_shuffle(sample: Engine, cluster: Client) -> None:
    frame, expected = messages_dask(sample, 4, embeddings=True), messages_df(sample, embeddings=True)

    def last_role(messages: pd.DataFrame) -> str:
        return str(messages["role"].iloc[-1])

    for found, wanted in (
        (frame.groupby("context_id")["token_count"].sum(), expected.groupby("context_id")["token_count"].sum()),
        (frame.groupby("context")["version"].median(), expected.groupby("context_id")["version"].median()),
        (
            frame.groupby("context").apply(last_role, meta=("role", "str")),
            expected.groupby("context_id").apply(last_role),
        ),
        (
            frame.map_partitions(lambda part: part.groupby("context_id")["content"].first()),
            expected.groupby("context_id")["content"].first(),
        ),
        (
            frame.map_partitions(with_turn).groupby("context_id")["turn"].max(),
            with_turn(expected).groupby("context_id")["turn"].max(),
        ),
    ):
        assert not any("shuffle" in str(key) for key in found.optimize().dask)
        pd.testing.assert_series_equal(found.compute().sort_index(), wanted, check_names=False)
    one = expected["context_id"].iloc[100]
    assert (
        frame.loc[one].compute()["message_id"].tolist()
        == expected.loc[expected["context_id"] == one, "message_id"].tolist()
    )


COUNT = "select count(*) from pg_stat_activity where datname = current_database() and application_name = 'contextkit'"


@pytest.mark.direct("counts the server's connections")
def test_each_worker_process_holds_at_most_one_connection_and_none_when_idle(
    engine: Engine, database_url: str, cluster: Client
) -> None:
    def count() -> int:
        with psycopg.connect(database_url, application_name="counts") as connection:
            return int(connection.execute(COUNT).fetchone()[0])  # type: ignore[index]

    load_sample(engine)
    engine.dispose()
    quick = connect(database_url, idle_timeout=0.5)
    frame = messages_dask(quick, 40)
    quick.dispose()
    counts = frame.map_partitions(lambda part: part.assign(version=count()), meta=frame)["version"].compute()
    assert 1 <= counts.min() <= counts.max() <= 2
    until = time.monotonic() + 60
    while count():
        assert time.monotonic() < until
    assert len(frame.compute()) == 356


def test_the_password_and_values_of_conditions_are_nowhere_in_sight(sample: Engine) -> None:
    url = make_url(sample.url).set(username="postgres", password="TOPSECRET")
    engine = connect(url)
    for frame in (
        messages_dask(engine, 3, Message.content != "HIDDEN"),
        histories_dask(engine, 3, Message.content != "HIDDEN"),
    ):
        graph = frame.optimize().dask
        shown = [repr(frame), repr(frame.expr), str(frame.expr), *map(repr, graph), *map(repr, graph.values())]
        shown.append(frame.expr.tree_repr())
        assert not [text for text in shown if "TOPSECRET" in text or "HIDDEN" in text]
        assert b"TOPSECRET" in pickle.dumps(graph)  # it does travel
        assert len(frame.compute(scheduler="synchronous")) > 300
    engine.dispose()


def test_a_later_call_never_gets_rows_of_an_earlier_one(engine: Engine, cluster: Client) -> None:
    context = add_context(engine)
    append_messages(engine, context, [{"role": "user", "content": "a"}])
    kept = messages_dask(engine, 1).persist()
    wait(kept)
    append_messages(engine, context, [{"role": "user", "content": "b"}])
    assert messages_dask(engine, 1)["content"].compute().tolist() == ["a", "b"]
    assert kept["content"].compute().tolist() == ["a"]


def test_an_error_of_a_worker_comes_back_as_ours(engine: Engine, cluster: Client) -> None:
    frame = messages_dask(engine, 2)
    with engine.begin() as connection:
        connection.exec_driver_sql("alter table messages rename to elsewhere")
    with pytest.raises(SchemaError, match="a table is missing"):
        frame.compute()


def test_a_context_that_is_deleted_meanwhile_gives_no_rows(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, gone = (add_context(engine) for _ in range(2))
    for context_id in (kept, gone):
        append_messages(engine, context_id, [{"role": "user", "content": "x"}])
    real = distributed._Part.rows

    def deleting(part: Any) -> pd.DataFrame:
        rows = real(part)
        delete_context(engine, gone)
        return rows

    monkeypatch.setattr(distributed._Part, "rows", deleting)
    assert histories_dask(engine, 1).compute(scheduler="synchronous")["context_id"].tolist() == [kept]


def test_a_cycle_of_parents_is_told(engine: Engine) -> None:
    context = add_context(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("update contexts set parent_id = id, fork_version = 1")
    with pytest.raises(LineageError, match=context):
        histories_dask(engine, 2).compute(scheduler="synchronous")


def test_without_dask_the_extra_is_named(sample: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dask", None)
    with pytest.raises(MissingExtraError, match=r"contextkit\[dask\]"):
        messages_dask(sample, 2)


@pytest.mark.parametrize("npartitions", [0, True, 2.5, None])
def test_partitions_are_a_whole_number(sample: Engine, npartitions: Any) -> None:
    for lazy in (messages_dask, histories_dask):
        with pytest.raises(ValueError, match="npartitions is a whole number of at least 1"):
            lazy(sample, npartitions)


def test_an_engine_that_connect_did_not_open_is_refused(sample: Engine) -> None:
    foreign = create_engine(sample.url)
    with pytest.raises(ValueError, match=r"from connect\(\)"):
        messages_dask(foreign, 2)
    foreign.dispose()
