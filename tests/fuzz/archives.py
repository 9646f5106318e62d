"""The file layer: bytes of any kind under any name, as JSON records or a FormatError."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from contextkit.errors import FormatError
from contextkit.formats.files import Notes, open_source
from contextkit.formats.importing import _recognised

FOLDER = Path("/dev/shm") if Path("/dev/shm").is_dir() else None  # what is written there is nobody's


def opened(data: bytes) -> None:
    """Open a file of any content and read all its records, past what is malformed."""
    with tempfile.NamedTemporaryFile(suffix=".json", dir=FOLDER) as file:
        file.write(data)
        file.flush()
        notes = Notes(skip=True)
        try:
            source = open_source(file.name, notes)
            _recognised(source, None)
            for line, _ in source.records():
                assert line >= 1
        except FormatError:
            return


TARGETS: dict[str, Callable[[bytes], None]] = {"files": opened}
