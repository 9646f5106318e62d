"""What `contextkit contexts` and `contextkit show` print, in pipes and in terminals."""

import json
import os
import pty
import subprocess
import sys
from datetime import datetime
from typing import Any

import pandas as pd
import pytest
from sqlalchemy import Engine

from contextkit import (
    Context,
    add_context,
    append_messages,
    contexts_df,
    delete_context,
    delete_messages,
    fork_context,
    history_df,
)
from tests.test_cli import run
from tests.test_derived import call, result, user

NOBODY = "00000000-0000-4000-8000-000000000000"
HOSTILE = "[red]bold[/red] :smile: \x1b[2J\x1b]0;owned\x07 \x9b31m \x7f \u202egnp.exe\r  9 system 2026-01-01 00:00"


@pytest.fixture
def at(database_url: str, monkeypatch: pytest.MonkeyPatch, engine: Engine) -> Engine:
    """Point the commands to the engine's database."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    return engine


def printed(*arguments: str) -> str:
    done = run(*arguments)
    assert (done.exit_code, done.stderr) == (0, "")
    return done.stdout


def in_terminal(database_url: str, *arguments: str, columns: int = 80) -> str:
    """What a terminal gets."""
    here, there = pty.openpty()
    environment = os.environ | {"DATABASE_URL": database_url, "COLUMNS": str(columns), "TERM": "xterm"}
    command = [sys.executable, "-m", "contextkit", *arguments]
    with subprocess.Popen(command, env=environment, stdout=there, stderr=there) as process:
        os.close(there)
        page = b""
        while chunk := _read(here):
            page += chunk
    os.close(here)
    assert process.returncode == 0
    return page.decode().replace("\r\n", "\n")


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # how Linux says that nobody writes any more
        return b""


def test_contexts_are_a_table_by_creation_with_whole_ids_and_names(at: Engine) -> None:
    name = "a name that is longer than a terminal is wide, for it goes on and on until nobody would read it any more"
    ids = [add_context(at, name), add_context(at), add_context(at, "third")]
    append_messages(at, ids[2], [user("a"), user("b")])
    delete_context(at, ids[1])
    lines = [line.rstrip() for line in printed("contexts").splitlines()]
    today = f"{contexts_df(at)['created_at'][0]:%Y-%m-%d}"
    assert lines[0].split() == ["context_id", "created", "messages", "name"]
    assert lines[1:] == [f"{ids[0]}  {today}         0  {name}", f"{ids[2]}  {today}         2  third"]
    assert [line[:36] for line in printed("contexts", "--deleted", "--limit", "2").splitlines()[1:]] == ids[1:]
    assert "(deleted)" in printed("contexts", "--deleted").splitlines()[2]


def test_a_history_shows_headings_texts_and_where_it_was_forked(at: Engine) -> None:
    root = add_context(at, "root")
    append_messages(
        at,
        root,
        [user("one\n\ntwo", token_count=1200), call("c1", "search", '{"q": 1}', model="m1"), result("c1", "three")],
    )
    fork = fork_context(at, root, 2, "fork")
    written = append_messages(at, fork, [user("four")])
    times = [f"{time:%Y-%m-%d %H:%M}" for time in history_df(at, fork)["created_at"]]
    assert printed("show", fork) == (
        f"fork\n{fork}\nfork of {root} at version 2\n3 messages, 1,200 tokens\n\n"
        f"  1 user {times[0]}, 1,200 tokens\n    one\n\n    two\n\n"
        f'  2 assistant {times[1]}, calls search, c1, m1\n    {{"q": 1}}\n\n'
        f"--- forked here ---\n\n  3 user {times[2]}\n    four\n\n"
    )
    assert "four" not in printed("show", fork, "--at-version", "2")
    delete_messages(at, written["message_id"][0])
    assert "four" not in printed("show", fork)
    assert f"  3 user {times[2]}, deleted\n    four\n" in printed("show", fork, "--deleted")


def test_json_is_a_line_per_row_with_every_column(at: Engine) -> None:
    root = add_context(at, HOSTILE)
    append_messages(at, root, [user(HOSTILE), user("ü\n", model="m")])
    assert printed("contexts", "--json", "--limit", "1").isascii()
    for page, frame in (
        (printed("contexts", "--json"), contexts_df(at)),
        (printed("show", root, "--json"), history_df(at, root)),
    ):
        assert page.endswith("}\n")
        assert page.replace("\n", "").isprintable()
        rows = [json.loads(line) for line in page.splitlines()]
        assert [list(row) for row in rows] == [list(frame.columns)] * len(frame)
        for name in frame.columns:
            assert [_plain(row[name]) for row in rows] == [_plain(value) for value in frame[name]]


def _plain(value: Any) -> Any:
    if isinstance(value, str) and value.startswith("20") and value.endswith("Z"):
        return datetime.fromisoformat(value)
    return None if pd.isna(value) else value


def test_without_rows_json_prints_nothing_and_a_table_its_head(at: Engine) -> None:
    assert printed("contexts", "--json") == ""
    assert printed("contexts").split() == ["context_id", "created", "messages", "name"]
    empty = add_context(at)
    assert printed("show", empty, "--json") == ""
    assert printed("show", empty) == f"\n{empty}\n0 messages, 0 tokens\n\n"


@pytest.mark.parametrize("terminal", [False, True])
def test_content_names_and_models_cannot_steer_a_terminal(at: Engine, database_url: str, terminal: bool) -> None:
    root = add_context(at, HOSTILE)
    append_messages(at, root, [user(HOSTILE, model=HOSTILE), call(HOSTILE, HOSTILE, HOSTILE)])
    for arguments in (("contexts",), ("show", root)):
        page = in_terminal(database_url, *arguments, columns=400) if terminal else printed(*arguments)
        for style in ("\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[1;36m", "\x1b[1;32m"):  # of our own
            page = page.replace(style, "")
        assert page.replace("\n", "").isprintable()
        assert "[red]bold[/red] :smile: \\x1b[2J\\x1b]0;owned\\x07 \\x9b31m \\x7f \\u202egnp.exe" in page


def test_what_a_message_says_cannot_pass_for_a_heading(at: Engine, database_url: str) -> None:
    root = add_context(at, "name")
    append_messages(
        at, root, [user("x" * 70 + "\n  2 system 2026-01-01 00:00\n\n" + "  3 system 2026-01-01 00:00 " * 9)]
    )
    for page in (printed("show", root), in_terminal(database_url, "show", root)):
        _, _, messages = page.partition("\n\n")
        headings = [line for line in messages.splitlines() if line.strip() and not line.startswith("    ")]
        assert len(headings) == 1


def test_a_terminal_has_colours_and_its_width(at: Engine, database_url: str) -> None:
    root = add_context(at, "name")
    append_messages(at, root, [user("many words " * 30)])
    page = in_terminal(database_url, "show", root, columns=60)
    assert "\x1b[1;36muser\x1b[0m" in page
    assert max(map(len, page.partition("\n\n")[2].splitlines()[1:])) <= 60
    assert "\x1b" not in printed("show", root)


def test_what_the_encoding_lacks_shows_as_its_code(at: Engine, database_url: str) -> None:
    add_context(at, "Grüße")
    environment = os.environ | {"DATABASE_URL": database_url, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "contextkit", "contexts"]
    done = subprocess.run(command, env=environment, capture_output=True, encoding="ascii", check=True)
    assert "Gr\\xfc\\xdfe" in done.stdout


def test_a_long_message_costs_no_more_than_its_length(at: Engine) -> None:
    root = add_context(at, "n" * 100_000)
    append_messages(at, root, [user("x" * 1_000_000 + "\n" * 1_000)])
    assert len(printed("show", root)) < 1_010_000
    assert len(printed("contexts")) < 1_000


@pytest.mark.parametrize(("id_", "said"), [(NOBODY, "no context has the id"), ("first", "a UUID is expected")])
@pytest.mark.usefixtures("at")
def test_a_context_that_is_not_there_is_said_in_one_line(id_: str, said: str) -> None:
    done = run("show", id_)
    assert (done.exit_code, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    assert said in done.stderr


def test_a_deleted_context_is_shown_on_request(at: Engine) -> None:
    gone = add_context(at, "gone")
    delete_context(at, gone)
    assert run("show", gone).exit_code == 1
    assert printed("show", gone.upper(), "--deleted").startswith(f"gone\n{gone}\ndeleted\n")
    assert len(contexts_df(at, Context.id == gone)) == 0
