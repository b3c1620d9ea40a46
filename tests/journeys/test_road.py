"""The commands of the README, one after the other, on a shop that a test can afford."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from tests.fakes import tree
from tests.journeys.conftest import ROAD, Road
from tests.journeys.shell import cells, quick, typed

FIT = "kd-student fit --cache cache/toys --epochs 1 --hidden 16 --threads 1"
METRICS = ["recall@5", "recall@10", "recall@20", "ndcg@5", "ndcg@10", "ndcg@20"]


def printed(text: str) -> dict[str, dict[str, float]]:
    """part -> metric -> value, of a table that has a row a part."""
    head, *rows = cells(text)
    return {row[0]: dict(zip(head[1:], map(float, row[1:]), strict=True)) for row in rows}


def record(run: Path) -> dict:
    return json.loads((run / "run.json").read_bytes())


def gains(ranks: np.ndarray, metric: str) -> np.ndarray:
    """Each user's part of a metric, by its definition: one relevant item at `rank`."""
    name, cutoff = metric.split("@")
    return np.array(
        [
            0.0 if rank > int(cutoff) else 1.0 if name == "recall" else 1 / np.log2(rank + 1)
            for rank in ranks.tolist()
        ]
    )


def test_the_words_of_the_design_work_as_they_stand(road: Road, home: Path) -> None:
    assert ROAD["build"] == "kd-cache build --teacher unisrec"
    assert (road.store / "scores/unisrec/manifest.json").is_file()
    shutil.rmtree(home / "runs")
    (home / "kd.toml").write_text("[kd-student.fit]\nepochs = 2\nthreads = 1\n")
    done = typed(home, "kd-student fit --cache cache/toys")
    assert done.out == road.said["fit"].out
    assert cells(done.out)[0] == ["", "SASRec distilled"]


def test_each_step_names_the_next_one(road: Road) -> None:
    """Typing what is said after `next:`, and nothing else, leads from a sample to the table."""
    hints = {name: done.lines[-1].removeprefix("next: ") for name, done in road.said.items()}
    assert hints == {
        "sample": "kd-cache ingest rows --out data/rows",
        "ingest": "kd-cache plan --data data/toys",
        "plan": "kd-teacher tune unisrec --data data/toys",
        "tune": "kd-cache build --teacher unisrec --cache cache/toys",
        "build": "kd-student fit --cache cache/toys --compare",
        "fit": "kd-student evaluate runs/toys/sasrec-distilled/seed-0",
    }
    quick(road.path, hints["fit"])


def test_everything_that_is_printed_fits_80_columns(road: Road) -> None:
    more = [
        quick(road.path, line)
        for line in ("kd-cache show", "kd-cache verify", "kd-cache plan --dry-run")
    ]
    for done in [*road.said.values(), *more]:
        for line in (done.out + done.err).splitlines():
            assert len(line) <= 80, line


def test_an_epoch_is_a_line_in_a_log(road: Road) -> None:
    lines = [line for line in road.said["fit"].lines if ": epoch " in line]
    stages = ["stage 1/4", "stage 2/4", "stage 3/4", "stage 4/4", "round 1", "round 1"]
    history = record(road.run)["history"]
    assert len(lines) == len(history) == len(stages)
    for number, (line, stage, epoch) in enumerate(zip(lines, stages, history, strict=True), 1):
        assert line.startswith(f"distilled: epoch {number}, {stage}, ce {epoch['ce']:.3f}, ")
        assert f"ndcg@10 {epoch['validation']:.4f}" in line


def test_compare_prints_base_student_change_and_p_over_seeds(home: Path) -> None:
    done = quick(home, f"{FIT} --compare --seeds 2 --out two")
    head, *rows = cells(done.out)
    assert head == ["", "SASRec base", "SASRec distilled", "change", "p"]
    assert [row[0] for row in rows] == [*METRICS, "validation ndcg@10"]
    assert "mean ± standard deviation of 2 seeds; p: paired t-test over users" in done.out
    kinds = ("base", "distilled")
    runs = {kind: [home / f"two/sasrec-{kind}/seed-{seed}" for seed in (0, 1)] for kind in kinds}
    for kind, shown in zip(kinds, rows.pop()[1:], strict=False):
        values = [record(run)["validation"]["ndcg@10"] for run in runs[kind]]
        assert shown.startswith(f"{sum(values) / 2:.4f} ±")
    for metric, *told in rows:
        users = {}
        for kind, shown in zip(kinds, told, strict=False):
            parts = [gains(np.load(run / "test_ranks.npy"), metric) for run in runs[kind]]
            values = [part.mean() for part in parts]
            # of two numbers the standard deviation is |a - b| / sqrt(2)
            spread = abs(values[0] - values[1]) / np.sqrt(2)
            assert shown == f"{np.mean(values):.4f} ±{spread:.4f}"
            users[kind] = (parts[0] + parts[1]) / 2
        before, after = users["base"].mean(), users["distilled"].mean()
        p = stats.ttest_rel(users["distilled"], users["base"]).pvalue
        assert told[2] == f"{(after - before) / before:+.1%}"
        assert float(told[3]) == pytest.approx(p, abs=0.0005)


