"""What is written to measure on: the same rows in every run, and fast."""

import struct
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from uuid import UUID

import numpy as np
import psycopg
from numpy.typing import NDArray

from contextkit import EMBEDDING_DIMENSIONS

Vectors = NDArray[np.float32]
Context = tuple[int, int | None, int | None]
"""Number of the context, of its parent, and fork_version."""
Place = tuple[int, int, int]
"""Number of the context, version, and number of what is said: copies say the same."""

START = datetime(2026, 1, 1, tzinfo=UTC)
MICROSECONDS = (START - datetime(2000, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
"""START as PostgreSQL counts."""
COPY = (
    "copy messages (id, context_id, version, created_at, role, content, token_count, model, embedding)"
    " from stdin (format binary)"
)
ROLES = (b"user", b"assistant")
CONTENT = b"message %d says " + b"something of some length " * 40
CONTENT_BYTES = 500
MODEL = b"atlas-large"
ROWS = {role: struct.Struct(f">hi16si16siqiqi{len(role)}si{CONTENT_BYTES}siii{len(MODEL)}s") for role in ROLES}
VECTOR_BYTES = 4 + 4 * EMBEDDING_DIMENSIONS
BLOCK = 1_000
SAMPLE_EACH, FOREST_EACH = 20, 3
"""Messages of their own that the contexts have."""


def context_id(number: int) -> UUID:
    return UUID(int=(1 << 100) + number * 7919)


def write_sample(url: str, *, messages: int) -> None:
    """Contexts of 20 messages; every third is a fork of the one before: by reference, by copy, renumbered in turn."""
    numbers = range(messages // SAMPLE_EACH)
    contexts = [(c, c - 1, SAMPLE_EACH // 2) if c % 3 == 2 else (c, None, None) for c in numbers]
    places = (place for c in numbers for place in _sample_places(c))
    write(url, contexts, places, clustered(300))


def _sample_places(context: int) -> Iterator[Place]:
    kind = context // 3 % 3 if context % 3 == 2 else None
    for number in range(1, SAMPLE_EACH + 1):
        version = number + SAMPLE_EACH // 2 if kind == 0 else number
        copied = kind == 1 and number <= SAMPLE_EACH // 2
        yield context, version, (context - copied) * SAMPLE_EACH + number


def write_forest(url: str, *, contexts: int) -> None:
    """Contexts of three messages without embeddings; every second is a fork by reference of the one before."""
    numbers = range(contexts)
    rows = [(c, c - 1, FOREST_EACH) if c % 2 else (c, None, None) for c in numbers]
    places = (
        (c, version + FOREST_EACH * (c % 2), c * FOREST_EACH + version)
        for c in numbers
        for version in range(1, FOREST_EACH + 1)
    )
    write(url, rows, places)


def write_chain(url: str, *, contexts: int) -> None:
    """A chain of forks by reference, each of the one before, with two messages of their own."""
    rows = [(c, c - 1 if c else None, 2 * c if c else None) for c in range(contexts)]
    write(url, rows, ((c, 2 * c + number, 2 * c + number) for c in range(contexts) for number in (1, 2)))


def write_lengths(url: str, *, lengths: Sequence[int], depth: int) -> list[str]:
    """Flat contexts of these lengths, and a chain of forks by reference as long as the last; their ids, tip last."""
    flat = [(c, version, version) for c, length in enumerate(lengths) for version in range(1, length + 1)]
    first, whole = len(lengths), lengths[-1]
    ends = [whole * (link + 1) // (depth + 1) for link in range(depth + 1)]
    chain: list[Context] = [(first, None, None)]
    chain += [(first + link, first + link - 1, ends[link - 1]) for link in range(1, depth + 1)]
    owners = np.searchsorted(ends, np.arange(1, whole + 1))
    links = [(first + int(owner), version, version) for version, owner in enumerate(owners, start=1)]
    write(url, [*((c, None, None) for c in range(first)), *chain], [*flat, *links])
    return [str(context_id(number)) for number in (*range(first), first + depth)]


def write_clusters(url: str, *, contexts: int, messages: int, clusters: int) -> None:
    """Flat contexts, messages in clusters of unequal size; `token_count` is uniform in 0 to 9,999, apart from them."""
    each = messages // contexts
    places = ((c, version, c * each + version) for c in range(contexts) for version in range(1, each + 1))
    write(url, [(c, None, None) for c in range(contexts)], places, clustered(clusters))


def clustered(clusters: int, seed: int = 5) -> Iterator[Vectors]:
    """Endless blocks of unit vectors around as many centers; each cluster spreads in the same 64 directions."""
    random = np.random.default_rng(seed)
    centers = random.standard_normal((clusters, EMBEDDING_DIMENSIONS), dtype=np.float32)
    centers /= np.linalg.norm(centers, axis=1, keepdims=True)
    spread = random.standard_normal((64, EMBEDDING_DIMENSIONS), dtype=np.float32) / np.sqrt(64 * EMBEDDING_DIMENSIONS)
    noise = 0.1 / np.sqrt(EMBEDDING_DIMENSIONS)
    sizes = 1 / np.arange(1, clusters + 1) ** 0.5
    while True:
        chosen = random.choice(clusters, BLOCK, p=sizes / sizes.sum())
        block = centers[chosen] + 0.6 * random.standard_normal((BLOCK, 64), dtype=np.float32) @ spread
        block += noise * random.standard_normal(block.shape, dtype=np.float32)
        yield block / np.linalg.norm(block, axis=1, keepdims=True)


def write(url: str, contexts: Iterable[Context], places: Iterable[Place], vectors: Iterable[Vectors] = ()) -> None:
    """Write contexts and messages, as long as there are vectors with embeddings."""
    with psycopg.connect(url, autocommit=True) as connection, connection.cursor() as cursor:
        columns = "(id, name, created_at, parent_id, fork_version)"
        with cursor.copy(f"copy contexts {columns} from stdin") as copy:
            for number, parent, fork_version in contexts:
                above = None if parent is None else context_id(parent)
                created_at = START + timedelta(seconds=number)
                copy.write_row((context_id(number), f"conversation {number}", created_at, above, fork_version))
        with cursor.copy(COPY) as copy:
            copy.write(b"PGCOPY\n\xff\r\n\0" + bytes(8))
            for block in _blocks(iter(places), iter(vectors)):
                copy.write(block)
            copy.write(b"\xff\xff")
        cursor.execute("vacuum analyze")


def _blocks(places: Iterator[Place], vectors: Iterator[Vectors]) -> Iterator[bytes]:
    """The rows as COPY takes them; psycopg's own way, value by value, takes ten times as long."""
    random = np.random.default_rng(5)
    number = 0
    while block := list(islice(places, BLOCK)):
        ids, tokens = random.bytes(16 * BLOCK), random.integers(10_000, size=BLOCK).tolist()
        embedded = next(vectors, None)
        wire = [struct.pack(">i", -1)] * BLOCK if embedded is None else _wire(embedded)
        parts = []
        for place, (context, version, said) in enumerate(block):
            role = ROLES[1 - version % 2]
            values = (context_id(context).bytes, 8, version, 8, MICROSECONDS + (number + place) * 1_000_000)
            texts = (len(role), role, CONTENT_BYTES, CONTENT % said, 4, tokens[place], len(MODEL), MODEL)
            parts += [ROWS[role].pack(9, 16, ids[16 * place : 16 * place + 16], 16, *values, *texts), wire[place]]
        number += len(block)
        yield b"".join(parts)


def _wire(vectors: Vectors) -> list[bytes]:
    rows = np.empty((len(vectors), 4 + VECTOR_BYTES), np.uint8)
    rows[:, :8] = np.frombuffer(struct.pack(">ihh", VECTOR_BYTES, EMBEDDING_DIMENSIONS, 0), np.uint8)
    rows[:, 8:] = vectors.astype(">f4").view(np.uint8)
    return [row.tobytes() for row in rows]
