"""Entries as items of an HTML list."""

from collections.abc import Callable, Iterator

from markupsafe import Markup

from contextkit.show.code import highlighted
from contextkit.show.entries import CHARACTERS, Entry
from contextkit.show.facts import facts, fork_mark
from contextkit.show.markdown import markdown
from contextkit.show.rendered import count, label, short

LONG_CHARACTERS = 3_000
LONG_LINES = 40
PREVIEW_CHARACTERS = 160
ROLES = ("assistant", "system", "tool", "user")

ITEM = Markup('<li class="ck-message ck-{role}{state}">{inside}</li>')
HEAD = Markup('<p class="ck-head"><strong>{role}</strong>{facts}</p>')
FACT = Markup(' <span class="ck-fact">{}</span>')
FOLD = Markup("<details><summary>{summary}</summary>{inside}</details>")
CONTENT = Markup('<div class="ck-content" dir="auto">{}</div>')
MORE = Markup('<p class="ck-more">… {}, in content.iloc[{}] of the frame</p>')
PART = Markup('<p class="ck-head">{}{}</p>{}')
FORK = Markup('<li class="ck-fork">{}</li>')

Body = Callable[[Entry], Markup]


def items(entries: list[Entry]) -> Markup:
    """Items of one context's entries, with a mark wherever the context that they are stored in changes."""
    return Markup("").join(_items(entries))


def _items(entries: list[Entry]) -> Iterator[Markup]:
    for before, entry in zip([None, *entries], entries, strict=False):
        if mark := fork_mark(before, entry):
            yield FORK.format(mark)
        yield item(entry)


def item(entry: Entry, body: "Body | None" = None) -> Markup:
    """One entry as an item of a list.

    Args:
        entry: the message.
        body: how its content is written; by its role if not given.
    """
    state = " ck-inherited" if entry.inherited else ""
    inside = _tool_call(entry) if entry.is_call else _message(entry, body or content)
    return ITEM.format(role=entry.role if entry.role in ROLES else "other", state=state, inside=inside)


def content(entry: Entry) -> Markup:
    """Content of a message as HTML, up to so many characters: Markdown, and of tools as it is."""
    text = entry.content[:CHARACTERS]
    return _code(text) if entry.role == "tool" or entry.is_call else markdown(text)


def _message(entry: Entry, body: Body) -> Markup:
    head = HEAD.format(role=label(entry.role), facts=_facts(entry))
    written = _written(entry, body)
    if len(entry.content) <= LONG_CHARACTERS and entry.content.count("\n") < LONG_LINES:
        return head + written
    preview = Markup('<span class="ck-preview" dir="auto">{}</span>').format(short(entry.content, PREVIEW_CHARACTERS))
    length = FACT.format(count(len(entry.content), "character"))
    return head + FOLD.format(summary=preview + length, inside=written)


def _tool_call(entry: Entry) -> Markup:
    result = entry.result
    gist = label(result.content) if result else FACT.format("no result here")
    summary = Markup("<strong>tool call</strong> <code>{}</code> {} → {}{}").format(
        label(entry.tool_name or "no name"), label(entry.content), gist, _facts(entry)
    )
    call = PART.format("arguments", FACT.format(label(entry.tool_call_id or "no id")), _written(entry, content))
    answer = PART.format("result", _facts(result), _written(result, content)) if result else ""
    return FOLD.format(summary=summary, inside=call + answer)


def _written(entry: Entry, body: Body) -> Markup:
    written = CONTENT.format(body(entry))
    if entry.left_out:
        written += MORE.format(count(entry.left_out, "more character"), entry.place)
    return Markup("<del>{}</del>").format(written) if entry.deleted_at is not None else written


def _code(text: str) -> Markup:
    language = "json" if text.lstrip()[:1] in ("{", "[") else ""
    return Markup("<pre><code>{}</code></pre>").format(highlighted(text, language))


def _facts(entry: Entry) -> Markup:
    return Markup("").join(FACT.format(label(fact)) for fact in facts(entry))
