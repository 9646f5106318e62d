"""Words that two texts do not share."""

import re
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from itertools import takewhile

from markupsafe import Markup

from contextkit.show.markdown import shown

WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+|[^\w\s]")
"""A word, a sign, or a character of Chinese and Japanese, which have no spaces between words."""
COMPARED_WORDS = 1_000
"""As many words of each side are compared with each other; more count as different throughout."""


def differing_words(left: list[str], right: list[str]) -> tuple[set[int], set[int]]:
    """Places of the words of each side that the other does not have in the same order.

    >>> differing_words("a b c d".split(), "a x c d e".split())
    ({1}, {1, 4})
    """
    start = _common(left, right)
    end = min(_common(left[::-1], right[::-1]), len(left) - start, len(right) - start)
    ours, theirs = left[start : len(left) - end], right[start : len(right) - end]
    places = set(range(start, start + len(ours))), set(range(start, start + len(theirs)))
    if max(len(ours), len(theirs)) <= COMPARED_WORDS:
        for block in SequenceMatcher(None, ours, theirs).get_matching_blocks():
            places[0].difference_update(range(start + block.a, start + block.a + block.size))
            places[1].difference_update(range(start + block.b, start + block.b + block.size))
    return places


def _common(left: list[str], right: list[str]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False)))


@dataclass
class Words:
    """A way of writing text that writes nothing and keeps the words."""

    found: list[str] = field(default_factory=list)

    def __call__(self, text: str) -> Markup:
        """Keep the words of a text."""
        self.found += WORD.findall(text)
        return Markup()


@dataclass
class Marks:
    """A way of writing text that marks words by their place among all that it is given."""

    places: set[int]
    next_place: int = 0

    def __call__(self, text: str) -> Markup:
        """The text as HTML, neighboring words under one mark."""
        written, start, end = Markup(), 0, 0  # from start to end stands what is marked and not yet written
        for word in WORD.finditer(text):
            if self.next_place in self.places:
                if start == end:
                    written += shown(text[end : word.start()])
                    start = word.start()
                end = word.end()
            else:
                written += _mark(text[start:end]) + shown(text[end : word.end()])
                start = end = word.end()
            self.next_place += 1
        return written + _mark(text[start:end]) + shown(text[end:])


def _mark(text: str) -> Markup:
    return Markup("<mark>{}</mark>").format(shown(text)) if text else Markup()
