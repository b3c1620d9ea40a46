"""A disk that loses its power: what it may hold, worked out from the system calls that a program made.

Of a file the bytes that were there at its last fsync are certain, of a folder the names that were there at its last. All
since then may be kept, lost or, of bytes, torn, each on its own. Stricter than most file systems, as POSIX permits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TypeAlias

__all__ = ["CALLS", "WAYS", "Disk", "replayed"]

#: system calls to be logged, by `strace -y -xx -s 9999999`
CALLS = "openat,write,sendfile,fsync,rename,unlink,unlinkat,mkdir,rmdir,link,linkat,ftruncate"

_LINE = re.compile(r"(\d+) +([a-z0-9]+)\((.*)\) += (-?\d+)")
_HEX = re.compile(r'["<]((?:\\x[0-9a-f]{2})*)[">]')


@dataclass(eq=False)
class File:
    data: bytearray = field(default_factory=bytearray)
    synced: bytes = b""


@dataclass(eq=False)
class Folder:
    names: dict[str, Node] = field(default_factory=dict)
    synced: dict[str, Node] = field(default_factory=dict)


Node: TypeAlias = File | Folder
#: (folder, name, what it becomes): one call may change two names, then both or neither
Change: TypeAlias = tuple[Folder, str, Node | None]

Keeps = Callable[[], bool]
Torn = Callable[[File], bytes]


class Disk:
    """The files below one folder, as the program sees them and as the disk is bound to hold them."""

    def __init__(self, root: Path) -> None:
        """What lies at `root` now is certain."""
        self.root = root
        self._top = Folder()
        self._pending: list[list[Change]] = []
        for path in sorted(root.rglob("*")):
            data = None if path.is_dir() else path.read_bytes()
            node: Node = Folder() if data is None else File(bytearray(data), data)
            parent, name = self._place(path)
            parent.names[name] = parent.synced[name] = node

    def call(self, name: str, words: list[bytes], result: int, rest: str) -> None:
        """Follow one system call.

        Args:
            words: what it names and hands over: paths of descriptors, paths, bytes.
        """
        if result < 0:
            return
        paths = [Path(word.decode("utf-8", "surrogateescape")) for word in words]
        match name:
            case "openat" if self._within(paths[1]) and "O_CREAT" in rest:
                parent, last = self._place(paths[1])
                if last not in parent.names:
                    self._change((parent, last, File()))
            case "write" if self._within(paths[0]):
                self._file(paths[0]).data += words[1][:result]
            case "sendfile" if self._within(paths[0]):
                self._file(paths[0]).data += paths[1].read_bytes()[:result]
            case "fsync" if self._within(paths[0]):
                self._sync(self._node(paths[0]))
            case "rename" if self._within(paths[0]):
                (here, old), (there, new) = map(self._place, paths)
                self._change((here, old, None), (there, new, here.names[old]))
            case "mkdir" if self._within(paths[0]):
                self._change((*self._place(paths[0]), Folder()))
            case "unlink" | "rmdir" if self._within(paths[0]):
                self._change((*self._place(paths[0]), None))
            case "unlinkat" if self._within(paths[0] / paths[1]):
                self._change((*self._place(paths[0] / paths[1]), None))
            case "link" | "linkat" | "ftruncate" if any(map(self._within, paths)):
                raise NotImplementedError(name)

    def left(self, target: Path, keeps: Keeps, torn: Torn) -> None:
        """Lay down at `target` what is found after the power came back.

        Args:
            keeps: asked for each change of names that is not certain.
            torn: the bytes of a file that are found where they are not certain.
        """
        found: dict[tuple[int, str], tuple[Folder, Node | None]] = {}
        for changes in self._pending:
            if keeps():
                found |= {(id(folder), name): (folder, node) for folder, name, node in changes}

        def lay(folder: Folder, place: Path) -> None:
            place.mkdir(exist_ok=True)
            names: dict[str, Node | None] = dict(folder.synced)
            names |= {n: node for (_, n), (where, node) in found.items() if where is folder}
            for name, node in names.items():
                if isinstance(node, Folder):
                    lay(node, place / name)
                elif node is not None:
                    sure = node.synced == node.data
                    (place / name).write_bytes(node.synced if sure else torn(node))

        lay(self._top, target)

    def _change(self, *changes: Change) -> None:
        self._pending.append(list(changes))
        for folder, name, node in changes:
            if node is None:
                del folder.names[name]
            else:
                folder.names[name] = node

    def _sync(self, node: Node) -> None:
        if isinstance(node, File):
            node.synced = bytes(node.data)
            return
        done = [one for one in self._pending if any(folder is node for folder, *_ in one)]
        self._pending = [one for one in self._pending if one not in done]
        for folder, name, what in (change for one in done for change in one):
            if what is None:
                folder.synced.pop(name, None)
            else:
                folder.synced[name] = what

    def _within(self, path: Path) -> bool:
        return path.is_relative_to(self.root)

    def _node(self, path: Path) -> Node:
        node: Node = self._top
        for name in path.relative_to(self.root).parts:
            assert isinstance(node, Folder)
            node = node.names[name]
        return node

    def _file(self, path: Path) -> File:
        node = self._node(path)
        assert isinstance(node, File)
        return node

    def _place(self, path: Path) -> tuple[Folder, str]:
        parent = self._node(path.parent)
        assert isinstance(parent, Folder)
        return parent, path.name


def replayed(disk: Disk, log: Path) -> Iterator[tuple[str, Path]]:
    """Follow a log of strace; yields each call and its path before it is followed, and at the end ``end``."""
    for line in log.read_text().splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        _, name, rest, result = match.groups()
        words = [bytes.fromhex(word.replace("\\x", "")) for word in _HEX.findall(rest)]
        yield name, Path(words[0].decode("utf-8", "surrogateescape"))
        disk.call(name, words, int(result), rest)
    yield "end", disk.root


def _cut(dice: Random, file: File) -> bytes:
    """What was certain, some of what was not, and of the rest the length alone."""
    sure = len(file.synced)
    some = dice.randint(sure, len(file.data))
    tail = dice.choice([b"", bytes(len(file.data) - some), dice.randbytes(len(file.data) - some)])
    return bytes(file.data[:some]) + tail


#: ways in which what is not certain turns out, by name
WAYS: dict[str, Callable[[Random], tuple[Keeps, Torn]]] = {
    "all lost": lambda dice: (lambda: False, lambda file: file.synced),
    "names without bytes": lambda dice: (lambda: True, lambda file: file.synced),
    "names and torn bytes": lambda dice: (lambda: True, lambda file: _cut(dice, file)),
    "some of each": lambda dice: (
        lambda: dice.random() < 0.5,
        lambda file: dice.choice([file.synced, bytes(file.data), _cut(dice, file)]),
    ),
}
