"""One worker: a unit's slots -> candidates, screened, redrawn where dropped, written as a shard and committed. Knows no Ray.

Batches are a function of (unit, attempt): the slots still open, in slot order, grouped by sampler, cut at the batch size.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from synthfactory.model.folder import open_model
from synthfactory.model.weights import load_model
from synthfactory.plan.seeds import noise_key
from synthfactory.run.fingerprint import fingerprint
from synthfactory.run.keys import read_keys
from synthfactory.run.task import Setup, Task, Tick, UnitResult
from synthfactory.sample.engine import Engine
from synthfactory.screen import Verdict, screen_tiles
from synthfactory.shards.commit import commit_shard
from synthfactory.shards.record import LineageRow, TileRecord, lineage_parquet, public_parquet
from synthfactory.shards.store import open_store
from synthfactory.shards.tarfmt import encode_image, write_shard
from synthfactory.spec.errors import InputError
from synthfactory.spec.sampler import Sampler


@dataclass
class _Unit:
    """What a unit has come to so far. Encoded tiles lie in a spool file, so that memory does not grow with the shard size."""

    task: Task
    spool: Path
    attempts: dict[int, int] = field(default_factory=dict)  # position of a filled slot -> attempt kept
    places: dict[int, tuple[int, int]] = field(default_factory=dict)  # position -> (offset, length) in the spool
    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)
    rows: list[LineageRow] = field(default_factory=list)
    rejects: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))


class Worker:
    """Holds the model and both stores; `run` makes one shard."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        spec, lock = setup.spec, setup.lock
        folder = open_model(spec.model)
        if folder.sha256 != lock["model"]["sha256"]:
            raise InputError(
                f"model: {spec.model}: differs from the one in {spec.output.path}/spec.lock.yaml; use the same weights"
            )
        self._out, self._lineage = open_store(spec.output.path), open_store(spec.lineage)
        self._keys = read_keys(spec, self._lineage)
        execution = lock["execution"]
        self._batch_size = int(execution["batch_size"])
        self._engine = Engine(load_model(folder), dtype=execution["dtype"], threads=execution["threads"])
        self._embed = self._engine.model.embed if spec.screen.agreement is not None else None
        self._class_index = {entry["name"]: int(entry["class_index"]) for entry in lock["classes"]}
        self._folder = folder
        self.fingerprint = fingerprint(self._engine, self._batch_size)
        if setup.other_fingerprint is not None and setup.other_fingerprint != self.fingerprint:
            differs = sorted(k for k in self.fingerprint if setup.other_fingerprint.get(k) != self.fingerprint[k])
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
        calls_before = self._engine.spent.network_calls
        with tempfile.TemporaryDirectory(prefix="synthfactory-") as scratch:
            unit = self._drawn(task, Path(scratch), tick)
            outcome = self._commit(unit, Path(scratch))
        filled = len(unit.attempts)
        return UnitResult(
            shard=task.shard,
            outcome=outcome,
            tiles=filled,
            shortfall=len(task.slots) - filled,
            candidates=len(unit.rows),
            network_calls=self._engine.spent.network_calls - calls_before,
            rejects=dict(sorted(unit.rejects.items())),
            seconds={stage: round(value, 4) for stage, value in unit.seconds.items()},
        )

    def _drawn(self, task: Task, scratch: Path, tick: Tick) -> _Unit:
        unit = _Unit(task, scratch / "spool")
        spent = self._engine.spent.seconds
        before = dict(spent)
        with open(unit.spool, "wb") as spool:
            waiting = list(range(len(task.slots)))
            for attempt in range(self.setup.spec.budget.max_attempts):
                for sampler, positions in self._batches(task, waiting):
                    self._batch(unit, spool, sampler, positions, attempt, tick)
                waiting = [position for position in waiting if position not in unit.attempts]
                if not waiting:
                    break
        for stage in ("sample", "decode"):
            unit.seconds[stage] += spent[stage] - before[stage]
        return unit

    def _batches(self, task: Task, waiting: list[int]) -> list[tuple[Sampler, list[int]]]:
        groups: dict[str, tuple[Sampler, list[int]]] = {}
        for position in waiting:
            sampler = self.setup.spec.sampler_for(task.slots[position].class_name)
            groups.setdefault(sampler.model_dump_json(), (sampler, []))[1].append(position)
        size = self._batch_size
        return [
            (sampler, positions[start : start + size])
            for sampler, positions in groups.values()
            for start in range(0, len(positions), size)
        ]

    def _batch(self, unit: _Unit, spool: Any, sampler: Sampler, positions: list[int], attempt: int, tick: Tick) -> None:
        task = unit.task
        slots = [task.slots[position] for position in positions]
        keys = [noise_key(self._keys, slot.class_name, slot.index, attempt) for slot in slots]
        conditions = np.ascontiguousarray(task.conditions[positions])
        images = self._engine.draw(conditions, keys, sampler)
        began = time.perf_counter()
        verdicts = screen_tiles(images, conditions, self.setup.spec.screen, self._embed)
        unit.seconds["screen"] += time.perf_counter() - began
        began = time.perf_counter()
        for position, key, image, verdict in zip(positions, keys, images, verdicts, strict=True):
            unit.rows.append(self._row(task, position, attempt, key, verdict))
            if not verdict.keep:
                unit.rejects.update(verdict.reasons)
                continue
            encoded = encode_image(image, self.setup.spec.output.format)
            unit.attempts[position] = attempt
            unit.places[position] = (spool.tell(), len(encoded))
            unit.sizes[position] = (image.shape[1], image.shape[0])
            spool.write(encoded)
        unit.seconds["encode"] += time.perf_counter() - began
        kept = sum(verdict.keep for verdict in verdicts)
        tick(len(verdicts), len(verdicts) - kept)

    def _row(self, task: Task, position: int, attempt: int, key: tuple[int, int], verdict: Verdict) -> LineageRow:
        slot, source = task.slots[position], task.sources[position]
        return LineageRow(
            key=task.keys[position],
            class_name=slot.class_name,
            index=slot.index,
            attempt=attempt,
            accepted=verdict.keep,
            reasons=verdict.reasons,
            scores=verdict.scores,
            bank_row=source.bank_row,
            patient_id=source.patient_id,
            slide_id=source.slide_id,
            noise_key=f"{key[0]:016x}{key[1]:016x}",
        )

    def _record(self, unit: _Unit, position: int) -> TileRecord:
        task, lock = unit.task, self.setup.lock
        class_name = task.slots[position].class_name
        width, height = unit.sizes[position]
        return TileRecord(
            key=task.keys[position],
            label=class_name,
            label_level=task.sources[position].label_level,
            class_index=self._class_index[class_name],
            width_px=width,
            height_px=height,
            mpp=self._folder.resolution_mpp,
            format=self.setup.spec.output.format,
            model={key: lock["model"][key] for key in ("id", "revision", "sha256")},
            sampler=self.setup.spec.sampler_for(class_name).model_dump(),
            licence=self._folder.licence,
        )

    def _commit(self, unit: _Unit, scratch: Path) -> str:
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
        public = public_parquet(shard.rows, task.shard)
        counts = Counter(task.slots[position].class_name for position in filled)
        missing: dict[str, list[int]] = {}
        for position, slot in enumerate(task.slots):
            if position not in unit.attempts:
                missing.setdefault(slot.class_name, []).append(slot.index)
        # Lineage first: a published tile must never be without the record of where it came from.
        self._lineage.put(f"units/{task.shard:06d}-{shard.sha256[:12]}.parquet", lineage_parquet(unit.rows))
        body = {
            "tiles": len(filled),
            "classes": dict(sorted(counts.items())),
            "shortfall": {name: sorted(indices) for name, indices in sorted(missing.items())},
            "fingerprint": self.fingerprint,
        }
        outcome = commit_shard(self._out, task.shard, shard, public, body)
        unit.seconds["commit"] += time.perf_counter() - began
        return outcome.value
