"""Arguments that count something."""

from numbers import Integral

TOO_LARGE = 2**63


def positive(name: str, value: object) -> int:
    """The number given for an argument of that name.

    Raises:
        ValueError: it is no whole number of at least 1, or too large for PostgreSQL.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or not 1 <= int(value) < TOO_LARGE:
        raise ValueError(f"{name} is a whole number of at least 1, and below 2 to the 63rd, not {value!r:.40}")
    return int(value)
