"""Searches against numpy, which compares with every row."""

import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from pgvector import HalfVector, Vector
from sqlalchemy import Engine, Select, column, event, func, select, table, text, true
from sqlalchemy.orm import aliased

import contextkit.answers
from contextkit import (
    Context,
    DimensionError,
    Message,
    NotFoundError,
    add_context,
    append_messages,
    connect,
    delete_context,
    delete_messages,
    embedding_matrix,
    fork_context,
    history_df,
    messages_df,
    neighbors_df,
    restore_messages,
    select_neighbors,
)
from contextkit.queries import select_neighbors_of_many
from tests.conftest import _fresh

DISTANCES = ("cosine", "l2", "inner", "l1")
STRANGER = "00000000-0000-4000-8000-000000000000"
Matrix = NDArray[np.float32]


def whole_numbers(rows: int, seed: int = 0) -> Matrix:
    """Vectors of small whole numbers: float32 sums of theirs are exact, and many distances are equal."""
    matrix = np.zeros((rows, 1536), np.float32)
    matrix[:, :6] = np.random.default_rng(seed).integers(-1, 2, (rows, 6))
    matrix[:, 6] = 1
    return matrix


def real_numbers(rows: int, seed: int = 0) -> Matrix:
    return np.random.default_rng(seed).normal(size=(rows, 1536)).astype(np.float32)


def write(engine: Engine, vectors: Matrix, **fields: Any) -> str:
    """A new context with these embeddings; its id."""
    context = add_context(engine, fields.pop("name", None))
    rows = [{"role": "user", "content": str(place), "embedding": row} | fields for place, row in enumerate(vectors)]
    append_messages(engine, context, rows)
    return context


@pytest.fixture(scope="module")
def corpus(server_url: str, migrated: str) -> Iterator[Engine]:
    """A database for the tests that only read: contexts whole and real, rows that no search may find."""
    for url in _fresh(server_url, migrated):
        engine = connect(url, write=True)
        write(engine, whole_numbers(60), name="whole")
        write(engine, real_numbers(30), name="real", role="assistant")
        unembedded = add_context(engine, "unembedded")
        append_messages(engine, unembedded, [{"role": "user", "content": "no embedding"}])
        write(engine, np.zeros((1, 1536), np.float32), name="zero")
        deleted = write(engine, whole_numbers(3), name="deleted")
        delete_context(engine, deleted)
        with_deleted = write(engine, whole_numbers(3), name="with deleted")
        delete_messages(engine, messages_df(engine, Context.id == with_deleted)["message_id"])
        engine.dispose()
        reader = connect(url)
        yield reader
        reader.dispose()


def stored(engine: Engine, *where: Any, include_deleted: bool = False) -> pd.DataFrame:
    frame = messages_df(engine, *where, embeddings=True, include_deleted=include_deleted)
    return frame[frame["embedding"].notna()].reset_index(drop=True)


def measure(matrix: NDArray[Any], query: NDArray[Any], distance: str) -> NDArray[np.float64]:
    matrix, query = matrix.astype(np.float64), query.astype(np.float64)
    if distance == "l2":
        return np.sqrt(((matrix - query) ** 2).sum(axis=1))
    if distance == "l1":
        return np.abs(matrix - query).sum(axis=1)
    product = matrix @ query
    if distance == "inner":
        return -product
    with np.errstate(invalid="ignore"):
        return 1 - product / np.sqrt((matrix**2).sum(axis=1) * (query**2).sum())


def nearest(
    frame: pd.DataFrame, query: NDArray[Any], k: int, distance: str, own: str | None = None
) -> list[tuple[int, str, float]]:
    """(rank, message_id, distance), ties by id."""
    found = frame[["message_id"]].assign(distance=measure(embedding_matrix(frame), query, distance))
    found = found[(found["message_id"] != own) & found["distance"].notna()]
    found = found.sort_values(["distance", "message_id"]).head(k)
    return list(zip(range(1, len(found) + 1), found["message_id"], found["distance"], strict=True))


def triples(frame: pd.DataFrame) -> list[tuple[int, str, float]]:
    return list(frame[["rank", "message_id", "distance"]].itertuples(index=False, name=None))


WHOLE, REAL = Context.name == "whole", Context.name == "real"


