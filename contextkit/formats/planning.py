"""Where each row of a tree goes: into the context of the row before it, or into a fork."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, cast

import psycopg
import pyarrow as pa
from psycopg import sql
from sqlalchemy import Connection, bindparam, func, insert, update

from contextkit.arrow import columns_of
from contextkit.formats.units import Tree, Unit, context_id
from contextkit.models import Context, Message
from contextkit.queries import lock_contexts, select_contexts, select_places, select_tips

CONTEXT_COLUMNS = (
    "id",
    "name",
    "created_at",
    "updated_at",
    "message_count",
    "total_tokens",
    "latest_version",
    "parent_id",
    "fork_version",
)
MESSAGE_COLUMNS = (
    "id",
    "context_id",
    "version",
    "created_at",
    "role",
    "content",
    "tool_call_id",
    "tool_name",
    "token_count",
    "model",
    "deleted_at",
)


@dataclass
class Run:
    """One import's transaction, and what it has done so far."""

    connection: Connection
    now: datetime
    made: int = 0
    """Contexts."""
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Of the import's frame, by context."""


@dataclass(slots=True)
class Place:
    """A context, as it is known while a batch is planned."""

    id: str
    name: str | None
    parent_id: str | None
    fork_version: int | None
    latest: int
    """Last version given."""
    tip: int | None
    """Version of its last own message; None where nothing can follow it in this batch."""
    created_at: datetime | None = None
    """Of a new one."""
    added: int = 0
    live: int = 0
    tokens: int = 0


class Plan:
    """Where each row of a batch goes."""

    def __init__(self, run: Run, stored: dict[str, tuple[str, int]]) -> None:
        """Take the stored messages of a batch, and learn of their contexts."""
        self.run = run
        self.at = stored
        contexts = Context.id.in_({context for context, _ in stored.values()})
        statement = select_contexts(contexts, include_deleted=True)
        self.places = {
            row.context_id: Place(row.context_id, row.name, row.parent_id, row.fork_version, row.latest_version, None)
            for row in (run.connection.execute(statement).all() if stored else ())
        }
        self.messages: list[tuple[Any, ...]] = []

    def lock(self, ids: set[str]) -> None:
        """Lock the stored contexts that new messages may follow in, and learn where they end."""
        if not ids:
            return
        for row in self.run.connection.execute(lock_contexts(sorted(ids))).all():
            self.places[row.id].latest = row.latest_version
        for context, tip in self.run.connection.execute(select_tips(sorted(ids))).all():
            place = self.places[context]
            place.tip, place.latest = tip, max(tip, place.latest)

    def add(self, tree: Tree) -> None:
        """Place the rows of a conversation.

        A new row goes on in its parent's context if the parent is the last own message there, else it forks.
        """
        start = tree.conversation.created_at
        # Later ones stand after those of an earlier import, whose times are near the conversation's.
        if start is None or any(unit.id in self.at for unit in tree.units):
            start = self.run.now
        root = self._root(tree)
        for unit in tree.units:
            if unit.id in self.at:
                self._report(self.places[self.at[unit.id][0]])
                continue
            parent, version = self.at[unit.parent] if unit.parent else (root, 0 if root else None)
            place = self.places[parent] if parent else None
            if place is None or place.tip != version:
                id_ = context_id(unit.id, unit.below)
                place = self._new(id_, tree.conversation.name, parent, version, start)
            if unit.parent is None:
                root = root or place.id
            self._append(place, unit)
            self._report(place)

    def _root(self, tree: Tree) -> str | None:
        stored = [self.at[unit.id][0] for unit in tree.units if unit.parent is None and unit.id in self.at]
        return next((id_ for id_ in stored if self.places[id_].parent_id is None), stored[0] if stored else None)

    def _new(self, id_: str, name: str | None, parent: str | None, version: int | None, start: datetime) -> Place:
        created_at = start + timedelta(microseconds=self.run.made)
        self.run.made += 1
        place = Place(id_, name, parent, version, version or 0, None, created_at)
        self.places[id_] = place
        return place

    def _append(self, place: Place, unit: Unit) -> None:
        place.latest = place.tip = place.latest + 1
        self.at[unit.id] = (place.id, place.latest)
        row, created_at = unit.row, unit.created_at or self.run.now
        # Formats that tell only that a message was deleted may give any early time.
        deleted_at = None if unit.deleted_at is None else max(unit.deleted_at, created_at)
        place.added += 1
        if deleted_at is None:
            place.live += 1
            place.tokens += row.token_count or 0
        self.messages.append(
            (
                unit.id,
                place.id,
                place.latest,
                created_at,
                row.role,
                row.content,
                row.tool_call_id,
                row.tool_name,
                row.token_count,
                row.model,
                deleted_at,
            )
        )

    def _report(self, place: Place) -> None:
        rows = self.run.rows
        if place.id not in rows:
            state = "unchanged" if place.created_at is None else "new"
            rows[place.id] = {
                "context_id": place.id,
                "name": place.name,
                "messages": 0,
                "parent_id": place.parent_id,
                "state": state,
            }

    def write(self) -> None:
        """Write new contexts, messages, and what changed of stored contexts."""
        now = self.run.now
        changed = [place for place in self.places.values() if place.added]
        contexts = [
            (
                place.id,
                place.name,
                place.created_at,
                max(now, place.created_at),
                place.live,
                place.tokens,
                place.latest,
                place.parent_id,
                place.fork_version,
            )
            for place in changed
            if place.created_at is not None
        ]
        _copy(self.run.connection, Context, CONTEXT_COLUMNS, contexts)
        _copy(self.run.connection, Message, MESSAGE_COLUMNS, self.messages)
        extended = [place for place in changed if place.created_at is None]
        for place in extended:
            row = self.run.rows[place.id]
            row["state"] = "extended" if row["state"] == "unchanged" else row["state"]
        if extended:
            self._count(extended)

    def _count(self, extended: list[Place]) -> None:
        statement = (
            update(Context)
            .where(Context.id == bindparam("context"))
            .values(
                message_count=Context.message_count + bindparam("live"),
                total_tokens=Context.total_tokens + bindparam("tokens"),
                latest_version=bindparam("latest"),
                updated_at=func.greatest(Context.updated_at, func.clock_timestamp()),
            )
        )
        changes = [
            {"context": place.id, "live": place.live, "tokens": place.tokens, "latest": place.latest}
            for place in extended
        ]
        self.run.connection.execute(statement, changes)


def stored_places(connection: Connection, ids: list[str]) -> dict[str, tuple[str, int]]:
    """Context and version of the messages that are there among these."""
    columns = columns_of(connection, select_places(ids))
    id_, context, version = (cast(pa.ChunkedArray, column.values).to_pylist() for column in columns)
    return dict(zip(id_, zip(context, version, strict=True), strict=True))


def _copy(
    connection: Connection,
    entity: type[Context] | type[Message],
    columns: tuple[str, ...],
    rows: list[tuple[Any, ...]],
) -> None:
    if not rows:
        return
    driver = connection.connection.driver_connection
    if not isinstance(driver, psycopg.Connection):  # of a foreign engine
        connection.execute(insert(entity), [dict(zip(columns, row, strict=True)) for row in rows])
        return
    names = sql.SQL(", ").join(map(sql.Identifier, columns))
    into = sql.SQL("copy {} ({}) from stdin").format(sql.Identifier(entity.__tablename__), names)
    with driver.cursor() as cursor, cursor.copy(into) as copy:
        for row in rows:
            copy.write_row(row)
