"""What two histories say differently, as entries beside each other."""

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import zip_longest

import pandas as pd
from sqlalchemy import Engine

from contextkit.derived import is_call
from contextkit.frames import contexts_df
from contextkit.models import Context
from contextkit.show.entries import Entry, checked, entries_of, fitting
from contextkit.show.rendered import count, short

Pair = tuple[Entry | None, Entry | None]


@dataclass(frozen=True)
class Difference:
    """Titles, what is said of both, figures of each; what is shared, then pairs by turn; what is left out of both."""

    titles: tuple[str, str]
    about: str
    figures: list[tuple[str, str, str]]
    shared: list[Entry]
    before: str
    turns: dict[int, list[Pair]]
    more: str


def difference_of(engine: Engine, frame: pd.DataFrame) -> Difference:
    """What is shown of a frame of `diff_df`."""
    left, right = frame.attrs["asked"]["left"], frame.attrs["asked"]["right"]
    names = _names(engine, [left, right, frame.attrs["ancestor"] or left])
    rows = checked(frame)
    shared, own = rows[frame["side"] == "both"], rows[frame["side"] != "both"]
    tail, shown = fitting(shared[::-1]), _shown_of(frame, own)
    return Difference(
        titles=(names.get(left, f"context {left}"), names.get(right, f"context {right}")),
        about=_about(frame, names),
        figures=[("context", left, right), *_figures(frame)],
        shared=entries_of(shared.tail(tail)),
        before=_more(len(shared) - tail, "before, in diff_df(engine, left, right)"),
        turns=_turns(frame, shown),
        more=_more(len(own) - len(shown), "after, in diff_df(engine, left, right)"),
    )


def _shown_of(frame: pd.DataFrame, own: pd.DataFrame) -> pd.DataFrame:
    """Rows that are shown: the first of both sides, as a frame has all of one side's turn before the other's."""
    places = pd.DataFrame({"turn": frame["turn"], "rank": own.groupby([frame["turn"], frame["side"]]).cumcount()})
    order = places.loc[own.index].sort_values(["turn", "rank"]).index
    return own.loc[order[: fitting(own.loc[order])]].sort_index()


def _names(engine: Engine, ids: list[str]) -> dict[str, str]:
    """Names of those contexts that have one."""
    contexts = contexts_df(engine, Context.id.in_(ids), include_deleted=True).dropna(subset="name")
    return {id_: short(name) for id_, name in zip(contexts["context_id"], contexts["name"], strict=True)}


def _about(frame: pd.DataFrame, names: dict[str, str]) -> str:
    ancestor, shared = frame.attrs["ancestor"], frame.attrs["shared"]["messages"]
    named = f"{names[ancestor]}, {ancestor}" if ancestor in names else ancestor
    related = f"common ancestor: {named}" if ancestor else "no common ancestor"
    if frame.empty:
        return f"no difference: neither has messages; {related}"
    if not shared and not all(frame.attrs[side]["messages"] for side in ("left", "right")):
        return f"no common content: one has no messages; {related}"
    if not shared:
        return f"no common content: the first messages differ already; {related}"
    if shared == len(frame):
        return f"no difference: both say the same in {count(shared, 'message')}; {related}"
    parted = f"they part after version {frame.attrs['parted_at']}"
    return f"{count(shared, 'message')} in common; {parted}; {related}"


def _figures(frame: pd.DataFrame) -> Iterator[tuple[str, str, str]]:
    parts = {side: frame[frame["side"] == side] for side in ("left", "right")}
    for what in ("messages", "tokens"):
        left, right = (frame.attrs[side][what] for side in parts)
        yield what, f"{left:,}", f"{right:,}" + (f" ({right - left:+,})" if right != left else "")
    for what, rows in {
        "tools": {side: part.loc[is_call(part), "tool_name"] for side, part in parts.items()},
        "models": {side: part["model"] for side, part in parts.items()},
    }.items():
        yield what, _counted(rows["left"]), _counted(rows["right"])


def _counted(values: "pd.Series[str]") -> str:
    counts = values.value_counts()
    words = [f"{short(name)}" + (f" ({times})" if times > 1 else "") for name, times in counts.head(10).items()]
    return ", ".join(words + ([f"{len(counts) - 10} more"] if len(counts) > 10 else [])) or "none"


def _more(number: int, where: str) -> str:
    return f"{count(number, 'more message')} {where}" if number else ""


def _turns(frame: pd.DataFrame, own: pd.DataFrame) -> dict[int, list[Pair]]:
    return {int(turn): _aligned(*_sides(frame, rows)) for turn, rows in own.groupby(frame["turn"])}


def _sides(frame: pd.DataFrame, rows: pd.DataFrame) -> Iterator[list[Entry]]:
    for side in ("left", "right"):
        yield entries_of(rows[frame.loc[rows.index, "side"] == side])


def _aligned(left: list[Entry], right: list[Entry]) -> list[Pair]:
    """Pairs of one turn's messages: such of the same kind beside each other, as far as the order allows."""
    ours, theirs = ([(entry.role, entry.is_call, entry.tool_name) for entry in side] for side in (left, right))
    matcher = SequenceMatcher(None, ours, theirs, autojunk=False)
    return [
        pair
        for _, start, end, other_start, other_end in matcher.get_opcodes()
        for pair in zip_longest(left[start:end], right[other_start:other_end])
    ]
