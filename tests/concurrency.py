"""Processes that write to the same contexts at once, and what has to hold of the database afterwards."""

import multiprocessing
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine, text

from contextkit import (
    Message,
    add_context,
    append_messages,
    connect,
    delete_context,
    delete_messages,
    embed_missing,
    fork_context,
    read_df,
    restore_context,
    restore_messages,
    select_messages,
    upgrade,
)
from contextkit.errors import NotFoundError
from contextkit.queries import select_contexts

PROCESSES = 16
CONTEXTS = 4
"""Fewer than processes, so that they meet."""

# Stricter than check_df: these processes leave no gaps.
INVARIANTS = {
    "counters that are not those of the rows": """
        select c.id from contexts c left join messages m on m.context_id = c.id and m.deleted_at is null
        group by c.id having c.message_count <> count(m.id) or c.total_tokens <> coalesce(sum(m.token_count), 0)
    """,
    "versions with gaps, doubles, or beyond latest_version": """
        select c.id from contexts c left join messages m on m.context_id = c.id group by c.id
        having count(m.id) <> c.latest_version - coalesce(c.fork_version, 0)
            or count(distinct m.version) <> count(m.id)
            or coalesce(min(m.version), c.latest_version + 1) <> coalesce(c.fork_version, 0) + 1
            or coalesce(max(m.version), c.latest_version) <> c.latest_version
    """,
    "forks of what their parents do not have": """
        select c.id from contexts c left join contexts p on p.id = c.parent_id
        where (c.parent_id is null) <> (c.fork_version is null) or c.fork_version > p.latest_version
    """,
    "contexts that changed later than they say": """
        select c.id from contexts c join messages m on m.context_id = c.id
        where c.updated_at < greatest(m.created_at, m.deleted_at)
    """,
}


def embedder(texts: list[str]) -> NDArray[np.float32]:
    """Vectors that differ by text, at once."""
    return np.array([np.random.default_rng([*text.encode()]).normal(size=1536) for text in texts], np.float32)


@dataclass
class Told:
    """What processes did: calls and errors by kind, and rows that they were told are written."""

    calls: Counter[str]
    errors: Counter[str]
    rows: Counter[str]

    def __add__(self, other: "Told") -> "Told":
        """Sum up."""
        return Told(self.calls + other.calls, self.errors + other.errors, self.rows + other.rows)


def at_once(url: str, *, calls: int | None = None, seconds: float | None = None) -> Told:
    """What many processes told that call for so long, or so often each, beginning with an upgrade."""
    spawning = multiprocessing.get_context("forkserver")
    spawning.set_forkserver_preload([__name__, "tqdm.auto"])  # imported once, not by each
    with spawning.Pool(PROCESSES) as processes:
        arguments = [(url, seed, calls, seconds) for seed in range(PROCESSES)]
        told = processes.starmap(work, arguments, chunksize=1)
    return sum(told, Told(Counter(), Counter(), Counter()))


def work(url: str, seed: int, calls: int | None, seconds: float | None) -> Told:
    """What one process told."""
    engine, told = connect(url, write=True), Told(Counter(), Counter(), Counter())
    writer = Writer(engine, random.Random(seed), told)
    writer.call("upgrade")
    for _ in turns(calls, seconds):
        writer.call(writer.chance.choices(*WEIGHTS)[0])
    engine.dispose()
    return told


def turns(calls: int | None, seconds: float | None) -> Iterator[int]:
    end = time.monotonic() + seconds if seconds is not None else None
    for turn in count():
        if turn == calls or (end is not None and time.monotonic() > end):
            return
        yield turn


@dataclass
class Writer:
    """Calls the functions that write, on whatever is there."""

    engine: Engine
    chance: random.Random
    told: Told

    def call(self, kind: str) -> None:
        self.told.calls[kind] += 1
        try:
            CALLS[kind](self)
        except NotFoundError:
            self.told.errors["NotFoundError"] += 1  # deleted meanwhile
        except Exception as error:  # noqa: BLE001 - the test lists what should not be
            self.told.errors[f"{kind}: {type(error).__name__}: {error}"] += 1

    def upgrade(self) -> None:
        upgrade(self.engine)

    def add(self) -> None:
        add_context(self.engine)
        self.told.rows["contexts"] += 1

    def append(self) -> None:
        rows: list[dict[str, Any]] = [
            {"role": "user", "content": f"{self.chance.random()}", "token_count": self.chance.choice([None, 1, 5])}
            for _ in range(self.chance.randint(1, 3))
        ]
        self.told.rows["messages"] += len(append_messages(self.engine, self.context(), rows))

    def fork(self) -> None:
        context = self.context()
        fork_context(self.engine, context, self.chance.choice([None, 0]))
        self.told.rows["contexts"] += 1

    def delete(self) -> None:
        delete_context(self.engine, self.context())

    def restore(self) -> None:
        restore_context(self.engine, self.context())

    def delete_messages(self) -> None:
        self.told.rows["deletions"] += delete_messages(self.engine, self.messages())

    def restore_messages(self) -> None:
        self.told.rows["restorations"] += restore_messages(self.engine, self.messages())

    def embed(self) -> None:
        frame = embed_missing(self.engine, embedder, batch_size=self.chance.randint(1, 20), progress=False)
        self.told.rows["embeddings"] += len(frame)

    def context(self) -> str:
        """One of the oldest contexts, which all processes choose from; or a later one."""
        most = self.chance.choice([CONTEXTS, CONTEXTS, 50])
        ids = read_df(self.engine, select_contexts(include_deleted=True).limit(most))["context_id"].tolist()
        if not ids:
            self.add()
            return self.context()
        return str(self.chance.choice(ids))

    def messages(self) -> list[str]:
        """Some messages, of many contexts and in any order."""
        statement = select_messages(Message.version <= 20, include_deleted=True).limit(300)
        ids: list[str] = read_df(self.engine, statement)["message_id"].tolist()
        return self.chance.sample(ids, min(len(ids), 8))


CALLS: dict[str, Callable[[Writer], None]] = {
    "add": Writer.add,
    "append": Writer.append,
    "delete": Writer.delete,
    "delete_messages": Writer.delete_messages,
    "embed": Writer.embed,
    "fork": Writer.fork,
    "restore": Writer.restore,
    "restore_messages": Writer.restore_messages,
    "upgrade": Writer.upgrade,
}
WEIGHTS = (
    ["append", "delete", "restore", "delete_messages", "restore_messages", "embed", "fork", "upgrade"],
    [8, 1, 3, 3, 3, 2, 3, 1],
)


def findings(engine: Engine) -> dict[str, list[str]]:
    """What does not hold, by name."""
    with engine.connect() as connection:
        found = {name: [str(id_) for id_ in connection.scalars(text(sql))] for name, sql in INVARIANTS.items()}
    return {name: ids for name, ids in found.items() if ids}
