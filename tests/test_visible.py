import pytest

from contextkit.visible import visible, visible_line

CONTROLS = [*map(chr, range(32)), *map(chr, range(127, 160))]
BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
SHAPELESS = "\u00ad\u200b\u2060\ufeff\u2028\u2029\U000e0041\ud800"


@pytest.mark.parametrize("character", [c for c in CONTROLS if c not in "\n\t"] + list(BIDI + SHAPELESS), ids=ascii)
def test_what_steers_or_hides_becomes_an_escape(character: str) -> None:
    shown = visible(f"a{character}b")
    assert shown == f"a{character.encode('unicode_escape').decode()}b"
    assert shown.isprintable()


@pytest.mark.parametrize(
    "text", ["", "a\n\tb", "Grüße, 你好, नमस्ते", "a\u00a0b", "👩\u200d💻", "a\u200cb", "\\x1b", "é", "e\u0301"]
)
def test_plain_text_of_any_script_stays(text: str) -> None:
    assert visible(text) == text


def test_line_ends_of_windows_are_newlines_and_a_lone_carriage_return_is_none() -> None:
    assert visible("a\r\nb\rc") == "a\nb\\rc"


def test_a_line_has_no_line_break_of_any_kind() -> None:
    assert visible_line("a\r\n b\u2028c\x85d\x0be\x1b") == "a b c d e\\x1b"
    assert visible_line(12) == "12"
