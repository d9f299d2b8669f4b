"""Patterns behind URLs: matched, or refused in one message."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import source_making as making
from cli_checks import check_refusal
from running import run

from synthfactory.shards.store import open_store

if TYPE_CHECKING:
    from s3server import Bucket

MakeSpec = Callable[..., Path]


def test_a_pattern_in_a_bucket(s3: Bucket, spec_file: MakeSpec, tmp_path: Path) -> None:
    store = open_store(f"{s3.url}/real")
    making.write_source("shards", tmp_path / "real")
    for path in sorted((tmp_path / "real").iterdir()):
        store.put(path.name, path.read_bytes())
    planned = run("plan", spec_file(embeddings={"shards": f"{s3.url}/real/real-*.tar"}))
    assert planned.code == 0, planned.err
    check_refusal(run("plan", spec_file(embeddings={"shards": f"{s3.url}/real/none-*.tar"})), "matches no file")


@pytest.mark.parametrize("place", ["s3://no-such-bucket/*.parquet", "gopher://hole/*.parquet"])
def test_a_pattern_nowhere(place: str, s3: Bucket, spec_file: MakeSpec) -> None:
    ended = run("plan", spec_file(embeddings={"bank": place}))
    check_refusal(ended, "embeddings.bank: ")


def test_a_pattern_without_permission(s3: Bucket, spec_file: MakeSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    check_refusal(
        run("plan", spec_file(embeddings={"hdf5": "s3://tiles/features/", "labels": "s3://tiles/l.csv"})),
        "embeddings.hdf5: ",
    )


ODD = ["dir://x", "reference://x", "jlab://x", "dbfs://x/y", "generic://x", "github://x", "async_wrapper://x", "blockcache://x",
       "sftp://x/y", "zip://a.zip", "s3://[x", "gopher://hole/x", "hdfs://h/x", "data://x"]  # fmt: skip


@pytest.mark.parametrize("place", ODD)
def test_urls_of_plugins_that_cannot_serve(place: str, spec_file: MakeSpec, tmp_path: Path) -> None:
    """Whatever a plugin of fsspec raises, in every place that takes a URL."""
    for field, change in (
        ("embeddings.bank", {"embeddings": {"bank": f"{place}/b.parquet"}}),
        ("embeddings.bank", {"embeddings": {"bank": f"{place}/*.parquet"}}),
        ("output.path", {"output": {"path": place}}),
        ("lineage", {"lineage": place}),
    ):
        check_refusal(run("build", spec_file(**change), "--local"), f"{field}: ")
    for command in (["status", place], ["embed", tmp_path, f"{place}/b.parquet", "--label-level", "tile"]):
        check_refusal(run(*command), "Error: ")
    assert [path.name for path in tmp_path.iterdir()] == ["spec.yaml"]


@pytest.mark.parametrize("field", ["output", "lineage"])
def test_a_set_in_memory_would_be_gone(field: str, spec_file: MakeSpec) -> None:
    place = "memory://set"
    ended = run("build", spec_file(**{field: {"path": place} if field == "output" else place}), "--local")
    check_refusal(ended, "memory://set: ends with this process")
