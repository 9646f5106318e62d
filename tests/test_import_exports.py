"""Exports of applications: every leaf of the raw file, walked here on its own, is a context with that history."""

import json
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import pandas as pd
import pytest
from sqlalchemy import Engine

from contextkit import contexts_df, history_df, messages_df
from contextkit.formats import import_file
from tests.fixtures_exports import (
    Json,
    call,
    chatgpt_conversations,
    code_line,
    random_chatgpt,
    random_sessions,
    result,
    write_chatgpt,
    write_claude_code,
    write_sessions,
)
from tests.test_store import nothing_written, wrong_counters

NAMESPACE = UUID("0b7d5f0a-6a4c-5e0f-9b53-3c1f6f2c9d11")
BEGIN = datetime.now(UTC)
Told = tuple[Any, ...]
"""Role, content, id and name of the tool, tokens, model and the source's time of a row."""


@dataclass
class Walk:
    """A forest of kept messages, as the raw file has it."""

    parents: dict[str, str | None] = field(default_factory=dict)
    rows: dict[str, list[Told]] = field(default_factory=dict)

    def path(self, leaf: str) -> list[str]:
        keys: list[str] = []
        key: str | None = leaf
        while key is not None:
            keys.append(key)
            key = self.parents[key]
        return keys[::-1]

    def leaves(self) -> list[str]:
        inner = set(self.parents.values())
        return [key for key in self.parents if key not in inner]

    def history(self, leaf: str) -> tuple[Told, ...]:
        return tuple(row for key in self.path(leaf) for row in self.rows[key])


def told(history: pd.DataFrame) -> list[tuple[Told, ...]]:
    """The rows of every context's history, a time that the import itself gave as None."""
    columns = ["role", "content", "tool_call_id", "tool_name", "token_count", "model", "created_at"]
    given = history[columns].astype(object)
    given["created_at"] = given["created_at"].where(history["created_at"] < BEGIN)
    rows = zip(*(given[name].where(given[name].notna(), None) for name in columns), strict=True)
    found: dict[str, list[Told]] = {}
    for context, row in zip(history["context_id"], rows, strict=True):
        found.setdefault(context, []).append(row)
    return [tuple(rows) for rows in found.values()]


def assert_each_leaf_is_a_context(engine: Engine, walk: Walk) -> None:
    """Histories are the paths, each message is stored once, and forks name the owner of what they branch at."""
    contexts = contexts_df(engine)
    fields: dict[Any, Any] = contexts.set_index("context_id").to_dict("index")
    history = history_df(engine, contexts["context_id"])
    found, wanted = Counter(told(history)), Counter(walk.history(leaf) for leaf in walk.leaves())
    assert list(found - wanted)[:1] == list(wanted - found)[:1]  # the whole of both is too long to be shown
    assert len(messages_df(engine)) == sum(map(len, walk.rows.values()))
    assert not wrong_counters(engine)
    assert set(history["context_id"]) == set(fields)
    for context, rows in history.groupby("context_id"):
        fork, inherited, own = fields[str(context)], rows[rows["inherited"]], rows[~rows["inherited"]]
        begin = 0 if pd.isna(fork["fork_version"]) else fork["fork_version"]
        assert own["version"].tolist() == [*range(begin + 1, begin + len(own) + 1)]
        if len(inherited):
            at = inherited.iloc[-1]
            assert (at["source_context_id"], at["version"]) == (fork["parent_id"], fork["fork_version"])
        elif pd.notna(fork["parent_id"]):
            assert fork["fork_version"] == 0
            assert pd.isna(fields[fork["parent_id"]]["parent_id"])


# ChatGPT


def gpt_text(content: Json) -> str:
    kind = content["content_type"]
    if "parts" in content:
        kinds = {"image_asset_pointer": "[image]"}
        texts = [part if isinstance(part, str) else kinds[part["content_type"]] for part in content["parts"]]
    elif kind == "tether_quote":
        texts = [content["title"], content["url"], content["text"]]
    else:
        texts = [content.get("text") or content.get("result") or ""]
        if not {"text", "result"} & content.keys():
            texts = [f"[{kind}]"]
    return "\n\n".join(text for text in texts if text)


def gpt_row(key: str, message: Json | None) -> Told | None:
    """What is kept of a node, its parent not looked at."""
    if message is None or message["weight"] == 0 or message["metadata"].get("is_visually_hidden_from_conversation"):
        return None
    kind, role, text = message["content"]["content_type"], message["author"]["role"], gpt_text(message["content"])
    if kind in ("thoughts", "reasoning_recap", "user_editable_context"):
        return None
    is_call = role == "assistant" and message["recipient"] != "all"
    if not (text.strip() or is_call or (role == "tool" and kind == "execution_output")):
        return None
    tool = message["recipient"] if is_call else message["author"]["name"]
    time = message.get("create_time")
    return (
        role, text, f"call:{key}" if is_call else None, tool, None, message["metadata"].get("model_slug"),
        None if time is None else datetime.fromtimestamp(time, UTC),
    )  # fmt: skip


