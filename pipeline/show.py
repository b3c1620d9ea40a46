"""What a person sees of a store: its parts, its teachers side by side, how far they agree and where each would be dropped.

Counts, sizes (of scores and of factors, in all and an instance) and qualities come from the manifests alone, at once;
agreement reads some batches of every teacher and needs torch, so it is left out where there is one teacher only.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Literal

from cache.dataset import EXTENDS
from cache.describe import Description, ScoreSet, describe
from cache.paths import without_checkpoints
from cache.store import Store
from pipeline import console

if TYPE_CHECKING:
    from pipeline.agreement import Agreement

__all__ = ["show"]


def show(
    store: Store,
    *,
    consistency: Literal["pair", "user", "off"],
    epsilon: float | str,
    tau: float | None,
    batches: int,
) -> None:
    """Print it.

    Args:
        consistency, epsilon, tau: how a student would join the teachers.
        batches: how many to read of every teacher.

    Raises:
        UsageError: ``fit.mixed_tau``; StoreError: damage.
    """
    about = describe(store)
    _parts(about)
    if about.score_sets or about.factor_sets:
        _teachers(about)
    else:
        console.say("scores: none yet; `kd-cache build --teacher unisrec` asks a tuned teacher")
    console.say(f"digest {about.digest}")
    for name in about.unfinished:
        console.say(f"{name}: unfinished; the `kd-cache build` that began it goes on from there")
    names = without_checkpoints(store.teachers)
    if len(names) < 2 or not batches or not len(store.plan):
        return
    from pipeline.agreement import agreement
    from student.targets import join_settings

    readers = [store.reader(name) for name in names]
    settings = join_settings(readers, tau=tau, consistency=consistency, epsilon=epsilon)
    found = agreement(store.dataset, store.plan, readers, settings, most=batches)
    read = f"{found.batches:,} of {console.count(len(store.plan), 'batch', 'batches')} read"
    _correlations(found, read)
    if len(readers) > 2 and consistency != "off":
        _dropped(found, f"at epsilon {epsilon}, by {consistency}, tau {settings.tau:g}; {read}")


def _parts(about: Description) -> None:
    counts = {**about.dataset.counts, **about.plan.counts}
    settings = about.plan.settings
    console.table(
        f"{about.path}",
        ["", "value"],
        [
            *([name, f"{counts[name]:,}"] for name in ("users", "items", "interactions")),
            *([name, f"{counts[name]:,}"] for name in ("instances", "batches")),
            ["batch size", f"{settings['batch_size']:,}"],
            ["distinct targets a batch", f"up to {counts['columns']:,}"],
            ["curriculum", console.count(settings["buckets"], "bucket")],
            ["then", console.count(settings["rounds"], "standard round")],
            ["dataset", f"{console.size(about.dataset_bytes)}, {about.dataset.digest[:19]}"],
            ["plan", f"{console.size(about.plan_bytes)}, {about.plan.digest[:19]}"],
            *([["goes on from plan", str(settings[EXTENDS])[:19]]] if EXTENDS in settings else []),
        ],
    )


def _teachers(about: Description) -> None:
    instances = max(about.plan.counts["instances"], 1)
    kinds = {"scores": about.score_sets, "factors": about.factor_sets}
    known = {one.name: one for sets in kinds.values() for one in sets}
    names = sorted(known)
    teachers = [known[name] for name in names]
    rows = [
        *(_quality(teachers, f"{part} {metric}", f"{prefix}{metric}")
          for part, prefix in (("valid", ""), ("test", "test "))
          for metric in ("recall@10", "ndcg@10")),
        ["tau", *(f"{one.tau:g}" for one in teachers)],
    ]  # fmt: skip
    for kind, sets in kinds.items():
        if not sets:
            continue
        found = {one.name: one for one in sets}
        kept = [found.get(name) for name in names]
        rows += [
            [kind, *(console.size(one.bytes) if one else "" for one in kept)],
            *([["codec", *(one.codec if one else "" for one in kept)]] if kind == "scores" else []),
            ["an instance", *(console.size(one.bytes / instances) if one else "" for one in kept)],
            ["sha256", *(one.digest.removeprefix("sha256:")[:12] if one else "" for one in kept)],
        ]
    console.table(f"{about.path}: teachers", ["", *names], rows)


def _quality(sets: Sequence[ScoreSet], label: str, key: str) -> list[str]:
    known = (one.quality.get(key) for one in sets)
    return [label, *("unknown" if value is None else f"{value:.4f}" for value in known)]


def _correlations(found: Agreement, read: str) -> None:
    rows = [
        [f"{found.names[a]}, {found.names[b]}", f"{found.correlation_KK[a, b]:.3f}"]
        for a, b in combinations(range(len(found.names)), 2)
    ]
    console.table("agreement of each pair", ["", "rank correlation"], rows, caption=read)


def _dropped(found: Agreement, caption: str) -> None:
    groups = [
        (found.popularity.labels("interaction"), found.dropped_by_popularity_GK, "items of "),
        (found.lengths.labels("item"), found.dropped_by_length_GK, "histories of "),
    ]
    rows = [["all pairs", *(f"{share:.1%}" for share in found.dropped_K)]]
    for labels, shares_GK, what in groups:
        for label, shares in zip(labels, shares_GK, strict=True):
            rows.append([what + label, *(f"{share:.1%}" for share in shares)])
    console.table("how often each is dropped", ["", *found.names], rows, caption=caption)
