from collections.abc import Iterator

import pytest

from tests.faults.ground import Ground, running_ground


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    with running_ground() as ground:
        yield ground