def gpt_walk(conversation: Json) -> Walk:
    """Kept nodes in the order of the children, depth first."""
    walk, mapping = Walk(), conversation["mapping"]
    waiting: list[tuple[str, str | None]] = [(key, None) for key, node in mapping.items() if node["parent"] is None]
    while waiting:
        key, above = waiting.pop()
        row = gpt_row(key, mapping[key]["message"])
        if row is not None:
            if row[0] == "tool" and above is not None and walk.rows[above][0][2] == f"call:{above}":
                row = (*row[:2], f"call:{above}", *row[3:])
            walk.parents[key], walk.rows[key] = above, [row]
            above = key
        waiting += [(child, above) for child in mapping[key]["children"][::-1]]
    return walk


def gpt_active(conversation: Json, walk: Walk) -> str:
    """The last leaf below what the current node is or hangs on."""
    key = conversation["current_node"]
    while key is not None and key not in walk.parents:
        key = conversation["mapping"][key]["parent"]
    return [leaf for leaf in walk.leaves() if key is None or key in walk.path(leaf)][-1]


def together(walks: dict[str, Walk]) -> Walk:
    whole = Walk()
    for name, walk in walks.items():
        for key, parent in walk.parents.items():
            whole.parents[f"{name}/{key}"] = None if parent is None else f"{name}/{parent}"
            whole.rows[f"{name}/{key}"] = walk.rows[key]
    return whole


def contexts_by_leaf(engine: Engine, whole: Walk) -> dict[str, Any]:
    """The row of each leaf's context, by creation; the leaf is known by the id of its message."""
    ids = {str(uuid5(NAMESPACE, f"chatgpt/{key}")): key for key in whole.parents}
    contexts = contexts_df(engine)
    last = history_df(engine, contexts["context_id"]).groupby("context_id")["message_id"].last().to_dict()
    return {ids[last[row.context_id]]: row for row in contexts.itertuples()}


@pytest.mark.parametrize("conversations", [chatgpt_conversations(), random_chatgpt(60)], ids=["fixture", "random"])
def test_every_leaf_of_a_chatgpt_export_is_a_context_the_active_one_first(
    engine: Engine, tmp_path: Path, conversations: list[Json]
) -> None:
    walks = {conversation["id"]: gpt_walk(conversation) for conversation in conversations}
    whole, path = together(walks), write_chatgpt(tmp_path / "export.zip", conversations)
    frame = import_file(engine, path)
    assert set(frame["state"]) == {"new"}
    assert_each_leaf_is_a_context(engine, whole)
    contexts = contexts_by_leaf(engine, whole)
    for conversation in conversations:
        name, walk = conversation["id"], walks[conversation["id"]]
        found = {leaf: row for leaf, row in contexts.items() if leaf.startswith(f"{name}/")}
        first = [gpt_active(conversation, walk)] if walk.parents else []
        assert list(found) == [f"{name}/{leaf}" for leaf in dict.fromkeys(first + walk.leaves())]
        assert [pd.isna(row.parent_id) for row in found.values()] == [True, *[False] * len(found)][: len(found)]
        assert {row.name for row in found.values() if pd.notna(row.name)} <= {conversation["title"]}
    with nothing_written(engine):
        assert set(import_file(engine, path)["state"]) == {"unchanged"}


def rows_of(engine: Engine) -> set[tuple[Any, ...]]:
    """Every message row."""
    frame = messages_df(engine, include_deleted=True).astype(object)
    return set(frame.where(frame.notna(), None).itertuples(index=False, name=None))


def assert_only_what_is_new_was_written(engine: Engine, before: set[tuple[Any, ...]], frame: pd.DataFrame) -> None:
    """Rows of before are as they were; the frame's states are those of the contexts."""
    after = rows_of(engine)
    assert before < after
    old, new = {row[1] for row in before}, {row[1] for row in after - before}
    states = {context: "unchanged" if context not in new else "extended" for context in old}
    states |= dict.fromkeys(new - old, "new")
    assert dict(zip(frame["context_id"], frame["state"], strict=True)) == states
    assert frame["messages"].sum() == len(after)


def test_a_longer_chatgpt_export_adds_only_what_is_new(engine: Engine, tmp_path: Path) -> None:
    for count, part in ((30, 0.3), (40, 0.7), (40, 1.0)):
        before, conversations = rows_of(engine), random_chatgpt(count, part)
        frame = import_file(engine, write_chatgpt(tmp_path / "export.zip", conversations))
        assert_only_what_is_new_was_written(engine, before, frame)
        assert_each_leaf_is_a_context(engine, together({made["id"]: gpt_walk(made) for made in conversations}))


