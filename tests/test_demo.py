import os
import subprocess
import sys

import pandas as pd
import psycopg
import pytest

from contextkit import demo


@pytest.fixture(scope="module")
def page(server_url: str) -> str:
    """What the command prints where DATABASE_URL names a database that nobody can reach."""
    unreachable = os.environ | {"DATABASE_URL": "postgresql://postgres@127.0.0.1:1/mine", "PYTHONUTF8": "1"}
    command = [sys.executable, "-m", "contextkit", "demo"]
    return subprocess.run(command, env=unreachable, capture_output=True, encoding="utf-8", check=True).stdout


def test_it_shows_contexts_a_history_and_neighbors(page: str) -> None:
    for number in ("1. Contexts", "2. What the model saw", "3. Neighbors"):
        assert f"\n{number}" in page
    assert "topic    message_count  total_tokens\nbilling             48          1217\n" in page
    assert "      15        7  user       import: CSV script, a mail when i…  Simple enough. Thanks!\n" in page
    assert "   1     0.273  import: CSV upload fails at umlauts     Uploading a CSV gives me: invalid byte 0…\n" in page


def test_no_line_is_wider_than_100_columns(page: str) -> None:
    assert max(map(len, page.splitlines())) <= 100


def test_it_leaves_no_database_behind(page: str, server_url: str) -> None:
    with psycopg.connect(server_url) as connection:
        names = connection.execute("select datname from pg_database").fetchall()
    assert not [name for (name,) in names if "demo" in name]


@pytest.mark.parametrize("text", ["\x1b[2J", "\x9b2J", "\a", "\u202e", "a\rb", "a\nb", "a\u2028b"])
def test_content_cannot_steer_the_terminal(text: str) -> None:
    table = demo.as_text(pd.DataFrame({"content": [text]}))
    assert len(table.splitlines()) == 2
    assert table.replace("\n", "").isprintable()


def test_markup_of_rich_is_only_text() -> None:
    assert "[red]hello[/red]" in demo.as_text(pd.DataFrame({"content": ["[red]hello[/red]"]}))


def test_a_terminal_that_lacks_a_character_shows_another(page: str, server_url: str) -> None:
    command = [sys.executable, "-m", "contextkit", "demo"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=environment, capture_output=True, encoding="ascii", check=True)
    assert len(done.stdout.splitlines()) == len(page.splitlines())