def test_base_and_student_differ_by_teachers_and_stages_alone(home: Path) -> None:
    quick(home, f"{FIT} --compare --out two")
    base, ours = (record(home / f"two/sasrec-{kind}/seed-0") for kind in ("base", "distilled"))
    stages = [run["identity"].pop("train.curriculum") for run in (base, ours)]
    assert stages == [False, True]
    shared = {key: value for key, value in ours["identity"].items() if key in base["identity"]}
    assert shared == base["identity"]
    more = ours["identity"].keys() - base["identity"].keys()
    assert {key.partition(".")[0] for key in more} == {"join", "scores"}
    assert all(epoch["kd"] == 0 for epoch in base["history"])
    assert all(epoch["kd"] > 0 for epoch in ours["history"])


def test_the_base_needs_no_teacher(home: Path) -> None:
    shutil.rmtree(home / "cache/toys/scores/unisrec")
    done = quick(home, f"{FIT} --no-distill --out alone")
    assert cells(done.out)[0] == ["", "SASRec base"]
    assert [path.name for path in (home / "alone").iterdir()] == ["sasrec-base"]


def test_another_student_learns_from_the_same_store_and_is_judged(home: Path) -> None:
    done = quick(home, f"{FIT} --student gru4rec --compare --inner 12")
    assert cells(done.out)[0] == ["", "GRU4Rec base", "GRU4Rec distilled", "change", "p"]
    run = "runs/toys/gru4rec-distilled/seed-0"
    assert done.lines[-1] == f"next: kd-student evaluate {run}"
    identity = record(home / run)["identity"]
    assert [identity["student"], identity["student.inner"]] == ["gru4rec", 12]
    found = printed(quick(home, f"kd-student evaluate {run}").out)["test"]
    for metric, value in record(home / run)["test"].items():
        assert found[metric] == pytest.approx(value, abs=5e-5)


def test_evaluate_finds_again_what_fit_found(road: Road) -> None:
    line = "kd-student evaluate runs/toys/sasrec-distilled/seed-0"
    found = record(road.run)
    for part, key in (("test", "test"), ("valid", "validation")):
        shown = printed(quick(road.path, f"{line} --part {part}").out)
        assert shown == {part: {name: round(value, 4) for name, value in found[key].items()}}
    assert quick(road.path, line).out == quick(road.path, f"{line} --part test").out
    fitted = {row[0]: float(row[1]) for row in cells(road.said["fit"].out)[1:]}
    assert fitted.pop("validation ndcg@10") == round(found["validation"]["ndcg@10"], 4)
    assert fitted == printed(quick(road.path, line).out)["test"]


def test_masking_the_history_can_only_help(road: Road) -> None:
    line = "kd-student evaluate runs/toys/sasrec-distilled/seed-0"
    plain, masked = quick(road.path, line), quick(road.path, f"{line} --mask-history")
    assert "history not masked" in plain.out
    assert "history masked" in masked.out
    before, after = printed(plain.out)["test"], printed(masked.out)["test"]
    assert all(after[name] >= before[name] for name in METRICS)
    assert after != before


def test_a_tuned_teacher_evaluates_to_what_tuning_measured(road: Road) -> None:
    again = quick(road.path, "kd-teacher evaluate unisrec")
    assert cells(again.out) == cells(road.said["tune"].out)
    assert printed(again.out).keys() == {"valid", "test"}


def test_show_tells_counts_sizes_and_digests(road: Road) -> None:
    done = quick(road.path, "kd-cache show")
    shown = {row[0]: row[1:] for row in cells(done.out)}
    planned = {row[0]: row[1:] for row in cells(road.said["plan"].out)}
    for name in ("users", "items", "instances"):
        assert shown[name] == planned[name]
    assert shown["batch size"] == ["128"]
    manifest = json.loads((road.store / "scores/unisrec/manifest.json").read_bytes())
    quality = manifest["settings"]["quality"]
    assert shown["valid ndcg@10"] == [f"{quality['ndcg@10']:.4f}"]
    assert shown["test ndcg@10"] == [f"{quality['test ndcg@10']:.4f}"]
    assert f"sha256:{shown['sha256'][0]}" in road.said["build"].out


