"""A password and a content that are told apart from all else, and every text in which they might show."""

import base64
import logging
import re
import traceback
import types
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from io import StringIO
from itertools import chain
from pathlib import Path
from typing import Any

from sqlalchemy import URL

PARTS = ("Kp7Vz3Qj", "Xh5Tn8Wc", "Gb2Ly6Df")
PASSWORD = f"{PARTS[0]}ä$$ w%rd/@{PARTS[1]}:#?&'\"\\=+ %41{PARTS[2]}"
"""Percent-encoded, escaped in a repr, in JSON or in HTML, or torn at a mark, some part of it stays as it is."""
CONTENT_PART = "Mc4Rt9YkWs"
CONTENT = f"what nobody else may read: {CONTENT_PART}"
TESTS = str(Path(__file__).parent)


def _pieces(text: str, length: int) -> Iterator[str]:
    return (text[start : start + length] for start in range(len(text) - length + 1))


def _encoded(part: str) -> Iterator[str]:
    """The middle of what base64 makes of a text, wherever the text begins in what was encoded; and its hexadecimals."""
    for offset in range(3):
        yield base64.b64encode(b"\0" * offset + part.encode()).decode()[4:10]
    yield part.encode().hex()[2:-2]


PASSWORD_SHOWN = re.compile("|".join(needle for part in PARTS for needle in (*_pieces(part, 6), *_encoded(part))))
CONTENT_SHOWN = re.compile("|".join([*_pieces(CONTENT_PART, 8), *_encoded(CONTENT_PART)]))
ATOMS = (str, bytes, int, float, complex, type(None), type, types.ModuleType, types.FrameType, types.CodeType)


class Search:
    """Counts the texts that were looked through, and notes where something was found."""

    def __init__(self) -> None:
        self.texts = Counter[str]()
        self.finds: list[str] = []
        self._seen: set[tuple[str, int]] = set()

    def look(self, where: str, kind: str, text: str, pattern: re.Pattern[str] = PASSWORD_SHOWN) -> None:
        """Look through a text, unless it was looked through before."""
        if (key := (pattern.pattern, hash(text))) in self._seen:
            return
        self._seen.add(key)
        self.texts[kind] += 1
        if found := pattern.search(text):
            near = text[max(found.start() - 150, 0) : found.end() + 50]
            self.finds.append(f"{where}: {kind}: {near!r}")

    def objects(self, where: str, root: object) -> None:
        """Look through the repr and the str of all that is reachable from an object."""
        for found in reachable(root):
            with suppress(AttributeError):  # some of SQLAlchemy's inner objects have no repr
                self.look(where, "repr", repr(found))
                if type(found).__str__ is not object.__str__:
                    self.look(where, "str", str(found))

    def error(self, where: str, error: BaseException) -> None:
        """Look through an error and all that led to it, with the locals of every frame but the tests' own."""
        for each in led_to(error):
            self.look(where, "error", f"{each!r} {each} {each.__notes__ if hasattr(each, '__notes__') else ''}")
            self.objects(where, vars(each))
            self.look(where, "traceback with locals", with_locals(each))
        shown = "".join(traceback.format_exception(error))
        self.look(where, "traceback", without_source_of_tests(shown))
        self.look(where, "traceback of a content", without_source_of_tests(shown), CONTENT_SHOWN)

    def files(self, where: str, folder: Path) -> None:
        """Look through the names and the bytes of files."""
        for path in folder.rglob("*"):
            self.look(where, "path", str(path))
            if path.is_file():
                self.look(where, "file", path.read_bytes().decode("latin-1"))


