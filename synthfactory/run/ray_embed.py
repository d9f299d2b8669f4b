"""Embedding on Ray: one actor per GPU where there are some, else per `threads` CPU cores; a unit whose actor dies is handed out again."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in ray_pool.py, before torch is loaded

import ray
import ray.exceptions

from synthfactory.embeddings.tiles import TileFolder
from synthfactory.run.embedding import EmbedSetup, UnitEmbedder
from synthfactory.run.ray_pool import start_ray
from synthfactory.spec.errors import InputError

MAX_DEATHS = 5  # of the process that worked on one unit
WAKE_SEC = 1.0  # between questions to workers that are being restarted
AWAY_SEC = 600.0  # without any worker


class _Actor:
    """One embedder in a process of its own; built at its first unit, so that what is wrong comes back as an exception."""

    def __init__(self, setup: EmbedSetup) -> None:
        self._setup = setup
        self._worker: UnitEmbedder | None = None

    def ready(self) -> None:
        """Answers where the process is there."""

    def run(self, tiles: TileFolder) -> str:
        """Embeds one unit."""
        if self._worker is None:
            self._worker = UnitEmbedder(self._setup)
        return self._worker.run(tiles)


class RayEmbedPool:
    """The actors, one unit each at a time."""

    def __init__(self, setup: EmbedSetup, *, workers: int | None, address: str | None) -> None:
        here = workers or max(1, (os.cpu_count() or 1) // setup.threads)
        start_ray(address, here if address is None else 0)
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        there = max(1, int(resources.get("CPU", 1)) // setup.threads)
        count = workers or gpus or (here if address is None else there)
        kind = ray.remote(
            num_gpus=min(1.0, gpus / count) if gpus else 0,
            num_cpus=0 if gpus else 1 if address is None else setup.threads,
            max_restarts=-1,
            max_task_retries=0,
        )(_Actor)
        self._actors = [kind.remote(setup) for _ in range(count)]
        self._where = f"Ray at {address}" if address else "Ray on this machine"

    def describe(self) -> str:
        """Who works, in words."""
        return f"{self._where}, {len(self._actors)} worker{'s' * (len(self._actors) > 1)}"

    def run(self, units: Sequence[TileFolder]) -> Iterator[tuple[int, str]]:
        """Yields (unit, name of its result) as they end; ends Ray afterwards, whatever happens. A worker whose process has ended gets no
        unit until it answers again. OSError where a unit's workers end again and again, or none comes back.
        """
        waiting, idle = list(reversed(range(len(units)))), list(self._actors)
        busy: dict[Any, tuple[int, Any]] = {}
        asked: dict[Any, Any] = {}  # call of `ready` -> actor
        away: list[tuple[float, Any]] = []  # (when to ask again, actor)
        deaths, alone = Counter[int](), time.monotonic()
        try:
            while waiting or busy:
                while waiting and idle:
                    number, actor = waiting.pop(), idle.pop()
                    busy[actor.run.remote(units[number])] = (number, actor)
                for due, actor in [*away]:
                    if time.monotonic() >= due:
                        away.remove((due, actor))
                        asked[actor.ready.remote()] = actor
                if not busy and not asked:
                    time.sleep(WAKE_SEC)
                done = ray.wait([*busy, *asked], num_returns=1, timeout=WAKE_SEC)[0] if busy or asked else []
                alone = time.monotonic() if busy else alone
                if time.monotonic() - alone > AWAY_SEC:
                    raise OSError("no worker has come back for ten minutes; memory may be short, or the nodes are gone")
                for call in done:
                    if call in asked:
                        actor = asked.pop(call)
                        try:
                            ray.get(call)
                            idle.append(actor)
                        except ray.exceptions.RayError:
                            away.append((time.monotonic() + WAKE_SEC, actor))
                        continue
                    number, actor = busy.pop(call)
                    try:
                        yield number, str(ray.get(call))
                        idle.append(actor)
                    except ray.exceptions.RayTaskError as error:
                        if isinstance(error.cause, InputError):
                            raise InputError(str(error.cause)) from None
                        raise
                    except ray.exceptions.RayError as error:  # its process, its node, or the memory of it
                        deaths[number] += 1
                        if deaths[number] >= MAX_DEATHS:
                            raise OSError(
                                f"the workers of {units[number].where(0)} and its neighbours ended {MAX_DEATHS} times, last with "
                                f"{type(error).__name__}; memory may be short: name fewer --workers"
                            ) from None
                        waiting.append(number)
                        away.append((time.monotonic() + WAKE_SEC, actor))
        finally:
            for actor in self._actors:
                with contextlib.suppress(ray.exceptions.RayError):
                    ray.kill(actor, no_restart=True)
            ray.shutdown()
