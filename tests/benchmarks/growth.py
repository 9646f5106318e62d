"""How the time of each load grows with the rows: the ratio is the exponent, fitted to three sizes."""

from collections.abc import Iterator
from functools import partial

from tests.benchmarks.cases import LOADS
from tests.benchmarks.ground import Ground
from tests.benchmarks.measuring import Measure, exponent, in_turns, shown

SIZES = (10_000, 30_000, 100_000)


def measure(ground: Ground) -> Iterator[Measure]:
    for name, load in LOADS.items():
        calls = {str(size): partial(load.run, load.database(ground, size).engine) for size in SIZES}
        *less, most = in_turns(calls).values()
        unit = "contexts" if load.forest else "messages"
        yield Measure(
            case=f"{name}, {SIZES[-1]:,} {unit}",
            ours=shown(most),
            beside=f"itself, {' and '.join(f'{size:,}' for size in SIZES[:-1])}",
            theirs=" and ".join(map(shown, less)),
            ratio=exponent(SIZES, [*less, most]),
            most=1.05,
        )
