"""Histories against the plain reading of the design in tests/forest.py."""

import os
from datetime import UTC, datetime
from uuid import UUID

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from contextkit import (
    LineageError,
    NotFoundError,
    add_context,
    append_messages,
    delete_context,
    delete_messages,
    fork_context,
    forks_df,
    frames,
    history_df,
)
from tests.forest import Forest, Node, Row, forests, instant

EXAMPLES = int(os.environ.get("CONTEXTKIT_EXAMPLES", "100"))
many = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
few = settings(many, max_examples=EXAMPLES // 4)
bounds = st.none() | st.integers(0, 9)
seconds = st.none() | st.integers(0, 12)


def expected(
    forest: Forest, nodes: list[Node], at_version: int | None, second: int | None, *, include_deleted: bool
) -> list[tuple[str, int, str, str, bool, int]]:
    return [
        (node.id, position, row.id, forest.nodes[row.context].id, row.context != node.place, row.version)
        for node in nodes
        for position, row in enumerate(forest.history(node, at_version, second, include_deleted=include_deleted), 1)
    ]


def found(frame: pd.DataFrame) -> list[tuple[str, int, str, str, bool, int]]:
    columns = ["context_id", "position", "message_id", "source_context_id", "inherited", "version"]
    return list(frame[columns].itertuples(index=False, name=None))


def check_history(
    reader: Engine, forest: Forest, at_version: int | None, second: int | None, *, include_deleted: bool
) -> None:
    asked = [
        node
        for node in reversed(forest.nodes)
        if forest.lineage(node) is not None
        and not forest.is_asked_in_vain(node, second, include_deleted=include_deleted)
    ]
    frame = history_df(
        reader,
        [node.id for node in asked],
        at_version=at_version,
        as_of=None if second is None else instant(second),
        include_deleted=include_deleted,
    )
    assert found(frame) == expected(forest, asked, at_version, second, include_deleted=include_deleted)


@many
@given(forest=forests(), at_version=bounds, second=seconds, include_deleted=st.booleans())
def test_histories_equal_the_model(
    database_url: str, reader: Engine, forest: Forest, at_version: int | None, second: int | None, include_deleted: bool
) -> None:
    forest.write(database_url)
    check_history(reader, forest, at_version, second, include_deleted=include_deleted)


@few
@given(forest=forests(), at_version=bounds, second=seconds, include_deleted=st.booleans())
def test_histories_in_bulk_equal_the_model(
    database_url: str, reader: Engine, forest: Forest, at_version: int | None, second: int | None, include_deleted: bool
) -> None:
    forest.write(database_url)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frames, "BULK_HISTORIES", 0)
        check_history(reader, forest, at_version, second, include_deleted=include_deleted)


@few
@given(forest=forests())
def test_contexts_in_a_cycle_raise_and_deleted_ones_are_not_found(
    database_url: str, reader: Engine, forest: Forest
) -> None:
    forest.write(database_url)
    for node in forest.nodes:
        if forest.lineage(node) is None:
            with pytest.raises(LineageError, match=node.id):
                history_df(reader, node.id)
        elif node.deleted is not None:
            with pytest.raises(NotFoundError, match="deleted"):
                history_df(reader, node.id)


@few
@given(forest=forests(), include_deleted=st.booleans())
def test_forks_equal_the_model(database_url: str, reader: Engine, forest: Forest, include_deleted: bool) -> None:
    forest.write(database_url)
    frame = forks_df(reader, include_deleted=include_deleted)
    rows = [_fork_row(forest, node, include_deleted=include_deleted) for node in forest.nodes]
    columns = ["context_id", "depth", "root_id", "written_by", "forks", "length", "tokens", "turns"]
    values = frame[columns].astype(object)
    assert values.where(values.notna(), None).to_numpy().tolist() == [row for row in rows if row is not None]


def _fork_row(forest: Forest, node: Node, *, include_deleted: bool) -> list[object] | None:
    live = [other for other in forest.nodes if include_deleted or other.deleted is None]
    children = [other for other in live if other.is_fork and other.parent == node.place]
    if node not in live or not (node.is_fork or children):
        return None
    start = [node.id]
    lineage = forest.lineage(node)
    if lineage is None:
        return [*start, None, None, forest.written_by(node), len(children), None, None, None]
    rows = list(forest.history(node, None, None, include_deleted=include_deleted))
    figures = [len(rows), sum(row.version for row in rows), sum(row.role == "user" for row in rows)]
    return [*start, len(lineage) - 1, lineage[-1].id, forest.written_by(node), len(children), *figures]


