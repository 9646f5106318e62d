"""Contexts from their roots downward, each once, with figures of what it inherits: linear, however deep forks go.

kin      the asked contexts and their ancestors, each once, with how it was written and whose rows it goes on from
descent  those that a root is above, with the figures; contexts in a cycle, or below one, are not among them
"""

from typing import Any

from sqlalchemy import (
    ARRAY,
    CTE,
    BigInteger,
    ColumnElement,
    Label,
    Subquery,
    Uuid,
    and_,
    case,
    cast,
    false,
    func,
    or_,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.sql.selectable import LateralFromClause

from contextkit.models import Context, Message
from contextkit.queries.lineage import by_index, is_fork

IDS = ARRAY(Uuid(as_uuid=False))
SUMS = ("length", "tokens", "turns")
FIGURES = (*SUMS, "first_at", "last_at")


def family_of(asked: CTE) -> CTE:
    """The asked and their ancestors, each once: id, parent_id, fork_version."""
    family = select(
        asked.c.id, case((is_fork(asked.c), asked.c.parent_id)).label("parent_id"), asked.c.fork_version
    ).cte("family", recursive=True)
    parent = by_index(
        select(Context.id, case((is_fork(), Context.parent_id)).label("parent_id"), Context.fork_version).where(
            Context.id == family.c.parent_id
        )
    )
    return family.union(select(*parent.c).select_from(family).join(parent, true()))


def kin_of(family: CTE, written: CTE) -> CTE:
    """The family with source_id, steps, rewritten, complete, number.

    Rows are inherited from `source_id`, and from what that one inherits: the nearest ancestor, so many `steps` above,
    that has rows up to `fork_version` or is a root. `number` counts the forks of each source one after the other.
    """
    sources = _sources_of(family)
    source_id = case((sources.c.id.is_(None), family.c.parent_id), else_=sources.c.source_id)
    return (
        select(
            *family.c,
            source_id.label("source_id"),
            func.coalesce(sources.c.steps, 1).label("steps"),
            rewritten(written),
            func.coalesce(written.c.complete, false()).label("complete"),
            func.row_number().over(order_by=source_id).label("number"),
        )
        .join(written, written.c.id == family.c.id, full=True)
        .join(sources, sources.c.id == family.c.id, full=True)
        .cte("kin")
    )


def rewritten(written: CTE) -> Label[str]:
    """How the rows of a fork replace what it inherits: renumbered, copy or null."""
    renumbered = func.coalesce(written.c.renumbered, false())
    return case((renumbered, "renumbered"), (written.c.id.is_not(None), "copy")).label("rewritten")


def _sources_of(family: CTE) -> Subquery:
    """Of the forks whose source is not their parent: id, source_id and steps; some in a cycle have no source."""
    above = _passed(family.c.parent_id, family.c.fork_version)
    climb = (
        select(
            family.c.id,
            family.c.fork_version.label("version"),
            family.c.parent_id.label("source_id"),
            above.c.parent_id.label("next_id"),
        )
        .join(above, true())
        .where(family.c.parent_id.is_not(None))
        .cte("climb", recursive=True)
    )
    above = _passed(climb.c.next_id, climb.c.version)
    # A union of distinct rows, so that a cycle ends.
    climb = climb.union(
        select(climb.c.id, climb.c.version, climb.c.next_id, above.c.parent_id)
        .outerjoin(above, true())
        .where(climb.c.next_id.is_not(None))
    )
    last = func.array_agg(climb.c.source_id, type_=IDS).filter(climb.c.next_id.is_(None))
    columns = (climb.c.id, last[1].label("source_id"), func.count().label("steps"))
    return select(*columns).group_by(climb.c.id).subquery("sources")


def _passed(context_id: ColumnElement[str], version: ColumnElement[int]) -> LateralFromClause:
    """The parent of a fork that has no row at or below that version, nor up to a fork version that is higher."""
    own = select(Message.id).where(Message.context_id == context_id, Message.version <= Context.fork_version)
    passed = (is_fork(), Context.fork_version > version, ~own.correlate_except(Message).exists())
    return by_index(select(Context.parent_id).where(Context.id == context_id, *passed))


def descent_of(kin: CTE, *, include_deleted: bool) -> CTE:
    """The kin below a root: id, root_id, depth, overlaid, and the figures of what each inherits.

    `overlaid` are those with a copy in their lineage that replaces some of what it inherits; figures do not tell that.
    """
    placed = _placed(kin)
    earlier = [placed.c[name].label(f"earlier_{name}") for name in FIGURES]
    descent = (
        select(placed.c.id, placed.c.id.label("root_id"), cast(0, BigInteger).label("depth"), false().label("overlaid"))
        .add_columns(placed.c.first, placed.c.last, *(placed.c[name] for name in FIGURES), *earlier)
        .where(placed.c.parent_id.is_(None))
        .cte("descent", recursive=True)
    )
    fork = _forks_of(descent, placed)
    own = own_figures(descent.c.id, fork.c.version, ~fork.c.complete, include_deleted=include_deleted)
    inherited, before = [], []
    for name in FIGURES:
        together = added(descent.c[name], own.c[name])
        inherited.append(case((fork.c.complete, descent.c[f"earlier_{name}"]), else_=together))
        before.append(case((fork.c.renumbered, together), else_=descent.c[f"earlier_{name}"]))
    below = select(
        fork.c.id,
        descent.c.root_id,
        descent.c.depth + fork.c.steps,
        or_(descent.c.overlaid, fork.c.overlays),
        fork.c.first,
        fork.c.last,
        *inherited,
        *before,
    )
    return descent.union_all(below.select_from(descent).join(fork, true()).join(own, true()))


def _placed(kin: CTE) -> CTE:
    """The kin with `first` and `last`, the numbers of the forks whose source each is, and figures of nothing."""
    forks = (
        select(kin.c.source_id, func.min(kin.c.number).label("first"), func.max(kin.c.number).label("last"))
        .where(kin.c.source_id.is_not(None))
        .group_by(kin.c.source_id)
        .subquery("forks")
    )
    nothing = (cast(0, BigInteger).label(name) for name in SUMS)
    no_time = select(Message.created_at).where(false()).scalar_subquery()  # null, of whatever type the column has
    never = (no_time.label(name) for name in FIGURES if name not in SUMS)
    first, last = func.coalesce(forks.c.first, 1).label("first"), func.coalesce(forks.c.last, 0).label("last")
    return (
        select(*kin.c, first, last, *nothing, *never)
        .join(forks, forks.c.source_id == kin.c.id, full=True)
        .cte("placed")
    )


def _forks_of(descent: CTE, placed: CTE) -> LateralFromClause:
    """The forks whose source is one of the descent.

    From arrays, by number: the planner would rather read all forks for each of the depths than find some by a hash.
    """
    columns: dict[str, ColumnElement[Any]] = {
        "id": placed.c.id,
        "version": placed.c.fork_version,
        "steps": placed.c.steps,
        "first": placed.c.first,
        "last": placed.c.last,
        "renumbered": placed.c.rewritten.is_not_distinct_from("renumbered"),
        "complete": placed.c.complete,
        "overlays": and_(placed.c.rewritten.is_not_distinct_from("copy"), ~placed.c.complete),
    }
    number = func.generate_series(descent.c.first, descent.c.last).column_valued("fork_number")
    every = [
        func.array_agg(aggregate_order_by(value, placed.c.number), type_=ARRAY(value.type)).label(name)
        for name, value in columns.items()
    ]
    arrays = select(*every).where(placed.c.source_id.is_not(None)).cte("arrays")
    fork = [select(array).scalar_subquery()[number].label(array.key) for array in arrays.c]
    return by_index(select(*fork))


def own_figures(
    context_id: ColumnElement[str],
    version: ColumnElement[int],
    condition: ColumnElement[bool],
    *,
    include_deleted: bool,
) -> LateralFromClause:
    """Figures of the rows of a context up to a version, of none where the condition does not hold."""
    columns = (Message.token_count, Message.role, Message.created_at, Message.deleted_at)
    reached = select(*columns).where(Message.context_id == context_id, Message.version <= version, condition)
    # Deleted rows go afterwards: with the condition beside the key, the planner reads the whole index of deleted_at.
    rows = by_index(reached.correlate_except(Message))
    is_live = [] if include_deleted else [rows.c.deleted_at.is_(None)]
    return select(*figures_of(rows.c)).where(*is_live).lateral()


def figures_of(rows: Any) -> list[ColumnElement[Any]]:
    """Figures of rows of messages."""
    return [
        func.count().label("length"),
        func.coalesce(func.sum(func.coalesce(rows.token_count, 0)), 0).label("tokens"),
        func.count().filter(rows.role == "user").label("turns"),
        func.min(rows.created_at).label("first_at"),
        func.max(rows.created_at).label("last_at"),
    ]


def added(figure: ColumnElement[Any], other: ColumnElement[Any]) -> ColumnElement[Any]:
    """A figure of two parts of a history together."""
    if figure.key in SUMS:
        return figure + other
    return func.least(figure, other) if figure.key == "first_at" else func.greatest(figure, other)
