"""Embeddings filled in: `embed_missing`, and what it asks of an embedder."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from importlib import import_module
from typing import Any, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray
from sqlalchemy import Connection, Engine, bindparam, func, select, update

from contextkit.arrow import Column
from contextkit.connection import translated_errors
from contextkit.counts import positive
from contextkit.dtypes import to_frame
from contextkit.errors import DimensionError
from contextkit.models import EMBEDDING_DIMENSIONS, Context, Message
from contextkit.queries import (
    Condition,
    after_message,
    lock_contexts,
    lock_free_contexts,
    lock_messages,
    select_embedding_dimensions,
    select_missing,
)

Vectors = NDArray[np.float32]

REMEMBERED = 4096
"""How many of a run's latest distinct contents keep their vectors at hand: 25 MB."""
QUIET_SECONDS = 2.0


class Embedder(Protocol):
    """Any callable from a list of n texts to n vectors of 1536 numbers."""

    def __call__(self, texts: list[str], /) -> ArrayLike:
        """Give an array-like (n, 1536)."""
        ...


def embed_missing(
    engine: Engine, embedder: Embedder, *where: Condition, batch_size: int = 256, progress: bool = True
) -> pd.DataFrame:
    """One row per message that was embedded now: live messages without an embedding get one.

    Each batch is a transaction of its own. However the run is stopped, the batches before stay, and running it
    again does the rest. While the embedder works on a batch its messages are locked: other runs pass over them,
    so that several at once share the work, and who deletes one of them waits. A server that ends idle
    transactions has to allow the time that one batch takes; otherwise take a smaller `batch_size`.

    Identical contents go to the embedder once, as long as they are among the last 4096 distinct ones. Embeddings
    that are stored already are never taken over, as another model may have made them.

    Blank contents are never sent, and an all-zero vector, which has no cosine distance, is not stored: those
    messages stay without an embedding, and are counted.

    Args:
        engine: from `connect(write=True)`.
        embedder: called with the distinct new contents of a batch, at most `batch_size`; gives (n, 1536). What
            it raises ends the run.
        where: conditions on Message and Context.
        batch_size: messages per transaction.
        progress: a bar, once the run takes longer than two seconds.

    Returns:
        message_id, context_id, version; by context and version. `attrs` counts messages `embedded`, `contents`
        sent to the embedder, `batches` committed, `blank` and `zero` messages passed over, and messages `left`
        without an embedding: those two, and what others hold or have added meanwhile.

    Raises:
        DimensionError: the vectors, or those of the column, are not 1536 long. Nothing of that batch is written.
        ValueError: their number is not that of the texts, or they hold NaN or infinity; likewise.
        ReadOnlyError: the engine was opened for reading.

    >>> done = embed_missing(engine, hashing_embedder())
    >>> len(done), done.attrs["left"]
    (48, 0)
    """
    batch_size = positive("batch_size", batch_size)
    if not callable(embedder):
        raise TypeError(f"an embedder is a callable from texts to vectors, not {type(embedder).__name__}")
    missing = select_missing(*where)
    _check_column(engine)
    run = _Run(embedder)
    following, size = missing, int(batch_size)
    with import_module("tqdm.auto").tqdm(
        total=_count(engine, missing), unit="messages", delay=QUIET_SECONDS, disable=not progress
    ) as bar:
        while last := _embed_batch(engine, lock_messages(following, size), run):
            bar.update(last.rows)
            following = after_message(missing, last.context_id, last.version)
    return _summary(run, {"where": len(where), "batch_size": size}, left=_count(engine, missing))


def _check_column(engine: Engine) -> None:
    """Raise for a column of another length before an embedder is asked, which may cost something."""
    with translated_errors(), engine.connect() as connection:
        declared = connection.execute(select_embedding_dimensions()).scalar()
    if declared and declared not in (-1, EMBEDDING_DIMENSIONS):
        raise DimensionError(
            f"the column messages.embedding has {declared} dimensions, and contextkit embeds {EMBEDDING_DIMENSIONS}; "
            "use another database, or the tool that made this column"
        )


@dataclass
class _Run:
    """What a run has done so far, and the vectors of its latest contents."""

    embedder: Embedder
    written: list[Any] = field(default_factory=list)
    contents: int = 0
    batches: int = 0
    blank: int = 0
    zero: int = 0
    known: OrderedDict[bytes, Vectors] = field(default_factory=OrderedDict)

    def vectors(self, texts: list[str]) -> list[Vectors]:
        """Vectors of texts, asked of the embedder for those that are new."""
        keys = [blake2b(text.encode(), digest_size=32).digest() for text in texts]
        found = {key: self.known[key] for key in keys if key in self.known}
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in found}
        if new:
            made = checked_vectors(self.embedder(list(new.values())), len(new))
            self.contents += len(new)
            found |= dict(zip(new, made, strict=True))
        for key, vector in found.items():
            self.known[key] = vector
            self.known.move_to_end(key)
        while len(self.known) > REMEMBERED:
            self.known.popitem(last=False)
        return [found[key] for key in keys]


