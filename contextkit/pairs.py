"""Which tool calls and results belong together, in the histories of forks, each of which is passed once."""

import math
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, NamedTuple

import pandas as pd

KINDS = {
    True: ("call_without_result", "no result follows it"),
    False: ("result_without_call", "no call stands before it"),
}

_Place = tuple[float, float]
"""Stretch and version, by which a history is in order."""

_START, _END = (-math.inf, 0), (math.inf, 0)
_PLACE: Callable[["_Message"], _Place] = attrgetter("place")


def unpaired(read: pd.DataFrame) -> pd.DataFrame:
    """Findings on live calls with no later result in any history that holds them, and on results with no call before.

    Args:
        read: rows of `select_unpaired`.
    """
    messages = read.dropna(subset="message_id").astype(dict.fromkeys(["is_call", "is_alone", "is_live"], bool))
    pairs = _Histories(read.dropna(subset="fork_id").drop_duplicates("fork_id"), messages).pairs()
    alone = messages[messages["is_alone"] & messages["is_live"] & ~messages["message_id"].isin(pairs)]
    kinds = [KINDS[is_call] for is_call in alone["is_call"]]
    columns = {"kind": [kind for kind, _ in kinds], "context_id": list(alone["context_id"])}
    columns |= {"message_id": list(alone["message_id"]), "detail": [detail for _, detail in kinds]}
    return pd.DataFrame(columns, dtype="str")


class _Message(NamedTuple):
    place: _Place
    level: int
    id: str


@dataclass
class _Fork:
    id: str
    renumbered: bool
    passes: int
    """The last version that it inherits in the stretch of its parent."""
    tools: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    """Its calls and results, by their tool_call_id."""
    replaced: list[int] = field(default_factory=list)
    """Versions of its own rows that stand in place of what it would inherit."""

    def add(self, row: Any) -> None:
        if not self.renumbered and row.version <= self.passes:
            self.replaced.append(row.version)
        if not pd.isna(row.tool_call_id):
            self.tools[row.tool_call_id].append(row)


@dataclass
class _Bounds:
    """How far the contexts above reach into the history of the last one, as the forks between let pass.

    The least end after each level, where that is not the one after the level before. What was overwritten comes back
    when a fork is left, so that a fork costs a search and no more.
    """

    levels: list[int] = field(default_factory=list)
    ends: list[_Place] = field(default_factory=list)
    size: int = 0
    _former: list[tuple[int, int, _Place, int]] = field(default_factory=list)

    def narrow(self, level: int, end: _Place) -> None:
        """Let only what is before that end pass to a level."""
        place = bisect_left(self.ends, end, 0, self.size)
        if place == len(self.ends):
            self.levels.append(0)
            self.ends.append(_END)
        self._former.append((place, self.levels[place], self.ends[place], self.size))
        self.levels[place], self.ends[place], self.size = level, end, place + 1

    def widen(self) -> None:
        """Undo the last narrowing."""
        place, level, end, self.size = self._former.pop()
        self.levels[place], self.ends[place] = level, end

    def end(self, level: int) -> _Place:
        """Give the end of what passes from that level."""
        place = bisect_left(self.levels, level + 1, 0, self.size)
        return self.ends[place] if place < self.size else _END


@dataclass
class _Tool:
    """The calls and results of one id, by place, that the last context with any of them inherits or has."""

    level: int = 0
    calls: list[_Message] = field(default_factory=list)
    unanswered: list[_Message] = field(default_factory=list)
    results: list[_Message] = field(default_factory=list)
    _former: list[tuple[int, _Place, list[list[_Message]]]] = field(default_factory=list)

    def keep(self, level: int, end: _Place, first: _Place) -> None:
        """Go to a level, where only what is before an end is inherited, and nothing of its own stands before first."""
        parts, changed = (self.calls, self.unanswered, self.results), min(end, first)
        self._former.append((self.level, changed, [part[bisect_left(part, changed, key=_PLACE) :] for part in parts]))
        self.level = level
        for part in parts:
            del part[bisect_left(part, end, key=_PLACE) :]

    def undo(self) -> None:
        """Go back from the last level."""
        self.level, changed, tails = self._former.pop()
        for part, tail in zip((self.calls, self.unanswered, self.results), tails, strict=True):
            part[bisect_left(part, changed, key=_PLACE) :] = tail

    def add(self, message: _Message, *, is_call: bool) -> None:
        for part in (self.calls, self.unanswered) if is_call else (self.results,):
            insort(part, message)


