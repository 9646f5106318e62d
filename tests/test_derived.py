"""Tool calls and windows of histories, against plain loops over the histories' rows."""

import json
import math
import os
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, insert

from contextkit import (
    Context,
    Message,
    NotFoundError,
    add_context,
    append_messages,
    delete_context,
    delete_messages,
    fork_context,
    history_df,
    tool_calls_df,
    window_df,
)

EXAMPLES = int(os.environ.get("CONTEXTKIT_EXAMPLES", "200"))
few = settings(max_examples=EXAMPLES // 8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
START = datetime(2026, 1, 1, tzinfo=UTC)
STRANGER = "00000000-0000-4000-8000-000000000000"
TIME = "datetime64[us, UTC]"
TOOL_CALLS = {
    "context_id": "str",
    "tool_call_id": "str",
    "tool_name": "str",
    "call_message_id": "str",
    "call_version": "Int64",
    "result_message_id": "str",
    "result_version": "Int64",
    "arguments": "str",
    "result": "str",
    "seconds": "float64",
    "status": "str",
}
Row = dict[str, Any]


def user(content: str = "?", **fields: Any) -> Row:
    return {"role": "user", "content": content, **fields}


def call(id_: str | None, name: str | None = "search", content: str = "{}", **fields: Any) -> Row:
    return {"role": "assistant", "content": content, "tool_call_id": id_, "tool_name": name, **fields}


def result(id_: str | None, content: str = "found", name: str | None = None, **fields: Any) -> Row:
    return {"role": "tool", "content": content, "tool_call_id": id_, "tool_name": name, **fields}


def context_of(engine: Engine, *rows: Row) -> str:
    context = add_context(engine)
    append_messages(engine, context, rows)
    return context


def insert_rows(
    engine: Engine, rows: Iterable[Row], parent_id: str | None = None, fork_version: int | None = None, first: int = 1
) -> str:
    """Id of a context of which nothing is checked: versions start anywhere, and counts are whatever they are."""
    context = {"id": str(uuid4()), "parent_id": parent_id, "fork_version": fork_version}
    empty = dict.fromkeys(["tool_call_id", "tool_name", "token_count", "deleted_at"])
    stored = [
        empty
        | {"id": str(uuid4()), "context_id": context["id"], "version": version}
        | {"created_at": START + timedelta(seconds=version)}
        | row
        for version, row in enumerate(rows, first)
    ]
    with engine.begin() as connection:
        connection.execute(insert(Context), context)
        if stored:
            connection.execute(insert(Message), stored)
    return str(context["id"])


def kinds(frame: pd.DataFrame) -> dict[str, str]:
    return {str(name): str(kind) for name, kind in frame.dtypes.items()}


def records(frame: pd.DataFrame) -> list[Row]:
    objects = frame.astype(object)
    return [dict(zip(frame.columns, row, strict=True)) for row in objects.where(frame.notna(), None).to_numpy()]


def summary(frame: pd.DataFrame) -> list[tuple[Any, ...]]:
    return [(row["arguments"], row["result"], row["status"]) for row in records(frame)]


# Tool calls


def test_a_call_and_its_result_are_one_row(shared: Engine) -> None:
    rows = [
        user(created_at=START),
        call("1", "search", '{"q": "x"}', created_at=START + timedelta(seconds=10)),
        result("1", "three found", created_at=START + timedelta(seconds=12, microseconds=345_678)),
        {"role": "assistant", "content": "I found three."},
    ]
    context = add_context(shared)
    ids = append_messages(shared, context, rows)["message_id"].tolist()
    frame = tool_calls_df(shared, context)
    assert records(frame) == [
        {
            "context_id": context,
            "tool_call_id": "1",
            "tool_name": "search",
            "call_message_id": ids[1],
            "call_version": 2,
            "result_message_id": ids[2],
            "result_version": 3,
            "arguments": '{"q": "x"}',
            "result": "three found",
            "seconds": 2.345678,
            "status": "ok",
        }
    ]


# Rows of one history, and (arguments, result, status) of what comes out.
HISTORIES: dict[str, tuple[list[Row], list[tuple[str | None, str | None, str]]]] = {
    "parallel calls answered in another order": (
        [call("1", content="a"), call("2", content="b"), result("2", "B"), result("1", "A")],
        [("a", "A", "ok"), ("b", "B", "ok")],
    ),
    "a call without a result": ([call("1", content="a"), user()], [("a", None, "no_result")]),
    "a result without a call": ([user(), result("1", "A")], [(None, "A", "no_call")]),
    "a result before its call": (
        [result("1", "A"), user(), call("1", content="a")],
        [(None, "A", "no_call"), ("a", None, "no_result")],
    ),
    "results without a call stand where they are": (
        [result("0", "Z"), call("1", content="a"), result("2", "B"), call("3", content="c"), result("1", "A")],
        [(None, "Z", "no_call"), ("a", "A", "ok"), (None, "B", "no_call"), ("c", None, "no_result")],
    ),
    "null ids never pair": (
        [call(None, "search", "a"), result(None, "A", "search"), call(None, "search", "b"), result("1", "B")],
        [("a", None, "no_result"), (None, "A", "no_call"), ("b", None, "no_result"), (None, "B", "no_call")],
    ),
    "null ids next to an id": (
        [call(None, content="a"), call("1", content="b"), result(None, "A"), result("1", "B")],
        [("a", None, "no_result"), ("b", "B", "ok"), (None, "A", "no_call")],
    ),
    "two calls, each with a result": (
        [call("1", content="a"), result("1", "A"), call("1", content="b"), result("1", "B")],
        [("a", "A", "duplicate"), ("b", "B", "duplicate")],
    ),
    "two calls before two results": (
        [call("1", content="a"), call("1", content="b"), result("1", "A"), result("1", "B")],
        [("a", "A", "duplicate"), ("b", "B", "duplicate")],
    ),
    "two calls, one result": (
        [call("1", content="a"), call("1", content="b"), result("1", "A")],
        [("a", "A", "duplicate"), ("b", None, "duplicate")],
    ),
    "one call, two results": (
        [call("1", content="a"), result("1", "A"), result("1", "B")],
        [("a", "A", "duplicate"), (None, "B", "duplicate")],
    ),
    "one call between two results": (
        [result("1", "A"), call("1", content="a"), result("1", "B")],
        [(None, "A", "duplicate"), ("a", "B", "duplicate")],
    ),
    "two calls that nothing answers": (
        [call("1", content="a"), call("1", content="b")],
        [("a", None, "duplicate"), ("b", None, "duplicate")],
    ),
    "two results that answer nothing": (
        [result("1", "A"), result("1", "B")],
        [(None, "A", "duplicate"), (None, "B", "duplicate")],
    ),
    "a duplicate id next to a good one": (
        [call("1", content="a"), call("2", content="b"), call("1", content="c"), result("2", "B")],
        [("a", None, "duplicate"), ("b", "B", "ok"), ("c", None, "duplicate")],
    ),
    "a call by its id alone": ([call("1", None, "a"), result("1", "A")], [("a", "A", "ok")]),
    "a call by its name alone": ([call(None, "search", "a")], [("a", None, "no_result")]),
    "assistant text is no call": ([call(None, None, "text"), result("1", "A")], [(None, "A", "no_call")]),
    "only assistants call and only tools answer": (
        [user(tool_call_id="1"), {"role": "system", "content": "x", "tool_call_id": "1", "tool_name": "tools"}],
        [],
    ),
}


@pytest.mark.parametrize("case", HISTORIES)
def test_pairs_in_one_history(shared: Engine, case: str) -> None:
    rows, expected = HISTORIES[case]
    assert summary(tool_calls_df(shared, context_of(shared, *rows))) == expected


def test_the_name_is_the_calls_else_the_results(shared: Engine) -> None:
    rows = [
        *(call("1", "called"), result("1", name="answered")),
        *(call("2", None), result("2", name="answered")),
        *(call("3", None), result("3")),
        result("4", name="answered"),
    ]
    names = tool_calls_df(shared, context_of(shared, *rows))["tool_name"]
    assert [None if pd.isna(name) else name for name in names] == ["called", "answered", None, "answered"]


def test_seconds_are_negative_where_times_contradict_the_order_and_null_where_one_is_missing(shared: Engine) -> None:
    rows = [
        call("1", created_at=START + timedelta(days=40)),
        result("1", created_at=START),
        call("2", created_at=START),
        result("3", created_at=START),
        call("4", created_at=START),
        result("4", created_at=START),
    ]
    seconds = tool_calls_df(shared, context_of(shared, *rows))["seconds"]
    assert seconds.fillna(math.inf).tolist() == [-40 * 86_400.0, math.inf, math.inf, 0.0]


def test_the_same_id_in_two_contexts_pairs_in_each_and_is_no_duplicate(shared: Engine) -> None:
    one = context_of(shared, call("1", content="a"), result("1", "A"))
    other = context_of(shared, call("1", content="b"), result("1", "B"))
    called = context_of(shared, call("1", content="c"))
    answered = context_of(shared, result("1", "D"))
    asked = [other, called, answered, one, other, add_context(shared)]
    frame = tool_calls_df(shared, iter(asked))
    assert frame["context_id"].tolist() == asked[:4]
    assert summary(frame) == [("b", "B", "ok"), ("c", None, "no_result"), (None, "D", "no_call"), ("a", "A", "ok")]
    assert frame.attrs == {"function": "tool_calls_df", "asked": {"contexts": 5}}


def test_many_contexts_at_once_pair_each_by_itself(shared: Engine) -> None:
    contexts = [context_of(shared, call("1", content=f"a{n}"), result("1", f"A{n}")) for n in range(25)]
    frame = tool_calls_df(shared, pd.Series(contexts))
    assert frame["context_id"].tolist() == contexts
    assert summary(frame) == [(f"a{n}", f"A{n}", "ok") for n in range(25)]
    assert kinds(frame) == TOOL_CALLS


def test_forks_that_inherit_a_call_each_have_a_result_of_their_own(shared: Engine) -> None:
    root = context_of(shared, user(), call("1", content="a"))
    forks = [fork_context(shared, root, 2) for _ in range(2)]
    for fork, content in zip(forks, ["A", "B"], strict=True):
        append_messages(shared, fork, [result("1", content)])
    before = fork_context(shared, root, 1)
    append_messages(shared, before, [result("1", "C")])
    frame = tool_calls_df(shared, [*forks, root, before])
    assert frame["context_id"].tolist() == [*forks, root, before]
    assert summary(frame) == [("a", "A", "ok"), ("a", "B", "ok"), ("a", None, "no_result"), (None, "C", "no_call")]
    assert frame["call_message_id"].nunique() == 1


def test_in_a_renumbered_fork_position_decides_and_not_the_version(shared: Engine) -> None:
    root = insert_rows(shared, [user("q"), user("r"), user("s"), call("1", content="a"), call("2", content="b")])
    fork = insert_rows(shared, [result("1", "A"), call("3", content="c"), result("3", "C")], root, 5)
    frame = tool_calls_df(shared, fork)
    assert history_df(shared, fork)["version"].tolist() == [1, 2, 3, 4, 5, 1, 2, 3]
    assert summary(frame) == [("a", "A", "ok"), ("b", None, "no_result"), ("c", "C", "ok")]
    assert frame["call_version"].tolist() == [4, 5, 2]
    assert frame["result_version"].fillna(0).tolist() == [1, 0, 3]


def test_a_deleted_message_is_neither_call_nor_result_nor_duplicate(shared: Engine) -> None:
    context = add_context(shared)
    rows = [call("1", content="a"), call("1", content="b"), result("1", "B"), call("2", content="c"), result("2", "C")]
    ids = append_messages(shared, context, rows)["message_id"]
    delete_messages(shared, ids[[0, 3]])
    assert summary(tool_calls_df(shared, context)) == [("b", "B", "ok"), (None, "C", "no_call")]
    delete_messages(shared, ids[[2, 4]])
    assert summary(tool_calls_df(shared, context)) == [("b", None, "no_result")]


@pytest.mark.parametrize("rows", [[], [user()], [call("1")], [result("1")], [call("1"), result("1")]])
def test_tool_calls_have_the_same_columns_and_dtypes_whatever_there_is(shared: Engine, rows: list[Row]) -> None:
    frame = tool_calls_df(shared, context_of(shared, *rows))
    assert len(frame) == len({row["tool_call_id"] for row in rows if "tool_call_id" in row})
    assert kinds(frame) == TOOL_CALLS
    assert isinstance(frame.index, pd.RangeIndex)
    json.dumps(frame.attrs, allow_nan=False)


def test_no_contexts_have_no_tool_calls(shared: Engine) -> None:
    frame = tool_calls_df(shared, [])
    assert (len(frame), kinds(frame)) == (0, TOOL_CALLS)


def plain_tool_calls(history: list[Row]) -> list[tuple[Any, ...]]:
    """Rows of one history, each result looking for its call among all of them."""
    calls = [row for row in history if row["role"] == "assistant" and (row["tool_call_id"] or row["tool_name"])]
    results = [row for row in history if row["role"] == "tool"]
    answers: dict[int, Row] = {}
    alone = []
    for answer in results:
        asked = [
            row["position"]
            for row in calls
            if row["tool_call_id"] is not None
            and row["tool_call_id"] == answer["tool_call_id"]
            and row["position"] < answer["position"]
            and row["position"] not in answers
        ]
        if asked:
            answers[min(asked)] = answer
        else:
            alone.append(answer)
    pairs = [(row, answers.get(row["position"])) for row in calls] + [(None, row) for row in alone]
    pairs.sort(key=lambda pair: (pair[0] or pair[1])["position"])
    found = []
    for asking, answer in pairs:
        id_ = (asking or answer)["tool_call_id"]
        times = [sum(row["tool_call_id"] == id_ for row in rows) for rows in (calls, results)]
        if id_ is not None and max(times) > 1:
            status = "duplicate"
        else:
            status = "no_call" if asking is None else "no_result" if answer is None else "ok"
        found.append((asking and asking["message_id"], answer and answer["message_id"], id_, status))
    return found


words = st.sampled_from([None, "1", "2", "3"])
tool_rows = st.lists(
    st.one_of(
        st.builds(call, words, st.sampled_from([None, "search"])),
        st.builds(result, words),
        st.builds(user),
    ),
    max_size=12,
)


@few
@given(root=tool_rows, own=tool_rows, cut=st.integers(0, 12), renumbered=st.booleans())
def test_tool_calls_equal_a_plain_search(
    shared: Engine, root: list[Row], own: list[Row], cut: int, renumbered: bool
) -> None:
    root_id = insert_rows(shared, [row | {"content": f"root {place}"} for place, row in enumerate(root)])
    fork_id = insert_rows(
        shared,
        [row | {"content": f"fork {place}"} for place, row in enumerate(own)],
        root_id,
        min(cut, len(root)),
        1 if renumbered else min(cut, len(root)) + 1,
    )
    frame = tool_calls_df(shared, [fork_id, root_id])
    columns = ["call_message_id", "result_message_id", "tool_call_id", "status"]
    found = [(row["context_id"], *(row[column] for column in columns)) for row in records(frame)]
    history = records(history_df(shared, [fork_id, root_id]))
    assert found == [
        (id_, *row)
        for id_ in (fork_id, root_id)
        for row in plain_tool_calls([row for row in history if row["context_id"] == id_])
    ]


# Windows


def counted(*tokens: int | None) -> list[Row]:
    return [user(str(place), token_count=count) for place, count in enumerate(tokens)]


@pytest.mark.parametrize(
    ("tokens", "budget", "taken"),
    [
        ([5, 5, 5], 10, [5, 5]),
        ([5, 5, 5], 9.99, [5]),
        ([5, 5, 5], 10.5, [5, 5]),
        ([5, 5, 5], 14, [5, 5]),
        ([5, 5, 5], 15, [5, 5, 5]),
        ([5, 5, 5], 1e300, [5, 5, 5]),
        ([5, 5, 5], 10**40, [5, 5, 5]),
        ([1, 9, 2], 4, [2]),  # an older, smaller one is not taken
        ([-9, 9, 2], 4, [2]),  # nor what others wrote below zero
        ([1, 100], 50, [100]),  # always one
        ([0, 0, 100], 50, [100]),
        ([None, 3, None], 3, [None, 3, None]),
        ([None, 3, None], 2, [None]),
        ([7, 0, None], 0.5, [0, None]),
        ([3, 2**31 - 1, 2**31 - 1, 2**31 - 1], 3 * (2**31 - 1), [2**31 - 1] * 3),
    ],
)
def test_what_fits_a_budget_is_taken_from_the_newest_on(
    shared: Engine, tokens: list[int | None], budget: float, taken: list[int | None]
) -> None:
    frame = window_df(shared, insert_rows(shared, counted(*tokens)), budget)
    assert [row["token_count"] for row in records(frame)] == taken
    left = len(tokens) - len(taken)
    assert frame["position"].tolist() == list(range(left + 1, len(tokens) + 1))
    assert frame["content"].tolist() == [str(place) for place in range(left, len(tokens))]
    assert frame["running_total"].tolist() == [sum(count or 0 for count in taken[: n + 1]) for n in range(len(taken))]
    assert frame.attrs["messages_left_out"] == left
    assert frame.attrs["tokens_left_out"] == sum(count or 0 for count in tokens[:left])
    assert frame.attrs["messages_uncounted"] == taken.count(None)


def test_a_window_is_the_end_of_the_history_with_a_total(shared: Engine) -> None:
    context = context_of(shared, *counted(4, 3, 2, 1))
    frame = window_df(shared, UUID(context), np.int64(6))
    history = history_df(shared, context)
    expected = history.iloc[1:].reset_index(drop=True).assign(running_total=[3, 5, 6])
    pd.testing.assert_frame_equal(frame, expected)
    assert frame.attrs == {
        "function": "window_df",
        "asked": {"budget": 6, "at_version": None},
        "messages_left_out": 1,
        "tokens_left_out": 4,
        "messages_uncounted": 0,
    }


def test_a_window_of_a_fork_reaches_into_what_it_inherits(shared: Engine) -> None:
    root = context_of(shared, *counted(1, 2, 4, 8))
    fork = fork_context(shared, root, 3)
    written = append_messages(shared, fork, [*counted(16), *counted(32)])
    frame = window_df(shared, fork, 54)
    assert frame[["position", "inherited", "running_total"]].to_numpy().tolist() == [
        [2, True, 2],
        [3, True, 6],
        [4, False, 22],
        [5, False, 54],
    ]
    delete_messages(shared, written["message_id"][1])
    assert window_df(shared, fork, 22)["position"].tolist() == [2, 3, 4]


def test_a_window_at_a_version_ends_there(shared: Engine) -> None:
    context = context_of(shared, *counted(1, 2, 4, 8))
    frame = window_df(shared, context, 6, at_version=np.int64(3))
    assert frame["version"].tolist() == [2, 3]
    assert json.dumps(frame.attrs["asked"]) == '{"budget": 6, "at_version": 3}'
    assert len(window_df(shared, context, 6, at_version=0)) == 0
    with pytest.raises(ValueError, match="at_version is 0 or more"):
        window_df(shared, context, 6, at_version=-1)


def test_a_window_of_a_renumbered_fork_is_by_position(shared: Engine) -> None:
    root = insert_rows(shared, [user(text, token_count=1) for text in "abc"])
    fork = insert_rows(shared, [user(text, token_count=1) for text in "xy"], root, 3)
    frame = window_df(shared, fork, 3)
    assert frame[["position", "version", "content"]].to_numpy().tolist() == [[3, 3, "c"], [4, 1, "x"], [5, 2, "y"]]


def test_an_empty_window_has_the_columns_and_dtypes_of_a_full_one(shared: Engine) -> None:
    frame = window_df(shared, add_context(shared), 1)
    full = window_df(shared, context_of(shared, user()), 1)
    assert (len(frame), len(full)) == (0, 1)
    pd.testing.assert_series_equal(frame.dtypes, full.dtypes)
    assert kinds(full) == kinds(history_df(shared, [])) | {"running_total": "int64"}
    assert (frame.attrs["messages_left_out"], frame.attrs["tokens_left_out"]) == (0, 0)
    assert isinstance(frame.index, pd.RangeIndex)


@pytest.mark.parametrize("budget", [7, 7.0, np.int32(7), np.uint8(7), np.float32(7), np.float64(7), np.float16(7)])
def test_a_budget_is_any_number_and_noted_as_json(shared: Engine, budget: float) -> None:
    frame = window_df(shared, context_of(shared, *counted(1, 3, 4)), budget)
    assert len(frame) == 2
    assert json.loads(json.dumps(frame.attrs, allow_nan=False))["asked"]["budget"] == 7


@pytest.mark.parametrize(
    "budget", [0, -1, 0.0, -0.5, math.nan, math.inf, -math.inf, np.float32("nan"), np.float64("inf"), np.int64(0)]
)
def test_a_budget_that_is_not_positive_or_not_finite_is_refused(shared: Engine, budget: float) -> None:
    with pytest.raises(ValueError, match="a budget is a finite number of tokens above 0"):
        window_df(shared, STRANGER, budget)


@pytest.mark.parametrize(
    "budget", [True, np.True_, "100", None, pd.NA, [100], np.array([100]), 1j, Fraction(7, 2), timedelta(1)]
)
def test_a_budget_that_is_no_number_is_refused(shared: Engine, budget: Any) -> None:
    with pytest.raises(TypeError, match="a budget is a number of tokens, not "):
        window_df(shared, STRANGER, budget)


@pytest.mark.parametrize("contexts", [[STRANGER], (), pd.Series([STRANGER]), iter([STRANGER]), None, 5])
def test_a_window_of_other_than_one_context_is_refused(shared: Engine, contexts: Any) -> None:
    with pytest.raises(TypeError, match="a window is of one context: pass one id"):
        window_df(shared, contexts, 10)


def plain_window(history: list[Row], budget: float) -> list[tuple[Any, ...]]:
    taken: list[Row] = []
    for row in reversed(history):
        total = sum(other["token_count"] or 0 for other in [row, *taken])
        if taken and total > budget:
            break
        taken = [row, *taken]
    return [
        (row["message_id"], row["position"], sum(other["token_count"] or 0 for other in taken[: place + 1]))
        for place, row in enumerate(taken)
    ]


token_counts = st.none() | st.integers(0, 9) | st.integers(0, 2**31 - 1)
budgets = (
    st.integers(1, 40)
    | st.floats(min_value=0, exclude_min=True, allow_infinity=False)
    | st.floats(0.25, 40)
    | st.integers(2**31 - 20, 2**33)
)


@few
@given(tokens=st.lists(token_counts, max_size=8), own=st.lists(token_counts, max_size=4), budget=budgets)
@example(tokens=[0, 0], own=[9, 0], budget=5)
@example(tokens=[0, 0], own=[9], budget=5)
def test_windows_equal_a_plain_loop(
    shared: Engine, tokens: list[int | None], own: list[int | None], budget: float
) -> None:
    root = insert_rows(shared, counted(*tokens))
    fork = insert_rows(shared, counted(*own), root, len(tokens), len(tokens) + 1)
    frame = window_df(shared, fork, budget)
    found = list(frame[["message_id", "position", "running_total"]].itertuples(index=False, name=None))
    assert found == plain_window(records(history_df(shared, fork)), budget)


# Both


def test_unknown_and_deleted_contexts_are_not_found(shared: Engine) -> None:
    gone = context_of(shared, call("1"), result("1"))
    delete_context(shared, gone)
    for context, words in ((STRANGER, "no context has the id"), (gone, "deleted")):
        with pytest.raises(NotFoundError, match=words):
            tool_calls_df(shared, [add_context(shared), context])
        with pytest.raises(NotFoundError, match=words):
            window_df(shared, context, 10)


def test_ids_that_are_none_are_refused(shared: Engine) -> None:
    with pytest.raises(ValueError, match="a UUID is expected"):
        tool_calls_df(shared, "first conversation")
    with pytest.raises(ValueError, match="a UUID is expected"):
        window_df(shared, "first conversation", 10)
