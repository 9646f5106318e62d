"""HNSW indexes over the embeddings: what is there, what is being built, and the SQL that builds and drops."""

from functools import cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnElement,
    Integer,
    Select,
    String,
    TextClause,
    column,
    literal_column,
    select,
    text,
)
from sqlalchemy.sql.selectable import TextualSelect

from contextkit.models import EMBEDDING_DIMENSIONS
from contextkit.queries.neighbors import Distance

OPCLASSES: dict[Distance, str] = {"cosine": "cosine_ops", "l2": "l2_ops", "inner": "ip_ops", "l1": "l1_ops"}
HALF = f"(embedding::halfvec({EMBEDDING_DIMENSIONS}))"

TRY_LOCK = text(
    "select pg_try_advisory_xact_lock(7235094619) and not exists ("
    "select from pg_stat_progress_create_index where relid = to_regclass('messages') and datname = current_database())"
)
"""One lock for all indexes: two builds on a table would wait for each other for ever, whichever they are.

A build whose client was killed has lost its lock, and goes on nevertheless.
"""

KEEP_TRANSACTION = text(
    "select set_config(name, '0', true) from pg_settings "
    "where name in ('idle_in_transaction_session_timeout', 'transaction_timeout')"
)
"""Lets a transaction rest for as long as it likes; the second came with PostgreSQL 17."""


def select_indexes() -> TextualSelect:
    """name, distance, halfvec, m, ef_construction, size, valid, building; also those of other tools.

    Only of indexes that a search can use: HNSW, over the whole column, and over every row. `name` is quoted, and
    has a schema where it needs one; building is known of one's own role only, unless the role may see others.
    """
    return (
        text(
            r"""
            select cast(cast(c.oid as regclass) as text) as name,
                case split_part(o.opcname, '_', 2) when 'ip' then 'inner' else split_part(o.opcname, '_', 2) end
                    as distance,
                o.opcname like 'halfvec%' as halfvec,
                coalesce(cast(substring(cast(c.reloptions as text) from '\ym=(\d+)') as integer), 16) as m,
                coalesce(cast(substring(cast(c.reloptions as text) from 'ef_construction=(\d+)') as integer), 64)
                    as ef_construction,
                pg_relation_size(c.oid) as size,
                i.indisvalid as valid,
                exists (select from pg_stat_progress_create_index p where p.index_relid = c.oid) as building
            from pg_index i
            join pg_class c on c.oid = i.indexrelid
            join pg_am a on a.oid = c.relam and a.amname = 'hnsw'
            join pg_opclass o on o.oid = i.indclass[0]
            where i.indrelid = cast('messages' as regclass)
                and i.indpred is null
                and i.indnkeyatts = 1
                and (pg_get_indexdef(c.oid, 1, true), split_part(o.opcname, '_', 1))
                    in (('embedding', 'vector'), (:half, 'halfvec'))
            order by name
            """
        )
        .bindparams(half=HALF)
        .columns(
            column("name", String),
            column("distance", String),
            column("halfvec", Boolean),
            column("m", Integer),
            column("ef_construction", Integer),
            column("size", BigInteger),
            column("valid", Boolean),
            column("building", Boolean),
        )
    )


@cache
def select_usable(distance: Distance) -> Select[*tuple[Any, ...]]:
    """Rows of `select_indexes` that are valid for a distance, version of pgvector, and rivals of each.

    Rivals are bare names of other valid indexes that give the same order, so that the planner may take them.
    """
    index = select_indexes().subquery("usable")
    rivals: ColumnElement[Any] = literal_column(
        """
        array(
            select cast(c.relname as text)
            from pg_index own
            join pg_opclass p on p.oid = own.indclass[0]
            join pg_index i on i.indrelid = own.indrelid and i.indisvalid and i.indexrelid <> own.indexrelid
            join pg_class c on c.oid = i.indexrelid
            join pg_am a on a.oid = c.relam and a.amname in ('hnsw', 'ivfflat')
            join pg_opclass o on o.oid = i.indclass[0] and o.opcname = p.opcname
            where own.indexrelid = to_regclass(usable.name)
        )
        """
    )
    pgvector: ColumnElement[Any] = literal_column("(select extversion from pg_extension where extname = 'vector')")
    return (
        select(index, pgvector.label("pgvector"), rivals.label("rivals"))
        .where(index.c.valid, index.c.distance == distance)
        .order_by(index.c.name)
    )


def select_building() -> TextClause:
    """The phase of the index build on messages, if there is one, and how many rows it has taken in."""
    return text(
        "select phase, tuples_done from pg_stat_progress_create_index "
        "where relid = cast('messages' as regclass) and datname = current_database()"
    )


def select_ground(relation: str) -> TextClause:
    """What an index is built on: type of the column, version of pgvector, whether a relation's name is taken."""
    return text(
        "select format_type(atttypid, atttypmod) as type, "
        "(select extversion from pg_extension where extname = 'vector') as pgvector, "
        "to_regclass(:relation) is not null as taken "
        "from pg_attribute where attrelid = cast('messages' as regclass) and attname = 'embedding'"
    ).bindparams(relation=relation)


def select_means() -> TextClause:
    """Rows to index, and what the server gives a build: bytes of memory and of buffers, parallel workers."""
    return text(
        "select count(embedding) as rows, pg_size_bytes(current_setting('maintenance_work_mem')) as memory, "
        "pg_size_bytes(current_setting('shared_buffers')) as buffers, "
        "cast(current_setting('max_parallel_workers') as integer) as most_workers, "
        "cast(current_setting('max_parallel_maintenance_workers') as integer) as workers from messages"
    )


def index_name(distance: Distance, *, halfvec: bool) -> str:
    """Give the name that contextkit's own index has."""
    return f"contextkit_{distance}{'_halfvec' if halfvec else ''}_idx"


def create_sql(distance: Distance, *, halfvec: bool, m: int, ef_construction: int) -> str:
    """SQL that builds contextkit's own index without blocking writers."""
    key = f"{HALF} halfvec_{OPCLASSES[distance]}" if halfvec else f"embedding vector_{OPCLASSES[distance]}"
    return (
        f"create index concurrently {index_name(distance, halfvec=halfvec)} on messages "
        f"using hnsw ({key}) with (m = {m}, ef_construction = {ef_construction})"
    )


def drop_sql(name: str) -> str:
    """SQL that drops an index without blocking readers or writers; the name is quoted as `select_indexes` has it."""
    return f"drop index concurrently if exists {name}"
