"""Students read score sets of any codec side by side, and hear nearly the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.build import build
from student.prepared import prepared
from student.targets import join_settings
from tests.fakes import TableTeacher, tiny_store


def test_codecs_mix_in_one_target(tmp_path: Path):
    store = tiny_store(tmp_path / "store", users=80, items=60, batch_size=32)
    for seed, name in enumerate(("one", "two", "three")):
        build(TableTeacher(name, seed=seed, width=32), store)
        build(TableTeacher(name, seed=seed, width=32), store, name=f"{name}8", codec="u8")
    order = range(len(store.plan))

    def targets(*names: str) -> list[np.ndarray]:
        readers = [store.scores(name) for name in names]
        settings = join_settings(readers, tau=0.2, consistency="off")
        batches = prepared(store.dataset, store.plan, order, readers, settings)
        return [batch.target.q_TC.numpy() for batch in batches]

    for mixed, plain in zip(
        targets("one", "two8", "three8"), targets("one", "two", "three"), strict=True
    ):
        # a row of these spans some 15 nats at 0.07, half a step is 0.03 nats, at tau 0.2 a third of that: 1.0%
        # and as much for the sum that it is divided by
        assert np.allclose(mixed, plain, rtol=0.025, atol=0)
        assert not np.array_equal(mixed, plain)