def test_a_store_without_scores_says_how_to_get_some(home: Path) -> None:
    shutil.rmtree(home / "cache/toys/scores/unisrec")
    assert "none yet; `kd-cache build --teacher unisrec`" in quick(home, "kd-cache show").out


def test_factors_let_a_student_choose_its_batches(home: Path) -> None:
    """Added to a store that has the scores; fit asks for them by the command to type, and goes on without a teacher."""
    done = quick(home, f"{FIT} --batch-size 100 --out fresh", expect=2)
    line = "kd-cache build --teacher unisrec --keep factors --cache cache/toys"
    assert f"no factors of unisrec, which fresh batches must have; run `{line}`" in done.err
    before = tree(home / "cache/toys")
    built = quick(home, line)
    assert built.out.startswith("cache/toys/factors/unisrec: ")
    after = tree(home / "cache/toys")
    assert before.items() < after.items()
    assert all(path.startswith("factors") for path in after.keys() - before.keys())
    assert "built before" in quick(home, line).out
    shown = cells(quick(home, "kd-cache show").out)
    (plan,) = (home / "cache/toys/plan").glob("manifest.json")
    instances = json.loads(plan.read_bytes())["counts"]["instances"]
    sizes = {row[0]: row[1] for row in shown if row[0] in ("scores", "factors")}
    each = [float(row[1].split()[0]) for row in shown if row[0] == "an instance"]
    assert sizes.keys() == {"scores", "factors"}
    for kind, told in zip(("scores", "factors"), each, strict=True):
        files = [p for p in (home / f"cache/toys/{kind}").rglob("*") if p.name != "manifest.json"]
        total = sum(path.stat().st_size for path in files if path.is_file())
        assert told == pytest.approx(total / instances / (1 if told >= 10 else 1000), rel=0.06)
    asked = quick(home, "kd-cache verify --sample 2 --teacher unisrec")
    assert "2 batches of unisrec asked again" in asked.out

    shutil.rmtree(home / "tuned")
    shutil.rmtree(home / "cache/toys/scores/unisrec")
    quick(home, f"{FIT} --batch-size 100 --kd-items all --no-curriculum --out fresh")
    run = record(home / "fresh/sasrec-distilled/seed-0")
    assert [epoch["stage"] for epoch in run["history"]] == ["fresh"]
    assert run["history"][0]["kd"] > 0
    added = {"train.batch_size": 100, "join.items": "all"}
    assert added.items() <= run["identity"].items()
    assert "factors.unisrec" in run["identity"]
    # the plan's batches, without a word of the new settings, take factors where there are no scores
    quick(home, f"{FIT} --out planned")
    run = record(home / "planned/sasrec-distilled/seed-0")
    assert [epoch["stage"] for epoch in run["history"]][-1] == "round 1"
    assert added.keys().isdisjoint(run["identity"])
    taken = f"{FIT} --fresh-batches --out planned"
    assert "train.batch_size" in quick(home, taken, expect=3).err
    for odd in ("--batch-size 9 --no-fresh-batches", "--ce in-batch --kd-items all"):
        assert "leave one away" in quick(home, f"{FIT} {odd}", expect=2).err


def test_scores_and_factors_of_one_teacher_teach_alike(home: Path) -> None:
    """Trained from either, on the same batches, with the same seed: the losses of every epoch agree within 1e-3."""
    line = "kd-cache build --teacher unisrec --keep both --name twice"
    assert len(quick(home, line).out.splitlines()) == 2
    scores = home / "cache/toys/scores/twice"
    histories = []
    for out in ("one", "other"):
        quick(home, f"{FIT} --teacher twice --out {out}")
        histories.append(record(home / out / "sasrec-distilled/seed-0")["history"])
        shutil.rmtree(scores, ignore_errors=True)
    for one, other in zip(*histories, strict=True):
        assert one["kd"] == pytest.approx(other["kd"], abs=1e-3)
        assert one["ce"] == pytest.approx(other["ce"], abs=1e-3)


def test_verify_hashes_and_asks_again(road: Road) -> None:
    assert quick(road.path, "kd-cache verify").out == "cache/toys: sound; every byte hashed\n"
    asked = quick(road.path, "kd-cache verify --sample 2 --teacher unisrec")
    assert "2 batches of unisrec asked again" in asked.out
    every = quick(road.path, "kd-cache verify --sample 999 --teacher unisrec")
    assert "8 batches of unisrec asked again" in every.out  # 4 buckets of one batch, 4 in the round


