"""Neighbors by cosine, beside the same statement by plain psycopg and beside other libraries on the same rows.

All have the same index (HNSW, m 16, ef_construction 64) and ef_search. Plain psycopg gives tuples over a connection
that stays open; as on contextkit's, nothing is prepared. Recall is against all distances, by NumPy.
"""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import psycopg
from numpy.typing import NDArray
from sqlalchemy import make_url

from contextkit import create_index, embedding_matrix, messages_df, neighbors_df
from contextkit.answers import Mode
from contextkit.queries import set_exact, set_search
from tests.benchmarks.ground import Database, Ground
from tests.benchmarks.loads import COLUMNS
from tests.benchmarks.measuring import Measure, Timed, compared, each, in_turns, shared, timed
from tests.benchmarks.peers import Peer, opened_peers
from tests.benchmarks.plain import opened, sent

MESSAGES = 30_000
"""Three indexes are built; of 100,000 that alone would take a third of the time of all."""
QUERIES = 1_000
KS = (10, 100)
SINGLES: dict[Mode, range] = {"exact": range(7), "index": range(50)}
"""Which queries are asked one by one."""
PLAIN, SHORTEST = "plain psycopg, the same statement", "plain psycopg, the shortest statement"
Search = Callable[[int], Timed]
"""Ids found for a query by its number, in the time without that to take them out of what was given."""


@dataclass(frozen=True)
class Stage:
    """What is searched, with what, and what is truly nearest: ids per query, in order."""

    database: Database
    queries: NDArray[np.float32]
    truth: list[list[str]]
    peers: list[Peer]

    def recall(self, search: Search, rows: Sequence[int], k: int) -> float:
        shares = []
        for row in rows:
            found = map(str, search(row).value)
            shares.append(len(set(found) & set(self.truth[row][:k])) / k)
        return statistics.mean(shares)


def measure(ground: Ground) -> Iterator[Measure]:
    database = ground.sample(MESSAGES)
    queries, truth = _questions(database)
    with opened_peers(database.url, queries, ground.folder) as peers:
        stage = Stage(database, queries, truth, peers)
        _prepare(stage)
        for k in KS:
            yield from _singles(stage, "exact", k)
        create_index(database.engine, progress=False)
        for peer in peers:
            peer.ask("index")
        for k in KS:
            yield from _singles(stage, "index", k)
        yield from _batch(stage, KS[0])


def _questions(database: Database) -> tuple[NDArray[np.float32], list[list[str]]]:
    """Stored vectors, a little off, so that none is its own neighbor at distance 0; and their true neighbors."""
    frame = messages_df(database.engine, embeddings=True)
    stored = embedding_matrix(frame)
    queries = stored[:: len(stored) // QUERIES][:QUERIES] * np.float32(0.99) + np.float32(0.0002)
    judged = queries[: max(len(rows) for rows in SINGLES.values())]
    nearness = judged @ (stored / np.linalg.norm(stored, axis=1, keepdims=True)).T
    places = np.argsort(-nearness, axis=1)[:, : max(KS)]
    return queries, frame["message_id"].to_numpy()[places].tolist()


def _prepare(stage: Stage) -> None:
    for peer in stage.peers:
        peer.ask("fill")
    with psycopg.connect(stage.database.url, autocommit=True) as connection:
        # For every builder of an index; contextkit asks for as much by itself.
        name = make_url(stage.database.url).database
        connection.execute(f"alter database {name} set maintenance_work_mem = '2GB'")
        connection.execute("vacuum analyze")


def _singles(stage: Stage, mode: Mode, k: int) -> list[Measure]:
    rows = SINGLES[mode]
    with opened(stage.database.url) as connection:
        searches = _searches(stage, connection, mode, k)
        # The recall of all as part of their names.
        labels = {name: f"{name} (recall {stage.recall(search, rows, k):.3f})" for name, search in searches.items()}
        # In a round each has another query: the second to ask the same would find what it needs in the server's memory.
        apart = len(rows) // len(searches)
        seconds = in_turns(
            {labels[name]: each(search, rows, place * apart) for place, (name, search) in enumerate(searches.items())}
        )
    targets: dict[str, float | None] = {labels[PLAIN]: 1.5, labels[SHORTEST]: None}
    targets |= {labels[peer.label]: 1 for peer in stage.peers}
    ours = labels["neighbors_df"]
    case = ours.replace(" (", f", {mode}, k {k} of {MESSAGES:,} (")
    return compared(case, seconds, targets, ours)


def _searches(stage: Stage, connection: psycopg.Connection, mode: Mode, k: int) -> dict[str, Search]:
    def ours(row: int) -> Timed:
        query = stage.queries[row]
        return timed(
            lambda: neighbors_df(stage.database.engine, query, k=k, mode=mode),
            lambda frame: frame["message_id"].tolist(),
        )

    def plain(row: int) -> Timed:
        return timed(lambda: connection.execute(*statements[row]).fetchall(), lambda rows: [row[place] for row in rows])

    def shortest(row: int) -> Timed:
        query = stage.queries[row]
        return timed(
            lambda: connection.execute(sql, [str(query.tolist())]).fetchall(), lambda rows: [row[1] for row in rows]
        )

    sql = f"select embedding <=> %s::vector, {COLUMNS} from messages order by 1 limit {k}"
    ef_search = neighbors_df(stage.database.engine, stage.queries[0], k=k, mode=mode).attrs["ef_search"] or 40
    connection.execute(str(set_exact() if mode == "exact" else set_search(ef_search)))
    statements = [sent(stage.database.engine, partial(ours, row))[-1] for row in SINGLES[mode]]
    columns = connection.execute(*statements[0]).description or ()
    place = [column.name for column in columns].index("message_id")
    return {
        "neighbors_df": ours,
        PLAIN: plain,
        SHORTEST: shortest,
        **{peer.label: partial(peer.search, k=k, ef_search=ef_search) for peer in stage.peers},
    }


def _batch(stage: Stage, k: int) -> list[Measure]:
    rows = SINGLES["index"]
    together, singly = f"neighbors_df of {QUERIES:,} at once", f"neighbors_df, {len(rows)} in a row"
    with opened(stage.database.url) as connection:
        searches = _searches(stage, connection, "index", k)
        searches = {singly: searches.pop("neighbors_df")} | searches
        whole = partial(neighbors_df, stage.database.engine, stage.queries, k=k, mode="index")
        calls = {name: shared(len(rows), partial(_loop, search, rows)) for name, search in searches.items()}
        seconds = in_turns({together: shared(QUERIES, whole)} | calls)
    targets: dict[str, float | None] = {singly: None, PLAIN: None, SHORTEST: None}
    targets |= {peer.label: 1 for peer in stage.peers}
    measures = compared(f"{together}, index, k {k}, per query", seconds, targets, together)
    # Beside the single searches above, each of which comes after all of another library's.
    targets = {PLAIN: 1.5} | {peer.label: 1 for peer in stage.peers}
    return compared(f"{singly}, index, k {k}, per query", seconds, targets, singly) + measures


def _loop(search: Search, rows: Sequence[int]) -> Timed:
    return Timed(sum(search(row).seconds for row in rows))