# What is found


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("k", [1, 7, 60, 1000])
def test_ranks_and_ties_are_those_of_comparing_with_every_row(corpus: Engine, distance: Any, k: int) -> None:
    queries = whole_numbers(8, seed=1)
    frame = stored(corpus, WHOLE)
    batch = neighbors_df(corpus, queries, WHOLE, k=k, distance=distance)
    for place, query in enumerate(queries):
        expected = nearest(frame, query, k, distance)
        assert len({row[2] for row in expected}) < len(expected) or k == 1
        assert triples(batch[batch["query"] == place]) == expected
        assert triples(neighbors_df(corpus, query, WHOLE, k=k, distance=distance)) == expected


@pytest.mark.parametrize("distance", DISTANCES)
def test_distances_agree_with_numpy_but_for_the_rounding_of_float32(corpus: Engine, distance: Any) -> None:
    frame = stored(corpus, REAL)
    for query in real_numbers(4, seed=1):
        found = neighbors_df(corpus, query, REAL, k=30, distance=distance)
        matrix = embedding_matrix(frame)[pd.Index(frame["message_id"]).get_indexer(found["message_id"])]
        assert found["distance"].to_numpy() == pytest.approx(measure(matrix, query, distance), rel=1e-4, abs=1e-4)
        assert found["distance"].is_monotonic_increasing
        assert sorted(found["message_id"]) == sorted(frame["message_id"])


def test_without_conditions_every_live_embedded_message_is_compared(corpus: Engine) -> None:
    query = whole_numbers(1, seed=2)[0]
    live, everything = stored(corpus), stored(corpus, include_deleted=True)
    assert (len(live), len(everything)) == (91, 97)
    for distance, frame, include_deleted in (("l2", live, False), ("l2", everything, True), ("cosine", live, False)):
        found = neighbors_df(corpus, query, k=1000, distance=distance, include_deleted=include_deleted)
        expected = nearest(frame, query, 1000, distance)
        assert found["message_id"].tolist() == [row[1] for row in expected]
        assert len(found) == len(frame) - (distance == "cosine")
        assert found["distance"].notna().all()


@pytest.mark.parametrize("distance", DISTANCES)
def test_max_distance_leaves_out_what_is_further_and_keeps_what_is_as_far(corpus: Engine, distance: Any) -> None:
    query = whole_numbers(1, seed=3)[0]
    expected = nearest(stored(corpus, WHOLE), query, 1000, distance)
    bound = expected[20][2]
    found = neighbors_df(corpus, query, WHOLE, k=1000, distance=distance, max_distance=bound)
    assert triples(found) == [row for row in expected if row[2] <= bound]
    assert len(neighbors_df(corpus, query, WHOLE, max_distance=-1e9, distance=distance)) == 0
    assert len(neighbors_df(corpus, query, WHOLE, max_distance=np.inf, distance=distance)) == 10


def test_a_vector_of_zeros_has_no_cosine_distance_but_others(corpus: Engine) -> None:
    zeros = np.zeros(1536)
    for distance in ("l2", "inner", "l1"):
        assert triples(neighbors_df(corpus, zeros, k=9, distance=distance)) == nearest(
            stored(corpus), zeros, 9, distance
        )
    for query in (zeros, -zeros, np.full(1536, 1e-30), [zeros, zeros]):
        with pytest.raises(ValueError, match=r"all zero, or too small, in row 0.*cosine"):
            neighbors_df(corpus, query)


# An index


@pytest.fixture(scope="module")
def tempting(server_url: str, migrated: str) -> Iterator[Engine]:
    """A database where the planner takes an index wherever it can, one that leaves most rows out."""
    for url in _fresh(server_url, migrated, direct=True):  # its settings reach new connections only
        engine = connect(url, write=True)
        write(engine, real_numbers(120, seed=5))
        _tempt(engine)
        engine.dispose()
        yield engine
        engine.dispose()


def _tempt(engine: Engine) -> None:
    with engine.begin() as connection:
        for distance in ("cosine", "l2", "ip", "l1"):
            connection.execute(text(f"create index on messages using hnsw (embedding vector_{distance}_ops)"))
        name = connection.execute(text("select current_database()")).scalar_one()
        for setting in ("enable_seqscan = off", "enable_sort = off", "enable_bitmapscan = off", "hnsw.ef_search = 2"):
            connection.execute(text(f"alter database {name} set {setting}"))


