"""P27: who reads a store that is deleted, moved or published anew gets the old or nothing, never a mixture.

A machine of arbitrary steps: two stores take turns at one path, readers are opened and kept, and whatever a reader hands
out belongs to the store that it was opened on. The mirror's turn is in tests/share/test_mirror.py.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    rule,
    run_state_machine_as_test,
)

import cache.scores
from cache.errors import CkdError
from cache.manifest import read_manifest
from cache.store import Store
from pipeline.build import build
from tests.fakes import TableTeacher, tiny_store
from tests.promises.grounds import in_memory
from tests.promises.ledger import all_kept

REFUSED = ("store.", "plan.", "scores.", "factors.", "disk.")


class Library:
    """Two stores over one dataset and plan with other teachers, and one over another dataset; what each says."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        for name, (users, seed) in {"a": (12, 0), "b": (12, 1), "c": (14, 2)}.items():
            store = tiny_store(self.folder / name, users=users)
            build(TableTeacher("one", seed=seed), store, shard_bytes=400, keep="both")
        self.digests = {
            (name, kind): read_manifest(self.folder / name / kind / "one", kind).digest
            for name in "abc"
            for kind in ("scores", "factors")
        }
        self.says = {name: self.values(Store.open(self.folder / name)) for name in "abc"}

    @staticmethod
    def values(store: Store) -> dict[str, list[Any]]:
        return {
            kind: [np.array(reader[index]) for index in range(len(reader))]
            for kind, reader in (("scores", store.scores("one")), ("factors", store.factors("one")))
        }


class Publishing(RuleBasedStateMachine):
    readers = Bundle("readers")
    library: Library

    def __init__(self) -> None:
        super().__init__()
        self._memory = in_memory()
        self.folder = self._memory.__enter__()
        self.path = self.folder / "store"
        self.number = 0

    def teardown(self) -> None:
        self._memory.__exit__(None, None, None)

    @rule(name=st.sampled_from("abc"), by_file=st.booleans())
    def publish(self, name: str, by_file: bool) -> None:
        """By one rename, as pulls do; or file by file over what is there, as rsync does.

        A file that is written over in place is another matter: docs/format.md, what is not checked.
        """
        if by_file:
            for source in sorted((self.library.folder / name).rglob("*")):
                target = self.path / source.relative_to(self.library.folder / name)
                if source.is_dir():
                    target.mkdir(parents=True, exist_ok=True)
                else:
                    shutil.copyfile(source, target.with_name(".new"))
                    target.with_name(".new").replace(target)
            return
        self.delete()
        shutil.copytree(self.library.folder / name, self.folder / "fresh")
        (self.folder / "fresh").rename(self.path)

    @rule()
    def delete(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    @rule()
    def move(self) -> None:
        if self.path.exists():
            self.number += 1
            self.path.rename(self.folder / f"moved-{self.number}")

    @rule(name=st.sampled_from("ab"))
    def half(self, name: str) -> None:
        """Another store's set under the same name."""
        if (self.path / "scores").is_dir():
            shutil.rmtree(self.path / "scores" / "one", ignore_errors=True)
            shutil.copytree(
                self.library.folder / name / "scores" / "one", self.path / "scores" / "one"
            )

    @rule(target=readers, kind=st.sampled_from(["scores", "factors"]))
    def open(self, kind: str) -> Any:
        try:
            store = Store.open(self.path)
            reader = store.scores("one") if kind == "scores" else store.factors("one")
        except CkdError as error:
            all_kept("P27", ["" if error.code.startswith(REFUSED) else error.code])
            return None
        # whose it is, by the set's digest: the manifest names dataset and plan
        owner = [n for n in "abc" if self.library.digests[n, kind] == reader.digest]
        all_kept("P27", ["" if owner else f"nobody's {kind}"])
        return kind, reader, owner[0]

    @rule(reader=readers, at=st.integers(0, 10**6))
    def read(self, reader: Any, at: int) -> None:
        if reader is None:
            return
        kind, opened, owner = reader
        index = at % len(opened)
        try:
            found = np.array(opened[index])
        except CkdError as error:
            all_kept("P27", ["" if error.code.startswith(REFUSED) else error.code])
            return
        same = np.array_equal(found, self.library.says[owner][kind][index])
        all_kept("P27", ["" if same else f"batch {index} of {owner} holds something else"])

    @rule(reader=consumes(readers))
    def close(self, reader: Any) -> None:
        del reader


def test_old_or_nothing(long: bool, monkeypatch: Any) -> None:
    monkeypatch.setattr(cache.scores, "MAPPED_BYTES", 1)  # files are mapped again and again
    monkeypatch.setattr(Publishing, "library", Library(), raising=False)
    some = settings(
        max_examples=400 if long else 70, stateful_step_count=30 if long else 14, deadline=None
    )
    run_state_machine_as_test(Publishing, settings=some)
