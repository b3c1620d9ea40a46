"""P24: where a signature is asked for, a store that its owner has not signed is refused, with status 3 and before it is seen.

Every attack is on a published folder that somebody else can write to; each is met by `kd-cache pull`, `kd-cache verify` and
`kd-student fit --cache URL`, through their own entries. The sound store passes all three, so that a refusal means something.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from model_signing import hashing, signing

from cache.digest import canonical_json
from cache.manifest import read_manifest
from cache.signature import SIGNATURE
from cache.store import Store
from pipeline.build import build
from pipeline.sign import sign_store
from tests.fakes import TableTeacher, tiny_store, tree
from tests.journeys.shell import Done
from tests.keys import Keys, said
from tests.promises.ledger import all_kept

#: of the signature itself, not of what happens to be wrong besides
CODES = re.compile(r"\[(signature\.\w+|store\.(newer_format|not_a_file|unsafe_name))\]$")
STATEMENT = "ckd-mdsr-store.json"


class Ground:
    """A signed store, another one of the same owner, keys, and a folder where both are published."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.owner, self.thief = Keys.make(path, "owner"), Keys.make(path, "thief")
        for name, seed in (("toys", 0), ("other", 1)):
            store = tiny_store(path / name, batch_size=4 + seed)
            build(TableTeacher("one"), store, quality={"ndcg@10": 0.05})
            build(TableTeacher("two", seed=1), store, keep="both")
            self.sign(store.path)

    def sign(self, store: Path, keys: Keys | None = None) -> None:
        sign_store(store, (keys or self.owner).private, lambda done, total: None)

    def bundle(self, content: dict[str, bytes], ignored: tuple[str, ...] = ()) -> dict[str, object]:
        """What the owner's key signs when it signs some other folder."""
        folder = self.path / "signed-by-owner"
        folder.mkdir()
        for name, data in content.items():
            (folder / name).write_bytes(data)
        config = hashing.Config().set_ignored_paths(paths=ignored, ignore_git_paths=False)
        out = self.path / "bundle.json"
        signing.Config().set_hashing_config(config).use_elliptic_key_signer(
            private_key=self.owner.private
        ).sign(folder, out)
        shutil.rmtree(folder)
        return json.loads(out.read_text())


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return Ground(tmp_path_factory.mktemp("p24"))


