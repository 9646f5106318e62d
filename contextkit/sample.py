"""Sample conversations to try everything on: the texts of `sample_texts.txt` as rows of both tables."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from typing import Any
from uuid import UUID, uuid5
from zlib import crc32

import numpy as np
from sqlalchemy import Engine
from sqlalchemy.dialects.postgresql import insert

from contextkit.connection import translated_errors
from contextkit.models import EMBEDDING_DIMENSIONS, Context, Message

Row = dict[str, Any]
Vector = np.ndarray[tuple[int], np.dtype[np.float32]]

NAMESPACE = UUID("5a8c3f4e-0d1b-5c57-9f0e-7d2a61c4b810")
CHARACTERS_PER_TOKEN = 4
WORDS_WEIGHT = 0.75  # of a message's own words against its topic; below 1, so that topics keep together


@dataclass(frozen=True)
class SampleMessage:
    """A message as the text file has it."""

    role: str
    options: dict[str, str]
    content: str


@dataclass(frozen=True)
class SampleContext:
    """A conversation as the text file has it: of a fork, only what it adds or edits."""

    key: str
    header: dict[str, str]
    messages: list[SampleMessage]
    written_by: str = "root"
    parent: str | None = None
    fork_version: int | None = None

    @property
    def id(self) -> str:
        """Id of the context."""
        return sample_id(self.key)

    @property
    def topic(self) -> str:
        """What it is about, in one word."""
        return self.header.get("topic") or self.header["name"].partition(":")[0]


def load_sample(engine: Engine) -> int:
    """Number of contexts added: some fifty conversations, with forks of every kind; 0 the second time.

    Ids and contents are the same everywhere. What is there already stays as it is: messages are written only
    with the context they belong to, and all in one transaction.

    Raises:
        SchemaError: the tables are missing.
        ReadOnlyError: the engine was opened for reading.
    """
    contexts, messages = sample_rows()
    add_contexts = insert(Context).on_conflict_do_nothing().returning(Context.id)
    with translated_errors(), engine.begin() as connection:
        added = set(connection.scalars(add_contexts, contexts))
        new_messages = [row for row in messages if row["context_id"] in added]
        if new_messages:
            connection.execute(insert(Message).on_conflict_do_nothing(), new_messages)
    return len(added)


def sample_rows() -> tuple[list[Row], list[Row]]:
    """Rows of both tables, parents before their forks."""
    contexts: list[Row] = []
    messages: list[Row] = []
    visible: dict[str, dict[int, Row]] = {}
    for sample in sample_contexts():
        inherited = _inherited_rows(sample, visible)
        own = _message_rows(sample, inherited)
        own_by_version = {row["version"]: row for row in own}
        visible[sample.key] = own_by_version if sample.written_by == "renumbered" else inherited | own_by_version
        contexts.append(_context_row(sample, own))
        messages += own
    return contexts, messages


def sample_contexts() -> list[SampleContext]:
    """Conversations of the text file, in its order."""
    text = files("contextkit").joinpath("sample_texts.txt").read_text(encoding="utf-8")
    return [_parse_context(part) for part in re.split(r"^=== ", text, flags=re.MULTILINE)[1:]]


def sample_id(name: str) -> str:
    """Id that belongs to a name, always the same."""
    return str(uuid5(NAMESPACE, name))


def sample_embedding(topic: str, content: str) -> Vector:
    """Vector of length 1 that is near those of the same topic, and nearer to those that share words.

    >>> one, two = sample_embedding("git", "a rebase"), sample_embedding("git", "the reflog")
    >>> float(one @ two) > 0.5
    True
    """
    words = re.findall(r"\w{3,}", content.lower()) or [content]  # "ok" and emoji are words of their own
    mixed = _direction([f"topic {topic}"]) + WORDS_WEIGHT * _direction(list(dict.fromkeys(words)))
    return (mixed / np.linalg.norm(mixed)).astype(np.float32)


def _direction(names: list[str]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Sum of one random vector per name, brought to length 1."""
    total = np.zeros(EMBEDDING_DIMENSIONS)
    for name in names:
        total += np.random.default_rng(crc32(name.encode())).standard_normal(EMBEDDING_DIMENSIONS)
    return total / np.linalg.norm(total)


