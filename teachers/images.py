"""Item pictures to vectors, through a CLIP-like image tower of `transformers` kept in safetensors; each picture is read twice.

The column `image` of items.parquet holds paths inside a folder that is given. A picture that is absent, broken or hostile
(not an image, cut short, a decompression bomb, outside the folder, a link, a pipe) is counted and becomes a row of zeros,
which means missing; it is never an error. Decoded with PIL, five formats alone; prepared as preprocessor_config.json has it,
with PIL and numpy. Kept beside the dataset under a name that carries the digest of tower, preprocessing and every
picture's bytes, for which all are hashed at each call. Refused: towers without preprocessor_config.json, code from the hub.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import stat
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cache.dataset import Dataset
from cache.digest import canonical_json, sha256_bytes, sha256_file
from cache.errors import InputError, UsageError, short_of_memory
from cache.vectors import list_vectors, read_vectors, vectors_manifest
from teachers.encoders import load_encoder, locate
from teachers.text import Progress, keep_vectors, plain_name

__all__ = ["Pictures", "Preprocessing", "image_vectors", "read_picture"]

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # none that runs another program, as EPS would
_MAX_BYTES = 64 << 20
_MAX_PIXELS = 50_000_000  # 150 MB decoded
_BATCH = 32
_PREPROCESSOR = "preprocessor_config.json"
_BICUBIC = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """Where pictures lie and what reads them.

    Attributes:
        model: a folder, or a hub name.
        folder: what the items' image paths are relative to.
    """

    model: str
    folder: Path


class _UnusableError(Exception):
    """Why a picture is taken for missing, in a word or two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """What preprocessor_config.json asks for; sizes are (height, width)."""

    shortest: int | None  #: resize the shorter side to this
    exact: tuple[int, int] | None  #: or both sides to these
    crop: tuple[int, int] | None  #: then the middle of this size
    resample: int
    scale: float
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    @classmethod
    def read(cls, folder: Path) -> Preprocessing:
        """Of a tower's folder.

        Raises:
            InputError: ``image.no_preprocessor``.
        """
        path = folder / _PREPROCESSOR
        try:
            config = json.loads(path.read_bytes())
            size = config.get("size", 224) if config.get("do_resize", True) else {}
            crop = None
            if config.get("do_center_crop", "crop_size" in config):
                crop = _pair(config["crop_size"])
            shortest = size.get("shortest_edge") if isinstance(size, dict) else None
            if isinstance(size, int) and crop is not None:
                shortest = size
            exact = None if shortest is not None or size == {} else _pair(size)
            normalise = config.get("do_normalize", True)
            made = cls(
                shortest=None if shortest is None else int(shortest),
                exact=exact,
                crop=crop,
                resample=int(config.get("resample", _BICUBIC)),
                scale=float(config.get("rescale_factor", 1 / 255))
                if config.get("do_rescale", True)
                else 1.0,
                mean=tuple(map(float, config["image_mean"])) if normalise else (0.0,) * 3,
                deviation=tuple(map(float, config["image_std"])) if normalise else (1.0,) * 3,
            )
            sides = [made.shortest or 1, *(made.exact or ()), *(made.crop or ())]
            if not (0 < min(sides) <= max(sides) <= 4096 and made.resample in range(6)):
                raise ValueError("sizes of 1 to 4096 pixels expected")
            if not (len(made.mean) == len(made.deviation) == 3 and min(made.deviation) > 0):
                raise ValueError("three means and deviations expected")
            if made.crop is None and made.exact is None:
                raise ValueError("a size that all pictures get was expected")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(
                f"{path}: does not say how pictures are prepared ({type(error).__name__}: {str(error)[:80]}); "
                "complete the model or name another with --image.",
                code="image.no_preprocessor",
            ) from error
        return made

    def pixels(self, data: bytes) -> NDArray[np.float32]:
        """float32 [3, height, width] of an encoded picture; raises what a broken one provokes."""
        from PIL import Image

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=_FORMATS) as picture:
                width, height = picture.size
                wanted = self._resized(height, width)
                if max(width * height, wanted[0] * wanted[1]) > _MAX_PIXELS:
                    raise _UnusableError("too large")
                rgb = picture.convert("RGB")
            if wanted != (height, width):
                rgb = rgb.resize((wanted[1], wanted[0]), Image.Resampling(self.resample))
        array_HW3 = np.asarray(rgb, np.float32)
        if self.crop is not None:
            array_HW3 = _middle(array_HW3, self.crop)
        mean, deviation = np.array(self.mean, np.float32), np.array(self.deviation, np.float32)
        out = (array_HW3 * np.float32(self.scale) - mean) / deviation
        return np.ascontiguousarray(out.transpose(2, 0, 1), np.float32)

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if self.shortest is None:
            return self.exact or (height, width)
        longer = int(self.shortest * max(height, width) / min(height, width))
        return (self.shortest, longer) if height <= width else (longer, self.shortest)


