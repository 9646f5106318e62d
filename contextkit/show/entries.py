"""The messages of a frame as entries: no more than a page holds, each tool's result with its call."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from itertools import groupby
from typing import Any

import pandas as pd

from contextkit.derived import NOWHERE, is_call, paired
from contextkit.show.rendered import count, short

MESSAGES = 200
"""As many messages are shown at once."""
CHARACTERS = 20_000
"""As many characters of a message are shown."""
PAGE_CHARACTERS = 200_000
"""As many characters of all messages are shown at once, of at least one message."""


@dataclass(frozen=True)
class Entry:
    """A message as a frame has it, with the result that answers it; None where the frame has nothing."""

    place: int
    role: str
    content: str
    context_id: str
    name: str | None = None
    position: int | None = None
    version: int | None = None
    source_context_id: str | None = None
    inherited: bool | None = None
    created_at: pd.Timestamp | None = None
    tool_call_id: str | None = None
    tool_name: str | None = None
    token_count: int | None = None
    model: str | None = None
    deleted_at: pd.Timestamp | None = None
    is_call: bool = False
    result: "Entry | None" = None

    @property
    def left_out(self) -> int:
        """Number of characters past those that are shown."""
        return max(len(self.content) - CHARACTERS, 0)


COLUMNS = [field.name for field in fields(Entry) if field.name not in ("place", "is_call", "result")]
NUMBERS = ("position", "version", "token_count")
TIMES = ("created_at", "deleted_at")


def checked(history: object) -> pd.DataFrame:
    """The columns that entries have, of a frame of messages; the index counts its rows.

    Raises:
        TypeError: it is no frame.
        ValueError: the frame has no role or content, or no numbers or times where these belong.
    """
    if not isinstance(history, pd.DataFrame):
        raise TypeError(f"a history is a frame, as of history_df, not {type(history).__name__}")
    if missing := sorted({"role", "content"} - set(history.columns)):
        raise ValueError(f"a history has the columns role and content, and here is no {' and no '.join(missing)}")
    rows = history.reset_index(drop=True).reindex(columns=COLUMNS)
    return rows.assign(**{column: _converted(rows[column]) for column in (*NUMBERS, *TIMES)})


def _converted(values: "pd.Series[Any]") -> "pd.Series[Any]":
    """Numbers and times as such: frames that were saved, joined or built by hand have them as floats and text."""
    is_number = values.name in NUMBERS
    try:
        return values.astype("Int64") if is_number else pd.to_datetime(values, utc=True, format="ISO8601")
    except (TypeError, ValueError) as error:
        expected = "whole numbers" if is_number else "times"
        raise ValueError(f"the column {values.name} of a history has {expected}, or nothing; convert it") from error


def fitting(rows: pd.DataFrame) -> int:
    """How many rows are shown at once."""
    lengths = rows["content"].head(MESSAGES).astype(object).str.len().fillna(0).clip(upper=CHARACTERS)
    return max(int((lengths.cumsum() <= PAGE_CHARACTERS).sum()), min(len(rows), 1))


def entries_of(rows: pd.DataFrame) -> list[Entry]:
    """Entries of checked rows, in their order, without the results that stand with their calls."""
    values = rows.astype(object).where(rows.notna(), None)
    texts = ["context_id", "role", "content"]
    values[texts] = values[texts].fillna("")
    rows = rows.assign(context_id=values["context_id"])
    entries = [Entry(int(place), *row) for place, *row in values.itertuples(name=None)]
    answers = dict(_answers(rows, {entry.place: entry for entry in entries}))
    folded = {result.place for result in answers.values()}
    return [
        replace(entry, is_call=called, result=answers.get(entry.place))
        for entry, called in zip(entries, is_call(rows), strict=True)
        if entry.place not in folded
    ]


def _answers(rows: pd.DataFrame, entries: dict[int, Entry]) -> Iterator[tuple[int, Entry]]:
    """Give the place of each call and its result, where one context stores both."""
    for call, result in zip(*paired(rows), strict=True):
        is_pair = NOWHERE not in (call, result)
        if is_pair and entries[call].source_context_id == entries[result].source_context_id:
            yield call, entries[result]


@dataclass(frozen=True)
class Section:
    """One context of a frame: what it is, and those of its messages that are shown."""

    title: str
    about: str
    entries: list[Entry]


def sections_of(rows: pd.DataFrame, shown: int) -> list[Section]:
    """Sections of the first rows; what they say of a context counts all rows."""
    return [
        Section(_title(run[0]), _about(rows[_is_of(rows, context_id)], run[0]), run)
        for context_id, run in _runs(entries_of(rows[:shown]))
    ]


def _runs(entries: list[Entry]) -> Iterator[tuple[str, list[Entry]]]:
    for context_id, run in groupby(entries, lambda entry: entry.context_id):
        yield context_id, list(run)


def _is_of(rows: pd.DataFrame, context_id: str) -> "pd.Series[bool]":
    return rows["context_id"] == context_id if context_id else rows["context_id"].isna()


def _title(first: Entry) -> str:
    return short(first.name or (f"context {first.context_id}" if first.context_id else "transcript"))


def _about(rows: pd.DataFrame, first: Entry) -> str:
    parts = [short(first.context_id)] if first.name and first.context_id else []
    parts.append(count(len(rows), "message"))
    if rows["token_count"].notna().any():
        parts.append(count(int(rows["token_count"].sum()), "token"))
    for word, flags in {"inherited": rows["inherited"].eq(True), "deleted": rows["deleted_at"].notna()}.items():
        if flags.any():
            parts.append(f"{flags.sum():,} {word}")
    return ", ".join(parts)


def left_out(rows: pd.DataFrame, shown: int) -> str:
    """What is said where not all rows are shown."""
    more = count(len(rows) - shown, "more message")
    return f"{more} of {len(rows):,}; show(history.iloc[{shown}:]) shows what follows" if shown < len(rows) else ""
