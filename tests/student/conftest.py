"""What the tests of the student room share."""

from __future__ import annotations

import pytest

from tests.fakes import tiny_dataset, tiny_plan
from tests.student.known import Ground


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    """12 users, 9 items; two buckets, two standard rounds, batches of 4 and smaller ones at the ends."""
    folder = tmp_path_factory.mktemp("ground")
    dataset = tiny_dataset(folder / "data")
    return dataset, tiny_plan(folder / "plan", dataset, rounds=2)
