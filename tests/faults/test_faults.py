"""What a failing network, server or disk does to each public function: the short form, and all of it in the soak."""

import inspect
import os
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine

import contextkit
from contextkit import ContextkitError, DatabaseUnavailableError, connect, contexts_df, messages_df
from contextkit.connection.silence import FIRST_WAIT
from tests.faults.cases import CASES, folder, state_of
from tests.faults.ground import (
    CONNECT_TIMEOUT,
    Ground,
    Undisturbed,
    left_threads,
    outcome,
    same,
    struck,
    undisturbed,
)
from tests.faults.proxy import Fault, Plan
from tests.test_connection import until

FAULTS: tuple[Fault, ...] = ("drop", "reset", "stall", "freeze", "kill", "delay")
MOMENTS: dict[Fault, tuple[float, ...]] = {
    "drop": (0, 0.05, 0.2, 0.4, 0.6, 0.8, 0.95, 0.999),
    "reset": (0, 0.05, 0.2, 0.4, 0.6, 0.8, 0.95, 0.999),
    "stall": (0, 0.3, 0.7, 0.999),
    "freeze": (0.3, 0.9),
    "kill": (0.3, 0.9),
    "delay": (0,),
}
LONGEST: dict[Fault, float] = {
    "drop": 1,
    "reset": 1,
    "kill": 10,
    "stall": CONNECT_TIMEOUT,
    "freeze": 2 * (2 * CONNECT_TIMEOUT + FIRST_WAIT),
    "delay": 100,
}
"""Seconds that a call may take beside its own."""
WRITES = [name for name, case in CASES.items() if case.writes]
KINDS = ["messages_df", "messages_df embeddings", "messages_df connections", "append_messages"]
"""On the pool, in bulk, over several connections, in a transaction."""

COMMIT = b"COMMIT\0"
SHORT = {*KINDS, "create_index", "embed_missing", "export_file", "import_file", "neighbors_df", "upgrade"}

normals: dict[str, Undisturbed] = {}


def sampled(names: Iterable[str]) -> list[Any]:
    """Some of the names, and the others in the soak."""
    return [pytest.param(name, marks=() if name in SHORT else pytest.mark.soak) for name in names]


def normal(ground: Ground, name: str) -> Undisturbed:
    if name not in normals:
        normals[name] = undisturbed(ground, name)
    return normals[name]


def moments(ground: Ground, name: str, fault: Fault) -> Iterator[tuple[Plan, bool]]:
    """Plans of a fault for a case, and whether a connection is open before."""
    received = normal(ground, name).received
    for part in MOMENTS[fault]:
        yield Plan(fault, int(part * received)), False
    if fault in ("delay", "kill"):
        return
    yield Plan(fault, 0), True
    if CASES[name].writes:
        yield Plan(fault, message=COMMIT), False
        yield Plan(fault, message=COMMIT, arrives=True), False


def test_every_function_that_takes_an_engine_has_a_case() -> None:
    takers = {
        name
        for name in contextkit.__all__
        if callable(value := getattr(contextkit, name))
        and not inspect.isclass(value)
        and "engine" in inspect.signature(value).parameters
    }
    assert takers == {name.partition(" ")[0] for name in CASES}


@pytest.mark.parametrize("name", sampled(CASES))
def test_a_connection_cut_in_the_midst_gives_all_or_an_error_and_leaves_nothing(ground: Ground, name: str) -> None:
    struck(ground, name, Plan("drop", int(0.6 * normal(ground, name).received)), normal(ground, name))


@pytest.mark.parametrize("arrives", [False, True])
@pytest.mark.parametrize("name", ["append_messages", "import_file", "upgrade"])
def test_a_commit_without_an_answer_is_called_unknown(ground: Ground, name: str, arrives: bool) -> None:
    plan = Plan("reset", message=COMMIT, arrives=arrives)
    ended = struck(ground, name, plan, normal(ground, name))
    assert isinstance(ended.error, DatabaseUnavailableError)
    assert "unknown whether the last changes were written; look before" in str(ended.error)


def test_a_commit_without_an_answer_is_unknown_on_an_engine_of_others_too(ground: Ground) -> None:
    with ground.database(CASES["add_context"]) as database:
        engine = create_engine(ground.proxied(database).replace("postgresql", "postgresql+psycopg"))
        ground.proxy.plan(Plan("drop", message=COMMIT))
        with pytest.raises(DatabaseUnavailableError, match="unknown"):
            contextkit.add_context(engine)
        ground.proxy.heal()
        engine.dispose()


@pytest.mark.parametrize("name", KINDS)
def test_a_network_that_stalls_is_waited_for_no_longer_than_connect_timeout(ground: Ground, name: str) -> None:
    ended = struck(ground, name, Plan("stall", int(0.7 * normal(ground, name).received)), normal(ground, name))
    assert isinstance(ended.error, DatabaseUnavailableError)
    assert ended.seconds < CONNECT_TIMEOUT + 10


def test_a_stalled_idle_connection_is_waited_for_once(ground: Ground) -> None:
    ended = struck(ground, "contexts_df", Plan("stall", 0), normal(ground, "contexts_df"), warm=True)
    assert isinstance(ended.error, DatabaseUnavailableError)


