"""Hostile input for what reads it: a target takes bytes, and fails for all but a documented error."""

from collections.abc import Callable

from tests.fuzz import archives, readers, shown, values

TARGETS: dict[str, Callable[[bytes], None]] = {
    **readers.TARGETS,
    **archives.TARGETS,
    **values.TARGETS,
    **shown.TARGETS,
}
