"""P16: the same inputs give the same bytes in any process, folder, locale, time zone and day; modes follow the umask."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.fakes import tree
from tests.promises.ledger import all_kept

ROOT = Path(__file__).parents[2]

SCRIPT = """
import os, sys, time
os.umask(int(sys.argv[2], 8))
clock, late = time.time, float(sys.argv[3])
time.time = lambda: clock() + late * 86400
from pathlib import Path
from pipeline.build import build
from tests.fakes import TableTeacher, tiny_store
from tests.promises.stores import SHARD_BYTES, small_pieces
small_pieces()
store = tiny_store(Path(sys.argv[1]))
build(TableTeacher(), store, keep="both", shard_bytes=SHARD_BYTES, quality={"b": 1.0, "a": 2})
"""

#: hash seed, time zone, locale, umask, days ahead
PLACES = [
    ("0", "UTC", "C", "022", "0"),
    ("7", "Asia/Tokyo", "C.UTF-8", "077", "400"),
    ("random", "America/St_Johns", "POSIX", "027", "0"),
    ("1", "UTC", "de_DE.UTF-8", "002", "-9000"),
    ("4294967295", "Pacific/Kiritimati", "tr_TR.UTF-8", "000", "12000"),
    ("2", "", "C", "007", "1"),
    ("3", "Europe/London", "C.UTF-8", "022", "30"),
    ("4", "UTC", "ja_JP.eucJP", "026", "0"),
    ("5", "Asia/Kolkata", "C", "037", "0"),
    ("6", "UTC", "en_US.UTF-8", "023", "7"),
    ("8", "Antarctica/Troll", "C.UTF-8", "067", "0"),
    ("9", "UTC", "fa_IR", "012", "36500"),
]


def test_nothing_around_it_decides_a_byte(tmp_path, long):
    complaints: list[str] = []
    first: dict[str, str] = {}
    for number, (seed, zone, language, mask, days) in enumerate(PLACES if long else PLACES[:4]):
        folder = tmp_path / f"{number} of {language}"  # a space in the path, and another length
        folder.mkdir()
        path = folder / "store"
        subprocess.run(
            [sys.executable, "-c", SCRIPT, "store", mask, days],
            check=True,
            env={
                **os.environ,
                "PYTHONHASHSEED": seed,
                "TZ": zone,
                "LC_ALL": language,
                "PYTHONPATH": str(ROOT),
            },
            cwd=folder,
        )
        found = tree(path)
        first = first or found
        odd = sorted(first.items() ^ found.items())
        files = {p.stat().st_mode & 0o777 for p in path.rglob("*") if p.is_file()}
        folders = {p.stat().st_mode & 0o777 for p in (path, *path.rglob("*")) if p.is_dir()}
        umask = int(mask, 8)
        if files != {0o666 & ~umask} or folders != {0o777 & ~umask}:
            odd.append((f"modes {[*map(oct, files | folders)]}", mask))
        complaints.append(f"{language} {zone}: {odd[:3]}" if odd else "")
    assert len(first) > 15
    all_kept("P16", complaints)
