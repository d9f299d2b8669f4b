"""What a spec's `privacy` asks of model and bank: refused or said in the plan, before anything is drawn or spent."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from synthfactory.embeddings.bank import Bank
from synthfactory.embeddings.rows import two_spellings
from synthfactory.model.find import Opened
from synthfactory.model.folder import ModelFolder
from synthfactory.plan.allocate import class_counts
from synthfactory.plan.bags import most_of_patient
from synthfactory.plan.conditions import ClassIndex
from synthfactory.plan.lock import read_lock
from synthfactory.plan.plan import ClassSummary
from synthfactory.plan.recipe import BEFORE_STRIDES, ModelFacts, version_of
from synthfactory.privacy.mix import SPREAD, assigned, clusters_of, most_tiles
from synthfactory.privacy.projection import Projection, load_projection
from synthfactory.shards.manifest import LOCK
from synthfactory.shards.store import open_store
from synthfactory.spec.errors import InputError
from synthfactory.spec.schema import Spec
from synthfactory.spec.text import shown

if TYPE_CHECKING:  # scipy takes half a second, and most plans have no use for it
    from synthfactory.privacy.ledger import Ledger, Request

PROJECTION = "projection.safetensors"
CLUSTER_KEY = b"synthfactory-mix"  # no secret: what comes of it stays in LINEAGE
NONE = "none: conditions are real tiles' embeddings as they are, unprotected; treat the set as personal data"
MIX = "not a privacy guarantee: attacks on conditions find nearly all members"


def open_projection(spec: Spec, model: Opened, facts: ModelFacts) -> Projection:
    """The spec's projection, or the model's own. InputError where there is none, or where it is of other embeddings."""
    place = spec.privacy.projection
    if place is None:
        own = model.path / PROJECTION if isinstance(model, ModelFolder) else None
        if own is None or not own.is_file():
            raise spec.error(
                "privacy.projection",
                f"is missing, and model {facts.id} ships none; make one from public embeddings: `synthfactory privacy fit`",
            )
        place = str(own)
    try:
        found = load_projection(place)
        if found.width != facts.condition_width:
            raise InputError(
                f"{place}: is of embeddings {found.width} wide; model {facts.id} takes {facts.condition_width}"
            )
        for key in ("id", "sha256"):
            fitted, given = found.encoder.get(key), facts.encoder.get(key)
            if fitted and given and fitted != given:
                raise InputError(f"{place}: is of encoder {fitted}; the embeddings are of {given}")
    except InputError as error:
        raise spec.error("privacy.projection", str(error)) from None
    return found


def ledger_of(spec: Spec) -> Ledger:
    """The ledger of the spec's cohort."""
    from synthfactory.privacy.ledger import Ledger

    assert spec.privacy.ledger is not None and spec.privacy.cohort is not None
    try:
        found = Ledger(open_store(spec.privacy.ledger), spec.privacy.cohort)
        found.entries()
    except (InputError, OSError) as error:
        raise spec.error("privacy.ledger", str(error)) from None
    return found


def protection(
    spec: Spec,
    model: Opened,
    facts: ModelFacts,
    summaries: Mapping[str, ClassSummary],
    bank: Bank | None,
    patients: Iterable[str | None],
) -> tuple[str, ...]:
    """What the plan says of privacy, a sentence each. InputError, at its place in the spec, for what cannot give what was asked for.

    `bank` is None where tiles are still to be embedded: what depends on it is then checked once they are; `patients` are known either way.
    """
    if spec.embeddings.unconditional:
        return ()
    counts = class_counts(spec)
    if spec.privacy.mechanism == "none":
        for name, count in counts.items():
            _check_most(spec, name, count, _most(spec, max(summaries[name].patients, 1), name, count))
        alike = two_spellings(patients)
        return (
            (NONE,)
            if alike is None
            else (NONE, f"{_named(alike)} count as two patients; if they are one, spell one person one way")
        )
    for name in counts:
        if summaries[name].unknown_rows:
            raise spec.error(
                "privacy.mechanism",
                f"the unit of protection is the patient, and {summaries[name].unknown_rows:,} rows of {name} name none; give each a "
                "patient_id, or leave those rows out",
            )
    _check_spelling(spec, patients)
    if spec.privacy.mechanism == "mix":
        return _mix(spec, counts, summaries, bank, facts.condition_width)
    return _dp(spec, model, facts, summaries, bank)


def _most(spec: Spec, patients: int, name: str, count: int) -> int:
    """Most tiles of one patient. InputError where a bag is to rest on more patients than the class has."""
    if spec.bags is None:
        return math.ceil(count / patients)
    if spec.bags.group > patients:
        raise spec.error(
            "bags.patients",
            f"{name} has tiles of {patients} patient{'s' * (patients != 1)}, and a bag rests on {spec.bags.group}; lower patients, or "
            "leave the class out",
        )
    return most_of_patient(patients, spec.bags, count)


def _named(names: Iterable[str]) -> str:
    return " and ".join(shown(json.dumps(name, ensure_ascii=False)) for name in names)


