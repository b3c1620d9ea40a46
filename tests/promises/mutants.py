"""Tests the tests: takes one safeguard away at a time and asks whether the test that guards it turns red.

    python tests/promises/mutants.py [WORD...]    all mutants, or those whose name holds a word

Each mutant is a text that stands exactly once in a file, and what stands there without the safeguard; it is put into a copy
of the packages and tests in a temporary folder, and one test is run there. Prints a line each and `mutants killed N/N`; ends
with 1 if one lives, if a text is not found exactly once, or if a test is red before anything was taken away.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("cache", "encoder", "teachers", "student", "pipeline", "tests")

RED = 1  # pytest: some tests failed; other statuses say that none was run


class Mutant(NamedTuple):
    """One safeguard taken away."""

    name: str
    file: str
    old: str
    new: str
    test: str  #: the pytest node that must turn red


P = "tests/promises"

MUTANTS = [
    Mutant(
        "files are not fsynced",
        "cache/atomic.py",
        "            os.fsync(file.fileno())\n            if create:",
        "            if create:",
        f"{P}/test_p02_power.py::test_the_power_goes_before_an_fsync",
    ),
    Mutant(
        "folders are not fsynced",
        "cache/atomic.py",
        "    handle = os.open(folder, os.O_RDONLY)\n    try:\n        os.fsync(handle)",
        "    handle = os.open(folder, os.O_RDONLY)\n    try:\n        pass",
        f"{P}/test_p02_power.py::test_the_power_goes_before_an_fsync",
    ),
    Mutant(
        "a new folder's name is not fsynced",
        "cache/atomic.py",
        "    for path in new:\n        sync_folder(path.parent)",
        "    for path in new:\n        pass",
        f"{P}/test_p02_power.py::test_the_power_goes_before_an_fsync",
    ),
    Mutant(
        "a staged tree is not fsynced",
        "cache/atomic.py",
        "            sync_tree(aside)\n",
        "",
        f"{P}/test_p02_power.py::test_the_power_goes_before_an_fsync[plan-2]",
    ),
    Mutant(
        "a journal's line is not fsynced",
        "cache/atomic.py",
        'file.write(line.rstrip(b"\\n") + b"\\n")\n                os.fsync(file.fileno())',
        'file.write(line.rstrip(b"\\n") + b"\\n")',
        f"{P}/test_p02_power.py::test_the_power_goes_before_an_fsync",
    ),
    Mutant(
        "half a line stays in a journal",
        "cache/atomic.py",
        "                    file.truncate(end)",
        "                    pass",
        "tests/cache/test_atomic.py::test_a_journal_that_finds_no_room_is_as_it_was",
    ),
    Mutant(
        "what the living write is swept",
        "cache/atomic.py",
        "            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)\n            _remove(debris)",
        "            _remove(debris)",
        "tests/cache/test_atomic.py::test_what_the_killed_left_goes_and_what_the_living_hold_stays",
    ),
    Mutant(
        "a file is written in its place",
        "cache/atomic.py",
        "            aside.replace(path)",
        "            data = aside.read_bytes(); aside.unlink(); path.write_bytes(data)",
        f"{P}/test_p02_power.py::test_the_power_goes_before_an_fsync",
    ),
    Mutant(
        "debris is not swept",
        "cache/unfinished.py",
        "            sweep(work)\n",
        "            pass\n",
        f"{P}/test_p22_debris.py::test_debris_goes_as_soon_as_the_work_goes_on",
    ),
    Mutant(
        "half-written files lie in the set",
        "cache/journal.py",
        "            digest = sha256_bytes(*pieces)\n            put(self.folder / name, *pieces, aside=self.folder)",
        "            digest = sha256_bytes(*pieces)\n            put(self.folder / name, *pieces)",
        f"{P}/test_p11_two_writers.py::test_nothing_half_written_ever_lies_in_a_set",
    ),
    Mutant(
        "a disk's error is not told as one",
        "cache/atomic.py",
        '        raise DiskError(f"{path}: {cause}; {remedy}.", code="disk.refused") from error',
        "        raise",
        f"{P}/test_p10_full_disk.py::test_every_call_refuses_once",
    ),
    Mutant(
        "what a refused write left stays",
        "cache/atomic.py",
        "        aside.unlink(missing_ok=True)\n        raise\n    sync_folder(path.parent)",
        "        raise\n    sync_folder(path.parent)",
        "tests/cache/test_atomic.py",
    ),
    Mutant(
        "modes do not follow the umask",
        "cache/atomic.py",
        "            os.fchmod(file.fileno(), 0o666 & ~_umask())\n",
        "",
        f"{P}/test_p16_same_bytes.py",
    ),
    Mutant(
        "a journal's bytes are not hashed: existence is trusted",
        "cache/journal.py",
        "            return sha256_file(self.folder / name) == entry.sha256",
        "            return True",
        f"{P}/test_p22_debris.py::test_a_line_of_bytes_that_are_not_there_is_not_believed",
    ),
    Mutant(
        "the journal is not asked: existence is trusted",
        "cache/journal.py",
        "        if entry is None or not self.there(name):\n            return False",
        "        if entry is None:\n            return (self.folder / name).exists()",
        f"{P}/test_p22_debris.py::test_a_file_without_a_line_is_not_believed",
    ),
    Mutant(
        "other work is gone on with",
        "cache/unfinished.py",
        "    if data == _identity(parents, settings):\n        return True",
        "    if data:\n        return True",
        "tests/pipeline/test_build.py::test_unfinished_work_of_another_teacher_is_refused_by_name",
    ),
    Mutant(
        "strays are sealed in",
        "cache/unfinished.py",
        "        _clear_strays(staged, {*files, *more})\n",
        "",
        f"{P}/test_p22_debris.py::test_what_dead_writers_left_is_swept",
    ),
    Mutant(
        "what the disk gives back is not compared",
        "cache/unfinished.py",
        "if given is not None and given != entry.sha256:",
        "if False:",
        f"{P}/test_p22_debris.py::test_a_disk_that_gives_back_other_bytes_is_told",
    ),
    Mutant(
        "the lock is not taken",
        "pipeline/sets.py",
        "            lock.acquire()\n",
        "            pass\n",
        f"{P}/test_p11_two_writers.py::test_one_builds_and_the_others_are_told_who",
    ),
    Mutant(
        "a claim is not looked at",
        "cache/claims.py",
        "        return self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB, unit + 1)",
        "        return True",
        f"{P}/test_p19_ranks.py::test_a_claim_is_one_process_s_until_it_frees_it_or_dies",
    ),
    Mutant(
        "a hand's block is taken without its digest",
        "cache/journal.py",
        "        if not other.whole(name):",
        "        if not other.there(name):",
        f"{P}/test_p19_ranks.py::test_what_a_hand_leaves_counts_by_its_digest",
    ),
    Mutant(
        "what a hand has done is done again",
        "pipeline/together.py",
        "                    if not self._adopt(part, unit.name):",
        "                    if True:",
        f"{P}/test_p19_ranks.py::test_1_2_and_4_processes_give_the_store_of_one_alone",
    ),
    Mutant(
        "what a hand is writing is swept",
        "cache/unfinished.py",
        "        if not (work / HANDS).is_dir():",
        "        if work:",
        f"{P}/test_p19_ranks.py::test_what_a_hand_is_writing_is_let_be_by_a_new_lead",
    ),
    Mutant(
        "sizes are not compared",
        "cache/manifest.py",
        "whole = stat.S_ISREG(status.st_mode) and status.st_size == entry.size",
        "whole = stat.S_ISREG(status.st_mode)",
        f"{P}/test_p04_wrong_files.py::test_each_harm_to_each_file_has_its_code",
    ),
    Mutant(
        "digests are not compared",
        "cache/manifest.py",
        "        elif found != entry.sha256:",
        "        elif found == '':",
        f"{P}/test_p03_flipped_bits.py::test_every_flipped_bit_is_found_by_verify",
    ),
    Mutant(
        "names are not in the digest",
        "cache/manifest.py",
        'value["files"] = [asdict(entry) for entry in self.files]',
        'value["files"] = [{**asdict(entry), "path": ""} for entry in self.files]',
        f"{P}/test_p04_wrong_files.py::test_two_files_of_one_size_that_changed_places",
    ),
    Mutant(
        "links are followed",
        "cache/manifest.py",
        "status = path.lstat()\n                whole",
        "status = path.stat()\n                whole",
        f"{P}/test_p04_wrong_files.py::test_each_harm_to_each_file_has_its_code",
    ),
    Mutant(
        "extra files are let be",
        "cache/manifest.py",
        "for name in sorted(present.keys() - {entry.path for entry in manifest.files}):",
        "for name in sorted(present.keys() - present.keys()):",
        f"{P}/test_p04_wrong_files.py::test_a_stranger_is_named",
    ),
    Mutant(
        "twin keys are accepted",
        "cache/manifest.py",
        "    if len(value) != len(pairs):",
        "    if False:",
        f"{P}/test_p05_manifests.py::test_twin_keys_are_told_as_such",
    ),
    Mutant(
        "any spelling of a manifest is accepted",
        "cache/manifest.py",
        "    if canonical != data:",
        "    if False:",
        f"{P}/test_p05_manifests.py::test_a_list_by_hand",
    ),
    Mutant(
        "a newer format is read",
        "cache/manifest.py",
        "not isinstance(version, bool) and version > FORMAT:",
        "not isinstance(version, bool) and version < 0:",
        f"{P}/test_p05_manifests.py::test_a_list_by_hand",
    ),
    Mutant(
        "endless nesting ends the program",
        "cache/manifest.py",
        "    except (ValueError, RecursionError) as error:",
        "    except ValueError as error:",
        f"{P}/test_p05_manifests.py::test_a_list_by_hand",
    ),
    Mutant(
        "manifests may be dense",
        "cache/manifest.py",
        "> _FEW + len(data) // _DENSEST:",
        "> len(data):",
        f"{P}/test_p05_manifests.py::test_memory_is_bounded_however_full_it_is",
    ),
    Mutant(
        "names are not checked",
        "cache/paths.py",
        "    if not all(\n        _PART.fullmatch(part)",
        "    if not all(\n        part or _PART.fullmatch(part)",
        f"{P}/test_p05_manifests.py::test_a_list_by_hand",
    ),
    Mutant(
        "the plan's parent is not compared",
        "cache/store.py",
        "        if parent != inner.digest:",
        "        if False:",
        f"{P}/test_p06_lineage.py::test_a_dataset_or_plan_of_another_store",
    ),
    Mutant(
        "the parents of scores are not compared",
        "cache/lineage.py",
        "        if parent != found:",
        "        if False:",
        f"{P}/test_p06_lineage.py::test_scores_and_factors_of_another_dataset_or_plan",
    ),
    Mutant(
        "a table's bytes are read unproven",
        "cache/proven.py",
        '    if (digest := f"sha256:{whole.hexdigest()}") != entry.sha256:',
        '    if not (digest := f"sha256:{whole.hexdigest()}"):',
        "tests/cache/test_proven.py::test_other_bytes_are_refused_and_no_copy_is_left",
    ),
    Mutant(
        "scores move between plans",
        "cache/store.py",
        "    if plan.digest != target.plan.digest:",
        "    if False:",
        f"{P}/test_p06_lineage.py::test_scores_and_factors_of_another_dataset_or_plan",
    ),
    Mutant(
        "factors beside other scores are read",
        "cache/store.py",
        "        if (beside / MANIFEST).exists():",
        "        if False:",
        f"{P}/test_p06_lineage.py::test_another_temperature_or_teacher",
    ),
    Mutant(
        "zarr.json is not compared",
        "cache/scores.py",
        "        if found != wanted or sha256_bytes(found) != metadata.sha256:",
        "        if False:",
        "tests/cache/test_store.py::test_an_edited_manifest_is_refused",
    ),
    Mutant(
        "a shard's digest is not compared",
        "cache/scores.py",
        'if f"sha256:{hashlib.sha256(shard.data.data).hexdigest()}" != expected:',
        "if False:",
        "tests/cache/test_verify.py::test_two_swapped_chunks_are_refused",
    ),
    Mutant(
        "a chunk is not checked when it is handed out",
        "cache/scores.py",
        "        if _fingerprint(shard.chunks[place]) != shard.fingerprints[place]:",
        "        if False:",
        "tests/cache/test_scores.py::test_chunks_swapped_in_place_are_noticed_at_once",
    ),
    Mutant(
        "a shard's index is not compared",
        "cache/scores.py",
        "        if not np.array_equal(shard.data[-len(index) :], index):",
        "        if False:",
        f"{P}/test_p03_flipped_bits.py::test_an_index_that_is_sealed_but_false_is_refused",
    ),
    Mutant(
        "NaN is accepted from a teacher",
        "cache/score_writer.py",
        "    if finite_TC.all():\n        return",
        "    return",
        "tests/cache/test_scores.py::test_a_broken_teacher_writes_nothing",
    ),
    Mutant(
        "a factor file's digest is not compared",
        "cache/factors.py",
        'if f"sha256:{hashlib.sha256(memory).hexdigest()}" != digest:',
        "if False:",
        f"{P}/test_p03_flipped_bits.py::test_every_flipped_bit_stops_whoever_reads",
    ),
    Mutant(
        "a mapped file may be a link",
        "cache/mapped.py",
        'os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)',
        "os.O_RDONLY",
        f"{P}/test_p04_wrong_files.py::test_a_link_put_in_after_opening_is_not_followed",
    ),
    Mutant(
        "a tensor may reach beyond its storage",
        "teachers/weights.py",
        "            if math.prod(shape) > count or (0 not in shape and last >= count):",
        "            if False:",
        "tests/teachers/test_weights_hostile.py",
    ),
    Mutant(
        "a pickle may be of any size",
        "teachers/weights.py",
        "    if len(pickles) != 1 or pickles[0].file_size > _MAX_PICKLE:",
        "    if len(pickles) != 1:",
        "tests/teachers/test_weights_hostile.py",
    ),
    Mutant(
        "compressed entries are opened",
        "teachers/weights.py",
        "    if any(e.compress_type != zipfile.ZIP_STORED or e.flag_bits & _ENCRYPTED for e in entries):",
        "    if False:",
        "tests/teachers/test_weights_hostile.py",
    ),
    Mutant(
        "a pickle is unpickled",
        "teachers/weights.py",
        "    value = _entries(read_pickle(archive.read(pickles[0])))",
        "    value = _entries(__import__('pickle').loads(archive.read(pickles[0])))",
        "tests/teachers/test_weights_hostile.py",
    ),
]


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(words: list[str]) -> int:
    chosen = [one for one in MUTANTS if not words or any(word in one.name for word in words)]
    complaints = [text for one in MUTANTS if (text := _misplaced(one))]
    for text in complaints:
        say(text)
    if complaints:
        return 1
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        for package in PACKAGES:
            shutil.copytree(
                ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__")
            )
        shutil.copyfile(ROOT / "pyproject.toml", copy / "pyproject.toml")
        for folder in ("docs", "shared"):
            if (ROOT / folder).exists():
                (copy / folder).symlink_to(ROOT / folder)
        tests = sorted({test for one in chosen for test in one.test.split()})
        if status := _run(copy, tests, "--quiet"):
            say(f"the tests are red before anything is taken away (pytest ended with {status})")
            return 1
        killed = sum(_killed(copy, one) for one in chosen)
    say(f"mutants killed {killed}/{len(chosen)}")
    return 0 if killed == len(chosen) else 1


def _misplaced(mutant: Mutant) -> str:
    count = (ROOT / mutant.file).read_text().count(mutant.old)
    return f"{mutant.name}: its text stands {count} times in {mutant.file}" if count != 1 else ""


def _killed(copy: Path, mutant: Mutant) -> bool:
    file = copy / mutant.file
    good = file.read_text()
    file.write_text(good.replace(mutant.old, mutant.new))
    status = _run(copy, mutant.test.split())
    file.write_text(good)
    said = {0: "LIVES", RED: "killed"}.get(status, f"NO TEST WAS RUN, pytest ended with {status}")
    say(f"{mutant.name}: {said} ({mutant.test})")
    return status == RED


def _run(copy: Path, tests: list[str], *more: str) -> int:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly"]
    done = subprocess.run(
        [*command, *([] if more else ["-x"]), *tests],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if more and done.returncode:
        say(done.stdout[-3000:])
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
