"""Searches over a loaded frame against those in the database, and against comparing pair by pair."""

import json
import os
import tracemalloc
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from sqlalchemy import Engine

from contextkit import (
    Context,
    DimensionError,
    NotFoundError,
    add_context,
    append_messages,
    connect,
    distances,
    embedding_matrix,
    fork_context,
    history_df,
    messages_df,
    nearest,
    neighbors_df,
)
from tests.conftest import _fresh

DISTANCES = ("cosine", "l2", "inner", "l1")
STRANGER = "00000000-0000-4000-8000-000000000000"
EXAMPLES = int(os.environ.get("CONTEXTKIT_EXAMPLES", "60"))
Matrix = NDArray[np.float32]


def frame_of(matrix: Any, seed: int = 0, null: Any = ()) -> pd.DataFrame:
    """A frame with these embeddings, null where told, under ids in no order."""
    matrix = np.asarray(matrix, np.float32)
    order = np.random.default_rng(seed).permutation(len(matrix))
    mask = np.isin(np.arange(len(matrix)), list(null))
    values = pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), matrix.shape[1], mask=pa.array(mask))
    return pd.DataFrame(
        {
            "message_id": pd.Series([str(uuid.UUID(int=int(place) * 2**100 + 7)) for place in order], dtype=str),
            "version": np.arange(1, len(matrix) + 1),
            "embedding": pd.Series(values, dtype=pd.ArrowDtype(values.type)),
        }
    )


def apart(row: NDArray[Any], query: NDArray[Any], distance: str) -> float:
    """One distance, by its definition."""
    row, query = row.astype(np.float64), query.astype(np.float64)
    if distance == "l2":
        return float(np.linalg.norm(row - query))
    if distance == "l1":
        return float(np.abs(row - query).sum())
    if distance == "inner":
        return float(-(row * query).sum())
    return float(1 - (row * query).sum() / np.sqrt((row * row).sum() * (query * query).sum()))


def one_by_one(frame: pd.DataFrame, query: Matrix, k: int, distance: str, own: str | None = None) -> Any:
    """(distance, message_id, version) of the k nearest."""
    found = []
    missing = frame["embedding"].isna()
    for place, row in enumerate(embedding_matrix(frame)):
        id_ = frame["message_id"][place]
        if missing[place] or id_ == own or (distance == "cosine" and not row.any()):
            continue
        found.append((apart(row, query, distance), id_, int(frame["version"][place])))
    return sorted(found)[:k]


def triples(found: pd.DataFrame) -> Any:
    return list(found[["distance", "message_id", "version"]].itertuples(index=False, name=None))


