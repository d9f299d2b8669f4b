"""Which tiles are trained on and which only looked at: by patient, so that no patient is on both sides.

A patient of a share is chosen by a hash of the name within each class, whatever else is in the data: the same patients are held out
when other tiles of theirs join.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from synthfactory.embeddings.rows import spelled
from synthfactory.shards.store import open_store
from synthfactory.spec.errors import InputError
from synthfactory.spec.text import counted, shown
from train.config import Data, ShardSet
from train.shardset import Index, open_index


@dataclass(frozen=True)
class Split:
    """Rows of the index that are trained on and those that are only looked at, int64; what is allowed, but should be known."""

    index: Index
    train: np.ndarray
    validation: np.ndarray
    warnings: tuple[str, ...]
    rests: Mapping[str, frozenset[str]] = field(
        default_factory=dict, repr=False
    )  # patients of the lineages that were read, by place

    @property
    def digest(self) -> str | None:
        """sha256 of whose tiles are on which side, '' for nobody knows whose; None where nothing is held out."""
        if not len(self.validation):
            return None
        names = (*self.index.patient_names, "")
        held = np.isin(np.arange(len(self.index)), self.validation)
        sides = [[names[patient], bool(side)] for patient, side in zip(self.index.patients, held, strict=True)]
        return hashlib.sha256(json.dumps(sides).encode()).hexdigest()

    def weights(self, data: Data) -> np.ndarray:
        """float64 (n,): the weight of each training row's set."""
        weights = np.asarray([entry.weight for entry in data.shards], np.float64)
        return np.asarray(weights[self.index.sets[self.train]])


def split(data: Data, cache: Path) -> Split:
    """Opens the sets and divides them. InputError where a patient is on both sides, patients are unknown, or a side is empty."""
    apart = [] if data.validation is None else data.validation.shards or []
    index = open_index(data, cache, [*data.shards, *apart])
    warnings = [f"left out: {text}" for text in index.skipped]
    if len(warnings) > 1:
        warnings.append(f"left out: {len(warnings):,} of {len(warnings) + len(index.tars):,} tars in all")
    if data.validation is None:
        everything = np.arange(len(index))
        warnings += [*_untaught(index, everything), *_mixed(index, everything)]
        return Split(index, everything, everything[:0], tuple(warnings))
    unknown = (index.patients < 0) & ~index.synthetic
    if unknown.any() and data.unknown_patients == "refuse":
        label = index.classes[int(index.labels[unknown][0])]
        raise InputError(
            f"data.validation: the patient of {counted(int(unknown.sum()), 'tile')} is unknown ('{shown(label)}' among their classes), so "
            "both sides may share patients; name them, or write unknown_patients: train under data"
        )
    share = data.validation.share
    if share is None:
        _check_tars(index, len(data.shards))
    held = index.sets >= len(data.shards) if share is None else _held_out(index, share)
    _check_sides(index, held)
    rests = _check_synthetic(index, held, data)
    if held.all() or not held.any():
        side = "training" if held.all() else "validation"
        why = (
            "there are too few patients to divide them" if (index.patients >= 0).any() else "no tile's patient is known"
        )
        raise InputError(f"data.validation: no tile is left for {side}; {why}")
    if unknown[held].any():
        warnings.append(
            f"the patient of {counted(int(unknown[held].sum()), 'validation tile')} is unknown, and may be trained on"
        )
    if _unsaid(index, ~held, data.shards, 0):
        warnings.append(
            "synthetic tiles may rest on patients that are validated on; name the set's lineage under data.shards to check it"
        )
    if _unsaid(index, held, apart, len(data.shards)):
        warnings.append(
            "synthetic validation tiles may rest on patients that are trained on; name the set's lineage under data.validation.shards"
        )
    if twice := np.intersect1d(index.pictures[held], index.pictures[~held & (index.pictures > 0)]).size:
        warnings.append(
            f"{counted(twice, 'picture')} of packed tiles on both sides, under different patients: look whether one person has two names"
        )
    kept = np.flatnonzero(~held)
    warnings += [*_untaught(index, kept), *_mixed(index, kept)]
    return Split(index, kept, np.flatnonzero(held), tuple(warnings), rests)


def _unsaid(index: Index, side: np.ndarray, entries: Sequence[ShardSet], first: int) -> bool:
    """Whether synthetic tiles of this side are of a set whose lineage is not named; `first`: the number of the first of these sets."""
    sets = np.unique(index.sets[side & index.synthetic]).tolist()
    return any(first + at in sets and entry.lineage is None for at, entry in enumerate(entries))


def _held_out(index: Index, share: float) -> np.ndarray:
    """bool (N,): tiles of the patients that are held out: of each class the share whose names hash lowest, and at least one of two."""
    chosen: set[int] = set()
    for label in range(len(index.classes)):
        patients = np.unique(index.patients[(index.labels == label) & (index.patients >= 0)])
        ordered = sorted(patients.tolist(), key=lambda at: hashlib.sha256(index.patient_names[at].encode()).digest())
        chosen.update(ordered[: max(1, round(share * len(ordered))) if len(ordered) > 1 else 0])
    return np.isin(index.patients, np.asarray(sorted(chosen), np.int64))


def _check_tars(index: Index, sets: int) -> None:
    """InputError where validation sets hold a tar of the training sets, whatever is known of patients."""
    of_set = index.sets[np.unique(index.tar_of, return_index=True)[1]]
    trained = {index.tar_sha256[at]: index.tars[at] for at in np.flatnonzero(of_set < sets)}
    for at in np.flatnonzero(of_set >= sets):
        if index.tar_sha256[at] in trained:
            raise InputError(
                f"data.validation.shards: {index.tars[at]} is the very same tar as {trained[index.tar_sha256[at]]} in data.shards, so "
                "what is measured there would flatter; leave it out on one side"
            )


