"""Hostile input, in short: what `make fuzz` does for long, and what it has found."""

import io
import json
import os
import random
import re
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, literal, select

from contextkit import FormatError, Message, add_context, append_messages, import_file, messages_df, search_df
from contextkit.arrow import Column, fetch
from contextkit.formats import FORMATS, files, importing
from contextkit.formats.conversation import Defect
from contextkit.formats.files import MOST_DEEP, Notes, open_source
from contextkit.formats.units import DefectiveTreeError, tree_of
from contextkit.models import canonical_id
from tests import hostile
from tests.fixtures_exports import (
    call,
    claude_conversation,
    claude_message,
    code_line,
    gpt_conversation,
    gpt_message,
    result,
    write_sessions,
)
from tests.fuzz.mutations import mutated, nested
from tests.fuzz.seeds import seeds_of
from tests.fuzz.targets import TARGETS
from tests.test_formats_jsonl import chat
from tests.test_store import nothing_written, tables, wrong_counters

EXAMPLES = int(os.environ.get("CONTEXTKIT_EXAMPLES", "400"))
SEEDS = {name: seeds_of(name) for name in TARGETS}


def any_bytes(data: bytes, chance: random.Random) -> bytes:
    """A few bytes changed, left out or repeated."""
    made = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(made) + 1)
        made[place : place + chance.randrange(3)] = chance.choice([b"", chance.randbytes(2), made[:9]])
    return bytes(made)


def changed(name: str, number: int) -> bytes:
    chance = random.Random(number)
    seed = chance.choice(SEEDS[name])
    if name in ("files", "visible", "markdown", "ids"):
        return any_bytes(seed, chance)
    return mutated(seed, 20_000, chance, lambda data, _: any_bytes(data, chance))


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=EXAMPLES // 4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(number=st.integers(0, 2**64))
def test_hostile_input_is_read_or_refused_with_a_documented_error(name: str, number: int) -> None:
    TARGETS[name](changed(name, number))


# Imports


def whole_units(format: str, path: Path) -> set[str]:
    """Ids of the messages of all conversations without a defect."""
    made = (
        value for value in FORMATS[format].read(open_source(path, Notes(skip=True))) if not isinstance(value, Defect)
    )
    ids: set[str] = set()
    for conversation in made:
        try:
            ids |= {unit.id for unit in tree_of(format, conversation, {}).units}
        except DefectiveTreeError:
            continue
    return ids


def stored_ids(engine: Engine) -> set[str]:
    return set(messages_df(engine, include_deleted=True)["message_id"])


@settings(max_examples=EXAMPLES // 10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(number=st.integers(0, 2**64), format=st.sampled_from([*FORMATS]))
def test_a_hostile_file_is_imported_by_whole_conversations_or_not_at_all(
    shared: Engine, tmp_path: Path, number: int, format: str
) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(changed(f"read_{format}", number))
    before = tables(shared)
    try:
        import_file(shared, path, format=format)
    except FormatError:
        assert tables(shared) == before
    known = stored_ids(shared)
    try:
        frame = import_file(shared, path, format=format, on_error="skip")
    except FormatError:
        assert stored_ids(shared) == known
        return
    assert json.dumps(frame.attrs)
    assert known | whole_units(format, path) == stored_ids(shared)
    assert not wrong_counters(shared)


@pytest.mark.parametrize(
    ("record", "told"),
    [
        (b'{"messages": [], "id": ' + b"9" * 5_000 + b"}", "line 1: a number of too many digits"),
        (b'[{"messages": [], "id": ' + b"9" * 5_000 + b"}]", "line 1: a number of too many digits"),
        (b'{"messages": [],\n "id": ' + b"9" * 5_000 + b"}", "line 1"),
        (json.dumps({"messages": [], "tools": nested(MOST_DEEP)}).encode(), "line 1: nested more than 400 deep"),
        (json.dumps([{"messages": [], "tools": nested(MOST_DEEP)}]).encode(), "line 1: nested more than 400 deep"),
        (json.dumps(chat(("user", "x"))).encode("utf-16"), "not UTF-8 text"),
    ],
)
def test_values_that_cannot_be_written_again_are_refused(
    shared: Engine, tmp_path: Path, record: bytes, told: str
) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(record)
    with nothing_written(shared), pytest.raises(FormatError, match=re.escape(told)):
        import_file(shared, path)


def test_a_value_as_deep_as_allowed_is_kept(shared: Engine, tmp_path: Path) -> None:
    tools = nested(MOST_DEEP - 1)
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"id": tmp_path.name, "messages": [], "tools": tools}))
    frame = import_file(shared, path)
    assert json.loads(messages_df(shared, Message.context_id.in_(frame["context_id"]))["content"][0]) == tools


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "2024-01-01T00:00:00+16:00", "noon"])
def test_times_that_the_database_does_not_give_back_are_refused_and_others_are_utc(
    shared: Engine, tmp_path: Path, time: str
) -> None:
    path = tmp_path / "x.jsonl"
    line = {"message_id": tmp_path.name, "text": "x", "role": "prompter", "created_date": time}
    path.write_text(json.dumps(line))
    if "2024" not in time:
        with pytest.raises(FormatError, match=r"created_date: (not a time|a time outside of the years 2 to 9998)"):
            import_file(shared, path)
        return
    frame = import_file(shared, path)
    assert str(messages_df(shared, Message.context_id.in_(frame["context_id"]))["created_at"][0]) == (
        "2023-12-31 08:00:00+00:00"
    )


