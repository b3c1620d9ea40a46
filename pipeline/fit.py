"""STAGE TWO: train students from a store, no teacher at hand, and judge them.

    runs/toys/sasrec-distilled/seed-0/                a run, see runs.py
    runs/toys/sasrec-distilled/seed-0.times.jsonl     a line an epoch: what a clock said, see times.py

A finished run is never trained again; an unfinished one goes on from its checkpoint. A run is identified by its settings
and by the digests of dataset, plan and score sets: what differs is refused by name.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.atomic import check_writable, sweep
from cache.dataset import Dataset
from cache.digest import canonical_json
from cache.errors import UsageError
from cache.factors import FactorReader
from cache.paths import trajectory, without_checkpoints
from cache.plan import Plan
from cache.scores import ScoreReader
from cache.store import Store
from encoder.checkpoint import save_checkpoint
from pipeline.evaluate import rank_student
from pipeline.memory import give_back
from pipeline.metrics import metrics_of_ranks
from pipeline.resume import resumed
from pipeline.runs import CHECKPOINT, RECORD, Run, finished_run, seal_run
from pipeline.sets import only_trainer
from pipeline.times import Times
from pipeline.two_domains import with_source
from student.hetcomp import HetCompSettings
from student.loop import check_settings, make_optimizer, train
from student.registry import StudentKind, find_student
from student.schedule import TrainSettings
from student.state import RunState
from student.targets import JoinSettings

__all__ = ["Wanted", "Watch", "check_runs", "fit"]

Watch = Callable[[RunState, float], None]
"""watch(state after an epoch, instances a second in its steps)."""

Wanted = tuple[Path, Sequence[ScoreReader | FactorReader], TrainSettings]
"""A run that is to be: its folder, its teachers' sets, its settings."""

_GIVE_BACK_AFTER = 30.0  # seconds from one time to the next

#: settings that came later and their defaults, left out of an identity: a run of before is still the run it was
_ADDED = {
    "train.batch_size": 0,
    "train.batching": "instance",
    "train.validate_every": 1,
    "join.items": "in-batch",
}


def fit(
    store: Store,
    readers: Sequence[ScoreReader | FactorReader],
    folder: Path,
    config: Any,
    settings: TrainSettings,
    *,
    student: str = "sasrec",
    source: Dataset | None = None,
    device: str = "cpu",
    watch: Watch = lambda state, rate: None,
    on_step: Callable[[float, int], None] = lambda done, total: None,
) -> Run:
    """Train one student with one seed into `folder`, or open the finished run that is there.

    Args:
        readers: the teachers' score sets or factor sets; empty for the base model.
        config: the student's own; the longest history is the dataset's.
        student: its name in student/registry.py.
        source: another domain's dataset, for a student that learns from two.
        on_step: told (epochs done, epochs at most).

    Raises:
        StoreError: ``run.foreign`` or ``checkpoint.foreign`` for a run of other settings, naming what differs;
            ``checkpoint.further``; ``run.damaged``, ``checkpoint.damaged``; a score set that is damaged;
            ``train.busy`` where another process trains this very run.
        DiskError: the folder cannot be written to.
        UsageError: ``student.unknown``, ``student.bad_plugin``; a source that is missing or means nothing;
            ``fit.nothing_held_out`` where nobody has the three interactions that a validation takes.
    """
    dataset, plan, kind = store.dataset, store.plan, find_student(student)
    config = _whole(kind, config, dataset, source)
    identity = _identity(store, readers, config, settings, student)
    if (folder / RECORD).is_file():
        return _opened(folder, identity)
    if not len(dataset.held_out("valid")[0]):
        raise UsageError(
            f"{store.label}: nobody in its dataset has three interactions, one to learn from, one to validate and one "
            "to test by; run `kd-cache ingest` and `kd-cache plan` on more of them.",
            code="fit.nothing_held_out",
        )
    check_writable(folder)
    with only_trainer(folder):
        if (folder / RECORD).is_file():  # another process was quicker
            return _opened(folder, identity)
        if folder.is_dir():
            sweep(folder)
        torch.manual_seed(settings.seed)
        model = kind.make(config, dataset)
        if source is not None:
            model.learn_from(source)
        model.to(device)
        record, weights, test_ranks = _trained(
            model, dataset, plan, readers, folder, settings, identity, device, watch, on_step
        )
        card = {
            "student": student,
            "config": asdict(config),
            "dataset": dataset.digest,
            "items": dataset.num_items,
        }
        seal_run(folder, {**record, "student": student}, weights, card, test_ranks)
        (folder / CHECKPOINT).unlink(missing_ok=True)
        return finished_run(folder, identity)


def _opened(folder: Path, identity: dict[str, Any]) -> Run:
    run = finished_run(folder, identity)
    (folder / CHECKPOINT).unlink(missing_ok=True)  # of a process that was killed in between
    return run


