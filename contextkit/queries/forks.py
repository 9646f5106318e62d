"""The fork tree: every context that is a fork or is forked."""

from typing import Any

from sqlalchemy import CTE, ColumnElement, Select, Subquery, case, false, func, literal, or_, select, true

from contextkit.models import Context
from contextkit.queries.columns import Condition, filter_contexts, live
from contextkit.queries.descent import (
    FIGURES,
    SUMS,
    added,
    descent_of,
    family_of,
    figures_of,
    kin_of,
    own_figures,
    rewritten,
)
from contextkit.queries.history import history_of
from contextkit.queries.lineage import NO_BOUND, by_index, is_fork, lineage_of, stretches_of, written_of


def select_forks(*where: Condition, include_deleted: bool = False) -> Select[*tuple[Any, ...]]:
    """One row per context that is a fork or is forked, by creation, with figures of its effective history.

    In a cycle root_id, depth and the figures are null.
    """
    listed = _listed(where, include_deleted=include_deleted)
    family = family_of(listed)
    written = written_of(family)
    descent = descent_of(kin_of(family, written), include_deleted=include_deleted)
    merged = _merged_figures(listed, descent, include_deleted=include_deleted)
    own = own_figures(listed.c.id, literal(NO_BOUND), ~descent.c.overlaid, include_deleted=include_deleted)
    written_by = case((listed.c.is_fork, func.coalesce(rewritten(written), "reference")), else_="root")
    figures = []
    for name in FIGURES:
        replaced = func.coalesce(merged.c[name], 0) if name in SUMS else merged.c[name]
        figure = case((descent.c.overlaid, replaced), else_=added(descent.c[name], own.c[name]))
        figures.append(case((descent.c.id.is_not(None), figure)).label(name))
    return (
        select(
            listed.c.id.label("context_id"),
            listed.c.name,
            listed.c.parent_id,
            listed.c.fork_version,
            descent.c.root_id,
            descent.c.depth,
            written_by.label("written_by"),
            listed.c.forks,
            *figures,
        )
        .join(written, written.c.id == listed.c.id, full=True)
        .join(descent, descent.c.id == listed.c.id, full=True)
        .join(merged, merged.c.place == listed.c.place, full=True)
        .join(own, true())
        .where(_is_asked(listed))
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
    family = family_of(asked)
    descent = descent_of(kin_of(family, written_of(family)), include_deleted=True)
    own = own_figures(asked.c.id, literal(NO_BOUND), true(), include_deleted=True)
    root = by_index(select(Context.id, Context.created_at).where(Context.id == descent.c.root_id))
    return (
        select(
            asked.c.id.label("context_id"),
            descent.c.root_id,
            (func.coalesce(descent.c.length, 0) + own.c.length).label("most_messages"),
        )
        .join(descent, descent.c.id == asked.c.id, full=True)
        .join(own, true())
        .outerjoin(root, true())
        .where(_is_asked(asked))
        .order_by(root.c.created_at, root.c.id, asked.c.created_at, asked.c.id)
    )


def _is_asked(asked: CTE) -> ColumnElement[bool]:
    # Written so that the planner does not see that a full join is none.
    return func.coalesce(asked.c.place, 0) > 0


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


def _merged_figures(listed: CTE, descent: CTE, *, include_deleted: bool) -> Subquery:
    """Figures of the histories in which rows replace others."""
    overlaid = (
        select(listed)
        .join(descent, descent.c.id == listed.c.id, full=True)
        .where(_is_asked(listed), func.coalesce(descent.c.overlaid, false()))
        .cte("overlaid")
    )
    lineage = lineage_of(overlaid)
    numbered = history_of(stretches_of(lineage, written_of(lineage)), include_deleted=include_deleted)
    return select(numbered.c.place, *figures_of(numbered.c)).group_by(numbered.c.place).subquery("merged_figures")
