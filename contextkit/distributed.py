"""The loads as Dask DataFrames, for more than one machine holds: workers read ranges of contexts by themselves."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pandas as pd
from sqlalchemy import URL, Engine, Select, false, text

from contextkit.connection import Settings, engine_at, translated_errors, worker_settings
from contextkit.counts import positive
from contextkit.extras import needed
from contextkit.frames import check_lineages, messages_df, read_df, stored_histories
from contextkit.literals import literal_sql
from contextkit.models import Context, Message
from contextkit.partitions import partitions_of
from contextkit.queries import (
    Condition,
    select_contexts,
    select_history_partitions,
    select_message_partitions,
    select_messages,
)

if TYPE_CHECKING:
    import dask.dataframe as dd

LEAST_ID, MOST_ID = str(UUID(int=0)), str(UUID(int=2**128 - 1))


def messages_dask(
    engine: Engine, npartitions: int, *where: Condition, embeddings: bool = False, include_deleted: bool = False
) -> "dd.DataFrame":
    """The rows of `messages_df` as a Dask DataFrame, about equally many in a partition, every context whole in one.

    A partition is read when it is worked on, in a transaction of its own; rows written meanwhile may or may not be in
    it. Each process holds at most one connection, and none when it has been idle. The index `context` is the context's
    id again, with known divisions: to group by it, `loc` and merges on the index move no rows between workers. To
    group by `context_id` gives the same; Dask then moves rows for what is no sum, such as a median.

    Args:
        engine: from `connect`, on a database that the workers reach by the same URL. The embedded server is on this
            machine, and runs as long as this engine is in use.
        npartitions: at most so many; fewer where there are few contexts.
        where: conditions on Message and Context.
        embeddings: with the column `embedding`.
        include_deleted: with deleted messages, and those of deleted contexts.

    Raises:
        MissingExtraError: dask is not installed.
        ValueError: the engine is not from `connect` or has listeners or execution options of its user's, which do not
            travel to workers; or a condition has a value that SQL cannot spell.
    """
    counted = select_message_partitions(positive("npartitions", npartitions), *where, include_deleted=include_deleted)
    statement = select_messages(*where, embeddings=embeddings, include_deleted=include_deleted)
    meta = messages_df(engine, false(), embeddings=embeddings)
    return _frame("messages_dask", _messages, _parts(engine, counted, statement, Message.context_id), meta)


def histories_dask(
    engine: Engine, npartitions: int, *where: Condition, embeddings: bool = False, include_deleted: bool = False
) -> "dd.DataFrame":
    """The histories of all contexts, rows as of `history_df`, as a Dask DataFrame like that of `messages_dask`.

    Where the parents of a context form a cycle, its partition raises a LineageError.

    Args:
        engine: as for `messages_dask`.
        npartitions: at most so many.
        where: conditions that choose contexts, as for `contexts_df`.
        embeddings: with the column `embedding`.
        include_deleted: with deleted messages, and deleted contexts.

    Raises:
        MissingExtraError: dask is not installed.
        ValueError: the engine is not from `connect` or has listeners or execution options of its user's, which do not
            travel to workers; or a condition has a value that SQL cannot spell.
    """
    counted = select_history_partitions(positive("npartitions", npartitions), *where, include_deleted=include_deleted)
    statement = select_contexts(*where, include_deleted=include_deleted).order_by(None).order_by(Context.id)
    load = partial(stored_histories, embeddings=embeddings, include_deleted=include_deleted)
    return _frame(
        "histories_dask", partial(_histories, load), _parts(engine, counted, statement, Context.id), load(engine, [])
    )


@dataclass(frozen=True)
class _Part:
    """What one task reads. Its repr, which logs and dashboards show, has no password and no value of a condition."""

    url: URL  # masks its password by itself
    settings: Settings = field(repr=False)
    sql: str = field(repr=False)
    first_id: str
    call: str

    def __dask_tokenize__(self) -> tuple[str, str]:
        """Give the key's ground: nothing secret, and of each call its own, as rows may have changed."""
        return self.call, self.first_id

    def rows(self) -> pd.DataFrame:
        """Rows of its statement, over this process's connection."""
        return read_df(_engine(self.url, self.settings), text(self.sql.replace(":", r"\:")))


_reading = threading.Lock()  # a process's tasks take turns on its one connection

_engine = cache(engine_at)


def _parts(
    engine: Engine, counted: Select[*tuple[Any, ...]], statement: Select[*tuple[Any, ...]], ids: Any
) -> list[_Part]:
    settings, call = worker_settings(engine), uuid4().hex
    with translated_errors(), engine.connect() as connection:
        parts = []
        for partition in partitions_of(connection.execute(counted)):
            sql = literal_sql(connection, statement.where(*partition.holds(ids)))
            if sql is None:
                raise ValueError("a condition has a value of a type that SQL cannot spell; compare with another one")
            parts.append(_Part(engine.url, settings, sql, partition.first_id or LEAST_ID, call))
    return parts


def _messages(part: _Part) -> pd.DataFrame:
    with _reading:
        return _indexed(part.rows())


def _histories(load: Callable[[Engine, list[str]], pd.DataFrame], part: _Part) -> pd.DataFrame:
    with _reading:
        engine, ids = _engine(part.url, part.settings), part.rows()["context_id"].tolist()
        frame = load(engine, ids)
        if absent := sorted(set(ids).difference(frame["context_id"])):
            check_lineages(engine, absent, None, include_deleted=True)  # what was deleted meanwhile gives no rows
        return _indexed(frame)


def _indexed(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.set_index(frame["context_id"].rename("context"))


def _frame(label: str, load: Callable[[_Part], pd.DataFrame], parts: list[_Part], meta: pd.DataFrame) -> "dd.DataFrame":
    config, from_map = needed("dask", "dask").config, needed("dask.dataframe", "dask").from_map
    divisions = (*(part.first_id for part in parts), MOST_ID)
    with config.set({"dataframe.convert-string": False}):  # else vectors become texts
        frame: dd.DataFrame = from_map(load, parts, meta=_indexed(meta), divisions=divisions, label=label)
    return frame
