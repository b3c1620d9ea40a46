"""Reads one teacher's factor set: memory-mapped, verified, any history against any items, at any temperature.

On the first touch of a file its sha256 is compared with the manifest, its header with the layout, and every number is
looked at; a file that another one was put in place of is verified anew. At most about 512 MiB are mapped at once. What is
handed out is a copy. numpy alone: students multiply the vectors themselves. One prefetch thread beside the main one is fine.

Legend: T histories, C items, D width.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import threading
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache import scores
from cache.dataset import EXTENDS
from cache.errors import StoreError
from cache.factor_layout import TABLES, FactorLayout, Halves, Table
from cache.lineage import check_lineage, sound_teacher
from cache.manifest import Manifest, check_part, is_digest, read_manifest
from cache.mapped import ADVICE, Bring, map_entry
from cache.plan import Plan
from cache.score_writer import log_softmax, log_softmax_32

__all__ = ["FactorReader"]


_SETTINGS = {"dtype", "history_block", "quality", "rows_per_file", "score"}
_SETTINGS |= {"tau", "teacher", "teacher_digest"}


class FactorReader:
    """Vectors of one teacher for every instance of a plan and every item. Make one with :meth:`open`."""

    def __init__(
        self,
        folder: Path,
        plan: Plan,
        manifest: Manifest,
        layout: FactorLayout,
        bring: Bring | None = None,
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self.layout = layout
        self._plan = plan
        self._tables = {table: _Vectors(folder, manifest, layout, table, bring) for table in TABLES}

    @classmethod
    def open(
        cls, folder: Path, plan: Plan, items: int, *, bring: Bring | None = None
    ) -> FactorReader:
        """Open the sealed factor set `folder` over `plan`, whose dataset has so many items.

        Args:
            bring: asked for each file when it is first touched, where `folder` does not hold them itself.

        Raises:
            StoreError: unfinished, files missing, extra or of another size (``store.*``), made over
                another plan (``scores.foreign``), or not what its own manifest says.
        """
        read = read_manifest if bring else partial(check_part, deep=False)
        manifest = read(folder, "factors")
        check_lineage(folder, manifest, plan)
        layout = _layout(folder, manifest, plan, items)
        sizes = {entry.path: entry.size for entry in manifest.files}
        # their number first: what a hostile manifest asks for may be millions
        if len(sizes) != layout.num_files or sizes != layout.sizes():
            raise StoreError(
                f"{folder}: its files are not those that its plan and settings ask for; {ADVICE}.",
                code="store.inconsistent",
            )
        return cls(folder, plan, manifest, layout, bring)

    @property
    def name(self) -> str:
        """The factor set's name in its store."""
        return self.folder.name

    @property
    def digest(self) -> str:
        """The identity of the factor set."""
        return self.manifest.digest

    @property
    def tau(self) -> float:
        """The temperature that is taken where no other is asked for (eq. 2)."""
        return float(self.manifest.settings["tau"])

    @property
    def quality(self) -> float | None:
        """The teacher's NDCG@10 on validation, if it was handed in."""
        value = self.manifest.settings["quality"].get("ndcg@10")
        return None if value is None else float(value)

    def __len__(self) -> int:
        return len(self._plan)

    def __getitem__(self, index: int) -> Halves:
        """Log-probabilities [T_b, C_b] of a batch of the plan at `tau`, as a score set keeps them.

        Raises:
            StoreError: the bytes are not those that were sealed; names the file.
        """
        batch = self._plan[index]
        return log_softmax(self.raw(batch.instances, batch.items), self.tau)

    def log_probabilities(
        self, instances: NDArray[Any], items: NDArray[Any] | None = None, tau: float | None = None
    ) -> NDArray[np.float32]:
        """[T, C] eq. 2's logarithm of any instances over any items, at any temperature.

        Args:
            instances: of the plan, by id.
            items: rows of the dataset; all by default.
            tau: the set's own by default.
        """
        return log_softmax_32(self.raw(instances, items), self.tau if tau is None else tau)

    def raw(
        self, instances: NDArray[Any], items: NDArray[Any] | None = None
    ) -> NDArray[np.float32]:
        """[T, C] the teacher's bare scores."""
        users_TD = self.history_vectors(instances).astype(np.float32)
        scores_TC: NDArray[np.float32] = users_TD @ self.item_vectors(items).astype(np.float32).T
        return scores_TC

    def history_vectors(self, instances: NDArray[Any]) -> Halves:
        """[T, D] vectors of instances of the plan."""
        return self._tables["histories"].rows(instances)

    def item_vectors(self, items: NDArray[Any] | None = None) -> Halves:
        """[C, D] vectors of items, all of them by default."""
        return self._tables["items"].rows(np.arange(self.layout.items) if items is None else items)