class _Histories:
    """The calls and results in the histories along one path of forks after another, from roots downward."""

    def __init__(self, forks: pd.DataFrame, messages: pd.DataFrame) -> None:
        self._below: dict[str | None, list[_Fork]] = defaultdict(list)
        known: dict[str, _Fork] = {}
        ids = set(forks["fork_id"])
        names = ["fork_id", "parent_id", "fork_version", "rewritten", "complete"]
        for id_, parent_id, version, rewritten, complete in forks[names].itertuples(index=False):
            above = parent_id if parent_id in ids else None
            passes = 0 if complete or above is None else int(version)
            known[id_] = _Fork(id_, rewritten == "renumbered", passes)
            self._below[above].append(known[id_])
        row: Any
        needed = messages[["context_id", "message_id", "version", "tool_call_id", "is_call"]]
        for row in needed[needed["context_id"].isin(ids)].itertuples(index=False):
            known[row.context_id].add(row)
        self._tools: dict[str, _Tool] = defaultdict(_Tool)
        self._bounds = _Bounds()
        self._stretch = 0
        self._replaced: dict[_Place, list[int]] = defaultdict(list)

    def pairs(self) -> set[str]:
        """Ids of the calls and results that some history pairs; contexts in a cycle, or below one, have none."""
        paired: set[str] = set()
        path: list[tuple[_Fork | None, Iterator[_Fork]]] = [(None, iter(self._below[None]))]
        while path:
            fork = next(path[-1][1], None)
            if fork is not None:
                self._enter(fork, len(path))
                for id_, rows in fork.tools.items():
                    self._go_on(self._tools[id_], rows, len(path))
                    paired.update(self._paired(self._tools[id_], rows))
                path.append((fork, iter(self._below[fork.id])))
            elif (left := path.pop()[0]) is not None:
                self._leave(left)
        return paired

    def _enter(self, fork: _Fork, level: int) -> None:
        self._bounds.narrow(level, (self._stretch, fork.passes + 1))
        self._stretch += fork.renumbered
        for version in fork.replaced:
            self._replaced[self._stretch, version].append(level)

    def _leave(self, fork: _Fork) -> None:
        for id_ in fork.tools:
            self._tools[id_].undo()
        for version in fork.replaced:
            self._replaced[self._stretch, version].pop()
        self._stretch -= fork.renumbered
        self._bounds.widen()

    def _go_on(self, tool: _Tool, rows: list[Any], level: int) -> None:
        first = (self._stretch, min(row.version for row in rows))
        tool.keep(level, self._bounds.end(tool.level), first)
        for row in rows:
            tool.add(_Message((self._stretch, row.version), level, row.message_id), is_call=row.is_call)

    def _paired(self, tool: _Tool, rows: list[Any]) -> Iterator[str]:
        """Ids of the results among these rows that follow a call, and of the calls that some result follows."""
        first = next((call.place for call in tool.calls if self._is_held(call)), _END)
        last = next((result.place for result in reversed(tool.results) if self._is_held(result)), _START)
        yield from (row.message_id for row in rows if not row.is_call and first < (self._stretch, row.version))
        before = tool.unanswered[: bisect_left(tool.unanswered, last, key=_PLACE)]
        yield from (call.id for call in before if self._is_held(call))
        tool.unanswered[: len(before)] = [call for call in before if not self._is_held(call)]

    def _is_held(self, message: _Message) -> bool:
        """Whether none of the forks between has a row in its place."""
        levels = self._replaced.get(message.place)
        return not levels or levels[-1] <= message.level
