"""What is looked for: as conditions, and as the line of Python that gives the same frame."""

import re
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Text, cast, or_

from contextkit.models import Context, is_storable
from contextkit.queries import ORDERS, Condition, Order, is_fork, matches_words

Within = Literal["names and ids", "messages"]
Kind = Literal["all contexts", "roots", "forks"]

MOST_CHARACTERS = 200
MOST_MATCHES = 10_000
"""How many messages the line of Python asks for by their words."""


@dataclass(frozen=True)
class Search:
    """What the contexts of a listing have in common, and their order."""

    text: str = ""
    within: Within = "names and ids"
    kind: Kind = "all contexts"
    order: Order = "newest"
    include_deleted: bool = False

    def __post_init__(self) -> None:
        """Refuse a text that no message can have."""
        if not is_storable(self.text) or len(self.text) > MOST_CHARACTERS:
            raise ValueError(f"a text to look for has at most {MOST_CHARACTERS} characters, and no NUL; shorten it")

    def conditions(self) -> list[Condition]:
        """Give the conditions on contexts and their messages."""
        found: list[Condition] = []
        if self.text and self.within == "messages":
            found.append(matches_words(self.text))
        elif self.text:
            names = (Context.name, cast(Context.id, Text)) if self._may_be_id() else (Context.name,)
            found.append(or_(*(name.icontains(self.text, autoescape=True) for name in names)))
        if self.kind != "all contexts":
            found.append(is_fork() if self.kind == "forks" else ~is_fork())
        return found

    def code(self, first: int, last: int) -> str:
        """Give the line that gives rows `first` to `last` of what is found, counted from 0."""
        column = ORDERS[self.order].key
        arguments = ["engine", *self._sources(), *(["include_deleted=True"] if self.include_deleted else [])]
        ordered = f'.sort_values(["{column}", "context_id"], ascending=False)'
        return f"contexts_df({', '.join(arguments)}){ordered}.iloc[{first}:{last}]"

    def _may_be_id(self) -> bool:
        return re.fullmatch("[0-9a-fA-F-]+", self.text) is not None

    def _sources(self) -> list[str]:
        found = []
        if self.text and self.within == "messages":
            found.append(f'Context.id.in_(search_df(engine, {self.text!r}, k={MOST_MATCHES})["context_id"])')
        elif self.text:
            contains = f"icontains({self.text!r}, autoescape=True)"
            names = ["Context.name", "cast(Context.id, Text)"] if self._may_be_id() else ["Context.name"]
            found.append(" | ".join(f"{name}.{contains}" for name in names))
        if self.kind != "all contexts":
            found += {
                "forks": ["Context.parent_id.is_not(None)", "Context.fork_version.is_not(None)"],
                "roots": ["Context.parent_id.is_(None) | Context.fork_version.is_(None)"],
            }[self.kind]
        return found