# Claude Code


def code_rows(line: Json, names: dict[str, str]) -> list[Told]:
    """What is kept of a line; calls are added to the names of tools."""
    if line["type"] not in ("user", "assistant") or line.get("isMeta"):
        return []
    message, rows, texts = line["message"], list[Told](), list[str]()
    model = message.get("model")
    time = datetime.fromisoformat(line["timestamp"])
    content = message["content"]
    for block in [*([{"type": "text", "text": content}] if isinstance(content, str) else content), {"type": "end"}]:
        if block["type"] == "text":
            texts.append(block["text"])
        elif block["type"] != "thinking" and any(texts):
            rows.append((line["type"], "\n\n".join(texts), None, None, None, model, time))
            texts = []
        if block["type"] == "tool_use":
            names[block["id"]] = block["name"]
            rows.append(("assistant", json.dumps(block["input"]), block["id"], block["name"], None, model, time))
        if block["type"] == "tool_result":
            given = block["content"]
            inner = given if isinstance(given, str) else "\n\n".join(part.get("text", "[image]") for part in given)
            rows.append(("tool", inner, block["tool_use_id"], names[block["tool_use_id"]], None, None, time))
    return rows


@dataclass
class Lines:
    """Lines of a folder, each once, in the file that it comes from: the original, else the one that ends first."""

    by_id: dict[str, Json] = field(default_factory=dict)
    rows: dict[str, list[Told]] = field(default_factory=dict)
    homes: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Of a line, the session and the side chain."""
    origins: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    def add(self, session: str, line: Json) -> None:
        key = line.get("uuid")
        if "forkedFrom" in line:
            self.origins[line["uuid"]] = line["forkedFrom"]["messageUuid"]
        elif key is not None and key not in self.by_id:
            side = line.get("agentId") or self.homes.get(line["parentUuid"], ("", ""))[1] or key
            self.homes[key] = (session, side if line.get("isSidechain") else "")
            self.by_id[key], self.rows[key] = line, code_rows(line, self.names)

    def above(self, key: str) -> str | None:
        """The line that one hangs on, if it is there, and for a side chain's in the same."""
        parent: str | None = self.by_id[key]["parentUuid"] or self.by_id[key].get("logicalParentUuid")
        parent = self.origins.get(parent or "", parent)
        side = self.homes[key][1]
        return parent if parent in self.by_id and (not side or self.homes[parent][1] == side) else None

    def near(self, key: str) -> str | None:
        """The nearest line above one that is kept, or a part of a reply."""
        above = self.above(key)
        while above is not None and not self.rows[above] and self.by_id[above]["type"] != "assistant":
            above = self.above(above)
        return above


def code_lines(files: dict[str, list[Json]]) -> Lines:
    found = Lines()
    for name in sorted(files, key=lambda name: max(line.get("timestamp", "") for line in files[name])):
        for line in files[name]:
            found.add(name, line)
    return found


def code_replies(lines: Lines) -> tuple[dict[str, list[str]], set[str]]:
    """The lines of each line's reply, the first results of its calls among them; and which are results."""
    replies: dict[str, list[str]] = {}
    results: set[str] = set()
    answered: set[str] = set()
    for key, line in lines.by_id.items():
        reply = replies.get(str(lines.near(key)))
        calls = {row[2] for row in lines.rows[key] if row[0] == "tool"}
        first_answer = bool(calls) and not calls & answered
        if reply and (first_answer or line.get("message", {}).get("id") == lines.by_id[reply[0]]["message"]["id"]):
            reply.append(key)
            replies[key] = reply
            answered |= calls
            results |= {key} if calls else set()
        elif line["type"] == "assistant":
            replies[key] = [key]
    return replies, results


def code_walk(lines: Lines) -> Walk:
    """Each kept line below the one that it hangs on, those of a reply below each other, its tokens at its end."""
    replies, results = code_replies(lines)
    below: dict[str, str | None] = {}
    for key in lines.by_id:
        near, reply = lines.near(key), replies.get(key, [key])
        inside = reply.index(key)
        below[key] = reply[inside - 1] if inside else replies[near][-1] if near in results else lines.above(key)
    walk = Walk()
    for key, rows in lines.rows.items():
        above = below[key]
        while above is not None and not lines.rows[above]:
            above = below[above]
        if rows:
            walk.parents[key], walk.rows[key] = above, list(rows)
    for reply in {id(reply): reply for reply in replies.values()}.values():
        said = [key for key in reply if lines.rows[key] and key not in results]
        if said:
            usage = lines.by_id[said[-1]]["message"]["usage"]["output_tokens"]
            walk.rows[said[-1]][-1] = (*walk.rows[said[-1]][-1][:4], usage, *walk.rows[said[-1]][-1][5:])
    return walk


