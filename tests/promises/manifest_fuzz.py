"""Run by the test of P05 where atheris is installed: any bytes as a manifest; ends with 0 where only StoreErrors come.

python manifest_fuzz.py -max_total_time=600 CORPUS
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import atheris

with atheris.instrument_imports(include=["cache.manifest", "cache.paths", "json"]):
    from cache.errors import StoreError
    from cache.manifest import parse_manifest


def one_input(data: bytes) -> None:
    with contextlib.suppress(StoreError):
        assert parse_manifest(data, "manifest.json", "plan").to_bytes() == data


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