# Contexts as (parent, fork_version, {version: content}); the last one is asked about.
FORKS: dict[str, tuple[list[tuple[int | None, int | None, dict[int, str]]], str]] = {
    "nothing at or below fork_version": ([(None, None, {1: "a", 2: "b"}), (0, 1, {2: "c"})], "reference"),
    "equal rows": ([(None, None, {1: "a", 2: "b"}), (0, 2, {1: "a", 2: "b", 3: "c"})], "copy"),
    "first row edited": ([(None, None, {1: "a", 2: "b"}), (0, 2, {1: "x", 2: "b"})], "copy"),
    "last row edited": ([(None, None, {1: "a", 2: "b"}), (0, 2, {1: "a", 2: "x"})], "copy"),
    "both rows differ": ([(None, None, {1: "a", 2: "b"}), (0, 2, {1: "x", 2: "y"})], "renumbered"),
    "ends before fork_version": ([(None, None, {1: "a", 2: "b"}), (0, 2, {1: "a"})], "renumbered"),
    "no row at 1": ([(None, None, {1: "a", 2: "b"}), (0, 2, {2: "x"})], "copy"),
    "nothing inherited at 1": ([(None, None, {2: "b"}), (0, 2, {1: "x", 2: "y"})], "copy"),
    "fork_version 0": ([(None, None, {1: "a"}), (0, 0, {1: "x"})], "reference"),
    "what is inherited comes from a grandparent": (
        [(None, None, {1: "a", 2: "b"}), (0, 2, {}), (1, 2, {1: "x", 2: "y"})],
        "renumbered",
    ),
    "a grandparent's row past the parent's fork_version is not inherited": (
        [(None, None, {1: "a", 2: "b", 3: "c"}), (0, 1, {2: "d"}), (1, 3, {1: "a", 2: "d", 4: "e"})],
        "copy",
    ),
}


@pytest.mark.parametrize("case", FORKS)
def test_how_a_fork_was_written_is_told_from_its_rows(database_url: str, reader: Engine, case: str) -> None:
    contexts, written_by = FORKS[case]
    nodes = [Node(place, parent, version, None) for place, (parent, version, _) in enumerate(contexts)]
    for node, (_, _, rows) in zip(nodes, contexts, strict=True):
        for version, content in rows.items():
            id_ = str(UUID(int=(node.place + 1) * 1000 + version))
            node.rows[version] = Row(id_, node.place, version, "user", content, 0, None)
    Forest(nodes).write(database_url)
    assert Forest(nodes).written_by(nodes[-1]) == written_by
    assert forks_df(reader).set_index("context_id")["written_by"][nodes[-1].id] == written_by


def test_an_inherited_message_deleted_in_the_parent_is_gone_from_the_fork(engine: Engine) -> None:
    root = add_context(engine)
    written = append_messages(engine, root, [{"role": "user", "content": text} for text in "abc"])
    fork = fork_context(engine, root, 2)
    delete_messages(engine, written["message_id"][0])
    assert history_df(engine, fork)["content"].tolist() == ["b"]
    assert history_df(engine, fork, include_deleted=True)["content"].tolist() == ["a", "b"]


def test_a_fork_of_a_deleted_context_keeps_what_it_inherits(engine: Engine) -> None:
    root = add_context(engine)
    append_messages(engine, root, [{"role": "user", "content": "kept"}])
    fork = fork_context(engine, root)
    delete_context(engine, root)
    assert history_df(engine, fork)["content"].tolist() == ["kept"]


def test_a_deleted_context_is_seen_by_an_instant_before_its_deletion(engine: Engine) -> None:
    root = add_context(engine)
    append_messages(engine, root, [{"role": "user", "content": "early"}])
    before = datetime.now(UTC)
    delete_context(engine, root)
    assert history_df(engine, root, as_of=before)["content"].tolist() == ["early"]
    with pytest.raises(NotFoundError):
        history_df(engine, root, as_of=datetime.now(UTC))


def test_contexts_come_in_the_order_asked_and_each_once(engine: Engine) -> None:
    ids = [add_context(engine) for _ in range(4)]
    for id_ in ids:
        append_messages(engine, id_, [{"role": "user", "content": id_}])
    asked = [ids[2], ids[0], ids[2], ids[3]]
    assert history_df(engine, pd.Series(asked))["context_id"].tolist() == [ids[2], ids[0], ids[3]]


def test_an_empty_history_has_the_columns_and_dtypes_of_a_full_one(engine: Engine) -> None:
    empty, full = add_context(engine), add_context(engine)
    append_messages(engine, full, [{"role": "user", "content": "x"}])
    for embeddings in (False, True):
        nothing = history_df(engine, empty, embeddings=embeddings)
        assert len(nothing) == 0
        pd.testing.assert_series_equal(nothing.dtypes, history_df(engine, full, embeddings=embeddings).dtypes)
    assert len(history_df(engine, [])) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"at_version": -1}, "at_version is 0 or more"),
        ({"at_version": True}, "whole number"),
        ({"at_version": 2.5}, "whole number"),
        ({"as_of": datetime(2026, 1, 1)}, "time zone"),
        ({"as_of": "2026-01-01"}, "datetime with a time zone"),
        ({"as_of": pd.NaT}, "datetime with a time zone"),
    ],
)
def test_arguments_out_of_range_are_refused(engine: Engine, arguments: dict[str, object], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        history_df(engine, add_context(engine), **arguments)


def test_ids_that_are_none_are_refused_with_what_is_expected(reader: Engine) -> None:
    with pytest.raises(ValueError, match="a UUID is expected"):
        history_df(reader, "first conversation")
    with pytest.raises(TypeError, match="DataFrame"):
        history_df(reader, pd.DataFrame({"context_id": []}))
