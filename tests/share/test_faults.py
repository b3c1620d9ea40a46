"""A network that fails: a pull ends whole or not at all, and goes on where it broke off."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from cache import objects
from cache.digest import canonical_json
from cache.errors import CkdError, RemoteError
from cache.manifest import Entry
from cache.remote import locate, open_remote
from cache.store import Store
from cache.transfer import partial
from pipeline.build import build
from tests.fakes import TableTeacher, tree
from tests.places import SECRET
from tests.share.test_share import SHARD, pulled, pushed, refused

KEY = f"shared/toys/{SHARD}"


def entry_of(store: Store, name: str) -> Entry:
    (found,) = [e for e in store.scores("one").manifest.files if name.endswith(e.path)]
    return found


@pytest.fixture
def published(fake_s3, store):
    place, fake = fake_s3
    pushed(store, place)
    fake.requests.clear()
    return place, fake


@pytest.mark.parametrize("length", [0, 1, 7, 100])
def test_a_connection_that_is_cut_is_continued_from_there(published, store, tmp_path, length):
    place, fake = published
    cuts = iter([("cut", length)])
    fake.fault = lambda method, key: next(cuts, None) if (method, key) == ("GET", KEY) else None
    pulled(place, tmp_path / "toys")
    assert tree(tmp_path / "toys") == tree(store.path)
    first, second = [
        wanted for method, key, wanted in fake.requests if (method, key) == ("GET", KEY)
    ]
    assert first == ""
    assert second.startswith(f"bytes={length}-") or not length


def test_a_pull_goes_on_with_the_bytes_that_it_has(published, store, tmp_path, monkeypatch):
    """The server cuts every answer after 20 bytes; a second pull asks for the rest only, and for no file twice."""
    place, fake = published
    monkeypatch.setattr(
        objects, "BLOCK", 16
    )  # what comes is kept in blocks; those of 1 MiB are too long here
    fake.fault = lambda method, key: ("cut", 20) if (method, key) == ("GET", KEY) else None
    with pytest.raises(RemoteError):
        pulled(place, tmp_path / "toys")
    assert not (tmp_path / "toys").exists()
    stage = tmp_path / ".pull-toys"
    left = partial(stage, SHARD, entry_of(store, SHARD)).stat().st_size
    assert 16 <= left <= 9 * 20  # three attempts of three requests
    whole = {p.relative_to(stage).as_posix() for p in stage.rglob("*") if p.is_file()}
    fake.fault = lambda method, key: None
    fake.requests.clear()
    pulled(place, tmp_path / "toys")
    assert tree(tmp_path / "toys") == tree(store.path)
    asked = {
        key.removeprefix("shared/toys/"): wanted for m, key, wanted in fake.requests if m == "GET"
    }
    assert asked[SHARD] == f"bytes={left}-"
    assert whole.isdisjoint(asked)
    assert not stage.exists()


def test_a_torn_part_is_thrown_away_and_never_trusted(published, store, tmp_path):
    place, fake = published
    stage = tmp_path / ".pull-toys"
    stage.mkdir()
    entry = entry_of(store, SHARD)
    partial(stage, SHARD, entry).write_bytes(bytes(40))  # as a power cut leaves it
    (stage / "plan").mkdir()
    (stage / "plan" / "plan.parquet").write_bytes(b"not the plan")
    (stage / "stray").write_bytes(b"of another pull")
    pulled(place, tmp_path / "toys")
    assert tree(tmp_path / "toys") == tree(store.path)
    ranges = [wanted for method, key, wanted in fake.requests if (method, key) == ("GET", KEY)]
    assert ranges == ["bytes=40-", ""]


@pytest.mark.parametrize("status", [500, 503, 403])
def test_a_server_that_keeps_failing_is_given_up_in_one_sentence(
    published, store, tmp_path, status
):
    place, fake = published
    fake.fault = lambda method, key: status if key == KEY else None
    with pytest.raises(RemoteError) as caught:
        pulled(place, tmp_path / "toys")
    assert caught.value.code == ("remote.denied" if status == 403 else "remote.failed")
    assert caught.value.exit == 7
    assert SHARD in str(caught.value)
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "toys").exists()
    assert fake.asked("GET").count(KEY) <= 9  # three attempts of three requests


def test_a_server_that_fails_now_and_then_is_asked_again(published, store, tmp_path):
    place, fake = published
    seen: set[str] = set()

    def fault(method, key):
        if method in {"GET", "HEAD"} and key not in seen:
            seen.add(key)
            return 503
        return None

    fake.fault = fault
    pulled(place, tmp_path / "toys")
    assert tree(tmp_path / "toys") == tree(store.path)


@pytest.mark.parametrize("size", [64 << 20 | 1, 2**50])
def test_a_manifest_beyond_every_measure_is_not_even_asked_for(published, tmp_path, size):
    place, fake = published
    name = "shared/toys/plan/manifest.json"
    fake.fault = lambda method, key: ("claim", size) if (method, key) == ("HEAD", name) else None
    refused("store.bad_manifest", lambda: pulled(place, tmp_path / "toys"))
    assert name not in fake.asked("GET")


def test_a_body_that_is_longer_than_declared_is_not_read_on(published, store, tmp_path):
    """The server claims 64 MiB more; the size alone refuses it, and nothing is on disk."""
    place, fake = published
    size = entry_of(store, SHARD).size
    fake.fault = lambda m, key: ("claim", size + (64 << 20)) if (m, key) == ("GET", KEY) else None
    refused("store.wrong_size", lambda: pulled(place, tmp_path / "toys"))
    stage = tmp_path / ".pull-toys"
    assert partial(stage, SHARD, entry_of(store, SHARD)).stat().st_size == 0
    assert not (tmp_path / "toys").exists()


def test_other_bytes_of_the_right_size_are_refused_and_not_kept(published, store, tmp_path):
    place, fake = published
    entry = entry_of(store, SHARD)
    fake.fault = lambda m, key: ("lie", bytes(entry.size)) if (m, key) == ("GET", KEY) else None
    refused("store.wrong_digest", lambda: pulled(place, tmp_path / "toys"))
    assert not partial(tmp_path / ".pull-toys", SHARD, entry).exists()
    assert not (tmp_path / ".pull-toys" / SHARD).exists()


def test_a_push_goes_on_and_sends_no_file_twice(fake_s3, store, tmp_path):
    """Refused from the fifth object on; then once more from the ninth; the third time it gets through."""
    place, fake = fake_s3
    for most in (4, 8):
        fake.fault = lambda m, key, most=most: (
            403 if m == "PUT" and key not in fake.objects and len(fake.objects) >= most else None
        )
        refused("remote.denied", lambda: pushed(store, place))
        assert not any(name.endswith("manifest.json") for name in fake.objects)
        refused("store.unfinished", lambda: pulled(place, tmp_path / "toys"))
    fake.fault = lambda method, key: None
    pushed(store, place)
    stored = [key for key in fake.asked("PUT") if key in fake.objects]
    refusals = len(stored) - len(
        set(stored)
    )  # those that were refused came again, the stored ones did not
    assert refusals <= 2 * 4  # at most one for each of four threads, each time
    assert not [key for key in fake.asked("GET") if not key.endswith("manifest.json")]
    assert stored[-4:] == [
        f"shared/toys/{part}/manifest.json"
        for part in ("scores/one", "scores/two", "plan", "dataset")
    ]
    pulled(place, tmp_path / "toys")
    assert tree(tmp_path / "toys") == tree(store.path)


def test_without_a_log_of_what_was_sent_objects_are_read_back_not_sent(fake_s3, store, kept):
    place, fake = fake_s3
    pushed(store, place)
    for log in (kept / "sent").iterdir():
        log.unlink()
    fake.requests.clear()
    pushed(store, place)
    assert fake.asked("PUT") == []
    assert KEY in fake.asked("GET")


def test_a_tag_of_other_bytes_is_no_evidence(fake_s3, store):
    """Someone put other bytes of the same size there: the log knows the old tag, so they are read, and replaced."""
    place, fake = fake_s3
    pushed(store, place)
    good = fake.objects[KEY]
    fake.objects[KEY] = good[::-1]
    pushed(store, place)
    assert fake.objects[KEY] == good


@pytest.mark.parametrize("part", ["scores/one", "plan", "dataset"])
def test_a_lost_answer_to_a_manifest_is_settled_by_looking(fake_s3, store, tmp_path, part):
    place, fake = fake_s3
    lost = iter([("cut", 0)])
    name = f"shared/toys/{part}/manifest.json"
    fake.fault = lambda m, key: next(lost, None) if (m, key) == ("PUT", name) else None
    pushed(store, place)
    assert fake.asked("PUT").count(name) == 2
    pulled(place, tmp_path / "toys")
    assert tree(tmp_path / "toys") == tree(store.path)


def test_a_store_that_was_published_in_the_last_moment_is_never_replaced(fake_s3, store, tmp_path):
    """Another team's manifest arrives between our last look and our put: create-only refuses ours."""
    place, fake = fake_s3
    twin = Store.create(tmp_path / "twin", store.dataset, store.plan)
    build(TableTeacher("one", seed=9), twin, shard_bytes=400)
    name = "shared/toys/scores/one/manifest.json"
    theirs = (twin.folder("one") / "manifest.json").read_bytes()

    def fault(method, key):
        if (method, key) == ("PUT", name):
            fake.objects[name] = theirs
        return

    fake.fault = fault
    refused("store.exists", lambda: pushed(store, place))
    assert fake.objects[name] == theirs


