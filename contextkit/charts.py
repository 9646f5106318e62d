"""Altair charts that hold messages, and show them safely and offline. Imports Altair, so it is imported when used."""

import json
import re
import struct
from typing import Any

import pandas as pd

from contextkit.errors import MissingExtraError
from contextkit.visible import visible_line

try:
    import altair as alt
    import vl_convert
except ModuleNotFoundError as error:
    raise MissingExtraError(f"{error.name} is not installed; pip install 'contextkit[notebook]'") from None

SHOWN = 90
"""Characters of a message in a tooltip."""
PALETTE = ["#4c78a8", "#f58518", "#54a24b", "#e45756", "#72b7b2", "#b279a2", "#eeca3b", "#9d755d", "#ff9da6"]
"""A colour for each category; what has none of its own is grey."""
GREYS = ["#8c8c8c", "#c4c4c4"]
NULL = "none"
OTHERS = "others"
SHARPNESS = 2
WIDTH = 640
HEIGHT = 300
LANE_HEIGHT = 20
NAMED_LANES = 120
"""Contexts up to which each has its name beside it."""
DOTTED_STEPS = 80
"""Messages up to which a running total shows each."""
WAYS = ["root", "reference", "copy", "renumbered"]
VEGALITE_VERSION = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
LAB_MIME = "application/vnd.vegalite.v5+json"
LAB_SCHEMA = "https://vega.github.io/schema/vega-lite/v5.json"


