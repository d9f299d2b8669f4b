"""Consent withdrawn: which tiles rest on a patient, and how they leave a set. What was handed on to others is out of reach.

Every shard that holds such a tile is taken back whole and drawn anew from a bank without the patient. The set's lock then names that
bank. A run that was cut off is finished by the same command: what is left to do follows from OUT and LINEAGE alone.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from synthfactory.embeddings.places import local
from synthfactory.plan.lock import LOCK, check_same_recipe, lock_yaml
from synthfactory.run.belonging import recipe_of
from synthfactory.run.keys import read_keys
from synthfactory.run.prepare import Prepared, Standing
from synthfactory.shards.commit import commit_path
from synthfactory.shards.lease import Lease
from synthfactory.shards.store import Store, open_store
from synthfactory.spec.errors import InputError
from synthfactory.spec.places import is_url
from synthfactory.spec.schema import Spec

UNDER_DP = (
    "nothing of a patient can be taken out of a release under differential privacy, nor out of tiles drawn from it. That is acceptable as "
    "far as its epsilon is: with or without this patient, any outcome was about as likely (epsilon {epsilon:g}, delta {delta:g}). Take the "
    "patient out of the bank all the same: later releases must not be made from it"
)


@dataclass
class Resting:
    """What of a set rests on a patient: keys of published tiles by class, the shards that hold them, and dropped candidates.

    `stale` are lineage files of other tars (builds that lost a race, shards that were drawn anew) that name the patient too.
    """

    tiles: dict[str, list[str]] = field(default_factory=dict)
    shards: list[int] = field(default_factory=list)
    dropped: int = 0
    stale: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Published tiles."""
        return sum(map(len, self.tiles.values()))


def resting_on(patient: str, standing: Standing, lineage: Store) -> Resting:
    """Reads LINEAGE. InputError where it lacks what a standing shard came from: then nobody can tell."""
    found = Resting()
    files = {path for path, _ in lineage.entries("units") if path.endswith(".parquet")}
    current = {_unit(shard, commit.body): shard for shard, commit in standing.commits.items()}
    lost = sorted(current.keys() - files)
    if lost:
        raise InputError(
            f"{lineage.place}/{lost[0]}: is missing, so what shard {current[lost[0]]:06d} rests on is not known; restore the lineage "
            "folder, or withdraw the whole set"
        )
    for path in sorted(files):
        rows = [row for row in _rows(lineage, path) if any(part["patient_id"] == patient for part in row["sources"])]
        if not rows:
            continue
        if path not in current:
            found.stale.append(path)
            continue
        found.shards.append(current[path])
        for row in rows:
            if row["accepted"]:
                found.tiles.setdefault(row["class_name"], []).append(row["key"])
            else:
                found.dropped += 1
    return found


def _unit(shard: int, body: Mapping[str, Any]) -> str:
    return f"units/{shard:06d}-{body['tar']['sha256'][:12]}.parquet"


def _rows(lineage: Store, path: str) -> list[dict[str, Any]]:
    try:
        with lineage.open(path) as handle:
            columns = ["key", "class_name", "accepted", "sources"]
            table = pq.ParquetFile(handle, pre_buffer=False).read(columns=columns, use_threads=False)
    except (OSError, ValueError, KeyError) as error:  # pyarrow's errors are ValueErrors
        raise InputError(
            f"{lineage.place}/{path}: cannot be read ({error}); restore the lineage folder from a copy"
        ) from None
    return list(table.to_pylist())


def check_gone(patient: str, prepared: Prepared) -> None:
    """InputError where the spec's source still holds the patient, or where nothing can be drawn anew from it."""
    tiles, bank = prepared.conditions.tiles, prepared.bank
    there: set[str | None] = set() if tiles is None else set(tiles.patient_ids)
    if bank is not None:
        there |= set(bank.groups.patients)
    if patient in there:
        raise prepared.spec.error(
            f"embeddings.{prepared.spec.embeddings.source}",
            "still holds rows of this patient; take them out first (tiles are drawn anew from what is left)",
        )


