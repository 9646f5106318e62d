"""`make bench`: what contextkit takes beside what the wire and the driver take, as ratios within one run."""

import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import psycopg
from sqlalchemy import Engine, make_url

from contextkit import (
    EMBEDDING_DIMENSIONS,
    Message,
    connect,
    contexts_df,
    embedding_matrix,
    export_file,
    history_df,
    import_file,
    messages_df,
    neighbors_df,
    read_df,
    select_messages,
    upgrade,
)
from contextkit.server import EmbeddedServer
from tests.benchmarks.data import write_chain, write_flat, write_trees

ROUNDS = 7
COLUMNS = "id, context_id, version, created_at, role, content, tool_call_id, tool_name, token_count, model, deleted_at"
RESULTS = Path(__file__).with_name("RESULTS.md")


@dataclass(frozen=True)
class Measure:
    case: str
    ours: float
    other: str
    others: float
    aim: str
    messages: int | None = None

    @property
    def row(self) -> str:
        ratio = self.ours / self.others
        cells = (self.case, _ms(self.ours), self.other, _ms(self.others), f"{ratio:.2f}", self.aim, self.rates)
        return f"| {' | '.join(cells)} |"

    @property
    def rates(self) -> str:
        """Messages per second of both."""
        if self.messages is None:
            return ""
        return " / ".join(f"{self.messages / seconds:,.0f}" for seconds in (self.ours, self.others))


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"


def side_by_side(
    ours: Callable[[], object], others: Callable[[], object], before: Callable[[], object] = lambda: None
) -> tuple[float, float]:
    """Median seconds of both, called in turn, so that whatever else the machine does meets both.

    What comes before each call is not counted.
    """
    _seconds(ours, before)
    _seconds(others, before)
    pairs = [(_seconds(ours, before), _seconds(others, before)) for _ in range(ROUNDS)]
    return statistics.median(pair[0] for pair in pairs), statistics.median(pair[1] for pair in pairs)


def _seconds(call: Callable[[], object], before: Callable[[], object]) -> float:
    before()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@contextmanager
def database(server: EmbeddedServer, name: str) -> Iterator[tuple[str, Engine]]:
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(f"create database {name}")
    url = make_url(server.url).set(database=name).render_as_string(hide_password=False)
    engine = connect(url, write=True)
    upgrade(engine)
    yield url, engine
    engine.dispose()


def copy_out(url: str, columns: str) -> None:
    """Plain COPY in binary form, bytes thrown away."""
    sql = f"copy (select {columns} from messages) to stdout (format binary)"
    with psycopg.connect(url) as connection, connection.cursor() as cursor, cursor.copy(sql) as copy:
        for _ in copy:
            pass


def measure_loads(server: EmbeddedServer) -> Iterator[Measure]:
    with database(server, "flat") as (url, engine):
        write_flat(url, contexts=600, messages=30_000)
        for case, columns, embeddings in (
            ("messages_df, 30,000", COLUMNS, False),
            ("messages_df, 30,000 with embeddings", f"{COLUMNS}, embedding", True),
        ):
            ours, raw = side_by_side(
                lambda embeddings=embeddings: messages_df(engine, embeddings=embeddings),
                lambda columns=columns: copy_out(url, columns),
            )
            yield Measure(case, ours, "COPY binary, discarded", raw, "≤ 1.6")
        yield measure_neighbors(url, engine)


def measure_neighbors(url: str, engine: Engine) -> Measure:
    query = embedding_matrix(messages_df(engine, Message.version == 1, embeddings=True))[0]
    assert query.shape == (EMBEDDING_DIMENSIONS,)
    literal = f"[{','.join(map(str, query.tolist()))}]"
    sql = (
        f"select embedding <=> %s::vector as distance, {COLUMNS} from messages"
        " where deleted_at is null order by 1, id limit 10"
    )
    with psycopg.connect(url) as connection:
        ours, plain = side_by_side(
            lambda: neighbors_df(engine, query, mode="exact"),
            lambda: connection.execute(sql, [literal]).fetchall(),
        )
    return Measure("neighbors_df, exact, k 10 of 30,000", ours, "plain psycopg, same order", plain, "≤ 1.5")


