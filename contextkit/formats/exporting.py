"""`export_file`: histories, a batch of contexts at a time, into a file that has its name only when it is whole."""

import gzip
import json
import re
import shutil
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import uuid4

import pandas as pd
import pyarrow as pa
from pyarrow import parquet
from sqlalchemy import Engine

from contextkit.counts import positive
from contextkit.formats import oasst, openai, sharegpt
from contextkit.formats.histories import History, families_df, histories_of, history_frames
from contextkit.frames import read_df
from contextkit.partitions import Partition, partitions_of
from contextkit.queries import Condition, select_history_partitions

Writer = Callable[[Iterable[History]], Iterator[dict[str, Any]]]

WRITERS: dict[str, Writer] = {"oasst": oasst.write, "openai": openai.write, "sharegpt": sharegpt.write}
PARQUET = "parquet"
ENDINGS = {".parquet": PARQUET, ".jsonl": "openai", ".ndjson": "openai"}

PART_NAME = re.compile(r"part-\d{5,}\.parquet")

QUIET_SECONDS = 2.0
LINE_ENDS = {ord(mark): f"\\u{ord(mark):04x}" for mark in "\x85\u2028\u2029"}
"""What some readers of lines take for the end of one."""


def export_file(
    engine: Engine,
    path: str | Path,
    *where: Condition,
    format: str | None = None,
    partitions: int | None = None,
    progress: bool = True,
) -> int:
    """Number of contexts whose histories a file now holds, inherited messages included, without the deleted ones.

    Memory holds a batch of histories at a time, of oasst also a tree. The file is written beside its place and moved
    there when it is whole: one that stood there stays until then, and however an export ends, no half file has the
    name. Only a process that is killed leaves its part, `.NAME.….part`, behind.

    - `openai`: JSON Lines for fine-tuning, `messages` with tool calls, and `tools`, per history. Lost: forks, names,
      ids of messages, times, token counts, models, embeddings; place and spelling of tool definitions. A history
      may end with a message of the user.
    - `sharegpt`: JSON Lines, `conversations` of `from` and `value`, `system` and `tools`, per history. Lost: the
      same, the spelling of calls' arguments, and ids of calls, so that results answer the calls before them in order.
    - `oasst`: JSON Lines, a line per message, which names its parent; contexts of one root are one tree. Lost: names,
      token counts, embeddings, all but one of contexts with equal histories, and a context whose history another one
      goes on from. Tools and system messages are refused.
    - `parquet`: the rows of `history_df` with embeddings; nothing is lost but the contexts' own columns. For
      `embedding_matrix` read it by `pd.read_parquet(path, dtype_backend="pyarrow")`. With `partitions` it is a folder
      of files `part-00000.parquet` and on, for DuckDB, Polars, Spark or Dask: each context is whole in one of them,
      they are about equal in rows, and their ranges of ids follow one another.

    All but parquet are what `import_file` reads. Contexts without messages are left out. What is written meanwhile may
    be in it or not.

    Args:
        engine: from `connect`.
        path: the file; JSON Lines are compressed where it ends in .gz. With `partitions` the folder, which takes the
            place of one that holds nothing but such files.
        where: conditions on Context and Message, as for `contexts_df`.
        format: openai, sharegpt, oasst or parquet; by default parquet or openai as the path ends in .parquet or .jsonl,
            and parquet in partitions.
        partitions: at most so many files of parquet in a folder, instead of one file.
        progress: show a bar when it takes long.

    Raises:
        ValueError: the format is unknown or does not hold a message, or the path holds something else.
        LineageError: the parents of a context form a cycle.
        FileNotFoundError: the folder does not exist.
    """
    path = Path(path).expanduser().resolve()
    if partitions is not None:
        partitions = positive("partitions", partitions)
    format = _format(path, format, partitions)
    families = families_df(engine, *where)
    tqdm = import_module("tqdm.auto").tqdm
    with tqdm(total=len(families), unit=" contexts", delay=QUIET_SECONDS, disable=not progress, leave=False) as bar:

        def frames(families: pd.DataFrame) -> Iterator[pd.DataFrame]:
            return _shown(history_frames(engine, families, embeddings=format == PARQUET), bar)

        if partitions is not None:
            counted = read_df(engine, select_history_partitions(partitions, *where))
            shares = _shares(families, partitions_of(counted.itertuples(index=False)))
            with _whole_folder(path) as folder:
                return sum(
                    _write_parquet(folder / f"part-{number:05}.parquet", frames(share))
                    for number, share in enumerate(shares)
                )
        with _whole(path) as part:
            if format == PARQUET:
                return _write_parquet(part, frames(families))
            return _write_lines(part, _compressed(path), WRITERS[format], histories_of(frames(families), families))


