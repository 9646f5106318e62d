"""Exports that hold trees: ChatGPT's, Claude.ai's and Claude Code's sessions."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from contextkit.formats import chatgpt, claude, claude_code
from contextkit.formats.conversation import Conversation, Defect
from contextkit.formats.files import open_source
from tests.fixtures_exports import (
    call,
    chatgpt_conversations,
    claude_code_session,
    claude_conversation,
    claude_conversations,
    claude_message,
    code_line,
    gpt_conversation,
    gpt_message,
    result,
    write_chatgpt,
    write_claude,
    write_claude_code,
)

MANY = 50_000


@dataclass
class Given:
    """Stands in for a Source: a file's name and values, or the files of a folder."""

    name: str
    values: list[Any]
    members: tuple["Given", ...] = ()

    def files(self) -> Iterator["Given"]:
        yield from self.members or (self,)

    def records(self) -> Iterator[tuple[int, Any]]:
        yield from enumerate(deepcopy(self.values) if len(self.values) < 100 else self.values, 1)


def folder(**files: list[Any]) -> Given:
    return Given("folder", [], tuple(Given(f"{name.replace('_', '-')}.jsonl", lines) for name, lines in files.items()))


def read(module: ModuleType, source: Any) -> list[Any]:
    return list(module.read(source))


def one(module: ModuleType, value: Any) -> Any:
    """What a single value, or the lines of one session, is read into."""
    (found,) = read(module, Given("s1.jsonl", value if isinstance(value, list) else [value]))
    return found


def tree(conversation: Conversation) -> list[tuple[str, str | None, list[str]]]:
    """Key, parent and rows of each node, a row as its role's first letter and its content."""
    return [(node.key, node.parent, [f"{r.role[0]}:{r.content}" for r in node.rows]) for node in conversation.nodes]


def pairs(conversation: Conversation) -> list[tuple[str, str | None]]:
    return [(node.key, node.parent) for node in conversation.nodes]


def rows(conversation: Conversation) -> list[Any]:
    return [row for node in conversation.nodes for row in node.rows]


# ChatGPT


def test_chatgpt_siblings_stay_and_hidden_nodes_hand_their_children_up() -> None:
    tea = one(chatgpt, chatgpt_conversations()[0])
    assert tree(tea) == [
        ("q", None, ["u:Which tea is mild?"]),
        ("a1", "q", ["a:White tea."]),
        ("q2", "a1", ["u:And how hot?"]),
        ("a2", "q", ["a:Try oolong."]),
        ("a3", "q", ["a:Green tea, briefly."]),
    ]
    assert (tea.key, tea.name, tea.active, tea.links) == ("gpt-tea", "About gpt-tea", "a3", {})
    assert [row.model for row in rows(tea)] == [None, "m-1", None, "m-2", None]


def test_chatgpt_times_are_utc_or_null() -> None:
    tea = one(chatgpt, chatgpt_conversations()[0])
    asked = datetime(2025, 6, 15, 15, 6, 40, 250_000, UTC)
    assert tea.created_at == asked
    assert [node.created_at for node in tea.nodes][:2] == [asked, None]
    assert one(chatgpt, chatgpt_conversations()[1]).created_at is None


def test_chatgpt_content_types_become_text_and_calls_pair_with_the_answer_below() -> None:
    tools = one(chatgpt, chatgpt_conversations()[1])
    assert [(row.role, row.content, row.tool_call_id, row.tool_name) for row in rows(tools)] == [
        ("user", "[image]\n\nCount the boats.", None, None),
        ("assistant", "len(boats)", "call:call", "python"),
        ("tool", "3", "call:call", "python"),
        ("tool", "late", None, "python"),
        ("assistant", 'search("boats")', "call:look", "browser"),
        ("tool", "one page", "call:look", "browser"),
        ("tool", "Boats\n\nhttps://example.org\n\nThree.", None, "browser"),
        ("assistant", "[hologram]", None, None),
        ("assistant", "Three boats.", None, None),
    ]
    assert (tools.name, tools.active) == (None, "end")


