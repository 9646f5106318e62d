"""Pairs of answers: where histories of one root part, and what an import knew of them."""

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from sqlalchemy import Engine, text

from contextkit import (
    Context,
    Message,
    contexts_df,
    delete_context,
    delete_messages,
    fork_context,
    history_df,
    import_file,
    messages_df,
    preferences_df,
    to_openai,
)
from tests.test_export import CALLS, TOOLS, append, call, context_of, lines, result
from tests.test_import import OASST, oasst_message, write_lines

USER = {"role": "user", "content": "Which way?"}
COLUMNS = ["prompt", "answer_1", "answer_2", "model_1", "model_2", "context_id_1", "context_id_2", "preferred"]


def answer(content: str, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **fields}


def contents(messages: list[dict[str, Any]]) -> list[str | None]:
    return [message["content"] for message in messages]


def pairs(frame: pd.DataFrame) -> list[tuple[str | None, ...]]:
    """First contents of the answers, and which is preferred."""
    return [
        (contents(row.answer_1)[0], contents(row.answer_2)[0], None if pd.isna(row.preferred) else row.preferred)
        for row in frame.itertuples()
    ]


def test_siblings_after_one_prefix_are_a_pair_with_their_prompt_models_and_contexts(engine: Engine) -> None:
    root = context_of(engine, TOOLS, ("system", "Be short."), USER, answer("Left.", model="m1"), ("user", "And then?"))
    fork = fork_context(engine, root, 3)
    append(engine, fork, call("c1"), result("c1"), answer("Right.", model="m2"), ("user", "Sure?"), answer("Yes."))
    frame = preferences_df(engine)
    assert frame.columns.tolist() == COLUMNS
    (row,) = frame.itertuples()
    assert row.prompt == to_openai(history_df(engine, fork).head(3))
    assert contents(row.prompt) == ["Be short.", "Which way?"]
    assert row.answer_1 == [{"role": "assistant", "content": "Left."}]
    assert row.answer_2 == to_openai(history_df(engine, fork).iloc[3:6])
    assert [message["role"] for message in row.answer_2] == ["assistant", "tool", "assistant"]
    assert (row.model_1, row.context_id_1, row.context_id_2) == ("m1", root, fork)
    assert pd.isna(row.model_2)  # of the call, which is the answer's first message
    assert pd.isna(row.preferred)


def test_without_a_pair_the_frame_has_the_same_columns_and_dtypes(engine: Engine) -> None:
    empty = preferences_df(engine)
    root = context_of(engine, USER, answer("a"))
    append(engine, fork_context(engine, root, 1), answer("b"))
    assert len(empty) == 0
    assert empty.dtypes.equals(preferences_df(engine).dtypes)
    assert str(empty.dtypes["preferred"]) == "Int64"


def test_three_answers_are_three_pairs_in_sibling_order(engine: Engine) -> None:
    root = context_of(engine, USER, answer("a"))
    for content in "bc":
        append(engine, fork_context(engine, root, 1), answer(content))
    assert pairs(preferences_df(engine)) == [("a", "b", None), ("a", "c", None), ("b", "c", None)]


def test_users_who_ask_otherwise_and_equal_answers_are_no_pair(engine: Engine) -> None:
    root = context_of(engine, USER, answer("a"), ("user", "more"), answer("b"))
    append(engine, fork_context(engine, root, 2), ("user", "less"), answer("c"))
    append(engine, fork_context(engine, root, 1), answer("a"))
    assert len(preferences_df(engine)) == 0


def test_answers_that_differ_only_in_model_or_ids_of_calls_are_no_pair(engine: Engine) -> None:
    root = context_of(engine, USER, answer("a", model="m1"))
    append(engine, fork_context(engine, root, 1), answer("a", model="m2"))
    calls = context_of(engine, USER, call("c1"))
    append(engine, fork_context(engine, calls, 1), call("c2"))
    assert len(preferences_df(engine)) == 0


def test_contexts_of_different_roots_are_no_pair(engine: Engine) -> None:
    context_of(engine, USER, answer("a"))
    context_of(engine, USER, answer("b"))
    assert len(preferences_df(engine)) == 0