def measure_histories(server: EmbeddedServer) -> Iterator[Measure]:
    with database(server, "chain") as (url, engine):
        tip, flat = write_chain(url, depth=100, messages=10_000)
        statement = select_messages(Message.context_id == flat)
        ours, other = side_by_side(lambda: history_df(engine, tip), lambda: read_df(engine, statement))
        assert len(history_df(engine, tip)) == len(read_df(engine, statement)) == 10_000
        yield Measure("history_df, chain of 100, 10,000", ours, "read_df of one context", other, "≤ 3")


def measure_files(server: EmbeddedServer, folder: Path) -> Iterator[Measure]:
    trees = folder / "trees.jsonl"
    messages = write_trees(trees, trees=1_200)
    with database(server, "files") as (url, engine):
        import_file(engine, trees, progress=False)
        yield measure_import(url, engine, trees, messages)
        yield measure_export(url, engine, folder)


def measure_import(url: str, engine: Engine, trees: Path, messages: int) -> Measure:
    """Both write the same rows into the same empty tables, with all their indexes, in one transaction."""
    with psycopg.connect(url, autocommit=True) as connection:
        copied = {table: copied_out(connection, table) for table in ("contexts", "messages")}
        ours, plain = side_by_side(
            lambda: import_file(engine, trees, progress=False),
            lambda: copy_in(url, copied),
            before=lambda: connection.execute("truncate contexts, messages"),
        )
        assert connection.execute("select count(*) from messages").fetchone() == (messages,)
    return Measure(f"import_file, oasst, {messages:,}", ours, "COPY of the same rows", plain, "≤ 3", messages)


def measure_export(url: str, engine: Engine, folder: Path) -> Measure:
    """Rows of histories: a message is written in every history that has it."""
    histories = history_df(engine, contexts_df(engine)["context_id"])
    histories.to_sql("histories", engine, index=False)
    ours, plain = side_by_side(
        lambda: export_file(engine, folder / "histories.jsonl", progress=False),
        lambda: copy_to_file(url, "histories", folder / "histories.copy"),
    )
    rows = len(histories)
    return Measure(f"export_file, openai, {rows:,}", ours, "COPY of the same rows", plain, "", rows)


def copied_out(connection: psycopg.Connection, table: str) -> bytes:
    with connection.cursor() as cursor, cursor.copy(f"copy {table} to stdout") as copy:
        return b"".join(copy)


def copy_in(url: str, copied: dict[str, bytes]) -> None:
    with psycopg.connect(url) as connection, connection.cursor() as cursor:
        for table, rows in copied.items():
            with cursor.copy(f"copy {table} from stdin") as copy:
                copy.write(rows)


def copy_to_file(url: str, table: str, path: Path) -> None:
    with (
        psycopg.connect(url) as connection,
        connection.cursor() as cursor,
        path.open("wb") as file,
        cursor.copy(f"copy {table} to stdout") as copy,
    ):
        for block in copy:
            file.write(block)


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="contextkit-bench-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o711)
        server = EmbeddedServer(Path(folder) / "home")
        server.join()
        try:
            measures = [*measure_loads(server), *measure_histories(server), *measure_files(server, Path(folder))]
        finally:
            server.leave()
    packages = ("contextkit", "sqlalchemy", "psycopg", "adbc-driver-postgresql", "pandas", "numpy", "pyarrow")
    text = "\n".join(
        [
            "# What contextkit takes",
            "",
            f"Written by `make bench`; median of {ROUNDS} after a warm-up, embedded server over its socket.",
            "",
            f"- {platform.system()} {platform.machine()}, {_cores()} cores, Python {platform.python_version()}",
            f"- {', '.join(f'{name} {version(name)}' for name in packages)}",
            f"- {pd.Timestamp.now('UTC'):%Y-%m-%d}",
            "",
            "| case | contextkit | beside | takes | ratio | aim | messages per second, both |",
            "|---|---|---|---|---|---|---|",
            *(measure.row for measure in measures),
            "",
        ]
    )
    RESULTS.write_text(text)
    print(text)


def _cores() -> int:
    import os

    return os.cpu_count() or 0


if __name__ == "__main__":
    main()
