"""Effective histories of many contexts in one statement: the `H(c, n, t)` of the README.

asked      the contexts asked for, each with its place
lineage    each asked context and its ancestors, by depth
renumbered the forks of a lineage whose own versions start again at 1
stretches  the same lineage with an epoch (how many renumbered forks lie below) and a version bound
merged     of each epoch and version, the row of the nearest context
numbered   what is not deleted, with its position
"""

from collections.abc import Sequence
from datetime import datetime
from functools import cache
from numbers import Integral
from typing import Any

from sqlalchemy import (
    ARRAY,
    CTE,
    BigInteger,
    ColumnElement,
    DateTime,
    Integer,
    Select,
    Text,
    Uuid,
    and_,
    bindparam,
    case,
    cast,
    false,
    func,
    literal,
    or_,
    select,
    union,
)
from sqlalchemy.dialects.postgresql import array, distinct_on
from sqlalchemy.orm import aliased

from contextkit.models import Context, Message
from contextkit.queries.columns import message_columns

NO_BOUND = 2**63 - 1


def select_history(
    contexts: Sequence[str],
    *,
    at_version: int | None = None,
    as_of: datetime | None = None,
    embeddings: bool = False,
    include_deleted: bool = False,
) -> Select[Any]:
    """Effective histories by the order asked, then position.

    Contexts that are unknown, in a cycle, or deleted (unless included, or deleted after `as_of`) give no rows.
    """
    values = history_parameters(contexts, at_version, as_of)
    # Parameters of its own, as two histories may stand in one statement.
    return _history(
        literal(values["contexts"], ARRAY(Text)),
        literal(values["at_version"], BigInteger),
        None if as_of is None else literal(as_of, DateTime(timezone=True)),
        embeddings=embeddings,
        include_deleted=include_deleted,
    )


def history_parameters(contexts: Sequence[str], at_version: int | None, as_of: datetime | None) -> dict[str, Any]:
    """Values of the parameters of a `history_template`, checked."""
    if isinstance(contexts, str):
        raise TypeError("contexts are a list of ids, not one text")
    if at_version is not None and (isinstance(at_version, bool) or not isinstance(at_version, Integral)):
        raise TypeError(f"at_version is a whole number, not {type(at_version).__name__}")
    if at_version is not None and at_version < 0:
        raise ValueError(f"at_version is 0 or more, not {at_version}")
    if as_of is not None and (not isinstance(as_of, datetime) or as_of != as_of):  # NaT equals nothing
        raise TypeError(f"as_of is a datetime with a time zone, not {type(as_of).__name__}")
    if as_of is not None and as_of.utcoffset() is None:
        raise ValueError("as_of needs a time zone, such as datetime(2026, 1, 31, tzinfo=UTC)")
    values: dict[str, Any] = {
        "contexts": list(contexts),
        "at_version": NO_BOUND if at_version is None else min(int(at_version), NO_BOUND),
    }
    return values if as_of is None else values | {"as_of": as_of}


@cache
def history_template(timed: bool, embeddings: bool, include_deleted: bool) -> Select[Any]:
    """The statement of `select_history` with its values left open: building it takes longer than running it."""
    return _history(
        bindparam("contexts", type_=ARRAY(Text)),
        bindparam("at_version", type_=BigInteger),
        bindparam("as_of", type_=DateTime(timezone=True)) if timed else None,
        embeddings=embeddings,
        include_deleted=include_deleted,
    )


def _history(
    contexts: ColumnElement[Any],
    at_version: ColumnElement[int],
    as_of: ColumnElement[datetime] | None,
    *,
    embeddings: bool,
    include_deleted: bool,
) -> Select[Any]:
    lineage = lineage_of(_asked(contexts, as_of, include_deleted=include_deleted))
    numbered = history_of(
        lineage,
        renumbered_of(lineage),
        at_version=at_version,
        as_of=as_of,
        embeddings=embeddings,
        include_deleted=include_deleted,
    )
    columns = [column for column in numbered.c if column.key != "place"]
    return select(*columns).order_by(numbered.c.place, numbered.c.position)


def select_lineage_state(contexts: Sequence[str]) -> Select[Any]:
    """Of the contexts that exist: context_id, deleted_at, and the cycle they run into as an array of ids."""
    lineage = lineage_of(_asked(literal(list(contexts), ARRAY(Text)), None, include_deleted=True))
    return (
        select(
            lineage.c.asked.label("context_id"),
            func.max(Context.deleted_at).label("deleted_at"),
            func.max(case((lineage.c.cyclic, cast(lineage.c.path, ARRAY(Text))))).label("cycle"),
        )
        .join(Context, Context.id == lineage.c.asked)
        .group_by(lineage.c.asked)
    )


