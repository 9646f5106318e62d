"""The fork tree: every context that is a fork or is forked."""

from typing import Any

from sqlalchemy import ARRAY, CTE, Select, Subquery, Uuid, and_, case, exists, func, literal, or_, select, true
from sqlalchemy.orm import aliased

from contextkit.models import Context, Message
from contextkit.queries.columns import Condition, filter_contexts, live
from contextkit.queries.history import history_of
from contextkit.queries.lineage import by_index, is_fork, lineage_of, stretches_of, written_of


def select_forks(*where: Condition, include_deleted: bool = False) -> Select[Any]:
    """One row per context that is a fork or is forked, by creation, with figures of its effective history.

    In a cycle root_id, depth and the figures are null.
    """
    listed = _listed(where, include_deleted=include_deleted)
    lineage = lineage_of(listed)
    stretches = stretches_of(lineage, written_of(lineage))
    origin = _origins(stretches)
    figures = _figures(history_of(stretches, include_deleted=include_deleted))
    return (
        select(
            listed.c.id.label("context_id"),
            listed.c.name,
            listed.c.parent_id,
            listed.c.fork_version,
            origin.c.root_id,
            case((~origin.c.cyclic, origin.c.depth)).label("depth"),
            case((origin.c.renumbered, "renumbered"), else_=listed.c.written_by).label("written_by"),
            listed.c.forks,
            case((~origin.c.cyclic, func.coalesce(figures.c.length, 0))).label("length"),
            case((~origin.c.cyclic, func.coalesce(figures.c.tokens, 0))).label("tokens"),
            case((~origin.c.cyclic, func.coalesce(figures.c.turns, 0))).label("turns"),
            figures.c.first_at,
            figures.c.last_at,
        )
        .join(origin, origin.c.place == listed.c.place, full=True)
        .join(figures, figures.c.place == listed.c.place, full=True)
        .order_by(listed.c.place)
    )


def select_families(*where: Condition) -> Select[Any]:
    """context_id, root_id and most_messages of contexts, those of a root together; by the creation of both.

    most_messages is at least the length of the history: of each context in the lineage, the rows that it has or the
    versions that are inherited from it, whichever are fewer. In a cycle root_id is null.
    """
    numbered = select(Context.id, func.row_number().over().label("place"))
    lineage = lineage_of(filter_contexts(numbered, where, include_deleted=False).cte("asked"))
    stretches = stretches_of(lineage, written_of(lineage))
    origin, most = _origins(stretches), _most_messages(stretches)
    root = aliased(Context, name="root")
    return (
        select(Context.id.label("context_id"), origin.c.root_id, most.c.most_messages)
        .select_from(origin)
        .join(most, most.c.place == origin.c.place, full=True)
        .join(Context, Context.id == origin.c.context_id)
        .outerjoin(root, root.id == origin.c.root_id)
        .order_by(root.created_at, root.id, Context.created_at, Context.id)
    )


def _listed(where: tuple[Condition, ...], *, include_deleted: bool) -> CTE:
    children = (
        select(Context.parent_id, func.count().label("forks"))
        .where(is_fork(), *live(Context, include_deleted=include_deleted))
        .group_by(Context.parent_id)
        .subquery("children")
    )
    has_copies = exists(
        select(literal(1))
        .where(and_(Message.context_id == Context.id, Message.version <= Context.fork_version))
        .correlate(Context)
    )
    statement = (
        select(
            Context.id,
            Context.name,
            Context.parent_id,
            Context.fork_version,
            case((~is_fork(), "root"), (has_copies, "copy"), else_="reference").label("written_by"),
            func.coalesce(children.c.forks, 0).label("forks"),
            func.row_number().over(order_by=(Context.created_at, Context.id)).label("place"),
        )
        .outerjoin(children, children.c.parent_id == Context.id)
        .where(or_(is_fork(), children.c.forks.is_not(None)))
    )
    return filter_contexts(statement, where, include_deleted=include_deleted).cte("asked")


def _origins(stretches: CTE) -> Subquery:
    """Of each lineage: place, context_id, root_id, depth, cyclic, and whether the asked context is renumbered."""
    ends = func.array_agg(stretches.c.id, type_=ARRAY(Uuid(as_uuid=False))).filter(stretches.c.parent_id.is_(None))
    cyclic = func.bool_or(stretches.c.cyclic)
    return (
        select(
            stretches.c.place,
            stretches.c.asked.label("context_id"),
            case((~cyclic, ends[1])).label("root_id"),
            func.max(stretches.c.depth).label("depth"),
            cyclic.label("cyclic"),
            func.bool_or(and_(stretches.c.renumbered, stretches.c.depth == 0)).label("renumbered"),
        )
        .group_by(stretches.c.place, stretches.c.asked)
        .subquery("origins")
    )


def _most_messages(stretches: CTE) -> Subquery:
    ids = select(stretches.c.id).distinct().subquery()
    counted = by_index(select(func.count().label("rows")).where(Message.context_id == ids.c.id))
    stored = select(ids.c.id, counted.c.rows).join(counted, true()).subquery("stored")
    return (
        select(stretches.c.place, func.sum(func.least(stored.c.rows, stretches.c.bound)).label("most_messages"))
        .join(stored, stored.c.id == stretches.c.id, full=True)
        .group_by(stretches.c.place)
        .subquery("most")
    )


def _figures(numbered: CTE) -> Subquery:
    return (
        select(
            numbered.c.place,
            func.count().label("length"),
            func.sum(func.coalesce(numbered.c.token_count, 0)).label("tokens"),
            func.count().filter(numbered.c.role == "user").label("turns"),
            func.min(numbered.c.created_at).label("first_at"),
            func.max(numbered.c.created_at).label("last_at"),
        )
        .group_by(numbered.c.place)
        .subquery("figures")
    )
