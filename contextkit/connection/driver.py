"""Errors of the drivers and of SQLAlchemy become ours: told by SQLSTATE, in our own words."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import psycopg
from sqlalchemy import URL
from sqlalchemy.exc import CompileError, DBAPIError, InvalidRequestError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from contextkit.errors import (
    ContextkitError,
    DatabaseUnavailableError,
    DimensionError,
    ReadOnlyError,
    SchemaError,
)

_Opened = TypeVar("_Opened")

PAUSES = (0.02, 0.1, 0.4)
"""Seconds after which a connection is asked for again."""


class CommitLostError(psycopg.OperationalError):
    """The connection ended while a commit was waited for."""


class StuckError(psycopg.OperationalError):
    """A connection has said nothing for longer than a statement may take."""


READ_ONLY = "this engine was opened for reading; to write, open one with connect(write=True)"
ONLY_READS = "read_df and its like only read; write with engine.begin()"
NO_WRITES = (
    "the server refuses writes here: it is a read replica, or default_transaction_read_only is on for the role or the "
    "database, or this was opened for reading; write on the primary, with connect(write=True), or ask the owner"
)


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turn errors of the drivers and of SQLAlchemy into ours, without the drivers' texts."""
    try:
        yield
    except ContextkitError as error:
        raise error.with_traceback(None) from None
    except PoolTimeoutError:
        raise DatabaseUnavailableError(
            "all connections of this engine stayed in use; "
            "end what uses them, or open the engine with a larger pool_size"
        ) from None
    except DBAPIError as error:
        if error.connection_invalidated:
            raise lost(error.orig, committing=error.statement is None) from None
        raise explain(error.orig) from None
    except (StatementError, CompileError) as error:
        cause = getattr(error, "orig", None) or error.__cause__
        if isinstance(cause, InvalidRequestError):
            raise lacking(cause) from None
        if isinstance(cause, TypeError | ValueError):
            raise cause.with_traceback(None) from None
        raise
    except psycopg.Error as error:
        raise explain(error) from None
    except RecursionError:
        raise ValueError("a json value or a condition is nested too deep for Python; take a part of it") from None
    except UnicodeEncodeError:
        raise ValueError(
            "a text holds half of a surrogate pair, which PostgreSQL does not store; decode it anew"
        ) from None


def lacking(error: InvalidRequestError) -> ValueError:
    """Give our error for a parameter that has no value."""
    return ValueError(f"the statement lacks a value: {error}")


def explain(error: BaseException | None) -> ContextkitError | ValueError:
    """Give our error for a driver's, told by its SQLSTATE."""
    explained = _explained(error, state_of(error))
    if isinstance(explained, ContextkitError):
        explained.sqlstate = state_of(error)
    return explained


def _explained(error: BaseException | None, state: str | None) -> ContextkitError | ValueError:
    if state is None:
        return _explain_client(error)
    if is_lost(state):
        return lost(error)
    if state == "22000" and (lengths := re.findall(r"\d+", str(error))):
        return DimensionError(f"vectors of different lengths: {' and '.join(lengths[:2])} ({_named(state)})")
    message = str(error).partition("\n")[0]  # what follows quotes rows
    if state == "42883" and re.search(r"operator does not exist: \S*vector |function vector_", message):
        return SchemaError(f"{_NO_FUNCTION} ({_named(state)})")
    kind, text = _EXPLANATIONS.get(state, (ContextkitError, "the database refused the statement"))
    found = re.search(_OBJECTS.get(state, "$"), message)
    subject = f"{' of '.join(filter(None, found.groups()))}: " if found and found.group() else ""
    return kind(f"{subject}{text} ({_named(state)})")


_LOST = ("25P03", "25P04", "53300", "57P01", "57P02", "57P03", "57P05")
_NO_FUNCTION = (
    "this pgvector lacks the function or distance, or its schema is not in the search_path; "
    "update the extension, or set the search_path"
)
_OVERTAKEN = "another writer changed the same rows first, and nothing was written; run it again"
_TABLES = "a table is missing; if it is contexts or messages, run upgrade(engine)"
_EXPLANATIONS: dict[str, tuple[type[ContextkitError] | type[ValueError], str]] = {
    "0A000": (
        ContextkitError,
        "the server does not do that, or was built without it; indexes of a partitioned table its owner builds",
    ),
    "22003": (ContextkitError, "a number is out of its column's range"),
    "22007": (ValueError, "a text is no time; give a datetime with a time zone"),
    "22P02": (ValueError, "a value does not fit its column: an id that is no UUID, or a role the enum lacks"),
    "23502": (
        SchemaError,
        "this column takes no null and has no default, and contextkit does not know it; give it one",
    ),
    "23503": (ContextkitError, "this foreign key refuses the row: what it refers to is not there"),
    "23505": (ContextkitError, "this key is taken: there is such a row already"),
    "23514": (ContextkitError, "this check, of another tool, refuses the row"),
    "25006": (ReadOnlyError, NO_WRITES),
    "3F000": (SchemaError, _TABLES),
    "40001": (ContextkitError, _OVERTAKEN),
    "40P01": (ContextkitError, _OVERTAKEN),
    "42501": (ContextkitError, "this role lacks a right for that; ask the database's owner to grant it"),
    "42601": (ValueError, "the SQL cannot be read: a syntax error, or several statements at once"),
    "42703": (SchemaError, "a column is missing; of contexts and messages schema_status(engine) lists those"),
    "42804": (ValueError, "a condition or value is of a type that does not fit there"),
    "42883": (ValueError, "no such function or comparison for these types; give values of the column's type"),
    "42704": (
        SchemaError,
        "this is missing; if it is vector of pgvector, run upgrade(engine), or set the search_path to its schema, too",
    ),
    "42809": (SchemaError, "that does not work on a relation or value of this kind; of a view its owner can do it"),
    "42P01": (SchemaError, _TABLES),
    "42P07": (SchemaError, "this name is taken by something else in the database; rename or drop that first"),
    "53100": (ContextkitError, "the server's disk is full; nothing was written"),
    "57014": (ContextkitError, "the statement was cancelled: it ran over statement_timeout, or was stopped"),
}

