"""Effective histories of many contexts in one statement: the `H(c, n, t)` of the README.

merged     of each epoch and version of a lineage's stretches, the row of the nearest context
numbered   what is not deleted, with its position
"""

from collections.abc import Sequence
from datetime import datetime
from functools import cache
from numbers import Integral
from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    DateTime,
    Select,
    Text,
    and_,
    bindparam,
    func,
    literal,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import distinct_on

from contextkit.models import Message, canonical_id
from contextkit.queries.columns import message_columns
from contextkit.queries.lineage import NO_BOUND, asked_of, by_index, lineage_of, stretches_of, text_of, written_of


def select_history(
    contexts: Sequence[str],
    *,
    at_version: int | None = None,
    as_of: datetime | None = None,
    embeddings: bool = False,
    include_deleted: bool = False,
) -> Select[*tuple[Any, ...]]:
    """Effective histories by the order asked, then position.

    Contexts that are unknown, in a cycle, or deleted (unless included, or deleted after `as_of`) give no rows.
    """
    if isinstance(contexts, str):
        raise TypeError("contexts are a list of ids, not one text")
    values = history_parameters([canonical_id(id_) for id_ in contexts], at_version, as_of)
    # Parameters of its own, as two histories may stand in one statement.
    return _history(
        literal(values["contexts"]),
        literal(values["at_version"], BigInteger),
        None if as_of is None else literal(as_of, DateTime(timezone=True)),
        embeddings=embeddings,
        include_deleted=include_deleted,
    )


def history_parameters(contexts: Sequence[str], at_version: int | None, as_of: datetime | None) -> dict[str, Any]:
    """Values of the parameters of a `history_template`, checked; contexts are canonical ids."""
    if at_version is not None and (isinstance(at_version, bool) or not isinstance(at_version, Integral)):
        raise TypeError(f"at_version is a whole number, not {type(at_version).__name__}")
    if at_version is not None and at_version < 0:
        raise ValueError(f"at_version is 0 or more, not {at_version}")
    if as_of is not None and (not isinstance(as_of, datetime) or as_of != as_of):  # NaT equals nothing
        raise TypeError(f"as_of is a datetime with a time zone, not {type(as_of).__name__}")
    if as_of is not None and as_of.utcoffset() is None:
        raise ValueError("as_of needs a time zone, such as datetime(2026, 1, 31, tzinfo=UTC)")
    values: dict[str, Any] = {
        "contexts": text_of(contexts),
        "at_version": NO_BOUND if at_version is None else min(int(at_version), NO_BOUND),
    }
    return values if as_of is None else values | {"as_of": as_of}


@cache
def history_template(timed: bool, embeddings: bool, include_deleted: bool) -> Select[*tuple[Any, ...]]:
    """The statement of `select_history` with its values left open: building it takes longer than running it."""
    return _history(
        bindparam("contexts", type_=Text),
        bindparam("at_version", type_=BigInteger),
        bindparam("as_of", type_=DateTime(timezone=True)) if timed else None,
        embeddings=embeddings,
        include_deleted=include_deleted,
    )


def _history(
    contexts: ColumnElement[str],
    at_version: ColumnElement[int],
    as_of: ColumnElement[datetime] | None,
    *,
    embeddings: bool,
    include_deleted: bool,
) -> Select[*tuple[Any, ...]]:
    lineage = lineage_of(asked_of(contexts, as_of, include_deleted=include_deleted))
    stretches = stretches_of(lineage, written_of(lineage, as_of), at_version)
    numbered = history_of(stretches, as_of, embeddings=embeddings, include_deleted=include_deleted)
    columns = [column for column in numbered.c if column.key not in ("place", "epoch")]
    # As the rows come out of the merge, so that nothing is sorted anew.
    return select(*columns).order_by(numbered.c.place, numbered.c.epoch.desc(), numbered.c.version)


def history_of(
    stretches: CTE,
    as_of: ColumnElement[datetime] | None = None,
    *,
    embeddings: bool = False,
    include_deleted: bool = False,
) -> CTE:
    """The messages of the histories, numbered by `position` within each asked context."""
    merged = _merged(stretches, as_of, embeddings=embeddings).subquery("merged")
    position = func.row_number().over(partition_by=merged.c.place, order_by=(merged.c.epoch.desc(), merged.c.version))
    columns = [column for column in merged.c if column.key != "context_id"]
    numbered = select(merged.c.context_id, position.label("position"), *columns)
    if not include_deleted:
        gone: ColumnElement[bool] = merged.c.deleted_at.is_not(None)
        if as_of is not None:
            gone = and_(gone, merged.c.deleted_at <= as_of)
        numbered = numbered.where(~gone)
    return numbered.cte()


def _merged(stretches: CTE, as_of: ColumnElement[datetime] | None, *, embeddings: bool) -> Select[*tuple[Any, ...]]:
    columns = [column for column in message_columns(embeddings=embeddings) if column.key != "context_id"]
    reached = select(*columns).where(Message.context_id == stretches.c.id, Message.version <= stretches.c.bound)
    own = by_index(reached if as_of is None else reached.where(Message.created_at <= as_of))
    key = (stretches.c.place, stretches.c.epoch, own.c.version)
    return (
        select(
            stretches.c.place,
            stretches.c.epoch,
            stretches.c.asked.label("context_id"),
            stretches.c.id.label("source_context_id"),
            (stretches.c.depth > 0).label("inherited"),
            *own.c,
        )
        .join(own, true())
        .where(~stretches.c.cyclic)
        .ext(distinct_on(*key))
        .order_by(stretches.c.place, stretches.c.epoch.desc(), own.c.version, stretches.c.depth)
    )
