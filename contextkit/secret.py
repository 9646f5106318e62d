"""Texts that are used like any other, and that nothing shows."""

from typing import SupportsIndex


class Secret(str):
    """A text whose repr is masked: it is what tracebacks with locals, containers and debuggers show.

    >>> {"user": "me", "password": Secret("open sesame")}
    {'user': 'me', 'password': '***'}
    """

    __slots__ = ()

    def __repr__(self) -> str:
        """Mask."""
        return "'***'"

    def __getitem__(self, key: SupportsIndex | slice) -> "Secret":
        """Give a part, which is a secret, too: some tools cut a long text before they show it."""
        return Secret(super().__getitem__(key))


def without_history(error: BaseException) -> BaseException:
    """Give an error without what led to it: the locals of a driver's frames hold what it connects with."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)
