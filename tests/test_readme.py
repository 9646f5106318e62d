"""The README lists every public name, and its Python runs and prints what it says."""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import contextkit

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n^```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)


def test_the_table_lists_every_public_name_once() -> None:
    section = README.partition("\n## Functions\n")[2].partition("\n## ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    assert sorted(re.findall(r"`(\w+)`", " ".join(cells))) == sorted(contextkit.__all__)


def test_the_code_prints_what_stands_below_it(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    blocks = BLOCK.findall(README)
    assert len(blocks) == README.count("```python")
    with pd.option_context("display.width", 80, "display.max_columns", 20):
        for code, output in blocks:
            assert printed(code, names) == output
    assert list(names["near"]["rank"]) == [1, 2, 3]
    assert len(names["tools"]) == 4
    assert set(names["recent"]["role"]) == {"user"}
    assert len(names["latest"]) == 10
    assert names["per_model"]["messages"].sum() == 369
    assert names["alone"]["message_id"].nunique() == 3
    assert len(names["pairs"]) == 8
    assert names["matrix"].shape == (358, contextkit.EMBEDDING_DIMENSIONS)
    assert names["tokens"] == 13799
    names["engine"].dispose()


def printed(code: str, names: dict[str, Any]) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as page:
        exec(code, names)
    return page.getvalue()
