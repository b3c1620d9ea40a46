"""The promises of docs/promises.md: `make test` runs their short attacks, `make promises` the long ones too (`--long`)."""

from __future__ import annotations

import pytest

from tests.promises import ledger


@pytest.fixture
def long(request: pytest.FixtureRequest) -> bool:
    """Whether the long attacks were asked for."""
    return bool(request.config.getoption("--long"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in ledger.lines():
        terminalreporter.write_line(line)
