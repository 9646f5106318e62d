"""Work that waits outside Python, and ends when the user interrupts it."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

_Result = TypeVar("_Result")

STEP = 0.2
PATIENCE = 3600.0


class HopelessError(Exception):
    """Nothing will end the work any more, nor hear that it is cancelled."""


def interruptible(
    work: Callable[[], _Result],
    cancel: Callable[[], None],
    meanwhile: Callable[[], object] = lambda: None,
    patience: float = PATIENCE,
) -> _Result:
    """Result of the work; when the user interrupts it, it is cancelled and has ended.

    In a thread of its own: in the main one a driver keeps the interrupt to itself, or lets it wait. What is to be
    done meanwhile is done five times a second, and ends the work likewise if it fails. Work is left to itself that has
    not ended so many seconds after it was cancelled, or that is found to be hopeless.
    """
    future: Future[_Result] = Future()
    try:
        start(work, future)
        while not wait([future], timeout=STEP).done:  # in steps, as Windows interrupts no wait
            meanwhile()
    except HopelessError:
        raise
    except BaseException:
        if not future.cancel():  # else it has not begun, and never will
            _end(future, cancel, patience)
        raise
    return future.result()


def start(work: Callable[[], _Result], future: "Future[_Result]") -> "Future[_Result]":
    """The future of work that has begun in a thread of its own, which no end of the interpreter waits for."""
    Thread(target=_do, args=(work, future), name="contextkit", daemon=True).start()
    return future


@contextmanager
def beside() -> Iterator[Callable[[Callable[[], _Result]], "Future[_Result]"]]:
    """What gives work to one thread, a piece after the other; at the end all of it is waited for.

    One for all pieces, as what a thread has allocated is of little use to the next.
    """
    given: SimpleQueue[Any] = SimpleQueue()
    start(partial(_do_all, given), Future())

    def begin(work: Callable[[], _Result]) -> "Future[_Result]":
        future: Future[_Result] = Future()
        given.put((work, future))
        return future

    try:
        yield begin
    finally:
        ended: Future[None] = Future()
        given.put((bool, ended))
        given.put(None)
        wait([ended])


def _do_all(given: "SimpleQueue[Any]") -> None:
    for work, future in iter(given.get, None):
        _do(work, future)


def _end(future: "Future[_Result]", cancel: Callable[[], None], patience: float) -> None:
    """Cancel work until it has ended; beside it, as a cancel may wait for the same network."""
    deadline = time.monotonic() + patience
    while not future.done() and time.monotonic() < deadline:
        # Waited for, as a late one would hit what the connection does next.
        wait([start(cancel, Future())], timeout=deadline - time.monotonic())
        wait([future], timeout=STEP / 2)


def _do(work: Callable[[], _Result], future: "Future[_Result]") -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(work())
    except BaseException as error:  # noqa: BLE001 - whoever waits for the result gets it
        future.set_exception(error)