def _trained(
    model: Any,
    dataset: Dataset,
    plan: Plan,
    readers: Sequence[ScoreReader | FactorReader],
    folder: Path,
    settings: TrainSettings,
    identity: dict[str, Any],
    device: str,
    watch: Watch,
    on_step: Callable[[float, int], None],
) -> tuple[dict[str, Any], dict[str, Tensor], NDArray[np.int64]]:
    """(what run.json says, the best weights, [evaluated users] ranks of the test items), a checkpoint kept an epoch."""
    checkpoint = folder / CHECKPOINT
    optimizer = make_optimizer(model, settings)
    state = RunState()
    if checkpoint.is_file():
        state = resumed(checkpoint, model, optimizer, identity, settings, plan)

    def ranks(part: Any) -> NDArray[np.int64]:
        model.eval()
        return rank_student(model, dataset, dataset.held_out(part), device=device)

    times = Times(folder.with_name(f"{folder.name}.times.jsonl"))
    gave_back = time.perf_counter()

    def validate() -> float:
        times.validate()
        return metrics_of_ranks(ranks("valid"))["ndcg@10"]

    def on_epoch(now: RunState) -> None:
        nonlocal gave_back
        rate = times.end(now.history[-1])
        save_checkpoint(checkpoint, model, optimizer, now.tensors(), now.to_json(), identity)
        watch(now, rate)
        if time.perf_counter() - gave_back > _GIVE_BACK_AFTER:
            give_back()
            gave_back = time.perf_counter()
        times.begin()

    state = train(
        model,
        dataset,
        plan,
        readers,
        settings,
        validate=validate,
        state=state,
        optimizer=optimizer,
        on_epoch=on_epoch,
        on_step=lambda done, total: on_step(state.epoch + done / total, settings.most(plan)),
        device=device,
    )
    model.load_state_dict(state.best_weights)
    test_ranks = ranks("test")
    record = {
        "identity": identity,
        "kind": "distilled" if readers else "base",
        "best_epoch": state.best_epoch,
        "epochs": state.epoch,
        "history": [asdict(one) for one in state.history],
        "validation": metrics_of_ranks(ranks("valid")),
        "test": metrics_of_ranks(test_ranks),
        "parameters": sum(p.numel() for p in model.parameters()),
        "weights_bytes": sum(p.nbytes for p in model.state_dict().values()),
        "counts": {
            "users": dataset.num_users,
            "items": dataset.num_items,
            "evaluated users": len(test_ranks),
            "instances": plan.num_instances,
        },
        "teachers": {reader.name: _told(reader) for reader in readers},
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": device,
    }
    return record, state.best_weights, test_ranks


def check_runs(
    store: Store,
    wanted: Sequence[Wanted],
    config: Any,
    *,
    student: str = "sasrec",
    source: Dataset | None = None,
) -> None:
    """Refuse before the first of several runs what :func:`fit` would refuse after it.

    Raises:
        StoreError: ``run.foreign``, ``checkpoint.foreign``, ``checkpoint.further``, ``run.damaged``,
            ``checkpoint.damaged``.
        UsageError: what the student cannot follow.
    """
    kind = find_student(student)
    config = _whole(kind, config, store.dataset, source)
    model = None
    for folder, readers, settings in wanted:
        identity = _identity(store, readers, config, settings, student)
        if (folder / RECORD).is_file():
            finished_run(folder, identity)
            continue
        if model is None:  # to be asked only: each run makes its own
            model = kind.make(config, store.dataset)
        check_settings(model, settings)
        if (folder / CHECKPOINT).is_file():
            optimizer = make_optimizer(model, settings)
            resumed(folder / CHECKPOINT, model, optimizer, identity, settings, store.plan)


def _whole(kind: StudentKind, config: Any, dataset: Dataset, source: Dataset | None) -> Any:
    """The student's settings with what they take from the datasets."""
    config = with_source(kind, config, dataset, source)
    if "max_length" in kind.fields:
        config = replace(config, max_length=dataset.max_length)
    return config


def _told(reader: ScoreReader | FactorReader) -> dict[str, Any]:
    """What a score set says of its teacher, for a reader of the record who has no store at hand."""
    settings = reader.manifest.settings
    return {
        key: settings[key]
        for key in ("teacher", "teacher_digest", "quality", "tau")
        if key in settings
    }


def _identity(
    store: Store,
    readers: Sequence[ScoreReader | FactorReader],
    config: Any,
    settings: TrainSettings,
    student: str,
) -> dict[str, Any]:
    """Everything that decides the weights, flat, as JSON values: what a resumed run must share."""
    values = {
        "dataset": store.dataset.digest,
        "plan": store.plan.digest,
        **{f"{reader.manifest.kind}.{reader.name}": reader.digest for reader in readers},
        # unnamed, it is a SASRec: runs of before there were others stay valid
        **({} if student == "sasrec" else {"student": student}),
        **{f"student.{key}": value for key, value in asdict(config).items()},
        **{f"train.{key}": value for key, value in asdict(settings).items() if key != "join"},
    }
    if settings.join is not None:
        values |= {f"join.{key}": value for key, value in asdict(settings.join).items()}
        values |= _order([reader.name for reader in readers], settings.join)
    for key, default in _ADDED.items():
        if values.get(key) == default:
            del values[key]
    plain: dict[str, Any] = json.loads(canonical_json(values))
    return plain


def _order(names: list[str], join: JoinSettings | HetCompSettings) -> dict[str, list[str]]:
    """Which teacher has which place, where places tell and it is not the command's own order, which goes unsaid."""
    if isinstance(join, HetCompSettings):
        teachers = sorted(without_checkpoints(names))
        usual = [state for teacher in teachers for state in trajectory(teacher, names)]
    else:
        usual = sorted(names) if len(set(join.weights)) > 1 else names
    return {} if names == usual else {"join.order": names}
