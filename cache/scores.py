"""Reads one teacher's score set: memory-mapped, verified, any batch at any time, no copy.

On the first touch of a shard file its sha256 is compared with the manifest and its index with the layout; a fingerprint of
each chunk is kept (8 bytes a batch), and every chunk handed out later must still have its own: a flipped bit, two
swapped chunks or a swapped file are refused by file and batch. At most about 512 MiB are mapped at once, however
large the set is. `zarr.json` and every file's size are checked on opening. One prefetch thread beside the main one is fine.

Shape legend: T slots and C columns of one batch.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import xxhash
from numpy.typing import NDArray

from cache.atomic import disk_errors
from cache.codec import decode, half_steps
from cache.dataset import EXTENDS
from cache.digest import sha256_bytes
from cache.errors import StoreError, UsageError
from cache.layout import METADATA, Layout, Raw, crc32c
from cache.lineage import check_lineage, sound_teacher
from cache.manifest import Manifest, check_part, is_digest, read_manifest
from cache.mapped import ADVICE, Bring, map_entry
from cache.plan import Plan

__all__ = ["ScoreReader"]

Scores: TypeAlias = NDArray[np.floating[Any]]

MAPPED_BYTES = 512 << 20
_MADV_POPULATE_READ = 22  # Linux 5.14; Python has no name for it


@dataclass(slots=True)
class _Shard:
    """A mapped shard file."""

    memory: mmap.mmap
    data: Raw  #: the whole file
    chunks: Raw  #: [batches, chunk bytes]
    stored_BTR: NDArray[Any]  #: the same chunks, a view
    populated: bytearray  #: one flag a chunk: its pages are mapped in
    fingerprints: list[int]  #: what `_fingerprint` of each chunk must be


@dataclass(frozen=True, slots=True)
class _Verified:
    """What is remembered of a shard after its sha256 was right."""

    identity: tuple[int, ...]  #: device, inode, size, time of change of the file that was hashed
    fingerprints: list[int]  #: of each of its chunks


class ScoreReader:
    """Log-probabilities of one teacher for every batch of a plan. Make one with :meth:`open`."""

    def __init__(
        self,
        folder: Path,
        plan: Plan,
        manifest: Manifest,
        layout: Layout,
        bring: Bring | None = None,
    ) -> None:
        self._bring = bring
        self.folder = folder
        self.manifest = manifest
        self.layout = layout
        self._slots = np.diff(plan.starts)
        self._widths = np.maximum.reduceat(plan.slot_columns, plan.starts[:-1]) + 1
        self._entries = {entry.path: entry for entry in manifest.files}
        self._max_maps = max(2, MAPPED_BYTES // layout.shard_size(0))
        self._maps: OrderedDict[int, _Shard] = OrderedDict()
        self._verified: dict[int, _Verified] = {}
        self._lock = threading.Lock()

    @classmethod
    def open(cls, folder: Path, plan: Plan, *, bring: Bring | None = None) -> ScoreReader:
        """Open the sealed score set `folder` over `plan`.

        Args:
            bring: asked for each shard file when it is first touched, where `folder` does not hold them itself.

        Raises:
            StoreError: unfinished, files missing, extra or of another size (``store.*``), made over
                another plan (``scores.foreign``), or not what its own manifest says.
        """
        read = read_manifest if bring else partial(check_part, deep=False)
        manifest = read(folder, "scores")
        check_lineage(folder, manifest, plan)
        layout = _layout(folder, manifest, plan)
        entries = {entry.path: entry for entry in manifest.files}
        metadata = entries.pop(METADATA, None)
        sizes = {path: entry.size for path, entry in entries.items()}
        # their number first: what a hostile manifest asks for may be millions
        if metadata is None or len(sizes) != len(layout.shards) or sizes != layout.sizes():
            raise StoreError(
                f"{folder}: its shard files are not those that its plan and settings ask for; {ADVICE}.",
                code="store.inconsistent",
            )
        attributes = {
            "counts": dict(manifest.counts),
            "parents": dict(manifest.parents),
            "settings": dict(manifest.settings),
        }
        path = folder / METADATA
        wanted = layout.metadata(attributes)
        with disk_errors(path):
            sized = path.is_file() and metadata.size == len(wanted)  # never a large one
            found = path.read_bytes() if sized else b""
        if found != wanted or sha256_bytes(found) != metadata.sha256:
            raise StoreError(
                f"{path}: does not say what {folder / 'manifest.json'} says, "
                f"one of the two has changed; {ADVICE}.",
                code="store.inconsistent",
            )
        return cls(folder, plan, manifest, layout, bring)

    @property
    def name(self) -> str:
        """The score set's name in its store."""
        return self.folder.name

    @property
    def digest(self) -> str:
        """The identity of the score set."""
        return self.manifest.digest

    @property
    def tau(self) -> float:
        """The temperature of the stored softmax (eq. 2)."""
        return float(self.manifest.settings["tau"])

    @property
    def quality(self) -> float | None:
        """The teacher's NDCG@10 on validation, if it was handed in."""
        value = self.manifest.settings["quality"].get("ndcg@10")
        return None if value is None else float(value)

    def __len__(self) -> int:
        return self.layout.batches

    def shape(self, index: int) -> tuple[int, int]:
        """(T_b, C_b) of one batch."""
        return int(self._slots[index]), int(self._widths[index])

    def __getitem__(self, index: int) -> Scores:
        """Log-probabilities [T_b, C_b] of one batch, verified.

        Returns:
            float16, a read-only view of the file; with codec `u8` float32, decoded from it.

        Raises:
            StoreError: the bytes are not those that were sealed; names the file and the batch.
        """
        shard, place = self._find(index)
        self._check(index, shard, place)
        rows, width = self.shape(index)
        if self.layout.codec == "u8":
            decoded_TC = np.empty((rows, width), np.float32)
            decode(shard.stored_BTR[place], decoded_TC)
            return decoded_TC
        view_TC: Scores = shard.stored_BTR[place, :rows, :width]
        return view_TC

    def rounding(self, index: int) -> NDArray[np.float32]:
        """[T_b, 1] nats that the codec may have moved a log-probability of each row by, float16 apart."""
        rows, _ = self.shape(index)
        if self.layout.codec == "none":
            return np.zeros((rows, 1), np.float32)
        shard, place = self._find(index)
        self._check(index, shard, place)
        return half_steps(shard.stored_BTR[place, :rows])

    def read_into(self, index: int, out: Scores, *, check: bool = True) -> Scores:
        """Copy one batch into the caller's buffer, verified; returns the part that holds it.

        Args:
            out: float16 or float32, [T, C] of the layout (fastest: one straight copy) or [T_b, C_b]. With codec
                `u8` float32 is the faster one.
            check: compare the chunk's fingerprint; without, what was true when the shard file was first touched is
                taken to be true still.

        Returns:
            out[:T_b, :C_b].

        Raises:
            StoreError: the bytes are not those that were sealed; what is in `out` is void then.
            UsageError: `out` has neither of the two shapes.
        """
        shard, place = self._find(index)
        stored_TR = shard.stored_BTR[place]
        rows, width = self.shape(index)
        whole = (self.layout.slots, self.layout.columns)
        if out.shape not in (whole, (rows, width)):
            raise UsageError(
                f"batch {index}: the buffer has shape {out.shape}, {whole} or "
                f"{(rows, width)} was expected; hand in one of these.",
                code="scores.wrong_buffer",
            )
        if self.layout.codec == "u8":
            decode(stored_TR, out[:rows, :width])
        elif out.shape == whole:
            np.copyto(out[:rows], stored_TR[:rows])
        else:
            np.copyto(out, stored_TR[:rows, :width])
        # after the copy, while the chunk is in the processor's cache: a fifth faster than before it
        if check:
            self._check(index, shard, place)
        return out[:rows, :width]

    def _find(self, index: int) -> tuple[_Shard, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of a score set of {len(self)} batches")
        number, place = self.layout.locate(index)
        with self._lock:
            shard = self._maps.get(number)
            if shard is None:
                shard = self._map(number)
            else:
                self._maps.move_to_end(number)
        if not shard.populated[place]:
            stored = self.layout.stored_bytes
            _populate(shard.memory, place * stored, stored)
            shard.populated[place] = 1
        return shard, place

    def _check(self, index: int, shard: _Shard, place: int) -> None:
        if _fingerprint(shard.chunks[place]) != shard.fingerprints[place]:
            path = self.folder / self.layout.shard_path(self.layout.locate(index)[0])
            raise StoreError(
                f"{path}: the bytes of batch {index} have changed since they were verified; {ADVICE}.",
                code="store.wrong_checksum",
            )

    def _map(self, number: int) -> _Shard:
        """Map a shard file; hash it if this very file was not hashed before. Holds the lock."""
        path, shard, identity = self._open_shard(number)
        known = self._verified.get(number)
        if known is None or known.identity != identity:
            known = _Verified(identity, self._verify(path, number, shard))
            self._verified[number] = known
        shard.fingerprints = known.fingerprints
        while len(self._maps) >= self._max_maps:
            # dropped, not closed: a view that was handed out keeps its pages alive
            self._maps.popitem(last=False)
        self._maps[number] = shard
        return shard

    def _open_shard(self, number: int) -> tuple[Path, _Shard, tuple[int, ...]]:
        entry = self._entries[self.layout.shard_path(number)]
        path, memory, identity = map_entry(self.folder, entry, self._bring)
        data = np.frombuffer(memory, np.uint8)
        shard = _Shard(
            memory=memory,
            data=data,
            chunks=self.layout.chunks(data, number),
            stored_BTR=self.layout.stored(data, number),
            populated=bytearray(len(self.layout.shard_batches(number))),
            fingerprints=[],
        )
        return path, shard, identity

    def _verify(self, path: Path, number: int, shard: _Shard) -> list[int]:
        layout = self.layout
        expected = self._entries[layout.shard_path(number)].sha256
        with contextlib.suppress(OSError, AttributeError):
            shard.memory.madvise(mmap.MADV_WILLNEED)
        # before the sha256, so that what is remembered is never of bytes that were changed after it
        fingerprints = [_fingerprint(chunk) for chunk in shard.chunks]
        if f"sha256:{hashlib.sha256(shard.data.data).hexdigest()}" != expected:
            batches = layout.shard_batches(number)
            odd = _odd_chunks(layout, number, shard.data)
            raise StoreError(
                f"{path}: its bytes have changed, it holds batches {batches[0]} to {batches[-1]}"
                f"{f' and batch {batches[odd[0]]} is damaged' if odd else ''}; {ADVICE}.",
                code="store.wrong_digest",
            )
        index = layout.index(number)
        if not np.array_equal(shard.data[-len(index) :], index):
            raise StoreError(
                f"{path}: its index is not the one of its layout; {ADVICE}.", code="store.bad_index"
            )
        shard.populated[:] = b"\1" * len(shard.populated)
        return fingerprints


def _layout(folder: Path, manifest: Manifest, plan: Plan) -> Layout:
    """The layout that the manifest asks for, once every setting is known to be sound."""
    settings, counts = manifest.settings, manifest.counts
    per_shard: Any = settings.get("batches_per_shard")
    codec: Any = settings.get("codec")
    expected = {"batches": len(plan), "columns": plan.num_columns, "slots": plan.batch_size}
    sound = (
        counts == expected
        and isinstance(per_shard, int)
        and not isinstance(per_shard, bool)
        and 1 <= per_shard <= max(1, len(plan))
        and sound_teacher(settings)
        and is_digest(settings.get(EXTENDS, manifest.digest))
        and settings.get("score") == "log_softmax"
        and (manifest.format, codec, settings.get("dtype"))
        in ((1, "none", "float16"), (2, "u8", "uint8"))
    )
    if not sound:
        raise StoreError(
            f"{folder / 'manifest.json'}: its settings or counts are not those of a score set over "
            f"{plan.path}; {ADVICE}.",
            code="store.bad_settings",
        )
    return Layout(
        batches=len(plan),
        slots=plan.batch_size,
        columns=plan.num_columns,
        per_shard=per_shard,
        codec=codec,
    )


def _populate(memory: mmap.mmap, start: int, length: int) -> None:
    """Map the pages of a range in one call instead of a fault every few pages; only ever advice."""
    first = start - start % mmap.PAGESIZE
    with contextlib.suppress(OSError, AttributeError, ValueError):
        memory.madvise(_MADV_POPULATE_READ, first, min(start + length, len(memory)) - first)


def _fingerprint(chunk: Raw) -> int:
    """XXH3 of a chunk, 64 bits, kept in memory only: twice as fast as the crc32c that lies in the file, and wider."""
    return xxhash.xxh3_64_intdigest(chunk.data)


def _odd_chunks(layout: Layout, number: int, data: Raw) -> list[int]:
    """Places whose chunk does not have the crc32c behind it, to name the batch."""
    stored = layout.checksums(data, number)
    chunks = layout.chunks(data, number)
    return [place for place, crc in enumerate(stored) if crc32c(chunks[place]) != crc]
