"""P05: a tampered manifest is refused with a StoreError and nothing else, in bounded memory."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.digest import canonical_json
from cache.errors import StoreError
from cache.manifest import Entry, Manifest, parse_manifest
from tests.promises.ledger import all_kept, kept
from tests.promises.stores import script

pytestmark = pytest.mark.timeout(1800)  # of the long attacks

HARNESS = Path(__file__).with_name("manifest_memory.py")
FUZZER = Path(__file__).with_name("manifest_fuzz.py")
WHERE = "toys/plan/manifest.json"
MOST_MIB = 300

GOOD = Manifest(
    format=1,
    kind="plan",
    parents={"dataset": "sha256:" + "0" * 64},
    settings={"alpha": 1.0, "batch_size": 4, "popularity": "log"},
    counts={"batches": 16},
    files=(
        Entry(path="deep/b.parquet", size=0, sha256="sha256:" + "1" * 64),
        Entry(path="plan.parquet", size=9, sha256="sha256:" + "2" * 64),
    ),
).to_bytes()


def told(data: bytes) -> str:
    """The code that refuses these bytes, "read" where they are read, or what else was raised."""
    try:
        manifest = parse_manifest(data, WHERE, "plan")
    except StoreError as error:
        return error.code if WHERE in str(error) and str(error).isprintable() else str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "read" if manifest.to_bytes() == data else "read as something else"


def edited(**changes: Any) -> bytes:
    return canonical_json({**json.loads(GOOD), **changes}) + b"\n"


def one_file(**changes: Any) -> bytes:
    entry = {"path": "a", "sha256": "sha256:" + "1" * 64, "size": 1}
    return edited(files=[{**entry, **changes}])


BAD = "store.bad_manifest"
HAND_MADE = {
    "nothing": (b"", BAD),
    "null": (b"null\n", BAD),
    "a list": (b"[]\n", BAD),
    "a number": (b"1\n", BAD),
    "twin keys": (b'{"counts":{},' + GOOD[1:], BAD),
    "twin keys inside": (GOOD.replace(b'"alpha":1.0', b'"alpha":1.0,"alpha":2.0'), BAD),
    "twin keys in an entry": (GOOD.replace(b'"size":9', b'"size":9,"size":9'), BAD),
    "NaN": (GOOD.replace(b"1.0", b"NaN"), BAD),
    "Infinity": (GOOD.replace(b"1.0", b"-Infinity"), BAD),
    "1e999": (GOOD.replace(b"1.0", b"1e999"), BAD),
    "1.00": (GOOD.replace(b"1.0", b"1.00"), BAD),
    "a number of 5,000 digits": (GOOD.replace(b"1.0", b"7" * 5000), BAD),
    "nesting": (b"[" * 10**6 + b"]" * 10**6, BAD),
    "nesting, in settings": (GOOD.replace(b"1.0", b"[" * 900 + b"]" * 900), "read"),
    "deeper, in settings": (GOOD.replace(b"1.0", b"[" * 4000 + b"]" * 4000), BAD),
    "byte order mark": (b"\xef\xbb\xbf" + GOOD, BAD),
    "UTF-16": (GOOD.decode().encode("utf-16"), BAD),
    "UTF-8": (GOOD.replace(b"log", "lög".encode()), BAD),
    "a lone surrogate": (GOOD.replace(b"log", b"\\ud800"), "read"),
    "an escape": (GOOD.replace(b"log", b"\\u006cog"), BAD),
    "NUL": (GOOD + b"\0", BAD),
    "trailing space": (GOOD + b" ", BAD),
    "trailing object": (GOOD + GOOD, BAD),
    "no newline": (GOOD[:-1], BAD),
    "CRLF": (GOOD[:-1] + b"\r\n", BAD),
    "cut": (GOOD[:-20], BAD),
    "spaces": (json.dumps(json.loads(GOOD), sort_keys=True).encode() + b"\n", BAD),
    "keys in another order": (
        json.dumps(dict(reversed(json.loads(GOOD).items())), separators=(",", ":")).encode() + b"\n",
        BAD,
    ),
    "a comment": (b"/**/" + GOOD, BAD),
    "a key more": (edited(more=1), BAD),
    "a key less": (canonical_json({"format": 1, "kind": "plan"}) + b"\n", BAD),
    "format 3": (edited(format=3), "store.newer_format"),
    "format 3, and more": (edited(format=3, more=1), "store.newer_format"),
    "format 10**30": (edited(format=10**30), "store.newer_format"),
    "format 0": (edited(format=0), BAD),
    "format -1": (edited(format=-1), BAD),
    "format true": (edited(format=True), BAD),
    "format 1.0": (edited(format=1.0), BAD),
    "format '1'": (edited(format="1"), BAD),
    "another kind": (edited(kind="scores"), "store.wrong_kind"),
    "kind 1": (edited(kind=1), BAD),
    "parents a list": (edited(parents=[]), BAD),
    "a parent that is no digest": (edited(parents={"dataset": "sha256:" + "G" * 64}), BAD),
    "a parent in capitals": (edited(parents={"dataset": "sha256:" + "A" * 64}), BAD),
    "a short parent": (edited(parents={"dataset": "sha256:00"}), BAD),
    "md5": (edited(parents={"dataset": "md5:" + "0" * 68}), BAD),
    "settings null": (edited(settings=None), BAD),
    "counts below zero": (edited(counts={"batches": -1}), BAD),
    "counts of 2**62": (edited(counts={"batches": 2**62}), BAD),
    "counts true": (edited(counts={"batches": True}), BAD),
    "counts 1.5": (edited(counts={"batches": 1.5}), BAD),
    "files an object": (edited(files={}), BAD),
    "files of strings": (edited(files=["a"]), BAD),
    "an entry with more": (one_file(mode=511), BAD),
    "size below zero": (one_file(size=-1), BAD),
    "size of a string": (one_file(size="1"), BAD),
    "path 1": (one_file(path=1), BAD),
    "digest null": (one_file(sha256=None), BAD),
    "files out of order": (edited(files=json.loads(GOOD)["files"][::-1]), BAD),
    "a file twice": (edited(files=[json.loads(GOOD)["files"][0]] * 2), "store.unsafe_name"),
    "up and out": (one_file(path="../x"), "store.unsafe_name"),
    "absolute": (one_file(path="/x"), "store.unsafe_name"),
    "NUL in a name": (one_file(path="x\0"), "store.unsafe_name"),
}  # fmt: skip


def test_a_list_by_hand():
    found = {name: (told(data), code) for name, (data, code) in HAND_MADE.items()}
    assert told(GOOD) == "read"
    odd = [f"{name}: {one} expected, {code}" for name, (code, one) in found.items() if code != one]
    all_kept("P05", [*odd, *[""] * (len(found) - len(odd))])


def test_twin_keys_are_told_as_such():
    twins = [data for name, (data, _) in HAND_MADE.items() if name.startswith("twin")]
    for data in twins:
        with pytest.raises(StoreError, match="a key appears twice"):
            parse_manifest(data, WHERE, "plan")
    kept("P05", len(twins), len(twins))


def test_every_single_byte_changed_or_missing(long):
    """An edit that leaves canonical JSON behind is told by whatever names the manifest's digest: that is P03."""
    complaints = []
    for place in range(len(GOOD)):
        for new in (b"", b"\0", b'"', b"}", b"9", bytes([GOOD[place] ^ 1]), b",,"):
            one = told(GOOD[:place] + new + GOOD[place + 1 :])
            complaints.append("" if one == "read" or one.startswith("store.") else one)
    all_kept("P05", complaints)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=8,
)
KEYS = st.sampled_from([*json.loads(GOOD), "more"])
TEXTS = st.sampled_from([GOOD[a:b] for a in range(0, 200, 17) for b in range(a, a + 60, 13)])


