import shutil
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Engine
from typer.testing import CliRunner, Result

from contextkit import migrate, schema_status
from contextkit.cli import app


@pytest.fixture
def at_empty(empty_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Point the commands to an empty database."""
    monkeypatch.setenv("DATABASE_URL", empty_url)
    return empty_url


@pytest.fixture
def at_migrated(database_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Point the commands to a migrated database."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    return database_url


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.usefixtures("at_empty")
def test_migrate_prints_the_revision() -> None:
    done = run("db", "migrate")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "4c1d8a7e2b90\n", "")


@pytest.mark.usefixtures("at_empty")
def test_status_exits_with_1_until_the_state_is_current() -> None:
    before = run("db", "status")
    assert before.exit_code == 1
    assert before.stdout.splitlines() == [
        "revision     -",
        "head         4c1d8a7e2b90",
        "state        empty",
        "differences  -",
    ]
    run("db", "migrate")
    after = run("db", "status")
    assert after.exit_code == 0
    assert "state        current" in after.stdout


def test_status_lists_each_difference_on_a_line(at_migrated: str) -> None:
    with psycopg.connect(at_migrated, autocommit=True) as connection:
        connection.execute("alter table messages drop column model, drop column tool_name")
    done = run("db", "status")
    assert done.exit_code == 1
    assert done.stdout.splitlines()[-2:] == [
        "differences  messages.tool_name is missing",
        "             messages.model is missing",
    ]


def test_push_needs_force_elsewhere_than_on_the_embedded_database(at_migrated: str, engine: Engine) -> None:
    with psycopg.connect(at_migrated, autocommit=True) as connection:
        connection.execute("drop index messages_deleted_at_idx")
    refused = run("db", "push")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert len(refused.stderr.splitlines()) == 1
    done = run("db", "push", "--force")
    assert done.exit_code == 0
    assert done.stdout.startswith("CREATE INDEX messages_deleted_at_idx")
    assert schema_status(engine).state == "current"


@pytest.mark.usefixtures("at_migrated")
def test_generate_refuses_a_bad_slug_and_no_differences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "migrations"
    shutil.copytree(migrate.migrations_folder(), copy)
    monkeypatch.setattr(migrate, "migrations_folder", lambda: copy)
    for slug, reason in {"no good": "slug", "good": "no differences"}.items():
        done = run("db", "generate", slug)
        assert (done.exit_code, done.stdout) == (1, "")
        assert reason in done.stderr


@pytest.mark.usefixtures("at_migrated")
def test_info_prints_a_line_for_each_row() -> None:
    done = run("info")
    assert done.exit_code == 0
    assert len(done.stdout.splitlines()) == 14
    assert "schema       current" in done.stdout


@pytest.mark.usefixtures("at_migrated")
def test_import_and_export_say_what_they_did(tmp_path: Path) -> None:
    line = '{"messages": [{"role": "user", "content": "Hi"}]}\n'
    (tmp_path / "x.jsonl").write_text(line)
    for state in ("new", "unchanged"):
        assert run("import", str(tmp_path / "x.jsonl")).stdout == f"{tmp_path / 'x.jsonl'}: 1 {state} contexts\n"
    assert run("export", str(tmp_path / "y.jsonl")).stdout == f"{tmp_path / 'y.jsonl'}: 1 contexts\n"
    assert (tmp_path / "y.jsonl").read_text() == line
    refused = run("export", str(tmp_path / "y.csv"))
    assert (refused.exit_code, len(refused.stderr.splitlines())) == (1, 1)
    assert "name one" in refused.stderr
    assert run("export", str(tmp_path / "z"), "--format", "parquet").exit_code == 0


@pytest.mark.usefixtures("at_migrated")
def test_import_says_what_it_passed_over_and_a_missing_file_in_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    lines = ['{"messages": [{"role": "user", "content": "Hi"}]}', '{"messages": []}', '{"messages": 1}']
    (folder / "x.jsonl").write_text("\n".join(lines))
    (folder / "y.json").write_text("{}")
    done = run("import", str(folder), "--skip-errors")
    assert done.stdout.partition(": ")[2].splitlines() == [
        "1 new contexts, 1 conversations without messages, 1 conversations skipped, 1 files of no known format"
    ]
    for missing in (run("import", str(tmp_path / "none")), run("export", str(tmp_path / "none" / "x.jsonl"))):
        assert (missing.exit_code, len(missing.stderr.splitlines())) == (1, 1)


def test_an_error_is_one_line_without_traceback_or_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://postgres:sEcr3t@127.0.0.1:1/none")
    done = run("info")
    assert (done.exit_code, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
    assert "cannot connect" in done.stderr
    assert "sEcr3t" not in done.output


def test_a_bug_shows_no_locals_and_so_no_password(database_url: str) -> None:
    program = """
from contextkit import cli
@cli.app.command()
def bug():
    url = "".join(["postgresql://postgres:sEc", "r3t@host/database"])
    raise RuntimeError("bug")
cli.app(["bug"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "RuntimeError" in done.stderr
    assert "sEcr3t" not in done.stderr


@pytest.mark.usefixtures("at_migrated")
def test_the_studio_says_which_extra_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "voila", None)
    done = run("db", "studio")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "contextkit[studio]" in done.stderr


def test_the_studio_does_not_open_on_a_database_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://postgres@127.0.0.1:1/none")
    done = run("db", "studio")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "cannot connect" in done.stderr


def test_python_m_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "contextkit", "db", "--help"], capture_output=True, text=True, check=True
    )
    for command in ("generate", "migrate", "push", "status", "studio"):
        assert command in done.stdout
