"""What check_df finds: nothing in what the verbs wrote, and of each defect that finding alone."""

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from types import FrameType
from typing import Any

import numpy as np
import pandas as pd
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, make_url, text

from contextkit import (
    SchemaError,
    add_context,
    append_messages,
    check_df,
    connect,
    create_index,
    delete_context,
    delete_messages,
    fork_context,
    history_df,
    restore_messages,
)
from contextkit.arrow import fetch
from contextkit.dtypes import to_frame
from contextkit.pairs import unpaired
from contextkit.queries import SEVERITIES, select_unpaired
from tests.forest import Forest, Node, forests

EXAMPLES = int(os.environ.get("CONTEXTKIT_EXAMPLES", "400")) // 40
slow = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
COLUMNS = ["kind", "context_id", "message_id", "detail", "severity"]
STRANGER = "00000000-0000-4000-8000-000000000000"
SECRET = "xyzzy"


def unit(axis: int, length: float = 1.0) -> Any:
    vector = np.zeros(1536, np.float32)
    vector[axis] = length
    return vector


def user(**fields: Any) -> dict[str, Any]:
    return {"role": "user", "content": SECRET, "token_count": 2, **fields}


def call(id_: str | None, **fields: Any) -> dict[str, Any]:
    return user(role="assistant", tool_call_id=id_, tool_name="search", **fields)


def result(id_: str | None, **fields: Any) -> dict[str, Any]:
    return user(role="tool", tool_call_id=id_, **fields)


@pytest.fixture
def ids(engine: Engine) -> dict[str, str]:
    """A database in which nothing is wrong: ids of a root, its twelve messages m1 ... m12, and two forks in a row."""
    root = add_context(engine, SECRET)
    plain = [user(embedding=unit(axis)) for axis in range(10)]
    paired = [call("a", embedding=unit(10)), result("a", embedding=unit(11))]
    written = append_messages(engine, root, plain + paired)
    fork = fork_context(engine, root, 4)
    append_messages(engine, fork, [user(embedding=unit(12))])
    below = fork_context(engine, fork)
    return {"root": root, "fork": fork, "below": below} | {
        f"m{version}": id_ for version, id_ in zip(written["version"], written["message_id"], strict=True)
    }


def change(engine: Engine, sql: str, ids: dict[str, str]) -> None:
    with engine.begin() as connection:
        for statement in sql.split(";"):
            names = [name for name in ids if f":{name}" in statement]
            connection.execute(text(statement), {name: ids[name] for name in names})


def found(engine: Engine) -> list[tuple[str | None, ...]]:
    frame = check_df(engine)
    assert list(frame.columns) == COLUMNS
    assert set(frame.dtypes.astype(str)) == {"str"}
    assert SECRET not in frame.to_json()
    rows: list[tuple[Any, ...]] = list(frame.itertuples(index=False, name=None))
    assert [row[4] for row in rows] == [SEVERITIES[row[0]] for row in rows]
    return [tuple(None if pd.isna(value) else value for value in row[:4]) for row in rows]


def test_where_nothing_is_wrong_the_frame_is_empty(engine: Engine, ids: dict[str, str]) -> None:
    assert ids
    assert found(engine) == []
    assert check_df(engine).attrs == {"function": "check_df", "asked": {}}


def test_a_migrated_database_without_rows_has_no_findings(reader: Engine) -> None:
    assert found(reader) == []


# Each defect, and the findings: kind, names of context and message, detail

