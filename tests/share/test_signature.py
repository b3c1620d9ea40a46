"""A signature on the road: it goes where the store goes, says what it covers, and is never half right anywhere."""

from __future__ import annotations

import base64
import json
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from cache.describe import describe
from cache.digest import sha256_bytes
from cache.mirror import LIMIT, open_mirror
from cache.outline import outline_here
from cache.remote import locate
from cache.signature import (
    SIGNATURE,
    check_signature,
    parse_signature,
    read_signature_here,
    sign,
)
from cache.store import Store
from cache.verify import verify
from pipeline.build import build
from pipeline.share import merge, pull
from pipeline.sign import check_signed_here, sign_store
from tests.fakes import TableTeacher, tree
from tests.keys import Keys, said
from tests.share.conftest import Place
from tests.share.test_share import pulled, pushed, refused, silent


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys.make(tmp_path_factory.mktemp("keys"), "owner")


@pytest.fixture
def signed(store: Store, keys: Keys) -> Store:
    sign_store(store.path, keys.private, silent)
    return store


def test_a_signature_is_one_file_and_no_other_byte(store, keys):
    before, digest = tree(store.path), describe(store).digest
    sign_store(store.path, keys.private, silent)
    after = tree(store.path)
    assert after.keys() - before.keys() == {SIGNATURE}
    assert {name: after[name] for name in before} == before
    assert describe(Store.open(store.path)).digest == digest
    assert verify(store.path) == []


def test_what_is_signed_is_what_the_digest_is_the_sha256_of(signed):
    text = (signed.path / SIGNATURE).read_bytes()
    value = json.loads(text)
    inner = json.dumps(value["signed"], sort_keys=True, separators=(",", ":")).encode()
    assert sha256_bytes(inner) == describe(signed).digest
    assert value["signed"]["scores"].keys() == {"one", "two"}
    # no path of this machine in it, not even of the folder in which it was made
    payload = base64.b64decode(value["bundle"]["dsseEnvelope"]["payload"]).decode()
    assert '"name": "store"' in payload
    assert "ckd-sign-" not in payload
    assert tempfile.gettempdir() not in payload


def test_a_signature_travels_with_the_store_to_every_place(signed, any_place, tmp_path, keys):
    sent = pushed(signed, any_place)
    assert any_place.get(SIGNATURE) == (signed.path / SIGNATURE).read_bytes()
    place = locate(f"{any_place.url}@{sent.digest}")
    pull(place, tmp_path / "toys", (), silent, signed_by=keys.public)
    assert tree(tmp_path / "toys") == tree(signed.path)
    # nothing is sent twice
    before = any_place.content()
    assert pushed(signed, any_place).files == 0
    assert any_place.content() == before


def test_a_choice_of_sets_is_checked_against_the_signature_of_the_whole(
    signed, place, tmp_path, keys
):
    pushed(signed, place)
    there = locate(place.url)
    pull(there, tmp_path / "toys", ["two"], silent, signed_by=keys.public)
    chosen = Store.open(tmp_path / "toys")
    assert chosen.names == ["two"]
    assert check_signed_here(chosen, keys.public) == ["scores/one"]
    pull(there, tmp_path / "toys", (), silent, signed_by=keys.public)
    assert tree(tmp_path / "toys") == tree(signed.path)
    assert check_signed_here(chosen, keys.public) == []


def test_a_set_that_is_not_signed_does_not_spoil_the_choice_of_one_that_is(
    signed, place, tmp_path, keys
):
    pushed(signed, place)
    build(TableTeacher("three", seed=2), signed)
    for name in ("scores/three",):  # straight into the place, as who can write there may
        for path in (signed.path / name).rglob("*"):
            if path.is_file():
                place.set(path.relative_to(signed.path).as_posix(), path.read_bytes())
    there = locate(place.url)
    for teachers in ((), ["three"], ["one", "three"]):
        message = refused(
            "signature.stale",
            lambda teachers=teachers: pull(
                there, tmp_path / "no", teachers, silent, signed_by=keys.public
            ),
        )
        assert "scores/three" in message
    assert not (tmp_path / "no").exists()
    pull(there, tmp_path / "toys", ["one"], silent, signed_by=keys.public)
    assert pulled(place, tmp_path / "all").names == ("one", "three", "two")
    # what does not cover the copy is not taken along as if it did
    assert not (tmp_path / "all" / SIGNATURE).exists()


