"""The widget: what stands where, and what a choice does. What is read and shown stands in `listing` and `views`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from typing import Any, get_args

import ipywidgets as w
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from contextkit.errors import ContextkitError
from contextkit.explore import views
from contextkit.explore.finding import Kind, Search, Within
from contextkit.explore.lines import HEAD, context_lines
from contextkit.explore.listing import Listing, find, following, preceding
from contextkit.explore.views import View
from contextkit.queries import ORDERS

STYLE = """<style>
.contextkit-lines select, .contextkit-lines select option, .contextkit-explore pre {
  font: 12px/1.5 var(--jp-code-font-family, monospace) }
.contextkit-lines select { padding: 2px }
.contextkit-lines .widget-label { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%) }
.contextkit-explore pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere;
  color: var(--jp-content-font-color1, #111) }
.contextkit-explore pre.contextkit-head { white-space: pre; padding-left: 6px }
.contextkit-explore pre.contextkit-code { user-select: all; padding: 4px 8px;
  background: var(--jp-layout-color2, #eee) }
.contextkit-explore h2 { font-size: 15px; margin: 8px 2px; overflow-wrap: anywhere }
.contextkit-sides { display: flex; flex-wrap: wrap; gap: 16px }
.contextkit-sides > div { flex: 1 1 320px; min-width: 0 }
.contextkit-error { color: var(--jp-error-color0, #a00) }
</style>"""
ROWS = 16
VIEWS = ("transcript", "fork tree", "neighbors")


class Explorer:
    """Widgets over a database."""

    def __init__(self, engine: Engine) -> None:
        """Lay the widgets out, and read the first page."""
        self._engine = engine
        self._listing: Listing
        self._chosen: tuple[str, ...] = ()
        self._starts: tuple[int, ...] = (0,)
        self._rows = 0
        self.asked = self._search_widgets()
        self.contexts = _lines(w.SelectMultiple, "contexts")
        self.summary, self.listing_code, self.error = w.Label(), w.HTML(), w.HTML()
        self.previous = _button("previous", self._page_back, disabled=True)
        self.next = _button("next", self._page_forth, disabled=True)
        self.views = w.ToggleButtons(options=VIEWS, style={"button_width": "110px"})
        self.title, self.code, self.note, self.html = w.HTML(), w.HTML(), w.Label(), w.HTML()
        self.earlier = _button("earlier", lambda: self._look(self._chosen, self._starts[:-1]))
        self.later = _button("later", self._later)
        self.tree = _lines(w.SelectMultiple, "fork tree")
        self.messages, self.near = _lines(w.Select, "messages"), _lines(w.Select, "neighbors")
        self.near_code, self.near_note = w.HTML(), w.Label()
        self.open = _button("open", self._show_found)
        self.detail = w.VBox()
        self.view = self._laid_out()
        self._find()
        self._listen()

    def _search_widgets(self) -> dict[str, Any]:
        return {
            "text": w.Text(
                description="search", placeholder="words, then Enter", continuous_update=False, **_named("300px")
            ),
            "within": w.Dropdown(description="in", options=get_args(Within), **_named("150px")),
            "kind": w.Dropdown(description="show", options=get_args(Kind), **_named("160px")),
            "order": w.Dropdown(description="by", options=tuple(ORDERS), **_named("160px")),
            "include_deleted": w.Checkbox(description="with deleted", indent=False, layout=w.Layout(width="120px")),
        }

    def _laid_out(self) -> w.VBox:
        half = {"min_width": "0", "overflow": "hidden"}
        wrapped = {"flex_flow": "row wrap"}
        listing = [
            w.HTML(f'<pre class="contextkit-head">{escape(HEAD)}</pre>'),
            self.contexts,
            w.HBox([self.previous, self.next, self.summary]),
            self.listing_code,
        ]
        view = w.VBox(
            [
                w.HTML(STYLE),
                w.Box(list(self.asked.values()), layout=w.Layout(**wrapped)),
                self.error,
                w.Box(
                    [
                        w.VBox(listing, layout=w.Layout(flex="1 1 540px", **half)),
                        w.VBox([self.views, self.detail], layout=w.Layout(flex="2 1 540px", **half)),
                    ],
                    layout=w.Layout(align_items="flex-start", grid_gap="16px", **wrapped),
                ),
            ]
        )
        view.add_class("contextkit-explore")
        return view

    def _listen(self) -> None:
        for asked in self.asked.values():
            asked.observe(lambda _: self._find(), "value")
        self.contexts.observe(lambda change: self._choose(change["new"]), "value")
        self.views.observe(lambda _: self.show(self._chosen), "value")
        self.messages.observe(lambda change: self._ask_neighbors(change["new"]), "value")

    # The listing

    def _find(self) -> None:
        with self._told():
            given = {name: asked.value for name, asked in self.asked.items()}
            self._list(find(self._engine, Search(**given | {"text": given["text"].strip()})))

    def _page_back(self) -> None:
        with self._told():
            self._list(preceding(self._engine, self._listing))

    def _page_forth(self) -> None:
        with self._told():
            self._list(following(self._engine, self._listing))

    def _list(self, listing: Listing) -> None:
        self._listing = listing
        self.contexts.options = context_lines(listing.page.frame)
        self.summary.value = listing.summary
        self.listing_code.value = _code(listing.code)
        self.previous.disabled, self.next.disabled = not listing.first, not listing.page.more

    # What is chosen

    def _choose(self, chosen: tuple[str, ...]) -> None:
        if chosen:  # what was chosen stays in sight where a new page of the list has it no more
            self.show(chosen)

    def show(self, chosen: tuple[str, ...]) -> None:
        """Look at one context, or compare two."""
        self._look(chosen, (0,))

    def _later(self) -> None:
        self._look(self._chosen, (*self._starts, self._starts[-1] + self._rows))

    def _look(self, chosen: tuple[str, ...], starts: tuple[int, ...]) -> None:
        with self._told():
            if len(chosen) not in (1, 2):
                self._chosen, self.views.disabled = chosen, False
                self.detail.children = [w.Label("choose a context, or two to compare")]
                return
            view, names = self._view_of(chosen, starts[-1]), views.names(self._engine, chosen)
            # Only here, as what could not be read would be passed over by the next click.
            self._chosen, self._starts, self._rows = chosen, starts, view.rows
            self.views.disabled = len(chosen) == 2
            self.title.value = f"<h2>{escape(' and '.join(names))}</h2>"
            self.detail.children = [*self._headed(view), *self._parts(view)]

    def _view_of(self, chosen: tuple[str, ...], start: int) -> View:
        if len(chosen) == 2:
            return views.difference(self._engine, *chosen)
        (context_id,) = chosen
        if self.views.value == "fork tree":
            return views.fork_tree(self._engine, context_id)
        read = views.messages if self.views.value == "neighbors" else views.transcript
        return read(self._engine, context_id, start, include_deleted=self.asked["include_deleted"].value)

    def _parts(self, view: View) -> list[w.Widget]:
        if len(self._chosen) == 2 or self.views.value == "transcript":
            self.html.value = view.html
            return [self.html]
        if self.views.value == "fork tree":
            self.tree.options, self.tree.value = view.lines, self._chosen
            return [self.tree, self.open]
        self.messages.options = view.lines
        self.messages.value = view.chosen
        return [self.messages, self.near_code, self.near_note, self.near, self.open]

    def _ask_neighbors(self, message_id: str | None) -> None:
        with self._told():
            view = views.neighbors(self._engine, message_id) if message_id else View("", "")
            self.near.options, self.near_note.value = view.lines, view.note
            self.near_code.value = _code(view.code)

    def _show_found(self) -> None:
        if self.views.value == "fork tree":
            self.show(self.tree.value)
        elif self.near.value is not None:
            self.show((self.near.value,))

    def _headed(self, view: View) -> list[w.Widget]:
        self.code.value, self.note.value = _code(view.code), view.note
        self.earlier.disabled, self.later.disabled = not self._starts[1:], not view.more
        turning = [self.earlier, self.later] if self._starts[1:] or view.more else []
        return [self.title, self.code, w.HBox([*turning, self.note])]

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Show what went wrong in the widget: what a callback raises is seen nowhere."""
        self.error.value = ""
        try:
            yield
        except (ContextkitError, ValueError, SQLAlchemyError) as error:
            text = (
                str(error) if isinstance(error, ContextkitError | ValueError) else "the database refused the statement"
            )
            self.error.value = f'<div class="contextkit-error" role="alert">{escape(text)}</div>'


def _code(line: str) -> str:
    return f'<pre class="contextkit-code" tabindex="0">{escape(line)}</pre>'


def _named(width: str) -> dict[str, Any]:
    return {"style": {"description_width": "auto"}, "layout": w.Layout(width=width)}


def _lines(kind: type[Any], description: str) -> Any:
    lines = kind(rows=ROWS, description=description, layout=w.Layout(width="auto"))
    lines.add_class("contextkit-lines")
    return lines


def _button(description: str, run: Callable[[], None], *, disabled: bool = False) -> w.Button:
    button = w.Button(description=description, disabled=disabled, layout=w.Layout(width="100px"))
    button.on_click(lambda _: run())
    return button
