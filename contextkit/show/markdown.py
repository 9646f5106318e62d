"""Markdown as HTML of few tags: what is not written here cannot come out."""

import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING

from markupsafe import Markup

from contextkit.visible import visible

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

NESTING = 40
"""Blocks deeper in each other than that are shown as they are written; the parser drops them."""
CELLS = 5_000
"""Tables are shown as they are written where there could be more cells: rows need not write theirs."""
SAFE = re.compile(r"https?://|mailto:", re.IGNORECASE)
TAGS = {
    "blockquote": "blockquote",
    "bullet_list": "ul",
    "em": "em",
    "list_item": "li",
    "paragraph": "p",
    "s": "s",
    "strong": "strong",
    "table": "table",
    "tbody": "tbody",
    "td": "td",
    "th": "th",
    "thead": "thead",
    "tr": "tr",
}
FIXED = {
    "hardbreak": Markup("<br>"),
    "heading_close": Markup("</strong></p>"),
    "hr": Markup("<hr>"),
    "link_close": Markup("</a>"),
    "ordered_list_close": Markup("</ol>"),
    "softbreak": Markup("<br>"),  # a line that a person or a model broke is a line
}
LINK = Markup('<a href="{}" title="{}" target="_blank" rel="noopener noreferrer">')

Text = Callable[[str], Markup]
Code = Callable[[str, str], Markup]


def shown(text: str) -> Markup:
    """Text as HTML that shows every character of it."""
    return Markup.escape(visible(text))


def markdown(source: str, text: Text, code: Code) -> Markup:
    """Markdown as HTML. HTML in it is text, images are links, links lead to http, https and mailto only.

    Args:
        source: what was written.
        text: how text is written.
        code: how a block of code is written, given its language.
    """
    tokens = _parser(tables=_most_cells(source) <= CELLS).parse(source)
    if any(token.level >= NESTING - 1 for token in tokens):
        return Markup('<p class="ck-plain">{}</p>').format(text(source))
    return Markup("").join(_written(token, text, code) for token in _flat(tokens) if not token.hidden)


def _most_cells(source: str) -> int:
    lines = source.splitlines()
    return len(lines) * max((line.count("|") for line in lines if set(line) <= set("|-: \t>")), default=0)


@cache
def _parser(*, tables: bool) -> "MarkdownIt":
    from markdown_it import MarkdownIt

    # Definitions of references are off, as they show nothing: text would hide in them.
    parser = MarkdownIt("commonmark", {"html": False, "maxNesting": NESTING}).disable(["reference"])
    parser.enable(["table", "strikethrough"] if tables else ["strikethrough"])
    parser.validateLink = lambda url: SAFE.match(url) is not None  # type: ignore[method-assign] # its documented way
    return parser


def _flat(tokens: "list[Token]") -> "Iterator[Token]":
    """Give all tokens in the order of writing; images within a link as its text."""
    linked = False
    for token in tokens:
        if token.type == "inline":
            yield from _flat(token.children or [])
            continue
        linked = token.type == "link_open" or (linked and token.type != "link_close")
        if token.type == "image" and linked:
            token.type, token.content = "text", _alternative(token)
        yield token


def _written(token: "Token", text: Text, code: Code) -> Markup:
    if token.type in FIXED:
        return FIXED[token.type]
    if token.type in WRITERS:
        return WRITERS[token.type](token, text)
    if token.type in ("fence", "code_block"):
        return _block(token, text, code)
    kind, _, end = token.type.rpartition("_")
    return Markup("<{}{}>").format("/" if end == "close" else "", TAGS[kind])


def _block(token: "Token", text: Text, code: Code) -> Markup:
    language = token.info.split(maxsplit=1)[0] if token.info.strip() else ""
    info = Markup('<p class="ck-info">{}</p>').format(text(token.info.strip())) if language else ""
    return Markup("{}<pre><code>{}</code></pre>").format(info, code(token.content, language))


def _link(token: "Token", text: Text) -> Markup:
    address = str(token.attrs["href"])
    return _opened(address, str(token.attrs.get("title") or address))


def _image(token: "Token", text: Text) -> Markup:
    address = str(token.attrs["src"])
    return Markup("{}{}</a>").format(_opened(address, address), text(_alternative(token)))


def _opened(address: str, title: str) -> Markup:
    # An empty address leads to the page that it stands in.
    return LINK.format(visible(address), visible(title)) if address else Markup("<a>")


def _alternative(token: "Token") -> str:
    return f"image: {token.content or token.attrs['src']}"


WRITERS: "dict[str, Callable[[Token, Text], Markup]]" = {
    "code_inline": lambda token, text: Markup("<code>{}</code>").format(text(token.content)),
    "heading_open": lambda token, _: Markup('<p class="ck-{}"><strong>').format(token.tag),
    "image": _image,
    "link_open": _link,
    "ordered_list_open": lambda token, _: Markup('<ol start="{}">').format(int(token.attrs.get("start", 1))),
    "text": lambda token, text: text(token.content),
    "text_special": lambda token, text: text(token.content),
}
