"""STAGE TWO: train students from a store, no teacher at hand, and judge them.

    runs/toys/sasrec-distilled/seed-0/   model.safetensors   run.json   test_ranks.npy   [checkpoint.safetensors]
    runs/toys/sasrec-distilled/seed-0.times.jsonl     a line an epoch: what a clock said, beside the run, never inside

A finished run is never trained again; an unfinished one goes on from its checkpoint. A run is identified by its settings
and by the digests of dataset, plan and score sets: what differs is refused by name.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from cache.atomic import append_line, check_writable, put, sweep
from cache.dataset import Dataset
from cache.digest import canonical_json, sha256_bytes, sha256_file
from cache.errors import StoreError, UsageError
from cache.factors import FactorReader
from cache.scores import ScoreReader
from cache.store import Store
from encoder.checkpoint import load_checkpoint, load_weights, save_checkpoint, save_weights
from pipeline.evaluate import rank_student
from pipeline.metrics import Metrics, metrics_of_ranks
from pipeline.two_domains import with_source
from student.loop import TrainSettings, make_optimizer, train
from student.protocol import AnyStudent
from student.registry import find_student
from student.state import RunState

__all__ = [
    "MODEL",
    "RECORD",
    "Run",
    "Standing",
    "Watch",
    "fit",
    "load_student",
    "open_run",
    "standing",
]

Watch = Callable[[RunState, float], None]
"""watch(state after an epoch, instances a second in it)."""

Standing: TypeAlias = Literal["new", "begun", "finished"]

_CHECKPOINT, MODEL, RECORD, _RANKS = (
    "checkpoint.safetensors",
    "model.safetensors",
    "run.json",
    "test_ranks.npy",
)

#: settings that came later and their defaults, left out of an identity: a run of before is still the run it was
_ADDED = {"train.batch_size": 0, "train.batching": "instance", "join.items": "in-batch"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A finished run."""

    folder: Path
    record: Mapping[str, Any]  #: run.json
    test_ranks: NDArray[np.int32]  #: [evaluated users]

    @property
    def test(self) -> Metrics:
        """Recall and NDCG on the test items."""
        metrics: Metrics = self.record["test"]
        return metrics


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
            ``run.damaged``, ``checkpoint.damaged``; a score set that is damaged.
        DiskError: the folder cannot be written to.
        UsageError: ``student.unknown``, ``student.bad_plugin``; a source that is missing or means nothing.
    """
    dataset, plan, kind = store.dataset, store.plan, find_student(student)
    config = with_source(kind, config, dataset, source)
    if "max_length" in kind.fields:
        config = replace(config, max_length=dataset.max_length)
    identity = _identity(store, readers, config, settings, student)
    checkpoint = folder / _CHECKPOINT
    if (folder / RECORD).is_file():
        run = _finished(folder, identity)
        checkpoint.unlink(missing_ok=True)  # of a process that was killed in between
        return run
    check_writable(folder)
    if folder.is_dir():
        sweep(folder)
    torch.manual_seed(settings.seed)
    model = kind.make(config, dataset)
    if source is not None:
        model.learn_from(source)
    model.to(device)
    optimizer = make_optimizer(model, settings)
    state = RunState()
    if checkpoint.is_file():
        state = RunState.of(*load_checkpoint(checkpoint, model, optimizer, identity))

    staged = plan.num_buckets * settings.epochs_per_stage if settings.curriculum else 0

    def ranks(part: Any) -> NDArray[np.int64]:
        model.eval()
        return rank_student(model, dataset, dataset.held_out(part), device=device)

    began = time.perf_counter()

    def on_epoch(now: RunState) -> None:
        nonlocal began
        last = now.history[-1]
        seconds = time.perf_counter() - began
        rate = last.instances / seconds
        save_checkpoint(checkpoint, model, optimizer, now.tensors(), now.to_json(), identity)
        told = {"epoch": last.epoch + 1, "stage": last.stage, "instances": last.instances}
        spent = {"seconds": round(seconds, 3), "instances_per_second": round(rate, 1)}
        append_line(_times(folder), json.dumps(told | spent).encode())
        watch(now, rate)
        began = time.perf_counter()

    state = train(
        model,
        dataset,
        plan,
        readers,
        settings,
        validate=lambda: metrics_of_ranks(ranks("valid"))["ndcg@10"],
        state=state,
        optimizer=optimizer,
        on_epoch=on_epoch,
        on_step=lambda done, total: on_step(state.epoch + done / total, staged + settings.epochs),
        device=device,
    )
    model.load_state_dict(state.best_weights)
    test_ranks = ranks("test")
    record = {
        "identity": identity,
        "student": student,
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
    buffer = io.BytesIO()
    np.save(buffer, test_ranks.astype(np.int32), allow_pickle=False)
    card = {"student": student, "config": asdict(config), "dataset": dataset.digest}
    save_weights(folder / MODEL, state.best_weights, card | {"items": dataset.num_items})
    put(folder / _RANKS, buffer.getbuffer())
    record["files"] = {name: sha256_file(folder / name) for name in (MODEL, _RANKS)}
    put(folder / RECORD, canonical_json(record) + b"\n")  # last: a run with a record is finished
    checkpoint.unlink(missing_ok=True)
    return _finished(folder, identity)


def load_student(folder: Path, store: Store) -> AnyStudent:
    """The trained student of a run, for the dataset it was trained on; a torch.nn.Module in eval mode.

    Raises:
        StoreError: ``model.foreign`` for another dataset, naming both digests; ``model.unknown``.
        UsageError: ``run.missing``; ``student.unknown`` for one of a package that is not here.
    """
    path = folder / MODEL
    if not path.is_file():
        raise _missing(folder, MODEL)
    weights, card = load_weights(path)
    if not {"dataset", "config", "student"} <= card.keys():
        raise StoreError(
            f"{path}: holds weights, but not those of a student; name a folder that `kd-student fit` "
            "made.",
            code="model.unknown",
        )
    if card["dataset"] != store.dataset.digest:
        raise StoreError(
            f"{path}: was trained on the dataset {card['dataset'][:19]}, {store.path} holds "
            f"{store.dataset.digest[:19]}; name its own store with --cache.",
            code="model.foreign",
        )
    kind = find_student(card["student"])
    try:
        model: AnyStudent = kind.make(kind.config(**card["config"]), store.dataset).eval()
        model.load_state_dict(weights)  # type: ignore[union-attr]  # a torch.nn.Module too
    except (TypeError, RuntimeError) as error:
        raise StoreError(
            f"{path}: does not fit the {kind.name} of this version; train it again.",
            code="model.unknown",
        ) from error
    return model


def _told(reader: ScoreReader | FactorReader) -> dict[str, Any]:
    """What a score set says of its teacher, for a reader of the record who has no store at hand."""
    settings = reader.manifest.settings
    return {
        key: settings[key]
        for key in ("teacher", "teacher_digest", "quality", "tau")
        if key in settings
    }


def _times(folder: Path) -> Path:
    """Beside the run: the same run ends in the same bytes, however long it took."""
    return folder.with_name(f"{folder.name}.times.jsonl")


def standing(folder: Path) -> Standing:
    """How far the run in `folder` is, by the files that are there."""
    if (folder / RECORD).is_file():
        return "finished"
    return "begun" if (folder / _CHECKPOINT).is_file() else "new"


def open_run(folder: Path) -> Run:
    """A finished run, every byte of it checked.

    Raises:
        UsageError: ``run.missing``; StoreError: ``run.damaged``.
    """
    if not (folder / RECORD).is_file():
        raise _missing(folder, RECORD)
    record = _record(folder)
    files = {}
    for name, digest in record["files"].items():
        files[name] = (folder / name).read_bytes() if (folder / name).is_file() else b""
        if sha256_bytes(files[name]) != digest:
            raise _damaged(folder / name)
    ranks = np.load(io.BytesIO(files[_RANKS]), allow_pickle=False)
    return Run(folder=folder, record=record, test_ranks=ranks)


def _finished(folder: Path, identity: Mapping[str, Any]) -> Run:
    found = _record(folder)["identity"]
    for key in sorted(found.keys() | identity.keys()):
        if found.get(key) != identity.get(key):
            raise StoreError(
                f"{folder}: holds a finished run with {key} {found.get(key)}, this one would have "
                f"{identity.get(key)}; choose another --out, or remove it.",
                code="run.foreign",
            )
    return open_run(folder)


def _record(folder: Path) -> dict[str, Any]:
    """run.json, once it is known to be one."""
    path = folder / RECORD
    try:
        record = json.loads(path.read_bytes())
        sound = (
            isinstance(record["identity"], dict)
            and record["files"].keys() == {MODEL, _RANKS}
            and all(isinstance(value, float) for value in record["test"].values())
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise _damaged(path)
    return dict(record)


def _missing(folder: Path, name: str) -> UsageError:
    below = sorted(folder.glob(f"*/**/{name}"))
    remedy = f"one is {below[0].parent}" if below else "train one with `kd-student fit`"
    return UsageError(f"{folder}: holds no finished run; {remedy}.", code="run.missing")


def _damaged(path: Path) -> StoreError:
    return StoreError(
        f"{path}: is not what was written; remove {path.parent} and run the same command again.",
        code="run.damaged",
    )


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
    for key, default in _ADDED.items():
        if values.get(key) == default:
            del values[key]
    plain: dict[str, Any] = json.loads(canonical_json(values))
    return plain
