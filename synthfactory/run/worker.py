"""One worker: a unit's task -> tiles (drawing.py) -> a shard, committed. Knows no Ray.

Where a batch does not fit the device's memory, the whole unit is drawn again at half the size: sizes never mix inside a unit.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from synthfactory.plan.bags import bag_id
from synthfactory.plan.lock import read_lock, tile_terms
from synthfactory.run.budget import BudgetSpentError
from synthfactory.run.drawing import Drawing, Unit
from synthfactory.run.engines import make_engine
from synthfactory.run.fingerprint import fingerprint
from synthfactory.run.keys import read_keys
from synthfactory.run.models import choose_model
from synthfactory.run.task import FINGERPRINT, OUT_OF_BUDGET, Setup, Task, Tick, UnitResult
from synthfactory.screen import Nearest
from synthfactory.shards.commit import commit_path, commit_shard, standing_commit, unit_path
from synthfactory.shards.manifest import LOCK
from synthfactory.shards.record import TileRecord, lineage_parquet, public_parquet
from synthfactory.shards.store import open_store
from synthfactory.shards.tarfmt import write_shard
from synthfactory.spec.errors import InputError
from synthfactory.spec.json_text import read_json


class ChangedError(InputError):
    """The set is another than the build began with: no worker may go on."""


class Worker:
    """Holds the model and both stores; `run` makes one shard."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        spec, lock = setup.spec, setup.lock
        chosen = choose_model(spec)
        folder = chosen.model
        if folder.sha256 != lock["model"]["sha256"]:
            raise InputError(
                f"model: {spec.model.name}: differs from the one in {spec.output.path}/spec.lock.yaml; use the same weights"
            )
        self._out, self._lineage = open_store(spec.output.path), open_store(spec.lineage)
        execution = lock["execution"]
        self._batch_size = int(execution["batch_size"])
        self._engine = make_engine(folder, chosen.encoder, execution)
        nearest = None if setup.nearest is None else Nearest.from_bytes(self._lineage.read(setup.nearest))
        self._drawing = Drawing(self._engine, spec, read_keys(spec, self._lineage), nearest)
        self._class_index = {entry["name"]: int(entry["class_index"]) for entry in lock["classes"]}
        self._folder, self._begun = folder, not setup.first
        self._check_fingerprint()

    def _check_fingerprint(self) -> None:
        self.fingerprint = fingerprint(self._engine, self._batch_size)
        if not self.setup.lock["execution"]["strict"]:
            return
        # The first worker of a set says what all others must be: none is compared with a commit that is not there yet.
        first = self.setup.other_fingerprint or self.fingerprint
        self._lineage.create(FINGERPRINT, json.dumps(first, sort_keys=True).encode())
        other = read_json(self._lineage.read(FINGERPRINT))
        if other != json.loads(json.dumps(self.fingerprint)):
            differs = sorted(k for k in self.fingerprint if other.get(k) != self.fingerprint[k])
            raise InputError(
                f"execution.strict: this machine differs from the one that began the build in {', '.join(differs)}; "
                "use the same kind of machine and software, or set strict: false in a new output"
            )

    @property
    def device_name(self) -> str:
        """CPU, or the GPU's name."""
        return torch.cuda.get_device_name() if self._engine.device.type == "cuda" else "CPU"

    def run(self, task: Task, tick: Tick) -> UnitResult:
        """Makes and commits the unit's shard; the same task gives the same bytes."""
        began = time.perf_counter()
        calls_before = self._engine.spent.network_calls
        with tempfile.TemporaryDirectory(prefix="synthfactory-") as scratch:
            try:
                unit = self._drawn(task, Path(scratch), tick)
                outcome = self._commit(unit, Path(scratch))
            except BudgetSpentError:
                calls = self._engine.spent.network_calls - calls_before
                spent = {"sample": time.perf_counter() - began}
                return UnitResult(task.shard, OUT_OF_BUDGET, 0, 0, 0, calls, self._batch_size, seconds=spent)
            except Exception as error:
                self._note_spent(error, calls_before, began)
                raise
        filled = len(unit.attempts)
        asked = Counter(slot.class_name for slot in task.slots)
        made = Counter(task.slots[position].class_name for position in unit.attempts)
        return UnitResult(
            shard=task.shard,
            outcome=outcome,
            tiles=filled,
            shortfall=len(task.slots) - filled,
            candidates=len(unit.rows),
            network_calls=self._engine.spent.network_calls - calls_before,
            rejects=dict(sorted(unit.rejects.items())),
            seconds={stage: round(value, 4) for stage, value in unit.seconds.items()},
            batch_size=self._batch_size,
            classes={name: (count, count - made[name]) for name, count in sorted(asked.items())},
        )

    def _note_spent(self, error: Exception, calls_before: int, began: float) -> None:
        """What a unit that fails has cost counts against the budget as well; the error takes it to the driver."""
        error.spent = (self._engine.spent.network_calls - calls_before, time.perf_counter() - began)  # type: ignore[attr-defined]

    def _drawn(self, task: Task, scratch: Path, tick: Tick) -> Unit:
        calls_end = None if task.calls_allowed is None else self._engine.spent.network_calls + task.calls_allowed
        while True:
            try:
                return self._drawing.unit(
                    task, scratch, self._batch_size, tick, calls_end, may_be_empty=self._may_be_empty
                )
            except torch.OutOfMemoryError:
                if self._batch_size == 1 or self.setup.lock["execution"]["strict"]:
                    raise
            self._batch_size = (self._batch_size + 1) // 2
            self._engine.shrink(self._batch_size)
            self._check_fingerprint()

    def _may_be_empty(self) -> bool:
        """Whether the set holds a shard: others may have been committed since the build began."""
        self._begun = self._begun or any(True for _ in self._out.entries("commits"))
        return self._begun

    def _record(self, unit: Unit, position: int) -> TileRecord:
        task, lock, spec = unit.task, self.setup.lock, self.setup.spec
        slot = task.slots[position]
        class_name = slot.class_name
        width, height = unit.sizes[position]
        return TileRecord(
            key=task.keys[position],
            label=class_name,
            label_level=task.sources[position].label_level,
            class_index=self._class_index[class_name],
            width_px=width,
            height_px=height,
            mpp=self._folder.resolution_mpp,
            format=spec.output.format,
            model={key: lock["model"][key] for key in ("id", "revision", "sha256")},
            sampler=spec.sampler_for(class_name).model_dump(),
            licence=tile_terms(lock),
            bag_id=None if spec.bags is None else bag_id(spec.name, spec.bags, class_name, slot.index),
        )

    def _commit(self, unit: Unit, scratch: Path) -> str:
        began = time.perf_counter()
        task = unit.task
        filled = [position for position in range(len(task.slots)) if position in unit.attempts]
        with open(unit.spool, "rb") as spool:

            def items() -> Any:
                for position in filled:
                    offset, length = unit.places[position]
                    spool.seek(offset)
                    yield self._record(unit, position), spool.read(length)

            shard = write_shard(scratch / "shard.tar", items())
        public = public_parquet(shard.rows, task.shard, bags=self.setup.spec.bags is not None)
        counts = Counter(task.slots[position].class_name for position in filled)
        missing: dict[str, list[int]] = {}
        for position, slot in enumerate(task.slots):
            if position not in unit.attempts:
                missing.setdefault(slot.class_name, []).append(slot.index)
        self._check_banks()
        # Lineage first: a published tile must never be without the record of where it came from.
        self._lineage.put(unit_path(task.shard, shard.sha256), lineage_parquet(unit.rows))
        body = {
            "tiles": len(filled),
            "classes": dict(sorted(counts.items())),
            "shortfall": {name: sorted(indices) for name, indices in sorted(missing.items())},
            "fingerprint": self.fingerprint,
        }
        outcome = commit_shard(self._out, task.shard, shard, public, body)
        try:
            self._check_banks()  # again: what was committed before the lock changed, `revoke` has seen; what came after is seen here
        except InputError:
            self._take_back(task.shard, shard.sha256)
            raise
        unit.seconds["commit"] += time.perf_counter() - began
        return outcome.value

    def _check_banks(self) -> None:
        """InputError where the set's lock names other rows than these conditions come from: `revoke` took a patient out meanwhile."""
        mine = self.setup.lock["recipe"]["class_banks"]
        now = read_lock(self._out.read(LOCK))["recipe"]["class_banks"]
        if any(now.get(name, mac) != mac for name, mac in mine.items()):
            raise ChangedError(
                f"{self.setup.spec.output.path}: its bank was changed while this build was at work (synthfactory revoke does so); nothing "
                "more is drawn from the old one, so run the command again"
            )

    def _take_back(self, shard: int, sha256: str) -> None:
        standing = standing_commit(self._out, shard)
        if standing is not None and standing.unit == unit_path(shard, sha256):
            self._out.delete(commit_path(shard))
            for path in standing.objects:
                self._out.delete(path)
        self._lineage.delete(unit_path(shard, sha256))
