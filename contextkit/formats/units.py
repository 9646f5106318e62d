"""A conversation's tree as the rows that are stored, each linked to the one before it, and their ids."""

import hashlib
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from contextkit.formats.conversation import Conversation, DefectiveError, Node, Row
from contextkit.models import ROLES, is_storable

NAMESPACE = UUID("0b7d5f0a-6a4c-5e0f-9b53-3c1f6f2c9d11")
MOST_TOKENS = 2**31 - 1
UNSTORABLE = "a NUL character or half of a surrogate pair; remove it"


@dataclass(frozen=True, slots=True)
class Unit:
    """A row of a tree that is linked to the row before it."""

    id: str
    parent: str | None
    row: Row
    created_at: datetime | None
    deleted_at: datetime | None
    below: str | None
    """Id of the sibling's first row that the source prefers to it."""


@dataclass(slots=True)
class Tree:
    """A conversation in the order that it is planned in: the active path, then the rest."""

    conversation: Conversation
    units: list[Unit]


class DefectiveTreeError(DefectiveError):
    """Carries the text at fault, too."""

    def __init__(self, place: str, reason: str, text: str = "") -> None:
        """Keep them."""
        super().__init__(place, reason)
        self.text = text


def message_id(format: str, conversation: str, node: str, row: int = 0) -> str:
    """Id that a row of a node is stored under, the same in every import.

    >>> message_id("oasst", "a", "b") == message_id("oasst", "a", "b", 0) != message_id("oasst", "a", "b", 1)
    True
    """
    name = f"{format}/{_escaped(conversation)}/{_escaped(node)}"
    return id_of(f"{name}/{row}" if row else name)


def context_id(first: str, below: str | None = None) -> str:
    """Id of the context that a message begins; another one where the source prefers a sibling, `below`, to it.

    No column holds that, and the id is free to say it: who has the ids of both messages can tell.
    """
    return id_of(f"context/{first}" if below is None else f"context/{first}/below/{below}")


def id_of(name: str) -> str:
    """Give the text of uuid5(NAMESPACE, name); an object for each takes longer than all the rest of a row."""
    digits = hashlib.sha1(NAMESPACE.bytes + name.encode(), usedforsecurity=False).hexdigest()
    variant = "89ab"[int(digits[16], 16) & 3]
    return f"{digits[:8]}-{digits[8:12]}-5{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:32]}"


def _escaped(key: str) -> str:
    return key.replace("%", "%25").replace("/", "%2F") if "/" in key or "%" in key else key


def tree_of(format: str, conversation: Conversation, links: dict[str, str]) -> Tree:
    """Give rows one by one, each after its parent; `links` are the ids that roots continue.

    Raises:
        DefectiveTreeError: a node stands before its parent or twice, or holds what is not stored.
    """
    for name, text in (("id", conversation.key), ("name", conversation.name or "")):
        if not is_storable(text):
            raise DefectiveTreeError(name, UNSTORABLE, text)
    ends: dict[str, str | None] = {}  # of each node the id of its last row, or of what it hangs on
    by_node: dict[str, list[Unit]] = {}
    for node in conversation.nodes:
        if node.key in ends:
            raise DefectiveTreeError(f"message {node.key:.60}", "its id stands twice in the conversation")
        if node.parent is not None and node.parent not in ends:
            raise DefectiveTreeError(f"message {node.key:.60}", "its parent does not stand before it")
        parent = links.get(node.key) if node.parent is None else ends[node.parent]
        by_node[node.key] = units = []
        for number, row in enumerate(node.rows):
            _check(node, row)
            id_ = message_id(format, conversation.scope(conversation.key), node.key, number)
            preferred = by_node[node.below] if node.below and not number else []
            below = preferred[0].id if preferred else None
            units.append(Unit(id_, parent, row, node.created_at, node.deleted_at, below))
            parent = id_
        ends[node.key] = parent
    if sum(unit.row.token_count or 0 for units in by_node.values() for unit in units) > MOST_TOKENS:
        raise DefectiveTreeError("token_count", f"the messages have more than {MOST_TOKENS} tokens together")
    active = _active_path(conversation)
    first = [unit for key, units in by_node.items() if key in active for unit in units]
    rest = [unit for key, units in by_node.items() if key not in active for unit in units]
    return Tree(conversation, first + rest)


def _active_path(conversation: Conversation) -> set[str]:
    parents = {node.key: node.parent for node in conversation.nodes}
    key = conversation.active if conversation.active in parents else next(reversed(parents), None)
    path: set[str] = set()
    while key is not None:
        path.add(key)
        key = parents[key]
    return path


def _check(node: Node, row: Row) -> None:
    if row.role not in ROLES:
        raise DefectiveTreeError(f"message {node.key:.60}", f"the role {row.role!r:.40} is none of {', '.join(ROLES)}")
    for name in ("content", "tool_call_id", "tool_name", "model"):
        text = getattr(row, name)
        if text is not None and not is_storable(text):
            place = f"{name} of message {node.key:.60}"
            raise DefectiveTreeError(place, UNSTORABLE, text)
    if not is_storable(node.key):
        raise DefectiveTreeError("the id of a message", UNSTORABLE, node.key)
    if row.token_count is not None and not 0 <= row.token_count <= MOST_TOKENS:
        raise DefectiveTreeError(f"token_count of message {node.key:.60}", f"it is between 0 and {MOST_TOKENS}")
    for name, time in (("created_at", node.created_at), ("deleted_at", node.deleted_at)):
        if time is not None and time.utcoffset() is None:
            raise DefectiveTreeError(f"{name} of message {node.key:.60}", "the time has no time zone")
