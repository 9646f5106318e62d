"""Code as HTML, colored where its language is known."""

from dataclasses import dataclass
from functools import cache
from time import thread_time
from typing import TYPE_CHECKING

from markupsafe import Markup

from contextkit.visible import visible

if TYPE_CHECKING:
    from pygments.lexer import Lexer

LANGUAGES = frozenset(
    """
    bash c c++ cpp csharp css diff docker dockerfile go html ini java javascript js json kotlin php pycon py
    python python3 r rb rs ruby rust sh shell sql swift toml ts typescript xml yaml yml
    """.split()  # noqa: SIM905 # forty words read better than forty strings
)
"""Languages that are colored: of the common ones those whose lexers were seen to stand hostile text."""
COLORED_CHARACTERS = 4_000
"""Longer code stays as it is: some lexers take a time that grows with the square of its length."""
COLORING_SECONDS = 2.0
"""What a page may take for colors; no content that was not written to be slow comes near it."""
COLORS = {
    "Token.Comment": "comment",
    "Token.Generic.Deleted": "deleted",
    "Token.Generic.Inserted": "inserted",
    "Token.Keyword": "keyword",
    "Token.Literal.Number": "number",
    "Token.Literal.String": "string",
    "Token.Name.Class": "name",
    "Token.Name.Function": "name",
    "Token.Name.Tag": "name",
}


@dataclass
class Colored:
    """A way of writing code, with colored spans as long as those of a page have not taken too long."""

    seconds: float = 0.0

    def __call__(self, code: str, language: str) -> Markup:
        """Code as HTML; without colors if it is long, or its language none of those known."""
        code, language = visible(code), language.lower()
        if language not in LANGUAGES or len(code) > COLORED_CHARACTERS or self.seconds > COLORING_SECONDS:
            return Markup.escape(code)
        start = thread_time()
        written = Markup("").join(_span(str(kind), text) for kind, text in _lexer(language).get_tokens(code))
        self.seconds += thread_time() - start
        return written


def _span(kind: str, text: str) -> Markup:
    color = _color(kind)
    return Markup('<span class="ck-{}">{}</span>').format(color, text) if color else Markup.escape(text)


@cache
def _color(kind: str) -> str | None:
    while kind:
        if kind in COLORS:
            return COLORS[kind]
        kind = kind.rpartition(".")[0]
    return None


@cache
def _lexer(language: str) -> "Lexer":
    from pygments.lexers import get_lexer_by_name

    return get_lexer_by_name(language, stripnl=False, ensurenl=False)
