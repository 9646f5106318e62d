"""What is wrong with a database: statements that give kind, context_id, message_id and detail of each finding.

Each reads a table once and joins what it read by hash or merge, so that its time grows with the rows. Details are
names, ids and numbers; what a message says is in none. `select_unpaired` gives what `pairs` finds them in.
"""

from typing import Literal

from contextkit.queries.checks.contexts import select_bad_forks as select_bad_forks
from contextkit.queries.checks.contexts import select_cycles as select_cycles
from contextkit.queries.checks.contexts import select_false_counters as select_false_counters
from contextkit.queries.checks.indexes import select_bad_indexes as select_bad_indexes
from contextkit.queries.checks.messages import select_bad_embeddings as select_bad_embeddings
from contextkit.queries.checks.messages import select_unembedded as select_unembedded
from contextkit.queries.checks.messages import select_unidentified as select_unidentified
from contextkit.queries.checks.messages import select_unknown_roles as select_unknown_roles
from contextkit.queries.checks.tools import select_unpaired as select_unpaired

Severity = Literal["error", "warning", "note"]
SEVERITIES: dict[str, Severity] = {
    # A function raises, or leaves out rows that exist.
    "cycle": "error",
    "missing_context": "error",
    "missing_parent": "error",
    # Functions work, on what contradicts itself.
    "beyond_parent": "warning",
    "invalid_index": "warning",
    "latest_version": "warning",
    "message_count": "warning",
    "odd_embeddings": "warning",
    "orphan_fork": "warning",
    "repeated_index": "warning",
    "result_without_call": "warning",
    "schema": "warning",
    "total_tokens": "warning",
    "unknown_role": "warning",
    "version_below_1": "warning",
    "zero_embeddings": "warning",
    # Legal, and good to know.
    "call_without_result": "note",
    "null_embeddings": "note",
    "tool_without_id": "note",
    "version_gap": "note",
}
"""Every kind of finding, the gravest first."""

CHECKS = (
    select_false_counters,
    select_bad_forks,
    select_cycles,
    select_unidentified,
    select_unknown_roles,
    select_unembedded,
    select_bad_indexes,
)
"""The statements for any database, each of findings; `select_bad_embeddings` is for columns of the type vector."""
