"""Exporting: effective histories in a whole file or none, and back again where the format holds them."""

import gzip
import itertools
import json
import os
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from contextkit import (
    Context,
    LineageError,
    Message,
    add_context,
    append_messages,
    contexts_df,
    delete_context,
    delete_messages,
    embedding_matrix,
    export_file,
    fork_context,
    forks_df,
    history_df,
    import_file,
    messages_batches,
    messages_df,
    preferences_df,
    to_openai,
)
from contextkit.formats import FORMATS, exporting, histories
from contextkit.formats.files import open_source
from contextkit.formats.histories import History, Told
from tests.test_import import OASST, oasst_message, write_lines
from tests.test_store import EXAMPLES

START = datetime(2026, 2, 3, 4, 5, 6, 789, tzinfo=UTC)
SAID = ["role", "content", "tool_call_id", "tool_name"]


def context_of(engine: Engine, *rows: tuple[str, str] | dict[str, Any], name: str | None = None) -> str:
    context = add_context(engine, name)
    append(engine, context, *rows)
    return context


def append(engine: Engine, context: str, *rows: tuple[str, str] | dict[str, Any]) -> pd.DataFrame:
    messages = [row if isinstance(row, dict) else {"role": row[0], "content": row[1]} for row in rows]
    return append_messages(engine, context, messages)


def said(engine: Engine, columns: list[str] = SAID) -> list[Any]:
    """What each history says, in an order that does not depend on ids."""
    history = history_df(engine, contexts_df(engine)["context_id"])
    plain = history.astype(object).where(history.notna(), None)
    groups = plain.groupby("context_id", sort=False)
    return sorted((list(rows[columns].itertuples(index=False, name=None)) for _, rows in groups), key=repr)


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def call(id_: str, name: str | None = "look_up", arguments: str = '{"word": "tide"}') -> dict[str, Any]:
    return {"role": "assistant", "content": arguments, "tool_call_id": id_, "tool_name": name}


def result(id_: str, content: str = "high at six", name: str | None = "look_up") -> dict[str, Any]:
    return {"role": "tool", "content": content, "tool_call_id": id_, "tool_name": name}


TOOLS = {"role": "system", "content": '[{"type": "function"}]', "tool_name": "tools"}
DIALOGUE: list[Any] = [("system", "Be short."), ("user", "When is the tide high?"), ("assistant", "I look.")]
CALLS: list[Any] = [call("c1"), call("c2", "moon", "{}"), result("c1"), result("c2", "full", "moon")]


# What is written


def test_openai_lines_have_the_effective_history_with_calls_joined_to_the_text_before(
    engine: Engine, tmp_path: Path
) -> None:
    root = context_of(engine, TOOLS, *DIALOGUE, *CALLS, ("assistant", "At six."))
    append(engine, fork_context(engine, root, 3), ("user", "And low?"))
    assert export_file(engine, tmp_path / "x.jsonl") == 2
    calls = [
        {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": '{"word": "tide"}'}},
        {"id": "c2", "type": "function", "function": {"name": "moon", "arguments": "{}"}},
    ]
    beginning = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "When is the tide high?"}]
    whole, forked = lines(tmp_path / "x.jsonl")
    assert whole == {
        "messages": [
            *beginning,
            {"role": "assistant", "content": "I look.", "tool_calls": calls},
            {"role": "tool", "tool_call_id": "c1", "name": "look_up", "content": "high at six"},
            {"role": "tool", "tool_call_id": "c2", "name": "moon", "content": "full"},
            {"role": "assistant", "content": "At six."},
        ],
        "tools": [{"type": "function"}],
    }
    assert forked == {
        "messages": [*beginning, {"role": "user", "content": "And low?"}],
        "tools": [{"type": "function"}],
    }
    assert to_openai(history_df(engine, root)) == whole["messages"]


