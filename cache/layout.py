"""Formats 1 and 2 of a score set: where every byte of `scores.zarr` stands, computed from four numbers and the codec.

    scores/<name>/   manifest.json   scores.zarr/ zarr.json  c.0.0.0  c.1.0.0 ...

A plain Zarr v3 array, float16 [batches, T, C]: one chunk a batch, many chunks a shard file, a crc32c behind every
chunk and behind the index, slots and columns beyond a batch NaN. With codec `u8` it is uint8 [batches, T, C + 4], of which
codec.py knows the meaning. Nothing is parsed that could be computed: `zarr.json`
must equal `Layout.metadata` byte for byte, a shard's index must be the one this file would write.

Shape legend: T slots of a full batch, C columns of the widest batch, R items of a stored row.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from cache.codec import ABSENT, AFFINE_BYTES, Codec, encode_into
from cache.plan import Plan

__all__ = ["ARRAY", "METADATA", "SHARD_BYTES", "Layout", "Raw", "crc32c", "encode_shard"]

ARRAY = "scores.zarr"
METADATA = f"{ARRAY}/zarr.json"
SHARD_BYTES = 32 << 20

Raw: TypeAlias = NDArray[np.uint8]

_TYPES: dict[Codec, np.dtype[Any]] = {"none": np.dtype("<f2"), "u8": np.dtype("u1")}
_FORMATS: dict[Codec, int] = {"none": 1, "u8": 2}
_CRC = np.dtype("<u4")
_ENTRY = 16  # offset and size of one chunk in the index, u64 each
_ABSENT = np.uint64(2**64 - 1)
_BYTES_CODEC = {"name": "bytes", "configuration": {"endian": "little"}}
_CRC_CODEC = {"name": "crc32c"}


def crc32c(data: Raw) -> int:
    """CRC-32C of a contiguous uint8 array, without a copy (the C extension refuses memoryviews)."""
    return int(google_crc32c.value(data))


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The geometry of one score set."""

    batches: int
    slots: int  #: T
    columns: int  #: C
    per_shard: int  #: batches in a full shard file
    codec: Codec = "none"

    @classmethod
    def of(cls, plan: Plan, *, codec: Codec = "none", shard_bytes: int = SHARD_BYTES) -> Layout:
        """The layout of a score set over `plan`, with shard files of at most about `shard_bytes`."""
        return cls.fitting(
            batches=len(plan),
            slots=plan.batch_size,
            columns=plan.num_columns,
            codec=codec,
            shard_bytes=shard_bytes,
        )

    @classmethod
    def fitting(
        cls,
        *,
        batches: int,
        slots: int,
        columns: int,
        codec: Codec = "none",
        shard_bytes: int = SHARD_BYTES,
    ) -> Layout:
        """The same of a plan that is not written yet."""
        one = cls(batches=batches, slots=slots, columns=columns, per_shard=1, codec=codec)
        fit = max(1, shard_bytes // (one.stored_bytes + _ENTRY))
        return replace(one, per_shard=min(fit, max(1, batches)))

    @property
    def format(self) -> int:
        """The manifest's format number: 2 for what readers of format 1 cannot read."""
        return _FORMATS[self.codec]

    @property
    def dtype(self) -> str:
        """Of what is stored."""
        return _TYPES[self.codec].name

    @property
    def row_items(self) -> int:
        """R."""
        return self.columns + (AFFINE_BYTES if self.codec == "u8" else 0)

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one batch, without its crc32c."""
        return self.slots * self.row_items * _TYPES[self.codec].itemsize

    @property
    def stored_bytes(self) -> int:
        """Bytes of one batch with its crc32c: the stride of chunks in a shard."""
        return self.chunk_bytes + _CRC.itemsize

    @property
    def shards(self) -> range:
        """Numbers of the shard files; each is one unit of work."""
        return range(-(-self.batches // self.per_shard))

    def shard_batches(self, shard: int) -> range:
        """Batches of one shard; the last shard may hold fewer."""
        first = shard * self.per_shard
        return range(first, min(first + self.per_shard, self.batches))

    def shard_path(self, shard: int) -> str:
        """Relative to the score set's folder."""
        return f"{ARRAY}/c.{shard}.0.0"

    def shard_size(self, shard: int) -> int:
        """Bytes of a shard file: its chunks, then an index entry for each place, then a crc32c."""
        chunks = len(self.shard_batches(shard)) * self.stored_bytes
        return chunks + self.per_shard * _ENTRY + _CRC.itemsize

    def sizes(self) -> dict[str, int]:
        """Path and size of every shard file."""
        return {self.shard_path(shard): self.shard_size(shard) for shard in self.shards}

    def locate(self, batch: int) -> tuple[int, int]:
        """(shard, place in it) of a batch."""
        return divmod(batch, self.per_shard)

    def index(self, shard: int) -> Raw:
        """The index at the end of a shard: offset and size of each chunk, absent places all ones."""
        table = np.full((self.per_shard, 2), _ABSENT, "<u8")
        present = len(self.shard_batches(shard))
        table[:present, 0] = np.arange(present, dtype=np.uint64) * np.uint64(self.stored_bytes)
        table[:present, 1] = self.stored_bytes
        raw = table.reshape(-1).view(np.uint8)
        return np.concatenate([raw, np.array([crc32c(raw)], _CRC).view(np.uint8)])

    def metadata(self, attributes: Mapping[str, Any]) -> bytes:
        """The bytes of zarr.json; `attributes` say which teacher, plan and temperature."""
        none = self.codec == "none"
        row = self.row_items
        value = {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [self.batches, self.slots, row],
            "data_type": self.dtype,
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": [self.per_shard, self.slots, row]},
            },
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
            "fill_value": "NaN" if none else ABSENT,
            "codecs": [
                {
                    "name": "sharding_indexed",
                    "configuration": {
                        "chunk_shape": [1, self.slots, row],
                        "codecs": [_BYTES_CODEC if none else {"name": "bytes"}, _CRC_CODEC],
                        "index_codecs": [_BYTES_CODEC, _CRC_CODEC],
                        "index_location": "end",
                    },
                }
            ],
            "attributes": {"ckd": attributes},
            "dimension_names": ["batch", "slot", "column" if none else "byte"],
            "storage_transformers": [],
        }
        text = json.dumps(value, indent=1, ensure_ascii=True, allow_nan=False, sort_keys=True)
        return text.encode("ascii") + b"\n"

    def chunks(self, shard: Raw, number: int) -> Raw:
        """[batches of the shard, chunk_bytes] the chunks of a whole shard file, without crc32c; a view."""
        return self.places(shard, number)[:, : self.chunk_bytes]

    def stored(self, shard: Raw, number: int) -> NDArray[Any]:
        """[batches of the shard, T, R] of a whole shard file; a view, each batch of it contiguous."""
        kind: np.dtype[Any] = _TYPES[self.codec]
        rows: NDArray[Any] = self.chunks(shard, number).view(kind)
        return rows.reshape(len(rows), self.slots, self.row_items)

    def checksums(self, shard: Raw, number: int) -> NDArray[np.uint32]:
        """[batches of the shard] the crc32c stored behind each chunk; a copy."""
        tails = np.ascontiguousarray(self.places(shard, number)[:, self.chunk_bytes :])
        return tails.view(_CRC)[:, 0]

    def places(self, shard: Raw, number: int) -> Raw:
        """[batches of the shard, stored_bytes] the chunks of a whole shard file with their crc32c; a view."""
        present = len(self.shard_batches(number))
        return shard[: present * self.stored_bytes].reshape(present, self.stored_bytes)


def encode_shard(
    layout: Layout,
    shard: int,
    batches: Iterable[NDArray[np.floating[Any]]],
    out: Raw | None = None,
) -> Raw:
    """The bytes of a shard file from its batches, each [T_b, C_b]; the rest of a chunk is NaN or absent.

    Args:
        batches: log-probabilities; float32 is worth its while with codec `u8`, which rounds but once then.
        out: at least so many bytes to lay them out in, else fresh ones.
    """
    size = layout.shard_size(shard)
    data = np.empty(size, np.uint8) if out is None else out[:size]
    places = layout.places(data, shard)
    stored_BTR = layout.stored(data, shard)
    for place, target_TR, scores_TC in zip(places, stored_BTR, batches, strict=True):
        if layout.codec == "u8":
            encode_into(target_TR, scores_TC)
        else:
            rows, width = scores_TC.shape
            target_TR[:rows, :width] = scores_TC
            target_TR[:rows, width:] = np.nan
            target_TR[rows:] = np.nan
        checksum = np.array([crc32c(place[: layout.chunk_bytes])], _CRC)
        place[layout.chunk_bytes :] = checksum.view(np.uint8)
    data[places.size :] = layout.index(shard)
    return data
