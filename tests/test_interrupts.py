import threading
from typing import Any

import pytest

from contextkit import interrupts
from contextkit.interrupts import HopelessError, ahead, interruptible


def interrupted_at_the_start(monkeypatch: pytest.MonkeyPatch, *, begun: bool) -> None:
    """Interrupt whoever starts a thread, before it has begun or when it runs already."""

    class Thread(threading.Thread):
        def start(self) -> None:
            monkeypatch.setattr(interrupts, "Thread", threading.Thread)  # once, and no more
            if begun:
                super().start()
            raise KeyboardInterrupt

    monkeypatch.setattr(interrupts, "Thread", Thread)


def test_the_result_of_the_work_comes_back() -> None:
    assert interruptible(lambda: 3, pytest.fail) == 3


def test_an_error_of_the_work_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        interruptible(lambda: 1 // 0, pytest.fail)


def test_an_interrupt_cancels_the_work_until_it_has_ended() -> None:
    cancelled, ended = threading.Event(), threading.Event()

    def work() -> None:
        cancelled.wait(30)
        ended.set()

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interruptible(work, cancelled.set, meanwhile=interrupt)
    assert cancelled.is_set()
    assert ended.is_set()


def test_an_interrupt_while_the_work_is_being_started_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted_at_the_start(monkeypatch, begun=True)
    running, cancelled, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        running.set()
        cancelled.wait(30)
        ended.set()

    with pytest.raises(KeyboardInterrupt):
        interruptible(work, cancelled.set)
    assert ended.is_set() or not running.is_set()


def test_work_that_has_not_begun_is_never_done(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted_at_the_start(monkeypatch, begun=False)
    done: list[Any] = []
    with pytest.raises(KeyboardInterrupt):
        interruptible(lambda: done.append(1), pytest.fail)
    assert not done


def test_hopeless_work_is_neither_cancelled_nor_waited_for() -> None:
    released = threading.Event()

    def notice() -> None:
        raise HopelessError

    with pytest.raises(HopelessError):
        interruptible(lambda: released.wait(30), pytest.fail, meanwhile=notice)
    released.set()


def test_work_that_does_not_end_is_left_after_a_while_however_long_a_cancel_takes() -> None:
    released = threading.Event()

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interruptible(lambda: released.wait(30), lambda: print(released.wait(30)), meanwhile=interrupt, patience=0.2)
    assert not released.is_set()
    released.set()


def test_one_piece_is_read_while_another_is_worked_on_and_none_beyond_it() -> None:
    given = iter([1, 2, 3, 4])
    begun, places = [0], threading.Semaphore(0)

    def read() -> int | None:
        begun[0] += 1
        places.release()
        return next(given, None)

    with ahead(read) as pieces:
        for number, piece in enumerate(pieces, start=1):
            assert piece == number
            for _ in range(2 if number == 1 else 1):  # the following one comes by itself
                assert places.acquire(timeout=30)
            assert begun[0] == number + 1
    assert begun[0] == 5  # nobody asks again after the end


def test_what_fails_while_it_is_read_ahead_is_raised_in_its_turn() -> None:
    def read() -> int:
        if len(read_before) == 1:
            raise ZeroDivisionError
        read_before.append(1)
        return 7

    read_before: list[int] = []
    seen = []
    with pytest.raises(ZeroDivisionError), ahead(read) as pieces:
        seen.extend(pieces)
    assert read_before == [1]


def test_nothing_is_read_any_more_where_the_pieces_are_left() -> None:
    begun: list[None] = []
    with ahead(lambda: begun.append(None) or 7) as pieces:
        assert next(pieces) == 7
    assert len(begun) in (1, 2)