def _untaught(index: Index, rows: np.ndarray) -> Iterator[str]:
    """Classes that no tile teaches: all of their patients are held out, or they were only named."""
    taught = np.bincount(index.labels[rows], minlength=len(index.classes))
    for name, count, all_of_it in zip(
        index.classes, taught, np.bincount(index.labels, minlength=len(taught)), strict=True
    ):
        if not count:
            why = (
                f"all {counted(int(all_of_it), 'tile')} of it are validation tiles" if all_of_it else "no set holds one"
            )
            yield f"class '{shown(name)}' has no training tile ({why}), so nothing is learnt of it"


def _check_sides(index: Index, held: np.ndarray) -> None:
    """InputError where a patient is on both sides, be it under two spellings."""
    trained = {spelled(name): name for name in _names(index, ~held)}
    both = [(trained[spelled(name)], name) for name in _names(index, held) if spelled(name) in trained]
    if not both:
        return
    one, other = both[0]
    if all(a != b for a, b in both):
        raise InputError(
            f"data.validation: names patients that differ in case, spaces or form of letters only ({json.dumps(one)} in training and "
            f"{json.dumps(other)} in validation); spell one person one way"
        )
    raise InputError(
        f"data.validation.shards: {counted(len(both), 'patient')} of theirs are in the training tiles as well, so what is "
        "measured there would flatter; split by patient"
    )


def _names(index: Index, side: np.ndarray) -> list[str]:
    return [index.patient_names[at] for at in np.unique(index.patients[side]) if at >= 0]


def people(index: Index, side: np.ndarray) -> frozenset[str]:
    """Patients of these rows that are known, as `spelled`."""
    return frozenset(map(spelled, _names(index, side)))


def behind(entry: ShardSet) -> frozenset[str]:
    """Patients on whom the synthetic tiles of a set rest, as far as its lineage is named. InputError where that cannot be read."""
    return frozenset(map(spelled, _rests_on(entry.lineage))) if entry.lineage else frozenset()


def _check_synthetic(index: Index, held: np.ndarray, data: Data) -> dict[str, frozenset[str]]:
    """Patients behind each lineage that is named. InputError where synthetic tiles of one side rest on patients of the other."""
    assert data.validation is not None
    apart = data.validation.shards or []
    for at, entry in enumerate((*data.shards, *apart)):
        if entry.lineage:
            _check_lineage(index, at, entry.lineage)
    rests = {entry.lineage: behind(entry) for entry in (*data.shards, *apart) if entry.lineage}
    trained = people(index, ~held)
    judged = people(index, held).union(*(rests[entry.lineage] for entry in apart if entry.lineage))
    sides = [
        *((f"data.shards.{at}", judged, entry.lineage, "validation") for at, entry in enumerate(data.shards)),
        *((f"data.validation.shards.{at}", trained, entry.lineage, "training") for at, entry in enumerate(apart)),
    ]
    for where, others, lineage, side in sides:
        if lineage and (both := others & rests[lineage]):
            raise InputError(
                f"{where}: its tiles were drawn from {counted(len(both), 'patient')} of the {side} side, so what is measured would "
                "flatter; build the set from the others"
            )
    return rests


_BUILT = re.compile(r"[0-9]{6,9}-[0-9a-f]{12}\.tar")  # names of tars as a build writes them


def _check_lineage(index: Index, number: int, lineage: str) -> None:
    """InputError where a lineage knows nothing of a synthetic tar of that set: it is another set's."""
    stems = (path.removesuffix(".parquet") for path, _ in open_store(lineage, reading=True).entries("units"))
    known = {stem.rpartition("-")[2] for stem in stems}  # of each unit the beginning of its tar's sha256
    for tar in np.unique(index.tar_of[(index.sets == number) & index.synthetic]).tolist():
        written = _BUILT.fullmatch(index.tars[tar].rpartition("/")[2])  # others were put together anew
        if known and written and index.tar_sha256[tar][:12] not in known:
            raise InputError(
                f"data.shards: lineage {lineage}: says nothing of {index.tars[tar]}; name the lineage of that very set, as it is now"
            )


def _rests_on(lineage: str) -> Iterator[str]:
    store = open_store(lineage, reading=True)
    found = [path for path, _ in store.entries("units") if path.endswith(".parquet")]
    if not found:
        raise InputError(f"data.shards: lineage {lineage}: holds no units; name the lineage of the set's spec")
    for path in found:
        try:
            with store.open(path) as handle:
                columns = ["sources", "accepted"]
                table = pq.ParquetFile(handle, pre_buffer=False).read(columns=columns, use_threads=False)
            kept = [row["sources"] for row in table.to_pylist() if row["accepted"]]
            behind = [str(part["patient_id"]) for parts in kept for part in parts if part["patient_id"]]
        except (pa.ArrowException, OSError, LookupError, TypeError, ValueError) as error:
            raise InputError(
                f"data.shards: lineage {lineage}: {path} is damaged or no lineage ({shown(str(error).splitlines()[0])}); put it back"
            ) from None
        yield from behind


def _mixed(index: Index, rows: np.ndarray) -> Iterator[str]:
    """A class that is all synthetic beside one that is all real: a model may learn 'synthetic' for the class's own look."""
    labels, synthetic = index.labels[rows], index.synthetic[rows]
    share = {name: synthetic[labels == at].mean() for at, name in enumerate(index.classes) if (labels == at).any()}
    made = [name for name, value in share.items() if value == 1]
    real = [name for name, value in share.items() if value == 0]
    if made and real:
        yield (
            f"class '{shown(made[0])}' has synthetic tiles only and class '{shown(real[0])}' real ones only: what tells real from "
            "synthetic tells these classes apart as well"
        )
