"""The licenses of what contextkit installs: `python -m tests.licenses` rewrites the list in LICENSES.md."""

from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LIST = Path(__file__).parents[1] / "LICENSES.md"
EXTRAS = {"dask", "embed", "embedded", "notebook", "openai", "sentence-transformers", "studio"}


def installed() -> dict[str, str]:
    """The license of each package that is installed and that contextkit or an extra of it needs, by name."""
    packages = needed(distribution("contextkit"), EXTRAS)
    return {name: license_of(packages[name]) for name in sorted(packages)}


def needed(package: Distribution, extras: Iterable[str] = ()) -> dict[str, Distribution]:
    """What is installed here of all that a package and its extras need, by name."""
    found: dict[str, set[str]] = {}
    waiting = [*_required(package, {"", *extras})]
    distributions: dict[str, Distribution] = {}
    while waiting:
        name, wanted = waiting.pop()
        new = {"", *wanted} - found.setdefault(name, set())
        found[name] |= new
        try:
            distributions[name] = distribution(name)
        except PackageNotFoundError:
            continue
        waiting += _required(distributions[name], new)
    distributions.pop(canonicalize_name(package.name), None)  # extras may name each other
    return distributions


def _required(package: Distribution, extras: set[str]) -> Iterator[tuple[str, set[str]]]:
    """The name and the extras of each package that some extras of a package need, "" the package itself."""
    for requirement in map(Requirement, package.requires or ()):
        marker = requirement.marker
        if any(marker is None or marker.evaluate({"extra": extra}) for extra in extras):
            yield canonicalize_name(requirement.name), requirement.extras


def license_of(package: Distribution) -> str:
    """What the metadata calls the license, in the words of the newest field that they fill."""
    fields = package.metadata
    named = [line.rpartition(" :: ")[2] for line in fields.get_all("Classifier") or () if line.startswith("License ::")]
    return fields.get("License-Expression") or "; ".join(named) or (fields.get("License") or "unknown").splitlines()[0]


def listed() -> dict[str, str]:
    """The list in LICENSES.md."""
    rows = [line.strip("|").split("|") for line in LIST.read_text(encoding="utf-8").splitlines() if line[:3] == "| `"]
    return {name.strip(" `"): license_.strip() for name, license_ in rows}


if __name__ == "__main__":
    text = LIST.read_text(encoding="utf-8")
    rows = listed() | installed()
    head = text[: text.index("| package |")]
    table = "".join(f"| `{name}` | {rows[name]} |\n" for name in sorted(rows))
    LIST.write_text(f"{head}| package | license |\n|---|---|\n{table}", encoding="utf-8")