@dataclass(frozen=True)
class _Last:
    """Where a batch ended, and how many messages it looked at."""

    context_id: str
    version: int
    rows: int


def _embed_batch(engine: Engine, statement: Any, run: _Run) -> _Last | None:
    """Embed the messages that a statement finds and locks; None if there are none.

    No lock is ever waited for while messages are held, so no ring of waiting writers can form: other writers hold
    a context first and then wait for its messages.
    """
    with translated_errors():
        connection = engine.connect()
    with connection:
        with translated_errors():
            rows = connection.execute(statement).all()
        if not rows:
            return None
        # Not under translated_errors: what an embedder raises is its own.
        full = [row for row in rows if row.content.strip()]
        vectors = run.vectors([row.content for row in full])
        kept = [(row, vector) for row, vector in zip(full, vectors, strict=True) if _square(vector) > 0]
        with translated_errors():
            busy = _write(connection, kept)
            connection.commit()
    run.written += [(row.id, row.context_id, row.version) for row, _ in kept]
    run.batches += bool(kept)
    run.blank += len(rows) - len(full)
    run.zero += len(full) - len(kept)
    if busy:
        _touch(engine, busy)
    return _Last(rows[-1].context_id, rows[-1].version, len(rows))


def _write(connection: Connection, kept: Sequence[tuple[Any, Vectors]]) -> list[str]:
    """Store vectors and set the time of their contexts; give those contexts that another writer holds."""
    if not kept:
        return []
    fill = update(Message).where(Message.id == bindparam("message")).values(embedding=bindparam("vector"))
    connection.execute(fill, [{"message": row.id, "vector": vector} for row, vector in kept])
    contexts = {row.context_id for row, _ in kept}
    free = set(connection.execute(lock_free_contexts(sorted(contexts))).scalars())
    connection.execute(_set_time(sorted(free)))
    return sorted(contexts - free)


def _touch(engine: Engine, contexts: list[str]) -> None:
    """Set the time of contexts that were held when their messages were written, now that nothing is."""
    with translated_errors(), engine.begin() as connection:
        connection.execute(lock_contexts(contexts))
        connection.execute(_set_time(contexts))


def _set_time(contexts: list[str]) -> Any:
    return update(Context).where(Context.id.in_(contexts)).values(updated_at=func.clock_timestamp())


def _count(engine: Engine, statement: Any) -> int:
    with translated_errors(), engine.connect() as connection:
        rows = statement.with_only_columns(Message.id).order_by(None).subquery()
        return int(connection.execute(select(func.count()).select_from(rows)).scalar_one())


def _summary(run: _Run, asked: dict[str, int], *, left: int) -> pd.DataFrame:
    ids, contexts, versions = zip(*run.written, strict=True) if run.written else ((), (), ())
    columns = {
        "message_id": pa.array(ids, pa.large_string()),
        "context_id": pa.array(contexts, pa.large_string()),
        "version": pa.array(versions, pa.int64()),
    }
    frame = to_frame([Column(name, pa.chunked_array([values])) for name, values in columns.items()])
    frame.attrs = {
        "function": "embed_missing",
        "asked": asked,
        "embedded": len(run.written),
        "contents": run.contents,
        "batches": run.batches,
        "blank": run.blank,
        "zero": run.zero,
        "left": left,
    }
    return frame


def checked_vectors(given: ArrayLike, texts: int) -> Vectors:
    """Vectors as float32, or an error that names the shape given and the one wanted."""
    wanted = (texts, EMBEDDING_DIMENSIONS)
    try:
        numbers = np.asarray(given)
    except ValueError:
        raise DimensionError(f"the embedder gave vectors of different lengths, where {wanted} is wanted") from None
    if numbers.dtype.kind not in "fiu":
        raise TypeError(
            f"the embedder gave {type(given).__name__} of the shape {numbers.shape}, where a dense array of numbers "
            f"{wanted} is wanted"
        )
    if numbers.shape != wanted:
        kind = DimensionError if numbers.ndim == 2 and len(numbers) == texts else ValueError
        raise kind(f"the embedder gave the shape {numbers.shape}, where {wanted} is wanted")
    with np.errstate(over="ignore"):
        vectors = numbers.astype(np.float32)
    if (odd := ~np.isfinite([_square(vector) for vector in vectors])).any():
        raise ValueError(
            f"the embedder gave the shape {numbers.shape} with NaN, infinity or too large numbers in "
            f"{int(odd.sum())} rows, where {wanted} finite numbers are wanted"
        )
    return vectors


def _square(vector: Vectors) -> float:
    # In float32, as pgvector computes its distances.
    with np.errstate(over="ignore", under="ignore"):
        return float(vector @ vector)
