"""How the time of each load grows with the rows: the ratio is the exponent, fitted to three sizes."""

from collections.abc import Iterator
from functools import partial

from contextkit import forks_df
from tests.benchmarks.cases import LOADS
from tests.benchmarks.ground import Ground
from tests.benchmarks.measuring import Call, Measure, exponent, in_turns, shown

SIZES = (10_000, 30_000, 100_000)
DEPTHS = (300, 1_000, 3_000)


def measure(ground: Ground) -> Iterator[Measure]:
    for name, load in LOADS.items():
        unit = "contexts" if load.forest else "messages"
        calls = {size: load.prepared(load.database(ground, size).engine) for size in SIZES}
        yield _fitted(f"{name}, {SIZES[-1]:,} {unit}", calls)
    chains = {depth: partial(forks_df, ground.chain(depth).engine) for depth in DEPTHS}
    yield _fitted(f"forks_df of one chain, {DEPTHS[-1]:,} deep", chains)


def _fitted(case: str, calls: dict[int, Call]) -> Measure:
    *less, most = in_turns({str(size): call for size, call in calls.items()}).values()
    return Measure(
        case=case,
        ours=shown(most),
        beside=f"itself, {' and '.join(f'{size:,}' for size in list(calls)[:-1])}",
        theirs=" and ".join(map(shown, less)),
        ratio=exponent(calls, [*less, most]),
        most=1.05,
    )
