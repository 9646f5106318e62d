"""Contexts and messages as they are stored."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Select, TextClause, column, func, literal, select, table, text, tuple_

from contextkit.models import Context, IdType, Message
from contextkit.queries.columns import (
    Condition,
    context_columns,
    filter_contexts,
    live,
    message_columns,
    split_conditions,
)


def select_contexts(*where: Condition, include_deleted: bool = False) -> Select[*tuple[Any, ...]]:
    """Contexts by creation; a condition on Message asks for contexts with such a message."""
    statement = select(*context_columns()).order_by(Context.created_at, Context.id)
    return filter_contexts(statement, where, include_deleted=include_deleted)


def select_messages(
    *where: Condition, embeddings: bool = False, include_deleted: bool = False
) -> Select[*tuple[Any, ...]]:
    """Stored messages by context and version; inherited ones stand under the context that owns them."""
    split_conditions(where)
    return (
        select(*message_columns(embeddings=embeddings))
        .join(Context, Context.id == Message.context_id)
        .where(*live(Context, Message, include_deleted=include_deleted), *where)
        .order_by(Message.context_id, Message.version)
    )


def after_message(statement: Select[*tuple[Any, ...]], context_id: str, version: int) -> Select[*tuple[Any, ...]]:
    """Restrict a statement from `select_messages` to what stands after one row of it."""
    last = tuple_(literal(context_id, IdType), literal(version, BigInteger))
    return statement.where(tuple_(Message.context_id, Message.version) > last)


def select_embedding_dimensions() -> Select[*tuple[Any, ...]]:
    """One number: the length that the column `messages.embedding` is declared with, -1 if with none."""
    attributes = table("pg_attribute", column("attrelid"), column("attname"), column("atttypmod"), schema="pg_catalog")
    return select(attributes.c.atttypmod).where(
        attributes.c.attrelid == func.to_regclass("messages"), attributes.c.attname == "embedding"
    )


def select_stored_dimensions() -> TextClause:
    """One number, the length of any stored embedding; nothing where the planner knows of none, or they are no vectors.

    A cast is found whatever the schema of the extension, its functions are not.
    """
    return text(
        "select cardinality(cast(embedding as real[])) from messages where embedding is not null"
        " and exists (select from pg_attribute join pg_type on pg_type.oid = atttypid"
        " where attrelid = to_regclass('messages') and attname = 'embedding' and typname = 'vector')"
        " and not exists (select from pg_stats where schemaname = any(current_schemas(false))"
        " and tablename = 'messages' and attname = 'embedding' and null_frac = 1) limit 1"
    )


def select_knowledge() -> TextClause:
    """One row: whether the planner has statistics of both tables, and whether there are more than a few messages.

    More than a few is a megabyte without what is out of line; of an empty table no statistics are kept. The server
    analyzes a table by itself from some fifty rows on: it may know the messages, and not their contexts.
    """
    return text(
        "select (select count(distinct tablename) = 2 from pg_stats where schemaname = any(current_schemas(false))"
        " and tablename in ('contexts', 'messages') and attname = 'deleted_at') as analyzed,"
        " coalesce(pg_relation_size(to_regclass('messages')) > 2^20, false) as many"
    )


def lock_contexts(ids: Sequence[str]) -> Select[*tuple[Any, ...]]:
    """The contexts of these ids, locked for writing, in one order for all so that writers never block in a ring."""
    return select(*Context.__table__.columns).where(Context.id.in_(ids)).order_by(Context.id).with_for_update()


def select_end(context_id: str) -> Select[*tuple[Any, ...]]:
    """One row: the highest stored version of a context, or null, and the instant."""
    return select(func.max(Message.version), func.clock_timestamp()).where(Message.context_id == context_id)


def select_owners(message_ids: Sequence[str]) -> Select[*tuple[Any, ...]]:
    """id and context_id of the messages that exist among these."""
    columns: tuple[ColumnElement[Any], ...] = (Message.id.label("id"), Message.context_id.label("context_id"))
    return select(*columns).where(Message.id.in_(message_ids))


def select_places(message_ids: Sequence[str]) -> Select[*tuple[Any, ...]]:
    """id, context_id, version of the messages that exist among these, which are ids already."""
    columns: tuple[Any, ...] = (Message.id, Message.context_id, Message.version)
    return select(*columns).where(Message.id.in_(message_ids))


def select_tips(context_ids: Sequence[str]) -> Select[*tuple[Any, ...]]:
    """context_id and highest stored version of these contexts."""
    columns: tuple[Any, ...] = (Message.context_id, func.max(Message.version))
    statement: Select[*tuple[Any, ...]] = select(*columns)
    return statement.where(Message.context_id.in_(context_ids)).group_by(Message.context_id)


def select_row_counts(context_ids: Sequence[str]) -> Select[*tuple[Any, ...]]:
    """context_id and number of stored rows, deleted or not, of these contexts."""
    columns: tuple[Any, ...] = (Message.context_id, func.count())
    return select(*columns).where(Message.context_id.in_(context_ids)).group_by(Message.context_id)
