"""What each format of JSON records is read into: no database here."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from contextkit.formats import FORMATS
from contextkit.formats.conversation import Conversation, Defect, Row
from contextkit.formats.files import open_source


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "file.jsonl"


def read(format: str, file: Path, *records: Any) -> list[Conversation | Defect]:
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return list(FORMATS[format].read(open_source(file)))


def one(format: str, file: Path, record: Any) -> Conversation:
    (conversation,) = read(format, file, record)
    assert isinstance(conversation, Conversation), conversation
    return conversation


def rows(conversation: Conversation | Defect) -> list[Row]:
    """Rows of a tree that is one path."""
    assert isinstance(conversation, Conversation)
    assert [node.parent for node in conversation.nodes[1:]] == [node.key for node in conversation.nodes[:-1]]
    return [row for node in conversation.nodes for row in node.rows]


def paths(conversation: Conversation | Defect) -> list[list[str]]:
    """Contents from root to leaf, by the order of nodes."""
    assert isinstance(conversation, Conversation)
    reached: dict[str | None, list[str]] = {None: []}
    for node in conversation.nodes:
        reached[node.key] = reached[node.parent] + [row.content for row in node.rows]
    inner = {node.parent for node in conversation.nodes}
    return [path for key, path in reached.items() if key not in inner and key is not None]


def chat(*messages: tuple[str, str], **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in messages], **fields}


def turns(*given: tuple[str, str], **fields: Any) -> dict[str, Any]:
    return {"conversations": [{"from": speaker, "value": value} for speaker, value in given], **fields}


# Recognising


@pytest.mark.parametrize(
    ("value", "format"),
    [
        ({"message_tree_id": "a", "prompt": {"message_id": "a"}}, "oasst"),
        ({"message_id": "a", "parent_id": None, "text": "x", "role": "prompter"}, "oasst"),
        (chat(("user", "x")), "openai"),
        ({"input": {"messages": []}, "preferred_output": [], "non_preferred_output": []}, "openai"),
        (turns(("human", "x")), "sharegpt"),
        ({"name": "somebody"}, None),
        ([], None),
        ("text", None),
        (None, None),
        ({"messages": "x", "conversations": 1, "prompt": 2}, None),
    ],
)
def test_each_record_is_of_one_format(value: object, format: str | None) -> None:
    assert [name for name, reader in FORMATS.items() if reader.matches(value)] == ([format] if format else [])


# oasst


def test_nested_and_flat_trees_are_the_same_conversation(file: Path) -> None:
    message: dict[str, Any] = {"role": "assistant", "text": "x", "lang": "en"}
    late, early = message | {"message_id": "b", "rank": 1}, message | {"message_id": "c", "rank": 0}
    unranked = message | {"message_id": "d", "rank": None, "model_name": "m"}
    below = {"message_id": "e", "role": "prompter", "text": "y"}
    prompt: dict[str, Any] = {"message_id": "a", "role": "prompter", "text": "x"}
    nested = {
        "message_tree_id": "a",
        "prompt": prompt | {"replies": [unranked, late | {"replies": [below]}, early | {"replies": []}]},
    }
    flat = [
        below | {"parent_id": "b"},
        *(reply | {"parent_id": "a", "message_tree_id": "a"} for reply in (unranked, late, early)),
        prompt,
    ]
    tree = one("oasst", file, nested)
    assert [node.key for node in tree.nodes] == ["a", "c", "b", "e", "d"]
    assert (tree.key, tree.active) == ("a", "c")
    assert tree.nodes[-1].rows == (Row("assistant", "x", model="m"),)
    assert tree.nodes[0].rows[0].role == "user"
    assert read("oasst", file, *flat) == [tree]


def test_equal_ranks_keep_the_order_of_the_file(file: Path) -> None:
    replies = [{"message_id": key, "role": "assistant", "text": key, "rank": 0} for key in "bcd"]
    prompt = {"message_id": "a", "role": "prompter", "text": "x", "replies": replies}
    assert [node.key for node in one("oasst", file, {"prompt": prompt}).nodes] == ["a", "b", "c", "d"]


def test_deleted_messages_and_times(file: Path) -> None:
    given = {
        "message_id": "a",
        "role": "prompter",
        "text": None,
        "deleted": True,
        "created_date": "2023-02-05T14:00:00Z",
    }
    (node,) = one("oasst", file, given).nodes
    assert node.created_at == node.deleted_at == datetime(2023, 2, 5, 14, tzinfo=UTC)
    assert node.rows == (Row("user", ""),)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"role": "narrator"}, "role"),
        ({"role": None}, "role"),
        ({"text": 1}, "text"),
        ({"text": None}, "text"),
        ({"message_id": ""}, "message_id"),
        ({"message_id": 5}, "message_id"),
        ({"rank": "first"}, "rank"),
        ({"created_date": "yesterday"}, "created_date"),
        ({"parent_id": "nowhere"}, "parent_id"),
        ({"model_name": []}, "model_name"),
    ],
)
def test_a_defect_of_oasst_names_line_and_field(file: Path, change: dict[str, Any], place: str) -> None:
    good = {"message_id": "g", "role": "prompter", "text": "x"}
    found = read("oasst", file, good, {"message_id": "a", "role": "prompter", "text": "x"} | change)
    (defect,) = (item for item in found if isinstance(item, Defect))
    assert (defect.line, defect.place) == (2, place)
    assert len(found) == 2


def test_messages_in_a_ring_are_a_defect(file: Path) -> None:
    message = {"role": "prompter", "text": "x"}
    ring = [message | {"message_id": "a", "parent_id": "b"}, message | {"message_id": "b", "parent_id": "a"}]
    assert all(isinstance(item, Defect) for item in read("oasst", file, *ring))


# openai


def test_roles_parts_calls_and_results_of_openai(file: Path) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "search", "arguments": '{"q": 1}'}}
    custom = {"id": "2", "type": "custom", "custom": {"name": "run", "input": "ls"}}
    record = {
        "model": "m",
        "messages": [
            {"role": "developer", "content": "be short"},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "look:"},
                    {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                ],
            },
            {"role": "assistant", "content": "let me see", "tool_calls": [call, custom]},
            {"role": "tool", "tool_call_id": "1", "content": "found"},
            {"role": "assistant", "content": None, "function_call": {"name": "old", "arguments": "{}"}},
            {"role": "function", "name": "old", "content": "done"},
            {"role": "assistant", "content": None, "refusal": "no"},
        ],
    }
    assert rows(one("openai", file, record)) == [
        Row("system", "be short"),
        Row("user", "look:\n[image_url: https://x/y.png]\n[image_url]"),
        Row("assistant", "let me see", model="m"),
        Row("assistant", '{"q": 1}', "1", "search", model="m"),
        Row("assistant", "ls", "2", "run", model="m"),
        Row("tool", "found", "1"),
        Row("assistant", "{}", None, "old", model="m"),
        Row("tool", "done", None, "old"),
        Row("assistant", "no", model="m"),
    ]


def test_tool_definitions_are_a_system_message(file: Path) -> None:
    first = rows(one("openai", file, chat(("user", "x"), tools=[{"type": "function"}])))[0]
    assert first == Row("system", '[{"type": "function"}]', tool_name="tools")


def test_a_preference_line_is_two_siblings_the_preferred_first(file: Path) -> None:
    record = {
        "input": chat(("user", "which?")),
        "preferred_output": chat(("assistant", "this"), ("user", "thanks"))["messages"],
        "non_preferred_output": chat(("assistant", "that"))["messages"],
    }
    conversation = one("openai", file, record)
    assert paths(conversation) == [["which?", "this", "thanks"], ["which?", "that"]]
    assert conversation.active == conversation.nodes[2].key
    equal = one("openai", file, record | {"preferred_output": record["non_preferred_output"]})
    assert paths(equal) == [["which?", "that"]] * 2


def test_lines_without_ids_are_known_again_when_they_grow(file: Path) -> None:
    begin, grown = chat(("system", "s"), ("user", "x")), chat(("system", "s"), ("user", "x"), ("assistant", "y"))
    once, twice = read("openai", file, begin, begin)
    assert isinstance(once, Conversation)
    assert isinstance(twice, Conversation)
    assert once.key != twice.key
    again, _ = read("openai", file, grown, begin)
    assert isinstance(again, Conversation)
    assert again.key == once.key
    assert again.nodes[:2] == once.nodes
    edited = one("openai", file, chat(("system", "s"), ("user", "x"), ("assistant", "Y")))
    assert edited.key == once.key
    assert edited.nodes[2].key != again.nodes[2].key
    assert one("openai", file, begin | {"id": 7}).key == "7"


@pytest.mark.parametrize(
    ("record", "place"),
    [
        ("x", ""),
        ({}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": ["x"]}, "messages[0]"),
        (chat(("narrator", "x")), "messages[0].role"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [5]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "assistant", "tool_calls": 5}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0].tool_calls[0].function"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": 5}]}, "messages[0].tool_call_id"),
        ({"input": chat(("user", "x")), "preferred_output": "y"}, "preferred_output"),
    ],
)
def test_a_defect_of_openai_names_line_and_field(file: Path, record: Any, place: str) -> None:
    good, defect = read("openai", file, chat(("user", "good")), record)
    assert isinstance(good, Conversation)
    assert isinstance(defect, Defect)
    assert (defect.line, defect.place) == (2, place)


# sharegpt


def test_speakers_system_and_tools_of_sharegpt(file: Path) -> None:
    call = json.dumps({"name": "search", "arguments": {"q": "é"}})
    several = json.dumps([{"name": "a", "arguments": "1"}, {"name": "b", "arguments": "2"}])
    record = turns(
        ("human", "x"),
        ("function_call", call),
        ("observation", "found"),
        ("tool_call", several),
        ("function", "one"),
        ("tool", "two"),
        ("gpt", "y"),
        system="be short",
        tools="[]",
    )
    assert rows(one("sharegpt", file, record)) == [
        Row("system", "be short"),
        Row("system", "[]", tool_name="tools"),
        Row("user", "x"),
        Row("assistant", '{"q": "é"}', "call_1", "search"),
        Row("tool", "found", "call_1", "search"),
        Row("assistant", "1", "call_2", "a"),
        Row("assistant", "2", "call_3", "b"),
        Row("tool", "one", "call_2", "a"),
        Row("tool", "two", "call_3", "b"),
        Row("assistant", "y"),
    ]


def test_chosen_and_rejected_are_siblings(file: Path) -> None:
    answers = {"rejected": {"from": "gpt", "value": "that"}, "chosen": {"from": "gpt", "value": "this"}}
    conversation = one("sharegpt", file, turns(("human", "which?"), **answers))
    assert paths(conversation) == [["which?", "this"], ["which?", "that"]]
    assert conversation.active == conversation.nodes[1].key


def test_an_array_is_read_as_lines_are(file: Path) -> None:
    records = [turns(("human", "x"), id="1"), turns(("human", "x"))]
    lines = read("sharegpt", file, *records)
    file.write_text(json.dumps(records))
    assert list(FORMATS["sharegpt"].read(open_source(file))) == lines


@pytest.mark.parametrize(
    ("record", "place"),
    [
        ({}, "conversations"),
        (turns(("narrator", "x")), "conversations[0].from"),
        ({"conversations": [{"value": "x"}]}, "conversations[0].from"),
        ({"conversations": [{"from": "human"}]}, "conversations[0].value"),
        ({"conversations": [5]}, "conversations[0]"),
        (turns(("human", "x"), system=5), "system"),
        (turns(("human", "x"), chosen="y"), "chosen[0]"),
    ],
)
def test_a_defect_of_sharegpt_names_line_and_field(file: Path, record: Any, place: str) -> None:
    good, defect = read("sharegpt", file, turns(("human", "good")), record)
    assert isinstance(good, Conversation)
    assert isinstance(defect, Defect)
    assert (defect.line, defect.place) == (2, place)
