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
from contextkit.explore.pages import PAGE
from contextkit.explore.views import View
from contextkit.queries import Order

STYLE = """<style>
.contextkit-lines select, .contextkit-head, .contextkit-code { font: 12px/1.5 var(--jp-code-font-family, monospace) }
.contextkit-lines select { padding: 2px }
.contextkit-head { white-space: pre; padding-left: 5px; color: var(--jp-content-font-color1, #111) }
.contextkit-code { user-select: all; white-space: pre-wrap; overflow-wrap: anywhere; padding: 4px 8px; margin: 2px;
  color: var(--jp-content-font-color1, #111); background: var(--jp-layout-color2, #eee) }
.contextkit-error { color: var(--jp-error-color0, #a00) }
</style>"""
ROWS = 16
VIEWS = ("transcript", "fork tree", "neighbors")


class Explorer:
    """Widgets over a database."""

    def __init__(self, engine: Engine) -> None:
        """Lay the widgets out, and read the first page."""
        self._engine = engine
        self._listing: Listing | None = None
        self._chosen: tuple[str, ...] = ()
        self._start = 0
        self._asked = self._search_widgets()
        self._contexts = _lines(w.SelectMultiple)
        self._summary, self._listing_code, self._error = w.Label(), w.HTML(), w.HTML()
        self._back = _button("‹ previous", self._page_back)
        self._forth = _button("next ›", self._page_forth)
        self._views = w.ToggleButtons(options=VIEWS, style={"button_width": "110px"})
        self._code, self._note, self._html = w.HTML(), w.Label(), w.HTML()
        self._earlier = _button("‹ earlier", lambda: self._turn(-PAGE))
        self._later = _button("later ›", lambda: self._turn(PAGE))
        self._tree, self._messages, self._near = _lines(w.SelectMultiple), _lines(w.Select), _lines(w.Select)
        self._near_code, self._near_note = w.HTML(), w.Label()
        self._open = _button("open", self._show_found)
        self._detail = w.VBox()
        self.view = self._laid_out()
        self._find()
        self._listen()

    def _search_widgets(self) -> dict[str, Any]:
        return {
            "text": w.Text(placeholder="search, then Enter", continuous_update=False, layout=w.Layout(width="220px")),
            "within": _dropdown(get_args(Within), "130px"),
            "kind": _dropdown(get_args(Kind), "120px"),
            "order": _dropdown(get_args(Order), "130px"),
            "include_deleted": w.Checkbox(
                description="with deleted", indent=False, layout=w.Layout(width="120px")
            ),
        }

    def _laid_out(self) -> w.VBox:
        half = {"min_width": "0", "overflow": "hidden"}
        wrapped = {"flex_flow": "row wrap"}
        listing = [
            w.HTML(f'<div class="contextkit-head">{escape(HEAD)}</div>'),
            self._contexts,
            w.HBox([self._back, self._forth, self._summary]),
            self._listing_code,
        ]
        return w.VBox(
            [
                w.HTML(STYLE),
                w.Box(list(self._asked.values()), layout=w.Layout(**wrapped)),
                self._error,
                w.Box(
                    [
                        w.VBox(listing, layout=w.Layout(flex="1 1 540px", **half)),
                        w.VBox([self._views, self._detail], layout=w.Layout(flex="2 1 540px", **half)),
                    ],
                    layout=w.Layout(align_items="flex-start", grid_gap="16px", **wrapped),
                ),
            ]
        )

    def _listen(self) -> None:
        for asked in self._asked.values():
            asked.observe(lambda _: self._find(), "value")
        self._contexts.observe(lambda change: change["new"] and self._show(change["new"]), "value")
        self._views.observe(lambda _: self._show(self._chosen), "value")
        self._messages.observe(lambda change: self._ask_neighbors(change["new"]), "value")

    # The listing

    def _find(self) -> None:
        with self._told():
            given = {name: asked.value for name, asked in self._asked.items()}
            self._list(find(self._engine, Search(**given | {"text": given["text"].strip()})))

    def _page_back(self) -> None:
        if self._listing is not None:
            self._list(preceding(self._engine, self._listing))

    def _page_forth(self) -> None:
        if self._listing is not None:
            self._list(following(self._engine, self._listing))

    def _list(self, listing: Listing) -> None:
        self._listing = listing
        self._contexts.options = context_lines(listing.page.frame)
        self._summary.value = listing.summary
        self._listing_code.value = _code(listing.code)
        self._back.disabled, self._forth.disabled = not listing.first, not listing.page.more

    # What is chosen

    def _show(self, chosen: tuple[str, ...]) -> None:
        self._chosen, self._start = chosen, 0
        self._look()

    def _turn(self, rows: int) -> None:
        self._start += rows
        self._look()

    def _look(self) -> None:
        with self._told():
            self._views.disabled = len(self._chosen) == 2
            self._detail.children = self._parts()

    def _parts(self) -> list[w.Widget]:
        if len(self._chosen) == 2:
            return self._read(views.difference(self._engine, *self._chosen))
        if len(self._chosen) != 1:
            return [w.Label("choose a context, or two to compare")]
        (context_id,) = self._chosen
        if self._views.value == "fork tree":
            return self._relatives(views.fork_tree(self._engine, context_id))
        seen = {"start": self._start, "include_deleted": self._asked["include_deleted"].value}
        if self._views.value == "neighbors":
            return self._neighbors(views.messages(self._engine, context_id, **seen))
        return self._read(views.transcript(self._engine, context_id, **seen))

    def _read(self, view: View) -> list[w.Widget]:
        self._html.value = view.html
        return [*self._headed(view), self._html]

    def _relatives(self, view: View) -> list[w.Widget]:
        self._tree.options, self._tree.value = view.lines, self._chosen
        return [*self._headed(view), self._tree, self._open]

    def _neighbors(self, view: View) -> list[w.Widget]:
        self._messages.options = view.lines
        self._messages.value = view.chosen
        return [*self._headed(view), self._messages, self._near_code, self._near_note, self._near, self._open]

    def _ask_neighbors(self, message_id: str | None) -> None:
        with self._told():
            view = views.neighbors(self._engine, message_id) if message_id else View("", "")
            self._near.options, self._near_note.value = view.lines, view.note
            self._near_code.value = _code(view.code)

    def _show_found(self) -> None:
        if self._views.value == "fork tree":
            self._show(self._tree.value)
        elif self._near.value is not None:
            self._show((self._near.value,))

    def _headed(self, view: View) -> list[w.Widget]:
        self._code.value, self._note.value = _code(view.code), view.note
        self._earlier.disabled, self._later.disabled = not self._start, not view.more
        turning = [self._earlier, self._later] if self._start or view.more else []
        return [self._code, w.HBox([*turning, self._note])]

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Show what went wrong in the widget: what a callback raises is seen nowhere."""
        self._error.value = ""
        try:
            yield
        except (ContextkitError, ValueError, SQLAlchemyError) as error:
            text = str(error) if isinstance(error, ContextkitError | ValueError) else "the database refused the statement"
            self._error.value = f'<div class="contextkit-error" role="alert">{escape(text)}</div>'


def _code(line: str) -> str:
    return f'<pre class="contextkit-code" tabindex="0">{escape(line)}</pre>'


def _dropdown(options: tuple[str, ...], width: str) -> w.Dropdown:
    return w.Dropdown(options=options, layout=w.Layout(width=width))


def _lines(kind: type[Any]) -> Any:
    lines = kind(rows=ROWS, layout=w.Layout(width="auto"))
    lines.add_class("contextkit-lines")
    return lines


def _button(description: str, run: Callable[[], None]) -> w.Button:
    button = w.Button(description=description, layout=w.Layout(width="100px"))
    button.on_click(lambda _: run())
    return button