def withdraw(patient: str, prepared: Prepared, standing: Standing) -> Iterator[str]:
    """Takes back every shard that rests on the patient, and what LINEAGE holds of them; yields what was done, a line each.

    The build that follows draws the shards anew. InputError where another build is at work, or the spec differs from the set in more than
    its rows; nothing is touched then.
    """
    spec = prepared.spec
    out, lineage = standing.store, open_store(spec.lineage)
    lease = Lease(lineage)
    if not lease.acquire():
        raise InputError(f"a build of {spec.output.path} seems to be at work; wait for its end, then run this again")
    try:
        found = resting_on(patient, standing, lineage)
        lock = _relocked(prepared, standing)
        _note(patient, prepared, found, lineage)
        for shard in found.shards:
            out.delete(commit_path(shard))
            for path in standing.commits[shard].objects:
                out.delete(path)
            lineage.delete(_unit(shard, standing.commits[shard].body))
        yield f"took back {len(found.shards)} shards with {found.count} tiles that rest on the patient"
        for path in found.stale:
            lineage.delete(path)
        yield from _cleared(spec, lineage)
        out.put(LOCK, lock_yaml(lock))
    finally:
        lease.release()


def _relocked(prepared: Prepared, standing: Standing) -> dict[str, Any]:
    """The set's lock with the fingerprints of the bank as it is now."""
    assert standing.lock is not None
    lock = standing.lock
    values = recipe_of(prepared, read_keys(prepared.spec, open_store(prepared.spec.lineage)), None)
    banks = {**lock["recipe"]["class_banks"], **values["class_banks"]}
    renewed = {**lock, "recipe": {**lock["recipe"], "class_banks": banks}}
    check_same_recipe(renewed, values, prepared.spec.output.path)
    return renewed


def _note(patient: str, prepared: Prepared, found: Resting, lineage: Store) -> None:
    """LINEAGE/revocations/N.json: that it was done, and of which tiles; the patient by an HMAC that only the set's key can repeat."""
    key = read_keys(prepared.spec, lineage).conditions
    says = {
        "patient_hmac_sha256": hmac.new(key, patient.encode(), hashlib.sha256).hexdigest(),
        "tiles": found.tiles, "shards": found.shards, "dropped_candidates": found.dropped,
    }  # fmt: skip
    content, number = json.dumps(says, indent=1, sort_keys=True).encode(), 1
    while not lineage.create(f"revocations/{number:06d}.json", content):
        number += 1


def _cleared(spec: Spec, lineage: Store) -> Iterator[str]:
    """What LINEAGE holds of real tiles beside the units: cached embeddings, the pilot's sheet."""
    for path, _ in list(lineage.entries("pilot")):
        lineage.delete(path)
        yield f"removed {lineage.place}/{path}, which may show tiles that rest on the patient"
    cache = None if is_url(spec.lineage) else Path(local(spec.lineage)) / "embeddings"
    if cache is not None and cache.is_dir():
        shutil.rmtree(cache)
        yield f"removed {cache}, a cache of embeddings (the next build makes it anew)"


def models_on(lock: Mapping[str, Any], folders: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """(folder, how) of the models below `folders` that were trained on the set, themselves or through a base."""
    for folder in folders:
        for config in sorted(folder.rglob("config.json")):
            try:
                training = json.loads(config.read_text()).get("training") or {}
            except (OSError, ValueError, AttributeError):
                continue
            through = ""
            while isinstance(training, dict) and training:
                if any(_same_set(known, lock) for known in training.get("sets") or ()):
                    yield config.parent, through or "trained on it"
                    break
                base = training.get("base") or {}
                training, through = (
                    base.get("training") or {},
                    f"goes on from {base.get('id')}, which was trained on it",
                )


def _same_set(known: Any, lock: Mapping[str, Any]) -> bool:
    return isinstance(known, dict) and (known.get("name"), known.get("recipe_sha256")) == (
        lock["name"],
        lock["recipe_sha256"],
    )