def test_sharegpt_records_name_the_system_message_and_the_tools_beside_the_turns(
    engine: Engine, tmp_path: Path
) -> None:
    context_of(engine, DIALOGUE[0], TOOLS, *DIALOGUE[1:], *CALLS, ("system", "Now."), call("c3", None, "{half"))
    assert export_file(engine, tmp_path / "x.jsonl", format="sharegpt") == 1
    value = '[{"name": "look_up", "arguments": {"word": "tide"}}, {"name": "moon", "arguments": {}}]'
    assert lines(tmp_path / "x.jsonl") == [
        {
            "system": "Be short.",
            "tools": '[{"type": "function"}]',
            "conversations": [
                {"from": "human", "value": "When is the tide high?"},
                {"from": "gpt", "value": "I look."},
                {"from": "function_call", "value": value},
                {"from": "observation", "value": "high at six"},
                {"from": "observation", "value": "full"},
                {"from": "system", "value": "Now."},
                {"from": "function_call", "value": "{half"},
            ],
        }
    ]


def test_oasst_lines_are_one_tree_per_root(engine: Engine, tmp_path: Path) -> None:
    stamp = {"role": "user", "content": "Why?", "created_at": START}
    root = context_of(engine, stamp, {"role": "assistant", "content": "So.", "model": "m1"}, ("user", "Oh."))
    fork = append(engine, fork_context(engine, root, 1), ("assistant", "Otherwise."))
    first = append(engine, fork_context(engine, root, 0), ("user", "Why not?"))
    context_of(engine, ("user", "Elsewhere"))
    assert export_file(engine, tmp_path / "x.jsonl", format="oasst") == 4
    written = lines(tmp_path / "x.jsonl")
    ids = messages_df(engine, Message.context_id == root)["message_id"].tolist()
    assert written[0] == {
        "message_id": ids[0],
        "parent_id": None,
        "message_tree_id": ids[0],
        "created_date": START.isoformat(),
        "text": "Why?",
        "role": "prompter",
        "rank": 0,
        "deleted": False,
        "model_name": None,
    }
    assert [(line["text"], line["parent_id"], line["rank"]) for line in written[1:]] == [
        ("So.", ids[0], 0),
        ("Oh.", ids[1], 0),
        ("Otherwise.", ids[0], None),
        ("Why not?", None, None),
        ("Elsewhere", None, 0),
    ]
    assert [line["message_id"] for line in written[3:5]] == [*fork["message_id"], *first["message_id"]]
    assert {line["message_tree_id"] for line in written[:5]} == {ids[0]}
    assert written[1]["model_name"] == "m1"


def test_parquet_has_the_rows_of_history_df_with_embeddings(engine: Engine, tmp_path: Path) -> None:
    vector = [0.5] * 1536
    root = context_of(engine, {"role": "user", "content": "a", "embedding": vector}, ("assistant", "b"))
    append(engine, fork_context(engine, root, 1), ("user", "c"))
    assert export_file(engine, tmp_path / "x.parquet") == 2
    read = pd.read_parquet(tmp_path / "x.parquet", dtype_backend="pyarrow")
    expected = history_df(engine, contexts_df(engine)["context_id"], embeddings=True)
    assert embedding_matrix(read)[:, 0].tolist()[::2] == [0.5, 0.5]
    plain = [name for name in expected if name != "embedding"]
    pd.testing.assert_frame_equal(read[plain].astype(expected[plain].dtypes), expected[plain])
    by_default = pd.read_parquet(tmp_path / "x.parquet")
    assert by_default[plain].dtypes.equals(expected[plain].dtypes)
    assert by_default["embedding"][0].tolist() == vector


