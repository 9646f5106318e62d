"""What functions are given as ids, vectors, messages and text: a result that holds, a ValueError or a TypeError."""

import json
import unicodedata
from collections.abc import Callable
from typing import Any

import numpy as np

from contextkit.asked import as_array, check_squares, check_terms, check_vectors, holds_ids
from contextkit.models import canonical_id, canonical_ids
from contextkit.store import _checked
from contextkit.visible import KEPT, visible, visible_line

STEERING = ("Cc", "Cf", "Cs", "Zl", "Zp")


def text_of(data: bytes) -> str:
    """Any text, halves of surrogate pairs included."""
    return data.decode("utf-8", "surrogatepass" if data[:1] == b"\xed" else "replace")


def value_of(data: bytes) -> Any:
    """Any value that JSON can say, else its text."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return data.decode("utf-8", "replace")


def ids(data: bytes) -> None:
    """An id is accepted only if all its digits stand in the text, in their order."""
    value = value_of(data)
    for given in (value, data.decode("utf-8", "replace")):
        try:
            found = canonical_id(given)
        except (ValueError, TypeError):
            continue
        assert canonical_id(found) == found
        assert found.replace("-", "") in str(given).replace("-", "").lower()
    try:
        listed = canonical_ids(value)
    except (ValueError, TypeError):
        return
    assert len(set(listed)) == len(listed) == len(canonical_ids(listed))


def vectors(data: bytes) -> None:
    """A query is numbers in one or two dimensions, or refused."""
    value = value_of(data)
    numbers = np.frombuffer(data[: len(data) // 4 * 4], np.float32)
    for given in (value, numbers, numbers.reshape(-1, 1), [numbers, value], list(numbers)):
        try:
            if holds_ids(given):
                canonical_ids(list(given))
                continue
            array = as_array(given)
            with np.errstate(all="ignore"):
                rows = np.atleast_2d(array).astype(np.float32)
                check_squares((rows * rows).sum(axis=1), "cosine")
            check_vectors(rows, "l2")
        except (ValueError, TypeError):
            continue
        assert array.dtype.kind in "fiu"
        assert np.isfinite(rows).all()
    for k in (value, numbers[:1]):
        try:
            check_terms(k, "cosine")
        except (ValueError, TypeError):
            continue
        assert k >= 1


def messages(data: bytes) -> None:
    """A message to append is checked to its last field before anything is written."""
    value = value_of(data)
    numbers = np.frombuffer(data.ljust(1536 * 4, b"\0")[: 1536 * 4], np.float32)
    vector = {"role": "user", "content": "x", "embedding": numbers}
    plain = {"role": "user", "content": "x"} | dict.fromkeys(
        ("token_count", "created_at", "content", "embedding")[: len(data) % 5], value
    )
    for given in (value, plain, vector):
        try:
            row = _checked(given, 0)
        except (ValueError, TypeError):
            continue
        assert "\0" not in row["content"]
        row["content"].encode()
        assert row["token_count"] is None or 0 <= row["token_count"] < 2**31
        assert row["embedding"] is None or np.isfinite(row["embedding"]).all()


def plain_text(data: bytes) -> None:
    """What is shown steers nothing, and is shown again as it is."""
    text = text_of(data) if data[:1] != b"\xed" else "".join(chr(0xD700 + byte) for byte in data)
    shown = visible(text)
    assert not any(unicodedata.category(character) in STEERING for character in shown if character not in KEPT)
    assert visible(shown) == shown
    line = visible_line(text)
    assert "\n" not in line
    assert visible_line(line) == line


TARGETS: dict[str, Callable[[bytes], None]] = {
    "ids": ids,
    "vectors": vectors,
    "messages": messages,
    "visible": plain_text,
}
