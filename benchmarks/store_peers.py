"""Other readers of a score set's files, in this process: zarr-python, zarrs and tensorstore, each one thread.

    python benchmarks/store_peers.py        puts tensorstore and zarrs into .venv-peers (from PyPI)

`readers` does that itself on first use. What they share with us, numpy and zarr, stays the project's own: the folder of
.venv-peers comes last on the path.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from peer_venv import PEERS, ROOT, python_of
from zarr.buffer.cpu import NDBuffer

__all__ = ["Into", "install", "readers"]

_INDEX_CACHE = 4 << 20  # bytes: indexes of shards, hardly a chunk

Into = Callable[[int, NDArray[Any]], object]
"""into(batch, buffer of a whole chunk's shape [1, T, C]): read that batch into the buffer."""


def install() -> None:
    """Make .venv-peers with them unless it is there; ends the benchmark with status 2 where PyPI cannot be reached."""
    shared = [f"zarr=={zarr.__version__}", f"numpy=={np.__version__}"]
    python_of(".venv-peers", "stores", [["-r", str(PEERS / "stores.txt"), *shared]])
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    sys.path.append(str(ROOT / ".venv-peers" / "lib" / version / "site-packages"))


def readers(array: Path) -> dict[str, Into]:
    """Each reader of the Zarr array at `array`, by its name; shards stay as they are, values are checked by the caller."""
    install()
    return {
        "zarr-python": _zarr(array, "zarr.core.codec_pipeline.BatchedCodecPipeline"),
        "zarrs": _zarr(array, "zarrs.ZarrsCodecPipeline"),
        "tensorstore": _tensorstore(array),
    }


def _zarr(array: Path, pipeline: str) -> Into:
    if pipeline.startswith("zarrs"):
        from zarr.registry import register_pipeline
        from zarrs import ZarrsCodecPipeline

        register_pipeline(ZarrsCodecPipeline)  # zarr looked for others before the path had this one
    one = {"threading.max_workers": 1, "async.concurrency": 1}
    with zarr.config.set({"codec_pipeline.path": pipeline, **one}):
        opened = zarr.open_array(array, mode="r")

    def into(index: int, buffer: NDArray[Any]) -> object:
        with zarr.config.set({"codec_pipeline.path": pipeline}):
            return opened.get_basic_selection(
                (slice(index, index + 1), slice(None), slice(None)),
                out=NDBuffer.from_numpy_array(buffer),
            )

    return into


def _tensorstore(array: Path) -> Into:
    import tensorstore

    context = tensorstore.Context(
        {
            "cache_pool": {"total_bytes_limit": _INDEX_CACHE},
            "data_copy_concurrency": {"limit": 1},
            "file_io_concurrency": {"limit": 1},
        }
    )
    opened = tensorstore.open(
        {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": str(array)},
            "recheck_cached_data": "open",
            "recheck_cached_metadata": "open",
        },
        context=context,
        read=True,
    ).result()

    def into(index: int, buffer: NDArray[Any]) -> object:
        target = tensorstore.array(buffer, context=context)
        return target.write(opened[index : index + 1].translate_to[0]).result()

    return into


if __name__ == "__main__":
    install()
