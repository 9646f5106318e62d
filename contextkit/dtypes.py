"""Columns of results as pandas columns, with the dtypes that contextkit gives them."""

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pandas.api.extensions import ExtensionArray

from contextkit.arrow import Column
from contextkit.gathered import ALLOCATOR

NEVER_NULL = frozenset(
    [
        "building",
        "completed",
        "ef_construction",
        "ef_search",
        "forks",
        "halfvec",
        "inherited",
        "latest_version",
        "m",
        "message_count",
        "position",
        "query",
        "rank",
        "size",
        "total_tokens",
        "turn",
        "valid",
        "version",
    ]
)
TIMES = pa.timestamp("us", tz="UTC")
NO_TIME = pa.scalar(pd.NaT.value, pa.int64()).cast(TIMES)
# What pyarrow makes of these by itself is the same, but takes it longer than a small read takes.
NOT_NULL: dict[pa.DataType, Any] = {
    pa.large_string(): pd.StringDtype(na_value=np.nan),
    TIMES: pd.DatetimeTZDtype("us", "UTC"),
}
NULLABLE = NOT_NULL | {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}


def to_frame(columns: list[Column]) -> pd.DataFrame:
    """DataFrame of fetched columns, with the dtypes that this module knows; takes them out of the list."""
    names = [column.name for column in columns]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"several columns are named {', '.join(twice)}; give each a name of its own with label()")
    columns.reverse()
    # Each column goes when it is converted, and the frame need not copy what is its own.
    return pd.DataFrame({name: _array(columns.pop()) for name in names}, copy=False)


def _array(column: Column) -> "ExtensionArray | NDArray[Any] | pd.Series[Any]":
    # Not a series: those have an index each, and to align these takes as long as a small read.
    values = column.values
    if isinstance(values, list):
        return pd.Series(values, dtype=object)  # of an array pandas would make texts if it holds nothing else
    if pa.types.is_fixed_size_list(values.type):
        return pd.arrays.ArrowExtensionArray(values)
    certain = column.name in NEVER_NULL and values.null_count == 0
    known = (NOT_NULL if certain else NULLABLE).get(values.type)
    array: ExtensionArray | NDArray[Any]
    if isinstance(known, pd.DatetimeTZDtype):
        array = _times(values, known)
    elif known:
        # Of a chunked array pandas copies numbers twice.
        alone = pa.types.is_integer(values.type) and values.num_chunks == 1
        array = known.__from_arrow__(values.chunk(0) if alone else values)
    else:
        # A copy of its own, as Arrow's memory is not writable.
        plain = certain or pa.types.is_floating(values.type)
        array = np.array(values.to_numpy()) if plain else values.to_pandas().array
    return array


def _times(values: pa.ChunkedArray, dtype: pd.DatetimeTZDtype) -> ExtensionArray:
    if values.null_count:  # pandas has the allocator of Arrow's do this, which keeps what it frees
        values = pc.call_function("coalesce", [values, NO_TIME], memory_pool=ALLOCATOR)
    array: ExtensionArray = dtype.__from_arrow__(values).copy()  # see above
    return array


def embedding_matrix(frame: pd.DataFrame) -> NDArray[np.float32]:
    """Matrix (n, dimensions) float32 of the column `embedding`, without a copy where no row is null.

    A null row is NaN. The matrix shares memory with the frame and is not writable.

    Raises:
        ValueError: the frame has no embeddings.
    """
    if "embedding" not in frame or not isinstance(frame["embedding"].dtype, pd.ArrowDtype):
        raise ValueError("the frame has no column of embeddings; load it with embeddings=True")
    chunked: pa.ChunkedArray = pa.chunked_array(frame["embedding"].array.__arrow_array__())
    array = chunked.chunk(0) if chunked.num_chunks == 1 else chunked.combine_chunks()
    length = array.type.list_size
    values = array.values.slice(array.offset * length, len(array) * length)
    matrix: NDArray[np.float32] = values.to_numpy(zero_copy_only=values.null_count == 0).reshape(-1, length)
    missing = array.is_null().to_numpy(zero_copy_only=False)
    if missing.any() and not np.isnan(matrix[missing]).all():
        matrix = matrix.copy()
        matrix[missing] = np.nan
    return matrix
