"""Fixtures for every room."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from s3server import Bucket, S3Server


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """One S3 server on loopback for the whole run."""
    pytest.importorskip("moto")
    pytest.importorskip("s3fs")
    from s3server import serve_s3

    with serve_s3() as server:
        yield server


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """A fresh bucket, found by the environment."""
    from s3server import environment, make_bucket

    from synthfactory.shards import remote

    s3_server.reset()
    remote._clients.clear()  # what they know of buckets of that name is of the test before
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    for name, value in environment(s3_server.address).items():
        monkeypatch.setenv(name, value)
    return make_bucket(s3_server, "tiles")