@pytest.fixture
def published(ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place that the attacker can write to; this machine's copies go elsewhere."""
    monkeypatch.setenv("KD_CACHE_DIR", str(tmp_path / "kept"))
    return Path(shutil.copytree(ground.path / "toys", tmp_path / "there" / "toys"))


#: changes what is published; yields a name for each way in which it did
Attack = Callable[[Ground, Path], Iterator[str]]


def written(store: Path, value: dict[str, object]) -> None:
    (store / SIGNATURE).write_bytes(canonical_json(value) + b"\n")


def read(store: Path) -> dict:
    return json.loads((store / SIGNATURE).read_text())


def stripped(ground: Ground, store: Path) -> Iterator[str]:
    (store / SIGNATURE).unlink()
    yield "the signature is taken away"


def anothers(ground: Ground, store: Path) -> Iterator[str]:
    ground.sign(store, ground.thief)
    yield "signed anew with the thief's key"
    stolen, value = read(ground.path / "toys"), read(store)
    value["bundle"]["verificationMaterial"] = stolen["bundle"]["verificationMaterial"]
    written(store, value)
    yield "signed with the thief's key, which is called the owner's"


def of_another_store(ground: Ground, store: Path) -> Iterator[str]:
    shutil.copy(ground.path / "other" / SIGNATURE, store / SIGNATURE)
    yield "the owner's signature of another store"
    value = read(ground.path / "toys")
    value["bundle"] = read(ground.path / "other")["bundle"]
    written(store, value)
    yield "this store's statement with the other's bundle"


def grown(ground: Ground, store: Path) -> Iterator[str]:
    build(TableTeacher("three", seed=2), Store.open(store))
    yield "a score set was added after signing"
    shutil.rmtree(store / "scores" / "three")
    build(TableTeacher("one"), Store.open(store), keep="factors", quality={"ndcg@10": 0.05})
    yield "a factor set was added after signing"


def replaced(ground: Ground, store: Path) -> Iterator[str]:
    shutil.rmtree(store / "scores" / "one")
    build(TableTeacher("one", seed=7), Store.open(store))
    yield "the scores of one name are another teacher's"
    value = read(store)
    value["signed"]["scores"]["one"] = read_manifest(store / "scores" / "one", "scores").digest
    written(store, value)
    yield "and the statement names them"


def renamed(ground: Ground, store: Path) -> Iterator[str]:
    (store / "scores" / "one").rename(store / "scores" / "better")
    yield "a signed set goes by another name"
    shutil.rmtree(store / "factors")
    (store / "scores" / "better").rename(store / "scores" / "one")
    (store / "scores" / "two").rename(store / "scores" / "swap")
    (store / "scores" / "one").rename(store / "scores" / "two")
    (store / "scores" / "swap").rename(store / "scores" / "one")
    yield "two signed sets have changed names"


def edited(ground: Ground, store: Path) -> Iterator[str]:
    whole = read(store)
    for keys in (("dataset",), ("plan",), ("scores", "one"), ("scores", "two"), ("factors", "two")):
        for place in (7, 40, 70):
            value = json.loads(json.dumps(whole))
            inner = value["signed"]
            for key in keys[:-1]:
                inner = inner[key]
            digit = inner[keys[-1]][place]
            inner[keys[-1]] = (
                inner[keys[-1]][:place]
                + ("0" if digit != "0" else "1")
                + inner[keys[-1]][place + 1 :]
            )
            written(store, value)
            yield f"another digit in the digest of {'/'.join(keys)}"
    value = json.loads(json.dumps(whole))
    del value["signed"]["scores"]["two"]
    written(store, value)
    yield "a set is left out of the statement"


def flipped(ground: Ground, store: Path) -> Iterator[str]:
    """One bit in the signed payload, or in the signature itself."""
    whole = read(store)
    envelope = whole["bundle"]["dsseEnvelope"]
    payload, signature = (
        base64.b64decode(text) for text in (envelope["payload"], envelope["signatures"][0]["sig"])
    )
    for place in range(0, len(payload), 31):
        envelope["payload"] = base64.b64encode(_flip(payload, place)).decode()
        written(store, whole)
        yield f"a bit of payload byte {place}"
    envelope["payload"] = base64.b64encode(payload).decode()
    for place in range(0, 65, 5):  # of 68 to 72: the count is the same each run
        envelope["signatures"][0]["sig"] = base64.b64encode(_flip(signature, place)).decode()
        written(store, whole)
        yield f"a bit of signature byte {place}"
    envelope["signatures"] = []
    written(store, whole)
    yield "no signature in the bundle"
    whole["bundle"] = {}
    written(store, whole)
    yield "no bundle"


def misused(ground: Ground, store: Path) -> Iterator[str]:
    """The owner's key signs other things too; none of them may stand for a store."""
    statement, value = canonical_json(read(store)["signed"]), read(store)
    value["bundle"] = ground.bundle({"model.bin": statement})
    written(store, value)
    yield "the same bytes, signed as another file"
    value["bundle"] = ground.bundle({}, ignored=(STATEMENT,))
    written(store, value)
    yield "nothing at all, signed with the statement left out of sight"
    value["bundle"] = ground.bundle({STATEMENT: statement, "model.bin": b"weights"})
    written(store, value)
    yield "the statement among other files"


def garbled(ground: Ground, store: Path) -> Iterator[str]:
    path = store / SIGNATURE
    data = path.read_bytes()
    newer = data.replace(b'"format":1', b'"format":2')
    twins = data.replace(b'"format":1', b'"format":1,"format":1')
    for name, bytes_ in {
        "empty": b"",
        "half": data[: len(data) // 2],
        "not text": b"\xff\xfe\x00",
        "an empty object": b"{}\n",
        "a list": b"[]\n",
        "a newer format": newer,
        "a key twice": twins,
        "spaces": data.replace(b'"format":1', b'"format": 1'),
        "bytes behind it": data + b"\n",
        "nested without end": b"[" * 200_000,
        "two megabytes": b" " * (2 << 20),
        "an unsafe name": data.replace(b'"one":', b'"../one":'),
    }.items():
        assert bytes_ != data
        path.write_bytes(bytes_)
        yield name
    path.unlink()
    path.symlink_to(ground.path / "toys" / SIGNATURE)
    yield "a link to the right one"
    path.unlink()
    path.mkdir()
    yield "a folder"


ATTACKS = [
    stripped,
    anothers,
    of_another_store,
    grown,
    replaced,
    renamed,
    edited,
    flipped,
    misused,
    garbled,
]
FINE = (edited, flipped, garbled)  #: of many small attacks, each is met by one command in turn


def complaint(done: Done, *, seen: bool) -> str:
    """What is wrong with a refusal; empty if nothing is."""
    if done.status != 3:
        return f"status {done.status}: {done.err}{done.out}"
    if seen:
        return "something was published"
    if len(done.lines) != 1 or done.out:
        return f"not one line: {done.err}{done.out}"
    if not CODES.search(done.err):
        return f"refused for something else: {done.err}"
    return ""


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_p24_what_its_owner_has_not_signed_is_refused(attack, ground, published, tmp_path):
    key, home = ground.owner.public, tmp_path / "home"
    home.mkdir()
    outcomes = []
    for name in attack(ground, published):
        before, each = tree(published), len(outcomes) % 3
        lines = (
            f"kd-cache pull {published} --signed-by {key}",
            f"kd-cache verify {published} --signed-by {key}",
            f"kd-student fit --cache file://{published} --signed-by {key}",
        )
        for line in lines[each : each + 1] if attack in FINE else lines:
            done = said(home, line)
            seen = any(home.iterdir()) or (tmp_path / "kept").exists()
            wrong = complaint(done, seen=seen)
            outcomes.append(wrong and f"{name}: {line}: {wrong}")
        assert tree(published) == before
    all_kept("P24", outcomes)


def test_p24_a_key_that_did_not_sign_is_refused(ground, published, tmp_path):
    """The store is sound and signed; it is the reader who trusts somebody else."""
    outcomes = []
    for curve in ("secp256r1", "secp384r1", "secp521r1"):
        stranger = Keys.make(tmp_path, curve, curve=curve)
        for line in ("kd-cache pull", "kd-cache verify", "kd-student fit --cache"):
            where = f"file://{published}" if "verify" not in line else published
            done = said(tmp_path, f"{line} {where} --signed-by {stranger.public}")
            seen = (tmp_path / "cache").exists()
            outcomes.append(complaint(done, seen=seen))
            outcomes.append("" if "signature.invalid" in done.err else done.err)
    all_kept("P24", outcomes)


def test_p24_a_signed_set_that_was_taken_away_is_missed_by_a_whole_pull(
    ground, published, tmp_path
):
    shutil.rmtree(published / "factors")
    outcomes = []
    for line in ("kd-cache pull", "kd-student fit --cache"):
        done = said(tmp_path, f"{line} file://{published} --signed-by {ground.owner.public}")
        outcomes.append(complaint(done, seen=(tmp_path / "cache").exists()))
        outcomes.append("" if "factors/two" in done.err else done.err)
    all_kept("P24", outcomes)


def test_p24_without_the_library_nothing_passes_as_signed(ground, published, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "model_signing"]:
        monkeypatch.setitem(sys.modules, name, None)
    outcomes = []
    for line in ("kd-cache pull", "kd-cache verify", "kd-student fit --cache"):
        where = f"file://{published}" if "verify" not in line else published
        done = said(tmp_path, f"{line} {where} --signed-by {ground.owner.public}")
        outcomes.append(complaint(done, seen=(tmp_path / "cache").exists()))
        outcomes.append("" if "ckd-mdsr[sign]" in done.err else done.err)
    all_kept("P24", outcomes)


def test_p24_a_policy_in_kd_toml_holds_like_the_flag(ground, published, tmp_path):
    """Refused without a flag in sight, and taken once the right key stands there."""
    outcomes = []
    for keys, status in ((ground.thief, 3), (ground.owner, 0)):
        (tmp_path / "kd.toml").write_text(
            "".join(
                f'[{table}]\nsigned-by = "{keys.public}"\n'
                for table in ("kd-cache.pull", "kd-cache.verify", "kd-student.fit")
            )
        )
        for line in (f"kd-cache pull {published}", f"kd-cache verify {published}"):
            done = said(tmp_path, line)
            outcomes.append("" if done.status == status else f"{line}: {done}")
        if status:
            done = said(tmp_path, f"kd-student fit --cache file://{published}")
            outcomes.append(complaint(done, seen=(tmp_path / "cache").exists()))
    assert tree(tmp_path / "cache" / "toys") == tree(published)
    all_kept("P24", outcomes)


@pytest.mark.parametrize("curve", ["secp256r1", "secp384r1", "secp521r1"])
def test_p24_what_its_owner_has_signed_passes(ground, published, tmp_path, curve):
    keys = Keys.make(tmp_path, "owner", curve=curve)
    digests = {name: one for name, one in tree(published).items() if name != SIGNATURE}
    outcomes = []
    for line in (
        f"kd-cache sign {published} --key {keys.private}",
        f"kd-cache verify {published} --signed-by {keys.public}",
        f"kd-cache pull {published} --signed-by {keys.public}",
        f"kd-cache pull {published} --signed-by {keys.public}",  # with nothing left to fetch
        f"kd-cache pull {published} --cache choice --teacher two --signed-by {keys.public}",
        f"kd-cache verify choice --signed-by {keys.public}",
        f"kd-cache verify cache/toys --signed-by {keys.public}",
        f"kd-cache verify --cache choice --signed-by {keys.public}",
    ):
        done = said(tmp_path, line)
        outcomes.append("" if done.status == 0 else f"{line}: {done}")
    assert {n: o for n, o in tree(published).items() if n != SIGNATURE} == digests
    assert tree(tmp_path / "cache" / "toys") == tree(published)
    assert Store.open(tmp_path / "choice").teachers == ["two"]
    all_kept("P24", outcomes)


def _flip(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
