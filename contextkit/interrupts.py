"""Work that waits outside Python, and ends when the user interrupts it."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

_Result = TypeVar("_Result")


def interruptible(
    work: Callable[[], _Result], cancel: Callable[[], None], meanwhile: Callable[[], object] = lambda: None
) -> _Result:
    """Result of the work; when the user interrupts it, it is cancelled and has ended.

    In a thread of its own: in the main one a driver keeps the interrupt to itself, or lets it wait. What is to be
    done meanwhile is done five times a second, and ends the work likewise if it fails.
    """
    with ThreadPoolExecutor(1) as executor:
        future = executor.submit(work)
        try:
            while not wait([future], timeout=0.2).done:  # in steps, as Windows interrupts no wait
                meanwhile()
        except BaseException:
            while not future.done():
                cancel()
                wait([future], timeout=0.1)
            raise
        return future.result()
