"""Changes to JSON that chance hardly makes of bytes: hostile values in any place, ids that name each other."""

import json
import random
from collections.abc import Callable
from typing import Any

Place = tuple[Any, Any]
"""A container and the key or index in it."""

MOST_RECORDS = 16
"""Of a file, as what is long takes long and finds no more."""
TOKENS = (
    "NaN",
    "-Infinity",
    "1e999999",
    "9" * 5_000,
    "-0",
    "1E400",
    '"\\ud800"',
    '"\\u0000"',
    "[" * 600,
    '{"a":' * 600,
)
"""Values that json.dumps does not write."""


def nested(depth: int, *, lists: bool = True) -> Any:
    """A value so deep."""
    value: Any = "deep"
    for _ in range(depth):
        value = [value] if lists else {"a": value}
    return value


HOSTILE = tuple(json.dumps(value) for value in (
    None, True, False, 0, -1, 2**31 - 1, 2**31, 2**63, -(2**63) - 1, 10**400, 1.5, 1e308, -1e308, 253402300799.9, "",
    " ", "\0", "\ud800", "x\udfff", "\ufeff", "/", "%2F", "a" * 3_000, "1", "user", "assistant", "system", "tool",
    "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59.999999-23:59", "2024-01-01T00:00:00+16:00", "20240101", [], {},
    [None], [[]], [{}], {"": None}, {"\0": "\0"}, nested(60), nested(395), nested(405), nested(600, lists=False),
    [0] * 50, {"type": "text", "text": "x"}, {"role": "user", "content": "x"}, {"from": "human", "value": "x"},
))  # fmt: skip
"""As text, as values would be shared and change."""


def mutated(data: bytes, most: int, chance: random.Random, bytewise: Callable[[bytes, int], bytes]) -> bytes:
    """A file of JSON records with a few changes; of one that is no JSON, bytes changed."""
    try:
        records = json.loads(data) if data[:1] == b"[" else [json.loads(line) for line in data.split(b"\n") if line]
    except (ValueError, RecursionError):
        records = None
    if not isinstance(records, list) or not records or chance.random() < 0.15:
        return bytes(bytewise(data, most))
    del records[MOST_RECORDS:]
    try:
        for _ in range(chance.choice((1, 1, 2, 4))):
            _change(records, chance)
        texts = [json.dumps(record, ensure_ascii=chance.random() < 0.8) for record in records]
    except (ValueError, RecursionError):  # they are nested too deep by now
        return data
    text = f"[{', '.join(texts)}]" if chance.random() < 0.3 else "\n".join(texts)
    if chance.random() < 0.1:
        place = text.find(":", chance.randrange(len(text) + 1)) + 1
        text = f"{text[:place]}{chance.choice(TOKENS)}{',' * chance.randrange(2)}{text[place:]}"
    made = text.encode("utf-8", "surrogatepass")
    return made if len(made) <= most else data


def _places(value: Any) -> list[Place]:
    found: list[Place] = []
    waiting = [value]
    while waiting and len(found) < 3_000:
        holder = waiting.pop()
        entries = holder.items() if isinstance(holder, dict) else enumerate(holder)
        for key, item in entries:
            found.append((holder, key))
            if isinstance(item, dict | list):
                waiting.append(item)
    return found


def _change(records: list[Any], chance: random.Random) -> None:
    places = _places(records)
    if not places:
        return
    holder, key = chance.choice(places)
    other, name = chance.choice(places)
    kind = chance.randrange(7)
    if kind < 2:
        holder[key] = json.loads(chance.choice(HOSTILE))
    elif kind == 2:
        del holder[key]
    elif kind == 3:  # ids that repeat or form cycles; copies, as a value within itself could not be written
        holder[key] = json.loads(json.dumps(other[name]))
    elif kind == 4 and isinstance(holder, list):
        holder.insert(chance.randrange(len(holder) + 1), json.loads(json.dumps(holder[key])))
    elif kind == 5 and isinstance(holder, dict):
        holder[chance.choice([str(key) + "x", str(name)])] = holder.pop(key)
    else:
        holder[key] = [holder[key]]