def test_a_mirror_opens_what_is_signed_and_nothing_else(signed, place, keys, tmp_path, kept):
    stranger = Keys.make(tmp_path, "stranger")
    pushed(signed, place)

    def opened(key: Path) -> Store:
        return open_mirror(locate(place.url), limit=LIMIT, report=silent, signed_by=key)

    refused("signature.invalid", lambda: opened(stranger.public))
    assert not (kept / "mirrors").exists()
    assert opened(keys.public).teachers == ["one", "two"]
    place.delete(SIGNATURE)
    refused("signature.missing", lambda: opened(keys.public))


# ------------------------------------------------------------------------------------------ growth


def test_a_store_that_grew_is_not_pushed_under_the_signature_of_before(
    signed, place, tmp_path, keys
):
    pushed(signed, place)
    pulled(place, tmp_path / "copy")
    there = place.content()
    build(TableTeacher("three", seed=2), signed)
    message = refused("signature.stale", lambda: pushed(signed, place))
    assert "scores/three" in message
    assert "kd-cache sign" in message
    assert place.content() == there
    pushed(signed, place, ["one"])  # which it covers
    sign_store(signed.path, keys.private, silent)
    pushed(signed, place)
    assert place.get(SIGNATURE) == (signed.path / SIGNATURE).read_bytes() != there[SIGNATURE]
    pulled(place, tmp_path / "copy")  # grows too, and its signature gives way to that of all
    assert tree(tmp_path / "copy") == tree(signed.path)


def test_nobody_adds_an_unsigned_set_to_a_place_that_is_signed(signed, place, tmp_path):
    pushed(signed, place)
    there = place.content()
    other = Store.open(Path(shutil.copytree(signed.path, tmp_path / "other")))
    (other.path / SIGNATURE).unlink()
    pushed(other, place)  # it holds nothing that is not signed there
    build(TableTeacher("three", seed=2), other)
    refused("signature.stale", lambda: pushed(other, place))
    assert place.content() == there


def test_a_signature_of_less_than_lies_there_does_not_replace_one_of_all(
    signed, place, tmp_path, keys
):
    pushed(signed, place)
    there = place.content()
    shutil.rmtree(signed.path / "scores" / "two")
    sign_store(signed.path, keys.private, silent)
    message = refused("signature.stale", lambda: pushed(signed, place))
    assert "scores/two" in message
    assert place.content() == there


def test_a_damaged_signature_in_a_place_gives_way_to_a_sound_one(signed, place, tmp_path, keys):
    pushed(signed, place)
    place.set(SIGNATURE, b"garbage")
    pulled(place, tmp_path / "toys")  # who asks for no signature is not stopped by a bad one
    assert not (tmp_path / "toys" / SIGNATURE).exists()
    pushed(signed, place)
    assert place.get(SIGNATURE) == (signed.path / SIGNATURE).read_bytes()


def test_a_copy_keeps_its_signature_until_one_covers_all_that_it_holds(
    signed, place, tmp_path, keys
):
    pushed(signed, place, ["one"])
    pulled(place, tmp_path / "toys")
    mine = Store.open(tmp_path / "toys")
    build(TableTeacher("mine", seed=5), mine)
    sign_store(mine.path, keys.private, silent)
    before = (mine.path / SIGNATURE).read_bytes()
    pushed(signed, place)
    pulled(place, mine.path)  # two came; neither signature covers one, two and mine
    assert mine.names == ["mine", "one", "two"]
    assert (mine.path / SIGNATURE).read_bytes() == before
    refused("signature.stale", lambda: check_signed_here(mine, keys.public))
    assert check_signed_here(mine, keys.public, ["mine"]) == []


