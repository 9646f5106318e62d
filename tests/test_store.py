"""Writes: all of it or nothing, versions without a gap, counters that hold."""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pandas as pd
import psycopg
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pgvector import HalfVector, Vector
from sqlalchemy import Engine, insert, text

from contextkit import (
    Context,
    ContextkitError,
    DimensionError,
    Message,
    NotFoundError,
    ReadOnlyError,
    add_context,
    append_messages,
    connect,
    contexts_df,
    delete_context,
    delete_messages,
    embedding_matrix,
    fork_context,
    forks_df,
    history_df,
    messages_df,
    restore_context,
    restore_messages,
)
from tests.forest import Forest, Node, Row, forests

EXAMPLES = int(os.environ.get("CONTEXTKIT_EXAMPLES", "400")) // 40
STRANGER = "00000000-0000-4000-8000-000000000000"
MANY = 70_000
"""More than the 65,535 parameters that PostgreSQL takes."""


def message(content: str = "x", **fields: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **fields}


def contents(texts: str) -> list[dict[str, Any]]:
    return [message(character) for character in texts]


def vector(seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).normal(size=1536).astype(np.float32)


def tables(engine: Engine) -> list[tuple[str, ...]]:
    """A digest of every row of both tables."""
    rows = "select md5(c::text) from contexts c union all select md5(m::text) from messages m order by 1"
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(rows))]


def context_row(engine: Engine, context: str) -> Any:
    return contexts_df(engine, Context.id == context, include_deleted=True).iloc[0]


def wrong_counters(engine: Engine) -> list[Any]:
    """Contexts whose counters are not what their live rows say."""
    counted = """
        select c.id, c.message_count, c.total_tokens, c.latest_version from contexts c
        left join messages m on m.context_id = c.id and m.deleted_at is null
        group by c.id having c.message_count <> count(m.id) or c.total_tokens <> coalesce(sum(m.token_count), 0)
        or c.latest_version < (select coalesce(max(version), 0) from messages where context_id = c.id)
    """
    with engine.connect() as connection:
        return list(connection.execute(text(counted)))


@contextmanager
def nothing_written(engine: Engine) -> Iterator[None]:
    before = tables(engine)
    yield
    assert tables(engine) == before


# Appending


def test_versions_go_on_and_counters_and_time_follow(engine: Engine) -> None:
    context, bystander = add_context(engine, "a"), add_context(engine, "b")
    created = context_row(engine, context)
    first = append_messages(engine, context, [message(token_count=3), message()])
    assert first["version"].tolist() == [1, 2]
    after_first = context_row(engine, context)
    second = append_messages(engine, context, [message(token_count=4)])
    assert second["version"].tolist() == [3]
    after_second = context_row(engine, context)
    assert after_second[["message_count", "total_tokens", "latest_version"]].tolist() == [3, 7, 3]
    assert created["updated_at"] < after_first["updated_at"] < after_second["updated_at"]
    assert context_row(engine, bystander)["updated_at"] == context_row(engine, bystander)["created_at"]
    assert not wrong_counters(engine)


def test_returned_rows_are_those_of_messages_df(engine: Engine) -> None:
    context = add_context(engine)
    append_messages(engine, context, contents("ab"))
    full = message(
        "c",
        tool_call_id="1",
        tool_name="search",
        token_count=5,
        model="gpt",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        embedding=vector(0),
    )
    written = append_messages(engine, context, [full, message("d")])
    pd.testing.assert_frame_equal(written, messages_df(engine, Message.version > 2))
    assert written.loc[0, "created_at"] == pd.Timestamp("2026-01-01", tz="UTC")
    assert written.loc[0, ["tool_call_id", "tool_name", "token_count", "model"]].tolist() == ["1", "search", 5, "gpt"]


@pytest.mark.parametrize(
    "collect",
    [list, tuple, iter, pd.Series, pd.DataFrame, lambda rows: (row for row in rows)],
    ids=["list", "tuple", "iterator", "series", "frame", "generator"],
)
def test_messages_come_in_any_iterable_or_a_frame(shared: Engine, collect: Callable[[Any], Any]) -> None:
    context = add_context(shared)
    written = append_messages(shared, context, collect(contents("cab")))
    assert written[["version", "content"]].values.tolist() == [[1, "c"], [2, "a"], [3, "b"]]


