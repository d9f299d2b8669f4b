"""Consent withdrawn: which tiles rest on a patient, and how they leave a set. What was handed on to others is out of reach.

Every shard that holds such a tile is taken back whole and drawn anew from a bank without the patient. The set's lock then names that
bank. A run that was cut off is finished by the same command: what is left to do follows from OUT and LINEAGE alone.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import hmac
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from synthfactory.embeddings.rows import spelled
from synthfactory.model.ancestry import ancestry
from synthfactory.model.taught import TAUGHT, hashed, read_taught
from synthfactory.plan.lock import COHORTS, check_same_recipe, lock_yaml, read_lock
from synthfactory.run.belonging import recipe_of
from synthfactory.run.bound import check_bound
from synthfactory.run.driver import check_affordable
from synthfactory.run.keys import read_keys
from synthfactory.run.people import unit_rows
from synthfactory.run.prepare import Prepared, Standing, label_levels, read_standing
from synthfactory.run.source import scratch_cache
from synthfactory.shards.commit import commit_path
from synthfactory.shards.lease import Heartbeat, Lease
from synthfactory.shards.manifest import LOCK
from synthfactory.shards.store import Store, open_store
from synthfactory.spec.errors import InputError
from synthfactory.spec.json_text import read_json
from synthfactory.spec.schema import Spec
from synthfactory.spec.text import counted, shown

UNDER_DP = (
    "nothing of a patient can be taken out of a release under differential privacy, nor out of tiles drawn from it. Whether that is "
    "acceptable is a matter of epsilon: let P be the chance of any event with this patient's tiles in the bank, and Q without them; then "
    "P <= {factor:.4g} Q + {delta:g}, and Q <= {factor:.4g} P + {delta:g} (epsilon {epsilon:g}). Take the patient out of the bank all the "
    "same: later releases must not be made from it. Sets of an equal request take the release that is there; privacy.release: N in their "
    "spec, one more than there are, asks for another, which is charged"
)


LOOK_SEC = 0.5  # between two looks at what a build without the lease takes back


@dataclass
class Resting:
    """What of a set rests on a patient: keys of published tiles by class, the shards that hold them, and dropped candidates.

    `stale` are lineage files of other tars (builds that lost a race, shards that were drawn anew) that name the patient too. `names` are
    the spellings that were taken for the patient's, `known` all patients that LINEAGE names. `nameless` are published tiles of which no
    patient is known, which may be anybody's.
    """

    tiles: dict[str, list[str]] = field(default_factory=dict)
    shards: list[int] = field(default_factory=list)
    dropped: int = 0
    stale: list[str] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    nameless: int = 0
    known: set[str] = field(default_factory=set)

    def add(self, other: Resting) -> None:
        """What another look has found besides."""
        for name, keys in other.tiles.items():
            self.tiles[name] = sorted({*self.tiles.get(name, ()), *keys})
        self.shards = sorted({*self.shards, *other.shards})
        self.dropped += other.dropped
        self.stale = sorted({*self.stale, *other.stale})
        self.names |= other.names
        self.known |= other.known
        self.nameless += other.nameless

    @property
    def count(self) -> int:
        """Published tiles."""
        return sum(map(len, self.tiles.values()))


def resting_on(patient: str, standing: Standing, lineage: Store, seen: frozenset[str] = frozenset()) -> Resting:
    """Reads LINEAGE, but for the files already `seen`. InputError where it lacks what a standing shard came from: then nobody can tell.

    Names are one patient's where they differ in case, spaces and forms of letters only.
    """
    found, who = Resting(), spelled(patient)
    files = unit_files(lineage) - seen
    current = {commit.unit: shard for shard, commit in standing.commits.items()}
    lost = sorted(current.keys() - files)
    if lost:
        raise InputError(
            f"{lineage.place}/{lost[0]}: is missing, so what shard {current[lost[0]]:06d} rests on is not known; restore the lineage "
            "folder, or withdraw the whole set"
        )
    for path in sorted(files):
        every = unit_rows(lineage, path)
        people = [[part["patient_id"] for part in row["sources"]] for row in every]
        named = {name for names in people for name in names if name is not None}
        found.known |= named
        alike = {name for name in named if spelled(name) == who}
        if path in current:
            found.nameless += sum(row["accepted"] and None in names for row, names in zip(every, people, strict=True))
        rows = [row for row, names in zip(every, people, strict=True) if not alike.isdisjoint(names)]
        if not rows:
            continue
        found.names |= alike
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


def unit_files(lineage: Store) -> frozenset[str]:
    """What LINEAGE holds of units."""
    return frozenset(path for path, _ in lineage.entries("units") if path.endswith(".parquet"))


def _late(patient: str, place: str, lineage: Store, seen: frozenset[str]) -> tuple[Standing, Resting]:
    """What was committed or laid down since `seen`. A build without the lease may be taking its own back at this moment."""
    for last in (False, False, True):
        standing = read_standing(place)
        new = {shard: commit for shard, commit in standing.commits.items() if commit.unit not in seen}
        try:
            return standing, resting_on(patient, replace(standing, commits=new), lineage, seen)
        except InputError:
            if last:
                raise
        time.sleep(LOOK_SEC)
    raise AssertionError("the last look returns or raises")


def check_gone(patient: str, prepared: Prepared) -> None:
    """InputError where the spec's source still holds the patient, or where nothing can be drawn anew from it."""
    tiles, bank = prepared.conditions.tiles, prepared.bank
    there: set[str | None] = set() if tiles is None else set(tiles.patient_ids)
    if bank is not None:
        there |= set(bank.groups.patients)
    alike = sorted(name for name in there if name is not None and spelled(name) == spelled(patient))
    if alike:
        other = "" if alike == [patient] else f", as {json.dumps(alike[0])}"
        raise prepared.spec.error(
            f"embeddings.{prepared.spec.embeddings.source}",
            f"still holds rows of this patient{other}; take them out first (tiles are drawn anew from what is left)",
        )


