"""Searches by an index: used whatever the planner thinks, complete under any condition, and saying what ran."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psycopg
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from sqlalchemy import Connection, Engine, create_engine, event, make_url, text

from contextkit import (
    Context,
    Message,
    SchemaError,
    add_context,
    append_messages,
    connect,
    create_index,
    drop_index,
    embedding_matrix,
    messages_df,
    neighbors_df,
)
from contextkit.answers import _states
from contextkit.arrow import Column
from tests.benchmarks.data import write_clusters
from tests.conftest import _fresh

ROWS = 2_000
KINDS = {"vector": False, "halfvec": True}
SHARES = {"all": 10_000, "50 %": 5_000, "5 %": 500, "2 %": 200, "0.5 %": 50, "none": 0}
SEARCHES = ("enable_sort", "work_mem", "hnsw.ef_search", "hnsw.iterative_scan", "hnsw.max_scan_tuples")
USUAL = (
    "select m.id, c.name from messages m join contexts c on c.id = m.context_id"
    " where m.deleted_at is null and c.deleted_at is null order by m.embedding <=> %s::vector limit 10"
)


@pytest.fixture(scope="module", params=KINDS)
def indexed(request: pytest.FixtureRequest, server_url: str, migrated: str) -> Iterator[Engine]:
    """A database of clusters with an index of one kind; 30 messages of it are not embedded."""
    for url in _fresh(server_url, migrated):
        write_clusters(url, contexts=ROWS // 50, messages=ROWS, clusters=20)
        engine = connect(url, write=True)
        with engine.begin() as connection:
            connection.execute(text("update messages set embedding = null where version = 1 and token_count < 7500"))
        create_index(engine, halfvec=KINDS[request.param], progress=False)
        yield engine
        engine.dispose()


@pytest.fixture(scope="module")
def queries(indexed: Engine) -> NDArray[np.float32]:
    frame = messages_df(indexed, Message.version == 7, embeddings=True)
    return embedding_matrix(frame)[:8] * np.float32(0.9) + np.float32(0.001)


def under(share: str) -> Any:
    return Message.token_count < SHARES[share]


@contextmanager
def plans(engine: Engine) -> Iterator[list[str]]:
    """How the server runs each search of an index, under the settings of its transaction."""
    seen: list[str] = []

    def explain(connection: Connection, _cursor: Any, sql: str, parameters: Any, *_: Any) -> None:
        if "AS scan" in sql:
            cursor = connection.connection.cursor()
            cursor.execute(f"explain {sql}", parameters)
            seen.append("\n".join(row[0] for row in cursor.fetchall()))

    event.listen(engine, "before_cursor_execute", explain)
    try:
        yield seen
    finally:
        event.remove(engine, "before_cursor_execute", explain)


def by_index(plan: str) -> bool:
    """Whether messages are read in the order of an index of vectors, and then only by their ids."""
    return plan.count("Index Scan using contextkit_cosine") == 1 and "Order By" in plan


def pure(frame: Any) -> Any:
    return frame[[name for name in ("query", "rank", "message_id", "distance") if name in frame]]


# The traps


def url_of(engine: Engine) -> str:
    return engine.url.set(drivername="postgresql").render_as_string(hide_password=False)


def test_a_condition_of_two_percent_gives_k_rows_where_plain_sql_loses_them(
    indexed: Engine, queries: NDArray[np.float32]
) -> None:
    with psycopg.connect(url_of(indexed)) as connection:
        connection.execute("set enable_sort = off")
        vector = str(queries[0].tolist())
        order = {"vector": "embedding <=> %s::vector", "halfvec": "embedding::halfvec(1536) <=> %s::halfvec(1536)"}
        kind = "halfvec" if "halfvec" in str(indexes(indexed)) else "vector"
        plain = f"select id from messages where token_count < 200 order by {order[kind]} limit 20"
        assert "Index Scan" in str(connection.execute(f"explain {plain}", [vector]).fetchall())
        assert len(connection.execute(plain, [vector]).fetchall()) < 5
    for mode in ("auto", "exact", "index"):
        found = neighbors_df(indexed, queries[0], under("2 %"), k=20, mode=mode)  # type: ignore[arg-type]
        assert (len(found), found.attrs["completed"]) == (20, 0)


def indexes(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        found = connection.execute(text("select indexname from pg_indexes where indexname like 'contextkit%idx'"))
        return list(found.scalars())


def usual_plan(connection: Any, query: NDArray[np.float32], *, ef_search: int) -> str:
    connection.execute(f"set hnsw.ef_search = {ef_search}")
    return str(connection.execute(f"explain {USUAL}", [str(query.tolist())]).fetchall())


def test_a_larger_ef_search_does_not_leave_the_index_where_plain_sql_does(server_url: str, migrated: str) -> None:
    for url in _fresh(server_url, migrated):
        write_clusters(url, contexts=40, messages=ROWS, clusters=20)
        engine = connect(url, write=True)
        create_index(engine, progress=False)
        query = embedding_matrix(messages_df(engine, Message.version == 7, embeddings=True).head(1))[0]
        with psycopg.connect(url) as connection:
            assert "contextkit_cosine_idx" in usual_plan(connection, query, ef_search=40)
            assert "contextkit_cosine_idx" not in usual_plan(connection, query, ef_search=400)
            connection.execute("set enable_seqscan = off")  # the usual advice
            assert "messages_deleted_at_idx" in usual_plan(connection, query, ef_search=1000)
        with plans(engine) as seen:
            for ef_search in (1, 10, 40, 100, 200, 400, 1000):
                assert len(neighbors_df(engine, query, mode="index", ef_search=ef_search)) == 10
        assert len(seen) >= 7
        assert all(map(by_index, seen))
        engine.dispose()


@pytest.mark.parametrize("turns", [(0,), pytest.param((1, 2), marks=pytest.mark.soak)])
@pytest.mark.parametrize("share", SHARES)
def test_an_index_is_used_whatever_the_condition_k_and_ef_search(
    indexed: Engine, queries: NDArray[np.float32], share: str, turns: tuple[int, ...]
) -> None:
    """Each pair of a k, an ef_search and a query; the other triples in the soak."""
    ids = messages_df(indexed, Message.version == 9)["message_id"][:3]
    asked = (queries[0], queries[:3], ids)
    with plans(indexed) as seen:
        for turn, (row, k), (column, ef_search) in product(turns, enumerate((1, 20, 300)), enumerate((None, 10, 1000))):
            query = asked[(turn + row + column) % 3]
            neighbors_df(indexed, query, under(share), k=k, mode="index", ef_search=ef_search)
    assert len(seen) >= 9 * len(turns)
    assert all(map(by_index, seen))


# How many, and which


@pytest.mark.parametrize("mode", ["auto", "exact", "index"])
@pytest.mark.parametrize("share", SHARES)
def test_always_as_many_rows_as_k_and_the_condition_allow(
    indexed: Engine, queries: NDArray[np.float32], mode: Any, share: str
) -> None:
    matching = len(messages_df(indexed, under(share), Message.embedding.is_not(None)))
    for k in (1, 10, 100, 5_000):
        expected = [min(k, matching)] * 2
        batch = neighbors_df(indexed, queries[:2], under(share), k=k, mode=mode)
        assert [(batch["query"] == row).sum() for row in (0, 1)] == expected
        assert [len(neighbors_df(indexed, query, under(share), k=k, mode=mode)) for query in queries[:2]] == expected
        exact = batch if mode == "exact" else neighbors_df(indexed, queries[:2], under(share), k=k, mode="exact")
        assert recall(batch, exact) >= 0.97
        assert batch["rank"].tolist() == exact["rank"].tolist()
        assert (batch.groupby("query")["distance"].is_monotonic_increasing).all()


def recall(found: Any, exact: Any) -> float:
    keys = ["query", "message_id"]
    return len(found[keys].merge(exact[keys])) / len(exact) if len(exact) else 1.0


def test_what_an_index_finds_is_measured_and_ordered_as_exactly(indexed: Engine, queries: NDArray[np.float32]) -> None:
    for query in queries:
        exact = pure(neighbors_df(indexed, query, k=ROWS, mode="exact")).set_index("message_id")["distance"]
        found = neighbors_df(indexed, query, k=50, mode="index")
        assert found["distance"].tolist() == exact[found["message_id"]].tolist()
        assert list(found.columns) == list(neighbors_df(indexed, query, k=1).columns)
        assert found.dtypes.tolist() == neighbors_df(indexed, query, k=1).dtypes.tolist()


def test_a_batch_by_an_index_is_one_statement_and_the_single_queries_one_after_the_other(
    indexed: Engine, queries: NDArray[np.float32]
) -> None:
    with plans(indexed) as seen:
        batch = neighbors_df(indexed, queries, under("50 %"), k=5, mode="index")
    assert len(seen) == 1
    for row, query in enumerate(queries):
        single = neighbors_df(indexed, query, under("50 %"), k=5, mode="index")
        together = batch[batch["query"] == row].drop(columns="query").reset_index(drop=True)
        assert together.to_dict("list") == single.to_dict("list")


def test_by_ids_an_index_leaves_the_asked_message_out(indexed: Engine) -> None:
    ids = messages_df(indexed, Message.version == 9)["message_id"][:4]
    found = neighbors_df(indexed, ids, k=7, mode="index")
    assert found["query_message_id"].tolist() == np.repeat(ids, 7).tolist()
    assert (found["query_message_id"] != found["message_id"]).all()
    exact = neighbors_df(indexed, ids, k=7, mode="exact")
    assert recall(found, exact) >= 0.97


def test_max_distance_cuts_what_an_index_finds(indexed: Engine, queries: NDArray[np.float32]) -> None:
    whole = neighbors_df(indexed, queries[0], k=20, mode="index")
    bound = float(whole["distance"][11])
    assert len(neighbors_df(indexed, queries[0], k=20, mode="index", max_distance=bound)) == 12


def test_no_queries_by_an_index_give_an_empty_frame_like_a_full_one(
    indexed: Engine, queries: NDArray[np.float32]
) -> None:
    full = neighbors_df(indexed, queries[:2], mode="index")
    for empty in (
        neighbors_df(indexed, np.zeros((0, 1536)), mode="index"),
        neighbors_df(indexed, queries[:2], under("none"), mode="index"),
    ):
        assert len(empty) == 0
        assert empty.dtypes.tolist() == full.dtypes.tolist()
        assert list(empty.columns) == list(full.columns)


# What ran


def test_attrs_say_what_ran(indexed: Engine, queries: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch) -> None:
    unembedded = len(messages_df(indexed, Message.embedding.is_(None)))
    assert unembedded > 10
    exact = neighbors_df(indexed, queries, k=3)
    asked = {"where": 0, "k": 3, "distance": "cosine", "mode": "auto", "ef_search": None}
    asked |= {"max_distance": None, "include_deleted": False}
    done = {"mode": "exact", "index": None, "ef_search": None, "completed": 0, "zero": 0}
    made = {"without_embedding": unembedded, "k": 3, "queries": 8, "rows": 24}
    assert exact.attrs == {"function": "neighbors_df", "asked": asked} | done | made
    name = indexes(indexed)[0]
    found = neighbors_df(indexed, queries, k=3, mode="index", ef_search=np.int64(50))
    done = {"mode": "index", "index": name, "ef_search": 50, "completed": 0, "zero": None}
    asked |= {"mode": "index", "ef_search": 50}
    assert found.attrs == {"function": "neighbors_df", "asked": asked} | done | made
    assert json.loads(json.dumps(found.attrs)) == found.attrs
    monkeypatch.setattr("contextkit.answers.FEW_ROWS", 1_000)
    many = neighbors_df(indexed, queries, k=3)
    assert (many.attrs["mode"], many.attrs["index"], many.attrs["without_embedding"]) == ("index", name, None)
    few = neighbors_df(indexed, queries, Message.token_count < 4_000, k=3)
    assert (few.attrs["mode"], few.attrs["index"]) == ("exact", None)
    assert few.attrs["without_embedding"] > 0
    whole = neighbors_df(indexed, queries, k=3, mode="exact")
    assert (whole.attrs["mode"], whole.attrs["without_embedding"]) == ("exact", unembedded)


def test_auto_without_an_index_compares_with_all_and_counts_them(
    indexed: Engine, queries: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("contextkit.answers.FEW_ROWS", 10)
    found = neighbors_df(indexed, queries[0], distance="l2", k=3)
    assert (found.attrs["mode"], found.attrs["index"]) == ("exact", None)
    assert found.attrs["without_embedding"] > 10


@pytest.mark.parametrize(("k", "ef_search"), [(1, 100), (30, 100), (31, 102), (480, 1000), (481, 1000), (5_000, 1000)])
def test_ef_search_is_what_k_needs(indexed: Engine, queries: NDArray[np.float32], k: int, ef_search: int) -> None:
    assert neighbors_df(indexed, queries[0], k=k, mode="index").attrs["ef_search"] == ef_search


def test_the_settings_end_with_the_transaction(indexed: Engine, queries: NDArray[np.float32]) -> None:
    def shown() -> list[Any]:
        with indexed.connect() as connection:
            connection.execute(text("select '[1]'::vector"))
            return [connection.execute(text(f"show {name}")).scalar_one() for name in SEARCHES]

    before = shown()
    neighbors_df(indexed, queries, k=3, mode="index", ef_search=77)
    assert shown() == before


def test_a_search_by_an_index_is_one_transaction(indexed: Engine, queries: NDArray[np.float32]) -> None:
    begun: list[Connection] = []

    def begin(connection: Connection) -> None:
        begun.append(connection)

    event.listen(indexed, "begin", begin)
    try:
        neighbors_df(indexed, queries, k=3, mode="index")
    finally:
        event.remove(indexed, "begin", begin)
    assert len(begun) == 1


def test_readers_and_plain_engines_in_autocommit_search_by_an_index(
    indexed: Engine, queries: NDArray[np.float32]
) -> None:
    reader = connect(url_of(indexed), statement_timeout=30)
    plain = create_engine(make_url(url_of(indexed)).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    expected = neighbors_df(indexed, queries, under("5 %"), k=20, mode="index")
    for engine in (reader, plain):
        with plans(engine) as seen:
            found = neighbors_df(engine, queries, under("5 %"), k=20, mode="index")
        assert found.to_dict("list") == expected.to_dict("list")
        assert all(map(by_index, seen))
        engine.dispose()


# What an index leaves open


@pytest.mark.parametrize(
    ("places", "following", "scanned", "most", "state"),
    [
        ([1, 2, 3], 9.0, 100, None, "settled"),
        ([1, 2, 75], 9.0, 100, None, "settled"),
        ([1, 2, 76], 9.0, 100, None, "unsettled"),  # a row of the answer among the last to come: more may follow
        ([1, 2, 3], 2.0, 100, None, "short"),  # the next is as near as the last of the answer
        ([1, 2, 76], 9.0, 101, None, "settled"),  # the index has nothing more
        ([1, 2], 9.0, 101, None, "short"),
        ([1, 2], 9.0, 101, 2, "settled"),  # as many as match
        ([1, 2, 3], 9.0, 101, 100, "settled"),
        ([1, 2, 3], 9.0, 101, 101, "short"),  # more match than the index has
        ([1, 2, 3], 9.0, 100, 101, "settled"),  # as many as it was asked for
        ([], 9.0, 101, None, "short"),
        ([], 9.0, 101, 0, "settled"),
    ],
)
def test_whether_an_index_has_answered(
    places: list[int], following: float, scanned: int, most: int | None, state: str
) -> None:
    assert _states(scanned_rows(places, following), [4], 3, scanned, most)[state] == [4]


@pytest.mark.parametrize(("most", "state"), [(100, "settled"), (101, "settled"), (102, "short")])
def test_a_querys_own_message_is_not_missed_in_what_an_index_gives(most: int, state: str) -> None:
    assert _states(scanned_rows([1, 2, 3], 9.0), [4], 3, 103, most, own=True)[state] == [4]


def scanned_rows(places: list[int], following: float) -> list[Column]:
    """What a scan gives of a query whose answer stands at these places of the 100 rows that the index gave."""
    rows = {
        "query": np.zeros(len(places), int),
        "place": places,
        "found": np.full(len(places), 100),
        "following": np.full(len(places), following),
        "distance": np.arange(len(places), dtype=float),
    }
    return [Column(name, pa.chunked_array([pa.array(values)])) for name, values in rows.items()]


@pytest.mark.parametrize("halfvec", KINDS.values(), ids=KINDS)
def test_equal_distances_are_ordered_by_id_in_every_mode(engine: Engine, halfvec: bool) -> None:
    random = np.random.default_rng(3)
    other = random.normal(size=(60, 1536)).astype(np.float32)
    same = random.normal(size=1536).astype(np.float32)
    vectors = [*other, *[same] * 400]
    context = add_context(engine)
    append_messages(engine, context, [{"role": "user", "content": "x", "embedding": row} for row in vectors])
    create_index(engine, halfvec=halfvec, progress=False)
    for k in (1, 5, 30, 399, 400, 401, 450):
        exact = neighbors_df(engine, same, k=k, mode="exact")
        found = neighbors_df(engine, same, k=k, mode="index")
        assert found["message_id"].tolist() == exact["message_id"].tolist()
        assert len(found) == k


@pytest.mark.parametrize("few", [5, 10_000])
def test_what_an_index_lacks_is_completed_exactly_and_told_of(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    monkeypatch.setattr("contextkit.answers.FEW_ROWS", few)
    vectors = np.random.default_rng(4).normal(size=(40, 1536)).astype(np.float32)
    rows = [{"role": "user", "content": "x", "embedding": row} for row in vectors]
    context = add_context(engine)
    append_messages(engine, context, rows[:10])
    create_index(engine, progress=False)
    kept_up = "update pg_index set indisready = {} where indexrelid = 'contextkit_cosine_idx'::regclass"
    for statement, written in ((kept_up.format(False), rows[10:]), (kept_up.format(True), [])):
        with engine.begin() as connection:
            connection.execute(text(statement))
        append_messages(engine, context, written)
    found = neighbors_df(engine, vectors[:2], k=30, mode="index")
    assert (found.attrs["mode"], found.attrs["completed"]) == ("index", 2)
    exact = neighbors_df(engine, vectors[:2], k=30, mode="exact")
    assert found["message_id"].tolist() == exact["message_id"].tolist()
    assert len(found) == 60
    # Where it is not known how many match, the ten that the index has are ten neighbors.
    found = neighbors_df(engine, vectors[0], k=10, mode="index")
    assert found.attrs["completed"] == (1 if few == 10_000 else 0)


def test_zero_vectors_are_left_out_under_cosine_and_counted(engine: Engine) -> None:
    random = np.random.default_rng(5)
    vectors = [*random.normal(size=(12, 1536)).astype(np.float32), *np.zeros((3, 1536), np.float32)]
    rows = [{"role": "user", "content": "x", "embedding": row} for row in vectors]
    append_messages(engine, add_context(engine, "embedded"), rows)
    append_messages(engine, add_context(engine), [{"role": "user", "content": "none"}] * 4)
    for distance, zero in (("cosine", 3), ("l2", 0)):
        create_index(engine, distance, progress=False)  # type: ignore[arg-type]
        for k in (5, 100):
            for query in (vectors[0], vectors[:2]):
                found = neighbors_df(engine, query, k=k, distance=distance)  # type: ignore[arg-type]
                assert (found.attrs["zero"], found.attrs["without_embedding"]) == (zero, 4)
                by_index = neighbors_df(engine, query, k=k, distance=distance, mode="index")  # type: ignore[arg-type]
                assert by_index["message_id"].tolist() == found["message_id"].tolist()
    assert neighbors_df(engine, vectors[0], Context.name == "none").attrs["zero"] == 0


# Refused


def test_without_an_index_the_mode_index_is_a_schema_error_that_says_what_to_run(engine: Engine) -> None:
    create_index(engine, "l2", progress=False)
    with pytest.raises(SchemaError, match=r"the distance cosine; create_index\(engine, 'cosine'\)"):
        neighbors_df(engine, np.ones(1536), mode="index")
    drop_index(engine, "l2")
    with pytest.raises(SchemaError, match="create_index"):
        neighbors_df(engine, np.ones(1536), distance="l2", mode="index")


def test_an_index_of_an_old_pgvector_is_not_searched(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    create_index(engine, progress=False)
    with engine.begin() as connection:
        connection.execute(text("update pg_extension set extversion = '0.7.4' where extname = 'vector'"))
    with pytest.raises(SchemaError, match=r"pgvector is 0\.7\.4; indexes need 0\.8"):
        neighbors_df(engine, np.ones(1536), mode="index")
    monkeypatch.setattr("contextkit.answers.FEW_ROWS", 0)
    append_messages(engine, add_context(engine), [{"role": "user", "content": "x", "embedding": np.ones(1536)}])
    assert neighbors_df(engine, np.ones(1536)).attrs["mode"] == "exact"


@pytest.mark.parametrize("ef_search", [0, 1001, True, 40.0, "40"])
def test_an_ef_search_out_of_range_is_refused(engine: Engine, ef_search: Any) -> None:
    with pytest.raises(ValueError, match="ef_search is a whole number from 1 to 1000"):
        neighbors_df(engine, np.ones(1536), ef_search=ef_search)


def test_an_ef_search_for_a_search_without_an_index_is_refused(engine: Engine) -> None:
    with pytest.raises(ValueError, match="ef_search is of an index"):
        neighbors_df(engine, np.ones(1536), mode="exact", ef_search=40)


@pytest.fixture
def small(engine: Engine, database_url: str) -> Engine:
    write_clusters(database_url, contexts=10, messages=500, clusters=5)
    return engine


@pytest.mark.parametrize("rival", ["ivfflat (embedding vector_cosine_ops)", "hnsw (embedding vector_cosine_ops)"])
def test_no_other_index_answers_in_the_name_of_one(small: Engine, rival: str, monkeypatch: pytest.MonkeyPatch) -> None:
    create_index(small)
    with small.begin() as connection:
        connection.execute(text(f"create index rival on messages using {rival}"))
        connection.execute(text("analyze messages"))
    monkeypatch.setattr("contextkit.answers.FEW_ROWS", 100)
    query = np.ones(1536, np.float32)
    with plans(small) as seen:
        found = neighbors_df(small, query, k=20)
    displaced = not by_index(seen[-1] if seen else "")
    assert found.attrs["index"] == (None if displaced else "contextkit_cosine_idx")
    pd.testing.assert_frame_equal(found, neighbors_df(small, query, k=20, mode="exact"))
    if displaced:
        with pytest.raises(SchemaError, match="the planner takes the index rival where contextkit_cosine_idx is meant"):
            neighbors_df(small, query, mode="index")
    ids = found["message_id"][:2]
    pd.testing.assert_frame_equal(neighbors_df(small, ids), neighbors_df(small, ids, mode="exact"))


def test_a_query_that_halfvec_cannot_hold_is_answered_exactly(small: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("contextkit.answers.FEW_ROWS", 100)
    create_index(small, halfvec=True)
    query = 1e8 * np.ones(1536, np.float32)
    found = neighbors_df(small, query, k=3)
    assert (len(found), found.attrs["mode"]) == (3, "exact")
    with pytest.raises(SchemaError, match="cannot compare"):
        neighbors_df(small, query, k=3, mode="index")


@pytest.mark.parametrize("k", [2**40, 2**62])
def test_all_can_be_asked_for(small: Engine, k: int) -> None:
    create_index(small)
    query = np.ones(1536, np.float32)
    assert len(neighbors_df(small, query, k=k, mode="index")) == len(neighbors_df(small, query, k=k, mode="exact"))


@pytest.mark.parametrize("distance", ["inner", "l1"])
def test_equal_distances_across_the_last_rank_are_the_same_in_every_mode(small: Engine, distance: Any) -> None:
    frame = messages_df(small, embeddings=True)
    with small.begin() as connection:
        connection.execute(
            text("update messages set embedding = (select embedding from messages where id = :id) where version < 30"),
            {"id": frame["message_id"][0]},
        )
    create_index(small, distance)
    found, exact = (
        neighbors_df(small, frame["message_id"][0], k=50, distance=distance, mode=mode) for mode in ("index", "exact")
    )
    assert found["message_id"].tolist() == exact["message_id"].tolist()
    assert found.attrs["completed"] == 1


# What a search remembers


@contextmanager
def statements(engine: Engine) -> Iterator[list[str]]:
    sent: list[str] = []

    def note(_connection: Any, _cursor: Any, sql: str, *_: Any) -> None:
        sent.append(sql)

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(engine, "before_cursor_execute", note)


@contextmanager
def messages_of(engine: Engine, log: Path) -> Iterator[None]:
    """Log what goes over the one connection of an engine: a line per message, F to the server, B back."""
    with engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
    with log.open("w") as file:
        driver.pgconn.trace(file.fileno())
        try:
            yield
        finally:
            driver.pgconn.untrace()


def trips(log: Path) -> int:
    directions = re.findall(r"^\S+ \S+\t([FB])\t", log.read_text(), re.MULTILINE)
    return sum(one == "F" and before == "B" for before, one in pairwise(["B", *directions]))


@pytest.fixture
def many(small: Engine, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """An engine with an index that has answered once, among very many messages."""
    monkeypatch.setattr("contextkit.answers.FEW_ROWS", 100)
    create_index(small, progress=False)
    assert neighbors_df(small, np.ones(1536), k=3).attrs["index"] == "contextkit_cosine_idx"
    return small


def test_a_search_that_knows_its_index_is_one_round_trip_by_a_vector(
    many: Engine, reader: Engine, tmp_path: Path
) -> None:
    first = messages_df(many)["message_id"][0]
    query = np.random.default_rng(1).normal(size=(2, 1536))
    # Of many the transaction ends later; by id it begins earlier, to read the vector.
    for asked, count in ((query[0], 1), (query, 2), (first, 4)):
        for mode in ("auto", "index"):
            with messages_of(many, tmp_path / "log"):
                found = neighbors_df(many, asked, k=3, mode=mode)  # type: ignore[arg-type]
            assert trips(tmp_path / "log") == count
            assert (found.attrs["mode"], found.attrs["without_embedding"]) == ("index", None)
            again = neighbors_df(reader, asked, k=3, mode=mode)  # type: ignore[arg-type]
            pd.testing.assert_frame_equal(found, again)


def test_what_a_listener_has_set_for_a_transaction_holds_until_the_search_is_complete(
    many: Engine, tmp_path: Path
) -> None:
    event.listen(many, "begin", lambda connection: connection.exec_driver_sql("set local role postgres"))
    with messages_of(many, tmp_path / "log"):
        assert neighbors_df(many, np.ones(1536), k=1000).attrs["completed"] == 1
    statements = re.findall(r'F\t\d+\t(?:Query|Parse)\t (?:"" )?"(\w+)', (tmp_path / "log").read_text())
    assert [sql.lower() for sql in statements].index("rollback") == len(statements) - 1


def test_an_engine_that_streams_its_results_gives_all_of_them(many: Engine) -> None:
    streaming = create_engine(many.url, execution_options={"stream_results": True})
    assert len(messages_df(streaming)) == len(messages_df(many))
    for _ in range(3):
        pd.testing.assert_frame_equal(
            neighbors_df(streaming, np.ones(1536), k=3), neighbors_df(many, np.ones(1536), k=3)
        )
    streaming.dispose()


def test_an_index_that_went_between_two_searches_is_not_named_any_more(many: Engine) -> None:
    exact = neighbors_df(many, np.ones(1536), k=3, mode="exact")
    drop_index(many)
    found = neighbors_df(many, np.ones(1536), k=3)
    assert (found.attrs["mode"], found.attrs["index"], found.attrs["without_embedding"]) == ("exact", None, 0)
    assert found["message_id"].tolist() == exact["message_id"].tolist()
    with pytest.raises(SchemaError, match="create_index"):
        neighbors_df(many, np.ones(1536), mode="index")


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ("alter index contextkit_cosine_idx rename to other", "other"),
        ("create index other on messages using hnsw (embedding vector_cosine_ops)", None),
        ("update pg_index set indisvalid = false where indexrelid = 'contextkit_cosine_idx'::regclass", None),
        ("alter table messages set schema aside; create view messages as select * from aside.messages", None),
    ],
    ids=["renamed", "rival", "invalid", "elsewhere"],
)
def test_an_index_that_changed_between_two_searches_is_looked_at_again(
    many: Engine, change: str, name: str | None
) -> None:
    with many.begin() as connection:
        connection.execute(text("create schema aside"))
        connection.execute(text(change))
    with statements(many) as sent:
        found = neighbors_df(many, np.ones(1536), k=3)
    assert any("pg_opclass" in sql for sql in sent)
    assert name is None or found.attrs["index"] == name


def test_once_the_server_has_analyzed_what_is_left_few_messages_are_compared_with_each(many: Engine) -> None:
    with many.begin() as connection:
        connection.execute(text("update messages set deleted_at = now() where version > 2"))
    with many.begin() as connection:
        connection.execute(text("analyze messages"))
    found = neighbors_df(many, np.ones(1536), k=3)
    assert (found.attrs["mode"], found.attrs["without_embedding"]) == ("exact", 0)


def test_what_was_seen_with_deleted_messages_or_by_another_distance_is_not_taken(many: Engine) -> None:
    for other in ({"include_deleted": True}, {"distance": "l2"}):
        with statements(many) as sent:
            neighbors_df(many, np.ones(1536), k=3, **other)  # type: ignore[arg-type]
        assert len(sent) > 2


def test_an_exact_search_shares_the_work_where_the_server_has_workers(small: Engine) -> None:
    seen: list[str] = []

    def explain(connection: Connection, _cursor: Any, sql: str, parameters: Any, *_: Any) -> None:
        cursor = connection.connection.cursor()
        if "set_config" in sql:
            return
        cursor.execute("set local min_parallel_table_scan_size = 0")  # the table is smaller than the server's bound
        cursor.execute(f"explain {sql}", parameters)
        seen.append("\n".join(row[0] for row in cursor.fetchall()))

    event.listen(small, "before_cursor_execute", explain)
    try:
        neighbors_df(small, np.ones(1536), k=3, mode="exact")
    finally:
        event.remove(small, "before_cursor_execute", explain)
    assert "Workers Planned" in seen[-1]
