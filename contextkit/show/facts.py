"""What is known of a message beside its content, in words."""

from collections.abc import Iterator

import pandas as pd

from contextkit.show.entries import Entry
from contextkit.show.rendered import count, short


def facts(entry: Entry) -> list[str]:
    """Words on an entry: its place, its state, who wrote it, how long it is and when it was written."""
    return list(_facts(entry))


def _facts(entry: Entry) -> Iterator[str]:
    if entry.position is not None:
        yield f"#{entry.position}"
    if entry.inherited:
        yield "inherited"
    if deleted := deletion(entry):
        yield deleted
    if entry.tool_name and not entry.is_call:
        yield short(entry.tool_name)
    if entry.model is not None:
        yield short(entry.model)
    if entry.token_count is not None:
        yield count(entry.token_count, "token")
    if entry.created_at is not None:
        yield _minute(entry.created_at)


def deletion(entry: Entry) -> str:
    """When an entry was deleted, in words; nothing if it was not."""
    return f"deleted {_minute(entry.deleted_at)}" if entry.deleted_at is not None else ""


def _minute(time: pd.Timestamp) -> str:
    return f"{time:%Y-%m-%d %H:%M %Z}".strip()


def fork_mark(before: Entry | None, entry: Entry) -> str:
    """What is said between two entries that are stored in different contexts; before the first if it is inherited."""
    if before is not None and before.source_context_id == entry.source_context_id:
        return ""
    if entry.inherited:
        return f"inherited from {short(entry.source_context_id)}"
    return "fork point: the messages from here on are its own" if before is not None else ""
