"""What is shown can be read and used by all: axe-core's checks, and the keyboard."""

from pathlib import Path

import pandas as pd
import pytest
from sqlalchemy import Engine

from contextkit import contexts_df, history_df, load_sample, show
from tests.browser.conftest import Watched

AXE = Path(__file__).parent / ".axe" / "axe.min.js"
LONG = "A long message. " * 400


def violations(watched: Watched) -> list[str]:
    if not AXE.exists():
        pytest.skip("axe-core is not there (make axe)")
    watched.page.evaluate(AXE.read_text())  # a script in the page its own policy would refuse
    found = watched.page.evaluate("axe.run()")
    return [
        f"{rule['impact']} {rule['id']}: {node['html'][:200]}" for rule in found["violations"] for node in rule["nodes"]
    ]


@pytest.fixture
def transcript(database: Engine, tmp_path: Path) -> Path:
    """A page with all that a transcript has: forks, tool calls, deleted and long messages, code, tables."""
    load_sample(database)
    history = history_df(database, contexts_df(database)["context_id"], include_deleted=True)
    long = pd.DataFrame({"role": ["user", "assistant"], "content": [LONG, f"```python\n{LONG}\n```"]})
    path = tmp_path / "transcript.html"
    show(pd.concat([history[:150], long])).save(path)
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_transcript_passes_axe_in_both_themes(watched: Watched, transcript: Path, scheme: str) -> None:
    watched.page.emulate_media(color_scheme=scheme)
    watched.page.goto(transcript.as_uri())
    assert violations(watched) == []
