"""P25: every foreseen failure ends with a status of its own, one line on standard error and a stable code; never a traceback.

Every code in the product is collected from its source and must be named in a test, here or elsewhere. Those that a person can
run into and no other test names by code are reached here through the entry points of the command lines.
"""

from __future__ import annotations

import ast
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cache.remote import locate, open_remote
from cache.store import Store
from cache.vectors import write_vectors
from cache.verify import verify
from pipeline.build import build
from pipeline.sample import write_sample
from pipeline.share import push
from teachers import images, recformer_pretrain, recformer_tune
from tests.fakes import TableTeacher, tiny_store
from tests.promises.grounds import (
    ROOT,
    code_of,
    copied,
    in_memory,
    reparented,
    serving,
    silent,
    typed,
)
from tests.promises.ledger import all_kept, kept

PACKAGES = ("cache", "encoder", "teachers", "student", "pipeline")

FIT = "kd-student fit --cache store --epochs 1 --threads 1 --hidden 8"

#: what is typed in a folder with a store and some bad files, the status and the code
TYPED = [
    ("kd-cache plan --data nosuch", 3, "store.unfinished"),
    ("kd-cache plan", 2, "dataset.missing"),
    ("kd-cache show", 2, "store.missing"),
    ("kd-cache show --cache nosuch", 3, "store.missing"),
    ("kd-cache plan --data store-data --cache new --alpha inf", 2, "config.not_finite"),
    ("kd-cache plan --data store-data --cache new --batch-size 1", 2, "plan.bad_settings"),
    ("kd-cache plan --data store-data --cache new --teacher x", 2, "plan.unused_teacher"),
    ("kd-cache verify --cache store --sample 2", 2, "verify.half_sample"),
    ("kd-cache verify --cache store --name x", 2, "verify.half_sample"),
    ("kd-cache ingest empty.csv --out new", 4, "ingest.empty"),
    ("kd-cache ingest soon.csv --out new", 4, "ingest.bad_rows"),
    ("kd-cache ingest header.csv --out new", 4, "ingest.bad_header"),
    ("kd-cache ingest column.csv --out new", 4, "ingest.missing_column"),
    ("kd-cache ingest torn.csv.gz --out new", 4, "ingest.bad_gzip"),
    ("kd-cache ingest torn.parquet --out new", 4, "ingest.bad_parquet"),
    ("kd-cache ingest types.parquet --out new", 4, "ingest.bad_type"),
    ("kd-cache ingest features --out new --k-core 0", 4, "ingest.bad_features"),
    ("kd-cache ingest soon.csv --out a-file/new", 5, "disk.refused"),
    (f"{FIT} --epsilon much", 2, "fit.bad_epsilon"),
    (f"{FIT} --student deepfm --set depth=0", 2, "fit.bad_setting"),
    (f"{FIT} --device nosuch", 2, "fit.bad_device"),
    (f"{FIT} --student nosuch", 2, "student.unknown"),
    (f"{FIT} --batch-size 8 --teacher two", 2, "fit.no_factors"),
    (f"{FIT} --batch-size 8 --no-fresh-batches", 2, "fit.planned_batches"),
    ("kd-student fit --cache bare", 2, "fit.no_teachers"),
    # 8 x 10^13 float32 numbers are 320 TB: beyond any address space, however freely a system promises memory
    (f"{FIT} --no-distill --inner 10000000000000", 8, "memory.short"),
    ("kd-student evaluate nosuch --cache store", 2, "run.missing"),
    (f"{FIT} --top 5", 2, "fit.other_join"),
    ("kd-student recommend nosuch --cache store --out lists.doc", 2, "recommend.bad_format"),
    ("kd-student recommend nosuch --cache store --users empty.csv", 2, "recommend.bad_users"),
]  # fmt: skip
TOML = [
    ("[kd-cache.show\n", "config.bad_toml"),
    ("[kd-cache.show]\nnosuch = 1\n", "config.unknown_key"),
    ("[kd-cache.show]\ncache = [1]\n", "config.bad_value"),
]


def codes() -> dict[str, list[str]]:
    """Every dotted code in product code, with the places that raise it; a part that is computed is a star."""
    found: dict[str, list[str]] = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.keyword) and node.arg == "code":
                    for code in _of(node.value):
                        found.setdefault(code, []).append(
                            f"{path.relative_to(ROOT)}:{node.value.lineno}"
                        )
    return found