@pytest.mark.parametrize("nothing", [[], iter(()), pd.DataFrame(), pd.DataFrame({"role": [], "content": []})])
def test_nothing_to_append_writes_nothing(shared: Engine, nothing: Any) -> None:
    context = add_context(shared)
    with nothing_written(shared):
        written = append_messages(shared, context, nothing)
        pd.testing.assert_frame_equal(written, messages_df(shared, Context.id == context))


bad_vector = np.where(np.arange(1536) == 7, np.nan, vector(0))


@pytest.mark.parametrize(
    ("fields", "error", "match"),
    [
        ({"role": "human"}, ValueError, r"message 1 has an unknown role; roles are user, assistant, system, tool"),
        ({"role": None}, ValueError, "message 1 lacks role"),
        ({"role": pd.NA, "content": np.nan}, ValueError, "message 1 lacks role and content"),
        ({"role": ["user"]}, ValueError, "message 1 has an unknown role"),
        ({"content": 5}, TypeError, "content of message 1 is text, not int"),
        ({"content": b"x"}, TypeError, "content of message 1 is text, not bytes"),
        ({"content": "a\0b"}, ValueError, "content of message 1 holds a NUL character"),
        ({"model": "a\0b"}, ValueError, "model of message 1 holds a NUL character"),
        ({"content": "a\ud83d"}, ValueError, "content of message 1 holds half of a surrogate pair"),
        ({"tool_name": "\ude00"}, ValueError, "tool_name of message 1 holds half of a surrogate pair"),
        ({"tokens": 5, "Model": "x"}, ValueError, "message 1 has fields .* not write: Model, tokens"),
        ({"version": 5}, ValueError, "message 1 has fields .* not write: version"),
        ({1: 5}, ValueError, "message 1 has fields .* not write: 1"),
        ({"token_count": 1.5}, ValueError, "token_count of message 1 is a whole number, not 1.5"),
        ({"token_count": np.inf}, ValueError, "token_count of message 1 is a whole number, not inf"),
        ({"token_count": True}, ValueError, "token_count of message 1 is a whole number, not True"),
        ({"token_count": np.True_}, ValueError, "token_count of message 1 is a whole number"),
        ({"token_count": "5"}, ValueError, "token_count of message 1 is a whole number, not '5'"),
        ({"token_count": [5]}, ValueError, "token_count of message 1 is a whole number"),
        ({"token_count": -1}, ValueError, "token_count of message 1 is between 0 and 2147483647, not -1"),
        ({"token_count": 2**31}, ValueError, "token_count of message 1 is between 0 and 2147483647"),
        ({"token_count": 10**400}, ValueError, r"token_count of message 1 is between 0 and 2147483647, not 1\d{39}$"),
        ({"created_at": datetime(2026, 1, 1)}, ValueError, "created_at of message 1 is a datetime with a time zone"),
        (
            {"created_at": datetime.max.replace(tzinfo=UTC)},
            ValueError,
            "created_at of message 1 is outside",
        ),
        ({"created_at": "2026-01-01"}, ValueError, "created_at of message 1 is a datetime with a time zone"),
        ({"embedding": [1.0]}, DimensionError, r"embedding of message 1 has the shape \(1,\), .* 1536 dimensions"),
        ({"embedding": []}, DimensionError, r"embedding of message 1 has the shape \(0,\)"),
        ({"embedding": np.ones((1, 1536))}, DimensionError, r"embedding of message 1 has the shape \(1, 1536\)"),
        ({"embedding": bad_vector}, ValueError, "embedding of message 1 holds NaN or infinity"),
        ({"embedding": np.full(1536, np.inf)}, ValueError, "embedding of message 1 holds NaN or infinity"),
        ({"embedding": np.full(1536, 1e39)}, ValueError, "embedding of message 1 holds NaN or infinity"),
        ({"embedding": [None] * 1536}, TypeError, "embedding of message 1 is a list or an array of numbers"),
        ({"embedding": ["1"] * 1536}, TypeError, "embedding of message 1 is a list or an array of numbers"),
        ({"embedding": "[1,2]"}, TypeError, "embedding of message 1 is a list or an array of numbers"),
        ({"embedding": np.ones(1536, complex)}, TypeError, "embedding of message 1 is a list or an array of numbers"),
        ({"embedding": [[1.0], [1.0, 2.0]]}, ValueError, "embedding of message 1 is one row of numbers"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_what_cannot_be_stored_is_refused_and_nothing_written(
    shared: Engine,
    fields: dict[Any, Any],
    error: type[Exception],
    match: str,
) -> None:
    context = add_context(shared)
    with nothing_written(shared), pytest.raises(error, match=match):
        append_messages(shared, context, [message("good"), message() | fields, message("good")])


@pytest.mark.parametrize("messages", ["text", {"role": "user", "content": "x"}, None, 5, [["user", "x"]], ["text"]])
def test_what_is_no_list_of_messages_is_refused(shared: Engine, messages: Any) -> None:
    context = add_context(shared)
    with nothing_written(shared), pytest.raises(TypeError, match="dict"):
        append_messages(shared, context, messages)


def test_a_frame_with_two_columns_of_one_name_is_refused(shared: Engine) -> None:
    context = add_context(shared)
    with nothing_written(shared), pytest.raises(ValueError, match="two columns of one name"):
        append_messages(shared, context, pd.DataFrame([["user", "a", "b"]], columns=["role", "content", "content"]))


def test_unknown_and_deleted_contexts_are_not_found(shared: Engine) -> None:
    context = add_context(shared)
    delete_context(shared, context)
    with nothing_written(shared):
        for messages in ([message()], []):
            with pytest.raises(NotFoundError, match=STRANGER):
                append_messages(shared, STRANGER, messages)
            with pytest.raises(NotFoundError, match=f"{context} is deleted; restore_context"):
                append_messages(shared, context, messages)
        with pytest.raises(ValueError, match="not an id"):
            append_messages(shared, "first", [message()])


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA, pd.NaT, np.float32("nan"), np.datetime64("NaT", "us")])
def test_missing_values_of_pandas_are_null_in_dicts_and_frames(shared: Engine, missing: Any) -> None:
    optional = ["tool_call_id", "tool_name", "token_count", "model", "embedding"]
    rows = [message(**dict.fromkeys(optional, missing), created_at=missing)] * 2
    context = add_context(shared)
    for written in (append_messages(shared, context, rows), append_messages(shared, context, pd.DataFrame(rows))):
        assert written[optional[:-1]].isna().all(axis=None)
        assert written["created_at"].notna().all()
    assert messages_df(shared, Context.id == context, embeddings=True)["embedding"].isna().all()


def test_counts_that_a_missing_one_made_floats_are_whole_again(shared: Engine) -> None:
    context = add_context(shared)
    frame = pd.DataFrame({"role": "user", "content": list("ab"), "token_count": [7, None]})
    assert frame["token_count"].dtype == "float64"
    assert append_messages(shared, context, frame)["token_count"].tolist() == [7, pd.NA]
    assert context_row(shared, context)["total_tokens"] == 7


@pytest.mark.parametrize("count", [np.int8(5), np.int64(5), np.uint64(5), np.float32(5), np.float64(5), 5.0])
def test_scalars_of_numpy_are_numbers_and_text(shared: Engine, count: Any) -> None:
    row = {"role": np.str_("user"), "content": np.str_("x"), "token_count": count}
    assert append_messages(shared, add_context(shared), [row])["token_count"].tolist() == [5]


def test_created_at_is_one_instant_under_the_lock_or_as_given(shared: Engine) -> None:
    context = add_context(shared)
    given_at = pd.Timestamp("2026-01-01 12:00", tz="Europe/Berlin")
    written = append_messages(shared, context, [message(), message(created_at=given_at), message()])
    assert written["created_at"].tolist()[1] == given_at
    assert written["created_at"][0] == written["created_at"][2] == context_row(shared, context)["updated_at"]


whole = np.arange(1536, dtype=np.float32) % 11


@pytest.mark.parametrize(
    "embedding",
    [
        whole.tolist(),
        tuple(whole.tolist()),
        whole,
        whole.astype(np.float16),
        whole.astype(np.float64),
        whole.astype(np.int64),
        whole.astype(np.uint8),
        pd.Series(whole, index=range(9, 1545)),
        Vector(whole.tolist()),
        HalfVector(whole.tolist()),
    ],
    ids=lambda value: f"{type(value).__name__}-{getattr(value, 'dtype', '')}",
)
def test_an_embedding_comes_as_any_row_of_numbers(shared: Engine, embedding: Any) -> None:
    context = add_context(shared)
    append_messages(shared, context, [message(embedding=embedding)])
    assert (embedding_matrix(messages_df(shared, Context.id == context, embeddings=True)) == whole).all()


COLUMNS = ["role", "content", "tool_call_id", "tool_name", "token_count", "model", "created_at", "embedding"]


def _as_lists(frame: pd.DataFrame) -> pd.DataFrame:
    lists = frame["embedding"].array.__arrow_array__().cast(pa.list_(pa.float64()))
    return frame.assign(embedding=pd.Series(lists, dtype=pd.ArrowDtype(lists.type), index=frame.index))


@pytest.mark.parametrize(
    "change",
    [
        lambda frame: frame,
        lambda frame: frame.iloc[1:3],
        lambda frame: frame[frame["embedding"].isna()],
        lambda frame: frame.iloc[::-1],
        lambda frame: frame.iloc[:0],
        lambda frame: pd.concat([frame, frame]),
        lambda frame: frame.assign(embedding=frame["embedding"].astype(object)),
        _as_lists,
        lambda frame: frame.to_dict("records"),
    ],
    ids=["whole", "slice", "nulls", "reversed", "empty", "chunks", "objects", "lists", "records"],
)
def test_a_frame_with_embeddings_goes_round(shared: Engine, change: Callable[[pd.DataFrame], Any]) -> None:
    source, target = add_context(shared), add_context(shared)
    embeddings = [vector(0), None, vector(1), vector(2)]
    rows = [message(str(n), embedding=value, token_count=n or None) for n, value in enumerate(embeddings)]
    append_messages(shared, source, rows)
    loaded = messages_df(shared, Context.id == source, embeddings=True)[COLUMNS]
    changed = change(loaded)
    append_messages(shared, target, changed)
    there = messages_df(shared, Context.id == target, embeddings=True)[COLUMNS]
    expected = pd.DataFrame(changed).reset_index(drop=True).astype({"embedding": object}).astype(loaded.dtypes)
    pd.testing.assert_frame_equal(there, expected)


def test_columns_that_are_not_to_be_written_are_named(shared: Engine) -> None:
    context = add_context(shared)
    append_messages(shared, context, [message()])
    with nothing_written(shared), pytest.raises(ValueError, match="context_id, deleted_at, message_id, version"):
        append_messages(shared, context, messages_df(shared))


def test_a_role_that_the_enum_lacks_is_refused_without_the_content(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("create type role as enum ('user', 'assistant')"))
        connection.execute(text("alter table messages alter role type role using role::role"))
        connection.execute(text("alter table messages add extra int not null default 7"))
        connection.execute(text("alter table contexts add extra int not null default 7"))
    root = add_context(engine)
    written = append_messages(engine, root, [message("a"), message("b") | {"role": "assistant"}])
    assert written["role"].tolist() == ["user", "assistant"]
    fork = fork_context(engine, root, 1)
    append_messages(engine, fork, contents("c"))
    assert history_df(engine, fork)["content"].tolist() == ["a", "c"]
    assert delete_messages(engine, written["message_id"]) == restore_messages(engine, written["message_id"]) == 2
    before = tables(engine)
    with pytest.raises(ValueError, match="a role the enum lacks") as caught:
        append_messages(engine, root, [message("fine"), message("secret") | {"role": "tool"}])
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert tables(engine) == before
    assert not wrong_counters(engine)


# Many writers at once


@pytest.mark.parametrize(("engines", "pool_size"), [(1, 3), (1, 10), (5, 3)])
def test_fifty_threads_leave_no_version_out_and_use_none_twice(
    database_url: str, engine: Engine, engines: int, pool_size: int
) -> None:
    context = add_context(engine)
    writers = [connect(database_url, write=True, pool_size=pool_size) for _ in range(engines)]
    start = threading.Barrier(50)

    def write(number: int) -> list[list[int]]:
        start.wait()
        rows = [message(str(number), token_count=number), message(str(number), token_count=1)]
        return [
            append_messages(writers[number % engines], context, rows[: 1 + turn])["version"].tolist()
            for turn in range(2)
        ]

    with ThreadPoolExecutor(50) as pool:
        given_versions = [versions for batches in pool.map(write, range(50)) for versions in batches]
    for writer in writers:
        writer.dispose()
    frame = messages_df(engine)
    assert frame["version"].tolist() == list(range(1, 151))
    assert sorted(version for versions in given_versions for version in versions) == list(range(1, 151))
    assert all(later == earlier + 1 for versions in given_versions for earlier, later in pairwise(versions))
    row = context_row(engine, context)
    assert row[["message_count", "total_tokens", "latest_version"]].tolist() == [150, 2 * sum(range(50)) + 50, 150]
    assert row["updated_at"] == frame["created_at"].max() == frame["created_at"].iloc[-1]


def test_writers_of_several_contexts_never_block_in_a_ring(database_url: str, engine: Engine) -> None:
    contexts = [add_context(engine) for _ in range(4)]
    rows = [message(token_count=3)] * 5
    ids = [id_ for context in contexts for id_ in append_messages(engine, context, rows)["message_id"]]
    writers = [connect(database_url, write=True) for _ in range(3)]
    start = threading.Barrier(12)

    def write(number: int) -> None:
        order = np.random.default_rng(number).permutation(len(ids))
        writer = writers[number % 3]
        start.wait()
        for turn in range(6):
            some = [ids[place] for place in order[turn : turn + 12]]
            delete_messages(writer, some)
            append_messages(writer, contexts[(number + turn) % 4], [message(token_count=2)])
            restore_messages(writer, some[::-1])
            fork_context(writer, contexts[number % 4])

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(write, range(12)))
    for writer in writers:
        writer.dispose()
    assert not wrong_counters(engine)
    frame = messages_df(engine, include_deleted=True)
    assert frame.groupby("context_id")["version"].agg(list).tolist() == [list(range(1, 24))] * 4


