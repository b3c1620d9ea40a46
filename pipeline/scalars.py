"""What TensorBoard shows of a run: a scalar an epoch, in event files below a folder. Needs the extra `logs`.

    <log dir>/<student>-<kind>/seed-N/events.out.tfevents...

A run that goes on adds a file and hides what an earlier one said of later epochs. Unlike everything else that is written,
these files grow line by line: they are for looking at, nothing is read back from them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

from cache.atomic import check_writable, disk_errors
from cache.errors import UsageError
from student.state import RunState

__all__ = ["check_log_dir", "scalars"]


def check_log_dir(folder: Path | None) -> None:
    """Refuse a folder of logs that could not be written, before anything is trained.

    Raises:
        UsageError: ``fit.no_logs``; DiskError: ``disk.refused``.
    """
    if folder is None:
        return
    if not find_spec("tensorboardX"):
        raise UsageError(
            "--log-dir needs the package tensorboardX; pip install 'ckd-mdsr[logs]'.",
            code="fit.no_logs",
        )
    check_writable(folder)


@contextlib.contextmanager
def scalars(folder: Path | None, *, taught: bool) -> Iterator[Callable[[RunState, float], None]]:
    """What a run is told after every epoch, with its instances a second; nothing is written without a folder.

    Args:
        taught: whether there is a divergence to write.
    """
    if folder is None:
        yield lambda state, rate: None
        return
    from tensorboardX import SummaryWriter

    writer = None

    def tell(state: RunState, rate: float) -> None:
        nonlocal writer
        now = state.history[-1]
        at = now.epoch + 1
        with disk_errors(folder):
            if writer is None:  # only now it is known where the run goes on
                writer = SummaryWriter(str(folder), purge_step=at)
            writer.add_scalar("loss/ce_nats", now.ce, at)
            if taught:
                writer.add_scalar("loss/kd_nats", now.kd, at)
            if now.validation is not None:
                writer.add_scalar("validation/ndcg_at_10", now.validation, at)
            writer.add_scalar("speed/instances_per_second", rate, at)
            writer.flush()

    try:
        yield tell
    finally:
        if writer is not None:
            writer.close()
