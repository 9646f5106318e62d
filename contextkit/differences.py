"""Where two histories part."""

from uuid import UUID

import numpy as np
import pandas as pd
from sqlalchemy import Engine

from contextkit.derived import is_call
from contextkit.frames import history_df, read_df
from contextkit.models import canonical_id
from contextkit.queries import select_lineages
from contextkit.steps import with_turn


def diff_df(engine: Engine, left: str | UUID, right: str | UUID) -> pd.DataFrame:
    """What two effective histories begin with in common, then the messages of each, turn by turn.

    Messages are shared as long as both histories say the same at the same position: equal role, content and
    tool_name. So it does not matter how a fork is written, nor whether the contexts are related at all; ids of tool
    calls, models, times and token counts may differ. From the first difference on nothing is shared, even where the
    histories agree again. A message that was deleted from one of them alone is such a difference.

    Args:
        engine: from `connect`.
        left: one context.
        right: another, or the same one.

    Returns:
        side (both, left, right), turn (as `with_turn` counts), the columns of `history_df`, of a shared message
        the left's, and right_message_id and right_version: of a shared message the right's, else null. First what
        is shared, then by turn, left before right, then position. `attrs` has ancestor (the nearest context that
        both inherit from, or are; or null), parted_at (the left's version of the last shared message, or null
        where nothing is shared) and for each of shared, left and right the numbers of messages, tokens (a null
        token_count as 0) and tool_calls.

    Raises:
        NotFoundError: a context does not exist, or is deleted.
        LineageError: the parents of a context form a cycle.
        ValueError: an id is no UUID.

    >>> parent, fork = contexts_df(engine, Context.name.startswith("postgres"))["context_id"][:2]
    >>> difference = diff_df(engine, parent, fork)
    >>> difference[["side", "turn", "role", "position"]].tail(3)
        side  turn       role  position
    7  right     3       user         6
    8  right     3  assistant         7
    9  right     4       user         8
    >>> difference.attrs["parted_at"]
    5
    """
    ids = [canonical_id(left), canonical_id(right)]
    history = with_turn(history_df(engine, ids))
    ours, theirs = (history[history["context_id"] == id_].reset_index(drop=True) for id_ in ids)
    shared = _shared(ours, theirs)
    parts = {"shared": ours[:shared], "left": ours[shared:], "right": theirs[shared:]}
    own = pd.concat([parts["left"].assign(side="left"), parts["right"].assign(side="right")])
    own = own.sort_values(["turn", "side", "position"])
    frame = pd.concat([parts["shared"].assign(side="both"), own], ignore_index=True)
    columns = ["side", "turn", *history.columns.drop("turn")]
    paired = theirs[:shared].astype({"version": "Int64"})  # shorter than the frame, whose other rows get nulls
    frame = frame[columns].assign(right_message_id=paired["message_id"], right_version=paired["version"])
    frame.attrs = {
        "function": "diff_df",
        "asked": {"left": ids[0], "right": ids[1]},
        "ancestor": _common_ancestor(engine, ids),
        "parted_at": int(ours["version"][shared - 1]) if shared else None,
        **{name: _figures(part) for name, part in parts.items()},
    }
    return frame


def _shared(left: pd.DataFrame, right: pd.DataFrame) -> int:
    """How many messages both begin with."""
    length = min(len(left), len(right))
    ours, theirs = (_said(history[:length]) for history in (left, right))
    equal = ((ours == theirs) | (ours.isna() & theirs.isna())).all(axis=1)
    return int(np.logical_and.accumulate(equal).sum())


def _said(history: pd.DataFrame) -> pd.DataFrame:
    return history[["role", "content", "tool_name"]].assign(is_call=is_call(history))


def _common_ancestor(engine: Engine, ids: list[str]) -> str | None:
    lineages = read_df(engine, select_lineages(ids)).groupby("context_id", sort=False)["ancestor_id"]
    ours, theirs = (lineages.get_group(id_) for id_ in ids)
    return next(iter(ours[ours.isin(theirs)]), None)


def _figures(part: pd.DataFrame) -> dict[str, int]:
    return {
        "messages": len(part),
        "tokens": int(part["token_count"].fillna(0).sum()),
        "tool_calls": int(is_call(part).sum()),
    }
