"""What every format is read into: conversations as trees of messages."""

from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Row:
    """A message as it is stored; the roles are contextkit's."""

    role: str
    content: str
    tool_call_id: str | None = None
    tool_name: str | None = None
    token_count: int | None = None
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Node:
    """A place in the tree: one row, or a message's text and a row for each tool call after it."""

    key: str
    """The source's own id of it, or its place; unique in the conversation and the same in a later export."""
    parent: str | None
    rows: tuple[Row, ...]
    created_at: datetime | None = None
    deleted_at: datetime | None = None
    below: str | None = None
    """Key of the nearest sibling before it that the source prefers to it."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """A tree, possibly of several roots; nodes stand after their parents, siblings in the source's order of rank."""

    key: str
    """The source's own id of it, or one made of its content; the same in a later export."""
    name: str | None
    nodes: list[Node]
    active: str | None = None
    """Key of the leaf that the active path ends at; None for the last one."""
    created_at: datetime | None = None
    links: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Of a root that continues another conversation: the key of that one and of its node there."""
    shares_nodes: bool = False
    """Whether keys of nodes are unique in the whole format, and a later export may have a node in another one."""

    def scope(self, key: str) -> str:
        """Give what the nodes of a conversation of this key are told apart within."""
        return "" if self.shares_nodes else key


@dataclass(frozen=True, slots=True)
class Defect:
    """A conversation that could not be read, in place of it: where it stands, and what is wrong."""

    line: int | None
    place: str
    reason: str


class DefectiveError(Exception):
    """A conversation that cannot be read: the place in it, and what is wrong there, without the content."""

    def __init__(self, place: str, reason: str) -> None:
        """Keep both."""
        super().__init__(place, reason)
        self.place, self.reason = place, reason