def _of(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from _of(node.body)
        yield from _of(node.orelse)
    elif isinstance(node, ast.JoinedStr):
        yield "".join(
            str(part.value) if isinstance(part, ast.Constant) else "*" for part in node.values
        )


def test_every_code_of_the_product_is_named_by_a_test() -> None:
    tests = "\n".join(
        path.read_text(encoding="utf-8") for path in sorted((ROOT / "tests").rglob("*.py"))
    )
    named = set(re.findall(r"[a-z]+\.[a-z_]+", tests))
    told = []
    for code, places in codes().items():
        pattern = re.compile(re.escape(code).replace(r"\*", "[a-z_]+"))
        told.append(
            "" if code in REACHED or any(map(pattern.fullmatch, named)) else f"{code} ({places[0]})"
        )
    assert len(told) > 140
    all_kept("P25", told)


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    with in_memory() as folder:
        copied(folder / "store")
        tiny_store(folder / "bare")
        shutil.copytree(folder / "bare-data", folder / "store-data")
        (folder / "a-file").touch()
        (folder / "empty.csv").touch()
        (folder / "soon.csv").write_text("user,item,time\nu,a,1\nu,b,soon\n")
        (folder / "header.csv").write_text("user,item,item\nu,a,1\n")
        (folder / "column.csv").write_text("user,time\nu,1\n")
        (folder / "torn.csv.gz").write_bytes(b"user,item\n")
        (folder / "torn.parquet").write_bytes(b"PAR1 and then nothing")
        pq.write_table(pa.table({"user": [1.5], "item": ["a"]}), folder / "types.parquet")
        (folder / "features").mkdir()
        (folder / "features/interactions.csv").write_text("user,item,time\nu,a,1\nu,a,2\n")
        (folder / "features/items.csv").write_text("item,title\na,A\n")
        np.save(folder / "features/text_feat.npy", np.zeros((7, 3), np.float32))
        yield folder


@pytest.mark.parametrize(("line", "status", "code"), TYPED)
def test_what_a_person_can_run_into(home: Path, line: str, status: int, code: str) -> None:
    before = sorted(home.iterdir())
    done = typed(home, *line.split())
    assert (done.status, done.code) == (status, code), done
    assert len(done.err.splitlines()) == 1
    assert done.out == ""
    assert sorted(home.iterdir()) == before
    kept("P25", 1, 1)


@pytest.mark.parametrize(("text", "code"), TOML)
def test_mistakes_in_kd_toml(home: Path, text: str, code: str) -> None:
    (home / "kd.toml").write_text(text)
    try:
        done = typed(home, "kd-cache", "show", "--cache", "store")
    finally:
        (home / "kd.toml").unlink()
    assert (done.status, done.code) == (2, code), done
    kept("P25", 1, 1)


def test_two_stores_ask_which() -> None:
    with in_memory() as folder:
        for name in "ab":
            copied(folder / "cache" / name)
        done = typed(folder, "kd-cache", "show")
    assert (done.status, done.code) == (2, "store.ambiguous"), done
    kept("P25", 1, 1)


def test_success_is_0_and_silent_on_errors(home: Path) -> None:
    for line in ("kd-cache show --cache store", "kd-cache verify --cache store", "kd-cache --help"):
        done = typed(home, *line.split())
        assert done.status == 0, done
        assert "Traceback" not in done.err
        kept("P25", 1, 1)


def bad_index(folder: Path) -> None:
    store = copied(folder / "store")
    path = store / "scores/one/scores.zarr/c.0.0.0"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    reparented(store)
    Store.open(store).scores("one")[0]


def bad_table(folder: Path) -> None:
    store = copied(folder / "store")
    (store / "plan/plan.parquet").write_bytes(b"no table")
    reparented(store)
    Store.open(store)


def not_a_folder(folder: Path) -> None:
    store = copied(folder / "store")
    (store / "scores").rename(folder / "away")
    (store / "scores").touch()
    (found,) = [one for one in verify(store) if one.code == "store.not_a_folder"]
    raise found


def no_bucket(folder: Path) -> None:
    with serving(folder) as (url, fake):
        store = copied(folder / "store")
        fake.fault = lambda method, key: 404 if method == "PUT" else None
        push(store, locate(url), (), silent)


def wrong_buffer(folder: Path) -> None:
    reader = Store.open(copied(folder / "store")).scores("one")
    reader.read_into(0, np.empty((1, 1), np.float16))


def vectors(folder: Path, shape: tuple[int, int], value: float) -> None:
    dataset = Store.open(copied(folder / "store")).dataset
    write_vectors(
        dataset, "x", np.full((dataset.num_items + shape[0], shape[1]), value, np.float32), {}
    )


def without(module: str, work: Callable[[], object]) -> None:
    """As if a package were not installed."""
    with mock.patch.dict(sys.modules, {module: None, "cache.objects": None}):  # type: ignore[dict-item]
        work()


def nobody(**more: object) -> Any:
    """A dataset in which nobody has two items to train on."""
    return SimpleNamespace(train_lengths=np.ones(3, np.int64), path=Path("data/x"), **more)


def blind_tower(folder: Path) -> None:
    tower = mock.MagicMock()
    with (
        mock.patch.object(images, "_tower", return_value=tower),
        mock.patch.object(images, "_asked", return_value=np.full((1, 2), np.nan, np.float32)),
        mock.patch.object(images, "read_picture", return_value=b""),
    ):
        images._encode(folder, mock.MagicMock(), mock.MagicMock(), ["x.png"], "cpu", None)


def asked(folder: Path, **settings: object) -> None:
    build(TableTeacher("x"), Store.open(copied(folder / "store")), **settings)  # type: ignore[arg-type]


IN_PROCESS: dict[str, Callable[[Path], Any]] = {
    "store.bad_index": bad_index,
    "store.bad_table": bad_table,
    "store.not_a_folder": not_a_folder,
    "scores.wrong_buffer": wrong_buffer,
    "build.unused_codec": lambda folder: asked(folder, keep="factors", codec="u8"),
    "scores.bad_tau": lambda folder: asked(folder, tau=0.0),
    "scores.bad_quality": lambda folder: asked(folder, quality={"ndcg@10": float("nan")}),
    "vectors.wrong_shape": lambda folder: vectors(folder, (1, 3), 0.0),
    "vectors.not_finite": lambda folder: vectors(folder, (0, 3), float("nan")),
    "sample.too_small": lambda folder: write_sample(folder / "x", users=0, items=96, seed=0),
    "share.no_library": lambda folder: without("obstore", lambda: open_remote(locate("s3://a/b"))),
    "image.no_pillow": lambda folder: without("PIL", images._require_pillow),
    "image.not_finite": blind_tower,
    "tune.no_users": lambda folder: recformer_tune.tune(
        None, nobody(), None, None, second=None, validate=None, checkpoint=None, identity=None
    ),
    "pretrain.no_users": lambda folder: recformer_pretrain._users(
        [SimpleNamespace(dataset=nobody())]
    ),
    "remote.missing": no_bucket,
}


@pytest.mark.parametrize("code", IN_PROCESS)
def test_what_a_program_can_run_into(code: str) -> None:
    with in_memory() as folder:
        assert code_of(lambda: IN_PROCESS[code](folder)) == code
    kept("P25", 1, 1)


#: reached by tests that compare the sentence rather than the code, with the file that does
REACHED = {
    "ingest.bad_index": "tests/pipeline/test_ingest_formats.py",
    "ingest.bad_json": "tests/pipeline/test_ingest_bad.py",
    "ingest.missing_file": "tests/pipeline/test_ingest_formats.py",
    "ingest.no_metadata": "tests/pipeline/test_ingest_formats.py",
    "plan.no_instances": "tests/pipeline/test_curriculum.py",
    "model.foreign": "tests/journeys/test_refusals.py",
    "run.foreign": "tests/journeys/test_refusals.py",
    "teacher.other_option": "tests/journeys/test_three_teachers.py",
    "image.half_given": "tests/journeys/test_three_teachers.py",
    "teacher.not_finite": "tests/cache/test_scores.py",
    "teacher.wrong_shape": "tests/cache/test_scores.py",
    "teacher.wrong_type": "tests/cache/test_scores.py",
    "remote.cut": "tests/share/test_faults.py",
    "signature.foreign": "tests/promises/test_p24_signed.py",
    "signature.no_library": "tests/promises/test_p24_signed.py",
    "export.no_extra": "tests/pipeline/test_export.py",
    "export.no_runtime": "tests/pipeline/test_export.py",
    "export.damaged": "tests/pipeline/test_export.py",
    "export.not_traceable": "tests/pipeline/test_export.py",
    "fit.no_logs": "tests/pipeline/test_live.py",
    "extend.other_length": "tests/pipeline/test_grow.py",
    "extend.history_changed": "tests/pipeline/test_grow.py",
    "extend.items_changed": "tests/pipeline/test_grow.py",
    "extend.*s_gone": "tests/pipeline/test_grow.py",
}
