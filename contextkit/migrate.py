"""`upgrade`, `schema_status`, `push` and `generate`: thin calls into Alembic, about the two tables only."""

import io
import re
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from sqlalchemy import DDL, Connection, Engine, event, text
from sqlalchemy.exc import DBAPIError

from contextkit.comparison import (
    VERSION_TABLE,
    alone,
    context_of,
    differences_of,
    is_addition,
    operations_of,
    tables_of,
)
from contextkit.connection import check_writable, direct_engine, settings_of, translated_errors
from contextkit.errors import ContextkitError, SchemaError

with alone():
    from alembic import command
    from alembic.config import Config
    from alembic.operations import Operations
    from alembic.script import ScriptDirectory

LOCK = text("select pg_advisory_xact_lock(7235094618)")
PACKAGED = Path(__file__).with_name("migrations")
NOTHING = "nothing to do"


def upgrade(engine: Engine) -> str:
    """Revision after bringing the database to the newest one, in one transaction; two at once are fine.

    Tables without a revision, made by another tool, are adopted: if they fit, their revision is written down
    and nothing else changes.

    Raises:
        SchemaError: the tables differ (the text lists how), the database is newer than this contextkit, or
            the extension vector is missing and cannot be created.
        ReadOnlyError: the engine was opened for reading.
    """
    with _writing(engine) as connection:
        status = _status(connection)
        if _are_gone(status, connection):
            command.stamp(_config(connection), "base")
            status = _status(connection)
        _check_upgradable(status)
        if status.state == "unmanaged":
            command.stamp(_config(connection), "head")
        elif status.revision != status["head"]:
            _ensure_vector(connection)
            command.upgrade(_config(connection), "head")
        return str(context_of(connection).get_current_revision())


def upgrade_sql(engine: Engine) -> str:
    """SQL that `upgrade` would run now, as a script for psql; nothing is run, and an engine for reading will do.

    A comment if there is nothing to do.

    Raises:
        SchemaError: as from `upgrade`, except that who runs the script needs the right to create the extension.
    """
    script = io.StringIO()
    with translated_errors(), alone(), engine.connect() as connection:
        status, config = _status(connection), _config(connection, script)
        if _are_gone(status, connection):
            command.stamp(config, f"{status.revision}:base", sql=True)
            status["revision"], status["state"] = None, "empty"
        _check_upgradable(status)
        if status.state == "unmanaged":
            command.stamp(config, "head", sql=True)
        elif status.revision != status["head"]:
            _has_vector(connection)
            command.upgrade(config, f"{status.revision}:head" if status.revision else "head", sql=True)
    # There it is already where nothing has been migrated yet or any longer, as after a downgrade.
    table = f"CREATE TABLE {VERSION_TABLE}"
    return script.getvalue().replace(table, table.replace("TABLE", "TABLE IF NOT EXISTS")).strip() or f"-- {NOTHING}"


def schema_status(engine: Engine) -> pd.Series:
    """State of the two tables, as a Series: revision, head, state, differences.

    The state is one word: `current` (at head, and the tables fit), `behind` (at an older revision; run
    upgrade), `empty` (neither table), `unmanaged` (the tables fit but have no revision; upgrade adopts them),
    `different` (differences lists how), `unknown` (a revision that this contextkit lacks, so a newer one's).
    Foreign tables, extra columns, indexes of others, `on delete` actions and an enum role are no differences.
    """
    with translated_errors(), alone(), engine.connect() as connection:
        return _status(connection)


def push(engine: Engine, *, force: bool = False) -> str:
    """SQL that was run to add what the models have and the database lacks; for development only.

    It leaves no revision, and never drops or alters: differences that need it follow the SQL as comments.

    Args:
        force: also on a database other than the embedded one.

    Raises:
        ValueError: not the embedded server, and not forced.
        ReadOnlyError: the engine was opened for reading.
    """
    settings = settings_of(engine)
    if not force and (settings is None or settings.server is None):
        raise ValueError("push is for the embedded server; run upgrade(engine), or push(engine, force=True)")
    with _writing(engine) as connection:
        found = operations_of(connection)
        additions = [operation for operation in found if is_addition(operation, found)]
        with _recorded(connection) as statements:
            if additions:
                _ensure_vector(connection)
            for operation in additions:
                Operations(context_of(connection)).invoke(operation)
        remaining = [f"-- remains: {difference}" for difference in differences_of(connection)]
    return "\n".join(statements + remaining) or NOTHING


