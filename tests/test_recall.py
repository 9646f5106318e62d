"""Recall: of every valid index and ef_search, against the exact answer, on the same sample each time."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine, text

from contextkit import (
    SchemaError,
    add_context,
    append_messages,
    connect,
    create_index,
    messages_df,
    neighbors_df,
    recall_df,
)
from tests.benchmarks.data import write_clusters
from tests.conftest import _fresh

COLUMNS = {
    "index": "str",
    "distance": "str",
    "halfvec": "bool",
    "ef_search": "int64",
    "recall": "float64",
    "milliseconds": "float64",
    "exact_milliseconds": "float64",
    "completed": "int64",
}


@pytest.fixture(scope="module")
def indexed(server_url: str, migrated: str) -> Iterator[Engine]:
    for url in _fresh(server_url, migrated):
        write_clusters(url, contexts=20, messages=1_000, clusters=10)
        engine = connect(url, write=True)
        create_index(engine, progress=False)
        create_index(engine, halfvec=True, progress=False)
        create_index(engine, "l2", m=2, ef_construction=4, progress=False)
        yield engine
        engine.dispose()


def test_a_row_per_valid_index_and_ef_search(indexed: Engine) -> None:
    frame = recall_df(indexed, sample=10, ef_search=[1, 100])
    assert frame.dtypes.astype(str).to_dict() == COLUMNS
    assert list(zip(frame["index"], frame["ef_search"], strict=True)) == [
        (name, ef_search)
        for name in ("contextkit_cosine_idx", "contextkit_cosine_halfvec_idx", "contextkit_l2_idx")
        for ef_search in (1, 100)
    ]
    assert frame["recall"].between(0, 1).all()
    assert (frame.loc[frame["distance"] == "cosine", "recall"] >= 0.97).all()
    assert (frame[["milliseconds", "exact_milliseconds"]] > 0).all(axis=None)
    assert frame.groupby("distance")["exact_milliseconds"].nunique().tolist() == [1, 1]
    assert frame.attrs == {
        "function": "recall_df",
        "asked": {"k": 10, "sample": 10, "ef_search": [1, 100]},
        "queries": 10,
    }


def test_recall_is_the_share_of_the_exact_answer(indexed: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("contextkit.answers.FEW_ROWS", 10)
    frame = recall_df(indexed, k=20, sample=12, ef_search=[1]).set_index("index")
    ids = sorted(messages_df(indexed)["message_id"], key=md5)[:12]
    for distance in ("cosine", "l2"):
        shares = []
        for id_ in ids:
            exact = neighbors_df(indexed, id_, k=20, distance=distance, mode="exact")  # type: ignore[arg-type]
            found = neighbors_df(indexed, id_, k=20, distance=distance, mode="index", ef_search=1)  # type: ignore[arg-type]
            shares.append(exact["message_id"].isin(found["message_id"]).mean())
        assert frame.loc[f"contextkit_{distance}_idx", "recall"] == pytest.approx(np.mean(shares))
    assert frame.loc["contextkit_l2_idx", "recall"] < 1  # so few links lose some


def md5(id_: str) -> str:
    import hashlib

    return hashlib.md5(id_.encode()).hexdigest()


def test_the_sample_is_the_same_each_time(indexed: Engine) -> None:
    first, second = (recall_df(indexed, k=30, sample=8, ef_search=[5])["recall"].tolist() for _ in range(2))
    assert first == second


def test_the_settings_of_one_measure_do_not_reach_the_next(indexed: Engine) -> None:
    recall_df(indexed, sample=2, ef_search=[1])
    with indexed.connect() as connection:
        connection.execute(text("select '[1]'::vector"))
        assert connection.execute(text("show enable_sort")).scalar_one() == "on"


def test_without_an_index_or_messages_there_is_nothing_to_measure(engine: Engine) -> None:
    with pytest.raises(SchemaError, match="create_index"):
        recall_df(engine)
    create_index(engine, progress=False)
    with pytest.raises(SchemaError, match="embed_missing"):
        recall_df(engine)
    append_messages(engine, add_context(engine), [{"role": "user", "content": "x", "embedding": np.zeros(1536)}] * 3)
    assert recall_df(engine).empty
    append_messages(engine, add_context(engine), [{"role": "user", "content": "x", "embedding": np.ones(1536)}])
    frame = recall_df(engine, sample=50, ef_search=[40])
    assert (frame["recall"].tolist(), frame.attrs["queries"]) == ([1.0], 4)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [({name: value}, name) for name in ("k", "sample") for value in (0, True, 1.5)]
    + [({"ef_search": value}, "ef_search") for value in ([0], [1001], [40, 2.5])],
)
def test_arguments_out_of_range_are_refused(engine: Engine, arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=f"{match} is a whole number"):
        recall_df(engine, **arguments)
