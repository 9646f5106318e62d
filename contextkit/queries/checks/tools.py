"""Tool calls without a result, and results without a call: pairs within one history, inherited calls included.

tools      calls and results, each with where its context has the first call and the last result of its id
alone      those without a partner in their own context
inherited  calls that forks with such a result inherit
"""

from typing import Any

from sqlalchemy import CTE, CompoundSelect, Subquery, and_, case, false, func, or_, select, true, union_all

from contextkit.models import Context, Message
from contextkit.queries.checks.finding import ROLE, finding
from contextkit.queries.lineage import by_index, is_fork, lineage_of, stretches_of, written_of

IS_CALL = and_(ROLE == "assistant", Message.tool_call_id.is_not(None))
IS_RESULT = and_(ROLE == "tool", Message.tool_call_id.is_not(None))
NAMES = ("id", "context_id", "is_call", "deleted_at")


def select_unpaired() -> CompoundSelect[*tuple[Any, ...]]:
    """Live calls with no later result in any history that holds them, and live results with no call before them."""
    alone = _alone()
    beside = _beside(alone, _inherited(alone))
    answered = select(*(beside.c[f"call_{name}"] for name in NAMES)).where(beside.c.pairs)
    answers = select(*(beside.c[name] for name in NAMES)).where(beside.c.pairs)
    unpaired = select(*(alone.c[name] for name in NAMES)).except_(answered, answers).cte("unpaired")
    ids = {"context_id": unpaired.c.context_id, "message_id": unpaired.c.id}
    is_live = unpaired.c.deleted_at.is_(None)
    return union_all(
        finding("call_without_result", "no result follows it", **ids).where(unpaired.c.is_call, is_live),
        finding("result_without_call", "no call stands before it", **ids).where(~unpaired.c.is_call, is_live),
    )


def _alone() -> CTE:
    same_id = (Message.context_id, Message.tool_call_id)
    tools = (
        select(
            Message.id,
            Message.context_id,
            Message.version,
            Message.tool_call_id,
            Message.deleted_at,
            IS_CALL.label("is_call"),
            func.min(Message.version).filter(IS_CALL).over(partition_by=same_id).label("first_call"),
            func.max(Message.version).filter(IS_RESULT).over(partition_by=same_id).label("last_result"),
        )
        .where(or_(IS_CALL, IS_RESULT))
        .subquery("tools")
    )
    paired = case((tools.c.is_call, tools.c.last_result > tools.c.version), else_=tools.c.first_call < tools.c.version)
    columns = [column for column in tools.c if column.key not in ("first_call", "last_result")]
    return select(*columns).where(~func.coalesce(paired, false())).cte("alone")


def _inherited(alone: CTE) -> CTE:
    asking = select(alone.c.context_id).where(~alone.c.is_call)
    place = func.row_number().over().label("place")
    asked = select(Context.id, Context.parent_id, Context.fork_version, place).where(is_fork(), Context.id.in_(asking))
    lineage = lineage_of(asked.cte("asked"))
    stretches = stretches_of(lineage, written_of(lineage))
    calls = by_index(
        select(Message.id, Message.context_id, Message.version, Message.tool_call_id, Message.deleted_at).where(
            Message.context_id == stretches.c.id, Message.version <= stretches.c.bound, IS_CALL
        )
    )
    return (
        select(stretches.c.asked, stretches.c.epoch, *calls.c)
        .join(calls, true())
        .where(stretches.c.depth > 0, ~stretches.c.cyclic)
        .cte("inherited")
    )


def _beside(alone: CTE, inherited: CTE) -> Subquery:
    """Each of those beside the calls that it inherits, and whether it is the result of one."""
    stands_before = or_(inherited.c.epoch > 0, inherited.c.version < alone.c.version)
    calls = (column.label(f"call_{column.key}") for column in inherited.c if column.key in NAMES)
    return (
        # In full, and with conditions that hold for null, too, so that the planner cannot loop.
        select(
            *alone.c,
            true().label("call_is_call"),
            *calls,
            func.coalesce(and_(~alone.c.is_call, stands_before), false()).label("pairs"),
        )
        .join(
            inherited,
            and_(inherited.c.asked == alone.c.context_id, inherited.c.tool_call_id == alone.c.tool_call_id),
            full=True,
        )
        .subquery("beside")
    )