@pytest.mark.parametrize(
    ("current", "active"),
    [("a1", "q2"), ("q2", "q2"), ("a3", "a3"), ("recap", "a3"), ("sys", "a3"), ("unknown", "a3"), (None, "a3")],
)
def test_chatgpt_active_leaf_lies_below_the_current_node_else_is_the_last(current: str | None, active: str) -> None:
    assert one(chatgpt, chatgpt_conversations()[0] | {"current_node": current}).active == active


def test_chatgpt_children_order_siblings_not_the_mapping() -> None:
    tea = chatgpt_conversations()[0]
    tea["mapping"]["q"]["children"] = ["think", "a2", "a1"]
    assert pairs(one(chatgpt, tea)) == [("q", None), ("a3", "q"), ("a2", "q"), ("a1", "q"), ("q2", "a1")]


@pytest.mark.parametrize(
    ("part", "text"),
    [
        ({"content_type": "audio_transcription", "text": "spoken"}, "spoken"),
        ({"content_type": "audio_asset_pointer"}, "[audio]"),
        ({"content_type": "video_container_asset_pointer"}, "[video]"),
        ({"content_type": "scent"}, "[scent]"),
        ({}, "[part]"),
    ],
)
def test_chatgpt_a_part_is_its_text_or_named_in_brackets(part: dict[str, Any], text: str) -> None:
    content = {"content_type": "multimodal_text", "parts": [part]}
    assert rows(one(chatgpt, gpt_conversation("c", [("q", None, gpt_message("user", content))])))[0].content == text


def test_chatgpt_drops_weight_0_and_empty_messages_but_not_an_execution_without_output() -> None:
    given = [
        ("q", None, gpt_message("user", "Run it")),
        ("w", "q", gpt_message("assistant", "taken back", weight=0.0)),
        ("e", "w", gpt_message("assistant", " ")),
        ("c", "e", gpt_message("assistant", "", recipient="python")),
        ("o", "c", gpt_message("tool", {"content_type": "execution_output", "text": ""}, name="python")),
    ]
    assert tree(one(chatgpt, gpt_conversation("c", given))) == [
        ("q", None, ["u:Run it"]), ("c", "q", ["a:"]), ("o", "c", ["t:"])]  # fmt: skip


def test_chatgpt_answers_in_two_branches_both_have_the_calls_id() -> None:
    given = [
        ("c", None, gpt_message("assistant", "1+1", recipient="python")),
        ("o1", "c", gpt_message("tool", "2", name="python")),
        ("o2", "c", gpt_message("tool", "two", name="python")),
    ]
    assert [row.tool_call_id for row in rows(one(chatgpt, gpt_conversation("c", given)))] == ["call:c"] * 3


def broken_tea(*path: str, value: Any) -> Any:
    tea = chatgpt_conversations()[0]
    at = tea
    for name in path[:-1]:
        at = at[name]
    at[path[-1]] = value
    return tea


@pytest.mark.parametrize(
    ("value", "place", "reason"),
    [
        (broken_tea("mapping", "q", "message", "author", "role", value="critic"),
         "mapping.q.message.author.role", "unknown role 'critic'"),
        (broken_tea("mapping", "q", "parent", value="gone"), "mapping.q.parent", "a parent that is not in the mapping"),
        (broken_tea("mapping", "q", "parent", value="q2"), "mapping.q.parent", "its parents form a cycle"),
        (broken_tea("mapping", "q", "parent", value="q"), "mapping.q.parent", "its parents form a cycle"),
        (broken_tea("mapping", "q", "message", value="text"), "mapping.q.message", "dict expected, str found"),
        (broken_tea("mapping", "q", value=3), "mapping.q", "object expected"),
        (broken_tea("mapping", "q", "children", value=["a1", []]), "mapping.q.children[1]", "text expected"),
        (broken_tea("mapping", "q", "message", "create_time", value="soon"),
         "mapping.q.message.create_time", "not a time"),
        (broken_tea("mapping", "q", "message", "create_time", value=1e300),
         "mapping.q.message.create_time", "not a time"),
        (broken_tea("mapping", "q", "message", "content", "parts", value=[3]),
         "mapping.q.message.content.parts[0]", "text or object expected"),
        (broken_tea("create_time", value=True), "create_time", "not a time"),
        (broken_tea("mapping", value=[]), "mapping", "no conversation: object with a mapping expected"),
        ({"mapping": {}}, "id", "a conversation without an id"),
        (3, "mapping", "no conversation: object with a mapping expected"),
    ],
)  # fmt: skip
def test_chatgpt_a_broken_conversation_is_a_defect_and_the_next_is_read(value: Any, place: str, reason: str) -> None:
    defect, good = read(chatgpt, Given("conversations.json", [value, chatgpt_conversations()[1]]))
    assert defect == Defect(1, place, reason)
    assert good.key == "gpt-tools"


