"""SQL with its values spelled out, as ADBC copies only without parameters."""

import math
from collections.abc import Mapping
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, Executable
from sqlalchemy.dialects.postgresql.psycopg import PGCompiler_psycopg, PGDialect_psycopg
from sqlalchemy.exc import CompileError, InvalidRequestError
from sqlalchemy.sql.compiler import BIND_PARAMS_ESC

from contextkit.connection.driver import lacking

LITERAL = {"literal_binds": True}


class _Compiler(PGCompiler_psycopg):
    _in_text = False

    def visit_textclause(self, textclause: Any, *arguments: Any, **options: Any) -> str:
        self._in_text = True
        try:
            return str(super().visit_textclause(textclause, *arguments, **options))  # type: ignore[no-untyped-call]
        finally:
            self._in_text = False

    def render_literal_value(self, value: Any, type_: Any) -> str:
        impl = type_.dialect_impl(self.dialect)
        sql = self._spelled(value, type_)
        if self._in_text:  # of which SQLAlchemy takes a backslash before a colon out again
            sql = BIND_PARAMS_ESC.sub(r"\\\g<0>", sql)
        # As of a bound parameter: what a literal is taken for depends on where it stands.
        return str(self.render_bind_cast(type_, impl, sql)) if impl.render_bind_cast else sql  # type: ignore[no-untyped-call]

    def _spelled(self, value: Any, type_: Any) -> str:
        if isinstance(value, float):
            return f"'{float(value)!r}'::float8"
        if isinstance(value, Decimal):
            return f"'{value}'::numeric"
        if isinstance(value, bytes):
            return f"decode('{value.hex()}', 'hex')"
        sql = str(super().render_literal_value(value, type_))  # type: ignore[no-untyped-call]
        if isinstance(value, date | time):  # a bare text would be one
            return f"{sql}::{_time_type(value)}"
        return f"({sql})" if sql.startswith("-") else sql  # with a minus before it, it would begin a comment


def _time_type(value: date | time) -> str:
    if isinstance(value, datetime):
        return "timestamptz" if value.tzinfo else "timestamp"
    return "date" if isinstance(value, date) else "timetz" if value.tzinfo else "time"


class LiteralDialect(PGDialect_psycopg):
    """What compiles SQL with LITERAL values."""

    statement_compiler = _Compiler

    def __init__(self) -> None:
        """Take another parameter style than psycopg's, which would double every percent sign."""
        super().__init__(paramstyle="named")  # type: ignore[no-untyped-call]


def literal_sql(
    connection: Connection, statement: Executable, parameters: Mapping[str, Any] | None = None
) -> str | None:
    """SQL with its values as literals, quoted by the dialect, as ADBC copies only without parameters.

    None if a value is of a type that has no literals.

    Raises:
        ValueError: a parameter without a value, or a NUL character or NaN, which have no literal.
    """
    dialect = LiteralDialect()
    dialect._backslash_escapes = connection.dialect._backslash_escapes  # type: ignore[attr-defined]
    clause: Any = statement.params(parameters) if parameters else statement  # type: ignore[attr-defined]
    try:
        _refuse_unprintable(clause.compile(dialect=dialect).construct_params())
        sql = str(clause.compile(dialect=dialect, compile_kwargs=LITERAL))
    except InvalidRequestError as error:
        raise lacking(error) from None
    except CompileError:
        return None
    return sql.rstrip().removesuffix(";") + "\n"  # a comment at the end must not swallow what COPY adds


def _refuse_unprintable(value: Any) -> None:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple | set):
        for item in value:
            _refuse_unprintable(item)
    elif isinstance(value, str) and "\0" in value:
        raise ValueError("a value holds a NUL character, which PostgreSQL does not store; remove it")
    elif isinstance(value, float | Decimal) and math.isnan(value):
        raise ValueError("a value is NaN; compare with a number, or with null by is_(None)")
