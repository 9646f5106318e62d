"""Where two histories part, against a plain reading of both."""

import json
import os
from itertools import takewhile
from typing import Any
from uuid import UUID, uuid4

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from sqlalchemy import Engine

from contextkit import (
    LineageError,
    NotFoundError,
    add_context,
    append_messages,
    delete_context,
    delete_messages,
    diff_df,
    fork_context,
    history_df,
)
from tests.forest import Forest, Row, forests, same
from tests.test_derived import call, context_of, insert_rows, kinds, result, user

EXAMPLES = int(os.environ.get("CONTEXTKIT_EXAMPLES", "200"))
few = settings(
    max_examples=EXAMPLES // 8,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def said(content: str, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **fields}


def told(frame: pd.DataFrame) -> list[str]:
    """Sides by their first letters, with contents."""
    return [f"{row.side[0]} {row.content}" for row in frame.itertuples()]


def parted(frame: pd.DataFrame) -> tuple[str | None, int | None, int]:
    return frame.attrs["ancestor"], frame.attrs["parted_at"], frame.attrs["shared"]["messages"]


@few
@given(forest=forests())
def test_differences_equal_the_model(database_url: str, reader: Engine, forest: Forest) -> None:
    forest.write(database_url)
    alive = [node for node in forest.nodes if forest.lineage(node) is not None and node.deleted is None]
    for left, right in zip(alive, alive[1:] + alive[:1], strict=True):
        frame = diff_df(reader, left.id, right.id)
        ours, theirs = (list(forest.history(node, None, None, include_deleted=False)) for node in (left, right))
        shared = len(list(takewhile(lambda pair: same(*pair), zip(ours, theirs, strict=False))))
        assert found(frame) == [
            *(("both", turn, row.id, theirs[place].id) for place, (turn, row) in enumerate(turns(ours)[:shared])),
            *sorted(
                (
                    *(("left", turn, row.id, None) for turn, row in turns(ours)[shared:]),
                    *(("right", turn, row.id, None) for turn, row in turns(theirs)[shared:]),
                ),
                key=lambda row: (row[1], row[0]),
            ),
        ]
        above = {node.id for node in forest.lineage(right) or []}
        ancestor = next((node.id for node in forest.lineage(left) or [] if node.id in above), None)
        assert parted(frame) == (ancestor, ours[shared - 1].version if shared else None, shared)


def turns(rows: list[Row]) -> list[tuple[int, Row]]:
    return [(sum(other.role == "user" for other in rows[: place + 1]), row) for place, row in enumerate(rows)]


def found(frame: pd.DataFrame) -> list[tuple[Any, ...]]:
    columns = frame[["side", "turn", "message_id", "right_message_id"]].astype(object)
    return [tuple(row) for row in columns.where(columns.notna(), None).to_numpy()]


def test_two_forks_by_reference_share_the_rows_of_their_ancestor(shared: Engine) -> None:
    root = context_of(shared, user("a"), said("b"), user("c"), said("d"))
    forks = [fork_context(shared, root, version) for version in (3, 2)]
    append_messages(shared, forks[0], [said("e"), user("f")])
    append_messages(shared, forks[1], [user("g"), said("h"), user("i")])
    frame = diff_df(shared, *forks)
    assert told(frame) == ["b a", "b b", "l c", "l e", "r g", "r h", "l f", "r i"]
    assert frame["turn"].tolist() == [1, 1, 2, 2, 2, 2, 3, 3]
    assert parted(frame) == (root, 2, 2)
    both = frame[frame["side"] == "both"]
    assert both["message_id"].tolist() == both["right_message_id"].tolist()
    assert set(both["source_context_id"]) == {root}
    assert frame["context_id"].tolist() == [forks[{"b": 0, "l": 0, "r": 1}[side[0]]] for side in frame["side"]]


def test_columns_are_those_of_the_histories_and_an_empty_frame_has_the_dtypes_of_a_full_one(shared: Engine) -> None:
    filled = diff_df(shared, context_of(shared, user("a"), user("b")), context_of(shared, user("a"), user("c")))
    empty = diff_df(shared, add_context(shared), add_context(shared))
    history = kinds(history_df(shared, add_context(shared)))
    wanted = {"side": "str", "turn": "int64", **history, "right_message_id": "str", "right_version": "Int64"}
    assert list(kinds(filled).items()) == list(wanted.items())
    assert (len(filled), len(empty)) == (3, 0)
    assert kinds(empty) == wanted
    assert empty.attrs["parted_at"] is None


@pytest.mark.parametrize("first", [1, 4], ids=["copy", "reference"])
def test_a_fork_shares_what_it_inherits_however_it_is_written(shared: Engine, first: int) -> None:
    rows = [user("a"), said("b"), user("c")]
    root = context_of(shared, *rows, said("d"))
    fork = insert_rows(shared, [*rows, said("e")][first - 1 :], root, 3, first)
    frame = diff_df(shared, fork, root)
    assert told(frame) == ["b a", "b b", "b c", "l e", "r d"]
    assert parted(frame) == (root, 3, 3)
    assert (frame["message_id"] == frame["right_message_id"]).sum() == (3 if first == 4 else 0)


def test_a_copy_that_is_edited_parts_at_the_edit_though_it_agrees_later(shared: Engine) -> None:
    root = context_of(shared, user("a"), said("b"), user("c"))
    fork = insert_rows(shared, [user("a"), said("B"), user("c")], root, 3)
    frame = diff_df(shared, root, fork)
    assert told(frame) == ["b a", "l b", "r B", "l c", "r c"]
    assert parted(frame) == (root, 1, 1)


def test_a_renumbered_fork_has_the_inherited_versions_then_its_own(shared: Engine) -> None:
    root = context_of(shared, user("a"), said("b"), user("c"))
    fork = insert_rows(shared, [user("x"), said("y")], root, 2)
    deeper = insert_rows(shared, [user("z")], fork, 2)
    frame = diff_df(shared, deeper, fork)
    assert told(frame) == ["b a", "b b", "b x", "b y", "l z"]
    assert frame["version"].tolist() == [1, 2, 1, 2, 1]
    assert frame["position"].tolist() == [1, 2, 3, 4, 5]
    assert parted(frame) == (fork, 2, 4)


def test_unrelated_contexts_share_what_they_begin_with_under_versions_of_their_own(shared: Engine) -> None:
    left = insert_rows(shared, [user("a"), said("b", model="m1"), user("c")], first=5)
    right = context_of(shared, user("a", token_count=9), said("b"), user("d"))
    frame = diff_df(shared, left, right)
    assert told(frame) == ["b a", "b b", "l c", "r d"]
    assert frame["version"].tolist() == [5, 6, 7, 3]
    assert frame["right_version"].tolist()[:2] == [1, 2]
    assert frame["right_version"].isna().tolist() == [False, False, True, True]
    assert parted(frame) == (None, 6, 2)


def test_without_anything_in_common_nothing_is_shared_and_it_says_so(shared: Engine) -> None:
    frame = diff_df(shared, context_of(shared, user("a"), user("b")), context_of(shared, said("a")))
    assert told(frame) == ["r a", "l a", "l b"]  # turn 0 comes first
    assert parted(frame) == (None, None, 0)


def test_a_fork_at_version_0_has_an_ancestor_but_shares_nothing(shared: Engine) -> None:
    root = context_of(shared, user("a"))
    fork = fork_context(shared, root, 0)
    append_messages(shared, fork, [user("b")])
    assert parted(diff_df(shared, fork, root)) == (root, None, 0)


def test_equal_histories_and_a_context_with_itself_have_only_shared_messages(shared: Engine) -> None:
    rows = [user("a"), said("b")]
    left, right = context_of(shared, *rows), context_of(shared, *rows)
    for other, ancestor in ((right, None), (left, left)):
        frame = diff_df(shared, UUID(left), other)
        assert told(frame) == ["b a", "b b"]
        assert parted(frame) == (ancestor, 2, 2)
    assert frame["message_id"].tolist() == frame["right_message_id"].tolist()


def test_of_a_history_that_goes_on_from_the_other_only_one_side_has_messages(shared: Engine) -> None:
    root = context_of(shared, user("a"), said("b"))
    fork = fork_context(shared, root)
    append_messages(shared, fork, [user("c")])
    assert told(diff_df(shared, root, fork)) == ["b a", "b b", "r c"]
    assert told(diff_df(shared, fork, root)) == ["b a", "b b", "l c"]
    assert parted(diff_df(shared, fork, root)) == (root, 2, 2)
    assert told(diff_df(shared, root, add_context(shared))) == ["l a", "l b"]


def test_a_deleted_message_is_gone_from_both_by_reference_and_parts_them_by_copy(shared: Engine) -> None:
    rows = [user("a"), said("b"), user("c")]
    root = add_context(shared)
    written = append_messages(shared, root, rows)
    reference, copy = fork_context(shared, root, 3), insert_rows(shared, rows, root, 3)
    delete_messages(shared, written["message_id"][1])
    assert told(diff_df(shared, root, reference)) == ["b a", "b c"]
    assert parted(diff_df(shared, root, reference)) == (root, 3, 2)
    assert told(diff_df(shared, root, copy)) == ["b a", "r b", "l c", "r c"]
    assert parted(diff_df(shared, root, copy)) == (root, 1, 1)


def test_an_ancestor_that_is_deleted_is_one_still(shared: Engine) -> None:
    root = context_of(shared, user("a"))
    forks = [fork_context(shared, root), fork_context(shared, root)]
    delete_context(shared, root)
    assert parted(diff_df(shared, *forks)) == (root, 1, 1)


def test_roles_tool_names_and_calls_are_compared_and_ids_of_calls_are_not(shared: Engine) -> None:
    def shared_messages(left: dict[str, Any], right: dict[str, Any]) -> int:
        frame = diff_df(shared, context_of(shared, left), context_of(shared, right))
        return int(frame.attrs["shared"]["messages"])

    assert shared_messages(call("1"), call("2")) == 1
    assert shared_messages(call("1", "search"), call("1", "fetch")) == 0
    assert shared_messages(call("1", None), said("{}")) == 0
    assert shared_messages(user("a"), said("a")) == 0


def test_attrs_count_messages_tokens_and_tool_calls_of_each_part(shared: Engine) -> None:
    root = context_of(shared, user("a", token_count=3), call("1", token_count=4), result("1"))
    fork = fork_context(shared, root, 1)
    append_messages(shared, fork, [said("b", token_count=5), said("c", token_count=6)])
    attrs = diff_df(shared, root, fork).attrs
    assert (
        json.loads(json.dumps(attrs))
        == attrs
        == {
            "function": "diff_df",
            "asked": {"left": root, "right": fork},
            "ancestor": root,
            "parted_at": 1,
            "shared": {"messages": 1, "tokens": 3, "tool_calls": 0},
            "left": {"messages": 2, "tokens": 4, "tool_calls": 1},
            "right": {"messages": 2, "tokens": 11, "tool_calls": 0},
        }
    )


def test_contexts_that_are_not_there_or_in_a_cycle_are_refused(engine: Engine) -> None:
    root, gone = context_of(engine, user("a")), add_context(engine)
    delete_context(engine, gone)
    looped = add_context(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql(f"update contexts set parent_id = id, fork_version = 1 where id = '{looped}'")
    for pair in ((root, str(uuid4())), (gone, root)):
        with pytest.raises(NotFoundError):
            diff_df(engine, *pair)
    with pytest.raises(LineageError, match=looped):
        diff_df(engine, root, looped)
    with pytest.raises(ValueError, match="UUID is expected"):
        diff_df(engine, root, "first")
    with pytest.raises(TypeError, match="an id is text"):
        diff_df(engine, [root], root)  # type: ignore[arg-type]
