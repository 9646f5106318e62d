"""Import and export of files, beside COPY of the same rows."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg

from contextkit import contexts_df, export_file, history_df, import_file
from tests.benchmarks.ground import Database, Ground
from tests.benchmarks.measuring import Measure, compared, in_turns

TREES, TURNS = 1_200, 3
COPY = "COPY of the same rows"


def measure(ground: Ground) -> Iterator[Measure]:
    database = ground.empty("files")
    trees = ground.folder / "trees.jsonl"
    messages = _write_trees(trees)
    import_file(database.engine, trees, progress=False)
    yield from _import(database, trees, messages)
    yield from _export(database, ground.folder)


def _import(database: Database, trees: Path, messages: int) -> list[Measure]:
    """Both write the same rows into the same empty tables, with all their indexes, in one transaction."""
    with psycopg.connect(database.url, autocommit=True) as connection:
        copied = {table: _copied_out(connection, table) for table in ("contexts", "messages")}
        seconds = in_turns(
            {
                "contextkit": lambda: import_file(database.engine, trees, progress=False),
                COPY: lambda: _copy_in(database.url, copied),
            },
            before=lambda: connection.execute("truncate contexts, messages"),
        )
        assert connection.execute("select count(*) from messages").fetchone() == (messages,)
    return compared(_case("import_file, oasst", messages, seconds), seconds, {COPY: 3})


def _export(database: Database, folder: Path) -> list[Measure]:
    """Rows of histories: a message is written in every history that has it."""
    histories = history_df(database.engine, contexts_df(database.engine)["context_id"])
    histories.to_sql("histories", database.engine, index=False)
    seconds = in_turns(
        {
            "contextkit": lambda: export_file(database.engine, folder / "histories.jsonl", progress=False),
            COPY: lambda: _copy_to_file(database.url, "histories", folder / "histories.copy"),
        }
    )
    return compared(_case("export_file, openai", len(histories), seconds), seconds, {COPY: None})


def _case(name: str, messages: int, seconds: dict[str, float]) -> str:
    return f"{name}, {messages:,} messages ({messages / seconds['contextkit']:,.0f} a second)"


def _copied_out(connection: psycopg.Connection, table: str) -> bytes:
    with connection.cursor() as cursor, cursor.copy(f"copy {table} to stdout") as copy:
        return b"".join(copy)


def _copy_in(url: str, copied: dict[str, bytes]) -> None:
    with psycopg.connect(url) as connection, connection.cursor() as cursor:
        for table, rows in copied.items():
            with cursor.copy(f"copy {table} from stdin") as copy:
                copy.write(rows)


def _copy_to_file(url: str, table: str, path: Path) -> None:
    with (
        psycopg.connect(url) as connection,
        connection.cursor() as cursor,
        path.open("wb") as file,
        cursor.copy(f"copy {table} to stdout") as copy,
    ):
        for block in copy:
            file.write(block)


def _write_trees(path: Path) -> int:
    """A file of OpenAssistant trees, each question with two answers; the number of messages."""
    roots = [_tree(f"tree-{number}", TURNS) for number in range(TREES)]
    lines = (json.dumps({"message_tree_id": root["message_id"], "prompt": root}) + "\n" for root in roots)
    path.write_text("".join(lines))
    return sum(map(_size, roots))


def _tree(key: str, turns: int) -> dict[str, Any]:
    answers = [
        _message(f"{key}-{rank}", "assistant", [_tree(f"{key}-{rank}-next", turns - 1)] if turns > 1 else [])
        | {"rank": rank}
        for rank in range(2)
    ]
    return _message(key, "prompter", answers)


def _message(key: str, role: str, replies: list[dict[str, Any]]) -> dict[str, Any]:
    text = f"message {key} says {'something of some length ' * 40}"[:500]
    return {"message_id": key, "role": role, "text": text, "replies": replies}


def _size(message: dict[str, Any]) -> int:
    return 1 + sum(map(_size, message["replies"]))