def test_verify_finds_out_another_teacher(home: Path) -> None:
    (vectors,) = (home / "data/toys/vectors").iterdir()
    tune = "kd-teacher tune unisrec --data data/toys --epochs 1 --threads 1 --seed 1"
    quick(home, f"{tune} --vectors {vectors.name} --out tuned/other")
    done = quick(home, "kd-cache verify --sample 2 --teacher tuned/other", expect=3)
    assert done.lines[0].startswith("kd-cache verify: cache/toys/scores/unisrec: batch ")
    assert all("nats" in line for line in done.lines[:2])
    assert "2 findings" in done.lines[2]


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("plan", "this very plan"),
        ("tune", "tuned before"),
        ("build", "built before"),
        ("fit", "trained before, nothing to do"),
    ],
)
def test_the_same_command_again_changes_no_byte_and_says_so(
    home: Path, name: str, word: str
) -> None:
    before = tree(home)
    done = quick(home, ROAD[name])
    assert word in done.out + done.err
    assert ": epoch " not in done.err
    assert tree(home) == before


def test_a_dry_run_writes_nothing_and_tells_what_asking_would_cost(home: Path) -> None:
    before = tree(home)
    line = "kd-cache plan --data data/toys --batch-size 64 --cache cache/other --dry-run"
    shown = {row[0]: row[1] for row in cells(quick(home, line).out)}
    assert shown["time per teacher"] == "unknown; add --teacher NAME once one is tuned"
    shown = {
        row[0]: row[1] for row in cells(quick(home, f"{line} --teacher tuned/toys/unisrec").out)
    }
    assert shown["time per teacher"].startswith("about ")
    assert shown["time per teacher"].endswith("(unisrec)")
    assert tree(home) == before


def test_kd_toml_sets_defaults_and_flags_win(home: Path) -> None:
    (home / "kd.toml").write_text(
        '[kd-student.fit]\ncache = "cache/toys"\nout = "mine"\nhidden = 16\nepochs = 1\nthreads = 1\n'
        'kd-weight = 2.5\nepsilon = 0.5\nno-distill = true\nteacher = ["unisrec"]\n'
        "[kd-cache.plan]\nbatch-size = 64\n"
    )
    quick(home, "kd-student fit")
    identity = record(home / "mine/sasrec-base/seed-0")["identity"]
    assert (identity["student.hidden"], identity["train.kd_weight"]) == (16, 2.5)
    quick(home, "kd-student fit --distill --kd-weight 3 --seed 4")
    identity = record(home / "mine/sasrec-distilled/seed-4")["identity"]
    assert (identity["student.hidden"], identity["train.kd_weight"]) == (16, 3)
    assert identity["join.epsilon"] == 0.5
    shown = {row[0]: row[1] for row in cells(quick(home, "kd-cache plan --dry-run").out)}
    assert shown["batches"].endswith("of up to 64 instances")


def test_an_ingest_tells_what_it_dropped(road: Road) -> None:
    shown = {row[0]: row[1:] for row in cells(road.said["ingest"].out)}
    read, kept = (int(value.replace(",", "")) for value in shown["interactions"])
    assert f"interactions dropped: {read - kept} by the 5-core" in road.said["ingest"].out
    assert kept < read
    assert "without a text" not in road.said["ingest"].out
    manifest = json.loads((road.store / "dataset/manifest.json").read_bytes())
    assert manifest["counts"]["interactions"] == kept


def test_items_without_a_text_are_no_interactions_that_were_dropped(home: Path) -> None:
    (home / "log.csv").write_text("user,item,time\nu,a,1\nu,b,2\n")
    done = quick(home, "kd-cache ingest log.csv --out data/bare --k-core 0")
    assert done.out.splitlines()[-1] == "2 items kept without a text"
    assert "dropped" not in done.out


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("kd-cache push cache/toys ''", "share.bad_url"),
        (f"kd-cache push cache/toys @sha256:{'a' * 64}", "share.bad_url"),
        ("kd-cache pull ''", "share.bad_url"),
        ("kd-cache pull .", "share.no_name"),
        ("kd-cache pull cache/toys --cache .", "share.no_name"),
        ("kd-cache pull cache/toys --cache ''", "share.no_name"),
        ("kd-cache pull cache/toys --cache /", "share.no_name"),
    ],
)
def test_an_empty_path_is_not_the_folder_one_stands_in(home: Path, line: str, code: str) -> None:
    before = tree(home)
    done = quick(home, line, expect=2)
    assert len(done.lines) == 1
    assert done.err.endswith(f"  [{code}]\n")
    assert tree(home) == before
