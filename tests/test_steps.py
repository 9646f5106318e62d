"""Steps from frame to frame."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sqlalchemy import Engine

from contextkit import (
    add_context,
    append_messages,
    embedding_matrix,
    fork_context,
    history_df,
    load_sample,
    messages_df,
    with_projection,
    with_turn,
)


def history(*contexts: tuple[str, str]) -> pd.DataFrame:
    """Frame of contexts, each a name and its roles by their first letters."""
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    rows = [(name, roles[letter]) for name, letters in contexts for letter in letters]
    return pd.DataFrame(rows, columns=["context_id", "role"], dtype="str")


@pytest.mark.parametrize(
    ("roles", "turns"),
    [
        ("", []),
        ("u", [1]),
        ("sa", [0, 0]),
        ("suatua", [0, 1, 1, 1, 2, 2]),
        ("uuu", [1, 2, 3]),
        ("ausa", [0, 1, 1, 1]),
    ],
)
def test_a_turn_begins_with_each_user_message_and_is_0_before_the_first(roles: str, turns: list[int]) -> None:
    frame = with_turn(history(("a", roles)))
    assert frame["turn"].tolist() == turns
    assert frame["turn"].dtype == "int64"


def test_turns_are_counted_per_context() -> None:
    frame = history(("a", "uau"), ("b", "su"), ("c", "a"), ("d", "u")).pipe(with_turn)
    assert frame["turn"].tolist() == [1, 1, 2, 0, 1, 0, 1]


def test_the_given_frame_and_its_index_stay_as_they_are() -> None:
    given = history(("a", "uau")).set_index(pd.Index([7, 3, 5]))
    frame = with_turn(given)
    assert list(given.columns) == ["context_id", "role"]
    pd.testing.assert_frame_equal(frame.drop(columns="turn"), given)


def test_attrs_stay() -> None:
    given = history(("a", "u"))
    given.attrs = {"function": "history_df"}
    assert with_turn(given).attrs == {"function": "history_df"}


def test_inherited_messages_count_in_a_history_but_not_among_the_stored(engine: Engine) -> None:
    root = add_context(engine)
    append_messages(engine, root, [{"role": role, "content": "x"} for role in ("system", "user", "assistant")])
    fork = fork_context(engine, root)
    append_messages(engine, fork, [{"role": role, "content": "x"} for role in ("user", "assistant")])
    assert with_turn(history_df(engine, [fork, root]))["turn"].tolist() == [0, 1, 1, 2, 2, 0, 1, 1]
    assert messages_df(engine).pipe(with_turn).groupby("context_id")["turn"].max().to_dict() == {root: 1, fork: 1}


def test_an_empty_history_has_the_columns_and_dtypes_of_a_full_one(engine: Engine) -> None:
    empty, full = add_context(engine), add_context(engine)
    append_messages(engine, full, [{"role": "user", "content": "x"}])
    nothing, something = with_turn(history_df(engine, empty)), with_turn(history_df(engine, full))
    pd.testing.assert_series_equal(nothing.dtypes, something.dtypes)


def embedded(rows: list[list[float] | None], length: int) -> pd.DataFrame:
    """Frame with a column of embeddings."""
    values = pa.array(rows, pa.list_(pa.float32(), length))
    return pd.DataFrame({"embedding": pd.Series(values, dtype=pd.ArrowDtype(values.type))})


def test_a_projection_is_that_of_principal_components(engine: Engine) -> None:
    load_sample(engine)
    frame = with_projection(messages_df(engine, embeddings=True))
    matrix = embedding_matrix(frame)
    known = ~np.isnan(matrix).any(axis=1)
    centered = matrix[known] - matrix[known].mean(axis=0)
    left, sizes, _ = np.linalg.svd(centered, full_matrices=False)
    for place, name in enumerate(["projection_x", "projection_y"]):
        wanted = left[:, place] * sizes[place]
        found = frame.loc[known, name].to_numpy()
        assert np.allclose(np.abs(found), np.abs(wanted), atol=1e-3)
        assert abs(found @ wanted) > 0.999 * wanted @ wanted
        assert frame.loc[~known, name].isna().all()


def test_the_same_rows_give_the_same_projection_in_any_order_with_or_without_null_ones() -> None:
    rows = np.random.default_rng(1).standard_normal((50, 30)) * np.linspace(9, 1, 30)
    once = with_projection(embedded(rows.tolist(), 30))
    again = with_projection(embedded([None, *rows[::-1].tolist()], 30))
    for name in ("projection_x", "projection_y"):
        assert np.allclose(once[name], again[name][:0:-1], atol=1e-3)


@pytest.mark.parametrize("rows", [[], [None, None], [[1, 2, 3]], [[1, 2, 3]] * 4, [[1, 2, 3], None, [3, 2, 1]]])
def test_few_or_equal_embeddings_have_places_too(rows: list[list[float] | None]) -> None:
    frame = with_projection(embedded(rows, 3))
    assert frame["projection_x"].dtype == frame["projection_y"].dtype == "float64"
    assert frame["projection_x"].isna().tolist() == [row is None for row in rows]
    assert np.allclose(frame["projection_y"].fillna(0), 0, atol=1e-5)


@pytest.mark.parametrize("axis", range(4))
def test_of_the_two_directions_of_an_axis_the_same_is_always_taken(axis: int) -> None:
    rows = np.zeros((3, 4))
    rows[:, axis] = [1, -4, 3]
    assert np.allclose(with_projection(embedded(rows.tolist(), 4))["projection_x"], rows[:, axis])


def test_a_projection_needs_embeddings() -> None:
    with pytest.raises(ValueError, match="embeddings=True"):
        with_projection(history(("a", "u")))