# Forks


def test_a_fork_inherits_up_to_a_version_and_goes_on_after_it(shared: Engine) -> None:
    root = add_context(shared)
    append_messages(shared, root, contents("abc"))
    for at_version, inherited in ((0, ""), (2, "ab"), (3, "abc"), (np.int64(1), "a"), (None, "abc")):
        fork = fork_context(shared, root, at_version, "a fork")
        append_messages(shared, root, contents("-"))
        row = context_row(shared, fork)
        assert row[["name", "parent_id", "message_count", "total_tokens"]].tolist() == ["a fork", root, 0, 0]
        end = len(inherited)
        if at_version is None:
            end, inherited = 7, "abc----"
        assert row[["fork_version", "latest_version"]].tolist() == [end, end]
        assert append_messages(shared, fork, contents("xy"))["version"].tolist() == [end + 1, end + 2]
        assert "".join(history_df(shared, fork)["content"]) == f"{inherited}xy"


def test_an_empty_context_can_be_forked(shared: Engine) -> None:
    fork = fork_context(shared, add_context(shared))
    assert context_row(shared, fork)["fork_version"] == 0
    assert append_messages(shared, fork, [message()])["version"].tolist() == [1]


@pytest.mark.parametrize(
    ("at_version", "error"),
    [(-1, ValueError), (4, ValueError), (10**30, ValueError), (1.0, TypeError), (1.5, TypeError), ("1", TypeError)]
    + [(value, TypeError) for value in (True, np.nan, pd.NA)],
)
def test_versions_outside_the_history_are_refused(shared: Engine, at_version: Any, error: type[Exception]) -> None:
    root = add_context(shared)
    append_messages(shared, root, contents("abc"))
    with nothing_written(shared):
        with pytest.raises(error, match="at_version") as caught:
            fork_context(shared, root, at_version)
        assert type(caught.value) is error


