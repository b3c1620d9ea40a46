"""P22: a damaged journal, or temporary files that the dead left, cost work and never change the result."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

import cache.manifest
from cache.errors import StoreError
from cache.store import Store
from cache.verify import verify
from pipeline.build import build
from tests.fakes import TableTeacher, tiny_store, tree
from tests.promises.ledger import all_kept
from tests.promises.stores import SHARD_BYTES, copied, sealed_store, small_build

pytestmark = pytest.mark.timeout(1800)  # of the long attacks

JOURNAL = "scores/.work-table/journal.jsonl"


@pytest.fixture(autouse=True)
def _pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.build.HISTORY_BLOCK", 32)
    monkeypatch.setattr("pipeline.build.FACTOR_BLOCKS", 1)


class StoppedError(Exception):
    pass


class Stops(TableTeacher):
    """Ends the work at its n-th answer about a batch."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def score(self, users_TD, items_CD):
        if self.calls["score"] == self.at:
            raise StoppedError
        return super().score(users_TD, items_CD)


@pytest.fixture
def wanted(memory: Path) -> dict[str, str]:
    return tree(sealed_store(memory / "twin"))


@pytest.fixture
def begun(memory: Path) -> Path:
    """Vectors and one of two shards of the scores are there, with three lines in the journal."""
    path = tiny_store(memory / "begun").path
    per_shard = 11
    with pytest.raises(StoppedError):
        build(Stops(per_shard + 2), Store.open(path), shard_bytes=SHARD_BYTES)
    assert len((path / JOURNAL).read_bytes().splitlines()) == 3
    return path


def gone_on(path: Path, wanted: dict[str, str], what: object) -> str:
    """A complaint unless the build ends in the wanted store."""
    small_build(path)
    odd = sorted(tree(path).items() ^ wanted.items())
    return f"{what}: {odd[:3]}" if odd else ""


def test_a_journal_cut_at_every_byte(memory, begun, wanted, long):
    whole = (begun / JOURNAL).read_bytes()
    ends = [place for place, byte in enumerate(whole) if byte == ord("\n")]
    cuts = {0, 1, *range(0, len(whole), 1 if long else 7)}
    cuts |= {end + beside for end in ends for beside in (0, 1, 2)} & set(range(len(whole)))
    complaints = []
    for cut in sorted(cuts):
        path = copied(begun, memory / "store")
        (path / JOURNAL).write_bytes(whole[:cut])
        complaints.append(gone_on(path, wanted, cut))
    assert len(complaints) > 50
    all_kept("P22", complaints)


def test_a_journal_with_other_bytes_in_it(memory, begun, wanted, long):
    """Flipped bits, lines twice, lines of files that are not there, noise."""
    whole = (begun / JOURNAL).read_bytes()
    lines, dice = whole.splitlines(keepends=True), Random(0)
    absent = lines[0].replace(b"items.npy", b"never.npy")
    escape = lines[0].replace(b"items.npy", b"../../../../data")
    forms = [whole + whole, b"".join(reversed(lines)), whole + absent, whole + escape]
    forms += [b"\n\n" + whole, whole + b"\0" * 40, b"[" * 5000 + b"\n" + whole, b"{}\n" + whole]
    forms += [whole.replace(b'"size":', b'"size":1'), whole.replace(b"sha256:", b"sha256:0")]
    for _ in range(200 if long else 30):
        noisy = bytearray(whole)
        noisy[dice.randrange(len(noisy))] ^= 1 << dice.randrange(8)
        forms.append(bytes(noisy))
    complaints = []
    for form in forms:
        path = copied(begun, memory / "store")
        (path / JOURNAL).write_bytes(form)
        complaints.append(gone_on(path, wanted, form))
    all_kept("P22", complaints)


