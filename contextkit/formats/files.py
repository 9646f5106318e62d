"""What an import reads from: a plain file, .gz, .zip or folder, as JSON records with the lines they stand in."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

from contextkit.errors import FormatError
from contextkit.formats.conversation import Defect
from contextkit.formats.packed import ZIP, damage_told, entries, plain
from contextkit.models import is_storable

Record = tuple[int, Any]

ENDINGS = (".json", ".jsonl", ".ndjson")
LOOKED_AT = 20
"""Records of a file that tell its format: sessions may begin with lines of other types."""
MOST_BYTES = 2**30
"""Of a line, or of a file that is one value: each is read as a whole."""
MOST_DEEP = 400
"""Lists and objects within each other; what reads and writes JSON recurses, and callers need room, too."""
TOO_DEEP = f"nested more than {MOST_DEEP} deep"


@dataclass
class Notes:
    """What reading the files of one import leaves behind."""

    skip: bool = False
    """Whether malformed JSON is noted and passed over, instead of raised."""
    file: str = ""
    line: int | None = None
    unit: str = "line"
    """What is counted where records are being read: line, or item of an array."""
    defects: dict[tuple[str, Defect], None] = field(default_factory=dict)
    """Malformed JSON that was passed over, with its file; once, if it is read twice."""
    unstorable: dict[str, tuple[str, int, str]] = field(default_factory=dict)
    """File, line and field of each text that holds a NUL character or half of a surrogate pair; where it came last."""


@dataclass(frozen=True)
class Source:
    """A file of JSON records, or a folder or archive of several.

    Its records come in the order of the files' names.
    """

    name: str
    opened: Callable[[], IO[bytes]] | None = None
    members: tuple["Source", ...] = ()
    notes: Notes = field(default_factory=Notes)

    def files(self) -> Iterator["Source"]:
        """Give the single files, by name; a single file gives itself."""
        if self.opened is not None:
            yield self
        for member in self.members:
            yield from member.files()

    def records(self) -> Iterator[Record]:
        """Give line and value of each record in JSON Lines, place (from 1) and value of each item of an array.

        Raises:
            FormatError: the file is no JSON, or damaged.
        """
        for file in self.files():
            for line, text, value in file._values():
                self.notes.file, self.notes.line = file.name, line
                if "\\u0000" in text or "\\ud" in text or "\\uD" in text:
                    for place, found in _unstorable(value):
                        self.notes.unstorable[found] = (file.name, line, place)
                yield line, value

    def head(self) -> list[Any]:
        """Give the first values, as far as they are JSON."""
        values = []
        try:
            for _, _, value in islice(self._values(raising=True), LOOKED_AT):
                values.append(value)
        except FormatError:
            pass
        return values

    def _values(self, *, raising: bool = False) -> Iterator[tuple[int, str, Any]]:
        if self.opened is None:
            return
        with damage_told(self.name), self.opened() as file:
            for line, text in _texts(file, self.name):
                try:
                    if isinstance(text, FormatError):
                        raise text
                    if text.lstrip().startswith("["):
                        self.notes.unit = "item"
                        yield from _items(text, self.name, line - 1)
                    else:
                        self.notes.unit = "line"
                        yield line, text, _parsed(text, self.name, line)
                except FormatError as error:
                    if raising or not self.notes.skip:
                        raise
                    place, reason = error.args[1:] if len(error.args) > 1 else (line, str(error))
                    self.notes.defects[self.name, Defect(place, "", reason)] = None


def open_source(path: str | Path, notes: Notes | None = None) -> Source:
    """Source of a file, folder, .gz or .zip, told apart by content.

    Raises:
        FileNotFoundError: there is no such file.
        FormatError: a damaged archive, or a folder without JSON files.
    """
    path = Path(path).expanduser()
    notes = notes or Notes()
    if not path.is_dir():
        return _opened(path, path.name, notes)
    found = sorted(file for file in path.rglob("*") if file.is_file() and _is_wanted(str(file.relative_to(path))))
    if not found:
        raise FormatError(f"{path.name}: the folder holds no file that ends in {', '.join(ENDINGS)}")
    members = tuple(_opened(file, str(file.relative_to(path)), notes) for file in found)
    return Source(path.name, members=members, notes=notes)


def _opened(path: Path, name: str, notes: Notes) -> Source:
    with path.open("rb") as file:
        start = file.read(4)
    if start == ZIP:
        return _archive(path, name, notes)
    return Source(name, lambda: plain(path.open("rb"), name), notes=notes)


def _archive(path: Path, name: str, notes: Notes) -> Source:
    wanted = {entry: opened for entry, opened in entries(path, name).items() if _is_wanted(entry)}
    if not wanted:
        raise FormatError(f"{name}: the archive holds no file that ends in {', '.join(ENDINGS)}")

    def opener(entry: str) -> Callable[[], IO[bytes]]:
        return lambda: plain(wanted[entry](), entry)

    return Source(name, members=tuple(Source(entry, opener(entry), notes=notes) for entry in wanted), notes=notes)


def _is_wanted(name: str) -> bool:
    parts = Path(name).parts
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return not hidden and name.lower().removesuffix(".gz").endswith(ENDINGS)


def _texts(file: IO[bytes], name: str) -> Iterator[tuple[int, str | FormatError]]:
    """Give each line of JSON Lines with its number; a file that is one value comes whole."""
    first = True
    for number, raw in enumerate(_lines(file, name), 1):
        try:
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            yield number, _malformed(name, number, "not UTF-8 text")
            continue
        if not text.strip():
            continue
        if first and (text.lstrip().startswith("[") or _is_open(text)):
            whole = text + _rest(file, name, len(raw))
            if text.lstrip().startswith("[") or not _breaks_in_first_line(whole):
                yield number, whole
            else:
                yield from ((number + place, line) for place, line in enumerate(whole.split("\n")) if line.strip())
            return
        first = False
        yield number, text


def _lines(file: IO[bytes], name: str) -> Iterator[bytes]:
    while raw := file.readline(MOST_BYTES + 1):
        _check_bytes(len(raw), name)
        yield raw


def _check_bytes(count: int, name: str) -> None:
    if count > MOST_BYTES:
        raise FormatError(f"{name}: a line, or a file that is one value, of over {MOST_BYTES >> 20} MiB; split it")


def _is_open(line: str) -> bool:
    """Tell whether a line is the beginning of a longer value."""
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return True
    return False


def _breaks_in_first_line(text: str) -> bool:
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return error.lineno == 1
    except (ValueError, RecursionError):
        return True
    return False


def _rest(file: IO[bytes], name: str, before: int) -> str:
    parts: list[bytes] = []
    while part := file.read(2**20):
        before += len(part)
        _check_bytes(before, name)
        parts.append(part)
    try:
        return b"".join(parts).decode("utf-8")
    except UnicodeDecodeError:
        raise FormatError(f"{name}: not UTF-8 text") from None


def _items(text: str, name: str, before: int) -> Iterator[tuple[int, str, Any]]:
    """Give the items of an array one by one; `before` are the lines before it."""
    decode = json.JSONDecoder().raw_decode
    position, place = _after_space(text, text.index("[") + 1), 0
    if text[position : position + 1] == "]":
        return
    while True:
        place += 1
        try:
            value, end = decode(text, position)
        except json.JSONDecodeError as error:
            raise _malformed(name, before + error.lineno, f"no valid JSON: {error.msg}") from None
        except (ValueError, RecursionError) as error:
            raise _malformed(name, before + text.count("\n", 0, position) + 1, _refusal(error)) from None
        item = text[position:end]
        if _is_deep(item, value):
            raise _malformed(name, before + text.count("\n", 0, position) + 1, TOO_DEEP)
        yield place, item, value
        end = _after_space(text, end)
        mark = text[end : end + 1]
        if mark == "]":
            return
        if mark != ",":
            line = before + text.count("\n", 0, end) + 1
            raise _malformed(name, line, "no valid JSON: the array does not go on, nor end")
        position = _after_space(text, end + 1)


def _after_space(text: str, position: int) -> int:
    while text[position : position + 1] in (" ", "\t", "\n", "\r"):
        position += 1
    return position


def _parsed(text: str, name: str, line: int) -> Any:
    try:
        value = json.loads(text.rstrip())  # without the line's end, where errors would be in the next line
    except json.JSONDecodeError as error:
        raise _malformed(name, line + error.lineno - 1, f"no valid JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise _malformed(name, line, _refusal(error)) from None
    if _is_deep(text, value):
        raise _malformed(name, line, TOO_DEEP)
    return value


def _refusal(error: Exception) -> str:
    """Give the reason of what is JSON and not read: Python bounds the digits of a whole number, too."""
    return TOO_DEEP if isinstance(error, RecursionError) else "a number of too many digits"


def _is_deep(text: str, value: Any) -> bool:
    """Tell whether a value is nested deeper than all that goes on with it can take."""
    if text.count("[") + text.count("{") <= MOST_DEEP:
        return False
    level = [value]
    for _ in range(MOST_DEEP):
        level = [
            item
            for holder in level
            for item in (holder.values() if isinstance(holder, dict) else holder)
            if isinstance(item, dict | list)
        ]
        if not level:
            return False
    return True


class _MalformedError(FormatError):
    """Carries line and reason beside the text."""

    def __str__(self) -> str:
        """Give the text alone."""
        return str(self.args[0])


def _malformed(name: str, line: int, reason: str) -> FormatError:
    return _MalformedError(f"{name}, line {line}: {reason}", line, reason)


def _unstorable(value: Any) -> Iterator[tuple[str, str]]:
    """Give field and text of every text that PostgreSQL does not store."""
    waiting: list[tuple[str, Any]] = [("", value)]
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, str):
            if not is_storable(value):
                yield place, value
        elif isinstance(value, dict):
            for key, item in value.items():
                waiting += [(f"{place}.{key:.40}".lstrip("."), item)]
                if not is_storable(key):
                    yield f"a key of {place or 'the record'}", key
        elif isinstance(value, list):
            waiting += [(f"{place}[{number}]", item) for number, item in enumerate(value)]
