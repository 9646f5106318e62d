"""`import_file`: trees of messages become contexts and forks, in one transaction."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

import pandas as pd
from sqlalchemy import Engine, func, select

from contextkit.connection import READ_ONLY, settings_of, translated_errors
from contextkit.errors import FormatError, ReadOnlyError
from contextkit.formats import chatgpt, claude, claude_code, oasst, openai, sharegpt
from contextkit.formats.conversation import Conversation, Defect
from contextkit.formats.files import Notes, Source, open_source
from contextkit.formats.planning import Plan, Run, stored_places
from contextkit.formats.units import DefectiveTreeError, Tree, message_id, tree_of
from contextkit.queries import select_row_counts


class Reader(Protocol):
    """What the module of a format gives."""

    def matches(self, value: object) -> bool:
        """Whether a record, as parsed from JSON, is of this format."""
        ...

    def read(self, source: Source) -> Iterator[Conversation | Defect]:
        """Conversations of a source."""
        ...


FORMATS: dict[str, Reader] = {
    "chatgpt": chatgpt,
    "claude": claude,
    "claude_code": claude_code,
    "oasst": oasst,
    "openai": openai,
    "sharegpt": sharegpt,
}

BATCH_ROWS = 20_000
MOST_ROWS_OF_NODE = 64
ONE_IMPORT_AT_A_TIME = 0x636B_696D_706F_7274
QUIET_SECONDS = 2.0
LOOKED_AT = 1_000
"""Texts noted last, that one at fault may be made of."""


def import_file(
    engine: Engine,
    path: str | Path,
    *,
    format: str | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    progress: bool = True,
) -> pd.DataFrame:
    """One row per context that a file's conversations are in, branches kept as forks; all of it or nothing.

    Each leaf of a conversation's tree is one context. The active path becomes the root context; every other leaf
    a fork, by reference, at the message where it branches. Importing again adds nothing, and a longer export only
    what is new: a message that is stored keeps its context and version, as it was stored. What was deleted since
    stays deleted, and so what an export adds to a deleted context shows only once that is restored.

    openai and sharegpt files without ids know a conversation by its beginning, up to the first message of the user,
    and by how many of the file began like it before: another file's that begins alike is taken for the same.

    What is hostile is refused: a line, or a file that is one value, of over 1 GiB, values nested more than 400 deep,
    whole numbers of over 4,300 digits, times outside of the years 2 to 9998, and a .gz or .zip that unpacks to over
    200 times its size and 64 MiB (unpacked, it is read). Time grows with the size of what is read; memory takes a few
    times the largest line, or file that is one value.

    Args:
        engine: from `connect(write=True)`.
        path: a file, .gz, .zip or folder.
        format: chatgpt, claude, claude_code, oasst, openai, sharegpt; recognised from the content by default.
        on_error: `skip` imports the good conversations and lists the bad ones in `attrs["skipped"]`.
        progress: show a bar when it takes long.

    Returns:
        context_id, name, messages (own rows, written now or before), parent_id (what it is forked from), state (new,
        unchanged, extended). `attrs` has formats, skipped (dicts of file, line or item of an array, place,
        reason), left_out (files of a folder or archive that are of no known format) and empty (the number of
        conversations without a message).

    Raises:
        FormatError: a file or conversation does not follow its format, or holds what PostgreSQL does not store.
        ReadOnlyError: the engine was opened for reading.
        ValueError: the format is unknown, or the database's enum lacks a role.
    """
    if format is not None and format not in FORMATS:
        raise ValueError(f"no format is called {format!r:.40}; formats are {', '.join(FORMATS)}")
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error is raise or skip, not {on_error!r:.40}")
    opened_by = settings_of(engine)
    if opened_by is not None and not opened_by.write:
        raise ReadOnlyError(READ_ONLY)
    notes = Notes(skip=on_error == "skip")
    parts, left_out = _recognised(open_source(path, notes), format)
    from tqdm.auto import tqdm  # heavy, so imported when used

    bar = tqdm(unit=" messages", delay=QUIET_SECONDS, disable=not progress, leave=False)
    with bar, _collector_paused(), translated_errors(), engine.begin() as connection:
        connection.execute(select(func.pg_advisory_xact_lock(ONE_IMPORT_AT_A_TIME)))
        now = connection.execute(select(func.clock_timestamp())).scalar_one()
        work = _Import(Run(connection, now), notes, bar)
        for name, source in parts:
            work.run(name, source)
        frame = work.frame()
    skipped = work.skipped + [_skipped(file, defect) for file, defect in notes.defects]
    frame.attrs = {
        "function": "import_file",
        "asked": {"path": str(path), "format": format, "on_error": on_error},
        "formats": [name for name, _ in parts],
        "skipped": skipped,
        "left_out": left_out,
        "empty": work.empty,
    }
    return frame


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Without a pause half of the time goes into looking for cycles among rows, which have none."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _recognised(source: Source, format: str | None) -> tuple[list[tuple[str, Source]], list[str]]:
    """Give the files of each format, and the names of those of none."""
    files = list(source.files())
    groups: dict[str, list[Source]] = {}
    left_out: list[str] = []
    for file in files:
        head = file.head()
        names = [format] if format else list(FORMATS)
        known = next((name for name in names if any(FORMATS[name].matches(value) for value in head)), None)
        groups.setdefault(known, []).append(file) if known else left_out.append(file.name)
    if not groups and format:  # its reader says what is wrong
        return [(format, source)], []
    if not groups:
        for file in files:
            for _ in file.records():
                break
        raise FormatError(
            f"{source.name}: the format is not recognised; name it, as in format={'oasst'!r}: {', '.join(FORMATS)}"
        )
    parts = [(name, Source(source.name, members=tuple(groups[name]), notes=source.notes)) for name in groups]
    return parts, left_out


@dataclass
class _Import:
    """One import's transaction: reads, plans and writes batch by batch."""

    transaction: Run
    notes: Notes
    bar: Any
    skipped: list[dict[str, Any]] = field(default_factory=list)
    empty: int = 0

    def run(self, format: str, source: Source) -> None:
        """Import every conversation of a source; those that continue others come last."""
        self.notes.file = source.name
        linked: list[Conversation] = []
        trees: list[Tree] = []
        units = 0
        for read in FORMATS[format].read(source):
            if isinstance(read, Defect):
                self._refuse(read)
            elif read.links:
                linked.append(read)
            elif (tree := self._checked(format, read, {})) is not None:
                trees.append(tree)
                units += len(tree.units)
                if units >= BATCH_ROWS:
                    self._write(trees)
                    trees, units = [], 0
        self._write(trees)
        self._run_linked(format, linked)

    def _run_linked(self, format: str, linked: list[Conversation]) -> None:
        batch: dict[str, Conversation] = {}
        for conversation in _origins_first(linked):
            if any(key in batch for key, _ in conversation.links.values()) or conversation.key in batch:
                self._write_linked(format, list(batch.values()))
                batch = {}
            batch[conversation.key] = conversation
        self._write_linked(format, list(batch.values()))

    def _write_linked(self, format: str, batch: list[Conversation]) -> None:
        links = self._targets(format, batch)
        trees = [
            self._checked(
                format, conversation, {root: links[to] for root, to in conversation.links.items() if to in links}
            )
            for conversation in batch
        ]
        self._write([tree for tree in trees if tree is not None])

    def _targets(self, format: str, batch: list[Conversation]) -> dict[tuple[str, str], str]:
        """Give the id of the last stored row of each node that is continued."""
        wanted = {link: conversation for conversation in batch for link in conversation.links.values()}
        ids = {
            (key, node): [
                message_id(format, wanted[key, node].scope(key), node, row) for row in range(MOST_ROWS_OF_NODE)
            ]
            for key, node in wanted
        }
        stored = stored_places(self.transaction.connection, [id_ for row_ids in ids.values() for id_ in row_ids])
        ends = {link: [id_ for id_ in row_ids if id_ in stored] for link, row_ids in ids.items()}
        return {link: found[-1] for link, found in ends.items() if found}

    def _checked(self, format: str, conversation: Conversation, links: dict[str, str]) -> Tree | None:
        try:
            tree = tree_of(format, conversation, links)
        except DefectiveTreeError as error:
            file, line, place = self._locate(error)
            self._refuse(Defect(line, f"{place}, conversation {conversation.key:.60}", error.reason), file)
            return None
        if not tree.units:
            self.empty += 1
            return None
        return tree

    def _locate(self, error: DefectiveTreeError) -> tuple[str, int | None, str]:
        """Find where in the files a text at fault was read."""
        noted = self.notes.unstorable
        if error.text in noted:
            return noted[error.text]
        for text, place in islice(reversed(noted.items()), LOOKED_AT):  # one that several were joined to
            if error.text and (text in error.text or error.text in text):
                return place
        return self.notes.file, self.notes.line, error.place

    def _refuse(self, defect: Defect, file: str | None = None) -> None:
        file = self.notes.file if file is None else file
        if not self.notes.skip:
            line = "" if defect.line is None else f", {self.notes.unit} {defect.line}"
            place = f", {defect.place}" if defect.place else ""
            raise FormatError(f"{file}{line}{place}: {defect.reason}")
        self.skipped.append(_skipped(file, defect))

    def _write(self, trees: list[Tree]) -> None:
        if not trees:
            return
        units = [unit for tree in trees for unit in tree.units]
        wanted = {unit.id for unit in units} | {unit.parent for unit in units if unit.parent}
        stored = stored_places(self.transaction.connection, list(wanted))
        plan = Plan(self.transaction, stored)
        plan.lock({stored[unit.parent][0] for unit in units if unit.id not in stored and unit.parent in stored})
        for tree in trees:
            plan.add(tree)
        plan.write()
        self.bar.update(len(units))

    def frame(self) -> pd.DataFrame:
        """Give a row per context, while the transaction lasts."""
        rows = self.transaction.rows
        for context, count in self.transaction.connection.execute(select_row_counts(list(rows))):
            rows[context]["messages"] = count
        dtypes = {"context_id": "str", "name": "str", "messages": "int64", "parent_id": "str", "state": "str"}
        columns = {name: [row[name] for row in rows.values()] for name in dtypes}
        return pd.DataFrame({name: pd.Series(columns[name], dtype=dtype) for name, dtype in dtypes.items()})


def _origins_first(linked: list[Conversation]) -> list[Conversation]:
    """Give each after those that it continues; a ring begins with the first of it that came."""
    keys = {conversation.key for conversation in linked}
    waits = {
        id(conversation): {key for key, _ in conversation.links.values() if key in keys and key != conversation.key}
        for conversation in linked
    }
    after: dict[str, list[Conversation]] = {}
    for conversation in linked:
        for key in waits[id(conversation)]:
            after.setdefault(key, []).append(conversation)
    ordered: dict[int, Conversation] = {}
    ready = [conversation for conversation in linked if not waits[id(conversation)]]
    for start in (*ready, *linked):
        stack = [start]
        while stack:
            conversation = stack.pop()
            if id(conversation) in ordered:
                continue
            ordered[id(conversation)] = conversation
            for other in after.get(conversation.key, ()):
                waits[id(other)].discard(conversation.key)
                if not waits[id(other)]:
                    stack.append(other)
    return list(ordered.values())


def _skipped(file: str, defect: Defect) -> dict[str, Any]:
    return {"file": file, "line": defect.line, "place": defect.place, "reason": defect.reason}
