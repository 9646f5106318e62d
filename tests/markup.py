"""HTML as tests look at it: every element, checked to be one of the few that views are made of."""

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

ATTRIBUTES = {"a": {"href", "title", "target", "rel"}, "ol": {"start"}, "th": {"scope", "colspan"}}
BY_DEFAULT = {"class", "dir"}
TAGS = frozenset(
    """
    a bdi blockquote br code del details div em h2 hr li mark ol p pre s span strong style summary
    table tbody td th thead tr ul
    """.split()  # noqa: SIM905 # a list of words
)
VOID = {"br", "hr"}
CLASS = re.compile(r"contextkit|mathjax_ignore|tex2jax_ignore|jp-toc-ignore|ck-[a-z0-9]+")


@dataclass
class Element:
    """An element with what is in it."""

    tag: str
    attributes: dict[str, str]
    children: list["Element | str"] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    @property
    def elements(self) -> list["Element"]:
        """Elements that it holds itself."""
        return [child for child in self.children if isinstance(child, Element)]

    def below(self, tag: str) -> list["Element"]:
        """Elements of a tag that it holds itself."""
        return [child for child in self.elements if child.tag == tag]

    def all(self, tag: str, class_: str = "") -> list["Element"]:
        """Elements at any depth in it, in order, of a tag and a class if one is given."""
        found = []
        for child in self.elements:
            fits = child.tag == tag and (not class_ or class_ in child.attributes.get("class", "").split())
            found += [child] * fits + child.all(tag, class_)
        return found


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open = [Element("", {})]

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attributes})
        assert len(element.attributes) == len(attributes)
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(data)

    handle_decl = handle_pi = unknown_decl = handle_comment


def parsed(html: str) -> Element:
    """The tree of a page or a part of one; every element has its end."""
    parser = _Parser()
    parser.feed(html)
    parser.close()
    assert len(parser.open) == 1
    return parser.open[0]


def assert_harmless(html: str) -> Element:
    """The tree of a view, whose elements and attributes are all known and lead nowhere by themselves."""
    tree = parsed(html)
    styles = tree.all("style")
    assert len(styles) == 1
    assert not re.search(r"url\(|@import|expression|behavior", styles[0].text)
    for tag in {element.tag for element in _elements(tree)} - {""}:
        assert tag in TAGS
    for element in _elements(tree):
        assert set(element.attributes) <= ATTRIBUTES.get(element.tag, BY_DEFAULT)
        assert all(map(CLASS.fullmatch, element.attributes.get("class", "").split()))
        assert element.attributes.get("dir", "auto") == "auto"
        if element.tag == "a" and element.attributes:  # without an address it leads nowhere
            assert re.match(r"(https?://|mailto:)", element.attributes["href"], re.IGNORECASE)
            assert element.attributes["rel"] == "noopener noreferrer"
    return tree


def _elements(element: Element) -> list[Element]:
    return [element, *(below for child in element.elements for below in _elements(child))]
