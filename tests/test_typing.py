"""The examples that type checkers read name every public function; `make lint` runs the checkers."""

import re
from pathlib import Path

import contextkit

USAGE = (Path(__file__).parent / "typing" / "usage.py").read_text(encoding="utf-8")


def test_the_examples_name_every_public_name() -> None:
    assert set(contextkit.__all__) <= set(re.findall(r"\w+", USAGE))
