"""What cannot be done is refused: one line that names the cause, the documented status, and not a byte written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cache.digest import canonical_json
from cache.manifest import read_manifest
from tests.fakes import tree
from tests.journeys.conftest import ROAD, Road
from tests.journeys.shell import Done, quick

USAGE, STORE, INPUT, DISK, TEACHER = 2, 3, 4, 5, 6  # the statuses of cache/errors.py

RUN = "runs/toys/sasrec-distilled/seed-0"
FIT = "kd-student fit --cache cache/toys --epochs 2 --threads 1"
TUNE = "kd-teacher tune unisrec --data data/toys"
NEW = "--out new"


def refused(home: Path, line: str, status: int, *fragments: str) -> Done:
    """Run a line that must be refused with one line on standard error and leave everything as it was."""
    before = tree(home)
    done = quick(home, line, expect=status)
    assert len(done.lines) == 1, done.err
    assert done.lines[0].startswith(line.partition(" ")[0])
    for fragment in fragments:
        assert fragment in done.err
    assert done.out == ""
    assert tree(home) == before
    return done


@pytest.fixture(scope="module")
def sound(road: Road, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which nothing is wrong but what is typed."""
    home = Path(shutil.copytree(road.path, tmp_path_factory.mktemp("refused") / "home"))
    (home / "empty.csv").touch()
    (home / "torn.csv").write_text("user,item,timestamp\nanna,B002,noon\n")
    (home / "bad.pth").write_bytes(b"no checkpoint")
    (home / "a-file").touch()
    return home