def usage(*tokens: Any) -> str:
    lines = [code_line("user", "q", None, "hi")]
    for number, count in enumerate(tokens):
        message = {"role": "assistant", "id": f"m{number}", "content": "x", "usage": {"output_tokens": count}}
        lines.append(code_line("assistant", f"a{number}", lines[-1]["uuid"], "x", message=message))
    return "\n".join(map(json.dumps, lines))


@pytest.mark.parametrize("tokens", [(True,), (-1,), (2**31,), (1.5,), (2**31 - 1, 1)])
def test_token_counts_that_no_column_holds_are_refused(shared: Engine, tmp_path: Path, tokens: tuple[Any, ...]) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(usage(*tokens))
    with nothing_written(shared), pytest.raises(FormatError, match="token"):
        import_file(shared, path)


def test_a_rank_that_is_no_number_is_a_defect(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"message_id": "a", "text": "x", "role": "prompter", "rank": NaN}')
    assert list(FORMATS["oasst"].read(open_source(path))) == [Defect(1, "rank", "it is no number")]


@pytest.mark.parametrize("given", [" {}", "+{}", "0x{}", "{}_", "\u0661{}"])
def test_an_id_has_all_its_digits(given: str) -> None:
    digits = "0b9cf5a41d4e4c0f8a55b4e1d6f8c1aa"
    with pytest.raises(ValueError, match="not an id"):
        canonical_id(given.format(digits[len(given) - 2 :]))
    assert canonical_id(f"{{{digits.upper()}}}") == canonical_id(f"urn:uuid:{digits}") == canonical_id(digits)


