"""What the exports of applications share: trees read from messages that name their parents."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from contextkit.formats.conversation import Conversation, Defect, DefectiveError, Node, Row
from contextkit.models import YEARS

if TYPE_CHECKING:
    from contextkit.formats.files import Source

NAME = re.compile(r"conversations([-_]?\d+)?\.json(\.gz)?")

Spot = str | tuple[str, str] | None
"""Where a source's message ended up: a node's key, another conversation's key and its node's, or nowhere."""


@dataclass(slots=True)
class Draft:
    """A node as its source has it: perhaps without rows, its parent perhaps dropped or unknown."""

    key: str
    parent: str | None
    rows: tuple[Row, ...]
    created_at: datetime | None


def read_export(source: "Source", made: Callable[[object], Conversation]) -> Iterator[Conversation | Defect]:
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
            except DefectiveError as error:
                yield Defect(line, error.place, error.reason)


def field(value: Mapping[str, Any], name: str, kind: type, place: str = "") -> Any:
    """A field of the kind, or None where it is absent or null."""
    found = value.get(name)
    if found is not None and (isinstance(found, bool) or not isinstance(found, kind)):
        raise DefectiveError(f"{place}{name}", f"{kind.__name__} expected, {type(found).__name__} found")
    return found


def moment(value: object, place: str) -> datetime | None:
    """A time in seconds since 1970 or as ISO text, in UTC; text without an offset is taken as UTC."""
    if value is None:
        return None
    try:
        if isinstance(value, str):
            time = datetime.fromisoformat(value)
            time = (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            time = datetime.fromtimestamp(value, UTC)
        else:
            raise DefectiveError(place, "not a time")
    except (ValueError, OverflowError, OSError):
        raise DefectiveError(place, "not a time") from None
    if time.year not in YEARS:
        raise DefectiveError(place, f"a time outside of the years {YEARS[0]} to {YEARS[-1]}")
    return time


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
        raise DefectiveError(next(key for key in waiting if key not in spots), "its parents form a cycle")
    return nodes, spots, links


def leaf_below(nodes: Iterable[Node], spot: Spot) -> str | None:
    """Key of the leaf that the last children lead to from a node; None where the spot is none."""
    last = {node.parent: node.key for node in nodes}
    key = spot if isinstance(spot, str) else None
    while key in last and key is not None:
        key = last[key]
    return key
