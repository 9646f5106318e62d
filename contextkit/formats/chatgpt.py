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

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from contextkit.formats.conversation import Conversation, Defect, Node, Row

if TYPE_CHECKING:
    from contextkit.formats.files import Source

ROLES = {"user": "user", "assistant": "assistant", "system": "system", "tool": "tool", "developer": "system"}
DROPPED = {"thoughts", "reasoning_recap", "user_editable_context", "model_editable_context"}
KINDS = ("image", "audio", "video")
NAME = re.compile(r"conversations([-_]?\d+)?\.json(\.gz)?")

Spot = str | tuple[str, str] | None
"""Where a source's message ended up: a node's key, another conversation's key and its node's, or nowhere."""


class ShapeError(Exception):
    """A conversation is not of its format's shape; becomes a Defect."""

    def __init__(self, place: str, reason: str) -> None:
        """Say where and what, without the content."""
        super().__init__(place, reason)
        self.place, self.reason = place, reason


@dataclass(slots=True)
class Draft:
    """A node as its source has it: perhaps without rows, its parent perhaps dropped or unknown."""

    key: str
    parent: str | None
    rows: tuple[Row, ...]
    created_at: datetime | None


def matches(value: object) -> bool:
    """Whether a file's first value is a conversation of this format."""
    return isinstance(value, dict) and isinstance(value.get("mapping"), dict)


def read(source: "Source") -> Iterator[Conversation | Defect]:
    """Conversations of an export, one at a time, in the files' order."""
    return read_each(source, conversation_of)


def read_each(source: "Source", made: Callable[[object], Conversation]) -> Iterator[Conversation | Defect]:
    """What is made of each value of an export's only file, or of its files that are named conversations."""
    files = list(source.files())
    if len(files) > 1:
        files = [file for file in files if NAME.fullmatch(PurePosixPath(file.name).name)]
    if not files:
        yield Defect(None, "", "no conversations.json among the files of the export")
    for file in files:
        for line, value in file.records():
            try:
                yield made(value)
            except ShapeError as error:
                yield Defect(line, error.place, error.reason)


def field(value: Mapping[str, Any], name: str, kind: type, place: str = "") -> Any:
    """A field of the kind, or None where it is absent or null."""
    found = value.get(name)
    if found is not None and not isinstance(found, kind):
        raise ShapeError(f"{place}{name}", f"{kind.__name__} expected, {type(found).__name__} found")
    return found


def moment(value: object, place: str) -> datetime | None:
    """A time in seconds since 1970 or as ISO text, in UTC; text without an offset is taken as UTC."""
    if value is None:
        return None
    try:
        if isinstance(value, str):
            time = datetime.fromisoformat(value)
            return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return datetime.fromtimestamp(value, UTC)
    except (ValueError, OverflowError, OSError):
        pass
    raise ShapeError(place, "not a time")


def grow(
    drafts: Iterable[Draft], outside: Mapping[str, tuple[str, str]] | None = None
) -> tuple[list[Node], dict[str, Spot], dict[str, tuple[str, str]]]:
    """The tree of the drafts with rows, where each draft ended up, and the links of roots to other conversations.

    Args:
        drafts: in the source's order, keys unique; one with an unknown parent is a root.
        outside: places in other conversations of parents that are no drafts.
    """
    waiting = {draft.key: draft for draft in drafts}
    children: dict[str | None, list[Draft]] = {}
    for draft in waiting.values():
        children.setdefault(draft.parent if draft.parent in waiting else None, []).append(draft)
    nodes: list[Node] = []
    links: dict[str, tuple[str, str]] = {}
    spots: dict[str, Spot] = {}
    stack = children.get(None, [])[::-1]
    while stack:
        draft = stack.pop()
        spot = spots[draft.parent] if draft.parent in waiting else (outside or {}).get(draft.parent or "")
        if draft.rows:
            nodes.append(Node(draft.key, spot if isinstance(spot, str) else None, draft.rows, draft.created_at))
            if isinstance(spot, tuple):
                links[draft.key] = spot
            spot = draft.key
        spots[draft.key] = spot
        stack.extend(children.get(draft.key, [])[::-1])
    if len(spots) < len(waiting):
        raise ShapeError(next(key for key in waiting if key not in spots), "its parents form a cycle")
    return nodes, spots, links


def leaf_below(nodes: Iterable[Node], spot: Spot) -> str | None:
    """Key of the leaf that the last children lead to from a node; None where the spot is none."""
    last = {node.parent: node.key for node in nodes}
    key = spot if isinstance(spot, str) else None
    while key in last and key is not None:
        key = last[key]
    return key


def conversation_of(value: object) -> Conversation:
    """The tree of one element of the export."""
    if not isinstance(value, dict) or not isinstance(value.get("mapping"), dict):
        raise ShapeError("mapping", "no conversation: object with a mapping expected")
    key = field(value, "conversation_id", str) or field(value, "id", str)
    if not key:
        raise ShapeError("id", "a conversation without an id")
    ranks: dict[str, int] = {}
    drafts = []
    for name, entry in value["mapping"].items():
        place = f"mapping.{name}."
        if not isinstance(entry, dict):
            raise ShapeError(place[:-1], "object expected")
        parent = field(entry, "parent", str, place)
        if parent is not None and parent not in value["mapping"]:
            raise ShapeError(f"{place}parent", "a parent that is not in the mapping")
        for rank, child in enumerate(field(entry, "children", list, place) or []):
            if not isinstance(child, str):
                raise ShapeError(f"{place}children[{rank}]", "text expected")
            ranks[child] = rank
        message = field(entry, "message", dict, place)
        rows, created_at = ((), None) if message is None else rows_of(message, name, f"{place}message.")
        drafts.append(Draft(name, parent, rows, created_at))
    drafts.sort(key=lambda draft: ranks.get(draft.key, len(ranks)))
    try:
        nodes, spots, _ = grow(drafts)
    except ShapeError as error:
        raise ShapeError(f"mapping.{error.place}.parent", error.reason) from None
    active = leaf_below(nodes, spots.get(field(value, "current_node", str) or "")) or (nodes[-1].key if nodes else None)
    title = field(value, "title", str) or None
    return Conversation(key, title, answered(nodes), active, moment(value.get("create_time"), "create_time"))


def rows_of(message: dict[str, Any], key: str, place: str) -> tuple[tuple[Row, ...], datetime | None]:
    """Rows of a message, none if it is dropped, and its time."""
    author, content = (field(message, name, dict, place) or {} for name in ("author", "content"))
    metadata = field(message, "metadata", dict, place) or {}
    role = author.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise ShapeError(f"{place}author.role", f"unknown role {role!r}")
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
            raise ShapeError(f"{place}parts[{number}]", "text or object expected")
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
