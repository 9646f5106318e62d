"""Parameters in PostgreSQL's binary form; psycopg has to know them before an engine is made."""

from typing import Any

import psycopg
from psycopg.adapt import Dumper
from psycopg.pq import Format


class Binary(bytes):
    """A value as the server reads it, of whatever type it takes it for."""


class _BinaryDumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: Any) -> bytes:
        return bytes(obj)


psycopg.adapters.register_dumper(Binary, _BinaryDumper)
