"""What the widget reads: never more than a page, and never an embedding."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd
from sqlalchemy import Engine, Select

from contextkit.answers import FEW_ROWS, SCANS, SPARE, ef_search_for
from contextkit.arrow import columns_of, fetch
from contextkit.connection import translated_errors
from contextkit.dtypes import to_frame
from contextkit.errors import SchemaError
from contextkit.explore.finding import Search
from contextkit.frames import check_lineages
from contextkit.indexes import indexes_to_search
from contextkit.models import Context
from contextkit.queries import (
    neighbors_template,
    select_contexts,
    select_count,
    select_family,
    select_history,
    select_matching,
    select_neighbors,
    select_page,
    select_parting,
    set_search,
)

PAGE = 50
MOST_COUNTED = 100_000
NEIGHBORS = 10


@dataclass(frozen=True)
class Page:
    """Rows, and whether more follow them."""

    frame: pd.DataFrame
    more: bool


class Parting(NamedTuple):
    """How many messages two histories have, and how many both begin with."""

    left: int
    right: int
    shared: int


def read_contexts(engine: Engine, search: Search, after: tuple[object, str] | None = None) -> Page:
    """The contexts that a search finds, from its first or after one of them."""
    statement = select_page(
        *search.conditions(), order=search.order, after=after, include_deleted=search.include_deleted
    )
    return _page(engine, statement)


def count_contexts(engine: Engine, search: Search) -> int:
    """How many contexts a search finds; MOST_COUNTED + 1 for more."""
    statement = select_count(*search.conditions(), most=MOST_COUNTED + 1, include_deleted=search.include_deleted)
    with translated_errors(), engine.connect() as connection:
        return int(connection.execute(statement).scalar_one())


def read_named(engine: Engine, context_ids: tuple[str, ...]) -> pd.DataFrame:
    """The contexts of a few ids, deleted or not."""
    return _page(engine, select_contexts(Context.id.in_(context_ids), include_deleted=True)).frame


def read_history(
    engine: Engine, context_id: str, start: int = 0, *, most: int = PAGE, include_deleted: bool = False
) -> Page:
    """The effective history of a context from its message `start` on, counted from 0; no more than `most`.

    Raises:
        NotFoundError: the context is not there, or is deleted.
        LineageError: its parents form a cycle.
    """
    page = _page(engine, select_history([context_id], include_deleted=include_deleted).offset(start), most)
    if page.frame.empty:
        check_lineages(engine, [context_id], None, include_deleted=include_deleted)
    return page


def read_parting(engine: Engine, left: str, right: str) -> Parting:
    """How long two histories are, and how much of them is the same."""
    with translated_errors(), engine.connect() as connection:
        return Parting(*connection.execute(select_parting(left, right)).one())


def read_family(engine: Engine, context_id: str) -> Page:
    """The fork tree around a context, nearest relatives first; depth counts from the root.

    Raises:
        NotFoundError: the context is not there.
        LineageError: its parents form a cycle.
    """
    page = _page(engine, select_family(context_id))
    if page.frame.empty:
        check_lineages(engine, [context_id], None, include_deleted=True)
    return page


def read_neighbors(engine: Engine, message_id: str) -> pd.DataFrame:
    """The messages nearest to one, by cosine distance, with `mode` in attrs; its vector stays in the database."""
    with translated_errors(), engine.connect() as connection:
        few = connection.execute(select_matching(limit=FEW_ROWS + 1)).one().rows <= FEW_ROWS
        index = None if few else _index(connection)
        frame = pd.DataFrame() if index is None else _by_index(connection, index, message_id)
        if len(frame) < NEIGHBORS:  # an index may leave rows out
            index = None
            frame = to_frame(columns_of(connection, select_neighbors(None, k=NEIGHBORS, own_id=message_id)))
    frame.attrs = {"mode": "exact" if index is None else "index"}
    return frame[frame["distance"].notna()]


def _by_index(connection: Any, index: Any, message_id: str) -> pd.DataFrame:
    settings = connection.begin_nested()
    connection.execute(set_search(ef_search_for(NEIGHBORS)))
    template = neighbors_template(k=NEIGHBORS, scanned=SCANS[-1] * NEIGHBORS + SPARE, halfvec=index.halfvec)
    columns = columns_of(connection, template, {"vectors": None, "own_ids": [message_id]})
    settings.rollback()
    return to_frame(columns)


def _index(connection: Any) -> Any:
    try:
        return indexes_to_search(connection, "cosine")[0]
    except SchemaError:
        return None


def _page(engine: Engine, statement: Select[*tuple[Any, ...]], most: int = PAGE) -> Page:
    frame = to_frame(fetch(engine, statement.limit(most + 1), bulk=False))
    return Page(frame[:most], more=len(frame) > most)
