"""Builds that are killed, raced and stopped: the same command goes on, and the bytes are those of an undisturbed build."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from running import contents, descendants, kill, run, start

MakeSpec = Callable[..., Path]
# Some seconds of work, so that a kill meets it; the screen drops about half, so that redraws are met as well.
WORK: dict[str, Any] = {
    "classes": {"alpha": 60, "beta": 36},
    "sampler": {"steps": 60},
    "screen": {"blur": {"min_sharpness": 0.336}},
    "budget": {"max_attempts": 40},
}
QUICK, SLOW = 1, 10


@pytest.fixture(scope="module")
def undisturbed(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], float]:
    """(OUT of a build that nothing disturbed, its seconds)."""
    from running import write_spec

    folder = tmp_path_factory.mktemp("undisturbed")
    given = {"model": str(tiny / "model"), "embeddings": {"bank": str(tiny / "bank.parquet")}, **WORK}
    began = time.monotonic()
    ended = run("build", write_spec(folder / "spec.yaml", **given), "--local")
    assert ended.code == 0, ended.err + ended.out
    assert "blurred" in ended.out
    return contents(folder / "out"), time.monotonic() - began


def _wait_for_commits(out: Path, count: int, process: subprocess.Popen[bytes], limit_sec: float = 120) -> None:
    until = time.monotonic() + limit_sec
    while len(list(out.glob("commits/0*.json"))) < count:
        assert time.monotonic() < until, "no commit in time"
        assert process.poll() is None, process.communicate()[0].decode()
        time.sleep(0.02)


def _is_whole(out: Path, wanted: dict[str, bytes]) -> None:
    """The bytes are the undisturbed ones, and nothing else lies there: no temporary file, no unreferenced object."""
    found = contents(out)
    assert sorted(found) == sorted(wanted)
    assert found == wanted
    assert run("verify", out).code == 0


def test_three_workers_one_worker_and_none_make_the_same_bytes(
    spec_file: MakeSpec, tmp_path: Path, undisturbed: tuple[dict[str, bytes], float]
) -> None:
    for workers in (1, 3):
        place = tmp_path / f"out-{workers}"
        spec = spec_file(**WORK, output={"path": str(place), "shard_size": 8}, lineage=f"{tmp_path}/lineage-{workers}")
        process = start("build", spec, "--workers", workers)
        text = process.communicate(timeout=240)[0].decode()
        assert process.returncode == 0, text
        assert f"{workers} worker" in text
        _is_whole(place, undisturbed[0])


def _driver_killed(spec_file: MakeSpec, out: Path, undisturbed: tuple[dict[str, bytes], float], seed: int) -> None:
    chance = random.Random(seed)
    spec = spec_file(**WORK)
    process = start("build", spec, "--local")
    _wait_for_commits(out, chance.randrange(0, 8), process)
    time.sleep(chance.uniform(0, 0.5))
    kill(process)
    assert len(list(out.glob("commits/0*.json"))) < 12
    ended = run("build", spec, "--local")
    assert ended.code == 0, ended.err
    _is_whole(out, undisturbed[0])


def _worker_killed(spec_file: MakeSpec, out: Path, undisturbed: tuple[dict[str, bytes], float], seed: int) -> None:
    chance = random.Random(seed)
    spec = spec_file(**WORK)
    process = start("build", spec, "--workers", 2)
    try:
        _wait_for_commits(out, chance.randrange(1, 6), process)
        time.sleep(chance.uniform(0, 0.3))
        victims = descendants(process.pid, "ray::_Actor")
        assert victims, "no worker found"
        os.kill(chance.choice(victims), signal.SIGKILL)
        text = process.communicate(timeout=240)[0].decode()
    finally:
        kill(process)
    assert process.returncode == 0, text
    assert text.count("is drawn again: its worker ended") == 1, (
        text
    )  # nothing is given to a worker that is not back yet
    _is_whole(out, undisturbed[0])


@pytest.mark.parametrize("seed", range(QUICK))
def test_sigkill_of_the_driver(
    spec_file: MakeSpec, tmp_path: Path, undisturbed: tuple[dict[str, bytes], float], seed: int
) -> None:
    _driver_killed(spec_file, tmp_path / "out", undisturbed, seed)


@pytest.mark.parametrize("seed", range(QUICK))
def test_sigkill_of_a_worker(
    spec_file: MakeSpec, tmp_path: Path, undisturbed: tuple[dict[str, bytes], float], seed: int
) -> None:
    _worker_killed(spec_file, tmp_path / "out", undisturbed, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 100 + SLOW))
def test_sigkill_of_the_driver_often(
    spec_file: MakeSpec, tmp_path: Path, undisturbed: tuple[dict[str, bytes], float], seed: int
) -> None:
    _driver_killed(spec_file, tmp_path / "out", undisturbed, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(200, 200 + SLOW))
def test_sigkill_of_a_worker_often(
    spec_file: MakeSpec, tmp_path: Path, undisturbed: tuple[dict[str, bytes], float], seed: int
) -> None:
    _worker_killed(spec_file, tmp_path / "out", undisturbed, seed)


@pytest.mark.slow
def test_sigkill_of_a_driver_with_ray_leaves_workers_that_do_no_harm(
    spec_file: MakeSpec, tmp_path: Path, undisturbed: tuple[dict[str, bytes], float]
) -> None:
    out = tmp_path / "out"
    spec = spec_file(**WORK)
    process = start("build", spec, "--workers", 2)
    _wait_for_commits(out, 2, process)
    family = [process.pid, *descendants(process.pid, "")]
    process.kill()  # the driver alone: Ray's daemons and the workers find out for themselves
    process.wait()
    try:
        ended = run("build", spec, "--local")
        assert ended.code == 0, ended.err
        _is_whole(out, undisturbed[0])
    finally:
        for pid in family[1:]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


@pytest.mark.parametrize("lease", [pytest.param(True, marks=pytest.mark.slow), False])
def test_two_drivers_race_on_one_output(
    spec_file: MakeSpec, tmp_path: Path, undisturbed: tuple[dict[str, bytes], float], lease: bool
) -> None:
    spec = spec_file(**WORK)
    options = [] if lease else ["--no-lease"]
    both = [start("build", spec, "--local", *options) for _ in range(2)]
    texts = [process.communicate(timeout=240)[0].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0], texts
    if lease:
        assert any("another build seems to be at work" in text for text in texts)
    else:
        assert run("build", spec, "--local").code == 0  # with the lease: clears away what the race left
    _is_whole(tmp_path / "out", undisturbed[0])


@pytest.mark.parametrize(
    ("number", "how"),
    [
        (signal.SIGINT, ["--local"]),
        pytest.param(signal.SIGTERM, ["--local"], marks=pytest.mark.slow),
        (signal.SIGTERM, ["--workers", 2]),
    ],
    ids=["Ctrl-C", "SIGTERM", "SIGTERM with Ray"],
)
def test_an_interrupted_build_ends_with_130_and_goes_on(
    spec_file: MakeSpec,
    tmp_path: Path,
    undisturbed: tuple[dict[str, bytes], float],
    number: signal.Signals,
    how: list[object],
) -> None:
    out = tmp_path / "out"
    spec = spec_file(**WORK)
    process = start("build", spec, *how)
    _wait_for_commits(out, 2, process)
    process.send_signal(number)
    text = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 130, text
    assert "goes on where this one stopped" in text
    assert "Traceback" not in text
    began = time.monotonic()
    assert run("build", spec, "--local").code == 0
    assert time.monotonic() - began < 25  # the lease was released: nothing is waited for
    _is_whole(out, undisturbed[0])
