"""Contexts, forks, messages and histories as DataFrames."""

import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pandas as pd
from sqlalchemy import Engine, Executable
from sqlalchemy.sql.expression import Select, SelectBase, TextClause

from contextkit.arrow import BULK_ROWS, fetch
from contextkit.connection import translated_errors
from contextkit.counts import positive
from contextkit.dtypes import to_frame
from contextkit.errors import LineageError, NotFoundError
from contextkit.models import canonical_ids
from contextkit.parallel import fetch_parallel
from contextkit.queries import (
    Condition,
    after_message,
    history_parameters,
    history_template,
    select_contexts,
    select_forks,
    select_lineage_state,
    select_message_partitions,
    select_messages,
)

BULK_HISTORIES = 20
"""From how many histories on a read goes in bulk; one is a few rows, or a few thousand."""


def read_df(engine: Engine, statement: Executable) -> pd.DataFrame:
    """Rows of any select, with contextkit's dtypes and errors.

    Args:
        engine: from `connect`, or any SQLAlchemy engine on PostgreSQL.
        statement: a SQLAlchemy select, such as one of the `select_*` builders with a limit, or `text`.

    Returns:
        One column per column selected. Text and UUIDs are `str`, whole numbers `Int64`, or `int64` where the
        name is one that the tables declare not null, numeric and floats `float64`, timestamptz
        `datetime64[us, UTC]`, embeddings `fixed_size_list<float32>`, json Python objects.

    Raises:
        ReadOnlyError: the statement writes, also where an engine from `connect` may.
        SchemaError: tables or columns are missing.
        DatabaseUnavailableError: nothing answers.

    >>> read_df(engine, select_messages(Message.role == "user").limit(2))[["version", "role", "token_count"]]
       version  role  token_count
    0        1  user           15
    1        3  user            4
    """
    if not isinstance(statement, SelectBase | TextClause):
        raise TypeError(
            f"a statement is a SQLAlchemy select or text, not {type(statement).__name__}; wrap SQL in text()"
        )
    if isinstance(statement, TextClause) and re.match(r"\s*copy\b", statement.text, re.IGNORECASE):
        raise ValueError("COPY gives no rows to a frame; select them")
    return to_frame(fetch(engine, statement))


def contexts_df(engine: Engine, *where: Condition, include_deleted: bool = False) -> pd.DataFrame:
    """One row per context, by creation.

    Args:
        engine: from `connect`.
        where: conditions on Context; those on Message ask for contexts with a message of their own that meets
            all of them.
        include_deleted: with deleted contexts.

    Returns:
        context_id, name, created_at, updated_at, message_count, total_tokens, latest_version, parent_id,
        fork_version, deleted_at.

    >>> contexts_df(engine, Context.name.startswith("regex"))[["message_count", "latest_version", "fork_version"]]
       message_count  latest_version  fork_version
    0              6               6          <NA>
    1              4               4             2
    2              4               4          <NA>
    """
    frame = to_frame(fetch(engine, select_contexts(*where, include_deleted=include_deleted)))
    return _noted(frame, "contexts_df", where=len(where), include_deleted=include_deleted)


def forks_df(engine: Engine, *where: Condition, include_deleted: bool = False) -> pd.DataFrame:
    """One row per context that is a fork or is forked, by creation.

    Args:
        engine: from `connect`.
        where: conditions as for `contexts_df`; they choose the rows, not what the rows inherit.
        include_deleted: with deleted contexts, and deleted messages in the figures.

    Returns:
        context_id, name, parent_id, fork_version, root_id, depth (0 at a root), written_by (root, reference,
        copy, renumbered), forks (children), and of the effective history length (messages), tokens, turns
        (user messages), first_at, last_at. In a cycle of parents root_id, depth and these are null.

    >>> forks_df(engine, Context.name.startswith("travel"))[["depth", "written_by", "forks", "length"]]
       depth written_by  forks  length
    0      0       root      2       9
    1      1       copy      0      11
    2      1  reference      0       2
    """
    frame = to_frame(fetch(engine, select_forks(*where, include_deleted=include_deleted), bulk=True))
    return _noted(frame, "forks_df", where=len(where), include_deleted=include_deleted)