def test_hearsay_does_not_replace_a_signature_that_covers_all_and_a_checked_one_does(
    signed, place, tmp_path, keys
):
    thief = Keys.make(tmp_path, "thief")
    pushed(signed, place)
    pulled(place, tmp_path / "toys")
    copy = tmp_path / "toys" / SIGNATURE
    sound = copy.read_bytes()
    forged = sign(outline_here(signed), thief.private, "")
    place.set(SIGNATURE, forged)
    pulled(place, tmp_path / "toys")
    assert copy.read_bytes() == sound
    there = locate(place.url)
    refused(
        "signature.invalid",
        lambda: pull(there, tmp_path / "toys", (), silent, signed_by=keys.public),
    )
    assert copy.read_bytes() == sound
    pull(
        there, tmp_path / "toys", (), silent, signed_by=thief.public
    )  # a reader who trusts that one
    assert copy.read_bytes() == forged


def test_merging_takes_the_signature_that_covers_the_sum(signed, tmp_path, keys):
    part = Store.open(Path(shutil.copytree(signed.path, tmp_path / "part")))
    shutil.rmtree(part.path / "scores" / "two")
    (part.path / SIGNATURE).unlink()
    merge(part.path, signed.path, silent)
    assert tree(part.path) == tree(signed.path)
    assert check_signed_here(part, keys.public) == []


# ------------------------------------------------------------------------------------------ signing


def test_a_damaged_store_is_not_signed(store, keys):
    shard = store.path / "scores/one/scores.zarr/c.1.0.0"
    data = shard.read_bytes()
    shard.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert "c.1.0.0" in refused(
        "store.damaged", lambda: sign_store(store.path, keys.private, silent)
    )
    assert not (store.path / SIGNATURE).exists()


def test_a_damaged_signature_is_found_without_a_key_and_signing_mends_it(signed, keys):
    path = signed.path / SIGNATURE
    path.write_bytes(path.read_bytes()[:-1])
    assert [one.code for one in verify(signed.path)] == ["signature.malformed"]
    refused("signature.malformed", lambda: check_signed_here(signed, keys.public))
    sign_store(signed.path, keys.private, silent)
    assert check_signed_here(signed, keys.public) == []


def test_the_password_of_a_key_comes_from_the_environment_and_is_never_said(
    store, tmp_path, monkeypatch
):
    locked = Keys.make(tmp_path, "locked", password="open-sesame")
    plain = Keys.make(tmp_path, "plain")
    line = f"kd-cache sign {store.path} --key"
    for key, more, word in (
        (locked, {}, "set KD_SIGN_PASSWORD"),
        (locked, {"KD_SIGN_PASSWORD": "open-barley"}, "another password"),
        (plain, {"KD_SIGN_PASSWORD": "open-sesame"}, "unset KD_SIGN_PASSWORD"),
    ):
        done = said(tmp_path, f"{line} {key.private}", **more)
        assert (done.status, len(done.lines)) == (2, 1), done
        assert word in done.err
        assert "signature.wrong_password" in done.err
        assert "open-" not in done.err + done.out
        assert not (store.path / SIGNATURE).exists()
    done = said(tmp_path, f"{line} {locked.private}", KD_SIGN_PASSWORD="open-sesame")
    assert done.status == 0, done
    assert done.out.splitlines()[0].endswith("signed, dataset, plan, scores/two, scores/one")
    assert check_signed_here(store, locked.public) == []


def test_a_wrong_password_that_decrypts_to_something_is_a_wrong_password(
    store, tmp_path, monkeypatch
):
    locked = Keys.make(tmp_path, "locked", password="open-sesame").private

    def refusal(number: int) -> str:
        try:
            load_pem_private_key(locked.read_bytes(), b"open-%d" % number)
        except ValueError as error:
            return str(error)
        return ""

    # one in some two hundred is such
    number = next(n for n in range(5000) if "password" not in refusal(n).lower())
    monkeypatch.setenv("KD_SIGN_PASSWORD", f"open-{number}")
    message = refused("signature.wrong_password", lambda: sign_store(store.path, locked, silent))
    assert "another password" in message
    assert "open-" not in message