def test_unknown_and_deleted_contexts_cannot_be_forked(shared: Engine) -> None:
    context = add_context(shared)
    delete_context(shared, context)
    with nothing_written(shared):
        for asked in (STRANGER, context):
            with pytest.raises(NotFoundError, match=asked):
                fork_context(shared, asked)


@pytest.mark.parametrize("name", ["a\0", "\ud800", 5])
def test_a_name_that_cannot_be_stored_is_refused(shared: Engine, name: Any) -> None:
    root = add_context(shared)
    with nothing_written(shared):
        for write in (lambda: add_context(shared, name), lambda: fork_context(shared, root, name=name)):
            with pytest.raises((ValueError, TypeError), match="the name of a context"):
                write()


def test_a_deep_chain_of_forks_keeps_all_it_inherits(shared: Engine) -> None:
    context = add_context(shared)
    append_messages(shared, context, [message("0")])
    for depth in range(1, 31):
        context = fork_context(shared, context)
        assert append_messages(shared, context, [message(str(depth))])["version"].tolist() == [depth + 1]
    history = history_df(shared, context)
    assert history["content"].tolist() == [str(number) for number in range(31)]
    fork = fork_context(shared, context, 7)
    assert history_df(shared, fork)["content"].tolist() == [str(number) for number in range(7)]


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(forest=forests(), data=st.data())
def test_in_any_forest_a_fork_inherits_and_an_append_goes_on(
    database_url: str, engine: Engine, forest: Forest, data: st.DataObject
) -> None:
    forest.write(database_url)
    nodes = [node for node in forest.nodes if node.deleted is None and forest.lineage(node) is not None]
    if not nodes:
        return
    node = data.draw(st.sampled_from(nodes))
    before = history_df(engine, node.id)["message_id"].tolist()
    whole_fork = fork_context(engine, node.id)
    end = int(context_row(engine, whole_fork)["fork_version"])
    assert history_df(engine, whole_fork)["message_id"].tolist() == before
    at_version = data.draw(st.integers(0, end))
    fork = fork_context(engine, node.id, at_version)
    inherited = history_df(engine, node.id, at_version=at_version)["message_id"].tolist()
    assert history_df(engine, fork)["message_id"].tolist() == inherited
    for context, earlier in ((fork, inherited), (node.id, before)):
        way = _written_by(engine, context)
        written = append_messages(engine, context, contents("a" * data.draw(st.integers(1, 4))))
        assert history_df(engine, context)["message_id"].tolist() == [*earlier, *written["message_id"]]
        assert _written_by(engine, context) == way