def plan(engine: Engine, statement: Select[Any]) -> str:
    """How the server would run a statement."""
    seen: list[str] = []

    def explain(_connection: Any, _cursor: Any, sql: str, parameters: Any, *_: Any) -> tuple[str, Any]:
        return f"explain {sql}", parameters

    event.listen(engine, "before_cursor_execute", explain, retval=True)
    try:
        with engine.connect() as connection:
            seen = [row[0] for row in connection.execute(statement).cursor]
    finally:
        event.remove(engine, "before_cursor_execute", explain)
    return "\n".join(seen)


@pytest.mark.parametrize("distance", DISTANCES)
def test_exact_stays_exact_where_an_index_leaves_rows_out(tempting: Engine, distance: Any) -> None:
    frame = stored(tempting)
    queries = real_numbers(2, seed=6)
    operator = {"cosine": "<=>", "l2": "<->", "inner": "<#>", "l1": "<+>"}[distance]
    with tempting.connect() as connection:
        plain = f"select id from messages order by embedding {operator} '{queries[0].tolist()}' limit 50"
        assert len(connection.execute(text(plain.replace(":", r"\:"))).all()) < 50
    batch = neighbors_df(tempting, queries, k=50, distance=distance, mode="exact")
    for place, query in enumerate(queries):
        expected = [row[1] for row in nearest(frame, query, 50, distance)]
        assert neighbors_df(tempting, query, k=50, distance=distance)["message_id"].tolist() == expected
        assert batch[batch["query"] == place]["message_id"].tolist() == expected


@pytest.mark.parametrize("distance", DISTANCES)
def test_no_exact_statement_is_planned_over_an_index_of_vectors(tempting: Engine, distance: Any) -> None:
    operator = {"cosine": "<=>", "l2": "<->", "inner": "<#>", "l1": "<+>"}[distance]
    query = real_numbers(1, seed=6)[0]
    plain = select(Message.id).order_by(Message.embedding.op(operator)(query)).limit(5)
    assert "messages_embedding_idx" in plan(tempting, plain)
    batch = select_neighbors_of_many([query], k=5, distance=distance, own_ids=[None])
    for statement in (select_neighbors(query, k=5, distance=distance), batch):
        explained = plan(tempting, statement)
        assert "Limit" in explained
        assert "messages_embedding_idx" not in explained


# What a query may be


def _forms(vector: Matrix) -> dict[str, Any]:
    return {
        "list": vector.tolist(),
        "tuple": tuple(vector.tolist()),
        "float16": vector.astype(np.float16),
        "float32": vector,
        "float64": vector.astype(np.float64),
        "int8": vector.astype(np.int8),
        "int64": vector.astype(np.int64),
        "strided": np.repeat(vector, 2)[::2],
        "Vector": Vector(vector.tolist()),
        "HalfVector": HalfVector(vector.tolist()),
        "series": pd.Series(vector, index=range(5, 1541)),
        "nullable series": pd.Series(vector, dtype="Float64"),
        "arrow series": pd.Series(vector, dtype="float[pyarrow]"),
    }


@pytest.mark.parametrize("form", _forms(np.ones(1536, np.float32)))
def test_a_vector_comes_in_any_form(corpus: Engine, form: str) -> None:
    vector = whole_numbers(1, seed=7)[0]
    found = neighbors_df(corpus, _forms(vector)[form], k=5)
    assert triples(found) == triples(neighbors_df(corpus, vector, k=5))
    assert "query" not in found


@pytest.mark.parametrize("distance", DISTANCES)
def test_queries_of_several_blocks_are_answered_like_single_ones(
    corpus: Engine, monkeypatch: pytest.MonkeyPatch, distance: Any
) -> None:
    monkeypatch.setattr(contextkit.answers, "BLOCK", 2)
    ids = stored(corpus, Context.name != "zero")["message_id"].iloc[[3, 0, 3, 7, 5]]
    found = neighbors_df(corpus, ids, k=4, distance=distance, mode="exact")
    assert found["query"].tolist() == np.repeat(range(5), 4).tolist()
    for place, id_ in enumerate(ids):
        single = neighbors_df(corpus, id_, k=4, distance=distance, mode="exact")
        assert triples(found[found["query"] == place]) == triples(single)
        assert found.attrs["zero"] == single.attrs["zero"]


