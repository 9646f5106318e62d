"""Columns gathered from the batches of a bulk read: a column of a batch keeps all of it, as long texts may only."""

import json
from binascii import hexlify
from collections.abc import Iterable, Sequence
from mmap import ACCESS_COPY, mmap
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from contextkit.vectors import grown, room

ALLOCATOR = pa.system_memory_pool()
"""Arrow's own keeps much of what it has freed."""

ARROW_TYPES: dict[str, pa.DataType] = {
    "bool": pa.bool_(),
    "bpchar": pa.large_string(),
    "date": pa.date32(),
    "float4": pa.float64(),
    "float8": pa.float64(),
    "int2": pa.int64(),
    "int4": pa.int64(),
    "int8": pa.int64(),
    "interval": pa.duration("us"),
    "name": pa.large_string(),
    "numeric": pa.float64(),
    "text": pa.large_string(),
    "timestamp": pa.timestamp("us"),
    "timestamptz": pa.timestamp("us", tz="UTC"),
    "uuid": pa.large_string(),
    "varchar": pa.large_string(),
}
BULK_TYPES = ARROW_TYPES.keys() - {"interval"} | {"json", "jsonb", "vector"}

TEXT_SHARE, TEXT_BYTES = 5 / 6, 200
"""What texts are of a batch that stays, and of its row, at least: the rest is wasted then."""

MOST_PIECE_BYTES = 16 * 2**20
FIRST_ROWS = 10_000_000
"""Most that a column of numbers is reserved for at first, as some systems count memory before it is written."""

_Offsets = NDArray[np.int64]
_Bytes = NDArray[np.uint8]

_DIGITS = np.dtype("V8, V4, V4, V4, V12")
_UUID_TEXT = np.dtype("V8, S1, V4, S1, V4, S1, V4, S1, V12")
"""A field of digits, then one of a dash, and so on."""


class Growing(Protocol):
    """A column to which the arrays of batches are added as they come."""

    def add(self, array: pa.Array, /) -> None:
        """Add what a batch holds of it, in memory of its own."""

    def keep(self, array: pa.Array, /) -> None:
        """Add what a batch holds of it, where all of the batch may stay."""


class Gathered(Growing, Protocol):
    """One that holds all its values when the last one was added."""

    def finish(self) -> pa.ChunkedArray | list[Any]:
        """Give the whole column."""


def gathered(kind: str, rows: int) -> Gathered:
    """A column of this type of PostgreSQL's, for so many rows or more."""
    if kind in ("json", "jsonb"):
        return _Documents()
    if kind == "uuid":
        return _Ids()
    type_ = ARROW_TYPES[kind]
    return _Texts() if pa.types.is_large_string(type_) else _Fixed(type_, rows)


def gather(columns: Sequence[Growing], batches: Iterable[pa.RecordBatch]) -> None:
    """Add batches to columns.

    Those of long texts are only put aside while rows come: what is done meanwhile holds up whoever sends them.
    """
    kept: list[pa.RecordBatch] = []
    for batch in batches:
        if _is_mostly_text(batch):
            kept.append(batch)
        else:
            _keep(columns, kept)
            kept.clear()
            _add(columns, batch)
        del batch  # else it would stay beside the next
    _keep(columns, kept)


def _is_mostly_text(batch: pa.RecordBatch) -> bool:
    texts = (array.buffers()[2] for array in batch.columns if array.type == pa.string())
    size: int = sum(text.size for text in texts if text)
    return size > max(TEXT_SHARE * int(batch.nbytes), TEXT_BYTES * len(batch))


def _add(columns: Sequence[Growing], batch: pa.RecordBatch) -> None:
    for column, array in zip(columns, batch.columns, strict=True):
        column.add(_storage(array))


def _keep(columns: Sequence[Growing], batches: Sequence[pa.RecordBatch]) -> None:
    for place, column in enumerate(columns):
        for batch in batches:
            column.keep(_storage(batch.column(place)))


def _storage(array: pa.Array) -> pa.Array:
    return array.storage if isinstance(array, pa.ExtensionArray) else array


class _Documents:
    def __init__(self) -> None:
        self._values: list[Any] = []

    def add(self, array: pa.Array) -> None:
        self._values += [None if text is None else json.loads(text) for text in array.to_pylist()]

    keep = add

    def finish(self) -> list[Any]:
        return self._values


