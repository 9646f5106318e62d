"""The fork tree: every context that is a fork or is forked."""

from typing import Any

from sqlalchemy import (
    ARRAY,
    CTE,
    BigInteger,
    ColumnElement,
    FromClause,
    Select,
    Subquery,
    Uuid,
    and_,
    case,
    cast,
    func,
    or_,
    select,
    true,
)

from contextkit.models import Context, Message
from contextkit.queries.columns import Condition, filter_contexts, live
from contextkit.queries.history import history_of
from contextkit.queries.lineage import by_index, is_fork, lineage_of, stretches_of, written_of


def select_forks(*where: Condition, include_deleted: bool = False) -> Select[*tuple[Any, ...]]:
    """One row per context that is a fork or is forked, by creation, with figures of its effective history.

    In a cycle root_id, depth and the figures are null.
    """
    listed = _listed(where, include_deleted=include_deleted)
    lineage = lineage_of(listed)
    stretches = stretches_of(lineage, written_of(lineage))
    family = _families(stretches, _own_figures(stretches, include_deleted=include_deleted))
    merged = _merged_figures(stretches, include_deleted=include_deleted)
    figures = (
        case((~family.c.cyclic, func.coalesce(merged.c[name], family.c[name]))).label(name)
        for name in ("length", "tokens", "turns", "first_at", "last_at")
    )
    return (
        select(
            listed.c.id.label("context_id"),
            listed.c.name,
            listed.c.parent_id,
            listed.c.fork_version,
            family.c.root_id,
            family.c.depth,
            case((listed.c.is_fork, func.coalesce(family.c.rewritten, "reference")), else_="root").label("written_by"),
            listed.c.forks,
            *figures,
        )
        .join(family, family.c.place == listed.c.place, full=True)
        .join(merged, merged.c.place == listed.c.place, full=True)
        .order_by(listed.c.place)
    )


def select_families(*where: Condition, include_deleted: bool = False) -> Select[*tuple[Any, ...]]:
    """context_id, root_id and most_messages of contexts, those of a root together; by the creation of both.

    most_messages is at least the length of the history: the rows of each context in the lineage, up to the version
    that is inherited from it. In a cycle root_id is null.
    """
    columns = (Context.id, Context.parent_id, Context.fork_version, Context.created_at)
    numbered = select(*columns, func.row_number().over().label("place"))
    asked = filter_contexts(numbered, where, include_deleted=include_deleted).cte("asked")
    lineage = lineage_of(asked)
    stretches = stretches_of(lineage, written_of(lineage))
    reached = select(func.count().label("most_messages")).where(_is_reached(stretches))
    family = _families(stretches, by_index(reached))
    root = by_index(select(Context.id, Context.created_at).where(Context.id == family.c.root_id))
    return (
        select(asked.c.id.label("context_id"), family.c.root_id, family.c.most_messages)
        .join(family, family.c.place == asked.c.place, full=True)
        .outerjoin(root, true())
        .order_by(root.c.created_at, root.c.id, asked.c.created_at, asked.c.id)
    )


def _listed(where: tuple[Condition, ...], *, include_deleted: bool) -> CTE:
    children = (
        select(Context.parent_id, func.count().label("forks"))
        .where(is_fork(), *live(Context, include_deleted=include_deleted))
        .group_by(Context.parent_id)
        .subquery("children")
    )
    statement = (
        select(
            Context.id,
            Context.name,
            Context.parent_id,
            Context.fork_version,
            is_fork().label("is_fork"),
            func.coalesce(children.c.forks, 0).label("forks"),
            func.row_number().over(order_by=(Context.created_at, Context.id)).label("place"),
        )
        .outerjoin(children, children.c.parent_id == Context.id)
        .where(or_(is_fork(), children.c.forks.is_not(None)))
    )
    return filter_contexts(statement, where, include_deleted=include_deleted).cte("asked")


def _families(stretches: CTE, own: FromClause) -> Subquery:
    """Of each lineage: place, root_id, depth, cyclic, rewritten, and the figures of its stretches together.

    In a cycle root_id and depth are null.
    """
    cyclic = func.bool_or(stretches.c.cyclic)
    roots = func.array_agg(stretches.c.id, type_=ARRAY(Uuid(as_uuid=False))).filter(stretches.c.parent_id.is_(None))
    return (
        select(
            stretches.c.place,
            case((~cyclic, roots[1])).label("root_id"),
            case((~cyclic, func.max(stretches.c.depth))).label("depth"),
            cyclic.label("cyclic"),
            func.max(stretches.c.rewritten).filter(stretches.c.depth == 0).label("rewritten"),
            *map(_together, own.c),
        )
        .join(own, true())
        .group_by(stretches.c.place)
        .subquery("family")
    )


def _together(figure: ColumnElement[Any]) -> ColumnElement[Any]:
    if figure.key == "first_at":
        return func.min(figure).label(figure.key)
    if figure.key == "last_at":
        return func.max(figure).label(figure.key)
    return cast(func.sum(figure), BigInteger).label(figure.key)


def _is_reached(stretches: CTE) -> ColumnElement[bool]:
    return and_(Message.context_id == stretches.c.id, Message.version <= stretches.c.bound)


def _own_figures(stretches: CTE, *, include_deleted: bool) -> FromClause:
    """Figures of the rows of each stretch, which are those of the history where nothing is overlaid."""
    columns = (Message.token_count, Message.role, Message.created_at, Message.deleted_at)
    reached = select(*columns).where(_is_reached(stretches), ~stretches.c.overlaid, ~stretches.c.cyclic)
    # Deleted rows go afterwards: with the condition beside the key, the planner reads the whole index of deleted_at.
    rows = by_index(reached.correlate(stretches))
    is_live = [] if include_deleted else [rows.c.deleted_at.is_(None)]
    return select(*_figures_of(rows.c)).where(*is_live).lateral()


def _merged_figures(stretches: CTE, *, include_deleted: bool) -> Subquery:
    """Figures of the histories in which rows replace others."""
    overlaid = select(stretches).where(stretches.c.overlaid).cte("overlaid")
    numbered = history_of(overlaid, include_deleted=include_deleted)
    return select(numbered.c.place, *_figures_of(numbered.c)).group_by(numbered.c.place).subquery("merged_figures")


def _figures_of(rows: Any) -> list[ColumnElement[Any]]:
    return [
        func.count().label("length"),
        func.coalesce(func.sum(func.coalesce(rows.token_count, 0)), 0).label("tokens"),
        func.count().filter(rows.role == "user").label("turns"),
        func.min(rows.created_at).label("first_at"),
        func.max(rows.created_at).label("last_at"),
    ]
