"""Partitions: ranges of context ids, about equal in rows, that take every context whole."""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any, NamedTuple

from sqlalchemy.orm import InstrumentedAttribute

from contextkit.queries import Condition


class Partition(NamedTuple):
    """The contexts with ids from `first_id` on and before `end_id`; None is open."""

    first_id: str | None
    end_id: str | None
    rows: int

    def holds(self, ids: InstrumentedAttribute[str]) -> list[Condition]:
        """Give the conditions that ids of a column lie in the range."""
        lower = [] if self.first_id is None else [ids >= self.first_id]
        return lower if self.end_id is None else [*lower, ids < self.end_id]


def partitions_of(counted: Iterable[Any]) -> list[Partition]:
    """Ranges that cover every id there can be, of the rows that a `select_*_partitions` gives; at least one.

    >>> partitions_of([("0b9cf5a4-1d4e-4c0f-8a55-b4e1d6f8c1aa", 7), ("8d0c1c4e-98f5-4a7e-b6a6-2f6d3a5a0c11", 6)])
    [Partition(first_id=None, end_id='8d0c1c4e-98f5-4a7e-b6a6-2f6d3a5a0c11', rows=7),
     Partition(first_id='8d0c1c4e-98f5-4a7e-b6a6-2f6d3a5a0c11', end_id=None, rows=6)]
    """
    places = [(str(first_id), int(rows)) for first_id, rows in counted] or [("", 0)]
    starts = [None, *(first_id for first_id, _ in places[1:]), None]
    return [Partition(first, end, rows) for (first, end), (_, rows) in zip(pairwise(starts), places, strict=True)]
