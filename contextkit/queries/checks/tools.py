"""Tool calls and results of ids that some context does not pair by itself, and the forks that may pair them.

tools     calls and results, each with whether its own context lacks its partner
alike     those of the same id as one that lacks it
asked     the forks that have such a result, or such a call before inherited versions
replaced  what stands in them, and in their ancestors, in place of an inherited row of such a version
"""

from typing import Any

from sqlalchemy import CTE, Select, and_, case, false, func, null, or_, select, true
from sqlalchemy.dialects.postgresql import distinct_on

from contextkit.models import Context, Message
from contextkit.queries.checks.finding import ROLE
from contextkit.queries.descent import family_of, rewritten
from contextkit.queries.lineage import by_index, is_fork, written_of

IS_CALL = and_(ROLE == "assistant", Message.tool_call_id.is_not(None))
IS_RESULT = and_(ROLE == "tool", Message.tool_call_id.is_not(None))


def select_unpaired() -> Select[*tuple[Any, ...]]:
    """Calls and results, where some of their id have no partner in their context, and forks as they are linked.

    A row per message: context_id, message_id, version, tool_call_id, is_call, is_alone, is_live; also, with a null
    tool_call_id, per row of a copy that stands in place of an inherited one. Beside it, and in a row of its own where
    there is no message, of each fork that may pair them and of its ancestors: fork_id, parent_id, fork_version,
    rewritten, complete.
    """
    tools = _tools()
    lone = select(tools.c.tool_call_id).where(tools.c.is_alone).subquery("lone")
    alike = select(tools).where(tools.c.tool_call_id.in_(select(lone.c.tool_call_id))).cte("alike")
    asked = (
        select(Context.id, Context.parent_id, Context.fork_version)
        .join(alike, alike.c.context_id == Context.id)
        .where(is_fork(), or_(~alike.c.is_call, alike.c.version < Context.fork_version))
        .ext(distinct_on(Context.id))
    )
    family = family_of(asked.cte("asked"))
    written = written_of(family)
    messages = select(alike).union_all(_replaced(family, written, alike)).subquery("seen")
    return (
        select(
            *messages.c,
            family.c.id.label("fork_id"),
            family.c.parent_id,
            family.c.fork_version,
            rewritten(written),
            func.coalesce(written.c.complete, false()).label("complete"),
        )
        # In full, so that the planner cannot loop.
        .join(written, written.c.id == family.c.id, full=True)
        .join(messages, messages.c.context_id == family.c.id, full=True)
    )


def _replaced(family: CTE, written: CTE, alike: CTE) -> Select[*tuple[Any, ...]]:
    """Rows of copies in place of what they would inherit, of versions of calls and results, in the columns of alike."""
    passes = case((written.c.complete, 0), else_=family.c.fork_version)
    copies = (
        select(family.c.id, passes.label("passes"))
        .join(written, written.c.id == family.c.id, full=True)
        .where(~written.c.renumbered)
        .cte("copies")
    )
    own = by_index(
        select(Message.id, Message.version).where(Message.context_id == copies.c.id, Message.version <= copies.c.passes)
    )
    values = {"context_id": copies.c.id, "message_id": own.c.id, "version": own.c.version, "tool_call_id": null()}
    columns = [values.get(column.key, false()).label(column.key) for column in alike.c]
    return select(*columns).join(own, true()).where(own.c.version.in_(select(alike.c.version)))


def _tools() -> CTE:
    same_id = (Message.context_id, Message.tool_call_id)
    beside = (
        select(
            Message.context_id,
            Message.id.label("message_id"),
            Message.version,
            Message.tool_call_id,
            IS_CALL.label("is_call"),
            Message.deleted_at.is_(None).label("is_live"),
            func.min(Message.version).filter(IS_CALL).over(partition_by=same_id).label("first_call"),
            func.max(Message.version).filter(IS_RESULT).over(partition_by=same_id).label("last_result"),
        )
        .where(or_(IS_CALL, IS_RESULT))
        .subquery("partners")
    )
    paired = case(
        (beside.c.is_call, beside.c.last_result > beside.c.version), else_=beside.c.first_call < beside.c.version
    )
    columns = [column for column in beside.c if column.key not in ("first_call", "last_result")]
    return select(*columns, (~func.coalesce(paired, false())).label("is_alone")).cte("tools")