def select_lineages(contexts: Sequence[str]) -> Select[Any]:
    """Each context and what it inherits from, nearest first: context_id, ancestor_id; itself is its first ancestor."""
    lineage = lineage_of(_asked(literal(list(contexts), ARRAY(Text)), None, include_deleted=True))
    columns = (lineage.c.asked.label("context_id"), lineage.c.id.label("ancestor_id"))
    return select(*columns).order_by(lineage.c.place, lineage.c.depth)


def _asked(contexts: ColumnElement[Any], as_of: ColumnElement[datetime] | None, *, include_deleted: bool) -> CTE:
    ids = cast(contexts, ARRAY(Uuid(as_uuid=False)))
    given = func.unnest(ids).table_valued("id", with_ordinality="place", name="given").render_derived()
    statement = select(Context.id, given.c.place).join(given, given.c.id == Context.id)
    if not include_deleted:
        exists_at: ColumnElement[bool] = Context.deleted_at.is_(None)
        if as_of is not None:
            exists_at = or_(exists_at, Context.deleted_at > as_of)
        statement = statement.where(exists_at)
    return statement.cte()


def is_fork(context: Any = Context) -> ColumnElement[bool]:
    """Give the condition that a context inherits: it has a parent and a fork version."""
    return and_(context.parent_id.is_not(None), context.fork_version.is_not(None))


def lineage_of(asked: CTE) -> CTE:
    """One row per asked context and ancestor: asked, place, id, depth, parent_id, fork_version, path, cyclic."""
    first = select(
        asked.c.id.label("asked"),
        asked.c.place,
        Context.id,
        literal(0, Integer).label("depth"),
        case((is_fork(), Context.parent_id)).label("parent_id"),
        Context.fork_version,
        array([Context.id]).label("path"),
        false().label("cyclic"),
    ).join(Context, Context.id == asked.c.id)
    below = first.cte(recursive=True)
    parent = aliased(Context, name="parent")
    above = (
        select(
            below.c.asked,
            below.c.place,
            parent.id,
            below.c.depth + 1,
            case((is_fork(parent), parent.parent_id)),
            parent.fork_version,
            func.array_append(below.c.path, parent.id),
            parent.id == func.any(below.c.path),
        )
        .join(below, below.c.parent_id == parent.id)
        .where(~below.c.cyclic)
    )
    return below.union_all(above)


def renumbered_of(lineage: CTE) -> CTE:
    """Ids of the forks in the lineages that are renumbered.

    A fork with a row at version 1 that it also inherits is renumbered if it has no row at `fork_version`
    although it inherits one there, or if neither of the two rows equals the inherited one.
    """
    first, last = aliased(Message, name="own_first"), aliased(Message, name="own_last")
    marked = (
        select(lineage.c.id, lineage.c.parent_id, lineage.c.fork_version)
        .join(first, and_(first.context_id == lineage.c.id, first.version == 1))
        .where(lineage.c.parent_id.is_not(None), lineage.c.fork_version >= 1)
        .distinct()
        .cte()
    )
    inherited = _inherited_rows(marked)
    above_first, above_last = inherited.alias(), inherited.alias()
    return (
        select(marked.c.id)
        .join(first, and_(first.context_id == marked.c.id, first.version == 1))
        .outerjoin(last, and_(last.context_id == marked.c.id, last.version == marked.c.fork_version))
        .outerjoin(above_first, and_(above_first.c.fork == marked.c.id, above_first.c.version == 1))
        .outerjoin(
            above_last,
            and_(above_last.c.fork == marked.c.id, above_last.c.version == marked.c.fork_version),
        )
        .where(
            or_(
                and_(last.id.is_(None), above_last.c.id.is_not(None)),
                and_(
                    above_first.c.id.is_not(None),
                    ~_same(first, above_first.c),
                    ~func.coalesce(_same(last, above_last.c), false()),
                ),
            )
        )
        .cte()
    )


def select_renumbered(context_id: str) -> Select[Any]:
    """The id again if that context is a renumbered fork, else no row."""
    lineage = lineage_of(_asked(literal([context_id], ARRAY(Text)), None, include_deleted=True))
    renumbered = renumbered_of(lineage)
    return select(renumbered.c.id).where(renumbered.c.id == context_id)


def _same(own: Any, inherited: Any) -> ColumnElement[bool]:
    return and_(own.role == inherited.role, own.content == inherited.content)


