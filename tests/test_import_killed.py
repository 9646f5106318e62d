"""Imports killed at any moment: each file is in the database wholly or not at all."""

import json
import os
import random
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from contextkit import connect, messages_df
from contextkit.formats import import_file
from tests.conftest import _fresh
from tests.test_store import wrong_counters

KILLS = int(os.environ.get("CONTEXTKIT_KILLS", "3"))
MESSAGES = 4000
"""Of each file: an import of it takes several batches."""


def tree(chance: random.Random, name: str, size: int) -> list[dict[str, Any]]:
    """Messages of an OpenAssistant tree, flat; the first ones are the same whatever the size."""
    lines: list[dict[str, Any]] = []
    for place in range(size):
        parent = max(0, place - chance.choice([1, 1, 1, 2, 9])) if place else None
        lines.append({
            "message_id": f"{name}-{place}", "parent_id": None if parent is None else f"{name}-{parent}",
            "message_tree_id": name, "text": f"{name} says {place}. " * 5, "role": "prompter", "rank": place % 3,
            "created_date": f"2024-01-01T{place // 60 % 24:02}:{place % 60:02}:00+00:00", "deleted": place % 50 == 49,
        })  # fmt: skip
    return lines


def trees(names: str, size: int) -> list[dict[str, Any]]:
    made = [line for name in names for line in tree(random.Random(name), name, size)]
    return sorted(made, key=lambda line: int(line["message_id"].split("-")[1]))


def preferences(count: int) -> list[dict[str, Any]]:
    """OpenAI lines of two siblings each, four messages in all."""
    answers = {name: [{"role": "assistant", "content": name}] for name in ("preferred_output", "non_preferred_output")}
    return [
        {"id": f"p{n}", "input": {"messages": [{"role": r, "content": f"{n}"} for r in ("system", "user")]}, **answers}
        for n in range(count)
    ]


def write_files(folder: Path) -> list[Path]:
    """Four files; the third is a longer export of the first."""
    first, longer, other = trees("abcd", MESSAGES // 4), trees("abcd", MESSAGES // 2), trees("ef", MESSAGES // 2)
    contents = [first, preferences(MESSAGES // 4), longer, other]
    for number, lines in enumerate(contents):
        (folder / f"{number}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [folder / f"{number}.jsonl" for number in range(len(contents))]


CHILD = """
import sys
from contextkit import connect
from contextkit.formats import import_file, importing
from contextkit.formats.planning import Plan

importing.BATCH_ROWS = 500
write = Plan.write

def blocked(plan):
    write(plan)
    print("written", flush=True)
    sys.stdin.read()

url, block, *paths = sys.argv[1:]
if block == "block":
    Plan.write = blocked
engine = connect(url, write=True)
for number, path in enumerate(paths):
    print(number, flush=True)
    import_file(engine, path)
print("end", flush=True)
"""


def child(url: str, paths: list[Path], *, block: bool = False) -> "subprocess.Popen[str]":
    """A process that imports files, each announced by its number; it may stop for good when a batch is written."""
    given = [url, "block" if block else "go", *map(str, paths)]
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, *given], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ
    )


def spans(url: str, paths: list[Path]) -> list[float]:
    """Seconds that a child takes for each file, undisturbed."""
    with child(url, paths) as process:
        assert process.stdout is not None
        at = [time.monotonic() for _ in process.stdout]
    assert process.returncode == 0
    return [after - before for before, after in pairwise(at)]


def begun_before_killed(process: "subprocess.Popen[str]", first: int, longest: float, chance: random.Random) -> str:
    """Kill a child at a random moment after it began a file; gives the last file that it began, or "end"."""
    assert process.stdout is not None
    begun = [line.strip() for line in iter(process.stdout.readline, f"{first}\n")] + [str(first)]
    try:
        process.wait(chance.uniform(0, longest))
    except subprocess.TimeoutExpired:
        process.kill()
    begun += process.stdout.read().split()
    return begun[-1]


def wait_until_alone(engine: Engine) -> None:
    """Wait, at most half a minute, until the server has ended what a killed client had begun."""
    others = text("""
        select count(*), pg_sleep(0.01) from pg_stat_activity
        where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'
    """)
    with engine.connect() as connection:
        for _ in range(3000):
            if connection.execute(others).scalar() == 0:
                return
            connection.rollback()  # the view is a snapshot of the transaction
    pytest.fail("a killed import still holds its connection")


def digest(engine: Engine) -> tuple[Any, ...]:
    """Every row of both tables and the order of the contexts, without the times that an import itself gives."""
    both = text("""
        select (select md5(string_agg((to_jsonb(c) - 'created_at' - 'updated_at')::text, ',' order by created_at, id))
                from contexts c),
               (select md5(string_agg((to_jsonb(m) - case when created_at > '2025-01-01' then 'created_at' else '' end)
                ::text, ',' order by id)) from messages m)
    """)
    with engine.connect() as connection:
        return tuple(connection.execute(both).one())


def emptied(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("truncate contexts, messages"))


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def undisturbed(server_url: str, migrated: str, paths: list[Path]) -> list[tuple[Any, ...]]:
    """Digests of a database before the first file and after each of them."""
    for url in _fresh(server_url, migrated):
        engine = connect(url, write=True)
        found = [digest(engine)]
        for path in paths:
            import_file(engine, path)
            found.append(digest(engine))
        assert not wrong_counters(engine)
        engine.dispose()
    assert len(set(found)) == len(paths) + 1
    return found


def test_killed_at_any_moment_each_file_is_there_or_not_and_the_end_is_that_of_an_undisturbed_run(
    engine: Engine, database_url: str, paths: list[Path], undisturbed: list[tuple[Any, ...]]
) -> None:
    chance = random.Random(7)
    lasting = spans(database_url, paths)
    assert digest(engine) == undisturbed[-1]
    print("seconds of each file", lasting)
    struck, done = list[tuple[int, int]](), len(paths)
    for _ in range(5 * KILLS):
        if done == len(paths) or len(struck) % 4 == 0:
            emptied(engine)
            done = 0
        with child(database_url, paths) as process:
            last = begun_before_killed(process, done, sum(lasting[done:]), chance)
        wait_until_alone(engine)
        assert digest(engine) in undisturbed
        done = undisturbed.index(digest(engine))
        if last == "end":
            assert done == len(paths)
            continue
        assert done in (int(last), int(last) + 1)
        assert not wrong_counters(engine)
        struck.append((int(last), done))
        if len(struck) == KILLS:
            break
    print("killed during file, files there afterwards:", *struck)
    assert len(struck) == KILLS
    with child(database_url, paths) as process:
        assert process.wait(120) == 0
    assert digest(engine) == undisturbed[-1]
    assert not wrong_counters(engine)


def test_an_import_killed_between_two_batches_leaves_nothing_and_does_not_block_the_next(
    engine: Engine, database_url: str, paths: list[Path], undisturbed: list[tuple[Any, ...]]
) -> None:
    patient = connect(database_url, write=True, statement_timeout=30)
    with child(database_url, paths, block=True) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["0\n", "written\n"]
        with engine.connect() as connection:
            held = "select count(*) from pg_locks where locktype = 'advisory' and granted"
            assert connection.execute(text(held)).scalar() == 1
        assert messages_df(engine).empty
        process.kill()
    assert set(import_file(patient, paths[0])["state"]) == {"new"}
    patient.dispose()
    assert digest(engine) == undisturbed[1]
