"""The whole ordinary road in one process, every step of it watched by an audit hook. Run by test_p08 and test_p26.

    python road.py FOLDER TOLD [STORE]     sample to verify in FOLDER; or show, verify and fit of a STORE from elsewhere

Writes what was seen as JSON to TOLD: sockets that were opened, processes that were started, names that a pickle asked for,
and code that was compiled or run and belongs neither to Python nor to an installed package nor to this project.
"""

from __future__ import annotations

import json
import os
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

SIZES = "--users 120 --items 96"
ROAD = [
    f"kd-cache sample --out rows {SIZES}",
    "kd-cache ingest rows --out data/toys",
    "kd-cache plan --data data/toys --batch-size 128",
    "kd-teacher tune unisrec --data data/toys --epochs 1 --batch-size 256 --threads 1",
    "kd-cache build --teacher unisrec --keep both",
    "kd-student fit --cache cache/toys --epochs 1 --threads 1 --hidden 16",
    "kd-student evaluate runs/toys/sasrec-distilled/seed-0",
    "kd-cache show",
    "kd-cache verify --sample 1 --teacher unisrec",
]
FOREIGN = [
    "kd-cache show --cache {store}",
    "kd-cache verify --cache {store}",
    "kd-student fit --cache {store} --epochs 1 --threads 1 --hidden 16 --out fitted",
    "kd-student fit --cache {store} --epochs 1 --threads 1 --hidden 16 --kd-items all --teacher one --out fitted-all",
]

seen: dict[str, list[str]] = {"socket": [], "process": [], "pickle": [], "code": []}
_OURS = tuple(
    str(Path(place).resolve())
    for place in {str(ROOT), sys.prefix, sys.base_prefix, *sysconfig.get_paths().values()}
)


def watch(event: str, arguments: tuple[object, ...]) -> None:
    if event in {"socket.connect", "socket.getaddrinfo", "socket.bind", "socket.sendto"}:
        seen["socket"].append(f"{event} {arguments[1:]!r}")
    elif event in {
        "subprocess.Popen",
        "os.system",
        "os.exec",
        "os.posix_spawn",
        "os.fork",
        "pty.spawn",
    }:
        seen["process"].append(f"{event} {arguments!r}"[:300])
    elif event in {"pickle.find_class", "marshal.loads"} and not _importing():
        seen["pickle"].append(f"{event} {arguments!r}"[:300])
    elif event == "exec":
        name = getattr(arguments[0], "co_filename", "?")
        if not name.startswith(("<", *_OURS)):
            seen["code"].append(name)
    elif event == "import" and str(arguments[0]).startswith("canary"):
        seen["code"].append(f"import {arguments[0]}")


def _importing() -> bool:
    """Whether Python is reading one of its own .pyc files."""
    frame = sys._getframe(2)
    return "importlib" in frame.f_code.co_filename


def main(folder: Path, told: Path, store: str = "") -> None:
    from importlib import import_module

    os.chdir(folder)
    statuses = {}
    sys.addaudithook(watch)
    for line in [text.format(store=store) for text in FOREIGN] if store else ROAD:
        sys.argv = line.split()
        try:
            import_module(f"pipeline.cli_{sys.argv[0].removeprefix('kd-')}").main()
        except SystemExit as end:
            statuses[line] = end.code
    told.write_text(json.dumps({"statuses": statuses, **seen}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
