"""Rows as lines of text: what a list shows of contexts, of a fork tree, of messages and of neighbors."""

from collections.abc import Iterator
from typing import Any

import pandas as pd
from rich.cells import set_cell_size

from contextkit.visible import visible_line

Line = tuple[str, str]
"""What is shown, and the id that it stands for."""

NAME = 40
WORDS = 72
SHOWN_CHARACTERS = 400
"""How much of a text is looked at to fill a line."""
HEAD = f"{'name':<{NAME}} {'messages':>8} {'tokens':>8}  created"
HERE = "  ◀ here"


def context_lines(contexts: pd.DataFrame) -> list[Line]:
    """Name, counts and day of contexts; forks are marked, and deleted ones."""
    return [
        (
            f"{_cell(_named(row), NAME)} {row.message_count:>8,} {row.total_tokens:>8,}  {row.created_at:%Y-%m-%d}",
            row.context_id,
        )
        for row in _rows(contexts)
    ]


def tree_lines(family: pd.DataFrame, context_id: str) -> list[Line]:
    """A fork tree, drawn; the context itself is marked. What has no parent in the frame stands at the left."""
    rows = {row.context_id: row for row in _rows(family.sort_values(["created_at", "context_id"]))}
    forks: dict[str | None, list[str]] = {}
    for id_, row in rows.items():
        forks.setdefault(row.parent_id if row.parent_id in rows else None, []).append(id_)

    # A list of what is left to draw, as a chain of forks may be longer than Python recurses.
    lines: list[Line] = []
    left = [(id_, "", "") for id_ in reversed(forks.get(None, []))]
    while left:
        id_, before, below = left.pop()
        mark = HERE if id_ == context_id else ""
        lines.append((f"{before}{_tree_text(rows[id_])}{mark}", id_))
        children = forks.get(id_, [])
        for child in reversed(children):
            last = child == children[-1]
            left.append((child, below + ("└─ " if last else "├─ "), below + ("   " if last else "│  ")))
    return lines


def _tree_text(row: Any) -> str:
    count = row.message_count
    fork = "" if pd.isna(row.fork_version) else f", forked at version {row.fork_version:,}"
    return f"{_cell(_named(row, mark_fork=False), NAME).rstrip()}  {count:,} message{'s' * (count != 1)}{fork}"


def message_lines(history: pd.DataFrame) -> list[Line]:
    """Position, role and first words of the messages of a history."""
    return [(f"{row.position:>4}  {row.role:<9} {_cell(row.content, WORDS)}", row.message_id) for row in _rows(history)]


def neighbor_lines(neighbors: pd.DataFrame) -> list[Line]:
    """Distance, role and first words of neighbors; they stand for their contexts."""
    return [
        (f"{row.distance:.3f}  {row.role:<9} {_cell(row.content, WORDS)}", row.context_id) for row in _rows(neighbors)
    ]


def named(contexts: pd.DataFrame) -> list[str]:
    """What contexts are called, whole: the name, or the id."""
    return [visible_line(_named(row, mark_fork=False)) for row in _rows(contexts)]


def _named(row: Any, *, mark_fork: bool = True) -> str:
    name = f"({row.context_id})" if pd.isna(row.name) or not row.name.strip() else row.name
    fork = "↳ " if mark_fork and pd.notna(row.parent_id) and pd.notna(row.fork_version) else ""
    return f"{'✕ ' if pd.notna(row.deleted_at) else ''}{fork}{name}"


def _rows(frame: pd.DataFrame) -> Iterator[Any]:
    return frame.itertuples()


def _cell(text: str, width: int) -> str:
    line = visible_line(text[:SHOWN_CHARACTERS])
    whole = set_cell_size(line, width)
    return whole if whole.rstrip() == line.rstrip() else f"{set_cell_size(line, width - 1)}…"
