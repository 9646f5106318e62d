"""Work that waits outside Python, and ends when the user interrupts it."""

from collections.abc import Callable
from concurrent.futures import Future, wait
from threading import Thread
from typing import TypeVar

_Result = TypeVar("_Result")


def interruptible(
    work: Callable[[], _Result], cancel: Callable[[], None], meanwhile: Callable[[], object] = lambda: None
) -> _Result:
    """Result of the work; when the user interrupts it, it is cancelled and has ended.

    In a thread of its own: in the main one a driver keeps the interrupt to itself, or lets it wait. What is to be
    done meanwhile is done five times a second, and ends the work likewise if it fails.
    """
    future: Future[_Result] = Future()
    thread = Thread(target=_do, args=(work, future))
    try:
        thread.start()
        while not wait([future], timeout=0.2).done:  # in steps, as Windows interrupts no wait
            meanwhile()
    except BaseException:
        if not future.cancel():  # else it has not begun, and never will
            while not future.done():
                cancel()
                wait([future], timeout=0.1)
        raise
    return future.result()


def _do(work: Callable[[], _Result], future: "Future[_Result]") -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(work())
    except BaseException as error:  # noqa: BLE001 - whoever waits for the result gets it
        future.set_exception(error)