def _written_by(engine: Engine, context: str) -> str:
    found = forks_df(engine, Context.id == context)["written_by"].tolist()
    return found[0] if found else "root"


def _write_fork(database_url: str, parent: dict[int, str], fork_version: int, own: dict[int, str]) -> str:
    """Root and fork as another tool writes them, with its counters at 0; the fork's id."""
    nodes = [Node(0, None, None, None), Node(1, 0, fork_version, None)]
    for node, rows in zip(nodes, (parent, own), strict=True):
        for version, content in rows.items():
            id_ = str(UUID(int=(node.place + 1) * 1000 + version))
            node.rows[version] = Row(id_, node.place, version, "user", content, 0, None)
    Forest(nodes).write(database_url)
    return nodes[1].id


@pytest.mark.parametrize(
    ("own", "way", "versions", "history"),
    [
        ({}, "reference", [4, 5], "abcxy"),
        ({4: "d"}, "reference", [5, 6], "abcdxy"),
        ({1: "a", 2: "b", 3: "c"}, "copy", [4, 5], "abcxy"),
        ({1: "a", 2: "b", 3: "C", 4: "d"}, "copy", [5, 6], "abCdxy"),
        ({2: "B"}, "copy", [4, 5], "aBcxy"),
        # Not at fork_version: by a row there, and one equal to the parent's at 1, it would become a copy.
        ({1: "a"}, "renumbered", [2, 4], "abcaxy"),
        ({1: "a", 2: "q"}, "renumbered", [4, 5], "abcaqxy"),
        ({1: "p", 2: "q", 3: "r"}, "renumbered", [4, 5], "abcpqrxy"),
    ],
)
def test_forks_of_other_writers_go_on_in_their_way(
    database_url: str, engine: Engine, own: dict[int, str], way: str, versions: list[int], history: str
) -> None:
    fork = _write_fork(database_url, {1: "a", 2: "b", 3: "c"}, 3, own)
    assert _written_by(engine, fork) == way
    assert append_messages(engine, fork, contents("xy"))["version"].tolist() == versions
    assert "".join(history_df(engine, fork)["content"]) == history
    assert _written_by(engine, fork) == way
    assert context_row(engine, fork)["latest_version"] == versions[-1]


