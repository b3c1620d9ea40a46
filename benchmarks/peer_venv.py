"""Virtual environments of their own for what the benchmarks are held against, made on first use from PyPI."""

from __future__ import annotations

import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

__all__ = ["PEERS", "ROOT", "python_of"]

ROOT = Path(__file__).resolve().parents[1]
PEERS = Path(__file__).resolve().parent / "peers"


def python_of(folder: str, name: str, wanted: Sequence[Sequence[str]]) -> Path:
    """The interpreter of the checkout's environment `folder` with `wanted` in it; ends with status 2 where that cannot be.

    Args:
        name: of what is wanted, for the note that is printed and the stamp that tells it is there.
        wanted: arguments of one `pip install` each; of a requirements file the text counts for the stamp.
    """
    home = ROOT / folder
    python, stamp = home / "bin" / "python", home / f".{name}-installed"
    texts = [Path(word).read_text() if Path(word).is_file() else word for w in wanted for word in w]
    if stamp.is_file() and stamp.read_text() == "\n".join(texts):
        return python
    print(f"# installing {name} into {home}", file=sys.stderr, flush=True)
    if not python.exists():
        venv.create(home, with_pip=True)
    pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    for what in wanted:
        if subprocess.run([*pip, *what], check=False).returncode:
            print(f"{name}: could not be installed; not run.", file=sys.stderr)
            raise SystemExit(2)
    stamp.write_text("\n".join(texts))
    return python
