"""Histories as transcripts."""

import pandas as pd
from markupsafe import Markup

from contextkit.show.entries import Section, checked, fitting, left_out, sections_of
from contextkit.show.messages import items, page_body
from contextkit.show.rendered import Rendered
from contextkit.show.text import sections_text

CONTEXT = Markup(
    '<h2 class="ck-title jp-toc-ignore"><bdi>{}</bdi></h2><p class="ck-about">{}</p><ul class="ck-list">{}</ul>'
)
MORE = Markup('<p class="ck-more">{}</p>')


def show(history: pd.DataFrame) -> Rendered:
    """A transcript to look at: static HTML in notebooks, text in terminals.

    Markdown is rendered, with code colored. Inherited messages are shaded and fork points marked; a tool's result is
    folded into its call; long messages are folded; deleted ones, where the frame has them, are struck through.
    Nothing of the content can run, load or leave its place, and characters that cannot be seen are written as
    escapes. At most 200 messages are shown, 200,000 characters of all and 20,000 of one; what is left out is
    counted, and a slice of the frame shows it.

    Args:
        history: from `history_df`, `window_df` or `messages_df`, of one or several contexts; at least role and
            content. A column `name` gives the titles.

    Returns:
        An object that notebooks show; its `save(path)` writes it as a page, `html` and `text` are what it shows.

    Raises:
        TypeError: the history is no frame.
        ValueError: the frame has no role or content, or no numbers or times where these belong.

    >>> show(pd.DataFrame({"role": ["user", "assistant"], "content": ["Hi", "Hello"]}))
    transcript
    2 messages
    <BLANKLINE>
    user
        Hi
    <BLANKLINE>
    assistant
        Hello
    """
    rows = checked(history)
    shown = fitting(rows)
    sections, more = sections_of(rows, shown), left_out(rows, shown)
    title = f"Transcript: {sections[0].title}" if len(sections) == 1 else f"{len(sections)} transcripts"
    return Rendered(title, _html(sections, more), sections_text(sections, more))


def _html(sections: list[Section], more: str) -> Markup:
    body = page_body()
    parts = [CONTEXT.format(section.title, section.about, items(section.entries, body)) for section in sections]
    return Markup("").join(parts) + (MORE.format(more) if more else "") or MORE.format("no messages")
