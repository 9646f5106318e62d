"""`upgrade`, `schema_status`, `push` and `generate`: thin calls into Alembic, about the two tables only."""

import logging
import re
import threading
import warnings
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from sqlalchemy import DDL, Connection, Engine, ForeignKeyConstraint, Inspector, event, inspect, text
from sqlalchemy.dialects.postgresql import ENUM
from sqlalchemy.exc import DBAPIError, SAWarning
from sqlalchemy.types import NullType

from contextkit.connection import READ_ONLY, direct_engine, settings_of, translated_errors
from contextkit.errors import ContextkitError, ReadOnlyError, SchemaError
from contextkit.models import Base, IdType, RoleType

_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def _alone() -> Iterator[None]:
    """One thread at a time, as Alembic's `op` and `context` are the process's, and none of its log lines."""
    logger = logging.getLogger("alembic")
    with _ONE_AT_A_TIME, warnings.catch_warnings(action="ignore", category=SAWarning):
        level = logger.level
        logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            logger.setLevel(level)


with _alone():  # being imported, Alembic logs a line for each of its plugins
    from alembic import command
    from alembic.autogenerate import produce_migrations
    from alembic.config import Config
    from alembic.operations import Operations, ops
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

TARGET = Base.metadata
VERSION_TABLE = "contextkit_revision"  # alembic_version may be the owning application's
LOCK = text("select pg_advisory_xact_lock(7235094618)")
PACKAGED = Path(__file__).with_name("migrations")
ADDITIONS = (
    ops.CreateTableOp,
    ops.AddColumnOp,
    ops.CreateUniqueConstraintOp,
    ops.CreateForeignKeyOp,
    ops.CreateIndexOp,
)


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
        _check_upgradable(status)
        if status.state == "unmanaged":
            command.stamp(_config(connection), "head")
        elif status.revision != status["head"]:
            _ensure_vector(connection)
            command.upgrade(_config(connection), "head")
        return str(_context(connection).get_current_revision())


def schema_status(engine: Engine) -> pd.Series:
    """State of the two tables, as a Series: revision, head, state, differences.

    The state is one word: `current` (at head, and the tables fit), `behind` (at an older revision; run
    upgrade), `empty` (neither table), `unmanaged` (the tables fit but have no revision; upgrade adopts them),
    `different` (differences lists how), `unknown` (a revision that this contextkit lacks, so a newer one's).
    Foreign tables, extra columns, indexes of others, `on delete` actions and an enum role are no differences.
    """
    with translated_errors(), _alone(), engine.connect() as connection:
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
        found = _operations(connection)
        additions = [operation for operation in found if _is_addition(operation, found)]
        with _recorded(connection) as statements:
            if additions:
                _ensure_vector(connection)
            for operation in additions:
                Operations(_context(connection)).invoke(operation)
        remaining = [f"-- remains: {difference}" for difference in _differences(connection)]
    return "\n".join(statements + remaining) or "nothing to do"


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
    with translated_errors(), _alone(), engine.connect() as connection:
        status = _status(connection)
        if status.revision != status["head"]:
            raise SchemaError("the database is not at the newest revision; run upgrade(engine) first")
        if not _operations(connection):
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


def environment_options(connection: Connection | None = None) -> dict[str, Any]:
    """Options of Alembic's environment: what is compared, and how it is written; for env.py too."""
    return {
        "target_metadata": TARGET,
        "version_table": VERSION_TABLE,
        "include_name": lambda name, kind, _parents: kind != "table" or name in TARGET.tables,
        "include_object": _Included(connection),
        "compare_type": _types_differ,
        "compare_server_default": _defaults_differ,
        "render_item": _rendered,
        "autogenerate_plugins": ["alembic.autogenerate.*", "~alembic.autogenerate.comments"],
    }


class _Included:
    """Tells Alembic what of a comparison counts: never a removal, nor what a foreign key does on delete."""

    def __init__(self, connection: Connection | None) -> None:
        self._connection = connection

    def __call__(self, item: Any, _name: str | None, _kind: str, reflected: bool, _other: Any) -> bool:
        return not reflected and not (isinstance(item, ForeignKeyConstraint) and self._exists(item))

    def _exists(self, key: ForeignKeyConstraint) -> bool:
        if self._connection is None:
            return False
        wanted = (key.column_keys, key.referred_table.name, [element.column.name for element in key.elements])
        return any(
            wanted == (found["constrained_columns"], found["referred_table"], found["referred_columns"])
            for found in inspect(self._connection).get_foreign_keys(key.table.name)
        )


@contextmanager
def _writing(engine: Engine) -> Iterator[Connection]:
    settings = settings_of(engine)
    if settings is not None and not settings.write:
        raise ReadOnlyError(READ_ONLY)
    with translated_errors(), _alone(), direct_transaction(engine) as connection:
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


def _config(connection: Connection) -> Config:
    config = Config(cmd_opts=Namespace(quiet=True))
    config.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _context(connection: Connection) -> MigrationContext:
    return MigrationContext.configure(connection, opts=environment_options(connection))


def _status(connection: Connection) -> pd.Series:
    scripts = ScriptDirectory(migrations_folder())
    revision = _context(connection).get_current_revision()
    differences = _differences(connection)
    if revision is None and not _tables(connection):
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


def _check_upgradable(status: pd.Series) -> None:
    if status.state == "unknown":
        raise SchemaError(
            f"the database is at revision {status.revision}, which this contextkit lacks; install a newer one"
        )
    if status.state == "different" and status.revision is None:
        raise SchemaError(
            "contexts and messages were made by another tool and differ from what contextkit needs: "
            f"{'; '.join(status.differences)}. nothing was changed; alter them, or use another database"
        )


