"""Which tool calls and results belong together, in the histories of forks, each of which is passed once."""

import math
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from contextkit.queries import NO_BOUND

KINDS = {
    True: ("call_without_result", "no result follows it"),
    False: ("result_without_call", "no call stands before it"),
}


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


@dataclass(frozen=True)
class _Fork:
    id: str
    renumbered: bool
    passes: int
    """The last version that it inherits in the stretch of its parent."""


@dataclass(frozen=True)
class _Call:
    id: str
    version: int
    level: int
    stretch: int


@dataclass
class _Stretch:
    """How far the contexts of a stretch reach into the history of the last one, as the forks between let pass.

    The least version after each level, where that is not the one after the level before. What was
    overwritten comes back when a fork is left, so that a fork costs a search and no more.
    """

    levels: list[int] = field(default_factory=list)
    bounds: list[int] = field(default_factory=list)
    size: int = 0
    _former: list[tuple[int, int, int, int]] = field(default_factory=list)

    def narrow(self, level: int, version: int) -> None:
        """Let no more than that version pass from above a level."""
        place = bisect_left(self.bounds, version, 0, self.size)
        if place == len(self.bounds):
            self.levels.append(0)
            self.bounds.append(0)
        self._former.append((place, self.levels[place], self.bounds[place], self.size))
        self.levels[place], self.bounds[place], self.size = level, version, place + 1

    def widen(self) -> None:
        """Undo the last narrowing."""
        place, level, bound, self.size = self._former.pop()
        self.levels[place], self.bounds[place] = level, bound

    def bound(self, level: int) -> int:
        """Give the last version of that level that is in the history."""
        place = bisect_right(self.levels, level, 0, self.size)
        return self.bounds[place] if place < self.size else NO_BOUND


class _Histories:
    """The histories along one path of forks after another, from roots downward, as far as they hold calls."""

    def __init__(self, forks: pd.DataFrame, messages: pd.DataFrame) -> None:
        self._below: dict[str | None, list[_Fork]] = defaultdict(list)
        known = set(forks["fork_id"])
        names = ["fork_id", "parent_id", "fork_version", "rewritten", "complete"]
        for id_, parent_id, version, rewritten, complete in forks[names].itertuples(index=False):
            above = parent_id if parent_id in known else None
            passes = 0 if complete or above is None else int(version)
            self._below[above].append(_Fork(id_, rewritten == "renumbered", passes))
        self._calls: dict[str, list[Any]] = defaultdict(list)
        self._results: dict[str, dict[str, list[tuple[int, str]]]] = defaultdict(lambda: defaultdict(list))
        row: Any
        for row in messages[messages["context_id"].isin(known)].itertuples():
            if row.is_call:
                self._calls[row.context_id].append(row)
            else:
                self._results[row.context_id][row.tool_call_id].append((row.version, row.message_id))
        self._held: dict[str, list[_Call]] = defaultdict(list)
        self._stretches = [_Stretch()]

    def pairs(self) -> set[str]:
        """Ids of the calls and results that some history pairs; contexts in a cycle, or below one, have none."""
        paired: set[str] = set()
        path: list[tuple[_Fork | None, Iterator[_Fork]]] = [(None, iter(self._below[None]))]
        while path:
            fork = next(path[-1][1], None)
            if fork is not None:
                self._enter(fork, len(path))
                paired.update(self._answered(fork))
                self._hold(fork, len(path))
                path.append((fork, iter(self._below[fork.id])))
            elif (left := path.pop()[0]) is not None:
                self._leave(left)
        return paired

    def _enter(self, fork: _Fork, level: int) -> None:
        self._stretches[-1].narrow(level, fork.passes)
        if fork.renumbered:
            self._stretches.append(_Stretch())

    def _leave(self, fork: _Fork) -> None:
        for call in self._calls[fork.id]:
            self._held[call.tool_call_id].pop()
        if fork.renumbered:
            self._stretches.pop()
        self._stretches[-1].widen()

    def _hold(self, fork: _Fork, level: int) -> None:
        for call in self._calls[fork.id]:
            held = _Call(call.message_id, call.version, level, len(self._stretches) - 1)
            self._held[call.tool_call_id].append(held)

    def _answered(self, fork: _Fork) -> Iterator[str]:
        for call_id, results in self._results[fork.id].items():
            calls = [(self._place(call), call.id) for call in self._held[call_id] if self._is_inherited(call)]
            first, last = min(calls, default=(math.inf, "")), max(version for version, _ in results)
            yield from (id_ for version, id_ in results if first[0] < version)
            yield from (id_ for place, id_ in calls if place < last)

    def _is_inherited(self, call: _Call) -> bool:
        return call.version <= self._stretches[call.stretch].bound(call.level)

    def _place(self, call: _Call) -> float:
        """Its version, or before all of them."""
        return call.version if call.stretch == len(self._stretches) - 1 else -math.inf