@pytest.mark.parametrize("name", ["conversations.json", "conversations.json.gz", "export.zip", "unpacked"])
def test_chatgpt_exports_read_the_same_from_a_file_archive_and_folder(tmp_path: Path, name: str) -> None:
    found = read(chatgpt, open_source(write_chatgpt(tmp_path / name)))
    assert found == read(chatgpt, Given("x", chatgpt_conversations()))
    assert [(conversation.key, len(conversation.nodes)) for conversation in found] == [
        ("gpt-tea", 5), ("gpt-tools", 9), ("gpt-empty", 0)]  # fmt: skip


@pytest.mark.parametrize("module", [chatgpt, claude])
def test_an_archive_without_conversations_is_a_defect(module: ModuleType) -> None:
    others = Given("zip", [], (Given("user.json", [{}]), Given("feedback.json", [{}])))
    assert read(module, others) == [Defect(None, "", "no conversations.json among the files of the export")]


# Claude.ai


def test_claude_pointers_make_the_tree_and_the_current_leaf_is_active() -> None:
    found = one(claude, claude_conversations()[0])
    assert tree(found) == [
        ("q", None, ["u:Name a river."]),
        ("a1", "q", ["a:The Elbe."]),
        ("q2", "a1", ["u:Its source?"]),
        ("a2", "q", ["a:The Loire."]),
        ("edit", None, ["u:Name a lake."]),
    ]
    assert (found.key, found.name, found.active) == ("cl-tree", "About cl-tree", "a2")
    assert found.created_at == datetime(2026, 3, 1, 9, tzinfo=UTC)
    assert found.nodes[0].created_at == datetime(2026, 3, 1, 10, 0, 0, 500_000, UTC)


@pytest.mark.parametrize(("leaf", "active"), [("a1", "q2"), (None, "edit"), ("unknown", "edit")])
def test_claude_active_leaf_lies_below_the_current_one_else_below_the_last(leaf: str | None, active: str) -> None:
    assert one(claude, claude_conversations()[0] | {"current_leaf_message_uuid": leaf}).active == active


def test_claude_without_pointers_messages_follow_each_other_and_blocks_are_rows() -> None:
    found = one(claude, claude_conversations()[1])
    assert pairs(found) == [("q", None), ("a", "q"), ("b", "a")]
    assert [(row.role, row.content, row.tool_call_id, row.tool_name) for row in rows(found)] == [
        ("user", "pasted\n\n[file: map.png]", None, None),
        ("assistant", "Let me look.", None, None),
        ("assistant", '{"town": "Ulm"}', "t1", "weather"),
        ("tool", "rain", "t1", "weather"),
        ("assistant", "{}", "call:a:4", "clock"),
        ("tool", "noon", "call:a:4", "clock"),
        ("assistant", "Rain at noon.\n\n[image]", None, None),
        ("assistant", "Old export.", None, None),
    ]
    assert (found.name, found.active) == (None, "b")


def test_claude_texts_of_attachments_follow_the_messages_own() -> None:
    files = {"attachments": [{"file_name": "n.txt", "extracted_content": "notes"}]}
    found = one(claude, claude_conversation("c", [claude_message("q", "human", "Read this", **files)]))
    assert tree(found) == [("q", None, ["u:Read this\n\n[file: n.txt]\n\nnotes"])]