def code_files(folder: Path) -> dict[str, list[Json]]:
    return {path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in folder.glob("*.jsonl")}


@pytest.mark.parametrize(
    "write",
    [write_claude_code, lambda folder: write_sessions(folder, random_sessions(6, 12))],
    ids=["fixture", "random"],
)
def test_every_leaf_of_claude_code_sessions_is_a_context_across_files(
    engine: Engine, tmp_path: Path, write: Any
) -> None:
    files = code_files(write(tmp_path / "sessions"))
    files["wrong"] = [line for line in files.get("wrong", []) if line["isSidechain"]]  # the session itself is malformed
    lines = code_lines({name: found for name, found in files.items() if found})
    walk = code_walk(lines)
    frame = import_file(engine, tmp_path / "sessions", on_error="skip")
    assert set(frame["state"]) == {"new"}
    assert len(frame.attrs["skipped"]) == len(files["wrong"])
    assert_each_leaf_is_a_context(engine, walk)
    roots = {lines.homes[key] for key, parent in walk.parents.items() if parent is None}
    assert contexts_df(engine)["parent_id"].isna().sum() == len(roots)
    with nothing_written(engine):
        assert set(import_file(engine, tmp_path / "sessions", on_error="skip")["state"]) == {"unchanged"}


def test_longer_claude_code_sessions_add_only_what_is_new(engine: Engine, tmp_path: Path) -> None:
    for count, more in ((4, 0), (6, 2), (6, 5)):
        before, files = rows_of(engine), random_sessions(count, 8, more)
        frame = import_file(engine, write_sessions(tmp_path, files))
        assert_only_what_is_new_was_written(engine, before, frame)
        assert_each_leaf_is_a_context(engine, code_walk(code_lines(files)))


def histories(engine: Engine) -> list[list[str]]:
    history = history_df(engine, contexts_df(engine)["context_id"])
    return sorted(rows["content"].tolist() for _, rows in history.groupby("context_id"))


def in_session(name: str, minute: int, kind: str, key: str, parent: str | None, content: Any, **fields: Any) -> Json:
    time = f"2026-05-01T08:{minute:02}:00.000Z"
    return code_line(kind, key, parent, content, **{"sessionId": name, "timestamp": time} | fields)


def test_a_session_that_goes_on_after_its_resumed_copy_keeps_its_messages(engine: Engine, tmp_path: Path) -> None:
    def session(name: str) -> list[Json]:
        return [in_session(name, 0, "user", "u", None, "hello"), in_session(name, 1, "assistant", "a", "u", "good day")]

    copy = [*session("copy"), in_session("copy", 2, "user", "c", "a", "in the copy")]
    import_file(engine, write_sessions(tmp_path, {"first": session("first"), "copy": copy}))
    longer = [*session("first"), in_session("first", 3, "user", "f", "a", "in the first")]
    frame = import_file(engine, write_sessions(tmp_path, {"first": longer, "copy": copy}))
    assert histories(engine) == [["hello", "good day", "in the copy"], ["hello", "good day", "in the first"]]
    assert frame["messages"].sum() == len(messages_df(engine)) == 4


def test_what_goes_on_from_one_of_several_results_in_another_file_has_them_all(engine: Engine, tmp_path: Path) -> None:
    first = [
        in_session("first", 0, "user", "u", None, "hello"),
        in_session("first", 1, "assistant", "c1", "u", [call("1")], reply="m"),
        in_session("first", 1, "assistant", "c2", "c1", [call("2")], reply="m"),
        in_session("first", 1, "user", "r1", "c1", [result("1", "one")]),
        in_session("first", 1, "user", "r2", "c2", [result("2", "two")]),
    ]
    goes_on = in_session("copy", 2, "user", "n", "r1", "both done")
    copy = [*(line | {"sessionId": "copy"} for line in first), goes_on]
    import_file(engine, write_sessions(tmp_path, {"first": first, "copy": copy}))
    assert histories(engine) == [["hello", '{"n": "1"}', '{"n": "2"}', "one", "two", "both done"]]


def test_an_agent_begins_without_the_history_of_a_session_that_another_file_keeps(
    engine: Engine, tmp_path: Path
) -> None:
    shared = in_session("first", 0, "user", "u", None, "hello")
    agent = in_session("first", 3, "user", "t", "u", "task", isSidechain=True, agentId="x7")
    sessions = {"first": [shared, agent], "copy": [shared | {"sessionId": "copy"}]}
    import_file(engine, write_sessions(tmp_path, sessions))
    assert histories(engine) == [["hello"], ["task"]]