def _ensure_vector(connection: Connection) -> None:
    """Create the extension vector; an error says who can if this role or this server cannot."""
    found = connection.execute(
        text(
            "select n.nspname, to_regtype('vector') is not null as visible from pg_extension e "
            "join pg_namespace n on n.oid = e.extnamespace where e.extname = 'vector'"
        )
    ).one_or_none()
    if found is None:
        _create_vector(connection)
    elif not found.visible:
        raise SchemaError(f"the extension vector is in schema {found.nspname}; add that to the search_path")


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


def _tables(connection: Connection) -> set[str]:
    return set(TARGET.tables) & set(inspect(connection).get_table_names())


def _operations(connection: Connection) -> list[Any]:
    """Alembic's operations that would make the database fit; a changed index is a drop and a creation."""
    upgrades = produce_migrations(_context(connection), TARGET).upgrade_ops
    return [
        operation
        for outer in upgrades.ops  # type: ignore[union-attr]
        for operation in (outer.ops if isinstance(outer, ops.ModifyTableOps) else [outer])
    ]


def _is_addition(operation: Any, found: list[Any]) -> bool:
    return isinstance(operation, ADDITIONS) and not _is_changed(operation, found)


def _is_changed(operation: Any, found: list[Any]) -> bool:
    drops = [other for other in found if isinstance(other, ops.DropIndexOp | ops.DropConstraintOp)]
    return _name(operation) in {_name(drop) for drop in drops}


def _name(operation: Any) -> str | None:
    return getattr(operation, "index_name", None) or getattr(operation, "constraint_name", None)


def _differences(connection: Connection) -> list[str]:
    found = _operations(connection)
    missing = {operation.table_name for operation in found if isinstance(operation, ops.CreateTableOp)}
    differences = [f"{table} is missing" for table in sorted(missing)]
    for operation in found:
        if isinstance(operation, ops.AddColumnOp):
            differences.append(f"{operation.table_name}.{operation.column.name} is missing")
        elif isinstance(operation, ops.AlterColumnOp):
            differences.extend(_column_differences(operation, connection))
        elif isinstance(operation, ADDITIONS) and getattr(operation, "table_name", None) not in missing:
            differences.append(f"{_name(operation)} {'differs' if _is_changed(operation, found) else 'is missing'}")
    return differences + _unseen_differences(inspect(connection), connection)


def _column_differences(operation: ops.AlterColumnOp, connection: Connection) -> list[str]:
    name = f"{operation.table_name}.{operation.column_name}"
    column = TARGET.tables[operation.table_name].c[operation.column_name]
    differences = []
    if operation.modify_type is not None:
        given, expected = _sql_type(operation.existing_type, connection), _sql_type(column.type, connection)
        differences.append(f"{name} is {given}, expected {expected}")
    if operation.modify_nullable is not None:
        words = ("nullable", "not null") if operation.existing_nullable else ("not null", "nullable")
        differences.append(f"{name} is {words[0]}, expected {words[1]}")
    if operation.modify_server_default is not False:
        given, expected = _default(operation.existing_server_default), _default(column.server_default)
        differences.append(f"{name} has {given}, expected {expected}")
    return differences


def _unseen_differences(inspector: Inspector, connection: Connection) -> list[str]:
    """Differences that Alembic does not look for: primary keys, and types that SQLAlchemy does not know."""
    differences = []
    for name in sorted(_tables(connection)):
        table = TARGET.tables[name]
        given = inspector.get_pk_constraint(name)["constrained_columns"]
        if given != [column.name for column in table.primary_key]:
            differences.append(f"the primary key of {name} is ({', '.join(given)}), expected (id)")
        for column in inspector.get_columns(name):
            if column["name"] in table.c and isinstance(column["type"], NullType):
                expected = _sql_type(table.c[column["name"]].type, connection)
                differences.append(f"{name}.{column['name']} is of an unknown type, expected {expected}")
    return differences


def _sql_type(item: Any, connection: Connection) -> str:
    return str(item.compile(dialect=connection.dialect)).lower()


def _default(default: Any) -> str:
    return f"default {default.arg}" if default is not None and default is not False else "no default"


def _types_differ(context: MigrationContext, _column: Any, _expected: Any, given: Any, expected: Any) -> bool:
    if isinstance(expected, RoleType) and isinstance(given, ENUM):
        return False
    assert context.connection is not None  # noqa: S101 - for the type checker: comparing needs a database
    return _sql_type(given, context.connection) != _sql_type(expected, context.connection)


def _defaults_differ(
    _context: Any, _column: Any, _expected_column: Any, given: str | None, _clause: Any, expected: str | None
) -> bool:
    # Alembic would run both and compare; a default may be any function, with effects.
    return _plain(given) != _plain(expected)


def _plain(default: str | None) -> str | None:
    """Give a default without the cast and quotes that PostgreSQL writes: '0'::bigint as 0."""
    if default is None:
        return None
    plain = re.sub(r"::[\w ]+$", "", default).strip("'").lower()
    return "now()" if plain == "current_timestamp" else plain


def _rendered(kind: str, item: Any, autogenerate: Any) -> str | bool:
    """Write types in revisions without importing contextkit's models, which move on."""
    if kind != "type":
        return False
    if isinstance(item, IdType):
        return "sa.Uuid()"
    if isinstance(item, RoleType):
        return "sa.Text()"
    if type(item).__module__.startswith("pgvector."):
        name = type(item).__name__
        autogenerate.imports.add(f"from pgvector.sqlalchemy import {name}")
        return f"{name}({item.dim})"
    return False