@pytest.mark.parametrize(
    ("change", "place", "reason"),
    [
        ({"sender": "robot"}, "chat_messages[1].sender", "unknown role 'robot'"),
        ({"uuid": None}, "chat_messages[1].uuid", "a message without an id"),
        ({"uuid": "q"}, "chat_messages[1].uuid", "the same id twice"),
        ({"created_at": "yesterday"}, "chat_messages[1].created_at", "not a time"),
        ({"content": "text"}, "chat_messages[1].content", "list expected, str found"),
        ({"content": [{"text": "x"}]}, "chat_messages[1].content[0]", "object with a type expected"),
        ({"content": [{"type": "text", "text": 3}]}, "chat_messages[1].content[0].text", "str expected, int found"),
        ({"files": ["x"]}, "chat_messages[1].files[0]", "object expected"),
        ({"parent_message_uuid": "gone"}, "chat_messages[1].parent_message_uuid",
         "a parent that is not in the conversation"),
        ({"parent_message_uuid": "a"}, "chat_messages[1].parent_message_uuid", "its parents form a cycle"),
    ],
)  # fmt: skip
def test_claude_a_broken_conversation_is_a_defect_and_the_next_is_read(change: Any, place: str, reason: str) -> None:
    messages = [claude_message("q", "human", "Hello"), claude_message("a", "assistant", "Good day") | change]
    values = [claude_conversation("c", messages), claude_conversations()[0]]
    defect, good = read(claude, Given("conversations.json", values))
    assert defect == Defect(1, place, reason)
    assert good.key == "cl-tree"


def test_claude_a_conversation_of_another_shape_is_a_defect() -> None:
    assert one(claude, {"uuid": "c"}).place == "chat_messages"
    assert one(claude, {"chat_messages": []}).place == "uuid"


@pytest.mark.parametrize("name", ["conversations.json", "export.zip", "unpacked"])
def test_claude_exports_read_the_same_from_a_file_archive_and_folder(tmp_path: Path, name: str) -> None:
    found = read(claude, open_source(write_claude(tmp_path / name)))
    assert found == read(claude, Given("x", claude_conversations()))
    assert [conversation.key for conversation in found] == ["cl-tree", "cl-list", "cl-empty"]


# Claude Code

SESSION = [
    ("u1", None, ["u:Read two files."]),
    ("r-text", "u1", ["a:I read both."]),
    ("r-call1", "r-text", ['a:{"n": "t1"}']),
    ("r-call2", "r-call1", ['a:{"n": "t2"}']),
    ("res1", "r-call2", ["t:done"]),
    ("res2", "res1", ["t:two\n\n[image]"]),
    ("a2", "res2", ["a:Both read."]),
    ("u-first", "a2", ["u:First wording"]),
    ("u-second", "a2", ["u:Second wording"]),
    ("cs", "u-second", ["u:Summary of it all"]),
    ("end", "cs", ["a:Going on."]),
    ("lost", None, ["u:After a lost line"]),
]


def test_claude_code_a_session_is_a_tree_and_its_side_chains_are_conversations() -> None:
    session, side, agent = read(claude_code, Given("s1.jsonl", claude_code_session()))
    assert tree(session) == SESSION
    assert (session.key, session.name, session.active, session.links) == ("s1", "Two files", "end", {})
    assert (side.key, side.name, side.links) == ("s1/side1", "side chain", {})
    assert tree(side) == [("side1", None, ["u:Look around"]), ("side2", "side1", ["a:Looked."])]
    assert (agent.key, agent.name, agent.links) == ("s1/ag", "agent ag", {})
    assert session.created_at == datetime(2026, 5, 1, 8, tzinfo=UTC)


def test_claude_code_a_reply_counts_its_tokens_once_and_calls_name_their_results() -> None:
    session = read(claude_code, Given("s1.jsonl", claude_code_session()))[0]
    found = {node.key: node.rows[0] for node in session.nodes}
    assert {key: row.token_count for key, row in found.items() if row.token_count} == {"r-call2": 40, "a2": 9, "end": 7}
    assert (found["res1"].tool_call_id, found["res1"].tool_name) == ("t1", "read")
    assert (found["r-call1"].tool_call_id, found["r-call1"].tool_name, found["r-call1"].model) == ("t1", "read", "opus")


