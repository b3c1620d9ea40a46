"""P13: a pull over a bad network ends whole or not at all.

Faults of every kind at one object, for one to three answers or for ever; the target is absent or every byte of it is right,
and once the network is mended the same pull ends in the store. More, and the mirror, in tests/share/test_faults.py and
test_mirror.py; a server that knows no ranges (200 for 206) is the real one of tests/share/test_share.py.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from cache.remote import locate
from cache.store import Store
from cache.verify import verify
from pipeline.share import pull, push
from tests.fakes import tree
from tests.promises.grounds import code_of, copied, in_memory, serving, silent
from tests.promises.ledger import all_kept

VICTIMS = ["plan/manifest.json", "dataset/sequences.parquet", "scores/two/scores.zarr/c.0.0.0"]
FAULTS: dict[str, Any] = {
    **{f"status {status}": status for status in (400, 401, 403, 404, 408, 429, 500, 502, 503)},
    "nothing comes": ("cut", 0),
    "longer than it is": ("claim", 1 << 30),
    "shorter than it is": ("claim", 3),
}


def outcome(url: str, target: Path, wanted: dict[str, str]) -> str:
    code = code_of(lambda: pull(locate(url), target, ["two"], silent))
    if target.exists():
        return "" if not code and tree(target) == wanted and not verify(target) else f"{code} half"
    kinds = ("remote.", "store.")
    return "" if code.startswith(kinds) else f"absent, and {code or 'no word'}"


@pytest.mark.parametrize("victim", VICTIMS)
def test_faults_that_last_and_faults_that_pass(victim: str, long: bool) -> None:
    told: list[str] = []
    with in_memory() as folder, serving(folder) as (url, fake):
        store = copied(folder / "store")
        push(store, locate(url), ["two"], silent)
        pull(locate(url), folder / "whole", ["two"], silent)
        wanted = tree(folder / "whole")
        key = f"shared/toys/{victim}"
        size = len(fake.objects[key])
        cuts = {
            f"cut at {n}": ("cut", n) for n in range(1, size, max(1, size // (50 if long else 8)))
        }
        flipped = bytearray(fake.objects[key])
        flipped[size // 2] ^= 1
        faults = {**FAULTS, **cuts, "a garbage byte": ("lie", bytes(flipped))}
        numbers = itertools.count()
        for name, fault in faults.items():
            for times in (1, 3, 10**9) if long else (3, 10**9):
                left = iter(range(times))
                fake.fault = lambda method, asked, left=left, fault=fault: (
                    fault
                    if (method, asked) == ("GET", key) and next(left, None) is not None
                    else None
                )
                target = folder / str(next(numbers)) / "toys"
                found = outcome(url, target, wanted)
                told.append(f"{victim}, {name}, {times}: {found}" if found else "")
                if times == 10**9:
                    fake.fault = lambda method, asked: None
                    found = outcome(url, target, wanted)
                    gone = [] if found else [p for p in target.parent.iterdir() if p != target]
                    told.append(f"{name}, mended: {found} {gone}" if found or gone else "")
        assert Store.open(folder / "whole").names == ["two"]
    all_kept("P13", told)