def test_a_command_shows_what_a_file_is_wrong_in_without_letting_it_steer_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps([gpt_conversation("k", [("\x1b[2J", "away", None)])]))
    environment = os.environ | {"DATABASE_URL": ""}
    command = [sys.executable, "-m", "contextkit", "import", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert r"\x1b[2J" in done.stderr
    assert "\x1b" not in done.stderr


# Values and texts through the server

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=200)
VALUES = st.one_of(
    TEXT,
    st.sampled_from([text for text in hostile.STORABLE.values() if len(text) < 2_000]),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.decimals(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=st.just(UTC)),
    st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30)),
    st.dates(),
    st.times(),
    st.uuids(),
    st.binary(max_size=50),
    st.none(),
)
SERVER = settings(
    max_examples=EXAMPLES // 40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@SERVER
@given(values=st.lists(VALUES, min_size=5, max_size=40))
def test_any_value_comes_back_alike_in_bulk_and_from_the_pool(shared: Engine, values: list[Any]) -> None:
    statement = select(*(literal(value).label(f"v{place}") for place, value in enumerate(values)))
    bulk, pool = (fetch(shared, statement, bulk=way) for way in (True, False))
    for one, other in zip(bulk, pool, strict=True):
        assert plain(one) == plain(other)


def plain(column: Column) -> list[Any]:
    values = column.values
    return values.to_pylist() if isinstance(values, pa.ChunkedArray) else list(values)


@SERVER
@given(texts=st.lists(TEXT, min_size=1, max_size=4))
def test_conditions_on_any_text_find_what_is_equal_and_nothing_else(shared: Engine, texts: list[str]) -> None:
    context = add_context(shared, texts[0])
    append_messages(shared, context, [{"role": "user", "content": text} for text in texts])
    own = Message.context_id == context
    for text in texts:
        assert messages_df(shared, own, Message.content == text)["content"].tolist() == [text] * texts.count(text)
        found = messages_df(shared, own, Message.content.contains(text, autoescape=True))["content"]
        assert found.tolist() == [other for other in texts if text in other]


@SERVER
@given(query=st.one_of(TEXT, st.sampled_from([text for text in hostile.CASES.values() if len(text) < 20_000])))
def test_a_search_for_any_text_finds_or_is_refused_as_a_value(shared: Engine, query: str) -> None:
    try:
        assert len(search_df(shared, query, k=3)) <= 3
    except ValueError as error:
        assert not query.strip() or "\0" in query or "surrogate" in str(error)  # noqa: PT017


# Packed files


def packed_zip(method: int, *names: str, data: bytes = b"{}") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name in names:
            archive.writestr(name, data)
    return file.getvalue()


def bomb(count: int) -> bytes:
    """Gzip of so many mebibytes of zeros, made of one compressed piece again and again."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    piece = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return b"\x1f\x8b\x08" + bytes(7) + piece * count + b"\x03\x00"


BOMBS: dict[str, Callable[[], bytes]] = {
    "gzip": lambda: bomb(10_000),
    "gzip in zip": lambda: packed_zip(zipfile.ZIP_STORED, "x.json.gz", data=bomb(10_000)),
    "zip": lambda: packed_zip(zipfile.ZIP_DEFLATED, "x.json", data=bytes(2**28)),
    "zip of many": lambda: packed_zip(zipfile.ZIP_DEFLATED, *(f"{n}.json" for n in range(30)), data=bytes(2**23)),
}
OPEN = """
import re, sys
from pathlib import Path
from contextkit import FormatError
from contextkit.formats.files import open_source
def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
before = peak()
for path in sys.argv[1:]:
    try:
        list(open_source(path).records())
    except FormatError as error:
        print(error)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak of a process apart from its parent's")
def test_what_unpacks_to_far_more_than_it_is_is_refused_before_memory_holds_it(tmp_path: Path) -> None:
    for name, made in BOMBS.items():
        (tmp_path / name).write_bytes(made())
    paths = [tmp_path / name for name in BOMBS]
    done = subprocess.run([sys.executable, "-c", OPEN, *paths], capture_output=True, text=True, check=True)
    *told, grown = done.stdout.splitlines()
    assert [text.split(": ")[1] for text in told] == [
        "it unpacks to over 200 times its size; if you trust it, unpack it first"
    ] * len(BOMBS)
    assert int(grown) < 400 * 2**20


def test_a_long_line_is_refused_by_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MOST_BYTES", 2**20)
    path = tmp_path / "x.json"
    for text in (b'{"a": "' + b"x" * 2**20, b'[{}, "' + b"x" * 2**20, b"{\n" + b"\n" * 2**20):
        path.write_bytes(text)
        with pytest.raises(FormatError, match="of over 1 MiB; split it"):
            list(open_source(path).records())
    path.write_bytes(b'{"a": 1}\n' * 2**18)
    assert sum(1 for _ in open_source(path).records()) == 2**18


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_archive_packed_in_a_rare_way_is_refused(tmp_path: Path, method: int) -> None:
    path = tmp_path / "x.zip"
    path.write_bytes(packed_zip(method, "x.json"))
    with pytest.raises(FormatError, match="unknown way; unpack it first"):
        open_source(path)


def test_a_damaged_archive_is_told_wherever_it_is_damaged(tmp_path: Path) -> None:
    path, refused = tmp_path / "x.zip", 0
    whole = packed_zip(zipfile.ZIP_DEFLATED, "a\u00e9.json", "b.json", data=b'{"messages": []}')
    for place in range(4, len(whole)):
        for byte in (0x00, 0xFF):
            path.write_bytes(whole[:place] + bytes([byte]) + whole[place + 1 :])
            try:
                list(open_source(path).records())
            except FormatError:
                refused += 1
    assert refused > len(whole) // 2


# Time


def counted(read: Callable[[], object]) -> int:
    """Lines of Python that something takes."""
    steps = 0

    def trace(*_: object) -> Callable[..., Any]:
        nonlocal steps
        steps += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        read()
    finally:
        sys.settrace(before)
    return steps


def flat(key: object, parent: object, **fields: Any) -> dict[str, Any]:
    line = {"message_id": str(key), "parent_id": parent if parent is None else str(parent), "text": "x"}
    return line | {"role": "prompter"} | fields


def said(*roles: str) -> list[dict[str, Any]]:
    return [{"role": role, "content": "x"} for role in roles]


def gpt_nodes(n: int, parent: Callable[[int], int]) -> list[Any]:
    nodes = [("0", None, None), *((str(k), str(parent(k)), gpt_message("user", "x")) for k in range(1, n))]
    return [gpt_conversation("k", nodes[:1] + nodes[:0:-1])]


GROWING: dict[tuple[str, str], Callable[[int], list[Any]]] = {
    ("chatgpt", "chain"): lambda n: gpt_nodes(n, lambda k: k - 1),
    ("chatgpt", "siblings"): lambda n: gpt_nodes(n, lambda k: 0),
    ("claude", "chain"): lambda n: [claude_conversation("k", [
        claude_message(str(k), "human", "x", parent_message_uuid=str(k + 1) if k < n else None)
        for k in range(n + 1)])],
    ("claude", "siblings"): lambda n: [claude_conversation("k", [
        claude_message(str(k), "human", "x", parent_message_uuid="0" if k else None) for k in range(n)])],
    ("claude", "cycle"): lambda n: [claude_conversation("k", [
        claude_message(str(k), "human", "x", parent_message_uuid=str((k + 1) % n)) for k in range(n)])],
    ("claude_code", "chain"): lambda n: [code_line("user", str(k), str(k - 1), "x") for k in range(n)],
    ("claude_code", "siblings"): lambda n: [code_line("user", str(k), "0", "x") for k in range(n)],
    ("claude_code", "one id"): lambda n: [code_line("user", "0", None, "x") for _ in range(n)],
    ("claude_code", "results"): lambda n: [
        code_line("assistant", str(k), str(k - 1), [call(f"c{k}")],
                  message={"role": "assistant", "id": "m", "content": [call(f"c{k}")]}) for k in range(n)
    ] + [code_line("user", f"r{k}", "0", [result(f"c{k}")]) for k in range(n)],
    ("oasst", "chain backwards"): lambda n: [flat(k, k + 1 if k < n else None) for k in range(n + 1)],
    ("oasst", "ranks"): lambda n: [flat(k, 0 if k else None, rank=k // 2) for k in range(n)],
    ("oasst", "ranks that are none"): lambda n: [
        flat(k, 0 if k else None, rank=float("nan") if k % 2 else k) for k in range(n)],
    ("oasst", "cycle"): lambda n: [flat(k, (k + 1) % n) for k in range(n)],
    ("oasst", "unstorable"): lambda n: [flat(k, None, text=f"\0{k}") for k in range(n)],
    ("openai", "messages"): lambda n: [{"messages": said(*["user"] * n)}],
    ("openai", "equal lines"): lambda n: [{"messages": said("user")}] * n,
    ("openai", "parts"): lambda n: [{"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}] * n}]}],
    ("openai", "malformed"): lambda n: ["{"] * n,
    ("sharegpt", "turns"): lambda n: [{"conversations": [{"from": "human", "value": "x"}] * n}],
    ("sharegpt", "calls"): lambda n: [{"conversations": [
        {"from": "function_call", "value": json.dumps([{"name": "f"}] * n)}, *[{"from": "tool", "value": "x"}] * n]}],
}  # fmt: skip


@pytest.mark.parametrize(("format", "what"), GROWING)
def test_reading_takes_steps_in_proportion_to_what_is_read(tmp_path: Path, format: str, what: str) -> None:
    def steps(n: int) -> int:
        path = tmp_path / f"{n}.jsonl"
        records = GROWING[format, what](n)
        path.write_text("\n".join(value if isinstance(value, str) else json.dumps(value) for value in records))
        work = importing._Import(None, Notes(skip=True), None)  # type: ignore[arg-type] # writes nothing

        def read() -> None:
            for made in FORMATS[format].read(open_source(path, work.notes)):
                if not isinstance(made, Defect):
                    work._checked(format, made, {})

        return counted(read)

    assert steps(1_800) < 4.5 * steps(450)


def test_opening_the_files_of_an_archive_takes_steps_in_proportion_to_their_number(tmp_path: Path) -> None:
    def steps(n: int) -> int:
        path = tmp_path / f"{n}.zip"
        path.write_bytes(packed_zip(zipfile.ZIP_STORED, *(f"{k}.json" for k in range(n))))
        return counted(lambda: list(open_source(path).records()))

    assert steps(400) < 4.5 * steps(100)


def test_sessions_that_continue_each_other_take_steps_in_proportion_to_their_number(
    shared: Engine, tmp_path: Path
) -> None:
    def steps(n: int) -> int:
        sessions = {}
        for k in range(n):
            key = f"{n}-{k}"
            line = code_line("user", key, f"{n}-{k - 1}" if k else None, "x", sessionId=key)
            sessions[key] = [line]
        folder = write_sessions(tmp_path / str(n), sessions)
        return counted(lambda: import_file(shared, folder))

    assert steps(48) < 4.5 * steps(12)
