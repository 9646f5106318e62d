"""Code as HTML, coloured where its language is known."""

from functools import cache
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
"""Languages that are coloured: of the common ones those whose lexers were seen to stand hostile text."""
COLOURED_CHARACTERS = 4_000
"""Longer code stays as it is: some lexers take a time that grows with the square of its length."""
COLOURS = {
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


def highlighted(code: str, language: str) -> Markup:
    """Code with coloured spans; as it is where it is long, or its language none of those known."""
    code, language = visible(code), language.lower()
    if language not in LANGUAGES or len(code) > COLOURED_CHARACTERS:
        return Markup.escape(code)
    return Markup("").join(_span(str(kind), text) for kind, text in _lexer(language).get_tokens(code))


def _span(kind: str, text: str) -> Markup:
    colour = _colour(kind)
    return Markup('<span class="ck-{}">{}</span>').format(colour, text) if colour else Markup.escape(text)


@cache
def _colour(kind: str) -> str | None:
    while kind:
        if kind in COLOURS:
            return COLOURS[kind]
        kind = kind.rpartition(".")[0]
    return None


@cache
def _lexer(language: str) -> "Lexer":
    from pygments.lexers import get_lexer_by_name

    return get_lexer_by_name(language, stripnl=False, ensurenl=False)
