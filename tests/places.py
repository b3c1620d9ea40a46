"""Places to share stores at: a real S3 server on the loopback, and a small one that fails on demand."""

from __future__ import annotations

import hashlib
import re
import socket
import subprocess
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import rclone_api.api

KEY, SECRET = "LOOPBACKKEY", "loopback-secret-5f3a9c"
BUCKET = "teams"


def s3_environment(address: str) -> dict[str, str]:
    """What a person would have set."""
    return {
        "AWS_ENDPOINT_URL": f"http://{address}",
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
    }


@contextmanager
def rclone_s3(root: Path) -> Iterator[dict[str, str]]:
    """An S3 server that checks keys and keeps objects as files below `root`; yields the environment for it.

    It knows neither byte ranges nor If-None-Match.
    """
    (root / BUCKET).mkdir(parents=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [str(rclone_api.api.BINARY_PATH), "serve", "s3", "--addr", address]
    command += ["--auth-key", f"{KEY},{SECRET}", "--config", "", str(root)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        for line in server.stderr:
            if "Starting s3 server" in line:
                break
        else:
            raise AssertionError("rclone did not start")
        drain = threading.Thread(target=server.stderr.read, daemon=True)
        drain.start()
        try:
            yield s3_environment(address)
        finally:
            server.kill()
            drain.join()


#: hears (method, key), gives what goes wrong: a status, ("cut", bytes), ("claim", size), ("lie", bytes) or None
Fault = Callable[[str, str], "int | tuple[str, int] | tuple[str, bytes] | None"]


class FakeS3:
    """Objects in a dict, with ranges and create-only puts; every request is noted and may be made to fail."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, str]] = []  #: method, key, range
        self.fault: Fault = lambda method, key: None
        self.signed: list[str] = []  #: Authorization headers

    def asked(self, method: str) -> list[str]:
        """Keys of the requests of one kind, in order."""
        return [key for kind, key, _ in self.requests if kind == method]

    @contextmanager
    def serving(self) -> Iterator[dict[str, str]]:
        """Serve on the loopback; yields the environment for it."""
        fake = self

        class Handler(_Handler):
            store = fake

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield s3_environment(f"127.0.0.1:{server.server_port}")
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


class _Handler(BaseHTTPRequestHandler):
    store: FakeS3
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet: no waiting for acknowledgements

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""

    def do_GET(self) -> None:
        key, query = self._key()
        if "list-type" in query:
            return self._list(query["prefix"][0] if "prefix" in query else "")
        wanted = self.headers.get("Range", "")
        self.store.requests.append(("GET", key, wanted))
        data = self.store.objects.get(key)
        fault = self.store.fault("GET", key)
        if isinstance(fault, int):
            return self._answer(fault)
        if data is None:
            return self._answer(404)
        if fault and fault[0] == "lie":
            data = fault[1]
        start, status, headers = 0, 200, {"ETag": _etag(data)}
        if found := re.fullmatch(r"bytes=(\d+)-(\d*)", wanted):
            start, status = int(found[1]), 206
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        body = data[start:]
        if fault and fault[0] == "cut":
            return self._answer(status, body[: fault[1]], headers, claim=len(body))
        if fault and fault[0] == "claim":
            return self._answer(status, body, headers, claim=fault[1])
        return self._answer(status, body, headers)

    def do_HEAD(self) -> None:
        key, _ = self._key()
        self.store.requests.append(("HEAD", key, ""))
        data = self.store.objects.get(key)
        fault = self.store.fault("HEAD", key)
        if isinstance(fault, int):
            return self._answer(fault)
        if data is None:
            return self._answer(404)
        claim = fault[1] if fault and fault[0] == "claim" else len(data)
        return self._answer(200, b"", {"ETag": _etag(data)}, claim=claim)

    def do_PUT(self) -> None:
        key, _ = self._key()
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.store.requests.append(("PUT", key, ""))
        fault = self.store.fault("PUT", key)
        if isinstance(fault, int):
            return self._answer(fault)
        if self.headers.get("If-None-Match") == "*" and key in self.store.objects:
            return self._answer(412)
        self.store.objects[key] = data
        if fault and fault[0] == "cut":  # it is stored, and the answer is lost
            self.close_connection = True
            return None
        return self._answer(200, b"", {"ETag": _etag(data)})

    def _list(self, prefix: str) -> None:
        rows = "".join(
            f"<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>{_etag(data)}</ETag><Size>{len(data)}</Size></Contents>"
            for key, data in sorted(self.store.objects.items())
            if key.startswith(prefix)
        )
        self.store.requests.append(("LIST", prefix, ""))
        fault = self.store.fault("LIST", prefix)
        if isinstance(fault, int):
            return self._answer(fault)
        body = f"<ListBucketResult><IsTruncated>false</IsTruncated>{rows}</ListBucketResult>"
        return self._answer(200, body.encode())

    def _key(self) -> tuple[str, dict[str, list[str]]]:
        self.store.signed.append(self.headers.get("Authorization", ""))
        parts = urllib.parse.urlsplit(self.path)
        key = urllib.parse.unquote(parts.path).lstrip("/").partition("/")[2]
        return key, urllib.parse.parse_qs(parts.query)

    def _answer(
        self,
        status: int,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        *,
        claim: int | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status < 400:
            self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.send_header("Content-Length", str(len(body) if claim is None else claim))
        self.end_headers()
        self.wfile.write(body)
        if claim is not None and self.command == "GET" and claim != len(body):
            self.close_connection = True


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'
