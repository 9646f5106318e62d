"""Contexts and histories in a terminal: for reading, or as lines of JSON for scripts."""

import io
import sys
import textwrap
from collections.abc import Iterable
from typing import Any

import pandas as pd
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from contextkit.derived import is_call
from contextkit.visible import visible, visible_line

WIDEST = 1_000_000
"""Columns of what is no terminal: nothing is cut or wrapped there."""
NAME_LENGTH = 200
INDENT = 4
FINDINGS_OF_A_KIND = 20
GRAVITY = {"error": "red", "warning": "yellow", "note": "dim"}
COLORS = {"system": "magenta", "user": "cyan", "assistant": "green", "tool": "yellow"}


def print_json(frame: pd.DataFrame) -> None:
    """Print a line of JSON per row, with every column: times in ISO, only ASCII."""
    lines = frame.to_json(orient="records", lines=True, date_format="iso", date_unit="us")
    if len(frame):  # else pandas gives an empty line
        sys.stdout.write(lines.replace("\x7f", "\\u007f"))  # the one control that JSON leaves as it is


def print_contexts(contexts: pd.DataFrame) -> None:
    """Print a table of contexts, each with the number of its own messages."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("context_id", no_wrap=True)
    table.add_column("created", no_wrap=True)
    table.add_column("messages", no_wrap=True, justify="right")
    table.add_column("name", overflow="fold")
    for row in _rows(contexts):
        name = _name(row.name) if pd.isna(row.deleted_at) else f"{_name(row.name)} (deleted)"
        cells = [row.context_id, f"{row.created_at:%Y-%m-%d}", f"{row.message_count:,}", name]
        table.add_row(*map(Text, cells), style="" if pd.isna(row.deleted_at) else "dim")
    _console().print(table)


def print_findings(findings: pd.DataFrame) -> None:
    """Print a table of what `check_df` found, of each kind the first and how many more, or that it is nothing."""
    console = _console()
    if findings.empty:
        console.print("nothing found")
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("severity", "kind", "context_id", "message_id"):
        table.add_column(name, no_wrap=True)
    table.add_column("detail", overflow="fold")
    first = findings[findings.groupby("kind").cumcount() < FINDINGS_OF_A_KIND]
    for row in _rows(first.fillna("-")):
        cells = (row.severity, row.kind, row.context_id, row.message_id, row.detail)
        table.add_row(*(Text(visible_line(cell)) for cell in cells), style=GRAVITY[row.severity])
    console.print(table)
    more = findings["kind"].value_counts(sort=False) - FINDINGS_OF_A_KIND
    for kind, count in more[more > 0].items():
        console.print(f"{count:,} more of {kind}; --json prints all")


def print_history(context: "pd.Series[Any]", history: pd.DataFrame) -> None:
    """Print one context's history: of each message a heading, dim where it is inherited, and its text, indented.

    So what a message says cannot pass for a heading.

    Args:
        context: its row of `contexts_df`.
        history: of `history_df`.
    """
    console = _console()
    console.print(Text(_name(context["name"]), style="bold"))
    console.print(Text(_about(context, history)), end="\n\n")
    was_inherited = False
    for row in _rows(history.assign(is_call=is_call(history))):
        if was_inherited and not row.inherited:
            console.print(Text("--- forked here ---", style="dim"), end="\n\n")
        was_inherited = row.inherited
        console.print(_heading(row))
        console.print(_indented(visible(row.content), "" if pd.isna(row.deleted_at) else "strike", console))


def _rows(frame: pd.DataFrame) -> Iterable[Any]:
    return frame.itertuples()


def _name(name: Any) -> str:
    if pd.isna(name):
        return ""
    return visible_line(name if len(name) <= NAME_LENGTH else f"{name[:NAME_LENGTH]} …")


def _about(context: "pd.Series[Any]", history: pd.DataFrame) -> str:
    parts = [context["context_id"]]
    if pd.notna(context["parent_id"]) and pd.notna(context["fork_version"]):
        parts.append(f"fork of {context['parent_id']} at version {context['fork_version']}")
    if pd.notna(context["deleted_at"]):
        parts.append("deleted")
    parts.append(f"{len(history):,} messages, {history['token_count'].fillna(0).sum():,} tokens")
    return "\n".join(parts)


def _heading(row: Any) -> Text:
    told = [f"{row.created_at:%Y-%m-%d %H:%M}"]
    if row.is_call:
        told.append("calls a tool" if pd.isna(row.tool_name) else f"calls {row.tool_name}")
    told += [str(value) for value in (row.tool_call_id, row.model) if pd.notna(value)]
    if pd.notna(row.token_count):
        told.append(f"{row.token_count:,} tokens")
    if pd.notna(row.deleted_at):
        told.append("deleted")
    role = ("dim " if row.inherited else "bold ") + COLORS.get(row.role, "")
    return Text.assemble(
        f"{row.position:>3} ", (visible_line(row.role), role), " ", (visible_line(", ".join(told)), "dim")
    )


def _indented(text: str, style: str, console: Console) -> Padding | Text:
    if console.is_terminal:
        return Padding(Text(text, style=style), (0, 0, 1, INDENT), expand=False)
    return Text(textwrap.indent(text, " " * INDENT) + "\n")


def _console() -> Console:
    """Give what prints to a terminal, or plain text, as wide as it is, to what is none."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # what the encoding lacks shows as its code
    return Console(highlight=False, width=None if sys.stdout.isatty() else WIDEST)
