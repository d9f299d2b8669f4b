"""Embedding on Ray: one actor per GPU where there are some, else per `threads` CPU cores; a unit whose actor dies is handed out again."""

from __future__ import annotations

import contextlib
import os
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


class _Actor:
    """One embedder in a process of its own; built at its first unit, so that what is wrong comes back as an exception."""

    def __init__(self, setup: EmbedSetup) -> None:
        self._setup = setup
        self._worker: UnitEmbedder | None = None

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
        """Yields (unit, name of its result) as they end; ends Ray afterwards, whatever happens."""
        waiting, idle = list(reversed(range(len(units)))), list(self._actors)
        busy: dict[Any, tuple[int, Any]] = {}
        deaths = Counter[int]()
        try:
            while waiting or busy:
                while waiting and idle:
                    number, actor = waiting.pop(), idle.pop()
                    busy[actor.run.remote(units[number])] = (number, actor)
                for call in ray.wait(list(busy), num_returns=1)[0]:
                    number, actor = busy.pop(call)
                    idle.append(actor)
                    try:
                        yield number, str(ray.get(call))
                    except ray.exceptions.RayTaskError as error:
                        if isinstance(error.cause, InputError):
                            raise InputError(str(error.cause)) from None
                        raise
                    except ray.exceptions.RayActorError:
                        deaths[number] += 1
                        if deaths[number] >= MAX_DEATHS:
                            raise
                        waiting.append(number)
        finally:
            for actor in self._actors:
                with contextlib.suppress(ray.exceptions.RayError):
                    ray.kill(actor, no_restart=True)
            ray.shutdown()