def mixed(rows: int, seed: int = 0) -> Matrix:
    """Vectors of small whole numbers, whose distances are exact, many twice, some ten times as long."""
    random = np.random.default_rng(seed)
    matrix = np.zeros((rows, 1536), np.float32)
    matrix[:, :8] = random.integers(-2, 3, (rows, 8))
    matrix[:, 8] = 1
    matrix[rows // 2 :: 3] = matrix[: len(matrix[rows // 2 :: 3])]
    matrix[:: rows // 5 + 1] *= 8
    return matrix


@pytest.fixture(scope="module")
def corpus(server_url: str, migrated: str) -> Iterator[Engine]:
    """A database for the tests that only read: contexts mixed, real, unit; a zero vector, and null ones."""
    for url in _fresh(server_url, migrated):
        engine = connect(url, write=True)
        random = np.random.default_rng(1)
        real = random.normal(size=(70, 1536)).astype(np.float32)
        unit = real[:50] + random.normal(size=(50, 1536)).astype(np.float32) / 8
        unit[40:] = unit[:10]
        matrices = {"mixed": mixed(90), "real": real, "unit": unit / np.linalg.norm(unit, axis=1, keepdims=True)}
        for name, matrix in (matrices | {"zero": np.zeros((2, 1536), np.float32)}).items():
            rows = [{"role": "user", "content": f"{name} {at}", "embedding": row} for at, row in enumerate(matrix)]
            append_messages(engine, add_context(engine, name), rows)
        append_messages(
            engine, add_context(engine, "null"), [{"role": "tool", "content": "null", "tool_name": "t"}] * 3
        )
        engine.dispose()
        reader = connect(url)
        yield reader
        reader.dispose()


def agree(found: pd.DataFrame, expected: pd.DataFrame, *, exactly: bool) -> None:
    """Same rows, order, columns and dtypes; or same but for what the rounding of float32 lets change places."""
    if exactly:
        pd.testing.assert_frame_equal(found, expected, check_exact=True)
        return
    assert found["distance"].to_numpy() == pytest.approx(expected["distance"].to_numpy(), rel=2e-5, abs=2e-5)
    placed = found["message_id"] == expected["message_id"]
    assert placed.mean() > 0.9
    pd.testing.assert_frame_equal(found[placed], expected[placed], rtol=2e-5, atol=2e-5)


# As in the database


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("k", [1, 7, 1000])
def test_vectors_find_what_they_find_in_the_database(corpus: Engine, distance: Any, k: int) -> None:
    queries = {"mixed": mixed(8, seed=5), "real": np.random.default_rng(5).normal(size=(8, 1536))}
    for name, given_ in queries.items():
        where = Context.name.in_([name, "zero", "null"])
        frame = messages_df(corpus, where, embeddings=True)
        for query in (given_, given_[3]):
            expected = neighbors_df(corpus, query, where, k=k, distance=distance)
            agree(nearest(frame, query, k=k, distance=distance), expected, exactly=name == "mixed")


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("name", ["mixed", "real", "unit"])
def test_messages_find_what_they_find_in_the_database_and_not_themselves(
    corpus: Engine, distance: Any, name: str
) -> None:
    where = Context.name.in_([name, "null"])
    frame = messages_df(corpus, where, embeddings=True)
    ids = messages_df(corpus, Context.name == name)["message_id"][[9, 2, 9, 45]]
    for query in (ids, ids.iloc[0], uuid.UUID(ids.iloc[1]), ids.iloc[0].upper()):
        expected = neighbors_df(corpus, query, where, k=60, distance=distance)
        found = nearest(frame, query, k=60, distance=distance)
        agree(found, expected, exactly=name == "mixed")
        assert "query_message_id" not in found or (found["message_id"] != found["query_message_id"]).all()


def test_all_of_a_database_is_searched_as_the_database_does(corpus: Engine) -> None:
    frame = messages_df(corpus, embeddings=True)
    for distance in DISTANCES:
        found = nearest(frame, mixed(2, seed=6), k=1000, distance=distance)
        agree(found, neighbors_df(corpus, mixed(2, seed=6), k=1000, distance=distance), exactly=False)
        assert found.attrs["without_embedding"] == 3
        assert found.attrs["zero"] == (2 if distance == "cosine" else 0)
        assert len(found) == 2 * (len(frame) - 3 - found.attrs["zero"])


@pytest.mark.parametrize("distance", DISTANCES)
def test_without_a_query_every_row_asks_as_in_a_loop(corpus: Engine, distance: Any) -> None:
    frame = messages_df(corpus, embeddings=True)
    found = nearest(frame, None, k=4, distance=distance)
    left_out = frame["embedding"].isna()
    if distance == "cosine":
        left_out |= frame["content"].str.startswith("zero")
    asking = np.flatnonzero(~left_out)
    loop = [nearest(frame, frame["message_id"][row], k=4, distance=distance) for row in asking]
    together = pd.concat(loop, ignore_index=True)
    together.insert(0, "query", np.repeat(asking, 4))
    together.insert(1, "query_message_id", np.repeat(frame["message_id"].to_numpy()[asking], 4))
    pd.testing.assert_frame_equal(found, together.astype({"query_message_id": "str"}), check_exact=True)
    assert found.attrs["queries"] == len(asking)
    batch = nearest(frame, frame["message_id"][asking], k=4, distance=distance)
    pd.testing.assert_frame_equal(found.drop(columns="query"), batch.drop(columns="query"), check_exact=True)


# As pair by pair


NUMBERS = st.sampled_from([0.0, 1.0, -1.0, 2.0, 0.5, 3.0])
WILD = st.sampled_from([0.0, 1.0, -1.0, 0.1, 1e-7, 1e-18, 1e-17, 3e4, 1e15, 1e18, 1e19])


@settings(max_examples=EXAMPLES, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("distance", DISTANCES)
def test_any_rows_are_ordered_as_pair_by_pair_with_ties_by_id(distance: Any, data: st.DataObject) -> None:
    length = data.draw(st.integers(1, 5))
    rows = data.draw(st.integers(0, 14))
    matrix = data.draw(arrays(np.float32, (rows, length), elements=NUMBERS))
    null = data.draw(st.sets(st.integers(0, max(0, rows - 1))))
    frame = frame_of(matrix, data.draw(st.integers(0, 99)), null)
    query = data.draw(arrays(np.float32, length, elements=NUMBERS))
    k = data.draw(st.integers(1, 16))
    if query.any() or distance != "cosine":
        found = nearest(frame, query, k=k, distance=distance)
        expected = one_by_one(frame, query, k, distance)
        assert [row[1:] for row in triples(found)] == [row[1:] for row in expected] or distance == "cosine"
        assert found["distance"].to_numpy() == pytest.approx([row[0] for row in expected], abs=1e-12)
        keys = list(zip(found["distance"], found["message_id"], strict=True))
        assert keys == sorted(keys)
        assert found["rank"].tolist() == list(range(1, len(expected) + 1))


@settings(max_examples=EXAMPLES, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("distance", DISTANCES)
def test_no_size_of_numbers_loses_a_neighbor(distance: Any, data: st.DataObject) -> None:
    length = data.draw(st.integers(1, 4))
    matrix = data.draw(arrays(np.float32, (data.draw(st.integers(1, 12)), length), elements=WILD))
    query = data.draw(arrays(np.float32, length, elements=WILD))
    with np.errstate(all="ignore"):
        squares = np.array([row @ row for row in [*matrix, query]])
    if not np.isfinite(squares[-1]) or (distance == "cosine" and squares[-1] == 0):
        return
    measurable = (squares[:-1] > 0) | (distance != "cosine")
    k = data.draw(st.integers(1, 12))
    found = nearest(frame_of(matrix), query, k=k, distance=distance)
    expected = sorted(apart(row, query, distance) for row in matrix[measurable])[:k]
    assert found["distance"].to_numpy() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("far", [0, 100])
def test_what_float32_cannot_tell_apart_is_told_apart(distance: Any, far: float) -> None:
    random = np.random.default_rng(3)
    query = random.normal(size=1536).astype(np.float32)
    rows = (query + far * random.normal(size=1536)).astype(np.float32)
    near = rows + random.normal(size=(400, 1536)).astype(np.float32) * np.float32(3e-4)
    frame = frame_of(near)
    expected = one_by_one(frame, query, 25, distance)
    squares = distances.squared_lengths(near)
    (estimates,) = distances.estimated(near, squares, query[None], distance)
    guessed = [frame["message_id"][row] for row in np.argsort(estimates)[:25]]
    assert guessed != [row[1] for row in expected] or (distance, far) == ("l1", 0)
    found = nearest(frame, query, k=25, distance=distance)
    assert found["message_id"].tolist() == [row[1] for row in expected]
    assert found["distance"].to_numpy() == pytest.approx([row[0] for row in expected], rel=1e-9, abs=1e-12)


def test_no_query_is_too_small_for_the_rows() -> None:
    random = np.random.default_rng(6)
    rows = random.normal(size=(200, 1536)).astype(np.float32) * np.float32(1e-16)
    query = random.normal(size=1536).astype(np.float32) * np.float32(1e-30)
    frame = frame_of(rows)
    expected = [row[1] for row in one_by_one(frame, query, 20, "inner")]
    assert nearest(frame, query, k=20, distance="inner")["message_id"].tolist() == expected


def test_no_distance_is_less_than_none() -> None:
    matrix = np.random.default_rng(7).normal(size=(300, 64)).astype(np.float16).astype(np.float32)
    for times, distance in ((3, "cosine"), (1, "cosine"), (1, "l2"), (1, "l1")):
        found = nearest(frame_of(matrix), matrix * times, k=1, distance=distance)  # type: ignore[arg-type]
        assert (found["distance"] >= 0).all()
        assert (found["distance"] < 1e-15).all()


# Which rows, which columns


def test_rows_that_are_equal_stand_by_message_id_however_many() -> None:
    matrix = np.tile(np.random.default_rng(2).normal(size=1536).astype(np.float32), (700, 1))
    matrix[::7] += 1
    frame = frame_of(matrix, seed=4)
    for distance in DISTANCES:
        found = nearest(frame, matrix[1], k=20, distance=distance)
        assert found["distance"].nunique() == 1
        assert found["message_id"].tolist() == sorted(frame["message_id"][np.arange(700) % 7 != 0])[:20]


def test_a_message_in_two_histories_is_found_in_both_and_in_neither_by_itself(engine: Engine) -> None:
    root = add_context(engine)
    vectors = mixed(5, seed=2)
    append_messages(
        engine, root, [{"role": "user", "content": str(at), "embedding": row} for at, row in enumerate(vectors)]
    )
    fork = fork_context(engine, root)
    frame = history_df(engine, [root, fork], embeddings=True)
    own = frame["message_id"][1]
    found = nearest(frame, own, k=100)
    assert len(found) == 8
    assert own not in set(found["message_id"])
    assert found["message_id"][::2].tolist() == neighbors_df(engine, own)["message_id"].tolist()
    assert found["context_id"].tolist() == [root, fork] * 4
    assert list(found.columns) == ["rank", "distance", *frame.columns.drop("embedding")]


def test_the_columns_of_the_frame_stay_and_those_of_another_search_go() -> None:
    frame = frame_of(mixed(20)).assign(topic="cats", tokens=pd.array([None, 1] * 10, dtype="Int64"))
    again = nearest(frame, None, k=1).merge(frame[["message_id", "embedding"]], on="message_id")
    found = nearest(again, mixed(1)[0], k=3)
    assert list(found.columns) == ["rank", "distance", "message_id", "version", "topic", "tokens"]
    assert found["tokens"].dtype == "Int64"
    pd.testing.assert_index_equal(found.index, pd.RangeIndex(3))


def test_a_frame_may_be_a_part_of_another_in_any_order() -> None:
    whole = frame_of(mixed(40), null=[3, 30])
    for part in (
        whole.iloc[5:20],
        whole.iloc[::-2],
        whole[whole["version"] % 3 == 0],
        pd.concat([whole[30:], whole[:9]]),
    ):
        found = nearest(part, mixed(3, seed=1), k=7, distance="l2")
        fresh = part.reset_index(drop=True)
        for place, query in enumerate(mixed(3, seed=1)):
            expected = one_by_one(fresh, query, 7, "l2")
            assert triples(found[found["query"] == place]) == expected


def test_ids_kept_otherwise_are_found_too(tmp_path: Path) -> None:
    frame = frame_of(mixed(20), null=[4])
    expected = nearest(frame, frame["message_id"][3:6].drop(4), k=4)
    frame.to_parquet(tmp_path / "frame.parquet")
    arrow = pd.read_parquet(tmp_path / "frame.parquet", dtype_backend="pyarrow")
    category = frame.astype({"message_id": "category"})
    for other in (arrow, category):
        found = nearest(other, other["message_id"][3:6].drop(4), k=4)
        assert found["message_id"].tolist() == expected["message_id"].tolist()
        pd.testing.assert_series_equal(found["query_message_id"], expected["query_message_id"])


@pytest.mark.parametrize(
    "query",
    [None, np.zeros((0, 4)), pd.Series([], dtype=str), pd.Index([]), []],
    ids=["all", "matrix", "series", "index", "list"],
)
def test_no_queries_give_an_empty_frame_like_a_full_one(query: Any) -> None:
    full_frame = frame_of(np.eye(4))
    empty_frame = full_frame.iloc[:0]
    names = not isinstance(query, np.ndarray)
    full = nearest(full_frame, full_frame["message_id"] if names else np.eye(4))
    for frame in (empty_frame, full_frame) if query is not None else (empty_frame,):
        empty = nearest(frame, query)
        assert len(empty) == 0
        pd.testing.assert_series_equal(empty.dtypes, full.dtypes)
        pd.testing.assert_index_equal(empty.index, pd.RangeIndex(0))
    assert len(nearest(empty_frame, np.ones(4))) == 0


def test_attrs_say_what_was_asked_and_go_into_parquet(tmp_path: Path) -> None:
    frame = frame_of(np.concatenate([np.eye(6), np.zeros((2, 6))]), null=[1])
    found = nearest(frame, np.eye(6)[:2], k=np.int64(3))
    assert found.attrs == {
        "function": "nearest",
        "asked": {"k": 3, "distance": "cosine"},
        "mode": "memory",
        "queries": 2,
        "rows": 6,
        "without_embedding": 1,
        "zero": 2,
    }
    assert json.loads(json.dumps(found.attrs)) == found.attrs
    found.to_parquet(tmp_path / "found.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "found.parquet"), found)
    assert nearest(frame, np.eye(6)[0], distance="l2").attrs["zero"] == 0
    assert nearest(frame, None).attrs["queries"] == 5


def test_the_frame_stays_as_it_is() -> None:
    frame = frame_of(mixed(30), null=[2])
    before = frame.copy(deep=True)
    queries = mixed(3)
    for distance in DISTANCES:
        nearest(frame, None, distance=distance)
        nearest(frame, queries, distance=distance)
    pd.testing.assert_frame_equal(frame, before)
    assert (queries == mixed(3)).all()


# What is refused


one = np.ones(4)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("query", "error", "match"),
    [
        (np.ones(1536), DimensionError, "the query has 1536 dimensions, the frame's embeddings 4"),
        (np.ones((2, 5)), DimensionError, "the query has 5 dimensions, the frame's embeddings 4"),
        ([one, np.ones(5)], DimensionError, "different lengths"),
        ([one, one * np.nan], ValueError, "NaN, infinity or too large numbers in row 1"),
        (one * 1e30, ValueError, "too large"),
        (one * 1e39, ValueError, "too large"),
        ([one, one * 0], ValueError, "all zero, or too small, in row 1"),
        (np.ones((1, 1, 4)), ValueError, "not an array of 3 dimensions"),
        (5.0, ValueError, "not an array of 0 dimensions"),
        ({"a": 1}, TypeError, "a query is a vector, a matrix, a message id"),
        (pd.DataFrame({"message_id": [STRANGER]}), TypeError, "one column"),
        ("how to sort", ValueError, "not an id"),
        ([STRANGER, None], TypeError, "leave out rows without one"),
        (STRANGER, NotFoundError, STRANGER),
        ([STRANGER, STRANGER], NotFoundError, f"id {STRANGER}$"),
    ],
)
def test_what_is_no_query_is_refused(query: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        nearest(frame_of(np.eye(4)), query)


def test_a_message_that_has_no_distance_cannot_ask() -> None:
    frame = frame_of(np.concatenate([np.eye(3), np.zeros((1, 3))]), null=[1])
    ids = frame["message_id"]
    for query in (ids[1], [ids[0], ids[1]], frame["message_id"]):
        with pytest.raises(ValueError, match=f"message {ids[1]} has no embedding; ask with one that has"):
            nearest(frame, query)
    with pytest.raises(ValueError, match="all zero, or too small, in row 1"):
        nearest(frame, ids[[0, 3]])
    assert len(nearest(frame, ids[3], distance="l2")) == 2


@pytest.mark.parametrize(
    "arguments",
    [{"k": value} for value in (0, -1, 1.0, True, "3", None)] + [{"distance": value} for value in ("euclid", None, "")],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        nearest(frame_of(np.eye(4)), one, **arguments)


def test_a_frame_without_embeddings_or_ids_is_refused(corpus: Engine) -> None:
    with pytest.raises(ValueError, match="load it with embeddings=True"):
        nearest(messages_df(corpus), one)
    with pytest.raises(ValueError, match="no column message_id"):
        nearest(frame_of(np.eye(4)).drop(columns="message_id"), one)
    with pytest.raises(TypeError, match="a frame is a DataFrame such as messages_df gives, not Engine"):
        nearest(corpus, one)  # type: ignore[arg-type]


# Memory


@pytest.mark.parametrize("distance", ["cosine", "l1"])
def test_memory_stays_bounded_whatever_is_asked(distance: Any) -> None:
    rows = 40_000
    frame = frame_of(np.random.default_rng(0).normal(size=(rows, 8)))
    asked = frame["message_id"][:1500]
    tracemalloc.start()
    try:
        found = nearest(frame, asked, k=5, distance=distance)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(found) == 7_500
    assert found["query_message_id"].tolist() == np.repeat(asked, 5).tolist()
    assert (found["query_message_id"] != found["message_id"]).all()
    # All distances at once would take 240 MB.
    assert peak < 150 * 2**20 + 400 * rows
