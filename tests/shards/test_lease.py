"""The lease: one at a time, taken over from the dead, in a time that only each contender's own clock measures."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from synthfactory.shards.gc import gc
from synthfactory.shards.lease import Heartbeat, Lease, has_ended
from synthfactory.shards.store import LocalStore
from synthfactory.spec.errors import InputError


class Clock:
    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path / "lineage"))


def test_free_lease_is_had_at_once_and_a_live_holder_keeps_it(store: LocalStore) -> None:
    clock = Clock(5e6)
    holder, other = Lease(store, clock=lambda: 0.0), Lease(store, clock=clock)
    assert holder.acquire()
    for _ in range(20):
        assert not other.acquire()
        clock.sleep(20)
        assert holder.renew()
    assert holder.held


def test_silent_holder_is_replaced_after_ttl_and_learns_it(store: LocalStore) -> None:
    clock = Clock()
    dead, other = Lease(store, clock=clock), Lease(store, clock=clock)
    assert dead.acquire()
    assert not other.acquire()
    clock.sleep(29)
    assert not other.acquire()
    clock.sleep(2)
    assert other.acquire()
    assert not dead.renew()
    assert not dead.held
    dead.release()  # says nothing for another
    assert not Lease(store, clock=clock).acquire()
    assert other.renew()


def test_released_lease_is_had_at_once(store: LocalStore) -> None:
    clock = Clock()
    first, second = Lease(store, clock=clock), Lease(store, clock=clock)
    assert first.acquire()
    first.release()
    assert second.acquire()


def test_contender_that_slept_over_a_turn_does_not_get_it(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    slow = Lease(store, clock=clock)
    real = store.create

    def late(path: str, content: bytes) -> bool:
        monkeypatch.setattr(store, "create", real)
        for _ in range(3):  # meanwhile others come and go, and clean up
            other = Lease(store, clock=clock)
            assert other.acquire()
            other.release()
        assert Lease(store, clock=clock).acquire()
        return real(path, content)

    monkeypatch.setattr(store, "create", late)
    assert not slow.acquire()
    assert not slow.held


def test_old_files_do_not_pile_up(store: LocalStore) -> None:
    clock = Clock()
    for _ in range(10):
        lease = Lease(store, clock=clock)
        assert lease.acquire()
        lease.release()
    assert len(list(store.entries("leases"))) == 2


def test_wait_outlasts_the_dead_and_not_the_living(store: LocalStore) -> None:
    clock = Clock()
    holder, other = Lease(store, clock=clock), Lease(store, clock=clock)
    assert holder.acquire()

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        holder.renew()

    assert not other.wait(60, sleep=sleep)
    assert other.wait(60, sleep=clock.sleep)


def test_gc_is_refused_while_a_build_lives(store: LocalStore, tmp_path: Path) -> None:
    out = LocalStore(str(tmp_path / "out"))
    out.put("shards/.tmp-0123456789abcdef", b"half")
    live = Lease(store)
    assert live.acquire()
    with Heartbeat(live, beat_sec=0.01):
        with pytest.raises(InputError, match="a build seems to be at work"):
            gc(out, lease=Lease(store, ttl_sec=0.1))
        assert gc(out, lease=Lease(store), dry_run=True) == ["would remove 1 unfinished write"]
    assert out.leftovers()
    assert gc(out, lease=Lease(store)) == ["removed 1 unfinished write"]
    assert not out.leftovers()
    assert Lease(store).acquire()  # gc has let it go


def test_heartbeat_outlives_a_store_that_is_away(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = Lease(store)
    assert lease.acquire()
    real, failed = store.put, []

    def away(path: str, content: bytes | Path) -> None:
        if len(failed) < 3:
            failed.append(path)
            raise OSError("503")
        real(path, content)

    monkeypatch.setattr(store, "put", away)
    with Heartbeat(lease, beat_sec=0.01):
        until = time.monotonic() + 5
        while store.read("leases/000000.beat") == b"1" and time.monotonic() < until:
            time.sleep(0.01)
    assert len(failed) == 3
    assert store.read("leases/000000.beat") == b"released"


def test_a_killed_holder_of_this_machine_is_not_waited_for(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "from synthfactory.shards.lease import Lease\n"
        "from synthfactory.shards.store import LocalStore\n"
        "assert Lease(LocalStore(sys.argv[1])).acquire()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert ended.returncode == -9
    assert Lease(LocalStore(str(tmp_path))).acquire()


def test_only_what_is_known_to_have_ended_is_taken_for_ended() -> None:
    mine = {
        "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "space": str(Path("/proc/self/ns/pid").readlink()),
    }
    gone = {**mine, "pid": 2**22 + 1, "started": "1"}
    assert has_ended(json.dumps({"process": gone}).encode())
    for holder in (
        {"process": {**gone, "boot": "other"}},  # another machine
        {"process": {**gone, "space": "pid:[1]"}},  # another container
        {"process": None},
        {},
    ):
        assert not has_ended(json.dumps(holder).encode())
    assert not has_ended(b"0123456789abcdef")
