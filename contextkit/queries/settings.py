"""Settings of a transaction that searches, and what tells that its database is still the same."""

from collections.abc import Mapping
from functools import cache

from sqlalchemy import TextClause, text

STATE = """
    concat_ws(
        ' ',
        pg_stat_get_analyze_count(cast('contexts' as regclass)),
        pg_stat_get_autoanalyze_count(cast('contexts' as regclass)),
        pg_stat_get_analyze_count(cast('messages' as regclass)),
        pg_stat_get_autoanalyze_count(cast('messages' as regclass)),
        array(
            select row(indexrelid, cast(indexrelid as regclass), indisvalid)
            from pg_index
            where indrelid = cast('messages' as regclass)
        )
    )
"""


@cache
def set_search(ef_search: int) -> TextClause:
    """Settings, for this transaction only, with which an index answers and loses no rows; gives `state`.

    State is a text that is another once indexes of messages come, go or are renamed, or the server has analyzed one
    of the tables anew, which it does by itself where a tenth has changed.
    """
    settings = {
        # Of an index scan the planner leaves out that every other plan reads the vectors, which are out of line.
        "enable_sort": "off",
        "enable_indexscan": "on",
        "enable_nestloop": "on",
        "jit": "off",
        "ivfflat.probes": 32_768,  # dear, so that HNSW is taken where both are there
        "hnsw.ef_search": ef_search,
        "hnsw.iterative_scan": "relaxed_order",
        "hnsw.max_scan_tuples": 2**31 - 1,
        # 1 GB, about ten million visited messages; a scan that stops there is completed exactly.
        "work_mem": "64MB",
        "hnsw.scan_mem_multiplier": 16,
    }
    return text(f"select {STATE} as state, {_set(settings)}")


@cache
def set_exact() -> TextClause:
    """Settings, for this transaction only, with which comparing with many messages is shared by parallel workers.

    The planner takes a distance for as cheap as a sum and thinks that workers do not pay. How many there may be
    stays with the server, and so does from which size of the table.
    """
    return text(f"select {_set({'parallel_setup_cost': 0, 'parallel_tuple_cost': 0})}")


def _set(settings: Mapping[str, object]) -> str:
    # Spelled out, for each parameter would be bound and adapted for itself.
    return ", ".join(f"set_config('{name}', '{value}', true)" for name, value in settings.items())
