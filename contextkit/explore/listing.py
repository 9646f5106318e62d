"""The contexts that a search finds, a page at a time."""

from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
from sqlalchemy import Engine

from contextkit.explore.finding import Search
from contextkit.explore.pages import MOST_COUNTED, PAGE, Page, count_contexts, read_contexts
from contextkit.queries import ORDERS


@dataclass(frozen=True)
class Listing:
    """One page of contexts, and where it and those before it start."""

    search: Search
    page: Page
    total: int | None
    starts: tuple[tuple[Any, str] | None, ...] = (None,)

    @property
    def first(self) -> int:
        """Number of contexts before this page."""
        return (len(self.starts) - 1) * PAGE

    @property
    def code(self) -> str:
        """The line of Python that gives the same rows."""
        return self.search.code(self.first, self.first + len(self.page.frame))

    @property
    def summary(self) -> str:
        """Which of how many these are."""
        if self.page.frame.empty:
            return "no context"
        last = self.first + len(self.page.frame)
        span = f"contexts {self.first + 1:,} to {last:,}"
        if not self.page.more:
            return f"{span}, the last"
        if self.total is None:
            return f"{span}; more follow"
        return f"{span} of {self.total:,}" if self.total <= MOST_COUNTED else f"{span} of more than {MOST_COUNTED:,}"


def find(engine: Engine, search: Search) -> Listing:
    """Give the first page of a search."""
    page = read_contexts(engine, search)
    # Of what messages say not: counting would read them all again.
    counted = page.more and not (search.text and search.within == "messages")
    return Listing(search, page, count_contexts(engine, search) if counted else None)


def following(engine: Engine, listing: Listing) -> Listing:
    """Give the next page."""
    starts = (*listing.starts, _place(listing.page.frame.iloc[-1], listing.search))
    return _at(engine, listing, starts)


def preceding(engine: Engine, listing: Listing) -> Listing:
    """Give the page before."""
    return _at(engine, listing, listing.starts[:-1])


def _at(engine: Engine, listing: Listing, starts: tuple[tuple[Any, str] | None, ...]) -> Listing:
    return replace(listing, page=read_contexts(engine, listing.search, starts[-1]), starts=starts)


def _place(context: "pd.Series[Any]", search: Search) -> tuple[Any, str]:
    value = context[ORDERS[search.order].key]
    return (value if isinstance(value, pd.Timestamp) else int(value)), context["context_id"]
