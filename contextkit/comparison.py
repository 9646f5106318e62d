"""How the two tables differ from the models: Alembic's comparison, limited to them and put in words."""

import logging
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, ForeignKeyConstraint, Inspector, inspect
from sqlalchemy.dialects.postgresql import ENUM
from sqlalchemy.exc import SAWarning
from sqlalchemy.types import NullType

from contextkit.binary import VectorType
from contextkit.models import Base, IdType, RoleType

_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def alone() -> Iterator[None]:
    """One thread at a time, as Alembic's `op` and `context` are the process's, and none of its log lines."""
    logger = logging.getLogger("alembic")
    with _ONE_AT_A_TIME, warnings.catch_warnings(action="ignore", category=SAWarning):
        level = logger.level
        logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            logger.setLevel(level)


with alone():  # being imported, Alembic logs a line for each of its plugins
    from alembic.autogenerate import produce_migrations
    from alembic.operations import ops
    from alembic.runtime.migration import MigrationContext

TARGET = Base.metadata
VERSION_TABLE = "contextkit_revision"  # alembic_version may be the owning application's
ADDITIONS = (
    ops.CreateTableOp,
    ops.AddColumnOp,
    ops.CreateUniqueConstraintOp,
    ops.CreateForeignKeyOp,
    ops.CreateIndexOp,
)


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


def context_of(connection: Connection) -> MigrationContext:
    """Give Alembic's view of a connection, with our options."""
    return MigrationContext.configure(connection, opts=environment_options(connection))


def tables_of(connection: Connection) -> set[str]:
    """Give which of the two tables exist."""
    return set(TARGET.tables) & set(inspect(connection).get_table_names())


def operations_of(connection: Connection) -> list[Any]:
    """Alembic's operations that would make the database fit; a changed index is a drop and a creation."""
    upgrades = produce_migrations(context_of(connection), TARGET).upgrade_ops
    return [
        operation
        for outer in upgrades.ops  # type: ignore[union-attr]
        for operation in (outer.ops if isinstance(outer, ops.ModifyTableOps) else [outer])
    ]


def is_addition(operation: Any, found: list[Any]) -> bool:
    """Tell whether an operation only adds, which `push` may do."""
    return isinstance(operation, ADDITIONS) and not _is_changed(operation, found)


def _is_changed(operation: Any, found: list[Any]) -> bool:
    drops = [other for other in found if isinstance(other, ops.DropIndexOp | ops.DropConstraintOp)]
    return _name(operation) in {_name(drop) for drop in drops}


def _name(operation: Any) -> str | None:
    return getattr(operation, "index_name", None) or getattr(operation, "constraint_name", None)


def differences_of(connection: Connection) -> list[str]:
    """Give the differences in words."""
    found = operations_of(connection)
    missing = {operation.table_name for operation in found if isinstance(operation, ops.CreateTableOp)}
    views = set(inspect(connection).get_view_names()) if missing else set()
    differences = [f"{table} is {'a view' if table in views else 'missing'}" for table in sorted(missing)]
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
    for name in sorted(tables_of(connection)):
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
    if isinstance(item, VectorType):
        autogenerate.imports.add("from pgvector.sqlalchemy import VECTOR")
        return f"VECTOR({item.dim})"
    if type(item).__module__.startswith("pgvector."):
        name = type(item).__name__
        autogenerate.imports.add(f"from pgvector.sqlalchemy import {name}")
        return f"{name}({item.dim})"
    return False
