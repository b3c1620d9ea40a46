"""The vectors that a build keeps on disk until what it makes of them is sealed: each encoded once, whatever kills it.

    <work>/items.npy   histories/0000000.npy ...

Histories are encoded in fixed blocks, since what stands beside a history may move its last bits. Refuses NaN, infinities
and wrong shapes by row. Memory is bounded by one block and by what is mapped until `release`.

Shape legend: T slots of one batch, V items, D width, N instances.
"""

from __future__ import annotations

import io
import mmap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cache.atomic import disk_errors
from cache.dataset import Dataset, Ints
from cache.errors import TeacherError
from cache.plan import Plan
from cache.unfinished import Unfinished

if TYPE_CHECKING:
    from teachers.protocol import Floats, Teacher

__all__ = ["ITEMS", "Kept", "load_vectors", "some_items"]

ITEMS = "items.npy"


def some_items(teacher: Teacher, dataset: Dataset, rows: Ints) -> Floats:
    """[n, D] vectors of some items; a teacher that only answers for all items is asked for all of them."""
    from teachers.protocol import SomeItems  # not before a teacher is asked

    if isinstance(teacher, SomeItems):
        return teacher.encode_some_items(dataset, rows)
    return teacher.encode_items(dataset)[rows]


class Kept:
    """A teacher's vectors of every item, and of every instance in blocks, in the work folder of `part`."""

    def __init__(
        self,
        part: Unfinished,
        teacher: Teacher,
        dataset: Dataset,
        plan: Plan,
        *,
        block: int,
        first: int = 0,
        rows: Ints | None = None,
    ) -> None:
        """Nothing is asked yet.

        Args:
            block: instances that are encoded together.
            first: instances before this one are not encoded.
            rows: of the items that are encoded; all by default.
        """
        self.part = part
        self._teacher = teacher
        self._dataset = dataset
        self._plan = plan
        self._block_size = block
        self._first = first
        self._rows = rows
        self._encoded = False
        self._open: dict[int, NDArray[np.float32]] = {}

    def items(self) -> NDArray[np.float32]:
        """[V, D] item vectors, or those of the chosen rows, from the teacher or from an earlier run of this build."""
        name = ITEMS
        if not self.part.journal.whole(name):
            rows = self._rows
            if rows is None:
                vectors, count = self._teacher.encode_items(self._dataset), self._dataset.num_items
            else:
                vectors, count = some_items(self._teacher, self._dataset, rows), len(rows)
            self._keep(name, vectors, count, 0)
        return load_vectors(self.part.work / name)

    def encode(self, tell: Callable[[int], None]) -> None:
        """Encode the blocks that are not there yet; `tell` hears how many instances lie behind, those before `first` too."""
        if self._encoded:
            return
        for name, block in self.blocks():
            if not self.part.journal.whole(name):
                self.encode_block(name, block, tell)
            tell(block.stop)
        self._encoded = True

    def blocks(self) -> Iterator[tuple[str, slice]]:
        """Each block's file in the work folder, and its instances."""
        last = self._plan.num_instances
        for first in range(self._first, last, self._block_size):
            block = slice(first, min(first + self._block_size, last))
            yield self._name((first - self._first) // self._block_size), block

    def encode_block(
        self, name: str, block: slice, tell: Callable[[int], None] | None = None
    ) -> None:
        """Encode one of :meth:`blocks`; where the teacher offers it, `tell` hears of its parts too."""
        from teachers.protocol import Watched  # not before a teacher is asked

        count = block.stop - block.start
        asked = (self._dataset, self._plan.instance_users[block], self._plan.instance_ends[block])
        if tell is not None and isinstance(self._teacher, Watched):
            vectors_ND = self._teacher.encode_histories_watched(
                *asked, lambda share: tell(block.start + int(share * count))
            )
        else:
            vectors_ND = self._teacher.encode_histories(*asked)
        self._keep(name, vectors_ND, count, block.start)

    def histories(self, instances: NDArray[Any]) -> NDArray[np.float32]:
        """[T, D] vectors of some instances, at least one; after :meth:`encode`."""
        blocks, rows = np.divmod(instances - self._first, self._block_size)
        parts: NDArray[np.float32] | None = None
        for block in np.unique(blocks):
            vectors_ND = self._block(int(block))
            if parts is None:
                parts = np.empty((len(instances), *vectors_ND.shape[1:]), np.float32)
            mine = blocks == block
            parts[mine] = vectors_ND[rows[mine]]
        if parts is None:
            raise ValueError("a batch without instances")
        return parts

    def release(self) -> None:
        """Unmap what was read, so that memory stays flat."""
        self._open.clear()

    def _block(self, block: int) -> NDArray[np.float32]:
        vectors = self._open.get(block)
        if vectors is None:
            vectors = self._open[block] = load_vectors(self.part.work / self._name(block))
        return vectors

    @staticmethod
    def _name(block: int) -> str:
        return f"histories/{block:07d}.npy"

    def _keep(self, name: str, vectors: NDArray[Any], count: int, first: int) -> None:
        """Check vectors and put them into the work folder; `first` is the row that vectors[0] stands for."""
        noun = name.partition("/")[0].removesuffix(".npy")
        what = f"teacher {self._teacher.name!r}, {noun}"
        if vectors.dtype != np.float32 or vectors.ndim < 2 or len(vectors) != count:
            raise TeacherError(
                f"{what} from row {first}: {vectors.dtype} of shape {vectors.shape} was handed in, "
                f"float32 of shape ({count}, width) was expected; mend the teacher.",
                code="teacher.wrong_shape",
            )
        finite = np.isfinite(vectors)
        if not finite.all():
            place = np.argwhere(~finite)[0]
            raise TeacherError(
                f"{what}: row {first + int(place[0])} holds {vectors[tuple(place)]} at {place[1]}, "
                "finite numbers were expected; mend the teacher or its item texts.",
                code="teacher.not_finite",
            )
        buffer = io.BytesIO()
        np.save(buffer, np.ascontiguousarray(vectors), allow_pickle=False)
        self.part.journal.put(name, buffer.getbuffer())


def load_vectors(path: Path) -> NDArray[np.float32]:
    """Kept vectors as a memory map, as :class:`Kept` wrote them to `path`."""
    with disk_errors(path):
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    memory = vectors._mmap
    if memory is not None and hasattr(mmap, "MADV_RANDOM"):
        memory.madvise(mmap.MADV_RANDOM)  # rows are asked for in random order: no read-ahead
    loaded: NDArray[np.float32] = vectors
    return loaded
