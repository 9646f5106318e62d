"""Messages that still have no embedding, and the locks that filling them in takes."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Select, select

from contextkit.models import Context, Message
from contextkit.queries.columns import Condition, live, split_conditions


def select_missing(*where: Condition) -> Select[*tuple[Any, ...]]:
    """id, context_id, version and content of the live messages without an embedding, by context and version."""
    split_conditions(where)
    columns: tuple[ColumnElement[Any], ...] = (
        Message.id.label("id"),
        Message.context_id.label("context_id"),
        Message.version.label("version"),
        Message.content.label("content"),
    )
    return (
        select(*columns)
        .join(Context, Context.id == Message.context_id)
        .where(*live(Context, Message, include_deleted=False), Message.embedding.is_(None), *where)
        .order_by(Message.context_id, Message.version)
    )


def lock_messages(statement: Select[*tuple[Any, ...]], limit: int) -> Select[*tuple[Any, ...]]:
    """Restrict a statement over messages to rows that no other transaction holds, and hold them."""
    return statement.limit(limit).with_for_update(of=Message, skip_locked=True, key_share=True)


def lock_free_contexts(ids: Sequence[str]) -> Select[*tuple[Any, ...]]:
    """Ids of those of these contexts that no other transaction holds, held for writing."""
    return select(Context.id).where(Context.id.in_(ids)).with_for_update(skip_locked=True, key_share=True)
