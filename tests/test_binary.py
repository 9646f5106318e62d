"""Vectors sent in binary arrive as they are."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from pgvector import Vector
from sqlalchemy import Engine, Text, cast, literal, select
from sqlalchemy.dialects.postgresql.psycopg2 import PGDialect_psycopg2

from contextkit.binary import RealsType, VectorType

NUMBERS = np.array([0.1, -2.5, 1e-38, 3.4e38, 16_777_217], np.float32)


def read(engine: Engine, value: Any, type_: Any) -> str | None:
    with engine.connect() as connection:
        text: str | None = connection.execute(select(cast(cast(literal(value, type_), type_), Text))).scalar_one()
        return text


@pytest.mark.parametrize("form", [np.asarray, list, np.ndarray.tolist, Vector, np.float64], ids=str)
def test_a_vector_of_any_form_arrives_to_the_last_bit(shared: Engine, form: Any) -> None:
    text = read(shared, form(NUMBERS), VectorType())
    assert text is not None
    assert np.array(text.strip("[]").split(","), np.float32).tolist() == NUMBERS.tolist()


def test_an_engine_that_is_made_before_anything_else_is_imported_sends_vectors_too(database_url: str) -> None:
    program = "import sys, contextkit as ck; print(ck.load_sample(ck.connect(sys.argv[1], write=True)))"
    done = subprocess.run([sys.executable, "-c", program, database_url], capture_output=True, text=True, check=False)
    assert int(done.stdout or 0) > 50, done.stderr


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_a_matrix_arrives_row_by_row(shared: Engine, rows: int) -> None:
    matrix = np.stack([NUMBERS + row for row in range(rows)]) if rows else np.empty((0, 5), np.float32)
    text = read(shared, matrix, RealsType())
    assert text is not None
    assert np.fromstring(text.strip("{}"), np.float32, sep=",").tolist() == matrix.ravel().tolist()


@pytest.mark.parametrize("type_", [VectorType(), RealsType()])
def test_null_stays_null(shared: Engine, type_: Any) -> None:
    assert read(shared, None, type_) is None


def test_another_driver_gets_what_it_knows() -> None:
    dialect: Any = PGDialect_psycopg2()
    assert VectorType().bind_processor(dialect)([1.0, 2.0]) == "[1.0,2.0]"
    assert RealsType().bind_processor(dialect)(np.ones((2, 1), np.float32)) == [1.0, 1.0]
    assert RealsType().bind_processor(dialect)(None) is None