DEFECTS: dict[str, list[tuple[str, str | None, str | None, str]]] = {
    "update contexts set message_count = 7 where id = :root": [
        ("message_count", "root", None, "message_count is 7, its live messages give 12")
    ],
    "update contexts set message_count = 1 where id = :below": [
        ("message_count", "below", None, "message_count is 1, its live messages give 0")
    ],
    "update contexts set total_tokens = 0 where id = :root": [
        ("total_tokens", "root", None, "total_tokens is 0, its live messages give 24")
    ],
    "update contexts set latest_version = 11 where id = :root": [
        ("latest_version", "root", None, "latest_version is 11, its largest version 12")
    ],
    "delete from messages where id = :m3; update contexts set message_count = 11, total_tokens = 22 where id = :root": [
        ("version_gap", "root", None, "1 missing between versions 1 and 12")
    ],
    "update messages set version = -1 where id = :m1": [
        ("version_below_1", "root", None, "its least version is -1"),
        ("version_gap", "root", None, "1 missing between versions 1 and 12"),
    ],
    "update messages set version = 8 where context_id = :fork; update contexts set latest_version = 12": [
        ("version_gap", "fork", None, "3 missing between versions 5 and 8")
    ],
    "update contexts set fork_version = null where id = :below": [
        ("orphan_fork", "below", None, "no fork_version of parent {fork}")
    ],
    "update contexts set parent_id = null where id = :below": [
        ("orphan_fork", "below", None, "fork_version 5 of no parent")
    ],
    "update contexts set fork_version = 6 where id = :below": [
        ("beyond_parent", "below", None, "fork_version is 6, its parent ends at 5")
    ],
    "update contexts set parent_id = :below, fork_version = 0 where id = :root": [
        ("cycle", name, None, "its parents form a cycle, or lead into one") for name in ("root", "fork", "below")
    ],
    "update contexts set parent_id = :below, fork_version = 0 where id = :below": [
        ("cycle", "below", None, "its parents form a cycle, or lead into one")
    ],
    "update messages set role = 'critic' where id in (:m1, :m2)": [
        ("unknown_role", None, "m1 or m2", "2 messages of role critic")
    ],
    "update messages set tool_call_id = 'b' where id = :m12": [
        ("result_without_call", "root", "m12", "no call stands before it"),
        ("call_without_result", "root", "m11", "no result follows it"),
    ],
    "update messages set tool_call_id = null where id in (:m11, :m12)": [
        ("tool_without_id", None, "m11 or m12", "2 calls and results of tools have no tool_call_id")
    ],
    "update messages set embedding = null where id = :m5": [
        ("null_embeddings", None, "m5", "1 of 13 live messages have no embedding")
    ],
    "update messages set embedding = (select embedding - embedding from messages where id = :m1) where id = :m5": [
        ("zero_embeddings", None, "m5", "1 embeddings are all zero")
    ],
    "update messages set embedding = embedding + embedding where id = :m5": [
        ("odd_embeddings", None, "m5", "1 of 13 embeddings are not of length 1, the others are")
    ],
    "alter table messages alter embedding type vector; update messages set embedding = '[1,0]' where id = :m5": [
        ("odd_embeddings", None, "m5", "1 embeddings of 2 dimensions, most have 1536"),
        ("schema", None, None, "messages.embedding is vector, expected vector(1536)"),
    ],
    "drop index messages_deleted_at_idx": [("schema", None, None, "messages_deleted_at_idx is missing")],
    "update contextkit_revision set version_num = 'future'": [
        ("schema", None, None, "the revision is future, contextkit's is 4c1d8a7e2b90")
    ],
    "create index one on messages using hnsw (embedding vector_l2_ops);"
    "create index two on messages using hnsw (embedding vector_l2_ops)": [
        ("repeated_index", None, None, "one, two all serve vector_l2_ops")
    ],
    "alter table contexts drop constraint contexts_parent_id_contexts_id_fk;"
    f"update contexts set parent_id = '{STRANGER}' where id = :below": [
        ("missing_parent", "below", None, f"no context is its parent {STRANGER}"),
        ("schema", None, None, "contexts_parent_id_contexts_id_fk is missing"),
    ],
    "alter table messages drop constraint messages_context_id_contexts_id_fk;"
    f"update messages set context_id = '{STRANGER}' where context_id = :fork;"
    "update contexts set message_count = 0, total_tokens = 0 where id = :fork": [
        ("missing_context", STRANGER, None, "1 messages without it"),
        ("schema", None, None, "messages_context_id_contexts_id_fk is missing"),
    ],
}


@pytest.mark.parametrize("sql", DEFECTS)
def test_a_defect_gives_that_finding_and_no_other(engine: Engine, ids: dict[str, str], sql: str) -> None:
    change(engine, sql, ids)

    def named(name: str | None) -> str | None:
        return name and min(ids.get(part, part) for part in name.split(" or "))

    expected = [(kind, named(of), named(row), detail.format(**ids)) for kind, of, row, detail in DEFECTS[sql]]
    assert sorted(found(engine), key=repr) == sorted(expected, key=repr)