class _Texts:
    """Left in pieces: they may be most of the result, and would be there twice while they are joined."""

    def __init__(self) -> None:
        self._chunks: list[pa.LargeStringArray] = []
        self._gathered = 0  # bytes, in all pieces
        self._begin(0)

    def _begin(self, least: int) -> None:
        # Large ones come in huge pages, which cost far less than many of 4 KiB, where the rest is little of the whole.
        self._text = np.empty(max(least, min(self._gathered // 4, MOST_PIECE_BYTES)), np.uint8)
        self._used = 0
        self._offsets: list[_Offsets] = [np.zeros(1, np.int64)]
        self._valid: list[pa.BooleanArray] = []

    def add(self, array: pa.Array) -> None:
        offsets, text = self._parts(array)
        if self._used + len(text) > len(self._text):
            self._end()
            self._begin(len(text))
        start, self._used = self._used, self._used + len(text)
        self._text[start : self._used] = text
        self._gathered += len(text)
        self._offsets.append(offsets[1:] + (start - offsets[0]))
        self._valid.append(_valid(array))

    def keep(self, array: pa.Array) -> None:
        self._end()
        self._begin(0)
        self._chunks.append(array.cast(pa.large_string()))

    def _end(self) -> None:
        offsets = np.concatenate(self._offsets)
        buffers = [_bits(self._valid), pa.py_buffer(offsets), pa.py_buffer(self._text[: self._used])]
        if len(offsets) > 1:
            self._chunks.append(pa.Array.from_buffers(pa.large_string(), len(offsets) - 1, buffers))

    def finish(self) -> pa.ChunkedArray:
        self._end()
        return pa.chunked_array(self._chunks, pa.large_string())

    @staticmethod
    def _parts(array: pa.Array) -> tuple[_Offsets, _Bytes]:
        offsets = np.frombuffer(array.buffers()[1], np.int32)[array.offset : array.offset + len(array) + 1]
        text = np.frombuffer(array.buffers()[2] or b"", np.uint8)[offsets[0] : offsets[-1]]
        return offsets.astype(np.int64), text


class _Ids(_Texts):
    keep = _Texts.add

    @staticmethod
    def _parts(array: pa.Array) -> tuple[_Offsets, _Bytes]:
        """Text of UUIDs given as 16 bytes; far cheaper here than by a cast on the server and 36 bytes on the wire."""
        start, rows = array.offset, len(array)
        digits = np.frombuffer(hexlify(array.buffers()[1][16 * start : 16 * (start + rows)]), _DIGITS)
        texts = np.full(36 * rows, ord("-"), np.uint8)
        for place in range(5):
            texts.view(_UUID_TEXT)[f"f{2 * place}"] = digits[f"f{place}"]
        return np.arange(0, 36 * (rows + 1), 36, dtype=np.int64), texts


class _Fixed:
    """Values of one width, in one array that grows in place: pieces would leave holes in memory when joined."""

    def __init__(self, type_: pa.DataType, rows: int) -> None:
        self._type = type_
        self._stored = pa.uint8() if pa.types.is_boolean(type_) else type_  # which are bits else
        width = self._stored.bit_width // 8
        # What is mapped goes back to the system when the column is converted, however small.
        reserved = max(1, room(min(rows, FIRST_ROWS), width)) * width
        self._values = np.frombuffer(mmap(-1, reserved, access=ACCESS_COPY), f"u{width}")
        self._valid: list[pa.BooleanArray] = []
        self._rows = 0

    def add(self, array: pa.Array) -> None:
        stored = array if array.type == self._stored else array.cast(self._stored, memory_pool=ALLOCATOR)
        start, self._rows = self._rows, self._rows + len(stored)
        self._values = grown(self._values, self._rows)
        values = np.frombuffer(stored.buffers()[1] or b"", self._values.dtype)
        self._values[start : self._rows] = values[stored.offset : stored.offset + len(stored)]
        self._valid.append(_valid(stored))

    keep = add

    def finish(self) -> pa.ChunkedArray:
        buffers = [_bits(self._valid), pa.py_buffer(self._values[: self._rows])]
        array = pa.Array.from_buffers(self._stored, self._rows, buffers)
        return pa.chunked_array([array.cast(self._type)])


def _valid(array: pa.Array) -> pa.BooleanArray:
    """Which values are not null, in memory of its own."""
    return pa.concat_arrays([array.is_valid()], ALLOCATOR)


def _bits(valid: list[pa.BooleanArray]) -> pa.Buffer | None:
    """Which rows are not null, in memory of its own; None if all."""
    if all(part.false_count == 0 for part in valid):
        return None
    bits: pa.Buffer = pa.concat_arrays(valid, ALLOCATOR).buffers()[1]
    return bits
