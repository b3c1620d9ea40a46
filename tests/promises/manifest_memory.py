"""Run by the test of P05: reads manifests made to be large in memory, each in a fork; prints JSON {name: [what, MiB]}.

MiB is the most that the fork ever held, this program's own 100 or so among them.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from cache.errors import StoreError
from cache.manifest import MANIFEST, MAX_BYTES, read_manifest

ENTRY = b'{"path":"%07d","sha256":"sha256:%064x","size":1}'
HEAD, TAIL = (
    b'{"counts":{},"files":[',
    b'],"format":1,"kind":"plan","parents":{},"settings":{%s}}\n',
)


def filled(piece: bytes, size: int) -> bytes:
    return (piece * (size // len(piece) + 1))[:size]


def _entries(most: int) -> bytes:
    return b",".join(ENTRY % (number, number) for number in range(most // 125))


#: name: a manifest of about so many bytes
BODIES: dict[str, Callable[[int], bytes]] = {
    "empty lists": lambda n: HEAD + filled(b"[],", n) + b"[]" + TAIL % b"",
    "empty objects": lambda n: HEAD + filled(b"{},", n)[:-1] + TAIL % b"",
    "numbers": lambda n: HEAD + filled(b"7,", n)[:-1] + TAIL % b"",
    "short strings": lambda n: HEAD + TAIL % (b'"a":[' + filled(b'"ab",', n) + b'"ab"]'),
    "keys": lambda n: b"{" + b",".join(b'"%x":0' % k for k in range(n // 12)) + b"}",
    "keys, thinner": lambda n: b"{" + b",".join(b'"%024x":0' % k for k in range(n // 29)) + b"}",
    "lists, thinner": lambda n: HEAD + filled(b"[]," + b" " * 45, n) + b"[]" + TAIL % b"",
    "one string": lambda n: HEAD + TAIL % (b'"a":"' + b"x" * n + b'"'),
    "one number": lambda n: HEAD + TAIL % (b'"a":' + b"7" * n),
    "nesting": lambda n: b"[" * n,
    "nested objects": lambda n: filled(b'{"a":', n),
    "nesting of 1,000,000, closed": lambda n: b"[" * 1_000_000 + b"]" * 1_000_000,
    "escapes": lambda n: HEAD + TAIL % (b'"a":"' + b"\\u0000" * (n // 6) + b'"'),
    "sound entries": lambda n: HEAD + _entries(n) + TAIL % b"",
    "65 MiB": lambda n: bytes(65 << 20),
}


def forked(work: Callable[[], str]) -> tuple[str, int]:
    """What a fork says, and the MiB it held at most."""
    hear, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(tell, work().encode())
        os._exit(0)
    _, _, usage = os.wait4(child, 0)
    os.close(tell)
    with os.fdopen(hear, "rb") as said:
        return said.read().decode(), usage.ru_maxrss >> 10


def main(folder: Path) -> None:
    def write(name: str) -> str:
        (folder / MANIFEST).write_bytes(BODIES[name](MAX_BYTES - 500))
        return ""

    def read() -> str:
        try:
            read_manifest(folder, "plan")
        except StoreError as error:
            return error.code
        except BaseException as error:
            return f"{type(error).__name__}: {error}"[:300]
        return "read"

    told = {}
    for name in BODIES:
        forked(lambda name=name: write(name))
        told[name] = forked(read)
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