def withdraw(patient: str, prepared: Prepared, lease: Lease | None = None, *, no_tile: bool = False) -> Iterator[str]:
    """Takes back every shard that rests on the patient, and what LINEAGE holds of them; yields what was done, a line each.

    The build that follows draws the shards anew. InputError, and nothing is touched, where another build is at work, where nothing rests on
    the patient (unless `no_tile` says that this is so and the bank is another now), where the spec differs from the set in more than its
    rows, or where that build could not be made.
    """
    spec = prepared.spec
    lineage = open_store(spec.lineage)
    check_bound(spec, read_standing(spec.output.path))
    lease = Lease(lineage) if lease is None else lease
    if not lease.acquire():
        yield f"a build of {spec.output.path} seems to be at work; waiting up to {2 * lease.ttl_sec:.0f} s for it to show itself"
        if not lease.wait(2 * lease.ttl_sec):
            raise InputError(f"a build of {spec.output.path} is at work; wait for its end, then run this again")
    with Heartbeat(lease):  # only now: what was committed until the lease was taken is seen
        seen = unit_files(lineage)  # before the commits: one that comes between is looked at twice, and not passed over
        standing = read_standing(spec.output.path)
        found = resting_on(patient, standing, lineage)
        key = read_keys(spec, lineage).conditions
        # Notes of earlier versions are of the name as it was spelt.
        mac, exact = (hmac.new(key, name.encode(), hashlib.sha256).hexdigest() for name in (spelled(patient), patient))
        known = bool(found.shards or found.stale) or not _noted(lineage).isdisjoint({mac, exact})
        if not (known or no_tile):
            raise InputError(
                f"nothing in {spec.output.path} rests on a patient of this id{nearest(patient, found)}; spell it as the bank did. Where "
                "the id is right and no tile happens to rest on the patient, say --no-tile: the set then goes on with the bank as it is now"
            )
        lock, changed = _relocked(prepared, standing)
        if not (known or changed):
            raise InputError(f"{spec.output.path}: the bank is the one it was begun with, so nobody was taken out")
        _check_rebuild(prepared, standing, found)
        counted_before = not _noted(lineage, with_shards=True).isdisjoint({mac, exact})
        if found.shards or found.stale or not known:
            _note(mac, found, lineage)
        _count(lock, lineage, new=bool(found.shards) and not counted_before)
        # The lock comes first: a build that still has the old bank is refused from here on.
        standing.store.put(LOCK, lock_yaml(lock))
        # Builds without the lease look at the lock after each commit; what they committed before it changed is seen here.
        latest, late = _late(patient, spec.output.path, lineage, seen)
        if late.shards:
            _note(mac, late, lineage)
            _count(lock, lineage, new=not (found.shards or counted_before))
            standing.store.put(LOCK, lock_yaml(lock))
        standing = replace(standing, commits={**standing.commits, **latest.commits})
        found.add(late)
        if changed:
            yield f"the rows of {', '.join(changed)} are others than the set was begun with; its lock says so now"
        for shard in found.shards:
            standing.store.delete(commit_path(shard))
            for path in standing.commits[shard].objects:
                standing.store.delete(path)
            lineage.delete(standing.commits[shard].unit)
        for path in found.stale:
            lineage.delete(path)
        if found.shards:
            yield f"took back {counted(len(found.shards), 'shard')} with {counted(found.count, 'tile')} that rest on the patient"
        else:
            yield "no tile of a patient of this id is in the set, so no shard was taken back"
        if read_lock(standing.store.read(LOCK))["recipe"]["class_banks"] != lock["recipe"]["class_banks"]:
            raise InputError(
                f"{spec.output.path}: a build without the lease wrote its lock meanwhile; end it, then run this again"
            )
        yield from _cleared(spec, lineage)


def _check_rebuild(prepared: Prepared, standing: Standing, found: Resting) -> None:
    """InputError where the build that is to follow would be refused."""
    spec = prepared.spec
    assert standing.lock is not None
    gone = [entry["name"] for entry in standing.lock["classes"] if entry["name"] not in spec.classes]
    if gone and found.shards:
        raise spec.error(
            "classes",
            f"{', '.join(gone)} cannot be drawn anew, and every shard holds some; where a class has nobody left, withdraw the whole set: "
            f"delete {spec.output.path} and {spec.lineage}, and build another without the class",
        )
    left = {shard: commit for shard, commit in standing.commits.items() if shard not in found.shards}
    check_affordable(prepared, prepared.plan(replace(standing, commits=left)))