def test_an_index_that_was_not_built_to_the_end_is_found(engine: Engine, ids: dict[str, str]) -> None:
    assert ids
    with psycopg.connect(url_of(engine), autocommit=True) as connection, pytest.raises(psycopg.errors.UniqueViolation):
        connection.execute("create unique index concurrently half on messages (role)")
    assert found(engine) == [("invalid_index", None, None, "half was not built to the end")]


def test_every_kind_has_a_test() -> None:
    assert {finding[0] for findings in DEFECTS.values() for finding in findings} == set(SEVERITIES) - {"invalid_index"}


def test_findings_come_by_severity_kind_and_id(engine: Engine, ids: dict[str, str]) -> None:
    change(engine, "update contexts set parent_id = :below, fork_version = 0 where id = :root", ids)
    change(engine, "update contexts set message_count = 9; update messages set embedding = null where id = :m5", ids)
    frame = check_df(engine)
    assert frame["kind"].tolist() == ["cycle"] * 3 + ["message_count"] * 3 + ["null_embeddings"]
    assert frame["severity"].tolist() == ["error"] * 3 + ["warning"] * 3 + ["note"]
    for _, part in frame.dropna(subset="context_id").groupby("kind"):
        assert part["context_id"].is_monotonic_increasing
    pd.testing.assert_frame_equal(frame, check_df(engine))


def test_one_index_of_each_kind_for_a_distance_is_fine(engine: Engine, ids: dict[str, str]) -> None:
    assert ids
    create_index(engine, progress=False)
    create_index(engine, halfvec=True, progress=False)
    create_index(engine, "l2", progress=False)
    assert found(engine) == []


def test_embeddings_of_many_lengths_are_not_odd(engine: Engine, ids: dict[str, str]) -> None:
    change(engine, "update messages set embedding = embedding + embedding where id in (:m5, :m6, :m7)", ids)
    assert found(engine) == []


# Tool calls, paired within one history


def kinds_and_versions(engine: Engine) -> list[tuple[str, int]]:
    with engine.connect() as connection:
        versions = dict(connection.execute(text("select cast(id as text), version from messages")).all())
    frame = check_df(engine)
    frame = frame[~frame["kind"].isin(["null_embeddings", "version_gap"])]
    return [(kind, versions[id_]) for kind, id_ in zip(frame["kind"], frame["message_id"], strict=True)]


def test_a_fork_answers_the_call_that_it_inherits(engine: Engine) -> None:
    root = add_context(engine)
    append_messages(engine, root, [user(), call("a"), call("b")])
    below = fork_context(engine, fork_context(engine, root))
    append_messages(engine, below, [result("a"), result("b")])
    assert kinds_and_versions(engine) == []


def test_a_call_after_the_fork_is_not_inherited(engine: Engine) -> None:
    root = add_context(engine)
    append_messages(engine, root, [user(), call("a")])
    append_messages(engine, fork_context(engine, root, 1), [user(), user(), result("a")])
    assert kinds_and_versions(engine) == [("result_without_call", 4), ("call_without_result", 2)]


def test_ids_mean_nothing_in_another_history(engine: Engine) -> None:
    append_messages(engine, add_context(engine), [user(), call("a")])
    append_messages(engine, add_context(engine), [result("a")])
    assert kinds_and_versions(engine) == [("result_without_call", 1), ("call_without_result", 2)]


def test_a_result_before_its_call_is_none(engine: Engine) -> None:
    append_messages(engine, add_context(engine), [result("a"), call("a")])
    assert kinds_and_versions(engine) == [("result_without_call", 1), ("call_without_result", 2)]


def test_a_renumbered_fork_answers_a_call_of_a_higher_version(engine: Engine) -> None:
    root = add_context(engine)
    append_messages(engine, root, [user(), user(), call("a")])
    fork = fork_context(engine, root)
    append_messages(engine, fork, [result("a")])
    with engine.begin() as connection:
        connection.execute(text("update messages set version = 1 where role = 'tool'"))
    assert kinds_and_versions(engine) == []


def test_a_call_that_a_copy_with_gaps_replaces_is_not_inherited(engine: Engine) -> None:
    root = add_context(engine)
    append_messages(engine, root, [call("a"), user(), user()])
    rows = append_messages(engine, fork_context(engine, root), [user(), user(), result("a")])["message_id"]
    change(engine, "update messages set version = 1 where id = :replacing", {"replacing": rows[0]})
    change(engine, "update messages set version = 3 where id = :copied", {"copied": rows[1]})
    assert kinds_and_versions(engine) == [("result_without_call", 6), ("call_without_result", 1)]


