"""What the statements of the checks share: the columns of a finding, and what messages are told by."""

from typing import Any

from sqlalchemy import ColumnElement, Select, Text, Uuid, cast, func, literal, null, select

from contextkit.models import Message

NO_ID: ColumnElement[Any] = cast(null(), Uuid(as_uuid=False))
ROLE = cast(Message.role, Text)
"""Text, as an enum may lack the label that it is compared with."""
IS_LIVE = Message.deleted_at.is_(None)


def finding(kind: str, *detail: Any, context_id: Any = NO_ID, message_id: Any = NO_ID) -> Select[*tuple[Any, ...]]:
    """Select a finding per row; the detail is put together of words and columns."""
    return select(
        literal(kind).label("kind"),
        context_id.label("context_id"),
        message_id.label("message_id"),
        func.concat(*detail).label("detail"),
    )


def least_id(ids: Any, condition: ColumnElement[bool] | None = None) -> ColumnElement[str]:
    """Give the least id of a group, or of those of it for which a condition holds."""
    least = func.min(cast(ids, Text).collate("C"))  # only PostgreSQL 18 has a least uuid
    return least if condition is None else least.filter(condition)
