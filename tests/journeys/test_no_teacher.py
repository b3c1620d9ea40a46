"""No teacher is loaded while a student trains: asked of the process that trained one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.journeys.conftest import Road
from tests.journeys.shell import LIMIT, environment

TELL = """
import atexit, json, pathlib, sys
atexit.register(lambda: pathlib.Path(sys.argv[-1]).write_text(json.dumps(sorted(sys.modules))))
from pipeline.{module} import main
told = sys.argv.pop()
atexit.register(sys.argv.append, told)  # runs first
main()
"""


def modules_after(folder: Path, module: str, line: str, told: Path) -> set[str]:
    """Names in sys.modules of a process that ran `main` of a command line to its end."""
    done = subprocess.run(
        [sys.executable, "-c", TELL.format(module=module), *line.split(), str(told)],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(told.read_text()))


def test_a_finished_fit_never_had_teachers_or_transformers(road: Road, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    line = f"fit --cache cache/toys --out {out} --epochs 1 --hidden 16 --threads 1"
    names = modules_after(road.path, "cli_student", line, tmp_path / "names")
    assert (out / "sasrec-distilled/seed-0/model.safetensors").is_file()
    assert {"student", "student.loop", "encoder", "cache.scores", "torch"} <= names
    packages = {name.partition(".")[0] for name in names}
    assert packages.isdisjoint({"teachers", "transformers", "tokenizers", "huggingface_hub"})


def test_what_asks_no_teacher_and_trains_nothing_needs_no_torch(road: Road, tmp_path: Path) -> None:
    names = modules_after(road.path, "cli_cache", "show", tmp_path / "names")
    assert "cache.store" in names
    assert names.isdisjoint({"torch", "transformers"})
