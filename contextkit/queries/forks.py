"""The fork tree: every context that is a fork or is forked."""

from typing import Any

from sqlalchemy import ARRAY, CTE, Select, Subquery, Uuid, and_, case, exists, func, literal, or_, select
from sqlalchemy.orm import aliased

from contextkit.models import Context, Message
from contextkit.queries.columns import Condition, filter_contexts, live
from contextkit.queries.history import history_of, is_fork, lineage_of, renumbered_of


def select_forks(*where: Condition, include_deleted: bool = False) -> Select[Any]:
    """One row per context that is a fork or is forked, by creation, with figures of its effective history.

    In a cycle root_id, depth and the figures are null.
    """
    listed = _listed(where, include_deleted=include_deleted)
    lineage = lineage_of(listed)
    renumbered = renumbered_of(lineage)
    place = _places(lineage)
    figures = _figures(history_of(lineage, renumbered, include_deleted=include_deleted))
    children = _children(include_deleted=include_deleted)
    known = place.c.root_id.is_not(None)
    return (
        select(
            Context.id.label("context_id"),
            Context.name,
            Context.parent_id,
            Context.fork_version,
            place.c.root_id,
            place.c.depth,
            _written_by(renumbered).label("written_by"),
            func.coalesce(children.c.forks, 0).label("forks"),
            case((known, func.coalesce(figures.c.length, 0))).label("length"),
            case((known, func.coalesce(figures.c.tokens, 0))).label("tokens"),
            case((known, func.coalesce(figures.c.turns, 0))).label("turns"),
            figures.c.first_at,
            figures.c.last_at,
        )
        .join(listed, listed.c.id == Context.id)
        .outerjoin(place, place.c.context_id == Context.id)
        .outerjoin(figures, figures.c.context_id == Context.id)
        .outerjoin(children, children.c.parent_id == Context.id)
        .order_by(Context.created_at, Context.id)
    )


def select_families(*where: Condition, include_deleted: bool = False) -> Select[Any]:
    """context_id, root_id and most_messages of contexts, those of a root together; by the creation of both.

    most_messages is at least the length of the history: of each context in the lineage, the rows that it has or the
    versions that are inherited from it, whichever are fewer. In a cycle root_id is null.
    """
    numbered = select(Context.id, func.row_number().over().label("place"))
    lineage = lineage_of(filter_contexts(numbered, where, include_deleted=include_deleted).cte("asked"))
    family = _families(lineage)
    root = aliased(Context, name="root")
    return (
        select(Context.id.label("context_id"), family.c.root_id, family.c.most_messages)
        .join(family, family.c.asked == Context.id)
        .outerjoin(root, root.id == family.c.root_id)
        .order_by(root.created_at, root.id, Context.created_at, Context.id)
    )


def _families(lineage: CTE) -> Subquery:
    # By grouping, not by joins of the lineage with itself, which the planner takes for a few rows and so for loops.
    inherited = func.lag(lineage.c.fork_version).over(partition_by=lineage.c.asked, order_by=lineage.c.depth)
    passed = select(*lineage.c, inherited.label("inherited")).subquery("passed")
    stored = (
        select(Message.context_id, func.count().label("rows"))
        .where(Message.context_id.in_(select(lineage.c.id)))
        .group_by(Message.context_id)
        .subquery("stored")
    )
    ends = func.array_agg(passed.c.id, type_=ARRAY(Uuid(as_uuid=False))).filter(passed.c.parent_id.is_(None))
    # least() passes over nulls, as of the context itself.
    most = func.sum(func.least(func.coalesce(stored.c.rows, 0), passed.c.inherited))
    return (
        select(
            passed.c.asked,
            case((~func.bool_or(passed.c.cyclic), ends[1])).label("root_id"),
            most.label("most_messages"),
        )
        .outerjoin(stored, stored.c.context_id == passed.c.id)
        .group_by(passed.c.asked)
        .subquery("families")
    )


def _listed(where: tuple[Condition, ...], *, include_deleted: bool) -> CTE:
    child = aliased(Context, name="child")
    is_forked = exists(
        select(literal(1))
        .select_from(child)
        .where(child.parent_id == Context.id, is_fork(child))
        .where(*([] if include_deleted else [child.deleted_at.is_(None)]))
        .correlate(Context)
    )
    statement = select(Context.id, func.row_number().over().label("place")).where(or_(is_fork(), is_forked))
    return filter_contexts(statement, where, include_deleted=include_deleted).cte("asked")


def _places(lineage: CTE) -> CTE:
    """root_id and depth of each lineage that has no cycle."""
    cyclic = select(lineage.c.asked).where(lineage.c.cyclic)
    return (
        select(
            lineage.c.asked.label("context_id"),
            lineage.c.id.label("root_id"),
            lineage.c.depth,
        )
        .where(lineage.c.parent_id.is_(None), lineage.c.asked.not_in(cyclic))
        .cte("places")
    )


def _figures(numbered: CTE) -> CTE:
    return (
        select(
            numbered.c.context_id,
            func.count().label("length"),
            func.sum(func.coalesce(numbered.c.token_count, 0)).label("tokens"),
            func.count().filter(numbered.c.role == "user").label("turns"),
            func.min(numbered.c.created_at).label("first_at"),
            func.max(numbered.c.created_at).label("last_at"),
        )
        .group_by(numbered.c.context_id)
        .cte("figures")
    )


def _children(*, include_deleted: bool) -> CTE:
    return (
        select(Context.parent_id, func.count().label("forks"))
        .where(is_fork(), *live(Context, include_deleted=include_deleted))
        .group_by(Context.parent_id)
        .cte("children")
    )


def _written_by(renumbered: CTE) -> Any:
    has_copies = exists(
        select(literal(1))
        .where(and_(Message.context_id == Context.id, Message.version <= Context.fork_version))
        .correlate(Context)
    )
    return case(
        (~is_fork(), "root"),
        (Context.id.in_(select(renumbered.c.id)), "renumbered"),
        (has_copies, "copy"),
        else_="reference",
    )