def test_a_call_in_a_copy_with_gaps_is_answered_by_an_inherited_result(engine: Engine) -> None:
    root = add_context(engine)
    append_messages(engine, root, [user(), result("a"), user()])
    rows = append_messages(engine, fork_context(engine, root), [user(), call("a")])["message_id"]
    change(engine, "update messages set version = 3 where id = :user", {"user": rows[0]})
    change(engine, "update messages set version = 1 where id = :call", {"call": rows[1]})
    assert kinds_and_versions(engine) == [("result_without_call", 2)]


def test_an_id_in_every_fork_of_a_chain_takes_steps_in_proportion(engine: Engine) -> None:
    few, many = (steps_of(engine, forks) for forks in (range(1, 201), range(201, 801)))
    assert many < 4 * few


def steps_of(engine: Engine, forks: range) -> int:
    """Lengthen a chain of forks, each with a call and a result of one id, and count how much is called to pair them."""
    id_ = "cast(lpad(cast({} as text), 32, '0') as uuid)"
    message = "insert into messages (context_id, role, version, content, tool_call_id) select " + id_.format("n")
    numbers = f"from generate_series({forks.start}, {forks.stop - 1}) n"
    change(
        engine,
        "insert into contexts (id, parent_id, fork_version) select"
        f" {id_.format('n')}, case when n > 1 then {id_.format('n - 1')} end, 2 * n - 2 {numbers};"
        f"{message}, 'assistant', 2 * n - 1, '', 'a' {numbers};"
        f"{message}, 'tool', 2 * n, '', case when n > 1 then 'a' end {numbers}",
        {},
    )
    read = to_frame(fetch(engine, select_unpaired()))
    steps = 0

    def count(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal steps
        steps += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        unpaired(read)
    finally:
        sys.setprofile(None)
    return steps


def test_deleted_partners_count_and_deleted_messages_are_not_reported(engine: Engine) -> None:
    root = add_context(engine)
    rows = append_messages(engine, root, [call("a"), result("a"), call("b")])
    fork = fork_context(engine, root)
    rows = pd.concat([rows, append_messages(engine, fork, [result("b"), result("c")])])
    of = rows.set_index("version")["message_id"]
    delete_messages(engine, of[[1, 4, 5]])
    assert kinds_and_versions(engine) == []
    restore_messages(engine, of[[5]])
    assert kinds_and_versions(engine) == [("result_without_call", 5)]


def test_lone_results_in_a_cycle_end(engine: Engine, ids: dict[str, str]) -> None:
    append_messages(engine, ids["below"], [result("a", embedding=unit(1))])
    change(engine, "update contexts set parent_id = :below, fork_version = 12 where id = :root", ids)
    assert {"cycle", "result_without_call"} <= {row[0] for row in found(engine)}


# Random forests


@st.composite
def writes(draw: st.DrawFn) -> list[tuple[str, int, int]]:
    verbs = ["add", "fork", "fork_at", "append", "append", "call", "call", "answer", "delete", "restore", "drop"]
    numbers = st.integers(0, 1000)
    return draw(st.lists(st.tuples(st.sampled_from(verbs), numbers, numbers), max_size=25))


class Writer:
    """Writes as an application does: by the verbs alone, and a result only where its call is inherited or its own."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.open_calls: dict[str, list[str]] = {}
        self.messages: list[str] = []
        self.calls = 0
        self.add(0, 0)

    def context(self, number: int) -> str:
        return list(self.open_calls)[number % len(self.open_calls)]

    def write(self, context: str, message: dict[str, Any]) -> None:
        self.messages += append_messages(self.engine, context, [message])["message_id"].tolist()

    def add(self, _which: int, _number: int) -> None:
        self.open_calls[add_context(self.engine)] = []

    def fork(self, which: int, _number: int) -> None:
        parent = self.context(which)
        self.open_calls[fork_context(self.engine, parent)] = list(self.open_calls[parent])

    def fork_at(self, which: int, number: int) -> None:
        parent = self.context(which)
        with self.engine.connect() as connection:
            end = connection.scalar(text("select latest_version from contexts where id = :id"), {"id": parent})
        self.open_calls[fork_context(self.engine, parent, number % (end + 1))] = []

    def append(self, which: int, number: int) -> None:
        self.write(
            self.context(which), user(token_count=number or None, embedding=unit(number) if number % 2 else None)
        )

    def call(self, which: int, _number: int) -> None:
        self.calls += 1
        self.write(self.context(which), call(f"call_{self.calls}"))
        self.open_calls[self.context(which)].append(f"call_{self.calls}")

    def answer(self, which: int, number: int) -> None:
        calls = self.open_calls[self.context(which)]
        if calls:
            self.write(self.context(which), result(calls.pop(number % len(calls))))

    def delete(self, _which: int, number: int) -> None:
        if self.messages:
            delete_messages(self.engine, self.messages[number % len(self.messages)])

    def restore(self, _which: int, number: int) -> None:
        if self.messages:
            restore_messages(self.engine, self.messages[number % len(self.messages)])

    def drop(self, which: int, _number: int) -> None:
        if len(self.open_calls) > 1:
            delete_context(self.engine, self.context(which))
            del self.open_calls[self.context(which)]


@slow
@given(writes())
def test_what_the_verbs_write_has_no_error_and_no_warning(shared: Engine, steps: list[tuple[str, int, int]]) -> None:
    writer = Writer(shared)
    for verb, which, number in steps:
        getattr(writer, verb)(which, number)
    frame = check_df(shared)
    assert frame[frame["severity"] != "note"].to_dict("records") == []


def expected_of(forest: Forest, node: Node) -> Iterator[str]:
    """Kinds of findings on a context of a forest, which is written with counters of 0."""
    live = [row for row in node.rows.values() if row.deleted is None]
    inherited = node.fork_version if node.is_fork else 0
    own = [version for version in node.rows if version > inherited]
    if live:
        yield from ("message_count", "total_tokens")
    if node.rows:
        yield "latest_version"
    if own and max(own) - inherited > len(own):
        yield "version_gap"
    if (node.parent is None) != (node.fork_version is None):
        yield "orphan_fork"
    if forest.lineage(node) is None:
        yield "cycle"
    if node.is_fork:
        parent = forest.parent(node)
        if node.fork_version > max(0, *parent.rows, (parent.is_fork and parent.fork_version) or 0):
            yield "beyond_parent"


@slow
@given(forests())
def test_random_forests_have_the_findings_that_plain_loops_find(database_url: str, forest: Forest) -> None:
    forest.write(database_url)
    engine = connect(database_url)
    frame = check_df(engine).dropna(subset="context_id")
    engine.dispose()
    expected = [(kind, node.id) for node in forest.nodes for kind in expected_of(forest, node)]
    assert sorted(zip(frame["kind"], frame["context_id"], strict=True)) == sorted(expected)


def rows_of(engine: Engine, forest: Forest) -> dict[str, list[str]]:
    """Ids of the rows in the history of each context; of its own rows, where its parents form a cycle."""
    own = {node.id: [row.id for _, row in sorted(node.rows.items())] for node in forest.nodes}
    sound = [node.id for node in forest.nodes if forest.lineage(node) is not None]
    frame = history_df(engine, sound, include_deleted=True)
    return own | {str(id_): rows["message_id"].tolist() for id_, rows in frame.groupby("context_id")}


def unpaired_of(engine: Engine, forest: Forest, tools: dict[str, tuple[str, str]]) -> set[str]:
    """Of the rows that tools names: live results without a call in their context's history, and calls in any."""
    rows = {row.id: row for node in forest.nodes for row in node.rows.values()}
    paired: set[str] = set()
    for context, history in rows_of(engine, forest).items():
        for call, result in combinations([id_ for id_ in history if id_ in tools], 2):
            if [tools[call], tools[result]] == [("assistant", tools[call][1]), ("tool", tools[call][1])]:
                is_own = forest.nodes[rows[result].context].id == context
                paired |= {call, result} if is_own else {call}
    return {id_ for id_ in tools if rows[id_].deleted is None} - paired


@slow
@given(forests())
def test_random_forests_have_the_unpaired_calls_and_results_that_their_histories_show(
    database_url: str, forest: Forest
) -> None:
    rows = [row for node in forest.nodes for row in node.rows.values()]
    # By what they say, so that copies stay alike.
    tools = {
        row.id: ("tool" if row.role == "user" else row.role, row.content) for row in rows if row.content in ("a", "b")
    }
    for row in rows:
        forest.nodes[row.context].rows[row.version] = replace(row, role=tools.get(row.id, (row.role, ""))[0])
    forest.write(database_url)
    # Nothing is prepared, as a pooler may not keep it.
    with psycopg.connect(database_url, prepare_threshold=None) as connection, connection.cursor() as cursor:
        ids = [(call_id, id_) for id_, (_, call_id) in tools.items()]
        cursor.executemany("update messages set tool_call_id = %s where id = %s", ids)
    engine = connect(database_url)
    frame, expected = check_df(engine), unpaired_of(engine, forest, tools)
    engine.dispose()
    assert set(frame.loc[frame["kind"] == "call_without_result", "message_id"]) == {
        id_ for id_ in expected if tools[id_][0] == "assistant"
    }
    assert set(frame.loc[frame["kind"] == "result_without_call", "message_id"]) == {
        id_ for id_ in expected if tools[id_][0] == "tool"
    }


# Other people's databases


def url_of(engine: Engine) -> str:
    return engine.url.set(drivername="postgresql").render_as_string(hide_password=False)


def with_options(engine: Engine, options: str) -> Engine:
    return connect(make_url(url_of(engine)).update_query_dict({"options": options}))


def test_an_enum_without_tools_and_columns_of_others_are_fine(engine: Engine, ids: dict[str, str]) -> None:
    change(engine, "delete from messages where role = 'tool'; create type speaker as enum ('user', 'assistant')", ids)
    change(engine, "alter table messages alter role type speaker using role::speaker, add policy_config jsonb", ids)
    change(engine, "update contexts set message_count = 11, total_tokens = 22 where id = :root", ids)
    assert [row[:3] for row in found(engine)] == [("call_without_result", ids["root"], ids["m11"])]


@pytest.mark.direct("options of the URL pass no pooler")
def test_tables_of_another_schema_are_found_by_the_search_path(engine: Engine, ids: dict[str, str]) -> None:
    change(engine, "create schema app; alter table messages set schema app; alter table contexts set schema app", ids)
    change(engine, "update app.messages set role = 'critic' where id = :m1", ids)
    reader = with_options(engine, "-c search_path=app,public")
    assert [row[0] for row in found(reader)] == ["unknown_role"]
    reader.dispose()


def test_an_extension_outside_the_search_path_is_a_finding(engine: Engine, ids: dict[str, str]) -> None:
    change(engine, "create schema tools; alter extension vector set schema tools", ids)
    assert [(row[0], row[3]) for row in found(engine)] == [
        ("schema", "messages.embedding is of an unknown type, expected vector(1536)")
    ]


def test_a_column_of_another_length_is_a_finding_and_no_more(engine: Engine, ids: dict[str, str]) -> None:
    change(engine, "update messages set embedding = null; alter table messages alter embedding type vector(3072)", ids)
    assert [row[0] for row in found(engine)] == ["schema", "null_embeddings"]


@pytest.mark.direct("options of the URL pass no pooler")
def test_a_role_that_may_only_select_can_check(engine: Engine, ids: dict[str, str], server_url: str) -> None:
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute("create role onlooker")
    change(
        engine, "grant select on all tables in schema public to onlooker; update contexts set message_count = 0", ids
    )
    reader = with_options(engine, "-c role=onlooker")
    try:
        assert [row[0] for row in found(reader)] == ["message_count"] * 2
    finally:
        reader.dispose()
        change(engine, "drop owned by onlooker; drop role onlooker", ids)


@pytest.mark.parametrize("sql", ["drop table messages", "drop table messages, contexts"])
def test_a_missing_table_is_an_error(engine: Engine, sql: str) -> None:
    change(engine, sql, {})
    with pytest.raises(SchemaError, match=r"missing.*upgrade"):
        check_df(engine)


@pytest.mark.parametrize("column", ["messages.role", "messages.embedding", "contexts.message_count"])
def test_a_missing_column_is_an_error(engine: Engine, column: str) -> None:
    table, _, name = column.partition(".")
    change(engine, f"alter table {table} drop column {name}", {})
    with pytest.raises(SchemaError, match="schema_status"):
        check_df(engine)