def test_an_idle_connection_that_froze_or_was_cut_is_replaced_unseen(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("contextkit.connection.engines.FRESH", 0.0)  # as if it had rested for longer
    for fault in ("freeze", "drop", "reset"):
        ended = struck(ground, "contexts_df", Plan(fault, 0), normal(ground, "contexts_df"), warm=True)
        assert ended.error is None


@pytest.mark.parametrize("name", KINDS[1:])
def test_a_connection_that_froze_is_given_up_when_the_server_waits_for_it(ground: Ground, name: str) -> None:
    ended = struck(ground, name, Plan("freeze", int(0.9 * normal(ground, name).received)), normal(ground, name))
    assert isinstance(ended.error, DatabaseUnavailableError)


@pytest.mark.parametrize("name", ["messages_df embeddings", "append_messages"])
def test_a_server_killed_in_the_midst_and_started_again_serves_the_next_call(ground: Ground, name: str) -> None:
    struck(ground, name, Plan("kill", int(0.7 * normal(ground, name).received)), normal(ground, name))


def test_a_slow_network_only_takes_longer(ground: Ground) -> None:
    assert struck(ground, "contexts_df", Plan("delay", 0), normal(ground, "contexts_df")).error is None


@pytest.mark.soak
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", CASES)
def test_each_function_meets_each_fault_at_each_moment(ground: Ground, name: str, fault: Fault) -> None:
    tries = Counter[str]()
    longest = 0.0
    for plan, warm in moments(ground, name, fault):
        ended = struck(ground, name, plan, normal(ground, name), warm=warm)
        tries[type(ended.error).__name__ if ended.error else "succeeded"] += 1
        longest = max(longest, ended.seconds)
        assert ended.seconds < normal(ground, name).seconds + LONGEST[fault] + 10, plan
    if fault == "delay":
        assert tries["DatabaseUnavailableError"] == 0
    print(f"\nfault {CASES[name].group} | {name} | {fault} | {sum(tries.values())} | {dict(tries)} | {longest:.2f}")


# The server refuses


def refused(ground: Ground, name: str, url: Callable[[str], str], **asked: float) -> BaseException | None:
    """How a case ends on a server that refuses something; it may have done all or nothing."""
    case, usual = CASES[name], normal(ground, name)
    with ground.database(case) as database, folder() as place:
        engine = connect(url(database), write=True, **asked)  # type: ignore[arg-type]
        ended = outcome(lambda: case.call(engine, Path(place)))
        engine.dispose()
        assert until(lambda: ground.connections(database) == 0)
        assert until(lambda: not left_threads())
        state = state_of(ground.direct(database))
    if ended.error is None:
        assert same(ended.value, usual.value)
        assert state == usual.after
    elif not case.batches:
        assert state == usual.before
    return ended.error


@pytest.mark.parametrize("name", sampled(CASES))
def test_without_a_free_connection_each_function_is_unavailable(ground: Ground, name: str) -> None:
    with psycopg.connect(ground.server.url, autocommit=True) as admin:
        admin.execute("create role crowded login superuser connection limit 0")
        admin.execute("alter role crowded nosuperuser")
        try:
            error = refused(ground, name, lambda database: ground.proxied(database, "crowded"))
        finally:
            admin.execute("drop role crowded")
    assert isinstance(error, DatabaseUnavailableError)
    assert "too many connections" in str(error)


def test_a_role_with_one_connection_reads_in_bulk_again_and_again(ground: Ground) -> None:
    with psycopg.connect(ground.server.url, autocommit=True) as admin, ground.database(CASES["messages_df"]) as name:
        admin.execute("create role lonely login connection limit 1")
        admin.execute("grant pg_read_all_data to lonely")
        engine = connect(ground.proxied(name, "lonely"), pool_size=1)
        rows = {len(messages_df(engine, embeddings=True)) for _ in range(30)}
        engine.dispose()
        assert until(lambda: ground.connections(name) == 0)
        admin.execute("drop role lonely")
    assert rows == {len(normal(ground, "messages_df").value)}


@pytest.mark.parametrize("name", sampled(CASES))
def test_statement_timeout_ends_each_function_whole_or_not_at_all(ground: Ground, name: str) -> None:
    error = refused(ground, name, ground.direct, statement_timeout=0.002)
    if error is not None:
        assert type(error) is ContextkitError, error
        assert "statement_timeout" in str(error)


# The disk is full


@pytest.fixture(scope="module")
def small_disk(ground: Ground) -> Iterator[Path]:
    """A disk of 64 MB with a tablespace named small."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("only root mounts a disk of its own")
    disk = ground.server.home.parent / "disk"
    disk.mkdir(mode=0o711)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)], check=False)
    if mounted.returncode:
        pytest.skip("this root may not mount a disk, as in a container")
    space = disk / "space"
    space.mkdir()
    owner = (ground.server.home / "data").stat()
    os.chown(space, owner.st_uid, owner.st_gid)
    with psycopg.connect(ground.server.url, autocommit=True) as admin:
        admin.execute(f"create tablespace small location '{space}'")
        yield disk
        admin.execute("drop tablespace small")
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("name", sampled(WRITES))
def test_on_a_full_disk_nothing_is_written_and_the_next_call_works(ground: Ground, small_disk: Path, name: str) -> None:
    case, usual = CASES[name], normal(ground, name)
    with ground.database(case, tablespace="small") as database, folder() as place, folder() as another:
        filler = small_disk / "filler"
        fill(filler)
        engine = connect(ground.direct(database), write=True)
        ended = outcome(lambda: case.call(engine, Path(place)))
        filler.unlink()
        state = state_of(ground.direct(database))
        if ended.error is None:
            assert state == usual.after  # the room within the files was enough
        else:
            assert type(ended.error) is ContextkitError, ended.error
            assert "disk is full" in str(ended.error)
            assert state == usual.before or case.batches
            case.call(engine, Path(another))
            assert state_of(ground.direct(database)) == usual.after
        assert len(contexts_df(engine)) > 0 or name in ("upgrade", "delete_context")
        engine.dispose()
        assert until(lambda: ground.connections(database) == 0)


def fill(path: Path) -> None:
    """Leave no room on a disk."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass
