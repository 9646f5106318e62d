"""Every write to contexts and messages, one transaction per call: all of it or nothing."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from itertools import count
from typing import Any
from uuid import uuid4

import numpy as np
import pandas as pd
import pyarrow as pa
from pgvector import HalfVector, Vector
from sqlalchemy import Connection, Engine, func, insert, select, update

from contextkit.arrow import columns_of
from contextkit.connection import translated_errors
from contextkit.dtypes import embedding_matrix, to_frame
from contextkit.errors import DimensionError, NotFoundError
from contextkit.models import EMBEDDING_DIMENSIONS, ROLES, YEARS, Context, Message, canonical_id, canonical_ids
from contextkit.queries import lock_contexts, select_end, select_messages, select_owners, select_renumbered

FIELDS = ("role", "content", "tool_call_id", "tool_name", "token_count", "model", "created_at", "embedding")
MOST_TOKENS = 2**31 - 1


def add_context(engine: Engine, name: str | None = None) -> str:
    """Id of a new, empty context.

    Raises:
        ReadOnlyError: the engine was opened for reading.
        ValueError: the name holds what PostgreSQL does not store.
    """
    values = {"name": _text(name, "the name of a context")}
    with _transaction(engine) as connection:
        return str(connection.execute(insert(Context).returning(Context.id), values).scalar_one())


def fork_context(engine: Engine, context_id: str, at_version: int | None = None, name: str | None = None) -> str:
    """Id of a new fork, which inherits the history of a context up to and including a version.

    Nothing is copied: the fork refers to its parent, and its own messages go on from `at_version` + 1.

    Args:
        engine: from `connect(write=True)`.
        context_id: the parent.
        at_version: the last version to inherit; the parent's end by default. 0 inherits nothing, or what a
            renumbered parent inherits itself.
        name: of the fork.

    Raises:
        NotFoundError: the parent does not exist, or is deleted.
        ValueError: the parent's history ends before `at_version`.

    >>> parent = contexts_df(engine)["context_id"][0]
    >>> fork = fork_context(engine, parent, at_version=2)
    >>> history_df(engine, fork)[["version", "role", "inherited"]]
       version    role  inherited
    0        1  system       True
    1        2    user       True
    """
    if at_version is not None and (isinstance(at_version, bool) or not isinstance(at_version, int | np.integer)):
        raise TypeError(f"at_version is a whole number, not {at_version!r:.40}")
    name = _text(name, "the name of a context")
    with _transaction(engine) as connection:
        parent = _locked(connection, canonical_id(context_id))
        end, _ = _end(connection, parent)
        version = end if at_version is None else int(at_version)
        if not 0 <= version <= end:
            raise ValueError(f"at_version {version} is not in the history of context {parent.id}: it ends at {end}")
        values = {"name": name, "parent_id": parent.id, "fork_version": version, "latest_version": version}
        return str(connection.execute(insert(Context).returning(Context.id), values).scalar_one())


def append_messages(
    engine: Engine, context_id: str, messages: Iterable[Mapping[str, Any]] | pd.DataFrame
) -> pd.DataFrame:
    """Append messages to a context; versions are given in their order, under a lock on the context.

    Args:
        engine: from `connect(write=True)`.
        context_id: the context.
        messages: dicts or a frame with role (user, assistant, system, tool), content, and if wished tool_call_id,
            tool_name, token_count, model, created_at (timezone-aware; the present by default), embedding
            (1536 numbers).

    Returns:
        The written rows, as `messages_df` gives them.

    Raises:
        NotFoundError: the context does not exist, or is deleted.
        DimensionError: an embedding has another length.
        ValueError: a field is unknown, missing or holds what cannot be stored. Nothing is written then.

    >>> context = add_context(engine, "greetings")
    >>> append_messages(engine, context, [{"role": "user", "content": "Hi"}])[["version", "role", "content"]]
       version  role content
    0        1  user      Hi
    """
    rows = [_checked(message, place) for place, message in enumerate(_records(messages))]
    with _transaction(engine) as connection:
        context = _locked(connection, canonical_id(context_id))
        end, now = _end(connection, context)
        # A renumbered fork is told by having no row at fork_version; others end there or later.
        numbers = (n for n in count(end + 1) if n != context.fork_version or context.parent_id is None)
        for row, version in zip(rows, numbers, strict=False):
            row |= {"context_id": context.id, "version": version}
            row["created_at"] = row["created_at"] or now
        if all(row["embedding"] is None for row in rows):
            for row in rows:
                del row["embedding"]  # tables without this column take messages, too
        if rows:
            connection.execute(insert(Message), rows)
            _count(connection, [context.id], now, latest_version=rows[-1]["version"])
        written = Message.id.in_([row["id"] for row in rows])
        return to_frame(columns_of(connection, select_messages(written)))


def delete_context(engine: Engine, context_id: str) -> int:
    """Number of contexts deleted: 1, or 0 if it was already. Messages and forks of it stay as they are.

    Raises:
        NotFoundError: the context does not exist.
    """
    return _flag_context(engine, context_id, deleted=True)


def restore_context(engine: Engine, context_id: str) -> int:
    """Number of contexts restored: 1, or 0 if it was not deleted.

    Raises:
        NotFoundError: the context does not exist.
    """
    return _flag_context(engine, context_id, deleted=False)


def delete_messages(engine: Engine, messages: object) -> int:
    """Number of messages deleted, out of one id or a column of ids; forks that inherit one lose it, too.

    Raises:
        NotFoundError: a message does not exist. Nothing is deleted then.
    """
    return _flag_messages(engine, messages, deleted=True)


def restore_messages(engine: Engine, messages: object) -> int:
    """Number of messages restored, out of one id or a column of ids.

    Raises:
        NotFoundError: a message does not exist. Nothing is restored then.
    """
    return _flag_messages(engine, messages, deleted=False)


@contextmanager
def _transaction(engine: Engine) -> Iterator[Connection]:
    with translated_errors(), engine.begin() as connection:
        yield connection


def _locked(connection: Connection, context_id: str, *, deleted: bool = False) -> Any:
    context = connection.execute(lock_contexts([context_id])).one_or_none()
    if context is None:
        raise NotFoundError(f"no context has the id {context_id}")
    if context.deleted_at is not None and not deleted:
        raise NotFoundError(f"context {context_id} is deleted; restore_context() brings it back")
    return context


def _end(connection: Connection, context: Any) -> tuple[int, datetime]:
    """Give the last version of a history, and the instant under the lock."""
    stored, now = connection.execute(select_end(context.id)).one()
    end = max(context.latest_version, stored or 0)
    if context.parent_id is not None and context.fork_version is not None and end < context.fork_version:
        renumbered = stored is not None and connection.execute(select_renumbered(context.id)).first()
        return (end if renumbered else context.fork_version), now
    return end, now


def _count(connection: Connection, contexts: Iterable[str], now: datetime, **values: int) -> None:
    """Set the counters of contexts by their rows: what another writer added or left out is right again, too."""
    live = (Message.context_id == Context.id, Message.deleted_at.is_(None))
    messages = select(func.count()).select_from(Message).where(*live).correlate(Context)
    tokens = select(func.coalesce(func.sum(Message.token_count), 0)).where(*live).correlate(Context)
    connection.execute(
        update(Context)
        .where(Context.id.in_(list(contexts)))
        .values(
            message_count=messages.scalar_subquery(), total_tokens=tokens.scalar_subquery(), updated_at=now, **values
        )
    )


def _flag_context(engine: Engine, context_id: str, *, deleted: bool) -> int:
    with _transaction(engine) as connection:
        context = _locked(connection, canonical_id(context_id), deleted=True)
        if (context.deleted_at is not None) == deleted:
            return 0
        now = func.clock_timestamp()
        values = {"deleted_at": now if deleted else None, "updated_at": now}
        connection.execute(update(Context).where(Context.id == context.id).values(values))
        return 1


def _flag_messages(engine: Engine, messages: object, *, deleted: bool) -> int:
    ids = canonical_ids(messages)
    with _transaction(engine) as connection:
        owners: dict[str, str] = dict(connection.execute(select_owners(ids)).all())
        if unknown := [id_ for id_ in ids if id_ not in owners]:
            raise NotFoundError(f"no message has the id {', '.join(unknown[:5])}")
        connection.execute(lock_contexts(sorted(set(owners.values()))))
        now = connection.execute(func.clock_timestamp().select()).scalar_one()
        changed = connection.execute(
            update(Message)
            .where(Message.id.in_(ids))
            .where(Message.deleted_at.is_(None) if deleted else Message.deleted_at.is_not(None))
            .values(deleted_at=now if deleted else None)
            .returning(Message.context_id)
        ).all()
        _count(connection, {row.context_id for row in changed}, now)
        return len(changed)


def _records(messages: Iterable[Mapping[str, Any]] | pd.DataFrame) -> Iterable[Mapping[str, Any]]:
    if isinstance(messages, pd.DataFrame):
        return _rows_of(messages)
    if isinstance(messages, str | Mapping) or not isinstance(messages, Iterable):
        raise TypeError(f"messages are a list of dicts or a frame, not {type(messages).__name__}")
    return messages


def _rows_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    if not frame.columns.is_unique:
        raise ValueError("the frame has two columns of one name; keep one of them")
    columns: dict[str, list[Any]] = {str(name): frame[name].tolist() for name in frame.columns}
    if "embedding" in frame and _is_matrix(frame["embedding"].dtype):
        present = frame["embedding"].notna()
        columns["embedding"] = [
            vector if there else None for vector, there in zip(embedding_matrix(frame), present, strict=True)
        ]
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _is_matrix(dtype: Any) -> bool:
    return isinstance(dtype, pd.ArrowDtype) and pa.types.is_fixed_size_list(dtype.pyarrow_dtype)


def _is_missing(value: Any) -> bool:
    return pd.api.types.is_scalar(value) and bool(pd.isna(value))


def _checked(message: Mapping[str, Any], place: int) -> dict[str, Any]:
    """Row to insert, every field present; errors name the place of the message among those given, from 0."""
    where = f"message {place}"
    if not isinstance(message, Mapping):
        raise TypeError(f"{where} is a dict with role and content, not {type(message).__name__}")
    if unknown := sorted(str(name) for name in message if name not in FIELDS):
        raise ValueError(f"{where} has fields that append_messages does not write: {', '.join(unknown)}")
    message = {name: None if _is_missing(value) else value for name, value in message.items()}
    if missing := [name for name in ("role", "content") if message.get(name) is None]:
        raise ValueError(f"{where} lacks {' and '.join(missing)}")
    if message["role"] not in ROLES:
        raise ValueError(f"{where} has an unknown role; roles are {', '.join(ROLES)}")
    texts = ("role", "content", "tool_call_id", "tool_name", "model")
    return {
        "id": str(uuid4()),
        **{name: _text(message.get(name), f"{name} of {where}") for name in texts},
        "token_count": _tokens(message.get("token_count"), where),
        "created_at": _instant(message.get("created_at"), where),
        "embedding": _embedding(message.get("embedding"), where),
    }


def _text(value: object, what: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise TypeError(f"{what} is text, not {type(value).__name__}")
    if "\0" in value:
        raise ValueError(f"{what} holds a NUL character, which PostgreSQL does not store; remove it")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"{what} holds half of a surrogate pair, which is no text; decode it anew")
    return value


def _tokens(value: Any, where: str) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating) or value % 1 != 0:
        raise ValueError(f"token_count of {where} is a whole number, not {value!r:.40}")
    if not 0 <= value <= MOST_TOKENS:
        raise ValueError(f"token_count of {where} is between 0 and {MOST_TOKENS}, not {value!r:.40}")
    return int(value)


def _instant(value: Any, where: str) -> datetime | None:
    if value is None:
        return None
    if not isinstance(value, datetime) or value.utcoffset() is None:
        raise ValueError(f"created_at of {where} is a datetime with a time zone")
    if value.year not in YEARS:
        raise ValueError(f"created_at of {where} is outside of the years {YEARS[0]} to {YEARS[-1]}")
    return value


def _embedding(value: Any, where: str) -> np.ndarray[Any, np.dtype[np.float32]] | None:
    if value is None:
        return None
    try:
        numbers = np.asarray(value.to_numpy() if isinstance(value, Vector | HalfVector) else value)
    except ValueError:
        raise ValueError(f"the embedding of {where} is one row of numbers") from None
    if numbers.dtype.kind not in "fiu":
        raise TypeError(f"the embedding of {where} is a list or an array of numbers, without nulls")
    with np.errstate(over="ignore"):
        vector = numbers.astype(np.float32)
    if vector.ndim != 1 or len(vector) != EMBEDDING_DIMENSIONS:
        raise DimensionError(
            f"the embedding of {where} has the shape {vector.shape}, the column {EMBEDDING_DIMENSIONS} dimensions"
        )
    if not np.isfinite(vector).all():
        raise ValueError(f"the embedding of {where} holds NaN or infinity")
    return vector
