"""Vectors as parameters in PostgreSQL's binary form: as text, 1536 numbers take longer than to search with them."""

from collections.abc import Callable
from typing import Any

from pgvector import Vector
from pgvector.sqlalchemy import VECTOR
from sqlalchemy import Dialect
from sqlalchemy.types import UserDefinedType

from contextkit.parameters import Binary

REAL_OID = 700


class VectorType(VECTOR):
    """A vector, sent in binary where the driver is psycopg."""

    cache_ok = True

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any]:
        """Give what makes a parameter of a list, an array or a Vector."""
        if dialect.driver != "psycopg":
            processor: Callable[[Any], Any] = super().bind_processor(dialect)
            return processor
        return _vector


def _vector(value: Any) -> Binary | None:
    if value is None:
        return None
    return Binary((value if isinstance(value, Vector) else Vector(value)).to_binary())


class RealsType(UserDefinedType[Any]):
    """The numbers of a float32 array, row by row, as `real[]`; always to be cast to it."""

    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        """Give the type that a cast names."""
        return "REAL[]"

    def bind_processor(self, dialect: Dialect) -> Any:  # SQLAlchemy's types of both are private
        """Give what makes a parameter of an array."""
        return (
            _reals if dialect.driver == "psycopg" else lambda value: None if value is None else value.ravel().tolist()
        )

    def literal_processor(self, dialect: Dialect) -> Any:
        """Spell the numbers out."""
        return lambda value: f"'{{{','.join(map(repr, value.ravel().tolist()))}}}'"


def _reals(value: Any) -> Binary | None:
    if value is None:
        return None
    import numpy as np

    items = np.empty(value.size, [("bytes", ">i4"), ("number", ">f4")])
    items["bytes"], items["number"] = 4, value.ravel()
    # One dimension, no nulls, the type, and how many from which number on.
    header = np.array([1, 0, REAL_OID, value.size, 1], ">i4")
    return Binary(header.tobytes() + items.tobytes())
