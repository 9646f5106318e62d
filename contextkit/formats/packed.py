"""Bytes of files that may be packed, as gzip or zip, refused where they unpack to far more than they are."""

import errno
import gzip
import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from contextkit.errors import FormatError

GZIP, ZIP = b"\x1f\x8b", b"PK\x03\x04"
MOST_TIMES = 200
"""Text hardly shrinks to less than a hundredth; a bomb to a thousandth."""
FREE_BYTES = 2**26
"""As much may come of any packed file."""


def plain(file: IO[bytes], name: str) -> IO[bytes]:
    """Give the bytes of a file, unpacked if it is gzip."""
    start = file.peek(2)[:2]  # type: ignore[attr-defined] # of all that is opened here
    return io.BufferedReader(_Unpacked(file, name), 2**17) if start == GZIP else file


class _Unpacked(io.RawIOBase):
    """What a gzip file unpacks to, as long as that is in proportion to what was read of it."""

    def __init__(self, packed: IO[bytes], name: str) -> None:
        self._packed, self._name, self._bytes = packed, name, 0
        self._gzip = gzip.GzipFile(fileobj=packed)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._gzip.readinto(buffer)
        self._bytes += count
        check_size(self._bytes, self._packed.tell(), self._name)
        return count

    def close(self) -> None:
        self._packed.close()
        super().close()


def check_size(unpacked: int, packed: int, name: str) -> None:
    """Raise where so many bytes are too many to come of so few."""
    if unpacked > max(FREE_BYTES, MOST_TIMES * packed):
        raise FormatError(f"{name}: it unpacks to over {MOST_TIMES} times its size; if you trust it, unpack it first")


def entries(path: Path, name: str) -> dict[str, Callable[[], IO[bytes]]]:
    """Give the files in a zip, by name, each with what opens it."""
    with damage_told(name):
        archive = zipfile.ZipFile(path)  # read once; closed with the last of the openers
        files = [entry for entry in archive.infolist() if not entry.filename.endswith("/")]
        check_size(sum(entry.file_size for entry in files), path.stat().st_size, name)
    if any(entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for entry in files):
        raise FormatError(f"{name}: {UNKNOWN}")

    def opener(entry: zipfile.ZipInfo) -> Callable[[], IO[bytes]]:
        return lambda: archive.open(entry)

    return {entry.filename: opener(entry) for entry in sorted(files, key=lambda entry: entry.filename)}


UNKNOWN = "the archive is encrypted or packed in an unknown way; unpack it first"


@contextmanager
def damage_told(name: str) -> Iterator[None]:
    """Turn what unpacking raises into a FormatError."""
    try:
        yield
    except (zipfile.BadZipFile, EOFError, zlib.error, struct.error, UnicodeDecodeError):
        pass
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):  # a file that cannot be read, not one that is damaged
            raise
    except (NotImplementedError, RuntimeError) as error:
        if isinstance(error, RecursionError):
            raise
        raise FormatError(f"{name}: {UNKNOWN}") from None
    else:
        return
    raise FormatError(f"{name}: the compressed file is damaged; get it anew")
