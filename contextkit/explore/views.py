"""What there is to see of a chosen context, or of two: read when looked at, with the line of Python that gives it."""

from dataclasses import dataclass, field

from sqlalchemy import Engine

from contextkit.explore.lines import Line, message_lines, named, neighbor_lines, tree_lines
from contextkit.explore.pages import (
    NEIGHBORS,
    PAGE,
    Page,
    read_family,
    read_history,
    read_named,
    read_neighbors,
    read_parting,
)
from contextkit.show import show, show_diff
from contextkit.show.entries import fitting

SIDES = '<div class="contextkit-sides"><div>{}</div><div>{}</div></div>'


@dataclass(frozen=True)
class View:
    """Lines to choose from or HTML to read, of how many rows, and the line of Python that gives their frame."""

    code: str
    note: str
    html: str = ""
    lines: list[Line] = field(default_factory=list)
    chosen: str | None = None
    rows: int = 0
    more: bool = False


def names(engine: Engine, context_ids: tuple[str, ...]) -> list[str]:
    """What contexts are called, by the order asked."""
    frame = read_named(engine, context_ids)
    return named(frame.set_index("context_id").reindex(context_ids).reset_index())


def transcript(engine: Engine, context_id: str, start: int = 0, *, include_deleted: bool = False) -> View:
    """What the model saw, from message `start` on, counted from 0."""
    page = _fitting(read_history(engine, context_id, start, include_deleted=include_deleted))
    return View(
        _history_code(context_id, start, len(page.frame), more=page.more, include_deleted=include_deleted),
        _span("message", start, len(page.frame), more=page.more),
        html=show(page.frame).html,
        rows=len(page.frame),
        more=page.more,
    )


def messages(engine: Engine, context_id: str, start: int = 0, *, include_deleted: bool = False) -> View:
    """The same messages, to choose one from; chosen is the first that a user wrote."""
    page = read_history(engine, context_id, start, include_deleted=include_deleted)
    asked = page.frame.loc[page.frame["role"] == "user", "message_id"]
    return View(
        _history_code(context_id, start, len(page.frame), more=page.more, include_deleted=include_deleted),
        _span("message", start, len(page.frame), more=page.more),
        lines=message_lines(page.frame),
        chosen=next(iter([*asked, *page.frame["message_id"]]), None),
        rows=len(page.frame),
        more=page.more,
    )


def fork_tree(engine: Engine, context_id: str) -> View:
    """The contexts that it was forked from, and what was forked from these."""
    page = read_family(engine, context_id)
    roots = page.frame.loc[page.frame["depth"] == 0, "context_id"]
    root_id = next(iter(roots), None)
    more = f"the {PAGE} nearest relatives; there are more" if page.more else _span("context", 0, len(page.frame))
    return View(
        f"forks_df(engine, include_deleted=True).query(\"root_id == '{root_id}'\")" if root_id else "forks_df(engine)",
        more,
        lines=tree_lines(page.frame, context_id),
    )


def neighbors(engine: Engine, message_id: str) -> View:
    """The messages nearest to one; the lines stand for their contexts."""
    frame = read_neighbors(engine, message_id)
    found = "found by an index" if frame.attrs["mode"] == "index" else "of all messages"
    note = f"the {len(frame)} nearest {found}" if len(frame) else "none: the message has no embedding, or no other has"
    return View(f'neighbors_df(engine, "{message_id}", k={NEIGHBORS})', note, lines=neighbor_lines(frame))


def difference(engine: Engine, left: str, right: str) -> View:
    """Where two histories part, side by side; of long ones what follows there."""
    code, parting = f'diff_df(engine, "{left}", "{right}")', read_parting(engine, left, right)
    if parting.left + parting.right <= PAGE:
        return View(code, "", html=show_diff(engine, left, right).html)
    sides = [read_history(engine, id_, parting.shared, most=PAGE // 2).frame for id_ in (left, right)]
    own = " and ".join(
        f"{len(side)} of {whole - parting.shared:,}" for side, whole in zip(sides, parting[:2], strict=True)
    )
    note = f"{parting.shared:,} messages in common; of what follows {own}; all are in show_diff(engine, left, right)"
    return View(code, note, html=SIDES.format(*(show(side).html for side in sides)))


def _fitting(page: Page) -> Page:
    """What `show` shows of a page, so that the next one begins with what it leaves out."""
    shown = fitting(page.frame)
    return Page(page.frame[:shown], more=page.more or shown < len(page.frame))


def _history_code(context_id: str, start: int, rows: int, *, more: bool, include_deleted: bool) -> str:
    deleted = ", include_deleted=True" if include_deleted else ""
    part = f".iloc[{start}:{start + rows}]" if start or more else ""
    return f'history_df(engine, "{context_id}"{deleted}){part}'


def _span(what: str, start: int, rows: int, *, more: bool = False) -> str:
    if not rows:
        return f"no {what}"
    if not start and not more:
        return f"{rows} {what}{'s' * (rows != 1)}"
    return f"{what}s {start + 1:,} to {start + rows:,}{'; more follow' * more}"
