"""ChatGPT's data export: `conversations.json`, also split into several files, also in the folder or zip it comes in.

Kept: the texts of user, assistant, system and tool messages, as a tree. Code, execution output, quotes and browsing
results are their text, a quote with its title and address before it; a part that is no text is named in brackets
("[image]", "[audio]"), and so is a content type of tomorrow without any text. An assistant's message to a recipient
other than "all" is a tool call, named by the recipient, its id made of the node's; the tool message right below it
has the same id, a second one below that has none.

Dropped, children moving up to the nearest kept ancestor: nodes without a message, hidden ones
(`is_visually_hidden_from_conversation`, `weight` 0), messages without text (unless a call or an execution's output),
thoughts and reasoning recaps, and what the product itself puts in (`user_editable_context`,
`model_editable_context`). Not kept: names of attached files, feedback, and every other file of the export. A
conversation without any kept message is none.
"""

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from contextkit.formats.conversation import Conversation, Defect, DefectiveError, Node, Row
from contextkit.formats.drafts import Draft, field, grow, leaf_below, moment, read_export

if TYPE_CHECKING:
    from contextkit.formats.files import Source

ROLES = {"user": "user", "assistant": "assistant", "system": "system", "tool": "tool", "developer": "system"}
DROPPED = {"thoughts", "reasoning_recap", "user_editable_context", "model_editable_context"}
KINDS = ("image", "audio", "video")


def matches(value: object) -> bool:
    """Whether a file's first value is a conversation of this format."""
    return isinstance(value, dict) and isinstance(value.get("mapping"), dict)


def read(source: "Source") -> Iterator[Conversation | Defect]:
    """Conversations of an export, one at a time, in the files' order."""
    return read_export(source, conversation_of)


def conversation_of(value: object) -> Conversation:
    """The tree of one element of the export."""
    if not isinstance(value, dict) or not isinstance(value.get("mapping"), dict):
        raise DefectiveError("mapping", "no conversation: object with a mapping expected")
    key = field(value, "conversation_id", str) or field(value, "id", str)
    if not key:
        raise DefectiveError("id", "a conversation without an id")
    ranks: dict[str, int] = {}
    drafts = []
    for name, entry in value["mapping"].items():
        place = f"mapping.{name:.60}."
        if not isinstance(entry, dict):
            raise DefectiveError(place[:-1], "object expected")
        parent = field(entry, "parent", str, place)
        if parent is not None and parent not in value["mapping"]:
            raise DefectiveError(f"{place}parent", "a parent that is not in the mapping")
        for rank, child in enumerate(field(entry, "children", list, place) or []):
            if not isinstance(child, str):
                raise DefectiveError(f"{place}children[{rank}]", "text expected")
            ranks[child] = rank
        message = field(entry, "message", dict, place)
        rows, created_at = ((), None) if message is None else rows_of(message, name, f"{place}message.")
        drafts.append(Draft(name, parent, rows, created_at))
    drafts.sort(key=lambda draft: ranks.get(draft.key, len(ranks)))
    try:
        nodes, spots, _ = grow(drafts)
    except DefectiveError as error:
        raise DefectiveError(f"mapping.{error.place:.60}.parent", error.reason) from None
    active = leaf_below(nodes, spots.get(field(value, "current_node", str) or "")) or (nodes[-1].key if nodes else None)
    title = field(value, "title", str) or None
    return Conversation(key, title, answered(nodes), active, moment(value.get("create_time"), "create_time"))


def rows_of(message: dict[str, Any], key: str, place: str) -> tuple[tuple[Row, ...], datetime | None]:
    """Rows of a message, none if it is dropped, and its time."""
    author, content = (field(message, name, dict, place) or {} for name in ("author", "content"))
    metadata = field(message, "metadata", dict, place) or {}
    role = author.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise DefectiveError(f"{place}author.role", f"unknown role {role!r:.40}")
    created_at = moment(message.get("create_time"), f"{place}create_time")
    kind = field(content, "content_type", str, f"{place}content.")
    hidden = metadata.get("is_visually_hidden_from_conversation") is True or message.get("weight") == 0
    if hidden or kind in DROPPED:
        return (), created_at
    text = text_of(content, f"{place}content.")
    recipient = field(message, "recipient", str, place) or "all"
    if role == "assistant":
        model = field(metadata, "model_slug", str, f"{place}metadata.")
        if recipient != "all":
            return (Row(role, text, f"call:{key}", recipient, model=model),), created_at
        return ((Row(role, text, model=model),) if text.strip() else ()), created_at
    if not text.strip() and kind != "execution_output":
        return (), created_at
    name = field(author, "name", str, f"{place}author.") if role == "tool" else None
    return (Row(ROLES[role], text, tool_name=name),), created_at


def text_of(content: dict[str, Any], place: str) -> str:
    """The text of a message's content, its parts a blank line apart."""
    kind = field(content, "content_type", str, place)
    texts = []
    for number, part in enumerate(field(content, "parts", list, place) or []):
        if not isinstance(part, str | dict):
            raise DefectiveError(f"{place}parts[{number}]", "text or object expected")
        texts.append(part if isinstance(part, str) else part_text(part))
    if kind == "tether_quote":
        texts += [field(content, name, str, place) or "" for name in ("title", "url")]
    texts += [field(content, name, str, place) or "" for name in ("text", "result")]
    if kind is not None and not {"parts", "text", "result"} & content.keys():
        return f"[{kind}]"
    return "\n\n".join(text for text in texts if text)


def part_text(part: dict[str, Any]) -> str:
    """The text of a part, or what it is in brackets."""
    if isinstance(part.get("text"), str):
        return str(part["text"])
    kind = str(part.get("content_type") or "part")
    return f"[{next((word for word in KINDS if word in kind), kind)}]"


def answered(nodes: list[Node]) -> list[Node]:
    """The nodes, a tool's message directly below a call with the call's id."""
    calls: dict[str | None, str | None] = {
        node.key: row.tool_call_id
        for node in nodes
        for row in node.rows
        if row.role == "assistant" and row.tool_call_id
    }
    return [
        replace(node, rows=(replace(node.rows[0], tool_call_id=calls[node.parent]),))
        if node.parent in calls and node.rows[0].role == "tool"
        else node
        for node in nodes
    ]
