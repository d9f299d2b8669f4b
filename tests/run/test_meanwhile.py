"""What happens beside a build, or to a unit of it: a patient taken out, other machines, units that fail."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from revoke_making import WHO, resting, without
from running import run

from synthfactory.commands.common import with_bank
from synthfactory.run import driver, local, revoking, worker
from synthfactory.run.local import LocalPool
from synthfactory.run.prepare import prepare
from synthfactory.shards.lease import Lease
from synthfactory.shards.store import open_store
from synthfactory.spec.errors import InputError
from synthfactory.spec.load import load_spec


@pytest.fixture
def make(make: Callable[..., Path]) -> Callable[..., Path]:
    """Four shards of four tiles."""
    return lambda **changes: make(**{"classes": {"alpha": 8, "beta": 8}, **changes})


class Between(LocalPool):
    """Does something once, after so many units."""

    def __init__(self, setup: Any, tick: Any, after: int, what: Callable[[], object]) -> None:
        super().__init__(setup, tick)
        self._after, self._what = after, what

    def wait(self, timeout_sec: float) -> Any:
        if self._after == 0:
            self._what()
        self._after -= 1
        return super().wait(timeout_sec)


@pytest.mark.parametrize("after", [2, 3])
def test_a_build_that_began_before_revoke_publishes_nothing_of_the_patient(
    make: Callable[..., Path], bank: Path, tmp_path: Path, after: int
) -> None:
    old = with_bank(prepare(load_spec(make())))

    def revoke() -> None:
        without(bank)
        assert list(revoking.withdraw(WHO, with_bank(prepare(load_spec(make())))))

    with pytest.raises(InputError, match="its bank was changed while this build was at work"):
        driver.build(
            old, lambda setup, tick: Between(setup, tick, after, revoke), say=lambda text: None, use_lease=False
        )
    assert not resting(tmp_path)
    with pytest.raises(InputError):  # the old bank is another recipe by now
        driver.build(old, LocalPool, say=lambda text: None, use_lease=False)
    assert run("build", make(), "--local").code == 0
    assert not resting(tmp_path)
    assert run("verify", tmp_path / "out").code == 0


def test_what_is_committed_as_the_lock_changes_is_taken_back(
    make: Callable[..., Path], bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock changes between the look before the commit and the one after."""
    old = with_bank(prepare(load_spec(make())))
    real = worker.commit_shard

    def late(*arguments: Any) -> Any:
        found = real(*arguments)
        if arguments[1] == 1:
            without(bank)
            lock, _ = revoking._relocked(
                with_bank(prepare(load_spec(make()))), revoking.read_standing(str(tmp_path / "out"))
            )
            (tmp_path / "out/spec.lock.yaml").write_bytes(revoking.lock_yaml(lock))
        return found

    monkeypatch.setattr(worker, "commit_shard", late)
    with pytest.raises(InputError, match="its bank was changed"):
        driver.build(old, LocalPool, say=lambda text: None, use_lease=False)
    assert sorted(path.name for path in (tmp_path / "out/commits").iterdir()) == ["000000.json"]
    assert len(list((tmp_path / "lineage/units").iterdir())) == 1
    assert len(list((tmp_path / "out/shards").iterdir())) == 2


