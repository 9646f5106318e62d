"""Each format's reader, whatever the file holds: conversations that can be stored, defects, or a FormatError."""

import io
import json
from collections.abc import Callable
from datetime import timedelta
from functools import partial

from contextkit.errors import FormatError
from contextkit.formats import FORMATS
from contextkit.formats.conversation import Conversation, Defect
from contextkit.formats.files import Notes, Source
from contextkit.formats.units import DefectiveTreeError, Unit, tree_of
from contextkit.models import ROLES, canonical_id, is_storable

MOST = 2**31 - 1


def read_as(format: str, data: bytes) -> None:
    """Read a file as a format, once up to the first defect and once past them."""
    if not _is_read(format, data, skip=False):
        _is_read(format, data, skip=True)


def _is_read(format: str, data: bytes, *, skip: bool) -> bool:
    notes = Notes(skip=skip)
    source = Source("x.jsonl", lambda: io.BytesIO(data), notes=notes)
    for value in source.head():
        assert FORMATS[format].matches(value) in (True, False)
    try:
        for made in FORMATS[format].read(source):
            if isinstance(made, Defect):
                _check_told(made)
            else:
                check_conversation(format, made)
    except FormatError:
        return False
    for _, defect in notes.defects:
        _check_told(defect)
    return True


def check_conversation(format: str, conversation: Conversation) -> None:
    """Fail if a conversation that is accepted is none that PostgreSQL stores."""
    links = dict.fromkeys(conversation.links, "00000000-0000-4000-8000-000000000000")
    try:
        units = tree_of(format, conversation, links).units
    except DefectiveTreeError as error:
        _check_told(Defect(None, error.place, error.reason))
        return
    before = set(links.values())
    for unit in units:
        assert canonical_id(unit.id) == unit.id not in before
        assert unit.parent is None or unit.parent in before
        before.add(unit.id)
        _check_unit(unit)
    assert sum(unit.row.token_count or 0 for unit in units) <= MOST
    assert len(units) == sum(len(node.rows) for node in conversation.nodes)


def _check_unit(unit: Unit) -> None:
    row = unit.row
    assert row.role in ROLES
    for text in (row.content, row.tool_call_id, row.tool_name, row.model):
        assert text is None or (type(text) is str and is_storable(text))
    assert row.content is not None
    assert row.token_count is None or (type(row.token_count) is int and 0 <= row.token_count <= MOST)
    for time in (unit.created_at, unit.deleted_at):
        assert time is None or (time.utcoffset() == timedelta() and 1 < time.year < 9999)


def _check_told(defect: Defect) -> None:
    told = json.dumps([defect.line, defect.place, defect.reason])
    assert defect.reason
    assert len(told) < 2_000


TARGETS: dict[str, Callable[[bytes], None]] = {f"read_{name}": partial(read_as, name) for name in FORMATS}
