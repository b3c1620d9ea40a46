"""P18: SIGTERM and Ctrl-C stop a build or fit at a safe place, with 143 or 130, and a second one at once.

The same command goes on.

At random times, in forks that leave through the same exit as the commands; the commands themselves, with what they say, in
tests/journeys/test_killed.py.
"""

from __future__ import annotations

from tests.promises.ledger import kept
from tests.promises.test_p17_fit_killed import stopped


def test_signals_at_random_times_of_a_fit_and_a_build(long: bool) -> None:
    told = stopped("signals", "120" if long else "12")
    assert told["stopped"] >= told["points"] // 3  # the others had come to their end
    kept("P18", told["points"] - len(told["different"]), told["points"])
    assert told["different"] == []


def test_a_second_signal_does_not_wait_for_the_answer_to_the_first() -> None:
    told = stopped("twice")
    kept("P18", told["stopped"], told["points"])
    assert told == {"points": 4, "stopped": 4, "different": []}