def test_claude_code_results_that_hang_on_different_calls_stand_in_one_line() -> None:
    lines = [
        code_line("user", "u", None, "go"),
        code_line("assistant", "c1", "u", [call("1")], reply="m"),
        code_line("assistant", "c2", "c1", [call("2")], reply="m"),
        code_line("user", "r2", "c2", [result("2")]),
        code_line("user", "r1", "c1", [result("1")]),
        code_line("assistant", "next", "r2", "both"),
        code_line("user", "again", "c1", [result("1", "another time")]),
    ]
    assert pairs(one(claude_code, lines)) == [
        ("u", None), ("c1", "u"), ("c2", "c1"), ("r2", "c2"), ("r1", "r2"), ("next", "r1"), ("again", "c1"),
    ]  # fmt: skip


def test_claude_code_a_line_may_have_the_id_of_a_call() -> None:
    lines = [
        code_line("assistant", "c1", None, [call("next")], reply="m"),
        code_line("user", "r1", "c1", [result("next")]),
        code_line("user", "next", "r1", "thanks"),
    ]
    assert pairs(one(claude_code, lines)) == [("c1", None), ("r1", "c1"), ("next", "r1")]


def test_claude_code_a_result_before_the_replys_next_call_stays_in_line() -> None:
    lines = [
        code_line("assistant", "c1", None, [call("1")], reply="m", tokens=3),
        code_line("user", "r1", "c1", [result("1")]),
        code_line("assistant", "c2", "c1", [call("2")], reply="m", tokens=8),
        code_line("user", "r2", "c2", [result("2")]),
    ]
    found = one(claude_code, lines)
    assert pairs(found) == [("c1", None), ("r1", "c1"), ("c2", "r1"), ("r2", "c2")]
    assert [row.token_count for row in rows(found)] == [None, None, 8, None]


def test_claude_code_a_parent_may_stand_after_its_child() -> None:
    lines = [code_line("assistant", "b", "a", "second"), code_line("user", "a", None, "first")]
    assert pairs(one(claude_code, lines)) == [("a", None), ("b", "a")]


@pytest.mark.parametrize(
    ("added", "name"),
    [
        ([], None),
        ([{"type": "summary", "summary": "One", "leafUuid": "u"}], "One"),
        ([{"type": "summary", "summary": "Another's", "leafUuid": "elsewhere"}], None),
        ([{"type": "ai-title", "aiTitle": "Made", "sessionId": "s1"}], "Made"),
        ([{"type": "custom-title", "customTitle": "Mine", "sessionId": "s1"},
          {"type": "summary", "summary": "One", "leafUuid": "u"}], "Mine"),
    ],
)  # fmt: skip
def test_claude_code_titles_and_summaries_name_the_session(added: list[Any], name: str | None) -> None:
    assert one(claude_code, [*added, code_line("user", "u", None, "hello")]).name == name


def test_claude_code_a_summary_in_another_file_names_the_session() -> None:
    first = [code_line("user", "u", None, "hello")]
    second = [{"type": "summary", "summary": "One", "leafUuid": "u"},
              code_line("user", "v", None, "hello", sessionId="s2")]  # fmt: skip
    assert [(found.key, found.name) for found in read(claude_code, folder(s1=first, s2=second))] == [
        ("s1", "One"), ("s2", None)]  # fmt: skip


def test_claude_code_a_folder_links_forks_and_resumed_sessions_and_keeps_the_rest_of_a_defective_one(
    tmp_path: Path,
) -> None:
    found = read(claude_code, open_source(write_claude_code(tmp_path / "sessions")))
    by_key = {made.key: made for made in found if isinstance(made, Conversation)}
    assert list(by_key) == ["s1", "s1/side1", "s1/ag", "a-fork", "wrong/good", "b-resumed"]
    assert tree(by_key["s1"]) == SESSION
    assert (tree(by_key["a-fork"]), by_key["a-fork"].links) == (
        [("f-new", None, ["u:Another way"])], {"f-new": ("s1", "res2")})  # fmt: skip
    assert (tree(by_key["b-resumed"]), by_key["b-resumed"].links) == (
        [("b-new", None, ["u:Next day"])], {"b-new": ("s1", "end")})  # fmt: skip
    assert [made for made in found if isinstance(made, Defect)] == [Defect(2, "message.role", "unknown role 'robot'")]


