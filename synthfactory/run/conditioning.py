"""The condition of a slot by each mechanism: a real tile's embedding, a blend of several patients', or a draw from a release."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from synthfactory.embeddings.bank import Bank
from synthfactory.plan.bags import choose_in_bag
from synthfactory.plan.conditions import ClassIndex, choose
from synthfactory.plan.recipe import BEFORE_STRIDES
from synthfactory.plan.units import Slot
from synthfactory.privacy.mix import Mixer, assigned, blended, clusters_of
from synthfactory.privacy.projection import Projection
from synthfactory.privacy.release import Release, condition, gaussians
from synthfactory.run.prepare import Prepared
from synthfactory.run.protecting import CLUSTER_KEY
from synthfactory.run.task import Source
from synthfactory.shards.record import Part
from synthfactory.shards.store import Store
from synthfactory.spec.bags import Bags
from synthfactory.spec.errors import InputError
from synthfactory.spec.schema import Spec

WEAKEST = ("slide", "region", "tile")  # what a blend may claim of its label: no more than its least


class Conditioning(Protocol):
    """Gives slots their conditions, as a pure function of the slot and the build's key."""

    def of(self, slots: Sequence[Slot]) -> tuple[np.ndarray, tuple[Source, ...]]:
        """Conditions float32 (n, E), and where each came from."""


class Single:
    """Mechanism none: one real tile's embedding each; tiles of a bag follow the same patients."""

    def __init__(self, bank: Bank, indices: dict[str, ClassIndex], key: bytes, bags: Bags | None = None) -> None:
        self._bank, self._indices, self._key, self._bags = bank, indices, key, bags
        self._first_row = {name: bank.span(name)[0] for name in indices}

    def of(self, slots: Sequence[Slot]) -> tuple[np.ndarray, tuple[Source, ...]]:
        """See Conditioning."""
        picked = [self._choose(slot) for slot in slots]
        rows = np.array([self._first_row[slot.class_name] + row for slot, row in zip(slots, picked, strict=True)])
        facts = zip(picked, self._bank.facts(rows), strict=True)
        return self._bank.take(rows), tuple(
            Source(level, (Part(row, patient, slide),)) for row, (level, patient, slide) in facts
        )

    def _choose(self, slot: Slot) -> int:
        index, name = self._indices[slot.class_name], slot.class_name
        if self._bags is None:
            return choose(index, slot.index, self._key, name)
        return choose_in_bag(index, self._bags, slot.index, self._key, name)


class Blends:
    """Mechanism mix. The clusters of each class are kept in LINEAGE: where a row between two goes may differ on another machine."""

    def __init__(
        self, bank: Bank, indices: dict[str, ClassIndex], key: bytes, spec: Spec, lineage: Store, *, strides: bool
    ) -> None:
        self._bank = bank
        self._first_row = {name: bank.span(name)[0] for name in indices}
        k, cap = int(spec.privacy.value("k")), float(spec.privacy.value("max_weight"))
        self._mixers = {}
        for name, index in indices.items():
            found = self._clusters(name, index, k, key, lineage)
            self._mixers[name] = Mixer(name, clusters_of(found, index), k, cap, key, strides)

    def _clusters(self, name: str, index: ClassIndex, k: int, key: bytes, lineage: Store) -> np.ndarray:
        low = self._first_row[name]
        known = hashlib.sha256(f"{k}:{self._bank.class_mac(key, name)}".encode()).hexdigest()[:24]
        path = f"privacy/clusters-{known}.bin"
        for _ in range(2):
            try:
                return _checked(lineage.read(path), index, k, f"{lineage.place}/{path}")
            except FileNotFoundError:
                found = assigned(lambda rows: self._bank.take(low + rows), index, k, CLUSTER_KEY).tobytes()
                lineage.create(path, hashlib.sha256(found).digest() + found)
        raise InputError(f"{lineage.place}/{path}: cannot be read back; correct the permissions of the lineage folder")

    def of(self, slots: Sequence[Slot]) -> tuple[np.ndarray, tuple[Source, ...]]:
        """See Conditioning."""
        conditions, sources = np.empty((len(slots), self._bank.width), np.float32), []
        for position, slot in enumerate(slots):
            blend = self._mixers[slot.class_name].blend(slot.index)
            rows = self._first_row[slot.class_name] + blend.rows
            conditions[position] = blended(self._bank.take(rows), blend.weights)
            facts = self._bank.facts(rows)
            parts = [
                Part(int(row), patient, slide, float(weight))
                for row, weight, (_, patient, slide) in zip(blend.rows, blend.weights, facts, strict=True)
            ]
            sources.append(Source(min((level for level, _, _ in facts), key=WEAKEST.index), tuple(parts)))
        return conditions, tuple(sources)


def _checked(data: bytes, index: ClassIndex, k: int, where: str) -> np.ndarray:
    """The cluster of each row, as it was kept. InputError where it is damaged, or not of these rows."""
    digest, found = data[:32], np.frombuffer(data[32:], np.uint8)
    whole = hashlib.sha256(found.tobytes()).digest() == digest and len(found) == int(index.starts[-1])
    if not whole or min(cluster.patients for cluster in clusters_of(found, index)) < k:
        raise InputError(f"{where}: is damaged; restore it from a copy (tiles that exist were blended by it)")
    return found


class Draws:
    """Mechanism dp: post-processing of one release; the bank is not looked at."""

    def __init__(self, found: Release, projection: Projection, key: bytes, label_level: str) -> None:
        self._found, self._projection, self._key = gaussians(found), projection, key
        self._numbers = {name: number for number, name in enumerate(found.classes)}
        self._source = Source(label_level)

    def of(self, slots: Sequence[Slot]) -> tuple[np.ndarray, tuple[Source, ...]]:
        """See Conditioning."""
        drawn = [
            condition(
                self._found,
                self._projection,
                self._numbers[slot.class_name],
                self._key,
                f"{slot.index}:{slot.class_name}",
            )
            for slot in slots
        ]
        return np.stack(drawn), (self._source,) * len(slots)


def conditioning(
    prepared: Prepared,
    found: tuple[Release, Projection] | None,
    key: bytes,
    lineage: Store,
    conditions_version: int,
) -> Conditioning | None:
    """That of the spec's mechanism; None where tiles are drawn without conditions. `found` is the release, under dp.

    `conditions_version` is that of the set's recipe.
    """
    spec, bank = prepared.spec, prepared.bank
    if found is not None:
        return Draws(*found, key, str(spec.privacy.label_level))
    if bank is None:
        return None
    indices = prepared.class_indices(conditions_version)
    if spec.privacy.mechanism == "mix":
        return Blends(bank, indices, key, spec, lineage, strides=conditions_version > BEFORE_STRIDES)
    return Single(bank, indices, key, spec.bags)
