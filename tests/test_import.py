"""Importing: trees become contexts and forks, again adds nothing, growth adds only what is new."""

import gc
import gzip
import json
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid5

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, create_engine, make_url, text

from contextkit import (
    Context,
    FormatError,
    Message,
    ReadOnlyError,
    add_context,
    append_messages,
    contexts_df,
    delete_messages,
    forks_df,
    history_df,
    messages_df,
)
from contextkit.formats import FORMATS, import_file, importing
from contextkit.formats.conversation import Conversation, Defect, Node, Row
from contextkit.formats.units import NAMESPACE, message_id
from tests.fixtures_exports import write_chatgpt, write_claude, write_claude_code
from tests.test_store import EXAMPLES, nothing_written, tables, wrong_counters

OASST = Path(__file__).parents[2] / "shared" / "data" / "oasst_en_100_trees.jsonl"


def oasst_message(id_: str, parent: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"message_id": id_, "parent_id": parent, "text": f"text of {id_}", "role": "prompter", **fields}


def write_lines(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def path_to(parents: dict[str, str | None], leaf: str) -> list[str]:
    path: list[str] = []
    key: str | None = leaf
    while key is not None:
        path.insert(0, key)
        key = parents[key]
    return path


def histories(engine: Engine) -> dict[str, list[str]]:
    """Contents of every context's history."""
    frame = history_df(engine, contexts_df(engine)["context_id"], include_deleted=True)
    return {str(context): rows["content"].tolist() for context, rows in frame.groupby("context_id")}


@pytest.mark.skipif(not OASST.exists(), reason="the shared data is not on this machine")
def test_every_path_of_a_hundred_real_trees_is_a_history(engine: Engine) -> None:
    parents: dict[str, str | None] = {}
    texts: dict[str, tuple[str, str]] = {}
    leaves = []
    for line in OASST.read_text().splitlines():
        waiting = [(json.loads(line)["prompt"], None)]
        while waiting:
            message, parent = waiting.pop()
            parents[message["message_id"]] = parent
            role = {"prompter": "user", "assistant": "assistant"}[message["role"]]
            texts[message["message_id"]] = (role, message["text"])
            waiting += [(reply, message["message_id"]) for reply in message["replies"]]
            if not message["replies"]:
                leaves.append(message["message_id"])
    frame = import_file(engine, OASST)
    assert (len(frame), frame["parent_id"].notna().sum(), frame["messages"].sum()) == (626, 526, 1167)
    assert set(frame["state"]) == {"new"}
    assert len(messages_df(engine)) == 1167
    assert len(contexts_df(engine)) == 626
    history = history_df(engine, frame["context_id"])
    found = sorted(list(zip(rows["role"], rows["content"], strict=True)) for _, rows in history.groupby("context_id"))
    assert found == sorted([texts[key] for key in path_to(parents, leaf)] for leaf in leaves)
    assert set(forks_df(engine)["written_by"]) == {"root", "reference"}
    assert not wrong_counters(engine)
    before = tables(engine)
    again = import_file(engine, OASST)
    assert set(again["state"]) == {"unchanged"}
    columns = ["context_id", "name", "messages", "parent_id"]
    pd.testing.assert_frame_equal(again[columns], frame[columns])
    assert tables(engine) == before


# Again, and growing


@st.composite
def growths(draw: st.DrawFn) -> tuple[list[int | None], list[tuple[int, list[int]]]]:
    """Parents of the nodes, and of each export how many of them it has and their ranks."""
    size = draw(st.integers(1, 14))
    parents = [None, *(draw(st.none() | st.integers(0, place - 1)) for place in range(1, size))]
    cuts = [*sorted(draw(st.lists(st.integers(1, size), max_size=3))), size]
    return parents, [(cut, draw(st.permutations(range(size)))) for cut in cuts]


@settings(max_examples=EXAMPLES * 4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(growths())
def test_growing_exports_give_a_context_per_leaf_and_move_nothing(
    shared: Engine, tmp_path_factory: pytest.TempPathFactory, growth: tuple[list[int | None], list[Any]]
) -> None:
    parents, exports = growth
    folder = tmp_path_factory.mktemp("growth")
    tree, places = folder.name, dict[str, tuple[str, int]]()
    for size, ranks in exports:
        names = {place: f"{tree}-{place}" for place in range(size)} | {None: None}
        records = [
            oasst_message(str(names[place]), names[parents[place]], rank=ranks[place], message_tree_id=tree)
            for place in range(size)
        ]
        frame = import_file(shared, write_lines(folder / "export.jsonl", records))
        assert frame["messages"].sum() == size
        history = history_df(shared, frame["context_id"])
        found = [rows["content"].tolist() for _, rows in history.groupby("context_id")]
        inner = {parents[place] for place in range(size)}
        by_name = {str(names[place]): names[parents[place]] for place in range(size)}
        paths = [path_to(by_name, str(names[leaf])) for leaf in range(size) if leaf not in inner]
        assert sorted(found) == sorted([f"text of {key}" for key in path] for path in paths)
        stored = messages_df(shared, Message.context_id.in_(frame["context_id"]))
        now = {row.message_id: (row.context_id, row.version) for row in stored.itertuples()}
        if not places:  # the active path, through the lowest ranks, is the root context
            key, path = None, []
            while children := [place for place in range(size) if parents[place] == key]:
                key = min(children, key=lambda place: ranks[place])
                path.append(f"text of {names[key]}")
            assert frame["parent_id"].isna().tolist() == [True] + [False] * (len(frame) - 1)
            assert stored.loc[stored["context_id"] == frame["context_id"][0], "content"].tolist() == path
            assert stored.loc[stored["context_id"] == frame["context_id"][0], "version"].tolist() == [
                *range(1, len(path) + 1)
            ]
        assert places.items() <= now.items()
        assert len(now) == size
        roots = contexts_df(shared, Context.id.in_(frame["context_id"]), Context.parent_id.is_(None))
        assert len(roots) == 1
        places = now
    assert not wrong_counters(shared)


def test_a_longer_export_extends_and_forks(engine: Engine, tmp_path: Path) -> None:
    first = [oasst_message("a"), oasst_message("b", "a")]
    import_file(engine, write_lines(tmp_path / "1.jsonl", first))
    context = contexts_df(engine).iloc[0]
    frame = import_file(
        engine,
        write_lines(tmp_path / "2.jsonl", [*first, oasst_message("c", "b", rank=1), oasst_message("d", "b", rank=0)]),
    )
    assert frame["state"].tolist() == ["extended", "new"]
    assert frame["messages"].tolist() == [3, 1]
    assert frame["parent_id"].tolist()[1] == context["context_id"]
    after = contexts_df(engine)
    assert after["message_count"].tolist() == [3, 1]
    assert after["latest_version"].tolist() == [3, 3]
    assert after["fork_version"].tolist()[1] == 2
    assert after["updated_at"][0] > context["updated_at"]


def test_what_a_user_appended_meanwhile_stays_and_the_export_forks(engine: Engine, tmp_path: Path) -> None:
    first = [oasst_message("a"), oasst_message("b", "a")]
    context = import_file(engine, write_lines(tmp_path / "1.jsonl", first))["context_id"][0]
    append_messages(engine, context, [{"role": "user", "content": "mine"}])
    frame = import_file(engine, write_lines(tmp_path / "2.jsonl", [*first, oasst_message("c", "b")]))
    assert frame["state"].tolist() == ["unchanged", "new"]
    assert [rows[-1] for rows in histories(engine).values()].count("mine") == 1
    assert sorted(map(len, histories(engine).values())) == [3, 3]
    assert not wrong_counters(engine)


def test_a_message_deleted_since_is_not_brought_back(engine: Engine, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "1.jsonl", [oasst_message("a"), oasst_message("b", "a")])
    context = import_file(engine, path)["context_id"][0]
    delete_messages(engine, message_id("oasst", "a", "b"))
    assert import_file(engine, path)["state"].tolist() == ["unchanged"]
    assert history_df(engine, context)["content"].tolist() == ["text of a"]


def test_deleted_messages_are_written_as_deleted_and_not_counted(engine: Engine, tmp_path: Path) -> None:
    records = [
        oasst_message("a", created_date="2023-01-01T00:00:00+00:00"),
        oasst_message("b", "a", deleted=True),
        oasst_message("c", "b"),
    ]
    context = import_file(engine, write_lines(tmp_path / "1.jsonl", records))["context_id"][0]
    assert history_df(engine, context)["content"].tolist() == ["text of a", "text of c"]
    assert contexts_df(engine)["message_count"].tolist() == [2]
    rows = messages_df(engine, include_deleted=True)
    assert (rows["deleted_at"].dropna() >= rows["created_at"][1]).all()
    assert rows["created_at"][0] == pd.Timestamp("2023-01-01", tz="UTC")
    assert not wrong_counters(engine)


def test_forks_keep_the_order_of_ranks_by_their_creation(engine: Engine, tmp_path: Path) -> None:
    records = [oasst_message("a"), *(oasst_message(str(rank), "a", rank=rank) for rank in (3, 1, 4, 0, 2))]
    import_file(engine, write_lines(tmp_path / "1.jsonl", [*records, oasst_message("none", "a")]))
    assert contexts_df(engine)["created_at"].is_unique
    last = [histories(engine)[context][-1] for context in contexts_df(engine)["context_id"]]
    assert last == [f"text of {rank}" for rank in (0, 1, 2, 3, 4, "none")]


def test_siblings_of_the_first_message_fork_at_version_0_of_the_root(engine: Engine, tmp_path: Path) -> None:
    records = [oasst_message(key, message_tree_id="t", rank=rank) for rank, key in enumerate("abc")]
    frame = import_file(engine, write_lines(tmp_path / "1.jsonl", records))
    assert frame["parent_id"].tolist()[1:] == [frame["context_id"][0]] * 2
    assert contexts_df(engine)["fork_version"].tolist()[1:] == [0, 0]


# Trees given directly: what the formats above do not have


class Trees:
    """A format whose conversations a test gives."""

    def __init__(self, *conversations: Conversation | Defect) -> None:
        self.conversations = conversations

    def matches(self, value: object) -> bool:
        return False

    def read(self, source: Any) -> Iterator[Conversation | Defect]:
        list(source.records())
        yield from self.conversations


def import_trees(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *conversations: Conversation | Defect, **how: Any
) -> pd.DataFrame:
    monkeypatch.setitem(FORMATS, "trees", Trees(*conversations))
    path = tmp_path / "trees.json"
    path.write_text("[]")
    return import_file(engine, path, format="trees", **how)


def node(key: str, parent: str | None = None, *texts: str) -> Node:
    return Node(key, parent, tuple(Row("user", content) for content in texts or (key,)))


def test_a_node_of_several_rows_takes_several_versions_and_may_grow(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def given(*nodes: Node) -> pd.DataFrame:
        return import_trees(engine, tmp_path, monkeypatch, Conversation("t", "name", list(nodes)))

    given(node("a"), node("b", "a", "b0", "b1"))
    assert messages_df(engine)["version"].tolist() == [1, 2, 3]
    given(node("a"), node("b", "a", "b0", "b1", "b2"), node("c", "b"), node("d", "a"))
    assert sorted(histories(engine).values()) == [["a", "b0", "b1", "b2", "c"], ["a", "d"]]
    assert set(contexts_df(engine)["name"]) == {"name"}


@pytest.mark.parametrize("row", [0, 1])
def test_ids_are_uuid5_of_format_conversation_and_node(row: int) -> None:
    for key in ("a", "é", "x" * 99):
        assert message_id("f", "c", key, row) == str(uuid5(NAMESPACE, f"f/c/{key}" + ("/1" if row else "")))


def test_nodes_without_rows_are_passed_through(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [Node("top", None, ()), node("a", "top"), Node("hidden", "a", ()), node("b", "hidden"), node("c", "a")]
    empty = Conversation("e", None, [Node("top", None, ())])
    frame = import_trees(engine, tmp_path, monkeypatch, Conversation("t", None, nodes, "b"), empty)
    assert sorted(histories(engine).values()) == [["a", "b"], ["a", "c"]]
    assert frame["parent_id"].isna().tolist() == [True, False]
    assert frame.attrs["empty"] == 1


def test_keys_with_slashes_do_not_meet(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = Conversation("a", None, [node("b/1")]), Conversation("a/b", None, [node("1")])
    many = Conversation("a", None, [node("b", None, "x", "y")])
    assert len(import_trees(engine, tmp_path, monkeypatch, one, two, many)) == 3


def test_a_conversation_that_continues_another_is_linked_in_any_order(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Conversation("o", None, [node("a"), node("b", "a", "b0", "b1"), node("c", "b")])
    second = Conversation("s", None, [node("d")], links={"d": ("o", "b")})
    third = Conversation("t", None, [node("e")], links={"e": ("s", "d")})
    lost = Conversation("l", None, [node("f")], links={"f": ("nowhere", "x")})
    frame = import_trees(engine, tmp_path, monkeypatch, third, second, lost, original)
    expected = [["a", "b0", "b1", "c"], ["a", "b0", "b1", "d", "e"], ["f"]]
    assert sorted(histories(engine).values()) == expected
    with nothing_written(engine):
        assert set(import_trees(engine, tmp_path, monkeypatch, second)["state"]) == {"unchanged"}
    later = Conversation("n", None, [node("g")], links={"g": ("o", "c")})
    import_trees(engine, tmp_path, monkeypatch, later)
    assert ["a", "b0", "b1", "c", "g"] in histories(engine).values()
    assert frame["state"].tolist() == ["new"] * len(frame)


def test_conversations_linked_in_a_ring_are_written(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Conversation("1", None, [node("a")], links={"a": ("2", "b")})
    two = Conversation("2", None, [node("b")], links={"b": ("1", "a")})
    import_trees(engine, tmp_path, monkeypatch, one, two)
    assert list(histories(engine).values()) == [["a", "b"]]


def test_the_same_conversation_twice_in_a_file_is_written_once(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short, long = Conversation("t", None, [node("a")]), Conversation("t", None, [node("a"), node("b", "a")])
    frame = import_trees(engine, tmp_path, monkeypatch, short, long)
    assert frame["state"].tolist() == ["new"]
    assert list(histories(engine).values()) == [["a", "b"]]


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ([node("b", "a"), node("a")], "parent does not stand before"),
        ([node("a"), node("a")], "twice"),
        ([Node("a", None, (Row("narrator", "x"),))], "the role 'narrator' is none of"),
        ([Node("a", None, (Row("user", "x", token_count=-1),))], "token_count"),
        ([Node("a", None, (Row("user", "a\0b"),))], "content of message a.*NUL"),
        ([Node("a", None, (Row("tool", "x", tool_name="\ud800"),))], "tool_name of message a.*surrogate"),
    ],
)
def test_a_wrong_tree_is_refused_or_skipped(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nodes: list[Node], reason: str
) -> None:
    good, bad = Conversation("g", None, [node("good")]), Conversation("bad", None, nodes)
    with nothing_written(engine), pytest.raises(FormatError, match=reason) as caught:
        import_trees(engine, tmp_path, monkeypatch, good, bad)
    assert "conversation bad" in str(caught.value)
    frame = import_trees(engine, tmp_path, monkeypatch, bad, Defect(7, "there", "why"), good, on_error="skip")
    assert [row["reason"] for row in frame.attrs["skipped"]][1:] == ["why"]
    assert list(histories(engine).values()) == [["good"]]


def test_a_chain_of_50000_messages_is_one_context(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = [node(str(place), str(place - 1) if place else None) for place in range(50_000)]
    frame = import_trees(engine, tmp_path, monkeypatch, Conversation("t", None, chain), progress=False)
    assert frame["messages"].tolist() == [50_000]
    assert history_df(engine, frame["context_id"])["content"].tolist() == [str(place) for place in range(50_000)]
    longer = [*chain, node("x", "49999"), node("y", "20000")]
    frame = import_trees(engine, tmp_path, monkeypatch, Conversation("t", None, longer))
    assert frame["messages"].tolist() == [50_001, 1]
    assert contexts_df(engine)["latest_version"].tolist() == [50_001, 20_002]


# Files


@pytest.mark.parametrize("pack", ["plain", "gz", "zip", "folder"])
def test_packed_files_and_folders_give_the_same(shared: Engine, tmp_path: Path, pack: str) -> None:
    key = tmp_path.name
    records = [oasst_message(f"{key}a"), oasst_message(f"{key}b", f"{key}a")]
    plain = write_lines(tmp_path / "plain.jsonl", records)
    chat = {"id": key, "messages": [{"role": "user", "content": "hi"}]}
    path = plain
    if pack == "gz":
        path = tmp_path / "x.jsonl.gz"
        path.write_bytes(gzip.compress(plain.read_bytes()))
    if pack in ("zip", "folder"):
        (tmp_path / "folder" / "deep").mkdir(parents=True)
        path = tmp_path / "folder"
        write_lines(path / "deep" / "1.jsonl", records)
        write_lines(path / "2.jsonl", [chat])
        write_lines(path / "users.json", [{"name": "somebody"}])
        (path / "page.html").write_text("<html>")
    if pack == "zip":
        path = tmp_path / "x.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted((tmp_path / "folder").rglob("*.*")):
                archive.write(file, file.relative_to(tmp_path / "folder"))
    frame = import_file(shared, path)
    assert history_df(shared, frame["context_id"])["content"].tolist()[-2:] == [f"text of {key}a", f"text of {key}b"]
    several = pack in ("zip", "folder")
    assert len(frame) == (2 if several else 1)
    assert frame.attrs["left_out"] == (["users.json"] if several else [])
    assert json.dumps(frame.attrs)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"message_id": "a", "text": "x", "role": "prompter"}\n{"message_id": ', "x.jsonl, line 2: no valid JSON"),
        (b'[{"messages": []},\n{"messages": }]', "x.jsonl, line 2: no valid JSON"),
        (b'[{"messages": []}', "x.jsonl, line 1: no valid JSON"),
        (b'{"messages": []}\n\xff\n', "x.jsonl, line 2: not UTF-8"),
        (b'{"messages": [\n{"role": "user" "content": 1}]}\n', "x.jsonl, line 2: no valid JSON"),
        (b'{"messages": [{"role": "narrator", "content": "x"}]}', r"line 1, messages\[0\].role: the role 'narrator'"),
        (b'\n{"messages": [{"role": "user", "content": "\\u0000"}]}', r"line 2, messages\[0\].content.*NUL"),
        (b'{"messages": [{"role": "user", "content": "\\ud83d"}]}', r"line 1, messages\[0\].content.*surrogate"),
        (b'{"messages": [{"role": "user"}]}', r"line 1, messages\[0\].content: it is missing"),
        (b'[{"messages": []}, {"messages": [{"role": "narrator"}]}]', r"x.jsonl, item 2, messages\[0\].role"),
        (b'{"messages": ' + b"[" * 100_000, "x.jsonl, line 1: nested more than 400 deep"),
        (b"[" * 100_000, "x.jsonl, line 1: nested more than 400 deep"),
        (b"\x1f\x8bdamaged", "damaged"),
        (b"PK\x03\x04damaged", "damaged"),
        (b'{"something": "else"}', "the format is not recognised"),
        (b"", "the format is not recognised"),
    ],
)
def test_a_malformed_file_is_told_with_file_and_line_and_writes_nothing(
    shared: Engine, tmp_path: Path, content: bytes, told: str
) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    with nothing_written(shared), pytest.raises(FormatError, match=told):
        import_file(shared, path)


def test_good_conversations_are_imported_beside_bad_ones_when_asked(engine: Engine, tmp_path: Path) -> None:
    good = '{"messages": [{"role": "user", "content": "good"}]}'
    bad = '{"messages": [{"role": "narrator", "content": "x"}]}'
    nul = '{"messages": [{"role": "user", "content": "a\\u0000"}]}'
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join([good, '{"messages"', bad, nul, good]))
    frame = import_file(engine, path, on_error="skip")
    assert list(histories(engine).values()) == [["good"], ["good"]]
    skipped = sorted(frame.attrs["skipped"], key=lambda row: row["line"])
    assert [(row["file"], row["line"]) for row in skipped] == [("x.jsonl", 2), ("x.jsonl", 3), ("x.jsonl", 4)]
    assert all(row["reason"] for row in skipped)


def test_an_array_of_one_line_or_many_and_a_byte_order_mark(shared: Engine, tmp_path: Path) -> None:
    key = tmp_path.name
    records = [{"id": f"{key}{n}", "messages": [{"role": "user", "content": "é"}]} for n in range(3)]
    path = tmp_path / "x.json"
    for text_ in (json.dumps(records), json.dumps(records, indent=1), "\ufeff" + json.dumps(records)):
        path.write_text(text_, encoding="utf-8")
        assert len(import_file(shared, path)) == 3
    path.write_text(json.dumps(records[0], indent=1))
    assert len(import_file(shared, path)) == 1


def test_wrong_arguments_are_told(shared: Engine, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "x.jsonl", [oasst_message("wrong")])
    with pytest.raises(ValueError, match=r"formats are .*oasst, openai, sharegpt"):
        import_file(shared, path, format="word")
    with pytest.raises(ValueError, match="on_error is raise or skip"):
        import_file(shared, path, on_error="ignore")  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        import_file(shared, tmp_path / "nowhere.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FormatError, match="holds no file"):
        import_file(shared, tmp_path / "empty")


# Databases


def test_an_engine_for_reading_is_refused(reader: Engine, tmp_path: Path) -> None:
    with pytest.raises(ReadOnlyError):
        import_file(reader, write_lines(tmp_path / "x.jsonl", [oasst_message("a")]))


def test_roles_stored_as_an_enum(engine: Engine, tmp_path: Path) -> None:
    with engine.begin() as connection:
        connection.execute(text("create type speaker as enum ('user', 'assistant', 'system')"))
        connection.execute(text("alter table messages alter column role type speaker using role::speaker"))
    path = write_lines(tmp_path / "x.jsonl", [oasst_message("a"), oasst_message("b", "a", role="assistant")])
    assert import_file(engine, path)["messages"].tolist() == [2]
    assert messages_df(engine)["role"].tolist() == ["user", "assistant"]
    tool = write_lines(tmp_path / "y.jsonl", [{"messages": [{"role": "tool", "content": "x"}]}])
    with nothing_written(engine), pytest.raises(ValueError, match="enum lacks"):
        import_file(engine, tool)


def test_other_contexts_stay_as_they_are(engine: Engine, tmp_path: Path) -> None:
    context = add_context(engine, "mine")
    append_messages(engine, context, [{"role": "user", "content": "mine"}])
    before = contexts_df(engine)
    import_file(engine, write_lines(tmp_path / "x.jsonl", [oasst_message("a")]))
    pd.testing.assert_frame_equal(contexts_df(engine, Context.name == "mine"), before)


@pytest.mark.parametrize("name", ["chatgpt", "claude", "claude_code"])
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_exports_of_applications_are_recognised_and_imported_once(
    engine: Engine, tmp_path: Path, name: str, kind: str
) -> None:
    path = tmp_path / (name if kind == "folder" or name == "claude_code" else f"{name}.zip")
    write = {"chatgpt": write_chatgpt, "claude": write_claude, "claude_code": write_claude_code}[name]
    frame = import_file(engine, write(path), on_error="skip")
    assert frame.attrs["formats"] == [name]
    assert set(frame["state"]) == {"new"}
    assert len(frame) > 2
    assert len(messages_df(engine, include_deleted=True)) == frame["messages"].sum()
    assert not wrong_counters(engine)
    with nothing_written(engine):
        assert set(import_file(engine, path, on_error="skip")["state"]) == {"unchanged"}


def test_imports_of_one_file_at_once_write_it_once(engine: Engine, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "x.jsonl", [oasst_message(str(place)) for place in range(300)])
    with ThreadPoolExecutor(3) as pool:
        frames = list(pool.map(lambda _: import_file(engine, path), range(3)))
    assert sorted(set(frame["state"]) == {"new"} for frame in frames) == [False, False, True]
    assert len(messages_df(engine)) == 300
    assert gc.isenabled()


def test_a_foreign_engine_imports_too(database_url: str, tmp_path: Path) -> None:
    foreign = create_engine(make_url(database_url).set(drivername="postgresql+psycopg"))
    path = write_lines(tmp_path / "x.jsonl", [oasst_message("a"), oasst_message("b", "a")])
    assert import_file(foreign, path)["messages"].tolist() == [2]
    foreign.dispose()


def test_the_bar_is_quiet_when_short(shared: Engine, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import_file(shared, write_lines(tmp_path / "x.jsonl", [oasst_message("quiet")]))
    assert capfd.readouterr() == ("", "")


def test_batches_are_one_transaction_and_see_each_other(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "BATCH_ROWS", 1)
    short = Conversation("t", None, [node("a")])
    long = Conversation("t", None, [node("a"), node("b", "a"), node("c", "a")])
    linked = Conversation("l", None, [node("d")], links={"d": ("t", "b")})
    with nothing_written(engine), pytest.raises(FormatError, match=r"trees.json, .* 3, there: why"):
        import_trees(engine, tmp_path, monkeypatch, short, long, linked, Defect(3, "there", "why"))
    frame = import_trees(engine, tmp_path, monkeypatch, short, linked, long)
    assert frame["state"].tolist() == ["new", "new"]
    assert frame["messages"].tolist() == [2, 2]
    assert sorted(histories(engine).values()) == [["a", "b", "d"], ["a", "c"]]
    assert not wrong_counters(engine)


def test_a_reader_that_fails_writes_nothing(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(Trees):
        def read(self, source: Any) -> Iterator[Conversation | Defect]:
            yield from self.conversations
            raise KeyboardInterrupt

    monkeypatch.setattr(importing, "BATCH_ROWS", 1)
    monkeypatch.setitem(FORMATS, "failing", Failing(Conversation("t", None, [node("a")])))
    path = tmp_path / "x.json"
    path.write_text("[]")
    with nothing_written(engine), pytest.raises(KeyboardInterrupt):
        import_file(engine, path, format="failing")


def test_contexts_begin_when_the_source_says(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = datetime(2024, 5, 1, tzinfo=UTC)
    nodes = [Node("a", None, (Row("user", "a", token_count=3),), start), node("b", "a"), node("c", "a")]
    import_trees(engine, tmp_path, monkeypatch, Conversation("t", "name", nodes, "b", start))
    contexts = contexts_df(engine)
    assert (contexts["created_at"] - start).max() < pd.Timedelta("1ms")
    assert contexts["total_tokens"].tolist() == [3, 0]
    assert (contexts["updated_at"] > "2025").all()
    nodes.insert(1, node("early", "a"))
    import_trees(engine, tmp_path, monkeypatch, Conversation("t", "name", nodes, "b", start))
    last = [histories(engine)[context][-1] for context in contexts_df(engine)["context_id"]]
    assert last == ["b", "c", "early"]