def test_revoke_waits_for_a_holder_that_nobody_knows_to_be_gone(
    make: Callable[..., Path], bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("build", make(), "--local").code == 0
    without(bank)
    store = open_store(str(tmp_path / "lineage"))
    elsewhere = {"token": "0" * 16, "process": {"boot": "another", "space": "x", "pid": 1, "started": "1"}}
    turn = max(int(path.stem) for path in (tmp_path / "lineage/leases").glob("*.json")) + 1
    assert store.create(f"leases/{turn:06d}.json", json.dumps(elsewhere).encode())
    monkeypatch.setattr("synthfactory.shards.lease.TTL_SEC", 0.2)
    lease = Lease(store, ttl_sec=0.2)
    said = list(revoking.withdraw(WHO, with_bank(prepare(load_spec(make()))), lease))
    assert "seems to be at work; waiting up to" in said[0]
    assert any("took back" in line for line in said)


def test_revoke_leaves_no_embeddings_of_tiles_drawn_for_the_patient(
    make: Callable[..., Path], bank: Path, tmp_path: Path
) -> None:
    assert run("build", make(), "--local").code == 0
    (tmp_path / "lineage/calibration").mkdir()
    (tmp_path / "lineage/calibration/abc.npy").write_bytes(b"x")
    without(bank)
    ended = run("revoke", make(), "--patient", WHO, "--yes", "--local")
    assert ended.code == 0, ended.err
    assert "calibration/abc.npy, which may hold embeddings of such tiles" in " ".join(ended.err.split())
    known = {"units", "runs", "leases", "revocations", "keys.json", "set.json"}
    left = [path.relative_to(tmp_path / "lineage") for path in (tmp_path / "lineage").rglob("*") if path.is_file()]
    assert {path.parts[0] for path in left} <= known | {".gitignore", "README.md"}


def test_strict_mixes_no_machines_from_the_first_unit_on(
    make: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, machines = worker.fingerprint, iter(["GPU A", "GPU B", "GPU A", "GPU A"])
    monkeypatch.setattr(worker, "fingerprint", lambda *given: {**real(*given), "device": next(machines)})

    class Two(LocalPool):
        """A second machine joins before the first has committed anything."""

        def __init__(self, setup: Any, tick: Any) -> None:
            super().__init__(setup, tick)
            self.other = worker.Worker(setup)

    execution = {"strict": True, "batch_size": 4, "threads": 1}
    prepared = with_bank(prepare(load_spec(make(execution=execution))))
    with pytest.raises(InputError, match="this machine differs from the one that began the build in device"):
        driver.build(prepared, Two, say=lambda text: None)
    assert driver.build(prepared, LocalPool, say=lambda text: None).complete
    (tmp_path / "out/commits/000001.json").unlink()
    machines = iter(["GPU C"])
    with pytest.raises(InputError, match="this machine differs from the one that began the build in device"):
        driver.build(prepared, LocalPool, say=lambda text: None)


def failing(monkeypatch: pytest.MonkeyPatch, times: int) -> Iterator[None]:
    real, left = worker.commit_shard, [times]

    def commit(*arguments: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise OSError(5, "Input/output error")
        return real(*arguments)

    monkeypatch.setattr(worker, "commit_shard", commit)
    yield


def test_units_that_fail_count_against_the_budget(
    make: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """16 tiles of 10 calls; one unit of four tiles is drawn twice."""
    next(failing(monkeypatch, 1))
    ended = run("build", make(budget={"network_calls": 170, "max_attempts": 1}), "--local")
    assert ended.code == 4, ended.err
    assert "budget.network_calls leaves too little" in ended.out
    noted = [json.loads(path.read_text()) for path in (tmp_path / "lineage/runs").rglob("*.json")]
    assert sum(entry["network_calls"] for entry in noted) == 160
    assert [entry["network_calls"] for entry in noted if "outcome" not in entry] == [40]
    again = run("build", make(budget={"network_calls": 170, "max_attempts": 1}), "--local")
    assert again.code == 2 and "beside the 160 already spent" in " ".join(again.err.split())
    assert run("build", make(budget={"network_calls": 200, "max_attempts": 1}), "--local").code == 0


def test_a_pilot_that_draws_nothing_says_why_and_writes_nothing(
    make: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: Any) -> Any:
        raise FloatingPointError("network gave NaN; try float32")

    monkeypatch.setattr(local.Worker, "run", broken)
    ended = run("pilot", make(), "--tiles", 2)
    assert ended.code == 2
    assert "the pilot's tiles could not be drawn: FloatingPointError: network gave NaN; try float32" in ended.err
    assert not (tmp_path / "lineage/pilot").exists()
