"""Contexts whose counters are false, forks that inherit from nowhere, and cycles of them."""

from typing import Any

from sqlalchemy import CTE, CompoundSelect, Select, case, func, or_, select, union_all
from sqlalchemy.orm import aliased

from contextkit.models import Context, Message
from contextkit.queries.checks.finding import IS_LIVE, finding
from contextkit.queries.lineage import is_fork


def select_false_counters() -> CompoundSelect[*tuple[Any, ...]]:
    """Counters that differ from a context's rows, versions that it lacks or that are none, and lost messages."""
    tally = _tallies()
    counters = [
        finding(name, f"{name} is ", tally.c[name], ", its live messages give ", given, context_id=tally.c.id).where(
            tally.c[name] != given
        )
        for name, given in (
            ("message_count", func.coalesce(tally.c.messages, 0)),
            ("total_tokens", func.coalesce(tally.c.tokens, 0)),
        )
    ]
    versions = ("latest_version is ", tally.c.latest_version, ", its largest version ", tally.c.last)
    behind = finding("latest_version", *versions, context_id=tally.c.id).where(tally.c.latest_version < tally.c.last)
    lacking = tally.c.last - tally.c.inherited - tally.c.own
    missing = (lacking, " missing between versions ", tally.c.inherited + 1, " and ", tally.c.last)
    gaps = finding("version_gap", *missing, context_id=tally.c.id).where(tally.c.own > 0, lacking > 0)
    below = finding("version_below_1", "its least version is ", tally.c.least, context_id=tally.c.id)
    known = tally.c.id.is_not(None)
    lost = finding("missing_context", tally.c.rows, " messages without it", context_id=tally.c.context_id)
    return union_all(*counters, behind, gaps.where(known), below.where(known, tally.c.least < 1), lost.where(~known))


def _tallies() -> CTE:
    """Of each context its counters beside what its rows give; also rows of contexts that do not exist.

    `own` are the rows after the last version that is inherited.
    """
    inherited = case((is_fork(), Context.fork_version), else_=0)
    rows = (
        select(
            Message.context_id,
            func.count().label("rows"),
            func.count().filter(IS_LIVE).label("messages"),
            func.coalesce(func.sum(Message.token_count).filter(IS_LIVE), 0).label("tokens"),
            func.min(Message.version).label("least"),
            func.max(Message.version).label("last"),
            func.count().filter(Message.version > inherited).label("own"),
        )
        .outerjoin(Context, Context.id == Message.context_id)
        .group_by(Message.context_id)
        .subquery("rows")
    )
    counters = (Context.id, Context.message_count, Context.total_tokens, Context.latest_version)
    return (
        select(*counters, inherited.label("inherited"), *rows.c)
        .join(rows, rows.c.context_id == Context.id, full=True)
        .cte("tallies")
    )


def select_bad_forks() -> CompoundSelect[*tuple[Any, ...]]:
    """Forks that lack their parent or their version, and those that inherit more than there is."""
    no_parent = finding("orphan_fork", "fork_version ", Context.fork_version, " of no parent", context_id=Context.id)
    no_version = finding("orphan_fork", "no fork_version of parent ", Context.parent_id, context_id=Context.id)
    parent = aliased(Context, name="parent")
    lost = finding("missing_parent", "no context is its parent ", Context.parent_id, context_id=Context.id)
    last = func.max(Message.version).label("last")
    stored = select(Message.context_id, last).group_by(Message.context_id).subquery("stored")
    end = func.greatest(parent.latest_version, stored.c.last, case((is_fork(parent), parent.fork_version)))
    words = ("fork_version is ", Context.fork_version, ", its parent ends at ", end)
    beyond = finding("beyond_parent", *words, context_id=Context.id)
    return union_all(
        no_parent.where(Context.parent_id.is_(None), Context.fork_version.is_not(None)),
        no_version.where(Context.parent_id.is_not(None), Context.fork_version.is_(None)),
        lost.outerjoin(parent, parent.id == Context.parent_id).where(
            Context.parent_id.is_not(None), parent.id.is_(None)
        ),
        beyond.join(parent, parent.id == Context.parent_id)
        .outerjoin(stored, stored.c.context_id == parent.id)
        .where(Context.fork_version > end),
    )


def select_cycles() -> Select[*tuple[Any, ...]]:
    """Forks that no root is above: those in a cycle of parents, and those below one."""
    parent, child = aliased(Context, name="parent"), aliased(Context, name="child")
    has_root = (
        select(Context.id)
        .outerjoin(parent, parent.id == Context.parent_id)
        .where(or_(~is_fork(), parent.id.is_(None)))
        .cte("has_root", recursive=True)
    )
    has_root = has_root.union_all(
        select(child.id).join(has_root, has_root.c.id == child.parent_id).where(is_fork(child))
    )
    cyclic = select(Context.id).where(is_fork()).except_(select(has_root.c.id)).subquery("cyclic")
    return finding("cycle", "its parents form a cycle, or lead into one", context_id=cyclic.c.id)