@pytest.mark.parametrize(
    ("line", "status", "fragment"),
    [
        ("kd-cache nosuch", USAGE, "No such command 'nosuch'; try `kd-cache --help`."),
        ("kd-cache ingest", USAGE, "Missing argument 'source'"),
        ("kd-cache ingest rows", USAGE, "Missing option '--out'; try `kd-cache ingest --help`."),
        (f"kd-cache ingest nosuch {NEW}", USAGE, "[ingest.no_source]"),
        (f"kd-cache ingest empty.csv {NEW}", INPUT, "empty.csv:1: "),
        (f"kd-cache ingest torn.csv {NEW}", INPUT, "torn.csv:2: timestamp: "),
        (f"kd-cache ingest rows --format nosuch {NEW}", USAGE, "[ingest.unknown_format]"),
        (f"kd-cache ingest rows --k-core 99 {NEW}", INPUT, "[ingest.nothing_left]"),
        ("kd-cache ingest rows --out data/toys", STORE, "[store.exists]"),
        ("kd-cache ingest rows --out a-file/toys", DISK, "a-file: Not a directory"),
        ("kd-cache sample --out rows", STORE, "[store.exists]"),
        (f"kd-cache sample --items 95 {NEW}", USAGE, "'--items'"),
        ("kd-cache plan --data nosuch", STORE, "nosuch: the dataset part is not there"),
        ("kd-cache plan", STORE, "cache/toys: is there already with batch_size 128, this one"),
        (
            "kd-cache plan --cache cache/new --batch-size 1 --rounds 0",
            USAGE,
            "rounds 0 (at least 1)",
        ),
        ("kd-cache plan --cache cache/new --alpha inf", USAGE, "--alpha inf"),
        ("kd-cache plan --cache cache/new --popularity nosuch", USAGE, "is not one of 'max'"),
        ("kd-cache plan --cache cache/new --seed 99999999999", USAGE, "'--seed'"),
        ("kd-cache plan --cache cache/new --teacher unisrec", USAGE, "add --dry-run"),
        ("kd-cache plan --cache a-file/new", DISK, "a-file: Not a directory"),
        ("kd-cache build", USAGE, "Missing option '--teacher'"),
        ("kd-cache build --teacher nosuch", USAGE, "in tuned/toys/nosuch; there is unisrec"),
        ("kd-cache build --teacher unisrec --cache nosuch", STORE, "[store.missing]"),
        ("kd-cache build --teacher unisrec --tau 0", USAGE, "'--tau'"),
        ("kd-cache build --teacher unisrec --tau 0.2", STORE, "tau 0.07 there, 0.2 asked for"),
        ("kd-cache build --teacher unisrec --name ../x", USAGE, "[scores.bad_name]"),
        ("kd-cache build --teacher unisrec --name .x", USAGE, "[scores.bad_name]"),
        ("kd-cache show --cache rows", STORE, "rows: is not a store"),
        ("kd-cache verify --cache rows", STORE, "rows: is not a store"),
        ("kd-cache verify --cache nosuch", STORE, "nosuch: is not there"),
        ("kd-cache verify --sample 2", USAGE, "--sample and --teacher belong together"),
        ("kd-cache verify --sample 2 --teacher nosuch", USAGE, "[teacher.missing]"),
        ("kd-cache verify --sample 2 --teacher unisrec --name x", STORE, "no scores of 'x'"),
        ("kd-teacher tune", USAGE, "Missing argument 'teacher'"),
        ("kd-teacher tune nosuch", USAGE, "'nosuch' is not one of 'unisrec'"),
        ("kd-teacher tune unisrec --data nosuch", STORE, "run `kd-cache ingest`"),
        (f"{ROAD['tune']} --epochs 7", USAGE, "recipe.epochs 1, this one would have 7"),
        (f"{TUNE} --out a-file/new", DISK, "a-file/new: Not a directory"),
        (f"{TUNE} {NEW} --from nosuch", USAGE, "nosuch: holds no teacher"),
        (f"{TUNE} {NEW} --freeze-encoder", USAGE, "--from"),
        (f"{TUNE} {NEW} --vectors nosuch", STORE, "[vectors.missing]"),
        (f"{TUNE} {NEW} --learning-rate inf", USAGE, "--learning-rate inf"),
        (f"{TUNE} {NEW} --dropout 1.5", USAGE, "'--dropout'"),
        ("kd-teacher pretrain unisrec", USAGE, "Missing option '--data'"),
        (f"kd-teacher pretrain unisrec --data nosuch {NEW}", STORE, "nosuch: the dataset part"),
        ("kd-teacher evaluate nosuch", USAGE, "[teacher.missing]"),
        ("kd-teacher evaluate unisrec --data nosuch", USAGE, "no tuned teacher in tuned/nosuch"),
        ("kd-teacher evaluate way/nosuch", USAGE, "no tuned teacher in way/nosuch; run"),
        (f"kd-teacher import nosuch.pth {NEW}", INPUT, "nosuch.pth: "),
        (f"kd-teacher import bad.pth {NEW}", INPUT, "bad.pth: "),
        ("kd-teacher import bad.pth --out tuned/toys/unisrec", USAGE, "[teacher.exists]"),
        ("kd-student fit --cache nosuch", STORE, "nosuch: is not there"),
        (f"{FIT} --hidden 7 --heads 2", USAGE, "--hidden 7 is not a multiple of --heads 2"),
        (f"{FIT} --student nosuch", USAGE, "'nosuch' is not known, known are sasrec, gru4rec"),
        (f"{FIT} --student gru4rec --heads 2", USAGE, "[fit.other_option]"),
        (f"{FIT} --student bert4rec --set depth=2", USAGE, "which knows ft_ratio, mask_ratio"),
        (f"{FIT} --student bert4rec --set mask_ratio=2", USAGE, "mask_ratio is 2.0, a number from"),
        (f"{FIT} --student gru4rec --no-distill --batching user", USAGE, "[fit.not_causal]"),
        (f"{FIT} --batching user", USAGE, "keeps no factors of unisrec, which fresh batches"),
        (f"{FIT} --no-distill --batching user --no-fresh-batches", USAGE, "[fit.planned_batches]"),
        (f"{FIT} --student fm --ce in-batch", USAGE, "[fit.own_loss]"),
        (f"{FIT} --epsilon much", USAGE, "--epsilon much"),
        (f"{FIT} --epsilon nan", USAGE, "--epsilon nan"),
        (f"{FIT} --epsilon 1.5q", USAGE, "--epsilon 1.5q"),
        (f"{FIT} --weights unisrec", USAGE, "--weights unisrec: "),
        (f"{FIT} --weights unisrec=1,unisrec=2", USAGE, "[fit.bad_weights]"),
        (f"{FIT} --weights nosuch=1", USAGE, "['nosuch'], the teachers are ['unisrec']"),
        (f"{FIT} --weights unisrec=0", USAGE, "[fit.bad_weights]"),
        (f"{FIT} --kl both", USAGE, "'both' is not one of 'teacher-student', 'student-teacher'"),
        (f"{FIT} --tau inf", USAGE, "--tau inf"),
        (f"{FIT} --learning-rate -1", USAGE, "'--learning-rate'"),
        (f"{FIT} --compare --no-distill", USAGE, "[fit.nothing_to_compare]"),
        (f"{FIT} --teacher nosuch", STORE, "no scores of 'nosuch' (there: unisrec)"),
        (f"{FIT} --teacher ../x", USAGE, "[scores.bad_name]"),
        (f"{FIT} --device nosuch", USAGE, "--device nosuch: is not here"),
        (f"{FIT} --device meta", USAGE, "--device meta: is not here"),
        (f"{FIT} --out a-file/runs", DISK, "Not a directory"),
        (f"{FIT} --hidden 32", STORE, "student.hidden 64, this one would have 32"),
        ("kd-student evaluate", USAGE, "Missing argument 'run'"),
        ("kd-student evaluate nosuch", USAGE, "nosuch: holds no finished run; train one"),
        ("kd-student evaluate runs/toys", USAGE, f"one is {RUN}"),
        (f"kd-student evaluate {RUN} --part train", USAGE, "'train' is not one of"),
        (f"kd-student evaluate {RUN} --cache nosuch", STORE, "[store.missing]"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.startswith("kd-") else "",
)
def test_what_is_typed_wrong(sound: Path, line: str, status: int, fragment: str) -> None:
    refused(sound, line, status, fragment)


@pytest.mark.parametrize(
    ("line", "status", "words"),
    [
        ("kd-cache plan", USAGE, "no dataset in data/; make one with `kd-cache ingest`"),
        ("kd-teacher tune unisrec", USAGE, "make one with `kd-cache ingest`"),
        ("kd-teacher evaluate unisrec", USAGE, "make one with `kd-cache ingest`"),
        (
            "kd-cache build --teacher unisrec",
            USAGE,
            "no store in cache/; make one with `kd-cache plan`",
        ),
        ("kd-cache show", USAGE, "make one with `kd-cache plan`"),
        ("kd-cache verify", USAGE, "make one with `kd-cache plan`"),
        ("kd-student fit", USAGE, "make one with `kd-cache plan`"),
        ("kd-student evaluate runs/toys", USAGE, "make one with `kd-cache plan`"),
    ],
)
def test_in_an_empty_folder_the_command_to_type_first_is_named(
    tmp_path: Path, line: str, status: int, words: str
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    refused(home, line, status, words)


def test_without_a_tuned_teacher_tuning_is_named(home: Path) -> None:
    shutil.rmtree(home / "tuned")
    words = "no tuned teacher in tuned/toys/unisrec; run `kd-teacher tune unisrec --data data/toys`"
    refused(home, "kd-cache build --teacher unisrec", USAGE, words)


def test_without_scores_building_is_named_and_nothing_is_trained(home: Path) -> None:
    shutil.rmtree(home / "cache/toys/scores/unisrec")
    shutil.rmtree(home / "runs")
    words = "run `kd-cache build --teacher unisrec"
    refused(home, "kd-student fit --cache cache/toys", USAGE, words, "--no-distill")
    refused(home, "kd-student fit --cache cache/toys --teacher unisrec", STORE, words)


def test_where_nobody_can_be_judged_nobody_is_trained(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    rows = [f"u{user},i{(user + at) % 5},{at}" for user in range(20) for at in range(2)]
    (home / "i.csv").write_text("\n".join(["user,item,timestamp", *rows]))
    quick(home, "kd-cache ingest i.csv --k-core 0 --out data/two")
    quick(home, "kd-cache plan --data data/two --batch-size 8")
    words = "cache/two: nobody in its dataset has three interactions"
    refused(home, "kd-student fit --no-distill --threads 1", USAGE, words, "[fit.nothing_held_out]")


def test_two_stores_ask_which(home: Path) -> None:
    shutil.copytree(home / "cache/toys", home / "cache/more")
    words = (
        "2 stores in cache/ (cache/more, cache/toys); say which with `kd-student fit --cache PATH`"
    )
    refused(home, "kd-student fit", USAGE, words)


def test_a_folder_that_cannot_be_written_to_is_refused_before_any_work(home: Path) -> None:
    """Each line has a second fault, which only work would come upon."""
    (home / "a-file").touch()
    (home / "torn.csv").write_text("user,item,timestamp\nanna,B002,noon\n")
    flip(home / "cache/toys/scores/unisrec/scores.zarr/c.0.0.0")
    for line in (
        "kd-cache ingest torn.csv --out a-file/new",
        f"{TUNE} --text no/model --out a-file/new",
        "kd-teacher pretrain unisrec --data data/toys --text no/model --out a-file/new",
        "kd-student fit --cache cache/toys --out a-file/new",
    ):
        refused(home, line, DISK, "a-file", "Not a directory")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "part",
    [
        "scores/unisrec/scores.zarr/c.0.0.0",
        "scores/unisrec/scores.zarr/zarr.json",
        "plan/plan.parquet",
        "dataset/sequences.parquet",
    ],
)
def test_a_flipped_byte_in_the_store_stops_the_student_by_name(home: Path, part: str) -> None:
    shutil.rmtree(home / "runs")
    flip(home / "cache/toys" / part)
    refused(home, "kd-student fit --cache cache/toys --threads 1", STORE, f"cache/toys/{part}: ")


@pytest.mark.parametrize("name", ["scores.zarr/c.0.0.0", "scores.zarr/zarr.json", "manifest.json"])
def test_a_file_missing_from_the_scores_stops_the_student_by_name(home: Path, name: str) -> None:
    shutil.rmtree(home / "runs")
    (home / "cache/toys/scores/unisrec" / name).unlink()
    refused(
        home,
        "kd-student fit --cache cache/toys --teacher unisrec",
        STORE,
        "cache/toys/scores/unisrec",
    )


@pytest.fixture
def other(home: Path) -> Path:
    """A second store in the home, over the same dataset, with other batches and its own scores."""
    quick(home, "kd-cache plan --data data/toys --cache cache/other --batch-size 64")
    quick(home, "kd-cache build --teacher tuned/toys/unisrec --cache cache/other")
    shutil.rmtree(home / "runs")
    return home / "cache/other"


def test_scores_of_another_plan_are_refused_with_both_digests(home: Path, other: Path) -> None:
    mine, foreign = home / "cache/toys/scores/unisrec", other / "scores/unisrec"
    aside = mine.rename(home / "aside")
    foreign.rename(mine)
    aside.rename(foreign)
    plans = [read_manifest(store / "plan", "plan").digest for store in (home / "cache/toys", other)]
    for store in ("cache/toys", "cache/other"):
        refused(home, f"kd-student fit --cache {store}", STORE, *plans, "[scores.foreign]")


def test_a_plan_of_another_dataset_is_refused_with_both_digests(home: Path) -> None:
    quick(home, "kd-cache ingest rows --out data/less --k-core 4")
    store = home / "cache/toys"
    mine = read_manifest(store / "dataset", "dataset").digest
    shutil.rmtree(store / "dataset")
    shutil.copytree(home / "data/less", store / "dataset")
    digests = [mine, read_manifest(home / "data/less", "dataset").digest]
    for line in ("kd-student fit --cache cache/toys", "kd-cache build --teacher unisrec"):
        refused(home, line, STORE, *digests, "[store.lineage]")


def test_a_teacher_of_another_dataset_is_refused_with_both_digests(home: Path) -> None:
    quick(home, "kd-cache ingest rows --out data/less --k-core 4")
    quick(home, "kd-cache plan --data data/less --batch-size 64")
    digests = [
        read_manifest(home / "data" / name, "dataset").digest[:19] for name in ("toys", "less")
    ]
    for line in (
        "kd-teacher evaluate tuned/toys/unisrec --data data/less",
        "kd-cache plan --data data/less --cache cache/x --dry-run --teacher tuned/toys/unisrec",
        f"kd-student evaluate {RUN} --cache cache/less",
    ):
        refused(home, line, STORE, *digests)


def retune(home: Path) -> None:
    """Another teacher under the same name, sealed as it should be."""
    from teachers.folder import load_folder, save_folder

    folder = home / "tuned/toys/unisrec"
    weights, config, _ = load_folder(folder)
    del config["weights"]
    save_folder(folder, {name: value * 2 for name, value in weights.items()}, config)


def test_scores_of_a_teacher_that_was_tuned_anew_are_refused_with_both_digests(home: Path) -> None:
    settings = read_manifest(home / "cache/toys/scores/unisrec", "scores").settings
    retune(home)
    done = refused(home, "kd-cache build --teacher unisrec", STORE, "[scores.exists]", "--name")
    assert f"teacher_digest '{settings['teacher_digest']}' there, 'sha256:" in done.err


def test_unfinished_scores_of_another_teacher_are_refused_by_name(home: Path) -> None:
    scores = home / "cache/toys/scores"
    manifest = read_manifest(scores / "unisrec", "scores")
    shutil.rmtree(scores / "unisrec")
    work = scores / ".work-unisrec"
    work.mkdir()
    begun = {"parents": manifest.parents, "settings": manifest.settings}
    (work / "identity.json").write_bytes(canonical_json(begun) + b"\n")
    retune(home)
    words = ("cache/toys/scores/.work-unisrec", "teacher_digest", "[scores.foreign_work]")
    refused(home, "kd-cache build --teacher unisrec", STORE, *words)


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("weights.safetensors", flip),
        ("weights.safetensors", lambda path: path.write_bytes(b"")),
        ("weights.safetensors", Path.unlink),
        ("config.json", lambda path: path.write_bytes(b"{}")),
        ("config.json", lambda path: path.write_bytes(b"")),
    ],
    ids=["flipped", "emptied", "gone", "no-config", "empty-config"],
)
def test_a_damaged_teacher_is_refused_by_name(
    home: Path, name: str, harm: Callable[[Path], object]
) -> None:
    shutil.rmtree(home / "cache/toys/scores/unisrec")
    harm(home / "tuned/toys/unisrec" / name)
    for line in (
        "kd-cache build --teacher unisrec",
        "kd-teacher evaluate unisrec",
        "kd-cache plan --cache cache/new --dry-run --teacher tuned/toys/unisrec",
    ):
        refused(home, line, STORE, f"tuned/toys/unisrec/{name}: ", "[teacher.damaged]")


def tampered(path: Path) -> None:
    """A number changed in a file that is still good JSON."""
    record = json.loads(path.read_bytes())
    record["test"] = "fine"
    path.write_bytes(canonical_json(record))


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("run.json", lambda path: path.write_bytes(b"")),
        ("run.json", lambda path: path.write_bytes(path.read_bytes()[:-20])),
        ("run.json", lambda path: path.write_bytes(b"[" * 100_000)),
        ("run.json", lambda path: path.write_bytes(b"{}")),
        ("run.json", lambda path: path.write_bytes(b"[]")),
        ("run.json", tampered),
        ("test_ranks.npy", flip),
        ("test_ranks.npy", Path.unlink),
        ("model.safetensors", flip),
        ("model.safetensors", Path.unlink),
    ],
)
def test_a_damaged_run_is_refused_by_name(
    home: Path, name: str, harm: Callable[[Path], object]
) -> None:
    harm(home / RUN / name)
    refused(home, FIT, STORE, f"{RUN}/{name}: ", f"remove {RUN}", "[run.damaged]")