class _Vectors:
    """One table, its files mapped as they are asked for."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        layout: FactorLayout,
        table: Table,
        bring: Bring | None,
    ) -> None:
        self._folder, self._layout, self._table, self._bring = folder, layout, table, bring
        self._entries = {entry.path: entry for entry in manifest.files}
        self._most = max(2, scores.MAPPED_BYTES // 2 // layout.size(table, 0))
        self._maps: OrderedDict[int, Halves] = OrderedDict()
        self._verified: dict[int, tuple[int, ...]] = {}
        self._lock = threading.Lock()

    def rows(self, rows: NDArray[Any]) -> Halves:
        """[n, D] some rows, in their order; a copy."""
        count = self._layout.rows(self._table)
        if len(rows) and not 0 <= rows.min() <= rows.max() < count:
            raise IndexError(f"a row beyond the {count} {self._table} of {self._folder}")
        found_ND = np.empty((len(rows), self._layout.width), np.float16)
        numbers, places = np.divmod(rows, self._layout.per_file)
        for number in np.unique(numbers):
            mine = numbers == number
            found_ND[mine] = self._file(int(number))[places[mine]]
        return found_ND

    def _file(self, number: int) -> Halves:
        with self._lock:
            vectors_ND = self._maps.get(number)
            if vectors_ND is not None:
                self._maps.move_to_end(number)
                return vectors_ND
            entry = self._entries[self._layout.path(self._table, number)]
            path, memory, identity = map_entry(self._folder, entry, self._bring)
            data = np.frombuffer(memory, np.uint8)
            vectors_ND = self._layout.vectors(data)
            if self._verified.get(number) != identity:
                self._verify(path, number, entry.sha256, memory, vectors_ND)
                self._verified[number] = identity
            _advise(memory, "MADV_RANDOM")  # rows are asked for in random order: no read-ahead
            while len(self._maps) >= self._most:
                self._maps.popitem(last=False)
            self._maps[number] = vectors_ND
            return vectors_ND

    def _verify(
        self, path: Path, number: int, digest: str, memory: mmap.mmap, vectors_ND: Halves
    ) -> None:
        _advise(memory, "MADV_WILLNEED")
        rows = self._layout.file_rows(self._table, number)
        if f"sha256:{hashlib.sha256(memory).hexdigest()}" != digest:
            raise StoreError(
                f"{path}: its bytes have changed, it holds the vectors of {self._table} {rows[0]} to "
                f"{rows[-1]}; {ADVICE}.",
                code="store.wrong_digest",
            )
        header = self._layout.header(self._table, number)
        if memory[: len(header)] != header:
            raise StoreError(
                f"{path}: its header is not the one of format 1; {ADVICE}.", code="store.bad_header"
            )
        finite_N = np.isfinite(vectors_ND).all(axis=1)
        if not finite_N.all():
            raise StoreError(
                f"{path}: row {rows[int(np.flatnonzero(~finite_N)[0])]} of the {self._table} holds NaN "
                f"or infinity; {ADVICE}.",
                code="store.not_finite",
            )


def _layout(folder: Path, manifest: Manifest, plan: Plan, items: int) -> FactorLayout:
    """The layout that the manifest asks for, once every setting is known to be sound."""
    settings, counts = manifest.settings, manifest.counts
    per_file: Any = settings.get("rows_per_file")
    block: Any = settings.get("history_block")
    width = counts.get("width", 0)
    sound = (
        # nothing else in a set repeats its settings: one that is not known, or does not fit, is damage
        settings.keys() - {EXTENDS} == _SETTINGS
        and is_digest(settings.get(EXTENDS, manifest.digest))
        and counts == {"instances": plan.num_instances, "items": items, "width": width}
        and width > 0
        and isinstance(per_file, int)
        and not isinstance(per_file, bool)
        and 0 < per_file < 1 << 31
        and isinstance(block, int)
        and not isinstance(block, bool)
        and block > 0
        and per_file % block == 0
        and sound_teacher(settings)
        and settings.get("dtype") == "float16"
        and settings.get("score") == "product"
    )
    if not sound:
        raise StoreError(
            f"{folder / 'manifest.json'}: its settings or counts are not those of a factor set over "
            f"{plan.path}; {ADVICE}.",
            code="store.bad_settings",
        )
    return FactorLayout.of(plan, items=items, width=width, per_file=per_file)


def _advise(memory: mmap.mmap, name: str) -> None:
    """Only ever advice: other systems know other names."""
    with contextlib.suppress(OSError, AttributeError):
        memory.madvise(getattr(mmap, name))
