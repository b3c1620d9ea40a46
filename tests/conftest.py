"""What every test may ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow
import pytest
import torch
import zarr
from hypothesis import settings

from tests.promises import ledger

SHARED = Path(__file__).resolve().parents[2] / "shared"

settings.register_profile("suite", deadline=None, max_examples=50)
settings.load_profile("suite")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="the long attacks of tests/promises too")


def pytest_report_header() -> str:
    versions = f"torch {torch.__version__}, pyarrow {pyarrow.__version__}, zarr {zarr.__version__}"
    return f"{versions}, {torch.get_num_threads()} threads"


def pytest_configure() -> None:
    torch.set_num_threads(1)  # tiny tensors; and the same sums everywhere


def pytest_sessionfinish(session: pytest.Session) -> None:
    if (
        handed := getattr(session.config, "workeroutput", None)
    ) is not None:  # a process of several
        handed["promises"] = ledger.counts()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    ledger.add(getattr(node, "workeroutput", {}).get("promises", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in ledger.lines():
        terminalreporter.write_line(line)


@pytest.fixture
def shared_data() -> Path:
    """The folder of real data sets, or a skip where it is not beside the checkout."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}")
    return folder
