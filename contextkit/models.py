"""The two tables, typed. Alembic's target and the names that conditions are written with."""

import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Cast,
    ColumnElement,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    String,
    Text,
    UniqueConstraint,
    Uuid,
    all_,
    any_,
    cast,
    func,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.sql.expression import ClauseElement
from sqlalchemy.sql.operators import ColumnOperators
from sqlalchemy.types import TypeDecorator, UserDefinedType

from contextkit.binary import VectorType

EMBEDDING_DIMENSIONS = 1536
ROLES = ("user", "assistant", "system", "tool")
YEARS = range(2, 9999)
"""Of times that are written: those of datetime's first and last year have no form in some time zones."""
_CANONICAL = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class IdType(TypeDecorator[str]):
    """A uuid column whose values are text in Python: conditions take text and UUID, results are text."""

    class Comparator(TypeDecorator.Comparator[str]):
        """Sends the ids of `in_` as one array: PostgreSQL takes at most 65,535 parameters."""

        def in_(self, other: Any) -> ColumnOperators:
            """Compare with an iterable or a column of ids, or a select."""
            return super().in_(other) if isinstance(other, ClauseElement) else self.expr == any_(_array(other))

        def not_in(self, other: Any) -> ColumnOperators:
            """Compare with an iterable or a column of ids, or a select."""
            return super().not_in(other) if isinstance(other, ClauseElement) else self.expr != all_(_array(other))

    impl = Uuid(as_uuid=False)
    cache_ok = True
    comparator_factory = Comparator  # pyright: ignore[reportAssignmentType] - the documented way; declared otherwise

    def process_bind_param(self, value: object, dialect: Dialect) -> str | None:
        """Give the canonical text of an id, or a ValueError for what is none."""
        return None if value is None else canonical_id(value)

    process_literal_param = process_bind_param  # type: ignore[assignment]


class RoleType(UserDefinedType[str]):
    """A role stored as text or as an enum of PostgreSQL: bound without a cast, selected as text."""

    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        """Give the type that migrations create."""
        return "TEXT"

    def literal_processor(self, dialect: Dialect) -> Any:  # SQLAlchemy's type of it is private
        """Quote as text is quoted."""
        return String().literal_processor(dialect)  # type: ignore[no-untyped-call]

    def column_expression(self, colexpr: ColumnElement[Any]) -> Cast[str]:
        """Select the role as text."""
        return cast(colexpr, Text)


def canonical_id(value: object) -> str:
    """Text of a context or message id as PostgreSQL writes it.

    Raises:
        ValueError: the value is no UUID.

    >>> canonical_id("0B9CF5A41D4E4C0F8A55B4E1D6F8C1AA")
    '0b9cf5a4-1d4e-4c0f-8a55-b4e1d6f8c1aa'
    """
    if isinstance(value, UUID):
        return str(value)
    if not isinstance(value, str):
        raise TypeError(f"an id is text or a UUID, not {value!r:.60}; leave out rows without one")
    if _CANONICAL.fullmatch(value):
        return str(value)
    try:
        found = UUID(value)
    except ValueError:
        found = None
    # UUID also takes whatever int does for digits: spaces around them, a sign, 0x, other scripts' digits.
    if found is None or found.hex not in value.replace("-", "").lower():
        raise ValueError(f"not an id: a UUID is expected, not a text of {len(value)} characters")
    return str(found)


def canonical_ids(values: object) -> list[str]:
    """Ids of one id, an iterable or a column of ids, each once, in the order of their first mention.

    Raises:
        TypeError: not ids, such as a whole DataFrame, or one is missing.
        ValueError: one is no UUID.

    >>> canonical_ids("0B9CF5A41D4E4C0F8A55B4E1D6F8C1AA")
    ['0b9cf5a4-1d4e-4c0f-8a55-b4e1d6f8c1aa']
    """
    if isinstance(values, str | UUID):
        return [canonical_id(values)]
    if not isinstance(values, Iterable) or hasattr(values, "columns") or isinstance(values, bytes | Mapping):
        raise TypeError(f"one id, or an iterable or column of ids, is expected, not {type(values).__name__}")
    # A column gives each value by a call of its own, all of them by one.
    to_list = getattr(values, "tolist", None)
    return list(dict.fromkeys(map(canonical_id, to_list() if to_list else values)))


def _array(ids: object) -> Cast[Any]:
    return cast(canonical_ids(ids), ARRAY(Uuid(as_uuid=False)))


class Base(DeclarativeBase):
    """Holds the metadata of the two tables."""


class Context(Base):
    """A conversation, or a fork of one."""

    __tablename__ = "contexts"

    id: Mapped[str] = mapped_column(IdType, primary_key=True, server_default=func.gen_random_uuid())
    name: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    message_count: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    total_tokens: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    latest_version: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    parent_id: Mapped[str | None] = mapped_column(
        IdType, ForeignKey("contexts.id", name="contexts_parent_id_contexts_id_fk")
    )
    fork_version: Mapped[int | None] = mapped_column(BigInteger)
    deleted_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))


class Message(Base):
    """A message of a context, at a version."""

    __tablename__ = "messages"
    __table_args__ = (
        UniqueConstraint("context_id", "version", name="messages_context_version_unique"),
        Index("messages_context_version_idx", "context_id", "version"),
        Index("messages_deleted_at_idx", "deleted_at"),
    )

    id: Mapped[str] = mapped_column(IdType, primary_key=True, server_default=func.gen_random_uuid())
    context_id: Mapped[str] = mapped_column(
        IdType, ForeignKey("contexts.id", name="messages_context_id_contexts_id_fk")
    )
    version: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    role: Mapped[str] = mapped_column(RoleType)
    content: Mapped[str] = mapped_column(Text)
    tool_call_id: Mapped[str | None] = mapped_column(Text)
    tool_name: Mapped[str | None] = mapped_column(Text)
    token_count: Mapped[int | None] = mapped_column(Integer)
    model: Mapped[str | None] = mapped_column(Text)
    deleted_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    embedding: Mapped[list[float] | None] = mapped_column(VectorType(EMBEDDING_DIMENSIONS))


def is_storable(text: str) -> bool:
    """Whether PostgreSQL stores a text: no NUL character, no half of a surrogate pair."""
    if "\0" in text:
        return False
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
