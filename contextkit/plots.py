"""Charts of frames, to refine with Altair.

Each gives an `alt.Chart` or an `alt.LayerChart` of at most 50,000 points; where the frame has more, the subtitle says
which are drawn. An empty frame gives an empty chart.

Content is hostile, and Altair's own HTML holds it unescaped and loads Vega from a server. So these charts show without
it, in a saved notebook and offline, too: JupyterLab draws them with the Vega that it brings along, and what cannot,
such as a notebook converted to HTML, has a picture. Whatever a chart is written to, texts cannot run there: control
characters stand as escapes, and a quotation mark for "<". Charts combined by `+`, `|` or `&` are Altair's own again: as
safe, but shown in Altair's way; `alt.renderers.enable("png")` shows those offline.
"""

from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from contextkit.steps import with_projection
from contextkit.tree import with_lanes

if TYPE_CHECKING:
    import altair as alt

POINTS = 50_000
PLACES = ["projection_x", "projection_y"]


def plot_forks(forks: pd.DataFrame) -> "alt.LayerChart":
    """Tree of forks: each context a line, from the version where it forks to a circle at its end.

    The circle's size is the length of the history, its colour how the fork is written; a deleted context is hollow.
    Tooltips show the name and the last message. Versions go on where a renumbered fork begins again at 1. A fork whose
    parent is not in the frame stands alone. Up to 120 contexts have their name beside them, or what was said last;
    with more, drag to move and scroll to zoom. Safe with any content, and shown offline: `contextkit.plots` says how.

    Args:
        forks: rows of `forks_df`. Whether contexts are deleted and what was said last is shown if the columns
            deleted_at (of `contexts_df`) and last_message are merged into it.

    Raises:
        ValueError: a column is missing.
        MissingExtraError: Altair is not installed.
    """
    from contextkit import charts

    columns = ["context_id", "name", "parent_id", "fork_version", "depth", "written_by", "length"]
    _check("plot_forks", forks, columns)
    drawn = with_lanes(forks)[:POINTS]  # in the order of the trees, so that a parent is drawn if its fork is
    notes = [f"the first {len(drawn):,} of {len(forks):,} contexts"] if len(drawn) < len(forks) else []
    rows = drawn[[*columns, "lane", "parent_lane", "starts_at", "ends_at"]].assign(
        name=charts.words(drawn["name"]).fillna(""),
        deleted=drawn["deleted_at"].notna() if "deleted_at" in drawn else False,
    )
    rows["label"] = rows["name"]
    if "last_message" in drawn:
        rows["last_message"] = charts.words(drawn["last_message"])
        rows["label"] = rows["name"].where(drawn["name"].notna(), rows["last_message"]).fillna("")
    return charts.draw_forks(rows, notes)


def plot_tokens(
    messages: pd.DataFrame,
    *,
    by: str = "role",
    over: Literal["version", "time"] = "version",
    budget: float | None = None,
) -> "alt.LayerChart":
    """Running total of tokens, stacked by role, by model, or by any column.

    Safe with any content, and shown offline: `contextkit.plots` says how.

    Args:
        messages: from `history_df`, `window_df` or `messages_df`.
        by: the column to stack by; what is rare in it is drawn as one.
        over: version: message by message, of one context (by position, where the frame has it, as versions may
            repeat). time: by created_at, of any number of contexts, messages that several inherit counted once.
        budget: tokens, drawn as a line.

    Raises:
        ValueError: a column is missing, or `over` is version and the frame has several contexts.
        MissingExtraError: Altair is not installed.
    """
    from contextkit import charts

    if over not in ("version", "time"):
        raise ValueError(f"over is version or time, not {over!r:.40}")
    step = "created_at" if over == "time" else "position" if "position" in messages else "version"
    _check("plot_tokens", messages, ["token_count", step, by])
    if over == "version" and "context_id" in messages and messages["context_id"].nunique() > 1:
        raise ValueError("the frame has several contexts; choose one, or pass over='time'")
    once = _once(messages)
    rows = pd.DataFrame(
        {step: once[step], by: charts.categories(once[by]), "tokens": once["token_count"].fillna(0).astype("int64")}
    )
    totals = rows.pivot_table(index=step, columns=by, values="tokens", aggfunc="sum", fill_value=0).cumsum()
    most = POINTS // max(totals.shape[1], 1)
    notes = [f"{most:,} of {len(totals):,} steps, sampled"] if len(totals) > most else []
    if uncounted := int(once["token_count"].isna().sum()):
        notes.append(f"without a token_count, counted as 0: {uncounted:,}")
    drawn = _sampled(totals, most).melt(ignore_index=False, value_name="tokens").reset_index()
    return charts.draw_tokens(drawn[[step, by, "tokens"]], budget, notes)


