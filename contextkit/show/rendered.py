"""What a reader gets: HTML for notebooks and browsers, text for terminals."""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup

from contextkit.visible import visible_line

LABEL_CHARACTERS = 120
# MathJax, which notebooks run over outputs, leaves these classes alone; JupyterLab's table of contents the last.
FRAGMENT = Markup('<div class="contextkit mathjax_ignore tex2jax_ignore"><style>{}</style>{}</div>')
PAGE = Markup("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<meta http-equiv="x-dns-prefetch-control" content="off">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
body {{ color: CanvasText; background: Canvas }}
h1 {{ margin: 1rem; font: 600 1.25rem system-ui, sans-serif; overflow-wrap: anywhere }}
</style>
</head>
<body>
<main>
<h1><bdi>{title}</bdi></h1>
{body}
</main>
</body>
</html>
""")


@dataclass(frozen=True, repr=False)
class Rendered:
    """HTML and text of the same. Notebooks show the HTML, terminals print the text; `save` writes a page."""

    title: str
    body: Markup
    text: str

    @property
    def html(self) -> str:
        """Static HTML that needs nothing else, for any place in a page; no script, no address that is loaded."""
        return FRAGMENT.format(_style(), self.body)

    def save(self, path: str | Path) -> None:
        """Write a page that shows the same by itself, in any browser and offline."""
        Path(path).write_text(PAGE.format(title=self.title, body=self.html), encoding="utf-8")

    def __repr__(self) -> str:
        """Text, as a terminal shows it."""
        return self.text

    def _repr_html_(self) -> str:
        return self.html

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/html": self.html, "text/plain": self.text}


def label(value: object) -> Markup:
    """A name, an id or another short text as HTML: on one line, and of no influence on what stands beside it."""
    return Markup("<bdi>{}</bdi>").format(short(value))


def short(value: object, characters: int = LABEL_CHARACTERS) -> str:
    """Text of a value on one line, visible, cut to some characters.

    >>> short("one\\n two three", 7)
    'one tw…'
    """
    line = visible_line(str(value)[: 4 * characters])
    return line if len(line) <= characters else line[: characters - 1] + "…"


def count(number: int, noun: str) -> str:
    """A number of things in words.

    >>> count(1, "message"), count(1200, "token")
    ('1 message', '1,200 tokens')
    """
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


@cache
def _style() -> Markup:
    return Markup(files("contextkit.show").joinpath("style.css").read_text(encoding="utf-8"))  # noqa: S704 # our own
