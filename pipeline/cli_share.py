"""`kd-cache push | pull | merge | sign`: stores that teams share. Thin: everything is in share.py and sign.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cache.errors import UsageError
from cache.remote import Location, locate
from pipeline import console
from pipeline.share import Moved, merge, pull, push
from pipeline.sign import SignedByOption, sign_store

__all__ = ["add_commands"]

TeacherOption = Annotated[
    list[str] | None, typer.Option(help="Whose scores and factors to take; repeat it; default all.")
]


def add_commands(app: typer.Typer) -> None:
    """Give `kd-cache` its commands for sharing."""
    app.command("push", short_help="Copy a store to a folder or a cloud.")(push_command)
    app.command("pull", short_help="Copy a store from a folder or a cloud.")(pull_command)
    app.command("merge", short_help="Join the scores and factors of two stores.")(merge_command)
    app.command("sign", short_help="Sign a store, for those who will pull it.")(sign_command)


def push_command(
    store: Annotated[Path, typer.Argument(help="The store, such as cache/toys.")],
    url: Annotated[
        str,
        typer.Argument(
            help="A folder, s3://BUCKET/PATH, gs://, az:// or hf://datasets/OWNER/NAME."
        ),
    ],
    teacher: TeacherOption = None,
) -> None:
    """Copy a store, or what it keeps of some teachers, to where others can pull it; goes on where it was stopped."""
    place = _located(url)
    with console.progress(f"{store}: push", unit="bytes") as report:
        done = push(store, place, teacher or (), lambda at, total: report(at, total, ""))
    _tell(place.label, "sent", done)
    pinned = f"{place.label}@{done.digest}"
    console.hint(f"kd-cache pull {pinned}{_chosen(teacher)}")


def pull_command(
    url: Annotated[
        str,
        typer.Argument(help="Where a store was pushed to; with @sha256:... nothing else is taken."),
    ],
    cache: Annotated[
        Path | None, typer.Option("--cache", help="The copy; by default cache/<last part of URL>.")
    ] = None,
    teacher: TeacherOption = None,
    signed_by: SignedByOption = None,
) -> None:
    """Copy a store, or what it keeps of some teachers, from where it was pushed to; goes on where it was stopped."""
    place = _located(url)
    target = Path("cache") / place.name if cache is None else cache
    if not target.name or (cache is None and place.name in {".", ".."}):
        raise UsageError(
            f"{place.label if cache is None else target}: gives the copy no name; "
            "say where it goes with --cache cache/NAME.",
            code="share.no_name",
        )
    with console.progress(f"{target}: pull", unit="bytes") as report:
        done = pull(
            place,
            target,
            teacher or (),
            lambda at, total: report(at, total, ""),
            signed_by=signed_by,
        )
    _tell(str(target), "fetched", done)
    if signed_by is not None:
        console.say(f"signed by the owner of {signed_by}")
    console.hint(f"kd-student fit --cache {target} --compare")


def merge_command(
    store: Annotated[Path, typer.Argument(help="The store that takes them in.")],
    other: Annotated[Path, typer.Argument(help="A store over the same plan.")],
) -> None:
    """Copy into a store the scores and factors of another over the same plan."""
    with console.progress(f"{store}: merge", unit="bytes") as report:
        names = merge(store, other, lambda at, total: report(at, total, ""))
    what = f"took in {', '.join(names)}" if names else "has all scores and factors of it already"
    console.say(f"{store}: {what} ({other})")


def sign_command(
    store: Annotated[Path, typer.Argument(help="The store, such as cache/toys.")],
    key: Annotated[
        Path,
        typer.Option(
            help="Private key, PEM of an elliptic curve; its password in KD_SIGN_PASSWORD."
        ),
    ],
) -> None:
    """Put a signature of all that a store holds into it; it travels along and changes nothing else."""
    with console.progress(f"{store}: hashing", unit="bytes") as report:
        found = sign_store(store, key, lambda at, total: report(at, total, ""))
    console.say(f"{store}: signed, {', '.join(part.folder for part in reversed(found.parts))}")
    console.say(f"digest {found.digest}")
    console.hint(f"kd-cache verify {store} --signed-by PUBLIC.pem")


def _located(url: str) -> Location:
    """Where a store is; an empty URL would be the working directory."""
    place = locate(url)
    if not place.path:
        raise UsageError(
            "the URL is empty; a folder, s3://BUCKET/PATH, gs://, az:// or hf://datasets/OWNER/NAME was expected.",
            code="share.bad_url",
        )
    return place


def _tell(where: str, verb: str, done: Moved) -> None:
    names = ", ".join(done.names) or "no scores"
    kept = f", {console.count(done.kept, 'file')} there before" if done.kept else ""
    moved = f"{verb} {console.count(done.files, 'file')}, {console.size(done.bytes)}"
    console.say(f"{where}: {names}; {moved}{kept}")
    console.say(f"digest {done.digest}")
    for name in done.unfinished:
        what = f"what was begun of {name} besides" if name in done.names else name
        console.note(f"{where}: {what} is unfinished and was left out")


def _chosen(teachers: list[str] | None) -> str:
    return "".join(f" --teacher {name}" for name in teachers or ())
