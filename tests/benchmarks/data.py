"""Databases and files to measure on: many messages, the same ones in every run."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import psycopg
from numpy.typing import NDArray

from contextkit import EMBEDDING_DIMENSIONS

Vector = NDArray[np.float32]
START = datetime(2026, 1, 1, tzinfo=UTC)
TYPES = ["uuid", "uuid", "int8", "timestamptz", "text", "text", "int4", "text", "vector"]
COPY = (
    "copy messages (id, context_id, version, created_at, role, content, token_count, model, embedding)"
    " from stdin (format binary)"
)


def context_id(number: int) -> UUID:
    return UUID(int=(1 << 100) + number * 7919)


def write_flat(url: str, *, contexts: int, messages: int, content_bytes: int = 500) -> None:
    """Contexts with an equal number of messages each, all embedded."""
    each = messages // contexts
    with psycopg.connect(url) as connection:
        _write_contexts(connection, [(context_id(c), None, None) for c in range(contexts)])
        places = ((c, version) for c in range(contexts) for version in range(1, each + 1))
        _write_messages(connection, places, content_bytes)
    _vacuum(url)


def write_clusters(url: str, *, contexts: int, messages: int, clusters: int) -> None:
    """Messages in clusters of unequal size; `token_count` is uniform in 0 to 9,999 and apart from the clusters."""
    each = messages // contexts
    with psycopg.connect(url) as connection:
        _write_contexts(connection, [(context_id(c), None, None) for c in range(contexts)])
        places = ((c, version) for c in range(contexts) for version in range(1, each + 1))
        _write_messages(connection, places, 500, clustered(clusters))
    _vacuum(url)


def clustered(clusters: int, seed: int = 5) -> Iterator[Vector]:
    """Endless unit vectors around as many centers; each cluster spreads in the same 64 directions."""
    random = np.random.default_rng(seed)
    centers = random.standard_normal((clusters, EMBEDDING_DIMENSIONS), dtype=np.float32)
    centers /= np.linalg.norm(centers, axis=1, keepdims=True)
    spread = random.standard_normal((64, EMBEDDING_DIMENSIONS), dtype=np.float32) / np.sqrt(64 * EMBEDDING_DIMENSIONS)
    noise = 0.1 / np.sqrt(EMBEDDING_DIMENSIONS)
    sizes = 1 / np.arange(1, clusters + 1) ** 0.5
    while True:
        chosen = random.choice(clusters, 1000, p=sizes / sizes.sum())
        block = centers[chosen] + 0.6 * random.standard_normal((1000, 64), dtype=np.float32) @ spread
        block += noise * random.standard_normal(block.shape, dtype=np.float32)
        yield from block / np.linalg.norm(block, axis=1, keepdims=True)


def write_chain(url: str, *, depth: int, messages: int) -> tuple[str, str]:
    """A chain of forks by reference and one flat context of as many messages; ids of the tip and of the flat one."""
    each = messages // (depth + 1)
    sizes = [each] * depth + [messages - each * depth]
    ends = np.cumsum(sizes)
    with psycopg.connect(url) as connection:
        chain = [
            (context_id(c), context_id(c - 1) if c else None, int(ends[c - 1]) if c else None) for c in range(depth + 1)
        ]
        _write_contexts(connection, [*chain, (context_id(depth + 1), None, None)])
        links = [
            (c, version) for c in range(depth + 1) for version in range(int(ends[c]) - sizes[c] + 1, int(ends[c]) + 1)
        ]
        flat = [(depth + 1, version) for version in range(1, messages + 1)]
        _write_messages(connection, iter(links + flat), 500)
    _vacuum(url)
    return str(context_id(depth)), str(context_id(depth + 1))


def write_trees(path: Path, *, trees: int) -> int:
    """A file of OpenAssistant trees, each question with two answers, three turns deep; the number of messages."""
    roots = [_tree(f"tree-{number}", turns=3) for number in range(trees)]
    lines = (json.dumps({"message_tree_id": root["message_id"], "prompt": root}) + "\n" for root in roots)
    path.write_text("".join(lines))
    return sum(map(_size, roots))


def _tree(key: str, turns: int) -> dict[str, Any]:
    answers = [
        _message(f"{key}-{rank}", "assistant", [_tree(f"{key}-{rank}-next", turns - 1)] if turns > 1 else [])
        | {"rank": rank}
        for rank in range(2)
    ]
    return _message(key, "prompter", answers)


def _message(key: str, role: str, replies: list[dict[str, Any]]) -> dict[str, Any]:
    text = f"message {key} says {'something of some length ' * 40}"[:500]
    return {"message_id": key, "role": role, "text": text, "replies": replies}


def _size(message: dict[str, Any]) -> int:
    return 1 + sum(map(_size, message["replies"]))


def _write_contexts(connection: psycopg.Connection, contexts: list[tuple[UUID, UUID | None, int | None]]) -> None:
    with connection.cursor() as cursor, cursor.copy("copy contexts (id, parent_id, fork_version) from stdin") as copy:
        for row in contexts:
            copy.write_row(row)


def _scattered() -> Iterator[Vector]:
    random = np.random.default_rng(6)
    while True:
        yield random.standard_normal(EMBEDDING_DIMENSIONS, dtype=np.float32)


def _write_messages(
    connection: psycopg.Connection,
    places: Iterator[tuple[int, int]],
    content_bytes: int,
    vectors: Iterator[Vector] | None = None,
) -> None:
    from pgvector.psycopg import register_vector

    register_vector(connection)
    random = np.random.default_rng(5)
    vectors = vectors or _scattered()
    with connection.cursor() as cursor, cursor.copy(COPY) as copy:
        copy.set_types(TYPES)
        for number, (context, version) in enumerate(places):
            role = ("user", "assistant")[version % 2]
            content = f"message {number} says {'something of some length ' * 40}"[:content_bytes]
            created_at = START + timedelta(seconds=number)
            id_ = UUID(int=random.integers(1 << 62).item() << 64 | number)
            tokens = random.integers(10_000).item()
            row = (id_, context_id(context), version, created_at, role, content, tokens, "atlas-large", next(vectors))
            copy.write_row(row)


def _vacuum(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("vacuum analyze")