MATRICES: dict[str, Callable[[Matrix], Any]] = {
    "matrix": lambda matrix: matrix,
    "float64 in columns": lambda matrix: np.asfortranarray(matrix, dtype=np.float64),
    "list of lists": lambda matrix: matrix.tolist(),
    "list of arrays": list,
    "list of Vectors": lambda matrix: [Vector(row.tolist()) for row in matrix],
    "series of arrays": lambda matrix: pd.Series(list(matrix), index=range(7, 7 + len(matrix))),
    "series of lists": lambda matrix: pd.Series(matrix.tolist()),
    "series of Vectors": lambda matrix: pd.Series([Vector(row.tolist()) for row in matrix]),
    "arrow lists": lambda matrix: pd.Series(matrix.tolist(), dtype=pd.ArrowDtype(pa.list_(pa.float64()))),
}


@pytest.mark.parametrize("form", MATRICES)
def test_the_rows_of_a_matrix_are_numbered(corpus: Engine, form: str) -> None:
    matrix = whole_numbers(3, seed=8)[[0, 1, 0, 2]]
    found = neighbors_df(corpus, MATRICES[form](matrix), k=4)
    assert found["query"].tolist() == np.repeat(range(4), 4).tolist()
    for place, query in enumerate(matrix):
        assert triples(found[found["query"] == place]) == triples(neighbors_df(corpus, query, k=4))


@pytest.mark.parametrize(
    "change",
    [
        lambda frame: frame,
        lambda frame: frame.iloc[2:5],
        lambda frame: frame[frame["content"].isin(["3", "9"])],
        lambda frame: frame.iloc[::-3],
        lambda frame: pd.concat([frame.iloc[4:6], frame.iloc[:2]]),
        lambda frame: frame.iloc[:1],
    ],
    ids=["whole", "slice", "filter", "reversed", "chunks", "one"],
)
def test_a_column_of_embeddings_asks_for_each_row(corpus: Engine, change: Callable[[pd.DataFrame], Any]) -> None:
    frame = change(stored(corpus, WHOLE).head(12))
    found = neighbors_df(corpus, frame["embedding"], WHOLE, k=1, distance="l2")
    assert found["query"].tolist() == list(range(len(frame)))
    assert (found["distance"] == 0).all()
    expected = [nearest(stored(corpus, WHOLE), query, 1, "l2")[0][1] for query in embedding_matrix(frame)]
    assert found["message_id"].tolist() == expected


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_batch_is_the_single_queries_one_after_the_other(corpus: Engine, distance: Any) -> None:
    matrix = real_numbers(6, seed=9)
    ids = messages_df(corpus, REAL)["message_id"][:6]
    for queries in (matrix, ids):
        batch = neighbors_df(corpus, queries, k=4, distance=distance)
        singles = [neighbors_df(corpus, query, k=4, distance=distance) for query in queries]
        together = pd.concat(singles, keys=range(6), names=["query"]).reset_index(level="query").reset_index(drop=True)
        pd.testing.assert_frame_equal(batch.drop(columns="query_message_id", errors="ignore"), together)


def test_a_message_is_not_its_own_neighbor(corpus: Engine) -> None:
    frame = stored(corpus, WHOLE)
    for own, query in zip(frame["message_id"][:5], embedding_matrix(frame), strict=False):
        for id_ in (own, own.upper(), uuid.UUID(own)):
            assert triples(neighbors_df(corpus, id_, WHOLE, k=60)) == nearest(frame, query, 60, "cosine", own=own)
        assert own in set(neighbors_df(corpus, query, WHOLE, k=60)["message_id"])


@pytest.mark.parametrize(
    "collect",
    [
        list,
        tuple,
        np.array,
        pd.Index,
        pd.Series,
        lambda ids: np.array(ids, dtype=object),
        lambda ids: [uuid.UUID(id_) for id_ in ids],
        lambda ids: pd.Series(ids, index=[7, 3, 5]),
        lambda ids: pd.Series(ids, dtype=object),
        lambda ids: pd.Series(ids, dtype="category"),
        lambda ids: pd.Series(["x", *ids])[1:],
    ],
)
def test_of_a_column_of_ids_each_leaves_out_its_own_message(
    corpus: Engine, collect: Callable[[list[str]], Any]
) -> None:
    frame = stored(corpus, WHOLE)
    ids = frame["message_id"][[4, 2, 4]].tolist()
    found = neighbors_df(corpus, collect(ids), WHOLE, k=60)
    assert found["query"].tolist() == np.repeat(range(3), 59).tolist()
    assert found["query_message_id"].tolist() == np.repeat(ids, 59).tolist()
    for place, row in enumerate([4, 2, 4]):
        expected = nearest(frame, embedding_matrix(frame)[row], 60, "cosine", own=ids[place])
        assert triples(found[found["query"] == place]) == expected
    assert set(ids[:2]) < set(found["message_id"])


