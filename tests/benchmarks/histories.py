"""Histories, beside the same statement by plain psycopg, and beside reading the rows that they are made of.

Plain psycopg gives tuples over a connection that stays open; as on contextkit's, nothing is prepared.
"""

from collections.abc import Iterator

from contextkit import contexts_df, history_df, messages_df, read_df, select_messages
from contextkit.models import Message
from tests.benchmarks.ground import DEPTH, LENGTHS, Database, Ground
from tests.benchmarks.measuring import Measure, compared, in_turns
from tests.benchmarks.plain import opened, sent

PLAIN = "plain psycopg, the same statement"
TARGETS = dict(zip(LENGTHS, (2, 2, 1.5), strict=True))


def measure(ground: Ground) -> Iterator[Measure]:
    database, ids = ground.lengths
    for length, context in zip(LENGTHS, ids, strict=False):
        yield from _one(database, context, f"history_df, {length:,} messages", TARGETS[length])
    yield from _one(database, ids[-1], f"history_df, chain of {DEPTH} forks, {LENGTHS[-1]:,} messages", 1.5)
    yield from _chain(database, flat=ids[-2], tip=ids[-1])
    yield from _all(ground.sample(100_000))
    yield from _all(ground.forest(100_000))


def _one(database: Database, context: str, case: str, most: float) -> list[Measure]:
    sql, parameters = sent(database.engine, lambda: history_df(database.engine, context))[-1]
    with opened(database.url) as connection:
        seconds = in_turns(
            {
                "contextkit": lambda: history_df(database.engine, context),
                PLAIN: lambda: connection.execute(sql, parameters).fetchall(),
            }
        )
    return compared(case, seconds, {PLAIN: most})


def _chain(database: Database, flat: str, tip: str) -> list[Measure]:
    beside = "read_df of one context as long"
    statement = select_messages(Message.context_id == flat)
    seconds = in_turns(
        {
            "contextkit": lambda: history_df(database.engine, tip),
            beside: lambda: read_df(database.engine, statement),
        }
    )
    assert len(history_df(database.engine, tip)) == len(read_df(database.engine, statement)) == LENGTHS[-1]
    return compared(f"history_df, chain of {DEPTH} forks, {LENGTHS[-1]:,} messages", seconds, {beside: 3})


def _all(database: Database) -> list[Measure]:
    ids = contexts_df(database.engine)["context_id"]
    beside = "messages_df of the stored rows"
    seconds = in_turns(
        {
            "contextkit": lambda: history_df(database.engine, ids),
            beside: lambda: messages_df(database.engine),
        }
    )
    rows = len(history_df(database.engine, ids))
    stored = len(messages_df(database.engine))
    case = f"history_df of all {len(ids):,} contexts, {rows:,} messages out of {stored:,} stored"
    return compared(case, seconds, {beside: 5})
