"""Which format a source has, told from names and the first line; never guessed where two fit.

Reads one line at most. Refuses what it does not know, with the list of formats.
"""

from __future__ import annotations

from pathlib import Path

from cache.errors import UsageError
from pipeline.ingest.amazon import DIALECTS, metadata_files, review_files
from pipeline.ingest.delimited import broken_stream, open_text
from pipeline.ingest.jsonlines import first_object
from pipeline.ingest.recbole import interaction_files
from pipeline.ingest.recformer import FILES
from pipeline.ingest.tables import SUFFIXES, find_tables
from pipeline.ingest.unisrec import dataset_names

__all__ = ["FORMATS", "detect", "must_exist"]

FORMATS = ("csv", "parquet", "recbole", "unisrec", "recformer", "amazon2018", "amazon2023")

_RATINGS_CELLS = 4


def detect(source: Path) -> str:
    """The name of the format.

    Raises:
        UsageError: ``ingest.no_source``, ``ingest.unknown_format``, ``ingest.two_formats``.
    """
    must_exist(source)
    found = _of_folder(source) if source.is_dir() else _of_file(source)
    if found is None:
        raise UsageError(
            f"{source}: is of no format known by its names or first line; say which with --format: "
            f"{', '.join(FORMATS)}.",
            code="ingest.unknown_format",
        )
    return found


def must_exist(path: Path) -> None:
    """Refuse a source that is not there."""
    if not path.exists():
        raise UsageError(
            f"{path}: is not there; a file or folder to ingest was expected.",
            code="ingest.no_source",
        )


def _of_folder(folder: Path) -> str | None:
    fitting = _fitting(folder)
    if len(fitting) > 1:
        raise UsageError(
            f"{folder}: has {' and '.join(fitting.values())}; say which with --format: {', '.join(fitting)}.",
            code="ingest.two_formats",
        )
    if not fitting and metadata_files(folder):
        reviews = review_files(folder)
        return _of_file(reviews[0]) if reviews else "amazon2018"
    return next(iter(fitting), None)


def _fitting(folder: Path) -> dict[str, str]:
    """Formats, but for Amazon's, whose files are there, each with the name of one of them."""
    fitting = {
        kind: found[0].name
        for kind in SUFFIXES
        if (found := find_tables(folder, "interactions", kind))
    }
    if names := dataset_names(folder):  # its files end as RecBole's do
        fitting["unisrec"] = f"{names[0]}.train.inter"
    elif atomic := interaction_files(folder):
        fitting["recbole"] = atomic[0].name
    if all((folder / name).is_file() for name in FILES):
        fitting["recformer"] = FILES[0]
    return fitting


def _of_file(path: Path) -> str | None:
    name = path.name.removesuffix(".gz")
    if name.endswith(".train.inter"):
        return "unisrec"
    if name.endswith(".inter"):
        return "recbole"
    if name.endswith(".parquet"):
        return "parquet"
    if name.endswith((".csv", ".tsv")):
        return "amazon2018" if _headerless_ratings(path) else "csv"
    if name.endswith((".json", ".jsonl")):
        keys = first_object(path).keys()
        return next((n for n, d in DIALECTS.items() if {d.user, d.item, d.time} <= keys), None)
    return None


def _headerless_ratings(path: Path) -> bool:
    with open_text(path) as file, broken_stream(path):
        cells = file.readline().strip().split(",")
    if len(cells) != _RATINGS_CELLS:
        return False
    try:
        return float(cells[2]) <= 10 and float(cells[3]) > 0
    except ValueError:
        return False