def image_vectors(
    dataset: Dataset,
    pictures: Pictures,
    *,
    device: str = "cpu",
    progress: Progress | None = None,
) -> tuple[str, NDArray[np.float32], str]:
    """The image vectors of a dataset's items: read where they were kept, else made and kept.

    Returns:
        (name, vectors, note): the name of the set under `vectors/`; float32 [V, d], zeros where there is no usable
        picture; one line on how many those are and why, empty where all are there.

    Raises:
        UsageError: ``image.no_pillow``, ``image.no_folder``, or what :func:`teachers.encoders.locate` raises;
        InputError: ``image.*`` when the tower cannot be read.
    """
    _require_pillow()
    if not pictures.folder.is_dir():
        raise UsageError(
            f"{pictures.folder}: is no folder; name the one that the items' image paths are relative to.",
            code="image.no_folder",
        )
    folder = locate(pictures.model, "image")
    preparing = Preprocessing.read(folder)
    paths = ["" if one is None else str(one) for one in dataset.items["image"].to_pylist()]
    marks = [_mark(pictures.folder, path) for path in paths]
    parts = {
        "weights": sorted(folder.glob("*.safetensors")),
        "config": [folder / "config.json", folder / _PREPROCESSOR],
    }
    try:
        digests = {
            key: sha256_bytes(*(sha256_file(path).encode() for path in files))
            for key, files in parts.items()
        }
    except OSError as error:
        raise InputError(
            f"{folder}: {Path(str(error.filename)).name} cannot be read ({error.strerror}); "
            "complete the model or name another with --image.",
            code="image.unreadable",
        ) from error
    made_by = {
        "model": Path(pictures.model).name,
        **digests,
        "pictures": sha256_bytes("\n".join(marks).encode()),
    }
    mark = sha256_bytes(canonical_json(made_by)).removeprefix("sha256:")[:12]
    name = f"{plain_name(made_by['model'])}-image-{mark}"
    if name not in list_vectors(dataset):
        vectors_VD, reasons = _encode(folder, preparing, pictures, paths, device, progress)
        keep_vectors(dataset, name, vectors_VD, {**made_by, "missing": dict(reasons)})
    missing = vectors_manifest(dataset, name).settings["missing"]
    return name, read_vectors(dataset, name), _note(dataset, missing)


def read_picture(folder: Path, path: str) -> bytes:
    """The bytes of a regular file below `folder`; no link is followed at any step, no pipe is waited for."""
    if not path:
        raise _UnusableError("no path")
    parts = Path(path).parts
    if Path(path).is_absolute() or ".." in parts or "\0" in path or not parts:
        raise _UnusableError("outside the folder")
    try:
        at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for part in parts[:-1]:
                inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
                os.close(at)
                at = inner
            number = os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=at)
        finally:
            os.close(at)
        with open(number, "rb") as file:  # noqa: PTH123 - a descriptor, not a path
            about = os.fstat(number)
            if not stat.S_ISREG(about.st_mode):
                raise _UnusableError("not a file")
            if about.st_size > _MAX_BYTES:
                raise _UnusableError("too large")
            return file.read(_MAX_BYTES)
    except FileNotFoundError:
        raise _UnusableError("absent") from None
    except (
        OSError,
        ValueError,
    ):  # a link, a folder that is none, no permission, an impossible name
        raise _UnusableError("not a file") from None


def _mark(folder: Path, path: str) -> str:
    """The digest of a picture, or why there is none."""
    try:
        return sha256_bytes(read_picture(folder, path))
    except _UnusableError as reason:
        return str(reason)


