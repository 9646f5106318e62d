"""Roles, ids and embeddings of messages: a finding for all that are alike, with their number and the least id."""

from typing import Any

from sqlalchemy import CTE, CompoundSelect, Select, and_, func, literal_column, select, union_all

from contextkit.models import ROLES, Context, Message
from contextkit.queries.checks.finding import IS_LIVE, ROLE, finding, least_id
from contextkit.queries.columns import live

ROLE_LENGTH = 40
UNIT_TOLERANCE = 0.01
UNIT_SHARE = 0.9
"""Where so many embeddings are of unit length, the others are odd."""


def select_unknown_roles() -> Select[*tuple[Any, ...]]:
    """Roles besides the four."""
    words = (func.count(), " messages of role ", func.left(ROLE, ROLE_LENGTH))
    return finding("unknown_role", *words, message_id=least_id(Message.id)).where(ROLE.not_in(ROLES)).group_by(ROLE)


def select_unidentified() -> Select[*tuple[Any, ...]]:
    """Results of tools, and calls, that have no id to be paired by."""
    words = (func.count(), " calls and results of tools have no tool_call_id")
    is_tool = (ROLE == "tool") | and_(ROLE == "assistant", Message.tool_name.is_not(None))
    return (
        finding("tool_without_id", *words, message_id=least_id(Message.id))
        .where(is_tool, Message.tool_call_id.is_(None), IS_LIVE)
        .having(func.count() > 0)
    )


def select_unembedded() -> Select[*tuple[Any, ...]]:
    """Live messages without an embedding."""
    lacking = func.count() - func.count(Message.embedding)
    words = (lacking, " of ", func.count(), " live messages have no embedding")
    return (
        finding("null_embeddings", *words, message_id=least_id(Message.id, Message.embedding.is_(None)))
        .join(Context, Context.id == Message.context_id)
        .where(*live(Context, Message, include_deleted=False))
        .having(lacking > 0)
    )


def select_bad_embeddings() -> CompoundSelect[*tuple[Any, ...]]:
    """Embeddings that are all zero, of another number of dimensions than most, or of another length than nearly all."""
    measured = _measured()
    embedded, zero, unit, off = (measured.c[name] for name in ("embedded", "zero", "unit", "off"))
    zeros = finding("zero_embeddings", zero, " embeddings are all zero", message_id=measured.c.zero_id)
    of_dimensions = (embedded, " embeddings of ", measured.c.dimensions, " dimensions, most have ", measured.c.usual)
    others = finding("odd_embeddings", *of_dimensions, message_id=measured.c.least_id)
    of_length = (off, " of ", embedded, " embeddings are not of length 1, the others are")
    uneven = finding("odd_embeddings", *of_length, message_id=measured.c.off_id)
    return union_all(
        zeros.where(zero > 0),
        others.where(measured.c.dimensions != measured.c.usual),
        uneven.where(off > 0, unit >= UNIT_SHARE * (unit + off)),
    )


def _measured() -> CTE:
    """Of each number of dimensions how many live embeddings are zero, of unit length, or neither."""
    dimensions = func.vector_dims(Message.embedding).label("dimensions")
    norm = func.vector_norm(Message.embedding).label("norm")
    embedded = select(Message.id, dimensions, norm).where(IS_LIVE, Message.embedding.is_not(None))
    # An offset keeps the planner from measuring a vector, which is read from out of line, once for each mention.
    each = embedded.offset(literal_column("0")).subquery("each")
    is_unit = each.c.norm.between(1 - UNIT_TOLERANCE, 1 + UNIT_TOLERANCE)
    is_off = and_(each.c.norm > 0, ~is_unit)
    groups = (
        select(
            each.c.dimensions,
            func.count().label("embedded"),
            func.count().filter(each.c.norm == 0).label("zero"),
            func.count().filter(is_unit).label("unit"),
            func.count().filter(is_off).label("off"),
            least_id(each.c.id).label("least_id"),
            least_id(each.c.id, each.c.norm == 0).label("zero_id"),
            least_id(each.c.id, is_off).label("off_id"),
        )
        .group_by(each.c.dimensions)
        .subquery("groups")
    )
    order = (groups.c.embedded.desc(), groups.c.dimensions)
    usual = func.first_value(groups.c.dimensions).over(order_by=order)
    return select(groups, usual.label("usual")).cte("measured")
