"""The options by which teachers are joined, as `kd-student fit` and `kd-cache show` both have them."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

__all__ = ["ConsistencyOption", "EpsilonOption", "TauOption"]

TauOption = Annotated[
    float | None, typer.Option(help="Temperature of the teachers; default the store's.", min=1e-3)
]
ConsistencyOption = Annotated[
    Literal["pair", "user", "off"],
    typer.Option(help="Drop the contradicted teacher for each pair, each user, or never."),
]
EpsilonOption = Annotated[
    str, typer.Option(help="Disagreement to tolerate: a number, or a quantile such as 0.8q.")
]