def _check(data: bytes) -> None:
    one = told(data)
    assert one == "read" or one.startswith("store."), (data, one)
    kept("P05", 1, 1)


@given(changes=st.dictionaries(KEYS, json_values, min_size=1, max_size=3), canonical=st.booleans())
def _any_field(changes: dict[str, Any], canonical: bool) -> None:
    value = {**json.loads(GOOD), **changes}
    _check(json.dumps(value, sort_keys=canonical, separators=(",", ":")).encode() + b"\n")


@given(
    noise=st.binary(max_size=30) | TEXTS, place=st.integers(0, len(GOOD)), cut=st.integers(0, 60)
)
def _any_bytes(noise: bytes, place: int, cut: int) -> None:
    _check(GOOD[:place] + noise + GOOD[place + cut :])


@pytest.mark.parametrize("law", [_any_field, _any_bytes])
def test_nothing_but_our_error_comes_of_any_edit(law, long):
    settings(max_examples=20_000 if long else 300, deadline=None)(law)()


def test_memory_is_bounded_however_full_it_is(memory):
    found = json.loads(script(HARNESS, memory))
    complaints = []
    for name, (what, mib) in found.items():
        sound = what == ("read" if name in {"one string", "escapes", "sound entries"} else BAD)
        complaints.append("" if sound and mib < MOST_MIB else f"{name}: {what}, {mib} MiB")
    assert len(complaints) == 15
    all_kept("P05", complaints)


def test_a_coverage_guided_fuzzer_finds_nothing(long, tmp_path):
    """With --long, and where atheris is installed: ten minutes."""
    if not long or importlib.util.find_spec("atheris") is None:
        return
    (tmp_path / "good").write_bytes(GOOD)
    done = subprocess.run(
        [sys.executable, str(FUZZER), "-max_total_time=600", "-max_len=4096", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    kept("P05", 1, 1)
