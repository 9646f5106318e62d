"""Work that waits outside Python, and ends when the user interrupts it."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Event, Semaphore, Thread
from typing import TypeVar

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
def ahead(read: Callable[[], _Result | None]) -> Iterator[Iterator[_Result]]:
    """What is read until there is None: while one piece is worked on, a thread reads the next, and none beyond it.

    One thread for all, as what a thread has allocated is of little use to the next; at the end it is waited for.
    """
    places = Semaphore(2)
    pieces: SimpleQueue[Future[_Result | None]] = SimpleQueue()
    over = Event()

    def read_all() -> None:
        while True:
            places.acquire()  # here and not by whoever takes the pieces: to wake another takes longer than to read
            if over.is_set():
                return
            piece: Future[_Result | None] = Future()
            _do(read, piece)
            pieces.put(piece)
            if piece.exception() or piece.result() is None:
                return

    def taken() -> Iterator[_Result]:
        while (piece := pieces.get().result()) is not None:
            yield piece
            del piece
            places.release()

    reading = start(read_all, Future())
    try:
        yield taken()
    finally:
        over.set()
        places.release()
        wait([reading])


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