def _relocked(prepared: Prepared, standing: Standing) -> tuple[dict[str, Any], list[str]]:
    """(the set's lock with the fingerprints of the bank as it is now, classes whose rows are others)."""
    assert standing.lock is not None
    lock = standing.lock
    values = recipe_of(prepared, read_keys(prepared.spec, open_store(prepared.spec.lineage)), None, lock)
    before, now = lock["recipe"]["class_banks"], values["class_banks"]
    banks = {name: now.get(name, mac) for name, mac in before.items()}
    levels = sorted({*lock["label_levels"], *label_levels(prepared.conditions.summaries)})
    cohort = max(lock["training_cohort"], prepared.conditions.cohort, key=COHORTS.index)
    renewed = {
        **lock, "label_levels": levels, "training_cohort": cohort, "recipe": {**lock["recipe"], "class_banks": banks},
    }  # fmt: skip
    check_same_recipe(renewed, values, prepared.spec.output.path)
    return renewed, [name for name in before if banks[name] != before[name]]


def _noted(lineage: Store, *, with_shards: bool = False) -> set[str]:
    """HMACs of the patients who were taken out before; `with_shards`: of those on whom shards rested."""
    found = set()
    for path, _ in lineage.entries("revocations"):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            note = read_json(lineage.read(path))
            if note["shards"] or not with_shards:
                found.add(str(note["patient_hmac_sha256"]))
    return found


def _count(lock: dict[str, Any], lineage: Store, *, new: bool) -> None:
    """Counts the withdrawals in a lock, so that who holds a copy can see that it is of before: one a patient, however often the command
    was cut off and run again. `new`: this one is not noted yet, so the number rises (earlier versions counted some twice).
    """
    count = max(lock.get("withdrawals", 0) + new, len(_noted(lineage, with_shards=True)))
    if count:
        lock["withdrawals"] = count


def _note(mac: str, found: Resting, lineage: Store) -> None:
    """LINEAGE/revocations/N.json: that it was done, and of which tiles; the patient by an HMAC that only the set's key can repeat."""
    says = {
        "patient_hmac_sha256": mac, "tiles": found.tiles, "shards": found.shards, "dropped_candidates": found.dropped,
    }  # fmt: skip
    content, number = json.dumps(says, indent=1, sort_keys=True).encode(), 1
    while not lineage.create(f"revocations/{number:06d}.json", content):
        number += 1


def _cleared(spec: Spec, lineage: Store) -> Iterator[str]:
    """What LINEAGE and the cache hold of real tiles beside the units; what is not ours to delete is named."""
    why = {
        "pilot/": "may show tiles that rest on the patient",
        "calibration/": "may hold embeddings of such tiles",
        "privacy/nearest-": "held the patient's embeddings",
    }
    for begin, reason in why.items():
        for path, _ in list(lineage.entries(begin.partition("/")[0])):
            if path.startswith(begin):
                lineage.delete(path)
                yield f"removed {lineage.place}/{path}, which {reason}"
    cache = scratch_cache(spec.lineage)
    if cache.is_dir():
        shutil.rmtree(cache)
        yield f"removed {cache}, a cache of embeddings (the next build makes it anew)"
    for path, _ in lineage.entries("foreign"):
        yield f"left {lineage.place}/{path}: was found in the set once and may hold tiles of the patient; look at it"


def runs_on(patient: str, folders: Sequence[Path]) -> Iterator[Path]:
    """The training runs below `folders` that learnt from the patient, as their notes say."""
    (who,) = hashed([spelled(patient)])
    for note in sorted(path for folder in folders for path in folder.rglob(TAUGHT)):
        taught = read_taught(note.parent)
        if taught is not None and who in taught.patients:
            yield note.parent


def nearest(patient: str, found: Resting) -> str:
    """' is X meant?' of a name that LINEAGE has and that looks like this one; '' where none does."""
    known = {spelled(name): name for name in sorted(found.known)}
    alike = difflib.get_close_matches(spelled(patient), known, 1)
    return f"; is {shown(json.dumps(known[alike[0]], ensure_ascii=False))} meant?" if alike else ""


def models_on(lock: Mapping[str, Any], folders: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """(folder, how) of the models below `folders` that were trained on the set, themselves or through a base or a guide."""
    for folder in folders:
        for config in sorted(folder.rglob("config.json")):
            try:
                training = read_json(config.read_text()).get("training")
            except (OSError, ValueError, AttributeError):
                continue
            for how, sets in ancestry(training):
                if any(_same_set(known, lock) for known in sets):
                    yield config.parent, how
                    break


def _same_set(known: Mapping[str, Any], lock: Mapping[str, Any]) -> bool:
    return (known.get("name"), known.get("recipe_sha256")) == (lock["name"], lock["recipe_sha256"])
