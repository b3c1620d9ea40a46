"""P14: a push whose answer is lost does not fork or lie.

The server stores what was put and its 200 never comes: for every object in turn. The push settles it by looking, or says
that it failed and then succeeds when typed again; what lies there is the store, once. Where another store came first in
that moment, it is refused and not replaced. More in tests/share/test_faults.py.
"""

from __future__ import annotations

from cache.remote import locate
from pipeline.share import push
from tests.promises.grounds import code_of, copied, in_memory, serving, silent
from tests.promises.ledger import all_kept


def test_the_answer_to_each_object_in_turn_is_lost(long: bool) -> None:
    told: list[str] = []
    with in_memory() as folder, serving(folder) as (url, fake):
        store = copied(folder / "store")
        push(store, locate(url), (), silent)
        wanted = dict(fake.objects)
        victims = sorted(wanted, key=lambda name: not name.endswith("manifest.json"))
        for victim in victims if long else victims[:7]:
            for times in (1, 10**9):
                fake.objects.clear()
                left = iter(range(times))
                fake.fault = lambda method, key, left=left, victim=victim: (
                    ("cut", 0)
                    if (method, key) == ("PUT", victim) and next(left, None) is not None
                    else None
                )
                code = code_of(lambda: push(store, locate(url), (), silent))
                whole = fake.objects == wanted
                told.append(
                    "" if (whole if not code else code == "remote.failed") else f"{victim}: {code}"
                )
                fake.fault = lambda method, key: None
                code = code_of(lambda: push(store, locate(url), (), silent))
                told.append(
                    "" if not code and fake.objects == wanted else f"{victim} again: {code}"
                )
    all_kept("P14", told)


def test_the_answer_is_lost_and_another_store_lies_there() -> None:
    """Ours was refused because theirs came first; the refusal was lost too."""
    told: list[str] = []
    with in_memory() as folder, serving(folder) as (url, fake):
        store = copied(folder / "store")
        push(store, locate(url), (), silent)
        wanted = dict(fake.objects)
        for victim in [name for name in wanted if name.endswith("manifest.json")]:
            fake.objects.clear()
            theirs = wanted[victim].replace(b'"format":1', b'"format":1 ')

            def fault(
                method: str, key: str, victim: str = victim, theirs: bytes = theirs
            ) -> object:
                if (method, key) == ("PUT", victim):
                    fake.objects[victim] = theirs
                    return 503
                return None

            fake.fault = fault  # type: ignore[assignment]
            code = code_of(lambda: push(store, locate(url), (), silent))
            told.append("" if code in {"store.exists", "remote.failed"} else f"{victim}: {code}")
            fake.fault = lambda method, key: None
            code = code_of(lambda: push(store, locate(url), (), silent))
            told.append(
                "" if code in {"store.exists", "store.bad_manifest"} else f"{victim}: {code}"
            )
            told.append("" if fake.objects[victim] == theirs else f"{victim} was replaced")
    all_kept("P14", told)