def test_a_message_with_the_embedding_of_the_asked_is_found_at_no_distance(engine: Engine) -> None:
    vector = real_numbers(1)[0]
    ids = append_messages(engine, add_context(engine), [{"role": "user", "content": "x", "embedding": vector}] * 3)
    found = neighbors_df(engine, ids["message_id"][0], distance="l2")
    assert found["message_id"].tolist() == sorted(ids["message_id"][1:])
    assert found["distance"].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("query", "named"),
    [
        (np.zeros((0, 1536)), False),
        (pd.Series([], dtype=pd.ArrowDtype(pa.list_(pa.float32(), 1536))), False),
        (pd.Series([], dtype=str), True),
        (pd.Series([], dtype=object), True),
        (pd.Index([]), True),
        ([], True),
        (np.array([], dtype=str), True),
    ],
)
def test_no_queries_give_an_empty_frame_like_a_full_one(corpus: Engine, query: Any, named: bool) -> None:
    full = neighbors_df(corpus, messages_df(corpus, REAL)["message_id"][:2] if named else real_numbers(2))
    empty = neighbors_df(corpus, query)
    assert len(empty) == 0
    pd.testing.assert_series_equal(empty.dtypes, full.dtypes)


def test_queries_that_find_nothing_give_frames_like_full_ones(corpus: Engine) -> None:
    ids = messages_df(corpus, REAL)["message_id"]
    for query in (ids[0], ids[:2], real_numbers(1)[0], real_numbers(2)):
        full, empty = neighbors_df(corpus, query), neighbors_df(corpus, query, Message.version < 0)
        assert len(empty) == 0 < len(full)
        pd.testing.assert_series_equal(empty.dtypes, full.dtypes)
        pd.testing.assert_index_equal(empty.index, pd.RangeIndex(0))


def test_columns_are_those_of_messages_df_with_rank_and_distance(corpus: Engine) -> None:
    of_messages = messages_df(corpus, REAL)
    found = neighbors_df(corpus, of_messages["message_id"][:2], REAL, k=3, max_distance=2)
    extra = ["query", "query_message_id", "rank", "distance"]
    assert list(found.columns) == [*extra, *of_messages.columns]
    assert found[extra].dtypes.astype(str).tolist() == ["int64", "str", "int64", "float64"]
    pd.testing.assert_series_equal(found.dtypes[4:], of_messages.dtypes)
    pd.testing.assert_index_equal(found.index, pd.RangeIndex(6))
    merged = found.merge(of_messages, on="message_id", suffixes=("", "_stored"))
    assert (merged["content"] == merged["content_stored"]).all()


# What is refused


def _ids(engine: Engine) -> dict[str, str]:
    frame = messages_df(engine, Message.version == 1, include_deleted=True)
    names = {"no embedding": Message.embedding.is_(None), "deleted": Context.name == "deleted", "live": REAL}
    names["deleted alone"] = Context.name == "with deleted"
    found = {name: messages_df(engine, where, include_deleted=True)["message_id"][0] for name, where in names.items()}
    assert len(frame) == 6
    return found


def test_an_id_without_an_embedding_is_named(corpus: Engine) -> None:
    ids = _ids(corpus)
    for query in (ids["no embedding"], [ids["live"], ids["no embedding"]]):
        with pytest.raises(ValueError, match=f"message {ids['no embedding']} has no embedding"):
            neighbors_df(corpus, query)


@pytest.mark.parametrize("name", ["unknown", "deleted", "deleted alone"])
def test_an_id_of_no_live_message_is_not_found(corpus: Engine, name: str) -> None:
    ids = _ids(corpus) | {"unknown": STRANGER}
    for query in (ids[name], [ids["live"], ids[name]]):
        with pytest.raises(NotFoundError, match=ids[name]):
            neighbors_df(corpus, query)
    if name != "unknown":
        found = neighbors_df(corpus, ids[name], k=1000, include_deleted=True)
        assert len(found) == 95
        assert ids[name] not in set(found["message_id"])