def test_a_line_of_bytes_that_are_not_there_is_not_believed(memory, begun, wanted):
    """The journal is whole, the files are not: cut, other bytes of that size, gone, a link to the right bytes."""
    work = begun / "scores/.work-table"
    names = [path.relative_to(begun) for path in sorted(work.rglob("*")) if path.is_file()]
    names = [name for name in names if name.name not in {"journal.jsonl", "identity.json"}]
    assert len(names) == 3
    complaints = []
    for name in names:
        good = (begun / name).read_bytes()
        for harm in (
            good[:-1],
            b"",
            bytes(len(good)),
            good[:-1] + bytes([good[-1] ^ 1]),
            None,
            "link",
        ):
            path = copied(begun, memory / "store")
            (path / name).unlink()
            if isinstance(harm, bytes):
                (path / name).write_bytes(harm)
            elif harm == "link":
                (memory / "away").write_bytes(good)
                (path / name).symlink_to(memory / "away")
            complaints.append(gone_on(path, wanted, (name, harm)))
    all_kept("P22", complaints)


def test_a_file_without_a_line_is_not_believed(memory, begun, wanted):
    """Each is there in its place and form, with other numbers; its line in the journal is not."""
    lines = (begun / JOURNAL).read_bytes().splitlines(keepends=True)
    complaints = []
    for name in ("items.npy", "histories/0000000.npy", "set/scores.zarr/c.0.0.0"):
        path = copied(begun, memory / "store")
        left = [line for line in lines if name.encode() not in line]
        assert len(left) == len(lines) - 1
        (path / JOURNAL).write_bytes(b"".join(left))
        file = path / "scores/.work-table" / name
        data = file.read_bytes()
        file.write_bytes(data[:128] + bytes(len(data) - 128))  # behind the header of numpy
        complaints.append(gone_on(path, wanted, name))
    all_kept("P22", complaints)


def test_what_dead_writers_left_is_swept(memory, begun, wanted, long):
    folders = ["", "set", "set/scores.zarr", "histories", "odd/deep"]
    complaints = []
    for seed in range(100 if long else 12):
        dice = Random(seed)
        path = copied(begun, memory / "store")
        work = path / "scores/.work-table"
        for _ in range(dice.randint(1, 6)):
            place = work / dice.choice(folders) / f".partial-{dice.randrange(10**6)}"
            place.parent.mkdir(parents=True, exist_ok=True)
            if dice.random() < 0.3:
                place.mkdir()
                place = place / "inner"
            place.write_bytes(dice.randbytes(dice.randrange(50)))
        (path / "scores/.lock-table").touch()  # of one that was killed
        (work / "set/scores.zarr/c.7.0.0").write_bytes(b"stray")
        (work / "set/manifest.json").write_bytes(b"{}")
        complaints.append(gone_on(path, wanted, seed))
    all_kept("P22", complaints)


def test_debris_goes_as_soon_as_the_work_goes_on(begun):
    """A full disk gets its room back, not only when all is done."""
    debris = [
        begun / "scores/.work-table" / name for name in (".partial-x", "histories/.partial-y")
    ]
    for path in debris:
        path.write_bytes(b"x")
    with pytest.raises(StoppedError):
        build(Stops(1), Store.open(begun), shard_bytes=SHARD_BYTES)
    all_kept("P22", [f"{path} is there" if path.exists() else "" for path in debris])


def test_a_disk_that_gives_back_other_bytes_is_told(begun, wanted, monkeypatch):
    """Right when it was looked at, another when it was sealed: nothing is published, and the work is not lost."""
    real = cache.manifest.sha256_file

    def lying(path: Path, **more: object) -> str:
        return real(path, **more) if path.name != "c.1.0.0" else "sha256:" + "0" * 64

    monkeypatch.setattr(cache.manifest, "sha256_file", lying)
    with pytest.raises(StoreError, match=r"c\.1\.0\.0: the disk gave back other bytes"):
        build(TableTeacher(), Store.open(begun), shard_bytes=SHARD_BYTES)
    sealed = Store.open(begun).names
    monkeypatch.setattr(cache.manifest, "sha256_file", real)
    all_kept("P22", [str(sealed or ""), gone_on(begun, wanted, "mended")])


def test_unfinished_work_and_its_debris_are_no_part_of_the_store(begun):
    (begun / "scores/.work-table/.partial-x").touch()
    assert verify(begun) == []
