"""Lineages of many contexts in one statement, and how far each ancestor reaches into the history.

asked      the contexts asked for, each with its place
lineage    each asked context and its ancestors, by depth
written    of the forks in them with rows of versions that they inherit: whether renumbered, or a complete copy
stretches  the lineages with an epoch (how many renumbered forks lie below) and a version bound

No plan but a good one is open to the server, whose estimates of recursion are far off in both directions: tables are
looked up by their index, row by row (`lateral`), and common table expressions, which have none, are joined in full,
which loops cannot do.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ARRAY,
    CTE,
    BigInteger,
    ColumnElement,
    Integer,
    Select,
    Subquery,
    Text,
    Uuid,
    and_,
    case,
    cast,
    false,
    func,
    literal,
    literal_column,
    or_,
    select,
    true,
    union,
)
from sqlalchemy.dialects.postgresql import aggregate_order_by, distinct_on
from sqlalchemy.orm import aliased
from sqlalchemy.sql.selectable import LateralFromClause

from contextkit.models import Context, Message, canonical_id

NO_BOUND = 2**63 - 1
SEPARATOR = ","


def by_index(statement: Select[*tuple[Any, ...]]) -> LateralFromClause:
    """Rows of a table for each row of another, which must give the index its key."""
    return statement.offset(literal_column("0")).lateral()  # an offset keeps the planner from joining in another way


def text_of(ids: Iterable[str]) -> str:
    """Canonical ids as one text: of thousands, the server takes long to parse an array."""
    return SEPARATOR.join(ids)


def asked_of(contexts: ColumnElement[str], as_of: ColumnElement[datetime] | None, *, include_deleted: bool) -> CTE:
    """Those of a `text_of` ids that exist: id, parent_id, fork_version, and the place in it."""
    ids = cast(func.string_to_array(contexts, SEPARATOR), ARRAY(Uuid(as_uuid=False)))
    given = func.unnest(ids).table_valued("id", with_ordinality="place", name="given").render_derived()
    columns = (Context.id, Context.parent_id, Context.fork_version, given.c.place)
    statement = select(*columns).join(given, given.c.id == Context.id)
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
    """One row per asked context and ancestor: asked, place, id, depth, parent_id, fork_version, cyclic.

    Asked are rows of id, parent_id, fork_version and place.

    A lineage that runs into a cycle ends with a cyclic row, somewhere in the second turn or later: `mark` is the id at
    the last depth that is a power of two, and is met again (Brent, 1980). The ids passed would make rows as long as
    the lineages.
    """
    below = select(
        asked.c.id.label("asked"),
        asked.c.place,
        asked.c.id,
        literal(0, Integer).label("depth"),
        case((is_fork(asked.c), asked.c.parent_id)).label("parent_id"),
        asked.c.fork_version,
        asked.c.id.label("mark"),
        false().label("cyclic"),
    ).cte(recursive=True)
    parent = by_index(
        select(
            Context.id, case((is_fork(), Context.parent_id)).label("parent_id"), Context.fork_version.label("version")
        ).where(Context.id == below.c.parent_id)
    )
    depth = below.c.depth + 1
    above = (
        select(
            below.c.asked,
            below.c.place,
            parent.c.id,
            depth,
            parent.c.parent_id,
            parent.c.version,
            case((depth.bitwise_and(below.c.depth) == 0, parent.c.id), else_=below.c.mark),
            parent.c.id == below.c.mark,
        )
        .join(parent, true())
        .where(~below.c.cyclic)
    )
    return below.union_all(above)


def written_of(lineage: CTE, as_of: ColumnElement[datetime] | None = None) -> CTE:
    """The forks of the lineages with rows at or below `fork_version`: id, renumbered, complete.

    A fork with a row at version 1 that inherits is renumbered if it has no row at `fork_version` although it inherits
    one there, or if neither of the two rows equals the inherited one. The others are copies, complete if they have
    each version up to `fork_version`, at `as_of`.
    """
    forks = (
        select(lineage.c.id, lineage.c.parent_id, lineage.c.fork_version)
        .where(lineage.c.parent_id.is_not(None))
        .ext(distinct_on(lineage.c.id))  # not of all columns, or the planner expects millions
        .order_by(lineage.c.id)
        .subquery("forks")
    )
    counted: list[ColumnElement[bool]] = [Message.version >= 1]
    if as_of is not None:
        counted.append(Message.created_at <= as_of)
    own = by_index(
        select(
            func.count().label("rows"),
            func.count().filter(*counted).label("copies"),
            func.coalesce(func.bool_or(Message.version == 1), false()).label("first"),
        ).where(Message.context_id == forks.c.id, Message.version <= forks.c.fork_version)
    )
    copying = select(*forks.c, *own.c).join(own, true()).where(own.c.rows > 0).cte()
    compared = _compared(copying)
    renumbered = func.coalesce(compared.c.renumbered, false())
    return (
        select(
            copying.c.id,
            renumbered.label("renumbered"),
            and_(copying.c.copies == copying.c.fork_version, ~renumbered).label("complete"),
        )
        .join(compared, compared.c.id == copying.c.id, full=True)
        .cte()
    )


def _compared(copying: CTE) -> Subquery:
    """Whether forks with a row at version 1 are renumbered, where they inherit one there or at `fork_version`."""
    inherited = _inherited_rows(copying)
    own = by_index(
        select(Message.role, Message.content).where(
            Message.context_id == inherited.c.fork, Message.version == inherited.c.version
        )
    )
    same = func.coalesce(and_(own.c.role == inherited.c.role, own.c.content == inherited.c.content), false())
    at_first, at_last = inherited.c.version == 1, inherited.c.version == inherited.c.fork_version
    lacks_last = func.bool_or(and_(at_last, own.c.role.is_(None)))
    neither = and_(func.bool_or(and_(at_first, ~same)), ~func.bool_or(and_(at_last, same)))
    return (
        select(inherited.c.fork.label("id"), or_(lacks_last, neither).label("renumbered"))
        .outerjoin(own, true())
        .group_by(inherited.c.fork)
        .subquery("compared")
    )


def _inherited_rows(copying: CTE) -> CTE:
    """What the forks with a row at 1 inherit at version 1 and at `fork_version`, from the nearest that has it."""
    columns = (copying.c.id.label("fork"), copying.c.fork_version, copying.c.parent_id.label("ancestor"))
    start = union(
        select(*columns, literal(1, BigInteger).label("version")).where(copying.c.first),
        select(*columns, copying.c.fork_version.label("version")).where(copying.c.first),
    ).subquery("start")
    climb = select(*start.c).cte(recursive=True)
    row = aliased(Message, name="row")
    found = select(row.id).where(row.context_id == climb.c.ancestor, row.version == climb.c.version).correlate(climb)
    above = by_index(
        select(Context.parent_id).where(
            Context.id == climb.c.ancestor, is_fork(), Context.fork_version >= climb.c.version, ~found.exists()
        )
    )
    # A union of distinct rows, so that a cycle ends.
    climb = climb.union(
        select(climb.c.fork, climb.c.fork_version, above.c.parent_id, climb.c.version).join(above, true())
    )
    inherited = by_index(
        select(Message.role, Message.content).where(
            Message.context_id == climb.c.ancestor, Message.version == climb.c.version
        )
    )
    return (
        select(climb.c.fork, climb.c.fork_version, climb.c.version, inherited.c.role, inherited.c.content)
        .join(inherited, true())
        .cte()
    )


def stretches_of(lineage: CTE, written: CTE, at_version: ColumnElement[int] | None = None) -> CTE:
    """The lineages with `epoch` (the higher, the earlier it comes) and the version `bound`; cyclic in each row of one.

    Above a complete copy the bound is 0, as it replaces all that it would inherit in its epoch. `overlaid` says of a
    whole lineage that there are copies in it that replace some of it.
    """
    lineages: dict[str, Any] = {"partition_by": lineage.c.place, "order_by": lineage.c.depth}
    renumbered, complete = func.coalesce(written.c.renumbered, false()), func.coalesce(written.c.complete, false())
    own_bound = literal(NO_BOUND, BigInteger) if at_version is None else at_version
    passes = case((complete, literal(0, BigInteger)), else_=lineage.c.fork_version)
    overlays = and_(written.c.id.is_not(None), ~renumbered, ~complete)
    staged = (
        select(
            lineage.c.asked,
            lineage.c.place,
            lineage.c.id,
            lineage.c.depth,
            lineage.c.parent_id,
            case((renumbered, "renumbered"), (written.c.id.is_not(None), "copy")).label("rewritten"),
            func.bool_or(lineage.c.cyclic).over(partition_by=lineage.c.place).label("cyclic"),
            func.bool_or(overlays).over(partition_by=lineage.c.place).label("overlaid"),
            func.coalesce(func.sum(cast(renumbered, Integer)).over(**lineages, rows=(None, -1)), 0).label("epoch"),
            func.coalesce(func.lag(passes).over(**lineages, rows=(None, -1)), own_bound).label("passed"),
        )
        .join(written, written.c.id == lineage.c.id, full=True)
        .subquery("staged")
    )
    bound = func.min(staged.c.passed).over(partition_by=(staged.c.place, staged.c.epoch), order_by=staged.c.depth)
    return select(*(column for column in staged.c if column.key != "passed"), bound.label("bound")).cte()


def select_lineage_state(contexts: Sequence[str]) -> Select[*tuple[Any, ...]]:
    """Of the contexts that exist: context_id, deleted_at, and the lineage as an array of ids if it ends in a cycle."""
    lineage = lineage_of(asked_of(literal(text_of(map(canonical_id, contexts))), None, include_deleted=True))
    passed = func.array_agg(aggregate_order_by(cast(lineage.c.id, Text), lineage.c.depth), type_=ARRAY(Text))
    return (
        select(
            lineage.c.asked.label("context_id"),
            Context.deleted_at,
            case((func.bool_or(lineage.c.cyclic), passed)).label("lineage"),
        )
        .join(Context, Context.id == lineage.c.asked)
        .group_by(lineage.c.asked, Context.deleted_at)
    )


def select_lineages(contexts: Sequence[str]) -> Select[*tuple[Any, ...]]:
    """Each context and what it inherits from, nearest first: context_id, ancestor_id; itself is its first ancestor."""
    lineage = lineage_of(asked_of(literal(text_of(map(canonical_id, contexts))), None, include_deleted=True))
    columns = (lineage.c.asked.label("context_id"), lineage.c.id.label("ancestor_id"))
    return select(*columns).order_by(lineage.c.place, lineage.c.depth)


def select_renumbered(context_id: str) -> Select[*tuple[Any, ...]]:
    """The id again if that context is a renumbered fork, else no row."""
    lineage = lineage_of(asked_of(literal(text_of([context_id])), None, include_deleted=True))
    written = written_of(lineage)
    return select(written.c.id).where(written.c.id == context_id, written.c.renumbered)
