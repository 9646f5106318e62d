"""Frames that are worked out of histories: tool calls with their results, windows of a token budget."""

import math
from collections import defaultdict, deque
from uuid import UUID

import numpy as np
import pandas as pd
from sqlalchemy import Engine

from contextkit.frames import history_df

NOWHERE = -1
"""A place that no row of a history has."""


def tool_calls_df(engine: Engine, contexts: object) -> pd.DataFrame:
    """One row per tool call with its result, and per result without a call, in effective histories.

    A call is an assistant message with a tool_call_id or a tool_name, a result a tool message. A result answers the
    earliest unanswered call before it that has its id, in the same history: ids mean nothing beyond it, and a null
    id answers nothing.

    Args:
        engine: from `connect`.
        contexts: one id, or an iterable or column of ids; each is taken once.

    Returns:
        context_id (as asked), tool_call_id, tool_name (the call's, else the result's), call_message_id,
        call_version, result_message_id, result_version, arguments and result (the two contents), seconds (from the
        call's created_at to the result's, so negative where times contradict the order), status: ok, no_result,
        no_call, or duplicate for every row of an id that several calls or several results of the history have. By
        the order of `contexts`, then the position of the call, or of the result that has none.

    Raises:
        NotFoundError: a context does not exist, or is deleted.
        LineageError: the parents of a context form a cycle.
        ValueError: an id is no UUID.

    >>> calls = tool_calls_df(engine, contexts_df(engine)["context_id"])
    >>> calls.loc[calls["status"] != "ok", ["tool_name", "status"]]
              tool_name     status
    20  reissue_invoice  no_result
    """
    history = history_df(engine, contexts)
    calls, results = paired(history)
    nullable = history.astype({"version": "Int64"})
    call, result = (nullable.reindex(places).reset_index(drop=True) for places in (calls, results))
    frame = pd.DataFrame(
        {
            "context_id": call["context_id"].fillna(result["context_id"]),
            "tool_call_id": call["tool_call_id"].fillna(result["tool_call_id"]),
            "tool_name": call["tool_name"].fillna(result["tool_name"]),
            "call_message_id": call["message_id"],
            "call_version": call["version"],
            "result_message_id": result["message_id"],
            "result_version": result["version"],
            "arguments": call["content"],
            "result": result["content"],
            "seconds": (result["created_at"] - call["created_at"]).dt.total_seconds(),
        }
    )
    frame["status"] = _status(frame)
    frame.attrs = {"function": "tool_calls_df", "asked": {"contexts": history.attrs["asked"]["contexts"]}}
    return frame


def paired(history: pd.DataFrame) -> tuple[list[int], list[int]]:
    """Places in a history of calls and of their results, in the order of the calls, NOWHERE for what is missing."""
    tools = history.loc[is_call(history) | (history["role"] == "tool"), ["context_id", "tool_call_id", "role"]]
    calls: list[int] = []
    results: list[int] = []
    unanswered: defaultdict[tuple[str, str], deque[int]] = defaultdict(deque)
    for place, context_id, tool_call_id, role in tools.itertuples(name=None):
        waiting = unanswered[context_id, tool_call_id]
        if role == "assistant":
            waiting.append(len(calls))
            calls.append(place)
            results.append(NOWHERE)
        elif waiting and isinstance(tool_call_id, str):  # not null
            results[waiting.popleft()] = place
        else:
            calls.append(NOWHERE)
            results.append(place)
    return calls, results


def is_call(history: pd.DataFrame) -> "pd.Series[bool]":
    """Flags of a history's rows that are tool calls."""
    return (history["role"] == "assistant") & history[["tool_call_id", "tool_name"]].notna().any(axis=1)


def _status(frame: pd.DataFrame) -> "pd.Series[str]":
    sides = ["call_message_id", "result_message_id"]
    has_call, has_result = (frame[side].notna() for side in sides)
    counts = frame.groupby(["context_id", "tool_call_id"], dropna=False)[sides].transform("count")
    several = frame["tool_call_id"].notna() & (counts > 1).any(axis=1)
    words = np.select([several, ~has_result, ~has_call], ["duplicate", "no_result", "no_call"], "ok")
    return pd.Series(words, dtype="str")


def window_df(engine: Engine, context_id: str | UUID, budget: float, *, at_version: int | None = None) -> pd.DataFrame:
    """The newest messages of an effective history that fit a token budget, oldest first.

    Messages are taken from the newest on, up to the first that would exceed the budget; an older, smaller one is not
    taken in its place. A null token_count is 0. The newest message is always taken, even if it exceeds the budget
    alone.

    Args:
        engine: from `connect`.
        context_id: one context.
        budget: tokens, above 0.
        at_version: the history up to that version, as for `history_df`.

    Returns:
        The columns of `history_df` (position as in the whole history) and running_total: the tokens from the first
        message of the window up to and including this one. `attrs` counts messages_left_out and tokens_left_out,
        of the older messages that did not fit, and messages_uncounted, those taken without a token_count. A window
        may begin with a tool's result whose call did not fit, which APIs refuse.

    Raises:
        NotFoundError: the context does not exist, or is deleted.
        LineageError: the parents of the context form a cycle.
        ValueError: the budget is not positive, or not finite; `at_version` is negative; or the id is no UUID.

    >>> context = contexts_df(engine)["context_id"][0]
    >>> window = window_df(engine, context, 80)
    >>> window[["position", "token_count", "running_total"]]
       position  token_count  running_total
    0        12           23             23
    1        13           46             69
    2        14            8             77
    >>> window.attrs["messages_left_out"]
    11
    """
    if not isinstance(context_id, str | UUID):
        raise TypeError(f"a window is of one context: pass one id, not {type(context_id).__name__}")
    budget = _checked(budget)
    history = history_df(engine, context_id, at_version=at_version)
    tokens = history["token_count"].fillna(0).to_numpy(np.int64)
    start = _start(tokens, budget)
    window = history.iloc[start:].reset_index(drop=True).assign(running_total=tokens[start:].cumsum())
    window.attrs = {
        "function": "window_df",
        "asked": {"budget": budget, "at_version": history.attrs["asked"]["at_version"]},
        "messages_left_out": start,
        "tokens_left_out": int(tokens[:start].sum()),
        "messages_uncounted": int(window["token_count"].isna().sum()),
    }
    return window


def _checked(budget: object) -> int | float:
    if isinstance(budget, bool) or not isinstance(budget, int | float | np.integer | np.floating):
        raise TypeError(f"a budget is a number of tokens, not {type(budget).__name__}")
    number = int(budget) if isinstance(budget, int | np.integer) else float(budget)
    if not 0 < number < math.inf:  # NaN neither
        raise ValueError(f"a budget is a finite number of tokens above 0, not {number!r:.40}")
    return number


def _start(tokens: "np.ndarray[tuple[int], np.dtype[np.int64]]", budget: float) -> int:
    """Give the place of the first message that is taken."""
    fits = np.logical_and.accumulate(tokens[::-1].cumsum() <= budget)
    return max(len(tokens) - max(int(fits.sum()), 1), 0)