def _check_spelling(spec: Spec, patients: Iterable[str | None]) -> None:
    """One person under two names would count twice, and lose twice of what was promised."""
    alike = two_spellings(patients)
    if alike is not None:
        raise spec.error(
            f"embeddings.{spec.embeddings.source}",
            f"names patients that differ in case, spaces or form of letters only ({_named(alike)}); the patient is the unit of protection, "
            "so spell one person one way",
        )


def _check_most(spec: Spec, name: str, count: int, most: int) -> None:
    limit = spec.privacy.max_tiles_per_patient
    if limit is not None and most > limit:
        raise spec.error(
            "privacy.max_tiles_per_patient",
            f"{count:,} tiles of {name} put a patient into up to {most:,}, more than {limit:,}; ask for fewer tiles, or raise the limit",
        )


def _begun(spec: Spec) -> int:
    """The version of conditions of the set that stands, or of one that would be begun now."""
    store = open_store(spec.output.path, reading=True)
    lock = read_lock(store.read(LOCK)) if store.size(LOCK) is not None else None
    return version_of(lock, spec.privacy.mechanism)


def _mix(
    spec: Spec, counts: Mapping[str, int], summaries: Mapping[str, ClassSummary], bank: Bank | None, width: int
) -> tuple[str, ...]:
    k, begun = spec.privacy.value("k"), _begun(spec)
    for name, count in counts.items():
        patients = summaries[name].patients
        if patients < k:
            raise spec.error(
                "privacy.k" if spec.privacy.k else "privacy",
                f"{name} has tiles of {patients} patient{'s' * (patients != 1)}, and a blend takes {k}; lower k (2 or more), or leave the "
                "class out",
            )
        most = k * math.ceil(count / patients)
        if bank is not None and spec.privacy.max_tiles_per_patient is not None:
            low, index = bank.span(name)[0], ClassIndex(*bank.patients_of(name))

            def take(rows: np.ndarray, low: int = low, of: Bank = bank) -> np.ndarray:
                return of.take(low + rows)

            strides = begun > BEFORE_STRIDES
            spreads = (SPREAD,) if strides else (1, SPREAD)  # an older set may have been begun with either
            kinds = [clusters_of(assigned(take, index, k, CLUSTER_KEY, each), index) for each in spreads]
            most = max(most_tiles(each, k, count, strides=strides) for each in kinds)
        _check_most(spec, name, count, most)
    told = [f"mix: each condition blends tiles of {k} patients, within one kind of tissue; {MIX}"]
    few = [name for name in counts if summaries[name].rows < width]
    if few:
        told.append(
            f"{', '.join(few)}: fewer tiles than an embedding has values ({width}), so that the conditions of enough blends tell without "
            "error whose tiles they are of"
        )
    return tuple(told)


def _dp(
    spec: Spec, model: Opened, facts: ModelFacts, summaries: Mapping[str, ClassSummary], bank: Bank | None
) -> tuple[str, ...]:
    from synthfactory.privacy.accountant import sigma_for
    from synthfactory.privacy.release import mean_noise

    asked, projection = spec.privacy, open_projection(spec, model, facts)
    epsilon, delta = float(asked.value("epsilon")), float(asked.value("delta"))
    sigma, noises, classes_each = sigma_for(epsilon, delta), {}, int(asked.value("classes_per_patient"))
    for name in spec.classes:  # by what was declared: what the bank holds must not decide whether a set comes about
        patients = (asked.population or {})[name]
        noises[name] = mean_noise(sigma, projection.dimension, patients, classes_each) / projection.between
        if noises[name] >= 1:
            raise spec.error(
                "privacy.epsilon",
                f"noise would drown {name}: {noises[name]:.2g} times the distance between classes, with {patients:,} "
                f"patient{'s' * (patients != 1)} at epsilon {epsilon:g}; about {math.ceil(patients * noises[name]):,} patients are needed, "
                "or a larger epsilon, or another mechanism for this class",
            )
    stands = _standing_release(spec)
    own = f"{asked.cohort}: the set's own release is taken again, and nothing is spent"
    budget = own if stands else _budget(spec, sigma, projection, bank)
    few = () if bank is None else _fewer(spec, bank)
    if not stands:
        for name in spec.classes:
            levels = summaries[name].label_levels
            if set(levels) != {asked.label_level}:
                raise spec.error(
                    "privacy.label_level",
                    f"{asked.label_level} is declared, and rows of {name} are labelled by {', '.join(levels)}",
                )
    return (
        f"dp: epsilon {epsilon:g} at delta {delta:g} for adding or removing one patient of cohort {asked.cohort}; one release, any number "
        f"of tiles; what the base model was trained on is not covered, nor is the projection ({projection.provenance})",
        f"ledger: {budget}",
        "noise of a class's mean over the distance between classes, by the patients that were declared: "
        + ", ".join(f"{name} {value:.2f}" for name, value in noises.items()),
        "what this plan says of patients and rows is of the bank itself: internal, not covered by epsilon",
        *few,
    )