def led_to(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that led to it, also where `from None` leaves them out of tracebacks."""
    seen: list[BaseException] = []
    waiting = [error]
    while waiting:
        each = waiting.pop()
        if each is not None and all(each is not other for other in seen):
            seen.append(each)
            yield each
            waiting += [each.__cause__, each.__context__, *getattr(each, "exceptions", ())]


def with_locals(error: BaseException) -> str:
    found = traceback.TracebackException.from_exception(error, capture_locals=True)
    frames = [frame for frame in found.stack if not frame.filename.startswith(TESTS)]
    return "".join(traceback.StackSummary.from_list(frames).format()) + "".join(found.format_exception_only())


def without_source_of_tests(shown: str) -> str:
    return re.sub(rf'  File "{re.escape(TESTS)}.*\n(    .*\n)*', "", shown)


def reachable(root: object, most: int = 3000) -> Iterator[object]:
    """An object, and those that it holds: attributes, items, and what its functions close over."""
    seen: dict[int, object] = {}
    waiting = [root]
    while waiting and len(seen) < most:
        found = waiting.pop()
        if isinstance(found, ATOMS) or id(found) in seen:
            continue
        seen[id(found)] = found
        yield found
        waiting += _held(found)


def _held(found: Any) -> Iterator[object]:
    if isinstance(found, dict):
        yield from found.values()
    elif isinstance(found, list | tuple | set | frozenset):
        yield from () if isinstance(found, URL) else found  # which hides its password from all but its own attribute
    elif isinstance(found, types.FunctionType):
        yield from (cell.cell_contents for cell in found.__closure__ or () if cell != types.CellType())
    elif isinstance(found, types.MethodType):
        yield found.__self__
    else:
        yield from getattr(found, "__dict__", {}).values()
        for slot in chain.from_iterable(vars(kind).values() for kind in type(found).__mro__):
            if isinstance(slot, types.MemberDescriptorType):
                with suppress(AttributeError):  # an empty one
                    yield slot.__get__(found)


@contextmanager
def overheard(search: Search, where: str) -> Iterator[None]:
    """Look through what is printed, logged and warned of within the block."""
    printed, logged, contents = StringIO(), StringIO(), StringIO()
    root, levels = logging.getLogger(), {}
    handlers = [logging.StreamHandler(logged), logging.StreamHandler(contents)]
    # SQLAlchemy's DEBUG is asked for to see rows; its INFO shows statements.
    handlers[1].addFilter(lambda record: not (record.name.startswith("sqlalchemy") and record.levelno < logging.INFO))
    for name in ("", "contextkit", "sqlalchemy.engine", "sqlalchemy.pool", "psycopg", "alembic", "asyncio", "dask"):
        levels[name] = logging.getLogger(name).level
        logging.getLogger(name).setLevel(logging.DEBUG)
    for handler in handlers:
        root.addHandler(handler)
    try:
        with redirect_stdout(printed), redirect_stderr(printed), warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            yield
    finally:
        for handler in handlers:
            root.removeHandler(handler)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        search.look(where, "printed", printed.getvalue())
        for record in logged.getvalue().splitlines():
            search.look(where, "logged", record)
        for record in contents.getvalue().splitlines():
            search.look(where, "logged of a content", record, CONTENT_SHOWN)
        for warning in warned:
            search.look(where, "warning", str(warning.message))


def tried(search: Search, where: str, call: Callable[[], Any]) -> BaseException | None:
    """How a call ends, having looked through all that it says and gives."""
    error = None
    with overheard(search, where):
        try:
            value = call()
        except BaseException as raised:  # noqa: BLE001 - looked through
            error = raised
        else:
            search.objects(where, getattr(value, "attrs", value))
    if error is not None:
        search.error(where, error)
    return error


def shown_by_tools(error: BaseException) -> Iterator[str]:
    """The error as IPython's verbose mode shows it, and the locals as rich does."""
    from IPython.core.ultratb import VerboseTB
    from rich.traceback import Traceback

    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename.startswith(TESTS):
        frames = frames.tb_next
    if frames is None:
        return
    yield VerboseTB(theme_name="nocolor").text(type(error), error, frames)
    for stack in Traceback.extract(type(error), error, frames, show_locals=True).stacks:
        for frame in stack.frames:
            yield "\n".join(f"{name} = {node}" for name, node in (frame.locals or {}).items())
