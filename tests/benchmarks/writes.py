"""Appends, beside a plain insert of the same rows and beside other libraries; no vector index is there.

contextkit also locks the context, counts its messages and tokens, and gives the rows back.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any
from uuid import UUID

import numpy as np
import psycopg
from numpy.typing import NDArray
from pgvector.psycopg import register_vector

from contextkit import add_context, append_messages
from tests.benchmarks.data import clustered
from tests.benchmarks.ground import Ground
from tests.benchmarks.measuring import Call, Measure, compared, in_turns
from tests.benchmarks.peers import opened_peers

COUNTS = (1, 1_000)
PLAIN = "plain psycopg, executemany of the same rows"


def measure(ground: Ground) -> Iterator[Measure]:
    database = ground.empty("writes")
    vectors = next(clustered(300))
    context, other = (add_context(database.engine) for _ in range(2))
    with (
        psycopg.connect(database.url) as connection,
        opened_peers(database.url, vectors, ground.folder) as peers,
    ):
        register_vector(connection)
        for count in COUNTS:
            messages = [
                {"role": "user", "content": f"message {number}", "embedding": vector}
                for number, vector in enumerate(vectors[:count])
            ]
            calls: dict[str, Call] = {
                "contextkit": partial(append_messages, database.engine, context, messages),
                PLAIN: partial(_insert, connection, UUID(other), messages),
            }
            calls |= {peer.label: partial(peer.append, count) for peer in peers}
            seconds = in_turns(calls)
            case = f"append_messages, {count:,} with embeddings"
            yield from compared(case, seconds, dict.fromkeys((PLAIN, *(peer.label for peer in peers))))


def _insert(connection: psycopg.Connection, context: UUID, messages: list[dict[str, Any]]) -> None:
    """Versions are given by what is there, so without a lock: one writer only."""
    last = connection.execute("select coalesce(max(version), 0) from messages where context_id = %s", [context])
    (first,) = last.fetchone() or (0,)
    rows: list[tuple[UUID, int, str, str, NDArray[np.float32]]] = [
        (context, first + number, message["role"], message["content"], message["embedding"])
        for number, message in enumerate(messages, start=1)
    ]
    with connection.cursor() as cursor:
        cursor.executemany(
            "insert into messages (context_id, version, role, content, embedding) values (%s, %s, %s, %s, %s)", rows
        )
    connection.commit()