def _parse_context(text: str) -> SampleContext:
    head, *parts = re.split(r"^:: ", text, flags=re.MULTILINE)
    key, *lines = head.strip().splitlines()
    header = dict(line.split(": ", maxsplit=1) for line in lines)
    messages = [_parse_message(part) for part in parts]
    if "fork" not in header:
        return SampleContext(key, header, messages)
    fork = re.fullmatch(r"(\S+) @ (\d+), (?:by )?(reference|copy|renumbered)", header["fork"])
    if fork is None:
        raise ValueError(f"sample context {key}: cannot read its fork line")
    parent, fork_version, written_by = fork.groups()
    return SampleContext(key, header, messages, written_by, parent, int(fork_version))


def _parse_message(text: str) -> SampleMessage:
    line, _, content = text.partition("\n")
    role, *options = line.split()
    named = (option.partition("=") for option in options)
    return SampleMessage(role, {name: value for name, _, value in named}, content.strip())


def _inherited_rows(sample: SampleContext, visible: dict[str, dict[int, Row]]) -> dict[int, Row]:
    if sample.parent is None or sample.fork_version is None:
        return {}
    return {version: row for version, row in visible[sample.parent].items() if version <= sample.fork_version}


def _message_rows(sample: SampleContext, inherited: dict[int, Row]) -> list[Row]:
    fork_version = sample.fork_version or 0
    version = fork_version if sample.written_by in ("reference", "copy") else 0
    created_at = _time(sample.header["start"])
    rows = _copied_rows(sample, inherited) if sample.written_by == "copy" else {}
    for message in sample.messages:
        place = int(message.options.get("version", version + 1))
        version = max(version, place)
        if sample.written_by == "copy" and place <= fork_version:
            written_at = _copied_at(sample, place)
        else:
            written_at = created_at = created_at + _pause(message)
        rows[place] = _message_row(sample, message, place, written_at)
    return [rows[place] for place in sorted(rows)]


def _copied_rows(sample: SampleContext, inherited: dict[int, Row]) -> dict[int, Row]:
    """What a fork by copy takes over: the rows that were live when it was made."""
    own = {"context_id": sample.id, "deleted_at": None}
    return {
        version: row | own | {"id": _message_id(sample, version), "created_at": _copied_at(sample, version)}
        for version, row in inherited.items()
        if row["deleted_at"] is None or row["deleted_at"] > _time(sample.header["start"])
    }


def _message_row(sample: SampleContext, message: SampleMessage, version: int, created_at: datetime) -> Row:
    options = message.options
    told = len(message.content) // CHARACTERS_PER_TOKEN + 1
    embedded = "tool" not in options and sample.header.get("embedded") != "no"
    return {
        "id": _message_id(sample, version),
        "context_id": sample.id,
        "version": version,
        "created_at": created_at,
        "role": message.role,
        "content": message.content,
        "tool_call_id": options.get("id"),
        "tool_name": options.get("tool"),
        "token_count": None if "uncounted" in options else told,
        "model": options.get("model", sample.header["model"]) if message.role == "assistant" else None,
        "deleted_at": created_at + _minutes(options["deleted"]) if "deleted" in options else None,
        "embedding": sample_embedding(sample.topic, message.content) if embedded else None,
    }


def _context_row(sample: SampleContext, own: list[Row]) -> Row:
    live = [row for row in own if row["deleted_at"] is None]
    created_at = _time(sample.header["start"])
    deleted_at = _time(sample.header["deleted"]) if "deleted" in sample.header else None
    events = [row[column] for row in own for column in ("created_at", "deleted_at")]
    inherited = sample.fork_version if sample.written_by == "reference" else None
    return {
        "id": sample.id,
        "name": sample.header.get("name"),
        "created_at": created_at,
        "updated_at": max(event for event in [created_at, deleted_at, *events] if event is not None),
        "message_count": len(live),
        "total_tokens": sum(row["token_count"] or 0 for row in live),
        "latest_version": max([inherited or 0, *(row["version"] for row in own)]),
        "parent_id": sample_id(sample.parent) if sample.parent else None,
        "fork_version": sample.fork_version,
        "deleted_at": deleted_at,
    }


def _message_id(sample: SampleContext, version: int) -> str:
    return sample_id(f"{sample.key}/{version}")


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def _minutes(text: str) -> timedelta:
    return timedelta(minutes=int(text))


def _copied_at(sample: SampleContext, version: int) -> datetime:
    return _time(sample.header["start"]) + timedelta(milliseconds=version)


def _pause(message: SampleMessage) -> timedelta:
    """Time that passes before a message: people type, assistants are fast, tools are faster."""
    characters_per_second = {"user": 4, "assistant": 60, "tool": 400}.get(message.role, 1000)
    writing = timedelta(seconds=1 + min(len(message.content), 900) // characters_per_second)
    return writing + _minutes(message.options.get("after", "0"))