def test_a_fork_by_copy_is_compared_by_what_it_says(engine: Engine) -> None:
    root = context_of(engine, USER, answer("a"), ("user", "on"), answer("b"))
    fork = fork_context(engine, root, 3)
    with engine.begin() as connection:
        connection.execute(
            text(
                "insert into messages (context_id, version, role, content) values (:fork, 1, 'user', 'Which way?'),"
                "(:fork, 2, 'assistant', 'a'), (:fork, 3, 'user', 'on'), (:fork, 4, 'assistant', 'c')"
            ),
            {"fork": fork},
        )
    frame = preferences_df(engine)
    assert pairs(frame) == [("b", "c", None)]
    assert contents(frame["prompt"][0]) == ["Which way?", "a", "on"]


def test_both_contexts_are_among_those_asked_for_and_live(engine: Engine) -> None:
    root = context_of(engine, USER, answer("a"), name="x")
    second = fork_context(engine, root, 1, name="x")
    append(engine, second, answer("b"))
    third = fork_context(engine, root, 1, name="y")
    append(engine, third, answer("c"))
    assert pairs(preferences_df(engine, Context.name == "x")) == [("a", "b", None)]
    delete_context(engine, root)
    assert pairs(preferences_df(engine)) == [("b", "c", None)]
    delete_context(engine, second)
    assert len(preferences_df(engine)) == 0


def test_answers_that_begin_a_context_have_an_empty_prompt(engine: Engine) -> None:
    root = context_of(engine, answer("a"))
    append(engine, fork_context(engine, root, 0), answer("b"))
    assert preferences_df(engine)["prompt"].tolist() == [[]]


@pytest.mark.parametrize(
    "record",
    [
        {
            "input": {"messages": [USER]},
            "preferred_output": [answer("Left.")],
            "non_preferred_output": [answer("Right.")],
        },
        {
            "conversations": [{"from": "human", "value": "Which way?"}],
            "chosen": {"from": "gpt", "value": "Left."},
            "rejected": {"from": "gpt", "value": "Right."},
        },
    ],
)
def test_what_an_import_knew_to_be_preferred_comes_first(engine: Engine, tmp_path: Path, record: Any) -> None:
    import_file(engine, write_lines(tmp_path / "x.jsonl", [record]))
    frame = preferences_df(engine)
    assert pairs(frame) == [("Left.", "Right.", 1)]
    append(engine, fork_context(engine, frame["context_id_1"][0], 1), answer("Back."))
    assert pairs(preferences_df(engine))[1:] == [("Left.", "Back.", None), ("Right.", "Back.", None)]


def test_one_output_alone_is_not_preferred_to_a_fork(engine: Engine, tmp_path: Path) -> None:
    record = {"input": {"messages": [USER]}, "non_preferred_output": [answer("Right.")]}
    import_file(engine, write_lines(tmp_path / "x.jsonl", [record]))
    root = contexts_df(engine)["context_id"][0]
    append(engine, fork_context(engine, root, 1), answer("Back."))
    assert pairs(preferences_df(engine)) == [("Right.", "Back.", None)]


@pytest.mark.parametrize("form", ["flat", "nested"])
def test_ranks_are_known_as_far_as_the_source_gives_them(engine: Engine, tmp_path: Path, form: str) -> None:
    def reply(name: str, rank: int | None) -> dict[str, Any]:
        return oasst_message(name, "q", role="assistant", text=name, rank=rank, replies=[])

    replies = [reply("c", 2), reply("?", None), reply("a", 0), reply("b", 2)]
    records = [oasst_message("q"), *replies]
    if form == "nested":
        records = [{"message_tree_id": "q", "prompt": {**oasst_message("q"), "replies": replies}}]
    import_file(engine, write_lines(tmp_path / "x.jsonl", records))
    assert pairs(preferences_df(engine)) == [
        ("a", "c", 1),
        ("a", "b", 1),
        ("a", "?", None),
        ("c", "b", None),  # of one rank
        ("c", "?", None),
        ("b", "?", None),
    ]