def _encode(
    folder: Path,
    preparing: Preprocessing,
    pictures: Pictures,
    paths: list[str],
    device: str,
    progress: Progress | None,
) -> tuple[NDArray[np.float32], Counter[str]]:
    tower = _tower(folder).eval().to(device)
    reasons: Counter[str] = Counter()
    usable: list[int] = []
    found: list[NDArray[np.float32]] = []
    for start in range(0, len(paths), _BATCH):
        arrays = []
        for row in range(start, min(start + _BATCH, len(paths))):
            try:
                arrays.append(preparing.pixels(read_picture(pictures.folder, paths[row])))
                usable.append(row)
            except _UnusableError as reason:
                reasons[str(reason)] += 1
            except Exception:  # whatever a decoder raises over bytes that are no picture
                reasons["broken"] += 1
        if arrays:
            found.append(_asked(folder, tower, np.stack(arrays), device))
        if progress is not None:
            progress(min(start + _BATCH, len(paths)), len(paths), "encoding images")
    width = found[0].shape[1] if found else int(_width(tower))
    out_VD = np.zeros((len(paths), width), np.float32)
    if found:
        out_VD[usable] = np.concatenate(found)
    if not np.isfinite(out_VD).all():
        raise InputError(
            f"{folder}: the image encoder answered NaN or infinity for "
            f"{int((~np.isfinite(out_VD).all(1)).sum())} pictures; use another model.",
            code="image.not_finite",
        )
    return out_VD, reasons


def _tower(folder: Path) -> Any:
    auto = "AutoModel"
    with contextlib.suppress(OSError, ValueError, AttributeError, TypeError, RecursionError):
        config = json.loads((folder / "config.json").read_bytes())
        if "CLIPVisionModelWithProjection" in config.get("architectures", ()):
            auto = "CLIPVisionModelWithProjection"
    return load_encoder(folder, "image", auto)[1]


def _asked(
    folder: Path, tower: Any, pixels_B3HW: NDArray[np.float32], device: str
) -> NDArray[np.float32]:
    """[B, d] projected vectors where the model projects, else pooled ones."""
    pixels = torch.from_numpy(pixels_B3HW).to(device)
    try:
        with (
            torch.inference_mode(),
            torch.autocast("cuda", torch.bfloat16, enabled=device.startswith("cuda")),
        ):
            # a model of texts too has a way to ask for images alone
            ask = getattr(tower, "get_image_features", tower)
            answer = ask(pixel_values=pixels)
    except (ValueError, RuntimeError, TypeError) as error:
        if short_of_memory(error):
            raise
        shape = "x".join(map(str, pixels_B3HW.shape[2:]))
        raise InputError(
            f"{folder}: does not read pictures of {shape} pixels ({' '.join(str(error).split())[:120]}); "
            f"mend its {_PREPROCESSOR} or name another with --image.",
            code="image.unreadable",
        ) from error
    for part in ("image_embeds", "pooler_output"):
        if isinstance(one := getattr(answer, part, answer), torch.Tensor) and one.ndim == 2:
            vectors_BD: NDArray[np.float32] = one.float().cpu().numpy()
            return vectors_BD
    raise InputError(
        f"{folder}: is a model that gives no one vector for a picture; name another with --image.",
        code="image.unreadable",
    )


def _width(tower: Any) -> int:
    config = tower.config
    for name in ("projection_dim", "hidden_size"):
        if isinstance(width := getattr(config, name, None), int) and (
            name == "hidden_size" or hasattr(tower, "visual_projection")
        ):
            return width
    return 1  # nothing but zeros


def _middle(array_HW3: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """The middle of that size; zeros around where the picture is smaller."""
    out = np.zeros((*size, 3), np.float32)
    takes, puts = [], []
    for have, want in zip(array_HW3.shape[:2], size, strict=True):
        length = min(have, want)
        takes.append(slice((have - length) // 2, (have - length) // 2 + length))
        puts.append(slice((want - length + 1) // 2, (want - length + 1) // 2 + length))
    out[tuple(puts)] = array_HW3[tuple(takes)]
    return out


def _pair(size: Any) -> tuple[int, int]:
    if isinstance(size, dict):
        return int(size["height"]), int(size["width"])
    return int(size), int(size)


def _note(dataset: Dataset, missing: dict[str, int]) -> str:
    if not missing:
        return ""
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(missing.items()))
    return (
        f"{dataset.path}: {sum(missing.values()):,} of {dataset.num_items:,} items have no usable picture "
        f"({reasons}) and count as without an image"
    )


def _require_pillow() -> None:
    try:
        import PIL.Image  # noqa: F401 - only asked whether it is there
    except ImportError as error:
        raise UsageError(
            "pictures are decoded with pillow, which is not installed; type `pip install 'ckd-mdsr[images]'`.",
            code="image.no_pillow",
        ) from error
