"""Calls measured in turns, and rows that say how they compare."""

import gc
import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any, TypeVar

import numpy as np

Call = Callable[[], object]
Value = TypeVar("Value")

ROUNDS = 5
MOST_ROUNDS = 51
ENOUGH = 2.0
"""Seconds after which a case has no more than ROUNDS rounds."""


@dataclass(frozen=True)
class Timed:
    """What a call that took its time itself gives, such as one that another process runs."""

    seconds: float
    value: Any = None


@dataclass(frozen=True)
class Measure:
    """A row of the results; `most` is the target for the ratio."""

    case: str
    ours: str
    beside: str
    theirs: str
    ratio: float
    most: float | None = None

    @property
    def cells(self) -> list[str]:
        if self.most is None:
            target, reached = "", ""
        else:
            # A target below 1 says how many times faster.
            target = f"≤ {self.most:g}" if self.most >= 1 else f"≤ 1/{1 / self.most:g}"
            reached = "yes" if self.ratio <= self.most else "**no**"
        ratio = f"{self.ratio:.2f}" if self.ratio >= 0.1 else f"{self.ratio:.3f}"
        return [self.case, self.ours, self.beside, self.theirs, ratio, target, reached]


def compared(
    case: str, seconds: dict[str, float], targets: dict[str, float | None], ours: str = "contextkit"
) -> list[Measure]:
    """A row for each of the others; `targets` gives what they are compared by, None for nothing."""
    return [
        Measure(case, shown(seconds[ours]), beside, shown(seconds[beside]), seconds[ours] / seconds[beside], most)
        for beside, most in targets.items()
    ]


def in_turns(calls: Mapping[str, Call], before: Call = lambda: None) -> dict[str, float]:
    """Median seconds of each, called in turn after a warm-up, so that whatever else the machine does meets all.

    Every round has an order of its own: what a call leaves in the caches helps the next one. What comes before each
    call is not counted, nor is the time to free its result.
    """
    orders = random.Random(0)
    gc.collect()
    for call in calls.values():
        _seconds(call, before)
    taken: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + ENOUGH
    for finished in range(MOST_ROUNDS):
        if finished >= ROUNDS and time.perf_counter() > end:
            break
        for name in orders.sample(list(calls), len(calls)):
            taken[name].append(_seconds(calls[name], before))
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def _seconds(call: Call, before: Call) -> float:
    before()
    start = time.perf_counter()
    result = call()
    end = time.perf_counter()
    return result.seconds if isinstance(result, Timed) else end - start


def timed(call: Callable[[], Value], use: Callable[[Value], Any]) -> Timed:
    """The time of a call, and what is used of its result."""
    start = time.perf_counter()
    result = call()
    return Timed(time.perf_counter() - start, use(result))


def shared(count: int, call: Call) -> Call:
    """The call, timed per one of the things that it does at once."""
    return lambda: Timed(_seconds(call, lambda: None) / count)


def each(call: Callable[[Value], object], values: Sequence[Value], first: int = 0) -> Call:
    """A call that takes the next of the values each time, from one of them on."""
    following = cycle([*values[first:], *values[:first]])
    return lambda: call(next(following))


def exponent(sizes: Iterable[int], seconds: Iterable[float]) -> float:
    """The power of the size that the time grows with: the slope of their logarithms by least squares."""
    return float(np.polyfit(np.log(list(sizes)), np.log(list(seconds)), 1)[0])


def shown(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms" if seconds < 1 else f"{seconds:,.2f} s"