def messages_df(
    engine: Engine,
    *where: Condition,
    embeddings: bool = False,
    include_deleted: bool = False,
    connections: int = 1,
) -> pd.DataFrame:
    """One row per stored message, by context and version; a fork's inherited ones stand under their owner.

    Args:
        engine: from `connect`.
        where: conditions on Message and Context.
        embeddings: with the column `embedding`.
        include_deleted: with deleted messages, and those of deleted contexts.
        connections: over how many to read at once, all on one snapshot; at most the engine's pool_size. The rows and
            their order are the same. It pays for many embeddings, where the server has a processor for each.

    Returns:
        message_id, context_id, version, created_at, role, content, tool_call_id, tool_name, token_count, model,
        deleted_at, and embedding on request.

    >>> messages_df(engine, Message.tool_name.startswith("container"))[["version", "role", "tool_name"]]
       version       role         tool_name
    0        2  assistant   container_stats
    1        3  assistant  container_events
    2        4       tool   container_stats
    3        5       tool  container_events
    """
    connections = positive("connections", connections)
    statement = select_messages(*where, embeddings=embeddings, include_deleted=include_deleted)
    if connections == 1:
        columns = fetch(engine, statement)
    else:
        partitions = select_message_partitions(connections, *where, include_deleted=include_deleted)
        columns = fetch_parallel(engine, statement, partitions, connections)
    return _noted(
        to_frame(columns),
        "messages_df",
        where=len(where),
        embeddings=embeddings,
        include_deleted=include_deleted,
        connections=connections,
    )


def messages_batches(
    engine: Engine,
    *where: Condition,
    batch_rows: int = 50_000,
    embeddings: bool = False,
    include_deleted: bool = False,
) -> Iterator[pd.DataFrame]:
    """Frames as of `messages_df`, at most `batch_rows` rows each, for what memory does not hold at once.

    Each batch is a short transaction of its own and goes on after the last one's key, so nothing stays open
    between them. Rows written meanwhile may or may not appear; none appears twice. Without any row there is one
    empty frame. A loop's variable holds a batch until the next one is there: two at once, or one if it is deleted at
    the end of the loop's body.
    """
    batch_rows = positive("batch_rows", batch_rows)
    statement = select_messages(*where, embeddings=embeddings, include_deleted=include_deleted)
    return _batches(engine, statement, batch_rows)


def _batches(engine: Engine, statement: Select[*tuple[Any, ...]], batch_rows: int) -> Iterator[pd.DataFrame]:
    following, first, full = statement, True, True
    while full:
        # What follows a whole batch is expected to be one; the planner cannot tell within one long context.
        many = True if not first and batch_rows >= BULK_ROWS else None
        frame = to_frame(fetch(engine, following.limit(batch_rows), bulk=many))
        full = len(frame) == batch_rows
        if full:
            last = frame["context_id"].array[-1], int(frame["version"].array[-1])
            following = after_message(statement, *last)
        if first or len(frame):
            yield frame
        first = False
        del frame  # or it would stay beside the next one, even where its reader has let it go


