"""`check_df`: what is wrong with the stored data, as a frame."""

import pandas as pd
from sqlalchemy import Engine, Executable

from contextkit.arrow import fetch
from contextkit.connection import translated_errors
from contextkit.dtypes import to_frame
from contextkit.migrate import schema_status
from contextkit.pairs import unpaired
from contextkit.queries import CHECKS, SEVERITIES, select_bad_embeddings, select_ground, select_unpaired


def check_df(engine: Engine) -> pd.DataFrame:
    """One row per finding: what is wrong with contexts, messages, embeddings, indexes and tables, the gravest first.

    Reads only, each table a few times, and embeddings once. Every check sees one instant, so that others may write
    meanwhile. Deleted contexts are checked, too.

    The severity is one of three words. *error*: functions raise, or leave out rows that exist. *warning*: the data
    contradict themselves. *note*: legal, and good to know.

    One row per context, by its context_id:
        cycle (error): the parents form a cycle, or lead into one.
        missing_context (error): messages name a context that does not exist.
        missing_parent (error): a fork names a parent that does not exist.
        beyond_parent: fork_version is beyond the parent's history, so that the fork goes on inheriting.
        orphan_fork: only one of parent_id and fork_version is set, so that nothing is inherited.
        message_count, total_tokens: differs from what the live messages give.
        latest_version: below the largest version.
        version_below_1: versions are 1, 2, 3 …; functions count the rows of others differently.
        version_gap (note): versions of its own are missing.

    One row per live message, by both ids:
        result_without_call: a tool's result, and no call of its id before it in the history.
        call_without_result (note): a tool call, and in no history that holds it a result of its id after it.
            Deleted messages count as partners; forks may answer what they inherit.

    One row for all messages alike, with their number and the least message_id of them:
        unknown_role: a role besides user, assistant, system and tool.
        zero_embeddings: all numbers are 0, so that searches by cosine leave them out.
        odd_embeddings: of other dimensions than most; or not of length 1, within 1 %, where nine in ten are.
        null_embeddings (note): live messages without one; `embed_missing` fills them in.
        tool_without_id (note): calls and results without a tool_call_id, which nothing can pair.

    One row each, without ids:
        schema: a difference that `schema_status` lists, such as a missing index.
        invalid_index: an index on the two tables that was not built to the end.
        repeated_index: vector indexes of one distance, of which the planner may take any.

    Args:
        engine: from `connect`.

    Returns:
        kind, context_id, message_id (null where they do not apply), detail (never a word of a message), severity;
        warnings where nothing else is said above. By severity, kind and ids. No rows if nothing was found.

    Raises:
        SchemaError: a table or a column is missing.
    """
    statements: list[Executable] = [check() for check in CHECKS]
    if _has_vectors(engine):
        statements.append(select_bad_embeddings())
    parts = [to_frame(fetch(engine, statement, bulk=False)) for statement in statements]
    parts.append(unpaired(to_frame(fetch(engine, select_unpaired(), bulk=False))))
    parts.append(_differences(engine))
    frame = pd.concat(parts, ignore_index=True)
    frame["severity"] = frame["kind"].map(SEVERITIES).astype("str")
    gravity = frame["kind"].map({kind: place for place, kind in enumerate(SEVERITIES)})
    frame = frame.assign(gravity=gravity).sort_values(["gravity", "context_id", "message_id", "detail"])
    frame = frame.drop(columns="gravity").reset_index(drop=True)
    frame.attrs = {"function": "check_df", "asked": {}}
    return frame


def _has_vectors(engine: Engine) -> bool:
    """Tell whether the column holds vectors that functions of pgvector reach."""
    with translated_errors(), engine.connect() as connection:
        ground = connection.execute(select_ground("messages")).one_or_none()
    return ground is not None and ground.type.partition("(")[0] == "vector"


def _differences(engine: Engine) -> pd.DataFrame:
    status = schema_status(engine)
    details = list(status.differences)
    if status.state in ("behind", "unknown"):
        details.append(f"the revision is {status.revision}, contextkit's is {status['head']}")
    columns = {"kind": "schema", "context_id": None, "message_id": None, "detail": details}
    return pd.DataFrame(columns, index=range(len(details))).astype("str")
