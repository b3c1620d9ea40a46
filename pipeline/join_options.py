"""The options by which teachers are joined, as `kd-student fit` and `kd-cache show` both have them; whom HetComp hears.

An option of the one way that was typed for the other is refused. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import typer

from cache.errors import UsageError
from cache.paths import trajectory
from cache.store import Store

__all__ = [
    "AlphaOption",
    "ConsistencyOption",
    "EpsilonOption",
    "JoinOption",
    "KdItemsOption",
    "TauOption",
    "TopOption",
    "WeightsOption",
    "check_join",
    "parse_weights",
    "trajectories",
]

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
JoinOption = Annotated[
    Literal["consistency", "hetcomp"],
    typer.Option(
        help="How teachers are joined: weights by consistency (eqs. 3-5), or HetComp's rankings from checkpoints."
    ),
]
AlphaOption = Annotated[
    float,
    typer.Option(
        help="hetcomp: how many times nearer a teacher's next checkpoint must be to move on.", min=0
    ),
]
TopOption = Annotated[int, typer.Option(help="hetcomp: items of a ranking.", min=1)]
WeightsOption = Annotated[
    str | None,
    typer.Option(help="Default weights, name=weight,...; by default by validation NDCG@10."),
]
KdItemsOption = Annotated[
    Literal["in-batch", "all"],
    typer.Option(help="Hear the teachers over the batch's items, or over all (from factors)."),
]

_ONLY = {
    "consistency": ("tau", "kl", "consistency", "epsilon", "weights"),
    "hetcomp": ("alpha", "top"),
}


def check_join(context: typer.Context, join: Literal["consistency", "hetcomp"]) -> None:
    """Refuse an option that was typed and means nothing to this way of joining.

    Raises:
        UsageError: ``fit.other_join``.
    """
    for other, names in _ONLY.items():
        for name in names:
            source = context.get_parameter_source(name)
            if other != join and source and source.name == "COMMANDLINE":
                raise UsageError(
                    f"--{name} is of --join {other}, and means nothing to --join {join}; leave it away.",
                    code="fit.other_join",
                )


def parse_weights(text: str | None) -> dict[str, float] | None:
    """What `--weights` says, by teacher.

    Raises:
        UsageError: ``fit.bad_weights``.
    """
    if text is None:
        return None
    try:
        pairs = [
            (name, float(value)) for name, value in (one.split("=") for one in text.split(","))
        ]
    except ValueError:
        pairs = []
    if not pairs or len(dict(pairs)) < len(pairs):
        raise UsageError(
            f"--weights {text}: unisrec=0.6,recformer=0.4 or the like expected.",
            code="fit.bad_weights",
        )
    return dict(pairs)


def trajectories(store: Store, names: Sequence[str]) -> list[list[str]]:
    """Each teacher's sets in the store: its checkpoints, earliest first, and itself.

    Raises:
        UsageError: ``fit.no_trajectory`` where none of them has any.
    """
    found = [trajectory(name, store.teachers) for name in names]
    if all(len(states) < 2 for states in found):
        one = names[0]
        raise UsageError(
            f"{store.label}: keeps no checkpoints of {', '.join(names)} (such as {one}@1), which --join hetcomp "
            "needs; "
            + store.advice(f"kd-teacher tune {one} --keep-trajectory 3 --out DIR/{one}")
            + f" and `kd-cache build --teacher DIR/{one}@1` for each.",
            code="fit.no_trajectory",
        )
    return found
