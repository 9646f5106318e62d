"""The command `contextkit`: a line per command; what it does lives elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer
from sqlalchemy import Engine
from typer.core import TyperGroup

import contextkit.migrate as migrations
from contextkit import terminal
from contextkit.check import check_df
from contextkit.connection import connect
from contextkit.errors import ContextkitError
from contextkit.formats import export_file, import_file
from contextkit.frames import contexts_df, history_df
from contextkit.info import info as describe
from contextkit.models import Context
from contextkit.visible import visible_line

DELETED = Annotated[bool, typer.Option("--deleted", help="What is deleted, too.")]
JSON = Annotated[bool, typer.Option("--json", help="A line of JSON per row, with every column, for scripts.")]


class _Group(TyperGroup):
    """Says what went wrong in one line, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (ContextkitError, ValueError, OSError) as error:
            typer.secho(visible_line(error), fg="red", err=True)  # it may name what a file holds
            raise typer.Exit(1) from None


# Locals may hold a URL with its password.
app = typer.Typer(cls=_Group, no_args_is_help=True, pretty_exceptions_show_locals=False)
db = typer.Typer(no_args_is_help=True, help="Create, migrate and look at the two tables.")
app.add_typer(db, name="db")


@app.callback()
def main() -> None:
    """LLM conversations in PostgreSQL, at DATABASE_URL, of .env too, else in an embedded server."""


@app.command()
def info() -> None:
    """Print what the database is: versions, host, schema, numbers of rows."""
    with _opened() as engine:
        typer.echo(_lines(describe(engine)))


@app.command()
def demo() -> None:
    """Show what contextkit does, on sample conversations."""
    from contextkit.demo import main as run

    run()


@app.command()
def contexts(
    limit: Annotated[int | None, typer.Option(min=1, help="Only the newest so many.")] = None,
    deleted: DELETED = False,
    json: JSON = False,
) -> None:
    """List contexts by creation, the newest last, each with the number of its own messages."""
    with _opened() as engine:
        frame = contexts_df(engine, include_deleted=deleted)
    newest = frame if limit is None else frame.tail(limit)
    terminal.print_json(newest) if json else terminal.print_contexts(newest)


@app.command()
def show(
    context_id: Annotated[str, typer.Argument(help="From `contextkit contexts`.")],
    at_version: Annotated[int | None, typer.Option(min=0, help="The history up to that version.")] = None,
    deleted: DELETED = False,
    json: JSON = False,
) -> None:
    """Print the history of a context: the messages that the model saw, inherited ones included."""
    with _opened() as engine:
        history = history_df(engine, context_id, at_version=at_version, include_deleted=deleted)
        context = contexts_df(engine, Context.id == context_id, include_deleted=deleted).iloc[0]
    terminal.print_json(history) if json else terminal.print_history(context, history)


@app.command("import")
def import_(
    paths: Annotated[list[Path], typer.Argument(help="Files, archives or folders of conversations.")],
    format: Annotated[str | None, typer.Option(help="By default told from the content.")] = None,
    skip_errors: Annotated[
        bool, typer.Option("--skip-errors", help="Leave bad conversations out, and say so.")
    ] = False,
) -> None:
    """Import conversations of other tools, every branch kept; a path is all or nothing."""
    with _opened(write=True) as engine:
        for path in paths:
            frame = import_file(engine, path, format=format, on_error="skip" if skip_errors else "raise")
            typer.echo(f"{path}: {_counts(frame)}")


def _counts(imported: pd.DataFrame) -> str:
    """What an import did, and what it passed over."""
    counts = {f"{state} contexts": n for state, n in imported["state"].value_counts().items()}
    counts["conversations without messages"] = imported.attrs["empty"]
    counts["conversations skipped"] = len(imported.attrs["skipped"])
    counts["files of no known format"] = len(imported.attrs["left_out"])
    return ", ".join(f"{n} {what}" for what, n in counts.items() if n) or "nothing"


@app.command()
def export(
    path: Annotated[Path, typer.Argument(help="The file to write, such as histories.jsonl or histories.parquet.")],
    format: Annotated[
        str | None, typer.Option(help="openai, sharegpt, oasst or parquet; by default from PATH.")
    ] = None,
    partitions: Annotated[
        int | None, typer.Option(help="Write PATH as a folder of at most so many files of parquet.")
    ] = None,
) -> None:
    """Write the histories of all contexts to a file, for training or another tool."""
    with _opened() as engine:
        typer.echo(f"{path}: {export_file(engine, path, format=format, partitions=partitions)} contexts")


@db.command("migrate")
@db.command()
def upgrade(
    sql: Annotated[bool, typer.Option("--sql", help="Print the SQL instead, for psql; nothing is run.")] = False,
) -> None:
    """Bring the tables to the newest revision, and print it."""
    with _opened(write=not sql) as engine:
        typer.echo(migrations.upgrade_sql(engine) if sql else migrations.upgrade(engine))


@db.command()
def status() -> None:
    """Print revision, head, state and differences; exit with 1 unless the state is current."""
    with _opened() as engine:
        found = migrations.schema_status(engine)
    typer.echo(_lines(found))
    raise typer.Exit(int(found.state != "current"))


@db.command()
def check(json: JSON = False) -> None:
    """Print what is wrong with the data, the gravest first; exit with 1 if there is an error or a warning."""
    with _opened() as engine:
        findings = check_df(engine)
    terminal.print_json(findings) if json else terminal.print_findings(findings)
    raise typer.Exit(int((findings["severity"] != "note").any()))


@db.command()
def push(
    force: Annotated[bool, typer.Option("--force", help="Also on a database other than the embedded one.")] = False,
) -> None:
    """Add what the models have and the database lacks, without a revision; for development."""
    with _opened(write=True) as engine:
        typer.echo(migrations.push(engine, force=force))


@db.command()
def generate(slug: Annotated[str, typer.Argument(help="Letters, digits, _ and -.")]) -> None:
    """Write a revision from how the models differ from a database at head, and print its file."""
    with _opened() as engine:
        typer.echo(migrations.generate(engine, slug))


@db.command()
def studio(
    port: Annotated[int | None, typer.Option(help="By default 8866, or one near it that is free.")] = None,
) -> None:
    """Open a page in the browser to look at contexts, forks and neighbors; one Ctrl-C ends it."""
    from contextkit.studio import serve

    serve(port)


@contextmanager
def _opened(*, write: bool = False) -> Iterator[Engine]:
    engine = connect(write=write)
    try:
        yield engine
    finally:
        engine.dispose()


def _lines(series: pd.Series) -> str:
    lines = []
    for name, value in series.items():
        values = value if isinstance(value, list) else [value]
        shown = ["-" if item is None else str(item) for item in values] or ["-"]
        lines += [f"{label:<12} {item}" for label, item in zip([name] + [""] * len(shown), shown, strict=False)]
    return "\n".join(lines)