class _ShownOffline:
    """Shows a chart without Altair's HTML, which loads Vega from a server and holds the data unescaped.

    JupyterLab draws the specification with the Vega that it brings along, under the newest type that it knows;
    everything else, such as a notebook converted to HTML, shows the picture.
    """

    def _repr_mimebundle_(self: Any, *_: Any, **__: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        spec = self.to_dict()
        picture = vl_convert.vegalite_to_png(spec, vl_version=VEGALITE_VERSION, scale=SHARPNESS)
        width, height = struct.unpack(">II", picture[16:24])  # where PNG has them
        bundle = {
            LAB_MIME: spec | {"$schema": LAB_SCHEMA},
            "image/png": picture,
            "text/plain": "a chart: notebooks show it, and save('chart.png') writes it",
        }
        return bundle, {"image/png": {"width": width // SHARPNESS, "height": height // SHARPNESS}}


class OfflineChart(_ShownOffline, alt.Chart):
    """`alt.Chart`, shown offline."""


class OfflineLayerChart(_ShownOffline, alt.LayerChart):
    """`alt.LayerChart`, shown offline."""


class InlineRows(alt.InlineData):
    """Rows within a chart. Altair limits those of frames to 5,000, and takes half a minute to check 50,000."""

    _class_is_valid_at_instantiation = False


def inline(frame: pd.DataFrame) -> InlineRows:
    """Rows of a frame, times as if they were UTC: so they look as in the frame, whatever the reader's zone."""
    shown = frame.copy()
    for name in frame.select_dtypes(["datetime", "datetimetz"]):
        shown[name] = frame[name].dt.tz_localize(None).dt.tz_localize("UTC")
    return InlineRows(values=json.loads(shown.to_json(orient="records", date_format="iso", date_unit="ms")))


def words(texts: "pd.Series[Any]") -> "pd.Series[Any]":
    """First words of texts on one line, safe in any page that a chart is written to.

    Altair writes data into a script as they are, where "</script>" would end it: so another sign stands for "<".
    """
    return texts.map(_words, na_action="ignore")


def _words(text: object) -> str:
    line = visible_line(str(text)[: SHOWN * 4])
    line = line if len(line) <= SHOWN else f"{line[:SHOWN].rstrip()} …"
    return line.replace("<", "\u2039")


def categories(values: "pd.Series[Any]") -> "pd.Series[Any]":
    """Labels of values: those that occur most, "others" for what there are no more colours for, "none" for null."""
    labels = words(values.astype("str"))
    kept = labels.value_counts().index[: len(PALETTE)]
    return labels.where(labels.isin(kept) | labels.isna(), OTHERS).fillna(NULL)


def colors(values: "pd.Series[Any]") -> "pd.Series[Any]":
    """Numbers and times as they are, to be drawn by a scale; anything else as `categories`."""
    kind = values.dtype
    scaled = pd.api.types.is_numeric_dtype(kind) and not pd.api.types.is_bool_dtype(kind)
    return values if scaled or pd.api.types.is_datetime64_any_dtype(kind) else categories(values)


def draw_forks(rows: pd.DataFrame, notes: list[str]) -> OfflineLayerChart:
    """Draw the rows of `with_lanes`, with name, label, deleted and perhaps last_message."""
    lanes = max(len(rows), 1)
    height = LANE_HEIGHT * min(lanes, NAMED_LANES)
    lane = alt.Y("lane:Q", axis=None, scale=alt.Scale(domain=[lanes - 0.5, -0.5], nice=False))
    start = alt.X("starts_at:Q", title="version", axis=alt.Axis(tickMinStep=1, format=",d"))
    base = OfflineChart(inline(rows)).encode(y=lane)
    line = base.mark_rule(color=GREYS[0])
    down = line.transform_filter("isValid(datum.parent_lane)").encode(x=start, y2="parent_lane:Q")
    ends = _ends(base, height / lanes, "last_message" in rows)
    live = ends.mark_point(filled=True, opacity=1).transform_filter("!datum.deleted")
    hollow = ends.mark_point(fill="white", opacity=1).transform_filter("datum.deleted")
    layers = [down, line.encode(x=start, x2="ends_at:Q"), live, hollow]
    chart = OfflineLayerChart(layer=layers, title=_title("Forks", notes), width=WIDTH, height=height)
    if lanes > NAMED_LANES:
        return chart.interactive()
    chart.layer.append(base.mark_text(align="left", dx=10, limit=260).encode(x="ends_at:Q", text="label:N"))
    return chart


def _ends(base: OfflineChart, space: float, has_last_message: bool) -> OfflineChart:
    named = {"name:N": "name", "length:Q": "messages", "fork_version:Q": "forks at", "depth:Q": "depth"}
    if has_last_message:
        named["last_message:N"] = "last message"
    sizes = alt.Scale(range=[space, min(9 * space, space**2)])
    ways = alt.Scale(domain=WAYS, range=PALETTE[: len(WAYS)])
    ends: OfflineChart = base.encode(
        x="ends_at:Q",
        size=alt.Size("length:Q", scale=sizes, legend=None),
        color=alt.Color("written_by:N", title=None, scale=ways, legend=alt.Legend(orient="top")),
        tooltip=[alt.Tooltip(field, title=title) for field, title in named.items()],
    )
    return ends


def draw_tokens(rows: pd.DataFrame, budget: float | None, notes: list[str]) -> OfflineLayerChart:
    """Draw running totals: of each step (a version or an instant) and category the tokens up to it."""
    step, category, tokens = rows.columns
    dots = alt.OverlayMarkDef(size=18, filled=True) if rows[step].nunique() <= DOTTED_STEPS else False
    area = OfflineChart(inline(rows)).mark_area(interpolate="step-after", opacity=0.8, point=dots)
    across = _field(alt.X, rows, step)
    up = alt.Y(f"{tokens}:Q", title="tokens", stack="zero", axis=alt.Axis(format=",d"))
    layers = [area.encode(x=across, y=up, color=_color(rows, category))]
    if budget is not None:
        line = OfflineChart(InlineRows(values=[{"budget": budget}])).encode(y="budget:Q")
        said = line.mark_text(align="left", baseline="bottom", x=4, dy=-3, fontWeight="bold")
        layers += [line.mark_rule(strokeDash=[6, 4]), said.encode(text=alt.value(f"budget {budget:,}"))]
    return OfflineLayerChart(layer=layers, title=_title("Tokens, running total", notes), width=WIDTH, height=HEIGHT)


def draw_activity(rows: pd.DataFrame) -> OfflineChart:
    """Draw bars: of each day and category the messages."""
    day, category, messages = rows.columns
    across = alt.X(f"utcyearmonthdate({day}):T", title="day", axis=alt.Axis(labelOverlap=True))
    up = alt.Y(f"{messages}:Q", title="messages", axis=alt.Axis(tickMinStep=1, format=",d"))
    chart = OfflineChart(inline(rows), title=_title("Messages per day", []), width=WIDTH, height=HEIGHT).mark_bar()
    # A title of its own: Vega takes what a tooltip calls "image" for an address.
    told = alt.Tooltip(_escaped(category), type="nominal", title=f"by {category}")
    bars: OfflineChart = chart.encode(
        x=across,
        y=up,
        color=_color(rows, category),
        tooltip=[alt.Tooltip(f"utcyearmonthdate({day}):T", title="day"), told, f"{messages}:Q"],
    )
    return bars


def draw_places(rows: pd.DataFrame, notes: list[str]) -> OfflineChart:
    """Draw points: by the first two columns, coloured by the third; the others are shown in tooltips."""
    x, y, color, *told = rows.columns
    chart = OfflineChart(inline(rows), title=_title("Messages by embedding", notes), width=WIDTH, height=WIDTH * 3 // 4)
    points: OfflineChart = chart.mark_circle(size=max(8, 60 - len(rows) // 100), opacity=0.7).encode(
        x=_field(alt.X, rows, x),
        y=_field(alt.Y, rows, y),
        color=_color(rows, color),
        tooltip=[alt.Tooltip(f"{name}:N", title=name) for name in told],
    )
    return points.interactive()


def _field(channel: Any, rows: pd.DataFrame, name: str) -> Any:
    """Give the encoding of a column, typed as the frame has it."""
    kind = rows.dtypes[name]
    if pd.api.types.is_datetime64_any_dtype(kind):
        return channel(_escaped(name), type="temporal", title=name, scale=alt.Scale(type="utc"))
    if pd.api.types.is_numeric_dtype(kind):
        return channel(_escaped(name), type="quantitative", title=name, scale=alt.Scale(zero=False))
    return channel(_escaped(name), type="nominal", title=name)


def _color(rows: pd.DataFrame, name: str) -> alt.Color:
    if pd.api.types.is_numeric_dtype(rows[name]) or pd.api.types.is_datetime64_any_dtype(rows[name]):
        color: alt.Color = _field(alt.Color, rows, name)
        return color
    rest = [label for label in (OTHERS, NULL) if label in set(rows[name])]
    known = sorted(set(rows[name]) - set(rest))
    scale = alt.Scale(domain=known + rest, range=PALETTE[: len(known)] + GREYS[: len(rest)])
    return alt.Color(_escaped(name), type="nominal", title=name, scale=scale)


def _escaped(name: str) -> str:
    return re.sub(r"([.\[\]\\'\"])", r"\\\1", name)  # else a path into an object


def _title(text: str, notes: list[str]) -> alt.Title:
    return alt.Title(text, subtitle=notes, anchor="start")