def plot_activity(messages: pd.DataFrame, *, by: str = "model") -> "alt.Chart":
    """Bars of how many messages each day has, stacked by model, by role, or by any column.

    Safe with any content, and shown offline: `contextkit.plots` says how.

    Args:
        messages: from `messages_df` or `history_df`; messages that several contexts inherit are counted once. Days are
            those of the time zone of created_at: UTC, unless the frame was converted with `dt.tz_convert`.
        by: the column to stack by; what is rare in it is drawn as one.

    Raises:
        ValueError: a column is missing.
        MissingExtraError: Altair is not installed.
    """
    from contextkit import charts

    _check("plot_activity", messages, ["created_at", by])
    once = _once(messages)
    rows = pd.DataFrame({"day": once["created_at"].dt.tz_localize(None).dt.floor("D"), by: charts.categories(once[by])})
    counts = rows.groupby(["day", by], as_index=False).size().rename(columns={"size": "messages"})
    return charts.draw_activity(counts)


def plot_embeddings(
    messages: pd.DataFrame, *, x: str = "projection_x", y: str = "projection_y", color: str = "role"
) -> "alt.Chart":
    """Map of messages, a point each: near are those whose embeddings are alike.

    Without columns of its own the map is that of `with_projection`, of the points that are drawn. Rows that have no
    place on it are left out, and the subtitle says how many. Drag to move and scroll to zoom; tooltips show role and
    first words. Safe with any content, and shown offline: `contextkit.plots` says how.

    Args:
        messages: from `messages_df` or `history_df`: with embeddings, or with the columns `x` and `y`.
        x: a column of numbers.
        y: another.
        color: any column: text by its most frequent values, numbers and times by a scale.

    Raises:
        ValueError: a column is missing, or is not what it has to be.
        MissingExtraError: Altair is not installed.
    """
    from contextkit import charts

    projects = [x, y] == PLACES and not {x, y} & set(messages.columns)
    _check("plot_embeddings", messages, [color, *(["embedding"] if projects else [x, y])])
    placed = messages[messages[["embedding"] if projects else [x, y]].notna().all(axis=1)]
    notes = [f"{POINTS:,} of {len(placed):,} messages, sampled"] if len(placed) > POINTS else []
    if lost := len(messages) - len(placed):
        notes.append(f"without a place, left out: {lost:,}")
    drawn = _sampled(placed, POINTS)
    drawn = with_projection(drawn) if projects else drawn
    for name in (x, y):
        if not pd.api.types.is_numeric_dtype(drawn[name]):
            raise ValueError(f"a place on the map is a number, and the column {name} is {drawn[name].dtype}")
    rows = drawn[[x, y]].assign(**{color: charts.colors(drawn[color])})
    told = [name for name in ("role", "content") if name in drawn and name != color]
    return charts.draw_places(rows.assign(**{name: charts.words(drawn[name]) for name in told}), notes)


def _check(function: str, frame: pd.DataFrame, columns: list[str]) -> None:
    if missing := [name for name in columns if name not in frame]:
        raise ValueError(f"{function} needs the columns {', '.join(columns)}; the frame lacks {', '.join(missing)}")


def _once(messages: pd.DataFrame) -> pd.DataFrame:
    return messages.drop_duplicates("message_id") if "message_id" in messages else messages


def _sampled(frame: pd.DataFrame, most: int) -> pd.DataFrame:
    """At most so many rows, always the same, in their order and with the last one."""
    if len(frame) <= most:
        return frame
    places = np.random.default_rng(0).choice(len(frame) - 1, most - 1, replace=False)
    return frame.iloc[[*np.sort(places), len(frame) - 1]]
