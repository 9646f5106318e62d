"""Two histories side by side, from where they part."""

from textwrap import indent
from uuid import UUID

from markupsafe import Markup
from sqlalchemy import Engine

from contextkit.differences import diff_df
from contextkit.show.difference import Difference, Pair, difference_of
from contextkit.show.entries import Entry
from contextkit.show.messages import Body, body, items, message, page_body
from contextkit.show.rendered import Rendered, label
from contextkit.show.text import entry_text
from contextkit.show.words import Marks, Words, differing_words

TITLE = Markup('<h2 class="ck-title jp-toc-ignore">Two histories</h2><p class="ck-about">{}</p>')
FIGURES = Markup('<table class="ck-figures"><thead>{}</thead><tbody>{}</tbody></table>')
SHARED = Markup(
    '<details class="ck-shared"><summary>messages in common</summary>{}<ul class="ck-list">{}</ul></details>'
)
DIFF = Markup('<table class="ck-diff"><thead>{}</thead>{}</table>')
SIDES = Markup('<tr>{}<th scope="col">{}</th><th scope="col">{}</th></tr>')
FIGURE = Markup('<tr><th scope="row">{}</th><td>{}</td><td>{}</td></tr>')
TURN = Markup('<tbody><tr><th scope="rowgroup" colspan="2">turn {}</th></tr>{}</tbody>')
ROW = Markup("<tr><td>{}</td><td>{}</td></tr>")
MORE = Markup('<p class="ck-more">{}</p>')


def show_diff(engine: Engine, left: str | UUID, right: str | UUID) -> Rendered:
    """Two histories side by side: what they have in common folded, then turn by turn what each says instead.

    Words that the other side does not have in the same order are marked; of stretches of over 1,000 words all are.
    Limits and safety are those of `show`.

    Args:
        engine: from `connect`.
        left: one context.
        right: another.

    Returns:
        An object that notebooks show, as of `show`. Its head names the nearest common ancestor, the version where
        the histories part, and the messages, tokens and tools of each side from there on; or says that there is no
        common content.

    Raises:
        NotFoundError: a context does not exist, or is deleted.
        LineageError: the parents of a context form a cycle.
        ValueError: an id is no UUID.
    """
    difference = difference_of(engine, diff_df(engine, left, right))
    return Rendered(" and ".join(difference.titles), _html(difference), _text(difference))


def _html(difference: Difference) -> Markup:
    write = page_body()
    left, right = (label(title) for title in difference.titles)
    figures = [FIGURE.format(*figure) for figure in difference.figures]
    parts = [
        TITLE.format(difference.about),
        FIGURES.format(SIDES.format(Markup("<td></td>"), left, right), Markup("").join(figures)),
    ]
    if difference.shared:
        before = MORE.format(difference.before) if difference.before else ""
        parts.append(SHARED.format(before, items(difference.shared, write)))
    if difference.turns:
        turns = [
            TURN.format(turn, Markup("").join(_row(pair, write) for pair in pairs))
            for turn, pairs in difference.turns.items()
        ]
        parts.append(DIFF.format(SIDES.format("", left, right), Markup("").join(turns)))
    if difference.more:
        parts.append(MORE.format(difference.more))
    return Markup("").join(parts)


def _row(pair: Pair, write: Body) -> Markup:
    left, right = pair
    bodies = _compared(left, right) if left and right else (write, write)
    return ROW.format(*(message(entry, body) if entry else "" for entry, body in zip(pair, bodies, strict=True)))


def _compared(left: Entry, right: Entry) -> tuple[Body, Body]:
    ours, theirs = differing_words(_words(left), _words(right))
    return _marking(Marks(ours)), _marking(Marks(theirs))


def _words(entry: Entry) -> list[str]:
    words = Words()
    for part in (entry, entry.result):
        if part:
            body(part, words, lambda code, _: words(code))
    return words.found


def _marking(marks: Marks) -> Body:
    return lambda entry: body(entry, marks, lambda code, _: marks(code))


def _text(difference: Difference) -> str:
    left, right = difference.titles
    figures = [f"{what}: {ours} | {theirs}" for what, ours, theirs in difference.figures]
    parts = ["\n".join([f"< {left}", f"> {right}", difference.about, *figures])]
    for turn, pairs in difference.turns.items():
        parts.append(f"-- turn {turn} --")
        for pair in pairs:
            parts += [
                indent(entry_text(e), sign, lambda _: True) for e, sign in zip(pair, ("< ", "> "), strict=True) if e
            ]
    return "\n\n".join([*parts, difference.more] if difference.more else parts)
