"""A later dataset beside an old one: rows keep their numbers, the plan goes on, other pasts are refused."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.errors import StoreError
from pipeline.curriculum import PlanSettings, make_plan
from pipeline.extend import open_or_create
from pipeline.grow import _between, join
from pipeline.grown import grow
from tests.later import dataset_of, later_of, log_of, sequences, store_of


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Power does not fail here, so nobody waits for the disk."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def joined(tmp_path, before, after, **how):
    old = dataset_of(tmp_path / "old", before)
    return old, join(old, dataset_of(tmp_path / "new", after, **how))


def test_old_rows_keep_their_numbers_and_new_ones_follow(tmp_path):
    # the later state numbers its users and items otherwise: c a b d, and y before x
    before = {"x": ["a", "b", "a"], "y": ["c", "b"]}
    after = {"z": ["c", "d", "a"], "y": ["c", "b", "b", "d"], "x": ["a", "b", "a"]}
    old, growth = joined(tmp_path, before, after)
    assert (growth.new_users, growth.new_items, growth.new_interactions) == (1, 1, 5)
    made = growth.write(tmp_path / "made")
    assert made.items["item"].to_pylist() == ["a", "b", "c", "d"]
    assert made.items["title"].to_pylist() == ["the a", "the b", "the c", "the d"]
    assert sequences(made) == {"x": after["x"], "y": after["y"], "z": after["z"]}
    assert list(sequences(made)) == ["x", "y", "z"]
    assert made.rows_of(old.digest) == 3
    assert made.rows_of(made.digest) == 4
    assert made.rows_of("sha256:" + "0" * 64) is None


def test_an_extension_of_an_extension_knows_both_ancestors(tmp_path):
    first, growth = joined(tmp_path, {"x": ["a", "b", "a"]}, {"x": ["a", "b", "a", "c"]})
    second = growth.write(tmp_path / "second")
    again = join(second, dataset_of(tmp_path / "later", {"x": ["a", "b", "a", "c", "d"]}))
    third = again.write(tmp_path / "third")
    assert [third.rows_of(one.digest) for one in (first, second, third)] == [2, 3, 4]


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), rounds=st.integers(1, 2), kind=st.sampled_from(["prefixes", "last"]))  # fmt: skip
def test_the_old_plan_stands_at_the_beginning_of_the_new_one(tmp_path_factory, seed, rounds, kind):
    folder = tmp_path_factory.mktemp("grown")
    log = log_of(seed)
    before = store_of(folder / "plain", log)
    plan = make_plan(
        folder / "plan",
        before.dataset,
        PlanSettings(batch_size=5, buckets=3, rounds=rounds, instances=kind, seed=3),
    )
    old = type(before).create(folder / "old", before.dataset, plan)
    growth = join(old.dataset, dataset_of(folder / "new", later_of(log, seed + 1)))
    store = open_or_create(folder / "out", old, grow(old, growth))
    ours, theirs = store.plan, old.plan
    for index in range(len(theirs)):
        a, b = ours[index], theirs[index]
        assert (a.round, a.bucket) == (b.round, b.bucket)
        for part in ("instances", "users", "ends", "items", "columns"):
            assert np.array_equal(getattr(a, part), getattr(b, part))
        # and the histories are of the same items, by the same rows
        for x, y in zip(
            store.dataset.histories(a.users, a.ends),
            old.dataset.histories(b.users, b.ends),
            strict=True,
        ):
            assert np.array_equal(x, y)
    # every instance of the new data stands once in the curriculum round and once in each standard round
    wanted = set(zip(*(x.tolist() for x in store.dataset.training_instances(kind)), strict=True))
    there = list(zip(ours.instance_users.tolist(), ours.instance_ends.tolist(), strict=True))
    first = theirs.num_instances
    assert set(there[first:]) == wanted - set(there[:first])
    if kind == "prefixes":
        assert set(there) == wanted
    for number in range(rounds + 1):
        batches = ours.stage(3) if number == 0 else ours.round(number)
        met = np.concatenate([ours[int(index)].instances for index in batches])
        assert sorted(met.tolist()) == list(range(len(there)))
    # no batch holds old and new instances
    assert min((ours[k].instances.min() for k in range(len(theirs), len(ours))), default=first) >= first  # fmt: skip
    # buckets of the increment are as equal in size as those of any plan
    sizes = [
        sum(
            len(ours[int(k)].instances)
            for k in ours.stage(3)
            if ours.buckets[k] == b and k >= len(theirs)
        )
        for b in range(3)
    ]
    assert max(sizes) - min(sizes) <= 1
    assert ours.manifest.settings == {**theirs.manifest.settings, "extends": theirs.digest}


def test_new_instances_are_ordered_by_what_is_popular_now(tmp_path):
    old = store_of(tmp_path / "old", {"u": ["a", "b", "d"], "w": ["d", "e", "d", "e"]})
    plan = make_plan(tmp_path / "plan", old.dataset, PlanSettings(buckets=2, batch_size=2))
    old = type(old).create(tmp_path / "store", old.dataset, plan)
    # of four items two are trained on, of three one: the only instance is (w, 1)
    assert plan.num_instances == 1
    after = {"u": ["a", "b", "d", "e", "e"], "w": ["d", "e", "d", "e"], "v": ["a", "d", "a", "a"]}
    # training parts now: u = a b d, w = d e, v = a d; counts a 2, b 1, d 3, e 1: pop 2/3, 1/3, 1, 1/3; N_max 2
    # u at 1 (a): 1/2 - 2/3 = -1/6; u at 2 (a b): 1 - 1/2 = 1/2; v at 1 (a): -1/6. Ties by id: u1, v1 before u2
    grown = grow(old, join(old.dataset, dataset_of(tmp_path / "new", after)))
    users, ends = grown.instances
    told = list(zip(users.tolist(), ends.tolist(), strict=True))
    assert told == [(1, 1), (0, 1), (0, 2), (2, 1)]
    buckets = [
        {told[k] for k in batch.instances}
        for batch in grown.batches[grown.first_batch :]
        if batch.round == 0
    ]
    assert buckets == [{(0, 1), (2, 1)}, {(0, 2)}]


def test_validation_moves_on_and_what_was_trained_on_never_becomes_it(tmp_path):
    """Of three items the last two are held out; with two more the same two are trained on.

    Of two items the second is trained on. A third would make it the validation item, so the third waits for a fourth.
    """
    before = {"x": ["a", "b", "c"], "y": ["a", "b"], "z": ["c", "a"]}
    after = {"x": ["a", "b", "c", "d", "a"], "y": ["a", "b", "c"], "z": ["c", "a", "b", "d"]}
    _, growth = joined(tmp_path, before, after)
    assert growth.waiting == 1
    made = growth.write(tmp_path / "made")
    assert sequences(made) == {"x": after["x"], "y": ["a", "b"], "z": after["z"]}
    training = set(zip(*(x.tolist() for x in made.training_instances()), strict=True))
    # (x, 1) and (x, 2) are new; (y, 1) and (z, 1) were there
    assert training == {(0, 1), (0, 2), (1, 1), (2, 1)}
    # with the fourth it is taken: nothing was lost
    last = join(made, dataset_of(tmp_path / "last", {**after, "y": ["a", "b", "c", "a"]}))
    assert last.waiting == 0
    assert sequences(last.write(tmp_path / "end"))["y"] == ["a", "b", "c", "a"]


def test_what_the_k_core_let_in_later_stays_out_of_histories_that_were_read(tmp_path):
    """d came too seldom for the first dataset. x bought it between b and a, and once more after them; y before a."""
    before = {"x": ["a", "b", "a"], "y": ["a", "b", "a", "b"]}
    after = {"x": ["a", "b", "d", "a", "d", "e"], "y": ["d", "a", "b", "a", "d", "b", "a"], "z": ["d", "e"]}  # fmt: skip
    _, growth = joined(tmp_path, before, after)
    assert growth.late == 3
    made = growth.write(tmp_path / "made")
    wanted = {"x": ["a", "b", "a", "d", "e"], "y": ["a", "b", "a", "b", "a"], "z": ["d", "e"]}
    assert sequences(made) == wanted
    # the next time d is an item of the old dataset; what stayed out stays out
    again = join(made, dataset_of(tmp_path / "again", {**after, "z": ["d", "e", "a", "b"]}))
    assert again.late == 3
    assert sequences(again.write(tmp_path / "end")) == {**wanted, "z": ["d", "e", "a", "b"]}


@given(st.data())
def test_leaving_out_what_was_put_inside_gives_the_old_sequences_back(data):
    """Elements below 3 are old; 9 is put anywhere before the last of them, anything may follow."""
    before = data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=6))
    after, inside = [], []
    for row in before:
        for _ in range(data.draw(st.integers(0, 2))):
            inside.append(len(after))
            after.append(9)
        after.append(row)
    after += data.draw(st.lists(st.integers(0, 9), max_size=4))
    assert _between(before, after, 3) == inside


BEFORE = {"x": ["a", "b", "a"], "y": ["c", "b", "a"]}


@pytest.mark.parametrize(
    ("after", "how", "code", "words"),
    [
        ({"x": ["a", "b", "a", "c"]}, {}, "users_gone", "1 user of .* not there \\('y'\\)"),
        ({"x": ["a", "b", "a"], "y": ["a", "b", "a"]}, {}, "items_gone", "1 item of .* \\('c'\\)"),
        ({"x": ["b", "a", "a"], "y": ["c", "b", "a"]}, {}, "history_changed", "1 user .* \\('x'\\)"),
        ({"x": ["a", "b", "c", "a"], "y": ["c", "b", "a"]}, {}, "history_changed", "1 user .*'x'"),
        ({"x": ["a", "b"], "y": ["c", "b"]}, {}, "history_changed", "2 users .* \\('x', 'y'\\)"),
        (BEFORE, {"titles": {"b": "B"}}, "items_changed", "another title .*'b'"),
        ({**BEFORE, "z": ["a"]}, {"anonymous": True}, "anonymous", "ids were left out"),
        ({**BEFORE, "z": ["a"]}, {"max_length": 9}, "other_length", "--max-length 4"),
        (BEFORE, {}, "nothing_new", "later state"),
    ],
)  # fmt: skip
def test_what_is_no_later_state_of_the_same_log_is_refused(tmp_path, after, how, code, words):
    with pytest.raises(StoreError, match=words) as caught:
        joined(tmp_path, BEFORE, after, **how)
    assert caught.value.code == f"extend.{code}"


def test_an_anonymous_store_is_refused(tmp_path):
    old = dataset_of(tmp_path / "old", BEFORE, anonymous=True)
    with pytest.raises(StoreError, match="ids were left out") as caught:
        join(old, dataset_of(tmp_path / "new", {**BEFORE, "z": ["a"]}))
    assert caught.value.code == "extend.anonymous"


def test_only_the_first_three_ids_are_shown(tmp_path):
    before = {f"u{k}": ["a", "b", "a"] for k in range(5)}
    with pytest.raises(StoreError, match=r"5 users .* \('u0', 'u1', 'u2', \.\.\.\)"):
        joined(tmp_path, before, {user: ["b", *bought] for user, bought in before.items()})
