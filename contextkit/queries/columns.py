"""What the statements share: the columns of the frames, and the conditions that users give."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Alias, ColumnElement, FromClause, Select, exists, literal, select
from sqlalchemy.orm import InstrumentedAttribute

from contextkit.models import Context, Message

Condition = ColumnElement[bool]

_CONTEXT_NAMES = tuple(column.key for column in Context.__table__.columns)
_MESSAGE_NAMES = tuple(column.key for column in Message.__table__.columns if column.key != "embedding")


def context_columns() -> list[ColumnElement[Any]]:
    """Every column of contexts, `id` as `context_id`."""
    return [getattr(Context, name).label("context_id" if name == "id" else name) for name in _CONTEXT_NAMES]


def message_columns(*, embeddings: bool = False) -> list[ColumnElement[Any]]:
    """Every column of messages, `id` as `message_id`; the embedding on request."""
    names = (*_MESSAGE_NAMES, "embedding") if embeddings else _MESSAGE_NAMES
    return [getattr(Message, name).label("message_id" if name == "id" else name) for name in names]


def live(*entities: type[Context] | type[Message], include_deleted: bool) -> list[Condition]:
    """Give the conditions that leave deleted rows out."""
    return [] if include_deleted else [entity.deleted_at.is_(None) for entity in entities]


def split_conditions(where: tuple[Condition, ...]) -> tuple[list[Condition], list[Condition]]:
    """Part the conditions into those on contexts alone and those that name messages.

    Raises:
        TypeError: a condition is no SQLAlchemy expression, such as the bool that `is None` gives.
        ValueError: a condition names another table.
    """
    on_contexts: list[Condition] = []
    on_messages: list[Condition] = []
    for condition in where:
        tables = _tables_of(condition)
        if others := [table for table in tables if table not in (Context.__table__, Message.__table__)]:
            raise ValueError(
                f"a condition names another table or an alias: {', '.join(sorted(map(_name, others)))}; "
                "conditions are on Context and Message, joins go through read_df(engine, statement)"
            )
        (on_messages if Message.__table__ in tables else on_contexts).append(condition)
    return on_contexts, on_messages


def _tables_of(condition: Condition) -> Sequence[FromClause]:
    if not isinstance(condition, ColumnElement | InstrumentedAttribute):
        raise TypeError(
            f"a condition is a SQLAlchemy expression such as Message.role == 'user', not {condition!r:.60}; "
            "for null write Context.name.is_(None)"
        )
    return select(literal(1)).where(condition).get_final_froms()


def _name(table: FromClause) -> str:
    named = table.element if isinstance(table, Alias) else table
    return getattr(named, "name", None) or str(named)


def has_message(conditions: list[Condition], *, include_deleted: bool) -> Condition:
    """Give the condition that the context has a message of its own for which all conditions hold."""
    return exists(
        select(literal(1))
        .select_from(Message)
        .where(
            Message.context_id == Context.id,
            *live(Message, include_deleted=include_deleted),
            *conditions,
        )
        .correlate(Context)
    )


def filter_contexts(
    statement: Select[*tuple[Any, ...]], where: tuple[Condition, ...], *, include_deleted: bool
) -> Select[*tuple[Any, ...]]:
    """Restrict a statement over contexts; conditions on messages hold if one message meets them all."""
    on_contexts, on_messages = split_conditions(where)
    statement = statement.where(*live(Context, include_deleted=include_deleted), *on_contexts)
    if on_messages:
        statement = statement.where(has_message(on_messages, include_deleted=include_deleted))
    return statement
