"""Fuzz one target under atheris, guided by the lines that are reached: NAME, then options of libFuzzer and folders."""

import hashlib
import random
import sys
import traceback
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["contextkit"]):
    from tests.fuzz.targets import TARGETS
from tests.fuzz.mutations import mutated


def where(error: BaseException) -> str:
    """Place that an error was raised at, in the package if it went through it."""
    frames = traceback.extract_tb(error.__traceback__)
    here = [frame for frame in frames if "contextkit" in frame.filename] or frames
    return f"{type(error).__name__} at {Path(here[-1].filename).name}:{here[-1].lineno}"


def main(name: str, folder: Path) -> None:
    """Run, and go on after a failure: each place is told once, its input kept in the folder."""
    target, seen = TARGETS[name], set[str]()

    def run(data: bytes) -> None:
        try:
            target(data)
        except Exception as error:  # noqa: BLE001 # whatever is no documented error is what is looked for
            if (place := where(error)) in seen:
                return
            seen.add(place)
            file = folder / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}"
            file.write_bytes(data)
            print(f"FOUND {place}: {error!s:.200} ({file})", flush=True)

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        return mutated(data, most, random.Random(seed), atheris.Mutate)

    structured = {"custom_mutator": mutate} if name.startswith("read_") or name in ("vectors", "messages") else {}
    atheris.Setup([sys.argv[0], *sys.argv[3:]], run, **structured)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
