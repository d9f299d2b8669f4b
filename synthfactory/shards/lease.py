"""An advisory lease on a build: saves the work that two builds of one OUT would do twice. Safety never rests on it.

LINEAGE/leases/NNNNNN.json is created if absent: its number is the holder's turn. The holder renews LINEAGE/leases/NNNNNN.beat, a
counter. A challenger that sees the same counter for TTL on its own monotonic clock takes the next turn. No two clocks are compared.
A holder whose process is known to have ended (same machine since the same boot, same process numbers) is not waited for.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from synthfactory.shards.base import Store
from synthfactory.spec.errors import InputError
from synthfactory.spec.json_text import read_json

TTL_SEC = 30.0
BEAT_SEC = 5.0
PAUSE_SEC = 2.0
_NAME = re.compile(r"leases/([0-9]{6,9})\.(json|beat)")
_RELEASED = b"released"


def _process(pid: int) -> dict[str, Any] | None:
    """What tells a process from every other: boot, process-number space, number, start; None where it is gone or none of this is known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
        return {"boot": boot, "space": str(Path("/proc/self/ns/pid").readlink()), "pid": pid, "started": started}
    except (OSError, IndexError):
        return None


def has_ended(holder: bytes) -> bool:
    """Whether a holder was a process of this machine that is no more. False where that cannot be known."""
    here = _process(os.getpid())
    try:
        process = read_json(holder)["process"]
        if here is None or any(process[key] != here[key] for key in ("boot", "space")):
            return False
        return bool(_process(int(process["pid"])) != process)
    except (ValueError, KeyError, TypeError):
        return False


class Lease:
    """One contender. `acquire` returns True at once where the lease is free, False while another holds it (call again later)."""

    def __init__(self, store: Store, *, ttl_sec: float = TTL_SEC, clock: Callable[[], float] = time.monotonic) -> None:
        self.ttl_sec = ttl_sec
        self._store, self._clock = store, clock
        holder = {"token": secrets.token_hex(8), "process": _process(os.getpid())}
        self._holder = json.dumps(holder, sort_keys=True).encode()
        self._turn: int | None = None
        self._count = 0
        self._seen: tuple[int, bytes, float] | None = None  # turn, its heartbeat, when first seen so

    @property
    def held(self) -> bool:
        """Whether this contender took a turn and has not released it (another may have taken over meanwhile: see `renew`)."""
        return self._turn is not None

    def _turns(self) -> dict[int, list[str]]:
        """Turn -> its files, of turns that were taken (a heartbeat alone is litter of an old one)."""
        files: dict[int, list[str]] = {}
        for path, _ in self._store.entries("leases"):
            match = _NAME.fullmatch(path)
            if match:
                files.setdefault(int(match[1]), []).append(path)
        return files

    @staticmethod
    def _last(files: dict[int, list[str]]) -> int | None:
        return max(
            (turn for turn, paths in files.items() if any(path.endswith(".json") for path in paths)), default=None
        )

    def _beat(self, turn: int) -> bytes:
        try:
            return self._store.read(f"leases/{turn:06d}.beat")
        except FileNotFoundError:
            return b""

    def _ended(self, turn: int) -> bool:
        try:
            return has_ended(self._store.read(f"leases/{turn:06d}.json"))
        except FileNotFoundError:
            return False

    def acquire(self) -> bool:
        """Tries once. A holder whose process has ended, or whose heartbeat stood still for TTL, is taken for dead."""
        last = self._last(self._turns())
        if last is not None:
            beat = self._beat(last)
            if beat != _RELEASED and not self._ended(last):
                if self._seen is None or self._seen[:2] != (last, beat):
                    self._seen = (last, beat, self._clock())
                    return False
                if self._clock() - self._seen[2] < self.ttl_sec:
                    return False
        turn = 0 if last is None else last + 1
        if not self._store.create(f"leases/{turn:06d}.json", self._holder):
            self._seen = None  # another took this turn first
            return False
        self._turn = turn
        if not self.renew():
            return False
        for old, paths in self._turns().items():
            if old < turn:
                for path in paths:
                    self._store.delete(path)
        return True

    def wait(self, limit_sec: float, *, sleep: Callable[[float], None] = time.sleep) -> bool:
        """Tries again and again for at most `limit_sec`; of use is twice the TTL, after which a live holder has shown itself."""
        until = self._clock() + limit_sec
        while not self.acquire():
            if self._clock() >= until:
                return False
            sleep(min(PAUSE_SEC, self.ttl_sec / 4))
        return True

    def renew(self) -> bool:
        """One heartbeat; False, and no longer held, where another has taken over."""
        if self._turn is None:
            return False
        if self._last(self._turns()) != self._turn:  # a later turn, or ours was cleaned away by one that is gone
            self._turn = None
            return False
        self._count += 1
        self._store.put(f"leases/{self._turn:06d}.beat", f"{self._count}".encode())
        return True

    def release(self) -> None:
        """Lets the next contender in at once."""
        if self._turn is not None and self._last(self._turns()) == self._turn:
            self._store.put(f"leases/{self._turn:06d}.beat", _RELEASED)
        self._turn = None


class Heartbeat:
    """Renews a held lease from a thread of its own while a `with` block runs, and releases it at the end."""

    def __init__(self, lease: Lease, beat_sec: float = BEAT_SEC) -> None:
        self._lease, self._beat_sec = lease, beat_sec
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="lease-heartbeat")

    def _run(self) -> None:
        while not self._stop.wait(self._beat_sec):
            try:
                if not self._lease.renew():
                    return
            except (OSError, InputError):
                continue  # a store that is away for a moment: the lease only saves work

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(
            OSError, InputError
        ):  # the next contender waits a TTL instead; never hide the build's own error
            self._lease.release()
