import json
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


def findings_of(at_migrated: str, *statements: str) -> Result:
    with psycopg.connect(at_migrated, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)
    return run("db", "check")


@pytest.mark.usefixtures("at_migrated")
def test_check_exits_with_0_where_nothing_is_found() -> None:
    done = run("db", "check")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "nothing found\n", "")
    assert run("db", "check", "--json").stdout == ""


ONE_MESSAGE = """
    with root as (insert into contexts (message_count, latest_version) values (1, 1) returning id)
    insert into messages (context_id, version, role, content) select id, 1, 'user', 'xyzzy' from root
"""


def test_check_exits_with_0_for_notes_and_with_1_for_warnings(at_migrated: str) -> None:
    noted = findings_of(at_migrated, ONE_MESSAGE)
    assert noted.exit_code == 0
    assert noted.stdout.splitlines()[1].split()[:2] == ["note", "null_embeddings"]
    warned = findings_of(at_migrated, "update contexts set message_count = 5")
    assert warned.exit_code == 1
    assert [line.split()[1] for line in warned.stdout.splitlines()] == ["kind", "message_count", "null_embeddings"]
    assert "message_count is 5, its live messages give 1" in warned.stdout
    assert "xyzzy" not in warned.stdout
    lines = [json.loads(line) for line in run("db", "check", "--json").stdout.splitlines()]
    assert [line["severity"] for line in lines] == ["warning", "note"]


def test_check_shows_controls_of_a_role_as_escapes(at_migrated: str) -> None:
    done = findings_of(at_migrated, ONE_MESSAGE, "update messages set role = e'\\x1b[2J\\nx'")
    assert "\x1b" not in done.stdout
    assert "role \\x1b[2J x" in done.stdout


def test_check_counts_what_it_does_not_print(at_migrated: str) -> None:
    done = findings_of(at_migrated, "insert into contexts (message_count) select 1 from generate_series(1, 25)")
    lines = done.stdout.splitlines()
    assert len(lines) == 1 + 20 + 1
    assert lines[-1] == "5 more of message_count; --json prints all"
    assert len(run("db", "check", "--json").stdout.splitlines()) == 25


@pytest.mark.usefixtures("at_empty")
def test_check_says_in_a_line_that_tables_are_missing() -> None:
    done = run("db", "check")
    assert (done.exit_code, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    assert "missing" in done.stderr


@pytest.mark.parametrize("command", ["upgrade", "migrate"])
def test_upgrade_prints_sql_and_runs_nothing(at_empty: str, command: str) -> None:
    done = run("db", command, "--sql")
    assert (done.exit_code, done.stderr) == (0, "")
    assert "CREATE TABLE messages" in done.stdout
    assert "state        empty" in run("db", "status").stdout
    with psycopg.connect(at_empty, autocommit=True) as connection:
        connection.execute(done.stdout)
    assert run("db", "status").exit_code == 0
    assert run("db", command, "--sql").stdout == "-- nothing to do\n"


def test_python_m_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "contextkit", "db", "--help"], capture_output=True, text=True, check=True
    )
    for command in ("generate", "migrate", "push", "status", "studio"):
        assert command in done.stdout
