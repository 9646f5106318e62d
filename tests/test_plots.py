"""Charts: what they draw, of frames as the functions give them, and that content runs in none of them."""

import base64
import json
import re
import subprocess
import sys
from typing import Any

import altair as alt
import nbformat
import numpy as np
import pandas as pd
import pytest
import vl_convert
from nbconvert import HTMLExporter
from sqlalchemy import Engine

from contextkit import (
    add_context,
    append_messages,
    contexts_df,
    delete_context,
    fork_context,
    forks_df,
    history_df,
    load_sample,
    messages_df,
    plot_activity,
    plot_embeddings,
    plot_forks,
    plot_tokens,
    plots,
    with_projection,
)
from contextkit.tree import with_lanes
from tests.test_derived import user

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)> \x1b[31m \u202egnp"
CHARTS = {
    "forks": lambda messages, forks: plot_forks(forks),
    "tokens": lambda messages, forks: plot_tokens(messages, by="model", budget=5),
    "activity": lambda messages, forks: plot_activity(messages),
    "embeddings": lambda messages, forks: plot_embeddings(messages, color="model"),
}


def frames(rows: int = 4, text: str = "hello") -> tuple[pd.DataFrame, pd.DataFrame]:
    """Messages of one context with a place on a map, and a root with its forks."""
    places = np.arange(rows)
    messages = pd.DataFrame(
        {
            "message_id": places.astype(str),
            "context_id": "a",
            "version": places + 1,
            "created_at": pd.Timestamp("2026-01-01T20:00Z") + pd.to_timedelta(places * 3, "h"),
            "role": np.where(places % 2, "assistant", "user"),
            "content": text,
            "token_count": pd.array(places * 10, dtype="Int64"),
            "model": np.where(places % 2, text, None),
            "projection_x": places / 2,
            "projection_y": places % 3,
        }
    )
    forks = pd.DataFrame(
        {
            "context_id": places.astype(str),
            "name": text,
            "parent_id": np.where(places == 0, None, "0"),
            "fork_version": pd.array(places, dtype="Int64").copy(),
            "depth": pd.array(np.minimum(places, 1), dtype="Int64"),
            "written_by": np.where(places == 0, "root", "reference"),
            "length": places + 3,
            "last_message": text,
        }
    )
    forks.loc[forks["depth"] == 0, "fork_version"] = pd.NA
    return messages.astype({"role": "str", "model": "str"}), forks


def rows_of(chart: Any) -> list[dict[str, Any]]:
    """The rows that a chart draws; a budget aside."""
    return max(chart.to_dict()["datasets"].values(), key=len)


def subtitle(chart: Any) -> list[str]:
    return list(chart.to_dict()["title"]["subtitle"])


def drawn(chart: Any) -> bytes:
    """The picture, which Vega-Lite refuses where the chart is wrong."""
    picture: bytes = chart._repr_mimebundle_()[0]["image/png"]
    assert picture.startswith(b"\x89PNG")
    return picture


# What all charts have in common


@pytest.mark.parametrize("chart", CHARTS)
def test_a_chart_is_one_of_altair_and_stays_safe_when_refined(chart: str) -> None:
    made = CHARTS[chart](*frames())
    assert isinstance(made, alt.Chart | alt.LayerChart)
    refined = made.properties(width=123).interactive()
    bundle, _ = refined._repr_mimebundle_()
    assert bundle["application/vnd.vegalite.v5+json"]["width"] == 123


@pytest.mark.parametrize("chart", CHARTS)
def test_a_notebook_gets_what_jupyterlab_draws_itself_a_picture_and_no_html(chart: str) -> None:
    made = CHARTS[chart](*frames())
    bundle, metadata = made._repr_mimebundle_()
    assert list(bundle) == ["application/vnd.vegalite.v5+json", "image/png", "text/plain"]
    spec = bundle["application/vnd.vegalite.v5+json"]
    assert spec["$schema"].endswith("/vega-lite/v5.json")
    assert vl_convert.vegalite_to_png(spec, vl_version="5.8")  # the oldest that can be tried
    assert abs(metadata["image/png"]["width"] - int.from_bytes(drawn(made)[16:20], "big") / 2) <= 1
    assert alt.renderers.active == "default"
    assert alt.data_transformers.active == "default"


@pytest.mark.parametrize("chart", CHARTS)
def test_an_empty_frame_is_an_empty_chart(chart: str) -> None:
    made = CHARTS[chart](*(frame[:0] for frame in frames()))
    assert rows_of(made) == [] or list(rows_of(made)[0]) == ["budget"]
    drawn(made)


@pytest.mark.parametrize("chart", CHARTS)
def test_a_missing_column_is_named(chart: str) -> None:
    lost = {"forks": "depth", "tokens": "token_count", "activity": "created_at", "embeddings": "projection_y"}[chart]
    messages, forks = frames()
    with pytest.raises(ValueError, match=rf"plot_{chart} needs the columns .*; the frame lacks {lost}"):
        CHARTS[chart](messages.drop(columns=lost, errors="ignore"), forks.drop(columns=lost, errors="ignore"))


@pytest.mark.parametrize("chart", CHARTS)
def test_content_runs_in_no_page_that_a_chart_is_written_to(chart: str) -> None:
    made = CHARTS[chart](*frames(text=HOSTILE))
    spec = json.dumps(made.to_dict(), ensure_ascii=False)
    assert "alert(1)" in spec
    assert not set("<\u202e\x1b") & set(spec)
    assert "\\u001b" not in spec  # as JSON writes it
    page = made.to_html()
    assert "alert(1)" in page
    assert "<script>alert" not in page
    assert "<img" not in page


@pytest.mark.parametrize("chart", CHARTS)
def test_a_saved_notebook_as_html_shows_the_picture_and_holds_no_content(chart: str) -> None:
    bundle, metadata = CHARTS[chart](*frames(text=HOSTILE))._repr_mimebundle_()
    data = bundle | {"image/png": base64.b64encode(bundle["image/png"]).decode()}
    output = nbformat.v4.new_output("display_data", data=data, metadata=metadata)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("", outputs=[output])])
    page, _ = HTMLExporter().from_notebook_node(notebook)
    assert data["image/png"] in page.replace("\n", "")
    assert "alert(1)" not in page