def test_versions_go_on_after_rows_and_counter_whichever_is_further(database_url: str, engine: Engine) -> None:
    context = add_context(engine)
    append_messages(engine, context, contents("ab"))
    with psycopg.connect(database_url) as connection:
        connection.execute("update contexts set latest_version = 0")
    assert append_messages(engine, context, [message()])["version"].tolist() == [3]
    with psycopg.connect(database_url) as connection:
        connection.execute("update contexts set latest_version = 9")
    assert append_messages(engine, context, [message()])["version"].tolist() == [10]


def test_half_a_fork_goes_on_like_a_root(database_url: str, engine: Engine) -> None:
    orphan = add_context(engine)
    with psycopg.connect(database_url) as connection:
        connection.execute("update contexts set fork_version = 2")
    assert append_messages(engine, orphan, contents("abc"))["version"].tolist() == [1, 2, 3]


# Deleting and restoring


def test_deleting_and_restoring_a_context_count_what_changed(engine: Engine) -> None:
    context, other = add_context(engine), add_context(engine)
    append_messages(engine, context, contents("ab"))
    fork = fork_context(engine, context)
    times = [context_row(engine, context)["updated_at"]]
    for change, deleted in ((delete_context, True), (restore_context, False)):
        assert change(engine, context) == 1
        row = context_row(engine, context)
        assert pd.notna(row["deleted_at"]) == deleted
        assert row["message_count"] == 2
        before = tables(engine)
        assert change(engine, context) == 0
        assert tables(engine) == before
        times.append(row["updated_at"])
    assert times == sorted(set(times))
    assert set(contexts_df(engine)["context_id"]) == {context, other, fork}
    assert len(messages_df(engine)) == 2