def generate(engine: Engine, slug: str) -> Path:
    """File of a new revision, written from how the models differ from a database at head.

    What the models no longer have is not dropped; such a revision is written by hand.

    Args:
        slug: letters, digits, _ and -; becomes part of the file's name.

    Raises:
        ValueError: the slug has other characters, or there are no differences.
        SchemaError: the database is not at head.
        ContextkitError: contextkit is installed and not a checkout, so has no place for a revision.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", slug):
        raise ValueError(f"a slug has letters, digits, _ and - only, not {slug[:60]!r}")
    if migrations_folder() == PACKAGED:
        raise ContextkitError("this contextkit is an installed package; generate revisions in a git checkout")
    with translated_errors(), alone(), engine.connect() as connection:
        status = _status(connection)
        if status.revision != status["head"]:
            raise SchemaError("the database is not at the newest revision; run upgrade(engine) first")
        if not operations_of(connection):
            raise ValueError("no differences between the models and the database; nothing was written")
        script = command.revision(_config(connection), slug, autogenerate=True)
    return Path(script.path)  # type: ignore[union-attr]


def migrations_folder() -> Path:
    """Folder of Alembic's env.py: inside an installed package, else beside the package in a checkout."""
    return PACKAGED if PACKAGED.is_dir() else PACKAGED.parents[1] / "migrations"


@contextmanager
def direct_transaction(engine: Engine) -> Iterator[Connection]:
    """Transaction that holds the lock of all migrations; not through Neon's pooler."""
    with direct_engine(engine) as direct, direct.connect() as connection:
        # Else an engine in AUTOCOMMIT would lose the lock at once and leave things half done.
        connection.execution_options(isolation_level="READ COMMITTED")
        with connection.begin():
            connection.execute(LOCK)
            yield connection


@contextmanager
def _writing(engine: Engine) -> Iterator[Connection]:
    check_writable(engine)
    with translated_errors(), alone(), direct_transaction(engine) as connection:
        yield connection


@contextmanager
def _recorded(connection: Connection) -> Iterator[list[str]]:
    statements: list[str] = []

    def record(_conn: Any, _cursor: Any, statement: str, _parameters: Any, context: Any, _many: bool) -> None:
        if context.isddl:
            statements.append(f"{statement.strip()};")

    event.listen(connection, "before_cursor_execute", record)
    try:
        yield statements
    finally:
        event.remove(connection, "before_cursor_execute", record)


def _config(connection: Connection, script: io.StringIO | None = None) -> Config:
    config = Config(cmd_opts=Namespace(quiet=True), output_buffer=script)
    config.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _status(connection: Connection) -> pd.Series:
    scripts = ScriptDirectory(migrations_folder())
    revision = context_of(connection).get_current_revision()
    differences = differences_of(connection)
    if revision is None and not tables_of(connection):
        state, differences = "empty", []
    elif revision is not None and revision not in {script.revision for script in scripts.walk_revisions()}:
        state = "unknown"
    elif revision is not None and revision != scripts.get_current_head():
        state = "behind"
    elif differences:
        state = "different"
    else:
        state = "unmanaged" if revision is None else "current"
    values = {"revision": revision, "head": scripts.get_current_head(), "state": state}
    return pd.Series(values | {"differences": differences}, dtype=object)


def _are_gone(status: pd.Series, connection: Connection) -> bool:
    """Tell whether somebody dropped both tables after they were migrated."""
    return status.revision is not None and not tables_of(connection)


def _check_upgradable(status: pd.Series) -> None:
    if status.state == "unknown":
        raise SchemaError(
            f"the database is at revision {status.revision}, which this contextkit lacks; install a newer one"
        )
    if status.state == "different":
        raise SchemaError(
            "contexts and messages were made or changed by another tool and differ from what contextkit needs: "
            f"{'; '.join(status.differences)}. nothing was changed; alter them, or use another database"
        )


def _ensure_vector(connection: Connection) -> None:
    """Create the extension vector; an error says who can if this role or this server cannot."""
    if not _has_vector(connection):
        _create_vector(connection)


def _has_vector(connection: Connection) -> bool:
    """Tell whether the extension vector is there; an error says where, if that is out of reach."""
    found = connection.execute(
        text(
            "select n.nspname, to_regtype('vector') is not null as visible from pg_extension e "
            "join pg_namespace n on n.oid = e.extnamespace where e.extname = 'vector'"
        )
    ).one_or_none()
    if found is not None and not found.visible:
        raise SchemaError(f"the extension vector is in schema {found.nspname}; add that to the search_path")
    return found is not None


def _create_vector(connection: Connection) -> None:
    try:
        connection.execute(DDL("create extension vector"))  # type: ignore[no-untyped-call]
    except DBAPIError as error:
        state = getattr(error.orig, "sqlstate", None)
        if state == "42501":
            raise SchemaError(
                "this role may not create the extension vector; "
                "ask the database's owner or a superuser to run: create extension vector"
            ) from None
        if state in ("0A000", "58P01"):
            raise SchemaError("the server has no pgvector; ask whoever runs it to install it") from None
        raise