@pytest.mark.parametrize("chart", CHARTS)
def test_no_tooltip_has_a_key_that_vega_takes_for_markup(chart: str) -> None:
    messages, forks = frames()
    messages["image"] = "http://127.0.0.1/x.png"
    made = plot_activity(messages, by="image") if chart == "activity" else CHARTS[chart](messages, forks)
    compiled = json.dumps(vl_convert.vegalite_to_vega(made.to_dict(), vl_version="5.8"))
    assert not re.search(r"\\\"(image|title)\\\": ", compiled)


@pytest.mark.parametrize("chart", CHARTS)
def test_past_the_limit_a_sample_is_drawn_always_the_same_and_said(chart: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "POINTS", 40)
    made = CHARTS[chart](*frames(100))
    if chart == "activity":  # counts are no sample
        assert sum(row["messages"] for row in rows_of(made)) == 100
        return
    assert len(rows_of(made)) == 40
    assert rows_of(made) == rows_of(CHARTS[chart](*frames(100)))
    assert (
        subtitle(made)
        == {
            "forks": ["the first 40 of 100 contexts"],
            "tokens": ["20 of 100 steps, sampled"],
            "embeddings": ["40 of 100 messages, sampled"],
        }[chart]
    )
    drawn(made)


@pytest.mark.parametrize("chart", CHARTS)
def test_more_rows_are_drawn_than_altair_takes_of_a_frame(chart: str) -> None:
    made = CHARTS[chart](*frames(6_000))
    assert len(rows_of(made)) == {"forks": 6_000, "tokens": 12_000, "embeddings": 6_000}.get(chart, len(rows_of(made)))
    assert subtitle(made) == []


