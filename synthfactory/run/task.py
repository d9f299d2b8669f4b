"""What passes between driver and workers: small, picklable, and never a secret or a weight (those are read where they lie)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from synthfactory.plan.units import Slot
from synthfactory.shards.record import Part
from synthfactory.spec.schema import Spec

OUT_OF_BUDGET = "out of budget"
FINGERPRINT = "fingerprint.json"  # in LINEAGE, under execution.strict: of the first worker
Tick = Callable[[int, int], None]  # (candidates drawn, of them rejected) since the last tick


@dataclass(frozen=True)
class Setup:
    """What a worker needs once. The seed is read from the spec, or from LINEAGE where it is secret."""

    spec: Spec
    lock: dict[str, Any]
    run_id: str
    other_fingerprint: dict[str, Any] | None = None  # strict: what this build's shards were made with
    nearest: str | None = None  # LINEAGE's path of what the screen `nearest_real` compares with
    first: bool = False  # nothing is committed yet: a unit of which no candidate passes ends the build instead


@dataclass(frozen=True)
class Source:
    """Where a slot's condition came from; for LINEAGE only. No part: from nobody's tile in particular (a release, or no condition)."""

    label_level: str
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Task:
    """One unit: its slots in order, with key, condition (float32, (n, E); None: drawn without) and source of each.

    It may make `calls_allowed` network calls; None = no limit.
    """

    shard: int
    slots: tuple[Slot, ...]
    keys: tuple[str, ...]
    conditions: np.ndarray | None
    sources: tuple[Source, ...]
    calls_allowed: int | None = None


@dataclass(frozen=True)
class UnitResult:
    """What became of a unit; `outcome` is commit.Outcome's, or OUT_OF_BUDGET where nothing was committed.

    `seconds` per stage: sample, decode, screen, encode, commit (encode runs beside the others).
    `batch_size` is smaller than the lock's where memory was short. `classes`: name -> (its slots in this unit, those that stay empty).
    """

    shard: int
    outcome: str
    tiles: int
    shortfall: int
    candidates: int
    network_calls: int
    batch_size: int
    rejects: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    classes: dict[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Done:
    """A unit is committed, by the worker of this number."""

    result: UnitResult
    worker: int = 0


@dataclass(frozen=True)
class Failed:
    """A unit raised (`died` False), or its worker's process ended (`died` True)."""

    shard: int
    message: str
    died: bool
    error: BaseException | None = None
    worker: int = 0
    where: str = ""  # the worker's node, where there are several


class Pool(Protocol):
    """A set of workers, one unit at a time each."""

    @property
    def workers(self) -> int:
        """How many they are, as far as is known."""

    def describe(self) -> str:
        """Who works, in words."""

    def free(self) -> int:
        """How many units could be handed out now."""

    def submit(self, task: Task) -> None:
        """Hands out a unit; only while free() > 0."""

    def wait(self, timeout_sec: float) -> list[Done | Failed]:
        """What ended, waiting at most `timeout_sec` (a pool without processes of its own works through one unit instead)."""

    def close(self) -> None:
        """Ends the workers; their unfinished units are lost, and nothing else is."""
