"""What the formats without ids share: nodes named by their content."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from contextkit.formats.conversation import Conversation, Defect, DefectiveError, Node, Row
from contextkit.formats.files import Source
from contextkit.models import is_storable


def read_each(source: Source, made: Callable[[Any, dict[str, int]], Conversation]) -> Iterator[Conversation | Defect]:
    """What is made of each record, given how often a beginning was seen; a Defect where nothing can be."""
    seen: dict[str, int] = {}
    for line, value in source.records():
        try:
            yield made(value, seen)
        except DefectiveError as error:
            yield Defect(line, error.place, error.reason)


@dataclass
class Branches:
    """A tree as it grows: messages are added after `end`."""

    nodes: list[Node] = field(default_factory=list)
    end: str | None = None
    active: str | None = None
    """End of the first branch that was closed."""
    _keys: set[str] = field(default_factory=set)

    def add(self, rows: list[Row], below: str | None = None) -> None:
        """Add a message after the end, which moves to it; `below` is the key of the answer preferred to it."""
        told = [[row.role, row.content, row.tool_call_id, row.tool_name] for row in rows]
        base = _digest([self.end, told])
        key, number = base, 1
        while key in self._keys:  # equal siblings
            number += 1
            key = f"{base}-{number}"
        self._keys.add(key)
        self.nodes.append(Node(key, self.end, tuple(rows), below=below))
        self.end = key

    def close(self) -> None:
        """End a branch; the first is the active one."""
        self.active = self.active or self.end

    def conversation(self, key: object, seen: dict[str, int]) -> Conversation:
        """Give the conversation; without a key it is named by its beginning, and how often that was seen."""
        if isinstance(key, int) and not isinstance(key, bool):
            key = str(key)
        if not isinstance(key, str) or not key:
            beginning = self._beginning()
            seen[beginning] = number = seen.get(beginning, 0) + 1
            key = f"{beginning}-{number}"
        return Conversation(key, None, self.nodes, self.active or self.end)

    def _beginning(self) -> str:
        """Give the key of the first message of the user, which is made of all before it, too."""
        told = (node.key for node in self.nodes if any(row.role == "user" for row in node.rows))
        return next(told, self.nodes[0].key if self.nodes else "empty")


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:32]


def text_of(value: object, place: str) -> str | None:
    """Give a text or None.

    Raises:
        DefectiveError: it is something else.
    """
    if not isinstance(value, str | None):
        raise DefectiveError(place, "it is no text")
    return value


def read_json(text: str) -> Any:
    """Give the value of a JSON text; None if it is none, or holds what cannot be written as JSON again."""
    try:
        value = json.loads(text)
        written = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError):
        return None
    return value if is_storable(written) else None


def as_json(value: object) -> str:
    """Give a value as JSON, with characters as they are."""
    return json.dumps(value, ensure_ascii=False)