@pytest.mark.parametrize(
    "harm",
    [
        flip,
        lambda path: path.write_bytes(path.read_bytes()[:-9]),
        lambda path: path.write_bytes(b""),
    ],
    ids=["flipped", "cut", "emptied"],
)
def test_a_damaged_student_is_not_evaluated(home: Path, harm: Callable[[Path], object]) -> None:
    harm(home / RUN / "model.safetensors")
    refused(home, f"kd-student evaluate {RUN}", STORE, f"{RUN}/model.safetensors: ")


def test_weights_that_are_no_student_are_not_evaluated(home: Path) -> None:
    shutil.copy(home / "tuned/toys/unisrec/weights.safetensors", home / RUN / "model.safetensors")
    refused(home, f"kd-student evaluate {RUN}", STORE, "[model.unknown]")


def test_verify_lists_every_finding_and_the_last_line_counts_them(home: Path) -> None:
    store = home / "cache/toys"
    flip(store / "scores/unisrec/scores.zarr/c.0.0.0")
    (store / "plan/plan.parquet").unlink()
    (store / "notes.txt").touch()
    done = quick(home, "kd-cache verify", expect=STORE)
    assert [line.partition("cache/toys/")[2].partition(": ")[0] for line in done.lines[:-1]] == [
        "notes.txt",
        "plan/plan.parquet",
        "scores/unisrec/scores.zarr/c.0.0.0",
    ]
    assert done.lines[-1] == "kd-cache: cache/toys: 3 findings, listed above.  [store.damaged]"


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        (
            "[kd-student.fit]\nepoch = 3",
            "epoch in [kd-student.fit] is not known; known are alpha, batch-size, ",
        ),
        (
            "[kd-student.train]\nepochs = 3",
            "[kd-student.train] is not known; known are compare, evaluate, export, fit",
        ),
        (
            "[kd-stundet.fit]\nepochs = 3",
            "[kd-stundet] is not known; known are kd-cache, kd-student,",
        ),
        ("epochs = 3", "[epochs] is not known"),
        ("[kd-student]\nfit = 3", "[kd-student.fit] is not known"),
        ("[kd-student.fit]\nepochs = [3]", "epochs in [kd-student.fit] is [3], one value"),
        (
            '[kd-student.fit]\nteacher = "unisrec"',
            "teacher in [kd-student.fit] is 'unisrec', a list",
        ),
        (
            '[kd-student.fit]\ncompare = "yes"',
            "compare in [kd-student.fit] is 'yes', true or false",
        ),
        ("[kd-student.fit]\nepochs = true", "epochs in [kd-student.fit] is True, one value"),
        ('[kd-student.fit]\nepochs = "three"', "'--epochs'"),
        ('[kd-student.fit]\nkl = "both"', "'both' is not one of 'teacher-student'"),
        ("[kd-student.fit\n", "kd.toml: cannot be read"),
        ("\xff", "kd.toml: cannot be read"),
    ],
)
def test_a_mistake_in_kd_toml_is_named(home: Path, text: str, fragment: str) -> None:
    (home / "kd.toml").write_text(text, encoding="latin-1")
    refused(home, "kd-student fit --cache cache/toys", USAGE, fragment)
