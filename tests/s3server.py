"""An S3 server on loopback for tests (moto, in a thread of this process), with faults to order.

Use the fixtures of conftest.py: `s3` is a fresh bucket on it (`s3.url`, `s3.fail(...)`), with the environment set so that
s3fs, and processes started by the test, find it by AWS_ENDPOINT_URL.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from moto.backends import get_backend
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.server import MotoRequestHandler  # type: ignore[attr-defined]
from werkzeug.serving import make_server

ACCOUNT = "123456789012"


@dataclass
class Fault:
    """The next `times` requests with this method, and `part` in path or query, meet `how`.

    refuse: 503, nothing happens. forget: it happens, the reply is 500. drop: it happens, the connection breaks. cut: it happens,
    half of the object is kept.
    """

    method: str
    part: str
    how: str
    times: int = 1


@dataclass
class S3Server:
    """Address, faults still to come, and what was asked."""

    address: str = ""
    faults: list[Fault] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def application(self, app: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
        """moto's WSGI application, with faults around it."""

        def faulty(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            method, where = environ["REQUEST_METHOD"], f"{environ['PATH_INFO']}?{environ.get('QUERY_STRING', '')}"
            self.asked.append(f"{method} {where}")
            fault = next(
                (one for one in self.faults if one.method == method and one.part in where and one.times > 0), None
            )
            if fault is None:
                return app(environ, start_response)
            fault.times -= 1
            if fault.how == "refuse":
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                return _answer(start_response, "503 Service Unavailable", "ServiceUnavailable")
            if fault.how == "cut":
                reply = list(app(environ, start_response))
                _, bucket, key = environ["PATH_INFO"].split("/", 2)
                stored = get_backend("s3")[ACCOUNT]["aws"].get_object(bucket, key)
                stored.value = stored.value[: len(stored.value) // 2]
                return reply
            list(app(environ, lambda *_: None))
            if fault.how == "drop":
                environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            return _answer(start_response, "500 Internal Server Error", "InternalError")

        return faulty

    def reset(self) -> None:
        """Forgets all buckets and faults."""
        self.faults.clear()
        self.asked.clear()
        request = urllib.request.Request(f"{self.address}/moto-api/reset", method="POST")
        with urllib.request.urlopen(request) as reply:
            assert json.load(reply)["status"] == "ok"


def _answer(start_response: Callable[..., Any], status: str, code: str) -> list[bytes]:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>as ordered</Message></Error>".encode()
    start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
    return [body]


@contextlib.contextmanager
def serve_s3() -> Iterator[S3Server]:
    """Runs the server until the block ends."""
    state = S3Server()
    app = state.application(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=MotoRequestHandler)
    state.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass(frozen=True)
class Bucket:
    """A fresh bucket on the server."""

    server: S3Server
    name: str

    @property
    def url(self) -> str:
        """A folder in it."""
        return f"s3://{self.name}/sets/out"

    def fail(self, method: str, part: str, how: str, times: int = 1) -> None:
        """Orders a fault: see Fault."""
        self.server.faults.append(Fault(method, part, how, times))

    def asked(self, method: str, part: str) -> int:
        """How many such requests there were."""
        return sum(line.startswith(f"{method} ") and part in line for line in self.server.asked)


def environment(address: str) -> dict[str, str]:
    """What a process needs to find the server, and nothing else of the machine's AWS settings."""
    return {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_MAX_ATTEMPTS": "1",  # the client's own retries off: the store's are tested, and quickly
    }


def make_bucket(server: S3Server, name: str) -> Bucket:
    """Creates it, by plain HTTP."""
    request = urllib.request.Request(f"{server.address}/{name}", method="PUT")
    request.add_header("Authorization", "AWS4-HMAC-SHA256 Credential=testing/20260101/us-east-1/s3/aws4_request")
    with urllib.request.urlopen(request):
        pass
    return Bucket(server, name)
