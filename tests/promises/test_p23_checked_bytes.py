"""P23: what is decoded is what was verified: a file that is put in place of another between the two is refused.

Right after a part was checked, and at each later moment, other bytes of the same size take a file's place, by rename and in
place. Scores are compared with what was remembered each time that a batch is handed out; of factors, whose file stays
mapped, a new file is found out when it is mapped again. Through the mirror: tests/share/test_mirror.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cache.dataset
import cache.factors
import cache.plan
import cache.scores
from cache.errors import StoreError
from cache.store import Store
from tests.promises.grounds import code_of, copied, in_memory, opened
from tests.promises.ledger import all_kept

FILES = {
    "dataset/items.parquet": "dataset",
    "dataset/sequences.parquet": "dataset",
    "plan/plan.parquet": "plan",
    "plan/instances.parquet": "plan",
    "scores/one/scores.zarr/zarr.json": "scores",
    "scores/one/scores.zarr/c.0.0.0": "scores",
    "scores/one/scores.zarr/c.1.0.0": "scores",
    "factors/one/items/0000000.npy": "factors",
    "factors/one/histories/0000000.npy": "factors",
}
REFUSED = {
    "store.wrong_digest",
    "store.inconsistent",
    "store.wrong_checksum",
    "store.bad_table",
    "store.wrong_size",
}


def other(path: Path, *, rename: bool, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 1
    if rename:
        aside = path.with_name("aside")
        aside.write_bytes(data)
        aside.replace(path)
    else:
        path.write_bytes(data)


@pytest.mark.parametrize("rename", [True, False])
def test_swapped_between_check_and_use(
    rename: bool, monkeypatch: pytest.MonkeyPatch, long: bool
) -> None:
    modules = {
        "dataset": cache.dataset,
        "plan": cache.plan,
        "scores": cache.scores,
        "factors": cache.factors,
    }
    told: list[str] = []
    with in_memory() as folder:
        for number, (name, kind) in enumerate(FILES.items()):
            for at in range(0, 4000, 97 if long else 485):
                store = copied(folder / f"{number}-{at}")
                module: Any = modules[kind]
                real: Callable[..., Any] = module.check_part
                done: list[Path] = []

                def swap(part: Path, *given: Any, store: Path = store, name: str = name, at: int = at,
                         real: Callable[..., Any] = real, done: list[Path] = done, **more: Any) -> Any:  # fmt: skip
                    manifest = real(part, *given, **more)
                    path = store / name
                    if not done and part in path.parents:
                        done.append(path)
                        other(path, rename=rename, at=at)
                    return manifest

                with monkeypatch.context() as patch:
                    patch.setattr(module, "check_part", swap)
                    code = code_of(lambda store=store: opened(store))
                assert done
                told.append("" if code in REFUSED else f"{name} at {at}: {code or 'taken'}")
    all_kept("P23", told)


@pytest.mark.parametrize("rename", [True, False])
def test_swapped_between_two_reads(rename: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader gives the old numbers for ever, or refuses; never the new ones."""
    monkeypatch.setattr(
        cache.scores, "MAPPED_BYTES", 1
    )  # two files at once: they are mapped again and again
    told: list[str] = []
    with in_memory() as folder:
        for number, file in enumerate(
            ("scores/one/scores.zarr/c.0.0.0", "factors/one/histories/0000000.npy")
        ):
            store = copied(folder / str(number))
            sound = Store.open(store)
            reader: Any = sound.scores("one") if "scores" in file else sound.factors("one")
            wanted = [np.array(reader[index]) for index in range(len(reader))]
            fresh = Store.open(store)
            reader = fresh.scores("one") if "scores" in file else fresh.factors("one")
            reader[0]
            if "factors" in file and not rename:
                continue  # stays mapped, and is shared with who writes there: docs/format.md, what is not checked
            other(store / file, rename=rename, at=150)
            for index in range(len(reader)):
                try:
                    told.append(
                        "" if np.array_equal(reader[index], wanted[index]) else f"{file} {index}"
                    )
                except StoreError as error:
                    told.append("" if error.code in REFUSED else error.code)
    all_kept("P23", told)


def test_a_manifest_that_changes_between_two_readings_mixes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Store.open reads the dataset's manifest twice; another one the second time is refused with both digests."""
    told = []
    with in_memory() as folder:
        store = copied(folder / "store")
        real = cache.dataset.check_part

        def swap(part: Path, *given: Any, **more: Any) -> Any:
            path = part / "manifest.json"
            path.write_bytes(
                path.read_bytes()
                .replace(b'"k_core"', b'"k_core"')
                .replace(b'"max_length":4', b'"max_length":3')
            )
            return real(part, *given, **more)

        monkeypatch.setattr(cache.dataset, "check_part", swap)
        told.append(code_of(lambda: Store.open(store)))
    all_kept("P23", ["" if code == "plan.foreign" else code or "taken" for code in told])