def test_claude_code_a_fork_keeps_its_copies_where_the_original_is_not_there() -> None:
    fork = {"sessionId": "s2", "forkedFrom": {"sessionId": "s1", "messageUuid": "u"}}
    lines = [code_line("user", "u", None, "hello", **fork), code_line("assistant", "a", "u", "yes", sessionId="s2")]
    (found,) = read(claude_code, Given("s2.jsonl", lines))
    assert (found.key, pairs(found), found.links) == ("s2", [("u", None), ("a", "u")], {})


def test_claude_code_a_fork_of_a_fork_goes_back_to_the_original_whatever_the_files_are_called() -> None:
    origin = [code_line("user", "u", None, "hello", sessionId="z"),
              code_line("assistant", "late", "u", "yes", sessionId="z", timestamp="2026-06-01T00:00:00Z")]  # fmt: skip
    first = [code_line("user", "v", None, "hello", sessionId="y", forkedFrom={"sessionId": "z", "messageUuid": "u"}),
             code_line("user", "y1", "v", "one", sessionId="y")]  # fmt: skip
    second = [code_line("user", "w", None, "hello", sessionId="x", forkedFrom={"sessionId": "y", "messageUuid": "v"}),
              code_line("user", "x1", "w", "two", sessionId="x")]  # fmt: skip
    found = read(claude_code, folder(x=second, y=first, z=origin))
    assert [(made.key, pairs(made), made.links) for made in found] == [
        ("z", [("u", None), ("late", "u")], {}),
        ("y", [("y1", None)], {"y1": ("z", "u")}),
        ("x", [("x1", None)], {"x1": ("z", "u")}),
    ]


def test_claude_code_sessions_that_name_each_other_are_read_all_the_same() -> None:
    found = read(claude_code, folder(
        s1=[code_line("user", "u", "v", "hello", sessionId="s1")],
        s2=[code_line("user", "v", "u", "hello", sessionId="s2")],
    ))  # fmt: skip
    assert [(made.key, made.links) for made in found] == [("s2", {}), ("s1", {"u": ("s2", "v")})]


def test_claude_code_a_compaction_may_go_back_to_a_line_that_is_gone() -> None:
    lines = [
        code_line("user", "u", None, "hello"),
        code_line("system", "cb", None, subtype="compact_boundary", logicalParentUuid="gone"),
        code_line("user", "cs", "cb", "summary"),
    ]
    assert pairs(one(claude_code, lines)) == [("u", None), ("cs", None)]


def test_claude_code_an_agents_file_is_named_by_the_session_it_works_for() -> None:
    line = code_line("user", "u", None, "task", sessionId="s1", isSidechain=True, agentId="x7")
    (found,) = read(claude_code, Given("subagents/agent-x7.jsonl", [line]))
    assert (found.key, found.name) == ("s1/x7", "agent x7")


def test_claude_code_an_agent_goes_on_from_its_own_lines_in_another_file_but_not_from_the_session() -> None:
    side = {"isSidechain": True, "agentId": "x7"}
    session = [code_line("user", "u", None, "hello"), code_line("user", "t", "u", "task", **side)]
    agent = [code_line("user", "t", "u", "task", **side), code_line("assistant", "d", "t", "done", **side)]
    found = read(claude_code, folder(s1=session, t_agent=agent))
    assert [(made.key, pairs(made), made.links) for made in found] == [
        ("s1", [("u", None)], {}),
        ("s1/x7", [("t", None)], {}),
        ("s1/x7", [("d", None)], {"d": ("s1/x7", "t")}),
    ]