def _inherited_rows(marked: CTE) -> CTE:
    """The rows that marked forks inherit at version 1 and at `fork_version`, from the nearest that has one."""
    start = union(
        select(
            marked.c.id.label("fork"),
            literal(1, BigInteger).label("version"),
            marked.c.parent_id.label("ancestor"),
        ),
        select(marked.c.id, marked.c.fork_version, marked.c.parent_id),
    ).subquery("start")
    climb = select(start.c.fork, start.c.version, start.c.ancestor).cte(recursive=True)
    found = (
        select(literal(1))
        .where(Message.context_id == climb.c.ancestor, Message.version == climb.c.version)
        .correlate(climb)
        .exists()
    )
    # A union of distinct rows, so that a cycle ends.
    climb = climb.union(
        select(climb.c.fork, climb.c.version, Context.parent_id)
        .join(climb, climb.c.ancestor == Context.id)
        .where(~found, is_fork(), Context.fork_version >= climb.c.version)
    )
    return (
        select(climb.c.fork, climb.c.version, Message.id, Message.role, Message.content)
        .join(Message, and_(Message.context_id == climb.c.ancestor, Message.version == climb.c.version))
        .cte()
    )


def stretches_of(lineage: CTE, renumbered: CTE, at_version: ColumnElement[int] | None) -> CTE:
    """The lineages without cycles, with `epoch` (the higher, the earlier it comes) and the version `bound`."""
    cyclic = select(lineage.c.asked).where(lineage.c.cyclic)
    below = func.coalesce(
        func.sum(case((renumbered.c.id.is_not(None), 1), else_=0)).over(
            partition_by=lineage.c.asked, order_by=lineage.c.depth, rows=(None, -1)
        ),
        0,
    )
    passed = func.lag(lineage.c.fork_version).over(partition_by=lineage.c.asked, order_by=lineage.c.depth)
    own_bound = literal(NO_BOUND, BigInteger) if at_version is None else at_version
    staged = (
        select(
            lineage.c.asked,
            lineage.c.place,
            lineage.c.id,
            lineage.c.depth,
            below.label("epoch"),
            func.coalesce(passed, own_bound).label("passed"),
        )
        .outerjoin(renumbered, renumbered.c.id == lineage.c.id)
        .where(lineage.c.asked.not_in(cyclic))
        .subquery("staged")
    )
    bound = func.min(staged.c.passed).over(partition_by=(staged.c.asked, staged.c.epoch), order_by=staged.c.depth)
    return select(
        staged.c.asked, staged.c.place, staged.c.id, staged.c.depth, staged.c.epoch, bound.label("bound")
    ).cte()


def history_of(
    lineage: CTE,
    renumbered: CTE,
    *,
    at_version: ColumnElement[int] | None = None,
    as_of: ColumnElement[datetime] | None = None,
    embeddings: bool = False,
    include_deleted: bool = False,
) -> CTE:
    """The messages of the histories, numbered by `position` within each asked context."""
    stretches = stretches_of(lineage, renumbered, at_version)
    merged = _merged(stretches, as_of, embeddings=embeddings).subquery("merged")
    position = func.row_number().over(partition_by=merged.c.place, order_by=(merged.c.epoch.desc(), merged.c.version))
    columns = [column for column in merged.c if column.key not in ("context_id", "position", "epoch")]
    numbered = select(merged.c.context_id, position.label("position"), *columns)
    if not include_deleted:
        gone: ColumnElement[bool] = merged.c.deleted_at.is_not(None)
        if as_of is not None:
            gone = and_(gone, merged.c.deleted_at <= as_of)
        numbered = numbered.where(~gone)
    return numbered.cte()


def _merged(stretches: CTE, as_of: ColumnElement[datetime] | None, *, embeddings: bool) -> Select[Any]:
    own = [column for column in message_columns(embeddings=embeddings) if column.key != "context_id"]
    reaches = and_(Message.context_id == stretches.c.id, Message.version <= stretches.c.bound)
    if as_of is not None:
        reaches = and_(reaches, Message.created_at <= as_of)
    key = (stretches.c.place, stretches.c.epoch, Message.version)
    return (
        select(
            stretches.c.place,
            stretches.c.epoch,
            stretches.c.asked.label("context_id"),
            Message.context_id.label("source_context_id"),
            (stretches.c.depth > 0).label("inherited"),
            *own,
        )
        .join(Message, reaches)
        .ext(distinct_on(*key))
        .order_by(stretches.c.place, stretches.c.epoch.desc(), Message.version, stretches.c.depth)
    )