def test_deleting_messages_keeps_counters_of_every_context_they_are_of(engine: Engine) -> None:
    contexts = [add_context(engine) for _ in range(3)]
    rows = [message(token_count=3), message(token_count=None), message(token_count=5)]
    a, b, c = (append_messages(engine, context, rows)["message_id"].tolist() for context in contexts)
    start = contexts_df(engine)["updated_at"].tolist()
    asked = [a[0], b[1], a[1], a[0], UUID(b[2])]
    assert delete_messages(engine, asked) == 4
    frame = contexts_df(engine)
    assert frame[["message_count", "total_tokens", "latest_version"]].values.tolist() == [
        [1, 5, 3],
        [1, 3, 3],
        [3, 8, 3],
    ]
    assert [now > then for now, then in zip(frame["updated_at"], start, strict=True)] == [True, True, False]
    assert set(messages_df(engine)["message_id"]) == {a[2], b[0], *c}
    before = tables(engine)
    assert delete_messages(engine, asked) == 0
    assert tables(engine) == before
    assert delete_messages(engine, pd.Series([a[0], a[2]])) == 1
    assert restore_messages(engine, a) == 3
    assert restore_messages(engine, [*a, *b, *c]) == 2
    assert restore_messages(engine, a[0]) == 0
    assert contexts_df(engine)[["message_count", "total_tokens"]].values.tolist() == [[3, 8]] * 3
    assert append_messages(engine, contexts[0], rows)["version"].tolist() == [4, 5, 6]
    assert not wrong_counters(engine)


def test_the_version_of_a_deleted_message_is_not_given_again(shared: Engine) -> None:
    context = add_context(shared)
    last = append_messages(shared, context, contents("ab"))["message_id"].iloc[-1]
    delete_messages(shared, last)
    assert append_messages(shared, context, contents("c"))["version"].tolist() == [3]