@pytest.mark.parametrize(
    ("line", "place", "reason"),
    [
        (["no object"], "", "object expected, list found"),
        (code_line("user", "u", None, "x") | {"message": {"role": "robot"}}, "message.role", "unknown role 'robot'"),
        (code_line("user", "u", None, "x") | {"message": None}, "message.role", "unknown role None"),
        (code_line("user", "u", None, "x") | {"uuid": None}, "uuid", "a message without an id"),
        (code_line("user", "u", None, "x") | {"parentUuid": 3}, "parentUuid", "str expected, int found"),
        (code_line("user", "u", None, "x") | {"timestamp": "noon"}, "timestamp", "not a time"),
        (
            code_line("user", "u", None, [call("1")]),
            "message.content[0].type",
            "a tool call that is not an assistant's",
        ),
        (code_line("user", "u", None, [3]), "message.content[0]", "object with a type expected"),  # type: ignore[list-item]
    ],
)
def test_claude_code_a_malformed_line_is_a_defect_of_its_session_alone(line: Any, place: str, reason: str) -> None:
    good = code_line("user", "ag1", None, "task", isSidechain=True, agentId="ag")
    defect, agent = read(claude_code, Given("s1.jsonl", [code_line("user", "q", None, "x"), line, good]))
    assert defect == Defect(2, place, reason)
    assert agent.key == "s1/ag"


def test_claude_code_parents_in_a_cycle_are_a_defect() -> None:
    assert one(claude_code, [code_line("user", "a", "b", "x"), code_line("user", "b", "a", "y")]) == Defect(
        None, "parentUuid", "line a: its parents form a cycle")  # fmt: skip


# All of them


def test_each_format_knows_its_own_first_value_only() -> None:
    values: dict[Any, list[Any]] = {
        chatgpt: [chatgpt_conversations()[0]],
        claude: [claude_conversations()[0]],
        claude_code: [*claude_code_session()[:4], {"type": "permission-mode", "sessionId": "s1"}],
        None: [{}, [], "x", None, 3, {"messages": []}, {"type": "text", "text": "x"}, {"mapping": 3}],
    }
    for of, given in values.items():
        for value in given:
            assert [module for module in (chatgpt, claude, claude_code) if module.matches(value)] == (
                [of] if of else []
            )


def long_chatgpt() -> Any:
    links = [(str(n), str(n - 1) if n else None, gpt_message("user", "x")) for n in range(MANY)]
    return gpt_conversation("long", links)


def long_claude() -> Any:
    return claude_conversation("long", [claude_message(str(n), "human", "x") for n in range(MANY)])


def long_claude_code() -> Any:
    return [code_line("user", str(n), str(n - 1) if n else None, "x") for n in range(MANY)]


@pytest.mark.parametrize(
    ("module", "make"), [(chatgpt, long_chatgpt), (claude, long_claude), (claude_code, long_claude_code)]
)
def test_a_chain_of_50_000_messages_is_read(module: ModuleType, make: Any) -> None:
    found = one(module, make())
    assert pairs(found) == [(str(n), str(n - 1) if n else None) for n in range(MANY)]
    assert found.active == str(MANY - 1)


@pytest.mark.parametrize("cut", range(4, 24))
def test_a_session_that_grows_keeps_its_keys_and_parents(cut: int) -> None:
    lines = [line for line in claude_code_session() if line["type"] != "summary"]
    before, after = (
        {(made.key, *pair) for made in read(claude_code, Given("s1.jsonl", part)) for pair in pairs(made)}
        for part in (lines[:cut], lines)
    )
    assert before <= after


@pytest.mark.parametrize(("module", "make"), [(chatgpt, chatgpt_conversations), (claude, claude_conversations)])
def test_an_export_that_grows_keeps_its_keys_and_rows(module: ModuleType, make: Any) -> None:
    before = read(module, Given("x", make()))
    more = make()
    if module is chatgpt:
        more[0]["mapping"]["new"] = {"parent": "a2", "children": [], "message": gpt_message("user", "More")}
    else:
        more[0]["chat_messages"].append(claude_message("new", "human", "More", parent_message_uuid="a2"))
    after = read(module, Given("x", more))
    assert [made.key for made in after] == [made.key for made in before]
    assert [node for node in after[0].nodes if node.key != "new"] == before[0].nodes
    assert after[1:] == before[1:]
