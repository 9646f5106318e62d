"""What every format is written from: histories, and the tree that those of one root make."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple

import pandas as pd
from sqlalchemy import Engine

from contextkit.formats.units import context_id
from contextkit.frames import history_df, read_df, stored_histories
from contextkit.queries import Condition, select_families

BATCH_ROWS = 10_000
BATCH_CONTEXTS = 1_000


class Told(NamedTuple):
    """A message of a history."""

    context_id: str
    source_context_id: str
    message_id: str
    created_at: datetime
    role: str
    content: str
    tool_call_id: str | None
    tool_name: str | None
    model: str | None

    @property
    def is_call(self) -> bool:
        """Whether it is a tool call, its content the arguments."""
        return self.role == "assistant" and (self.tool_call_id, self.tool_name) != (None, None)

    @property
    def said(self) -> tuple[str | None, ...]:
        """What messages have in common that are one in a tree of histories."""
        return (self.role, self.content, self.tool_name, self.model)


class History(NamedTuple):
    """The messages of a context, inherited ones included."""

    root_id: str
    context_id: str
    messages: list[Told]


def messages_of(frame: pd.DataFrame) -> Iterator[Told]:
    """Messages of a frame from `history_df` or the like; columns that it lacks are null."""
    values: list[list[Any]] = [
        [None] * len(frame)
        if name not in frame
        else frame[name].astype(object).where(frame[name].notna(), None).tolist()
        for name in Told._fields
    ]
    return map(Told._make, zip(*values, strict=True))


def families_df(engine: Engine, *where: Condition) -> pd.DataFrame:
    """One row per live context: context_id, root_id, most_messages; those of a root together.

    Raises:
        LineageError: the parents of a context form a cycle.
    """
    families = read_df(engine, select_families(*where))
    if cyclic := families.loc[families["root_id"].isna(), "context_id"].tolist():
        history_df(engine, cyclic)  # says which parents
    return families


def history_frames(engine: Engine, families: pd.DataFrame, *, embeddings: bool = False) -> Iterator[pd.DataFrame]:
    """Frames as of `history_df` in the order of the families, some thousand rows each; at least one."""
    for contexts in _batches(families["context_id"].tolist(), families["most_messages"].tolist()):
        yield stored_histories(engine, contexts, embeddings=embeddings)


def _batches(contexts: list[str], lengths: list[int]) -> Iterator[list[str]]:
    batch: list[str] = []
    rows = 0
    for context, length in zip(contexts, lengths, strict=True):
        if batch and (rows + length > BATCH_ROWS or len(batch) == BATCH_CONTEXTS):
            yield batch
            batch, rows = [], 0
        batch.append(context)
        rows += length
    yield batch


def histories_of(frames: Iterable[pd.DataFrame], families: pd.DataFrame) -> Iterator[History]:
    """Histories of such frames; contexts without messages have none."""
    roots = dict(zip(families["context_id"], families["root_id"], strict=True))
    for frame in frames:
        for context, messages in groupby(messages_of(frame), attrgetter("context_id")):
            yield History(roots[context], context, list(messages))


@dataclass(slots=True, eq=False)
class HistoryNode:
    """A message where histories go through, and those after it, by when their histories came."""

    told: Told
    """As in the first history that went through."""
    number: int
    parent: "HistoryNode | None"
    after: "dict[tuple[str | None, ...], HistoryNode]" = field(default_factory=dict)

    def preferred_among(self, siblings: "Iterable[HistoryNode]") -> "HistoryNode | None":
        """Give the sibling that an import knew its source to prefer to this one, if any."""
        context, message = self.told.source_context_id, self.told.message_id
        if context[14] != "5" or context == context_id(message):  # no import derived it, or without such a sibling
            return None
        return next((other for other in siblings if context_id(message, other.told.message_id) == context), None)


class HistoryTree:
    """Histories of one root, merged as long as they say the same."""

    def __init__(self) -> None:
        """Begin without any."""
        self.first: dict[tuple[str | None, ...], HistoryNode] = {}
        self.nodes: list[HistoryNode] = []

    def after(self, node: HistoryNode | None) -> Iterable[HistoryNode]:
        """Nodes that follow one, or that begin a history."""
        return (self.first if node is None else node.after).values()

    def add(self, history: Iterable[Told]) -> list[HistoryNode]:
        """Nodes that a history adds, in its order."""
        known, node, after = len(self.nodes), None, self.first
        for told in history:
            if told.said not in after:
                after[told.said] = HistoryNode(told, len(self.nodes), node)
                self.nodes.append(after[told.said])
            node = after[told.said]
            after = node.after
        return self.nodes[known:]