one = np.ones(1536)
holed = np.where(np.arange(1536) == 3, np.nan, one)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("query", "error", "match"),
    [
        (holed, ValueError, "NaN, infinity or too large numbers in row 0"),
        ([one, holed], ValueError, "NaN, infinity or too large numbers in row 1"),
        (one * np.inf, ValueError, "NaN, infinity"),
        (one * 1e39, ValueError, "too large"),
        (one * 1e30, ValueError, "too large"),
        (np.ones(5), DimensionError, "the query has 5 dimensions, the column embedding 1536"),
        (np.ones((2, 5)), DimensionError, "the query has 5 dimensions"),
        (pd.Series([], dtype=float), DimensionError, "the query has 0 dimensions"),
        (np.zeros((0, 5)), DimensionError, "the query has 5 dimensions"),
        (pd.Series([[1.0, 2.0]], dtype=pd.ArrowDtype(pa.list_(pa.float32(), 2))), DimensionError, "has 2 dimensions"),
        ([one, np.ones(5)], DimensionError, "different lengths"),
        (pd.Series([one, None]), DimensionError, "different lengths, or one is missing"),
        ([one, STRANGER], DimensionError, "different lengths"),
        (np.ones((1, 1, 1536)), ValueError, "not an array of 3 dimensions"),
        (5.0, ValueError, "not an array of 0 dimensions"),
        (one > 0, TypeError, "a query is a vector, a matrix, a message id"),
        (one.astype(complex), TypeError, "a query is a vector"),
        ({"a": 1}, TypeError, "a query is a vector"),
        (None, TypeError, "a query is a vector"),
        (b"abc", TypeError, "a query is a vector"),
        ({STRANGER}, TypeError, "a query is a vector"),
        (pd.DataFrame({"message_id": [STRANGER]}), TypeError, "one column"),
        ("how to sort", ValueError, "not an id"),
        ("[1,2,3]", ValueError, "not an id"),
        ([STRANGER, "x"], ValueError, "not an id"),
        ([STRANGER, None], TypeError, "leave out rows without one"),
        (pd.Series([STRANGER, np.nan]), TypeError, "leave out rows without one"),
    ],
)
def test_what_is_no_query_is_refused(corpus: Engine, query: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        neighbors_df(corpus, query)


def test_a_column_with_a_null_embedding_is_refused_naming_the_row(corpus: Engine) -> None:
    frame = messages_df(corpus, Context.name.in_(["real", "unembedded"]), embeddings=True)
    row = int(np.flatnonzero(frame["embedding"].isna())[0])
    with pytest.raises(ValueError, match=f"in row {row};"):
        neighbors_df(corpus, frame["embedding"])


@pytest.mark.parametrize(
    ("arguments", "error"),
    [({"k": value}, ValueError) for value in (0, -1, 1.0, True, "3", None, np.nan)]
    + [({"max_distance": value}, TypeError) for value in ("0.5", True, pd.NA, [0.5])]
    + [({"max_distance": np.nan}, ValueError)]
    + [({name: value}, ValueError) for name in ("distance", "mode") for value in ("euclid", None, "", ["l2"])],
)
def test_arguments_out_of_range_are_refused(corpus: Engine, arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(arguments))):
        neighbors_df(corpus, one, **arguments)


# Conditions


def test_conditions_on_messages_and_contexts_hold_together(corpus: Engine) -> None:
    query = whole_numbers(1, seed=4)[0]
    for where in (
        [Message.version <= 20, WHOLE],
        [Context.name.in_(["whole", "real"]), Message.role == "assistant"],
        [(Message.role == "assistant") | (Message.version == 1)],
        [Message.context_id.in_(select(Context.id).where(Context.name == "real"))],
        [func.length(Message.content) == 1, Context.message_count > 5],
        [true()],
    ):
        expected = {row[1] for row in nearest(stored(corpus, *where), query, 1000, "cosine")}
        assert 0 < len(expected) <= 90
        for queries in (query, query[None]):
            assert set(neighbors_df(corpus, queries, *where, k=1000)["message_id"]) == expected


@pytest.mark.parametrize("mistake", [True, False, None, np.True_, "role = 'user'", text("true"), Message, [WHOLE]])
def test_what_is_no_condition_is_refused(corpus: Engine, mistake: Any) -> None:
    for query in (one, one[None]):
        with pytest.raises(TypeError, match="a condition is a SQLAlchemy expression"):
            neighbors_df(corpus, query, WHOLE, mistake)