def test_without_altair_the_extra_is_named() -> None:
    program = """
import sys
sys.modules["altair"] = None
import pandas as pd
from contextkit import MissingExtraError, plot_activity
try:
    plot_activity(pd.DataFrame({"created_at": [], "model": []}))
except MissingExtraError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "altair is not installed; pip install 'contextkit[notebook]'\n"


# The tree


def forest(*contexts: tuple[str, str | None, int | None, str, int]) -> pd.DataFrame:
    """Frame as of forks_df: id, parent, fork_version, written_by, length."""
    frame = pd.DataFrame(contexts, columns=["context_id", "parent_id", "fork_version", "written_by", "length"])
    depths = [0 if parent is None else 1 for parent in frame["parent_id"]]
    return frame.astype({"fork_version": "Int64"}).assign(name=frame["context_id"], depth=depths)


def lanes(frame: pd.DataFrame) -> list[tuple[Any, ...]]:
    columns = ["context_id", "lane", "parent_lane", "starts_at", "ends_at"]
    placed = with_lanes(frame)[columns].astype(object)
    return [tuple(row) for row in placed.where(placed.notna(), None).to_numpy()]


def test_forks_lie_below_their_parent_the_last_to_part_first() -> None:
    frame = forest(
        ("a", None, None, "root", 9),
        ("b", "a", 2, "reference", 5),
        ("c", "a", 6, "copy", 8),
        ("d", "b", 4, "reference", 6),
        ("e", None, None, "root", 3),
        ("f", "a", 6, "reference", 7),
    )
    assert lanes(frame) == [
        ("a", 0, None, 0, 9),
        ("c", 1, 0, 6, 8),
        ("f", 2, 0, 6, 7),
        ("b", 3, 0, 2, 5),
        ("d", 4, 3, 4, 6),
        ("e", 5, None, 0, 3),
    ]


def test_versions_go_on_after_a_renumbered_fork() -> None:
    frame = forest(
        ("a", None, None, "root", 8),
        ("b", "a", 8, "renumbered", 12),
        ("c", "b", 4, "reference", 15),
        ("d", "c", 6, "copy", 16),
    )
    assert [row[3:] for row in lanes(frame)] == [(0, 8), (8, 12), (12, 15), (14, 16)]


def test_a_context_reaches_its_forks_and_one_without_its_parent_or_in_a_cycle_stands_alone() -> None:
    frame = forest(("a", None, None, "root", 2), ("b", "a", 5, "reference", 3), ("c", "gone", 4, "reference", 6))
    cycle = forest(("x", "y", 1, "reference", 0), ("y", "x", 1, "reference", 0)).assign(depth=pd.NA, length=pd.NA)
    assert lanes(pd.concat([frame, cycle], ignore_index=True)) == [
        ("a", 0, None, 0, 5),
        ("b", 1, 0, 5, 5),
        ("c", 2, None, 4, 6),
        ("x", 3, None, 1, 1),
        ("y", 4, None, 1, 1),
    ]


def test_a_chain_of_forks_may_be_long() -> None:
    chain = [("0", None, None, "root", 1), *((str(n), str(n - 1), n, "reference", n + 1) for n in range(1, 3000))]
    assert [row[1:] for row in lanes(forest(*chain))[-1:]] == [(2999, 2998, 2999, 3000)]


def test_forks_as_loaded_show_names_last_messages_and_deleted_ones_hollow(engine: Engine) -> None:
    root = add_context(engine, "root")
    append_messages(engine, root, [user("a"), user("b")])
    fork = fork_context(engine, root, 1)
    append_messages(engine, fork, [user("c")])
    delete_context(engine, fork)
    forks = forks_df(engine, include_deleted=True)
    last = history_df(engine, forks["context_id"], include_deleted=True).groupby("context_id", as_index=False).last()
    forks = forks.merge(last[["context_id", "content"]].rename(columns={"content": "last_message"}))
    forks = forks.merge(contexts_df(engine, include_deleted=True)[["context_id", "deleted_at"]])
    rows = rows_of(plot_forks(forks))
    names = ["context_id", "name", "label", "last_message", "deleted", "length"]
    assert [[row[name] for name in names] for row in rows] == [
        [root, "root", "root", "b", False, 2],
        [fork, "", "c", "c", True, 2],
    ]
    drawn(plot_forks(forks))
    drawn(plot_forks(forks_df(engine)))


def test_many_forks_go_without_names_and_can_be_zoomed() -> None:
    few, many = (plot_forks(frames(rows)[1]).to_dict() for rows in (100, 200))
    assert [len(few["layer"]), len(many["layer"])] == [5, 4]
    assert "params" in many
    assert "params" not in few
    assert few["height"] < many["height"] == plot_forks(frames(2000)[1]).to_dict()["height"]


# Tokens


def test_tokens_add_up_by_role_version_by_version() -> None:
    messages = frames()[0]
    rows = rows_of(plot_tokens(messages))
    assert {(row["version"], row["role"]): row["tokens"] for row in rows} == {
        (1, "user"): 0,
        (2, "user"): 0,
        (3, "user"): 20,
        (4, "user"): 20,
        (1, "assistant"): 0,
        (2, "assistant"): 10,
        (3, "assistant"): 10,
        (4, "assistant"): 40,
    }


def test_tokens_of_a_history_go_by_position_and_of_several_contexts_by_time_each_message_once(engine: Engine) -> None:
    root = add_context(engine)
    append_messages(engine, root, [user("a", token_count=3), user("b")])
    fork = fork_context(engine, root)
    append_messages(engine, fork, [user("c", token_count=4)])
    histories = history_df(engine, [root, fork])
    chart = plot_tokens(histories[histories["context_id"] == fork])
    assert [(row["position"], row["tokens"]) for row in rows_of(chart)] == [(1, 3), (2, 3), (3, 7)]
    assert subtitle(chart) == ["without a token_count, counted as 0: 1"]
    with pytest.raises(ValueError, match="several contexts"):
        plot_tokens(histories)
    with pytest.raises(ValueError, match="version or time"):
        plot_tokens(histories, over="days")  # type: ignore[arg-type]
    assert rows_of(plot_tokens(histories, over="time"))[-1]["tokens"] == 7


def test_a_budget_is_a_line() -> None:
    chart = plot_tokens(frames()[0], budget=12_345).to_dict()
    assert [{"budget": 12_345}] in chart["datasets"].values()
    assert "budget 12,345" in json.dumps(chart)


# Activity


def test_messages_are_counted_per_day_and_model_in_the_frames_time_zone() -> None:
    messages = frames()[0].astype({"token_count": "int64"})
    counts = {(row["day"][:10], row["model"]): row["messages"] for row in rows_of(plot_activity(messages))}
    assert counts == {
        ("2026-01-01", "none"): 1,
        ("2026-01-01", "hello"): 1,
        ("2026-01-02", "none"): 1,
        ("2026-01-02", "hello"): 1,
    }
    messages["created_at"] = messages["created_at"].dt.tz_convert("Asia/Tokyo")
    assert {row["day"] for row in rows_of(plot_activity(messages))} == {"2026-01-02T00:00:00.000Z"}


def test_a_day_without_midnight_is_one_still() -> None:
    messages = pd.DataFrame({"created_at": [pd.Timestamp("2018-11-04T05:00Z")], "model": ["m"]})
    messages["created_at"] = messages["created_at"].dt.tz_convert("America/Sao_Paulo")
    assert [row["day"] for row in rows_of(plot_activity(messages))] == ["2018-11-04T00:00:00.000Z"]


def test_rare_values_are_one_category_and_every_category_has_a_colour() -> None:
    messages = frames(40)[0].assign(model=[f"m{min(n, 20)}" if n else None for n in range(40)])
    chart = plot_activity(messages).to_dict()
    scale = chart["encoding"]["color"]["scale"]
    assert scale["domain"][-2:] == ["others", "none"]
    assert len(scale["domain"]) == len(set(scale["range"])) == 11
    assert "m20" in scale["domain"]
    assert {row["model"] for row in rows_of(plot_activity(messages))} == set(scale["domain"])


# The map


def test_the_sample_is_a_map_where_topics_lie_apart(engine: Engine) -> None:
    load_sample(engine)
    messages = messages_df(engine, embeddings=True)
    chart = plot_embeddings(messages)
    placed = with_projection(messages).dropna(subset="projection_x")
    rows = rows_of(chart)
    assert np.allclose([row["projection_x"] for row in rows], placed["projection_x"])
    assert list(rows[0]) == ["projection_x", "projection_y", "role", "content"]
    assert max(len(row["content"]) for row in rows) <= 92
    assert subtitle(chart) == [f"without a place, left out: {len(messages) - len(placed)}"]


@pytest.mark.parametrize(
    ("column", "values", "type_"),
    [
        ("model", ["x", None, "y", "z"], "nominal"),
        ("flag", [True, False, True, True], "nominal"),
        ("size of it", [1.5, None, 3, 4], "quantitative"),
        ("a.b[0]", [1, 2, 3, 4], "quantitative"),
        ("at", pd.date_range("2026-01-01", periods=4, tz="UTC"), "temporal"),
    ],
)
def test_any_column_gives_the_colour_and_any_two_the_places(column: str, values: Any, type_: str) -> None:
    messages = frames()[0].assign(**{column: values}, umap_1=[1, 2, 3, None], umap_2=[2, 3, 4, 5])
    chart = plot_embeddings(messages, x="umap_1", y="umap_2", color=column)
    assert chart.to_dict()["encoding"]["color"]["type"] == type_
    assert [(row["umap_1"], row["umap_2"]) for row in rows_of(chart)] == [(1, 2), (2, 3), (3, 4)]
    picture = vl_convert.vegalite_to_svg(chart.to_dict(), vl_version="5.8")
    assert len(set(re.findall(r'roledescription="circle"[^>]* fill="([^"]+)"', picture))) > 1


def test_a_map_needs_embeddings_or_numbers() -> None:
    messages = frames()[0]
    with pytest.raises(ValueError, match="lacks embedding"):
        plot_embeddings(messages.drop(columns=["projection_x", "projection_y"]))
    with pytest.raises(ValueError, match="a place on the map is a number"):
        plot_embeddings(messages, x="content")
