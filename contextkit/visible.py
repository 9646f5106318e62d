"""Text that steers nothing: what is no plain character made visible."""

import unicodedata

KEPT = "\n\t\u200c\u200d"
"""Controls of lines, and the joiners that scripts and emoji are written with."""


class _Escapes(dict[int, str]):
    """Each character's replacement, found when it is first met."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        steers = character not in KEPT and unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
        self[code] = character.encode("unicode_escape").decode() if steers else character
        return self[code]


_ESCAPES = _Escapes()


def visible(text: str) -> str:
    r"""The text with controls, changes of direction and characters without a shape as escapes, such as \x1b.

    Newlines and tabs stay, and a newline with a carriage return is a newline.

    >>> print(visible("red \x1b[31m, \u202egnp.exe"))
    red \x1b[31m, \u202egnp.exe
    """
    return text.replace("\r\n", "\n").translate(_ESCAPES)


def visible_line(value: object) -> str:
    r"""The same of any value's text on one line, with single spaces.

    >>> visible_line("one\n  two")
    'one two'
    """
    return visible(" ".join(str(value).split()))
