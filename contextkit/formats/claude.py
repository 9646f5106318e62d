"""Claude.ai's data export: `conversations.json`, also in the folder or zip it comes in.

Kept: texts (from the content blocks, else from `text`), tool calls (content: the input as JSON) and their results, in
the blocks' order; the extracted text of attachments and the names of attachments and files ("[file: name]") after the
text. A block that is no text is named in brackets ("[image]"). A call without an id gets one made of its message's,
and so does its result. `parent_message_uuid` makes the tree where any message has it, else each message follows the
one before it.

Dropped: thinking and token budgets, messages that nothing is left of (their children move up), citations, projects
and every other file of the export.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from contextkit.formats.conversation import Conversation, Defect, DefectiveError, Row
from contextkit.formats.drafts import Draft, field, grow, leaf_below, moment, read_export

if TYPE_CHECKING:
    from contextkit.formats.files import Source

ROLES = {"human": "user", "user": "user", "assistant": "assistant"}
NO_PARENT = {"00000000-0000-4000-8000-000000000000", "00000000-0000-0000-0000-000000000000"}
DROPPED = {"thinking", "redacted_thinking", "token_budget", "flag"}


def matches(value: object) -> bool:
    """Whether a file's first value is a conversation of this format."""
    return isinstance(value, dict) and isinstance(value.get("chat_messages"), list)


def read(source: "Source") -> Iterator[Conversation | Defect]:
    """Conversations of an export, one at a time, in the files' order."""
    return read_export(source, conversation_of)


def conversation_of(value: object) -> Conversation:
    """The tree of one element of the export."""
    if not isinstance(value, dict) or not isinstance(value.get("chat_messages"), list):
        raise DefectiveError("chat_messages", "no conversation: object with chat_messages expected")
    key = field(value, "uuid", str)
    if not key:
        raise DefectiveError("uuid", "a conversation without an id")
    drafts: dict[str, Draft] = {}
    pointers = False
    for number, message in enumerate(value["chat_messages"]):
        draft = draft_of(message, f"chat_messages[{number}]")
        pointers |= isinstance(message.get("parent_message_uuid"), str)
        if drafts.setdefault(draft.key, draft) is not draft:
            raise DefectiveError(f"chat_messages[{number}].uuid", "the same id twice")
    if not pointers:
        for before, after in pairwise(drafts.values()):
            after.parent = before.key
    for number, draft in enumerate(drafts.values()):
        if draft.parent is not None and draft.parent not in drafts:
            raise DefectiveError(
                f"chat_messages[{number}].parent_message_uuid", "a parent that is not in the conversation"
            )
    try:
        nodes, spots, _ = grow(drafts.values())
    except DefectiveError as error:
        number = list(drafts).index(error.place)
        raise DefectiveError(f"chat_messages[{number}].parent_message_uuid", error.reason) from None
    chosen = spots.get(field(value, "current_leaf_message_uuid", str) or "")
    if chosen is None and drafts:
        chosen = spots[next(reversed(drafts))]
    active = leaf_below(nodes, chosen) or (nodes[-1].key if nodes else None)
    return Conversation(
        key, field(value, "name", str) or None, nodes, active, moment(value.get("created_at"), "created_at")
    )


def draft_of(message: object, place: str) -> Draft:
    """A message and what it is stored as."""
    if not isinstance(message, dict):
        raise DefectiveError(place, "object expected")
    key = field(message, "uuid", str, f"{place}.")
    if not key:
        raise DefectiveError(f"{place}.uuid", "a message without an id")
    sender = message.get("sender")
    if not isinstance(sender, str) or sender not in ROLES:
        raise DefectiveError(f"{place}.sender", f"unknown role {sender!r:.40}")
    parent = field(message, "parent_message_uuid", str, f"{place}.")
    role = ROLES[sender]
    text = field(message, "text", str, f"{place}.") or ""
    rows = block_rows(field(message, "content", list, f"{place}.") or [], role, key, {}, f"{place}.content")
    if not rows and text.strip():
        rows = [Row(role, text)]
    if enclosed := enclosures(message, place):
        if rows and rows[-1].tool_call_id is None:
            enclosed = f"{rows.pop().content}\n\n{enclosed}"
        rows.append(Row(role, enclosed))
    created_at = moment(message.get("created_at"), f"{place}.created_at")
    return Draft(key, None if parent in NO_PARENT else parent, tuple(rows), created_at)