@pytest.mark.parametrize(
    ("condition", "named"),
    [
        (table("documents", column("a")).c.a == 1, "documents"),
        (table("messages", column("extra")).c.extra == 1, "messages"),
        (aliased(Message).role == "user", "messages"),
        (aliased(Context).id == Message.context_id, "contexts"),
        (table("documents", column("a")).c.a == Message.version, "documents"),
    ],
)
def test_a_condition_on_another_table_or_an_alias_is_refused(corpus: Engine, condition: Any, named: str) -> None:
    for query in (one, one[None]):
        with pytest.raises(ValueError, match=f"another table or an alias: {named};"):
            neighbors_df(corpus, query, condition)


def test_a_search_inside_one_history_finds_inherited_messages_and_no_others(engine: Engine) -> None:
    root = write(engine, whole_numbers(8))
    fork = fork_context(engine, root, 5)
    vectors = whole_numbers(2, seed=1)
    rows = [{"role": "user", "content": f"own {place}", "embedding": row} for place, row in enumerate(vectors)]
    append_messages(engine, fork, rows)
    history = history_df(engine, fork, embeddings=True)
    query = whole_numbers(1, seed=2)[0]
    expected = nearest(history, query, 100, "cosine")
    assert len(expected) == 7
    for ids in (history["message_id"], history["message_id"].tolist(), history["message_id"].to_numpy()):
        assert triples(neighbors_df(engine, query, Message.id.in_(ids), k=100)) == expected
    outside = neighbors_df(engine, query, Message.id.not_in(history["message_id"]), k=100)
    assert sorted(outside["content"]) == ["5", "6", "7"]
    assert len(neighbors_df(engine, query, Message.id.in_(history["message_id"][:0]))) == 0


def test_a_search_inside_a_history_longer_than_postgresql_takes_parameters(corpus: Engine) -> None:
    ids = pd.Series([str(uuid.UUID(int=number)) for number in range(70_000)])
    inside = stored(corpus, WHOLE).head(9)
    query = whole_numbers(1, seed=2)[0]
    where = Message.id.in_(pd.concat([ids, inside["message_id"]]))
    for queries in (query, query[None]):
        assert triples(neighbors_df(corpus, queries, where, k=20)) == nearest(inside, query, 20, "cosine")


def test_an_enum_role_is_searched_like_text(engine: Engine) -> None:
    write(engine, whole_numbers(3))
    write(engine, whole_numbers(3), role="assistant")
    with engine.begin() as connection:
        connection.execute(text("create type role as enum ('user', 'assistant')"))
        connection.execute(text("alter table messages alter role type role using role::role"))
    for query in (one, one[None]):
        found = neighbors_df(engine, query, Message.role == "assistant")
        assert found["role"].tolist() == ["assistant"] * 3
        assert len(neighbors_df(engine, query, Message.role.in_(["user", "assistant"]))) == 6


# What stays


def test_a_deleted_message_goes_from_searches_and_a_restored_one_comes_back(engine: Engine) -> None:
    write(engine, whole_numbers(3))
    nearest_id = neighbors_df(engine, whole_numbers(1)[0], k=1)["message_id"][0]
    delete_messages(engine, nearest_id)
    assert nearest_id not in set(neighbors_df(engine, one)["message_id"])
    restore_messages(engine, nearest_id)
    assert neighbors_df(engine, whole_numbers(1)[0], k=1)["message_id"].tolist() == [nearest_id]


def test_attrs_say_what_was_asked_and_go_into_parquet(corpus: Engine, tmp_path: Path) -> None:
    found = neighbors_df(corpus, one, WHOLE, k=np.int64(3), distance="l2", max_distance=np.float32(1e6))
    asked = {"where": 1, "k": 3, "distance": "l2", "mode": "auto", "ef_search": None}
    asked |= {"max_distance": 1e6, "include_deleted": False}
    assert (found.attrs["function"], found.attrs["asked"]) == ("neighbors_df", asked)
    assert (found.attrs["mode"], found.attrs["queries"], found.attrs["rows"]) == ("exact", 1, 3)
    assert json.loads(json.dumps(found.attrs)) == found.attrs
    found.to_parquet(tmp_path / "found.parquet")
    back = pd.read_parquet(tmp_path / "found.parquet")
    pd.testing.assert_frame_equal(back, found)
    assert back.attrs == found.attrs