def test_a_push_that_was_disturbed_says_so(fake_s3, store):
    place, fake = fake_s3

    def fault(method, key):
        if (method, key) == ("PUT", "shared/toys/dataset/manifest.json"):
            fake.objects[KEY] = bytes(len(fake.objects[KEY]))
        return

    fake.fault = fault
    assert SHARD in refused("share.disturbed", lambda: pushed(store, place))
    fake.fault = lambda method, key: None
    assert pushed(store, place).files == 1


def test_nobody_listens_there(kept, quick_retries, monkeypatch, store, tmp_path):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "KEY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    from pipeline.share import pull

    message = refused(
        "remote.failed", lambda: pull(locate("s3://teams/x"), tmp_path / "x", (), lambda d, t: None)
    )
    assert "could not be reached" in message
    assert SECRET not in message


def test_keys_are_read_from_the_standard_files(fake_s3, store, tmp_path, monkeypatch):
    """~/.aws/credentials and config, with a profile; the request that comes is signed with that key."""
    place, fake = fake_s3
    (tmp_path / "aws").mkdir()
    (tmp_path / "aws" / "credentials").write_text(
        "[default]\naws_access_key_id = WRONG\naws_secret_access_key = WRONG\n"
        "[team]\naws_access_key_id = FROMFILE\naws_secret_access_key = abc\n"
    )
    (tmp_path / "aws" / "config").write_text("[profile team]\nregion = eu-west-3\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "aws" / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "aws" / "config"))
    monkeypatch.setenv("AWS_PROFILE", "team")
    pushed(store, place)
    assert fake.signed
    for header in fake.signed:
        assert "Credential=FROMFILE/" in header
        assert "/eu-west-3/s3/" in header


def test_an_answer_that_is_no_manifest_is_an_error_of_ours(published, tmp_path):
    place, fake = published
    fake.objects["shared/toys/plan/manifest.json"] = canonical_json({"a": Path("b").name}) + b"\n"
    with pytest.raises(CkdError):
        pulled(place, tmp_path / "toys")


@pytest.mark.parametrize("address", ["minio.corp:9000", ""])
def test_an_address_without_http_is_told_by_its_variable(kept, monkeypatch, address):
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    message = refused("share.bad_endpoint", lambda: open_remote(locate("s3://shared/toys")))
    assert message.startswith(f"AWS_ENDPOINT_URL: {address!r} is no address")


def test_settings_that_boto3_cannot_make_keys_of_are_one_sentence(kept, tmp_path, monkeypatch):
    """A region and no keys: boto3 is asked for them, and finds none."""
    (tmp_path / "config").write_text("[default]\nregion = eu-central-1\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_SKIP_SIGNATURE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    boto3 = SimpleNamespace(Boto3CredentialProvider=lambda: (_ for _ in ()).throw(ValueError))
    monkeypatch.setitem(sys.modules, "obstore.auth.boto3", boto3)
    refused("remote.denied", lambda: open_remote(locate("s3://shared/toys")))