_OBJECTS = {
    "0A000": r'(partitioned table "\w+")',
    "23502": r'column "(\w+)" of relation "(\w+)"',
    "23503": r'foreign key constraint "(\w+)"',
    "23505": r'unique constraint "(\w+)"',
    "23514": r'check constraint "(\w+)"',
    "42501": r"(?:permission denied for|must be owner of) (\w+ \w+)$",
    "42703": r'column (?:"(\w+)" of relation "(\w+)"|(\w+\.\w+)) does not exist',
    "42704": r'(type "\w+") does not exist',
    "42809": r'"(\w+)"',
    "42P01": r'relation "(\w+)" does not exist',
    "42P07": r'relation "(\w+)" already exists',
}
"""Where the server names what it is about; never what a row or a condition says."""


def state_of(error: BaseException | None) -> str | None:
    """Give the SQLSTATE of a driver's error."""
    return getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)  # psycopg2, of foreign engines


def is_lost(state: str | None) -> bool:
    """Tell whether an error ends its connection; those without a SQLSTATE come of an end that nobody announced."""
    return state is None or state[:2] == "08" or state in _LOST


def _explain_client(error: BaseException | None) -> ContextkitError | ValueError:
    """Explain what the server did not say itself; the drivers share names of errors, not classes."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"DataError", "ProgrammingError"}:
        return ValueError(
            "a value cannot be sent or read: its type has no counterpart in PostgreSQL, or it holds a NUL "
            "character, or it is a time beyond the year 9999"
        )
    if error is None or names & {"OperationalError", "InterfaceError"}:
        return lost(error)
    return ContextkitError("the driver refused the statement")


def _named(state: str) -> str:
    try:
        name = psycopg.errors.lookup(state).__name__
    except KeyError:
        return f"SQLSTATE {state}"
    return f"SQLSTATE {state}, {name}"


def again_while_full(open_: Callable[[], _Opened], make_room: Callable[[], None] = lambda: None) -> _Opened:
    """What opens a connection; again where none was free, as one that was closed just now counts a little longer."""
    for pause in PAUSES:
        try:
            return open_()
        except Exception as error:
            if not is_full(error):
                raise
        make_room()
        time.sleep(pause)
    return open_()


def is_full(error: Exception) -> bool:
    """Tell whether a server, database or role had no connection left: of these errors libpq gives no SQLSTATE."""
    return re.search("too many (connections|clients)|connection slots", str(error)) is not None


def unreachable(url: URL, error: Exception) -> DatabaseUnavailableError:
    """Give our error for a connection that a driver could not open."""
    # libpq gives no SQLSTATE here, only a text, which names host, role or database and never a password.
    reason = str(error).rpartition("failed: ")[2].partition("\n")[0].strip()
    if url.password:
        reason = reason.replace(str(url.password), "***")
    place = url.host or "the server"
    remedy = "close others, or use a pooled host" if is_full(error) else "check the database URL"
    return DatabaseUnavailableError(f"cannot connect to {place}: {reason}; {remedy}")


def lost(error: BaseException | None, *, committing: bool = False) -> DatabaseUnavailableError:
    """Give our error for a connection that ended, perhaps while what it wrote was being committed."""
    if isinstance(error, CommitLostError):
        return lost(error.__cause__, committing=True)
    state = state_of(error)
    if state == "53300":
        return DatabaseUnavailableError(
            f"the server has no connection left ({_named(state)}); close others, or use a pooled host"
        )
    suffix = f" ({_named(state)})" if state else ""
    if committing:
        return DatabaseUnavailableError(
            f"the connection was lost{suffix}, and it is unknown whether the last changes were written; "
            "look before you repeat them"
        )
    if isinstance(error, StuckError):
        return DatabaseUnavailableError(
            "no answer within statement_timeout and connect_timeout together, so the connection was given up; "
            "run it again, or allow more time"
        )
    return DatabaseUnavailableError(f"the connection was lost{suffix}; run it again")