def _fewer(spec: Spec, bank: Bank) -> tuple[str, ...]:
    """Where the bank gives more noise than what was declared says; of the bank itself, for the plan alone."""
    from synthfactory.privacy.moments import weight

    asked, groups = spec.privacy, bank.groups
    pairs = {(groups.patients[g], name) for name in spec.classes for g in groups.of_label(name)}
    of, declared = Counter(patient for patient, _ in pairs), int(asked.value("classes_per_patient"))
    found = []
    if max(of.values(), default=1) > declared:
        found.append(
            f"patients have tiles of up to {max(of.values())} classes, and noise is stated for {declared}: who has more counts less in "
            "each; declare privacy.classes_per_patient"
        )
    for name in spec.classes:
        count = sum(weight(of[patient]) for patient, label in pairs if label == name)
        stated = (asked.population or {})[name] * weight(declared)
        if count < stated / 2:
            found.append(
                f"{name} has fewer than half of the patients that were declared ({count:.3g} of {stated:.3g}, as they count): more noise "
                "than stated"
            )
    return tuple(found)


def _standing_release(spec: Spec) -> bool:
    """Whether the set stands with a release that the ledger holds. InputError where the spec asks for another."""
    try:
        says = read_lock(open_store(spec.output.path).read(LOCK))["recipe"]["privacy"]
    except (OSError, InputError):
        return False
    ledger = ledger_of(spec)
    own = next((entry for entry in ledger.entries() if entry.release.sha256 == says.get("release_sha256")), None)
    if own is None:
        return False
    number = [entry.number for entry in ledger.equal(own.request)].index(own.number) + 1
    if spec.privacy.release not in (None, number):
        raise spec.error(
            "privacy.release",
            f"was {number} when {spec.output.path} was begun, now {spec.privacy.release}; a set has one release: write {number}, or name "
            "another output.path and lineage",
        )
    return True


def refused(spec: Spec, error: InputError) -> InputError:
    """What a ledger refuses, at its place in the spec."""
    return spec.error("privacy.release" if str(error).startswith("release ") else "privacy.cap", str(error))


def request_of(spec: Spec, projection: Projection, bank: Bank) -> Request:
    """What the ledger is asked for."""
    from synthfactory.privacy.ledger import Request

    classes, asked = tuple(sorted(spec.classes)), spec.privacy
    rows = tuple(bank.classes[name].sha256 for name in classes)
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    assert asked.cohort is not None
    return Request(
        asked.cohort,
        classes,
        float(asked.value("epsilon")),
        float(asked.value("delta")),
        projection.sha256,
        digest,
        rows,
    )


def _budget(spec: Spec, sigma: float, projection: Projection, bank: Bank | None) -> str:
    """What the ledger says, and will say. InputError where this set's release would be over the cap."""
    from synthfactory.privacy.accountant import epsilon_together

    asked, ledger = spec.privacy, ledger_of(spec)
    delta, cap = float(asked.value("delta")), float(asked.value("cap"))
    entries = ledger.entries()
    delta = min([delta, *(entry.request.delta for entry in entries)])
    spent = epsilon_together([entry.release.sigma for entry in entries], delta)
    if bank is None:
        return f"{asked.cohort} has spent epsilon {spent:.3g} of {cap:g} in {asked.ledger}; more is known once the tiles are embedded"
    request = request_of(spec, projection, bank)
    check_name(spec, request)
    try:
        found = ledger.check(request, sigma, cap, asked.release)
    except InputError as error:
        raise refused(spec, error) from None
    if found is not None:
        numbers = [entry.number for entry in ledger.equal(request)]
        which = f"release {numbers.index(found.number) + 1} of an equal request is taken again"
        other = f"; it was made of other rows than the bank has now (`release: {len(numbers) + 1}` makes, and charges, one of these)"
        same = found.request.bank_sha256 == request.bank_sha256
        return f"{asked.cohort} has spent epsilon {spent:.3g} of {cap:g}; {which}{'' if same else other}"
    total = epsilon_together([*(entry.release.sigma for entry in entries), sigma], delta)
    new = f" ({asked.ledger} holds no release of this cohort yet: is it the right ledger?)" if not entries else ""
    return f"{asked.cohort} has spent epsilon {spent:.3g} of {cap:g}; this build's release makes it {total:.3g}{new}"


def check_name(spec: Spec, request: Request) -> None:
    """InputError where another cohort of the ledger has released the very rows of one of these classes: the same patients by another
    name. Rows that were changed are not known again: whose patients a cohort holds is for its keeper to know.
    """
    from synthfactory.privacy.ledger import Ledger, cohorts

    assert spec.privacy.ledger is not None
    store = open_store(spec.privacy.ledger)
    for name in cohorts(store):
        others = () if name == request.cohort else Ledger(store, name).entries()
        if any(request.shares_rows(entry.request) for entry in others):
            what = f"these very rows, or those of some class, were released before, as cohort {name}; one cohort has one name"
            raise spec.error("privacy.cohort", what)
