"""Entries as plain text, for terminals: nothing in it can steer one."""

from collections.abc import Iterator
from textwrap import indent

from contextkit.show.entries import Entry, Section
from contextkit.show.facts import deletion, facts, fork_mark
from contextkit.show.rendered import count, short
from contextkit.visible import visible

TEXT_CHARACTERS = 2_000
"""As many characters of a message are shown in a terminal."""
GIST_CHARACTERS = 300


def sections_text(sections: list[Section], more: str) -> str:
    """Text of the sections of a transcript."""
    parts = [f"{section.title}\n{section.about}\n\n{entries_text(section.entries)}" for section in sections]
    return "\n\n".join([*parts, more] if more else parts) or "no messages"


def entries_text(entries: list[Entry]) -> str:
    """Text of one context's entries."""
    return "\n\n".join(_blocks(entries))


def _blocks(entries: list[Entry]) -> Iterator[str]:
    for before, entry in zip([None, *entries], entries, strict=False):
        if mark := fork_mark(before, entry):
            yield f"-- {mark} --"
        yield entry_text(entry)


def entry_text(entry: Entry) -> str:
    """Text of one entry."""
    head = " | ".join([short(entry.role), *map(str, facts(entry))])
    if not entry.is_call:
        return f"{head}\n{indent(_cut(entry), '    ')}"
    call = f"{short(entry.tool_name or 'no name')} {short(entry.content, GIST_CHARACTERS)}"
    return f"{head}\n    tool call: {call}\n    {_result(entry.result)}"


def _result(result: Entry | None) -> str:
    if result is None:
        return "result: no result here"
    deleted = f", {deletion(result)}" if deletion(result) else ""
    return f"result{deleted}: {short(result.content, GIST_CHARACTERS)}"


def _cut(entry: Entry) -> str:
    left_out = len(entry.content) - TEXT_CHARACTERS
    more = f"\n… {count(left_out, 'more character')}, in content.iloc[{entry.place}] of the frame"
    return visible(entry.content[:TEXT_CHARACTERS]) + (more if left_out > 0 else "")