def test_an_answer_that_a_later_export_ranks_between_others_is_not_said_to_be_worse(
    engine: Engine, tmp_path: Path
) -> None:
    def export(*names: str) -> Path:
        replies = [oasst_message(name, "q", role="assistant", text=name, rank=rank) for rank, name in enumerate(names)]
        return write_lines(tmp_path / "x.jsonl", [oasst_message("q"), *replies])

    import_file(engine, export("a", "c"))
    import_file(engine, export("a", "b", "c", "d"))
    assert pairs(preferences_df(engine)) == [
        ("a", "c", 1),
        ("a", "b", 1),
        ("a", "d", 1),
        ("c", "b", None),
        ("c", "d", 1),
        ("b", "d", None),
    ]


def test_what_one_import_knew_says_nothing_of_answers_from_elsewhere(engine: Engine, tmp_path: Path) -> None:
    def record(preferred: str, other: str) -> dict[str, Any]:
        outputs = {"preferred_output": [answer(preferred)], "non_preferred_output": [answer(other)]}
        return {"input": {"messages": [USER]}} | outputs

    import_file(engine, write_lines(tmp_path / "x.jsonl", [record("a", "b")]))
    import_file(engine, write_lines(tmp_path / "y.jsonl", [record("c", "d")]))
    known = [pair[:2] for pair in pairs(preferences_df(engine)) if pair[2]]
    assert known == [("a", "b"), ("c", "d")]


def test_prompts_that_say_the_same_keep_their_answers_ranks_apart(engine: Engine, tmp_path: Path) -> None:
    asked = [oasst_message("p"), *(oasst_message(f"q{n}", "p", role="assistant", text="q") for n in (1, 2))]
    asked += [oasst_message(f"u{n}", f"q{n}", text="u") for n in (1, 2)]
    given = [
        oasst_message(f"{name}{n}", f"u{n}", role="assistant", rank=rank)
        for n in (1, 2)
        for rank, name in enumerate(["better", "worse"])
    ]
    import_file(engine, write_lines(tmp_path / "x.jsonl", asked + given))
    known = {pair[:2] for pair in pairs(preferences_df(engine)) if pair[2]}
    assert known == {("text of better1", "text of worse1"), ("text of better2", "text of worse2")}


def test_what_is_left_of_a_preferred_answer_is_not_preferred(engine: Engine, tmp_path: Path) -> None:
    outputs = {"preferred_output": [answer("a"), answer("b")], "non_preferred_output": [answer("c")]}
    import_file(engine, write_lines(tmp_path / "x.jsonl", [{"input": {"messages": [USER]}} | outputs]))
    assert pairs(preferences_df(engine)) == [("a", "c", 1)]
    delete_messages(engine, messages_df(engine, Message.content == "a")["message_id"])
    assert pairs(preferences_df(engine)) == [("b", "c", None)]


@pytest.mark.skipif(not OASST.exists(), reason="the shared data is not on this machine")
def test_pairs_of_a_hundred_real_trees_are_those_of_the_file(engine: Engine, tmp_path: Path) -> None:
    expected = []
    for record in lines(OASST):
        waiting = [([], record["prompt"])]
        while waiting:
            before, message = waiting.pop()
            prompt = [*before, message["text"]]
            ranked = sorted(message["replies"], key=lambda reply: (reply.get("rank") is None, reply.get("rank") or 0))
            answers = [reply for reply in ranked if reply["role"] == "assistant"]
            for first, second in combinations(answers, 2):
                ranks = first.get("rank"), second.get("rank")
                known = None not in ranks and ranks[0] < ranks[1]
                expected.append((prompt, first["text"], second["text"], 1 if known else None))
            waiting += [(prompt, reply) for reply in ranked]
    import_file(engine, OASST)
    frame = preferences_df(engine)
    found = [(contents(row.prompt), *pair) for row, pair in zip(frame.itertuples(), pairs(frame), strict=True)]
    assert len(found) == 761
    assert sorted(found, key=repr) == sorted(expected, key=repr)


def test_the_frame_goes_to_json_lines_and_parquet(engine: Engine, tmp_path: Path) -> None:
    root = context_of(engine, USER, *CALLS)
    append(engine, fork_context(engine, root, 1), answer("b"))
    frame = preferences_df(engine)
    frame.to_json(tmp_path / "x.jsonl", orient="records", lines=True)
    assert json.loads((tmp_path / "x.jsonl").read_text())["answer_2"] == [{"role": "assistant", "content": "b"}]
    frame.to_parquet(tmp_path / "x.parquet")
    assert len(pd.read_parquet(tmp_path / "x.parquet")) == 1