def test_an_unknown_message_among_others_changes_nothing(shared: Engine) -> None:
    live, gone = append_messages(shared, add_context(shared), contents("ab"))["message_id"]
    delete_messages(shared, gone)
    with nothing_written(shared):
        for change, known in ((delete_messages, live), (restore_messages, gone)):
            with pytest.raises(NotFoundError, match=STRANGER):
                change(shared, [known, STRANGER])
            with pytest.raises(ValueError, match="not an id"):
                change(shared, [known, "first"])
            with pytest.raises(TypeError, match="leave out rows without one"):
                change(shared, pd.Series([known, None]))
        assert delete_messages(shared, []) == restore_messages(shared, pd.Series([], dtype=str)) == 0


def test_unknown_contexts_are_neither_deleted_nor_restored(shared: Engine) -> None:
    for change in (delete_context, restore_context):
        with pytest.raises(NotFoundError, match=STRANGER):
            change(shared, STRANGER)


def test_messages_of_a_deleted_context_can_be_deleted_and_restored(engine: Engine) -> None:
    context = add_context(engine)
    ids = append_messages(engine, context, contents("ab"))["message_id"]
    delete_context(engine, context)
    assert delete_messages(engine, ids[0]) == 1
    restore_context(engine, context)
    assert messages_df(engine)["message_id"].tolist() == [ids[1]]
    assert not wrong_counters(engine)


def test_more_messages_than_postgresql_takes_parameters_are_deleted_at_once(database_url: str, engine: Engine) -> None:
    context = add_context(engine)
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "insert into messages (context_id, version, role, content, token_count)"
            f" select '{context}', v, 'user', 'x', 1 from generate_series(1, {MANY}) v"
        )
        connection.execute(f"update contexts set message_count = {MANY}, total_tokens = {MANY}")
    ids = messages_df(engine)["message_id"]
    assert delete_messages(engine, ids) == MANY
    assert append_messages(engine, context, [message()])["version"].tolist() == [MANY + 1]
    assert context_row(engine, context)[["message_count", "total_tokens"]].tolist() == [1, 0]


# Read-only


def test_an_engine_for_reading_writes_nothing(engine: Engine, reader: Engine) -> None:
    context = add_context(engine)
    ids = append_messages(engine, context, contents("ab"))["message_id"]
    writes: list[Callable[[], Any]] = [
        lambda: add_context(reader, "a"),
        lambda: fork_context(reader, context),
        lambda: append_messages(reader, context, contents("x")),
        lambda: append_messages(reader, context, []),
        lambda: delete_context(reader, context),
        lambda: restore_context(reader, context),
        lambda: delete_messages(reader, ids),
        lambda: delete_messages(reader, []),
        lambda: restore_messages(reader, ids),
    ]
    with nothing_written(engine):
        for write in writes:
            with pytest.raises(ReadOnlyError, match=r"connect\(write=True\)"):
                write()


def test_an_error_of_the_database_shows_no_content_and_leaves_nothing(shared: Engine) -> None:
    context = add_context(shared)
    append_messages(shared, context, [message(token_count=2**31 - 1)])
    with nothing_written(shared):
        with pytest.raises(ContextkitError, match="22003") as caught:
            append_messages(shared, context, [message(f"secret {uuid4()}", token_count=1)])
        assert "secret" not in str(caught.value)


def test_counters_count_rows_that_another_writer_added(engine: Engine) -> None:
    context = add_context(engine)
    with engine.begin() as connection:
        connection.execute(
            insert(Message),
            [
                {"context_id": context, "version": v, "role": "user", "content": "x", "token_count": 7}
                for v in range(1, 6)
            ],
        )
    append_messages(engine, context, [{"role": "user", "content": "y", "token_count": 7}])
    row = contexts_df(engine, Context.id == context).iloc[0]
    assert (row["message_count"], row["total_tokens"], row["latest_version"]) == (6, 42, 6)
    delete_messages(engine, messages_df(engine, Message.context_id == context)["message_id"][:5])
    row = contexts_df(engine, Context.id == context).iloc[0]
    assert (row["message_count"], row["total_tokens"], row["latest_version"]) == (1, 7, 6)
