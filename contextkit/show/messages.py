"""Messages as HTML."""

from collections.abc import Callable, Iterator
from functools import partial

from markupsafe import Markup

from contextkit.show.code import Colored
from contextkit.show.entries import CHARACTERS, Entry
from contextkit.show.facts import facts, fork_mark
from contextkit.show.markdown import Code, Text, markdown, shown
from contextkit.show.rendered import count, label, short

LONG_CHARACTERS = 3_000
LONG_LINES = 40
PREVIEW_CHARACTERS = 160
ROLES = ("assistant", "system", "tool", "user")

MESSAGE = Markup('<div class="ck-message ck-{role}{state}">{inside}</div>')
HEAD = Markup('<p class="ck-head"><strong>{}</strong>{}</p>')
FACT = Markup(' <span class="ck-fact">{}</span>')
FOLD = Markup("<details><summary>{summary}</summary>{inside}</details>")
PREVIEW = Markup('<span class="ck-preview" dir="auto">{}</span>')
CONTENT = Markup('<div class="ck-content" dir="auto">{}</div>')
MORE = Markup('<p class="ck-more">… {}, in content.iloc[{}] of the frame</p>')
CALL = Markup("<strong>tool call</strong> <code>{}</code>{} {}")
NO_RESULT = Markup('<p class="ck-head"><strong>no result here</strong></p>')
FORK = Markup('<li class="ck-fork">{}</li>')

Body = Callable[[Entry], Markup]


def items(entries: list[Entry], body: Body) -> Markup:
    """Items of a list, with a mark wherever the context that messages are stored in changes."""
    return Markup("").join(_items(entries, body))


def _items(entries: list[Entry], body: Body) -> Iterator[Markup]:
    for before, entry in zip([None, *entries], entries, strict=False):
        if mark := fork_mark(before, entry):
            yield FORK.format(mark)
        yield Markup("<li>{}</li>").format(message(entry, body))


def page_body() -> Body:
    """A way of writing the contents of one page."""
    return partial(body, text=shown, code=Colored())


def body(entry: Entry, text: Text, code: Code) -> Markup:
    """Content of a message up to so many characters: as Markdown, of tools as it is."""
    source = entry.content[:CHARACTERS]
    if not (entry.role == "tool" or entry.is_call):
        return markdown(source, text, code)
    return Markup("<pre><code>{}</code></pre>").format(code(source, "json" if _is_json(source) else ""))


def _is_json(source: str) -> bool:
    return source.lstrip()[:1] in ("{", "[")


def message(entry: Entry, body: Body) -> Markup:
    """A message with what is known of it, folded if it is long or a tool call; `body` writes its content."""
    color = "tool" if entry.is_call else entry.role if entry.role in ROLES else "other"
    inside = _tool_call(entry, body) if entry.is_call else _plain(entry, body)
    return MESSAGE.format(role=color, state=" ck-inherited" if entry.inherited else "", inside=inside)


def _plain(entry: Entry, body: Body) -> Markup:
    head = HEAD.format(label(entry.role), _facts(entry))
    written = _written(entry, body)
    if len(entry.content) <= LONG_CHARACTERS and entry.content.count("\n") < LONG_LINES:
        return head + written
    length = FACT.format(count(len(entry.content), "character"))
    return head + FOLD.format(summary=PREVIEW.format(_gist(entry)) + length, inside=written)


def _tool_call(entry: Entry, body: Body) -> Markup:
    result = entry.result
    gist = f"{_gist(entry)} → {_gist(result) if result else 'no result here'}"
    summary = CALL.format(label(entry.tool_name or "no name"), _facts(entry), PREVIEW.format(gist))
    call = HEAD.format("arguments", FACT.format(label(entry.tool_call_id or "no id"))) + _written(entry, body)
    answer = HEAD.format("result", _facts(result)) + _written(result, body) if result else NO_RESULT
    return FOLD.format(summary=summary, inside=call + answer)


def _gist(entry: Entry) -> str:
    return short(entry.content, PREVIEW_CHARACTERS)


def _written(entry: Entry, body: Body) -> Markup:
    written = CONTENT.format(body(entry))
    if entry.left_out:
        written += MORE.format(count(entry.left_out, "more character"), entry.place)
    return Markup("<del>{}</del>").format(written) if entry.deleted_at is not None else written


def _facts(entry: Entry) -> Markup:
    return Markup("").join(FACT.format(label(fact)) for fact in facts(entry))
