"""What can go wrong, each with what to do about it."""


class ContextkitError(Exception):
    """Any error of contextkit's own."""

    sqlstate: str | None = None
    """What the server called it, if it was the server's."""


class DatabaseUnavailableError(ContextkitError):
    """Nothing answers, the server refuses the connection, or the embedded server will not start."""


class ReadOnlyError(ContextkitError):
    """A write on an engine that was opened for reading."""


class SchemaError(ContextkitError):
    """Tables are missing, behind or incompatible, or an index is missing."""


class LineageError(ContextkitError):
    """The parents of a context form a cycle."""


class NotFoundError(ContextkitError, LookupError):
    """No such context or message."""


class DimensionError(ContextkitError, ValueError):
    """A vector has another length than the column."""


class FormatError(ContextkitError, ValueError):
    """An import file does not follow its format."""


class MissingExtraError(ContextkitError, ImportError):
    """A part of contextkit needs an extra that is not installed."""


class ContextkitWarning(UserWarning):
    """Something works, but probably not as wished."""