def history_df(
    engine: Engine,
    contexts: object,
    *,
    at_version: int | None = None,
    as_of: datetime | None = None,
    embeddings: bool = False,
    include_deleted: bool = False,
) -> pd.DataFrame:
    """Effective histories: the messages that a model saw, inherited ones included, in order.

    Args:
        engine: from `connect`.
        contexts: one id, or an iterable or column of ids; each is taken once.
        at_version: the history up to that version of the context; past the end everything, 0 what a renumbered
            fork inherits and else nothing.
        as_of: the history as it stood at that instant, by the messages' created_at and deleted_at. A message
            that was restored looks as if it had never been deleted.
        embeddings: with the column `embedding`.
        include_deleted: with deleted messages, and deleted contexts.

    Returns:
        context_id (as asked), position (from 1), source_context_id (whose row it is), inherited, message_id,
        version, created_at, role, content, tool_call_id, tool_name, token_count, model, deleted_at, and
        embedding on request; by the order of `contexts`, then position. In a renumbered fork versions repeat,
        positions never do.

    Raises:
        NotFoundError: a context does not exist, or is deleted.
        LineageError: the parents of a context form a cycle.
        ValueError: `at_version` is negative, `as_of` has no time zone, or an id is no UUID.

    >>> fork = contexts_df(engine, Context.name.endswith("with named groups"))["context_id"]
    >>> history_df(engine, fork)[["position", "version", "role", "inherited"]].head(3)
       position  version       role  inherited
    0         1        1       user       True
    1         2        2  assistant       True
    2         3        1       user      False
    """
    ids = canonical_ids(contexts)
    frame = stored_histories(engine, ids, at_version, as_of, embeddings=embeddings, include_deleted=include_deleted)
    if int((frame["position"] == 1).sum()) < len(ids):
        present = set(frame["context_id"].unique())
        absent = [id_ for id_ in ids if id_ not in present]
        check_lineages(engine, absent, as_of, include_deleted=include_deleted)
    return _noted(
        frame,
        "history_df",
        contexts=len(ids),
        at_version=None if at_version is None else int(at_version),
        as_of=None if as_of is None else as_of.isoformat(),
        embeddings=embeddings,
        include_deleted=include_deleted,
    )


def stored_histories(
    engine: Engine,
    contexts: list[str],
    at_version: int | None = None,
    as_of: datetime | None = None,
    *,
    embeddings: bool = False,
    include_deleted: bool = False,
) -> pd.DataFrame:
    """Histories as of `history_df`; contexts that are not there, deleted or in a cycle just give no rows."""
    parameters = history_parameters(contexts, at_version, as_of)
    template = history_template(as_of is not None, embeddings, include_deleted)
    return to_frame(fetch(engine, template, parameters, bulk=embeddings or len(contexts) >= BULK_HISTORIES))


def check_lineages(engine: Engine, contexts: list[str], as_of: datetime | None, *, include_deleted: bool) -> None:
    """Raise for contexts without rows, unless their histories are just empty."""
    with translated_errors(), engine.connect() as connection:
        states = {row.context_id: row for row in connection.execute(select_lineage_state(contexts))}
    if unknown := [id_ for id_ in contexts if id_ not in states]:
        raise NotFoundError(f"no context has the id {_some(unknown)}")
    for id_, state in states.items():
        if state.lineage is not None:
            raise LineageError(
                f"the parents of context {id_} form a cycle: {_some(_first_turn(state.lineage), ' -> ')}; "
                "its owner has to set one parent_id to null"
            )
    gone = [id_ for id_, state in states.items() if _is_gone(state.deleted_at, as_of)]
    if gone and not include_deleted:
        raise NotFoundError(f"deleted: {_some(gone)}; to see it nevertheless pass include_deleted=True")


def _is_gone(deleted_at: datetime | None, as_of: datetime | None) -> bool:
    return deleted_at is not None and (as_of is None or deleted_at <= as_of)


def _first_turn(lineage: list[str]) -> list[str]:
    """The ids of a lineage in a cycle up to the first that is met again."""
    end = next(place for place, id_ in enumerate(lineage) if id_ in lineage[:place])
    return lineage[: end + 1]


def _some(ids: list[str], joint: str = ", ") -> str:
    return joint.join(ids[:5]) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")


def _noted(frame: pd.DataFrame, function: str, **asked: Any) -> pd.DataFrame:
    frame.attrs = {"function": function, "asked": asked}
    return frame
