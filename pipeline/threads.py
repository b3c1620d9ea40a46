"""On how many processor threads a command computes: one option for all that do. Results depend on it in their last bits."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["ThreadsOption", "use_threads"]

ThreadsOption = Annotated[
    int,
    # thousands more than there are processors crash OpenMP
    typer.Option(help="Processor threads; 0 takes torch's choice.", min=0, max=1024),
]


def use_threads(threads: int) -> None:
    """Have torch take so many, or choose where that is 0; it is imported only then."""
    if threads:
        import torch

        torch.set_num_threads(threads)
