"""Content that attacks its reader, shown in every place where people look at it, in a real browser."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest
from nbconvert import HTMLExporter
from playwright.sync_api import Browser
from sqlalchemy import Engine

from contextkit import add_context, append_messages, fork_context, show
from tests.browser.conftest import PATIENCE, SIZE, Lab, Studio, Watched, watch
from tests.hostile import CASES, STORABLE

BAND = 60
FRAMED = """<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>x</title><style>
body {{ margin: 0; background: #345; padding: {0}px }} main {{ background: #fff; color: #000; min-height: 300px }}
</style></head><body><main>{1}</main></body></html>"""
UNFOLD = "document.querySelectorAll('details').forEach(folded => folded.open = true)"
CELL = """
from IPython.display import display
from contextkit import Context, connect, explore, forks_df, history_df, show, show_diff
from contextkit.plots import plot_activity, plot_forks, plot_tokens

engine, ids = connect({url!r}), {ids!r}
history = history_df(engine, ids)
display(show(history), show_diff(engine, *ids), explore(engine))
forks = forks_df(engine, Context.id.in_(ids))
display(plot_forks(forks), plot_tokens(history, over="time"), plot_activity(history))
print("finished")
"""


def messages(*contents: str) -> pd.DataFrame:
    return pd.DataFrame({"role": "assistant", "content": pd.Series(contents, dtype=object)})  # half a surrogate, too


def bands(page: Any) -> list[bytes]:
    """Pictures of what lies above and below the box: the same for all contents that stay within it."""
    height = page.locator("body").bounding_box()["height"]
    clips = [{"x": 0, "y": y, "width": SIZE["width"], "height": BAND - 1} for y in (0, height - BAND + 1)]
    return [page.screenshot(full_page=True, clip=clip) for clip in clips]


@pytest.fixture(scope="module")
def plain(browser: Browser) -> Iterator[Watched]:
    context = browser.new_context(viewport=SIZE)
    yield watch(context)
    context.close()


@pytest.fixture(scope="module")
def clean(plain: Watched) -> list[bytes]:
    plain.page.set_content(FRAMED.format(BAND, ""))
    return bands(plain.page)


@pytest.fixture(scope="module")
def hostile_ids(database: Engine) -> list[str]:
    """A context of hostile messages and a fork of it that says the same after another word."""
    texts = list(STORABLE.values())
    rows = [
        {"role": "assistant", "content": text, "model": text[:200], "tool_name": text[:200], "tool_call_id": text[:200]}
        for text in texts
    ]
    context_id = add_context(database, texts[0])
    append_messages(database, context_id, rows)
    fork_id = fork_context(database, context_id, 2, texts[5])
    append_messages(database, fork_id, [{"role": "user", "content": f"{text} other"} for text in texts])
    return [context_id, fork_id]


@pytest.mark.parametrize("name", CASES)
def test_a_transcript_in_a_plain_page(name: str, plain: Watched, clean: list[bytes]) -> None:
    plain.page.set_content(FRAMED.format(BAND, show(messages(CASES[name]))._repr_html_()))
    plain.page.evaluate(UNFOLD)
    plain.check_harmless("main")
    assert plain.page.evaluate("document.documentElement.scrollWidth") == SIZE["width"]
    assert bands(plain.page) == clean


def test_a_notebook_as_html(watched: Watched, tmp_path: Path) -> None:
    pages = {}
    for name, contents in {"harmless": ["Hello"] * len(CASES), "hostile": list(CASES.values())}.items():
        notebook = nbformat.v4.new_notebook()
        notebook.cells = [nbformat.v4.new_code_cell("show(history)", outputs=[_output(text)]) for text in contents]
        pages[name] = tmp_path / f"{name}.html"
        pages[name].write_text(HTMLExporter().from_notebook_node(notebook)[0], encoding="utf-8")
    watched.page.goto(pages["harmless"].as_uri())
    own = watched.foreign.copy()  # nbconvert's own page asks for scripts
    watched.foreign.clear()
    watched.page.goto(pages["hostile"].as_uri())
    watched.page.evaluate(UNFOLD)
    watched.foreign = [url for url in watched.foreign if url not in own]
    watched.check_harmless(".jp-OutputArea-output")


def _output(text: str) -> Any:
    return nbformat.v4.new_output("display_data", show(messages(text))._repr_mimebundle_())


def test_jupyterlab(watched: Watched, lab: Lab, database: Engine, hostile_ids: list[str]) -> None:
    url = database.url.render_as_string(hide_password=False)
    cell = nbformat.v4.new_code_cell(CELL.strip().format(url=url, ids=hostile_ids))
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=kernel), lab.folder / "hostile.ipynb")
    page = watched.page
    page.goto(lab.address.format("hostile.ipynb"))
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
    page.locator(".jp-Notebook .cm-content").click()
    page.keyboard.press("Shift+Enter")
    page.get_by_text("finished", exact=True).wait_for(timeout=3 * PATIENCE)
    look_at_all(watched, hostile_ids)


def test_the_studio(watched: Watched, studio: Studio, hostile_ids: list[str]) -> None:
    watched.page.goto(studio.url)
    look_at_all(watched, hostile_ids)


def look_at_all(watched: Watched, ids: list[str]) -> None:
    """See both contexts in every view of the widget, and check the page after each."""
    page = watched.page
    for context_id in ids:
        page.get_by_label("search", exact=True).fill(context_id)
        page.get_by_label("search", exact=True).press("Enter")
        page.locator(".contextkit-code").get_by_text(f"icontains('{context_id}'").wait_for()
        page.get_by_text("contexts 1 to 1, the last").wait_for()
        page.get_by_label("contexts", exact=True).select_option(index=0)
        page.locator(".contextkit-code").get_by_text(f'history_df(engine, "{context_id}"').wait_for()
        for view, line in {"fork tree": "forks_df(", "neighbors": "neighbors_df(", "transcript": "history_df("}.items():
            page.get_by_role("button", name=view, exact=True).click()
            page.locator(".contextkit-code").get_by_text(line).wait_for()
            check_unfolded(watched)
        page.get_by_role("button", name="later", exact=True).click()
        page.get_by_text("messages 51 to").wait_for()
        check_unfolded(watched)
    page.get_by_role("button", name="fork tree", exact=True).click()
    page.get_by_label("fork tree", exact=True).select_option(index=[0, 1])
    page.get_by_role("button", name="open", exact=True).click()
    page.get_by_text("messages in common; of what follows").wait_for()
    check_unfolded(watched)


def check_unfolded(watched: Watched) -> None:
    watched.page.evaluate(UNFOLD)
    watched.check_harmless(".jp-OutputArea-output")