def enclosures(message: dict[str, Any], place: str) -> str:
    """Names of what a message came with, each followed by its text where the export has it."""
    texts = []
    for name in ("attachments", "files"):
        for number, file in enumerate(field(message, name, list, f"{place}.") or []):
            where = f"{place}.{name}[{number}]."
            if not isinstance(file, dict):
                raise DefectiveError(where[:-1], "object expected")
            title = field(file, "file_name", str, where)
            text = field(file, "extracted_content", str, where)
            texts += [f"[file: {title}]"] if title else []
            texts += [text] if text else []
    return "\n\n".join(texts)


def message_rows(message: dict[str, Any], key: str, tools: dict[str, str]) -> list[Row]:
    """Rows of a message as the API has it; calls are added to the tools' names."""
    role, content, model = message.get("role"), message.get("content"), field(message, "model", str, "message.")
    if role not in ("user", "assistant"):
        raise DefectiveError("message.role", f"unknown role {role!r:.40}")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise DefectiveError("message.content", "text or blocks expected")
    rows = block_rows(content, role, key, tools, "message.content")
    if model is None or model == "<synthetic>":
        return rows
    return [replace(row, model=model) if row.role == "assistant" else row for row in rows]


def block_rows(blocks: list[Any], role: str, key: str, names: dict[str, str], place: str) -> list[Row]:
    """Rows of a message's content blocks: runs of text, calls and results, in the blocks' order.

    Args:
        blocks: the content.
        role: of the text.
        key: the message's, which ids of calls without one are made of.
        names: of the tools by the calls' ids so far; calls are added.
        place: of the content, for errors.
    """
    rows: list[Row] = []
    texts: list[str] = []
    call_id: str | None = None
    for number, block in enumerate(blocks):
        where = f"{place}[{number}]."
        if not isinstance(block, dict) or not isinstance(block.get("type"), str):
            raise DefectiveError(where[:-1], "object with a type expected")
        kind = block["type"]
        if kind in DROPPED:
            continue
        if not kind.endswith(("tool_use", "tool_result")):
            texts.append(block_text(block, where))
            continue
        rows += [Row(role, "\n\n".join(texts))] if any(text.strip() for text in texts) else []
        texts = []
        if kind.endswith("tool_use"):
            if role != "assistant":
                raise DefectiveError(f"{where}type", "a tool call that is not an assistant's")
            call_id = str(field(block, "id", str, where) or f"call:{key}:{number}")
            names[call_id] = field(block, "name", str, where) or ""
            arguments = json.dumps(block.get("input"), ensure_ascii=False)
            rows.append(Row("assistant", arguments, call_id, names[call_id] or None))
        else:
            given = field(block, "tool_use_id", str, where) or call_id
            name = field(block, "name", str, where) or names.get(given or "")
            rows.append(Row("tool", result_text(block.get("content"), f"{where}content"), given, name or None))
    return rows + ([Row(role, "\n\n".join(texts))] if any(text.strip() for text in texts) else [])


def block_text(block: dict[str, Any], place: str) -> str:
    """The text of a block, or what it is in brackets."""
    text = field(block, "text", str, place)
    return f"[{block.get('type')}]" if text is None else str(text)


def result_text(content: object, place: str) -> str:
    """The text of a tool's result: as it is, of its blocks, or as JSON."""
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, list) and all(isinstance(block, dict) for block in content):
        texts = [block_text(block, f"{place}[{number}].") for number, block in enumerate(content)]
        return "\n\n".join(text for text in texts if text)
    return json.dumps(content, ensure_ascii=False)