@pytest.mark.parametrize("kind", ["absent", "public", "garbage", "curve"])
def test_what_is_no_private_key_is_refused_by_its_name(store, tmp_path, keys, kind):
    path = tmp_path / "none.pem"
    if kind == "public":
        path = keys.public
    elif kind == "garbage":
        path.write_bytes(b"-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n")
    elif kind == "curve":
        path = Keys.make(tmp_path, "odd", curve="secp256k1").private
    message = refused("signature.bad_key", lambda: sign_store(store.path, path, silent))
    assert str(path) in message
    assert "c2VjcmV0" not in message
    assert not (store.path / SIGNATURE).exists()


@pytest.mark.parametrize("kind", ["absent", "private", "garbage"])
def test_what_is_no_public_key_is_refused_by_its_name(signed, tmp_path, keys, kind):
    path = tmp_path / "none.pem"
    if kind == "private":
        path = keys.private
    elif kind == "garbage":
        path.write_bytes(b"ssh-ed25519 AAAA")
    message = refused("signature.bad_key", lambda: check_signed_here(signed, path))
    assert str(path) in message


def test_a_bundle_that_does_not_name_its_key_is_checked_all_the_same_and_in_silence(
    signed, keys, tmp_path, capsys
):
    value = json.loads((signed.path / SIGNATURE).read_bytes())
    value["bundle"]["verificationMaterial"]["publicKey"]["hint"] = ""
    text = json.dumps(value, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    loose = parse_signature(text, "loose")
    check_signature(outline_here(signed), loose, keys.public)
    stranger = Keys.make(tmp_path, "stranger")
    refused(
        "signature.invalid",
        lambda: check_signature(outline_here(signed), loose, stranger.public),
    )
    assert capsys.readouterr() == ("", "")


def test_the_bundle_is_one_that_the_librarys_own_verifier_accepts(signed, keys, tmp_path):
    """As docs/format.md tells whoever has no kd-cache: the two halves of the file, laid apart."""
    from model_signing import verifying

    value = json.loads((signed.path / SIGNATURE).read_bytes())
    folder = tmp_path / "apart"
    folder.mkdir()
    statement = json.dumps(value["signed"], sort_keys=True, separators=(",", ":"))
    (folder / "ckd-mdsr-store.json").write_text(statement)
    (tmp_path / "bundle.json").write_text(json.dumps(value["bundle"]))
    verifier = verifying.Config().use_elliptic_key_verifier(public_key=keys.public)
    verifier.verify(folder, tmp_path / "bundle.json")
    (folder / "ckd-mdsr-store.json").write_text(statement.replace("a", "b", 1))
    with pytest.raises(ValueError, match="Hash mismatch"):
        verifier.verify(folder, tmp_path / "bundle.json")


def test_without_the_library_a_signed_store_still_travels(signed, place, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "model_signing"]:
        monkeypatch.setitem(sys.modules, name, None)
    pushed(signed, place)
    pulled(place, tmp_path / "toys")
    assert tree(tmp_path / "toys") == tree(signed.path)
    assert read_signature_here(tmp_path / "toys") is not None


def test_verify_says_who_signed_or_that_nobody_asked(signed, place: Place, tmp_path, keys):
    done = said(tmp_path, f"kd-cache verify {signed.path} --signed-by {keys.public}")
    assert done.out.endswith(f"every byte hashed, signed by the owner of {keys.public}\n")
    done = said(tmp_path, f"kd-cache verify --cache {signed.path}")
    assert (done.status, "--signed-by" in done.err) == (0, True)
    done = said(tmp_path, f"kd-cache verify {signed.path} --cache {tmp_path}")
    assert (done.status, "verify.two_stores" in done.err) == (2, True)