def test_vectors_of_no_declared_length_may_all_be_null_at_first(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context_of(engine, ("user", "a"))
    context_of(engine, ("user", "b"), ("assistant", "c"))
    with engine.begin() as connection:
        connection.exec_driver_sql("alter table messages alter embedding type vector")
        connection.exec_driver_sql("update messages set embedding = '[1,2,3]' where content = 'c'")
    monkeypatch.setattr(histories, "BATCH_ROWS", 1)
    assert export_file(engine, tmp_path / "x.parquet") == 2
    read = pd.read_parquet(tmp_path / "x.parquet", dtype_backend="pyarrow")
    assert embedding_matrix(read)[read["content"] == "c"].tolist() == [[1, 2, 3]]
    together = pd.concat(messages_batches(engine, batch_rows=1, embeddings=True), ignore_index=True)
    pd.testing.assert_frame_equal(together, messages_df(engine, embeddings=True))


@pytest.mark.parametrize("format", ["openai", "sharegpt", "oasst", "parquet"])
def test_conditions_choose_contexts_and_deleted_and_empty_ones_are_left_out(
    engine: Engine, tmp_path: Path, format: str
) -> None:
    kept = context_of(engine, ("user", "kept"), ("assistant", "unsaid"), name="x")
    delete_messages(engine, messages_df(engine, Message.content == "unsaid")["message_id"])
    context_of(engine, ("user", "another"), name="y")
    add_context(engine, "x")
    fork = append(engine, fork_context(engine, kept, name="x"), ("assistant", "of a fork"))["context_id"].iloc[0]
    deleted = context_of(engine, ("user", "removed"), name="x")
    delete_context(engine, deleted)
    path = tmp_path / "file"
    assert export_file(engine, path, Context.name == "x", format=format) == 2
    if format == "parquet":
        assert pd.read_parquet(path)["context_id"].tolist() == [kept, fork, fork]
    else:
        assert [word for word in ("kept", "of a fork", "unsaid", "another", "removed") if word in path.read_text()] == [
            "kept",
            "of a fork",
        ]


@pytest.mark.parametrize("format", ["openai", "sharegpt", "oasst", "parquet"])
def test_nothing_to_export_gives_an_empty_file(engine: Engine, tmp_path: Path, format: str) -> None:
    assert export_file(engine, tmp_path / "x", format=format) == 0
    if format == "parquet":
        empty = pd.read_parquet(tmp_path / "x", columns=["context_id", "position", "content"])
        assert empty.dtypes.equals(history_df(engine, [])[["context_id", "position", "content"]].dtypes)
    else:
        assert (tmp_path / "x").read_text() == ""


def test_contexts_of_a_root_stand_together_by_creation(engine: Engine, tmp_path: Path) -> None:
    first = context_of(engine, ("user", "1"))
    context_of(engine, ("user", "2"))
    append(engine, fork_context(engine, fork_context(engine, first)), ("user", "3"))
    export_file(engine, tmp_path / "x.jsonl")
    ends = [line["messages"][-1]["content"] for line in lines(tmp_path / "x.jsonl")]
    assert ends == ["1", "1", "3", "2"]


def test_histories_are_whole_whatever_the_batches(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_file(engine, write_lines(tmp_path / "trees.jsonl", comb(30)))
    for format in ("openai", "oasst", "parquet"):
        export_file(engine, tmp_path / f"at-once.{format}", format=format)
    monkeypatch.setattr(histories, "BATCH_ROWS", 7)
    monkeypatch.setattr(histories, "BATCH_CONTEXTS", 3)
    for format in ("openai", "oasst", "parquet"):
        assert export_file(engine, tmp_path / f"batched.{format}", format=format) == 30
    for format in ("openai", "oasst"):
        assert (tmp_path / f"batched.{format}").read_bytes() == (tmp_path / f"at-once.{format}").read_bytes()
    plain = ["context_id", "position", "content"]
    frames = [pd.read_parquet(tmp_path / f"{how}.parquet", columns=plain) for how in ("batched", "at-once")]
    pd.testing.assert_frame_equal(*frames)


def comb(length: int) -> list[dict[str, Any]]:
    """Tree with a fork at every message."""
    records = []
    for place in range(length):
        parent = f"m{place - 1}" if place else None
        records.append(oasst_message(f"m{place}", parent))
        records.append(oasst_message(f"n{place}", f"m{place}"))
    return records


def test_batches_are_bounded_for_forks_that_inherit_more_than_their_counters_say(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = context_of(engine, *[("user", str(place)) for place in range(40)])
    with engine.begin() as connection:
        for _ in range(10):  # renumbered, as another tool writes them
            insert = "insert into contexts (parent_id, fork_version, latest_version) values (:root, 39, 1) returning id"
            fork = connection.execute(text(insert), {"root": root}).scalar_one()
            own = "insert into messages (context_id, version, role, content) values (:fork, 1, 'user', 'own')"
            connection.execute(text(own), {"fork": fork})
    monkeypatch.setattr(histories, "BATCH_ROWS", 80)
    frames = list(histories.history_frames(engine, histories.families_df(engine)))
    assert [len(frame) for frame in frames] == [80, 80, 80, 80, 80, 40]


def test_memory_does_not_grow_with_the_database(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(histories, "BATCH_ROWS", 100)

    def peak() -> int:
        tracemalloc.start()
        export_file(engine, tmp_path / "x.jsonl")
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    def grow(contexts: int) -> None:
        for _ in range(contexts):
            context_of(engine, *[("user", "a long text " * 500)] * 20)

    grow(20)
    peak()  # what is imported and built once
    small = peak()
    grow(100)
    assert peak() < 1.5 * small


def test_parquet_in_partitions_is_a_folder_of_files_with_whole_contexts(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_file(engine, write_lines(tmp_path / "trees.jsonl", comb(30)))
    monkeypatch.setattr(histories, "BATCH_CONTEXTS", 3)
    assert export_file(engine, tmp_path / "x", partitions=4) == 30
    files = sorted((tmp_path / "x").iterdir())
    assert [file.name for file in files] == [f"part-0000{number}.parquet" for number in range(4)]
    frames = [pd.read_parquet(file, dtype_backend="pyarrow") for file in files]
    for frame, following in itertools.pairwise(frames):
        assert frame["context_id"].max() < following["context_id"].min()
    assert max(map(len, frames)) < 2 * min(map(len, frames))
    whole = pd.concat(frames, ignore_index=True)
    expected = history_df(engine, sorted(contexts_df(engine)["context_id"]), embeddings=True)
    plain = [name for name in expected if name != "embedding"]
    pd.testing.assert_frame_equal(whole[plain].astype(expected[plain].dtypes), expected[plain])
    assert pd.read_parquet(tmp_path / "x")["position"].tolist() == expected["position"].tolist()


def test_partitions_are_of_the_chosen_contexts_and_fewer_where_there_are_few(engine: Engine, tmp_path: Path) -> None:
    for name in "xxy":
        context_of(engine, ("user", name), name=name)
    assert export_file(engine, tmp_path / "x.parquet", Context.name == "x", partitions=9) == 2
    assert [len(pd.read_parquet(file)) for file in sorted((tmp_path / "x.parquet").iterdir())] == [1, 1]
    assert export_file(engine, tmp_path / "x.parquet", Context.name == "z", partitions=9) == 0
    (file,) = (tmp_path / "x.parquet").iterdir()
    assert len(pd.read_parquet(file, columns=["content"])) == 0


def test_a_folder_of_partitions_is_whole_or_as_it_was(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        context_of(engine, ("user", str(number)))
    export_file(engine, tmp_path / "x", partitions=2)
    before = {file.name: file.read_bytes() for file in (tmp_path / "x").iterdir()}
    real = exporting._write_parquet

    def fail_at_third(part: Path, frames: Any) -> int:
        if part.name == "part-00002.parquet":
            raise KeyboardInterrupt
        return real(part, frames)

    monkeypatch.setattr(exporting, "_write_parquet", fail_at_third)
    with pytest.raises(KeyboardInterrupt):
        export_file(engine, tmp_path / "x", partitions=4)
    assert {file.name: file.read_bytes() for file in (tmp_path / "x").iterdir()} == before
    monkeypatch.undo()
    assert export_file(engine, tmp_path / "x", partitions=1) == 4
    assert [file.name for file in (tmp_path / "x").iterdir()] == ["part-00000.parquet"]
    assert [file.name for file in tmp_path.iterdir()] == ["x"]


def test_what_comes_into_the_folder_during_an_export_stays(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context_of(engine, ("user", "x"))
    export_file(engine, tmp_path / "x", partitions=2)
    real = exporting._write_parquet

    def meanwhile(part: Path, frames: Any) -> int:
        (tmp_path / "x" / "notes.txt").write_text("kept")
        return real(part, frames)

    monkeypatch.setattr(exporting, "_write_parquet", meanwhile)
    with pytest.raises(ValueError, match="no export in partitions"):
        export_file(engine, tmp_path / "x", partitions=2)
    assert sorted(file.name for file in (tmp_path / "x").iterdir()) == ["notes.txt", "part-00000.parquet"]
    assert [file.name for file in tmp_path.iterdir()] == ["x"]


def test_a_folder_with_anything_else_is_never_replaced(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "part-00000.parquet").write_text("kept")
    (tmp_path / "x" / "notes.txt").write_text("kept")
    (tmp_path / "file").write_text("kept")
    (tmp_path / "y" / "part-00000.parquet").mkdir(parents=True)
    for name in ("x", "y", "file"):
        with pytest.raises(ValueError, match="no export in partitions"):
            export_file(engine, tmp_path / name, partitions=2)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "x", "y"]
    assert sorted(file.name for file in (tmp_path / "x").iterdir()) == ["notes.txt", "part-00000.parquet"]
    with pytest.raises(FileNotFoundError, match="make it first"):
        export_file(engine, tmp_path / "missing" / "x", partitions=2)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"partitions": 0}, "partitions is a whole number of at least 1"),
        ({"partitions": 2, "format": "openai"}, "openai is one file"),
    ],
)
def test_partitions_are_a_whole_number_and_of_parquet(
    reader: Engine, tmp_path: Path, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        export_file(reader, tmp_path / "x", **options)
    with pytest.raises(ValueError, match="openai is one file"):
        export_file(reader, tmp_path / "x.jsonl", partitions=2)


# Back again

names = st.sampled_from(["look_up", "moon"])
ids = st.sampled_from(["c1", "c2", "c3"])
contents = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5) | st.sampled_from(
    ["{}", '{"a": 1}', '{"name": "x"}', '"text"', "[1, 2]", "null", '{"a":1}', "\u2028", "é\n"]
)
texts = st.tuples(st.sampled_from(["user", "assistant", "system"]), contents, st.none(), st.none())
calls = st.tuples(st.just("assistant"), contents, ids, names)
old_calls = st.tuples(st.just("assistant"), contents, st.none(), names)
results = st.tuples(st.just("tool"), contents, ids, names | st.none()) | st.tuples(
    st.just("tool"), contents, st.none(), names
)


def told(role: str, content: str, id_: str | None = None, name: str | None = None, number: int = 0) -> Told:
    return Told("c", "c", str(number), START, role, content, id_, name, None)


def read_back(format: str, tmp_path: Path, history: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Rows of a history, written and read by the format's module alone."""
    messages = [told(*row, number=number) for number, row in enumerate(history)]
    records = list(exporting.WRITERS[format]([History("c", "c", messages)]))
    source = open_source(write_lines(tmp_path / "x.jsonl", records))
    (conversation,) = FORMATS[format].read(source)
    assert hasattr(conversation, "nodes"), conversation
    rows = [row for node in conversation.nodes for row in node.rows]
    return [(row.role, row.content, row.tool_call_id, row.tool_name) for row in rows]


@settings(max_examples=EXAMPLES * 10, deadline=None)
@given(st.lists(texts | calls | old_calls | results, min_size=1, max_size=8))
def test_openai_gives_back_every_message(tmp_path_factory: pytest.TempPathFactory, history: list[Any]) -> None:
    assert read_back("openai", tmp_path_factory.mktemp("x"), history) == history


@settings(max_examples=EXAMPLES * 10, deadline=None)
@given(st.lists(texts | st.lists(calls, min_size=1, max_size=3), min_size=1, max_size=6))
def test_sharegpt_gives_back_every_message_with_calls_renamed(
    tmp_path_factory: pytest.TempPathFactory, parts: list[Any]
) -> None:
    history: list[tuple[Any, ...]] = []
    expected: list[tuple[Any, ...]] = []
    made = 0
    for part in parts:
        if isinstance(part, tuple):
            history.append(part)
            expected.append(part)
            continue
        history += [*part, *(("tool", "done", id_, name) for _, _, id_, name in part)]
        numbered = [(respelled(content), f"call_{made + n}", name) for n, (_, content, _, name) in enumerate(part, 1)]
        made += len(part)
        expected += [("assistant", content, id_, name) for content, id_, name in numbered]
        expected += [("tool", "done", id_, name) for _, id_, name in numbered]
    assert read_back("sharegpt", tmp_path_factory.mktemp("x"), history) == expected


def respelled(arguments: str) -> str:
    try:
        value = json.loads(arguments)
    except ValueError:
        return arguments
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else arguments


@pytest.mark.parametrize("tools", ['[{"a": "\\ud83d"}]', '[{"a": 1e999}]', "[NaN]", "{}", "[", "[" * 20_000])
@pytest.mark.parametrize("format", ["openai", "sharegpt"])
def test_tool_definitions_and_arguments_that_are_no_plain_json_stay_texts(
    engine: Engine, tmp_path: Path, tools: str, format: str
) -> None:
    context_of(engine, {**TOOLS, "content": tools}, ("user", "a"), call("c1", "f", tools[1:-1]))
    assert export_file(engine, tmp_path / "x.jsonl", format=format) == 1
    (line,) = [json.loads(line, parse_constant=pytest.fail) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    if format == "openai":
        assert line["messages"][0] == {"role": "system", "content": tools}
        assert "tools" not in line
    else:
        assert line["tools"] == tools
        assert line["conversations"][-1]["from"] == "function_call"


def test_a_call_without_a_name_stays_a_call(engine: Engine, other: Engine, tmp_path: Path) -> None:
    context_of(engine, ("user", "a"), call("c1", None, "search[cats]"), result("c1", name=None))
    for format in ("openai", "sharegpt"):
        export_file(engine, tmp_path / "x.jsonl", format=format)
        if format == "openai":
            made = lines(tmp_path / "x.jsonl")[0]["messages"][1]["tool_calls"]
            assert made[0]["function"] == {"name": "unnamed", "arguments": "search[cats]"}
    import_file(other, tmp_path / "x.jsonl")
    assert [row[:2] for row in said(other)[0]] == [row[:2] for row in said(engine)[0]]
    assert messages_df(other, Message.tool_call_id.is_not(None))["role"].tolist() == ["assistant", "tool"]
    with pytest.raises(ValueError, match="has a tool call, and oasst"):
        export_file(engine, tmp_path / "x.jsonl", format="oasst")


@pytest.mark.parametrize(
    ("format", "columns"),
    [("openai", SAID), ("sharegpt", ["role", "content"]), ("oasst", ["role", "content", "model", "created_at"])],
)
@pytest.mark.skipif(not OASST.exists(), reason="the shared data is not on this machine")
def test_a_hundred_real_trees_come_back_with_equal_histories(
    engine: Engine, other: Engine, tmp_path: Path, format: str, columns: list[str]
) -> None:
    import_file(engine, OASST)
    assert export_file(engine, tmp_path / "x.jsonl", format=format) == 626
    frame = import_file(other, tmp_path / "x.jsonl")
    assert (frame.attrs["formats"], len(frame)) == ([format], 626)
    assert said(other, columns) == said(engine, columns)
    if format == "oasst":
        assert len(messages_df(other)) == 1167
        assert forks_df(other)["depth"].tolist() == forks_df(engine)["depth"].tolist()
        preferred = [preferences_df(either)["preferred"].notna().sum() for either in (engine, other)]
        assert preferred == [754, 754]


@pytest.mark.parametrize("format", ["openai", "sharegpt"])
def test_what_was_imported_comes_back_with_equal_histories(
    engine: Engine, other: Engine, tmp_path: Path, format: str
) -> None:
    records: dict[str, list[Any]] = {
        "openai": [
            {
                "tools": [{"type": "function", "function": {"name": "look_up"}}],
                "messages": [
                    {"role": "developer", "content": "Be short."},
                    {"role": "user", "content": [{"type": "text", "text": "Tide?"}]},
                    {
                        "role": "assistant",
                        "content": "I look.",
                        "tool_calls": [
                            {"id": "a", "type": "function", "function": {"name": "look_up", "arguments": "{}"}},
                            {"id": "b", "type": "function", "function": {"name": "look_up", "arguments": ""}},
                        ],
                    },
                    {"role": "tool", "tool_call_id": "b", "content": "six"},
                    {"role": "tool", "tool_call_id": "a", "content": "seven"},
                ],
            },
            {
                "input": {"messages": [{"role": "user", "content": "Tide?"}]},
                "preferred_output": [{"role": "assistant", "content": "Six."}],
                "non_preferred_output": [{"role": "assistant", "content": "No."}],
            },
            {"messages": [{"role": "function", "name": "look_up", "content": "six"}]},
        ],
        "sharegpt": [
            {
                "system": "Be short.",
                "tools": '[{"name": "look_up"}]',
                "conversations": [
                    {"from": "human", "value": "Tide?"},
                    {"from": "function_call", "value": '{"name": "look_up", "arguments": {"a": "é"}}'},
                    {"from": "observation", "value": "six"},
                ],
                "chosen": {"from": "gpt", "value": "Six."},
                "rejected": {"from": "gpt", "value": "No."},
            },
        ],
    }
    import_file(engine, write_lines(tmp_path / "given.jsonl", records[format]))
    count = export_file(engine, tmp_path / "x.jsonl", format=format)
    import_file(other, tmp_path / "x.jsonl", format=format)
    assert len(said(other)) == count == len(contexts_df(engine))
    assert said(other) == said(engine)


def test_forks_by_copy_are_the_same_tree_as_forks_by_reference(engine: Engine, other: Engine, tmp_path: Path) -> None:
    root = context_of(engine, ("user", "1"), ("assistant", "2"), ("user", "3"))
    fork = fork_context(engine, root, 2)
    with engine.begin() as connection:  # copies of 1 and an edited 2; 3 is its own
        connection.execute(
            text(
                "insert into messages (context_id, version, role, content) values "
                "(:fork, 1, 'user', '1'), (:fork, 2, 'assistant', '2!'), (:fork, 3, 'user', '3')"
            ),
            {"fork": fork},
        )
    export_file(engine, tmp_path / "x.jsonl", format="oasst")
    assert [line["text"] for line in lines(tmp_path / "x.jsonl")] == ["1", "2", "3", "2!", "3"]
    import_file(other, tmp_path / "x.jsonl")
    assert said(other) == said(engine)


def test_a_message_that_follows_different_ones_has_an_id_for_each(
    engine: Engine, other: Engine, tmp_path: Path
) -> None:
    root = context_of(engine, ("user", "1"), ("assistant", "2"), ("user", "3"))
    fork = fork_context(engine, root, 3)
    with engine.begin() as connection:  # only 2 is edited; 3 is inherited and follows both
        connection.execute(
            text("insert into messages (context_id, version, role, content) values (:fork, 2, 'assistant', '2!')"),
            {"fork": fork},
        )
    export_file(engine, tmp_path / "x.jsonl", format="oasst")
    written = lines(tmp_path / "x.jsonl")
    assert len({line["message_id"] for line in written}) == len(written) == 5
    import_file(other, tmp_path / "x.jsonl")
    assert said(other) == said(engine)


# Whole or not at all


def test_a_failed_export_leaves_the_file_that_stood_there_and_nothing_else(engine: Engine, tmp_path: Path) -> None:
    context_of(engine, ("user", "1"))
    context_of(engine, ("system", "2"))
    (tmp_path / "x.jsonl").write_text("before")
    with pytest.raises(ValueError, match="has a system message, and oasst holds only texts"):
        export_file(engine, tmp_path / "x.jsonl", format="oasst")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("x.jsonl", "before")]


@pytest.mark.parametrize("format", ["openai", "parquet"])
def test_an_interrupted_export_leaves_no_file(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    import_file(engine, write_lines(tmp_path / "trees.jsonl", comb(10)))
    (tmp_path / "trees.jsonl").unlink()
    monkeypatch.setattr(histories, "BATCH_CONTEXTS", 3)
    loaded: Callable[..., pd.DataFrame] = histories.stored_histories
    batches = []

    def interrupted(*args: Any, **asked: Any) -> pd.DataFrame:
        batches.append(len(list(tmp_path.iterdir())))
        if len(batches) == 3:
            raise KeyboardInterrupt
        return loaded(*args, **asked)

    monkeypatch.setattr(histories, "stored_histories", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_file(engine, tmp_path / "x", format=format)
    assert batches[-1] == 1  # the part was there
    assert not list(tmp_path.iterdir())


def test_a_call_is_refused_by_oasst(engine: Engine, tmp_path: Path) -> None:
    context_of(engine, ("user", "1"), call("c1"))
    with pytest.raises(ValueError, match="has a tool call, and oasst"):
        export_file(engine, tmp_path / "x.jsonl", format="oasst")


def test_a_cycle_of_parents_is_told_and_nothing_written(engine: Engine, tmp_path: Path) -> None:
    one, two = add_context(engine), add_context(engine)
    with engine.begin() as connection:
        statement = text("update contexts set parent_id = :parent, fork_version = 0 where id = :id")
        connection.execute(statement, [{"id": one, "parent": two}, {"id": two, "parent": one}])
    with pytest.raises(LineageError, match="cycle"):
        export_file(engine, tmp_path / "x.jsonl")
    assert not list(tmp_path.iterdir())


def test_a_path_that_ends_in_gz_is_compressed_and_read_back(engine: Engine, other: Engine, tmp_path: Path) -> None:
    context_of(engine, ("user", "é"))
    assert export_file(engine, str(tmp_path / "x.jsonl.gz")) == 1
    assert json.loads(gzip.decompress((tmp_path / "x.jsonl.gz").read_bytes()))["messages"][0]["content"] == "é"
    import_file(other, tmp_path / "x.jsonl.gz")
    assert said(other) == said(engine)


@pytest.mark.parametrize(
    ("name", "format", "error", "told"),
    [
        ("x.txt", None, ValueError, "x.txt does not tell a format; name one: oasst, openai, sharegpt, parquet"),
        ("x.jsonl", "csv", ValueError, "no format is called 'csv'"),
        ("x.parquet.gz", None, ValueError, "compressed by itself"),
        ("missing/x.jsonl", None, FileNotFoundError, "the folder missing does not exist"),
        ("folder.jsonl", None, IsADirectoryError, "folder.jsonl is a folder"),
    ],
)
def test_what_cannot_be_written_is_told_before_anything_is(
    engine: Engine, tmp_path: Path, name: str, format: str | None, error: type[Exception], told: str
) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(error, match=told):
        export_file(engine, tmp_path / name, format=format)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.jsonl"]


def test_the_bar_is_quiet_when_short(engine: Engine, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    context_of(engine, ("user", "1"))
    export_file(engine, tmp_path / "x.jsonl")
    assert capfd.readouterr() == ("", "")


def test_no_character_within_a_line_ends_it_for_any_reader(engine: Engine, tmp_path: Path) -> None:
    content = "a\x85b\u2028c\u2029d"
    context_of(engine, ("user", content))
    export_file(engine, tmp_path / "x.jsonl")
    (line,) = (tmp_path / "x.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["messages"][0]["content"] == content


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_links_are_followed_modes_kept_and_what_is_no_regular_file_stays(engine: Engine, tmp_path: Path) -> None:
    context_of(engine, ("user", "1"))
    (tmp_path / "file.jsonl").touch(mode=0o600)
    (tmp_path / "link.jsonl").symlink_to("file.jsonl")
    export_file(engine, tmp_path / "link.jsonl")
    assert (tmp_path / "link.jsonl").is_symlink()
    assert len(lines(tmp_path / "file.jsonl")) == 1
    assert (tmp_path / "file.jsonl").stat().st_mode & 0o777 == 0o600
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(ValueError, match="no regular file"):
        export_file(engine, tmp_path / "pipe.jsonl")
    assert (tmp_path / "pipe.jsonl").is_fifo()


def test_an_engine_for_reading_will_do(engine: Engine, reader: Engine, tmp_path: Path) -> None:
    context_of(engine, ("user", "1"))
    assert export_file(reader, tmp_path / "x.jsonl") == 1
