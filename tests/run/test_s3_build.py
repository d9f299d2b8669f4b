"""Whole builds on s3:// (a server on loopback): the bytes of a build on disk, whatever was killed and whatever the store did."""

from __future__ import annotations

import io
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import webdataset
from running import contents, kill, run, start
from s3server import Bucket

from synthfactory.shards.reader import iter_tiles
from synthfactory.shards.store import RemoteStore, open_store

MakeSpec = Callable[..., Path]
SMALL: dict[str, Any] = {"classes": {"alpha": 14, "beta": 10}, "sampler": {"steps": 1}}
# What a build writes, in the order of writing; each is met by every fault.
WRITTEN = ["spec.lock.yaml", "rounds/000000", ".tar", ".parquet", "commits/000001", "leases/", "dataset.json", "units/"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synthfactory.shards.remote.FIRST_PAUSE_SEC", 0.001)


@pytest.fixture(scope="module")
def on_disk(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """OUT of the same build on disk."""
    from running import write_spec

    folder = tmp_path_factory.mktemp("disk")
    given = {"model": str(tiny / "model"), "embeddings": {"bank": str(tiny / "bank.parquet")}, **SMALL}
    assert run("build", write_spec(folder / "spec.yaml", **given), "--local").code == 0
    return contents(folder / "out")


def _spec(spec_file: MakeSpec, bucket: Bucket, **changes: Any) -> Path:
    places = {"output": {"path": bucket.url, "shard_size": 8}, "lineage": f"s3://{bucket.name}/lineage"}
    return spec_file(**{**SMALL, **places, **changes})


def _is_whole(bucket: Bucket, wanted: dict[str, bytes]) -> None:
    store = open_store(bucket.url)
    assert isinstance(store, RemoteStore)
    found = contents(bucket.url)
    assert sorted(found) == sorted(wanted)
    assert found == wanted
    assert store.leftovers() == []
    assert store.open_uploads() == []
    assert run("verify", bucket.url).code == 0


def test_a_build_on_s3_is_the_build_on_disk(
    spec_file: MakeSpec, s3: Bucket, on_disk: dict[str, bytes], tmp_path: Path
) -> None:
    spec = _spec(spec_file, s3)
    ended = run("build", spec, "--local")
    assert ended.code == 0, ended.err
    _is_whole(s3, on_disk)
    assert run("status", s3.url).code == 0
    assert run("gc", s3.url, "--lineage", f"s3://{s3.name}/lineage").out.strip() == "nothing to remove"
    assert run("preview", s3.url, "-o", tmp_path / "sheet.png").code == 0
    assert Counter(record["label"] for _, _, record in iter_tiles(s3.url)) == SMALL["classes"]
    store = open_store(s3.url)
    tars = [store.read(line) for line in store.read("shards.txt").decode().split()]
    for number, data in enumerate(tars):
        (tmp_path / f"{number}.tar").write_bytes(data)
    names = [str(tmp_path / f"{number}.tar") for number in range(len(tars))]
    read = webdataset.WebDataset(names, shardshuffle=False).decode("rgb8").to_tuple("png", "json")
    assert Counter(record["label"] for _, record in read) == SMALL["classes"]
    assert "nothing to draw" in run("build", spec, "--local").err


def test_a_set_on_s3_grows(spec_file: MakeSpec, s3: Bucket) -> None:
    assert run("build", _spec(spec_file, s3), "--local").code == 0
    before = contents(s3.url)
    assert run("build", _spec(spec_file, s3, classes={"alpha": 14, "beta": 19}), "--local").code == 0
    after = contents(s3.url)
    kept = [path for path in before if path.startswith(("shards/", "commits/", "rounds/"))]
    assert all(after[path] == before[path] for path in kept)
    assert Counter(record["label"] for _, _, record in iter_tiles(s3.url)) == {"alpha": 14, "beta": 19}


@pytest.mark.parametrize("how", ["refuse", "forget", "drop", "cut"])
def test_one_fault_at_every_object_is_survived(
    spec_file: MakeSpec, s3: Bucket, on_disk: dict[str, bytes], how: str
) -> None:
    for part in WRITTEN:
        s3.fail("PUT", part, how)
    spec = _spec(spec_file, s3)
    ended = run("build", spec, "--local")
    assert "Traceback" not in ended.err
    assert [fault.part for fault in s3.server.faults if fault.times > 0] == []  # each was met
    assert ended.code == 0, ended.err
    _is_whole(s3, on_disk)


@pytest.mark.parametrize("part", WRITTEN)
def test_a_store_that_stays_away_ends_the_build_in_words_and_the_same_command_goes_on(
    spec_file: MakeSpec, s3: Bucket, on_disk: dict[str, bytes], part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("synthfactory.shards.remote.ATTEMPTS", 2)  # default arguments keep the whole number
    s3.fail("PUT", part, "refuse", times=10_000)
    spec = _spec(spec_file, s3)
    ended = run("build", spec, "--local")
    assert ended.code in (1, 2, 4), ended.err
    assert "Traceback" not in ended.err
    assert "could not write" in ended.err + ended.out
    s3.server.faults.clear()
    ended = run("build", spec, "--local")
    assert ended.code == 0, ended.err
    _is_whole(s3, on_disk)


def _killed(spec_file: MakeSpec, bucket: Bucket, wanted: dict[str, bytes], seed: int) -> None:
    chance = random.Random(seed)
    spec = _spec(spec_file, bucket)
    process = start("build", spec, "--local")
    target, until = chance.randrange(0, 3), time.monotonic() + 120
    while bucket.asked("PUT", "/commits/") < target or not bucket.asked("PUT", "spec.lock"):
        assert time.monotonic() < until
        assert process.poll() is None, io.TextIOWrapper(process.stdout).read()  # type: ignore[arg-type]
        time.sleep(0.01)
    time.sleep(chance.uniform(0, 0.1))
    kill(process)
    ended = run("build", spec, "--local")
    assert ended.code == 0, ended.err
    _is_whole(bucket, wanted)


def test_sigkill_on_s3(spec_file: MakeSpec, s3: Bucket, on_disk: dict[str, bytes]) -> None:
    _killed(spec_file, s3, on_disk, 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_sigkill_on_s3_often(spec_file: MakeSpec, s3: Bucket, on_disk: dict[str, bytes], seed: int) -> None:
    _killed(spec_file, s3, on_disk, seed)


def test_two_workers_on_s3_through_ray(spec_file: MakeSpec, s3: Bucket, on_disk: dict[str, bytes]) -> None:
    process = start("build", _spec(spec_file, s3), "--workers", 2)
    text = process.communicate(timeout=240)[0].decode()
    assert process.returncode == 0, text
    _is_whole(s3, on_disk)
