"""Keys to sign stores with, as `openssl ecparam -genkey` makes them, and one command line run in this very process."""

from __future__ import annotations

import contextlib
import io
import os
import signal
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from unittest import mock

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.journeys.shell import Done, words

__all__ = ["Keys", "said"]


@dataclass(frozen=True)
class Keys:
    """A pair of PEM files."""

    private: Path
    public: Path

    @classmethod
    def make(cls, folder: Path, name: str, *, curve: str = "secp256r1", password: str = "") -> Keys:
        """A fresh pair in `folder`."""
        made = ec.generate_private_key(
            {"secp256r1": ec.SECP256R1, "secp384r1": ec.SECP384R1, "secp521r1": ec.SECP521R1}.get(
                curve, ec.SECP256K1
            )()
        )
        lock = (
            serialization.BestAvailableEncryption(password.encode())
            if password
            else serialization.NoEncryption()
        )
        pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        keys = cls(folder / f"{name}.private.pem", folder / f"{name}.pem")
        keys.private.write_bytes(made.private_bytes(pem, form, lock))
        keys.public.write_bytes(
            made.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
        )
        return keys


def said(folder: Path, line: str, **more: str) -> Done:
    """Run a command line in `folder` as its console script does, in this very process: milliseconds, and a real status."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    script, *arguments = words(line)
    program = import_module(f"pipeline.cli_{Path(script).name.removeprefix('kd-')}")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with (
        contextlib.chdir(folder),
        mock.patch.dict(os.environ, more),
        mock.patch("sys.argv", [script, *arguments]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            program.main()  # the script itself would end this process
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    return Done(status, out.getvalue(), err.getvalue())
