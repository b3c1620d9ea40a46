"""A model card in Markdown: what a trained student is, what it was trained from, by which settings, and how good it is.

Everything comes from the run's own files, so the same run gives the same card; a base of the same seed, sizes and settings
beside it, if it was trained on the same data, is set beside it. Digests are whole. Refuses a run that is damaged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cache.describe import store_digest
from cache.errors import CkdError
from cache.paths import without_checkpoints
from encoder.checkpoint import load_weights
from pipeline import console
from pipeline.run_table import METRICS
from pipeline.runs import MODEL, Run, open_run
from student.registry import BUILT_IN

__all__ = ["base_beside", "card", "kind_of", "title_of"]

_SETS = ("scores", "factors")
#: what a base is trained without, so that it may differ from the student's
_OF_TEACHERS = ("train.curriculum", "train.epochs_per_stage", "train.kd_weight", "train.kl")


def card(run: Run, base: Run | None = None) -> str:
    """The card of a run.

    Args:
        base: the same student trained without teachers, to set beside it.
    """
    identity, record = run.record["identity"], run.record
    title, kind = title_of(identity), kind_of(identity)
    items = _items(run)
    parts = [
        f"# {title}, {kind}",
        f"Ranks {items:,} items for a user by what he had before. "
        + (
            "Trained without teachers."
            if kind == "base"
            else f"Learnt from {_learnt(identity)}; no teacher is needed to serve it, and its size and cost are "
            "those of its base."
        ),
        "## How good it is",
        _metrics(run, base),
        _protocol(record, items),
        "## What it was trained from",
        _table(["", "digest"], _sources(identity)),
        *_teachers(record),
        "## Settings",
        _table(["setting", "value"], _settings(identity)),
        "## The model",
        _table(["", ""], _facts(run)),
        "Numbers depend on versions, device and thread count; within one such setting the run is reproducible bit for bit.",
    ]
    return "\n\n".join(parts) + "\n"


def base_beside(run: Run) -> Run | None:
    """The base of the same student, seed, sizes and settings, where it lies beside the run and was trained on the same data."""
    identity = run.record["identity"]
    kind = kind_of(identity)
    if kind == "base":
        return None
    folder = _sibling(run.folder.absolute(), kind)
    try:
        base = open_run(folder)
    except CkdError:
        return None
    found = base.record["identity"]
    return base if _shared(found) == _shared(identity) and kind_of(found) == "base" else None


def title_of(identity: Mapping[str, Any]) -> str:
    """What tables call the student of a run."""
    name = str(identity.get("student", "sasrec"))
    return BUILT_IN[name][0] if name in BUILT_IN else name


def kind_of(identity: Mapping[str, Any]) -> str:
    """What it was trained as: base, distilled or hetcomp."""
    if identity.get("join.method") == "hetcomp":
        return "hetcomp"
    return "distilled" if _sets(identity) else "base"


def _learnt(identity: Mapping[str, Any]) -> str:
    """From whom it learnt, and how."""
    names, staged = _sets(identity), identity.get("train.curriculum")
    if kind_of(identity) == "hetcomp":
        teachers = without_checkpoints(names)
        whose = "its" if len(teachers) == 1 else "their"
        whom = f"the rankings of {_list(teachers)} and of {whose} checkpoints"
        return f"{whom} by {'curriculum-scheduled ' if staged else ''}distillation (HetComp)"
    way = (
        "by curriculum-scheduled distillation" if staged else "by distillation without a curriculum"
    )
    return f"{_list(names)} {way} (CKD-MDSR)"


def _shared(identity: Mapping[str, Any]) -> dict[str, Any]:
    """What a base and a student have in common where the teachers alone make the difference."""
    return {
        key: value
        for key, value in identity.items()
        if key in ("dataset", "student")
        or (key.startswith(("student.", "train.")) and key not in _OF_TEACHERS)
    }


def _sibling(folder: Path, kind: str) -> Path:
    """Where `kd-student fit --compare` puts the base of a run of another kind."""
    name = folder.parent.name.removesuffix(f"-{kind}") + "-base"
    return folder.parent.with_name(name) / folder.name


def _sets(identity: Mapping[str, Any]) -> list[str]:
    """Names of the score and factor sets it learnt from."""
    pairs = (key.partition(".") for key in sorted(identity))
    return [name for kind, _, name in pairs if kind in _SETS and name]


def _items(run: Run) -> int:
    counts = run.record.get("counts")
    if counts:
        return int(counts["items"])
    return int(load_weights(run.folder / MODEL, verify=False)[1]["items"])  # a run of before


def _metrics(run: Run, base: Run | None) -> str:
    test, valid = run.record["test"], run.record["validation"]
    if base is None:
        rows = [[name, f"{valid[name]:.4f}", f"{test[name]:.4f}"] for name in METRICS]
        return _table(["metric", "validation", "test"], rows)
    before = base.record["test"]
    rows = [
        [
            name,
            f"{valid[name]:.4f}",
            f"{test[name]:.4f}",
            f"{before[name]:.4f}",
            f"{test[name] / before[name] - 1:+.1%}" if before[name] else "n/a",
        ]
        for name in METRICS
    ]
    return _table(["metric", "validation", "test", "base, test", "change"], rows)


def _protocol(record: Mapping[str, Any], items: int) -> str:
    users = record.get("counts", {}).get("evaluated users")
    whom = f"of {users:,} users " if users is not None else ""
    return (
        f"Leave-one-out: the last item {whom}ranked among all {items:,} items, the history not masked, "
        "ties counted against the model."
    )


def _sources(identity: Mapping[str, Any]) -> list[list[str]]:
    rows = [[name, _code(identity[name])] for name in ("dataset", "plan")]
    sets: dict[str, dict[str, str]] = {kind: {} for kind in _SETS}
    for key in sorted(identity):
        kind, _, name = key.partition(".")
        if kind in _SETS and name:
            sets[kind][name] = identity[key]
            rows.append([f"{kind} of {name}", _code(identity[key])])
    whole = store_digest(identity["dataset"], identity["plan"], sets["scores"], sets["factors"])
    return [*rows, ["all of these as one store", _code(whole)]]


def _teachers(record: Mapping[str, Any]) -> list[str]:
    rows = []
    for name, told in sorted(record.get("teachers", {}).items()):
        quality = told.get("quality", {})
        numbers = [_number(quality.get(key)) for key in ("ndcg@10", "test ndcg@10")]
        digest = _code(told["teacher_digest"]) if "teacher_digest" in told else "unknown"
        rows.append([name, str(told.get("teacher", "unknown")), *numbers, digest])
    if not rows:
        return []
    head = ["teacher", "kind", "validation NDCG@10", "test NDCG@10", "digest"]
    return [_table(head, rows)]


def _settings(identity: Mapping[str, Any]) -> list[list[str]]:
    groups = ("student.", "train.", "join.")
    return [
        [key.replace(".", " ", 1).replace("_", " "), _code(identity[key])]
        for group in groups
        for key in sorted(identity)
        if key.startswith(group)
    ]


def _facts(run: Run) -> list[list[str]]:
    record = run.record
    size = console.size((run.folder / MODEL).stat().st_size)
    return [
        ["parameters", f"{record['parameters']:,}"],
        ["weights", f"{size}, {_code(record['files'][MODEL])}"],
        ["trained", f"{console.count(record['epochs'], 'epoch')}, the best {record['best_epoch'] + 1}"],
        ["on", f"{record['device']}, {console.count(record['threads'], 'thread')}, torch {record['torch']}"],
    ]  # fmt: skip


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"


def _code(value: Any) -> str:
    return f"`{value}`"


def _list(names: Sequence[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(one) for one in line)} |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