def _format(path: Path, format: str | None, partitions: int | None) -> str:
    known = [*WRITERS, PARQUET]
    if format is None:
        ending = path.name.lower().removesuffix(".gz")
        format = next((name for end, name in ENDINGS.items() if ending.endswith(end)), None)
        if format is None and partitions is None:
            raise ValueError(f"{path.name} does not tell a format; name one: {', '.join(known)}")
        format = format or PARQUET
    if format not in known:
        raise ValueError(f"no format is called {format!r:.40}; formats to write are {', '.join(known)}")
    if format == PARQUET and _compressed(path):
        raise ValueError(f"{path.name}: parquet is compressed by itself; take a name that ends in .parquet")
    if format != PARQUET and partitions is not None:
        raise ValueError(f"{format} is one file; leave partitions out, or write parquet")
    return format


def _shares(families: pd.DataFrame, ranges: list[Partition]) -> Iterator[pd.DataFrame]:
    """Parts of the families, by context id, so that readers can pass over the files that an id is not in."""
    families = families.sort_values("context_id", ignore_index=True)
    ids = families["context_id"].tolist()
    starts = [bisect_left(ids, partition.first_id or "") for partition in ranges]
    for start, end in pairwise([*starts, len(ids)]):
        yield families.iloc[start:end]


def _compressed(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Give a file to write beside the path; it takes the path's name when all went well, else it is removed."""
    if path.is_dir():
        raise IsADirectoryError(f"{path.name} is a folder; name a file in it")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path.name} is no regular file; name one, or a new one")
    part = _beside(path)
    try:
        yield part
        if path.exists():
            part.chmod(path.stat().st_mode)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _whole_folder(path: Path) -> Iterator[Path]:
    """Give a folder to fill beside the path; it takes the path's name when all went well, else it is removed."""
    _check_replaceable(path)
    part, former = _beside(path), _beside(path)
    part.mkdir()
    try:
        yield part
        if path.exists():
            _check_replaceable(path)  # again: what came into it meanwhile stays
            part.chmod(path.stat().st_mode)
            path.replace(former)  # no folder with files in it can be renamed over
        part.replace(path)
    finally:
        if former.exists() and not path.exists():
            former.replace(path)
        for left in (part, former):
            shutil.rmtree(left, ignore_errors=True)


def _check_replaceable(path: Path) -> None:
    if not path.exists():
        return
    if not path.is_dir() or not all(PART_NAME.fullmatch(file.name) and file.is_file() for file in path.iterdir()):
        raise ValueError(f"{path.name} is there and no export in partitions; name a new folder")


def _beside(path: Path) -> Path:
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent.name} does not exist; make it first")
    return path.with_name(f".{path.name}.{uuid4().hex[:8]}.part")


def _shown(frames: Iterable[pd.DataFrame], bar: Any) -> Iterator[pd.DataFrame]:
    for frame in frames:
        yield frame
        bar.update(frame["context_id"].nunique())


def _write_parquet(part: Path, frames: Iterable[pd.DataFrame]) -> int:
    writer, written = None, 0
    try:
        for frame in frames:
            table = _readable(pa.Table.from_pandas(frame, preserve_index=False))
            writer = writer or parquet.ParquetWriter(part, table.schema)
            writer.write_table(table)
            written += frame["context_id"].nunique()
    finally:
        if writer is not None:
            writer.close()
    return written


def _readable(table: pa.Table) -> pa.Table:
    """Without the embedding in what pandas notes about dtypes: it writes the name of one that it cannot read."""
    noted = json.loads(table.schema.metadata[b"pandas"])
    noted["columns"] = [column for column in noted["columns"] if column["name"] != "embedding"]
    return table.replace_schema_metadata({"pandas": json.dumps(noted)})


def _write_lines(part: Path, compressed: bool, write: Writer, histories: Iterable[History]) -> int:
    written = 0

    def counted() -> Iterator[History]:
        nonlocal written
        for history in histories:
            yield history
            written += 1

    opened = gzip.open if compressed else open
    with opened(part, "wt", encoding="utf-8", newline="\n") as file:
        for record in write(counted()):
            file.write(json.dumps(record, ensure_ascii=False).translate(LINE_ENDS) + "\n")
    return written
