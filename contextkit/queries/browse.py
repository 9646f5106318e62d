"""What is looked at page by page: contexts in any order, and the family of one."""

from typing import Any, Literal

from sqlalchemy import CTE, ColumnElement, Select, and_, case, func, join, literal, or_, select, tuple_
from sqlalchemy.orm import InstrumentedAttribute, aliased

from contextkit.models import Context, IdType
from contextkit.queries.columns import Condition, filter_contexts
from contextkit.queries.history import select_history
from contextkit.queries.lineage import is_fork, lineage_of
from contextkit.queries.rows import select_contexts

Order = Literal["newest", "last changed", "most messages", "most tokens"]
ORDERS: dict[Order, InstrumentedAttribute[Any]] = {
    "newest": Context.created_at,
    "last changed": Context.updated_at,
    "most messages": Context.message_count,
    "most tokens": Context.total_tokens,
}


def select_page(
    *where: Condition, order: Order, after: tuple[object, str] | None = None, include_deleted: bool = False
) -> Select[*tuple[Any, ...]]:
    """Contexts in an order, largest first, ties by id; only those that follow a value of it and an id."""
    key = ORDERS[order]
    statement = select_contexts(*where, include_deleted=include_deleted).order_by(None)
    if after is not None:
        value, context_id = after
        statement = statement.where(
            tuple_(key, Context.id) < tuple_(literal(value, key.type), literal(context_id, IdType))
        )
    return statement.order_by(key.desc(), Context.id.desc())


def select_count(*where: Condition, most: int, include_deleted: bool = False) -> Select[*tuple[Any, ...]]:
    """One number: how many contexts meet the conditions, counted up to `most`."""
    statement = select(literal(1)).select_from(Context).limit(most)
    counted = filter_contexts(statement, where, include_deleted=include_deleted).subquery("counted")
    return select(func.count()).select_from(counted)


def select_family(context_id: str) -> Select[*tuple[Any, ...]]:
    """The contexts of a fork tree, deleted or not, those first that stand nearest to one of them.

    That is its lineage, then what was forked from it, from its parent and so on, then the rest by depth: of any
    number of rows from the start each has its parent among them, up to where the lineage is cut. `depth` counts
    from the root.
    """
    columns = (Context.id, Context.parent_id, Context.fork_version, literal(1).label("place"))
    lineage = lineage_of(select(*columns).where(Context.id == context_id).cte())
    family = _descendants(lineage)
    own, above = lineage.alias("own"), lineage.alias("above")
    return (
        select(
            Context.id.label("context_id"),
            Context.name,
            Context.created_at,
            Context.message_count,
            case((is_fork(), Context.parent_id)).label("parent_id"),
            Context.fork_version,
            Context.deleted_at,
            family.c.depth,
        )
        .join(family, family.c.id == Context.id)
        .outerjoin(own, own.c.id == Context.id)
        .outerjoin(above, above.c.id == family.c.parent_id)
        .order_by(own.c.depth, above.c.depth, family.c.depth, Context.created_at, Context.id)
    )


def _descendants(lineage: CTE) -> CTE:
    """id, parent_id and depth of all contexts below the root of a lineage; none where it has a cycle."""
    cyclic = select(literal(1)).select_from(lineage).where(lineage.c.cyclic).exists()
    root: Select[*tuple[Any, ...]] = select(lineage.c.id, lineage.c.parent_id, literal(0).label("depth")).where(
        lineage.c.parent_id.is_(None), ~cyclic
    )
    below = root.cte("family", recursive=True)
    child = aliased(Context, name="child")
    children = select(child.id, child.parent_id, below.c.depth + 1).join(below, child.parent_id == below.c.id)
    return below.union_all(children.where(is_fork(child)))


def select_parting(left: str, right: str) -> Select[*tuple[Any, ...]]:
    """One row: how many messages two histories have, and how many both begin with (as `diff_df` compares)."""
    both = select_history([left, right]).cte("both")
    ours, theirs = (select(both).where(both.c.context_id == id_).subquery() for id_ in (left, right))
    said = ("role", "content", "tool_name")
    equal = [ours.c[name].is_not_distinct_from(theirs.c[name]) for name in said]
    are_calls = ours.c.tool_call_id.is_(None) == theirs.c.tool_call_id.is_(None)
    equal.append(or_(ours.c.role != "assistant", ours.c.tool_name.is_not(None), are_calls))
    beside = select(
        ours.c.position.label("left"),
        theirs.c.position.label("right"),
        and_(*equal).label("equal"),
    )
    beside = beside.select_from(join(ours, theirs, ours.c.position == theirs.c.position, full=True))
    rows = beside.subquery("beside")
    parted = func.min(func.least(rows.c.left, rows.c.right)).filter(~rows.c.equal)
    counts: tuple[ColumnElement[Any], ...] = (
        func.count(rows.c.left).label("left"),
        func.count(rows.c.right).label("right"),
    )
    return select(*counts, func.coalesce(parted - 1, func.count()).label("shared"))
